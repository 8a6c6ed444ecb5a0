"""The divergence of output layers without their logits: rows, and what is its alone."""

import cases
import naive_logits as naive
import pytest
import torch
from suite import *  # noqa: F403 - the tests that every loss passes
from suite import Loss, gradients, widened
from test_logits import assert_compiled_twice
from torch.nn import functional
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from abckd_kernels.losses import jsd_loss, kl_loss, linear_divergence_loss

CLASSES = 11


def hidden(student, teacher, batch_factor=1):
    """inputs= of hidden states (B, T, D), 3 rows per sample."""

    def inputs(dtype, batch, seed):
        generator = torch.Generator().manual_seed(seed)
        return tuple(
            torch.randn(batch * batch_factor, 3, size, generator=generator, dtype=torch.float64).to(dtype)
            for size in (student, teacher)
        )

    return inputs


def heads(student, teacher, biases=False):
    """extra=: the same weights for the same sizes."""

    def extra(s, t):
        given = {}
        for seed, (name, x) in enumerate({"student": s, "teacher": t}.items()):
            size = {"student": student, "teacher": teacher}[name]
            generator = torch.Generator().manual_seed(0 if student == teacher else seed)
            made = torch.randn(CLASSES, size + 1, generator=generator, dtype=torch.float64)
            made = ((8 * made).round() / 8).to(x.device, x.dtype)  # the same numbers in every dtype
            given[f"{name}_weight"] = made[:, 1:]
            given |= {f"{name}_bias": made[:, 0]} if biases else {}
        return given

    return extra


def row(student, teacher, biases=False, **options):
    return Loss(
        "linear", linear_divergence_loss, naive.linear_divergence, inputs=hidden(student, teacher),
        large=hidden(student, teacher, 100), extra=heads(student, teacher, biases), time=None, classes=2, pairs=False,
        spatial=(2,), invariant="batch", zero_at_equality=student == teacher, options=options,
    )  # fmt: skip


LOSSES = [
    row(5, 5),
    row(5, 7, biases=True, chunk=4, temperature=2.0, kind="reverse_kl"),
    row(5, 7, chunk=5, kind="jsd", beta=0.3, reduction="mean"),
    row(6, 6, chunk=1, temperature=4.0, reduction="batchmean"),
]

FULL = {
    "kl": (kl_loss, {"kind": "kl"}),
    "reverse": (lambda s, t, **given: kl_loss(s, t, reverse=True, **given), {"kind": "reverse_kl"}),
    "jsd": (lambda s, t, **given: jsd_loss(s, t, beta=0.2, **given), {"kind": "jsd", "beta": 0.2}),
}


def made(dtype=torch.float64, rows=(3, 4), sizes=(5, 7), classes=(CLASSES, CLASSES), scale=1.0):
    """Hidden states, heads and biases of student, which gets gradients, and teacher."""
    generator = torch.Generator().manual_seed(3)

    def side(size, count, wanted):
        shapes = ((*rows, size), (count, size), (count,))
        return [(scale * torch.randn(x, generator=generator, dtype=torch.float64)).to(dtype).requires_grad_(wanted)
                for x in shapes]  # fmt: skip

    return [side(size, count, k == 0) for k, (size, count) in enumerate(zip(sizes, classes, strict=True))]


def chunked(student, teacher, **options):
    return linear_divergence_loss(
        student[0], teacher[0], student[1], teacher[1], student_bias=student[2], teacher_bias=teacher[2], **options
    )


@pytest.mark.parametrize("chunk", [None, 1, 5, 12, 100])
@pytest.mark.parametrize("reduction", ["mean", "rows", "batchmean", "sum"])
@pytest.mark.parametrize("name", FULL)
def test_it_is_the_loss_of_the_logits(name, reduction, chunk):
    """Value and gradients of hidden states, heads and biases, with rows that don't count, whatever is in them."""
    compute, options = FULL[name]
    student, teacher = made()
    ignore = torch.tensor([[1, 0, 0, 0], [1, 1, 1, 1], [0, 1, 0, 0]]).bool()
    full = [functional.linear(*side) for side in (student, teacher)]
    exact = compute(*full, temperature=3.0, dim=-1, ignore=ignore, reduction=reduction)
    expected = gradients(exact, student)
    dirty = [side[0].detach().masked_fill(ignore[..., None], float("nan")) for side in (student, teacher)]
    student[0] = dirty[0].requires_grad_()
    ours = chunked(student, [dirty[1], *teacher[1:]], temperature=3.0, ignore=ignore, reduction=reduction, chunk=chunk,
                   **options)  # fmt: skip
    torch.testing.assert_close(ours, exact)
    torch.testing.assert_close(gradients(3 * ours, student), [3 * g for g in expected])


@pytest.mark.parametrize("name", FULL)
def test_gradients_of_heads(name):
    student, teacher = made()
    options = FULL[name][1] | {"chunk": 5, "temperature": 2.0}
    assert torch.autograd.gradcheck(lambda *leaves: chunked(list(leaves), teacher, **options), student)


