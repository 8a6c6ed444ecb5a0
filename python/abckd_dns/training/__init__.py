"""How a network learns: losses, the loop, and what keeps a long run alive."""
