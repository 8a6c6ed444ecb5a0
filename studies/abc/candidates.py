"""Candidates for ABC: an attention compresses what the teacher's layers hold into what each student layer imitates.

Each says its formula, its reason, and what was predicted of it before its first run (LOG.md has the predictions with
dates). Common parts, in views.py: a map's `contrast` is its fourth root without the mean over bands, at norm 1 in every
frame, so that neither loud frames nor the common shape of all positive maps decides; attention comes from scores that
are constants for the student, so that it cannot lower the loss by what it asks for; `balanced` attention teaches every
layer of the teacher to somebody. All are one-pass reductions of features, or products of the kind of a Gram matrix, and
small arithmetic; no learned part depends on the size of a map or a batch.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.utils import parametrizations

from .package import Stft
from .views import EPS, Loss, Shapes, View, attention_of, contrast, energy, on_bands, rooted, unit


class Mapped(Loss):
    """D. Balanced ABC.

    a = contrast of the energy map, on the bands of the student layer;  s_ij = mean_t <a_i(t), a_j(t)>;
    alpha = Sinkhorn(exp(s / tau)) within a stage;  c_i = sum_j alpha_ij a_j;
    L = mean_i mean_t |a_i - unit(c_i)|^2 / 2 = mean (1 - correlation).

    Reason: the study's ABC lets all student layers ask for the teacher's first, whose map is nearest to the input's,
    and compares positive maps, nearly all of whose norm is common. Prediction: entropy stays high; the gradient's
    cosine with the supervised one is larger than that of `abc` in the decoder; quality of AFD or a little more.

    `attention` is "balanced", "softmax", "uniform" (the control), "pairs" (no compression: one teacher layer for each
    student layer of `Shapes.pairs`, the others learn nothing; what attention transfer is with this form), or "output":
    softmax of s_ij = mean_t <b_j(t), o(t)>, o the contrast of the teacher's output: layers count by what they say of
    the output, not by likeness to the student. `local` makes s and alpha of each frame (E);
    `output` makes the spectrogram of the teacher's output one more layer, which every stage sees;
    `gap` weights bands and frames by how much nearer the teacher's output is to the target than the student's (E).
    `form` is what is compared: "contrast", or "energy": the map itself at norm 1 in every frame.
    """

    def __init__(
        self,
        shapes: Shapes,
        attention: str = "balanced",
        temperature: float = 0.1,
        local: bool = False,
        gap: bool = False,
        stage: bool = True,
        form: str = "contrast",
        output: bool = False,
    ) -> None:
        super().__init__()
        self.attention, self.temperature, self.local, self.gap = attention, temperature, local, gap
        self.output, self.stft = output, Stft()
        self.form = {"contrast": contrast, "energy": unit}[form]
        mask = shapes.stage_mask
        if attention == "pairs":
            mask = torch.zeros_like(mask)
            for i, j in shapes.pairs:
                mask[i, j] = True
        elif not stage:
            mask = torch.ones_like(mask)
        if output:
            mask = torch.cat([mask, torch.ones_like(mask[:, :1])], 1)
        self.register_buffer("mask", mask, persistent=False)
        self.weights = Gap() if gap else None

    def forward(self, view: View) -> Tensor:
        own = [self.form(energy(x)) for x in view.student]
        maps = list(view.maps)
        if self.output or self.attention == "output":
            spectrum = self.stft(view.response).abs().square()
        if self.output:
            maps.append(spectrum)
        taught = [
            [self.form(on_bands(x, a.shape[-1])) if self.mask[i, j] else None for j, x in enumerate(maps)]
            for i, a in enumerate(own)
        ]
        scores = []
        for a, targets in zip(own, taught, strict=True):
            asking = self.form(on_bands(spectrum, a.shape[-1])) if self.attention == "output" else a
            products = [torch.zeros_like(a[..., 0]) if b is None else (asking * b).sum(-1) for b in targets]
            scores.append(torch.stack(products, -1))  # (B, T, m)
        scores = torch.stack(scores, 2)  # (B, T, n, m)
        if not self.local:
            scores = scores.mean(1, keepdim=True)
        alpha = attention_of(scores, self.mask, self.attention, self.temperature)
        losses = []
        for i, (a, targets) in enumerate(zip(own, taught, strict=True)):
            if not self.mask[i].any():
                continue
            mixed = sum(alpha[:, :, i, j, None] * b for j, b in enumerate(targets) if b is not None)
            error = (a - unit(mixed)).square()
            if self.weights is None:
                losses.append(error.sum(-1).mean() / 2)
            else:
                weight = self.weights(view, a.shape[-1])
                losses.append((weight * error).sum(-1).mean() / 2)
        return torch.stack(losses).mean()


class Gap(nn.Module):
    """Weights (B, T, F), of mean 1: where the teacher is nearer to the target than the student, in magnitudes^0.3.

    Label-free: where the two outputs differ.
    """

    def __init__(self) -> None:
        super().__init__()
        self.stft = Stft()

    @torch.no_grad()
    def forward(self, view: View, bands: int) -> Tensor:
        own, taught = (self._loudness(x) for x in (view.output, view.response))
        if view.clean is None:
            gap = (own - taught).abs()
        else:
            target = self._loudness(view.clean)
            of_student, of_teacher = (own - target).abs(), (taught - target).abs()
            gap = (of_student - of_teacher).relu()
        gap = on_bands(gap, bands)
        return (gap + 0.05 * gap.mean((1, 2), keepdim=True)) / (1.05 * gap.mean((1, 2), keepdim=True) + EPS)

    def _loudness(self, waveform: Tensor) -> Tensor:
        return (self.stft(waveform).abs() + 1e-4).pow(0.3)


class Kernel(Loss):
    """A. Kernel ABC: tokens are frames, or bands.

    K(X)[t, u] = cos(x'_t, x'_u), x'_t = rooted features of all channels and bands of frame t without their mean over
    t;  s_ij = <K(S_i), K(T_j)> / (|K(S_i)| |K(T_j)|);  c_i = sum_j alpha_ij K(T_j), which is the kernel of the
    concatenation of the teacher's layers, each scaled by the root of alpha_ij: a compression without regressors;
    L = mean_{i,t} sum_{|u - t| <= W} (K(S_i) - c_i)^2 / sum_u c_i^2. With bands, F x F matrices of an utterance.

    Reason: the four speech papers that claim most use similarity of frames; it sees directions of features where maps
    see energies. Prediction: like gram(frames) or better; helps the bottleneck, whose map says little.
    """

    def __init__(
        self,
        shapes: Shapes,
        tokens: str = "frames",
        attention: str = "balanced",
        temperature: float = 0.1,
        window: int = 32,
        bands: int = 9,
    ) -> None:
        super().__init__()
        self.tokens, self.attention, self.temperature = tokens, attention, temperature
        self.window, self.bands = window, bands
        self.register_buffer("mask", shapes.stage_mask, persistent=False)

    def forward(self, view: View) -> Tensor:
        own = torch.stack([self._kernel(x) for x in view.student], 1)
        with torch.no_grad():
            taught = torch.stack([self._kernel(x) for x in view.features], 1)
            scores = unit(own.detach().flatten(2)) @ unit(taught.flatten(2)).mT
            alpha = attention_of(scores, self.mask, self.attention, self.temperature)
            target = torch.einsum("bij,bjtu->bitu", alpha, taught)
        error = (own - target).square()
        if self.tokens == "frames" and own.shape[-1] > self.window:
            index = torch.arange(own.shape[-1])
            near = ((index[:, None] - index).abs() <= self.window).to(error)
            error, target = error * near, target * near
        return (error.sum(-1) / (target.square().sum(-1) + 1e-3)).mean()

    def _kernel(self, x: Tensor) -> Tensor:
        x = rooted(x.float())
        if self.tokens == "frames":
            x = x.transpose(1, 2).flatten(2)
        else:
            x = on_bands(x, self.bands).permute(0, 3, 1, 2).flatten(2)
        x = unit(x - x.mean(1, keepdim=True))
        return x @ x.mT


class Autoencoded(Loss):
    """B. Autoencoded ABC: compress first, then imitate.

    On the teacher alone, then frozen: z_j(p) = softmax_j v.tanh(W_j T_j(p)) at every position p of the student layer's
    grid, c_i(p) = sum_j z_j(p) P_j T_j(p), trained by sum_j |T_j - D_j c_i|^2 / |T_j|^2 + mask * |log |output| -
    d.c_i|^2.
    Student: L = mean_{i,t} (1 - Pearson_{c,f}(R_i S_i, c_i)), R_i an orthogonal matrix that it learns.

    Reason: the attention is trained to keep the teacher's information instead of pleasing the student, so it cannot
    collapse onto the easiest layer, and it may differ from position to position. Prediction: above hint and SemCKD;
    the entropy of z is above 0.7; level with or above AFD.
    """

    preparation = 300

    def __init__(self, shapes: Shapes, mask: float = 1.0, attention: bool = True, grouped: bool = True) -> None:
        super().__init__()
        stage = shapes.stage_mask if grouped else torch.ones_like(shapes.stage_mask)
        self.sources = [[j for j in range(stage.shape[1]) if stage[i, j]] for i in range(stage.shape[0])]
        widths = [min(channels, shapes.teacher_channels) for channels in shapes.student_channels]
        self.compressors = nn.ModuleList(
            _Compressor(len(sources), shapes.teacher_channels, width, attention)
            for sources, width in zip(self.sources, widths, strict=True)
        )
        self.rotations = nn.ModuleList(
            parametrizations.orthogonal(nn.Linear(width, width, bias=False)) for width in widths
        )
        self.bands, self.mask = shapes.student_bands, mask
        self.loudness = _Loudness()

    def prepare_step(self, view: View) -> Tensor:
        loudness = self.loudness(view)
        losses = []
        for compressor, sources, bands in zip(self.compressors, self.sources, self.bands, strict=True):
            taught = _scaled([on_bands(view.features[j], bands) for j in sources])
            compressed, _ = compressor(taught)
            losses.append(compressor.reconstruction(compressed, taught, on_bands(loudness, bands), self.mask))
        return torch.stack(losses).mean()

    def forward(self, view: View) -> Tensor:
        losses = []
        for i, (compressor, sources) in enumerate(zip(self.compressors, self.sources, strict=True)):
            bands = self.bands[i]
            with torch.no_grad():
                target, _ = compressor(_scaled([on_bands(view.features[j], bands) for j in sources]))
                target = _standard(target)
            own = view.student[i].float().movedim(1, -1)  # (B, T, F, C)
            own = self.rotations[i](own).movedim(-1, 1)
            losses.append(1 - (_standard(own) * target).sum((1, 3)).mean())
        return torch.stack(losses).mean()


class _Compressor(nn.Module):
    def __init__(self, sources: int, channels: int, width: int, attention: bool, hidden: int = 8) -> None:
        super().__init__()
        self.attention = attention
        self.scores = nn.ModuleList(
            nn.Sequential(nn.Conv2d(channels, hidden, 1), nn.Tanh(), nn.Conv2d(hidden, 1, 1)) for _ in range(sources)
        )
        self.projections = nn.ModuleList(nn.Conv2d(channels, width, 1, bias=False) for _ in range(sources))
        self.decoders = nn.ModuleList(nn.Conv2d(width, channels, 1) for _ in range(sources))
        self.to_loudness = nn.Conv2d(width, 1, 1)

    def forward(self, taught: list[Tensor]) -> tuple[Tensor, Tensor]:
        projected = torch.stack([f(x) for f, x in zip(self.projections, taught, strict=True)], 1)
        if self.attention:
            weights = torch.stack([f(x) for f, x in zip(self.scores, taught, strict=True)], 1).softmax(1)
        else:
            weights = torch.full_like(projected[:, :, :1], 1 / len(taught))
        return (weights * projected).sum(1), weights

    def reconstruction(self, compressed: Tensor, taught: list[Tensor], loudness: Tensor, mask: float) -> Tensor:
        errors = [
            (decode(compressed) - x).square().mean() / (x.square().mean() + EPS)
            for decode, x in zip(self.decoders, taught, strict=True)
        ]
        return torch.stack(errors).mean() + mask * (self.to_loudness(compressed)[:, 0] - loudness).square().mean()


class _Loudness(nn.Module):
    """Of a teacher: log10 of its output's magnitude, in [-3, 2]."""

    def __init__(self) -> None:
        super().__init__()
        self.stft = Stft()

    @torch.no_grad()
    def forward(self, view: View) -> Tensor:
        return (self.stft(view.response).abs() + 1e-3).log10().clamp(-3, 2)


