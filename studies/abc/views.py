"""What losses of this study compare, and small arithmetic that they share."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional

from .package import InputError

EPS = 1e-8


@dataclass(frozen=True)
class View:
    """Of a batch: what the student made of it, what the teacher said of it, and clean speech (none if label-free)."""

    student: Sequence[Tensor]
    """Features (B, C_i, T, F_i)."""
    maps: Sequence[Tensor]
    """The teacher's: mean over channels of x^2, (B, T, F_j)."""
    features: Sequence[Tensor]
    """The teacher's: principal channels (B, 16, T, G_j)."""
    output: Tensor
    """Of the student, (B, N)."""
    response: Tensor
    """Of the teacher, (B, N)."""
    clean: Tensor | None


@dataclass(frozen=True)
class Shapes:
    """What a loss is built for."""

    student_layers: tuple[str, ...]
    student_channels: tuple[int, ...]
    student_bands: tuple[int, ...]
    teacher_layers: tuple[str, ...]
    teacher_bands: tuple[int, ...]
    teacher_channels: int

    @property
    def stage_mask(self) -> Tensor:
        """(n, m): encoder and bottleneck learn from the encoder and bottleneck, the decoder from the decoder."""
        stages = [[_stage(name) for name in names] for names in (self.student_layers, self.teacher_layers)]
        return torch.tensor([[of_teacher == of_student for of_teacher in stages[1]] for of_student in stages[0]])

    @property
    def pairs(self) -> list[tuple[int, int]]:
        """One to one: of one stage and one width, in the order of depth; what is left over has no partner."""
        found, taken = [], set()
        for j, name in enumerate(self.teacher_layers):
            free = [i for i, own in enumerate(self.student_layers) if i not in taken and _stage(own) == _stage(name)]
            if not free:
                continue
            # Of those of the nearest width that of the same name, else the deepest of the encoder's.
            misfit = [abs(self.student_bands[i] - self.teacher_bands[j]) for i in free]
            nearest = [i for i, far in zip(free, misfit, strict=True) if far == min(misfit)]
            same = [i for i in nearest if self.student_layers[i] == name]
            i = (same or nearest)[-1]
            taken.add(i)
            found.append((i, j))
        return found


def _stage(name: str) -> str:
    return "decoder" if name.startswith("decoder") else "encoder"


def energy(x: Tensor) -> Tensor:
    """(B, C, T, F) to (B, T, F): the mean over channels of x^2."""
    return x.float().square().mean(1)


def on_bands(x: Tensor, bands: int) -> Tensor:
    """(..., F) to (..., bands) by the windows of adaptive pooling."""
    if x.shape[-1] == bands:
        return x
    return functional.adaptive_avg_pool1d(x.flatten(0, -2)[:, None], bands)[:, 0].view(*x.shape[:-1], bands)


def unit(x: Tensor, dim: int | tuple[int, ...] = -1) -> Tensor:
    """x at norm 1 along `dim`; what is zero stays zero, with finite gradients."""
    return x * (x.square().sum(dim, keepdim=True) + EPS).rsqrt()


def rooted(x: Tensor) -> Tensor:
    """sign(x) |x|^0.5 with a bounded slope: loud cells count less, as in the objective."""
    return x * (x.square() + 1e-4).sqrt().rsqrt()


def contrast(x: Tensor) -> Tensor:
    """Of an energy map (B, T, F): its fourth root, without its mean over bands, at norm 1 in every frame."""
    x = (x + 1e-6).sqrt().sqrt()
    return unit(x - x.mean(-1, keepdim=True))


def balanced(scores: Tensor, mask: Tensor, rounds: int = 8) -> Tensor:
    """Attention (..., n, m) whose rows sum to 1 and whose columns, within a stage, to n / m: every layer is taught.

    Sinkhorn's iterations in the logarithm; the last one is of the rows.
    """
    logits = scores.masked_fill(~mask, float("-inf"))
    per_column = mask.sum(0)  # student layers that may ask for a teacher layer
    per_row = mask.sum(1)
    # Stages are blocks: a column's share is the rows of its block over the columns of its block.
    columns = (mask.float() * per_row[:, None]).sum(0) / per_column
    target = torch.log(per_column / columns)
    logits = logits - logits.amax(-1, keepdim=True)
    for _ in range(rounds):
        logits = logits - torch.logsumexp(logits, -2, keepdim=True) + target
        logits = logits - torch.logsumexp(logits, -1, keepdim=True)
    return logits.exp()


def attention_of(scores: Tensor, mask: Tensor, kind: str, temperature: float) -> Tensor:
    """Attention (B, n, m) from similarities (B, n, m): "balanced", a softmax ("softmax", "output"), or equal weights
    of what the mask allows ("uniform", "pairs")."""
    if kind in ("uniform", "pairs"):
        return (mask.float() / mask.sum(1, keepdim=True).clamp_min(1)).expand_as(scores)
    scores = scores.detach() / temperature
    if kind in ("softmax", "output"):
        return scores.masked_fill(~mask, float("-inf")).softmax(-1)
    if kind == "balanced":
        return balanced(scores, mask)
    raise InputError(f"attention: expected balanced, softmax, output, uniform or pairs, got {kind!r}")


class Loss(nn.Module):
    """Maps a `View` to a scalar. `prepare` sees batches of the teacher alone, before the student learns."""

    preparation = 0
    """Batches that `prepare_step` wants."""

    def prepare_step(self, view: View) -> Tensor:
        """What the loss's own parts minimise beforehand."""
        raise NotImplementedError

    def forward(self, view: View) -> Tensor:
        raise NotImplementedError
