"""The server: sockets on one side, the policy in a thread of its own on the other."""
