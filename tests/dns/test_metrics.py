"""Metrics against known values."""

import math

import pytest
import torch
from made_audio import noise_like, speech_like

from abckd_dns.evaluate import format_table
from abckd_dns.metrics import METRICS, mean_and_margin, pesq_wideband, sisdr, stoi

SPEECH = torch.from_numpy(speech_like(4, 0))
NOISE = torch.from_numpy(noise_like(4, 0))


def test_sisdr_of_orthogonal_noise():
    time = torch.arange(16_000, dtype=torch.float64) / 16_000
    target, noise = torch.sin(2 * math.pi * 100 * time), torch.sin(2 * math.pi * 200 * time)
    assert sisdr(target + 0.1 * noise, target) == pytest.approx(20, abs=1e-6)
    assert sisdr(5 * (target + 0.1 * noise), target) == pytest.approx(20, abs=1e-6)
    assert sisdr(-target + 1.0 * noise, target) == pytest.approx(0, abs=1e-6)


def test_pesq_of_the_reference_itself_is_the_maximum():
    assert pesq_wideband(SPEECH, SPEECH) == pytest.approx(4.64, abs=0.01)
    assert pesq_wideband(SPEECH + NOISE, SPEECH) < 2


def test_stoi_of_the_reference_itself_is_one():
    assert stoi(SPEECH, SPEECH) == pytest.approx(1, abs=1e-6)
    assert stoi(SPEECH + NOISE, SPEECH) < 0.9


@pytest.mark.parametrize("metric", METRICS.values())
def test_undefined_values_are_nan(metric):
    assert math.isnan(metric(torch.zeros(16_000), torch.zeros(16_000)))


@pytest.mark.parametrize("metric", [pesq_wideband, stoi])
def test_too_short_is_nan(metric):
    assert math.isnan(metric(SPEECH[:1_000], SPEECH[:1_000]))


def test_mean_and_margin():
    values = torch.randn(400, generator=torch.Generator().manual_seed(0)).tolist()
    mean, margin = mean_and_margin([*values, math.nan])
    assert mean == pytest.approx(sum(values) / 400)
    assert margin == pytest.approx(1.96 * torch.tensor(values).std().item() / 20, rel=0.1)
    assert all(map(math.isnan, mean_and_margin([math.nan])))


def test_table_has_a_row_per_system():
    scores = {name: {metric: [value, value] for metric in METRICS} for name, value in (("noisy", 1.0), ("best", 2.5))}
    lines = format_table(scores).splitlines()
    assert len(lines) == 3 and all(metric in lines[0] for metric in METRICS)
    assert lines[2].startswith("best") and lines[2].split(maxsplit=1)[1].split("  ")[0].strip() == "2.50 ± 0.00"
