"""What acting takes besides the policy: episodes, chunks that continue others, the best of several."""
