"""Audio: files, places that hold them, and the examples that are made of them."""
