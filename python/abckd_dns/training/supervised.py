"""The command `train`: a network learns from mixtures with clean labels."""

from __future__ import annotations

from accelerate.utils import set_seed
from torch import Tensor, nn
from torch.utils.data import Dataset

from ..data.mixtures import Mixtures
from ..data.prepared import Prepared
from ..errors import InputError
from ..network.load import load_network
from ..options import TrainingOptions, TrainOptions
from .batches import example_count
from .loop import fit
from .objective import SpeechLoss
from .runs import is_done


def train(options: TrainOptions) -> None:
    if is_done(options):
        return
    set_seed(options.seed)
    network = load_network(options.preset, "--preset", new=True)
    fit(Supervised(network), labelled_examples(options), options)


def labelled_examples(options: TrainingOptions) -> Dataset:
    if options.prepared is None:
        return Mixtures(options, options.segment_length, example_count(options), options.seed)
    for argument in ("clean", "noise", "rirs"):
        if getattr(options, argument) is not None:
            raise InputError(f"--{argument}: {options.prepared} (--prepared) is mixed already; leave one of them out")
    return Prepared(options.prepared, options.segment_length, example_count(options), options.seed)


class Supervised(nn.Module):
    """A network and clean labels."""

    def __init__(self, network: nn.Module) -> None:
        super().__init__()
        self.network = network
        self.speech_loss = SpeechLoss()

    def forward(self, batch: dict[str, Tensor]) -> dict[str, Tensor]:
        return {"loss": self.speech_loss(self.network(batch["noisy"]), batch["clean"])}
