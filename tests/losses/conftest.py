"""Runs the tests of suite.py for the rows of the file that imports them."""

import pytest
import torch

pytest.register_assert_rewrite("suite", "parity")

import parity  # noqa: E402
import suite  # noqa: E402


def pytest_generate_tests(metafunc):
    names, module = metafunc.fixturenames, metafunc.module
    if "loss" in names:
        losses = list(module.LOSSES)
        for mark in metafunc.definition.iter_markers("only"):
            losses = [loss for loss in losses if mark.args[0](loss)]
        test = metafunc.function.__name__
        metafunc.parametrize("loss", [_row(loss, test) for loss in losses], ids=str)
    elif "published" in names:
        known = getattr(module, "PUBLISHED", {})
        metafunc.parametrize("vector, published", known.items(), ids=known)
    elif "grouped" in names:
        metafunc.parametrize("grouped", [module] if any(map(suite.takes_group, module.LOSSES)) else [])


@pytest.fixture
def first_of_its_kind(loss, request) -> bool:
    """Whether no row before this one is about the same function or class."""
    kinds = [(row.function or type(row.module()), row) for row in request.module.LOSSES]
    return next(row for kind, row in kinds if kind is (loss.function or type(loss.module()))) is loss


def _row(loss, test):
    reason = loss.excused.get(test)
    return pytest.param(loss, marks=pytest.mark.skip(reason=f"{loss}: {reason}") if reason else ())


def pytest_collection_modifyitems(items):
    """Leave out tests that are about none of a file's losses, and dtypes that a loss doesn't take."""
    items[:] = [item for item in items if item.path.parent != parity.HERE or _has_subject(item)]


def _has_subject(item):
    values = item.callspec.params if hasattr(item, "callspec") else {}
    if item.get_closest_marker("skip") and "NOTSET" in item.name:  # what pytest makes of an empty list of parameters
        return False
    return "loss" not in values or values.get("dtype", values["loss"].dtypes[0]) in values["loss"].dtypes


@pytest.fixture(scope="module", autouse=True)
def one_thread():
    """What is tested here is small: threads would cost more than they bring."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)
