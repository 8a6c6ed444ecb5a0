"""Response losses: the student's output is compared with the teacher's."""

from .logits import DISTLoss, DKDLoss, JSDLoss, KLLoss, dist_loss, dkd_loss, jsd_loss, kl_loss

__all__ = ["DISTLoss", "DKDLoss", "JSDLoss", "KLLoss", "dist_loss", "dkd_loss", "jsd_loss", "kl_loss"]
