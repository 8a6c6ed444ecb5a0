"""Metrics against known values."""

import math
import sys
from itertools import pairwise

import numpy as np
import pesq
import pystoi
import pytest
import torch
from made_audio import noise_like, speech_like

from abckd_dns.evaluation import composite, metrics
from abckd_dns.evaluation.intervals import mean_interval, paired_difference
from abckd_dns.evaluation.metrics import METRICS, pesq_wideband, si_sdr, split_at_silence, stoi
from abckd_dns.evaluation.pesq_process import PesqProcess

SPEECH = torch.from_numpy(speech_like(4, 0))
NOISE = torch.from_numpy(noise_like(4, 0))


def test_sisdr_of_orthogonal_noise():
    time = torch.arange(16_000, dtype=torch.float64) / 16_000
    target, noise = torch.sin(2 * math.pi * 100 * time), torch.sin(2 * math.pi * 200 * time)
    assert si_sdr(target + 0.1 * noise, target) == pytest.approx(20, abs=1e-6)
    assert si_sdr(5 * (target + 0.1 * noise), target) == pytest.approx(20, abs=1e-6)
    assert si_sdr(-target + 1.0 * noise, target) == pytest.approx(0, abs=1e-6)


def test_sisdr_in_blocks_is_that_of_the_whole(monkeypatch):
    noisy = SPEECH + 0.3 * NOISE
    whole = si_sdr(noisy, SPEECH)
    monkeypatch.setattr(metrics, "_LONGEST", 7_000)
    assert si_sdr(noisy, SPEECH) == pytest.approx(whole, abs=1e-6)
    assert si_sdr(SPEECH, SPEECH) > 200


def test_pesq_of_the_reference_itself_is_the_maximum():
    assert pesq_wideband(SPEECH, SPEECH) == pytest.approx(4.64, abs=0.01)
    assert pesq_wideband(SPEECH + NOISE, SPEECH) < 2


@pytest.mark.parametrize("extended", [False, True])
def test_stoi_of_the_reference_itself_is_one(extended):
    assert stoi(SPEECH, SPEECH, extended) == pytest.approx(1, abs=1e-6)
    assert stoi(SPEECH + NOISE, SPEECH, extended) < 0.9


def test_values_are_those_of_the_packages():
    noisy = SPEECH + 0.3 * NOISE
    expected = {
        "PESQ-WB": pesq.pesq(16_000, SPEECH.numpy(), noisy.numpy(), "wb"),
        "STOI": pystoi.stoi(SPEECH.numpy(), noisy.numpy(), 16_000),
        "ESTOI": pystoi.stoi(SPEECH.numpy(), noisy.numpy(), 16_000, extended=True),
    }
    found = {
        name: value for metric in ("pesq", "stoi", "estoi") for name, value in METRICS[metric](noisy, SPEECH).items()
    }
    assert found == pytest.approx(expected, abs=1e-4)
    assert found["ESTOI"] < found["STOI"]


def test_dnsmos_is_that_of_the_package():
    dnsmos = pytest.importorskip("speechmos.dnsmos", reason="extra [dnsmos]")
    noisy = torch.from_numpy(speech_like(5, 0) + noise_like(5, 0))
    expected = dnsmos.run(noisy.clamp(-1, 1).numpy(), 16_000)
    found = METRICS["dnsmos"](noisy, None)
    assert found == pytest.approx(
        {f"DNSMOS {part}": expected[f"{part.lower()}_mos"] for part in ("SIG", "BAK", "OVRL", "P808")}, abs=1e-4
    )
    assert METRICS["dnsmos"](torch.from_numpy(speech_like(5, 0)), None)["DNSMOS BAK"] > found["DNSMOS BAK"] + 0.5


@pytest.mark.parametrize("name", [name for name, metric in METRICS.items() if metric.needs_clean])
def test_undefined_values_are_nan(name):
    silence, broken = torch.zeros(16_000), torch.full((16_000,), math.nan)
    for estimate, target in ((silence, silence), (SPEECH, 0 * SPEECH), (broken, SPEECH[:16_000])):
        values, why = METRICS[name].measure(estimate, target)
        assert all(map(math.isnan, values.values())) and why


TOO_SHORT = [("pesq", "1/4 of a second"), ("composite", "PESQ"), ("stoi", "too little")]


@pytest.mark.parametrize(("name", "reason"), TOO_SHORT)
def test_too_short_is_nan(name, reason):
    values, why = METRICS[name].measure(SPEECH[:1_000], SPEECH[:1_000])
    assert all(map(math.isnan, values.values())) and reason in why


def test_segmental_snr_is_limited_and_right_where_it_is_constant():
    noise = torch.from_numpy(noise_like(2, 1))
    assert METRICS["segsnr"](noise + 0.1 * noise, noise)["SegSNR (dB)"] == pytest.approx(20, abs=1e-3)
    assert METRICS["segsnr"](noise, noise)["SegSNR (dB)"] == 35
    assert METRICS["segsnr"](101 * noise, noise)["SegSNR (dB)"] == -10


