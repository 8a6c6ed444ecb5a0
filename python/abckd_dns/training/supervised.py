"""The command `train`: a network learns from mixtures with clean labels."""

from __future__ import annotations

from accelerate.utils import set_seed
from torch import Tensor, nn

from ..data.examples import augmented, labelled_examples
from ..network.load import new_network
from ..options import TrainOptions
from .batches import example_count
from .loop import fit
from .objective import SpeechLoss
from .runs import is_done


def train(options: TrainOptions) -> None:
    if is_done(options):
        return
    set_seed(options.seed)
    network = new_network(options.preset, "--preset", "teacher", options.init)
    examples = labelled_examples(options, options.segment_length, example_count(options))
    fit(Supervised(network), augmented(examples, options), options)


class Supervised(nn.Module):
    """A network and clean labels."""

    def __init__(self, network: nn.Module) -> None:
        super().__init__()
        self.network = network
        self.speech_loss = SpeechLoss()

    def forward(self, batch: dict[str, Tensor]) -> dict[str, Tensor]:
        return {"loss": self.speech_loss(self.network(batch["noisy"]), batch["clean"])}
