"""Measuring while training: the best network, early stops, averaged weights, fine-tuning, more steps, moved data."""

import json
import shutil

import numpy as np
import pytest
import safetensors.torch
import torch
from made_audio import RATE, changed, data_arguments, noise_like, speech_like, write_wav
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from abckd_dns.cli import main
from abckd_dns.network.load import load_network
from abckd_dns.options import TrainOptions
from abckd_dns.training.averaging import Average
from abckd_dns.training.validation import Validation

STEPS = 12


@pytest.fixture(scope="module")
def pairs(tmp_path_factory):
    root = tmp_path_factory.mktemp("valid")
    for index in range(4):
        speech = speech_like(1.2, 40 + index)
        write_wav(root / "clean" / f"{index}.wav", speech)
        write_wav(root / "noisy" / f"{index}.wav", speech + noise_like(1.2, index))
    return root


def arguments(folders, out, *more, preset="own_networks:tiny"):
    shape = f"--steps {STEPS} --batch-size 2 --segment-seconds 0.2 --workers 0 --log-every 3 --save-every 4".split()
    return changed(["train", "--preset", preset, "--out", str(out), *data_arguments(folders), *shape], *more)


def valid(pairs, *more):
    return ["--valid", str(pairs), "--valid-every", "3", "--valid-count", "3", "--valid-pesq", "1", *more]


def weights(path):
    return safetensors.torch.load_file(path)


def scalars(run):
    log = EventAccumulator(str(next(run.rglob("events.out.*")).parent)).Reload()
    return {tag: [(event.step, event.value) for event in log.Scalars(tag)] for tag in log.Tags()["scalars"]}


def test_a_run_is_measured_and_keeps_the_best(folders, pairs, tmp_path, capsys):
    main(arguments(folders, tmp_path / "run", *valid(pairs)))
    run = tmp_path / "run"
    found = scalars(run)
    steps = [step for step, _ in found["valid/loss"]]
    assert steps == [3, 6, 9, 12] == [step for step, _ in found["valid/si-sdr"]]
    assert 1 < found["valid/pesq"][0][1] < 4.7
    best = json.loads((run / "finished.json").read_text())["best"]
    value, step = min((value, step) for step, value in found["valid/loss"])
    assert best["step"] == step and best["value"] == pytest.approx(value, rel=1e-5)
    printed = capsys.readouterr()
    assert f"best.safetensors     the best one by --valid, of step {step}" in printed.out
    assert f"abckd-dns evaluate --checkpoints {run / 'best.safetensors'}" in printed.out
    # No terminal: a line for every entry.
    lines = [line for line in printed.err.splitlines() if line.startswith("run: step")]
    assert [line.split()[2] for line in lines] == ["3", "4", "6", "8", "9", "12"]
    assert "valid si-sdr" in lines[0] and "valid" not in lines[1]
    for name in ("model.safetensors", "best.safetensors", "config.json", "finished.json"):
        assert (run / name).stat().st_mode & 0o777 == 0o666 & ~_umask()


def _umask():
    import os

    mask = os.umask(0)
    os.umask(mask)
    return mask


def test_measuring_changes_nothing_that_is_learned(folders, pairs, tmp_path):
    main(arguments(folders, tmp_path / "a", preset="own_networks:random"))
    main(arguments(folders, tmp_path / "b", *valid(pairs), preset="own_networks:random"))
    a, b = (weights(tmp_path / name / "model.safetensors") for name in "ab")
    assert all(torch.equal(a[name], b[name]) for name in a)


class Killed(BaseException):
    pass


def test_a_killed_run_ends_as_the_unbroken_one(folders, pairs, tmp_path, monkeypatch):
    more = [*valid(pairs), "--ema", "0.9", "--accumulate", "2", "--augment", "clip=0.5", "level=0.5"]
    main(arguments(folders, tmp_path / "a", *more))
    from abckd_dns.data import mixtures

    make, count = mixtures.Mixtures.__getitem__, [0]

    def until(self, index):
        count[0] += 1
        if count[0] == 2 * 2 * 10 + 1:  # of 12 steps; the last state is of step 8, the last measurement of step 9
            raise Killed
        return make(self, index)

    with monkeypatch.context() as patch:
        patch.setattr(mixtures.Mixtures, "__getitem__", until)
        with pytest.raises(Killed):
            main(arguments(folders, tmp_path / "b", *more))
    main(arguments(folders, tmp_path / "b", *more))
    for name in ("model.safetensors", "best.safetensors"):
        a, b = (weights(tmp_path / run / name) for run in "ab")
        assert all(torch.equal(a[key], b[key]) for key in a), name
    a, b = (json.loads((tmp_path / run / "finished.json").read_text()) for run in "ab")
    assert a == b


