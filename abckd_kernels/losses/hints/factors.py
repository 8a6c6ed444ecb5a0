"""Factor transfer: the attention maps of what a translator (student) and a paraphraser (teacher) make of features."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Annotated, Literal

import torch
from torch import Tensor, nn

from ...ops import tap
from ..common.arithmetic import root, unit, wide
from ..common.checks import both_or_neither
from ..common.features import Padding, batch_mean, check_equal, on_one_grid, pairs, weighted, without_autocast
from ..common.modules import Configured
from ..common.normalisation import ValidBatchNorm, convolution
from ..common.options import Limits, check_options
from ._matching import EVERYWHERE, Channels, Features, channel_pairs, matched

SLOPE = 0.1  # of the leaky ReLU behind each convolution, as published


def ft_loss(
    student_features: Features,
    teacher_features: Features,
    *,
    normalize: Literal["map", "factor"] = "map",
    power: int = 2,
    p: Annotated[float, Limits(1.0)] = 1.0,
    lengths: Tensor | None = None,
    padded_length: int | None = None,
    weights: Sequence[float] | Tensor | None = None,
) -> Tensor:
    """Factor transfer (Kim et al., NeurIPS 2018) of factors, features that were already translated and paraphrased.

    student_features, teacher_features   factors (B, K, T), (B, K, T, F) or (B, K, H, W), or lists of n; float32,
                     float64, bfloat16 or float16; the teacher's are detached. Where sizes differ, both are averaged
                     over the windows of adaptive pooling onto the smaller size of each axis.
    normalize        "map": Q = mean_k |x|^power scaled to norm 1, per sample; L = mean over positions of
                     |Q_s - Q_t|^p. RepDistiller's, and the default: numbers of factors need not agree.
                     "factor": the whole factor scaled to norm 1; L = mean |.| over its elements, or for another p
                     than 1 its norm ||.||_p. The paper's; torchdistill's FTLoss and KTALoss.
    power            1 or 2; of "map".
    p                at least 1; 1 is the paper's best.
    lengths          (B,) integers: valid frames; later ones count nowhere.
    padded_length    the frames to which lengths refer; default: T of the feature with most.
    weights          n numbers; default 1/n.

    A silent factor has Q = 0 (torchdistill: 0/0). Returns a scalar in float32 (float64 if a feature is), mean over
    samples. Raises TypeError or ValueError that names the argument.

    Traffic: "map" reads S and T once forward (op `tap`), S once backward. "factor" makes scaled copies of both.
    """
    check_options(ft_loss, normalize=normalize, p=p)
    found, padding = (
        matched(student_features, teacher_features, lengths, padded_length)
        if normalize == "factor"
        else pairs(student_features, teacher_features, lengths, padded_length, zeroed=False)
    )
    if normalize == "map":
        for index, (s, t) in enumerate(found):
            check_equal(index, "number of axes", s.dim(), t.dim())
        found = [on_one_grid(s, t, padding, zeroed=False) for s, t in found]
    return _ft(found, padding, normalize, power, p, weights)


def _ft(
    found: list[tuple[Tensor, Tensor]], padding: Padding, normalize: str, power: int, p: float, weights=None
) -> Tensor:
    losses = []
    for s, t in found:
        positions = padding.positions(s)
        if normalize == "map":
            maps = (tap(x, power=power, means=False, **padding._asdict()).map for x in (s, t))
            count = positions
        else:
            maps, count = (wide(padding.zeroed(x)) for x in (s, t)), positions * s.shape[1]
        ours, theirs = (unit(x.flatten(1)) for x in maps)
        difference = (ours - theirs).abs()
        if normalize == "factor" and p != 1:
            distance = _norm(difference, p)
        else:
            distance = (difference if p == 1 else difference.pow(p)).sum(1) / count
        losses.append(batch_mean(distance))
    return weighted(losses, weights, found)


def _norm(x: Tensor, p: float) -> Tensor:
    """||x||_p of rows that are not negative; zero, with zero gradient, of zeros."""
    if p == 2:
        return root(x.square().sum(1))
    total = x.pow(p).sum(1)
    positive = total > 0
    return torch.where(positive, torch.where(positive, total, 1).pow(1 / p), 0)


class FTLoss(Configured, function=ft_loss):
    """ft_loss with its options chosen once; with channels, of the factors that a translator and a paraphraser make.

    student_channels, teacher_channels   C, lists of n for n layers; None: features are factors already.
    rate          factors per channel of the teacher, at least one.
    spatial_axes  1 for (B, C, T), 2 for (B, C, T, F).
    options       as in ft_loss.

    The paraphrasers are trained first, on the teacher alone: minimise `reconstruction_loss`. Here they are constants,
    whatever state they are in; the translators are trained with the student.
    """

    def __init__(
        self,
        student_channels: Channels | None = None,
        teacher_channels: Channels | None = None,
        *,
        rate: float = 0.5,
        spatial_axes: int = 2,
        **options,
    ):
        super().__init__(**options)
        given: tuple[Channels, Channels] | None = both_or_neither("channels", student_channels, teacher_channels)
        if not rate > 0:
            raise ValueError(f"rate: expected a positive number, got {rate!r}")
        self.translators = None
        if given is not None:
            channels = [(s, t, max(1, int(t * rate))) for s, t in channel_pairs(*given)]
            self.translators = nn.ModuleList(Translator(s, k, spatial_axes) for s, _, k in channels)
            self.paraphrasers = nn.ModuleList(Paraphraser(t, k, spatial_axes) for _, t, k in channels)

    def forward(self, student_features, teacher_features, *, lengths=None, padded_length=None):
        """The loss of these features; arguments as in ft_loss."""
        if self.translators is None:
            return super().forward(student_features, teacher_features, lengths=lengths, padded_length=padded_length)
        found, padding = pairs(student_features, teacher_features, lengths, padded_length)
        if len(found) != len(self.translators):
            raise ValueError(f"student_features: expected {len(self.translators)} features, got {len(found)}")
        for index, pair in enumerate(found):
            stacks = self.translators[index].convolutions, self.paraphrasers[index].encoder
            for name, x, (first, *_) in zip(("student_features", "teacher_features"), pair, stacks, strict=True):
                if (x.shape[1], x.dim()) != (first.in_channels, first.weight.dim()):
                    raise ValueError(
                        f"{name}[{index}]: expected {first.in_channels} channels and {first.weight.dim()} axes, "
                        f"got {tuple(x.shape)}"
                    )
        with without_autocast(found[0][0]):
            factors = [f(s, padding) for f, (s, _) in zip(self.translators, found, strict=True)]
            with torch.no_grad():
                targets = [f.factor(t, padding) for f, (_, t) in zip(self.paraphrasers, found, strict=True)]
        return ft_loss(factors, targets, **padding._asdict(), weights=self.weights, **self.options)

    def reconstruction_loss(
        self, teacher_features: Features, *, lengths: Tensor | None = None, padded_length: int | None = None
    ) -> Tensor:
        """What trains the paraphrasers: the mean squared error of the teacher's features from their factors."""
        if self.translators is None:
            raise ValueError("teacher_channels: expected numbers, there are no paraphrasers without them")
        found, padding = pairs(teacher_features, teacher_features, lengths, padded_length)
        losses = []
        for paraphraser, (_, t) in zip(self.paraphrasers, found, strict=True):
            with without_autocast(t):
                error = padding.zeroed(paraphraser(t, padding) - t).flatten(1).square().sum(1)
            losses.append(batch_mean(error / (t.shape[1] * padding.positions(t))))
        return weighted(losses, None, found)


