"""tap against the oracle, on every backend, and how it behaves as a part of a network."""

import cases
import pytest
import torch

from abckd_kernels import tap, tap_all, use_backend
from abckd_verify.exact import accuracy, oracle, plain

SHAPES = ((2, 3, 7), (2, 4, 5, 6), (1, 17, 3, 35), (2, 1, 1, 1), (3, 1, 9), (1, 64, 2, 2), (2, 5, 1, 70))


def check(x, power, lengths, padded_length, rng):
    """Outputs and gradient of tap for random gradients of all three outputs."""
    x = x.detach().requires_grad_()
    valid = oracle.valid_frames(lengths, x.shape[2], padded_length, x.shape[0])
    given = None if lengths is None else torch.tensor(lengths)
    tapped = tap(x, power=power, lengths=given, padded_length=padded_length)
    assert tapped.feature.data_ptr() == x.data_ptr()
    wide = torch.float64 if x.dtype == torch.float64 else torch.float32
    assert tapped.map.dtype == tapped.mean.dtype == wide

    exact = accuracy.float64(x)
    plain_x = x.detach().clone().requires_grad_()
    plain_map, plain_mean = plain.tap(plain_x, power, given, padded_length)
    accuracy.assert_accurate(tapped.map, oracle.attention_map(exact, power, valid), plain_map, "map")
    accuracy.assert_accurate(tapped.mean, oracle.channel_mean(exact, valid), plain_mean, "mean")

    grad = torch.randn(x.shape, generator=rng).to(x.dtype)
    map_grad, mean_grad = (torch.randn(y.shape, generator=rng).to(y.dtype) for y in tapped[1:])
    (ours,) = torch.autograd.grad(tapped, x, (grad, map_grad, mean_grad))
    expected = oracle.tap_gradient(exact, power, valid, *map(accuracy.float64, (grad, map_grad, mean_grad)))
    upstream = (grad, map_grad.to(plain_map.dtype), mean_grad.to(plain_mean.dtype))
    (theirs,) = torch.autograd.grad((plain_x * 1, plain_map, plain_mean), plain_x, upstream)
    accuracy.assert_gradient(ours, expected, theirs, "gradient")


@pytest.mark.parametrize("dtype", cases.DTYPES, ids=cases.name_of)
@pytest.mark.parametrize("power", [1, 2])
@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_against_oracle(backend, shape, power, dtype, rng):
    check(cases.feature(shape, dtype), power, None, shape[2], rng)


@pytest.mark.parametrize("dtype", cases.DTYPES, ids=cases.name_of)
@pytest.mark.parametrize("layout", cases.LAYOUTS, ids=lambda layout: layout.__name__)
@pytest.mark.parametrize("shape", [(2, 6, 9), (2, 19, 4, 6)], ids=str)
def test_layouts(backend, shape, layout, dtype, rng):
    check(layout(cases.feature(shape, dtype)), 2, (4, 9), 9, rng)


@pytest.mark.parametrize("channels", [130, 300])
@pytest.mark.parametrize("dtype", cases.DTYPES, ids=cases.name_of)
def test_more_channels_than_a_warp_reads_at_once(backend, channels, dtype, rng):
    check(cases.channels_last(cases.feature((2, channels, 5, 3), dtype)), 2, (5, 2), 5, rng)
    check(cases.channels_last(cases.feature((1, 2 * channels - 8, 2, 2), dtype)), 1, None, 2, rng)


@pytest.mark.parametrize("power", [1, 2])
@pytest.mark.parametrize("lengths", [(20, 7, 1), (0, 1, 13), (20, 20, 20)], ids=str)
@pytest.mark.parametrize("shape", [(3, 2, 20), (3, 3, 7, 5), (3, 5, 3, 18)], ids=str)
def test_lengths(backend, shape, lengths, power, rng):
    check(cases.feature(shape), power, lengths, 20, rng)
    check(cases.channels_last(cases.feature(shape)), power, lengths, 20, rng)


