"""The benchmark suite itself: what it refuses to time, what a row says, the baseline, and pages that can't drift."""

import json
import re
import statistics
import sys
from dataclasses import replace

import fake_cuda
import pytest
import torch

from abckd_kernels import backends
from abckd_verify import markdown
from abckd_verify.machines import devices
from benchmarks import (
    baseline,
    correctness,
    goals,
    growth,
    losses_page,
    measuring,
    networks,
    pages,
    plots,
    run,
    subjects,
    suite,
)
from benchmarks.subjects import SIZES, Setup

TINY = Setup(size="tiny")
BRIEF = suite.Effort(repeats=2, compiled=False, backends=False, network=True, extras=False)
ALL = subjects.subjects()

pytestmark = pytest.mark.skipif(backends.TRITON_INTERPRET, reason="nothing is timed in the interpreter")


@pytest.fixture(autouse=True)
def quickly(monkeypatch):
    """Compilation and large copies take their time."""
    monkeypatch.setattr(torch, "compile", lambda function, **_: function)
    for device in devices.DEVICES.values():
        monkeypatch.setattr(device, "copied", 2**20)


def planted(name, **changes):
    return replace(ALL[name], case=replace(ALL[name].case, **changes))


# ---------------------------------------------------------------------------------------------- rows


def test_a_row_says_everything(monkeypatch):
    timed, kept = suite._turns, {}

    def turns(*arguments):
        kept.update(timed(*arguments))
        return kept

    monkeypatch.setattr(suite, "_turns", turns)
    row = suite.row(ALL["abc"], TINY, suite.Effort(repeats=3))
    forms = {"eager", "compile", "ours"}
    assert set(row["milliseconds"]) >= forms and not row["errors"] and row["turns"] == 3
    assert {"torch", "threads", "cpu"} <= set(row["machine"]) and (row["dtype"], row["size"]) == ("float32", "tiny")
    for form in forms:
        low, high = row["quartiles"][form]["total"]
        assert 0 < row["milliseconds"][form]["forward"] < row["milliseconds"][form]["total"]
        assert low <= row["milliseconds"][form]["total"] <= high
    student, teacher = (torch.Size(shape).numel() * 4 for shape in SIZES["tiny"]["features"])
    assert row["compulsory_megabytes"] == pytest.approx((9 * student + 6 * teacher) / 1e6)
    for name, rates in kept.items():
        assert row["bandwidth"][name] == statistics.median(rates) / 1e9
    # Turn by turn, for a median of sums isn't the sum of medians where the bandwidth changes meanwhile.
    forward = [(3 * student + 6 * teacher) / read * 1e3 for read in kept["read"]]
    total = [least + 6 * student / copy * 1e3 for least, copy in zip(forward, kept["copy"], strict=True)]
    assert row["limit"]["forward"] == pytest.approx(statistics.median(forward))
    assert row["limit"]["total"] == pytest.approx(statistics.median(total))
    assert 1 <= row["traffic"]["ours"] < 1.1 < row["traffic"]["eager"]
    assert set(row["error"]) == {"float32", "bfloat16", "float16"}
    assert json.loads(json.dumps(row)) == row


def test_abc_in_a_network_keeps_no_feature():
    found = suite.row(ALL["abc"], TINY, suite.Effort(repeats=2, backends=False))["network"]
    student = torch.Size(SIZES["tiny"]["features"][0]).numel() * 4 / 1e6
    assert found["held_megabytes"]["ours"] < 0.1 * student
    assert found["peak_megabytes"]["ours"] < student < found["peak_megabytes"]["eager"]
    for form, loss in found["loss_milliseconds"].items():
        expected = loss["median"] / (loss["median"] + found["step_milliseconds"])
        assert found["share"][form] == pytest.approx(expected)


@pytest.mark.parametrize("name", ALL)
def test_every_subject_has_a_row(name):
    row = suite.row(ALL[name], TINY, BRIEF)
    assert set(row["milliseconds"]) == {"eager", "ours"} and not row["errors"]
    assert bool(row["network"]) == ALL[name].in_network
    assert len(pages.speed_cells(row)) == len(pages.SPEED)


