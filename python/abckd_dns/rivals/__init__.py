"""Public denoisers of others, whose weights come in Python packages."""
