"""How good a network is, and running it on recordings."""
