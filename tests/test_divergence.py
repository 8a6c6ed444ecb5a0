"""divergence against the oracle, on every backend, and how it behaves as a part of a network."""

import cases
import hypothesis
import hypothesis.strategies as st
import numpy as np
import pytest
import torch
from torch.nn import functional

from abckd_kernels import backends, divergence
from abckd_verify.exact import accuracy
from abckd_verify.exact import divergence as oracle

INF = float("inf")
KINDS = {
    "kl": {"kind": "kl"},
    "reverse_kl": {"kind": "reverse_kl"},
    "jsd": {"kind": "jsd"},
    "jsd_0.1": {"kind": "jsd", "beta": 0.1},
}
each_kind = pytest.mark.parametrize("options", KINDS.values(), ids=KINDS)
each_dtype = pytest.mark.parametrize("dtype", cases.DTYPES, ids=cases.name_of)
# Shapes and the axis of classes: rows in memory (last axis, or channels_last) and planes.
SHAPES = (
    ((5, 10), -1), ((3, 700), 1), ((2, 3, 33), 2), ((4, 2), 1), ((3, 1), 1), ((9,), 0), ((1, 2100), 1),
    ((2, 5, 1, 1), 1), ((2, 3, 7), 1), ((2, 33, 7, 5), 1), ((3, 4, 9, 70), 1), ((2, 2, 1030), 1), ((6, 11), 0),
)  # fmt: skip


def logits(shape, dtype=torch.float32, seed=0, scale=3.0):
    """Student's and teacher's, each row with an offset of its own."""
    generator = torch.Generator().manual_seed(seed)
    return tuple((torch.randn(shape, generator=generator, dtype=torch.float64) * scale).to(dtype) for _ in "st")


def plain(student, teacher, *, kind="kl", beta=0.5, temperature=1.0, dim=-1):
    """As anybody would write it in PyTorch."""
    log_q, log_p = (functional.log_softmax(x / temperature, dim) for x in (student, teacher))

    def kl(a, b):
        return (a.exp() * (a - b)).sum(dim)

    if kind == "kl":
        return kl(log_p, log_q)
    if kind == "reverse_kl":
        return kl(log_q, log_p)
    log_m = (beta * log_p.exp() + (1 - beta) * log_q.exp()).log()
    return beta * kl(log_p, log_m) + (1 - beta) * kl(log_q, log_m)


def check(student, teacher, dim, options, rng, condition=1.0):
    """Values and gradient, for random gradients of the values."""
    student = student.detach().requires_grad_()
    values = divergence(student, teacher, dim=dim, **options)
    assert values.dtype == (torch.float64 if student.dtype == torch.float64 else torch.float32)
    wide = torch.float64 if student.dtype == torch.float64 else torch.float32
    plain_student = student.detach().to(wide).requires_grad_()
    plain_values = plain(plain_student, teacher.to(wide), dim=dim, **options)
    exact, slope = oracle.divergence(accuracy.float64(student), accuracy.float64(teacher), dim=dim, **options)
    accuracy.assert_accurate(values, exact, plain_values, "values", condition)
    assert (values >= 0).all()

    grads = torch.randn(values.shape, generator=rng).to(values.dtype)
    (ours,) = torch.autograd.grad(values, student, grads)
    (theirs,) = torch.autograd.grad(plain_values, plain_student, grads)
    expected = slope * np.expand_dims(accuracy.float64(grads), dim)
    accuracy.assert_gradient(ours, expected, theirs, "gradient", condition)


@each_kind
@each_dtype
@pytest.mark.parametrize("shape, dim", SHAPES, ids=str)
def test_against_oracle(backend, shape, dim, dtype, options, rng):
    check(*logits(shape, dtype), dim, options, rng, condition=8)


@each_kind
@pytest.mark.parametrize("temperature", [0.25, 3.7])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=cases.name_of)
def test_temperature(backend, temperature, dtype, options, rng):
    for shape, dim in (((4, 37), 1), ((2, 9, 21), 1)):
        check(*logits(shape, dtype), dim, options | {"temperature": temperature}, rng, condition=4 / temperature + 4)


