"""What docs/losses.md says a user of published code must write, where that is more than an option."""

import pytest
import torch
from torch import nn

from abckd_kernels import losses

S, T = ([torch.randn(4, 6, 7, 5, generator=torch.Generator().manual_seed(seed + i), dtype=torch.float64)
         for i in range(2)] for seed in (0, 10))  # fmt: skip


def test_attention_transfer_with_power_4():
    maps = [[x.pow(4).mean(1).flatten(1) for x in group] for group in (S, T)]
    units = [[nn.functional.normalize(x) for x in group] for group in maps]
    expected = [(s - t).square().sum(1).mean() for s, t in zip(*units, strict=True)]
    ours = losses.at_loss([x.square() for x in S], [x.square() for x in T])
    torch.testing.assert_close(ours, torch.stack(expected).mean())


def test_irg_with_its_vertices():
    apart = losses.irg_loss(S, T, weights=[1] * 2) + losses.hint_loss(S, T, weights=[1] * 2)
    torch.testing.assert_close(losses.irg_loss(S, T, vertex_weight=1, weights=[1] * 2), apart)


def test_the_regressor_of_semckd():
    regressor = losses.ConvReg(6, 6, kernel_size=3, padding=1).double()
    made = nn.functional.batch_norm(regressor.convolution(S[0]), None, None, training=True).relu()
    loss = losses.HintLoss(6, 6, regressor=regressor)
    torch.testing.assert_close(loss(S[0], T[0]), (made - T[0]).square().mean())


def test_similarity_of_every_pair_of_layers():
    students, teachers, frames, batch = [S[0], S[0], S[1], S[1]], T * 2, 7, 4
    options = {"eps": 0, "norm_eps": 1e-6}
    ours = losses.time_similarity_loss(students, teachers, weights=[1 / 2] * 4, **options)
    one = [losses.time_similarity_loss(s, t, **options) for s, t in zip(students, teachers, strict=True)]
    torch.testing.assert_close(ours, sum(one) / 2)
    by_frame = losses.frame_similarity_loss(students, teachers, weights=[frames / (batch * 2)] * 4, **options)
    assert by_frame.isfinite() and by_frame > 0


def test_divergence_of_liger():
    log_q, p = S[0].flatten(1).log_softmax(1), T[0].flatten(1).softmax(1)
    terms = nn.functional.kl_div(log_q, p, reduction="none")
    for expected, weight in ((terms.sum() / len(p), 1), (terms.mean(), 1 / p.shape[1]), (terms.sum(), len(p))):
        torch.testing.assert_close(losses.kl_loss(log_q, p.log(), temperature=1, weights=[weight]), expected)


@pytest.mark.parametrize("standardize", [False, True])
def test_distillation_alone_of_torchdistill(standardize):
    student, teacher = S[0].flatten(1), T[0].flatten(1)
    logits = [(x - x.mean(1, keepdim=True)) / (1e-7 + x.std(1, keepdim=True)) if standardize else x
              for x in (student, teacher)]  # fmt: skip
    q, p = (x / 3 for x in logits)
    expected = nn.functional.kl_div(q.log_softmax(1), p.softmax(1), reduction="batchmean")
    ours = losses.kl_loss(student, teacher, temperature=3.0, standardize=standardize, weights=[1 / 9])
    torch.testing.assert_close(ours, expected)
