"""What is learned and how it is sampled: flow matching, and solvers of a velocity; torch only."""
