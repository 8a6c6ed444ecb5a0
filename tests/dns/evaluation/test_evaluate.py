"""Layouts of test sets, tables, workers, and what is wrong with an input."""

import csv
import math
import re
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from made_audio import noise_like, speech_like, write_wav
from made_networks import SMALL, lively

from abckd_dns.cli import main
from abckd_dns.data.audio import read_speech
from abckd_dns.errors import InputError
from abckd_dns.evaluation import metrics
from abckd_dns.evaluation.compare import evaluate
from abckd_dns.evaluation.recordings import Pairs
from abckd_dns.evaluation.tables import format_report
from abckd_dns.network.load import save_checkpoint
from abckd_dns.options import EvaluateOptions

FAST = ("si-sdr", "stoi")


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory) -> str:
    path = tmp_path_factory.mktemp("small") / "model.safetensors"
    save_checkpoint(path, lively(SMALL))
    return str(path)


def write_pair(noisy, clean, seed: int, seconds: float = 1.0, rate: int = 16_000) -> None:
    speech = speech_like(seconds, seed, rate)
    write_wav(clean, speech, rate)
    write_wav(noisy, speech + 0.1 * noise_like(seconds, seed + 50, rate), rate)


@pytest.fixture(scope="module")
def pairs(tmp_path_factory):
    """noisy/ and clean/ with three pairs, of which the last has a silent clean side."""
    root = tmp_path_factory.mktemp("pairs")
    for index in range(2):
        write_pair(root / "noisy" / f"{index}.wav", root / "clean" / f"{index}.wav", index, 2.0)
    write_wav(root / "noisy" / "silent.wav", noise_like(1, 0))
    write_wav(root / "clean" / "silent.wav", np.zeros(16_000, np.float32))
    return root


def rows_of(path) -> list[dict[str, str]]:
    with path.open() as file:
        return list(csv.DictReader(file))


LAYOUTS = {
    "equal names": ("noisy/deep/p1_{}.flac", "clean/deep/p1_{}.flac"),
    "VoiceBank-DEMAND": ("noisy_testset_wav/p232_{:03}.wav", "clean_testset_wav/p232_{:03}.wav"),
    "VoiceBank-DEMAND at 16 kHz": ("noisy_testset_wav_16k/p232_{:03}.wav", "clean_testset_wav_16k/p232_{:03}.wav"),
    "words in the names": ("noisy/{}_noisy.WAV", "clean/{}_clean.flac"),
    "DNS dev set": ("noisy/noisy_fileid_{}.wav", "clean/clean_fileid_{}.wav"),
    "DNS no_reverb": ("noisy/clnsp{0}_room_{0}_snr{0}_tl-25_fileid_{0}.wav", "clean/clean_fileid_{0}.wav"),
}


@pytest.mark.parametrize("layout", LAYOUTS)
def test_layouts_of_pairs(tmp_path, layout):
    noisy, clean = LAYOUTS[layout]
    numbers = (1, 2, 10, 21)
    for number in numbers:
        write_pair(tmp_path / noisy.format(number), tmp_path / clean.format(number), number, rate=48_000)
    examples = Pairs(tmp_path)
    assert len(examples) == len(numbers)
    for index, example in enumerate(map(examples.__getitem__, range(4))):
        number = int(re.findall(r"\d+", examples.name(index))[-1])
        assert torch.equal(example["clean"], read_speech(tmp_path / clean.format(number)))
        assert metrics.si_sdr(example["noisy"], example["clean"]) > 5


