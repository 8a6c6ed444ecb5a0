"""The table of losses is complete: every public loss has its tests, its published form, its numbers, its line."""

import importlib
import json
from pathlib import Path

import pytest
from parity import HERE, KINDS, accounted, index

from abckd_kernels import losses
from abckd_kernels.losses.table import MEASURED
from benchmarks import correctness, losses_page, published, subjects

LOSSES = []
ENTRIES = losses.table()
each = pytest.mark.parametrize("entry", ENTRIES, ids=[entry.name for entry in ENTRIES])


def rows():
    """All rows of this folder's test files."""
    for file in sorted(HERE.glob("test_*.py")):
        yield from getattr(importlib.import_module(file.stem), "LOSSES", [])


def test_every_public_loss_has_an_entry():
    public = {name for name in losses.__all__ if name.endswith(("_loss", "Loss"))}
    forms = [form for entry in ENTRIES for form in (entry.function, entry.module) if form]
    assert sorted(form.__name__ for form in forms) == sorted(public)
    assert len({entry.name for entry in ENTRIES}) == len(ENTRIES)


@each
def test_entry_says_all_there_is_to_say(entry):
    assert (
        all((entry.name, entry.module, entry.op, entry.formula, entry.paper)) and entry.inputs in subjects.SIZES["dns"]
    )
    for text in (entry.learned, entry.formula, entry.paper, entry.reproduces):
        assert "\n" not in text


@each
def test_every_entry_is_tested(entry):
    mine = [
        row
        for row in rows()
        if (row.function is entry.function if row.function else isinstance(row.module(), entry.module))
    ]
    assert mine, f"no row of tests/losses is about {entry.name}"
    assert not entry.learned or any(row.module for row in mine), f"no row learns the parts of {entry.name}"


@each
def test_every_entry_has_a_published_form_and_was_measured(entry):
    assert published.case(entry.name), f"benchmarks/published has no {entry.name}"
    assert entry.measured, f"measure it: python -m benchmarks.run --op {entry.name} --write"


@each
def test_ours_is_the_published_form_by_its_options(entry):
    """What benchmarks.run checks before it measures, at a smaller size."""
    found = subjects.subjects()[entry.name]
    if found.case.ours is not None or found.case.convention is None:
        pytest.skip("no options of ours make the published form")
    correctness.check(found, subjects.Setup(size="tiny"))


def test_the_page_is_what_the_table_says():
    assert losses_page.PAGE.read_text() == losses_page.page(ENTRIES), "run python -m benchmarks.run --page"


def test_measured_numbers_are_part_of_the_package():
    root = Path(losses.__file__).parents[2]
    assert "losses/measured.json" in (root / "pyproject.toml").read_text()
    assert set(json.loads(MEASURED.read_text())["losses"]) == {x.name for x in ENTRIES}


# ---------------------------------------------------------------------------------------------- published numbers


def test_no_published_number_is_forgotten():
    known = index()
    if not known:
        pytest.skip("the parity vectors (../shared/parity) are not here")
    vectors = [vector for vector, *_ in accounted()]
    forgotten, unknown = set(known) - set(vectors), set(vectors) - set(known)
    assert not forgotten, f"none of {', '.join(KINDS)} has {', '.join(sorted(forgotten))}"
    assert not unknown, f"../shared/parity has no {', '.join(sorted(unknown))}"
    assert len(set(vectors)) == len(vectors), "a vector is accounted for twice"


def test_differences_have_reasons_and_tests():
    for vector, kind, said, module in accounted():
        if kind != "PUBLISHED":
            assert isinstance(said, str) and len(said) > 20, vector
        if kind == "DIFFERS":
            text = Path(module.__file__).read_text()
            tested = text.count(f'"{vector}"') >= 2 or 'parametrize("name", DIFFERS)' in text
            assert tested, f"{vector}: no test of {module.__name__} shows the difference"
