"""Options are held to what their annotations say, in the words of one mechanism."""

import math
from typing import Annotated, Literal

import pytest

from abckd_kernels.losses.common.checks import check_channels, check_count
from abckd_kernels.losses.common.options import Count, Finite, Limits, Positive, Share, check_options


def loss(
    *,
    dim: Count = 1,
    order: Annotated[int, Limits(whole=True)] = 0,
    temperature: Positive = 1.0,
    gamma: Finite = 0.0,
    beta: Share = 0.5,
    share: Annotated[float, Limits(most=1.0, above=True)] = 1.0,
    kind: Literal["kl", "jsd"] = "kl",
    squared: bool = False,
    eps: Positive | None = None,
):
    """Every kind of annotation that losses have."""


@pytest.mark.parametrize(
    "name, value, expected",
    [
        ("dim", 0, "a positive whole number, got int 0"),
        ("dim", True, "a positive whole number, got bool True"),
        ("dim", 2.0, "a positive whole number, got float 2.0"),
        ("order", -1, "a whole number at least 0, got int -1"),
        ("order", 0.5, "a whole number at least 0, got float 0.5"),
        ("temperature", 0, "a positive number, got int 0"),
        ("temperature", "1", "a positive number, got str '1'"),
        ("gamma", math.inf, "a finite number, got float inf"),
        ("beta", 1.5, "a number at least 0 and at most 1, got float 1.5"),
        ("share", 0, "a positive number and at most 1, got int 0"),
        ("kind", "l2", "one of 'kl', 'jsd', got str 'l2'"),
        ("squared", 1, "True or False, got int 1"),
        ("eps", -1, "a positive number, got int -1"),
    ],
)
def test_a_value_that_the_annotation_does_not_allow_is_named(name, value, expected):
    with pytest.raises((ValueError, TypeError)) as error:
        check_options(loss, **{name: value})
    assert str(error.value) == f"{name}: expected {expected}"


def test_what_the_annotations_allow_passes():
    check_options(loss, dim=3, order=0, temperature=0.5, gamma=-2, beta=1, share=1, kind="jsd", squared=True, eps=None)


def test_a_count_that_is_no_option_has_the_same_words():
    with pytest.raises(ValueError, match="dim: expected a positive whole number, got bool True"):
        check_count("dim", True)
    with pytest.raises(ValueError, match="student_channels: expected a non-empty list of positive whole numbers"):
        check_channels("student_channels", [4, True])
