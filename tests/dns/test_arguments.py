"""Arguments that are given twice or make no sense: what becomes of them before anything runs."""

import json
from pathlib import Path

import pytest
from made_audio import SHORT, data_arguments

from abckd_dns.cli import main
from abckd_dns.data.prepared import PrepareOptions
from abckd_dns.errors import InputError
from abckd_dns.evaluation.compare import EvaluateOptions
from abckd_dns.study.runner import StudyOptions
from abckd_dns.training.distillation import DistillOptions
from abckd_dns.training.supervised import TrainOptions

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
        (TrainOptions, "lr", float("nan"), "--lr: expected more than 0, got nan"),
        (TrainOptions, "segment_seconds", 1e-5, "--segment-seconds: expected at least 6.25e-05, got 1e-05"),
        (DistillOptions, "kd_warmup", -1, "--kd-warmup: expected at least 0, got -1"),
        (DistillOptions, "loss", (), "--loss: expected none, or one or more losses; got nothing"),
        (PrepareOptions, "count", 0, "--count: expected more than 0, got 0"),
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
