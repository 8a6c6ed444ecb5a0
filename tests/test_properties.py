"""What the definition promises for every input: hypothesis draws shapes, grids, options, and numbers."""

import cases
import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from abckd_kernels import abc_loss, use_backend

few = settings(
    max_examples=25, deadline=None, derandomize=True, database=None, suppress_health_check=[HealthCheck.too_slow]
)
size = st.integers(1, 7)


@st.composite
def problems(draw, bands=size):
    """(students, teachers, options): float64 features of random shapes, and random options that fit them."""
    batch, axes = draw(st.integers(1, 4)), draw(st.integers(1, 2))

    def features(first_seed):
        shapes = [(batch, draw(size), draw(size), draw(bands))[: 2 + axes] for _ in range(draw(st.integers(1, 3)))]
        return [cases.feature(shape, torch.float64, first_seed + seed) for seed, shape in enumerate(shapes)]

    students, teachers = features(draw(st.integers(0, 1000))), features(draw(st.integers(2000, 3000)))
    options = {
        "power": draw(st.sampled_from([1, 2])),
        "temperature": draw(st.sampled_from([0.05, 0.1, 1.0])),
        "scores": draw(st.sampled_from([None, "uniform"])),
        "grid": draw(st.none() | st.tuples(*[size] * axes)),
        "weights": draw(st.none() | st.just([0.5 + i for i in range(len(students))])),
    }
    smallest = min(x.shape[-1] for x in (*students, *teachers)) if options["grid"] is None else options["grid"][-1]
    if axes == 2 and smallest > 1:
        options["normalize"] = draw(st.sampled_from(["sample", "frame"]))
    if draw(st.booleans()):
        options["lengths"] = torch.tensor(draw(st.lists(st.integers(0, 7), min_size=batch, max_size=batch)))
    return students, teachers, options


@pytest.fixture(params=cases.BACKENDS, scope="module", autouse=True)
def backend(request):
    with use_backend(request.param):
        yield


def cut(tensors, select):
    return [x[select] for x in tensors]


def loss_and_gradients(students, teachers, **options):
    students = [x.detach().requires_grad_() for x in students]
    loss = abc_loss(students, teachers, **options)
    return loss, torch.autograd.grad(loss.sum(), students)


def assert_close(a, b):
    torch.testing.assert_close(a, b, rtol=1e-9, atol=1e-12)


@few
@given(problems())
def test_between_zero_and_twice_the_weights(problem):
    students, teachers, options = problem
    loss = abc_loss(students, teachers, **options, reduction="none")
    assert (loss >= 0).all() and (loss <= 2 * np.sum(options["weights"] or [1]) + 1e-12).all()


@few
@given(problems())
def test_zero_where_student_and_teacher_are_equal(problem):
    students, _, options = problem
    options["weights"] = None
    loss, grads = loss_and_gradients(students[:1], [students[0].clone()], **options)
    assert 0 <= loss < 1e-28
    assert all((grad.abs() < 1e-10).all() for grad in grads)


@few
@given(problems(), st.sampled_from([0.05, 0.3, 7.0, 20.0]))
def test_loudness_does_not_matter(problem, loudness):
    students, teachers, options = problem
    loss, grads = loss_and_gradients(students, teachers, **options)
    louder_students, softer_teachers = [x * loudness for x in students], [x / loudness for x in teachers]
    louder, louder_grads = loss_and_gradients(louder_students, softer_teachers, **options)
    assert_close(louder, loss)
    assert_close([grad * loudness for grad in louder_grads], list(grads))


@few
@given(problems(), st.randoms(use_true_random=False))
def test_channels_have_no_order_and_no_sign(problem, random):
    students, teachers, options = problem
    orders = [random.sample(range(x.shape[1]), x.shape[1]) for x in (*students, *teachers)]
    shuffled = [-x[:, order] for x, order in zip((*students, *teachers), orders, strict=True)]
    loss, grads = loss_and_gradients(students, teachers, **options)
    same, same_grads = loss_and_gradients(shuffled[: len(students)], shuffled[len(students) :], **options)
    assert_close(same, loss)
    expected = [grad[:, order] for grad, order in zip(grads, orders, strict=False)]
    assert_close([-grad for grad in same_grads], expected)


