"""Knowledge-distillation losses by name: from what a user writes to modules that fit two networks.

A specification is NAME[(key=value,...)][=WEIGHT]: abc, at=0.5, abc(scores=uniform,normalize=frame)=0.1,
hint(layers=[encoder.1,decoder.0]). NAME is one of `abckd_kernels.losses.table()`, or response: SpeechLoss between the
outputs. Keys are
    layers, student_layers, teacher_layers    the layers of this loss alone
    mask=stage                                where a loss takes a mask: encoder layers learn from encoder layers, ...
    any other                                 an option of the loss's module, with its default unless given
Losses between features take them from layers, losses between spectra or waveforms compare the outputs of the networks,
losses between logits take what named layers give. Channels, spatial axes and margins are found by running both networks
once.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from abckd_kernels import Distiller
from abckd_kernels.losses import build as build_loss
from abckd_kernels.losses import margins, table
from abckd_kernels.losses.entries import Entry

from ..constants import SAMPLE_RATE
from ..errors import InputError
from .objective import SpeechLoss
from .processes import processes

RESPONSE = "response"
_LAYER_KEYS = ("layers", "student_layers", "teacher_layers")


@dataclass(frozen=True, eq=False)
class Specification:
    """What a user wrote of one loss."""

    text: str
    name: str
    weight: float
    options: dict[str, Any] = field(default_factory=dict)


class Loss(NamedTuple):
    """A loss that fits the networks; without layers it compares their outputs."""

    label: str
    weight: float
    module: nn.Module
    inputs: str
    student_layers: list[str]
    teacher_layers: list[str]
    needs_clean: bool = False


def parse(text: str, default_weight: float) -> Specification:
    """Raises InputError."""
    match = re.fullmatch(r"\s*(\w+)\s*(?:\((.*)\))?\s*(?:=([^()=]*))?", text)
    if match is None:
        raise InputError(f"--loss {text}: expected NAME, NAME=WEIGHT or NAME(key=value,...)=WEIGHT")
    name, inside, weight = match.groups()
    known = {entry.name for entry in table()} | {RESPONSE}
    if name not in known:
        raise InputError(
            f"--loss {text}: no loss is called {name}; there are {', '.join(sorted(known))}, and, alone, none"
        )
    try:
        weight = default_weight if weight is None else float(weight)
    except ValueError as error:
        raise InputError(f"--loss {text}: expected a number behind =, got {weight!r}") from error
    if not 0 <= weight < float("inf"):
        raise InputError(f"--loss {text}: expected a weight of at least 0, got {weight}")
    options = {}
    for item in _split(inside or ""):
        key, equals, value = item.partition("=")
        if not equals or key.strip() in options:
            raise InputError(f"--loss {text}: expected key=value, each key once, got {item!r}")
        options[key.strip()] = _value(value)
    return Specification(text, name, weight, options)


def _split(text: str) -> list[str]:
    """At the commas that are in no brackets."""
    parts = re.findall(r"(?:\[[^\]]*\]|[^,\[])+", text)
    return [part.strip() for part in parts if part.strip()]


def _value(text: str) -> Any:
    text = text.strip()
    if text.startswith("[") and text.endswith("]"):
        return [_value(part) for part in _split(text[1:-1])]
    words = {"true": True, "false": False, "none": None}
    if text.lower() in words:
        return words[text.lower()]
    for number in (int, float):
        try:
            return number(text)
        except ValueError:
            pass
    return text


def build(
    specifications: Sequence[Specification],
    student: nn.Module,
    teacher: nn.Module,
    student_layers: str | None,
    teacher_layers: str | None,
) -> list[Loss]:
    """The modules of the losses, on the CPU. The layers are those of losses that name none: a.b,c.d or the default.

    Raises InputError that names the specification.
    """
    entries = {entry.name: entry for entry in table()}
    networks = {"student": (student, student_layers), "teacher": (teacher, teacher_layers)}
    layers_of = {}
    for specification in specifications:
        if specification.name == RESPONSE or entries[specification.name].inputs not in ("features", "logits"):
            layers_of[specification] = ([], [])
            continue
        is_logits = entries[specification.name].inputs == "logits"
        layers_of[specification] = tuple(
            _layers(specification, side, network, given, is_logits) for side, (network, given) in networks.items()
        )
    layers = [_once([pair[side] for pair in layers_of.values()]) for side in (0, 1)]
    features = _probe(student, teacher, *layers) if layers[0] else ({}, {})
    labels = [specification.name for specification in specifications]
    losses = []
    for specification, (of_student, of_teacher) in layers_of.items():
        label = specification.name if labels.count(specification.name) == 1 else specification.text
        if specification.name == RESPONSE:
            _check_options(specification, set())
            losses.append(Loss(label, specification.weight, SpeechLoss(), "waveforms", [], []))
            continue
        pair = [
            [found[name] for name in names] for found, names in zip(features, (of_student, of_teacher), strict=True)
        ]
        entry = entries[specification.name]
        module = _module(specification, entry, pair, of_student, of_teacher, teacher)
        losses.append(
            Loss(label, specification.weight, module, entry.inputs, of_student, of_teacher, entry.needs.clean)
        )
    return losses


def _layers(
    specification: Specification, side: str, network: nn.Module, given: str | None, is_logits: bool
) -> list[str]:
    own = specification.options.get(f"{side}_layers", specification.options.get("layers"))
    if own is not None:
        return own if isinstance(own, list) else [own]
    if given is not None:
        return [name.strip() for name in given.split(",") if name.strip()]
    if is_logits:
        raise InputError(
            f"--loss {specification.text}: {specification.name} compares logits; name the layers that give them and "
            f"the axis of the classes, as in {specification.name}(layers=[mask],dim=3)"
        )
    default = getattr(network, "distillation_layers", None)
    if default is None:
        raise InputError(
            f"--{side}-layers: {type(network).__name__} has no default layers; name them, for example "
            f"{','.join([name for name, _ in network.named_modules() if name][:2])}"
        )
    return list(default)


def _once(lists: Sequence[list[str]]) -> list[str]:
    return list(dict.fromkeys(name for names in lists for name in names))


def _probe(
    student: nn.Module, teacher: nn.Module, student_layers: list[str], teacher_layers: list[str]
) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
    """The features of both networks' layers for a second of noise, in a batch of two."""
    found = []

    def record(*features_of_both: list[Tensor]) -> Tensor:
        found.extend(features_of_both)
        return torch.zeros(())

    was_training = student.training
    student.eval()  # the pass must not count in the statistics of batch normalisation
    waveform = 0.1 * torch.randn(2, SAMPLE_RATE, generator=torch.Generator().manual_seed(0))
    try:
        with Distiller(student, teacher, student_layers, teacher_layers, record) as probe, torch.no_grad():
            probe(waveform)
    except ValueError as error:
        raise InputError(f"cannot distil these layers: {error}") from error
    student.train(was_training)
    return tuple(
        dict(zip(names, features, strict=True))
        for names, features in zip((student_layers, teacher_layers), found, strict=True)
    )


