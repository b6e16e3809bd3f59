"""The robot's side of vla: ask a policy server for chunks of actions, and execute them."""