@pytest.mark.parametrize("name", ["abc", "at", "afd", "sp"])
def test_the_gradient_in_a_network_is_that_of_both_sides(name):
    subject = ALL[name]
    student, teacher = subject.inputs(TINY)
    form = subject.ours(student, teacher, tapped=True)
    step, leaves = networks.in_network(subject, form, student, teacher)
    without, others = networks.in_network(subject, None, student, teacher)
    count = len(others)
    found, rest = (torch.autograd.grad(f(), x) for f, x in ((step, leaves[:count]), (without, others)))
    loss = subject.ours(student, teacher)(student, teacher)
    alone = torch.autograd.grad(loss, subjects.as_list(student))
    for index, (x, grad) in enumerate(zip(subjects.as_list(student), alone, strict=True)):
        expected = rest[index] + (grad * x).sum([0, 2, 3], keepdim=True)  # the gain of 1 before the feature
        torch.testing.assert_close(found[index], expected, rtol=1e-3, atol=1e-7)


def test_a_wrong_result_has_no_time():
    right = ALL["sp"].case.published
    for wrong in (lambda s, t: 1.00001 * right(s, t), lambda s, t: 2 * right(s, t).detach() - right(s, t)):
        with pytest.raises(correctness.Wrong, match="nothing measured"):
            suite.row(planted("sp", published=wrong), TINY, BRIEF)
    coarse = replace(ALL["kl"].entry, function=lambda s, t, **o: ALL["kl"].entry.function(s * (1 + 2**-5), t, **o))
    with pytest.raises(correctness.Wrong):
        correctness.check(replace(ALL["kl"], entry=coarse), TINY)


def test_a_form_that_cannot_run_leaves_its_error():
    def fails(student, teacher):
        raise RuntimeError("planted")

    row = suite.row(planted("hint", published=fails, convention=None), TINY, BRIEF)
    assert set(row["milliseconds"]) == {"ours"} and row["errors"] == {"eager": "RuntimeError: planted"}
    assert set(row["network"]["milliseconds"]) == {"without", "ours"}
    assert "-" in pages.speed_cells(row)


def test_forms_take_turns(monkeypatch):
    order = []
    forms = {name: suite.Form([(lambda name=name: order.append(name) or torch.ones(1, requires_grad=True).sum(), [])])
             for name in "ab"}  # fmt: skip
    monkeypatch.setattr(torch.autograd, "grad", lambda *_, **__: ())
    rates = suite._turns(forms, 3, devices.Cpu)
    assert order == ["a", "b", "b", "a", "a", "b"] and len(forms["a"].times["total"]) == 3  # each begins in turn
    assert all(len(rates[name]) == 3 and min(rates[name]) > 0 for name in ("read", "copy"))


@pytest.mark.parametrize("size", SIZES)
def test_sizes_name_what_they_lack(size):
    for subject in ALL.values():
        assert (subject.why_not(Setup(size=size)) is None) == (subject.entry.inputs in SIZES[size])
    assert ALL["spectral"].why_not(Setup(torch.bfloat16)) and ALL["kl"].why_not(Setup(layout="channels_last"))


def test_layouts_and_dtypes_of_inputs():
    (student, *_), (teacher, *_) = ALL["abc"].inputs(replace(TINY, dtype=torch.bfloat16, layout="channels_last"))
    assert student.is_contiguous(memory_format=torch.channels_last) and student.dtype == torch.bfloat16
    assert student.requires_grad and not teacher.requires_grad


# ---------------------------------------------------------------------------------------------- as on a GPU


@pytest.fixture
def gpu(monkeypatch):
    """The CPU passes for a GPU. Gives its properties."""
    properties = fake_cuda.install(monkeypatch)
    monkeypatch.setattr(devices.Gpu, "name", "cpu")
    monkeypatch.setitem(devices.DEVICES, "cpu", devices.Gpu)
    return properties


