"""spectral against the definition in NumPy, on every backend, and how it behaves as a part of a network."""

import cases
import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from test_properties import few

from abckd_kernels import spectral, use_backend
from abckd_kernels.ops.spectral import spectra
from abckd_verify.exact import accuracy
from abckd_verify.exact.oracle import valid_frames
from abckd_verify.ops.spectral import errors_and_gradients as oracle

SHAPES = ((2, 3, 7), (1, 17, 5), (2, 1, 1), (3, 1, 9), (2, 2, 5, 6), (1, 33, 1), (2, 3, 1, 70), (2, 129, 41))
COMPLEX = (torch.complex64, torch.complex128)
ALL_DTYPES = (*cases.DTYPES, *COMPLEX)


# ---------------------------------------------------------------------------------------------- the definition


def plain(student, teacher, exponent, valid, eps=1e-12):
    """Both errors as anybody would write them, in the dtype of the pairs."""
    mask = (torch.arange(student.shape[-2]) < torch.tensor(valid)[:, None]).reshape(
        len(student), *[1] * (student.dim() - 3), -1, 1
    )
    s, t = (torch.where(mask, x, 0) for x in (student, teacher))
    p, q = ((x.square().sum(-1, keepdim=True) + eps).sqrt() for x in (s, t))
    count = torch.tensor(valid).clamp(min=1) * s[0, ..., 0, 0].numel()
    errors = p**exponent - q**exponent, s * p ** (exponent - 1) - t * q ** (exponent - 1)
    return [error.square().flatten(1).sum(1) / count for error in errors]


