"""The command `train`: a network learns from mixtures with clean labels."""

from __future__ import annotations

from dataclasses import dataclass

from accelerate.utils import set_seed
from torch import Tensor, nn
from torch.utils.data import Dataset

from ..data.mixtures import Mixtures
from ..data.prepared import Prepared
from ..errors import InputError
from ..network.load import load_network
from .loop import TrainingOptions, fit, is_done
from .objective import SpeechLoss


@dataclass(kw_only=True)
class TrainOptions(TrainingOptions):
    """Train a network on mixtures of clean speech and noise."""

    preset: str = "teacher"
    """teacher, student, or package.module:factory for a network of your own."""


def train(options: TrainOptions) -> None:
    if is_done(options):
        return
    set_seed(options.seed)
    network = load_network(options.preset, "--preset", new=True)
    fit(Supervised(network), labelled_examples(options), options)


def labelled_examples(options: TrainingOptions) -> Dataset:
    if options.prepared is None:
        return Mixtures(options, options.segment_length, options.example_count, options.seed)
    for argument in ("clean", "noise", "rirs"):
        if getattr(options, argument) is not None:
            raise InputError(f"--{argument}: {options.prepared} (--prepared) is mixed already; leave one of them out")
    return Prepared(options.prepared, options.segment_length, options.example_count, options.seed)


class Supervised(nn.Module):
    """A network and clean labels."""

    def __init__(self, network: nn.Module) -> None:
        super().__init__()
        self.network = network
        self.speech_loss = SpeechLoss()

    def forward(self, batch: dict[str, Tensor]) -> dict[str, Tensor]:
        return {"loss": self.speech_loss(self.network(batch["noisy"]), batch["clean"])}
