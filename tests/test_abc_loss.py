"""abc_loss and ABCLoss against the oracle, on every backend: dtypes, layouts, options, silence, padding."""

import cases
import numpy as np
import pytest
import torch

from abckd_kernels import ABCLoss, abc_loss
from abckd_verify.exact import accuracy, oracle, plain

SCALE = 2.0**14  # a usual loss scale of fp16 training: it shows digits that fp16's smallest numbers hide


def check(layers, dtype, layout=cases.contiguous, scale=1.0, **options):
    students, teachers = layers.features(dtype, layout)
    options = layers.arguments | options
    condition = 1 / options.get("temperature", 0.1)
    loss, attention = abc_loss(students, teachers, **options, return_attention=True)
    assert loss.dtype == attention.dtype == (torch.float64 if dtype == torch.float64 else torch.float32)
    grads = torch.autograd.grad(loss, students, torch.tensor(scale, dtype=loss.dtype))

    numbers = {
        name: accuracy.float64(x) if isinstance(x, torch.Tensor) and x.is_floating_point() else x
        for name, x in options.items()
    }
    exact = oracle.abc_loss(*accuracy.all_float64(students, teachers), **numbers)
    copies = [x.detach().clone().requires_grad_() for x in students]
    plain_loss = plain.abc_loss(copies, teachers, **options)
    plain_grads = torch.autograd.grad(plain_loss, copies)
    accuracy.assert_accurate(loss, exact.mean, plain_loss, "loss", condition)
    for index, (ours, expected, theirs) in enumerate(zip(grads, exact.student_grads, plain_grads, strict=True)):
        what = f"gradient of student_features[{index}]"
        accuracy.assert_gradient(ours, expected * scale, theirs * scale, what, condition)


@pytest.mark.parametrize("dtype", cases.DTYPES, ids=cases.name_of)
@pytest.mark.parametrize("layers", cases.LAYERS, ids=str)
def test_shapes(backend, layers, dtype):
    check(layers, dtype)


@pytest.mark.parametrize("dtype", cases.DTYPES, ids=cases.name_of)
@pytest.mark.parametrize("options", cases.OPTIONS.values(), ids=cases.OPTIONS)
@pytest.mark.parametrize("layers", [cases.DOWN, cases.PADDED], ids=str)
def test_options(backend, layers, options, dtype):
    check(layers, dtype, **options)


@pytest.mark.parametrize("layers", [x for x in cases.LAYERS if x.has_bands], ids=str)
def test_per_frame(backend, layers):
    check(layers, torch.float32, normalize="frame")


@pytest.mark.parametrize("dtype", cases.DTYPES, ids=cases.name_of)
@pytest.mark.parametrize("layout", cases.LAYOUTS, ids=lambda layout: layout.__name__)
@pytest.mark.parametrize("layers", [cases.FRAMES, cases.DOWN], ids=str)
def test_layouts(backend, layers, layout, dtype):
    check(layers, dtype, layout)


@pytest.mark.parametrize("layers", cases.LAYERS, ids=str)
def test_half_precision_gradients_under_a_loss_scale(backend, layers):
    check(layers, torch.float16, scale=SCALE)


@pytest.mark.parametrize("dtype", cases.DTYPES, ids=cases.name_of)
def test_given_scores_mask_and_weights(backend, dtype, rng):
    scores = torch.randn(cases.DOWN.pairs, generator=rng)
    check(cases.DOWN, dtype, scores=scores, weights=[0.2, 1.7], mask=[[True, True, False], [False, True, True]])


def test_gradient_of_given_scores(backend, rng):
    students, teachers = cases.DOWN.features(torch.float32)
    scores = torch.randn(cases.DOWN.pairs, generator=rng).requires_grad_()
    abc_loss(students, teachers, scores=scores).backward()
    exact = oracle.abc_loss(*accuracy.all_float64(students, teachers), scores=accuracy.float64(scores))
    torch.testing.assert_close(scores.grad.double(), torch.from_numpy(exact.score_grads), rtol=1e-4, atol=1e-7)


