"""pointwise against its definition in NumPy, on every backend, and how it behaves as a part of a network."""

import cases
import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from abckd_kernels import use_backend
from abckd_kernels.ops import pointwise
from abckd_kernels.ops.pointwise import KINDS
from abckd_verify.exact import accuracy, oracle
from abckd_verify.ops.pointwise import DEFINITIONS
from abckd_verify.ops.pointwise import plain_values as plain

SHAPES = ((2, 3, 7), (2, 4, 5, 6), (1, 17, 3, 35), (2, 1, 1, 1), (3, 1, 9), (1, 64, 2, 2), (2, 5, 1, 70))
each_kind = pytest.mark.parametrize("kind", KINDS)
LENGTHS = torch.tensor([6, 2])
FEATURE = (2, 3, 6, 4)


def operands(kind, shape, dtype=torch.float32, layout=cases.contiguous, seed=0):
    """student, teacher, third or None, per_channel or None; those that have gradients require them."""
    s, t, third = (layout(cases.feature(shape, dtype, seed + i)) for i in range(3))
    per_channel = -torch.rand(shape[1], generator=torch.Generator().manual_seed(seed)) - 0.1
    third = third.detach().requires_grad_() if KINDS[kind].third else None
    return s.detach().requires_grad_(), t, third, per_channel if KINDS[kind].per_channel else None


def run(kind, s, t, third, per_channel, parameter=None, lengths=None, padded_length=None):
    lengths = None if lengths is None else torch.as_tensor(lengths)
    return pointwise(
        s, t, kind=kind, parameter=parameter, third=third, per_channel=per_channel, lengths=lengths,
        padded_length=padded_length,
    )  # fmt: skip


def check(kind, shape, dtype=torch.float32, layout=cases.contiguous, lengths=None, padded_length=None, parameter=None):
    s, t, third, per_channel = operands(kind, shape, dtype, layout)
    parameter = KINDS[kind].parameter if parameter is None else parameter
    sums = run(kind, s, t, third, per_channel, parameter, lengths, padded_length)
    wide = torch.float64 if dtype == torch.float64 else torch.float32
    assert sums.dtype == wide and sums.shape == shape[:2]

    exact = [None if x is None else accuracy.float64(x) for x in (s, t, third, per_channel)]
    # The kernel computes with the margin and the parameter in its own accumulators.
    value, *slopes = DEFINITIONS[kind](*exact, parameter)
    valid = oracle.valid_frames(lengths, shape[2], padded_length or shape[2], shape[0])
    counts = np.zeros(shape, bool)
    for b, frames in enumerate(valid):
        counts[b, :, :frames] = True
    in_plain = [None if x is None else x.detach().clone().requires_grad_(x.requires_grad) for x in (s, t, third)]
    plain_values = plain(kind, *in_plain, None if per_channel is None else per_channel.to(dtype), parameter)
    plain_sums = torch.where(torch.from_numpy(counts), plain_values, 0).flatten(2).sum(2)
    accuracy.assert_accurate(
        sums, np.where(counts, value, 0).reshape(*shape[:2], -1).sum(2), plain_sums, "sums", condition=2
    )

    grad = torch.randn(sums.shape, generator=torch.Generator().manual_seed(7)).to(wide)
    leaves = [x for x in (s, third) if x is not None]
    ours = torch.autograd.grad(sums, leaves, grad)
    theirs = torch.autograd.grad(plain_sums, [x for x in in_plain if x is not None and x.requires_grad], grad.to(dtype))
    factor = accuracy.float64(grad).reshape(*shape[:2], *[1] * (len(shape) - 2))
    for mine, slope, other, leaf in zip(ours, slopes, theirs, leaves, strict=False):
        accuracy.assert_gradient(mine, np.where(counts, factor * slope, 0), other, "gradient", condition=2)
        expected = leaf if layout in (cases.contiguous, cases.channels_last) else leaf.contiguous()
        assert mine.stride() == expected.stride()


