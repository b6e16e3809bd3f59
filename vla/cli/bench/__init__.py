"""`vla bench`: what a policy costs, and what is measured by training or under load."""
