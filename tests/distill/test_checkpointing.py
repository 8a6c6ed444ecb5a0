"""Activation checkpointing of both kinds, around named layers and in them: the gradients of the unchecked step."""

import copy
import functools

import pytest
import torch
from made_distillers import X
from torch import nn
from torch.utils.checkpoint import checkpoint, checkpoint_sequential

from abckd_kernels import ABCLoss, Distiller, abc_loss
from abckd_kernels.losses import ATLoss, HintLoss

AROUND, INSIDE, WHOLE = "around each block", "in each block", "around all"


class Block(nn.Module):
    def __init__(self, inputs, outputs):
        super().__init__()
        self.conv, self.act = nn.Conv2d(inputs, outputs, 3, padding=1), nn.GELU()
        self.again = nn.Conv2d(outputs, outputs, 1)
        self.how = lambda f, *args: f(*args)

    def body(self, x):
        return self.again(self.act(self.conv(x)))

    def forward(self, x):
        return self.how(self.body, x)


class Net(nn.Module):
    def __init__(self, width=4, inplace=False):
        super().__init__()
        self.blocks = nn.ModuleList([Block(1, width), Block(width, width), Block(width, width)])
        self.head = nn.Sequential(nn.ReLU(inplace=inplace), nn.Conv2d(width, 1, 1))
        self.how = self.whole = lambda f, *args: f(*args)

    def body(self, x):
        for block in self.blocks:
            x = self.how(block, x)
        return x

    def forward(self, x):
        return self.head(self.whole(self.body, x))


def checkpointed(network, where, **options):
    network, how = copy.deepcopy(network), functools.partial(checkpoint, **options)
    if where == INSIDE:
        for block in network.blocks:
            block.how = how
    elif where == AROUND:
        network.how = how
    else:
        network.whole = how
    return network


def gradients(student, teacher, layers, loss, total=lambda out: out.student.square().mean() + 3 * out.loss, steps=2):
    student, loss = copy.deepcopy(student), copy.deepcopy(loss)
    distiller = Distiller(student, teacher, layers, layers, loss)
    for _ in range(steps):  # the first step may do something else than those after it
        distiller.zero_grad()
        x = X.detach().clone().requires_grad_()
        output = distiller(x)
        total(output).backward()
    assert not [hook for module in student.modules() for hook in module._forward_hooks]
    return [x.grad, *(p.grad for p in distiller.parameters() if p.grad is not None)]


def assert_equal(ours, right):
    assert len(ours) == len(right)
    for a, b in zip(ours, right, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-5, atol=1e-8)


LAYERS = ["blocks.0", "blocks.1.conv", "blocks.1.act@in", "blocks.2"]
LOSSES = {
    "taps": ATLoss(), "features": HintLoss(), "learned": ABCLoss([4] * 4, [4] * 4, dim=4), "function": abc_loss
}  # fmt: skip


@pytest.fixture(scope="module")
def networks():
    torch.manual_seed(0)
    return Net(), Net()


@pytest.mark.parametrize("loss", LOSSES.values(), ids=LOSSES)
@pytest.mark.parametrize("where", [AROUND, INSIDE, WHOLE])
@pytest.mark.parametrize("use_reentrant", [False, True], ids=["not reentrant", "reentrant"])
def test_gradients_are_those_of_the_unchecked_step(networks, loss, where, use_reentrant):
    student, teacher = networks
    right = gradients(student, teacher, LAYERS, loss)
    ours = gradients(checkpointed(student, where, use_reentrant=use_reentrant), teacher, LAYERS, loss)
    assert_equal(ours, right)


@pytest.mark.parametrize("use_reentrant", [False, True], ids=["not reentrant", "reentrant"])
@pytest.mark.parametrize("loss", [ATLoss(), HintLoss()], ids=["taps", "features"])
def test_the_distillation_loss_alone(networks, loss, use_reentrant):
    student, teacher = networks
    alone = dict(layers=["blocks.1.conv"], loss=loss, total=lambda out: out.loss)
    right = gradients(student, teacher, **alone)
    ours = gradients(checkpointed(student, AROUND, use_reentrant=use_reentrant), teacher, **alone)
    if use_reentrant:  # the whole network is differentiated there, what gets no gradient gets zeros
        ours = [ours[0], *(g for g in ours[1:] if g.abs().sum() > 0)]
        right = [right[0], *(g for g in right[1:] if g.abs().sum() > 0)]
    assert_equal(ours, right)


def test_regions_in_regions(networks):
    student, teacher = networks
    right = gradients(student, teacher, LAYERS, ATLoss())
    for inner, outer in ((True, True), (False, False), (True, False)):
        network = checkpointed(student, INSIDE, use_reentrant=inner)
        network.how = functools.partial(checkpoint, use_reentrant=outer)
        assert_equal(gradients(network, teacher, LAYERS, ATLoss()), right)


