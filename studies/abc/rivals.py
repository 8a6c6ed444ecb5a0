"""Mainstream losses, as the library computes them, on cached teachers.

Maps of a teacher come in as a single channel, the root of the map, whose energy is the map; relations and hints see its
16 principal channels. One-to-one losses take the pairs of `Shapes.pairs`, or some of them.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from abckd_kernels import losses as library

from .package import SpeechLoss
from .views import Loss, Shapes, View, energy


class Response(Loss):
    """SpeechLoss(student's output, teacher's output)."""

    def __init__(self, shapes: Shapes) -> None:
        super().__init__()
        self.loss = SpeechLoss()

    def forward(self, view: View) -> Tensor:
        return self.loss(view.output, view.response)


class Dispatch(Loss):
    """DISPatch: magnitudes in the patches where the teacher beats the student; needs clean speech."""

    def __init__(self, shapes: Shapes, **options: Any) -> None:
        super().__init__()
        self.options = options

    def forward(self, view: View) -> Tensor:
        return library.dispatch_loss(view.output, view.response, view.clean, **self.options)


class OnMaps(Loss):
    """A one-to-one loss on energy maps."""

    def __init__(self, shapes: Shapes, module: nn.Module, only: Sequence[str] = ()) -> None:
        super().__init__()
        self.module, self.pairs = module, _chosen(shapes, only)

    def forward(self, view: View) -> Tensor:
        students, teachers = zip(*((view.student[i], view.maps[j].sqrt()[:, None]) for i, j in self.pairs), strict=True)
        return self.module(list(students), list(teachers))


class OnFeatures(Loss):
    """A one-to-one loss on features: `make(student channels, teacher channels)` builds its module."""

    def __init__(self, shapes: Shapes, make: Callable[..., nn.Module], only: Sequence[str] = (), each: bool = False):
        super().__init__()
        self.pairs, self.each = _chosen(shapes, only), each
        of_student = [shapes.student_channels[i] for i, _ in self.pairs]
        of_teacher = [shapes.teacher_channels for _ in self.pairs]
        if each:  # a module per pair
            self.module = nn.ModuleList(make(s, t) for s, t in zip(of_student, of_teacher, strict=True))
        else:
            self.module = make(of_student, of_teacher)

    def forward(self, view: View) -> Tensor:
        students = [view.student[i] for i, _ in self.pairs]
        teachers = [view.features[j] for _, j in self.pairs]
        if not self.each:
            return self.module(students, teachers)
        pairs = zip(self.module, students, teachers, strict=True)
        return torch.stack([module(s, t) for module, s, t in pairs]).mean()


class Tapped(Loss):
    """AFD and the library's ABC: maps and channel means of all layers, attention over them."""

    def __init__(self, shapes: Shapes, make: Callable[[Sequence[int], Sequence[int], Any], nn.Module], stage: bool):
        super().__init__()
        of_teacher = [shapes.teacher_channels] * len(shapes.teacher_layers)
        self.module = make(shapes.student_channels, of_teacher, shapes.stage_mask if stage else None)

    def forward(self, view: View) -> Tensor:
        student = ([energy(x) for x in view.student], [x.mean((2, 3)) for x in view.student])
        teacher = (list(view.maps), [x.mean((2, 3)) for x in view.features])
        return self.module.from_taps(student, teacher)[0]


class Semantic(Loss):
    """SemCKD over all pairs of layers."""

    def __init__(self, shapes: Shapes, **options: Any) -> None:
        super().__init__()
        of_teacher = [shapes.teacher_channels] * len(shapes.teacher_layers)
        self.module = library.SemCKDLoss(shapes.student_channels, of_teacher, **options)

    def forward(self, view: View) -> Tensor:
        return self.module(list(view.student), list(view.features))


def _chosen(shapes: Shapes, only: Sequence[str]) -> list[tuple[int, int]]:
    pairs = [(i, j) for i, j in shapes.pairs if not only or shapes.student_layers[i] in only]
    if not pairs:
        raise ValueError(f"no pair of layers for {', '.join(only)}")
    return pairs


def _same_width(make: Callable[..., nn.Module]) -> Callable[..., nn.Module]:
    """A loss whose sides have equal channels: the student's go through a learned 1x1 convolution."""

    def build(of_student: Sequence[int], of_teacher: Sequence[int]) -> nn.Module:
        return _Projected(of_student, of_teacher, make())

    return build


class _Projected(nn.Module):
    def __init__(self, of_student: Sequence[int], of_teacher: Sequence[int], loss: nn.Module) -> None:
        super().__init__()
        pairs = zip(of_student, of_teacher, strict=True)
        self.projections = nn.ModuleList(nn.Conv2d(s, t, 1, bias=False) for s, t in pairs)
        self.loss = loss

    def forward(self, students: list[Tensor], teachers: list[Tensor]) -> Tensor:
        return self.loss([f(x) for f, x in zip(self.projections, students, strict=True)], teachers)