def test_a_row_of_a_gpu(gpu):
    row = suite.row(ALL["abc"], TINY, BRIEF)
    assert set(row["graph"]) == {"eager", "ours"}
    shown = pages.rates(row)
    assert shown.count("launched") == shown.count("replayed") == 2 and "% of copy" in shown


def test_inputs_take_turns_until_they_exceed_the_cache(gpu, monkeypatch):
    size = gpu.L2_cache_size
    assert devices.Gpu.copies(size) == devices.TIMES_L2 and devices.Gpu.copies(100 * size) == 1
    monkeypatch.setattr(torch.cuda, "mem_get_info", lambda: (16 * size, 16 * size))
    assert devices.Gpu.copies(size) == 2
    seen = []
    form = suite.Form([(lambda index=index: seen.append(index) or torch.zeros((), requires_grad=True) * 1, [])
                       for index in range(3)])  # fmt: skip
    monkeypatch.setattr(torch.autograd, "grad", lambda *_, **__: ())
    suite._turns({"ours": form}, 6, devices.Gpu)
    assert seen == [0, 1, 2] * 2


def test_a_form_that_cannot_be_captured_leaves_its_error(gpu, monkeypatch):
    def refuses(step):
        raise RuntimeError("operation not permitted when stream is capturing")

    monkeypatch.setattr(devices.Gpu, "captured", refuses)
    row = suite.row(ALL["hint"], TINY, BRIEF)
    assert "graph" not in row and set(row["errors"]) == {"graph of eager", "graph of ours"}


# ---------------------------------------------------------------------------------------------- baseline

KEY = f"abc, {TINY}"
MACHINE = {"cpu": "one", "threads": "2", "instruction set": "avx512", "torch": "2", "torch kernels": "avx512"}
AMX = MACHINE | {"cpu": "two", "torch kernels": "avx512 with amx"}


def row_of(noise=0.02, machine=MACHINE, **ratios):
    spread = {name: {"median": x, "low": x * (1 - noise / 2), "high": x * (1 + noise / 2)}
              for name, x in ratios.items()}  # fmt: skip
    return {"ratios": spread, "machine": machine}


@pytest.fixture
def kept(tmp_path):
    file = tmp_path / "baseline.json"
    baseline.write({KEY: row_of(eager=0.2, compile=0.6, limit=1.3)}, file)
    return file


def compared(row, file, quick=False, again=None):
    tries = iter(again or [row] * 9)
    return baseline.compare({KEY: row}, quick, lambda key: next(tries), file, lambda line: None)


def test_what_is_no_slower_passes(kept):
    assert not compared(row_of(eager=0.2, compile=0.6, limit=1.3), kept)
    assert not compared(row_of(eager=0.1, compile=0.65, limit=1.0), kept)


@pytest.mark.parametrize("name, slow", [("eager", 0.26), ("compile", 0.8), ("limit", 1.7)])
def test_what_is_slower_fails(kept, name, slow):
    (sentence,) = compared(row_of(**({"eager": 0.2, "compile": 0.6, "limit": 1.3} | {name: slow})), kept)
    assert KEY in sentence and f"ours / {name} is {slow:.3f}" in sentence


def test_noise_widens_the_band_but_not_without_end(kept):
    assert compared(row_of(eager=0.238), kept) and not compared(row_of(0.1, eager=0.238), kept)
    assert compared(row_of(5.0, eager=0.26), kept)


def test_one_slow_measurement_is_repeated(kept):
    slow, right = row_of(eager=0.5), row_of(eager=0.2)
    assert not compared(slow, kept, again=[slow, right]) and compared(slow, kept, again=[slow, slow])


def test_the_quick_form_has_a_wide_band_and_looks_at_eager_alone(kept):
    assert not compared(row_of(eager=0.38, limit=9.0), kept, quick=True)
    assert compared(row_of(eager=0.5), kept, quick=True)
    elsewhere = MACHINE | {"threads": "8"}
    assert not compared(row_of(eager=0.5, machine=elsewhere), kept, quick=True)
    assert compared(row_of(eager=0.9, machine=elsewhere), kept, quick=True)