def test_sides_of_pairs_by_name(tmp_path):
    write_pair(tmp_path / "mixed" / "a.wav", tmp_path / "reference" / "a.wav", 0)
    examples = Pairs(tmp_path, sides=("mixed", "reference"))
    assert torch.equal(examples[0]["clean"], read_speech(tmp_path / "reference" / "a.wav"))


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ("no folder", "missing is not a folder"),
        ("no pair of folders", r"expected noisy/ and clean/, or noisy_NAME/ and clean_NAME/, in .* found noise"),
        ("two pairs of folders", r"has several noisy sides, noisy_a, noisy_b; choose by --sides"),
        ("noisy alone", r"1 of 5 files .* no counterpart .* first .*noisy/extra_fileid_7.wav"),
        ("clean alone", r"1 of 5 files .* no counterpart .* first .*clean/extra.wav"),
        ("no audio", r"noisy has no audio file"),
    ],
)
def test_wrong_pairs(tmp_path, wrong, message):
    root = tmp_path / ("missing" if wrong == "no folder" else "pairs")
    if wrong == "no pair of folders":
        write_wav(root / "noise" / "0.wav", noise_like(1, 0))
    elif wrong == "two pairs of folders":
        for name in ("noisy_a", "clean_a", "noisy_b", "clean_b"):
            (root / name).mkdir(parents=True)
    elif wrong == "no audio":
        (root / "noisy").mkdir(parents=True)
        (root / "clean").mkdir()
    elif wrong != "no folder":
        for index in range(2):
            write_pair(root / "noisy" / f"{index}.wav", root / "clean" / f"{index}.wav", index)
    if wrong == "noisy alone":
        write_wav(root / "noisy" / "extra_fileid_7.wav", noise_like(1, 0))
    elif wrong == "clean alone":
        write_wav(root / "clean" / "extra.wav", noise_like(1, 0))
    with pytest.raises(InputError, match=f"^--pairs: .*{message}"):
        Pairs(root)


def test_a_bad_pair_is_named_and_the_others_are_scored(tmp_path, capsys):
    for index in range(7):
        write_pair(tmp_path / "noisy" / f"{index}.wav", tmp_path / "clean" / f"{index}.wav", index)
    write_wav(tmp_path / "clean" / "1.wav", speech_like(0.5, 0))
    write_wav(tmp_path / "clean" / "2.wav", speech_like(2, 0, 8_000), 8_000)
    write_wav(tmp_path / "clean" / "3.wav", np.stack([speech_like(1, 0)] * 2, 1))
    write_wav(tmp_path / "noisy" / "4.wav", np.zeros(0, np.float32))
    (tmp_path / "clean" / "5.wav").write_bytes(b"RIFF")
    options = dict(pairs=tmp_path, csv=tmp_path / "table.csv", metrics=("si-sdr",), workers=0)
    values = evaluate(EvaluateOptions(**options))["noisy input"]["SI-SDR (dB)"]
    assert [math.isfinite(value) for value in values] == [True, *[False] * 5, True]
    assert "5 of 7 examples cannot be used and are left out" in (tmp_path / "table.md").read_text()
    found = {row["example"]: row["remark"] for row in rows_of(tmp_path / "table_files.csv") if not row["system"]}
    expected = {
        "1": r"noisy/1.wav has 1.0000 s, but its clean file .*clean/1.wav has 0.5000 s; see --cut",
        "2": r"noisy/2.wav has a sample rate of 16000 Hz, but its clean file .* 8000 Hz",
        "3": r"noisy/3.wav has 1 channels, but its clean file .* 2 channels",
        "4": r"noisy/4.wav: it has no samples",
        "5": r"cannot read .*clean/5.wav",
    }
    assert found.keys() == expected.keys()
    assert all(re.search(expected[name], found[name]) for name in expected)
    assert re.search(expected["1"], capsys.readouterr().err)

    cut = evaluate(EvaluateOptions(cut=True, **options))["noisy input"]["SI-SDR (dB)"]
    assert math.isfinite(cut[1]) and math.isnan(cut[2])


def test_nothing_usable_is_an_error(tmp_path):
    write_pair(tmp_path / "noisy" / "a.wav", tmp_path / "clean" / "a.wav", 0)
    (tmp_path / "noisy" / "a.wav").write_bytes(b"RIFF")
    with pytest.raises(InputError, match=r"none of the 1 examples can be used; a: cannot read .*noisy/a.wav"):
        evaluate(EvaluateOptions(pairs=tmp_path, csv=tmp_path / "table.csv", workers=0))