@each_kind
@each_dtype
@pytest.mark.parametrize("layout", cases.LAYOUTS, ids=lambda layout: layout.__name__)
def test_layouts(backend, layout, dtype, options, rng):
    student, teacher = (layout(x) for x in logits((2, 6, 4, 9), dtype))
    check(student, teacher, 1, options, rng, condition=8)
    check(student, cases.contiguous(teacher), -1, options, rng, condition=8)


def test_the_gradient_keeps_the_layout_of_the_logits(backend):
    for layout in (cases.contiguous, cases.channels_last):
        student, teacher = (layout(x) for x in logits((2, 6, 4, 9)))
        student.requires_grad_()
        divergence(student, teacher, dim=1).sum().backward()
        assert student.grad.stride() == student.stride()


def test_rows_that_begin_anywhere(backend):
    """Views whose first elements lie at all distances from a multiple of 16 bytes, equal and not."""
    student, teacher = logits((3 * 21 + 8,), torch.bfloat16)
    for first, second in ((1, 1), (3, 3), (0, 5), (2, 1)):
        s = student[first : first + 63].view(3, 21).requires_grad_()
        t = teacher[second : second + 63].view(3, 21)
        values = divergence(s, t)
        (grad,) = torch.autograd.grad(values.sum(), s)
        exact, slope = oracle.divergence(accuracy.float64(s), accuracy.float64(t))
        np.testing.assert_allclose(accuracy.float64(values), exact, rtol=1e-4)
        np.testing.assert_allclose(accuracy.float64(grad), slope, atol=1e-2)


@each_kind
def test_logits_that_are_large_lose_no_digits(backend, options):
    """An offset of the logits changes nothing, as long as float32 holds their differences."""
    student, teacher = logits((4, 60))
    student, teacher = (x.mul(64).round() / 64 for x in (student, teacher))  # float32 then holds the sums below exactly
    expected = _values_and_gradient(student, teacher, options)
    moved = _values_and_gradient(student + 16384, teacher - 8192, options)
    for ours, theirs in zip(moved, expected, strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-5, atol=1e-6)


@each_kind
@pytest.mark.parametrize("dim", [0, 1])
def test_logits_far_apart(backend, options, dim):
    student, teacher = logits((6, 6), torch.float64, scale=1e4)
    for ours, exact in zip(
        _values_and_gradient(student.float(), teacher.float(), options, dim),
        oracle.divergence(student.float().numpy(), teacher.float().numpy(), dim=dim, **options),
        strict=True,
    ):
        np.testing.assert_allclose(ours.numpy(), exact, rtol=1e-5, atol=4 * 1e4 * torch.finfo(torch.float32).eps)


@each_kind
def test_zero_at_equality(backend, options):
    for dtype in cases.DTYPES:
        student, teacher = logits((4, 50), dtype)
        values, grad = _values_and_gradient(teacher, teacher, options)
        assert (values <= (1e-12 if dtype == torch.float64 else 2e-7)).all() and grad.abs().max() < 1e-6
        if options["kind"] != "jsd":
            assert not values.any()


@pytest.mark.parametrize("beta", [0.0, 1.0])
@pytest.mark.parametrize("shape", [(3, 40), (2, 5, 20)])
def test_jensen_shannon_vanishes_at_both_ends_of_beta(backend, beta, shape):
    student, teacher = logits(shape)
    student.view(-1)[0] = teacher.view(-1)[-1] = -INF
    values, grad = _values_and_gradient(student, teacher, {"kind": "jsd", "beta": beta}, 1)
    assert values.abs().max() < 1e-6 and grad.abs().max() < 1e-6
    near = divergence(student, teacher, kind="jsd", beta=abs(beta - 1e-4), dim=1)
    assert (near < 2e-3).all() and (near > 0).all()


def test_symmetries(backend):
    student, teacher = logits((4, 30), torch.float64)
    torch.testing.assert_close(divergence(student, teacher), divergence(teacher, student, kind="reverse_kl"))
    torch.testing.assert_close(
        divergence(student, teacher, kind="jsd", beta=0.2), divergence(teacher, student, kind="jsd", beta=0.8)
    )
    values = divergence(student, teacher, kind="jsd")
    assert (values <= np.log(2)).all()
    order = torch.randperm(30, generator=torch.Generator().manual_seed(0))
    torch.testing.assert_close(values, divergence(student[:, order], teacher[:, order], kind="jsd"))


# ---------------------------------------------------------------------------------------------- impossible classes

