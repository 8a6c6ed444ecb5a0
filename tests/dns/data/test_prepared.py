"""Mixtures that were made once."""

import json
import resource

import numpy as np
import pytest
import torch
from made_audio import SHORT, data_arguments

from abckd_dns.cli import main
from abckd_dns.data.mixtures import Mixtures
from abckd_dns.data.prepared import Prepared
from abckd_dns.errors import InputError
from abckd_dns.options import MixtureOptions
from abckd_dns.training.runs import is_finished


@pytest.fixture(scope="module")
def prepared(folders, tmp_path_factory):
    out = tmp_path_factory.mktemp("prepared") / "mixtures"
    main(
        ["prepare", *data_arguments(folders), "--count", "20", "--segment-seconds", "0.5", "--seed", "3"]
        + ["--out", str(out)]
    )
    return out


def test_holds_the_mixtures_of_the_seed(folders, prepared):
    mixtures = Mixtures(MixtureOptions(clean=folders / "clean", noise=folders / "noise"), 8_000, 20, seed=3)
    noisy, clean = (np.load(prepared / f"{name}.npy") for name in ("noisy", "clean"))
    for index in (0, 7, 19):
        np.testing.assert_allclose(noisy[index] / 32767, mixtures[index]["noisy"], atol=2e-5)
        np.testing.assert_allclose(clean[index] / 32767, mixtures[index]["clean"], atol=2e-5)
    assert json.loads((prepared / "manifest.json").read_text())["options"]["seed"] == 3
    assert {path.name for path in prepared.parent.iterdir()} == {"mixtures"}


def test_every_epoch_has_all_mixtures_in_another_order(prepared):
    examples = Prepared(prepared, 8_000, count=60, seed=0)
    stored = np.load(prepared / "noisy.npy")
    rows = [
        int(np.flatnonzero((stored == (examples[i]["noisy"] * 32767).round().numpy()).all(1))[0]) for i in range(60)
    ]
    epochs = [rows[start : start + 20] for start in (0, 20, 40)]
    assert all(sorted(epoch) == list(range(20)) for epoch in epochs)
    assert epochs[0] != epochs[1] != epochs[2] and epochs[0] != list(range(20))
    again = Prepared(prepared, 8_000, count=60, seed=0)
    assert torch.equal(again[33]["clean"], examples[33]["clean"])  # whatever came before
    assert any(not torch.equal(Prepared(prepared, 8_000, 60, seed=1)[i]["noisy"], examples[i]["noisy"]) for i in (0, 1))


def test_shorter_segments_come_from_the_same_place_of_both_sides(prepared):
    examples = Prepared(prepared, 1_000, count=20, seed=0)
    noisy, clean = np.load(prepared / "noisy.npy"), np.load(prepared / "clean.npy")
    starts = set()
    for index in range(20):
        wanted = (examples[index]["noisy"] * 32767).round().numpy().astype(np.int16)
        row, start = next(
            (row, start)
            for row in range(20)
            for start in np.flatnonzero(noisy[row, :7001] == wanted[0])
            if (noisy[row, start : start + 1_000] == wanted).all()
        )
        np.testing.assert_allclose(clean[row, start : start + 1_000] / 32767, examples[index]["clean"], atol=1e-6)
        starts.add(int(start))
    assert len(starts) > 10


@pytest.mark.parametrize("label_free", [False, True])
def test_training_on_them(prepared, runs, tmp_path, label_free):
    main(
        ["distill", "--prepared", str(prepared), "--teacher", str(runs / "teacher"), "--loss", "at"]
        + ["--out", str(tmp_path), *SHORT, *(["--label-free"] if label_free else [])]
    )
    assert is_finished(tmp_path)


def test_half_written_folder_is_noticed(folders, prepared, tmp_path, monkeypatch):
    make, calls = Mixtures.__getitem__, []

    def killed(self, index):
        calls.append(index)
        if index == 17:
            raise KeyboardInterrupt
        return make(self, index)

    start = ["prepare", *data_arguments(folders), "--count", "20", "--segment-seconds", "0.5", "--out"]
    with monkeypatch.context() as patch:
        patch.setattr(Mixtures, "__getitem__", killed)
        with pytest.raises(SystemExit, match="130"):
            main([*start, str(tmp_path / "half")])
    assert not (tmp_path / "half").exists()
    with pytest.raises(InputError, match="half.* is not what `abckd-dns prepare` leaves when it has finished"):
        Prepared(tmp_path / "half.unfinished", 8_000, 1, 0)
    main([*start, str(tmp_path / "half")])
    np.save(tmp_path / "half" / "clean.npy", np.zeros((20, 100), np.int16))
    with pytest.raises(InputError, match=r"clean.npy has int16 \(20, 100\), its manifest says int16 \(20, 8000\)"):
        Prepared(tmp_path / "half", 8_000, 1, 0)


def test_disk_that_is_too_small(folders, tmp_path):
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, hard))  # 6 of 20 mixtures
    try:
        with pytest.raises(SystemExit, match="cannot write .*prepared: "):
            main(["prepare", *data_arguments(folders), "--count", "20", "--segment-seconds", "0.5"]
                 + ["--out", str(tmp_path / "prepared")])  # fmt: skip
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert not (tmp_path / "prepared").exists()


def test_arguments_that_do_not_fit(folders, prepared, tmp_path):
    with pytest.raises(InputError, match="has mixtures of 0.5 s, --segment-seconds wants 1"):
        Prepared(prepared, 16_000, 1, 0)
    start = ["train", "--prepared", str(prepared), "--out", str(tmp_path)]
    with pytest.raises(SystemExit, match="--clean: .*is mixed already"):
        main([*start, *data_arguments(folders)])
    with pytest.raises(SystemExit, match="--count: expected at least 1, got 0"):
        main(["prepare", *data_arguments(folders), "--count", "0", "--out", str(tmp_path / "none")])
    with pytest.raises(SystemExit, match="--out: .* exists"):
        main(["prepare", *data_arguments(folders), "--count", "1", "--out", str(prepared)])
