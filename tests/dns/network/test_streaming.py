"""Step by step is the same as at once."""

import numpy as np
import pytest
import soundfile
import torch
from made_audio import noise_like, speech_like, write_wav
from made_networks import SMALL, lively

from abckd_dns.cli import main
from abckd_dns.network.config import PRESETS
from abckd_dns.network.denoiser import Denoiser
from abckd_dns.network.load import save_checkpoint
from abckd_dns.network.stft import HOP, N_FFT, FrameTransform, Stft, envelope
from abckd_dns.network.streaming import DELAY, LATENCY, StreamingDenoiser, flush


@pytest.fixture(scope="module", params=PRESETS)
def preset(request) -> Denoiser:
    return lively(PRESETS[request.param])


@pytest.mark.parametrize("length", [1, 255, HOP, HOP + 1, 2 * HOP, 16_000, 16_001])
@torch.inference_mode()
def test_equals_the_result_at_once(preset, length):
    noisy = torch.stack([torch.from_numpy(make(1.1, 0)) for make in (speech_like, noise_like)])[:, :length]
    at_once = preset(noisy)
    assert at_once.abs().max() > 1e-3 or length == 1
    torch.testing.assert_close(StreamingDenoiser(preset)(noisy), at_once, rtol=0, atol=1e-5)


@torch.inference_mode()
def test_every_part_matters():
    """The comparison above notices a step that forgets any one of its states."""
    network = lively(SMALL)
    streaming = StreamingDenoiser(network)
    noisy = 0.1 * torch.randn(1, 10 * HOP)
    at_once = network(noisy)
    state = streaming.initial_state()
    assert set(state) == {"samples", "overlap", *network.distillation_layers, "mask"}
    for forgotten in state:
        outputs, state = [], streaming.initial_state()
        for samples in noisy.split(HOP, dim=1):
            output, state = streaming.step(samples, {**state, forgotten: torch.zeros_like(state[forgotten])})
            outputs.append(output)
        assert (torch.cat(outputs, 1)[:, DELAY:] - at_once[:, : 9 * HOP]).abs().max() > 1e-4, forgotten


@torch.inference_mode()
def test_step_is_pure_and_flush_ends_a_sound():
    streaming = StreamingDenoiser(lively(SMALL))
    noisy = 0.1 * torch.randn(2, 2 * HOP + 10)
    states = [streaming.initial_state(2)]
    outputs = []
    for samples in noisy[:, : 2 * HOP].split(HOP, dim=1):
        before = {name: values.clone() for name, values in states[-1].items()}
        output, state = streaming.step(samples, states[-1])
        assert all(torch.equal(values, before[name]) for name, values in states[-1].items())
        assert {name: (v.shape, v.dtype) for name, v in state.items()} == {
            name: (v.shape, v.dtype) for name, v in before.items()
        }
        outputs.append(output)
        states.append(state)
    assert torch.equal(streaming.step(noisy[:, :HOP], states[0])[0], outputs[0])
    buffer = noisy[:, :HOP].clone()
    _, state = streaming.step(buffer, states[0])
    buffer.zero_()
    assert all(torch.equal(values, states[1][name]) for name, values in state.items())
    end = flush(streaming.step, noisy[:, 2 * HOP :], states[-1])
    assert end.shape == (2, HOP + 10)
    torch.testing.assert_close(torch.cat([*outputs, end], 1)[:, DELAY:], streaming(noisy), rtol=0, atol=0)


@torch.inference_mode()
def test_sounds_of_a_batch_do_not_mix():
    streaming = StreamingDenoiser(lively(SMALL))
    noisy = 0.1 * torch.randn(3, 2_000)
    together, alone = streaming(noisy), torch.cat([streaming(sound[None]) for sound in noisy])
    torch.testing.assert_close(together, alone, rtol=0, atol=1e-5)


@torch.inference_mode()
def test_latency_is_what_it_says():
    """An impulse comes out of a mask of 1 DELAY samples later, and no step needs samples beyond its own."""
    network = lively(SMALL)
    network.mask.weight.zero_()
    network.mask.bias.copy_(torch.tensor([20.0, 0.0]))
    streaming = StreamingDenoiser(network)
    noisy = torch.zeros(1, 8 * HOP)
    noisy[0, 700] = 1
    state, outputs = streaming.initial_state(), []
    for samples in noisy.split(HOP, dim=1):
        output, state = streaming.step(samples, state)
        outputs.append(output)
    assert torch.cat(outputs, 1)[0].argmax() == 700 + DELAY
    assert LATENCY == DELAY + HOP


def test_shares_the_weights():
    network = lively(SMALL)
    streaming = StreamingDenoiser(network)
    assert {id(p) for p in streaming.parameters()} == {id(p) for p in network.parameters()}
    assert streaming.state_dict().keys() == {f"denoiser.{name}" for name in network.state_dict()}


@pytest.mark.parametrize("frames", [1, 2, 5])
@torch.inference_mode()
def test_stages_continue_where_they_stopped(frames):
    network = lively(SMALL)
    features = {"encoder.0": (2, 3, 10, 257), "bottleneck": (2, 6, 10, 65), "decoder.0": (2, 6, 10, 65)}
    for name, shape in features.items():
        stage, x = network.stages[name], torch.randn(shape)
        past, outputs = None, []
        for chunk in x.split(frames, dim=2):
            output, past = stage.step(chunk, past)
            outputs.append(output)
        torch.testing.assert_close(torch.cat(outputs, 2), stage(x), rtol=1e-4, atol=1e-5)


def test_frame_transform_is_the_one_of_whole_sounds():
    waveform = torch.randn(1, 4 * HOP)
    transform = FrameTransform()
    frames = waveform.unfold(1, N_FFT, HOP)[0]
    spectra = transform(frames)
    expected = Stft()(waveform)[0, 1 : 1 + len(frames)]  # frame 0 is half before the beginning
    torch.testing.assert_close(torch.complex(*spectra.unbind(1)), expected, rtol=0, atol=1e-4)
    torch.testing.assert_close(transform.inverse(spectra), frames * envelope(), rtol=0, atol=1e-5)
    torch.testing.assert_close(envelope()[:HOP] + envelope()[HOP:], torch.ones(HOP))


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory) -> str:
    path = tmp_path_factory.mktemp("run") / "model.safetensors"
    save_checkpoint(path, lively(SMALL))
    return str(path)


def test_denoise_by_steps(checkpoint, tmp_path, capsys):
    source = write_wav(
        tmp_path / "noisy.wav", np.stack([speech_like(1, 0, 44_100), noise_like(1, 0, 44_100)], 1), 44_100
    )
    enhanced = {}
    for mode, extra in (("at once", []), ("step by step", ["--stream"])):
        target = tmp_path / f"{mode[:2]}.flac"
        main(["denoise", "--checkpoint", checkpoint, "--input", str(source), "--output", str(target), *extra])
        enhanced[mode], rate = soundfile.read(target)
        printed = capsys.readouterr().out
        assert f"{target}: 1.00 s of audio, real-time factor " in printed and mode in printed
        assert rate == 44_100
    np.testing.assert_allclose(enhanced["at once"], enhanced["step by step"], atol=1e-4)  # 16 bit


def test_own_networks_cannot_stream(tmp_path):
    source = write_wav(tmp_path / "noisy.wav", speech_like(1, 0))
    with pytest.raises(SystemExit, match="--stream: only networks of this package .* not Gate"):
        main(
            ["denoise", "--checkpoint", "own_networks:small", "--stream"]
            + ["--input", str(source), "--output", str(tmp_path / "out.wav")]
        )
