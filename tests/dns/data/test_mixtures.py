"""Reading, mixing, and the datasets."""

import math
import warnings

import numpy as np
import pytest
import torch
from made_audio import noise_like, speech_like, write_wav
from torch.utils.data import DataLoader

from abckd_dns.data import audio
from abckd_dns.data.mixing import level_dbfs, mix, reverberate
from abckd_dns.data.mixtures import Mixtures, NoisySpeech, PartlyLabelled, SegmentPool
from abckd_dns.errors import InputError
from abckd_dns.options import MixtureOptions


def mixtures(folders, **options):
    arguments = dict(clean=folders / "clean", noise=folders / "noise") | options
    return Mixtures(MixtureOptions(**arguments), length=8_000, count=32, seed=3)


@pytest.mark.parametrize("snr", [-5.0, 0.0, 12.5])
def test_mixture_has_the_snr_and_the_level(snr):
    speech, noise = torch.from_numpy(speech_like(2, 0)), torch.from_numpy(noise_like(2, 1)) * 0.01
    noisy, clean = mix(speech, noise, snr, level=-25)
    assert level_dbfs(clean) - level_dbfs(noisy - clean) == pytest.approx(snr, abs=0.01)
    assert level_dbfs(noisy) == pytest.approx(-25, abs=0.01)


def test_mixture_stays_within_full_scale():
    speech, noise = torch.zeros(8_000), 0.01 * torch.randn(8_000)
    speech[100] = 1.0
    noisy, clean = mix(speech, noise, 10, level=-10)
    assert noisy.abs().max() == pytest.approx(0.99, abs=1e-4)
    assert level_dbfs(clean) - level_dbfs(noisy - clean) == pytest.approx(10, abs=0.01)


def test_level_of_known_signals():
    assert level_dbfs(torch.full((100,), 0.1)) == pytest.approx(-20, abs=1e-4)
    assert level_dbfs(torch.zeros(100)) == -100
    assert level_dbfs(torch.zeros(0)) == -100


def test_reverberation_starts_at_the_direct_sound():
    speech = torch.randn(4_000)
    delayed = torch.zeros(500)
    delayed[200] = -0.5
    torch.testing.assert_close(reverberate(speech, delayed), -speech, rtol=1e-3, atol=1e-3)


def test_long_room_responses_are_read_from_their_start(folders, tmp_path):
    response = np.zeros(48_000, np.float32)
    response[10] = 0.5  # a copy of the speech; what comes later would not be
    response[20_000:] = noise_like(1.75, 0)
    write_wav(tmp_path / "long.wav", response)
    wet, dry = mixtures(folders, rirs=tmp_path), mixtures(folders, rirs=None)
    for index in range(8):
        correlation = torch.corrcoef(torch.stack([wet[index]["clean"], dry[index]["clean"]]))[0, 1]
        assert correlation > 0.999


def test_a_room_response_of_several_channels_is_one_of_them(folders, tmp_path):
    """Microphones lie at other distances: the mean of their responses is a comb."""
    responses = np.zeros((4_000, 3), np.float32)
    for channel, delay in enumerate((100, 900, 1_700)):
        responses[delay, channel] = 0.5
    write_wav(tmp_path / "array.wav", responses)
    wet, dry = mixtures(folders, rirs=tmp_path), mixtures(folders, rirs=None)
    for index in range(8):
        correlation = torch.corrcoef(torch.stack([wet[index]["clean"], dry[index]["clean"]]))[0, 1]
        assert correlation > 0.999


def test_dataset_makes_mixtures_from_nested_folders(folders):
    dataset = mixtures(folders, snr=(3, 3), rirs=folders / "rirs")
    for index in range(len(dataset)):
        example = dataset[index]
        assert example["noisy"].shape == example["clean"].shape == (8_000,)
        noise = example["noisy"] - example["clean"]
        assert level_dbfs(example["clean"]) - level_dbfs(noise) == pytest.approx(3, abs=0.05)


def test_same_seed_same_examples_whatever_the_workers(folders):
    alone = list(DataLoader(mixtures(folders), batch_size=4, num_workers=0))
    helped = list(DataLoader(mixtures(folders), batch_size=4, num_workers=2))
    for a, b in zip(alone, helped, strict=True):
        assert torch.equal(a["noisy"], b["noisy"])
    other_seed = mixtures(folders)
    other_seed.seed = 4
    assert not torch.equal(other_seed[0]["noisy"], mixtures(folders)[0]["noisy"])
    assert not torch.equal(mixtures(folders)[1]["noisy"], mixtures(folders)[0]["noisy"])


def test_corrupt_file_is_reported_once_skipped_and_counted(tmp_path):
    for index in range(9):
        write_wav(tmp_path / f"{index}.wav", speech_like(1, index))
    (tmp_path / "broken.wav").write_bytes(b"RIFF nothing of the kind")
    pool = SegmentPool(tmp_path, "--clean", max_corrupt=0.1)
    rng = np.random.default_rng(0)
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        for _ in range(100):
            pool.draw(1_000, rng)
    assert [str(w.message) for w in caught if "broken.wav" in str(w.message)] != []
    assert len(caught) == 1
    assert pool.corrupt_count == 1


def test_too_many_corrupt_files_stop_the_run(folders, tmp_path):
    write_wav(tmp_path / "good.wav", speech_like(1, 0))
    (tmp_path / "empty.wav").touch()
    (tmp_path / "broken.flac").write_bytes(b"x" * 100)
    write_wav(tmp_path / "no_samples.wav", np.zeros(0, np.float32))
    loader = DataLoader(mixtures(folders, clean=tmp_path), batch_size=4)
    with (
        pytest.raises(InputError, match=r"--clean: \d of 4 files .* --max-corrupt 0.1"),
        warnings.catch_warnings(),
    ):
        warnings.simplefilter("ignore")
        list(loader)


