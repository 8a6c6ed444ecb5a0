"""What numerics are checked on: features of every dtype and memory layout, and the layers of a loss."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

DTYPES = (torch.float32, torch.float64, torch.bfloat16, torch.float16)
HALF_DTYPES = (torch.bfloat16, torch.float16)


def name_of(dtype: torch.dtype) -> str:
    return str(dtype).removeprefix("torch.")


def feature(shape, dtype: torch.dtype = torch.float32, seed: int = 0) -> Tensor:
    """Normal numbers, every channel with its own offset, so that means differ from zero; one value is exactly zero."""
    generator = torch.Generator().manual_seed(seed)
    x = torch.randn(shape, generator=generator, dtype=torch.float64)
    x = x + torch.randn((1, shape[1], *[1] * (len(shape) - 2)), generator=generator, dtype=torch.float64)
    if x.numel() > 1:
        x.view(-1)[x.numel() // 2] = 0
    return x.to(dtype)


def contiguous(x: Tensor) -> Tensor:
    return x.contiguous()


def channels_last(x: Tensor) -> Tensor:
    return x.movedim(1, -1).contiguous().movedim(-1, 1)


def sliced(x: Tensor) -> Tensor:
    """Every second element along the last axis of something larger."""
    return torch.stack([x, torch.full_like(x, torch.nan)], -1).flatten(-2)[..., ::2]


def swapped(x: Tensor) -> Tensor:
    """The spatial axes lie the other way round (batch and channels where there is at most one)."""
    first, second = (0, 1) if x.dim() < 4 else (2, 3)
    return x.transpose(first, second).contiguous().transpose(first, second)


def expanded(x: Tensor) -> Tensor:
    """Every channel is the first one, by stride 0."""
    return x[:, :1].expand(x.shape)


def repeated(x: Tensor) -> Tensor:
    """Every sample is the first one, by stride 0."""
    return x[:1].expand(x.shape)


LAYOUTS = (contiguous, channels_last, sliced, swapped, expanded)


@dataclass(frozen=True)
class Layers:
    """Student and teacher features of one loss. Lengths count on the scale of the layer with most frames."""

    name: str
    student_shapes: tuple[tuple[int, ...], ...]
    teacher_shapes: tuple[tuple[int, ...], ...]
    grid: tuple[int, ...] | None = None
    lengths: tuple[int, ...] | None = None

    def __str__(self) -> str:
        return self.name

    def features(self, dtype: torch.dtype, layout=contiguous) -> tuple[list[Tensor], list[Tensor]]:
        """New student features, which require gradients, and teacher features."""
        students = [layout(feature(shape, dtype, seed)) for seed, shape in enumerate(self.student_shapes)]
        teachers = [layout(feature(shape, dtype, 50 + seed)) for seed, shape in enumerate(self.teacher_shapes)]
        return [x.detach().requires_grad_() for x in students], teachers

    @property
    def pairs(self) -> tuple[int, int, int]:
        """(batch, student layers, teacher layers)."""
        return self.student_shapes[0][0], len(self.student_shapes), len(self.teacher_shapes)

    @property
    def has_bands(self) -> bool:
        return len(self.student_shapes[0]) == 4 and (self.grid or (0, 2))[1] > 1

    @property
    def arguments(self) -> dict:
        lengths = None if self.lengths is None else torch.tensor(self.lengths)
        return {"grid": self.grid, "lengths": lengths}


FRAMES = Layers("frames", ((2, 3, 7),), ((2, 5, 7), (2, 1, 9)))
DOWN = Layers("down", ((3, 4, 7, 5), (3, 2, 4, 6)), ((3, 5, 9, 5), (3, 1, 6, 3), (3, 8, 4, 4)))
PADDED = Layers("padded", ((4, 3, 10, 5), (4, 2, 5, 3)), ((4, 4, 10, 5), (4, 3, 7, 4)), lengths=(10, 7, 1, 4))
LAYERS = (
    FRAMES,
    DOWN,
    PADDED,
    Layers("up", ((2, 3, 4, 5),), ((2, 6, 3, 7), (2, 2, 4, 5)), grid=(9, 8)),
    Layers("given_grid", ((2, 5, 13, 6), (2, 3, 11, 9)), ((2, 7, 17, 11),), grid=(5, 4)),
    Layers("one_channel", ((2, 1, 3, 4),), ((2, 1, 3, 4),)),
    Layers("one_frame", ((2, 3, 1, 6),), ((2, 4, 1, 6), (2, 3, 1, 9))),
    Layers("odd", ((1, 17, 5, 33),), ((1, 9, 5, 33),)),
    Layers("padded_up", ((3, 3, 6, 4),), ((3, 4, 4, 4), (3, 2, 3, 4)), grid=(8, 3), lengths=(6, 2, 5)),
    Layers("padded_frames", ((3, 3, 11),), ((3, 4, 8), (3, 2, 11)), lengths=(11, 5, 3)),
)
OPTIONS = {
    "similarity": {},
    "cold": {"temperature": 0.02},
    "power_1": {"power": 1},
    "frame": {"normalize": "frame"},
    "uniform": {"scores": "uniform"},
    "uniform_frame_power_1": {"scores": "uniform", "normalize": "frame", "power": 1},
}
