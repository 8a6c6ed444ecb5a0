"""Pointwise hints: hint, VID, PAD, SRD, AB, OFD."""

import math

import cases
import naive_hints as naive
import pytest
import torch
from suite import *  # noqa: F403 - the tests that every loss passes
from suite import Loss, gradients
from torch import nn

from abckd_kernels.losses import hints as h

OTHER = (3, 9, 4)  # another size
WIDE = (4, 6, 5)  # other channels
SCALES = torch.linspace(-1, 2, 3, dtype=torch.float64)
MARGINS = -torch.linspace(0.1, 0.9, 3, dtype=torch.float64)
MODULE = "with learned parts: its own row"


def log_variances(student, teacher):
    return {"log_variances": student.flip(-1) * 0.5}


def with_scales(student, teacher):
    return {"scales": SCALES.to(torch.promote_types(student.dtype, torch.float32))}


def with_margins(student, teacher):
    return {"margins": MARGINS.to(torch.promote_types(student.dtype, torch.float32))}


signed = {"nonnegative": False, "zero_at_equality": False}
apart = {"zero_at_equality": False}  # where the margin is not reached
plain = {"teacher": (3, 6, 5), "invariant": "batch"}
sized = {"teacher": OTHER, "invariant": "batch"}
learned = {"teacher": WIDE, "of_batch": True, **signed}
no_module = {"excused": {"test_module_is_the_function": MODULE}}
LOSSES = [
    Loss("hint", h.hint_loss, naive.hint, vectors=True, **plain, **no_module),
    Loss("hint", h.hint_loss, naive.hint, **sized, **no_module),
    Loss("vid", h.vid_loss, naive.vid, extra=with_scales, **plain, **signed, **no_module),
    Loss("vid", h.vid_loss, naive.vid, extra=with_scales, options={"eps": 0.1}, **sized, **signed, **no_module),
    Loss("vid", None, naive.vid_module, module=lambda: h.VIDLoss(3, 4), teacher=WIDE, invariant="batch", **signed),
    Loss("pad", h.pad_loss, naive.pad, extra=log_variances, **plain, **signed, **no_module),
    Loss("pad", h.pad_loss, naive.pad, extra=log_variances, options={"eps": 0.1}, **sized, **signed, **no_module),
    Loss("pad", None, naive.pad_module, module=lambda: h.PADLoss(3, 4), invariant="batch", **learned),
    Loss("pad", None, naive.pad_module, module=lambda: h.PADLoss(3, 3), invariant="batch",
         **learned | {"teacher": (3, 6, 5)}),
    Loss("srd", h.srd_loss, naive.srd, vectors=True, **plain, **no_module),
    Loss("srd", h.srd_loss, naive.srd, options={"exponent": 1.5}, **sized, **no_module),
    Loss("srd", h.srd_loss, naive.srd, options={"reduction": "batch"}, of_batch=True, **plain, **signed, **no_module),
    Loss("srd", None, naive.srd_module, module=lambda: h.SRDLoss(3, 4), invariant="scale batch", **learned),
    Loss("ab", h.ab_loss, naive.ab, **plain, **apart),
    Loss("ab", h.ab_loss, naive.ab, options={"margin": 0.3, "reduction": "sum"}, **sized, **apart),
    Loss("ab", None, naive.ab_module, module=lambda: h.ABLoss(3, 4), invariant="scale batch", **learned),
    Loss("ofd", h.ofd_loss, naive.ofd, extra=with_margins, **plain, **no_module),
    Loss("ofd", h.ofd_loss, naive.ofd, extra=with_margins, options={"reduction": "sum"}, **sized, **no_module),
    Loss("ofd", None, naive.ofd_module, module=lambda: h.OFDLoss(3, 4), invariant="scale batch", **learned),
]  # fmt: skip