class Translator(nn.Module):
    """Three 3x3 convolutions, each with batch normalisation by the valid positions and a leaky ReLU.

    RepDistiller's convolutions have a bias, which the normalisation takes away.
    """

    def __init__(self, channels: int, factors: int, spatial_axes: int = 2):
        super().__init__()
        sizes = (channels, channels), (channels, factors), (factors, factors)
        of_axes = convolution(spatial_axes)
        self.convolutions = nn.ModuleList(of_axes(*size, 3, padding=1, bias=False) for size in sizes)
        self.norms = nn.ModuleList(ValidBatchNorm(outputs) for _, outputs in sizes)

    def forward(self, x: Tensor, padding: Padding = EVERYWHERE) -> Tensor:
        """Factors (B, factors, *spatial); padded frames of `x` must be zero, those of the result are."""
        for layer, norm in zip(self.convolutions, self.norms, strict=True):
            x = nn.functional.leaky_relu(norm(layer(x), padding), SLOPE)
        return x


class Paraphraser(nn.Module):
    """Three 3x3 convolutions to factors and three back, each with a leaky ReLU."""

    def __init__(self, channels: int, factors: int, spatial_axes: int = 2):
        super().__init__()
        inwards = (channels, channels), (channels, factors), (factors, factors)
        outwards = (factors, factors), (factors, channels), (channels, channels)
        encode, decode = convolution(spatial_axes), convolution(spatial_axes, transposed=True)
        self.encoder = nn.ModuleList(encode(*size, 3, padding=1) for size in inwards)
        self.decoder = nn.ModuleList(decode(*size, 3, padding=1) for size in outwards)

    def factor(self, x: Tensor, padding: Padding = EVERYWHERE) -> Tensor:
        """(B, factors, *spatial); padded frames of `x` must be zero, those of the result are."""
        return self._through(self.encoder, x, padding)

    def forward(self, x: Tensor, padding: Padding = EVERYWHERE) -> Tensor:
        """What comes back of a feature (B, channels, *spatial)."""
        return self._through(self.decoder, self.factor(x, padding), padding)

    def _through(self, stack: nn.ModuleList, x: Tensor, padding: Padding) -> Tensor:
        for layer in stack:
            x = padding.zeroed(nn.functional.leaky_relu(layer(x), SLOPE))
        return x
