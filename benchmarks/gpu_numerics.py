"""Numerics of the backend in force on any device: the cases, oracle and tolerances of tests/, as a list of checks.

The exact values (NumPy, float64) and plain PyTorch's own error are computed on the CPU. tests/test_gpu.py runs all
checks; `benchmarks.gpu_check` as many as its time allows, which is why every op and dtype comes early in the list.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from itertools import chain, zip_longest

import torch

from abckd_kernels import abc_loss, compress, tap_all
from abckd_verify import inputs as cases
from abckd_verify.exact import accuracy, oracle, plain

Check = Callable[[torch.device], None]
TAP_SHAPES = ((2, 3, 7), (1, 17, 3, 35), (2, 1, 1, 1), (3, 1, 9), (1, 64, 2, 2), (2, 5, 1, 70), (2, 33, 201, 257))
REAL = (8, 64, 200, 64)


def check_tap(
    device: torch.device, shape, dtype: torch.dtype, layout=cases.contiguous, power=2, lengths=None, means=True
) -> None:
    """Map, means and gradient of one feature, for random gradients of all outputs."""
    rng = torch.Generator().manual_seed(1234)
    x = layout(cases.feature(shape, dtype).to(device)).requires_grad_()
    given = None if lengths is None else torch.tensor(lengths)
    passed, maps, channel_means = tap_all([x], power=power, means=means, lengths=given)
    outputs = [passed[0], maps[0], *channel_means]
    upstream = [torch.randn(y.shape, generator=rng).to(y.dtype) for y in outputs]
    (grad,) = torch.autograd.grad(outputs, x, [g.to(device) for g in upstream])

    valid = oracle.valid_frames(lengths, shape[2], shape[2], shape[0])
    copy = x.detach().cpu().requires_grad_()
    exact = accuracy.float64(copy)
    plain_outputs = (copy * 1, *plain.tap(copy, power, valid))[: len(outputs)]
    plain_grads = [g.to(y.dtype) for g, y in zip(upstream, plain_outputs, strict=True)]
    (plain_grad,) = torch.autograd.grad(plain_outputs, copy, plain_grads)
    _accurate(outputs[1], oracle.attention_map(exact, power, valid), plain_outputs[1], "map")
    if means:
        _accurate(outputs[2], oracle.channel_mean(exact, valid), plain_outputs[2], "mean")
    expected = oracle.tap_gradient(exact, power, valid, *map(accuracy.float64, upstream))
    accuracy.assert_gradient(grad.cpu(), expected, plain_grad, "gradient")


def check_compress(device: torch.device, layers: cases.Layers, dtype: torch.dtype, scored=False, **options) -> None:
    """Distances, attention and all gradients for maps in the shapes of a case."""
    rng = torch.Generator().manual_seed(1234)
    shapes = [(shape[0], 1, *shape[2:]) for shape in (*layers.student_shapes, *layers.teacher_shapes)]
    maps = [cases.feature(shape, dtype, seed).squeeze(1).square() for seed, shape in enumerate(shapes)]
    scores = torch.randn(layers.pairs, generator=rng, dtype=dtype)
    n = len(layers.student_shapes)
    leaves = [*maps[:n], scores] if scored else maps[:n]
    options = layers.arguments | options
    condition = 1 / options.get("temperature", 0.1)

    def results(function, where):
        own = [x.to(where, copy=True).requires_grad_() for x in leaves]
        given = {"scores": own[-1]} if scored else {}
        distances, attention = function(own[:n], [x.to(where) for x in maps[n:]], **given, **options)
        return distances, attention, torch.autograd.grad(distances, own, upstream.to(where))

    upstream = torch.randn(layers.pairs[:2], generator=rng, dtype=dtype)
    distances, attention, grads = results(compress, device)
    plain_distances, plain_attention, plain_grads = results(plain.compress, "cpu")
    given = {"scores": accuracy.float64(scores)} if scored else {}
    exact = oracle.compress(*accuracy.all_float64(maps[:n], maps[n:]), **given, **options)
    _accurate(distances, exact.distances, plain_distances, "distances", condition)
    _accurate(attention, exact.attention, plain_attention, "attention", condition)
    weight = accuracy.float64(upstream)
    expected = [grad * weight[:, i].reshape(-1, *[1] * (grad.ndim - 1)) for i, grad in enumerate(exact.map_grads)]
    expected += [exact.score_grads * weight[..., None]] if scored else []
    for index, (ours, *others) in enumerate(zip(grads, expected, plain_grads, strict=True)):
        accuracy.assert_gradient(ours.cpu(), *others, f"gradient of input {index}", condition)


def check_abc_loss(
    device: torch.device, layers: cases.Layers, dtype: torch.dtype, layout=cases.contiguous, **options
) -> None:
    """Loss, attention and student gradients."""
    students, teachers = layers.features(dtype, lambda x: layout(x.to(device)))
    options = layers.arguments | options
    condition = 1 / options.get("temperature", 0.1)
    loss, attention = abc_loss(students, teachers, **options, return_attention=True)
    grads = torch.autograd.grad(loss, students)

    copies = [x.detach().cpu().requires_grad_() for x in students]
    teachers = [x.cpu() for x in teachers]
    exact = oracle.abc_loss(*accuracy.all_float64(copies, teachers), **options)
    plain_loss = plain.abc_loss(copies, teachers, **options)
    _accurate(loss, exact.mean, plain_loss, "loss", condition)
    torch.testing.assert_close(attention.double().cpu(), torch.from_numpy(exact.attention), rtol=2e-4, atol=1e-5)
    plain_grads = torch.autograd.grad(plain_loss, copies)
    for index, (ours, *others) in enumerate(zip(grads, exact.student_grads, plain_grads, strict=True)):
        accuracy.assert_gradient(ours.cpu(), *others, f"gradient of student_features[{index}]", condition)


def _accurate(ours, exact, plain_result, what: str, condition: float = 1) -> None:
    accuracy.assert_accurate(ours.detach().cpu(), exact, plain_result, what, condition)


def _tap_checks() -> dict[str, Check]:
    both = (cases.contiguous, cases.channels_last)
    dense = {
        _name("tap", dtype, layout, *_padded(lengths)): partial(
            check_tap, shape=(2, 19, 4, 6), dtype=dtype, layout=layout, lengths=lengths
        )
        for lengths in (None, (4, 1))
        for layout in both
        for dtype in cases.DTYPES
    }
    real = {
        _name("tap", dtype, layout, "real size"): partial(
            check_tap, shape=REAL, dtype=dtype, layout=layout, lengths=(200, 187, 150, 200, 133, 64, 1, 99)
        )
        for layout in both
        for dtype in cases.DTYPES
    }
    shapes = {
        _name("tap", dtype, layout, shape, f"power {power}"): partial(
            check_tap, shape=shape, dtype=dtype, layout=layout, power=power
        )
        for shape in TAP_SHAPES
        for layout in both
        for dtype, power in ((torch.float32, 1), (torch.bfloat16, 2))
    }
    others = {
        _name("tap", dtype, layout): partial(check_tap, shape=(2, 6, 9), dtype=dtype, layout=layout, means=False)
        for layout in cases.LAYOUTS
        for dtype in cases.HALF_DTYPES
    }
    return dense | real | shapes | others


def _compress_checks() -> dict[str, Check]:
    checks = {}
    for layers in (cases.PADDED, cases.DOWN, *cases.LAYERS):
        checks[_name("compress", torch.float32, layers)] = partial(check_compress, layers=layers, dtype=torch.float32)
    for layers in cases.LAYERS:
        scored = partial(check_compress, layers=layers, dtype=torch.float64, scored=True)
        checks[_name("compress", torch.float64, layers, "scores")] = scored
        if layers.has_bands:
            per_frame = partial(check_compress, layers=layers, dtype=torch.float32, per_frame=True)
            checks[_name("compress", torch.float32, layers, "per frame")] = per_frame
    mask = torch.tensor([[True, False, True], [False, True, False]])
    masked = partial(check_compress, layers=cases.DOWN, dtype=torch.float32, mask=mask)
    long = cases.Layers("long", ((2, 1, 1030),), ((2, 1, 1030), (2, 1, 1030)))
    checks[_name("compress", torch.float32, "mask")] = masked
    checks[_name("compress", torch.float32, long)] = partial(check_compress, layers=long, dtype=torch.float32)
    return checks


def _abc_loss_checks() -> dict[str, Check]:
    checks = {}
    for layers in (cases.PADDED, *cases.LAYERS):
        for dtype in cases.DTYPES:
            checks[_name("abc_loss", dtype, layers)] = partial(check_abc_loss, layers=layers, dtype=dtype)
    for layout in cases.LAYOUTS[1:]:
        checks[_name("abc_loss", torch.bfloat16, layout)] = partial(
            check_abc_loss, layers=cases.DOWN, dtype=torch.bfloat16, layout=layout
        )
    for name, options in cases.OPTIONS.items():
        checks[_name("abc_loss", torch.float32, name)] = partial(
            check_abc_loss, layers=cases.DOWN, dtype=torch.float32, **options
        )
    return checks


def _name(op: str, dtype: torch.dtype, *parts) -> str:
    return ", ".join([op, cases.name_of(dtype), *(getattr(part, "__name__", str(part)) for part in parts)])


def _padded(lengths) -> tuple[str, ...]:
    return () if lengths is None else ("padded",)


def _alternating(*groups: dict[str, Check]) -> dict[str, Check]:
    """The groups' checks, one of each in turn."""
    rows = zip_longest(*(group.items() for group in groups))
    return dict(item for item in chain.from_iterable(rows) if item is not None)


CHECKS = _alternating(_tap_checks(), _compress_checks(), _abc_loss_checks())
