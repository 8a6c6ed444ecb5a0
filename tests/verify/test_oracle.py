"""The oracle's closed-form gradients against central differences, and the poison that the suite relies on."""

import cases
import numpy as np
import pytest
import torch

from abckd_verify.exact import oracle

STEP = 1e-6


def differences(function, x: np.ndarray) -> np.ndarray:
    result = np.zeros(x.shape)
    for index in np.ndindex(x.shape):
        values = []
        for sign in (1, -1):
            moved = x.copy()
            moved[index] += sign * STEP
            values.append(function(moved))
        result[index] = (values[0] - values[1]) / (2 * STEP)
    return result


@pytest.mark.parametrize("normalize", ["sample", "frame"])
@pytest.mark.parametrize("scored", [False, True])
@pytest.mark.parametrize("power", [1, 2])
def test_gradients_are_those_of_the_loss(power, scored, normalize):
    students = [cases.feature(shape, torch.float64, 1).numpy() for shape in ((2, 2, 4, 3), (2, 1, 3, 2))]
    students = [np.where(np.abs(x) < 0.01, 0.01, x) for x in students]  # |x| has a kink at zero
    teachers = [cases.feature(shape, torch.float64, 2).numpy() for shape in ((2, 3, 4, 3), (2, 2, 5, 4))]
    scores = cases.feature((2, 2, 2), torch.float64, 3).numpy() if scored else None
    options = {"power": power, "normalize": normalize, "scores": scores, "lengths": (5, 3), "weights": (0.3, 0.9)}
    exact = oracle.abc_loss(students, teachers, **options)
    for index, x in enumerate(students):

        def loss(y, index=index):
            return oracle.abc_loss([*students[:index], y, *students[index + 1 :]], teachers, **options).mean

        numeric = differences(loss, x)
        np.testing.assert_allclose(exact.student_grads[index], numeric, rtol=1e-6, atol=1e-8)
    if scored:
        numeric = differences(lambda y: oracle.abc_loss(students, teachers, **options | {"scores": y}).mean, scores)
        np.testing.assert_allclose(exact.score_grads, numeric, rtol=1e-6, atol=1e-8)


def test_pooling_is_adaptive_average_pooling():
    x = cases.feature((1, 1, 7, 5), torch.float64)
    for grid in ((3, 2), (7, 5), (11, 9), (1, 4)):
        expected = torch.nn.functional.adaptive_avg_pool2d(x, grid)[0, 0].numpy()
        ours = oracle.pooling_matrix(grid[0], 7) @ x[0, 0].numpy() @ oracle.pooling_matrix(grid[1], 5).T
        np.testing.assert_allclose(ours, expected, rtol=1e-12)


@pytest.mark.parametrize("dtype", cases.DTYPES, ids=cases.name_of)
def test_fresh_memory_is_nan(dtype):
    fresh = (
        torch.empty(40, dtype=dtype),
        torch.zeros(40, dtype=dtype).new_empty(40),
        torch.empty_like(torch.zeros(40, dtype=dtype)),
        torch.ops.aten.empty.memory_format([40], dtype=dtype),  # at::empty
        torch.ops.aten.empty_strided.default([4, 10], [1, 4], dtype=dtype),  # at::empty_strided
    )
    assert all(x.isnan().all() for x in fresh)
