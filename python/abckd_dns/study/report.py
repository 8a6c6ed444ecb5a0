"""Tables and plots of a study, from its results alone: the same results give the same files."""

from __future__ import annotations

import math
import textwrap
from collections.abc import Iterable
from itertools import combinations

import matplotlib
import numpy as np
from matplotlib.figure import Figure

from ..evaluation.systems import UNPROCESSED
from ..markdown import table
from .config import Config, Regime
from .results import (
    ENTROPY,
    OBJECTIVE,
    Finalists,
    Results,
    choose_finalists,
    equal_loss_shares,
    final_seeds,
    grid_means,
)
from .runs import NOISY, TEACHER, Run, noise_runs
from .statistics import Estimate, difference, estimate, margin_of_seeds

TARGETS = {"SI-SDR (dB)": 0.3, "PESQ-WB": 0.03}  # differences that a study should be able to see
_SEED_COUNTS = (3, 5, 8, 12)
_STYLE = {"font.size": 8, "axes.grid": True, "grid.alpha": 0.3, "savefig.dpi": 110, "lines.markersize": 4}


def write(config: Config, results: Results) -> None:
    """tables.md and the plots, into the folder of results."""
    finalists = choose_finalists(config, results)
    config.results.mkdir(parents=True, exist_ok=True)
    (config.results / "tables.md").write_text(_tables(config, results, finalists))
    with matplotlib.rc_context(_STYLE):
        _save(config, "grid", _grid_figure(config, results))
        for regime, weights in finalists.items():
            _save(config, f"differences_{regime}", _difference_figure(config, results, regime, weights))
            if figure := _attention_figure(config, results, regime, weights):
                _save(config, f"attention_{regime}", figure)


def _save(config: Config, name: str, figure: Figure) -> None:
    # Without the version of matplotlib, which would make other bytes of the same picture.
    figure.savefig(config.results / f"{name}.png", metadata={"Software": None})


def format_seed_noise(config: Config, results: Results) -> str:
    """How much the seed alone changes the mean of a system over the test set."""
    blocks = []
    for regime in config.regimes:
        runs = [run for run in noise_runs(config) if run.regime == regime and (run, 0.0) in results.test]
        if len(runs) < 2:
            blocks.append(f"{regime}: fewer than two seeds of {config.baseline[regime]!r} are finished.")
            continue
        rows = []
        for metric in results.metrics:
            alone = estimate(results.table(runs, metric)).seed_spread
            # Two systems with a seed in common differ by less than this, if the seed acts on both alike.
            apart = math.sqrt(2) * alone
            margins = [margin_of_seeds(apart, count) for count in _SEED_COUNTS]
            target = TARGETS.get(metric)
            needed = next((n for n in range(2, 100) if target and margin_of_seeds(apart, n) <= target), None)
            cells = [_cell(metric, value) for value in (alone, apart, *margins)]
            rows.append([metric, *cells, f"{needed} ({target:g})" if needed else ""])
        head = ["", "deviation of a seed", "of a difference", *(f"visible, {n} seeds" for n in _SEED_COUNTS)]
        blocks.append(
            f"{regime}: {config.baseline[regime]!r} over {len(runs)} seeds, test means. A difference is visible "
            "that is larger than half the 95 % interval of a difference of two systems with unrelated seeds.\n\n"
            + _markdown([*head, "seeds needed (for)"], rows)
        )
    return "\n\n".join(blocks)


def _tables(config: Config, results: Results, finalists: Finalists) -> str:
    blocks = ["Made by `abckd-dns study`; do not edit.", "## Seed noise", format_seed_noise(config, results)]
    for regime, weights in finalists.items():
        baseline = config.baseline[regime]
        others = [name for name in weights if name != baseline]
        blocks += [
            f"## {regime}",
            f"Mean over seeds and test utterances; in brackets the standard deviation between seeds. Weights are in "
            f"units of the system's own; the grid's best by {config.evaluation.select} on the development set.",
            _means_table(config, results, regime, weights),
            f"### Minus {baseline}",
            f"Paired by seed and utterance, with 95 % intervals over both. In bold what leaves zero out. ![]"
            f"(differences_{regime}.png)",
            _differences_table(config, results, regime, weights, [(name, baseline) for name in others]),
            "### Against each other",
            _differences_table(config, results, regime, weights, combinations(others, 2)),
            "### Dry mix at equal loss",
            "The better one of a system and the baseline, by the objective on the development set, has as much of the "
            "noisy input mixed into its output as leaves it no worse than the other; then the difference on the test "
            "set.",
            _dry_table(config, results, regime, finalists),
        ]
    blocks += ["## Grid of KD weights", f"{config.evaluation.select} on the development set. ![](grid.png)"]
    blocks += [_grid_table(config, results, regime) for regime in config.regimes]
    attention = _attention_table(results)
    if attention:
        blocks += [
            "## Attention",
            "Entropy of the attention of student layers over teacher layers (AFD: of teacher layers over student "
            "layers), their mean: 1 for equal weights of all layers, 0 for a single one.",
        ]
        blocks += [attention]
    return "\n\n".join(blocks) + "\n"


