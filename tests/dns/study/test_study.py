"""The study: its configuration, its runs and their restart, its statistics, its report."""

import json
import multiprocessing
import os
import shutil
import sys
import threading
import time
from pathlib import Path

import numpy as np
import pytest
from made_audio import noise_like, speech_like, write_wav

from abckd_dns.cli import main
from abckd_dns.errors import InputError
from abckd_dns.network.config import PRESETS
from abckd_dns.network.denoiser import Denoiser
from abckd_dns.study import config as study_config
from abckd_dns.study import report
from abckd_dns.study.job import _alone, unit_of
from abckd_dns.study.results import Results, choose_finalists, collect, entropy, equal_loss_shares, read, write
from abckd_dns.study.runs import Run, final_runs, grid_runs, noise_runs, unit_runs
from abckd_dns.study.statistics import difference, estimate, margin_of_seeds
from abckd_dns.training.kd import build, parse

STUDIES = Path(__file__).parents[3] / "studies"
TINY = STUDIES / "tiny.toml"


@pytest.fixture
def place(tmp_path, monkeypatch) -> Path:
    """A folder with data for studies/tiny.toml, which the study is run in."""
    for part_index, part in enumerate(("train", "dev", "test")):
        for index in range(2):
            seed = 10 * part_index + index
            write_wav(tmp_path / "data" / part / "speech" / f"{index}.wav", speech_like(3, seed))
            write_wav(tmp_path / "data" / part / "noise" / f"{index}.wav", noise_like(3, seed))
    monkeypatch.chdir(tmp_path)
    # The jobs start in this folder, where a relative PYTHONPATH means nothing.
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join(sys.path))
    return tmp_path


def changed(path: Path, *changes: tuple[str, str]) -> Path:
    """A copy of tiny.toml with parts of its text replaced."""
    text = TINY.read_text()
    for before, after in changes:
        assert before in text
        text = text.replace(before, after, 1)
    path.write_text(text)
    return path


@pytest.mark.parametrize(
    ("before", "after", "message"),
    [
        ("steps = 2", "stepz = 2", r"teacher\.steps is missing; teacher\.stepz is not a key"),
        ("steps = 2", "steps = 0", r"teacher\.steps: expected more than 0, got 0"),
        ("steps = 2", 'steps = "many"', r"teacher\.steps: expected a whole number, got 'many'"),
        ("[grid]", "[gird]", r"grid is missing; gird is not a key"),
        ("batch_size = 2", "batchsize = 2", r"teacher\.options\.batchsize is none of .*batch_size"),
        ("seeds = [0]", "seeds = []", r"grid\.seeds: expected at least 1 in a list, got \[\]"),
        (
            "batch_size = 2",
            'batch_size = "2"',
            r".*study\.toml: teacher\.options\.batch_size: expected a whole number, got '2'",
        ),
        ("batch_size = 2", "batch_size = 0", r"teacher\.options\.batch_size: expected at least 1, got 0"),
        ("batch_size = 2", "snr = [5]", r"teacher\.options\.snr: expected at least 2 in a list, got \[5\]"),
        ("batch_size = 2", "snr = [5, 0]", r"teacher\.options\.snr: expected the lower bound first, got 5 0"),
        ("dry_shares = [0.1, 0.5]", "dry_shares = [1.5]", r"final\.dry_shares\.0: .*less than 1, got 1.5"),
        (
            'regimes = ["labels"]',
            'regimes = ["label"]',
            r"system\.0\.regimes\.0: .*'label-free', got 'label'",
        ),
        ('labels = "no KD"', 'labels = "none"', r"baseline\.labels: expected the name of a system.*got 'none'"),
        ('labels = "no KD"', 'labels = "abc"', r"baseline\.labels: 'abc' needs a loss with a fixed weight"),
        (
            'label-free = "teacher output"',
            "",
            r"baseline: label-free is missing, a regime of.*'teacher output'",
        ),
        ('name = "abc"', 'name = "no KD"', r"more than one named no KD"),
        ('loss = "response=1"', 'loss = "none"', r"'teacher output': without labels the loss 'none'"),
        ("seconds = 1.5", 'select = "MOS"', r"evaluation\.select: expected one of .*PESQ-WB.*, got 'MOS'"),
        ("seconds = 1.5", 'metrics = ["wer"]', r"evaluation\.metrics: expected some of .*pesq.*, got 'wer'"),
        ("steps = 2", "steps = ", r"is not TOML"),
    ],
)
def test_wrong_configuration_is_named(tmp_path, before, after, message):
    with pytest.raises(InputError, match=rf"--config: .*{message}"):
        study_config.load(changed(tmp_path / "study.toml", (before, after)))


