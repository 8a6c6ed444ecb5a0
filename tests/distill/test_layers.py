"""What a layer's name can say: elements, axes, inputs, calls, transforms; and what is said of mistakes."""

import dataclasses
import warnings

import pytest
import torch
from made_distillers import Network, X
from torch import nn
from torch.nn.utils.rnn import pack_padded_sequence

from abckd_kernels import ABCLoss, Distiller, abc_loss
from abckd_kernels.distill import Layer, Teacher
from abckd_kernels.losses import ATLoss, HintLoss, KLLoss, RKDLoss, SPLoss, at_loss, hint_loss, sp_loss

TOKENS = torch.randn(3, 16, 5, generator=torch.Generator().manual_seed(0))


def tokens(width, seed=0):
    torch.manual_seed(seed)
    return nn.Sequential(nn.Linear(5, width), nn.GELU(), nn.Linear(width, 2))


def gradient_of(loss, network):
    return torch.autograd.grad(loss, list(network.parameters()), allow_unused=True)


def assert_same(ours, right):
    assert len(ours) == len(right)
    for a, b in zip(ours, right, strict=True):
        assert (a is None) == (b is None)
        if a is not None:
            torch.testing.assert_close(a, b, rtol=1e-4, atol=1e-7)


@pytest.mark.parametrize(
    "text",
    ["encoder.0", "a:1:mask", "a@btc", "a@in", "a:0@in", "a@all", "a@2@bhwc", ":", ":logits", ":0@btc"],
)
def test_short_forms(text):
    assert str(Layer.parse(text)) == text and Layer.parse(Layer.parse(text)) == Layer.parse(text)


@pytest.mark.parametrize("text", ["", "a@", "a@bt", "a@btcc", "a@b-c", "@in", 3])
def test_wrong_short_forms(text):
    with pytest.raises(ValueError, match=r"student_layers\[0\]"):
        Distiller(tokens(4), tokens(4), [text], ["0"], abc_loss)


# ---------------------------------------------------------------------------------------------- axes

LOSSES = {
    "taps": (ATLoss(), lambda s, t: at_loss([s], [t])),
    "features": (SPLoss(), lambda s, t: sp_loss([s], [t])),
}


@pytest.mark.parametrize(("loss", "by_hand"), LOSSES.values(), ids=LOSSES)
@pytest.mark.parametrize("order", ["btc", "tbc", "bct"])
def test_named_orders(loss, by_hand, order):
    class Permuted(nn.Module):
        """(B, T, C) in another order, and back."""

        def forward(self, x):
            return x.permute(["btc".index(letter) for letter in order])

    class Net(nn.Module):
        def __init__(self, width):
            super().__init__()
            self.first, self.layer, self.last = nn.Linear(5, width), Permuted(), nn.Linear(width, 2)

        def forward(self, x):
            y = self.layer(self.first(x))
            return self.last(y.permute([order.index(letter) for letter in "btc"]))

    student, teacher = Net(8), Net(12)
    output = Distiller(student, teacher, [f"layer@{order}"], [f"layer@{order}"], loss)(TOKENS)
    total = output.loss + output.student.square().mean()
    right = by_hand(student.first(TOKENS).mT, teacher.first(TOKENS).mT) + student(TOKENS).square().mean()
    torch.testing.assert_close(total, right)
    assert_same(gradient_of(total, student), gradient_of(right, student))


def test_tokens_are_read_where_they_lie():
    """(B, N, C) is channels_last to the op: as many tensors of a feature's size as for a convolution."""
    student, teacher = tokens(64), tokens(64)
    distiller = Distiller(student, teacher, ["1@btc"], ["1@btc"], ATLoss())
    distiller(TOKENS)  # the first step copies what it passes on

    class Copies(torch.utils._python_dispatch.TorchDispatchMode):
        count = 0

        def __torch_dispatch__(self, function, types, args=(), kwargs=None):
            if any(word in function.__name__ for word in ("clone", "contiguous", "copy")):
                Copies.count += any(isinstance(x, torch.Tensor) and x.numel() >= 3 * 16 * 64 for x in args)
            return function(*args, **kwargs or {})

    with Copies():
        distiller(TOKENS).loss.backward()
    assert Copies.count == 0


