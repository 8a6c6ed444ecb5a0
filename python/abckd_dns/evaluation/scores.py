"""The values of every metric, for every system and example."""

from __future__ import annotations

from collections.abc import Iterator

from torch import Tensor, nn
from torch.utils.data import DataLoader, Dataset
from tqdm import tqdm

from ..data.mixtures import Mixtures
from ..errors import InputError
from ..network.device import best_device
from ..network.load import load_network
from .enhance import enhance
from .metrics import METRICS
from .recordings import Recordings

Scores = dict[str, dict[str, list[float]]]  # system -> metric -> one value per example

UNPROCESSED = "noisy input"


def load_networks(checkpoints: dict[str, str]) -> dict[str, nn.Module]:
    """Of each name, the network of its checkpoint, ready to run."""
    return {
        name: load_network(checkpoint, "--checkpoints").to(best_device()).eval()
        for name, checkpoint in checkpoints.items()
    }


class Scorer(Dataset):
    """Example by example, the values of every system.

    It goes to the worker processes without its networks, which each of them loads for itself.
    """

    def __init__(
        self,
        checkpoints: dict[str, str],
        networks: dict[str, nn.Module],
        examples: Recordings | Mixtures,
        metrics: list[str],
        dry: float,
    ) -> None:
        self.checkpoints, self.examples, self.metrics, self.dry = checkpoints, examples, metrics, dry
        self._networks: dict[str, nn.Module] | None = networks

    def __getstate__(self) -> dict:
        return {**vars(self), "_networks": None}

    @property
    def networks(self) -> dict[str, nn.Module]:
        if self._networks is None:
            self._networks = load_networks(self.checkpoints)
        return self._networks

    def __len__(self) -> int:
        return len(self.examples)

    def __getitem__(self, index: int) -> dict[str, dict[str, float]]:
        example = self.examples[index]
        noisy, clean = example["noisy"], example.get("clean")
        try:
            estimates = {UNPROCESSED: noisy}
            for name, network in self.networks.items():
                estimates[name] = (1 - self.dry) * enhance(network, noisy) + self.dry * noisy
            return {name: self._measure(estimate, clean) for name, estimate in estimates.items()}
        except Exception as error:  # whatever a foreign network may raise
            raise InputError(
                f"evaluating {self.examples.name(index)} failed: {type(error).__name__}: {error}"
            ) from error

    def _measure(self, estimate: Tensor, clean: Tensor | None) -> dict[str, float]:
        return {column: value for name in self.metrics for column, value in METRICS[name](estimate, clean).items()}


def score_all(scorer: Scorer, workers: int) -> Iterator[dict[str, dict[str, float]]]:
    """The values of every example, in order. Raises InputError for the first that fails."""
    # Fresh processes, not forks: a fork of a process that has used a GPU cannot use it.
    context = "spawn" if workers else None
    loader = DataLoader(scorer, batch_size=None, num_workers=workers, multiprocessing_context=context)
    done = 0
    try:
        for values in tqdm(loader, desc="evaluate", unit="file"):
            yield values
            done += 1
    except RuntimeError as error:
        if "DataLoader worker" not in str(error):
            raise
        raise InputError(
            f"--workers: a worker process died, perhaps for want of memory, at {scorer.examples.name(done)} or soon "
            f"after it: {error}"
        ) from error
