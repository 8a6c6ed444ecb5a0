"""The loss of noise suppressors, and the one SI-SDR of losses and metrics."""

import math

import pytest
import torch

from abckd_dns.network.stft import Stft, compress
from abckd_dns.sisdr import sisdr
from abckd_dns.training.objective import SpeechLoss
from abckd_kernels.losses import si_snr_loss


def written_out(estimate, target, sisdr_weight=0.05):
    """SpeechLoss in plain PyTorch."""
    stft = Stft()
    real, imaginary, magnitude = (
        (a - b).square().mean() for a, b in zip(compress(stft(estimate)), compress(stft(target)), strict=True)
    )
    scale = (estimate * target).sum(-1) / (target.square().sum(-1) + 1e-6)
    wanted = scale.square() * target.square().sum(-1)
    unwanted = (estimate - scale[:, None] * target).square().sum(-1) + 1e-3 * wanted
    ratio = 10 * torch.log10((wanted + 1e-6) / (unwanted + 1e-6))
    return 0.5 * (real + imaginary) + magnitude - sisdr_weight * ratio.mean()


@pytest.mark.parametrize("noise", [0.0, 0.01, 1.0])
@pytest.mark.parametrize("samples", [1, 4_000, 16_000])
def test_loss_is_its_formula(noise, samples):
    torch.manual_seed(0)
    target = 0.1 * torch.randn(3, samples)
    target[0] = 0
    estimate = (0.8 * target + noise * torch.randn(3, samples)).requires_grad_()
    for sisdr_weight in (0.0, 0.05):
        loss, expected = SpeechLoss(sisdr_weight)(estimate, target), written_out(estimate, target, sisdr_weight)
        gradient, expected_gradient = (torch.autograd.grad(x, estimate)[0] for x in (loss, expected))
        torch.testing.assert_close(loss, expected, rtol=2e-6, atol=2e-6)
        assert expected_gradient.norm() > 0
        assert (gradient - expected_gradient).norm() <= 1e-5 * expected_gradient.norm()


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16])
@pytest.mark.parametrize("silent", ["target", "estimate", "both"])
def test_loss_of_silence_is_finite(dtype, silent):
    estimate = torch.zeros(2, 4_000) if silent != "target" else 0.1 * torch.randn(2, 4_000)
    target = torch.zeros(2, 4_000) if silent != "estimate" else 0.1 * torch.randn(2, 4_000)
    estimate = estimate.to(dtype).requires_grad_()
    loss = SpeechLoss()(estimate, target.to(dtype))
    loss.backward()
    assert loss.dtype == torch.float32 and loss.isfinite()
    assert estimate.grad.isfinite().all()


def test_loss_prefers_the_better_estimate():
    target, noise = 0.1 * torch.randn(2, 8_000), 0.1 * torch.randn(2, 8_000)
    loss = SpeechLoss()
    perfect, good, bad = (loss(target + gain * noise, target) for gain in (0, 0.1, 1))
    assert perfect < good < bad


def test_loss_sees_level_and_sign():
    target = 0.1 * torch.randn(2, 8_000)
    loss = SpeechLoss()
    assert loss(0.5 * target, target) > loss(target, target) + 0.01  # the SI-SDR term sees neither
    assert loss(-target, target) > loss(0.5 * target, target)


def test_loss_gradient_points_to_the_target():
    torch.manual_seed(0)
    target = 0.1 * torch.randn(2, 8_000)
    estimate = (target + 0.05 * torch.randn(2, 8_000)).requires_grad_()
    SpeechLoss()(estimate, target).backward()
    step = 1e-2 * estimate.grad / estimate.grad.norm()
    assert SpeechLoss()(estimate - step, target) < SpeechLoss()(estimate, target)
    cosine = torch.cosine_similarity((estimate - target).flatten(), estimate.grad.flatten(), dim=0)
    assert cosine > 0.3


def test_no_gradient_reaches_the_target():
    estimate, target = torch.randn(2, 2, 4_000, requires_grad=True).unbind()
    target.retain_grad()
    SpeechLoss()(estimate, target).backward()
    assert target.grad is None


def test_sisdr_with_a_ceiling_saturates_and_ignores_scale():
    torch.manual_seed(0)
    target = torch.randn(1, 16_000)
    noise = torch.randn(1, 16_000)
    assert sisdr(target, target, ceiling_db=30).item() == pytest.approx(30, abs=0.01)
    noisy = target + 10 ** (-10 / 20) * noise
    for scale in (1, 0.01):
        assert sisdr(scale * noisy, target, ceiling_db=30).item() == pytest.approx(10, abs=0.3)


def test_sisdr_with_a_floor_is_zero_for_silence():
    silence, noise = torch.zeros(4_000), torch.randn(4_000)
    for estimate, target in ((silence, silence), (silence, noise)):
        assert sisdr(estimate, target, floor=1e-6).item() == 0
    assert math.isnan(sisdr(silence, silence).item())


def test_sisdr_is_that_of_the_library():
    torch.manual_seed(0)
    target = torch.randn(3, 8_000, dtype=torch.float64)
    estimate = 0.3 * target + torch.randn_like(target)
    ours, library = sisdr(estimate, target).mean(), -si_snr_loss(estimate, target, zero_mean=False, eps=1e-14)
    torch.testing.assert_close(ours, library, rtol=1e-9, atol=1e-9)