def _means_table(config: Config, results: Results, regime: Regime, weights: dict[str, float | None]) -> str:
    rows = []
    for name, label in ((NOISY, UNPROCESSED), (TEACHER, TEACHER)):
        if (name, 0.0) in results.test:
            means = [_cell(metric, estimate(results.table([name], metric)).mean) for metric in results.metrics]
            rows.append([label, "", "", *means, ""])
    for system, weight in weights.items():
        runs = final_seeds(config, results, regime, system, weight)
        if not runs:
            rows.append([system, _weight(weight), "0", *("" for _ in results.metrics), ""])
            continue
        estimates = [(metric, estimate(results.table(runs, metric))) for metric in results.metrics]
        cells = [f"{_cell(metric, e.mean)} ({_cell(metric, e.seed_spread)})" for metric, e in estimates]
        objective = np.mean([results.dev[run][OBJECTIVE] for run in runs])
        rows.append([system, _weight(weight), str(len(runs)), *cells, f"{objective:.4f}"])
    return _markdown(["system", "KD weight", "seeds", *results.metrics, "objective (dev)"], rows)


def _differences_table(
    config: Config,
    results: Results,
    regime: Regime,
    weights: dict[str, float | None],
    pairs: Iterable[tuple[str, str]],
) -> str:
    rows = []
    for first, second in pairs:
        estimates = _differences(config, results, regime, weights, first, second)
        if estimates:
            name = first if second == config.baseline[regime] else f"{first} − {second}"
            rows.append([name, *(_interval(metric, e) for metric, e in estimates.items())])
    return _markdown(["", *results.metrics], rows)


def _differences(
    config: Config,
    results: Results,
    regime: Regime,
    weights: dict[str, float | None],
    first: str,
    second: str,
    shares: tuple[float, float] = (0.0, 0.0),
) -> dict[str, Estimate]:
    """By metric, over the seeds that both have; nothing if they have none in common, or one of them has not run."""
    if not {first, second} <= weights.keys():
        return {}
    tested = [
        {
            run.seed: run
            for run in final_seeds(config, results, regime, system, weights[system])
            if (run, share) in results.test
        }
        for system, share in zip((first, second), shares, strict=True)
    ]
    seeds = sorted(tested[0].keys() & tested[1].keys())
    if not seeds:
        return {}
    tables = {
        metric: [
            results.table([runs[seed] for seed in seeds], metric, share)
            for runs, share in zip(tested, shares, strict=True)
        ]
        for metric in results.metrics
    }
    return {metric: difference(*pair) for metric, pair in tables.items()}


def _dry_table(config: Config, results: Results, regime: Regime, finalists: Finalists) -> str:
    rows = []
    for (of, system), shares in equal_loss_shares(config, results, finalists).items():
        if of == regime:
            estimates = _differences(
                config, results, regime, finalists[regime], system, config.baseline[regime], shares
            )
            cells = [_interval(metric, e) for metric, e in estimates.items()]
            rows.append([system, *(f"{share:g}" for share in shares), *cells])
    return _markdown(["", "share in its output", f"in that of {config.baseline[regime]}", *results.metrics], rows)


def _grid_table(config: Config, results: Results, regime: Regime) -> str:
    rows = []
    for system in config.systems(regime):
        means = grid_means(config, results, regime, system)
        columns = config.grid.weights if system.has_grid else (None,)
        cells = [f"{means[weight]:.3f}" if weight in means else "" for weight in columns]
        cells += [""] * (len(config.grid.weights) - len(cells))
        unit = results.units.get(system.name)
        rows.append([system.name, "fixed" if unit is None else f"{unit:g}", *cells])
    return _markdown([regime, "unit", *(f"{weight:g}" for weight in config.grid.weights)], rows)


def _attention_table(results: Results) -> str:
    groups: dict[tuple, list[float]] = {}
    for run in results.attention:
        groups.setdefault((run.regime, run.system, run.weight, run.steps), []).append(results.dev[run][ENTROPY])
    rows = [
        [regime, system, _weight(weight), str(steps), str(len(values)), f"{min(values):.3f} to {max(values):.3f}"]
        for (regime, system, weight, steps), values in sorted(groups.items(), key=str)
    ]
    return _markdown(["regime", "system", "KD weight", "steps", "seeds", "entropy"], rows) if rows else ""


def _markdown(head: list[str], rows: list[list[str]]) -> str:
    return table(head, rows) if rows else "(nothing yet)"


