"""The command `evaluate`: one table of objective quality for any number of networks and the noisy input."""

from __future__ import annotations

import csv
from dataclasses import dataclass
from pathlib import Path

from torch import Tensor, nn
from torch.utils.data import Dataset
from tqdm import tqdm

from .audio import list_audio, read_speech
from .data import MixtureOptions, Mixtures
from .enhance import best_device, enhance
from .errors import InputError
from .metrics import METRICS, mean_and_margin
from .networks import CHECKPOINT_NAME, load_network
from .stft import SAMPLE_RATE

Scores = dict[str, dict[str, list[float]]]  # system -> metric -> one value per example

UNPROCESSED = "noisy input"


@dataclass(kw_only=True)
class EvaluateOptions(MixtureOptions):
    """Compare networks with each other and with the noisy input.

    On a folder of pairs (--pairs), or on mixtures made from --clean and --noise with a fixed seed.
    """

    checkpoints: tuple[str, ...]
    """Checkpoints (files, or folders of runs); a network of your own is package.module:factory@checkpoint."""
    pairs: Path | None = None
    """Folder with noisy/ and clean/, whose files have equal names."""
    count: int = 100
    """Number of mixtures."""
    seconds: float = 4.0
    """Length of a mixture."""
    seed: int = 12345
    """Seed of the mixtures."""
    csv: Path = Path("evaluation.csv")
    """Where the table goes; the value of every file goes beside it, as <name>_files.csv."""


def evaluate(options: EvaluateOptions) -> Scores:
    networks = {
        name: load_network(checkpoint, "--checkpoints")
        for name, checkpoint in zip(_unique_names(options.checkpoints), options.checkpoints, strict=True)
    }
    if options.pairs is not None:
        examples = Pairs(options.pairs)
    else:
        examples = Mixtures(options, round(options.seconds * SAMPLE_RATE), options.count, options.seed)
    scores = score(networks, examples)
    print(format_table(scores))
    if "PESQ-WB" not in METRICS:
        print("PESQ is left out: the package pesq is not installed")
    write_csv(options.csv, scores, [examples.name(index) for index in range(len(examples))])
    print(f"written: {options.csv} and {_files_csv(options.csv)}")
    return scores


class Pairs(Dataset):
    """The recordings of a folder with noisy/ and clean/: {"noisy": (N,), "clean": (N,)}."""

    def __init__(self, folder: Path) -> None:
        self.noisy = list_audio(folder / "noisy", "--pairs")
        self.clean = [folder / "clean" / path.relative_to(folder / "noisy") for path in self.noisy]
        missing = [path for path in self.clean if not path.is_file()]
        if missing:
            raise InputError(
                f"--pairs: {len(missing)} of {len(self.clean)} clean files do not exist, first {missing[0]}"
            )

    def __len__(self) -> int:
        return len(self.noisy)

    def __getitem__(self, index: int) -> dict[str, Tensor]:
        noisy, clean = read_speech(self.noisy[index]), read_speech(self.clean[index])
        if noisy.shape != clean.shape:
            raise InputError(
                f"--pairs: {self.noisy[index]} has {len(noisy)} samples at {SAMPLE_RATE} Hz, its clean file "
                f"has {len(clean)}"
            )
        return {"noisy": noisy, "clean": clean}

    def name(self, index: int) -> str:
        return self.noisy[index].stem


def score(networks: dict[str, nn.Module], examples: Pairs | Mixtures) -> Scores:
    """Every metric of every network, and of the noisy input, on every example."""
    for network in networks.values():
        network.to(best_device()).eval()
    scores: Scores = {name: {metric: [] for metric in METRICS} for name in (UNPROCESSED, *networks)}
    for index in tqdm(range(len(examples)), desc="evaluate", unit="file"):
        example = examples[index]
        estimates = {UNPROCESSED: example["noisy"]}
        estimates |= {name: enhance(network, example["noisy"]) for name, network in networks.items()}
        for name, estimate in estimates.items():
            for metric, function in METRICS.items():
                scores[name][metric].append(function(estimate, example["clean"]))
    return scores


def format_table(scores: Scores) -> str:
    """Mean and half the width of its 95 % interval, one row per system."""
    width = max(map(len, scores))
    lines = [f"{'':{width}}  " + "  ".join(f"{metric:>15}" for metric in METRICS)]
    for name, by_metric in scores.items():
        cells = (format_mean(metric, values) for metric, values in by_metric.items())
        lines.append(f"{name:{width}}  " + "  ".join(f"{cell:>15}" for cell in cells))
    return "\n".join(lines)


def format_mean(metric: str, values: list[float], sign: str = "") -> str:
    mean, margin = mean_and_margin(values)
    decimals = 3 if metric == "STOI" else 2
    return f"{mean:{sign}.{decimals}f} ± {margin:.{decimals}f}"


def write_csv(path: Path, scores: Scores, example_names: list[str]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("w", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(["system", *(f"{metric} {part}" for metric in METRICS for part in ("mean", "margin95"))])
        for name, by_metric in scores.items():
            writer.writerow([name, *(value for values in by_metric.values() for value in mean_and_margin(values))])
    with _files_csv(path).open("w", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(["system", "example", *METRICS])
        for name, by_metric in scores.items():
            for row in zip(example_names, *by_metric.values(), strict=True):
                writer.writerow([name, *row])


def _files_csv(path: Path) -> Path:
    return path.with_name(f"{path.stem}_files.csv")


def _unique_names(checkpoints: tuple[str, ...]) -> list[str]:
    """The name of the run's folder or of the file; the whole checkpoint where that is not unique."""
    short = [Path(name).parent.name if Path(name).name == CHECKPOINT_NAME else Path(name).stem for name in checkpoints]
    return [name if short.count(name) == 1 else whole for name, whole in zip(short, checkpoints, strict=True)]
