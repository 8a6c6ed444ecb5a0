"""The command `denoise`, and arrays from Python."""

import re

import numpy as np
import pytest
import soundfile
import torch
from made_audio import noise_like, speech_like, write_wav
from made_networks import SMALL, lively
from own_networks import small

import abckd_dns
from abckd_dns.cli import main
from abckd_dns.errors import InputError
from abckd_dns.evaluation import enhance as module
from abckd_dns.evaluation.enhance import enhance, enhance_blocks
from abckd_dns.network.load import save_checkpoint
from abckd_dns.network.streaming import StreamingDenoiser


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory) -> str:
    path = tmp_path_factory.mktemp("small") / "model.safetensors"
    save_checkpoint(path, lively(SMALL))
    return str(path)


def denoise(checkpoint, source, target, *more):
    main(["denoise", "--checkpoint", checkpoint, "--input", str(source), "--output", str(target), *more])


@pytest.mark.parametrize("sizes", [(100, 3_000, 12_900), (256,), (10,), (512, 0, 7), (15_999, 1)])
@pytest.mark.parametrize("stream", [False, True])
def test_blocks_give_what_the_whole_gives(sizes, stream):
    network, noisy = lively(SMALL), torch.from_numpy(np.stack([noise_like(1, 0), speech_like(1, 1)]))[:, : sum(sizes)]
    with torch.inference_mode():
        whole = network(noisy)
    network = StreamingDenoiser(network) if stream else network
    blocks = torch.cat(list(enhance_blocks(network, noisy.split(list(sizes), dim=-1))), dim=-1)
    torch.testing.assert_close(blocks, whole, atol=1e-5, rtol=0)


def test_many_steps_at_once_are_steps():
    network, samples = StreamingDenoiser(lively(SMALL)), torch.from_numpy(noise_like(1, 0))[None, : 256 * 9]
    with torch.inference_mode():
        state, expected = network.initial_state(), []
        for part in samples.split(256, dim=-1):
            output, state = network.step(part, state)
            expected.append(output)
        found, after = network.steps(samples, network.initial_state())
    torch.testing.assert_close(found, torch.cat(expected, dim=-1), atol=1e-5, rtol=0)
    assert after.keys() == state.keys()
    for name in state:
        torch.testing.assert_close(after[name], state[name], atol=1e-5, rtol=0)


def test_networks_without_state_take_windows_that_fade(monkeypatch, capsys):
    monkeypatch.setattr(module, "_WINDOW", 4_096)
    monkeypatch.setattr(module, "_OVERLAP", 1_024)
    noisy = torch.from_numpy(noise_like(1, 0))
    network = small().eval()
    found = enhance(network, noisy)
    with torch.inference_mode():
        whole = network(noisy[None])[0]
    assert found.shape == noisy.shape
    inside = torch.ones_like(noisy, dtype=torch.bool)
    for start in range(3_072, 16_000, 3_072):  # at the ends of a window a convolution lacks what lies beyond
        inside[start - 64 : start + 1_088] = False
    torch.testing.assert_close(found[inside], whole[inside], atol=1e-5, rtol=0)


def test_a_folder_goes_on_after_a_bad_file(checkpoint, tmp_path, capsys):
    for name in ("a.wav", "deep/b.wav", "c.flac"):
        write_wav(tmp_path / "in" / name, speech_like(0.5, 0))
    (tmp_path / "in" / "bad.wav").write_bytes(b"")
    soundfile.write(tmp_path / "in" / "nan.wav", np.full(1_000, np.nan), 16_000, subtype="FLOAT")
    with pytest.raises(SystemExit) as stopped:
        denoise(checkpoint, tmp_path / "in", tmp_path / "in" / "out")
    assert re.search(r"2 of 5 recordings .*bad.wav: it is empty; .*nan.wav: it has samples", str(stopped.value))
    assert "3 of 5 recordings denoised" in capsys.readouterr().out
    out = tmp_path / "in" / "out"
    made = sorted(path.relative_to(out).as_posix() for path in out.rglob("*.*"))
    assert made == ["a.wav", "c.flac", "deep/b.wav"]
    (tmp_path / "in" / "bad.wav").unlink()
    (tmp_path / "in" / "nan.wav").unlink()
    denoise(checkpoint, tmp_path / "in", tmp_path / "in" / "out")  # its own output is no input
    assert "3 of 3 recordings denoised" in capsys.readouterr().out