@pytest.mark.parametrize("use_reentrant", [False, True], ids=["not reentrant", "reentrant"])
def test_sequential(networks, use_reentrant):
    class Sequential(nn.Sequential):
        def forward(self, x):
            return checkpoint_sequential(list(self), 2, x, use_reentrant=use_reentrant)

    student, teacher = networks
    layers = ["0", "1.conv"]
    teacher = nn.Sequential(*teacher.blocks)
    right = gradients(nn.Sequential(*student.blocks), teacher, layers, ATLoss())
    ours = gradients(Sequential(*student.blocks), teacher, layers, ATLoss())
    assert_equal(ours, right)


@pytest.mark.parametrize("loss", [ATLoss(), HintLoss()], ids=["taps", "features"])
@pytest.mark.parametrize("use_reentrant", [False, True], ids=["not reentrant", "reentrant"])
def test_a_layer_in_place_behind(loss, use_reentrant):
    torch.manual_seed(0)
    student, teacher = Net(inplace=True), Net(inplace=True)
    for block in student.blocks:
        block.act = nn.ReLU(inplace=True)
    layers = ["blocks.0.conv", "blocks.1.conv", "blocks.2"]
    plain = copy.deepcopy(student)
    for module in plain.modules():
        if isinstance(module, nn.ReLU):
            module.inplace = False
    right = gradients(plain, teacher, layers, loss)
    assert_equal(gradients(student, teacher, layers, loss), right)
    ours = gradients(checkpointed(student, AROUND, use_reentrant=use_reentrant), teacher, layers, loss)
    assert_equal(ours, right)


def test_two_backward_passes_of_reentrant_regions_are_an_error(networks):
    student, teacher = networks
    distiller = Distiller(checkpointed(student, AROUND, use_reentrant=True), teacher, LAYERS, LAYERS, ATLoss())
    output = distiller(X.clone().requires_grad_())
    output.student.square().mean().backward()
    with pytest.raises(RuntimeError):
        output.loss.backward()


def test_gradients_that_miss_their_layer_are_an_error(networks):
    """The gradient of a tensor that a region gave, without the backward of the region."""
    student, teacher = networks
    seen = []
    loss = lambda s, t: (seen.append(s[0]), (s[0] - t[0]).square().mean())[1]  # noqa: E731
    reentrant = checkpointed(student, AROUND, use_reentrant=True)
    distiller = Distiller(reentrant, teacher, ["blocks.1"], ["blocks.1"], loss)
    distiller(X.clone().requires_grad_())
    with pytest.raises(RuntimeError, match=r"student_layers\[0\] 'blocks.1'.*backward\(\) once"):
        seen[0].sum().backward()
    assert not [hook for module in distiller.student.modules() for hook in module._forward_hooks]


def test_layers_under_no_grad_are_an_error(networks):
    class Partly(Net):
        def body(self, x):
            with torch.no_grad():
                return super().body(x)

    distiller = Distiller(Partly(), networks[1], ["blocks.0"], ["blocks.0"], ATLoss())
    with pytest.raises(RuntimeError, match=r"student_layers\[0\] 'blocks.0' runs under torch.no_grad"):
        distiller(X)
    with torch.no_grad():
        assert distiller(X).loss.isfinite()


def test_detached_layers_are_warned_of(networks):
    class Detached(Net):
        def body(self, x):
            return super().body(x).detach()

    frozen = copy.deepcopy(networks[0])
    frozen.blocks.requires_grad_(False)
    with pytest.warns(UserWarning, match=r"student_layers\[0\] 'blocks.0': no gradient reaches"):
        Distiller(frozen, networks[1], ["blocks.0"], ["blocks.0"], ATLoss())(X)


def test_saved_tensors_in_other_memory(networks):
    student, teacher = networks
    right = gradients(student, teacher, LAYERS, ATLoss())
    packed = []
    with torch.autograd.graph.saved_tensors_hooks(lambda x: (packed.append(x), x.clone())[1], lambda x: x):
        assert_equal(gradients(student, teacher, LAYERS, ATLoss()), right)
    feature = (2, 4, 8, 6)
    assert sum(tuple(x.shape) == feature for x in packed) > 2 * len(LAYERS)  # the taps' features are among them
    with torch.autograd.graph.save_on_cpu():
        assert_equal(gradients(student, teacher, LAYERS, ATLoss()), right)


def test_evaluation_of_checkpointed_students(networks):
    distiller = Distiller(checkpointed(networks[0], AROUND, use_reentrant=True), networks[1], LAYERS, LAYERS, ATLoss())
    plain = Distiller(networks[0], networks[1], LAYERS, LAYERS, ATLoss())
    for context in (torch.no_grad, torch.inference_mode):
        with context():
            torch.testing.assert_close(distiller(X).loss, plain(X).loss)