@pytest.mark.parametrize("options", cases.OPTIONS.values(), ids=cases.OPTIONS)
def test_attention(backend, options):
    students, teachers = cases.DOWN.features(torch.float32)
    _, attention = abc_loss(students, teachers, **options, return_attention=True)
    exact = oracle.abc_loss(*accuracy.all_float64(students, teachers), **options)
    torch.testing.assert_close(attention.double(), torch.from_numpy(exact.attention), rtol=2e-5, atol=1e-6)


def test_reductions(backend):
    students, teachers = cases.DOWN.features(torch.float64)
    each, total, mean = (abc_loss(students, teachers, reduction=name) for name in ("none", "sum", "mean"))
    exact = oracle.abc_loss(*accuracy.all_float64(students, teachers))
    torch.testing.assert_close(each.detach(), torch.from_numpy(exact.per_sample))
    torch.testing.assert_close(total, each.sum())
    torch.testing.assert_close(mean, each.mean())


@pytest.mark.parametrize("dtype", cases.DTYPES, ids=cases.name_of)
@pytest.mark.parametrize("options", cases.OPTIONS.values(), ids=cases.OPTIONS)
@pytest.mark.parametrize("scale", [1.0, SCALE], ids=["", "scaled"])
def test_silent_student_sample(backend, scale, options, dtype):
    students, teachers = cases.DOWN.features(dtype)
    with torch.no_grad():
        for x in students:
            x[1] = 0
    loss = abc_loss(students, teachers, **options)
    (loss * scale).backward()
    assert loss.isfinite()
    for x in students:
        assert x.grad.isfinite().all() and (x.grad[1] == 0).all()
        assert (x.grad[0] != 0).any() and (x.grad[2] != 0).any()


@pytest.mark.parametrize("dtype", cases.DTYPES, ids=cases.name_of)
@pytest.mark.parametrize("options", cases.OPTIONS.values(), ids=cases.OPTIONS)
def test_silent_teacher_sample_and_silent_everything(backend, options, dtype):
    students, teachers = cases.DOWN.features(dtype)
    for x in teachers:
        x[1] = 0
    with torch.no_grad():
        for x in students:
            x[2] = 0
    teachers[0][2] = 0
    loss = abc_loss(students, teachers, **options)
    loss.backward()
    assert loss.isfinite() and all(x.grad.isfinite().all() for x in students)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=cases.name_of)
@pytest.mark.parametrize("loudness", [1e-4, 1e-3, 1e3, 1e6])
def test_very_soft_and_very_loud_features(backend, loudness, dtype):
    loud, plain_ones = cases.DOWN.features(dtype), cases.DOWN.features(dtype)
    with torch.no_grad():
        for x in loud[0]:
            x *= loudness
    exact = oracle.abc_loss(*accuracy.all_float64(*loud))
    loss = abc_loss(*loud)
    grads = torch.autograd.grad(loss, loud[0])
    torch.testing.assert_close(loss, abc_loss(*plain_ones), rtol=2e-2 if dtype == torch.bfloat16 else 1e-4, atol=1e-6)
    for grad, expected in zip(grads, exact.student_grads, strict=True):
        accuracy.assert_gradient(grad, expected, torch.from_numpy(expected * (1 + 1e-5)), "gradient")


@pytest.mark.parametrize("dtype", cases.DTYPES, ids=cases.name_of)
@pytest.mark.parametrize("garbage", [float("nan"), float("inf")])
@pytest.mark.parametrize("normalize", ["sample", "frame"])
def test_padded_frames_count_nowhere(backend, normalize, garbage, dtype):
    layers, results = cases.PADDED, []
    for fill in (0.0, garbage):
        students, teachers = layers.features(dtype)
        with torch.no_grad():
            for x in (*students, *teachers):
                for b, frames in enumerate(oracle.valid_frames(layers.lengths, x.shape[2], 10, 4)):
                    x[b, :, frames:] = fill
        loss = abc_loss(students, teachers, normalize=normalize, **layers.arguments)
        results.append([loss, *torch.autograd.grad(loss, students)])
    assert all(map(torch.equal, *results))
    assert (results[1][1][1, :, 7:] == 0).all()


