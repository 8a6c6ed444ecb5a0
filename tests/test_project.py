"""project against a NumPy oracle, on every backend: numerics, layouts, padding, gradients, and wrong arguments."""

import cases
import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from abckd_kernels import backends, use_backend
from abckd_kernels.ops import project
from abckd_verify.exact import accuracy, oracle

WIDE = {torch.float64: torch.float64}


def wide(dtype):
    return WIDE.get(dtype, torch.float32)


class Problem:
    """Operands of one call, and what NumPy in float64 makes of them."""

    def __init__(
        self, student, teacher_channels, dtype=torch.float32, teachers=1, bias=True, attention=False, lengths=None,
        padded_length=None, layout=cases.contiguous, teacher_layout=None, teacher_dtype=None, seed=0,
    ):  # fmt: skip
        batch, channels, *spatial = student
        generator = torch.Generator().manual_seed(seed)

        def parameter(*shape):
            return torch.randn(shape, generator=generator, dtype=torch.float64).to(wide(dtype)).requires_grad_()

        self.student = layout(cases.feature(student, dtype, seed)).detach().requires_grad_()
        self.teachers = [
            (teacher_layout or layout)(
                cases.feature((batch, teacher_channels, *spatial), teacher_dtype or dtype, seed + 1 + j)
            )
            for j in range(teachers)
        ]
        self.weight = parameter(teacher_channels, channels)
        self.bias = parameter(teacher_channels) if bias else None
        self.attention = parameter(batch, teachers) if attention else None
        self.valid = oracle.valid_frames(lengths, spatial[0], padded_length or spatial[0], batch)
        self.padding = {"lengths": None if lengths is None else torch.tensor(lengths), "padded_length": padded_length}
        self.error_grads = torch.randn(batch, generator=generator, dtype=torch.float64).to(wide(dtype))

    @property
    def leaves(self):
        return {
            name: x
            for name in ("student", "weight", "bias", "attention")
            if (x := getattr(self, name)) is not None and x.requires_grad
        }

    def __call__(self, **changed):
        options = {"bias": self.bias, "attention": self.attention} | self.padding | changed
        return project(self.student, self.weight, self.teachers, **options)

    def exact(self):
        """Errors, and gradients by name, one sample at a time."""
        s, w, g = (accuracy.float64(x) for x in (self.student, self.weight, self.error_grads))
        ts = [accuracy.float64(t) for t in self.teachers]
        bias = 0 if self.bias is None else accuracy.float64(self.bias)[:, None]
        shares = np.ones((len(s), 1)) if self.attention is None else accuracy.float64(self.attention)
        errors = np.zeros(len(s))
        grads = {name: np.zeros(x.shape) for name, x in self.leaves.items()}
        for b, frames in enumerate(self.valid):
            x, *ys = (a[b, :, :frames].reshape(a.shape[1], -1) for a in (s, *ts))
            r = w @ x + bias - sum(share * y for share, y in zip(shares[b], ys, strict=True))
            errors[b] = (r**2).sum()
            r = 2 * g[b] * r
            grads["student"][b, :, :frames] = (w.T @ r).reshape(s[b, :, :frames].shape)
            grads["weight"] += r @ x.T
            if self.bias is not None:
                grads["bias"] += r.sum(1)
            if self.attention is not None:
                grads["attention"][b] = [-(r * y).sum() for y in ys]
        return errors, grads

    def plain(self):
        """The same by plain PyTorch, in float32 (float64 for float64): the measure of accuracy."""
        leaves = {name: x.detach().clone().requires_grad_() for name, x in self.leaves.items()}
        frames = torch.arange(self.student.shape[2]) < torch.tensor(self.valid, dtype=torch.int64)[:, None]
        mask = frames.view(len(frames), 1, -1, *[1] * (self.student.dim() - 3))
        to = wide(self.student.dtype)
        r = torch.einsum("dc,bc...->bd...", leaves["weight"], leaves["student"].to(to))
        if "bias" in leaves:
            r = r + leaves["bias"].view(-1, *[1] * (r.dim() - 2))
        for j, t in enumerate(self.teachers):
            share = leaves["attention"][:, j].view(-1, *[1] * (r.dim() - 1)) if "attention" in leaves else 1
            r = r - share * t.to(to)
        errors = torch.where(mask, r, 0).square().flatten(1).sum(1)
        return errors.detach(), dict(
            zip(leaves, torch.autograd.grad(errors, leaves.values(), self.error_grads), strict=True)
        )