def _parameter_free(function: Callable[..., Tensor]) -> Callable[..., Callable[..., nn.Module]]:
    """function -> options -> make(student channels, teacher channels)."""

    class Module(nn.Module):
        def __init__(self, options: dict[str, Any]) -> None:
            super().__init__()
            self.options = options

        def forward(self, students: list[Tensor], teachers: list[Tensor]) -> Tensor:
            return function(students, teachers, **self.options)

    return lambda **options: lambda *_: Module(options)


class Stacked(Loss):
    """The sum of losses, each times a factor: what is said beside something else."""

    def __init__(self, losses: Sequence[tuple[float, Loss]]) -> None:
        super().__init__()
        self.factors, self.losses = [factor for factor, _ in losses], nn.ModuleList(loss for _, loss in losses)

    def forward(self, view: View) -> Tensor:
        return sum(factor * loss(view) for factor, loss in zip(self.factors, self.losses, strict=True))


class PerFrameMaps(Loss):
    """Attention transfer whose maps have norm 1 in every frame: the library's ABC with one teacher layer to each."""

    def __init__(self, shapes: Shapes, only: Sequence[str] = ()) -> None:
        super().__init__()
        self.pairs = _chosen(shapes, only)

    def forward(self, view: View) -> Tensor:
        losses = []
        for i, j in self.pairs:
            grid = tuple(min(a, b) for a, b in zip(view.student[i].shape[2:], view.maps[j].shape[1:], strict=True))
            one = view.maps[j].sqrt()[:, None]
            options = dict(scores="uniform", normalize="frame", grid=grid)
            losses.append(library.abc_loss([view.student[i]], [one], **options))
        return torch.stack(losses).mean()


_STUDY_AT = ("encoder.1", "encoder.3", "bottleneck", "decoder.1")
_AT = _parameter_free(library.at_loss)
_SP = _parameter_free(library.sp_loss)


def _abc(shapes: Shapes, stage: bool = False, **options: Any) -> Loss:
    return Tapped(shapes, lambda s, t, mask: library.ABCLoss(s, t, mask=mask, **options), stage)


RIVALS: dict[str, Callable[..., Loss]] = {
    "response": Response,
    "dispatch": Dispatch,
    "at": lambda shapes, **o: OnMaps(shapes, _AT(**o)(), _STUDY_AT),
    "at_pairs": lambda shapes, **o: OnMaps(shapes, _AT(**o)()),
    "at_frame": lambda shapes: PerFrameMaps(shapes),
    "at_views": lambda shapes: OnMaps(shapes, _AT(views=("position", "time", "frequency"))()),
    "afd": lambda shapes, **o: Tapped(shapes, lambda s, t, _: library.AFDLoss(s, t, **o), False),
    "abc": _abc,
    "semckd": Semantic,
    "hint": lambda shapes: OnFeatures(shapes, lambda s, t: library.HintLoss(s, t), ("bottleneck",), each=True),
    "hint_pairs": lambda shapes: OnFeatures(shapes, lambda s, t: library.HintLoss(s, t), each=True),
    "vid": lambda shapes: OnFeatures(shapes, library.VIDLoss),
    "review": lambda shapes: OnFeatures(shapes, library.ReviewLoss),
    "sp": lambda shapes, **o: OnFeatures(shapes, _SP(**o), ("bottleneck", "decoder.3", "decoder.2")),
    "sp_pairs": lambda shapes, **o: OnFeatures(shapes, _SP(**o)),
    "pkt": lambda shapes: OnFeatures(shapes, _parameter_free(library.pkt_loss)()),
    "rkd": lambda shapes: OnFeatures(shapes, _parameter_free(library.rkd_loss)()),
    "ickd": lambda shapes: OnFeatures(shapes, library.ICKDLoss, each=True),
    "fsp": lambda shapes: OnFeatures(shapes, _same_width(_FspModule)),
    "gram_frames": lambda shapes: OnFeatures(shapes, _parameter_free(library.gram_loss)(axis="frames")),
    "gram_bands": lambda shapes: OnFeatures(shapes, _parameter_free(library.gram_loss)(axis="bands")),
    "time_similarity": lambda shapes: OnFeatures(shapes, _parameter_free(library.time_similarity_loss)()),
    "frame_similarity": lambda shapes: OnFeatures(shapes, _parameter_free(library.frame_similarity_loss)()),
}


class _FspModule(nn.Module):
    """FSP between neighbouring layers of a list."""

    def forward(self, students: list[Tensor], teachers: list[Tensor]) -> Tensor:
        return library.fsp_loss(students, teachers)


__all__ = ["RIVALS", "Dispatch", "OnFeatures", "OnMaps", "Response", "Semantic", "Stacked", "Tapped"]
