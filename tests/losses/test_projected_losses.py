"""Hints behind learned layers: regressors, knowledge review (HCL, ABF), factor transfer."""

import cases
import naive_projected as naive
import pytest
import torch
from suite import *  # noqa: F403 - the tests that every loss passes
from suite import Loss, gradients

from abckd_kernels.losses import hints as h
from abckd_kernels.losses.common.features import Padding
from abckd_kernels.ops.pyramid import reference as pyramid

OTHER = (3, 9, 4)  # another size
WIDE = (4, 6, 5)  # other channels
signed = {"zero_at_equality": False}
plain = {"teacher": (3, 6, 5), "invariant": "batch"}
sized = {"teacher": OTHER, "invariant": "batch"}
of_batch = {"of_batch": True, **signed}


def regressor(kind):
    return {
        "module": lambda: h.HintLoss(3, 4, regressor=kind),
        "definition": lambda s, t, parameters: naive.regressed(s, t, parameters, kind),
        "function": None,
        "teacher": WIDE,
        "options": {},
    }


def fusion(norm):
    return {
        "module": lambda: h.ReviewLoss([3, 5], [4, 6], hidden=4, norm=norm),
        "definition": lambda s, t, parameters: naive.fused(s, t, parameters, norm),
        "function": None,
        "student": [(3, 8, 6), (5, 4, 3)],
        "teacher": [(4, 8, 6), (6, 4, 3)],
    }


LOSSES = [
    Loss("hint linear", **regressor("linear"), invariant="batch", **signed),
    Loss("hint batch_norm", **regressor("batch_norm"), invariant="batch", **of_batch),
    Loss("hint relu", **regressor("relu"), invariant="batch", **of_batch),
    Loss("review", h.review_loss, naive.review, **plain),
    Loss("review", h.review_loss, naive.review, **sized),
    Loss("review", h.review_loss, naive.review, options={"levels": (5, 3), "fit": "frames"}, **plain),
    Loss("review", h.review_loss, naive.review, options={"levels": (16,)}, **plain),
    Loss("review fused", **fusion("batch"), invariant="batch", **of_batch),
    Loss("review fused by instance", **fusion("instance"), invariant="batch", **signed),
    Loss("ft", h.ft_loss, naive.ft, teacher=WIDE),
    Loss("ft", h.ft_loss, naive.ft, teacher=OTHER, options={"power": 1, "p": 2.0}, half_scale=20),
    Loss("ft", h.ft_loss, naive.ft, options={"normalize": "factor"}, **plain | {"invariant": "scale batch"}),
    Loss("ft", h.ft_loss, naive.ft, options={"normalize": "factor", "p": 2.0},
         **sized | {"invariant": "scale batch"}),
    Loss("ft translated", None, naive.ft_module, module=lambda: h.FTLoss(3, 4), teacher=WIDE, **of_batch,
         invariant="batch", spatial=(2,),
         excused={"test_gradient": "paraphrasers are constants; rep__FT_translator has the translator's gradients"}),
]  # fmt: skip


# ---------------------------------------------------------------------------------------------- published numbers


def with_parameters(module, names, peer):
    """The module as a function of published parameters, and these; names: {published: own}."""
    parameters = {name: peer[f"p.{name}"].clone().requires_grad_() for name in names}
    own = dict(module.double().named_parameters())
    state = {name: parameters[published].reshape(own[name].shape) for published, name in names.items()}
    return lambda *features: torch.func.functional_call(module, state, features), parameters


def published_regressor(peer, regressor):
    names = {"conv.weight": "linear.weight", "bn.weight": "norm.weight", "bn.bias": "norm.bias"}
    if regressor != "relu":
        regressor = h.ConvReg.between(peer.students[0].shape, peer.teachers[0].shape)
        names["conv.weight"] = "convolution.weight"
    names = {published: f"regressed.layers.0.{own}" for published, own in names.items()}
    form, parameters = with_parameters(h.HintLoss(6, 10, regressor=regressor), names, peer)
    return form(peer.students, peer.teachers), parameters


def fusion_state(peer, layers, deepest_first, instance):
    """Parameters of an ABF from published ones, which begin with the deepest layer, and these themselves."""
    state, parameters = {}, {}

    def given(name):
        parameters[name] = peer[f"p.{name}"].clone().requires_grad_()
        return parameters[name]

    for index in range(layers):
        source, target = f"abfs.{deepest_first[index]}", f"layers.{index}"
        state[f"{target}.reduce.linear.weight"] = given(f"{source}.conv1.0.weight").flatten(1)
        state[f"{target}.expand.weight"] = given(f"{source}.conv2.0.weight")
        for own, published in (("reduce.norm", "conv1"), ("norm", "conv2")):
            own = {"reduce.norm": "reduce.rectified.norm", "norm": "norm.norm"}[own] if instance else own
            for name in ("weight", "bias"):
                state[f"{target}.{own}.{name}"] = given(f"{source}.{published}.1.{name}")
            if instance:
                activation = own.removesuffix("norm") + "activation.weight"
                state[f"{target}.{activation}"] = given(f"{source}.{published}.2.weight")
        if f"p.{source}.att_conv.0.weight" in peer.data:
            weight = given(f"{source}.att_conv.0.weight").flatten(1)
            half = weight.shape[1] // 2
            state[f"{target}.attention.0.weight"] = weight[:, :half]
            state[f"{target}.attention.1.weight"] = weight[:, half:]
            state[f"{target}.attention.0.bias"] = given(f"{source}.att_conv.0.bias")
    return state, parameters