def check(problem):
    errors = problem()
    assert errors.dtype == wide(problem.student.dtype)
    exact, exact_grads = problem.exact()
    plain, plain_grads = problem.plain()
    accuracy.assert_accurate(errors, exact, plain, "errors")
    leaves = problem.leaves
    grads = torch.autograd.grad(errors, leaves.values(), problem.error_grads)
    # A value is a sum of this many products, and cancellation leaves less than them.
    condition = 4 + problem.weight.shape[0] ** 0.5
    for (name, leaf), ours in zip(leaves.items(), grads, strict=True):
        assert ours.dtype == leaf.dtype
        accuracy.assert_gradient(ours, exact_grads[name], plain_grads[name], name, condition)


SHAPES = (
    ((2, 3, 7), 5),
    ((2, 4, 5, 6), 9),
    ((1, 17, 3, 35), 33),
    ((2, 1, 1, 1), 1),
    ((3, 1, 9), 2),
    ((1, 70, 2, 2), 20),
)


@pytest.mark.parametrize("dtype", cases.DTYPES, ids=cases.name_of)
@pytest.mark.parametrize("bias", [False, True])
@pytest.mark.parametrize("student, channels", SHAPES, ids=str)
def test_against_oracle(backend, student, channels, bias, dtype):
    check(Problem(student, channels, dtype, bias=bias))


@pytest.mark.parametrize("dtype", cases.DTYPES, ids=cases.name_of)
@pytest.mark.parametrize("layout", cases.LAYOUTS, ids=lambda layout: layout.__name__)
@pytest.mark.parametrize("teacher_layout", [cases.contiguous, cases.channels_last], ids=lambda layout: layout.__name__)
def test_layouts(backend, layout, teacher_layout, dtype):
    check(Problem((2, 19, 4, 6), 21, dtype, lengths=(3, 4), layout=layout, teacher_layout=teacher_layout))
    check(Problem((2, 6, 9), 4, dtype, layout=layout, teacher_layout=teacher_layout))


@pytest.mark.parametrize("dtype", cases.DTYPES, ids=cases.name_of)
@pytest.mark.parametrize("teachers", [1, 3])
def test_several_teachers_with_attention(backend, teachers, dtype):
    check(Problem((3, 5, 6, 5), 7, dtype, teachers, attention=True, lengths=(6, 0, 4)))
    check(Problem((2, 5, 8), 3, dtype, teachers, attention=True, bias=False, layout=cases.channels_last))


@pytest.mark.parametrize("lengths", [(20, 7, 1), (0, 1, 13), (20, 20, 20)], ids=str)
@pytest.mark.parametrize("layout", [cases.contiguous, cases.channels_last], ids=lambda layout: layout.__name__)
@pytest.mark.parametrize("student", [(3, 2, 20), (3, 3, 7, 5), (3, 5, 3, 18)], ids=str)
def test_lengths(backend, student, layout, lengths):
    check(Problem(student, 6, lengths=lengths, padded_length=20, layout=layout))


@pytest.mark.parametrize("channels", [(130, 40), (40, 130), (33, 64)], ids=str)
@pytest.mark.parametrize("layout", [cases.contiguous, cases.channels_last], ids=lambda layout: layout.__name__)
def test_many_channels(backend, layout, channels):
    check(Problem((2, channels[0], 9, 7), channels[1], layout=layout))
    check(Problem((1, channels[0], 4, 20), channels[1], torch.float64, layout=layout))


