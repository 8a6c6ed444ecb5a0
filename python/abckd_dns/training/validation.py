"""How good a network is while it learns: on examples that it does not learn from, always the same."""

from __future__ import annotations

import math

import numpy as np
import torch
from torch import Tensor, nn

from ..constants import SAMPLE_RATE
from ..data.audio import read_segment
from ..data.pairs import Pair, find_pairs
from ..data.prepared import MANIFEST_NAME, as_waveform, open_prepared
from ..errors import InputError
from ..evaluation.metrics import METRICS
from ..options import TrainingOptions
from .objective import SpeechLoss

_LONGEST = 10 * SAMPLE_RATE

_HIGHER_IS_BETTER = {"loss": False, "si-sdr": True, "pesq": True}


class Validation:
    """The examples of --valid; --best-by says which networks are better."""

    def __init__(self, options: TrainingOptions) -> None:
        """Raises InputError."""
        self.by, self.pesq_count = options.best_by, options.valid_pesq
        if self.by == "pesq" and not options.valid_pesq:
            raise InputError("--best-by pesq: --valid-pesq 0 measures none")
        if options.valid_pesq and METRICS["pesq"].missing_packages():
            raise InputError("--valid-pesq: pesq is not installed (pip install pesq); 0 measures none")
        self.examples = _read(options)
        self.objective = SpeechLoss()

    @torch.no_grad()
    def measure(self, network: nn.Module) -> dict[str, float]:
        """Means over the examples, by name; PESQ over the first ones. The network is left as it was."""
        device = next(network.parameters()).device
        objective = self.objective.to(device)
        values: dict[str, list[float]] = {}
        was_training = network.training
        network.eval()
        try:
            for index, (noisy, clean) in enumerate(self.examples):
                enhanced = network(noisy[None].to(device)).float()
                if not enhanced.isfinite().all():  # no mean over the others may call this network good
                    return {"loss": math.nan, "si-sdr": math.nan}
                values.setdefault("loss", []).append(objective(enhanced, clean[None].to(device)).item())
                chosen = ("si-sdr", "pesq") if index < self.pesq_count else ("si-sdr",)
                for name in chosen:
                    found = METRICS[name](enhanced[0].cpu(), clean)
                    values.setdefault(name, []).append(next(iter(found.values())))
        finally:
            network.train(was_training)
        return {name: _mean(found) for name, found in values.items()}

    def is_better(self, values: dict[str, float], best: float | None) -> bool:
        value = values.get(self.by, math.nan)
        if math.isnan(value) or best is None:
            return not math.isnan(value)
        return value > best if _HIGHER_IS_BETTER[self.by] else value < best


def _mean(values: list[float]) -> float:
    """Of those that are defined: SI-SDR and PESQ of silence are not."""
    defined = [value for value in values if not math.isnan(value)]
    return float(np.mean(defined)) if defined else math.nan


def _read(options: TrainingOptions) -> list[tuple[Tensor, Tensor]]:
    """Noisy and clean waveforms, spread over --valid."""
    folder = options.valid
    if folder is None:
        return []
    if (folder / MANIFEST_NAME).is_file():
        sides = open_prepared(folder, "--valid")
        rows = _spread(len(sides["noisy"]), options.valid_count)
        noisy, clean = ([as_waveform(sides[name][row][:_LONGEST]) for row in rows] for name in ("noisy", "clean"))
        return list(zip(noisy, clean, strict=True))
    pairs = find_pairs(folder, "--valid", options.sides)
    return [_read_pair(pairs[index]) for index in _spread(len(pairs), options.valid_count)]


def _read_pair(pair: Pair) -> tuple[Tensor, Tensor]:
    noisy, clean = (read_segment(path, _LONGEST, 0.0) for path in (pair.noisy, pair.clean))
    if len(noisy) != len(clean):
        raise InputError(f"--valid: {pair.noisy} and {pair.clean} are of unequal length")
    return noisy, clean


def _spread(available: int, count: int) -> list[int]:
    return [int(index) for index in np.linspace(0, available - 1, min(count, available)).round()]
