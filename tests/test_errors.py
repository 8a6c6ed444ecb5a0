"""Wrong arguments: the error names the argument, its index, what was expected and what came."""

import pytest
import torch

from abckd_kernels import ABCLoss, abc_loss, compress, tap, tap_all

S = torch.zeros(2, 3, 6, 4)
T = torch.zeros(2, 5, 6, 4)
FLAT = torch.zeros(2, 3, 6)


def loss(students=(S,), teachers=(T,), **options):
    return abc_loss(students, teachers, **options)


def module(students=(S,), teachers=(T,)):
    return ABCLoss([3], [5], dim=2)(students, teachers)


def maps(students=(S[:, 0],), teachers=(T[:, 0],), **options):
    return compress(students, teachers, **options)


WRONG = [
    # features
    (lambda: loss([S.int()]), TypeError, ["student_features[0]", "float32", "int32"]),
    (lambda: loss(teachers=[T, T.bool()]), TypeError, ["teacher_features[1]", "float16", "bool"]),
    (lambda: loss([S, None]), TypeError, ["student_features[1]", "tensor", "NoneType"]),
    (lambda: loss([]), TypeError, ["student_features", "non-empty", "[]"]),
    (lambda: loss(teachers=[]), TypeError, ["teacher_features", "non-empty", "[]"]),
    (lambda: loss([S[0, 0]]), ValueError, ["student_features[0]", "(B, C, T, F)", "(6, 4)"]),
    (lambda: loss([S[..., None]]), ValueError, ["student_features[0]", "(B, C, T, F)", "(2, 3, 6, 4, 1)"]),
    (lambda: loss([S[:, :0]]), ValueError, ["student_features[0]", "zero", "(2, 0, 6, 4)"]),
    (lambda: loss([S, S[:1]]), ValueError, ["student_features[1]", "2", "1"]),
    (lambda: loss(teachers=[T, T[:1]]), ValueError, ["teacher_features[1]", "2", "1"]),
    (lambda: loss(teachers=[T[:1]]), ValueError, ["teacher_features[0]", "batch size 2", "1"]),
    (lambda: loss(teachers=[FLAT]), ValueError, ["teacher_features[0]", "4", "3"]),
    (lambda: loss(teachers=[T.to("meta")]), ValueError, ["teacher_features[0]", "cpu", "meta"]),
    # options
    (lambda: loss(power=3), ValueError, ["power", "1 or 2", "3"]),
    (lambda: loss(temperature=0), ValueError, ["temperature", "positive", "0"]),
    (lambda: loss(temperature=float("nan")), ValueError, ["temperature", "positive", "nan"]),
    (lambda: loss(normalize="batch"), ValueError, ["normalize", "'sample'", "'frame'", "'batch'"]),
    (lambda: loss(reduction="max"), ValueError, ["reduction", "'mean'", "'none'", "'max'"]),
    (lambda: loss([FLAT], [FLAT], normalize="frame"), ValueError, ["normalize", "second spatial axis"]),
    (lambda: loss(normalize="frame", grid=(3, 1)), ValueError, ["frame", "(3, 1)"]),
    (lambda: loss(grid=(3,)), ValueError, ["grid", "2", "(3,)"]),
    (lambda: loss(grid=(3, 0)), ValueError, ["grid", "positive", "(3, 0)"]),
    (lambda: loss(scores="cosine"), ValueError, ["scores", "'uniform'", "'cosine'"]),
    (lambda: loss(scores=torch.zeros(2, 1, 2)), ValueError, ["scores", "(2, 1, 1)", "(2, 1, 2)"]),
    (lambda: loss(weights=[1, 2]), ValueError, ["weights", "1", "(2,)"]),
    (lambda: loss(mask=[[True, True]]), ValueError, ["mask", "(1, 1)", "(1, 2)"]),
    (lambda: loss([S, S], mask=[[True], [False]]), ValueError, ["mask[1]", "at least one"]),
    (lambda: loss(lengths=torch.tensor([6])), ValueError, ["lengths", "(2,)", "(1,)"]),
    (lambda: loss(lengths=torch.tensor([6.0, 2.0])), TypeError, ["lengths", "integers", "float32"]),
    (lambda: loss(grid=4), ValueError, ["grid", "2", "4"]),
    (lambda: loss(grid=(4.0, 2)), ValueError, ["grid", "whole", "(4.0, 2)"]),
    (lambda: loss(power="2"), ValueError, ["power", "1 or 2", "'2'"]),
    (lambda: loss(padded_length=4.5), ValueError, ["padded_length", "whole", "4.5"]),
    (lambda: loss(scores=[[1.0]]), TypeError, ["scores", "tensor", "list"]),
    (lambda: loss(scores=torch.zeros(2, 1, 1, device="meta")), ValueError, ["scores", "cpu", "meta"]),
    (lambda: loss(weights="a"), ValueError, ["weights", "1 numbers", "'a'"]),
    (lambda: loss([S, S], mask=[[True], [True, False]]), ValueError, ["mask", "(2, 1)"]),
    (lambda: loss([S.to_sparse()]), TypeError, ["student_features[0]", "dense", "sparse"]),
    # ops
    (lambda: tap(S.long()), TypeError, ["float32", "int64"]),
    (lambda: tap(S, power=0), ValueError, ["power", "1 or 2", "0"]),
    (lambda: tap(S, padded_length=0), ValueError, ["padded_length", "positive", "0"]),
    (lambda: tap_all([S, T[:1]]), ValueError, ["features[1]", "2", "1"]),
    (lambda: maps(teachers=[T[:, 0, 0]]), ValueError, ["teacher_maps[0]", "(2, T, F)", "(2, 4)"]),
    (lambda: maps(students=[]), TypeError, ["student_maps", "non-empty"]),
    (lambda: maps(padded_length=0, lengths=torch.tensor([1, 1])), ValueError, ["padded_length", "0"]),
    # ABCLoss
    (lambda: ABCLoss([], [3]), ValueError, ["student_channels", "non-empty", "[]"]),
    (lambda: ABCLoss(4, [8]), ValueError, ["student_channels", "list", "4"]),
    (lambda: ABCLoss([3], [3], dim=0), ValueError, ["dim", "positive", "0"]),
    (lambda: ABCLoss([3], [3], normalize="zz"), ValueError, ["normalize", "'frame'", "'zz'"]),
    (lambda: ABCLoss([3], [3], power=5), ValueError, ["power", "1 or 2", "5"]),
    (lambda: ABCLoss([3], [3], temperature=-1), ValueError, ["temperature", "positive", "-1"]),
    (lambda: ABCLoss([3], [0]), ValueError, ["teacher_channels", "positive", "[0]"]),
    (lambda: ABCLoss([3], [3], scores="none"), ValueError, ["scores", "learned", "'none'"]),
    (lambda: ABCLoss([3], [3], weights=[1, 1]), ValueError, ["weights", "1", "(2,)"]),
    (lambda: ABCLoss([3], [3], mask=[[False]]), ValueError, ["mask[0]", "at least one"]),
    (lambda: module(students=[T]), ValueError, ["student_features[0]", "3", "5"]),
    (lambda: module(teachers=[S]), ValueError, ["teacher_features[0]", "5", "3"]),
    (lambda: module(teachers=[T, T]), ValueError, ["teacher_features", "1", "2"]),
]


@pytest.mark.parametrize(("call", "error", "words"), WRONG, ids=[" ".join(words) for _, _, words in WRONG])
def test_error_names_what_is_wrong(call, error, words):
    with pytest.raises(error) as caught:
        call()
    assert type(caught.value) is error
    missing = [word for word in words if word not in str(caught.value)]
    assert not missing, f"{missing} not in: {caught.value}"