@each_kind
@pytest.mark.parametrize("dtype", cases.DTYPES, ids=cases.name_of)
@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_against_oracle(backend, shape, kind, dtype):
    check(kind, shape, dtype)


@pytest.mark.parametrize(
    "shape, layout, kind, dtype",
    cases.pairs([(2, 6, 9), (2, 19, 4, 6)], cases.LAYOUTS, list(KINDS), cases.DTYPES),
    ids=cases.id_of,
)
def test_layouts(backend, shape, layout, kind, dtype):
    check(kind, shape, dtype, layout, (4, 9), 9)


@each_kind
@pytest.mark.parametrize("layout", [cases.contiguous, cases.channels_last], ids=lambda layout: layout.__name__)
@pytest.mark.parametrize("lengths", [(20, 7, 1), (0, 1, 13), (20, 20, 20)], ids=str)
@pytest.mark.parametrize("shape", [(3, 2, 20), (3, 3, 7, 5), (3, 21, 3, 18)], ids=str)
def test_lengths(backend, shape, lengths, layout, kind):
    check(kind, shape, layout=layout, lengths=lengths, padded_length=20)


@pytest.mark.parametrize("layout", [cases.contiguous, cases.channels_last], ids=lambda layout: layout.__name__)
@pytest.mark.parametrize("shape", [(1, 3, 9001), (1, 130, 40, 9)], ids=str)
@each_kind
def test_more_than_a_task_takes(backend, shape, layout, kind):
    check(kind, shape, layout=layout, lengths=(shape[2] - 3,))


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=cases.name_of)
@pytest.mark.parametrize(
    "kind, parameter",
    [("power", 1.0), ("power", 1.5), ("power", 2.0), ("power", 9.0), ("boundary", 0.3), ("heteroscedastic", 0.25)],
)
def test_parameters(backend, kind, parameter, dtype):
    check(kind, (2, 5, 7, 3), dtype, parameter=parameter)


@each_kind
def test_zeros_and_ties(backend, kind):
    """A teacher behind a ReLU is exactly 0 in half of its elements: every kind says on which side that lies."""
    grid = torch.cartesian_prod(*2 * [torch.tensor([-1.0, 0.0, 1.0])])
    s, t = (x.reshape(1, 9, 1).clone() for x in grid.unbind(1))  # a channel each
    s.requires_grad_()
    third = torch.zeros(1, 9, 1) if KINDS[kind].third else None
    per_channel = torch.full((9,), -0.5) if KINDS[kind].per_channel else None
    sums = run(kind, s, t, third, per_channel)
    (gradient,) = torch.autograd.grad(sums.sum(), s)
    exact = [None if x is None else accuracy.float64(x) for x in (s, t, third, per_channel)]
    value, slope, *_ = DEFINITIONS[kind](*exact, KINDS[kind].parameter)
    np.testing.assert_allclose(sums.detach().numpy(), value[..., 0], atol=1e-6)
    np.testing.assert_allclose(gradient.numpy(), slope, atol=1e-6)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=cases.name_of)
def test_variances_of_any_size(backend, dtype):
    third = torch.tensor([-1e4, -200.0, -90, -30, -13.8, -1, 0, 1, 30, 79, 90, 1e4]).to(dtype).view(1, 1, -1)
    s, t = torch.full_like(third, 2.0).requires_grad_(), torch.zeros_like(third)
    third.requires_grad_()
    grads = torch.autograd.grad(run("heteroscedastic", s, t, third, None), (s, third), torch.ones(1, 1, dtype=dtype))
    values = (accuracy.float64(x).clip(-700, 300) for x in (s, t, third))
    _, *exact = DEFINITIONS["heteroscedastic"](*values, None, 1e-6)
    for ours, expected in zip(grads, exact, strict=True):
        assert ours.isfinite().all()
        torch.testing.assert_close(ours, torch.from_numpy(expected).to(dtype), rtol=1e-5, atol=1e-30)


