"""The table of losses is complete: every public loss has its tests, its published form, its numbers, its line."""

import importlib
import inspect
from pathlib import Path

import pytest
import torch
from parity import HERE, INDEX, KINDS, accounted
from torch.utils._python_dispatch import TorchDispatchMode

from abckd_kernels import losses
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
        all((entry.name, entry.module, entry.formula, entry.paper)) and entry.inputs in subjects.SIZES["dns"]
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
    assert entry.name in losses_page.measured(), f"measure it: python -m benchmarks.run --op {entry.name} --write"


@each
def test_ours_is_the_published_form_by_its_options(entry):
    """What benchmarks.run checks before it measures, at a smaller size."""
    found = subjects.subjects()[entry.name]
    if found.case.ours is not None or found.case.convention is None:
        pytest.skip("no options of ours make the published form")
    correctness.check(found, subjects.Setup(size="tiny"))


def test_the_page_is_what_the_table_says():
    assert losses_page.PAGE.read_text() == losses_page.page(ENTRIES), "run python -m benchmarks.run --page"


def test_every_measured_number_is_of_a_loss():
    assert set(losses_page.measured()) == {x.name for x in ENTRIES}


@each
def test_needs_are_those_of_the_signatures(entry):
    parameters = inspect.signature(entry.module.__init__).parameters
    of_function = inspect.signature(entry.function).parameters if entry.function else {}
    inputs = [x.name for x in of_function.values() if x.default is x.empty][2:]
    needs = entry.needs
    assert needs.group == ("group" in of_function)
    assert needs.spatial_axes == ("spatial_axes" in parameters)
    assert needs.margins == ("margins" in parameters)
    assert bool(needs.channels) == ("student_channels" in parameters)
    assert needs.labels == ("labels" in inputs) and needs.clean == ("clean" in inputs)


@each
def test_build_makes_what_fits(entry):
    n, m = {"any": (2, 3), "pairs": (2, 2), "chain": (2, 2)}[entry.needs.layers]
    students, teachers = ([torch.randn(4, 3 + i, 6, 5) for i in range(count)] for count in (n, m))
    if entry.needs.channels == "" and entry.needs.layers != "any":  # channels agree, sizes too
        teachers = [x.square() for x in students]
    loss = losses.build(entry.name, students, teachers)
    assert isinstance(loss, entry.module) or all(isinstance(x, entry.module) for x in loss.losses)
    if entry.inputs == "features":
        assert loss(students, teachers).isfinite()
    on_meta = losses.build(entry.name, *([x.to("meta") for x in group] for group in (students, teachers)))
    assert {k: v.shape for k, v in on_meta.state_dict().items()} == {k: v.shape for k, v in loss.state_dict().items()}


def test_build_says_what_is_wrong():
    x = [torch.randn(2, 3, 4, 5)]
    with pytest.raises(ValueError, match="name: expected one of .*abc.*'abcd'"):
        losses.build("abcd", x, x)
    with pytest.raises(TypeError, match="at: unexpected option 'temperature'; it has power"):
        losses.build("at", x, x, temperature=1)
    with pytest.raises(ValueError, match="teacher_features: expected 1 features, one per student feature, got 2"):
        losses.build("vid", x, x * 2)
    with pytest.raises(ValueError, match="consecutive"):
        losses.build("fsp", x, x)


@each
def test_the_ops_of_an_entry_are_those_that_run(entry):
    """Of all options that the suite's rows have."""
    called = set()

    class Ops(TorchDispatchMode):
        def __torch_dispatch__(self, function, types, args=(), kwargs=None):
            space, _, name = function._schema.name.partition("::")
            if space == "abckd":
                called.add(name.rpartition("_")[0])
            return function(*args, **kwargs or {})

    for row in rows():
        if row.function is entry.function if row.function else isinstance(row.module(), entry.module):
            torch.manual_seed(0)
            with Ops():
                row(*row.features(row.dtypes[0]))
    assert called == set(entry.op.split(", ")) - {""}


# ---------------------------------------------------------------------------------------------- published numbers


def test_no_published_number_is_forgotten():
    vectors = [vector for vector, *_ in accounted()]
    forgotten, unknown = set(INDEX) - set(vectors), set(vectors) - set(INDEX)
    assert not forgotten, f"none of {', '.join(KINDS)} has {', '.join(sorted(forgotten))}"
    assert not unknown, f"tests/parity has no {', '.join(sorted(unknown))}"
    assert len(set(vectors)) == len(vectors), "a vector is accounted for twice"


def test_differences_have_reasons_and_tests():
    for vector, kind, said, module in accounted():
        if kind != "PUBLISHED":
            assert isinstance(said, str) and len(said) > 20, vector
        if kind == "DIFFERS":
            text = Path(module.__file__).read_text()
            tested = text.count(f'"{vector}"') >= 2 or 'parametrize("name", DIFFERS)' in text
            assert tested, f"{vector}: no test of {module.__name__} shows the difference"