def test_patience(folders, pairs, tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(Validation, "is_better", lambda self, values, best: best is None)
    more = valid(pairs, "--patience", "2")
    main(arguments(folders, tmp_path / "run", *more))
    assert "9 steps are done of 12: --patience 2 has ended" in capsys.readouterr().out
    assert json.loads((tmp_path / "run" / "finished.json").read_text())["best"]["step"] == 3
    main(arguments(folders, tmp_path / "run", *more))
    assert "is finished: 9 steps are done" in capsys.readouterr().out


def test_more_steps(folders, tmp_path, capsys):
    main(arguments(folders, tmp_path / "run"))
    before = weights(tmp_path / "run" / "model.safetensors")
    main(arguments(folders, tmp_path / "run", "--steps", "18"))
    assert f"continues after step {STEPS}" in capsys.readouterr().out
    after = weights(tmp_path / "run" / "model.safetensors")
    assert not all(torch.equal(before[name], after[name]) for name in before)
    assert scalars(tmp_path / "run")["lr"][-2][1] > 0
    with pytest.raises(SystemExit, match="another --steps: 18 there, 12 here"):
        main(arguments(folders, tmp_path / "run"))


def test_init(folders, tmp_path):
    main(arguments(folders, tmp_path / "a"))
    start = weights(tmp_path / "a" / "model.safetensors")
    fine = ["--init", str(tmp_path / "a"), "--lr", "1e-9"]
    main(arguments(folders, tmp_path / "b", *fine))
    no_preset = [
        part for part in arguments(folders, tmp_path / "c", *fine) if part not in ("--preset", "own_networks:tiny")
    ]
    main(no_preset)  # the network of the checkpoint
    for run in "bc":
        found = weights(tmp_path / run / "model.safetensors")
        name = "encoder.0.0.weight"
        torch.testing.assert_close(found[name], start[name], atol=1e-6, rtol=0)
    with pytest.raises(SystemExit, match="--init: the weights in .* do not fit the network"):
        main(arguments(folders, tmp_path / "d", *fine, preset="student"))


def test_data_that_moved(folders, tmp_path, monkeypatch):
    shutil.copytree(folders, tmp_path / "here")
    run = tmp_path / "run"
    main(arguments(tmp_path / "here", run))
    (tmp_path / "here").rename(tmp_path / "there")
    longer = arguments(tmp_path / "there", run, "--steps", "14")
    with pytest.raises(SystemExit, match="another --clean: .*here.*--data-moved says that the data is the same"):
        main(longer)
    shutil.copy(tmp_path / "there/noise/freesound/n0.wav", tmp_path / "there/noise/freesound/n9.wav")
    with pytest.raises(SystemExit, match="--noise: the run in .* has learned from other files: 4 files, .* 5 files"):
        main([*longer, "--data-moved"])
    (tmp_path / "there/noise/freesound/n9.wav").unlink()
    main([*longer, "--data-moved"])
    assert json.loads((run / "config.json").read_text())["clean"] == str(tmp_path / "there" / "clean")


def test_accumulated_batches_are_one_large_batch(folders, tmp_path):
    """For a network without batch statistics, up to rounding."""
    shape = ["--steps", "3", "--lr", "0.01"]
    main(arguments(folders, tmp_path / "a", *shape, "--batch-size", "4", preset="own_networks:small"))
    main(arguments(folders, tmp_path / "b", *shape, "--accumulate", "2", preset="own_networks:small"))
    main(arguments(folders, tmp_path / "c", *shape, preset="own_networks:small"))
    a, b, c = (weights(tmp_path / name / "model.safetensors")["features.weight"] for name in "abc")
    torch.testing.assert_close(a, b, atol=2e-4, rtol=0)
    assert (a - c).abs().max() > 1e-3


def test_average():
    network = torch.nn.Linear(2, 1, bias=False)
    average = Average(network, 0.5)
    with torch.no_grad():
        network.weight.fill_(3.0)
    before = average.state()["weight"].clone()
    average.update(1)
    decay = min(0.5, 2 / 11)
    torch.testing.assert_close(average.state()["weight"], decay * before + (1 - decay) * 3)
    with average.applied():
        assert torch.equal(network.weight, average.state()["weight"])
    assert (network.weight == 3).all()
    without = Average(network, 0.0)
    with without.applied():
        assert (network.weight == 3).all()


def test_a_network_that_blew_up_is_no_best(pairs, tmp_path):
    validation = Validation(TrainOptions(out=tmp_path, valid=pairs, valid_pesq=0))
    network = load_network("own_networks:tiny", "--preset")
    good = validation.measure(network)
    with torch.no_grad():
        network.mask.bias.fill_(float("nan"))
    bad = validation.measure(network)
    assert np.isfinite(good["loss"]) and np.isnan(bad["loss"])
    assert validation.is_better(good, None) and not validation.is_better(bad, None)
    assert validation.is_better(good, good["loss"] + 1) and not validation.is_better(good, good["loss"] - 1)
    assert network.training


def test_prepared_mixtures_are_measured_on(folders, tmp_path):
    main(
        ["prepare", *data_arguments(folders), "--out", str(tmp_path / "p"), "--count", "5", "--segment-seconds", "0.5"]
    )
    validation = Validation(TrainOptions(out=tmp_path, valid=tmp_path / "p", valid_pesq=0, valid_count=3))
    assert [len(noisy) for noisy, _ in validation.examples] == [RATE // 2] * 3


def test_compile_compiles_the_system(folders, tmp_path, monkeypatch):
    compiled = []
    monkeypatch.setattr(torch.nn.Module, "compile", lambda self: compiled.append(type(self).__name__))
    main(arguments(folders, tmp_path / "run", "--compile"))
    assert compiled == ["Supervised"]
