"""Scores per utterance on the study's development or test mixtures, which are made once and kept."""

from __future__ import annotations

import csv
from collections.abc import Callable, Iterable
from pathlib import Path

import numpy as np
import torch
from tqdm import tqdm

from .package import METRICS, SAMPLE_RATE, MixtureOptions, Mixtures, fetch_study_data, write_atomically

SEED = 12345  # that of `abckd-dns study`: these are its mixtures
COUNTS = {"dev": 100, "test": 200}
SECONDS = 4.0
METRIC_NAMES = ("si-sdr", "pesq", "stoi")
COLUMNS = tuple(column for name in METRIC_NAMES for column in METRICS[name].columns)


class Scored:
    """Mixtures of a part: noisy and clean, float32 (count, N)."""

    def __init__(self, part: str, folder: Path) -> None:
        self.part = part
        path = folder / f"{part}.npz"
        if not path.exists():
            _save(part, path)
        with np.load(path) as file:
            self.noisy, self.clean = file["noisy"], file["clean"]


def _save(part: str, path: Path) -> None:
    data = fetch_study_data() / part
    options = MixtureOptions(clean=data / "speech", noise=data / "noise", snr=(-5.0, 15.0))
    mixtures = Mixtures(options, round(SECONDS * SAMPLE_RATE), COUNTS[part], SEED)
    sides = [[mixtures[index][side].numpy() for index in range(len(mixtures))] for side in ("noisy", "clean")]
    path.parent.mkdir(parents=True, exist_ok=True)
    unfinished = path.with_suffix(".unfinished.npz")
    np.savez(unfinished, noisy=np.stack(sides[0]), clean=np.stack(sides[1]))
    unfinished.rename(path)


def scores(estimate: np.ndarray, clean: np.ndarray) -> dict[str, float]:
    values: dict[str, float] = {}
    for name in METRIC_NAMES:
        values |= METRICS[name](torch.from_numpy(estimate), torch.from_numpy(clean))
    return values


def score(denoise: Callable[[np.ndarray], np.ndarray], mixtures: Scored) -> list[dict[str, float]]:
    return [scores(denoise(noisy), clean) for noisy, clean in zip(mixtures.noisy, mixtures.clean, strict=True)]


def score_table(makers: dict[str, Callable[[], Callable]], mixtures: Scored, path: Path) -> None:
    """A row per system and utterance in `path`; rows that are there are not computed again."""
    rows = read(path)
    done = {(row["system"], int(row["example"])) for row in rows}
    for system, make in makers.items():
        left = [index for index in range(len(mixtures.noisy)) if (system, index) not in done]
        denoise = make() if left else None
        for index in tqdm(left, desc=system, mininterval=5):
            values = scores(denoise(mixtures.noisy[index]), mixtures.clean[index])
            rows.append({"system": system, "example": index, **{key: f"{x:.4f}" for key, x in values.items()}})
            if index % 20 == 19:
                write(path, rows)
        if left:
            write(path, rows)


def read(path: Path) -> list[dict[str, str]]:
    if not path.exists():
        return []
    with path.open(newline="") as file:
        return list(csv.DictReader(file))


def write(path: Path, rows: Iterable[dict]) -> None:
    rows = list(rows)
    path.parent.mkdir(parents=True, exist_ok=True)

    def put(unfinished: Path) -> None:
        with unfinished.open("w", newline="") as file:
            writer = csv.DictWriter(file, list(rows[0]), lineterminator="\n")
            writer.writeheader()
            writer.writerows(rows)

    write_atomically(path, put)


def summary(path: Path) -> str:
    """Means by system, as a Markdown table; in brackets half of the 95 % interval over utterances."""
    from .package import mean_interval

    rows = read(path)
    lines = ["| | " + " | ".join(COLUMNS) + " |", "|---|" + "---|" * len(COLUMNS)]
    for system in dict.fromkeys(row["system"] for row in rows):
        cells = []
        for column in COLUMNS:
            found = mean_interval([float(row[column]) for row in rows if row["system"] == system])
            cells.append(f"{found.mean:.3f} ({found.margin:.3f})")
        lines.append(f"| {system} | " + " | ".join(cells) + " |")
    return "\n".join(lines)