def test_nothing_to_compare_is_an_error(kept):
    with pytest.raises(SystemExit, match="nothing compared"):
        compared(row_of(eager=0.2, machine=MACHINE | {"cpu": "another"}), kept)
    with pytest.raises(SystemExit, match="has none of hint"):
        baseline.compare({"hint": row_of(eager=0.2)}, False, None, kept)


def known(file, kind="avx512"):
    return set(json.loads(file.read_text())[kind]["ratios"])


def test_another_machine_of_a_kind_starts_a_new_baseline(kept):
    baseline.write({"hint": row_of(eager=0.5)}, kept)
    assert known(kept) == {KEY, "hint"}
    baseline.write({"hint": row_of(eager=0.5, machine=MACHINE | {"cpu": "another"})}, kept)
    assert known(kept) == {"hint"}


def test_each_kind_of_processor_has_its_baseline(kept):
    here = row_of(eager=0.7, machine=AMX)
    baseline.write({KEY: here}, kept)
    assert known(kept) == known(kept, "avx512 with amx") == {KEY}
    assert not compared(here, kept) and not compared(row_of(eager=0.2), kept)
    assert compared(row_of(eager=0.7), kept) and compared(row_of(eager=0.9, machine=AMX), kept)
    gpu = AMX | {"gpu": "H100"}
    baseline.write({KEY: row_of(eager=0.4, machine=gpu)}, kept)
    assert list(json.loads(kept.read_text())) == ["avx512", "avx512 with amx", "H100"]
    assert compared(row_of(eager=0.6, machine=gpu), kept)


def test_a_kind_without_a_baseline_is_as_another_machine(kept):
    with pytest.raises(SystemExit, match="nothing compared"):
        compared(row_of(eager=0.2, machine=AMX), kept)
    said = []
    assert not baseline.compare({KEY: row_of(eager=0.55, machine=AMX)}, True, None, kept, said.append)
    assert "no baseline of avx512 with amx: compared with that of avx512" in said[0]
    assert compared(row_of(eager=0.9, machine=AMX), kept, quick=True)


def test_the_kind_is_what_pytorch_computes_with():
    capability = torch.backends.cpu.get_cpu_capability().lower()
    assert measuring.torch_kernels(["avx512f"]) == capability
    assert measuring.torch_kernels(["avx512f", "amx_tile", "amx_bf16"]) == f"{capability} with amx"
    assert baseline.kind(measuring.machine()).startswith(capability)


@pytest.mark.parametrize("kind", json.loads(baseline.FILE.read_text()))
def test_the_committed_baseline_serves_the_quick_form(kind):
    kept = json.loads(baseline.FILE.read_text())[kind]
    assert baseline.kind(kept["machine"]) == kind
    assert {f"{name}, {Setup()}" for name in run.QUICK_OPS} <= set(kept["ratios"])
    # dispatch has no eager form in half precision; hint takes three times eager where Python is all that it costs.
    unusual = {f"dispatch, {Setup(torch.bfloat16)}"}
    unusual |= {f"hint, {Setup(dtype, size='small')}" for dtype in (torch.float32, torch.bfloat16)}
    assert all(0 < x["eager"]["ratio"] < 2 for key, x in kept["ratios"].items() if key not in unusual)


# ---------------------------------------------------------------------------------------------- growth


def test_exponents():
    assert growth.exponent([1, 2, 4], [3.0, 6.0, 12.0]) == pytest.approx(1)
    assert growth.exponent([1, 2, 4], [1.0, 4.0, 16.0]) == pytest.approx(2)