def test_tables(checkpoint, pairs, tmp_path, capsys):
    table = tmp_path / "deep" / "table.csv"
    scores = evaluate(
        EvaluateOptions(checkpoints=(checkpoint,), pairs=pairs, csv=table, baseline="noisy input", workers=0)
    )
    name = list(scores)[1]
    assert list(scores) == ["noisy input", name]
    assert list(scores[name]) == ["SI-SDR (dB)", "PESQ-WB", "STOI", "ESTOI"]
    assert [math.isnan(value) for value in scores[name]["STOI"]] == [False, False, True]

    files = rows_of(tmp_path / "deep" / "table_files.csv")
    assert [(row["system"], row["example"]) for row in files] == [
        (system, example) for system in scores for example in ("0", "1", "silent")
    ]
    assert [float(row["PESQ-WB"]) for row in files[:2]] == scores["noisy input"]["PESQ-WB"][:2]

    rows = {(row["system"], row["metric"]): row for row in rows_of(table)}
    row, values = rows[name, "STOI"], scores[name]["STOI"][:2]
    assert float(row["mean"]) == pytest.approx(sum(values) / 2)
    assert min(values) - 1e-9 <= float(row["low95"]) <= float(row["mean"]) <= float(row["high95"]) <= max(values) + 1e-9
    assert (row["defined"], row["undefined"], row["baseline"]) == ("2", "1", "noisy input")
    paired = [a - b for a, b in zip(values, scores["noisy input"]["STOI"], strict=False)]
    assert float(row["difference_mean"]) == pytest.approx(sum(paired) / 2)
    assert rows["noisy input", "STOI"]["difference_mean"] == ""

    report = (tmp_path / "deep" / "table.md").read_text()
    assert report.strip() in capsys.readouterr().out
    assert "3 examples" in report and "Difference from noisy input" in report
    first, second, costs = (part for part in report.split("\n\n") if part.startswith("|"))
    assert re.search(rf"\| {name} +\| [\d,]+ +\| [\d.]+ M +\| 32 ms +\| \d\.\d+ +\|", costs)
    assert int(rows[name, "parameters"]["mean"]) == sum(x.numel() for x in lively(SMALL).parameters())
    assert [len(part.splitlines()) for part in (first, second)] == [4, 3]
    assert len({line.count("|") for line in (first + "\n" + second).splitlines()}) == 1
    assert all("(1)" in cell for cell in first.splitlines()[3].split("|")[2:6])


def test_report_shows_differences_and_their_sign():
    scores = {"noisy input": {"STOI": [0.5, 0.7]}, "best": {"STOI": [0.6, 0.8]}, "worst": {"STOI": [0.4, 0.6]}}
    lines = format_report(scores, "noisy input").splitlines()
    assert any(line.startswith("| best ") and "0.700 ± " in line for line in lines)
    assert any(line.startswith("| best ") and "+0.100 ± 0.000" in line for line in lines)
    assert any(line.startswith("| worst ") and "-0.100 ± 0.000" in line for line in lines)


def test_dry_mixes_the_input_into_every_output(checkpoint, pairs, tmp_path):
    shared = dict(checkpoints=(checkpoint,), pairs=pairs, csv=tmp_path / "table.csv", metrics=("si-sdr",), workers=0)
    wet, dry = (evaluate(EvaluateOptions(dry=share, **shared)) for share in (0.0, 0.25))
    assert wet["noisy input"]["SI-SDR (dB)"][:2] == dry["noisy input"]["SI-SDR (dB)"][:2]
    noisy, clean = (read_speech(pairs / side / "1.wav") for side in ("noisy", "clean"))
    with torch.inference_mode():
        enhanced = lively(SMALL)(noisy[None])[0]
    name = list(dry)[1]
    assert wet[name]["SI-SDR (dB)"][1] == pytest.approx(metrics.si_sdr(enhanced, clean), abs=1e-3)
    expected = metrics.si_sdr(0.75 * enhanced + 0.25 * noisy, clean)
    assert dry[name]["SI-SDR (dB)"][1] == pytest.approx(expected, abs=1e-3)
    assert abs(dry[name]["SI-SDR (dB)"][1] - wet[name]["SI-SDR (dB)"][1]) > 0.1
    assert "0.25 of the noisy input" in (tmp_path / "table.md").read_text()


def test_worker_processes_give_the_same(checkpoint, folders, tmp_path):
    results = [
        evaluate(
            EvaluateOptions(
                checkpoints=(checkpoint,),
                clean=folders / "clean",
                noise=folders / "noise",
                count=5,
                seconds=1.0,
                metrics=FAST,
                workers=workers,
                csv=tmp_path / "table.csv",
            )
        )
        for workers in (0, 2)
    ]
    assert len(set(results[0]["noisy input"]["STOI"])) == 5
    for system, values in results[0].items():
        for metric, of_metric in values.items():
            assert results[1][system][metric] == pytest.approx(of_metric, abs=1e-3)


