"""Networks and checkpoints, for use in your own code."""

from .network.load import load_network, save_checkpoint

__all__ = ["load_network", "save_checkpoint"]
