"""The network and its transform."""

import pytest
import torch
from made_networks import lively

from abckd_dns.network.config import PRESETS, DenoiserConfig
from abckd_dns.network.denoiser import Denoiser
from abckd_dns.network.stft import BINS, HOP, N_FFT, Stft, compress


def parameter_count(network):
    return sum(parameter.numel() for parameter in network.parameters())


def test_student_has_at_most_a_tenth_of_the_teacher():
    teacher, student = (parameter_count(Denoiser(PRESETS[name])) for name in ("teacher", "student"))
    assert 500_000 < teacher < 1_000_000
    assert 10 * student <= teacher


@pytest.mark.parametrize("length", [1, 300, HOP, 16_000, 16_001])
def test_output_has_the_length_of_the_input(length):
    network = Denoiser(PRESETS["student"]).eval()
    assert network(torch.randn(2, length)).shape == (2, length)


def test_causal():
    network = lively(PRESETS["student"])
    changed_from = 9_000
    waveform = 0.1 * torch.randn(1, 16_000)
    changed = waveform.clone()
    changed[:, changed_from:] += 0.1 * torch.randn(1, 16_000 - changed_from)
    before, after = network(waveform), network(changed)
    torch.testing.assert_close(after[:, : changed_from - N_FFT], before[:, : changed_from - N_FFT], rtol=0, atol=1e-6)
    assert (after[:, changed_from:] - before[:, changed_from:]).abs().max() > 1e-3


def test_uses_the_past():
    network = lively(PRESETS["student"])
    waveform = 0.1 * torch.randn(1, 16_000)
    changed = waveform.clone()
    changed[:, :4_000] = 0
    assert (network(waveform) - network(changed))[:, 4_600:6_600].abs().max() > 1e-4


def test_features_have_four_axes_time_before_frequency():
    network = Denoiser(PRESETS["student"]).eval()
    features = {}
    modules = dict(network.named_modules())
    for name in network.distillation_layers:
        modules[name].register_forward_hook(lambda m, i, output, name=name: features.update({name: output}))
    network(torch.randn(2, 10 * HOP))
    assert len(features) == 2 * len(network.config.channels)
    assert {tuple(f.shape[i] for i in (0, 2)) for f in features.values()} == {(2, 11)}
    assert features["encoder.0"].shape == (2, network.config.channels[0], 11, 129)
    assert features["bottleneck"].shape == features["encoder.4"].shape


def test_config_is_checked():
    with pytest.raises(ValueError, match="channels"):
        DenoiserConfig(channels=(), recurrent_size=4)
    with pytest.raises(ValueError, match="recurrent_size"):
        DenoiserConfig(channels=(4,), recurrent_size=0)


def test_stft_inverts_and_puts_time_first():
    waveform = torch.randn(3, 5_000)
    stft = Stft()
    spectrum = stft(waveform)
    assert spectrum.shape == (3, 1 + 5_000 // HOP, BINS)
    torch.testing.assert_close(stft.inverse(spectrum, 5_000), waveform, rtol=0, atol=1e-5)


def test_compress_raises_the_magnitude_to_the_exponent():
    real, imaginary, magnitude = compress(torch.tensor([3 + 4j]), exponent=0.3)
    torch.testing.assert_close(magnitude, torch.tensor([5**0.3]))
    torch.testing.assert_close(real, torch.tensor([3 / 5 * 5**0.3]))
    torch.testing.assert_close(imaginary, torch.tensor([4 / 5 * 5**0.3]))
