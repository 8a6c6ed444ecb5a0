"""The trainings of a study: which there are, and where each and what is known of it lie."""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path

from .config import Config, Regime


@dataclass(frozen=True)
class Run:
    """One student."""

    regime: Regime
    system: str
    weight: float | None
    """In units of the system's; None where there is no grid."""
    steps: int
    seed: int

    @property
    def name(self) -> str:
        """Of its folder, below the folder of runs."""
        weight = "" if self.weight is None else f"weight{self.weight:g}-"
        return f"{self.regime}/{file_name(self.system)}/{weight}steps{self.steps}-seed{self.seed}"


TEACHER = "teacher"  # the name of its folder
NOISY = "noisy"


def file_name(system: str) -> str:
    return re.sub(r"[^a-z0-9]+", "_", system.lower()).strip("_")


def noise_runs(config: Config) -> list[Run]:
    """The baselines over seeds: how much the seed alone changes."""
    return [
        Run(regime, config.baseline[regime], None, config.student.steps, seed)
        for regime in config.regimes
        for seed in config.noise_seeds
    ]


def grid_runs(config: Config) -> list[Run]:
    """Every system at every KD weight."""
    return [
        Run(regime, system.name, weight, config.grid.steps or config.student.steps, seed)
        for seed in config.grid.seeds
        for regime in config.regimes
        for system in config.systems(regime)
        for weight in (config.grid.weights if system.has_grid else (None,))
    ]


def unit_runs(config: Config) -> list[Run]:
    """Runs of no steps, in whose folders the units of the systems lie that the configuration gives none."""
    return [
        Run(system.regimes[0], system.name, 1.0, 0, config.noise_seeds[0])
        for system in config.system
        if system.has_grid and system.unit is None
    ]


def final_runs(config: Config, finalists: dict[Regime, dict[str, float | None]]) -> list[Run]:
    """`finalists`: of each regime, the systems and their weights."""
    return [
        Run(regime, system, weight, config.student.steps, seed)
        for seed in config.final.seeds
        for regime, weights in finalists.items()
        for system, weight in weights.items()
    ]


def mixtures_folder(config: Config) -> Path:
    return config.runs / "prepared" / "mixtures"


def scores_file(config: Config, run: str, part: str, share: float = 0.0) -> Path:
    """Values per utterance of the run in a folder, with a share of the noisy input mixed into its output."""
    dry = f"_dry{share:g}" if share else ""
    return config.runs / run / "scores" / f"{part}_{_mixtures(config, part)}{dry}.csv"


def dry_file(config: Config, run: str) -> Path:
    """The objective on the development set at every share of the noisy input."""
    return config.runs / run / "scores" / f"objective_{_mixtures(config, 'dev')}.csv"


def unit_file(config: Config, run: str) -> Path:
    return config.runs / run / "unit.csv"


def _mixtures(config: Config, part: str) -> str:
    count = config.evaluation.dev_count if part == "dev" else config.evaluation.test_count
    return f"{count}x{config.evaluation.seconds:g}s"