def _check_options(specification: Specification, known: set[str]) -> None:
    for key in specification.options:
        if key not in known:
            options = ", ".join(sorted(known)) or "none"
            raise InputError(
                f"--loss {specification.text}: {specification.name} has no option {key}; its options: {options}"
            )


def _module(
    specification: Specification,
    entry: Entry,
    pair: list[list[Tensor]],
    student_layers: list[str],
    teacher_layers: list[str],
    teacher: nn.Module,
) -> nn.Module:
    where = f"--loss {specification.text}"
    if entry.needs.labels:
        raise InputError(f"{where}: {entry.name} needs labels, which noise suppression does not have")
    if entry.needs.heads:
        raise InputError(f"{where}: {entry.name} needs output layers over classes, which noise suppressors do not have")
    layer_keys = set(_LAYER_KEYS) if student_layers else set()
    _check_options(specification, set(entry.options()) | layer_keys)
    options = {key: value for key, value in specification.options.items() if key not in _LAYER_KEYS}
    if options.get("mask") == "stage":
        options["mask"] = _stage_mask(where, student_layers, teacher_layers)
    if entry.needs.group and processes().num_processes > 1:
        options["group"] = torch.distributed.group.WORLD  # relations within the whole batch, not within a process's
    if entry.needs.margins:
        options["margins"] = [
            _margins(teacher, name, x.shape[1]) for name, x in zip(teacher_layers, pair[1], strict=True)
        ]
    try:
        module = build_loss(entry.name, *pair, **options)
        if hasattr(module, "reconstruction_loss"):
            module = _WithParaphrasers(module)
        if student_layers:
            with torch.no_grad():
                module.eval()(*pair)
            module.train()
    except (TypeError, ValueError, RuntimeError) as error:
        counts = ""
        if len(student_layers) != len(teacher_layers):
            counts = (
                f"; there are {len(student_layers)} student layers ({','.join(student_layers)}) and "
                f"{len(teacher_layers)} teacher layers ({','.join(teacher_layers)}): if {entry.name} pairs them one to "
                "one, name as many of either with --student-layers and --teacher-layers"
            )
        raise InputError(f"{where}: {error}{counts}") from error
    return module


