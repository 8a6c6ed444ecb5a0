"""The dispatcher's ops called directly: what does not fit is an error, never a read of foreign memory."""

import cases
import pytest
import torch

tap_forward = torch.ops.abckd.tap_forward.default
tap_backward = torch.ops.abckd.tap_backward.default
compress_forward = torch.ops.abckd.compress_forward.default
compress_backward = torch.ops.abckd.compress_backward.default
X = torch.ones(2, 3, 4, 5)
MAP, MEAN = torch.ones(2, 4, 5), torch.ones(2, 3)
GRID = torch.ones(2, 1, 4, 5)


def backward(grad=X, x=X, map_grad=MAP, mean_grad=MEAN):
    return tap_backward([grad], [x], [map_grad], [mean_grad], 2, None, 4)


def compressed(maps=(MAP,), scores=None, mask=None, grid=(4, 5), lengths=None):
    return compress_forward(list(maps), [MAP], scores, mask, list(grid), False, 0.1, lengths, 4, True)


def spread(distance_grads=MEAN[:, :1], map_grads=GRID, sizes=(4, 5)):
    attention = torch.ones(2, 1, 1)
    needed = [True, False]
    return compress_backward(distance_grads, None, attention, attention, map_grads, list(sizes), None, 4, needed)


WRONG = {
    "no feature": lambda: tap_forward([], 2, True, None, 4),
    "flat feature": lambda: tap_forward([X[0, 0]], 2, True, None, 4),
    "two batch sizes": lambda: tap_forward([X, X[:1]], 2, True, None, 4),
    "power": lambda: tap_forward([X], 3, True, None, 4),
    "lengths of another batch": lambda: tap_forward([X], 2, True, torch.tensor([1]), 4),
    "padded_length": lambda: tap_forward([X], 2, True, torch.tensor([1, 2]), 0),
    "gradient of another shape": lambda: backward(grad=X[:, :2]),
    "map gradient of another shape": lambda: backward(map_grad=torch.ones(1)),
    "mean gradient of another shape": lambda: backward(mean_grad=torch.ones(1)),
    "missing gradients": lambda: tap_backward([], [X], [], [], 2, None, 4),
    "batch sizes of backward": lambda: tap_backward([None] * 2, [X, X[:1]], [None] * 2, [None] * 2, 2, None, 4),
    "dtype of maps": lambda: compressed(maps=[MAP.half()]),
    "shape of maps": lambda: compressed(maps=[MAP[0]]),
    "shape of scores": lambda: compressed(scores=torch.ones(2, 1, 2)),
    "shape of mask": lambda: compressed(mask=torch.ones(2, 2, dtype=torch.bool)),
    "empty grid": lambda: compressed(grid=(0, 5)),
    "enormous grid": lambda: compressed(grid=(2**32, 2**32)),
    "dtype of map gradients": lambda: spread(map_grads=GRID.half()),
    "axes of map gradients": lambda: spread(map_grads=torch.ones(0)),
    "shape of distance gradients": lambda: spread(distance_grads=torch.ones(1)),
    "sizes": lambda: spread(sizes=(4,)),
    "negative sizes": lambda: spread(sizes=(4, -5)),
}


@pytest.mark.skipif("cpu" not in cases.BACKENDS, reason="the checks are those of the cpu backend")
@pytest.mark.parametrize("call", WRONG.values(), ids=WRONG)
def test_what_does_not_fit_is_an_error(call):
    with pytest.raises((ValueError, TypeError, RuntimeError)):
        call()