@pytest.mark.parametrize("layout", [cases.contiguous, cases.channels_last], ids=lambda layout: layout.__name__)
def test_results_keep_the_layout_of_the_feature(backend, layout):
    x = layout(cases.feature((2, 8, 4, 6))).requires_grad_()
    tap(x).map.sum().backward()
    assert x.grad.stride() == x.stride()


@pytest.mark.parametrize("dtype", cases.DTYPES, ids=cases.name_of)
@pytest.mark.parametrize("garbage", [float("nan"), float("inf")])
def test_padded_frames_are_not_read(backend, garbage, dtype):
    clean = cases.feature((2, 3, 8, 5), dtype)
    dirty = clean.clone()
    dirty[0, :, 3:] = garbage
    results = []
    for x in (clean, dirty):
        x.requires_grad_()
        tapped = tap(x, lengths=torch.tensor([3, 8]))
        (tapped.map.sum() + tapped.mean.sum()).backward()
        results.append((tapped.map, tapped.mean, x.grad))
    assert all(map(torch.equal, *results))
    assert (results[1][2][0, :, 3:] == 0).all()


def test_gradient_of_the_feature_passes_through_padded_frames(backend):
    x = cases.feature((1, 2, 6, 3)).requires_grad_()
    tapped = tap(x, lengths=torch.tensor([2]))
    (tapped.feature.sum() + tapped.map.sum()).backward()
    assert (x.grad[:, :, 2:] == 1).all() and (x.grad[:, :, :2] != 1).any()


@pytest.mark.parametrize("unused", ["feature", "map", "mean"])
def test_any_output_may_be_unused(backend, unused):
    x = cases.feature((2, 3, 4, 5), torch.float64).requires_grad_()
    used = {name: value for name, value in tap(x)._asdict().items() if name != unused}
    (ours,) = torch.autograd.grad(sum(value.sum() for value in used.values()), x)
    ones = {name: torch.ones(value.shape).numpy() for name, value in used.items()}
    exact = oracle.tap_gradient(
        accuracy.float64(x), 2, [4, 4], ones.get("feature", 0.0), ones.get("map"), ones.get("mean")
    )
    torch.testing.assert_close(ours, torch.from_numpy(exact))


def test_without_means(backend):
    assert tap(cases.feature((2, 3, 4)), means=False).mean is None
    assert tap_all([cases.feature((2, 3, 4))], means=False)[2] == []


def test_empty_batch(backend):
    x = torch.zeros(0, 3, 4, 5, requires_grad=True)
    tapped = tap(x)
    (tapped.feature.sum() + tapped.map.sum() + tapped.mean.sum()).backward()
    assert (tapped.map.shape, tapped.mean.shape, x.grad.shape) == ((0, 4, 5), (0, 3), (0, 3, 4, 5))


@pytest.mark.parametrize("dtype", cases.DTYPES, ids=cases.name_of)
def test_upstream_gradients_of_stride_zero(backend, dtype):
    gradients = []
    for share in (lambda g: g, torch.Tensor.contiguous):
        x = cases.channels_last(cases.feature((2, 6, 4, 5), dtype)).requires_grad_()
        tapped = tap(x)
        upstream = [share(torch.tensor(0.5, dtype=y.dtype).expand(y.shape)) for y in tapped]
        gradients.append(torch.autograd.grad(tapped, x, upstream))
    accuracy.assert_same(*gradients, backend)


@pytest.mark.parametrize("batch", [0, 2])
def test_more_layers_than_one_launch_takes(backend, batch):
    features = [cases.feature((batch, 2 + index % 3, 3, 4), seed=index).requires_grad_() for index in range(70)]
    passed, maps, means = tap_all(features)
    grads = torch.autograd.grad(
        [*passed, *maps, *means], features, [torch.ones_like(x) for x in (*passed, *maps, *means)]
    )
    for index in (0, 31, 32, 69):
        alone = tap(features[index])
        assert torch.equal(maps[index], alone.map) and torch.equal(means[index], alone.mean)
        (expected,) = torch.autograd.grad(alone, features[index], [torch.ones_like(x) for x in alone])
        assert torch.equal(grads[index], expected)