@settings(max_examples=60, deadline=None, derandomize=True)
@given(data=st.data())
def test_any_shape_layout_and_padding(data):
    kind = data.draw(st.sampled_from(sorted(KINDS)))
    axes = data.draw(st.sampled_from([3, 4]))
    shape = tuple(data.draw(st.integers(1, n)) for n in (3, 40, 20, 20)[:axes])
    dtype, layout = data.draw(st.sampled_from(cases.DTYPES)), data.draw(st.sampled_from(cases.LAYOUTS))
    padded_length = data.draw(st.integers(1, 30))
    lengths = data.draw(st.none() | st.tuples(*[st.integers(0, padded_length)] * shape[0]))
    with use_backend(cases.BACKENDS[0]):
        check(kind, shape, dtype, layout, lengths, padded_length)


@each_kind
@pytest.mark.parametrize("dtype", cases.DTYPES, ids=cases.name_of)
@pytest.mark.parametrize("garbage", [float("nan"), float("inf")])
@pytest.mark.parametrize("layout", [cases.contiguous, cases.channels_last], ids=lambda layout: layout.__name__)
def test_padded_frames_are_not_read(backend, layout, garbage, kind, dtype):
    results = []
    for fill in (0.0, garbage):
        features = []
        for x in operands(kind, (2, 3, 8, 5), dtype, layout):
            if x is not None and x.dim() > 1:
                x = x.detach().clone()
                x[0, :, 3:] = fill
                x.requires_grad_()
            features.append(x)
        sums = run(kind, *features, lengths=[3, 8])
        leaves = [x for x in (features[0], features[2]) if x is not None]
        results.append([sums, *torch.autograd.grad(sums.sum(), leaves)])
    assert all(map(torch.equal, *results))
    assert all((grad[0, :, 3:] == 0).all() for grad in results[0][1:])


@each_kind
@pytest.mark.parametrize("which", ["student", "teacher", "third"])
@pytest.mark.parametrize("bad", [float("nan"), float("inf"), float("-inf")])
def test_what_is_not_finite_is_as_in_the_reference(backend, bad, which, kind):
    index = ("student", "teacher", "third").index(which)
    if index == 2 and not KINDS[kind].third:
        pytest.skip("takes no third")
    results = []
    for name in (backend, "reference"):
        features = list(operands(kind, (2, 3, 4, 5)))
        features[index] = features[index].detach().clone()
        features[index][0, 1, 2, 3] = bad
        for i in (0, 2):
            if features[i] is not None:
                features[i].requires_grad_()
        with use_backend(name):
            sums = run(kind, *features)
            leaves = [x for x in (features[0], features[2]) if x is not None]
            results.append([sums, *torch.autograd.grad(sums.sum(), leaves)])
    for ours, expected in zip(*results, strict=True):
        torch.testing.assert_close(ours, expected, equal_nan=True, rtol=1e-4, atol=1e-5)
    if bad != bad and kind != "boundary":  # the sign of a teacher that is not a number is none
        assert results[0][0][0, 1].isnan()


@each_kind
def test_empty_batch(backend, kind):
    s, t, third, per_channel = operands(kind, (0, 3, 4, 5))
    sums = run(kind, s, t, third, per_channel)
    (grad,) = torch.autograd.grad(sums.sum(), s)
    assert sums.shape == (0, 3) and grad.shape == s.shape


@each_kind
@pytest.mark.parametrize("lengths", [None, LENGTHS], ids=["whole", "padded"])
@pytest.mark.parametrize("parameter", [None, 1.7])
def test_gradcheck(kind, lengths, parameter):
    s, t, third, per_channel = operands(kind, FEATURE, torch.float64)
    parameter = None if KINDS[kind].parameter is None else parameter
    if per_channel is not None:
        per_channel = per_channel.double()
    leaves = [x for x in (s, third) if x is not None]

    def sums(*leaves):
        return run(kind, leaves[0], t, leaves[1] if third is not None else None, per_channel, parameter, lengths)

    assert torch.autograd.gradcheck(sums, leaves, eps=1e-7, atol=1e-5)