def test_configurations_of_the_repository_are_valid():
    real = study_config.load(STUDIES / "abckd.toml")
    assert real.regimes == ("labels", "label-free") and len(real.final.seeds) >= 5
    tried = [system for system in real.system if system.has_grid]
    runs = grid_runs(real)
    for system in tried:  # the same grid for every loss
        found = {(run.weight, run.seed) for run in runs if run.system == system.name}
        assert found == {(weight, seed) for weight in real.grid.weights for seed in real.grid.seeds}
    assert len({run.name for run in runs}) == len(runs)


@pytest.mark.parametrize("system", study_config.load(STUDIES / "abckd.toml").system, ids=lambda system: system.name)
def test_losses_of_the_study_fit_its_networks(system):
    losses = [parse(text, 0.1) for text in system.loss_at(0.1) if text != "none"]
    networks = (Denoiser(PRESETS[name]) for name in ("student", "teacher"))
    layers = (system.options.get(key) for key in ("student_layers", "teacher_layers"))
    assert len(build(losses, *networks, *layers)) == len(losses)


def test_only_losses_without_a_weight_get_the_grids():
    system = study_config.System(name="a", loss=["abc(scores=uniform)", "spectral=1"])
    assert system.has_grid and system.loss_at(3.0) == ("abc(scores=uniform)=3", "spectral=1")
    for loss in ("none", "response=1", "abc(dim=8)=0.1"):
        fixed = study_config.System(name="a", loss=loss)
        assert not fixed.has_grid and fixed.loss_at(None) == (loss,)


def test_missing_data_and_results_are_said(place):
    with pytest.raises(SystemExit, match=r"data\.folder: expected a folder train/speech"):
        main(["study", "--config", str(changed(place / "a.toml", ('folder = "data"', 'folder = "elsewhere"')))])
    with pytest.raises(SystemExit, match="--report-only: results has no results"):
        main(["study", "--config", str(TINY), "--report-only"])


