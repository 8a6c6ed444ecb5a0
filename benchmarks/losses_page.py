"""The tables of every loss, and the page that holds them, docs/losses.md."""

from __future__ import annotations

import json
from collections.abc import Iterable
from pathlib import Path

from abckd_kernels.losses.entries import Entry
from abckd_verify import markdown

PAGE = Path(__file__).parents[1] / "docs" / "losses.md"
MEASURED = Path(__file__).with_name("measured_losses.json")  # written by python -m benchmarks.run --page
FORMS = ("eager", "compile", "ours")
SPEEDS = ("loss", "dtype", *(f"{form} ms" for form in FORMS), "eager / ours", "compile / ours", "ours / limit",
            "traffic eager", "traffic ours", *(f"memory {form}" for form in FORMS), "one feature")  # fmt: skip
HEAD = """# Losses

Written by `python -m benchmarks.run --page`. All are in `abckd_kernels.losses`, as a function and as an nn.Module; `abckd_kernels.losses.table()`
holds the same. s is the student's feature, t the teacher's, X a feature as a matrix of C or B rows, N the number of positions; every loss is a
mean over samples, unless its docstring says otherwise. A docstring says shapes, options, and where published code does something else.

"""  # noqa: E501 - Markdown
MEANING = """## Measured

Beside the published form in plain PyTorch and torch.compile of it, interleaved in one process on the same inputs, forward + backward, medians, float32; every
result was compared with the published form in float64 first, by the options that make it.

| column | meaning |
|---|---|
| limit | compulsory bytes over the memory bandwidth measured in the same process |
| traffic | bytes that operators move, over the compulsory: student and teacher read once forward; student read and its gradient written once backward. Operators read their operands once and write their results once. A loss whose gradient needs the teacher again has 1.4 where both are of one size; what fits into the cache counts like everything else |
| memory | MB at most beyond inputs and returned gradients |
| one feature | MB of the largest single input |
"""  # noqa: E501 - Markdown
ERRORS = """## Errors

Relative error of the loss, and of its gradient in the norm, to float64 of the same (rounded) inputs. In half precision the loss is multiplied by 2^16,
where GradScaler begins, or less where that overflows; zeros is the share of gradients that vanish where float64 has some.

"""  # noqa: E501 - Markdown
PUBLISHED = """## To write for published code

Where one option is not all; tau is the temperature, n and m are the student's and the teacher's layers.

| published | write |
|---|---|
| SemCKD, IRG | `irg_loss(s, t, weights=[1] * n)` has the edges of every pair and their change from layer to layer. The published vertex term is in each pair whose shapes agree, unasked: add `hint_loss` of those pairs, `weights=[1] * k`; where all agree `vertex_weight=1` is the same. Its change of vertices between layers is not offered |
| SemCKD, FitNet's regressor | `HintLoss(C_s, C_t, regressor=ConvReg(C_s, C_t, kernel_size=3, padding=1))`, for features of equal size |
| I2RF-TFCKD | each student layer once with every teacher layer, in lists of n m. `time_similarity_loss(..., eps=0, norm_eps=1e-6, row_weights=attention, weights=[1 / n] * (n * m))`, plus `frame_similarity_loss` with the same options and weights of `T / (B * n)`, the sum over T frames over the batch B. With eps=0 a cosine of -1 has no logarithm; the default has one |
| Liger-Kernel, KLDIV | its student's input is log-probabilities, its teacher's probabilities: `kl_loss(log_q, p.log(), temperature=1)` is its "batchmean"; with `weights=[1 / K]` for K classes its "mean", with `reduction="sum"` its "sum" |
| mmrazor, ChannelWiseDivergence and PKDLoss | `cwd_loss(s, t, temperature=tau)`, `pkd_loss(s, t, convention="published", weights=[1] * n)`. PKDLoss adds 1e-6 to standard deviations; where sizes differ it interpolates, and ours averages onto the smaller one |
| TRL and Liger-Kernel, fused linear JSD | `linear_divergence_loss(h_s, h_t, W_s, W_t, kind="jsd", beta=beta, temperature=tau, ignore=labels == -100) / tau**2`; at beta 0 and 1 theirs are `kind="kl"` and `"reverse_kl"` |
| torchdistill, KDLoss and LogitStdKDLoss | `alpha * cross_entropy + (1 - alpha) * kl_loss(..., standardize=True)`, without `standardize` for KDLoss; at alpha = 0 the published code drops tau^2: `weights=[1 / tau**2]` |
| attention transfer with p = 4 | `at_loss(s.float().square(), t.float().square())`: mean_c x^4 is the map of squares with power=2. Features in half precision first become float32, in which squares do not overflow |

"""  # noqa: E501 - Markdown
LEFT_OUT = """## Left out

| loss | why |
|---|---|
| KDSVD | compares singular vectors of consecutive layers, whose signs a singular value decomposition chooses arbitrarily: the loss depends on the library, the device and the rounding. Published codes are two different losses |
| CRD | contrasts each sample with thousands of others out of memory banks of the size of the data set (n_data x d, twice), which belong to a training loop, not to a loss |
| TVD (Liger-Kernel) | total variation, half the sum of absolute differences: its gradient does not shrink towards equality, where the published code pushes one way; the divergences here do the same work |
| cosine of logits (Liger-Kernel) | published, ignored rows count in the numerator and not in the denominator. `1 - F.cosine_similarity(s, t).mean()` needs no kernel |
| DIST+ (torchdistill) | the published channel term is +rho beside terms of 1 - rho, so that minimising it takes channels apart: it looks like a wrong sign, and which one is meant is not known. `dist_loss` is its first part |
| SKD (torchdistill), direction term | a Mahalanobis norm by the covariance of one batch, whose inverse rests on what is added to its diagonal. Its instance term is `kl_loss(..., weights=[1 / tau**2])` |
| SSKD | needs three further augmented views of each image, and a head trained on them: a training recipe, not a loss |
"""  # noqa: E501 - Markdown