@pytest.mark.parametrize("dtypes", [(torch.bfloat16, torch.float32), (torch.float32, torch.float16)], ids=str)
def test_features_of_mixed_dtypes(backend, dtypes):
    check(Problem((2, 5, 6, 4), 6, dtypes[0], teacher_dtype=dtypes[1]))


def test_float64_of_one_feature_makes_all_float64(backend):
    problem = Problem((2, 5, 6, 4), 6, torch.float32, teacher_dtype=torch.float64)
    errors = problem()
    assert errors.dtype == torch.float64
    np.testing.assert_allclose(errors.detach().numpy(), problem.exact()[0], rtol=1e-12)
    (grad,) = torch.autograd.grad(errors.sum(), problem.student)
    assert grad.dtype == torch.float32


@pytest.mark.parametrize("dtype", cases.DTYPES, ids=cases.name_of)
@pytest.mark.parametrize("layout", [cases.contiguous, cases.channels_last], ids=lambda layout: layout.__name__)
@pytest.mark.parametrize("garbage", [float("nan"), float("inf")])
def test_padded_frames_are_not_read(backend, garbage, layout, dtype):
    results = []
    for value in (0, garbage):
        problem = Problem((2, 3, 8, 5), 4, dtype, lengths=(3, 8), layout=layout)
        with torch.no_grad():
            for x in (problem.student, *problem.teachers):
                x[0, :, 3:] = value
        errors = problem()
        results.append((errors, *torch.autograd.grad(errors.sum(), problem.leaves.values())))
    assert all(map(torch.equal, *results))
    assert (results[1][1][0, :, 3:] == 0).all()


@pytest.mark.parametrize("frozen", ["student", "weight", "bias", "attention"])
def test_only_what_needs_a_gradient_gets_one(backend, frozen):
    problem = Problem((2, 3, 6, 4), 5, attention=True)
    expected = dict(zip(problem.leaves, torch.autograd.grad(problem().sum(), problem.leaves.values()), strict=True))
    getattr(problem, frozen).requires_grad_(False)
    problem().sum().backward()
    assert getattr(problem, frozen).grad is None
    # Not to the bit: torch may take another product where fewer gradients are needed.
    for name, leaf in problem.leaves.items():
        torch.testing.assert_close(leaf.grad, expected[name])


def test_teachers_get_no_gradient(backend):
    problem = Problem((2, 3, 6), 5)
    problem.teachers[0].requires_grad_()
    problem().sum().backward()
    assert problem.teachers[0].grad is None


@pytest.mark.parametrize("layout", [cases.contiguous, cases.channels_last], ids=lambda layout: layout.__name__)
def test_the_gradient_keeps_the_layout_of_the_feature(backend, layout):
    problem = Problem((2, 8, 4, 6), 3, layout=layout)
    problem().sum().backward()
    assert problem.student.grad.stride() == problem.student.stride()


def test_empty_batch(backend):
    problem = Problem((0, 3, 4, 5), 2, attention=True)
    errors = problem()
    errors.sum().backward()
    assert errors.shape == (0,) and problem.student.grad.shape == (0, 3, 4, 5)
    assert all((x.grad == 0).all() for x in (problem.weight, problem.bias))


def test_upstream_gradient_of_stride_zero(backend):
    problem = Problem((3, 4, 5, 6), 7)
    errors, leaves = problem(), problem.leaves.values()
    whole = torch.autograd.grad(errors, leaves, torch.full((3,), 0.5), retain_graph=True)
    expanded = torch.autograd.grad(errors, leaves, torch.tensor(0.5).expand(3))
    accuracy.assert_same(whole, expanded, backend)


