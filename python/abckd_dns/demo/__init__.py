"""The command `demo`, and real speech and noise for it out of packages."""