def published_fusion(peer):
    module = h.ReviewLoss([6, 8, 10], [10, 12, 14], hidden=10, fit="frames", weights=[1.0] * 3).double()
    state, parameters = fusion_state(peer, 3, {0: 2, 1: 1, 2: 0}, instance=False)
    state = {f"fusion.{name}": value for name, value in state.items()}
    return torch.func.functional_call(module, state, (peer.students, peer.teachers)), parameters


def published_intra_fusion(peer):
    """I2RF-TFCKD compares only what comes out last, here by its mean square."""
    module = h.ABF([8, 6], [8, 6], hidden=7, norm="instance").double()
    state, parameters = fusion_state(peer, 2, {0: 1, 1: 0}, instance=True)
    sizes = [peer.students[0].shape[2:], peer.students[1].shape[2:]]
    last = torch.func.functional_call(module, state, (peer.students, sizes))[0]
    used = {name: value for name, value in parameters.items() if f"gp.{name}" in peer.data}
    return last.square().mean(), used


def published_translator(peer):
    module, state, parameters = h.FTLoss(6, 10).double(), {}, {}
    for i in range(3):
        for own, published in (("convolutions", 3 * i), ("norms", 3 * i + 1)):
            for name in ("weight", "bias")[: 1 if own == "convolutions" else 2]:
                key = f"translator.encoder.{published}.{name}"
                parameters[key] = peer[f"p.{key}"].clone().requires_grad_()
                state[f"translators.0.{own}.{i}.{name}"] = parameters[key]
        for name in ("weight", "bias"):
            state[f"paraphrasers.0.encoder.{i}.{name}"] = peer[f"p.paraphraser.encoder.{3 * i}.{name}"]
            state[f"paraphrasers.0.decoder.{i}.{name}"] = peer[f"p.paraphraser.decoder.{3 * i}.{name}"]
    return torch.func.functional_call(module, state, (peer.students, peer.teachers)), parameters


HCL = {"fit": "frames", "weights": [1.0]}
PUBLISHED = {
    "md__FitNet_ConvReg_eq_conv1x1": lambda peer: published_regressor(peer, "relu"),
    "rep__FitNet_ConvReg_eq_conv1x1": lambda peer: published_regressor(peer, "relu"),
    "rep__FitNet_ConvReg_half_conv3x3s2": lambda peer: published_regressor(peer, "between"),
    "rep__FitNet_ConvReg_valid_conv4x4": lambda peer: published_regressor(peer, "between"),
    "review__HCL_eq_12x16": (h.review_loss, HCL),
    "td__HCL_eq": (h.review_loss, HCL),
    "md__HCL_3levels": (h.review_loss, {"fit": "frames", "weights": [1.0] * 3}),
    "md__ABF_HCL_square_resize": published_fusion,
    "tfckd__intra_fusion_mean_sq": published_intra_fusion,
    "rep__FT_factor_eq": (h.ft_loss, {}),
    "rep__FT_translator": published_translator,
    "td__FT_p1": (h.ft_loss, {"normalize": "factor"}),
    "td__KTA_p1_q2": (h.ft_loss, {"normalize": "factor"}),
}


# ---------------------------------------------------------------------------------------------- behaviour


def test_transposed_regressor_enlarges_the_student():
    """The third of the published regressors: twice as many frames."""
    regressor = h.ConvReg.between((2, 3, 5, 4), (2, 6, 10, 8))
    assert regressor(torch.randn(2, 3, 5, 4), Padding(None, 5)).shape == (2, 6, 10, 8)
    with pytest.raises(ValueError, match="teacher_shape"):
        h.ConvReg.between((2, 3, 5, 4), (2, 6, 7, 8))


@pytest.mark.parametrize("layout", [cases.contiguous, cases.channels_last], ids=lambda layout: layout.__name__)
@pytest.mark.parametrize("block", [1, 50, 200, 10**9])
def test_review_in_blocks_is_review(layout, block, monkeypatch):
    student, teacher = (layout(torch.randn(3, 4, 10, 6)) for _ in range(2))
    student.requires_grad_()
    results = []
    for size in (10**9, block):
        monkeypatch.setattr(pyramid, "BLOCK", size)
        value = h.review_loss(student, teacher, lengths=[10, 3, 0])
        results.append((value, *gradients(value, student)))
    torch.testing.assert_close(*results)