def test_study_from_data_to_report(place, capsys):
    arguments = ["study", "--config", str(TINY), "--jobs", "2"]
    main(arguments)
    printed = capsys.readouterr()
    assert "teacher minus noisy input" in printed.out and "warning: a teacher that adds less" in printed.err
    assert "of a difference" in printed.out
    config = study_config.load(TINY)
    results = read(config)
    assert {run.name for run in results.dev} == {
        f"{regime}/{system}-seed{seed}"
        for regime, system in (
            ("labels", "no_kd/steps2"),
            ("labels", "abc/weight0.1-steps2"),
            ("label-free", "teacher_output/steps2"),
            ("label-free", "abc/weight0.1-steps2"),
        )
        for seed in (0, 1)
    }
    tables = (place / "results" / "tables.md").read_text()
    assert "### Minus no KD" in tables and "### Minus teacher output" in tables and "## Attention" in tables
    for name in ("grid", "differences_labels", "differences_label-free", "attention_labels"):
        assert (place / "results" / f"{name}.png").stat().st_size < 100_000
    # A mean in the table is that of the numbers in the CSV file.
    runs = [run for run in results.dev if run.regime == "labels" and run.system == "abc"]
    mean = results.table(runs, "SI-SDR (dB)").mean()
    row = next(line for line in tables.split("### ")[0].splitlines() if line.startswith("| abc |"))
    assert f"{mean:.2f} (" in row
    units = {run.system: unit_of(config, run.system) for run in unit_runs(config)}
    assert units == results.units and units["abc"] > 0
    loss = json.loads((place / "runs/labels/abc/weight0.1-steps2-seed0/config.json").read_text())["loss"]
    assert loss == [f"abc={0.1 * units['abc']:g}"]
    # Students of one seed see the same examples and start from the same weights, whatever the loss.
    assert results.table(runs, "SI-SDR (dB)").shape == (2, 2)

    made = {path: path.stat().st_mtime_ns for path in (place / "runs").rglob("*") if path.is_file()}
    main(arguments)
    assert {path: path.stat().st_mtime_ns for path in made} == made  # nothing is done twice
    student = 'network = "student"\nsteps = 2\noptions = { '
    other = changed(place / "other.toml", (student, student + "lr = 1e-3, "))
    with pytest.raises(SystemExit, match="another --lr: 0.002 there, 0.001 here"):
        main(["study", "--config", str(other)])

    before = contents(place / "results")
    shutil.rmtree(place / "runs")  # the CSV files are enough
    for path in (place / "results").glob("*.*"):
        if path.suffix in (".md", ".png"):
            path.unlink()
    main([*arguments, "--report-only"])
    assert contents(place / "results") == before


def test_committed_report_is_of_the_committed_results(tmp_path, monkeypatch):
    """Its tables; that pictures are drawn from the same results tiny.toml shows."""
    monkeypatch.setattr(report, "_save", lambda *_: None)
    results = study_config.load(STUDIES / "abckd.toml").results
    committed = STUDIES.parent / results
    shutil.copytree(committed, tmp_path / results)
    monkeypatch.chdir(tmp_path)
    main(["study", "--config", str(STUDIES / "abckd.toml"), "--report-only"])
    assert (tmp_path / results / "tables.md").read_text() == (committed / "tables.md").read_text()


def contents(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in sorted(folder.rglob("*")) if path.is_file()}


def test_killed_study_goes_on_and_a_failed_run_stops_no_other(place, capsys):
    few = [
        ("noise_seeds = [0, 1]", "noise_seeds = [0]"),
        ("seeds = [0, 1]", "seeds = [0]"),
        ('label-free = "teacher output"\n', ""),
        ('name = "teacher output"\nloss = "response=1"\nregimes = ["label-free"]',
         'name = "broken"\nloss = "hint(layers=[no_such_layer])"\nregimes = ["labels"]'),
        ('loss = "abc"', 'loss = "abc"\nregimes = ["labels"]'),
    ]  # fmt: skip
    config = changed(place / "study.toml", *few)
    arguments = ["study", "--config", str(config), "--jobs", "1"]
    first = multiprocessing.get_context("forkserver").Process(target=main, args=(arguments,))
    first.start()
    teacher = place / "runs" / "teacher"
    deadline = time.monotonic() + 300  # a busy machine takes its time
    while not (teacher / "config.json").exists():
        assert first.is_alive() and time.monotonic() < deadline
        time.sleep(0.05)
    first.kill()
    first.join()

    with pytest.raises(SystemExit, match=r"1 failed: labels/broken/weight1-steps0-seed0; the same command"):
        main(arguments)
    printed = capsys.readouterr().out
    failure = next(line for line in printed.splitlines() if "FAILED" in line)
    assert "no_such_layer" in failure and "unit.log" in failure
    assert "noisy: 1 of 1 done" in printed  # what was done before the kill
    done = {run.system for run in read(study_config.load(config)).dev}
    assert done == {"no KD", "abc"}
    main(["study", "--config", str(config), "--only", "/abc/"])
    assert "broken" not in [line.split()[1] for line in capsys.readouterr().out.splitlines() if line.startswith("[")]