@pytest.mark.parametrize("kind", [list, tuple, torch.IntTensor], ids=lambda kind: kind.__name__)
def test_lengths_may_be_any_integers(backend, kind):
    layers = cases.PADDED
    features = layers.features(torch.float32)
    ours = abc_loss(*features, lengths=kind(layers.lengths))
    assert torch.equal(ours, abc_loss(*features, **layers.arguments))


def test_a_sample_of_no_frames_at_all(backend):
    students, teachers = cases.DOWN.features(torch.float32)
    loss = abc_loss(students, teachers, lengths=torch.tensor([9, 0, 4]), reduction="none")
    loss.sum().backward()
    assert loss[1] == 0 and all((x.grad[1] == 0).all() for x in students)


def test_empty_batch(backend):
    students, teachers = [torch.zeros(0, 3, 4, 5, requires_grad=True)], [torch.zeros(0, 2, 6, 5)]
    loss = abc_loss(students, teachers)
    loss.backward()
    assert loss == 0 and students[0].grad.shape == (0, 3, 4, 5)


def test_teacher_gets_no_gradient(backend):
    students, teachers = cases.DOWN.features(torch.float32)
    teachers = [x.requires_grad_() for x in teachers]
    abc_loss(students, teachers).backward()
    assert all(x.grad is None for x in teachers) and all(x.grad.abs().max() > 0 for x in students)


def test_layers_of_different_dtypes(backend):
    students, teachers = cases.DOWN.features(torch.float32)
    expected = abc_loss(students, teachers)
    half = abc_loss([students[0], students[1].bfloat16()], [teachers[0].half(), *teachers[1:]])
    torch.testing.assert_close(half, expected, rtol=1e-2, atol=1e-3)
    assert half.dtype == torch.float32


class TestABCLoss:
    def make(self, **options):
        torch.manual_seed(3)
        return ABCLoss([4, 2], [5, 1, 8], dim=6, **options)

    @staticmethod
    def learned_scores(module, features, lengths=None):
        """s_ij = (W_i^Q mu(S_i)) . (W_j^K mu(T_j) + e_j) / sqrt(dim), in float64."""
        students, teachers = accuracy.all_float64(*features)
        padded, batch = max(x.shape[2] for x in (*students, *teachers)), students[0].shape[0]

        def mean(x):
            return oracle.channel_mean(x, oracle.valid_frames(lengths, x.shape[2], padded, batch))

        queries = [mean(x) @ accuracy.float64(f.weight).T for x, f in zip(students, module.queries, strict=True)]
        keys = [
            mean(x) @ accuracy.float64(f.weight).T + accuracy.float64(e)
            for x, f, e in zip(teachers, module.keys, module.layer_embedding, strict=True)
        ]
        pairs = [[(q * k).sum(-1) / 6**0.5 for k in keys] for q in queries]
        return np.array(pairs).transpose(2, 0, 1)

    @pytest.mark.parametrize("lengths", [None, (9, 4, 6)], ids=str)
    @pytest.mark.parametrize(
        "options", [{}, {"normalize": "frame", "power": 1}, {"weights": [0.3, 0.6], "grid": (3, 5)}], ids=str
    )
    def test_against_oracle(self, backend, options, lengths):
        module, features = self.make(**options), cases.DOWN.features(torch.float32)
        given = None if lengths is None else torch.tensor(lengths)
        loss, attention = module(*features, lengths=given, return_attention=True)
        scores = self.learned_scores(module, features, lengths)
        exact = oracle.abc_loss(*accuracy.all_float64(*features), **options, lengths=lengths, scores=scores)
        assert abs(loss.item() - exact.mean) < 1e-5
        torch.testing.assert_close(attention.double(), torch.from_numpy(exact.attention), rtol=1e-4, atol=1e-6)

    @pytest.mark.parametrize("scores", ["similarity", "uniform"])
    def test_without_learned_scores_it_is_abc_loss(self, backend, scores):
        module, features = self.make(scores=scores), cases.DOWN.features(torch.float32)
        assert torch.equal(module(*features), abc_loss(*features, scores=None if scores == "similarity" else scores))
        assert not list(module.parameters())

    def test_every_parameter_gets_a_gradient(self, backend):
        module, features = self.make(), cases.DOWN.features(torch.bfloat16)
        module(*features).backward()
        assert all(p.grad.isfinite().all() and p.grad.abs().max() > 0 for p in module.parameters())

    def test_detached_queries_are_constants_for_the_student_alone(self, backend):
        students, teachers = cases.DOWN.features(torch.float32)
        students = [x.clone().requires_grad_() for x in students]
        module, detached = self.make(), self.make(detach_queries=True)
        scores = torch.from_numpy(self.learned_scores(module, (students, teachers))).float()
        expected = torch.autograd.grad(abc_loss(students, teachers, scores=scores), students)
        of_loss = detached(students, teachers)
        torch.testing.assert_close(torch.autograd.grad(of_loss, students, retain_graph=True), expected)
        learned = torch.autograd.grad(module(students, teachers), [*students, *module.parameters()])
        n = len(students)
        assert not torch.allclose(learned[0], expected[0], rtol=1e-2)
        torch.testing.assert_close(torch.autograd.grad(of_loss, list(detached.parameters())), learned[n:])

    def test_detached_queries_need_learned_scores(self):
        with pytest.raises(ValueError, match="detach_queries: scores='uniform'"):
            self.make(detach_queries=True, scores="uniform")

    def test_state_dict_is_independent_of_batch_and_map_size(self):
        module = self.make()
        before = {name: value.clone() for name, value in module.state_dict().items()}
        for batch, frames in ((3, 9), (1, 2)):
            students, teachers = ([torch.randn(batch, c, frames, 4) for c in side] for side in ((4, 2), (5, 1, 8)))
            module(students, teachers)
        after = module.state_dict()
        assert list(after) == list(before) and all(torch.equal(after[name], before[name]) for name in before)
        assert {tuple(x.shape) for x in before.values()} == {(6, 4), (6, 2), (6, 5), (6, 1), (6, 8), (3, 6)}


