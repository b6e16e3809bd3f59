"""From a recipe to what the loop works with."""
