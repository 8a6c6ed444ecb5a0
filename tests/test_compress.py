"""compress against the oracle, on every backend."""

import cases
import pytest
import torch

from abckd_kernels import compress
from abckd_verify.exact import accuracy, oracle, plain

DTYPES = (torch.float32, torch.float64)


def attention_maps(layers, dtype):
    """Non-negative maps in the shapes of a case, students first."""
    shapes = [(shape[0], *shape[2:]) for shape in (*layers.student_shapes, *layers.teacher_shapes)]
    maps = [cases.feature((size[0], 1, *size[1:]), dtype, seed).squeeze(1).square() for seed, size in enumerate(shapes)]
    n = len(layers.student_shapes)
    return [x.requires_grad_() for x in maps[:n]], maps[n:]


def check(layers, dtype, rng, scored=False, **options):
    students, teachers = attention_maps(layers, dtype)
    options = layers.arguments | options
    condition = 1 / options.get("temperature", 0.1)
    scores = torch.randn(layers.pairs, generator=rng, dtype=dtype).requires_grad_() if scored else None
    distances, attention = compress(students, teachers, scores=scores, **options)

    options["scores"] = None if scores is None else accuracy.float64(scores)
    exact = oracle.compress(*accuracy.all_float64(students, teachers), **options)
    leaves = [x.detach().clone().requires_grad_() for x in (*students, *([scores] if scored else []))]
    options["scores"] = leaves[-1] if scored else None
    plain_distances, plain_attention = plain.compress(leaves[: len(students)], teachers, **options)
    accuracy.assert_accurate(distances, exact.distances, plain_distances, "distances", condition)
    accuracy.assert_accurate(attention, exact.attention, plain_attention, "attention", condition)

    upstream = torch.randn(distances.shape, generator=rng, dtype=dtype)
    inputs = [*students, *([scores] if scored else [])]
    ours = torch.autograd.grad(distances, inputs, upstream)
    theirs = torch.autograd.grad(plain_distances, leaves, upstream)
    weight = accuracy.float64(upstream)
    expected = [grad * weight[:, i].reshape(-1, *[1] * (grad.ndim - 1)) for i, grad in enumerate(exact.map_grads)]
    expected += [exact.score_grads * weight[..., None]] if scored else []
    for index, parts in enumerate(zip(ours, expected, theirs, strict=True)):
        accuracy.assert_gradient(*parts, f"gradient of input {index}", condition)


@pytest.mark.parametrize("dtype", DTYPES, ids=cases.name_of)
@pytest.mark.parametrize("scored", [False, True], ids=["similarity", "scores"])
@pytest.mark.parametrize("layers", cases.LAYERS, ids=str)
def test_against_oracle(backend, layers, scored, dtype, rng):
    check(layers, dtype, rng, scored)


@pytest.mark.parametrize("scored", [False, True], ids=["similarity", "scores"])
@pytest.mark.parametrize("layers", [x for x in cases.LAYERS if x.has_bands], ids=str)
def test_per_frame(backend, layers, scored, rng):
    check(layers, torch.float32, rng, scored, per_frame=True)


@pytest.mark.parametrize("scored", [False, True], ids=["similarity", "scores"])
def test_mask(backend, scored, rng):
    check(cases.DOWN, torch.float32, rng, scored, mask=torch.tensor([[True, False, True], [False, True, False]]))


def test_masked_layers_get_no_attention(backend):
    students, teachers = attention_maps(cases.DOWN, torch.float32)
    allowed = torch.tensor([[True, False, True], [False, True, False]])
    _, attention = compress(students, teachers, mask=allowed)
    assert (attention[:, ~allowed] == 0).all() and (attention[:, 1, 1] == 1).all()


def test_maps_of_one_value_are_all_alike(backend):
    student, teacher = torch.tensor([[[3.0]], [[0.2]]], requires_grad=True), torch.tensor([[[7.0]], [[0.01]]])
    distances, attention = compress([student], [teacher, teacher])
    distances.sum().backward()
    assert (distances < 1e-12).all() and (attention == 0.5).all() and (student.grad.abs() < 1e-5).all()