@pytest.mark.parametrize("workers", ["0", "1"])
def test_a_network_that_fails_on_a_file_has_no_value_there(pairs, tmp_path, workers, capsys):
    for index in range(2):
        write_pair(tmp_path / "noisy" / f"{index}.wav", tmp_path / "clean" / f"{index}.wav", index)
    write_wav(tmp_path / "noisy" / "loud.wav", 9 * noise_like(1, 0))
    write_wav(tmp_path / "clean" / "loud.wav", speech_like(1, 0))
    arguments = ["evaluate", "--checkpoints", "own_networks:fails_when_loud", "--pairs", str(tmp_path)]
    main([*arguments, "--metrics", "si-sdr", "--workers", workers, "--csv", str(tmp_path / "table.csv")])
    assert "loud, own_networks:fails_when_loud: RuntimeError: too loud" in capsys.readouterr().err
    rows = {(row["system"], row["example"]): row for row in rows_of(tmp_path / "table_files.csv")}
    assert math.isfinite(float(rows["noisy input", "loud"]["SI-SDR (dB)"]))
    bad = rows["own_networks:fails_when_loud", "loud"]
    assert (bad["SI-SDR (dB)"], bad["remark"]) == ("nan", "RuntimeError: too loud")
    assert math.isfinite(float(rows["own_networks:fails_when_loud", "1"]["SI-SDR (dB)"]))


def test_a_worker_that_dies_is_an_error_with_a_place(tmp_path):
    write_pair(tmp_path / "noisy" / "a.wav", tmp_path / "clean" / "a.wav", 0)
    with pytest.raises(InputError, match="none of the 1 examples can be used; a: a worker process died"):
        evaluate(
            EvaluateOptions(
                checkpoints=("own_networks:dies_in_a_worker",),
                pairs=tmp_path,
                metrics=("si-sdr",),
                workers=1,
                csv=tmp_path / "table.csv",
            )
        )


class Stop(BaseException):
    """In place of a crash."""


@pytest.mark.parametrize("how", [KeyboardInterrupt, Stop])
def test_an_evaluation_goes_on_where_it_ended(checkpoint, tmp_path, monkeypatch, how, capsys):
    for index in range(4):
        write_pair(tmp_path / "noisy" / f"{index}.wav", tmp_path / "clean" / f"{index}.wav", index)
    options = EvaluateOptions(
        checkpoints=(checkpoint,), pairs=tmp_path, csv=tmp_path / "table.csv", metrics=FAST, workers=0
    )
    whole = evaluate(options)
    expected = (tmp_path / "table.csv").read_text().splitlines()
    scored, original = [], Pairs.__getitem__

    def ends(self, index):
        if len(scored) == 2:
            raise how
        scored.append(index)
        return original(self, index)

    monkeypatch.setattr(Pairs, "__getitem__", ends)
    with pytest.raises(how):
        evaluate(options)
    assert [row["example"] for row in rows_of(tmp_path / "table_files.csv")] == ["0", "0", "1", "1"]
    if how is KeyboardInterrupt:  # a table of what there is
        assert "2 examples; mean" in (tmp_path / "table.md").read_text()
    with (tmp_path / "table_files.csv").open("a") as file:
        file.write("noisy input,2,3.1")  # as where a machine loses power
    capsys.readouterr()

    monkeypatch.setattr(Pairs, "__getitem__", lambda self, index: scored.append(index) or original(self, index))
    assert evaluate(options) == whole
    assert scored == [0, 1, 2, 3]
    assert "2 of 4 examples are there; the evaluation goes on" in capsys.readouterr().err
    same = [line for line in (tmp_path / "table.csv").read_text().splitlines() if "real-time" not in line]
    assert same == [line for line in expected if "real-time" not in line]
    assert not (tmp_path / "table_files.unfinished").exists()

    evaluate(options)  # what is finished is not taken for what is begun
    assert scored == [0, 1, 2, 3, 0, 1, 2, 3]


def test_an_evaluation_of_something_else_begins_anew(checkpoint, tmp_path, capsys):
    write_pair(tmp_path / "noisy" / "a.wav", tmp_path / "clean" / "a.wav", 0)
    options = dict(pairs=tmp_path, csv=tmp_path / "table.csv", workers=0, metrics=("si-sdr",))
    evaluate(EvaluateOptions(**options))
    (tmp_path / "table_files.unfinished").write_text("of something else")
    values = evaluate(EvaluateOptions(**options))
    assert "begun with other arguments or data" in capsys.readouterr().err
    assert float(rows_of(tmp_path / "table_files.csv")[0]["SI-SDR (dB)"]) == values["noisy input"]["SI-SDR (dB)"][0]