def spectrum(shape, dtype=torch.complex64, seed=0):
    """Bins of very different loudness, one of them silent; complex, or pairs in a real dtype."""
    generator = torch.Generator().manual_seed(seed)
    x = torch.randn((*shape, 2), generator=generator, dtype=torch.float64)
    x = x * torch.exp(2 * torch.randn((*shape, 1), generator=generator, dtype=torch.float64) - 1)
    if len(x.view(-1, 2)) > 1:
        x.view(-1, 2)[len(x.view(-1, 2)) // 2] = 0
    return torch.view_as_complex(x).to(dtype) if dtype.is_complex else x.to(dtype)


def bands_last(x):
    """As torch.stft's result lies."""
    axis = -1 if x.is_complex() else -2
    return x.transpose(axis - 1, axis).contiguous().transpose(axis - 1, axis)


def shifted(x):
    """Contiguous, but not aligned to more than an element."""
    flat = torch.zeros(x.numel() + 1, dtype=x.dtype)[1:]
    return flat.copy_(x.flatten()).view(x.shape)


def every_other(x):
    """Frames with gaps between them."""
    axis = x.dim() - (1 if x.is_complex() else 2)
    return torch.stack([x, x], axis + 1).select(axis + 1, 0)


LAYOUTS = (cases.contiguous, bands_last, shifted, every_other)


def complex128(x):
    pairs = spectra.as_pairs(x.detach()).to(torch.float64, copy=True, memory_format=torch.contiguous_format)
    return torch.view_as_complex(pairs).numpy()


def check(student, teacher, exponent, lengths, padded_length, rng, condition=3):
    """condition: 2^(c log2 m) in float32 has a relative error of some c |log2 m| units in the last place."""
    student = student.detach().requires_grad_()
    valid = valid_frames(lengths, spectra.bins_shape(student)[-1], padded_length, len(student))
    given_lengths = None if lengths is None else torch.tensor(lengths)
    ours = spectral(student, teacher, exponent=exponent, lengths=given_lengths, padded_length=padded_length)
    wide = torch.float64 if student.dtype in (torch.float64, torch.complex128) else torch.float32
    assert ours.magnitude.dtype == ours.complex.dtype == wide

    exact, exact_grads = oracle(complex128(student), complex128(teacher), exponent, valid)
    pairs = spectra.as_pairs(student.detach()).to(wide, copy=True).requires_grad_()
    theirs = plain(pairs, spectra.as_pairs(teacher).to(wide), exponent, valid)
    for index, name in enumerate(("magnitude", "complex")):
        accuracy.assert_accurate(ours[index], exact[index], theirs[index], name, condition)
        upstream = torch.randn(len(student), generator=rng).to(wide)
        (grad,) = torch.autograd.grad(ours[index], student, upstream, retain_graph=True)
        (their_grad,) = torch.autograd.grad(theirs[index], pairs, upstream, retain_graph=True)
        expected = exact_grads[index] * accuracy.float64(upstream).reshape(-1, *[1] * (pairs.dim() - 1))
        if student.dtype == torch.float16:
            expected = expected.clip(-65504, 65504)  # and not infinite
        accuracy.assert_gradient(spectra.as_pairs(grad), expected, their_grad, f"gradient of {name}", 2 * condition)


@pytest.mark.parametrize("dtype", ALL_DTYPES, ids=cases.name_of)
@pytest.mark.parametrize("exponent", [0.3, 0.5, 1.0, 2.0])
@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_against_oracle(backend, shape, exponent, dtype, rng):
    check(spectrum(shape, dtype), spectrum(shape, dtype, 1), exponent, None, shape[-1], rng)


@pytest.mark.parametrize(
    "shape, of_student, of_teacher, dtype",
    cases.pairs([(2, 5, 11), (3, 2, 6, 9)], LAYOUTS, LAYOUTS, ALL_DTYPES),
    ids=cases.id_of,
)
def test_layouts(backend, shape, of_student, of_teacher, dtype, rng):
    student, teacher = of_student(spectrum(shape, dtype)), of_teacher(spectrum(shape, dtype, 1))
    check(student, teacher, 0.3, (4, 9, 0)[: shape[0]], 9, rng)


@pytest.mark.parametrize("lengths", [(20, 7, 1), (0, 1, 13), (20, 20, 20)], ids=str)
@pytest.mark.parametrize("shape", [(3, 5, 20), (3, 130, 7), (3, 2, 9, 18), (3, 1, 1)], ids=str)
@pytest.mark.parametrize("layout", [cases.contiguous, bands_last], ids=lambda layout: layout.__name__)
@pytest.mark.parametrize("dtype", [torch.complex64, torch.bfloat16], ids=cases.name_of)
def test_lengths(backend, shape, lengths, layout, dtype, rng):
    check(layout(spectrum(shape, dtype)), layout(spectrum(shape, dtype, 1)), 0.3, lengths, 20, rng)


@pytest.mark.parametrize("layout", [cases.contiguous, bands_last], ids=lambda layout: layout.__name__)
@pytest.mark.parametrize("dtype", [torch.complex64, torch.float16], ids=cases.name_of)
def test_several_blocks_per_sample(backend, layout, dtype, rng):
    shape = (3, 65, 151)
    student, teacher = layout(spectrum(shape, dtype)), layout(spectrum(shape, dtype, 1))
    check(student, teacher, 0.3, None, 151, rng)
    check(student, teacher, 0.5, (151, 140, 3), 151, rng)


@pytest.mark.parametrize("exponent", [0.1, 0.3, 0.7, 1.5])
@pytest.mark.parametrize("loudness", [1e-6, 1e-3, 1e4, 1e8])
def test_loudness_of_every_size(backend, loudness, exponent, rng):
    shape = (2, 9, 13)
    check(spectrum(shape) * loudness, spectrum(shape, seed=1) * loudness, exponent, None, 13, rng, condition=12)


# ---------------------------------------------------------------------------------------------- edges


@pytest.mark.parametrize("dtype", ALL_DTYPES, ids=cases.name_of)
@pytest.mark.parametrize("silent", ["student", "teacher", "both"])
def test_silence_is_finite(backend, silent, dtype):
    student, teacher = spectrum((2, 5, 6), dtype), spectrum((2, 5, 6), dtype, 1)
    for name, x in (("student", student), ("teacher", teacher)):
        if silent in (name, "both"):
            x[0] = 0
    student.requires_grad_()
    errors = spectral(student, teacher)
    (grad,) = torch.autograd.grad((errors.magnitude + errors.complex).sum(), student)
    assert torch.cat(errors).isfinite().all() and grad.isfinite().all()
    if silent == "both":
        assert errors.magnitude[0] == errors.complex[0] == 0 and (grad[0] == 0).all()


def test_equal_spectra_have_no_error(backend):
    student = spectrum((2, 5, 6)).requires_grad_()
    errors = spectral(student, bands_last(student.detach().clone()))
    (grad,) = torch.autograd.grad((errors.magnitude + errors.complex).sum(), student)
    assert (torch.cat(errors) == 0).all() and (grad == 0).all()


def test_without_compression_both_are_plain_errors(backend):
    student, teacher = spectrum((2, 5, 6)), spectrum((2, 5, 6), seed=1)
    errors = spectral(student, teacher, exponent=1)
    torch.testing.assert_close(errors.complex, (student - teacher).abs().square().mean((1, 2)))
    torch.testing.assert_close(errors.magnitude, (student.abs() - teacher.abs()).square().mean((1, 2)))


@pytest.mark.parametrize("layout", [cases.contiguous, bands_last], ids=lambda layout: layout.__name__)
@pytest.mark.parametrize("dtype", ALL_DTYPES, ids=cases.name_of)
@pytest.mark.parametrize("garbage", [float("nan"), float("inf")])
def test_padded_frames_are_not_read(backend, garbage, dtype, layout):
    clean, teacher = layout(spectrum((2, 5, 8), dtype)), layout(spectrum((2, 5, 8), dtype, 1))
    dirty, dirty_teacher = clean.clone(), teacher.clone()
    for x in (dirty, dirty_teacher):
        x[0, :, 3:] = garbage
    results = []
    for s, t in ((clean, teacher), (dirty, dirty_teacher)):
        s.requires_grad_()
        errors = spectral(s, t, lengths=torch.tensor([3, 8]))
        (errors.magnitude.sum() + errors.complex.sum()).backward()
        results.append((*errors, s.grad))
    assert all(map(torch.equal, *results))
    assert (results[1][2][0, :, 3:] == 0).all()


@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
@pytest.mark.parametrize("where", ["student", "teacher"])
def test_what_is_not_finite_stays_so(backend, where, bad):
    student, teacher = spectrum((2, 5, 6), torch.float32), spectrum((2, 5, 6), torch.float32, 1)
    {"student": student, "teacher": teacher}[where][0, 2, 3, 1] = bad
    errors = spectral(student, teacher)
    assert not errors.magnitude[0].isfinite() and not errors.complex[0].isfinite()
    assert errors.magnitude[1].isfinite() and errors.complex[1].isfinite()


def test_empty_batch(backend):
    student = torch.zeros(0, 5, 6, dtype=torch.complex64, requires_grad=True)
    errors = spectral(student, student.detach())
    (errors.magnitude.sum() + errors.complex.sum()).backward()
    assert (errors.magnitude.shape, errors.complex.shape, student.grad.shape) == ((0,), (0,), (0, 5, 6))


def test_conjugates_that_are_lazy(backend):
    student, teacher = spectrum((2, 5, 6)), spectrum((2, 5, 6), seed=1)
    accuracy.assert_same(
        spectral(student.conj(), teacher), spectral(student.conj().resolve_conj(), teacher), backend
    )


# ---------------------------------------------------------------------------------------------- as a part of a network


@pytest.mark.parametrize("layout", [cases.contiguous, bands_last], ids=lambda layout: layout.__name__)
def test_the_gradient_keeps_the_layout_of_the_student(backend, layout):
    student = layout(spectrum((2, 8, 4), torch.float32)).requires_grad_()
    spectral(student, spectrum((2, 8, 4), torch.float32, 1)).complex.sum().backward()
    assert student.grad.stride() == student.stride()


def test_the_teacher_gets_no_gradient(backend):
    student, teacher = (spectrum((2, 5, 6), seed=seed).requires_grad_() for seed in (0, 1))
    spectral(student, teacher).complex.sum().backward()
    assert student.grad.abs().max() > 0 and teacher.grad is None
    assert not spectral(student.detach(), teacher).complex.requires_grad


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16], ids=cases.name_of)
def test_dtypes_may_differ(backend, dtype):
    student, teacher = spectrum((2, 5, 6), dtype).requires_grad_(), spectrum((2, 5, 6), seed=1)
    errors = spectral(student, teacher)
    expected = spectral(student.detach().float(), teacher)
    accuracy.assert_same(errors, expected, backend)
    errors.complex.sum().backward()
    assert student.grad.dtype == dtype and student.grad.abs().max() > 0