def test_a_network_that_fails_on_one_recording(tmp_path, capsys):
    write_wav(tmp_path / "in" / "a.wav", speech_like(0.5, 0))
    write_wav(tmp_path / "in" / "loud.wav", np.ones(1_000, np.float32))
    with pytest.raises(SystemExit, match=r"1 of 2 recordings .*in/loud.wav: RuntimeError: too loud"):
        denoise("own_networks:fails_when_loud", tmp_path / "in", tmp_path / "out")
    assert [path.name for path in (tmp_path / "out").iterdir()] == ["a.wav"]


def test_places(checkpoint, tmp_path):
    source = write_wav(tmp_path / "in" / "a.wav", speech_like(0.5, 0))
    (tmp_path / "out").mkdir()
    denoise(checkpoint, source, tmp_path / "out")
    assert (tmp_path / "out" / "a.wav").is_file()
    for given, made, message in (
        (source.parent, source.parent, "is --input itself"),
        (source, source, "is the recording itself"),
        (source, source.parent, "is the recording itself"),
        (source.parent, tmp_path / "out" / "a.wav", "expected a folder"),
        (tmp_path / "nothing", tmp_path / "out", "does not exist"),
        (source, tmp_path / "a.xyz", "is no audio format"),
    ):
        with pytest.raises(SystemExit, match=message):
            denoise(checkpoint, given, made)


def test_two_recordings_that_would_become_one_file(checkpoint, tmp_path):
    write_wav(tmp_path / "in" / "a.wav", speech_like(0.5, 0))
    soundfile.write(tmp_path / "in" / "a.mp3", np.stack([speech_like(0.5, 0)] * 2, 1), 16_000)
    (tmp_path / "in" / "a.mp3").rename(tmp_path / "in" / "a.m4a")  # what nothing writes
    denoise(checkpoint, tmp_path / "in", tmp_path / "out")
    assert sorted(path.name for path in (tmp_path / "out").iterdir()) == ["a.m4a.wav", "a.wav"]


def test_output_beyond_full_scale_is_said(tmp_path, capsys):
    samples = speech_like(0.5, 0)
    source = write_wav(tmp_path / "in.wav", 0.9 * samples / np.abs(samples).max())
    denoise("own_networks:louder", source, tmp_path / "out.wav")
    assert re.search(r"out.wav: \d+ of 8000 values beyond full scale, up to 1.80; they were", capsys.readouterr().err)
    denoise("own_networks:louder", source, tmp_path / "out.wav", "--scale-down")
    assert "the whole was scaled down" in capsys.readouterr().err
    assert np.abs(soundfile.read(tmp_path / "out.wav")[0]).max() == pytest.approx(0.999, abs=1e-3)


def test_arrays(checkpoint):
    sound = np.stack([speech_like(0.7, seed, 44_100) for seed in range(2)], 1)
    both = abckd_dns.enhance(sound, 44_100, checkpoint)
    assert both.shape == sound.shape and both.dtype == np.float32
    alone = abckd_dns.enhance(sound[:, 1].astype(np.float64), 44_100, lively(SMALL))
    assert alone.dtype == np.float64
    np.testing.assert_allclose(alone, both[:, 1], atol=1e-5)
    whole = abckd_dns.enhance((sound[:, 1] * 32_768).astype(np.int16), 44_100, checkpoint)
    assert whole.dtype == np.int16
    np.testing.assert_allclose(whole / 32_768, alone, atol=2e-4)


@pytest.mark.parametrize(
    ("array", "rate", "message"),
    [
        (np.zeros((2, 3, 4)), 16_000, r"array: expected samples .* got shape \(2, 3, 4\)"),
        (np.zeros(0), 16_000, "array: expected samples"),
        (np.zeros(10, np.uint8), 16_000, "array: expected floating-point or signed integer samples, got uint8"),
        (np.zeros(10), 0, "rate: expected a whole number of Hz, got 0"),
        (np.full(10, np.nan), 16_000, "array: it has samples that are not finite"),
    ],
)
def test_arrays_that_make_no_sense(checkpoint, array, rate, message):
    with pytest.raises(InputError, match=message):
        abckd_dns.enhance(array, rate, checkpoint)