def write(losses: dict[str, dict]) -> None:
    """Keep what the page has of each loss, a line per loss."""
    rows = ",\n".join(f"{json.dumps(name)}: {json.dumps(row)}" for name, row in losses.items())
    MEASURED.write_text(f'{{"losses": {{\n{rows}\n}}}}\n')


def measured() -> dict[str, dict]:
    """By name of a loss: traffic, time, memory and errors beside the published form (suite.py), and the machine."""
    return json.loads(MEASURED.read_text())["losses"]


def page(entries: Iterable[Entry]) -> str:
    """docs/losses.md."""
    entries = list(entries)
    parts = HEAD + _formulas(entries), PUBLISHED + MEANING, _measured(entries), ERRORS + _errors(entries), LEFT_OUT
    return "\n".join(parts)


def _measured_cells(name: str, row: dict) -> list[str]:
    eager, compiled, ours = (row["milliseconds"][form]["total"] for form in FORMS)
    ratios = f"{eager / ours:.1f}", f"{compiled / ours:.2f}", f"{ours / row['limit']['total']:.1f}"
    times = [f"{row['milliseconds'][form]['total']:.1f}" for form in FORMS]
    moved = [f"{row['traffic'][form]:.2f}" for form in ("eager", "ours")]
    held = [f"{row['memory_megabytes'][form]:.1f}" for form in FORMS]
    return [name, row["dtype"], *times, *ratios, *moved, *held, f"{row['feature_megabytes']:.1f}"]


def _formulas(entries: list[Entry]) -> str:
    rows = []
    for entry in entries:
        forms = ", ".join(f"`{form.__name__}`" for form in (entry.function, entry.module) if form)
        what = f"{entry.name}: {forms}", f"`{entry.formula}`", entry.paper, entry.op or "PyTorch"
        rows.append([*what, entry.learned or "-", entry.reproduces or "-"])
    return markdown.table(["loss", "formula", "source", "op", "learned parts", "reproduces"], rows) + "\n"


def _measured(entries: list[Entry]) -> str:
    machines: dict[str, list[Entry]] = {}
    kept = measured()
    for entry in entries:
        if entry.name in kept:
            place = ", ".join(f"{name} {value}" for name, value in kept[entry.name]["machine"].items())
            machines.setdefault(place, []).append(entry)
    parts = []
    for place, found in machines.items():
        rows = [_measured_cells(entry.name, kept[entry.name]) for entry in found]
        sizes = [f"- {entry.name}: {_sizes(kept[entry.name])}" for entry in found]
        speeds = markdown.table(SPEEDS, rows)
        parts.append("\n".join([f"Machine: {place}.", "", speeds, "", "Sizes:", "", *sizes, ""]))
    return "\n".join(parts)


def _sizes(row: dict) -> str:
    sizes = ", ".join(f"{who} {_shape(row[who])}" for who in ("student", "teacher"))
    return sizes + (f" ({row['note']})" if row["note"] else "")


def _shape(shape: list) -> str:
    if isinstance(shape[0], list):
        distinct = list(dict.fromkeys(map(tuple, shape)))
        return " and ".join(f"{shape.count(list(one))} x {one}" for one in distinct)
    return str(tuple(shape))


def _errors(entries: list[Entry]) -> str:
    dtypes = ("float32", "bfloat16", "float16")
    titles = [f"{dtype} {what}" for dtype in dtypes for what in ("loss", "gradient", "zeros")]
    rows, kept = [], measured()
    for entry in entries:
        if "error" in kept.get(entry.name, {}):
            found = kept[entry.name]["error"]
            cells = [
                f"{found[dtype][what]:.0%}"
                if what == "zeros"
                else f"{found[dtype][what]:.0e}"
                if dtype in found
                else "-"
                for dtype in dtypes
                for what in ("loss", "gradient", "zeros")
                if dtype in found
            ]
            rows.append([entry.name, *cells, *["-"] * (len(titles) - len(cells))])
    return markdown.table(["loss", *titles], rows) + "\n"
