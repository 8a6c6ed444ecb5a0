"""The command `distill`: a student learns from a trained teacher, with clean labels or without any."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial

import torch
from accelerate.utils import set_seed
from torch import Tensor, nn
from torch.utils.data import Dataset

from abckd_kernels import Distiller
from abckd_kernels.distill import DistillerOutput

from ..data.examples import augmented, labelled_examples
from ..data.mixtures import NoisySpeech, PartlyLabelled
from ..errors import InputError
from ..network.load import load_network, new_network, to_channels_last
from ..network.names import is_foreign
from ..options import DistillOptions
from .attention import recorded_attention
from .batches import example_count
from .kd import RESPONSE, Loss, SeveralLosses, build, parse
from .loop import fit
from .objective import SpeechLoss
from .runs import is_done
from .supervised import Supervised


def distill(options: DistillOptions) -> None:
    if is_done(options):
        return
    specifications = [] if options.loss == ("none",) else [parse(text, options.kd_weight) for text in options.loss]
    if not specifications and options.label_free:
        raise InputError("--loss none with --label-free leaves nothing to learn from; choose abc or response, say")
    set_seed(options.seed)
    student = new_network(options.student, "--student", "student", options.init)
    if is_foreign(options.teacher, "--teacher"):
        from ..rivals.teachers import load_teacher  # needs onnxruntime

        teacher = load_teacher(options.teacher, options.teacher_layers)
    else:
        teacher = load_network(options.teacher, "--teacher")
    teacher.requires_grad_(False).eval()
    to_channels_last(teacher)  # on a CPU its pass takes a fifth to a third less; a student's step does not
    examples = augmented(_examples(options), options)
    if not specifications and options.noisy is None:
        fit(Supervised(student), examples, options)
        return
    losses = build(specifications, student, teacher, options.student_layers, options.teacher_layers)
    for loss in losses:
        if loss.needs_clean and (options.label_free or options.noisy is not None):
            raise InputError(f"--loss {loss.label}: compares with clean speech, which --label-free and --noisy lack")
    system = Distillation(student, teacher, losses, options.label_free, options.kd_warmup * options.accumulate)
    draw = None
    if system.tapped is not None:
        layers = dict(student_layers=system.tapped.student_layers, teacher_layers=system.tapped.teacher_layers)
        draw = partial(recorded_attention, options.out, **layers)
    fit(system, examples, options, draw_attention=draw)


def _examples(options: DistillOptions) -> Dataset:
    length, count = options.segment_length, example_count(options)
    is_labelled = any(getattr(options, name) is not None for name in ("prepared", "clean", "pairs"))
    if options.noisy is None:
        if options.label_free and not is_labelled:
            raise InputError(
                "--label-free: nothing to learn from; give --noisy, or --clean and --noise, or --pairs, or --prepared"
            )
        return labelled_examples(options, length, count)
    unlabelled = NoisySpeech(options.noisy, length, count, options.seed, options.max_corrupt)
    if options.label_free:
        return unlabelled
    if not is_labelled:
        raise InputError(
            "--noisy has no clean speech to learn from: add --label-free, or give --clean and --noise, or --pairs"
        )
    return PartlyLabelled(labelled_examples(options, length, count), unlabelled, options.noisy_fraction)


class Distillation(nn.Module):
    """A student that imitates its teacher, by any number of losses, besides its target."""

    def __init__(
        self, student: nn.Module, teacher: nn.Module, losses: Sequence[Loss], label_free: bool, warm_up: int = 0
    ) -> None:
        """warm_up: batches in which the weights of the losses rise from 0."""
        super().__init__()
        on_features = [loss for loss in losses if loss.student_layers]
        self._on_outputs = [loss for loss in losses if not loss.student_layers]
        if label_free:  # the target is the response already
            self._on_outputs = [loss for loss in self._on_outputs if loss.label != RESPONSE]
        self.tapped: Loss | None = None
        if not on_features:
            self.networks = _Networks(student, teacher)
        elif len(on_features) == 1:  # the distiller can spare it the features
            (loss,) = on_features
            self.tapped = loss if getattr(loss.module, "tap_options", None) else None
            self.networks = Distiller(student, teacher, loss.student_layers, loss.teacher_layers, loss.module)
        else:
            together = SeveralLosses(on_features)
            self.networks = Distiller(student, teacher, together.student_layers, together.teacher_layers, together)
        self._on_features, self.label_free, self.warm_up = on_features, label_free, warm_up
        self.on_outputs = nn.ModuleList(loss.module for loss in self._on_outputs)
        self.speech_loss = SpeechLoss()
        self.register_buffer("steps", torch.zeros((), dtype=torch.int64))

    @property
    def network(self) -> nn.Module:
        return self.networks.student

    def forward(self, batch: dict[str, Tensor]) -> dict[str, Tensor]:
        output = self.networks(batch["noisy"])
        speech = self.speech_loss(output.student, self._target(batch, output.teacher))
        if not self._on_features and not self._on_outputs:
            return {"loss": speech}
        losses = [*self._on_features, *self._on_outputs]
        values = [*output.loss.reshape(-1), *self._between_outputs(output, batch)]
        kd = sum(loss.weight * value for loss, value in zip(losses, values, strict=True))
        logged = {f"kd/{loss.label}": value for loss, value in zip(losses, values, strict=True)}
        if self.tapped is not None and output.attention is not None:
            logged["attention"] = output.attention.mean(dim=0)
        return {"loss": speech + self._ramp() * kd, "speech": speech, **logged}

    def _target(self, batch: dict[str, Tensor], response: Tensor) -> Tensor:
        if self.label_free:
            return response
        if "has_clean" not in batch:
            return batch["clean"]
        return torch.where(batch["has_clean"][:, None], batch["clean"], response.to(batch["clean"].dtype))

    def _between_outputs(self, output: DistillerOutput, batch: dict[str, Tensor]) -> list[Tensor]:
        signals = [output.student.float(), output.teacher.float()]
        values = []
        for loss in self._on_outputs:
            compared = [self.speech_loss.stft(x) for x in signals] if loss.inputs == "spectra" else signals
            values.append(loss.module(*compared, *([batch["clean"]] if loss.needs_clean else [])))
        return values

    def _ramp(self) -> Tensor | float:
        if not self.warm_up:
            return 1.0
        if self.training:
            self.steps += 1
        return (self.steps / self.warm_up).clamp(max=1)


class _Networks(nn.Module):
    """What a `Distiller` is, for losses that need no features."""

    def __init__(self, student: nn.Module, teacher: nn.Module) -> None:
        super().__init__()
        self.student, self.teacher = student, teacher.requires_grad_(False).eval()

    def train(self, mode: bool = True) -> _Networks:
        super().train(mode)
        self.teacher.eval()
        return self

    def forward(self, noisy: Tensor) -> DistillerOutput:
        with torch.no_grad():
            response = self.teacher(noisy)
        return DistillerOutput(self.student(noisy), response, loss=noisy.new_zeros(0), attention=None)