def test_either_result_may_be_unused(backend):
    student, teacher = spectrum((2, 5, 6), torch.complex128).requires_grad_(), spectrum((2, 5, 6), torch.complex128, 1)
    _, exact = oracle(complex128(student), complex128(teacher), 0.3, [6, 6])
    for index in range(2):
        (grad,) = torch.autograd.grad(spectral(student, teacher)[index].sum(), student)
        torch.testing.assert_close(torch.view_as_real(grad), torch.from_numpy(exact[index]))


def test_second_backward_is_like_the_first(backend):
    student = spectrum((2, 5, 6)).requires_grad_()
    total = spectral(student * 1, spectrum((2, 5, 6), seed=1)).complex.square().sum()
    first, second = (torch.autograd.grad(total, student, retain_graph=True)[0] for _ in range(2))
    assert torch.equal(first, second) and first.abs().max() > 0


def test_second_derivatives_are_refused_rather_than_zero(backend):
    student = spectrum((2, 5, 6)).requires_grad_()
    with pytest.raises(RuntimeError):
        total = spectral(student, spectrum((2, 5, 6), seed=1)).complex.square().sum()
        (first,) = torch.autograd.grad(total, student, create_graph=True)
        torch.autograd.grad(first.abs().square().sum(), student)


def test_inputs_and_incoming_gradients_are_not_changed(backend):
    student, teacher = spectrum((2, 5, 6)).requires_grad_(), spectrum((2, 5, 6), seed=1)
    errors = spectral(student, teacher)
    upstream = [torch.ones_like(y) for y in errors]
    before = [y.clone() for y in (student, teacher, *upstream)]
    torch.autograd.grad(errors, student, upstream)
    assert all(map(torch.equal, (student, teacher, *upstream), before))