def _cell(metric: str, value: float) -> str:
    return f"{value:.{_decimals(metric)}f}" if math.isfinite(value) else "–"


def _interval(metric: str, e: Estimate) -> str:
    decimals = _decimals(metric)
    text = f"{e.mean:+.{decimals}f} [{e.low:+.{decimals}f}, {e.high:+.{decimals}f}]"
    return f"**{text}**" if e.is_clear else text


def _decimals(metric: str) -> int:
    return 2 if "dB" in metric else 3


def _weight(weight: float | None) -> str:
    return "" if weight is None else f"{weight:g}"


def _grid_figure(config: Config, results: Results) -> Figure:
    """The metric that selects, over the KD weight; the band is the baseline and the deviation of its seeds."""
    figure = Figure(figsize=(4.2 * len(config.regimes), 3.6), layout="constrained")
    metric = config.evaluation.select
    for axes, regime in zip(figure.subplots(1, len(config.regimes), squeeze=False)[0], config.regimes, strict=True):
        runs = [run for run in noise_runs(config) if run.regime == regime and run in results.dev]
        if runs:
            values = [results.dev[run][metric] for run in runs]
            axes.axhline(np.mean(values), color="black", linewidth=1, label=config.baseline[regime])
            axes.axhspan(np.mean(values) - np.std(values), np.mean(values) + np.std(values), color="black", alpha=0.1)
        for system in (system for system in config.systems(regime) if system.has_grid):
            index = config.system.index(system)  # one colour in all panels
            means = grid_means(config, results, regime, system)
            style = "o-" if index < 10 else "s--"  # there are ten colours
            axes.plot(list(means), list(means.values()), style, label=system.name, color=f"C{index % 10}")
        axes.set_xscale("log")
        axes.set_xlabel("KD weight, in units of the system's")
        axes.set_title(regime)
        axes.legend(fontsize=6)
    figure.axes[0].set_ylabel(f"{metric}, development set")
    return figure


def _difference_figure(config: Config, results: Results, regime: Regime, weights: dict[str, float | None]) -> Figure:
    """Differences from the baseline with their intervals, a panel per metric."""
    baseline, metrics = config.baseline[regime], results.metrics
    names = [name for name in weights if name != baseline]
    figure = Figure(figsize=(1.5 + 2.2 * len(metrics), 1.1 + 0.28 * len(names)), layout="constrained")
    panels = figure.subplots(1, len(metrics), squeeze=False, sharey=True)[0]
    for axes, metric in zip(panels, metrics, strict=True):
        axes.axvline(0, color="black", linewidth=0.8)
        for row, name in enumerate(names):
            estimates = _differences(config, results, regime, weights, name, baseline)
            if estimates:
                e = estimates[metric]
                axes.plot([e.low, e.high], [row, row], color="C0" if e.is_clear else "grey", linewidth=2)
                axes.plot(e.mean, row, "o", color="C0" if e.is_clear else "grey")
        axes.set_xlabel(metric)
    panels[0].set_yticks(range(len(names)), names)
    panels[0].invert_yaxis()
    figure.suptitle(f"{regime}: minus {baseline}, 95 % intervals over seeds and utterances")
    return figure


def _attention_figure(
    config: Config, results: Results, regime: Regime, weights: dict[str, float | None]
) -> Figure | None:
    """The attention of each finalist that has any, mean over its seeds."""
    found = {}
    for system, weight in weights.items():
        runs = [run for run in final_seeds(config, results, regime, system, weight) if run in results.attention]
        if runs:
            found[system] = _mean_attention(results, runs)
    if not found:
        return None
    figure = Figure(figsize=(2.9 * len(found), 3.2), layout="constrained")
    for axes, (system, (matrix, rows, columns)) in zip(
        figure.subplots(1, len(found), squeeze=False)[0], found.items(), strict=True
    ):
        image = axes.imshow(matrix, vmin=0, vmax=1, cmap="viridis", aspect="auto")
        axes.set_xticks(range(len(columns)), columns, rotation=90)
        axes.set_yticks(range(len(rows)), rows)
        axes.set_title(textwrap.fill(system, 22))
        axes.grid(False)
    figure.colorbar(image, ax=figure.axes, label="attention")
    return figure


def _mean_attention(results: Results, runs: list[Run]) -> tuple[np.ndarray, list[str], list[str]]:
    """(student layers, teacher layers), and their names."""
    pairs = list(results.attention[runs[0]])
    rows, columns = (list(dict.fromkeys(pair[side] for pair in pairs)) for side in (0, 1))
    means = {pair: np.mean([results.attention[run][pair] for run in runs]) for pair in pairs}
    return np.array([[means[row, column] for column in columns] for row in rows]), rows, columns