def test_video_tokens_and_windows():
    """(B, T, H, W, C) for any callable; a transform joins two of the axes for losses with a map."""
    network = lambda: nn.Sequential(nn.Linear(3, 4), nn.GELU())  # noqa: E731
    student, teacher, x = network(), network(), torch.randn(2, 3, 4, 5, 3)
    seen = []
    Distiller(student, teacher, ["1@bthwc"], ["1@bthwc"], lambda s, t: (seen.append(s[0].shape), s[0].sum())[1])(x)
    assert seen == [(2, 4, 3, 4, 5)]
    joined = Layer("1", order="btpc", transform=lambda x: x.flatten(2, 3))
    loss = Distiller(student, teacher, [joined], [joined], ATLoss())(x).loss
    s, t = (network(x).flatten(2, 3).movedim(-1, 1) for network in (student, teacher))
    torch.testing.assert_close(loss, at_loss([s], [t]))
    with pytest.raises(ValueError, match=r"teacher_layers\[0\] '1@bthwc' gives volumes .*flatten"):
        Distiller(student, teacher, ["1@bthwc"], ["1@bthwc"], ATLoss())(x)


def test_class_token_taken_away():
    body = Layer("1", order="btc", transform=lambda x: x[:, 1:])
    student, teacher = tokens(8), tokens(12)
    output = Distiller(student, teacher, [body], [body], ATLoss())(TOKENS)
    right = at_loss([student[:2](TOKENS)[:, 1:].mT], [teacher[:2](TOKENS)[:, 1:].mT])
    torch.testing.assert_close(output.loss, right)
    assert_same(gradient_of(output.loss, student), gradient_of(right, student))


def test_order_told_by_the_network():
    student, teacher = tokens(8), tokens(12)
    with pytest.warns(UserWarning, match=r"student_layers\[0\] '1'.*'btc'"):
        distiller = Distiller(student, teacher, ["1"], ["1"], ATLoss())
        loss = distiller(TOKENS).loss
    torch.testing.assert_close(loss, at_loss([student[:2](TOKENS).mT], [teacher[:2](TOKENS).mT]))
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        distiller(TOKENS)  # once
        named = Distiller(student, teacher, ["1@bct"], ["1@bct"], ATLoss())(TOKENS).loss
    torch.testing.assert_close(named, at_loss([student[:2](TOKENS)], [teacher[:2](TOKENS)]))


def test_order_told_by_recurrent_layers():
    class Net(nn.Module):
        def __init__(self, width, batch_first):
            super().__init__()
            self.rnn = nn.LSTM(5, width, batch_first=batch_first)

        def forward(self, x):
            return self.rnn(x)[0]

    for batch_first in (True, False):
        student, teacher = Net(8, batch_first), Net(12, batch_first)
        with pytest.warns(UserWarning, match="btc" if batch_first else "tbc"):
            loss = Distiller(student, teacher, ["rnn:0"], ["rnn:0"], ATLoss())(TOKENS).loss
        s, t = (net(TOKENS).permute((0, 2, 1) if batch_first else (1, 2, 0)) for net in (student, teacher))
        torch.testing.assert_close(loss, at_loss([s], [t]))


def test_convolutions_are_read_as_before():
    network = lambda c: nn.Sequential(nn.Conv1d(5, c, 3), nn.ReLU(), nn.Conv1d(c, 6, 1), nn.Linear(14, 14))  # noqa: E731
    student, teacher, x = network(8), network(12), torch.randn(3, 5, 16)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        loss = Distiller(student, teacher, ["1", "3"], ["1", "3"], ATLoss())(x).loss
    right = at_loss([student[:2](x), student(x)], [teacher[:2](x), teacher(x)])
    torch.testing.assert_close(loss, right)


def test_channel_errors_say_how_axes_were_read():
    student, teacher = tokens(8), tokens(12)
    distiller = Distiller(student, teacher, ["1@bct"], ["1@btc"], HintLoss([8], [12]))
    with pytest.raises(ValueError, match=r"student_layers\[0\] '1@bct' was read as \(batch 3, channels 16"):
        distiller(TOKENS)
    convolutional = nn.Sequential(nn.Conv1d(16, 16, 1))
    distiller = Distiller(convolutional, teacher, ["0"], ["1@btc"], ABCLoss([8], [12], dim=4))
    with pytest.raises(ValueError, match=r"student_layers\[0\] '0' was read as .*name it '0@btc'"):
        distiller(TOKENS)


