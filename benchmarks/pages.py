"""What is written from measurements: tables of README.md and docs/, plots, and what the library keeps of a loss.

benchmarks/measured/ holds every row that `python -m benchmarks.run --write` measured, a file per machine, a line per
row. All else is derived from the file of one machine, SHOWN:
the blocks between `<!-- measured: NAME -->` and `<!-- end -->` in README.md and docs/performance.md, docs/*.svg,
benchmarks/measured_losses.json and, from that, docs/losses.md.
"""

from __future__ import annotations

import json
import re
from pathlib import Path

from abckd_kernels.losses import table
from abckd_verify import markdown

from . import goals, growth, losses_page, plots

ROOT = Path(__file__).parents[1]
FOLDER = Path(__file__).with_name("measured")
SHOWN = "amd-epyc-2-threads.json"
PAGES = (ROOT / "README.md", ROOT / "docs" / "performance.md")
SPEED_PICTURE, GROWTH_PICTURE = (ROOT / "docs" / name for name in ("speed.svg", "growth.svg"))
FORMS = losses_page.FORMS
OF_README = ("abc", "tap", "compress")
USUAL = {"size": "dns", "layout": "contiguous", "device": "cpu"}
OF_A_LOSS = ("dtype", "student", "teacher", "note", "milliseconds", "limit", "traffic", "compulsory_megabytes",
             "memory_megabytes", "feature_megabytes", "error", "machine")  # fmt: skip
SPEED = ("op", "dtype", *(f"{form} ms" for form in FORMS), "spread", "eager / ours", "compile / ours", "ours / limit",
         "compile s")  # fmt: skip
NETWORK = ("loss", "dtype", *(f"{form} ms" for form in FORMS), "compile / ours",
           *(f"{what} {form}" for what in ("share", "peak", "held") for form in FORMS))  # fmt: skip
NOTHING = "Not measured yet.\n"
BLOCK = re.compile(r"(<!-- measured: (\w+) -->\n).*?(<!-- end -->)", re.DOTALL)


def keep(rows: dict[str, dict], grown: dict | None = None) -> None:
    """Add rows, by key, and growth to what was measured on their machines."""
    FOLDER.mkdir(exist_ok=True)
    for name in {file_of(x["machine"]) for x in (*rows.values(), *([grown] if grown else []))}:
        kept = measured(name)
        kept["rows"] |= {key: rounded(row) for key, row in rows.items() if file_of(row["machine"]) == name}
        if grown is not None and file_of(grown["machine"]) == name:
            kept["growth"] = rounded(grown)
        (FOLDER / name).write_text(lines(kept))


def file_of(machine: dict[str, str]) -> str:
    """Name of a machine's file: its GPU, or its CPU and the threads that were used; versions are in each row."""
    words = machine.get("gpu") or f"{machine['cpu'].partition(',')[0]} {machine['threads']} threads"
    return "-".join(re.findall(r"[a-z0-9]+", words.lower())) + ".json"


def lines(kept: dict) -> str:
    """JSON with a line per row."""
    rows = ",\n".join(f"{json.dumps(key)}: {json.dumps(row)}" for key, row in kept["rows"].items())
    return f'{{"growth": {json.dumps(kept["growth"])},\n"rows": {{\n{rows}\n}}}}\n'


def measured(name: str | None = None) -> dict:
    """{"rows": by key, "growth": what growth.measure gave, or None} of a machine's file, by default SHOWN."""
    file = FOLDER / (name or SHOWN)
    return json.loads(file.read_text()) if file.exists() else {"rows": {}, "growth": None}


def write() -> None:
    """Write all that is derived."""
    kept = measured()
    losses_page.write(of_losses(kept["rows"]))
    losses_page.PAGE.write_text(losses_page.page(table()))
    for page in PAGES:
        page.write_text(filled(page.read_text(), blocks(kept)))
    for file, (shown, draw) in pictures(kept).items():
        draw(shown, file)


def of_losses(rows: dict[str, dict]) -> dict[str, dict]:
    """What the page has of each loss: the float32 row of the usual size; where there is none, what it has."""
    kept = losses_page.measured()
    for row in _usual(rows):
        if row["dtype"] == "float32" and all(form in row["milliseconds"] for form in FORMS):
            found = {name: row[name] for name in OF_A_LOSS}
            for name in ("milliseconds", "memory_megabytes"):
                found[name] = {form: row[name][form] for form in FORMS}
            kept[row["op"]] = found
    return {entry.name: kept[entry.name] for entry in table() if entry.name in kept}


