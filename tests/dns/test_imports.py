"""What each room of the trainer may import, and what a start of the command costs."""

import ast
import os
import subprocess
import sys
from pathlib import Path

import pytest
from subprocesses import ENVIRONMENT

import abckd_dns

PACKAGE = Path(abckd_dns.__file__).parent

# Each room imports from those below its own line alone, and from itself.
ORDER = (
    {"__main__"},
    {"cli"},
    {"early", "study"},
    {"demo"},
    {"training", "deployment"},
    {"evaluation"},
    {"rivals", "networks"},
    {"network", "data"},
    {"options", "files", "markdown", "own_code", "sisdr"},
    {"errors", "constants"},
)
LEVEL = {room: level for level, rooms in enumerate(ORDER) for room in rooms}
# What a start needs; the others may import torch.
LIGHT = (
    *("cli", "early", "options", "files", "markdown", "errors", "constants"),
    *("study.options", "data.sources", "network.names", "network.config", "training.runs"),
)
HEAVY = ("torch", "torchaudio", "numpy", "scipy", "matplotlib", "accelerate", "abckd_kernels", "fcntl")


def imports(path: Path):
    """The modules of this package that a file names in its imports, as tuples of their parts."""
    here = path.relative_to(PACKAGE).with_suffix("").parts
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.ImportFrom) and node.level:
            above = here[: len(here) - node.level]
            named = tuple((node.module or "").split(".")) if node.module else ()
            yield from [(*above, *named)] if named else [(*above, alias.name) for alias in node.names]


@pytest.mark.parametrize("path", sorted(PACKAGE.rglob("*.py")), ids=lambda path: str(path.relative_to(PACKAGE)))
def test_imports_point_one_way(path):
    room = path.relative_to(PACKAGE).with_suffix("").parts[0]
    if room == "__init__":
        return
    for target in imports(path):
        if target[0] == room or (room, target) == ("cli", ("study", "options")):
            continue
        assert LEVEL[target[0]] > LEVEL[room], f"{room} must not import {'.'.join(target)}"


def test_every_room_has_its_place():
    rooms = {path.relative_to(PACKAGE).with_suffix("").parts[0] for path in PACKAGE.rglob("*.py")} - {"__init__"}
    assert rooms == LEVEL.keys()
    assert all(len(list(folder.glob("*.py"))) <= 15 for folder in (PACKAGE, *(PACKAGE / room for room in rooms)))


def test_nobody_imports_the_trainer_from_below():
    library = Path(abckd_dns.__file__).parents[2] / "abckd_kernels"
    for path in library.rglob("*.py"):
        assert "abckd_dns" not in path.read_text()


def in_a_fresh_process(code: str) -> list[str]:
    done = subprocess.run([sys.executable, "-c", code], env=ENVIRONMENT, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return done.stdout.splitlines()


def test_what_a_start_needs_is_light():
    """Nor does it need fcntl, which not every system has."""
    code = f"import sys\nfor name in {LIGHT}: __import__('abckd_dns.' + name)\n"
    assert in_a_fresh_process(code + f"print(*[name for name in {HEAVY} if name in sys.modules])") == [""]


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["--help"], "usage"),
        (["distill", "--help"], "--kd-weight"),
        (["train"], "--out"),
        (["train", "--out", "run", "--steps", "0"], "--steps: expected at least 1, got 0"),
        (["train", "--out", "run", "--clean", "nowhere", "--noise", "."], "--clean: .*nowhere is not a folder"),
        (["denoise", "--checkpoint", "nowhere", "--input", "a.wav", "--output", "b.wav"], "--checkpoint: nowhere"),
    ],
)
def test_help_and_errors_come_at_once(arguments, said, tmp_path):
    """Within a second of processor time; it is the best of three because others may use the machine."""
    code = (
        "import contextlib, io, os, re, sys, time\n"
        "said = io.StringIO()\n"
        "with contextlib.redirect_stdout(said), contextlib.redirect_stderr(said):\n"
        "    from abckd_dns.cli import main\n"
        f"    try: main({arguments})\n"
        "    except SystemExit as stopped: print(stopped.code)\n"
        f"assert re.search({said!r}, said.getvalue()), said.getvalue()\n"
        "print(time.process_time())"
    )
    seconds = []
    for _ in range(3):
        seconds.append(float(in_a_fresh_process(code)[-1]))
        if seconds[-1] < 1:
            return
    raise AssertionError(f"{arguments}: {seconds} s of processor time")


def test_a_module_is_imported_from_where_the_command_is(tmp_path):
    """The tests would say nothing of this tree if another installation came first."""
    (where,) = in_a_fresh_process("import abckd_dns; print(abckd_dns.__file__)")
    assert os.path.samefile(where, abckd_dns.__file__)
