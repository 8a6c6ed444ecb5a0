"""Small networks, and the Distiller between two of them."""

import torch
from torch import nn

from abckd_kernels import ABCLoss, Distiller


class Block(nn.Module):
    def __init__(self, inputs, outputs, stride=1):
        super().__init__()
        self.conv, self.norm = nn.Conv2d(inputs, outputs, 3, stride, padding=1), nn.BatchNorm2d(outputs)

    def forward(self, x):
        return self.norm(self.conv(x)).tanh()


class Network(nn.Module):
    """Two blocks and a head: encoder.0, encoder.1, head."""

    def __init__(self, channels):
        super().__init__()
        self.encoder = nn.Sequential(Block(1, channels), Block(channels, 2 * channels, stride=2))
        self.head, self.unused = nn.Conv2d(2 * channels, 1, 1), nn.Conv2d(1, 1, 1)

    def forward(self, x):
        return self.head(self.encoder(x))


LAYERS = ["encoder.0", "encoder.1"]
X = torch.randn(2, 1, 8, 6, generator=torch.Generator().manual_seed(5))


def networks():
    torch.manual_seed(0)
    return Network(3), Network(5)


def learned_loss(**options):
    torch.manual_seed(1)
    return ABCLoss([3, 6], [5, 10], dim=4, **options)


def distil(student, teacher, loss=None, layers=LAYERS):
    return Distiller(student, teacher, layers, layers, learned_loss() if loss is None else loss)


def hooks_of(network):
    return [
        hook
        for module in network.modules()
        for hook in (
            *module._forward_hooks.values(),
            *module._forward_pre_hooks.values(),
            *module._backward_hooks.values(),
        )
    ]