def test_a_run_is_done_by_one_process_at_a_time(tmp_path):
    entered = threading.Event()

    def enter() -> None:
        with _alone(tmp_path):
            entered.set()

    second = threading.Thread(target=enter)
    with _alone(tmp_path):
        second.start()
        assert not entered.wait(0.3)
    assert entered.wait(10)
    second.join()


def test_interval_of_known_seeds_and_utterances():
    """Values a_s + b_u: the variance of the mean is var(a) / seeds + var(b) / utterances."""
    rng = np.random.default_rng(0)
    of_seeds, of_utterances = rng.normal(0, 0.1, 400), rng.normal(0, 2, 300)
    e = estimate(0.5 + of_seeds[:, None] + of_utterances)
    deviation = np.sqrt(of_seeds.var() / 400 + of_utterances.var() / 300)
    assert e.mean == pytest.approx(0.5 + of_seeds.mean() + of_utterances.mean())
    assert e.high - e.low == pytest.approx(2 * 1.96 * deviation, rel=0.07)
    assert e.seed_spread == pytest.approx(of_seeds.std(ddof=1))


def test_interval_covers_the_truth_with_few_seeds():
    """95 % is meant: of 300 made-up studies with 5 seeds, in which seeds matter most."""
    rng = np.random.default_rng(1)
    covered = 0
    for _ in range(300):
        values = rng.normal(0, 1, (5, 1)) + rng.normal(0, 1, (1, 40)) + rng.normal(0, 1, (5, 40))
        e = estimate(values)
        covered += e.low <= 0 <= e.high
    assert 0.91 * 300 <= covered <= 0.99 * 300


def test_pairing_removes_what_systems_share():
    rng = np.random.default_rng(2)
    shared = rng.normal(0, 3, (5, 1)) + rng.normal(0, 3, (1, 200))
    better = shared + 0.1 + rng.normal(0, 0.1, (5, 200))
    e = difference(better, shared)
    assert e.is_clear and e.low < 0.1 < e.high and e.high - e.low < 0.1
    shuffled = difference(better, shared[:, rng.permutation(200)])
    assert shuffled.high - shuffled.low > 0.5  # the columns must be the same utterances
    assert not difference(shared, shared).is_clear


def test_undefined_values_and_single_seeds():
    values = np.array([[1.0, 2.0, np.nan], [3.0, 4.0, 5.0]])
    assert estimate(values).mean == 2.5  # the third utterance counts for no seed
    alone = estimate(np.array([[1.0, 2.0, 3.0]]))
    assert np.isnan(alone.seed_spread) and alone.low < 2 < alone.high
    assert np.isnan(estimate(np.full((2, 3), np.nan)).mean)
    assert margin_of_seeds(1.0, 5) == pytest.approx(2.776 / 5**0.5, rel=1e-3)


def test_entropy_of_attention():
    equal = {("s", teacher): 0.25 for teacher in "abcd"}
    single = {("s", teacher): float(teacher == "a") for teacher in "abcd"}
    assert entropy(equal) == pytest.approx(1) and entropy(single) == 0
    half = {**equal, **{("r", teacher): float(teacher == "a") for teacher in "abcd"}}
    assert entropy(half) == pytest.approx(0.5)
    over_students = {(student, teacher): 1 / 3 for student in "stu" for teacher in "abcd"}  # AFD's
    assert entropy(over_students) == pytest.approx(1)