def test_constant_maps_are_warned_of_once():
    network = lambda width: nn.Sequential(nn.Linear(5, width), nn.LayerNorm(width))  # noqa: E731
    distiller = Distiller(network(8), network(12), ["1@btc"], ["1@btc"], ATLoss())
    with pytest.warns(UserWarning, match=r"same value at all positions.*power=1.*'1@in'") as caught:
        distiller(TOKENS)
    assert len(caught) == 2  # one per network
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        distiller(TOKENS)
        Distiller(network(8), network(12), ["1@in@btc"], ["1@in@btc"], ATLoss())(TOKENS)
        Distiller(network(8), network(12), ["1@btc"], ["1@btc"], ATLoss(power=1))(TOKENS)


# ---------------------------------------------------------------------------------------------- inputs, calls


@pytest.mark.parametrize(("loss", "by_hand"), LOSSES.values(), ids=LOSSES)
def test_inputs_of_layers(loss, by_hand):
    class Net(nn.Module):
        def __init__(self):
            super().__init__()
            self.conv, self.head = nn.Conv2d(1, 3, 3), nn.Bilinear(1, 1, 1)
            self.relu = nn.ReLU(inplace=True)
            self.gate = Gate()

        def forward(self, x):
            y = self.relu(self.conv(x))
            return self.gate(x, gain=y * 2)

    class Gate(nn.Module):
        def forward(self, x, *, gain):
            return gain.square().mean() + x.mean()

    student, teacher = Net(), Net()
    for name, feature in (
        ("relu@in", lambda net: net.conv(X)), ("gate:gain@in", lambda net: 2 * net.relu(net.conv(X))),
    ):  # fmt: skip
        output = Distiller(student, teacher, [name], [name], loss)(X)
        total = output.loss + output.student
        right = by_hand(feature(student), feature(teacher)) + student(X)
        torch.testing.assert_close(total, right)
        assert_same(gradient_of(total, student), gradient_of(right, student))


class Shared(nn.Module):
    def __init__(self):
        super().__init__()
        self.block = nn.Conv2d(1, 1, 3, padding=1)

    def features(self, x):
        found = [self.block(x)]
        for _ in range(2):
            found.append(self.block(found[-1]))
        return found

    def forward(self, x):
        return self.features(x)[-1]


@pytest.mark.parametrize("loss", [ATLoss(), SPLoss()], ids=["taps", "features"])
@pytest.mark.parametrize(("call", "calls"), [("0", [0]), ("1", [1]), ("2", [2]), ("all", [0, 1, 2])])
def test_calls_of_a_layer(loss, call, calls):
    student, teacher = Shared(), Shared()
    output = Distiller(student, teacher, [f"block@{call}"], [f"block@{call}"], loss)(X)
    found = [[net.features(X)[k] for k in calls] for net in (student, teacher)]
    right = loss(*found)
    torch.testing.assert_close(output.loss, right)
    assert_same(gradient_of(output.loss, student), gradient_of(right, student))


def test_calls_that_there_are_not():
    with pytest.raises(ValueError, match="teacher_layers.*ran more than once.*'block@0'.*'block@all'"):
        Distiller(Shared(), Shared(), ["block"], ["block"], ATLoss())(X)
    with pytest.raises(ValueError, match="ran 3 times only, so it has no call 3"):
        Distiller(Shared(), Shared(), ["block@3"], ["block@3"], ATLoss())(X)


# ---------------------------------------------------------------------------------------------- nested outputs


@dataclasses.dataclass
class Output:
    hidden: list
    mask: torch.Tensor


class Returns(nn.Module):
    def __init__(self, wrap):
        super().__init__()
        self.conv, self.layer, self.wrap = nn.Conv2d(1, 3, 3), self.Layer(wrap), wrap

    class Layer(nn.Module):
        def __init__(self, wrap):
            super().__init__()
            self.wrap = wrap

        def forward(self, x):
            return self.wrap(x)

    def forward(self, x):
        self.given = self.layer(self.conv(x))
        return self.given


NESTED = {
    "dataclass": (lambda y: Output([y], y.detach()), "hidden:0", lambda out: out.hidden[0]),
    "dict of tuples": (lambda y: {"a": (0, {"b": y})}, "a:1:b", lambda out: out["a"][1]["b"]),
    "tuple of tuples": (lambda y: (0, (1, y)), "1:-1", lambda out: out[1][-1]),
}