def test_not_finite_samples_are_corrupt(tmp_path):
    samples = speech_like(1, 0)
    samples[50] = math.nan
    path = tmp_path / "nan.wav"
    audio.soundfile.write(path, samples, 16_000, subtype="FLOAT")
    with pytest.raises(InputError, match="nan.wav.*not finite"):
        audio.read_segment(path, 8_000, 0.0)


def test_silent_segments_are_rejected(folders, tmp_path):
    quiet_then_loud = np.concatenate([np.zeros(48_000, np.float32), speech_like(3, 0)])
    write_wav(tmp_path / "half.wav", quiet_then_loud)
    dataset = mixtures(folders, clean=tmp_path, snr=(0, 0), level=(-25, -25))
    levels = [level_dbfs(dataset[index]["clean"]) for index in range(20)]
    assert min(levels) > -32  # at 0 dB the clean part lies 3 dB below the mixture


def test_only_silence_is_an_error(folders, tmp_path):
    write_wav(tmp_path / "silence.wav", np.zeros(16_000, np.float32))
    for argument in ("clean", "noise"):
        with pytest.raises(InputError, match=f"--{argument}: .* below"):
            mixtures(folders, **{argument: tmp_path})[0]


def test_short_speech_is_padded_and_short_noise_repeated(tmp_path):
    write_wav(tmp_path / "clean" / "short.wav", speech_like(0.2, 0))
    write_wav(tmp_path / "noise" / "short.wav", noise_like(0.2, 0))
    example = mixtures(tmp_path)[0]
    noise = example["noisy"] - example["clean"]
    assert (example["clean"] == 0).sum() > 8_000 - 3_300
    torch.testing.assert_close(noise[:3_200], noise[3_200:6_400], rtol=0, atol=1e-6)


@pytest.mark.parametrize("rate", [8_000, 11_025, 22_050, 44_100, 44_099, 48_000])
def test_any_rate_gives_the_same_tone(tmp_path, rate):
    tone = np.sin(2 * np.pi * 1_000 * np.arange(rate) / rate).astype(np.float32)
    path = write_wav(tmp_path / "tone.wav", 0.5 * tone, rate)
    segment = audio.read_segment(path, 8_000, 0.0)
    assert segment.shape == (8_000,)
    spectrum = torch.fft.rfft(segment * torch.hann_window(8_000)).abs()
    assert spectrum.argmax().item() * 2 == pytest.approx(1_000, abs=2)
    assert segment[1_000:7_000].abs().max() == pytest.approx(0.5, abs=0.01)


def test_segment_position(tmp_path):
    ramp = np.arange(16_000, dtype=np.float32) / 16_000
    path = tmp_path / "ramp.wav"
    audio.soundfile.write(path, ramp, 16_000, subtype="FLOAT")
    assert torch.equal(audio.read_segment(path, 100, 0.0), torch.from_numpy(ramp[:100]))
    assert torch.equal(audio.read_segment(path, 100, np.nextafter(1, 0)), torch.from_numpy(ramp[-100:]))
    assert len(audio.read_segment(path, 20_000, 0.7)) == 16_000


def test_channels_are_averaged(tmp_path):
    left, right = noise_like(0.5, 0), noise_like(0.5, 1)
    path = tmp_path / "stereo.wav"
    audio.soundfile.write(path, np.stack([left, right], 1), 16_000, subtype="FLOAT")
    torch.testing.assert_close(audio.read_segment(path, 8_000, 0.0), torch.from_numpy((left + right) / 2))


def test_noisy_speech_has_no_clean_side(folders):
    dataset = NoisySpeech(folders / "noisy", length=8_000, count=4, seed=0)
    assert set(dataset[0]) == {"noisy"} and dataset[0]["noisy"].shape == (8_000,)
    assert torch.equal(dataset[2]["noisy"], dataset[2]["noisy"])


def test_some_examples_have_clean_speech(folders):
    labelled, unlabelled = mixtures(folders), NoisySpeech(folders / "noisy", length=8_000, count=32, seed=3)
    examples = PartlyLabelled(labelled, unlabelled, noisy_fraction=0.4)
    found = [examples[index] for index in range(32)]
    assert 5 <= sum(not example["has_clean"] for example in found) <= 21
    for index, example in enumerate(found):
        whole = labelled if example["has_clean"] else unlabelled
        assert torch.equal(example["noisy"], whole[index]["noisy"])
        assert example["has_clean"] == bool(example["clean"].any())
    assert torch.equal(examples[5]["noisy"], found[5]["noisy"])
    next(iter(DataLoader(examples, batch_size=32)))  # all have the same keys and shapes


def test_folder_without_audio(folders, tmp_path):
    (tmp_path / "notes.txt").write_text("nothing to hear")
    with pytest.raises(InputError, match="--clean: .* has no audio file"):
        mixtures(folders, clean=tmp_path)
    with pytest.raises(InputError, match="--noise: .* is not a folder"):
        mixtures(folders, noise=tmp_path / "missing")
    with pytest.raises(InputError, match="--noise: a folder is needed"):
        mixtures(folders, noise=None)
    with pytest.raises(InputError, match="--snr: expected the lower bound first"):
        mixtures(folders, snr=(5, -5))