@pytest.mark.parametrize("temperature", [0.01, 1, 30.0])
def test_temperature(backend, temperature, rng):
    check(cases.DOWN, torch.float32, rng, temperature=temperature)


@pytest.mark.parametrize("size", [511, 512, 513, 1030])
def test_maps_longer_than_a_tile(backend, size, rng):
    check(cases.Layers("long", ((2, 1, size),), ((2, 1, size), (2, 1, size))), torch.float32, rng)


@pytest.mark.parametrize("scored", [False, True], ids=["similarity", "scores"])
def test_many_layers(backend, scored, rng):
    check(cases.Layers("many", ((2, 1, 23, 30),) * 10, ((2, 1, 23, 30),) * 25), torch.float32, rng, scored)


@pytest.mark.parametrize("per_frame", [False, True], ids=["sample", "frame"])
def test_below_eps_the_norm_counts_as_a_constant(backend, per_frame):
    students, teachers = attention_maps(cases.DOWN, torch.float64)
    students = [(x.detach() * 1e-16).requires_grad_() for x in students]
    distances, _ = compress(students, teachers, per_frame=per_frame)
    exact = oracle.compress(*accuracy.all_float64(students, teachers), per_frame=per_frame)
    for ours, expected in zip(torch.autograd.grad(distances.sum(), students), exact.map_grads, strict=True):
        torch.testing.assert_close(ours, torch.from_numpy(expected))


def test_scores_far_apart_make_the_attention_a_choice(backend):
    students, teachers = attention_maps(cases.DOWN, torch.float32)
    chosen = torch.tensor([[0, 1, 0], [0, 0, 1]], dtype=torch.bool)
    scores = torch.where(chosen, 0.0, -torch.inf).expand(3, 2, 3).clone().requires_grad_()
    distances, attention = compress(students, teachers, scores=scores)
    assert torch.equal(attention, chosen.float().expand(3, 2, 3))
    grads = torch.autograd.grad(distances.sum(), [*students, scores])
    assert all(grad.isfinite().all() for grad in grads)


@pytest.mark.parametrize("bad", ["nan student", "inf student", "nan teacher", "nan score"])
def test_what_is_not_finite_makes_no_perfect_loss(backend, bad):
    students, teachers = ([x.detach().clone() for x in maps] for maps in attention_maps(cases.DOWN, torch.float32))
    scores = torch.zeros(cases.DOWN.pairs)
    if "score" in bad:
        scores[1, 0, 0] = float("nan")
    else:
        (students if "student" in bad else teachers)[0][1, 0, 0] = float(bad.split()[0])
    distances, _ = compress(students, teachers, scores=scores)
    assert not distances[1, 0].isfinite() and distances[0].isfinite().all() and distances[2].isfinite().all()


@pytest.mark.skipif(not cases.EMULATED, reason="the limit is that of the CUDA kernels")
def test_too_many_maps_is_a_clear_error(backend):
    with pytest.raises(ValueError, match="at most 90 .* got 91"):
        compress([torch.ones(1, 2, 2)], [torch.ones(1, 2, 2)] * 90)


def test_attention_is_differentiable_by_the_scores_alone(backend):
    students, teachers = attention_maps(cases.DOWN, torch.float64)
    assert not compress(students, teachers)[1].requires_grad
    scores = torch.randn(cases.DOWN.pairs, dtype=torch.float64, requires_grad=True)
    upstream = torch.randn(cases.DOWN.pairs, dtype=torch.float64)
    (ours,) = torch.autograd.grad(compress(students, teachers, scores=scores)[1], scores, upstream)
    (expected,) = torch.autograd.grad(scores.softmax(-1), scores, upstream)
    torch.testing.assert_close(ours, expected)