def test_second_backward_is_like_the_first_and_inputs_stay(backend):
    problem = Problem((2, 3, 4, 5), 6, attention=True)
    before = [x.detach().clone() for x in (*problem.leaves.values(), *problem.teachers)]
    errors = problem().square().sum()
    first, second = (torch.autograd.grad(errors, problem.leaves.values(), retain_graph=True) for _ in range(2))
    assert all(map(torch.equal, first, second)) and all(x.abs().max() > 0 for x in first)
    assert all(map(torch.equal, before, (*problem.leaves.values(), *problem.teachers)))


def test_second_derivatives_are_refused_rather_than_zero(backend):
    problem = Problem((2, 3, 4), 2)
    with pytest.raises(RuntimeError):
        (first,) = torch.autograd.grad(problem().square().sum(), problem.student, create_graph=True)
        torch.autograd.grad(first.square().sum(), problem.student)


@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
def test_what_is_not_finite_shows(backend, bad):
    problem = Problem((2, 3, 4, 5), 2)
    with torch.no_grad():
        problem.student[0, 1, 2, 3] = bad
    errors = problem()
    (grad,) = torch.autograd.grad(errors.sum(), problem.student)
    assert errors.isfinite().tolist() == [False, True]
    finite = torch.ones(2, 4, 5, dtype=torch.bool)
    finite[0, 2, 3] = False
    assert torch.equal(grad.isfinite().all(1), finite)


@pytest.mark.skipif(backends.TRITON_INTERPRET, reason="one thread")
def test_results_do_not_depend_on_the_number_of_threads(backend):
    problem, results, threads = Problem((3, 20, 40, 30), 24), [], torch.get_num_threads()
    try:
        for count in (1, 2, 3):
            torch.set_num_threads(count)
            errors = problem()
            results.append((errors, *torch.autograd.grad(errors.sum(), problem.leaves.values())))
    finally:
        torch.set_num_threads(threads)
    for other in results[1:]:
        accuracy.assert_same(other, results[0], backend)


def test_gradcheck(backend):
    problem = Problem((2, 3, 4, 3), 5, torch.float64, 2, attention=True, lengths=(4, 2))
    names = list(problem.leaves)

    def errors(*leaves):
        given = dict(zip(names, leaves, strict=True))
        return project(given.pop("student"), given.pop("weight"), problem.teachers, **given, **problem.padding)

    assert torch.autograd.gradcheck(errors, tuple(problem.leaves.values()))


few = settings(
    max_examples=25, deadline=None, derandomize=True, database=None, suppress_health_check=[HealthCheck.too_slow]
)
SIZE = st.integers(1, 9)
ONE_OF_TWO = st.sampled_from([cases.contiguous, cases.channels_last])


@few
@given(
    name=st.sampled_from(cases.BACKENDS), student=st.tuples(st.integers(1, 3), st.integers(1, 40), SIZE, SIZE),
    channels=st.integers(1, 40), teachers=st.integers(1, 3), bias=st.booleans(),
    layouts=st.tuples(ONE_OF_TWO, ONE_OF_TWO),
    padded=st.none() | st.lists(st.integers(0, 12), min_size=3, max_size=3), seed=st.integers(0, 1000),
)  # fmt: skip
def test_any_sizes(name, student, channels, teachers, bias, layouts, padded, seed):
    lengths = None if padded is None else tuple(padded[: student[0]])
    with use_backend(name):
        check(
            Problem(
                student,
                channels,
                torch.float64,
                teachers,
                bias,
                teachers > 1,
                lengths,
                None if padded is None else 12,
                *layouts,
                seed=seed,
            )  # fmt: skip
        )


def overloads(op):
    packet = getattr(torch.ops.abckd, op)
    names = ["default", "reference", *(["triton"] if backends.TRITON_INTERPRET else [])]
    return [pytest.param(getattr(packet, name), id=f"{op}.{name}") for name in names]


def arguments(problem):
    given = (
        problem.student, problem.weight, problem.teachers, problem.bias, problem.attention,
        problem.padding["lengths"], 6,
    )  # fmt: skip
    return tuple(x.detach() if isinstance(x, torch.Tensor) else x for x in given)