def _stage_mask(where: str, student_layers: list[str], teacher_layers: list[str]) -> list[list[bool]]:
    """(n, m): whether the names agree up to the first dot."""
    stages = [name.partition(".")[0].partition(":")[0] for name in teacher_layers]
    mask = [[name.partition(".")[0].partition(":")[0] == stage for stage in stages] for name in student_layers]
    for name, row in zip(student_layers, mask, strict=True):
        if not any(row):
            raise InputError(
                f"{where}: mask=stage leaves {name} no teacher layer; those are {','.join(teacher_layers)}"
            )
    return mask


def _margins(teacher: nn.Module, name: str, channels: int) -> Tensor:
    """What OFD takes for the least negative value of a layer: known if that is a batch normalisation, else -3."""
    layer = dict(teacher.named_modules())[name.partition(":")[0]]
    if isinstance(layer, nn.modules.batchnorm._BatchNorm):
        return margins(layer)
    return torch.full((channels,), -3.0)


class _WithParaphrasers(nn.Module):
    """Factor transfer whose paraphrasers learn beside the student instead of before it.

    They learn to reconstruct the teacher's features, by a gradient that reaches nothing else.
    """

    def __init__(self, loss: nn.Module) -> None:
        super().__init__()
        self.loss = loss

    def forward(self, students: list[Tensor], teachers: list[Tensor], **padding) -> Tensor:
        reconstruction = self.loss.reconstruction_loss(teachers, **padding)
        return self.loss(students, teachers, **padding) + (reconstruction - reconstruction.detach())


class SeveralLosses(nn.Module):
    """Losses on features as one, for a `Distiller`: their values (k,), in their order."""

    def __init__(self, losses: Sequence[Loss]) -> None:
        super().__init__()
        self.student_layers, self.teacher_layers = (
            _once([getattr(loss, side) for loss in losses]) for side in ("student_layers", "teacher_layers")
        )
        self.modules_of_losses = nn.ModuleList(loss.module for loss in losses)
        self._places = [
            (
                [self.student_layers.index(name) for name in loss.student_layers],
                [self.teacher_layers.index(name) for name in loss.teacher_layers],
            )
            for loss in losses
        ]

    def forward(self, students: list[Tensor], teachers: list[Tensor], **padding) -> Tensor:
        values = []
        for module, (of_student, of_teacher) in zip(self.modules_of_losses, self._places, strict=True):
            values.append(module([students[i] for i in of_student], [teachers[j] for j in of_teacher], **padding))
        return torch.stack(values)