def test_upstream_gradients_of_stride_zero(backend):
    student, teacher = spectrum((2, 5, 6)).requires_grad_(), spectrum((2, 5, 6), seed=1)
    gradients = []
    for share in (lambda g: g, torch.Tensor.contiguous):
        errors = spectral(student, teacher)
        upstream = [share(torch.tensor(0.5).expand(y.shape)) for y in errors]
        gradients.append(torch.autograd.grad(errors, student, upstream))
    accuracy.assert_same(*gradients, backend)


@pytest.mark.parametrize("exponent", [0.3, 1.0])
@pytest.mark.parametrize("dtype", [torch.complex128, torch.float64], ids=cases.name_of)
def test_gradcheck(backend, dtype, exponent):
    student, teacher = spectrum((2, 3, 4), dtype), spectrum((2, 3, 4), dtype, 1)
    silent = (student if dtype.is_complex else student.square().sum(-1)) == 0
    student[silent] = 0.3  # at silence the second derivative is 1 / eps, and differences say nothing
    lengths = torch.tensor([4, 2])
    assert torch.autograd.gradcheck(
        lambda x: tuple(spectral(x, teacher, exponent=exponent, lengths=lengths)), student.requires_grad_()
    )


@pytest.mark.parametrize("overload", ["default", "triton", "reference"])
@pytest.mark.parametrize("layout", [cases.contiguous, bands_last], ids=lambda layout: layout.__name__)
def test_opcheck(overload, layout):
    if overload == "triton" and "triton" not in cases.BACKENDS:
        pytest.skip("triton does not serve CPU tensors here")
    student, teacher = layout(spectrum((2, 5, 6), torch.float32)), layout(spectrum((2, 5, 6), torch.float32, 1))
    for lengths in (None, torch.tensor([6, 2])):
        rest = (0.3, 1e-12, lengths, 6)
        grads = torch.ones(2), torch.ones(2)
        forward = getattr(torch.ops.abckd.spectral_forward, overload)
        torch.library.opcheck(forward, (student, teacher, *rest))
        torch.library.opcheck(getattr(torch.ops.abckd.spectral_backward, overload), (*grads, student, teacher, *rest))


@pytest.mark.skipif(cases.EMULATED, reason="of the compiler, not of the kernels")
@pytest.mark.parametrize("dtype", [torch.complex64, torch.bfloat16], ids=cases.name_of)
def test_compiles_in_one_graph(backend, dtype):
    student, teacher = spectrum((2, 5, 6), dtype), spectrum((2, 5, 6), dtype, 1)
    results = []
    for function in (spectral, torch.compile(spectral, fullgraph=True, backend="aot_eager")):
        x = student.clone().requires_grad_()
        errors = function(x, teacher)
        (errors.magnitude + 2 * errors.complex).sum().backward()
        results.append((*errors, x.grad))
    accuracy.assert_same(*results, backend)


# ---------------------------------------------------------------------------------------------- errors


X = torch.zeros(2, 3, 4, dtype=torch.complex64)
WRONG = {
    "no tensor": ((1, X), {}, TypeError, "student"),
    "integers": ((X.real.long(), X), {}, TypeError, "student: .*int64"),
    "not pairs": ((X.real, X), {}, ValueError, r"student: .*pairs"),
    "axes": ((X[0], X[0]), {}, ValueError, r"student: .*\(B, F, T\)"),
    "no bands": ((X[:, :0], X[:, :0]), {}, ValueError, "student: .*zero"),
    "shapes": ((X, X[:, :2]), {}, ValueError, r"teacher: expected \(2, 3, 4\)"),
    "sparse": ((X, X.to_sparse()), {}, TypeError, "teacher: .*sparse"),
    "exponent": ((X, X), {"exponent": 0}, ValueError, "exponent: .*got 0"),
    "large exponent": ((X, X), {"exponent": 2.5}, ValueError, "exponent: .*at most 2"),
    "nan exponent": ((X, X), {"exponent": float("nan")}, ValueError, "exponent"),
    "eps": ((X, X), {"eps": 0.0}, ValueError, "eps: .*got 0"),
    "lengths": ((X, X), {"lengths": torch.ones(3, dtype=torch.int64)}, ValueError, r"lengths: .*\(2,\)"),
    "padded_length": ((X, X), {"padded_length": 0}, ValueError, "padded_length"),
}


