"""Losses as users of published code have them, in plain PyTorch."""
