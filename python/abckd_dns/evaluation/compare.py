"""The command `evaluate`: one table of objective quality for any number of systems and the noisy input."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

from tqdm import tqdm

from ..data.mixtures import Mixtures
from ..errors import InputError, remark
from ..files import make_parent, writing
from ..options import EvaluateOptions, samples
from .journal import Journal
from .metrics import choose_metrics
from .recordings import Pairs, Recordings
from .scores import Scorer, Scores, score_all
from .systems import UNPROCESSED, System, make_systems, stamp_of
from .tables import Cost, format_costs, format_report, write_table

# What may change between an interrupted evaluation and its continuation.
_FREE = {"workers", "csv", "baseline"}


def evaluate(options: EvaluateOptions) -> Scores:
    """Write and print the table, and return what it is made of: a value per example, NaN where there is none.

    Raises InputError if nothing can be measured, or nothing of a system; after KeyboardInterrupt, which it passes on,
    the tables hold what was measured before.
    """
    systems = make_systems(options)
    names = (UNPROCESSED, *systems)
    if options.baseline is not None and options.baseline not in names:
        raise InputError(f"--baseline: {options.baseline!r} is not one of {', '.join(map(repr, names))}")
    examples = _examples(options)
    metrics, remarks = choose_metrics(options.metrics, has_clean=options.noisy is None)
    if options.dry:
        remarks.append(f"The output of every system is mixed with {options.dry:g} of the noisy input.")

    make_parent(options.csv)  # now, not when hours of work are done
    scorer = Scorer(systems, examples, metrics, options.dry)
    example_names = [examples.name(index) for index in range(len(examples))]
    identity = [_identity(options, systems, examples), scorer.columns, example_names]
    journal = Journal(_files_csv(options.csv), list(names), scorer.columns, example_names, identity)
    left = [index for index in range(len(examples)) if index not in journal.results]
    try:
        with tqdm(total=len(examples), initial=len(examples) - len(left), desc="evaluate", unit="file") as progress:
            for index, result in score_all(scorer, left, options.workers):
                journal.add(index, result)
                progress.update()
                _say(example_names[index], result.failure, {name: row.remark for name, row in result.rows.items()})
    except KeyboardInterrupt:
        if any(not result.failure for result in journal.results.values()):
            _report(options, journal, systems, remarks)
        remark(f"interrupted: {len(journal.results)} of {len(examples)} examples are done; the same command goes on")
        raise
    journal.finish()
    if len(journal.failures()) == len(examples):
        raise InputError(f"none of the {len(examples)} examples can be used; {_listed(journal.failures())}")
    _report(options, journal, systems, remarks)
    _check_systems(journal, systems)
    return journal.scores


def _say(example: str, failure: str, remarks: dict[str, str]) -> None:
    if failure:
        remark(f"{example}: left out: {failure}")
    for system, text in remarks.items():
        if text:
            remark(f"{example}, {system}: {text}")


def _report(options: EvaluateOptions, journal: Journal, systems: dict[str, System], remarks: list[str]) -> None:
    failures, scores = journal.failures(), journal.scores
    remarks = list(remarks)
    if failures:
        count = len(journal.results)
        remarks.append(f"{len(failures)} of {count} examples cannot be used and are left out: {_listed(failures)}")
    for name in systems:
        delays = sorted(row.delay for row in journal.rows_of(name) if not math.isnan(row.delay))
        if delays and any(delays):
            remarks.append(
                f"{name}: delays of {1000 * delays[0]:.1f} to {1000 * delays[-1]:.1f} ms "
                f"(median {1000 * delays[len(delays) // 2]:.1f} ms) were taken off."
            )
    costs = [_cost(name, system, journal) for name, system in systems.items()]
    report = format_report(scores, options.baseline, [*format_costs(costs), *remarks])
    with writing(options.csv):
        write_table(options.csv, scores, options.baseline, costs)
        options.csv.with_suffix(".md").write_text(report + "\n", encoding="utf-8")
    print(report)
    print(f"written: {options.csv}, {options.csv.with_suffix('.md')} and {_files_csv(options.csv)}")


def _cost(name: str, system: System, journal: Journal) -> Cost:
    factors = [row.factor for row in journal.rows_of(name) if not math.isnan(row.factor)]
    return Cost(name, *system.costs(), sum(factors) / len(factors) if factors else None)


def _check_systems(journal: Journal, systems: dict[str, System]) -> None:
    for name in systems:
        rows = journal.rows_of(name)
        if all(row.remark and all(map(math.isnan, row.values.values())) for row in rows):
            raise InputError(f"{name}: nothing could be measured; on the first example: {rows[0].remark}")


def _listed(failures: dict[str, str]) -> str:
    shown = [f"{name}: {why}" for name, why in list(failures.items())[:5]]
    return "; ".join([*shown, *["..."] * (len(failures) > 5)])


def _examples(options: EvaluateOptions) -> Recordings | Mixtures:
    given = [name for name in ("pairs", "noisy") if getattr(options, name) is not None]
    if options.clean is not None or options.noise is not None:
        given.append("clean and --noise")
    if len(given) != 1:
        found = " and ".join(f"--{name}" for name in given) or "none of them"
        raise InputError(f"expected one of --pairs, --noisy, or --clean with --noise; got {found}")
    if options.pairs is not None:
        return Pairs(options.pairs, sides=options.sides, cut=options.cut)
    if options.noisy is not None:
        return Recordings(options.noisy, "--noisy")
    return Mixtures(options, samples(options.seconds), options.count, options.seed)


def _identity(options: EvaluateOptions, systems: dict[str, System], examples: Recordings | Mixtures) -> list[Any]:
    if isinstance(examples, Recordings):
        data = stamp_of(examples.files())
    else:
        pools = [pool for pool in (examples.speech, examples.noise, examples.rirs) if pool is not None]
        data = stamp_of([str(source) for pool in pools for source in pool.files])
    return [
        options.model_dump(mode="json", exclude=_FREE),
        [system.identity() for system in systems.values()],
        data,
    ]


def _files_csv(path: Path) -> Path:
    return path.with_name(f"{path.stem}_files.csv")