def test_levels_that_do_not_fit_change_nothing():
    student, teacher = torch.randn(2, 3, 9, 5), torch.randn(2, 3, 9, 5)
    value = h.review_loss(student, teacher)
    torch.testing.assert_close(h.review_loss(student, teacher, levels=(7, 4, 2, 1)), value)
    assert h.review_loss(student, teacher, levels=(7, 4, 2, 1), fit="frames") != value
    torch.testing.assert_close(h.review_loss(student, teacher, levels=()), h.hint_loss(student, teacher))


def test_paraphrasers_learn_to_reconstruct_and_are_constants_in_the_loss():
    torch.manual_seed(0)
    module = h.FTLoss(3, 4)
    student, teacher = torch.randn(2, 3, 6, 5), torch.randn(2, 4, 6, 5)
    module(student, teacher).backward()
    assert all(p.grad is None for p in module.paraphrasers.parameters())
    assert all(p.grad is not None for p in module.translators.parameters())
    before = module.reconstruction_loss(teacher, lengths=[6, 3])
    optimizer = torch.optim.Adam(module.paraphrasers.parameters(), lr=1e-2)
    for _ in range(30):
        optimizer.zero_grad()
        module.reconstruction_loss(teacher, lengths=[6, 3]).backward()
        optimizer.step()
    assert module.reconstruction_loss(teacher, lengths=[6, 3]) < 0.9 * before


@pytest.mark.parametrize("kind", ["linear", "batch_norm", "relu"])
def test_several_layers_behind_regressors(kind):
    torch.manual_seed(0)
    module = h.HintLoss([3, 2], [4, 5], regressor=kind, weights=[2.0, 0.5])
    students = [torch.randn(2, 3, 6, 5), torch.randn(2, 2, 8)]
    teachers = [torch.randn(2, 4, 3, 5), torch.randn(2, 5, 8)]
    alone = []
    for index, pair in enumerate(((3, 4), (2, 5))):
        one = h.HintLoss(*pair, regressor=kind)
        one.regressed.layers[0].load_state_dict(module.regressed.layers[index].state_dict())
        alone.append(one(students[index], teachers[index]))
    torch.testing.assert_close(module(students, teachers), 2 * alone[0] + 0.5 * alone[1])


S, T = torch.zeros(2, 3, 6, 4), torch.zeros(2, 5, 6, 4)
WRONG = [
    (lambda: h.HintLoss(3), ValueError, ["teacher_channels"]),
    (lambda: h.HintLoss(3, 5, regressor="mlp"), ValueError, ["regressor", "'linear'", "'mlp'"]),
    (lambda: h.HintLoss([3, 3], [5, 5], regressor=h.ConvReg(3, 5)), ValueError, ["regressor", "2 modules"]),
    (lambda: h.HintLoss(4, 5)(S, T), ValueError, ["student_features[0]", "4 channels", "3"]),
    (lambda: h.review_loss(S, T), ValueError, ["teacher_features[0]", "channels 3", "5"]),
    (lambda: h.review_loss(S, S, levels=(4, 0)), ValueError, ["levels", "(4, 0)"]),
    (lambda: h.review_loss(S, S, fit="bands"), ValueError, ["fit", "'frames'", "'bands'"]),
    (lambda: h.ReviewLoss([3, 3], [5, 5])(S, T), ValueError, ["student_features", "2", "1"]),
    (lambda: h.ReviewLoss([4], [5])(S, T), ValueError, ["student_features[0]", "4 channels", "(2, 3, 6, 4)"]),
    (lambda: h.ReviewLoss(3, 5, norm="layer"), ValueError, ["norm", "'instance'", "'layer'"]),
    (lambda: h.ft_loss(S, T, normalize="factor"), ValueError, ["teacher_features[0]", "channels 3", "5"]),
    (lambda: h.ft_loss(S, T, normalize="none"), ValueError, ["normalize", "'map'", "'none'"]),
    (lambda: h.ft_loss(S, T, p=0.5), ValueError, ["p:", "0.5"]),
    (lambda: h.FTLoss(3, 5, rate=0), ValueError, ["rate", "0"]),
    (lambda: h.FTLoss(3, 5)(S[..., 0], T[..., 0]), ValueError, ["student_features[0]", "4 axes", "(2, 3, 6)"]),
    (lambda: h.FTLoss().reconstruction_loss(T), ValueError, ["teacher_channels"]),
]


@pytest.mark.parametrize("call, error, words", WRONG, ids=[str(i) for i in range(len(WRONG))])
def test_errors(call, error, words):
    with pytest.raises(error) as caught:
        call()
    assert all(word in str(caught.value) for word in words), str(caught.value)