@pytest.mark.parametrize("dtype", cases.HALF_DTYPES, ids=cases.name_of)
@pytest.mark.parametrize("weights", ["half", "float32"])
def test_heads_in_half_precision_accumulate_in_float32(dtype, weights):
    """Of many chunks: as exact as of one, rounded once."""
    student, teacher = made(dtype, rows=(400,), scale=0.7)
    if weights == "float32":
        student[1:], teacher[1:] = ([x.detach().float().requires_grad_(x.requires_grad) for x in side[1:]]
                                    for side in (student, teacher))  # fmt: skip
    exact_student, exact_teacher = (
        [widened(x).detach().requires_grad_(x.requires_grad) for x in side] for side in (student, teacher)
    )
    ours, exact = chunked(student, teacher, chunk=1), chunked(exact_student, exact_teacher)
    assert ours.dtype == torch.float32 and ours.item() == pytest.approx(exact.item(), rel=1e-5)
    grads, exact_grads = gradients(1024 * ours, student), gradients(exact, exact_student)
    for grad, x, expected in zip(grads, student, exact_grads, strict=True):
        assert grad.dtype == x.dtype
        off = (grad.double() / 1024 - expected).abs().max() / expected.abs().max()
        assert off < max(torch.finfo(x.dtype).eps / 2, 1e-5)


def test_logits_are_never_all_there():
    """No tensor of forward or backward is larger than a chunk's logits or an input; all logits are 20 chunks."""
    student, teacher = made(torch.float32, rows=(200,), sizes=(4, 4), classes=(50, 50))
    largest = []

    class Sizes(TorchDispatchMode):
        def __torch_dispatch__(self, function, types, args=(), kwargs=None):
            results = function(*args, **kwargs or {})
            largest.extend(x.numel() for x in tree_leaves(results) if isinstance(x, torch.Tensor))
            return results

    with Sizes():
        gradients(chunked(student, teacher, chunk=10), student)
    assert max(largest) == max(10 * 50, 200 * 4)


def test_what_needs_no_gradient_has_none():
    """A frozen head, or hidden states alone; none under no_grad."""
    student, teacher = made()
    exact = gradients(chunked(student, teacher), student)
    for place in range(3):
        alone = [x.detach().requires_grad_(index == place) for index, x in enumerate(student)]
        torch.testing.assert_close(gradients(chunked(alone, teacher), alone[place])[0], exact[place])
    with torch.no_grad():
        assert not chunked(student, teacher).requires_grad


def test_heads_of_different_size():
    student, teacher = made(classes=(CLASSES, CLASSES + 3))
    with pytest.raises(ValueError, match="^teacher_weight: expected 11 classes as student_weight, got 14; align="):
        chunked(student, teacher)
    ours = chunked(student, teacher, align="truncate")
    cut = [teacher[0], teacher[1][:CLASSES], teacher[2][:CLASSES]]
    torch.testing.assert_close(ours, chunked(student, cut))
    back = chunked([x.detach() for x in teacher], student, align="truncate")
    torch.testing.assert_close(back, chunked(cut, student))


def test_gradients_cannot_be_differentiated_again():
    student, teacher = made()
    grads = torch.autograd.grad(chunked(student, teacher), student, create_graph=True)
    for grad in grads:
        with pytest.raises(RuntimeError, match="second derivatives"):
            torch.autograd.grad(grad.sum(), student, retain_graph=True, allow_unused=True)


def test_values_that_change_do_not_recompile():
    student, teacher = made(torch.float32)

    def step(hidden, temperature, beta):
        return chunked([hidden, *student[1:]], teacher, kind="jsd", temperature=temperature, beta=beta, chunk=5)

    assert_compiled_twice(step, [(student[0], 4.0 - k / 4, 0.5 - k / 16) for k in range(4)])


X, W = torch.zeros(2, 3, 5), torch.zeros(4, 5)
WRONG = [
    (lambda: linear_divergence_loss(X.int(), X, W, W), TypeError, "student_hidden"),
    (lambda: linear_divergence_loss(X[0, 0], X, W, W), ValueError, "student_hidden"),
    (lambda: linear_divergence_loss(X, X[:1], W, W), ValueError, "teacher_hidden"),
    (lambda: linear_divergence_loss(X, X, W.T, W), ValueError, "student_weight"),
    (lambda: linear_divergence_loss(X, X, W, None), TypeError, "teacher_weight"),
    (lambda: linear_divergence_loss(X, X, W, W, student_bias=W[0]), ValueError, "student_bias"),
    (lambda: linear_divergence_loss(X, X, W, W, ignore=torch.zeros(2)), ValueError, "ignore"),
    (lambda: linear_divergence_loss(X, X, W, W, chunk=0), ValueError, "chunk"),
    (lambda: linear_divergence_loss(X, X, W, W, kind="tvd"), ValueError, "kind"),
    (lambda: linear_divergence_loss(X, X, W, W, beta=2), ValueError, "beta"),
    (lambda: linear_divergence_loss(X, X, W, W, temperature=0), ValueError, "temperature"),
    (lambda: linear_divergence_loss(X, X, W, W, reduction="none"), ValueError, "reduction"),
]


@pytest.mark.parametrize("call, error, named", WRONG)
def test_wrong_arguments(call, error, named):
    with pytest.raises(error, match=f"^{named}: expected"):
        call()