def test_recordings_without_clean_speech(checkpoint, tmp_path, monkeypatch):
    loudness = metrics.Metric(("loudness",), lambda estimate, _: float(estimate.square().mean()), needs_clean=False)
    monkeypatch.setitem(metrics.METRICS, "dnsmos", loudness)  # DNSMOS itself takes seconds
    write_wav(tmp_path / "noisy" / "deep" / "b.wav", noise_like(1, 0, 8_000), 8_000)
    write_wav(tmp_path / "noisy" / "a.wav", 0.5 * noise_like(1, 0))
    scores = evaluate(
        EvaluateOptions(checkpoints=(checkpoint,), noisy=tmp_path / "noisy", csv=tmp_path / "table.csv", workers=0)
    )
    assert list(scores["noisy input"]) == ["loudness"]
    assert scores["noisy input"]["loudness"][0] == pytest.approx(0.0025, rel=0.1)
    assert [row["example"] for row in rows_of(tmp_path / "table_files.csv")] == ["a", "deep/b"] * 2


def test_packages_that_are_missing(checkpoint, pairs, tmp_path, monkeypatch, capsys):
    missing = {"pesq", "speechmos"}
    monkeypatch.setattr(metrics, "find_spec", lambda name: None if name in missing else name)
    shared = dict(checkpoints=(checkpoint,), csv=tmp_path / "table.csv", workers=0)
    scores = evaluate(EvaluateOptions(pairs=pairs, **shared))
    assert "PESQ-WB" not in scores["noisy input"] and "STOI" in scores["noisy input"]
    assert "pesq is left out: pesq is not installed" in capsys.readouterr().out
    with pytest.raises(InputError, match="pesq cannot be computed: pesq not installed"):
        evaluate(EvaluateOptions(pairs=pairs, metrics=("pesq",), **shared))
    with pytest.raises(InputError, match="dnsmos cannot be computed: speechmos not installed"):
        evaluate(EvaluateOptions(noisy=pairs / "noisy", **shared))


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (
            ["--noisy", "PAIRS/noisy", "--metrics", "stoi"],
            "--metrics stoi needs clean speech; with --noisy only dnsmos",
        ),
        (["--noisy", "PAIRS/nothing"], "--noisy: expected a folder"),
        ([], "expected one of --pairs, --noisy, or --clean with --noise; got none"),
        (["--pairs", "PAIRS", "--noisy", "PAIRS/noisy"], "got --pairs and --noisy"),
        (["--clean", "PAIRS/clean"], "--noise: a folder is needed"),
        (["--pairs", "PAIRS", "--baseline", "nobody"], "--baseline: 'nobody' is not one of 'noisy input', '.*small"),
        (["--pairs", "PAIRS", "--dry", "1"], "--dry: expected less than 1, got 1"),
        (["--pairs", "PAIRS", "--workers", "-1"], "--workers: expected at least 0"),
        (["--pairs", "PAIRS", "--csv", "table.md"], "--csv: table.md is where the Markdown"),
        (["--pairs", "PAIRS", "--csv", "PAIRS"], "--csv: expected a file, but .* is a folder"),
        (["--pairs", "PAIRS", "--csv", "PAIRS/noisy/0.wav/table.csv"], "cannot write .*0.wav/table.csv: .*"),
    ],
)
def test_arguments_that_make_no_sense(checkpoint, pairs, arguments, message, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    filled = [argument.replace("PAIRS", str(pairs)) for argument in arguments]
    with pytest.raises(SystemExit) as stopped:
        main(["evaluate", "--checkpoints", checkpoint, *filled])
    printed = re.sub(r"[\s│]+", " ", f"{stopped.value} {capsys.readouterr().err}")  # what is wrong may come in a box
    assert re.search(message, printed)
    assert not list(tmp_path.iterdir())


def test_systems_are_named_by_the_whole_name_of_their_folder(checkpoint, pairs, tmp_path):
    """What follows a dot in it is no suffix."""
    shutil.copytree(Path(checkpoint).parent, tmp_path / "abc0.1")
    options = EvaluateOptions(
        pairs=pairs, checkpoints=(str(tmp_path / "abc0.1"),), metrics=("si-sdr",), workers=0, csv=tmp_path / "table.csv"
    )
    assert list(evaluate(options)) == ["noisy input", "abc0.1"]
