"""Recording a dataset in LeRobot v3.0."""