IMPOSSIBLE = {"rows": ((8, 37), 1), "long rows": ((8, 1500), 1), "planes": ((1, 37, 8), 1)}


def _with_impossible(shape, dim, dtype):
    """Row 0: none; 1, 2: some classes of both; 3: one of the student's; 4: one of the teacher's; 5: all of the
    student's; 6: all of both; 7: NaN, to be ignored."""
    student, teacher = logits(shape, dtype)
    s, t = (x.movedim(dim, -1).reshape(8, -1) for x in (student, teacher))
    s[1, :-1], t[1, :-1] = -INF, -INF
    s[2, ::2], t[2, ::2] = -INF, -INF
    s[3, 5], t[4, 6] = -INF, -INF
    s[5], s[6], t[6] = -INF, -INF, -INF
    s[7], t[7, 0] = float("nan"), float("nan")
    return (x.reshape(8, -1).T.reshape(shape) if shape[0] == 1 else x for x in (s, t))


@each_kind
@each_dtype
@pytest.mark.parametrize("case", IMPOSSIBLE.values(), ids=IMPOSSIBLE)
def test_classes_that_cannot_occur(backend, case, dtype, options):
    shape, dim = case
    student, teacher = _with_impossible(shape, dim, dtype)
    student.requires_grad_()
    ignore = torch.arange(8).view(shape[0], -1).squeeze(1) == 7
    values = divergence(student, teacher, dim=dim, ignore=ignore, **options)
    exact, slope = oracle.divergence(
        accuracy.float64(student), accuracy.float64(teacher), dim=dim, ignore=ignore.numpy(), **options
    )
    np.testing.assert_allclose(accuracy.float64(values), exact, rtol=2e-5, atol=1e-6)
    infinite = {"kl": 3, "reverse_kl": 4}.get(options["kind"])
    assert [i for i, value in enumerate(values.flatten().tolist()) if value == INF] == ([infinite] if infinite else [])
    (grad,) = torch.autograd.grad(values.sum(), student)
    defined = np.expand_dims(np.isfinite(exact), dim) | (options["kind"] == "kl")
    defined = np.broadcast_to(defined, grad.shape)
    tolerance = 1e-2 if dtype == torch.bfloat16 else 2e-3 if dtype == torch.float16 else 2e-6
    np.testing.assert_allclose(accuracy.float64(grad)[defined], slope[defined], atol=tolerance)
    for row in (5, 6, 7):
        assert not values.flatten()[row] and not grad.movedim(dim, -1).reshape(8, -1)[row].any()


@each_kind
def test_an_impossible_class_that_underflows_is_infinite_all_the_same(backend, options):
    """p is positive by definition, however far the teacher's logit is below the others."""
    for shape in ((1, 400), (1, 400, 1), (1, 400, 2)):
        student, teacher = torch.zeros(shape), torch.zeros(shape)
        teacher[0, 7], student[0, 7], teacher[0, 399] = -500, -INF, 3
        expected = INF if options["kind"] == "kl" else 0
        assert (divergence(student, teacher, dim=1, **options) >= expected).all()


@each_kind
def test_all_rows_ignored(backend, options):
    for dim in (0, 1):
        student = torch.full((5, 5), float("nan"), requires_grad=True)
        values = divergence(student, student, dim=dim, ignore=torch.ones(5, dtype=torch.bool), **options)
        values.sum().backward()
        assert not values.any() and not student.grad.any()


@each_kind
def test_ignored_rows_do_not_touch_others(backend, options):
    for shape, dim in (((6, 40), 1), ((2, 7, 3), 1)):
        student, teacher = logits(shape)
        ignore = (torch.arange(6) % 3 == 1).view(student.select(dim, 0).shape)
        expected = _values_and_gradient(student, teacher, options, dim)
        for garbage in (float("nan"), INF):
            dirty = [x.masked_fill(ignore.unsqueeze(dim), garbage) for x in (student, teacher)]
            values, grad = _values_and_gradient(*dirty, options | {"ignore": ignore}, dim)
            rows = [expected[0].masked_fill(ignore, 0), expected[1].masked_fill(ignore.unsqueeze(dim), 0)]
            accuracy.assert_same([values, grad], rows, backend)


