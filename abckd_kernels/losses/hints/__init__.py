"""Hints: the student's features are compared with the teacher's position by position."""

from .activations import ABLoss, OFDLoss, ab_loss, margins, ofd_loss
from .channels import CWDLoss, PKDLoss, cwd_loss, pkd_loss
from .factors import FTLoss, Paraphraser, Translator, ft_loss
from .projection import ConvReg, HintLoss
from .regression import PADLoss, SRDLoss, VIDLoss, hint_loss, pad_loss, srd_loss, vid_loss
from .review import ABF, ReviewLoss, review_loss

__all__ = [
    "ABF",
    "ABLoss",
    "CWDLoss",
    "ConvReg",
    "FTLoss",
    "HintLoss",
    "OFDLoss",
    "PADLoss",
    "PKDLoss",
    "Paraphraser",
    "ReviewLoss",
    "SRDLoss",
    "Translator",
    "VIDLoss",
    "ab_loss",
    "cwd_loss",
    "ft_loss",
    "hint_loss",
    "margins",
    "ofd_loss",
    "pad_loss",
    "pkd_loss",
    "review_loss",
    "srd_loss",
    "vid_loss",
]