@pytest.mark.parametrize("loss", [ATLoss(), SPLoss()], ids=["taps", "features"])
@pytest.mark.parametrize(("wrap", "path", "find"), NESTED.values(), ids=NESTED)
def test_nested_outputs(wrap, path, find, loss):
    student, teacher = Returns(wrap), Returns(wrap)
    for name in (f"layer:{path}", f":{path}"):
        output = Distiller(student, teacher, [name], [name], loss)(X)
        total = output.loss + find(output.student).square().mean()
        right = loss([student.conv(X)], [teacher.conv(X)]) + student.conv(X).square().mean()
        torch.testing.assert_close(total, right)
        assert_same(gradient_of(total, student), gradient_of(right, student))
        assert type(output.student) is type(wrap(X))


def test_model_outputs_of_transformers():
    outputs = pytest.importorskip("transformers.modeling_outputs")
    wrap = lambda y: outputs.BaseModelOutput(last_hidden_state=y, hidden_states=(y * 2, y))  # noqa: E731
    student, teacher = Returns(wrap), Returns(wrap)
    names = ["layer:last_hidden_state", ":hidden_states:0"]
    output = Distiller(student, teacher, names, names, SPLoss())(X)
    s, t = (net.conv(X) for net in (student, teacher))
    torch.testing.assert_close(output.loss, sp_loss([s, 2 * s], [t, 2 * t]))
    assert isinstance(output.student, outputs.BaseModelOutput) and "hidden_states" in output.student


def test_packed_sequences_bring_their_lengths():
    class Net(nn.Module):
        def __init__(self, width):
            super().__init__()
            self.rnn = nn.GRU(5, width, batch_first=True)

        def forward(self, x):
            return self.rnn(x)[0]

    student, teacher, lengths = Net(8), Net(12), torch.tensor([16, 9, 4])
    packed = pack_padded_sequence(TOKENS, lengths, batch_first=True)
    padded = TOKENS * (torch.arange(16)[:, None] < lengths[:, None, None])
    for loss in (ATLoss(), SPLoss()):
        ours = Distiller(student, teacher, ["rnn:0"], ["rnn:0"], loss)(packed).loss
        right = loss([student(padded).mT], [teacher(padded).mT], lengths=lengths)
        torch.testing.assert_close(ours, right)
        assert_same(gradient_of(ours, student), gradient_of(right, student))


def test_vectors_and_logits():
    network = lambda: nn.Sequential(nn.Linear(6, 8), nn.Linear(8, 5))  # noqa: E731
    student, teacher, x = network(), network(), torch.randn(4, 6)
    for name, loss in (("0", SPLoss()), ("0", RKDLoss()), ("1", KLLoss()), (":", KLLoss())):
        ours = Distiller(student, teacher, [name], [name], loss)(x).loss
        s, t = ((net(x) if name in "1:" else net[0](x)) for net in (student, teacher))
        torch.testing.assert_close(ours, loss(s, t) if isinstance(loss, KLLoss) else loss([s], [t]))
    with pytest.raises(ValueError, match=r"teacher_layers\[0\] '0' gives vectors \(4, 8\)"):
        Distiller(student, teacher, ["0"], ["0"], ATLoss())(x)
    with pytest.raises(ValueError, match="one layer"):
        Distiller(student, teacher, ["0", "1"], ["0", "1"], KLLoss())


def test_nested_tensors_are_refused():
    network = nn.Sequential(nn.Linear(5, 4))
    jagged = torch.nested.nested_tensor([torch.randn(3, 5), torch.randn(2, 5)], layout=torch.jagged)
    teacher = Teacher(lambda x: TOKENS)
    with pytest.raises(ValueError, match=r"student_layers\[0\] '0' returns a nested tensor"):
        Distiller(network, teacher, ["0"], [":@btc"], hint_loss)(jagged)


def test_wrong_transforms_and_orders():
    student = tokens(8)
    with pytest.raises(ValueError, match=r"'1@bhwc': 'bhwc' names 4 axes, it has the shape \(3, 16, 8\)"):
        Distiller(student, student, ["1@bhwc"], ["1@bhwc"], ATLoss())(TOKENS)
    with pytest.raises(ValueError, match="transform= returned a int"):
        Distiller(student, student, [Layer("1", transform=lambda x: 3)], ["1@btc"], ATLoss())(TOKENS)


def test_names_skip_wrappers():
    network = nn.DataParallel(Network(3))
    average = torch.optim.swa_utils.AveragedModel(Network(3))
    loss = Distiller(network.module, average, ["encoder.0"], ["encoder.0"], ATLoss())(X).loss
    exact = Distiller(network.module, average, ["encoder.0"], ["module.encoder.0"], ATLoss())(X).loss
    torch.testing.assert_close(loss, exact)