@each_kind
def test_nan_stays_nan(backend, options):
    for shape, dim in (((3, 40), 1), ((1, 40, 3), 1)):
        for which in (0, 1):
            pair = logits(shape)
            pair[which].movedim(dim, -1).view(3, 40)[1, 11] = float("nan") if shape[0] == 3 else 0
            pair[which].select(dim, 11).view(-1)[1] = float("nan")
            values = divergence(*pair, dim=dim, **options).flatten()
            assert values.isnan().tolist() == [False, True, False]


# ---------------------------------------------------------------------------------------------- as a part of a network


def _values_and_gradient(student, teacher, options, dim=-1):
    student = student.detach().clone().requires_grad_()
    values = divergence(student, teacher, dim=dim, **options)
    (grad,) = torch.autograd.grad(values.sum(), student)
    return values.detach(), grad


@each_kind
@pytest.mark.parametrize("shape, dim", [((3, 7), 1), ((2, 4, 5), 1)])
def test_gradcheck(backend, options, shape, dim):
    student, teacher = logits(shape, torch.float64, scale=1.0)
    assert torch.autograd.gradcheck(
        lambda x: divergence(x, teacher, dim=dim, temperature=1.7, **options), student.requires_grad_()
    )


@pytest.mark.parametrize("backend_name", ["default", "reference", *(["triton"] if backends.TRITON_INTERPRET else [])])
def test_opcheck(backend_name):
    for shape in ((3, 11, 1), (2, 5, 6)):
        student, teacher = (x.view(shape) for x in logits((shape[0] * shape[1] * shape[2],)))
        rows = shape[0] * shape[2]
        forward, backward = (
            getattr(getattr(torch.ops.abckd, f"divergence_{x}"), backend_name) for x in ("forward", "backward")
        )
        for kind in range(3):
            ignore = torch.arange(rows) % 2 == 1 if kind else None
            torch.library.opcheck(forward, (student, teacher, ignore, kind, 0.3, 2.0, None, True))
            torch.library.opcheck(forward, (student, teacher.clone(), ignore, kind, 0.3, 2.0, None, False))
            _, saved = forward(student, teacher, ignore, kind, 0.3, 2.0, None, True)
            torch.library.opcheck(backward, (torch.ones(rows), student, teacher, saved, kind, 0.3, 2.0, None))


def test_second_backward_is_like_the_first(backend):
    student, teacher = logits((4, 9))
    student.requires_grad_()
    total = divergence(student * 1, teacher).square().sum()
    first, second = (torch.autograd.grad(total, student, retain_graph=True)[0] for _ in range(2))
    assert torch.equal(first, second) and first.abs().max() > 0


def test_inputs_and_incoming_gradients_are_not_changed(backend):
    student, teacher = logits((4, 9))
    student.requires_grad_()
    values = divergence(student, teacher)
    grad = torch.ones(()).expand(values.shape)
    before = [x.detach().clone() for x in (student, teacher, grad)]
    torch.autograd.grad(values, student, grad)
    assert all(map(torch.equal, (student, teacher, grad), before))


def test_second_derivatives_are_refused_rather_than_zero(backend):
    student, teacher = logits((4, 9))
    student.requires_grad_()
    (first,) = torch.autograd.grad(divergence(student, teacher).square().sum(), student, create_graph=True)
    with pytest.raises(RuntimeError):
        torch.autograd.grad(first.square().sum(), student)


def test_the_teacher_gets_no_gradient(backend):
    student, teacher = (x.requires_grad_() for x in logits((4, 9)))
    divergence(student, teacher).sum().backward()
    assert teacher.grad is None and student.grad.abs().max() > 0
    assert not divergence(student.detach(), teacher).requires_grad


def test_dtypes_that_differ_meet_in_one_that_holds_both(backend):
    student, teacher = logits((4, 9), torch.bfloat16)
    student.requires_grad_()
    values = divergence(student, teacher.float())
    torch.testing.assert_close(values, divergence(student.float(), teacher.float()))
    values.sum().backward()
    assert student.grad.dtype == torch.bfloat16


@pytest.mark.parametrize("shape, dim", [((0, 5), 1), ((2, 5, 0), 1), ((0, 3, 4), 1)])
def test_no_rows(backend, shape, dim):
    student = torch.zeros(shape, requires_grad=True)
    values = divergence(student, torch.zeros(shape), dim=dim)
    values.sum().backward()
    assert values.shape == student.select(dim, 0).shape and student.grad.shape == shape