class Channels(Loss):
    """C. Channel-token ABC: balanced cross attention of the student's channels to the teacher's.

    Tokens are single channels' maps on the student layer's bands, rooted, without their mean over bands and at norm 1
    in every frame: a_ic, b_jk. In each of `heads` groups of bands, over one stage of the teacher:
    A = softmax_(j,k) (|<a_ic, b_jk>| / tau);  c_ic = sum A sign(<a_ic, b_jk>) b_jk;
    L = mean |a_ic - unit(c_ic)|^2 / 2. The sign is there because principal channels have none of their own.

    Reason: keeps the channels that a map adds up, needs no regressor and no equal counts. Prediction: better than maps
    in the bottleneck; may follow the student's own channels (attention is sharp) and so teach little.
    """

    def __init__(self, shapes: Shapes, heads: int = 4, temperature: float = 0.07) -> None:
        super().__init__()
        self.heads, self.temperature = heads, temperature
        self.register_buffer("mask", shapes.stage_mask, persistent=False)

    def forward(self, view: View) -> Tensor:
        losses = []
        for i, x in enumerate(view.student):
            own = rooted(x.float())
            taught = torch.cat([on_bands(t, own.shape[-1]) for j, t in enumerate(view.features) if self.mask[i, j]], 1)
            taught = rooted(taught / (taught.square().mean((2, 3), keepdim=True) + EPS).sqrt())
            edges = torch.linspace(0, own.shape[-1], min(self.heads, own.shape[-1] // 2) + 1).round().int().tolist()
            for low, high in zip(edges, edges[1:], strict=False):
                losses.append(self._head(own[..., low:high], taught[..., low:high]))
        return torch.stack(losses).mean()

    def _head(self, own: Tensor, taught: Tensor) -> Tensor:
        a, b = (unit(x - x.mean(-1, keepdim=True)) for x in (own, taught))
        frames = a.shape[2]
        products = torch.einsum("bctf,bktf->bck", a.detach(), b) / frames
        attention = (products.abs() / self.temperature).softmax(-1) * products.sign()
        target = unit(torch.einsum("bck,bktf->bctf", attention, b))
        return (1 - (a * target).sum(-1)).mean()


class Both(Loss):
    """A and D in one: the kernel of frames and the balanced maps, at equal shares."""

    def __init__(self, shapes: Shapes, share: float = 0.5, **options: Any) -> None:
        super().__init__()
        self.share = share
        self.kernel, self.mapped = Kernel(shapes), Mapped(shapes, **options)

    def forward(self, view: View) -> Tensor:
        return self.share * self.kernel(view) + (1 - self.share) * self.mapped(view)


def _scaled(taught: Sequence[Tensor]) -> list[Tensor]:
    """Every layer at mean square 1 in the batch, rooted."""
    return [rooted(x / (x.square().mean() + EPS).sqrt()) for x in taught]


def _standard(x: Tensor) -> Tensor:
    """(B, C, T, F): in every frame without the mean over bands of each channel, at norm 1 over channels and bands."""
    return unit(x - x.mean(3, keepdim=True), (1, 3))


CANDIDATES: dict[str, Callable[..., Loss]] = {
    "abc_kernel": Kernel,
    "abc_auto": Autoencoded,
    "abc_channels": Channels,
    "abc_maps": Mapped,
    "abc_both": Both,
}
__all__ = ["CANDIDATES", "Autoencoded", "Both", "Channels", "Gap", "Kernel", "Mapped"]
