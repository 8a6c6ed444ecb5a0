"""Arguments that are given twice or make no sense: what becomes of them before anything runs."""

import json
from pathlib import Path

import pytest
from made_audio import SHORT, data_arguments

from abckd_dns.cli import main
from abckd_dns.errors import InputError
from abckd_dns.options import DistillOptions, EvaluateOptions, PrepareOptions, TrainOptions
from abckd_dns.study.options import StudyOptions

NEEDED = {
    TrainOptions: dict(out=Path("run")),
    DistillOptions: dict(out=Path("run"), teacher="teacher"),
    PrepareOptions: dict(out=Path("prepared"), count=1),
    EvaluateOptions: dict(checkpoints=()),
    StudyOptions: dict(config=Path("study.toml")),
}


@pytest.mark.parametrize(
    ("options", "name", "value", "message"),
    [
        (TrainOptions, "seed", -1, "--seed: expected at least 0, got -1"),
        (TrainOptions, "workers", -1, "--workers: expected at least 0, got -1"),
        (TrainOptions, "lr", float("nan"), "--lr: expected a finite number, got nan"),
        (TrainOptions, "batch_size", "2", "--batch-size: expected a whole number, got '2'"),
        (TrainOptions, "steps", True, "--steps: expected a whole number, got True"),
        (TrainOptions, "clip", float("nan"), "--clip: expected a number, got nan"),
        (TrainOptions, "snr", (5, 1), "--snr: expected the lower bound first, got 5 1"),
        (TrainOptions, "snr", (5,), "--snr: expected at least 2 in a list, got (5,)"),
        (TrainOptions, "precision", "fp8", "--precision: expected 'fp32', 'bf16' or 'fp16', got 'fp8'"),
        (TrainOptions, "stepz", 2, "--stepz is not a key that is known here"),
        (TrainOptions, "segment_seconds", 1e-5, "--segment-seconds: expected at least 6.25e-05, got 1e-05"),
        (DistillOptions, "kd_warmup", -1, "--kd-warmup: expected at least 0, got -1"),
        (DistillOptions, "loss", (), "--loss: expected none, or one or more losses; got nothing"),
        (PrepareOptions, "count", 0, "--count: expected at least 1, got 0"),
        (PrepareOptions, "seed", -1, "--seed: expected at least 0, got -1"),
        (PrepareOptions, "workers", -1, "--workers: expected at least 0, got -1"),
        (EvaluateOptions, "seed", -1, "--seed: expected at least 0, got -1"),
        (EvaluateOptions, "seconds", 0.0, "--seconds: expected at least 6.25e-05, got 0.0"),
        (StudyOptions, "jobs", 0, "--jobs: expected at least 1, got 0"),
    ],
)
def test_number_out_of_range(options, name, value, message):
    with pytest.raises(InputError) as raised:
        options(**NEEDED[options] | {name: value})
    assert str(raised.value) == message


@pytest.mark.parametrize(
    "losses", [["--loss", "abc=0.1", "--loss", "spectral=1"], ["--loss=abc=0.1", "--loss=spectral=1"]]
)
def test_repeated_flag_adds_to_what_was_given(folders, runs, tmp_path, losses):
    first, second = losses[: len(losses) // 2], losses[len(losses) // 2 :]
    teacher = ["--teacher", str(runs / "teacher")]
    main(["distill", *first, *teacher, "--out", str(tmp_path), *second, *data_arguments(folders), *SHORT])
    assert json.loads((tmp_path / "config.json").read_text())["loss"] == ["abc=0.1", "spectral=1"]