def test_compiled_in_one_graph():
    student, teacher = logits((4, 6, 10))
    ignore = torch.zeros(4, 10, dtype=torch.bool)

    def loss(x):
        return divergence(x, teacher, kind="jsd", dim=1, ignore=ignore).mean()

    results = []
    for function in (loss, torch.compile(loss, fullgraph=True, backend="aot_eager")):
        x = student.clone().requires_grad_()
        value = function(x)
        value.backward()
        results.append((value.detach(), x.grad))
    assert all(map(torch.equal, *results))


WRONG = [
    (lambda s, t: divergence(s.int(), t), TypeError, "student"),
    (lambda s, t: divergence(s, None), TypeError, "teacher"),
    (lambda s, t: divergence(s, t[:1]), ValueError, "teacher"),
    (lambda s, t: divergence(s, t.to("meta")), ValueError, "teacher"),
    (lambda s, t: divergence(s, t, dim=2), ValueError, "dim"),
    (lambda s, t: divergence(s[:, :0], t[:, :0]), ValueError, "student"),
    (lambda s, t: divergence(s, t, kind="tv"), ValueError, "kind"),
    (lambda s, t: divergence(s, t, kind="jsd", beta=1.5), ValueError, "beta"),
    (lambda s, t: divergence(s, t, temperature=0.0), ValueError, "temperature"),
    (lambda s, t: divergence(s, t, temperature=float("nan")), ValueError, "temperature"),
    (lambda s, t: divergence(s, t, ignore=torch.zeros(4)), TypeError, "ignore"),
    (lambda s, t: divergence(s, t, ignore=torch.zeros(3, dtype=torch.bool)), ValueError, "ignore"),
]


@pytest.mark.parametrize("call, error, named", WRONG)
def test_wrong_arguments(call, error, named):
    with pytest.raises(error, match=f"^{named}: expected"):
        call(*logits((4, 9)))


@hypothesis.settings(max_examples=60, deadline=None, derandomize=True)
@hypothesis.given(
    outer=st.integers(1, 4), classes=st.integers(1, 300), inner=st.integers(1, 40), seed=st.integers(0, 9),
    dtype=st.sampled_from(cases.DTYPES), options=st.sampled_from(list(KINDS.values())), share=st.sampled_from([0, 0.4]),
)  # fmt: skip
def test_any_shape(outer, classes, inner, seed, dtype, options, share):
    """Against the oracle, with impossible classes and rows that are ignored; the backend that is chosen by itself."""
    student, teacher = logits((outer, classes, inner), dtype, seed)
    generator = torch.Generator().manual_seed(seed)
    impossible = torch.rand(student.shape, generator=generator) < share
    student, teacher = (x.masked_fill(impossible, -INF) for x in (student, teacher))
    ignore = torch.rand((outer, inner), generator=generator) < share
    student.requires_grad_()
    name = cases.BACKENDS[0]
    with backends.use_backend(name):
        values = divergence(student, teacher, dim=1, ignore=ignore, temperature=2.0, **options)
        (grad,) = torch.autograd.grad(values.sum(), student)
    exact, slope = oracle.divergence(
        accuracy.float64(student), accuracy.float64(teacher), dim=1, ignore=ignore.numpy(), temperature=2.0, **options
    )
    tight = dtype == torch.float64
    np.testing.assert_allclose(
        accuracy.float64(values), exact, rtol=1e-10 if tight else 3e-5, atol=1e-12 if tight else 2e-6
    )
    tolerance = {torch.float64: 1e-12, torch.float32: 2e-6, torch.float16: 1e-3, torch.bfloat16: 1e-2}[dtype]
    np.testing.assert_allclose(accuracy.float64(grad), slope, atol=tolerance)


@pytest.mark.big
@each_kind
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=cases.name_of)
def test_a_vocabulary(backend, dtype, options, rng):
    check(*logits((16, 50257), dtype), -1, options, rng, condition=8)


@pytest.mark.big
@each_kind
@pytest.mark.parametrize("layout", [cases.contiguous, cases.channels_last], ids=lambda layout: layout.__name__)
def test_masks_at_the_size_of_real_work(backend, layout, options, rng):
    check(*(layout(x) for x in logits((4, 32, 200, 64))), 1, options, rng, condition=8)