@pytest.mark.big
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=cases.name_of)
def test_at_the_size_of_real_work(backend, dtype):
    check(cases.Layers("real", ((8, 64, 200, 64),), ((8, 64, 200, 64), (8, 32, 200, 33))), dtype)


@pytest.mark.parametrize("lengths", [[2**60, 5], [-(2**60), 2**62]], ids=["large", "negative"])
def test_lengths_beyond_the_frames_mean_all_or_none(backend, lengths):
    students, teachers = [cases.feature((2, 3, 8, 4))], [cases.feature((2, 5, 8, 4), seed=1)]
    clipped = [min(max(length, 0), 8) for length in lengths]
    found, expected = (
        abc_loss(students, teachers, lengths=torch.tensor(values), reduction="none") for values in (lengths, clipped)
    )
    torch.testing.assert_close(found, expected, rtol=0, atol=0)


@pytest.mark.parametrize(
    "strided", [torch.tensor([[3, 8], [8, 8]])[:, 0], torch.tensor(5).expand(2)], ids=["cut", "one"]
)
def test_lengths_may_be_strided(backend, strided):
    students, teachers = [cases.feature((2, 3, 8, 4))], [cases.feature((2, 5, 8, 4), seed=1)]
    found, expected = (
        abc_loss(students, teachers, lengths=values, reduction="none") for values in (strided, strided.clone())
    )
    torch.testing.assert_close(found, expected, rtol=0, atol=0)


def test_autocast_changes_nothing(backend):
    students, teachers = cases.DOWN.features(torch.float32)

    def loss_and_gradients():
        loss = abc_loss(students, teachers, weights=[0.5, 0.5])
        return loss, *torch.autograd.grad(loss, students)

    expected = loss_and_gradients()
    with torch.autocast("cpu", dtype=torch.bfloat16):
        found = loss_and_gradients()
    torch.testing.assert_close(found, expected, rtol=1e-6, atol=1e-9)


def test_similarity_is_the_default():
    students, teachers = cases.DOWN.features(torch.float32)
    assert abc_loss(students, teachers, scores="similarity") == abc_loss(students, teachers)