def test_growth_of_every_axis(tmp_path):
    found = growth.measure(start=(1, 2, 4, 8), factors=(1, 4))
    assert list(found["axes"]) == [*growth.AXES, "teacher layers"]
    assert all(statistics.fmean(axis["milliseconds"]) > 0 for axis in found["axes"].values())
    assert growth.text(found).count("\n") == 6
    assert found["axes"]["frames"]["bytes"][1] == 4 * found["axes"]["frames"]["bytes"][0]
    assert found["axes"]["teacher layers"]["bytes"] == [(3 + 2) * 256, (3 + 8) * 256]
    plots.growth(found, tmp_path / "growth.svg")
    assert plots.digest(found) in (tmp_path / "growth.svg").read_text()


# ---------------------------------------------------------------------------------------------- goals


def test_goals_of_a_row():
    found = {goal.text: goal for goal in goals.goals(pages.measured()["rows"], None)}
    row = pages.measured()["rows"][f"abc, {Setup()}"]
    name = row["dtype"]
    compiled, ours = (row["milliseconds"][form]["total"] for form in ("compile", "ours"))
    assert found["abc: compile / ours"].values[name] == pytest.approx(compiled / ours)
    parts = [found[f"abc: {part} / limit"].values[name] for part in ("forward", "backward")]
    assert min(parts) <= ours / row["limit"]["total"] <= max(parts)
    held = found["held after forward, in student features"].values[name]
    assert held == pytest.approx(row["network"]["held_megabytes"]["ours"] / (8 * 32 * 200 * 64 * 4 / 1e6))
    others = {op.split()[0] for op in found["every other loss: compile / ours"].values}
    assert "kl" in others and not others & {"abc", "tap", "compress"}


@pytest.mark.parametrize(("is_most", "missed"), [(True, {"b": 2.0}), (False, {"a": 0.5})])
def test_a_goal_names_what_misses_it(is_most, missed):
    goal = goals.Goal("x", is_most, 1, {"a": 0.5, "b": 2.0, "c": 1})
    ((name, value),) = missed.items()
    assert goal.missed == missed and goal.cells()[2:] == [f"{value:.2f}", f"no: {name} {value:.2f}"]
    assert goal._replace(values={"c": 1}).cells()[2:] == ["1.00", "yes"]
    assert goal._replace(values={}).cells()[2:] == ["-", "not measured"]


def test_growth_counts_in_both_directions():
    grown = {"axes": {"batch": {"exponent": 0.9}, "frames": {"exponent": 1.02}}, "machine": {}}
    (goal,) = (goal for goal in goals.goals({}, grown) if "growth" in goal.text)
    assert list(goal.missed) == ["batch"] and goal.missed["batch"] == pytest.approx(0.1)


# ---------------------------------------------------------------------------------------------- pages


def test_pages_are_what_was_measured():
    kept = pages.measured()
    for page in pages.PAGES:
        text = page.read_text()
        assert pages.BLOCK.search(text) and text == pages.filled(text, pages.blocks(kept)), pages.PAGES
    assert losses_page.measured() == pages.of_losses(kept["rows"])
    for file, (shown, _) in pages.pictures(kept).items():
        assert plots.digest(shown) in file.read_text(), f"run python -m benchmarks.run --page: {file}"


def test_each_machine_has_a_file(tmp_path, monkeypatch):
    monkeypatch.setattr(pages, "FOLDER", tmp_path)
    machines = {"cpu": "AMD EPYC 9654, x86_64", "threads": "2"}, {"cpu": "any", "gpu": "NVIDIA H100 80GB"}
    pages.keep({str(k): {"machine": machine, "value": k} for k, machine in enumerate(machines)})
    pages.keep({"more": {"machine": machines[0], "value": 1.23456}}, {"machine": machines[1], "axes": {}})
    assert {file.name for file in tmp_path.iterdir()} == {"amd-epyc-9654-2-threads.json", "nvidia-h100-80gb.json"}
    first, second = (pages.measured(pages.file_of(machine)) for machine in machines)
    assert list(first["rows"]) == ["0", "more"] and first["growth"] is None and second["growth"]["axes"] == {}
    assert len((tmp_path / "amd-epyc-9654-2-threads.json").read_text().splitlines()) == 5


