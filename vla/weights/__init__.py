"""Published checkpoint formats: where they lie, and later how their tensors map to ours."""
