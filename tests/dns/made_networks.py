"""Networks of this package for tests that need no training."""

import torch

from abckd_dns.network.config import DenoiserConfig
from abckd_dns.network.denoiser import Denoiser

SMALL = DenoiserConfig(channels=(4, 6), recurrent_size=8)


def lively(config: DenoiserConfig) -> Denoiser:
    """In eval mode, with statistics and a mask that hide nothing; always the same."""
    torch.manual_seed(0)
    network = Denoiser(config)
    with torch.no_grad():
        network.mask.weight.mul_(10)
        for _ in range(3):
            network(0.1 * torch.randn(4, 8_000))
    return network.eval()