@each_kind
@pytest.mark.parametrize("overload", ["default", "reference"])
def test_opcheck(kind, overload):
    s, t, third, per_channel = operands(kind, FEATURE)
    s_last, t_last = (cases.channels_last(x.detach()) for x in (s, t))
    packet = torch.ops.abckd
    forward, backward = (getattr(getattr(packet, f"pointwise_{name}"), overload) for name in ("forward", "backward"))
    parameter = KINDS[kind].parameter or 0.0
    for student, teacher, lengths in ((s, t, None), (s_last, t, LENGTHS), (s, t_last, LENGTHS)):
        given = student, teacher, third, per_channel, kind, parameter, lengths, 6
        arguments = [x.detach() if isinstance(x, torch.Tensor) else x for x in given]
        torch.library.opcheck(forward, tuple(arguments))
        torch.library.opcheck(backward, (torch.randn(2, 3), *arguments))


@each_kind
def test_second_backward_is_like_the_first(backend, kind):
    s, t, third, per_channel = operands(kind, FEATURE)
    total = run(kind, s * 1, t, third, per_channel).square().sum()
    first, second = (torch.autograd.grad(total, s, retain_graph=True)[0] for _ in range(2))
    assert torch.equal(first, second) and first.abs().max() > 0


def test_second_derivatives_are_refused_rather_than_zero(backend):
    s, t, *_ = operands("squared", FEATURE)
    (first,) = torch.autograd.grad(run("squared", s, t, None, None).square().sum(), s, create_graph=True)
    with pytest.raises(RuntimeError):
        torch.autograd.grad(first.square().sum(), s)


@each_kind
def test_inputs_are_not_changed_and_the_teacher_gets_no_gradient(backend, kind):
    features = operands(kind, FEATURE)
    features[1].requires_grad_()
    before = [x.detach().clone() for x in features if x is not None]
    run(kind, *features).sum().backward()
    assert all(map(torch.equal, before, [x.detach() for x in features if x is not None]))
    assert features[1].grad is None and features[0].grad.abs().max() > 0


@each_kind
def test_upstream_gradients_of_stride_zero(backend, kind):
    s, t, third, per_channel = operands(kind, FEATURE)
    sums = run(kind, s, t, third, per_channel)
    upstream = torch.tensor(0.5).expand(sums.shape)
    accuracy.assert_same(
        *(torch.autograd.grad(sums, s, x, retain_graph=True) for x in (upstream, upstream.contiguous())), backend
    )


@pytest.mark.parametrize("needed", ["student", "third"])
def test_only_what_needs_a_gradient_gets_one(backend, needed):
    s, t, third, _ = operands("heteroscedastic", FEATURE)
    leaf, other = (s, third) if needed == "student" else (third, s)
    other.requires_grad_(False)
    run("heteroscedastic", s, t, third, None).sum().backward()
    assert leaf.grad.abs().max() > 0 and other.grad is None


def test_dtypes_and_layouts_may_differ(backend):
    s, t, *_ = operands("squared", FEATURE)
    expected = run("squared", s, t, None, None)
    torch.testing.assert_close(run("squared", s, cases.channels_last(t), None, None), expected)
    sums = run("squared", s.bfloat16(), t.double(), None, None)
    assert sums.dtype == torch.float64
    (grad,) = torch.autograd.grad(sums.sum(), s)
    assert grad.dtype == torch.float32 and grad.abs().max() > 0


