"""Runs the tests of suite.py for the rows of the file that imports them, and reports the published numbers."""

import pytest
import torch

pytest.register_assert_rewrite("suite", "parity")

import parity  # noqa: E402
import suite  # noqa: E402

outcomes = {}  # vector: whether it was reproduced


def pytest_addoption(parser):
    parser.addoption("--parity", action="store_true", help="list what became of every published number")


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
        absent = pytest.mark.skipif(not parity.index(), reason="the parity vectors (../shared/parity) are not here")
        metafunc.parametrize("vector, published", [pytest.param(*x, marks=absent, id=x[0]) for x in known.items()])
    elif "grouped" in names:
        metafunc.parametrize("grouped", [module] if any(map(suite.takes_group, module.LOSSES)) else [])


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


def pytest_runtest_logreport(report):
    if "::test_published[" in report.nodeid and (report.when == "call" or report.failed):
        outcomes[report.nodeid.split("[")[-1].removesuffix("]")] = report.passed


def pytest_terminal_summary(terminalreporter, config):
    if not outcomes:
        return
    known, rows = parity.index(), []
    for vector, kind, said, _ in parity.accounted():
        result = parity.KINDS[kind]
        if kind == "PUBLISHED":
            result = {True: result, False: "NOT reproduced", None: "not run"}[outcomes.get(vector)]
        rows.append((vector, result, "" if kind == "PUBLISHED" else said))
    forgotten = [(vector, "FORGOTTEN", "") for vector in known if vector not in {row[0] for row in rows}]
    rows = sorted({row[0]: row for row in forgotten + rows}.values(), key=lambda row: (row[1], row[0]))
    results = [row[1] for row in rows]
    counts = ", ".join(f"{results.count(result)} {result}" for result in dict.fromkeys(results))
    terminalreporter.section(f"{len(known)} published vectors: {counts}")
    if config.getoption("--parity", False):
        for vector, result, why in rows:
            terminalreporter.write_line(f"{vector:50} {result}{': ' * bool(why)}{why}")