def pictures(kept: dict) -> dict[Path, tuple]:
    """File to (what it shows, how it is drawn), of what was measured."""
    rows = [row for row in _usual(kept["rows"]) if row["dtype"] == "float32"]
    found = {SPEED_PICTURE: (rows, plots.speed), GROWTH_PICTURE: (kept["growth"], plots.growth)}
    return {file: shown for file, shown in found.items() if shown[0]}


def filled(text: str, contents: dict[str, str]) -> str:
    """The page with each block anew. Raises KeyError for a block that does not exist."""
    return BLOCK.sub(lambda found: f"{found[1]}{contents[found[2]]}{found[3]}", text)


def blocks(kept: dict) -> dict[str, str]:
    """Contents of the blocks, by name."""
    rows, grown = kept["rows"], kept["growth"]
    drawn = {file: f"![{file.stem}]({file.name})\n\n" for file in pictures(kept)}
    return {
        "readme": _tables([row for row in _usual(rows) if row["op"] in OF_README], SPEED, speed_cells),
        "goals": goals.text(rows, grown),
        "speed": drawn.get(SPEED_PICTURE, "") + _tables(list(rows.values()), SPEED, speed_cells),
        "network": _tables([row for row in rows.values() if row["network"]], NETWORK, network_cells),
        "growth": drawn[GROWTH_PICTURE] + f"{place(grown['machine'])}\n\n{growth.text(grown)}\n" if grown else NOTHING,
    }


def speed_cells(row: dict) -> list[str]:
    """Under SPEED: forward + backward. spread: the quartiles of ours around its median."""
    times, limit = {form: x["total"] for form, x in row["milliseconds"].items()}, row["limit"]["total"]
    low, high = row["quartiles"]["ours"]["total"]
    ours = times["ours"]
    cells = [row["op"], row["dtype"], *(_number(times.get(form), ".2f") for form in FORMS)]
    cells += [f"-{(ours - low) / ours:.0%} +{(high - ours) / ours:.0%}"]
    cells += [_number(times[form] / ours if form in times else None, ".2f") for form in ("eager", "compile")]
    return [*cells, f"{ours / limit:.2f}", _number(row["compile_seconds"], ".1f")]


def network_cells(row: dict) -> list[str]:
    """Under NETWORK: milliseconds of the loss in a step, its share of STEP, MB beyond the step without."""
    found = row["network"]
    times = {form: x["median"] for form, x in found["loss_milliseconds"].items()}
    cells = [row["op"], row["dtype"], *(_number(times.get(form), ".2f") for form in FORMS)]
    cells.append(_number(times["compile"] / times["ours"] if "compile" in times else None, ".2f"))
    cells += [_number(found["share"].get(form), ".1%") for form in FORMS]
    cells += [_number(found[what].get(form), ".1f") for what in ("peak_megabytes", "held_megabytes") for form in FORMS]
    return cells


def rates(row: dict) -> str:
    """Lines about a row on a GPU: milliseconds launched and replayed, GB/s and share of the bandwidth of a copy."""
    copy, lines = row["bandwidth"]["copy"], [f"  copy {row['bandwidth']['copy']:.0f} GB/s"]
    sizes = {"forward": row["forward_megabytes"], "total": row["compulsory_megabytes"]}
    for how in ("milliseconds", "graph"):
        for form, times in row.get(how, {}).items():
            parts = (f"{part} {t:.3f} ms, {sizes[part] / t:.0f} GB/s, {sizes[part] / t / copy:.0%} of copy"
                     for part, t in times.items())  # fmt: skip
            lines.append(f"  {form:10} {'launched' if how == 'milliseconds' else 'replayed'}: {'; '.join(parts)}")
    return "\n".join(lines)


def place(machine: dict) -> str:
    """The sentence about the machine."""
    return f"Machine: {', '.join(f'{name} {value}' for name, value in machine.items())}."


def rounded(x):
    """Three digits of numbers that a measurement gave."""
    if isinstance(x, dict):
        return {key: rounded(value) for key, value in x.items()}
    if isinstance(x, list):
        return [rounded(value) for value in x]
    return float(f"{x:.3g}") if isinstance(x, float) else x


def _usual(rows: dict[str, dict]) -> list[dict]:
    return [row for row in rows.values() if all(row[name] == value for name, value in USUAL.items())]


def _tables(rows: list[dict], titles: tuple[str, ...], cells) -> str:
    """A table for each machine, size and layout."""
    groups: dict[str, list[dict]] = {}
    for row in rows:
        what = f"Size {row['size']}, {row['layout']}, device {row['device']}. {place(row['machine'])}"
        groups.setdefault(what, []).append(row)
    parts = [f"{what}\n\n{markdown.table(titles, map(cells, found))}\n" for what, found in groups.items()]
    return "\n".join(parts) or NOTHING


def _number(x: float | None, form: str) -> str:
    return "-" if x is None else f"{x:{form}}"
