"""How a policy meets a folder or the hub: recognise, load, convert; one place per library."""
