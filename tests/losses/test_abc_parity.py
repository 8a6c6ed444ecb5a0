"""Attention transfer (AT) is compression with a fixed attention: the numbers of published implementations, in float64.

AT.code is 1/(B N) sum_b ||a_s - a_t||^2 for each pair of layers, N positions per map: our distances divided by N.
"""

import pytest
import torch
from parity import Vectors

from abckd_kernels import abc_loss

EQUAL_SIZES = ("md__AT_p2_3layers", "rep__AT_p2_edge_zero_samples", "td__AT_code")
RESIZED = ("rep__AT_p2_s_larger_t_square", "rep__AT_p2_s_square_t_larger")


def vectors(name):
    peer = Vectors(name)
    assert peer.entry["formula"] == "AT.code" and peer.entry["dtype"] == "float64"
    return peer


def attention_transfer(student, teacher, attention):
    """AT of one pair of layers: abc_loss with an attention that has no choice; `attention` says what takes it away."""
    positions = min(student[0, 0].numel(), teacher[0, 0].numel())
    return abc_loss([student], [teacher, torch.randn_like(teacher)], **attention) / positions


ENFORCED = {
    "scores": {"scores": torch.tensor([0.0, -torch.inf]).expand(4, 1, 2)},
    "mask": {"mask": torch.tensor([[True, False]])},
}


@pytest.mark.parametrize("attention", ENFORCED.values(), ids=ENFORCED)
@pytest.mark.parametrize("name", EQUAL_SIZES)
def test_attention_transfer(backend, name, attention):
    peer = vectors(name)
    loss = sum(attention_transfer(s, t, attention) for s, t in zip(peer.students, peer.teachers, strict=True))
    peer.assert_equal(loss)


@pytest.mark.parametrize("name", EQUAL_SIZES[:1])
def test_several_layers_in_one_call(backend, name):
    """All pairs meet on the grid of one, which makes no difference to that one; the weights pick it."""
    peer = vectors(name)
    n = len(peer.students)
    total = 0
    for i, student in enumerate(peer.students):
        grid, positions = student.shape[2:], student[0, 0].numel()
        weights = [float(k == i) / positions for k in range(n)]
        total = total + abc_loss(peer.students, peer.teachers, mask=torch.eye(n).bool(), grid=grid, weights=weights)
    assert total.item() == pytest.approx(peer["loss"].item(), rel=1e-10)


@pytest.mark.parametrize("name", RESIZED)
def test_resizing_differs_on_purpose(backend, name):
    """The peer pools the larger feature and then squares: opposite signs cancel. Ours pools the energy: they don't."""
    peer = vectors(name)
    (student,), (teacher,) = peer.students, peer.teachers
    alone = ENFORCED["mask"]
    assert attention_transfer(student, teacher, alone).item() != pytest.approx(peer["loss"].item(), rel=1e-3)
    target = tuple(min(a, b) for a, b in zip(student.shape[2:], teacher.shape[2:], strict=True))
    resized = [torch.nn.functional.adaptive_avg_pool2d(x, target) for x in (student, teacher)]
    assert attention_transfer(*resized, alone).item() == pytest.approx(peer["loss"].item(), rel=1e-10)
