"""Several losses and several teachers in one pass."""

import pytest
import torch
from made_distillers import LAYERS, Network, X, learned_loss, networks
from torch import nn

from abckd_kernels import Distiller
from abckd_kernels.distill import Term
from abckd_kernels.distill.balance import gradient_norm
from abckd_kernels.losses import ATLoss, HintLoss, SPLoss, sp_loss


def test_weights_and_teachers():
    student, big = networks()
    small = Network(4)
    terms = [
        Term(LAYERS, LAYERS, learned_loss(), weight=2.0, teacher="big", name="abc"),
        Term(["encoder.0"], ["encoder.0"], ATLoss(power=1), weight=0.5, teacher="small"),
        Term(["encoder.0", "head"], ["encoder.0", "head"], sp_loss, teacher="big"),
    ]
    output = Distiller(student, {"big": big, "small": small}, terms=terms)(X)
    alone = [
        Distiller(student, teacher, term.student_layers, term.teacher_layers, term.loss)
        for term, teacher in zip(terms, (big, small, big), strict=True)
    ]
    values = [distiller(X) for distiller in alone]
    assert list(output.losses) == ["abc", "1", "2"] and list(output.teacher) == ["big", "small"]
    for ours, right in zip(output.losses.values(), values, strict=True):
        torch.testing.assert_close(ours, right.loss)
    torch.testing.assert_close(output.loss, 2 * values[0].loss + 0.5 * values[1].loss + values[2].loss)
    torch.testing.assert_close(output.attention["abc"], values[0].attention)
    parameters = list(student.encoder.parameters())
    ours = torch.autograd.grad(output.loss, parameters)
    right = torch.autograd.grad(2 * values[0].loss + 0.5 * values[1].loss + values[2].loss, parameters)
    for a, b in zip(ours, right, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-4, atol=1e-7)


def test_each_network_runs_once():
    student, teacher = networks()
    runs = []
    for network in (student, teacher):
        network.head.register_forward_hook(lambda module, *_: runs.append(module))
    terms = [Term(LAYERS, LAYERS, ATLoss()), Term(LAYERS, LAYERS, SPLoss()), Term(["head"], ["head"], HintLoss())]
    Distiller(student, teacher, terms=terms)(X)
    assert runs == [teacher.head, student.head]


def test_learned_parts_of_all_terms_are_trained():
    terms = [Term(LAYERS, LAYERS, learned_loss()), Term(["head"], ["head"], HintLoss([1], [1]))]
    distiller = Distiller(*networks(), terms=terms)
    known = {id(p) for p in distiller.parameters()}
    assert all(id(p) in known for term in terms for p in term.loss.parameters())


def test_balance_by_gradients():
    student, teacher = networks()
    terms = [
        Term(["head"], ["head"], HintLoss(), name="hint"),
        Term(LAYERS, LAYERS, ATLoss(), weight=3.0, name="at"),
        Term(LAYERS, LAYERS, lambda s, t: 1e4 * sum(x.square().mean() for x in s), name="large"),
    ]
    plain = Distiller(student, teacher, terms=terms)(X).losses
    norms = {name: gradient_norm(value, list(student.parameters())) for name, value in plain.items()}
    balanced = Distiller(student, teacher, terms=terms, balance="gradient")
    output = balanced(X)
    right = sum(w * norms["hint"] / norms[k] * plain[k] for k, w in (("hint", 1), ("at", 3), ("large", 1)))
    torch.testing.assert_close(output.loss, right, rtol=1e-3, atol=1e-5)
    torch.testing.assert_close(output.losses["large"], plain["large"], rtol=1e-4, atol=1e-4)
    scales = list(balanced._balance.scales)
    balanced(2 * X)
    assert scales == balanced._balance.scales  # of the first step, until it is measured again
    output.loss.backward()


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (dict(terms=[Term(LAYERS, ["heat"], ATLoss())]), r"terms\[0\].teacher_layers\[0\] 'heat'.*'head'"),
        (dict(terms=[Term(LAYERS, LAYERS, ATLoss(), teacher="x")]), r"terms\[0\].teacher: expected one of"),
        (dict(terms=[Term(LAYERS, LAYERS, ATLoss(), name=n) for n in "aa"]), "names must differ"),
        (dict(terms=[Term(LAYERS, LAYERS, ATLoss())], balance="norm"), "balance: expected 'gradient'"),
        (dict(), "terms: expected either"),
        (dict(student_layers=LAYERS, teacher_layers=LAYERS, loss=ATLoss), "loss: expected a loss, got the class"),
        (dict(student_layers=LAYERS, teacher_layers=LAYERS, loss=3), "loss: expected a callable, got int"),
    ],
)
def test_mistakes(arguments, words):
    with pytest.raises((ValueError, TypeError), match=words):
        Distiller(*networks(), **arguments)


def test_several_teachers_need_names():
    a, b = networks()
    with pytest.raises(ValueError, match=r"teacher: expected one of \['x', 'y'\], got None"):
        Distiller(a, {"x": b, "y": b}, LAYERS, LAYERS, ATLoss())
    assert isinstance(Distiller(a, {"x": b}, LAYERS, LAYERS, ATLoss()).teacher, nn.Module)
