"""Relational losses: what matters is how samples, channels or frames relate to each other."""

from .batch import (
    CCLoss,
    HKDLoss,
    IRGLoss,
    PKTLoss,
    RKDLoss,
    SPLoss,
    cc_loss,
    hkd_loss,
    irg_loss,
    pkt_loss,
    rkd_loss,
    sp_loss,
)
from .channels import AffinityLoss, FSPLoss, ICKDLoss, NSTLoss, affinity_loss, fsp_loss, ickd_loss, nst_loss
from .speech import (
    FrameSimilarityLoss,
    GramLoss,
    TimeSimilarityLoss,
    frame_similarity_loss,
    gram_loss,
    time_similarity_loss,
)

__all__ = [
    "AffinityLoss",
    "CCLoss",
    "FSPLoss",
    "FrameSimilarityLoss",
    "GramLoss",
    "HKDLoss",
    "ICKDLoss",
    "IRGLoss",
    "NSTLoss",
    "PKTLoss",
    "RKDLoss",
    "SPLoss",
    "TimeSimilarityLoss",
    "affinity_loss",
    "cc_loss",
    "frame_similarity_loss",
    "fsp_loss",
    "gram_loss",
    "hkd_loss",
    "ickd_loss",
    "irg_loss",
    "nst_loss",
    "pkt_loss",
    "rkd_loss",
    "sp_loss",
    "time_similarity_loss",
]