@few
@given(problems())
def test_samples_do_not_see_each_other(problem):
    students, teachers, options = problem
    loss, grads = loss_and_gradients(students, teachers, **options, reduction="none")
    for b in reversed(range(loss.shape[0])):
        sample = slice(b, b + 1)
        one = options | {"reduction": "none"}
        if "lengths" in options:
            one["lengths"] = options["lengths"][sample]
        alone, alone_grads = loss_and_gradients(cut(students, sample), cut(teachers, sample), **one)
        assert_close(alone, loss[sample])
        assert_close(list(alone_grads), cut(grads, sample))


@few
@given(st.integers(1, 3), st.integers(1, 4), st.integers(1, 3), st.sampled_from(["sample", "frame"]))
def test_padding_does_not_matter(coarse, ratio, more, normalize):
    """The teacher has `ratio` times the student's frames, so that more frames of both leave every window as it is."""
    valid = coarse, coarse * ratio
    padded = [frames * (1 + more) for frames in valid]
    features = [cases.feature((2, 3, frames, 4), torch.float64, k) for k, frames in enumerate(valid)]
    longer = [
        torch.cat([x, torch.full((2, 3, end - x.shape[2], 4), torch.nan)], 2)
        for x, end in zip(features, padded, strict=True)
    ]
    lengths = torch.tensor([valid[1], valid[1]])
    loss, (grad,) = loss_and_gradients(features[:1], features[1:], normalize=normalize)
    same, (longer_grad,) = loss_and_gradients(longer[:1], longer[1:], normalize=normalize, lengths=lengths)
    assert_close(same, loss)
    assert_close(longer_grad[:, :, :coarse], grad)
    assert (longer_grad[:, :, coarse:] == 0).all()


@few
@given(problems(), st.randoms(use_true_random=False))
def test_teacher_layers_have_no_order(problem, random):
    students, teachers, options = problem
    order = random.sample(range(len(teachers)), len(teachers))
    _, attention = abc_loss(students, teachers, **options, return_attention=True)
    _, reordered = abc_loss(students, [teachers[j] for j in order], **options, return_attention=True)
    assert_close(reordered, attention[..., order])


@few
@given(problems())
def test_attention_is_a_distribution_over_the_allowed_layers(problem):
    students, teachers, options = problem
    mask = torch.ones(len(students), len(teachers), dtype=torch.bool)
    mask[0, 1:] = False
    loss, attention = abc_loss(students, teachers, **options, mask=mask, return_attention=True)
    assert_close(attention.sum(-1), torch.ones_like(attention[..., 0]))
    assert (attention[:, ~mask] == 0).all()


@few
@given(st.data(), st.sampled_from(cases.DTYPES), st.sampled_from(cases.LAYOUTS))
def test_layout_and_dtype_do_not_matter(data, dtype, layout):
    """Any memory layout gives what its contiguous copy gives; a narrow dtype what float64 gives for its numbers."""
    students, teachers, options = data.draw(problems())
    students, teachers = ([layout(x.to(dtype)) for x in group] for group in (students, teachers))
    copies = [[x.contiguous() for x in group] for group in (students, teachers)]
    exact = [[x.double() for x in group] for group in (students, teachers)]
    if "lengths" in options:
        options["lengths"] = torch.stack([options["lengths"]] * 2, 1)[:, 0]  # strided too
    loss, gradients = loss_and_gradients(students, teachers, **options)
    tight, loose = ((1e-9, 1e-12) if dtype == torch.float64 else (2e-5, 2e-5)), torch.finfo(dtype).eps
    torch.testing.assert_close(loss, loss_and_gradients(*copies, **options)[0], rtol=tight[0], atol=tight[1])
    expected_loss, expected = loss_and_gradients(*exact, **options)
    torch.testing.assert_close(loss.double(), expected_loss, rtol=tight[0], atol=tight[1])
    for gradient, reference in zip(gradients, expected, strict=True):
        scale = reference.abs().max() + 1e-3
        assert (gradient.double() - reference).abs().max() <= max(4 * loose, 1e-4) * scale
