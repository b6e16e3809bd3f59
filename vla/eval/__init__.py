"""How good a policy is: episodes in a simulator, error against recorded actions, and the report of both."""
