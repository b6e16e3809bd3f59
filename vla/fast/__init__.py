"""The inference form of networks: what makes a sample fast where nothing is trained. Knows no policy."""