def test_blocks_are_replaced_and_nothing_else():
    text = "a\n<!-- measured: x -->\nold\n<!-- end -->\nb\n"
    assert pages.filled(text, {"x": "new\n"}) == text.replace("old", "new")
    with pytest.raises(KeyError):
        pages.filled(text, {})


@pytest.fixture
def elsewhere(tmp_path, monkeypatch):
    """All that --write and --baseline write is in this folder."""
    losses = tmp_path / "losses.json"
    losses.write_text(losses_page.MEASURED.read_text())
    page = tmp_path / "page.md"
    page.write_text(
        "".join(f"<!-- measured: {name} -->\n<!-- end -->\n" for name in ("goals", "speed", "network", "growth"))
    )
    monkeypatch.setattr(pages, "FOLDER", tmp_path)
    monkeypatch.setattr(pages, "SHOWN", pages.file_of(measuring.machine()))
    monkeypatch.setattr(pages, "SPEED_PICTURE", tmp_path / "speed.svg")
    monkeypatch.setattr(pages, "GROWTH_PICTURE", tmp_path / "growth.svg")
    monkeypatch.setattr(losses_page, "MEASURED", losses)
    monkeypatch.setattr(pages, "PAGES", (page,))
    monkeypatch.setattr(pages.losses_page, "PAGE", tmp_path / "losses.md")
    monkeypatch.setattr(baseline, "FILE", tmp_path / "baseline.json")
    monkeypatch.setitem(SIZES, "dns", SIZES["tiny"])  # what the pages show
    return tmp_path


def command(monkeypatch, *arguments):
    monkeypatch.setattr(sys, "argv", ["benchmarks.run", *arguments])
    run.main()


def test_the_command_measures_writes_and_checks(elsewhere, monkeypatch, capsys):
    only = ("--op", "at", "--dtype", "float32", "--repeats", "3")
    rows, picture = elsewhere / "rows.json", elsewhere / "rows.png"
    command(monkeypatch, *only, "--write", "--baseline", "--json", str(rows), "--plot", str(picture))
    (row,) = json.loads(rows.read_text()).values()
    line = markdown.row(pages.speed_cells(pages.rounded(row)))
    assert re.search(r"\| at \| float32 \|", capsys.readouterr().out) and picture.stat().st_size > 1000
    assert line in (elsewhere / "page.md").read_text() and "speed.svg" in (elsewhere / "page.md").read_text()
    kept = json.loads((elsewhere / "losses.json").read_text())["losses"]
    assert kept["at"]["student"] == list(SIZES["tiny"]["features"][0]) and len(kept) > 30
    assert set(kept["at"]) == set(kept["sp"])  # the schema is the one it was

    monkeypatch.setattr(baseline, "QUICK_FLOOR", 1e3)
    command(monkeypatch, *only, "--quick", "--check")
    monkeypatch.setattr(baseline, "QUICK_FLOOR", -0.99)
    with pytest.raises(SystemExit, match="ours / eager is"):
        command(monkeypatch, *only, "--quick", "--check")


def test_the_command_prints_no_time_of_what_is_wrong(elsewhere, monkeypatch, capsys):
    def wrong(*arguments):
        raise correctness.Wrong("the gradient is off by 1")

    monkeypatch.setattr(suite, "check", wrong)
    with pytest.raises(SystemExit, match="sp, float32, dns.*off by 1"):
        command(monkeypatch, "--op", "sp", "--dtype", "float32")
    assert "| sp |" not in capsys.readouterr().out


def test_growth_is_kept(elsewhere, monkeypatch):
    measure = growth.measure
    monkeypatch.setattr(growth, "measure", lambda device: measure(device, (1, 2, 4, 8), (1, 4)))
    command(monkeypatch, "--growth", "--write")
    assert "| teacher layers |" in (elsewhere / "page.md").read_text() and (elsewhere / "growth.svg").exists()