def test_float32_and_float64_maps_meet_in_float64(backend):
    students, teachers = attention_maps(cases.DOWN, torch.float32)
    distances, attention = compress(students, [x.double() for x in teachers])
    assert distances.dtype == attention.dtype == torch.float64
    grads = torch.autograd.grad(distances.sum(), students)
    assert all(grad.dtype == torch.float32 for grad in grads)


def test_teacher_maps_and_unused_students_get_no_gradient(backend):
    students, teachers = attention_maps(cases.DOWN, torch.float32)
    teachers = [x.requires_grad_() for x in teachers]
    frozen = students[1].detach()
    distances, _ = compress([students[0], frozen], teachers)
    distances.sum().backward()
    assert students[0].grad.abs().max() > 0
    assert frozen.grad is None and all(x.grad is None for x in teachers)


def test_strided_maps_and_upstream_gradients(backend):
    students, teachers = attention_maps(cases.DOWN, torch.float32)
    strided = [x.detach().transpose(1, 2).contiguous().transpose(1, 2).requires_grad_() for x in students]
    plain_grads = torch.autograd.grad(compress(students, teachers)[0], students, torch.ones(3, 2))
    ours = torch.autograd.grad(compress(strided, teachers)[0], strided, torch.ones(()).expand(3, 2))
    accuracy.assert_same(ours, plain_grads, backend)


def test_second_backward_is_like_the_first(backend):
    students, teachers = attention_maps(cases.DOWN, torch.float32)
    distances, _ = compress(students, teachers)
    first, second = (torch.autograd.grad(distances.sum(), students, retain_graph=True) for _ in range(2))
    assert all(map(torch.equal, first, second)) and first[0].abs().max() > 0


def test_empty_batch(backend):
    students, teachers = [torch.zeros(0, 4, 5, requires_grad=True)], [torch.zeros(0, 3, 5)] * 2
    distances, attention = compress(students, teachers)
    distances.sum().backward()
    assert (distances.shape, attention.shape, students[0].grad.shape) == ((0, 1), (0, 1, 2), (0, 4, 5))


def test_nothing_to_differentiate(backend):
    students, teachers = attention_maps(cases.DOWN, torch.float32)
    with torch.no_grad():
        assert not compress(students, teachers)[0].requires_grad
    assert not compress([x.detach() for x in students], teachers)[0].requires_grad


@pytest.mark.parametrize("per_frame", [False, True])
@pytest.mark.parametrize("given", [False, True])
def test_a_layer_that_is_masked_out_takes_no_part(backend, per_frame, given):
    students, teachers = (torch.rand(2, 3, 5, 4, generator=torch.Generator().manual_seed(seed)) for seed in (0, 1))
    mask = torch.tensor([[True, True, False]] * 3)
    found = []
    for garbage in (0.5, float("nan")):
        others = [*teachers[:, :2].unbind(1), torch.full_like(teachers[:, 2], garbage)]
        maps = [x.clone().requires_grad_() for x in students.unbind(1)]
        scores = torch.zeros(2, 3, 3, requires_grad=True) if given else None
        distances, attention = compress(maps, others, scores=scores, mask=mask, per_frame=per_frame)
        leaves = [*maps, scores] if given else maps
        found.append([distances, attention, *torch.autograd.grad(distances.sum(), leaves)])
    for clean, dirty in zip(*found, strict=True):
        assert torch.equal(clean, dirty)


@pytest.mark.parametrize("garbage", [float("nan"), float("inf")])
def test_padded_frames_of_maps_are_not_read(backend, garbage):
    results = []
    for fill in (0.0, garbage):
        students, teachers = attention_maps(cases.DOWN, torch.float32)
        with torch.no_grad():
            for x in (*students, *teachers):
                x[0, -(-4 * x.shape[1] // 9) :] = fill
        distances, attention = compress(students, teachers, lengths=torch.tensor([4, 9, 5]))
        results.append([distances, attention, *torch.autograd.grad(distances.sum(), students)])
    assert all(map(torch.equal, *results))
