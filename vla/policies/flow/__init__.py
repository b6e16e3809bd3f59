"""What pi-0 and pi-0.5 share: a prefix that is read once, and a flow in its suffix."""
