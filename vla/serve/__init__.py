"""Between a policy and the robot that it moves."""
