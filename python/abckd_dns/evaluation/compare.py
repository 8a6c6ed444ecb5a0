"""The command `evaluate`: one table of objective quality for any number of networks and the noisy input."""

from __future__ import annotations

from pathlib import Path

from ..data.mixtures import Mixtures
from ..errors import InputError
from ..files import make_parent, writing
from ..network.names import CHECKPOINT_NAME
from ..options import EvaluateOptions, samples
from .metrics import METRICS, choose_metrics
from .recordings import Pairs, Recordings
from .scores import UNPROCESSED, Scorer, Scores, load_networks, score_all
from .tables import format_report, write_files_csv, write_table


def evaluate(options: EvaluateOptions) -> Scores:
    """Print and write the table, and return what it is made of. Raises InputError."""
    checkpoints = dict(zip(_unique_names(options.checkpoints), options.checkpoints, strict=True))
    systems = (UNPROCESSED, *checkpoints)
    if options.baseline is not None and options.baseline not in systems:
        raise InputError(f"--baseline: {options.baseline!r} is not one of {', '.join(map(repr, systems))}")
    networks = load_networks(checkpoints)  # an error now, not from a worker process
    examples = _examples(options)
    metrics, remarks = choose_metrics(options.metrics, has_clean=options.noisy is None)
    if options.dry:
        remarks.append(f"The output of every network is mixed with {options.dry:g} of the noisy input.")

    make_parent(options.csv)  # now, not when hours of work are done
    scorer = Scorer(checkpoints, networks, examples, metrics, options.dry)
    scores: Scores = {name: {column: [] for name in metrics for column in METRICS[name].columns} for name in systems}
    for by_system in score_all(scorer, options.workers):
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
    return Mixtures(options, samples(options.seconds), options.count, options.seed)


def _files_csv(path: Path) -> Path:
    return path.with_name(f"{path.stem}_files.csv")


def _unique_names(checkpoints: tuple[str, ...]) -> list[str]:
    """The name of the run's folder or of the file; the whole checkpoint where that is not unique."""
    paths = [Path(name).parent if Path(name).name == CHECKPOINT_NAME else Path(name) for name in checkpoints]
    short = [path.name.removesuffix(Path(CHECKPOINT_NAME).suffix) for path in paths]
    return [name if short.count(name) == 1 else whole for name, whole in zip(short, checkpoints, strict=True)]