@pytest.mark.parametrize("op", overloads("project_forward"))
@pytest.mark.parametrize("layout", [cases.contiguous, cases.channels_last], ids=lambda layout: layout.__name__)
def test_opcheck_forward(op, layout):
    torch.library.opcheck(op, arguments(Problem((2, 3, 6, 4), 5, layout=layout)))
    torch.library.opcheck(
        op, arguments(Problem((2, 3, 6, 4), 5, teachers=2, attention=True, lengths=(6, 2), bias=False))
    )


@pytest.mark.parametrize("op", overloads("project_backward"))
@pytest.mark.parametrize("needed", [[True] * 4, [True, False, True, False], [False, True, False, False]], ids=str)
def test_opcheck_backward(op, needed):
    problem = Problem((2, 3, 6, 4), 5, torch.bfloat16, teachers=2, attention=True, lengths=(6, 2))
    torch.library.opcheck(op, (problem.error_grads, *arguments(problem), needed))


def test_compiles_without_a_break():
    problem = Problem((2, 3, 6, 4), 5, teachers=2, attention=True, lengths=(6, 2))
    leaves = problem.leaves.values()

    def loss():
        return problem().sum()

    compiled = torch.compile(loss, fullgraph=True, backend="aot_eager")
    torch.testing.assert_close(compiled(), loss())
    for ours, expected in zip(*(torch.autograd.grad(f(), leaves) for f in (compiled, loss)), strict=True):
        torch.testing.assert_close(ours, expected)


S, T, W = torch.zeros(2, 3, 6, 4), torch.zeros(2, 5, 6, 4), torch.zeros(5, 3)
WRONG = [
    (lambda: project(S.int(), W, T), TypeError, ["student", "float32", "int32"]),
    (lambda: project(S, W, []), TypeError, ["teachers", "non-empty"]),
    (lambda: project(S, W, T[:1]), ValueError, ["teachers[0]", "(2, 5, 6, 4)", "(1, 5, 6, 4)"]),
    (lambda: project(S, W, T[:, :, :3]), ValueError, ["teachers[0]", "(2, 5, 6, 4)", "(2, 5, 3, 4)"]),
    (lambda: project(S, W, [T, S]), ValueError, ["teachers[1]", "(2, 5, 6, 4)", "(2, 3, 6, 4)"]),
    (lambda: project(S, W, [T, T]), ValueError, ["attention", "(2, 2)", "None"]),
    (lambda: project(S, W.T, T), ValueError, ["weight", "(5, 3)", "(3, 5)"]),
    (lambda: project(S, W.long(), T), TypeError, ["weight", "floating", "int64"]),
    (lambda: project(S, W, T, bias=torch.zeros(3)), ValueError, ["bias", "(5,)", "(3,)"]),
    (lambda: project(S, W, T, attention=torch.zeros(2, 2)), ValueError, ["attention", "(2, 1)", "(2, 2)"]),
    (lambda: project(S, W.to("meta"), T), ValueError, ["weight", "cpu", "meta"]),
    (lambda: project(S, W, T, lengths=torch.tensor([6])), ValueError, ["lengths", "(2,)", "(1,)"]),
    (lambda: project(S, W, T, padded_length=0), ValueError, ["padded_length", "positive", "0"]),
]


@pytest.mark.parametrize("call, error, words", WRONG, ids=[words[0] + str(i) for i, (_, _, words) in enumerate(WRONG)])
def test_wrong_arguments(call, error, words):
    with pytest.raises(error) as caught:
        call()
    assert all(word in str(caught.value) for word in words), caught.value


@pytest.mark.big
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=cases.name_of)
@pytest.mark.parametrize("layout", [cases.contiguous, cases.channels_last], ids=lambda layout: layout.__name__)
def test_at_the_size_of_real_work(backend, layout, dtype):
    check(Problem((8, 32, 200, 64), 64, dtype, lengths=(200, 187, 150, 200, 133, 64, 1, 99), layout=layout))
