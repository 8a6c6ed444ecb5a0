"""The committed ratios of ours to eager, to torch.compile and to the limit, and the comparison with them.

Times differ between machines and hours, ratios of interleaved forms differ little. A ratio fails where it exceeds the
baseline's by more than a floor and, up to as much again, twice the noise of both (the distance of the quartiles over
the median), three times in a row. The quick form looks at the ratio to eager alone, with a floor wide enough for a
machine that does other things too, and for another machine than the baseline's a wider one still.

PyTorch has other products where a processor has other instructions: with AMX eager's bfloat16 is several times as fast.
So there is a baseline for each kind of processor, by the instruction sets that PyTorch's kernels use there ("torch
kernels" of a row's machine), and for each GPU; measuring one leaves the others. The quick form compares a kind that has
none with the first of the file, as another machine.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

FILE = Path(__file__).with_name("baseline.json")
FLOOR, QUICK_FLOOR, ELSEWHERE_FLOOR = 0.10, 1.0, 2.0
ATTEMPTS = 3


def ratios(row: dict) -> dict[str, dict[str, float]]:
    """What a baseline keeps of a row."""
    return {
        name: {"ratio": round(x["median"], 4), "noise": round((x["high"] - x["low"]) / x["median"], 3)}
        for name, x in row["ratios"].items()
    }


def write(rows: dict[str, dict], file: Path) -> None:
    """Keep the ratios of these rows. Those of others stay, unless another machine of the same kind measured them."""
    machine = next(iter(rows.values()))["machine"]
    kinds = json.loads(file.read_text()) if file.exists() else {}
    kept = kinds.get(kind(machine), {})
    before = kept["ratios"] if kept.get("machine") == machine else {}
    found = before | {key: before.get(key, {}) | ratios(row) for key, row in rows.items()}
    file.write_text(json.dumps(kinds | {kind(machine): {"machine": machine, "ratios": found}}, indent=1) + "\n")


def compare(
    rows: dict[str, dict], quick: bool, again: Callable[[str], dict], file: Path, say: Callable = print
) -> list[str]:
    """What is slower than the baseline, a sentence each. again: measures the row of a key anew.

    Raises SystemExit where nothing can be compared.
    """
    kinds = json.loads(file.read_text())
    here = next(iter(rows.values()))["machine"] if rows else {}
    if rows and kind(here) not in kinds:
        say(f"{file.name} has no baseline of {kind(here)}: compared with that of {next(iter(kinds))}")
    kept = kinds.get(kind(here) if rows else None) or next(iter(kinds.values()))
    same = _where(here) == _where(kept["machine"])
    if not same and not quick:
        raise SystemExit(f"{file.name} is of {_where(kept['machine'])}, this is {_where(here)}: nothing compared")
    floor = FLOOR if not quick else QUICK_FLOOR if same else ELSEWHERE_FLOOR
    known = [key for key in rows if key in kept["ratios"]]
    if not known:
        raise SystemExit(f"{file.name} has none of {', '.join(rows) or 'the rows'}: nothing compared")
    for key in rows:
        if key not in known:
            say(f"{key}: not in {file.name}")
    failed = []
    for key in known:
        row = rows[key]
        for attempt in range(ATTEMPTS):
            slower = _slower(row, kept["ratios"][key], floor, ("eager",) if quick else ("eager", "compile", "limit"))
            if not slower:
                break
            if attempt + 1 < ATTEMPTS:
                say(f"{key}: {'; '.join(slower)}: measured again")
                row = again(key)
        failed += [f"{key}: {sentence}" for sentence in slower]
    say(f"{len(known)} rows compared with {file.name}, {len(failed)} ratios beyond it")
    return failed


def _slower(row: dict, kept: dict, floor: float, names: tuple[str, ...]) -> list[str]:
    found, sentences = ratios(row), []
    for name in names:
        if name not in kept or name not in found:
            continue
        noise = 2 * (kept[name]["noise"] + found[name]["noise"])
        allowed = kept[name]["ratio"] * (1 + floor + min(noise, floor))
        if found[name]["ratio"] > allowed:
            sentences.append(
                f"ours / {name} is {found[name]['ratio']:.3f}, was {kept[name]['ratio']:.3f}, allowed {allowed:.3f}"
            )
    return sentences


def kind(machine: dict) -> str:
    """Which baseline a machine has: that of its GPU, or of the instruction sets that PyTorch's kernels use."""
    return machine.get("gpu") or machine["torch kernels"]


def _where(machine: dict) -> dict:
    """What must agree for ratios to agree."""
    names = ("gpu", "cpu", "threads", "torch kernels", "instruction set", "malloc")
    return {name: machine.get(name) for name in names}
