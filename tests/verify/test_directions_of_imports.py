"""Imports point one way: tests -> benchmarks -> abckd_verify -> abckd_kernels <- abckd_dns <- studies."""

import ast
from pathlib import Path

import pytest

from abckd_verify import ROOT

PROGRAMS = {"abckd_kernels", "abckd_dns", "abckd_verify", "benchmarks", "studies", "tests"}
FOLDERS = {name: ROOT / ("python" if name in ("abckd_dns", "abckd_verify") else "") / name for name in PROGRAMS}
MAY_IMPORT = {
    "abckd_kernels": set(),
    "abckd_dns": {"abckd_kernels"},
    "abckd_verify": {"abckd_kernels"},
    "benchmarks": {"abckd_kernels", "abckd_verify", "abckd_dns"},  # the last for the loader's speed
    "studies": {"abckd_kernels", "abckd_dns"},
    "tests": PROGRAMS,
}
# A command finds modules in the current folder, as `python -m` does, so that --student may name one; a program that is
# started by its file does not take its neighbours for libraries.
SEARCHES = {FOLDERS["abckd_dns"] / name for name in ("own_code.py", "evaluation/pesq_process.py")}
FILES = [(name, path) for name, folder in FOLDERS.items() for path in sorted(folder.rglob("*.py"))]


def imported(path: Path) -> set[str]:
    """The first part of all absolute imports, at any depth of the file."""
    found = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            found |= {alias.name.partition(".")[0] for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and not node.level:
            found.add((node.module or "").partition(".")[0])
    return found


@pytest.mark.parametrize("name", MAY_IMPORT)
def test_imports_point_one_way(name):
    for owner, path in FILES:
        if owner == name:
            wrong = (imported(path) & PROGRAMS) - {name} - MAY_IMPORT[name]
            assert not wrong, f"{path.relative_to(ROOT)} imports {', '.join(wrong)}"


def test_nothing_changes_where_python_searches():
    for _, path in FILES:
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.Call) and isinstance(node.func, ast.Attribute) and path not in SEARCHES:
                assert not ast.unparse(node.func).startswith("sys.path."), path.relative_to(ROOT)


def test_no_folder_is_a_pile():
    for folder in {path.parent for owner, path in FILES if owner == "abckd_verify"}:
        assert len(list(folder.glob("*.py"))) <= 15, folder


def test_verification_is_not_installed():
    text = (ROOT / "pyproject.toml").read_text()
    assert 'include = ["abckd_kernels*", "abckd_dns*"]' in text