def test_log_spectral_distance_of_another_level_is_its_decibels():
    noise = torch.from_numpy(noise_like(2, 1))
    assert METRICS["lsd"](noise, noise)["LSD (dB)"] == 0
    assert METRICS["lsd"](10 * noise, noise)["LSD (dB)"] == pytest.approx(20, abs=0.01)


def test_composite_measures_of_the_reference_itself_are_the_highest_and_fall_with_noise():
    def measured(share: float) -> list[float]:
        return list(METRICS["composite"](SPEECH + share * NOISE, SPEECH).values())

    assert measured(0) == [5, 5, 5]
    values = [measured(share) for share in (0, 0.01, 0.1, 0.5)]
    for before, after in pairwise(values):
        assert all(a < b or b == 1 for a, b in zip(after, before, strict=True))


def test_peaks_are_those_of_the_definition():
    """Walked band by band, as the definition does."""
    levels = np.random.default_rng(0).standard_normal((200, 25))
    slopes = np.diff(levels, axis=1)
    found = composite._nearest_peaks(levels, slopes)
    for row in range(200):
        for band in range(24):
            step = 1 if slopes[row, band] > 0 else -1
            at = band
            while 0 <= at < 24 and (slopes[row, at] > 0) == (step > 0):
                at += step
            assert found[row, band] == levels[row, at - step]


def test_predictors_leave_least_of_their_own_frames():
    frames = composite._frames(SPEECH.double().numpy())
    other = composite._frames((SPEECH + 0.3 * NOISE).double().numpy())
    assert composite._likelihood_ratios(frames, frames) == pytest.approx(0, abs=1e-9)
    assert (composite._likelihood_ratios(other, frames) > -1e-9).all()


def test_long_recordings_are_measured_piece_by_piece():
    speech = torch.from_numpy(speech_like(70, 0))
    noisy = speech + 0.3 * torch.from_numpy(noise_like(70, 0))
    pieces = split_at_silence(speech, 30 * 16_000)
    assert [piece.start for piece in pieces[1:]] == [piece.stop for piece in pieces[:-1]]
    assert (pieces[0].start, pieces[-1].stop) == (0, len(speech))
    assert all(piece.stop - piece.start <= 30 * 16_000 for piece in pieces)
    assert all(speech[piece.stop - 800 : piece.stop].abs().max() < 1e-3 for piece in pieces[:-1])
    expected = sum(
        (piece.stop - piece.start) * METRICS["stoi"](noisy[piece], speech[piece])["STOI"] for piece in pieces
    ) / len(speech)
    assert METRICS["stoi"](noisy, speech)["STOI"] == pytest.approx(expected, abs=1e-9)
    assert METRICS["pesq"].measure(noisy, speech)[1] == ""


def test_a_crash_of_pesq_costs_one_value(monkeypatch):
    process = PesqProcess()
    monkeypatch.setattr(PesqProcess, "command", (sys.executable, "-c", "import os; os.abort()"))
    value, why = process(SPEECH.numpy(), SPEECH.numpy())
    assert math.isnan(value) and "PESQ crashed (status -6)" in why
    monkeypatch.undo()
    assert process(SPEECH.numpy(), SPEECH.numpy()) == (pytest.approx(4.64, abs=0.01), "")


def test_interval_of_a_mean():
    values = torch.randn(400, generator=torch.Generator().manual_seed(0)).tolist()
    interval = mean_interval([*values, math.nan, math.inf])
    assert interval.mean == pytest.approx(sum(values) / 400)
    assert interval.margin == pytest.approx(1.96 * torch.tensor(values).std().item() / 20, rel=0.1)
    assert interval.low < interval.mean < interval.high
    assert (interval.defined, interval.undefined) == (400, 2)


def test_interval_covers_the_true_mean_as_often_as_it_says():
    rng = np.random.default_rng(0)
    intervals = [mean_interval(rng.exponential(size=40).tolist(), resamples=400) for _ in range(300)]
    covered = np.mean([interval.low <= 1 <= interval.high for interval in intervals])
    assert 0.88 < covered < 0.98


def test_one_value_has_no_interval_and_none_no_mean():
    one, none = mean_interval([2.0, math.nan]), mean_interval([math.nan])
    assert one.mean == 2 and math.isnan(one.margin) and one.undefined == 1
    assert math.isnan(none.mean) and math.isnan(none.margin)


def test_paired_difference_ignores_what_pairs_share():
    rng = np.random.default_rng(0)
    baseline = 10 * rng.standard_normal(100)
    better = baseline + 0.5 + 0.1 * rng.standard_normal(100)
    better[3] = math.nan
    difference = paired_difference(better.tolist(), baseline.tolist())
    assert 0.4 < difference.low < 0.5 < difference.high < 0.6
    assert difference.undefined == 1
    assert mean_interval(baseline.tolist()).margin > 1