@pytest.fixture
def graded(tmp_path, monkeypatch) -> tuple[study_config.Config, Results]:
    """Made-up results of a study with three weights: abc is best at 0.3, at (a control) worse than the baseline."""
    monkeypatch.chdir(tmp_path)
    more = '\n[[system]]\nname = "at"\nloss = "at"\nregimes = ["labels"]\nalways = true\n'
    more += '\n[[system]]\nname = "sp"\nloss = "sp"\nregimes = ["labels"]\n'
    path = changed(tmp_path / "study.toml", ("weights = [0.1]", "weights = [0.1, 0.3, 1]"))
    path.write_text(path.read_text() + more)
    config = study_config.load(path)
    quality = {"no KD": 1.5, "teacher output": 1.4, "abc": 1.6, "at": 1.45, "sp": 1.55}
    rng = np.random.default_rng(0)
    results = Results(units={"abc": 0.5, "at": 20.0, "sp": 3.0})

    def add(run: Run) -> None:
        value = quality[run.system] - (0.0 if run.weight in (None, 0.3) else 0.05)
        results.dev[run] = {"PESQ-WB": value, "objective": -value, "attention entropy": np.nan}
        results.dry[run] = {share: -value + 0.5 * share for share in (0.0, 0.1, 0.2, 0.5)}
        for share in (0.0, 0.1, 0.2):
            utterances = np.linspace(0, 1, 20) + 0.0001 * rng.normal(size=20)
            results.test[run, share] = {"PESQ-WB": value - share + utterances}

    for run in [*noise_runs(config), *grid_runs(config)]:
        add(run)
    for run in final_runs(config, choose_finalists(config, results)):
        add(run)
    for name in ("noisy", "teacher"):
        results.test[name, 0.0] = {"PESQ-WB": np.linspace(0, 1, 20)}
    return config, results


def test_best_weights_and_systems_are_chosen_on_the_development_set(graded):
    config, results = graded
    chosen = choose_finalists(config, results)
    assert chosen["labels"] == {"no KD": None, "abc": 0.3, "at": 0.3}  # one finalist besides the control
    assert chosen["label-free"] == {"teacher output": None, "abc": 0.3}


def test_a_weight_without_a_value_is_not_chosen(graded):
    config, results = graded
    silent = Run("labels", "abc", 0.1, 2, 0)  # PESQ finds no utterance in its output
    results.dev[silent]["PESQ-WB"] = np.nan
    assert choose_finalists(config, results)["labels"]["abc"] == 0.3


def test_report_of_a_regime_whose_baseline_has_not_run(graded):
    config, results = graded
    results.dev = {run: means for run, means in results.dev.items() if run.system != "no KD"}
    report.write(config, results)
    labels = (config.results / "tables.md").read_text().split("## labels")[1].split("## label-free")[0]
    assert "### Minus no KD" in labels and "| abc |" in labels


def test_shares_that_not_all_runs_have_tried(graded):
    config, results = graded
    del results.dry[Run("labels", "abc", 0.3, 2, 1)][0.2]
    assert equal_loss_shares(config, results, choose_finalists(config, results))["labels", "abc"] == (0.1, 0.0)


def test_dry_mix_goes_to_the_better_one_until_it_is_no_better(graded):
    config, results = graded
    shares = equal_loss_shares(config, results, choose_finalists(config, results))
    # abc is 0.1 below the baseline in loss, which a share of 0.2 makes up for; at is 0.05 above it.
    assert shares["labels", "abc"] == (0.2, 0.0)
    assert shares["labels", "at"] == (0.0, 0.1)


def test_report_is_the_same_after_a_round_trip(graded):
    config, results = graded
    write(config, results)
    again = read(config)
    assert again.dev.keys() == results.dev.keys() and again.test.keys() == results.test.keys()
    report.write(config, again)
    first = contents(config.results)
    report.write(config, read(config))
    assert contents(config.results) == first
    text = first["tables.md"].decode()
    assert "| abc | **+0.100 [" in text and "| at | **-0.050 [" in text
    assert "| abc | 0.2 | 0 | **-0.100 [" in text  # at equal loss the advantage is gone


def test_stale_scores_are_not_collected(graded, tmp_path):
    config, _ = graded
    run = Run("labels", "no KD", None, 2, 0)
    folder = config.runs / run.name / "scores"
    folder.mkdir(parents=True)
    (folder / "dev_99x4s.csv").write_text("example,PESQ-WB\n0,1.0\n")  # of another evaluation
    (folder / "dry.csv").write_text("share,objective\n0,1\n")
    assert collect(config, [run]).dev == {}
