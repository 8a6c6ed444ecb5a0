"""The command `distill`: a student learns from a trained teacher, with clean labels or without any."""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Literal

import torch
from accelerate.utils import set_seed
from torch import Tensor, nn

from abckd_kernels import ABCLoss, Distiller

from .data import Mixtures, NoisySpeech
from .errors import InputError
from .figures import attention_figure
from .networks import load_network
from .objective import SpeechLoss
from .stft import SAMPLE_RATE
from .train import Supervised, TrainingOptions, fit


@dataclass(kw_only=True)
class DistillOptions(TrainingOptions):
    """Distil a student from a trained teacher.

    The loss is SpeechLoss(student, target) + kd_weight * KD. The target is the clean speech, or with
    --label-free the output of the teacher: KD on features alone would leave the last layer of the decoder
    without any gradient.
    """

    teacher: str
    """Checkpoint, or package.module:factory (which then loads its own weights), or
    package.module:factory@checkpoint."""
    student: str = "student"
    """student, package.module:factory, or a checkpoint to start from."""
    loss: Literal["abc", "response", "none"] = "abc"
    """KD term: attention-based compression of features, SpeechLoss(student, teacher), or nothing."""
    kd_weight: float = 0.1
    """Weight of the KD term. About 0.1 is right for abc; 2 does harm. Without effect for response with
    --label-free, where the KD term is all there is."""
    label_free: bool = False
    """Use no clean speech: train on --noisy, or on the noisy side of mixtures of --clean and --noise."""
    noisy: Path | None = None
    """Folder of noisy speech for --label-free."""
    student_layers: str | None = None
    """Layers to distil, as dotted module names a.b,c.d ("a.b:0" for an element of a tuple). Networks of this
    package have a default."""
    teacher_layers: str | None = None
    """As --student-layers."""


def distill(options: DistillOptions) -> None:
    if options.label_free and options.loss == "none":
        raise InputError("--loss none with --label-free leaves nothing to learn from; choose abc or response")
    if options.noisy is not None and not options.label_free:
        raise InputError("--noisy has no clean speech to learn from: add --label-free, or give --clean and --noise")
    set_seed(options.seed)
    student = load_network(options.student, "--student", new=True)
    teacher = load_network(options.teacher, "--teacher").requires_grad_(False).eval()
    if options.noisy is not None:
        examples = NoisySpeech(
            options.noisy, options.segment_length, options.example_count, options.seed, options.max_corrupt
        )
    else:
        examples = Mixtures(options, options.segment_length, options.example_count, options.seed)

    if options.loss == "none":
        fit(Supervised(student), examples, options)
    elif options.loss == "response":
        fit(ResponseDistillation(student, teacher, options.kd_weight, options.label_free), examples, options)
    else:
        student_layers = _layers(student, options.student_layers, "--student-layers")
        teacher_layers = _layers(teacher, options.teacher_layers, "--teacher-layers")
        loss = ABCLoss(*_feature_channels(student, teacher, student_layers, teacher_layers))
        with Distiller(student, teacher, student_layers, teacher_layers, loss) as distiller:
            system = FeatureDistillation(distiller, options.kd_weight, options.label_free)
            draw = partial(attention_figure, student_layers=student_layers, teacher_layers=teacher_layers)
            fit(system, examples, options, draw_attention=draw)


class FeatureDistillation(nn.Module):
    """A student that imitates features of its teacher, besides its target."""

    def __init__(self, distiller: Distiller, kd_weight: float, label_free: bool) -> None:
        super().__init__()
        self.distiller, self.kd_weight, self.label_free = distiller, kd_weight, label_free
        self.speech_loss = SpeechLoss()

    @property
    def network(self) -> nn.Module:
        return self.distiller.student

    def forward(self, batch: dict[str, Tensor]) -> dict[str, Tensor]:
        output = self.distiller(batch["noisy"])
        speech = self.speech_loss(output.student, output.teacher if self.label_free else batch["clean"])
        return {
            "loss": speech + self.kd_weight * output.loss,
            "speech": speech,
            "kd": output.loss,
            "attention": output.attention.mean(dim=0),
        }


class ResponseDistillation(nn.Module):
    """A student that imitates the output of its teacher, besides its target."""

    def __init__(self, student: nn.Module, teacher: nn.Module, kd_weight: float, label_free: bool) -> None:
        super().__init__()
        self.network, self.teacher, self.kd_weight, self.label_free = student, teacher, kd_weight, label_free
        self.speech_loss = SpeechLoss()

    def train(self, mode: bool = True) -> ResponseDistillation:
        super().train(mode)
        self.teacher.eval()
        return self

    def forward(self, batch: dict[str, Tensor]) -> dict[str, Tensor]:
        with torch.no_grad():
            response = self.teacher(batch["noisy"])
        enhanced = self.network(batch["noisy"])
        kd = self.speech_loss(enhanced, response)
        if self.label_free:
            return {"loss": kd}
        speech = self.speech_loss(enhanced, batch["clean"])
        return {"loss": speech + self.kd_weight * kd, "speech": speech, "kd": kd}


def _layers(network: nn.Module, given: str | None, argument: str) -> list[str]:
    if given is not None:
        return [name.strip() for name in given.split(",") if name.strip()]
    default = getattr(network, "distillation_layers", None)
    if default is None:
        raise InputError(
            f"{argument}: {type(network).__name__} has no default layers; name them, for example "
            f"{','.join([name for name, _ in network.named_modules() if name][:2])}"
        )
    return list(default)


def _feature_channels(
    student: nn.Module, teacher: nn.Module, student_layers: list[str], teacher_layers: list[str]
) -> tuple[list[int], list[int]]:
    """Channels of the features, found by one forward pass."""
    channels = []

    def record(*features_of_both: list[Tensor]) -> Tensor:
        channels.extend([feature.shape[1] for feature in features] for features in features_of_both)
        return torch.zeros(())

    was_training = student.training
    student.eval()  # the pass must not count in the statistics of batch normalisation
    try:
        with Distiller(student, teacher, student_layers, teacher_layers, record) as probe, torch.no_grad():
            probe(torch.zeros(1, SAMPLE_RATE))
    except ValueError as error:
        raise InputError(f"cannot distil these layers: {error}") from error
    student.train(was_training)
    return tuple(channels)
