"""What is installed: how long its import takes, what the wheel and the source distribution hold, README's table."""

import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
INCLUDED = "csrc/include"
IMPORT = """
import sys, time
import torch
of_torch, before = time.process_time(), set(sys.modules)
import abckd_kernels
print(of_torch, time.process_time() - of_torch, *sorted(set(sys.modules) - before))
"""
# 0.3 s where `import torch` takes 1.5 s of processor time.
MOST_OF_TORCH = 0.2
EXPENSIVE = ("torch._dynamo", "torch._inductor", "torch.utils.cpp_extension", "triton", "sympy", "abckd_dns")


def python(*arguments, **options):
    environment = os.environ | {"PYTHONPATH": str(ROOT), "ABCKD_BUILD_CUDA": "0"}
    done = subprocess.run([sys.executable, *arguments], capture_output=True, text=True, env=environment, **options)
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_import_costs_little_beside_that_of_torch():
    """Processor time in fresh processes, of which the least counts: other work on the machine only adds to it."""
    ratios = []
    for _ in range(4):
        of_torch, ours, *modules = python("-c", IMPORT).split()
        ratios.append(float(ours) / float(of_torch))
        assert "abckd_kernels.losses" in modules and not set(EXPENSIVE) & set(modules)
        if min(ratios[1:], default=1) < MOST_OF_TORCH:  # the first may compile modules
            break
    print(f"import abckd_kernels / import torch: {min(ratios):.3f}")
    assert min(ratios) < MOST_OF_TORCH


# ---------------------------------------------------------------------------------------------- distributions


def copied(tree: Path) -> Path:
    """A copy of the sources: setuptools reads what earlier builds left beside setup.py, and writes there."""
    left_out = shutil.ignore_patterns(".*", "build", "dist", "*.egg-info", "*.so", "__pycache__", "study_runs")
    return Path(shutil.copytree(ROOT, tree, ignore=left_out))


@pytest.fixture(scope="module")
def distributions(tmp_path_factory):
    """The files of the wheel without the extension, and those of the source distribution, as setuptools lists them."""
    folder = tmp_path_factory.mktemp("build")
    tree = copied(folder / "tree")
    build = ("build_py", "--build-lib", str(folder / "wheel"))
    python("setup.py", "-q", "egg_info", "--egg-base", str(folder), *build, cwd=tree)
    wheel = {str(path.relative_to(folder / "wheel")) for path in (folder / "wheel").rglob("*") if path.is_file()}
    return wheel, set((folder / "abckd_kernels.egg-info" / "SOURCES.txt").read_text().split("\n"))


def test_the_wheel_is_typed_and_holds_no_measurements(distributions):
    wheel, _ = distributions
    assert {"abckd_kernels/py.typed", "abckd_kernels/__init__.py", "abckd_dns/cli.py"} <= wheel
    others = {Path(name).name for name in wheel if Path(name).suffix not in (".py", ".typed")}
    assert others == {"denoise.c"}  # what `abckd-dns export --c-example` writes
    assert {name.split("/")[0] for name in wheel} == {"abckd_kernels", "abckd_dns"}


def test_every_module_is_in_the_wheel(distributions):
    wheel, _ = distributions
    for root, package in ((ROOT, "abckd_kernels"), (ROOT / "python", "abckd_dns")):
        assert {str(path.relative_to(root)) for path in (root / package).rglob("*.py")} <= wheel


def test_the_source_distribution_has_all_that_is_compiled(distributions):
    """Every file that setup.py compiles, on any machine, and every file of ours that one of csrc includes."""
    _, files = distributions
    missing = {str(path.relative_to(ROOT)) for path in (ROOT / "csrc").rglob("*.c*") if path.is_file()} - files
    included = 0
    for name in sorted(name for name in files if name.startswith("csrc/") and not name.endswith(".md")):
        for found in re.findall(r'^\s*#\s*include\s+"([^"]+)"', (ROOT / name).read_text(), re.MULTILINE):
            places = [os.path.normpath(os.path.join(folder, found)) for folder in (os.path.dirname(name), INCLUDED)]
            included += 1
            if not files & set(places):
                missing.add(f"{found}, which {name} includes")
    assert not missing and included > 50
    assert {"setup.py", "pyproject.toml", "README.md", "MANIFEST.in"} <= files


# ---------------------------------------------------------------------------------------------- README's table


def setup_py(tmp_path, *arguments, tools=(), **environment):
    """setup.py run where the programs of PATH are `tools`, which fail, in a copy of the tree."""
    tree = copied(tmp_path / "tree")
    (tmp_path / "bin").mkdir()
    for name in tools:
        (tmp_path / "bin" / name).write_text("#!/bin/sh\nexit 1\n")
        (tmp_path / "bin" / name).chmod(0o755)
    environment = {
        "PATH": f"{tmp_path}/bin:/bin" if tools else str(tmp_path / "bin"),
        "HOME": str(tmp_path),
    } | environment
    command = [sys.executable, "setup.py", *arguments]
    return subprocess.run(command, cwd=tree, env=environment, capture_output=True, text=True)


def test_without_a_compiler_one_sentence_says_what_was_not_built(tmp_path):
    done = setup_py(tmp_path, "-q", "build", ABCKD_BUILD_CUDA="0")
    assert done.returncode == 0, done.stderr
    assert "abckd_kernels: the C++ extension was not built: no C++ compiler was found. The reference" in done.stderr
    built = {path.suffix for path in (tmp_path / "tree" / "build").rglob("*") if path.is_file()}
    assert ".py" in built and ".so" not in built


def test_a_compiler_that_fails_leaves_an_installation_without_the_extension(tmp_path):
    done = setup_py(
        tmp_path, "-q", "build", tools=("c++", "g++", "gcc", "cc"), CXX="c++", CC="cc", ABCKD_BUILD_CUDA="0"
    )
    assert done.returncode == 0, done.stderr[-2000:]
    assert "the C++ extension was not built: the compiler failed" in done.stderr
    assert not list((tmp_path / "tree").rglob("*.so"))


def test_torch_comes_first(tmp_path):
    (tmp_path / "none").mkdir()
    (tmp_path / "none" / "torch.py").write_text("raise ImportError('no torch here')")
    done = setup_py(tmp_path, "--name", PYTHONPATH=str(tmp_path / "none"), ABCKD_BUILD_CUDA="0")
    assert done.returncode == 0 and "install torch first, it can't be imported (no torch here)" in done.stderr


@pytest.mark.parametrize("wish, said", [("1", "ABCKD_BUILD_CUDA=1, but "), ("yes", "expected auto, 0 or 1, got 'yes'")])
def test_what_was_asked_for_and_cannot_be_built_is_an_error(tmp_path, wish, said):
    done = setup_py(tmp_path, "--name", ABCKD_BUILD_CUDA=wish)
    assert done.returncode != 0 and said in done.stderr and "Traceback" not in done.stderr


def test_the_extras_of_the_table_are_those_that_there_are():
    tomllib = pytest.importorskip("tomllib", reason="Python 3.11")
    extras = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["optional-dependencies"]
    named = re.findall(r"`pip install (?:-e )?'\.\[(.+?)\]'`", (ROOT / "README.md").read_text())
    assert {extra for names in named for extra in names.split(",")} == set(extras)
    assert {"pytest", "hypothesis", "ruff"} <= {re.match(r"[\w-]+", package)[0] for package in extras["test"]}