@pytest.mark.parametrize("power", [1, 2])
@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
def test_what_is_not_finite_reaches_the_map(backend, bad, power):
    x = cases.feature((2, 3, 4, 5))
    x[0, 1, 2, 3] = bad
    x.requires_grad_()
    tapped = tap(x, power=power)
    finite = torch.ones(2, 4, 5, dtype=torch.bool)
    finite[0, 2, 3] = False
    assert torch.equal(tapped.map.isfinite(), finite)
    (grad,) = torch.autograd.grad(tapped.map.sum(), x)
    with use_backend("reference"):
        (expected,) = torch.autograd.grad(tap(x, power=power).map.sum(), x)
    torch.testing.assert_close(grad, expected, equal_nan=True)


def test_second_backward_is_like_the_first(backend):
    x = cases.feature((2, 3, 4, 5)).requires_grad_()
    tapped = tap(x * 1)
    total = tapped.feature.square().sum() + tapped.map.square().sum() + tapped.mean.sum()
    first, second = (torch.autograd.grad(total, x, retain_graph=True)[0] for _ in range(2))
    assert torch.equal(first, second) and first.abs().max() > 0


def test_inputs_and_incoming_gradients_are_not_changed(backend):
    x = cases.feature((2, 3, 4, 5)).requires_grad_()
    tapped = tap(x)
    upstream = [torch.ones_like(y) for y in tapped]
    before = [y.clone() for y in (x, *upstream)]
    torch.autograd.grad(tapped, x, upstream)
    assert all(map(torch.equal, (x, *upstream), before))


def test_second_derivatives_are_refused_rather_than_zero(backend):
    x = cases.feature((2, 3, 4)).requires_grad_()
    with pytest.raises(RuntimeError):
        (first,) = torch.autograd.grad(tap(x).map.square().sum(), x, create_graph=True)
        torch.autograd.grad(first.square().sum(), x)


def test_features_of_mixed_dtypes_and_shapes_in_one_call(backend):
    shapes = ((2, 3, 7), (2, 4, 5, 6), (2, 1, 3), (2, 9, 2, 2))
    features = [cases.feature(*kind).requires_grad_() for kind in zip(shapes, cases.DTYPES, strict=True)]
    passed, maps, means = tap_all(features)
    outputs = [*passed, *maps, *means]
    together = torch.autograd.grad(outputs, features, [torch.ones_like(y) for y in outputs])
    for index, x in enumerate(features):
        alone = tap(x, padded_length=7)
        assert torch.equal(alone.map, maps[index]) and torch.equal(alone.mean, means[index])
        (expected,) = torch.autograd.grad(alone, x, [torch.ones_like(y) for y in alone])
        assert torch.equal(together[index], expected)


def test_only_features_that_need_a_gradient_get_one(backend):
    frozen, free = cases.feature((2, 3, 4)), cases.feature((2, 3, 4), seed=1).requires_grad_()
    _, maps, _ = tap_all([frozen, free])
    (maps[0].sum() + maps[1].sum()).backward()
    assert frozen.grad is None and free.grad.abs().max() > 0


def test_changing_the_tapped_feature_in_place_is_an_error(backend):
    x = cases.feature((2, 3, 4)).requires_grad_()
    with pytest.raises(RuntimeError, match="in.?place"):
        tapped = tap(x * 1)
        tapped.feature.relu_()
        (tapped.feature.sum() + tapped.map.sum()).backward()


@pytest.mark.big
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=cases.name_of)
@pytest.mark.parametrize("layout", [cases.contiguous, cases.channels_last], ids=lambda layout: layout.__name__)
def test_at_the_size_of_real_work(backend, layout, dtype, rng):
    check(layout(cases.feature((8, 64, 200, 64), dtype)), 2, (200, 187, 150, 200, 133, 64, 1, 99), 200, rng)
