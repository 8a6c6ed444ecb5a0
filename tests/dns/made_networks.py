"""Networks of this package for tests that need no training."""

import torch

from abckd_dns.network.config import DenoiserConfig, GtcrnConfig
from abckd_dns.network.denoiser import Denoiser
from abckd_dns.network.load import make
from abckd_dns.network.masking import MaskNetwork

SMALL = DenoiserConfig(channels=(4, 6), recurrent_size=8)


def lively(config: DenoiserConfig | GtcrnConfig) -> MaskNetwork:
    """In eval mode, with statistics and a mask that hide nothing; always the same."""
    torch.manual_seed(0)
    network = make(config)
    with torch.no_grad():
        if isinstance(network, Denoiser):
            network.mask.weight.mul_(10)
        else:
            network.decoder[-1][1].weight.mul_(10)
        for _ in range(3):
            network(0.1 * torch.randn(4, 8_000))
    return network.eval()