def test_same_result_whatever_the_number_of_threads(backend):
    s, t, *_ = operands("squared", (3, 7, 61, 67))
    threads, results = torch.get_num_threads(), []
    try:
        for count in (1, 2, 3):
            torch.set_num_threads(count)
            results += [run("squared", s, t, None, None)]
    finally:
        torch.set_num_threads(threads)
    accuracy.assert_same(results[1:], results[:1] * 2, backend)


X = torch.zeros(FEATURE)
WRONG = [
    (lambda: pointwise(X, X, kind="cubed"), ValueError, ["kind", "'squared'", "'cubed'"]),
    (lambda: pointwise(X, X[:, :2]), ValueError, ["teacher", "(2, 3, 6, 4)", "(2, 2, 6, 4)"]),
    (lambda: pointwise(X, X.to("meta")), ValueError, ["teacher", "cpu", "meta"]),
    (lambda: pointwise(X.int(), X), TypeError, ["student", "int32"]),
    (lambda: pointwise(X, None), TypeError, ["teacher", "NoneType"]),
    (lambda: pointwise(X, X, parameter=2.0), ValueError, ["parameter", "'squared'", "2.0"]),
    (lambda: pointwise(X, X, kind="power", parameter=0), ValueError, ["parameter", "positive", "0"]),
    (lambda: pointwise(X, X, kind="margin"), ValueError, ["per_channel", "'margin'", "None"]),
    (lambda: pointwise(X, X, kind="margin", per_channel=X[0, 0, 0]), ValueError, ["per_channel", "(3,)", "(4,)"]),
    (lambda: pointwise(X, X, third=X), ValueError, ["third", "None", "'squared'"]),
    (lambda: pointwise(X, X, kind="heteroscedastic", third=X[:1]), ValueError, ["third", "(2, 3, 6, 4)"]),
    (lambda: pointwise(X, X, lengths=[1]), ValueError, ["lengths", "(2,)", "(1,)"]),
]


@pytest.mark.parametrize("call, error, words", WRONG)
def test_wrong_arguments(call, error, words):
    with pytest.raises(error) as raised:
        call()
    assert all(word in str(raised.value) for word in words), str(raised.value)


DIRECT = {
    "kind": lambda op: op(X, X, None, None, "cubed", 0.0, None, 6),
    "teacher": lambda op: op(X, X[:1], None, None, "squared", 0.0, None, 6),
    "student": lambda op: op(X[0, 0], X[0, 0], None, None, "squared", 0.0, None, 6),
    "third": lambda op: op(X, X, X, None, "squared", 0.0, None, 6),
    "per_channel": lambda op: op(X, X, None, None, "margin", 0.0, None, 6),
    "lengths": lambda op: op(X, X, None, None, "squared", 0.0, torch.tensor([1]), 6),
}


@pytest.mark.skipif("cpu" not in cases.BACKENDS, reason="the extension checks its arguments itself")
@pytest.mark.parametrize("argument", DIRECT)
def test_direct_calls_are_checked(argument):
    with pytest.raises(ValueError, match=argument):
        DIRECT[argument](torch.ops.abckd.pointwise_forward.default)


def test_compiles_in_one_graph(backend):
    s, t, third, _ = operands("heteroscedastic", FEATURE)

    def function(s, third):
        return pointwise(s, t, kind="heteroscedastic", third=third, lengths=LENGTHS).sum()

    ours = torch.compile(function, fullgraph=True, backend="aot_eager")(s, third)
    gradients = [torch.autograd.grad(x, (s, third)) for x in (ours, function(s, third))]
    accuracy.assert_same(*gradients, backend)
    torch._dynamo.reset()


@pytest.mark.big
@each_kind
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=cases.name_of)
@pytest.mark.parametrize("layout", [cases.contiguous, cases.channels_last], ids=lambda layout: layout.__name__)
def test_at_the_size_of_real_work(backend, layout, dtype, kind):
    check(kind, (8, 64, 200, 64), dtype, layout, (200, 187, 150, 200, 133, 64, 1, 99), 200)
