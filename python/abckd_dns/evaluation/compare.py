"""The command `evaluate`: one table of objective quality for any number of networks and the noisy input."""

from __future__ import annotations

import csv
import os
import re
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from torch import Tensor, nn
from torch.utils.data import DataLoader, Dataset
from tqdm import tqdm

from ..data.audio import list_audio, read_header, read_speech
from ..data.mixtures import MixtureOptions, Mixtures
from ..errors import InputError, check_at_least
from ..network.load import CHECKPOINT_NAME, load_network
from ..network.stft import SAMPLE_RATE
from ..training.states import make_parent, writing
from .enhance import best_device, enhance
from .metrics import METRICS, Interval, mean_interval, paired_difference

Scores = dict[str, dict[str, list[float]]]  # system -> metric -> one value per example

UNPROCESSED = "noisy input"


@dataclass(kw_only=True)
class EvaluateOptions(MixtureOptions):
    """Compare networks with each other and with the noisy input.

    On a folder of pairs (--pairs), on recordings without clean counterpart (--noisy), or on mixtures made from
    --clean and --noise with a fixed seed.
    """

    checkpoints: tuple[str, ...]
    """Checkpoints (files, or folders of runs); a network of your own is package.module:factory@checkpoint."""
    pairs: Path | None = None
    """Folder with noisy/ and clean/ (equal names, or as in the DNS Challenge *_fileid_N and clean_fileid_N), or
    with noisy_testset_wav/ and clean_testset_wav/ as in VoiceBank-DEMAND."""
    noisy: Path | None = None
    """Folder of noisy recordings without clean counterparts: DNSMOS only."""
    metrics: tuple[Literal["si-sdr", "pesq", "stoi", "estoi", "dnsmos"], ...] = ()
    """What to measure. By default dnsmos with --noisy, and otherwise all but dnsmos, which takes several times as
    long as the others together."""
    dry: float = 0.0
    """Share of the noisy input that is mixed into the output of every network, from 0 up to 1."""
    baseline: str | None = None
    """System, as the table names it, with which the others are compared example by example."""
    count: int = 100
    """Number of mixtures."""
    seconds: float = 4.0
    """Length of a mixture."""
    seed: int = 12345
    """Seed of the mixtures."""
    workers: int = min(16, (os.cpu_count() or 1) // 2) if (os.cpu_count() or 1) > 3 else 0
    """Processes with one thread each that enhance and measure; 0 does it in this process."""
    csv: Path = Path("evaluation.csv")
    """Where the table goes, as CSV, and as Markdown beside it; the value of every example goes to
    <name>_files.csv."""

    def __post_init__(self) -> None:
        if not 0 <= self.dry < 1:
            raise InputError(f"--dry: expected at least 0 and less than 1, got {self.dry}")
        check_at_least(self, 0, "seed", "workers")
        check_at_least(self, 1, "count")
        check_at_least(self, 1 / SAMPLE_RATE, "seconds")
        if self.csv.suffix == ".md":
            raise InputError(f"--csv: {self.csv} is where the Markdown would go; choose another suffix, as .csv")
        if self.csv.is_dir():
            raise InputError(f"--csv: expected a file, but {self.csv} is a folder")


def evaluate(options: EvaluateOptions) -> Scores:
    checkpoints = dict(zip(_unique_names(options.checkpoints), options.checkpoints, strict=True))
    systems = (UNPROCESSED, *checkpoints)
    if options.baseline is not None and options.baseline not in systems:
        raise InputError(f"--baseline: {options.baseline!r} is not one of {', '.join(map(repr, systems))}")
    networks = _load_networks(checkpoints)  # an error now, not from a worker process
    examples = _examples(options)
    metrics, remarks = _choose_metrics(options.metrics, has_clean=options.noisy is None)
    if options.dry:
        remarks.append(f"The output of every network is mixed with {options.dry:g} of the noisy input.")

    make_parent(options.csv)  # now, not when hours of work are done
    scorer = _Scorer(checkpoints, networks, examples, metrics, options.dry)
    scores: Scores = {name: {column: [] for name in metrics for column in METRICS[name].columns} for name in systems}
    for by_system in _score_all(scorer, options.workers):
        for system, values in by_system.items():
            for column, value in values.items():
                scores[system][column].append(value)

    names = [examples.name(index) for index in range(len(examples))]
    report = format_report(scores, options.baseline, remarks)
    print(report)
    with writing(options.csv):
        write_table(options.csv, scores, options.baseline)
        options.csv.with_suffix(".md").write_text(report + "\n")
        write_files_csv(_files_csv(options.csv), scores, names)
    print(f"written: {options.csv}, {options.csv.with_suffix('.md')} and {_files_csv(options.csv)}")
    return scores


class Recordings(Dataset):
    """The recordings of a folder: {"noisy": (N,)}."""

    def __init__(self, folder: Path, argument: str) -> None:
        self.folder, self.argument = folder, argument
        self.noisy = list_audio(folder, argument)
        for path in self.noisy:
            self._check_length(path)

    def _check_length(self, path: Path) -> None:
        if not read_header(path).length:
            raise InputError(f"{self.argument}: {path} has no samples")

    def __len__(self) -> int:
        return len(self.noisy)

    def __getitem__(self, index: int) -> dict[str, Tensor]:
        return {"noisy": read_speech(self.noisy[index])}

    def name(self, index: int) -> str:
        return self.noisy[index].relative_to(self.folder).with_suffix("").as_posix()


class Pairs(Recordings):
    """The recordings of a folder whose clean counterparts lie in a folder beside it:
    {"noisy": (N,), "clean": (N,)}."""

    _SUFFIXES = ("", "_testset_wav")  # the first is also what the DNS Challenge has, with other names of files

    def __init__(self, folder: Path, argument: str = "--pairs") -> None:
        if not folder.is_dir():
            raise InputError(f"{argument}: expected a folder of pairs, but {folder} is not a folder")
        for suffix in self._SUFFIXES:
            noisy, clean = folder / f"noisy{suffix}", folder / f"clean{suffix}"
            if noisy.is_dir() and clean.is_dir():
                break
        else:
            expected = " or ".join(f"noisy{suffix}/ and clean{suffix}/" for suffix in self._SUFFIXES)
            found = ", ".join(sorted(path.name for path in folder.iterdir())[:6]) or "nothing"
            raise InputError(f"{argument}: expected {expected} in {folder}, found {found}")
        super().__init__(noisy, argument)
        self.clean = self._match(list_audio(clean, argument), clean)
        for pair in zip(self.noisy, self.clean, strict=True):
            self._check_pair(*pair)

    def _match(self, clean: list[Path], folder: Path) -> list[Path]:
        """The clean file of every noisy one."""
        left = set(clean)
        matched, lonely = [], []
        for path in self.noisy:
            candidates = [folder / path.relative_to(self.folder)]
            if number := re.search(r"_fileid_(\d+)$", path.stem):
                candidates.append(candidates[0].with_name(f"clean_fileid_{number[1]}{path.suffix}"))
            found = [candidate for candidate in candidates if candidate in left]
            matched += found[:1]
            lonely += [path] * (not found)
        lonely += sorted(left - set(matched))
        if lonely:
            raise InputError(
                f"{self.argument}: {len(lonely)} of {len(self.noisy) + len(clean)} files in {self.folder} and "
                f"{folder} have no counterpart in the other folder, first {lonely[0]}"
            )
        return matched

    def _check_pair(self, noisy: Path, clean: Path) -> None:
        a, b = read_header(noisy), read_header(clean)
        for what, of_noisy, of_clean in (
            ("a sample rate of {} Hz", a.rate, b.rate),
            ("{} channels", a.channels, b.channels),
            ("{} samples", a.length, b.length),
        ):
            if of_noisy != of_clean:
                raise InputError(
                    f"{self.argument}: {noisy} has {what.format(of_noisy)}, but its clean file {clean} has "
                    f"{what.format(of_clean)}"
                )

    def __getitem__(self, index: int) -> dict[str, Tensor]:
        return super().__getitem__(index) | {"clean": read_speech(self.clean[index])}


def _examples(options: EvaluateOptions) -> Recordings | Mixtures:
    given = [name for name in ("pairs", "noisy") if getattr(options, name) is not None]
    if options.clean is not None or options.noise is not None:
        given.append("clean and --noise")
    if len(given) != 1:
        found = " and ".join(f"--{name}" for name in given) or "none of them"
        raise InputError(f"expected one of --pairs, --noisy, or --clean with --noise; got {found}")
    if options.pairs is not None:
        return Pairs(options.pairs)
    if options.noisy is not None:
        return Recordings(options.noisy, "--noisy")
    return Mixtures(options, round(options.seconds * SAMPLE_RATE), options.count, options.seed)


def _choose_metrics(wanted: tuple[str, ...], has_clean: bool) -> tuple[list[str], list[str]]:
    """The metrics that are wanted or by default possible, and remarks on what is left out."""
    chosen, remarks = [], []
    for name in dict.fromkeys(wanted) or [name for name, metric in METRICS.items() if metric.needs_clean == has_clean]:
        missing = METRICS[name].missing_packages()
        if METRICS[name].needs_clean and not has_clean:
            raise InputError(f"--metrics {name} needs clean speech; with --noisy only dnsmos can be computed")
        if not missing:
            chosen.append(name)
        elif wanted or not has_clean:
            raise InputError(
                f"{name} cannot be computed: {', '.join(missing)} not installed (pip install {' '.join(missing)})"
            )
        else:
            remarks.append(f"{name} is left out: {', '.join(missing)} is not installed.")
    return chosen, remarks


def _load_networks(checkpoints: dict[str, str]) -> dict[str, nn.Module]:
    return {
        name: load_network(checkpoint, "--checkpoints").to(best_device()).eval()
        for name, checkpoint in checkpoints.items()
    }


class _Scorer(Dataset):
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
            self._networks = _load_networks(self.checkpoints)
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


def _score_all(scorer: _Scorer, workers: int) -> Iterator[dict[str, dict[str, float]]]:
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


def format_report(scores: Scores, baseline: str | None, remarks: Iterable[str] = ()) -> str:
    """Markdown: a table of means, and if wanted one of the differences from the baseline."""
    parts = [_format_table({system: _intervals(values) for system, values in scores.items()})]
    count = len(next(iter(scores[UNPROCESSED].values())))
    parts.append(
        f"{count} examples; mean ± half of its 95 % bootstrap interval; in parentheses the number of examples "
        "for which a value is undefined, which are left out of the mean."
    )
    if baseline is not None:
        parts.append(f"Difference from {baseline}, paired by example:")
        parts.append(_format_table(_differences(scores, baseline), sign="+"))
    return "\n\n".join([*parts, *remarks])


def format_interval(metric: str, interval: Interval, sign: str = "") -> str:
    decimals = 3 if "STOI" in metric else 2
    undefined = f" ({interval.undefined})" if interval.undefined else ""
    return f"{interval.mean:{sign}.{decimals}f} ± {interval.margin:.{decimals}f}{undefined}"


def _intervals(values: dict[str, list[float]]) -> dict[str, Interval]:
    return {metric: mean_interval(of_metric) for metric, of_metric in values.items()}


def _differences(scores: Scores, baseline: str) -> dict[str, dict[str, Interval]]:
    return {
        system: {metric: paired_difference(of_metric, scores[baseline][metric]) for metric, of_metric in values.items()}
        for system, values in scores.items()
        if system != baseline
    }


def _format_table(rows: dict[str, dict[str, Interval]], sign: str = "") -> str:
    metrics = list(next(iter(rows.values()), {}))
    cells = [["", *metrics]]
    for system, intervals in rows.items():
        cells.append([system, *(format_interval(metric, interval, sign) for metric, interval in intervals.items())])
    widths = [max(map(len, column)) for column in zip(*cells, strict=True)]
    lines = ["| " + " | ".join(map(str.ljust, row, widths)) + " |" for row in cells]
    lines.insert(1, "|" + "|".join("-" * (width + 2) for width in widths) + "|")
    return "\n".join(lines)


def write_table(path: Path, scores: Scores, baseline: str | None) -> None:
    """One row per system and metric."""
    differences = _differences(scores, baseline) if baseline is not None else {}
    with path.open("w", newline="") as file:
        writer = csv.writer(file)
        columns = ["mean", "low95", "high95", "defined", "undefined"]
        writer.writerow(["system", "metric", *columns, "baseline", *(f"difference_{column}" for column in columns)])
        for system, values in scores.items():
            for metric, interval in _intervals(values).items():
                row = [system, metric, *interval]
                if system in differences:
                    row += [baseline, *differences[system][metric]]
                writer.writerow(row + [""] * (3 + 2 * len(columns) - len(row)))


def write_files_csv(path: Path, scores: Scores, example_names: list[str]) -> None:
    """One row per system and example."""
    with path.open("w", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(["system", "example", *scores[UNPROCESSED]])
        for system, values in scores.items():
            for row in zip(example_names, *values.values(), strict=True):
                writer.writerow([system, *row])


def _files_csv(path: Path) -> Path:
    return path.with_name(f"{path.stem}_files.csv")


def _unique_names(checkpoints: tuple[str, ...]) -> list[str]:
    """The name of the run's folder or of the file; the whole checkpoint where that is not unique."""
    paths = [Path(name).parent if Path(name).name == CHECKPOINT_NAME else Path(name) for name in checkpoints]
    short = [path.name.removesuffix(Path(CHECKPOINT_NAME).suffix) for path in paths]
    return [name if short.count(name) == 1 else whole for name, whole in zip(short, checkpoints, strict=True)]