@pytest.mark.parametrize("arguments, options, error, message", WRONG.values(), ids=WRONG)
def test_errors_name_the_argument(arguments, options, error, message):
    with pytest.raises(error, match=message):
        spectral(*arguments, **options)


P = torch.zeros(2, 3, 4, 2)
forward, backward = (getattr(torch.ops.abckd, f"spectral_{name}").default for name in ("forward", "backward"))
WRONG_CALLS = {
    "axes": lambda: forward(P[0, 0], P[0, 0], 0.3, 1e-12, None, 4),
    "pairs": lambda: forward(P[..., :1], P[..., :1], 0.3, 1e-12, None, 4),
    "shapes": lambda: forward(P, P[:1], 0.3, 1e-12, None, 4),
    "dtypes": lambda: forward(P, P.half(), 0.3, 1e-12, None, 4),
    "complex": lambda: forward(X, X, 0.3, 1e-12, None, 4),
    "exponent": lambda: forward(P, P, 0.0, 1e-12, None, 4),
    "eps": lambda: forward(P, P, 0.3, 0.0, None, 4),
    "lengths": lambda: forward(P, P, 0.3, 1e-12, torch.tensor([1]), 4),
    "gradients": lambda: backward(torch.ones(1), torch.ones(2), P, P, 0.3, 1e-12, None, 4),
}


@pytest.mark.skipif("cpu" not in cases.BACKENDS, reason="the checks are those of the cpu backend")
@pytest.mark.parametrize("call", WRONG_CALLS.values(), ids=WRONG_CALLS)
def test_what_does_not_fit_the_dispatcher_is_an_error(call):
    with pytest.raises((ValueError, TypeError, RuntimeError)):
        call()


# ---------------------------------------------------------------------------------------------- properties


@st.composite
def problems(draw):
    shape = draw(st.tuples(st.integers(1, 3), st.integers(1, 7), st.integers(1, 9)))
    student, teacher = (spectrum(shape, torch.complex128, draw(st.integers(0, 1000))) for _ in range(2))
    options = {"exponent": draw(st.floats(0.1, 2.0))}
    if draw(st.booleans()):
        options["lengths"] = torch.tensor(draw(st.lists(st.integers(0, 9), min_size=shape[0], max_size=shape[0])))
    return student, teacher, options


@pytest.mark.parametrize("name", cases.BACKENDS)
@few
@given(problem=problems(), phase=st.floats(0, 6.28), random=st.randoms(use_true_random=False))
def test_invariances(name, problem, phase, random):
    """Turning both spectra changes nothing, the magnitude sees no phases, and bands have no order."""
    student, teacher, options = problem
    turn = complex(np.exp(1j * phase))
    order = random.sample(range(student.shape[1]), student.shape[1])
    with use_backend(name):
        errors = spectral(student, teacher, **options)
        assert (torch.cat(errors) >= 0).all() and (errors.magnitude <= errors.complex * (1 + 1e-9) + 1e-9).all()
        turned = spectral(student * turn, teacher * turn, **options)
        conjugate = spectral(student * turn, teacher.conj(), **options)
        shuffled = spectral(student[:, order], teacher[:, order], **options)
        for b in range(len(student)):
            one = {**options, "lengths": options["lengths"][b : b + 1]} if "lengths" in options else options
            alone = spectral(student[b : b + 1], teacher[b : b + 1], **one)
            torch.testing.assert_close([x[b] for x in errors], [x[0] for x in alone], rtol=1e-9, atol=1e-12)
    for same in (turned, shuffled):
        torch.testing.assert_close(same, errors, rtol=1e-9, atol=1e-12)
    torch.testing.assert_close(conjugate.magnitude, errors.magnitude, rtol=1e-9, atol=1e-12)


@pytest.mark.big
@pytest.mark.parametrize("dtype", [torch.complex64, torch.bfloat16], ids=cases.name_of)
@pytest.mark.parametrize("layout", [cases.contiguous, bands_last], ids=lambda layout: layout.__name__)
def test_at_the_size_of_real_work(backend, layout, dtype, rng):
    shape = (8, 257, 401)
    check(
        layout(spectrum(shape, dtype)),
        layout(spectrum(shape, dtype, 1)),
        0.3,
        (401, 380, 1, 0, 401, 7, 200, 401),
        401,
        rng,
    )
