"""The rig of studies/abc on made audio: nothing is downloaded."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch

from studies.abc import cache, queue, report, rig, scoring
from studies.abc.losses import LOSSES, build, shapes_of
from studies.abc.package import PRESETS, Denoiser, save_checkpoint
from studies.abc.rig import Run, System, train
from studies.abc.segments import FRAMES, LENGTH, Segments
from studies.abc.views import View, balanced

COUNT, SAMPLES = 6, 24_000


@pytest.fixture(scope="module")
def places(tmp_path_factory) -> queue.Places:
    """Made mixtures, and the cache of a teacher that has learned nothing, interrupted once."""
    found = queue.Places(tmp_path_factory.mktemp("study"))
    found.mixtures.mkdir()
    rng = np.random.default_rng(0)
    for side in ("noisy", "clean"):
        np.save(found.mixtures / f"{side}.npy", (rng.standard_normal((COUNT, SAMPLES)) * 3000).astype(np.int16))
    torch.manual_seed(0)
    checkpoint = found.folder / "teacher.safetensors"
    save_checkpoint(checkpoint, Denoiser(PRESETS["teacher"]))
    teach, layers = cache.own_teacher(checkpoint)
    calls = 0

    def interrupted(noisy):
        nonlocal calls
        calls += 1
        if calls == COUNT + 3:  # behind the pass that finds the principal channels
            raise KeyboardInterrupt
        return teach(noisy)

    with pytest.raises(KeyboardInterrupt):
        cache.make(interrupted, layers, found.mixtures, found.cache("own"), COUNT)
    cache.make(teach, layers, found.mixtures, found.cache("own"), COUNT)
    return found


@pytest.fixture(scope="module")
def own(places) -> cache.Cache:
    return cache.Cache(places.cache("own"))


def segments(places, own) -> Segments:
    return Segments(places.mixtures, own, seed=0, batch_size=2, count=COUNT)


def run_of(loss: str = "none", **changes) -> Run:
    options = dict(teacher="own", regime="labels", weight=0.3, schedule="constant", steps=4, seed=0)
    return Run(loss=loss, **{**options, **changes})


def test_cached_maps_are_those_of_the_teacher(places, own):
    teach, _ = cache.own_teacher(places.folder / "teacher.safetensors")
    noisy = np.load(places.mixtures / "noisy.npy")[3].astype(np.float32) / (2**15 - 1)
    output, features = teach(noisy)
    first = own.maps([3], [10], FRAMES)[0][0]
    wanted = features["encoder.0"].square().mean(0)[10 : 10 + FRAMES]
    torch.testing.assert_close(first, wanted, rtol=2e-3, atol=1e-3)
    np.testing.assert_allclose(own.output(3, 0, 100) / (2**15 - 1), output[:100], atol=1e-4)


def test_principal_channels_keep_the_inner_products(places, own):
    teach, layers = cache.own_teacher(places.folder / "teacher.safetensors")
    noisy = np.load(places.mixtures / "noisy.npy")[2].astype(np.float32) / (2**15 - 1)
    x = teach(noisy)[1]["encoder.0"]  # 16 channels: all of it is kept
    kept = own.features([2], [0], FRAMES)[0][0]
    pooled = torch.nn.functional.adaptive_avg_pool2d(x, (x.shape[1], layers[0].feature_bands))[:, :FRAMES]
    torch.testing.assert_close(kept.square().sum(), pooled.square().sum(), rtol=1e-2, atol=0)


def test_batches_depend_on_seed_and_step_alone(places, own):
    one, other = segments(places, own).batch(5), segments(places, own).batch(5)
    assert torch.equal(one.noisy, other.noisy) and torch.equal(one.maps[2], other.maps[2])
    assert one.noisy.shape == (2, LENGTH)
    assert not torch.equal(one.noisy, segments(places, own).batch(6).noisy)


@pytest.mark.parametrize("name", sorted(LOSSES))
def test_losses_are_finite_for_noise_and_silence(name, places, own):
    torch.manual_seed(1)
    shapes = shapes_of(Denoiser(PRESETS["student"]), own)
    loss = build(name, shapes)
    batch = segments(places, own).batch(0)
    for silent in (False, True):
        own_features = [
            torch.randn(2, channels, FRAMES, bands) * (not silent)
            for channels, bands in zip(shapes.student_channels, shapes.student_bands, strict=True)
        ]
        for x in own_features:
            x.requires_grad_()
        output = (batch.noisy * (not silent)).clone().requires_grad_()
        view = View(own_features, batch.maps, batch.features, output, batch.response, batch.clean)
        if loss.preparation:
            assert torch.isfinite(loss.prepare_step(view))
        value = loss(view)
        value.backward()
        gradients = [x.grad for x in (*own_features, output) if x.grad is not None]
        assert torch.isfinite(value) and all(torch.isfinite(x).all() for x in gradients)
        assert silent or any(x.abs().sum() > 0 for x in gradients)


def test_balanced_attention_teaches_every_layer():
    mask = torch.tensor([[1, 1, 0, 0, 0], [1, 1, 0, 0, 0], [1, 1, 0, 0, 0], [0, 0, 1, 1, 1]]).bool()
    attention = balanced(torch.randn(2, 4, 5) * 5, mask, rounds=60)
    torch.testing.assert_close(attention.sum(-1), torch.ones(2, 4))
    torch.testing.assert_close(attention.sum(-2)[:, :2], torch.full((2, 2), 1.5), rtol=1e-2, atol=1e-2)
    assert attention[:, ~mask].abs().max() == 0


def test_a_run_that_was_cut_off_ends_as_if_it_had_not_been(places, own, tmp_path, monkeypatch):
    monkeypatch.setattr(rig, "_SAVE_EVERY", 2)
    monkeypatch.setattr(rig, "Segments", lambda mixtures, of, seed: Segments(mixtures, of, seed, 2, COUNT))
    run = run_of("abc_maps")
    train(run, own, places.mixtures, 1.0, tmp_path / "whole")
    terms, calls = System.terms, 0

    def cut(self, batch):
        nonlocal calls
        calls += 1
        if calls == 4:
            raise KeyboardInterrupt
        return terms(self, batch)

    monkeypatch.setattr(System, "terms", cut)
    with pytest.raises(KeyboardInterrupt):
        train(run, own, places.mixtures, 1.0, tmp_path / "cut")
    monkeypatch.setattr(System, "terms", terms)
    train(run, own, places.mixtures, 1.0, tmp_path / "cut")
    whole, resumed = (torch.load(tmp_path / name / "average.pt") for name in ("whole", "cut"))
    assert all(torch.equal(x, resumed[name]) for name, x in whole.items())


def test_the_queue_does_a_run_once(places, tmp_path, monkeypatch):
    monkeypatch.setattr(queue, "RESULTS", tmp_path)
    file = tmp_path / "queue.toml"
    file.write_text(
        '[defaults]\nteachers = "own"\nregimes = "labels"\nweights = 0.3\nschedules = "constant"\nsteps = 4\n'
        'seeds = 0\nlr = 1e-3\n[[runs]]\nlosses = ["none", "at_pairs"]\nseeds = [0, 1]\n[[runs]]\nlosses = "none"\n'
    )
    runs = queue.load(file)
    assert [(run.loss, run.seed) for run in runs] == [("none", 0), ("at_pairs", 0), ("none", 1), ("at_pairs", 1)]
    done = []
    monkeypatch.setattr(queue, "_do", lambda run, _: done.append(run) or _record(run, tmp_path))
    queue._work(file, places)
    queue._work(file, places)
    assert done == runs
    assert [queue.run_of(row) for row in scoring.read(tmp_path / "runs.csv")] == runs
    assert "at_pairs" in report.table(tmp_path)


def _record(run: Run, folder: Path) -> None:
    rows = [dict.fromkeys(scoring.COLUMNS, 1.0 + index) for index in range(3)]
    table = scoring.read(folder / "runs.csv")
    scoring.write(folder / "runs.csv", [*table, queue.formatted(queue.asdict(run))])
    queue._append_utterances(run, rows)
