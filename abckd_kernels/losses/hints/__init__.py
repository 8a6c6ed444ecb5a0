"""Hints: the student's features are compared with the teacher's position by position."""

from .activations import ABLoss, OFDLoss, ab_loss, margins, ofd_loss
from .regression import PADLoss, SRDLoss, VIDLoss, hint_loss, pad_loss, srd_loss, vid_loss

__all__ = [
    "ABLoss",
    "OFDLoss",
    "PADLoss",
    "SRDLoss",
    "VIDLoss",
    "ab_loss",
    "hint_loss",
    "margins",
    "ofd_loss",
    "pad_loss",
    "srd_loss",
    "vid_loss",
]
