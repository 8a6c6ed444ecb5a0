"""Losses by name: what is written, what is built of it, and that each one trains."""

import own_networks
import pytest
import torch

from abckd_dns.errors import InputError
from abckd_dns.training.distillation import Distillation
from abckd_dns.training.kd import build, parse
from abckd_kernels import losses

# Losses that need more than their name; a new loss of the table is tried by its name alone.
SPECIFICATIONS = {
    "fsp": "fsp(student_layers=[encoder.1,bottleneck],teacher_layers=[encoder.0,decoder.0])",  # equal channels
    "affinity": "affinity(student_layers=encoder.1,teacher_layers=encoder.0)",  # equal channels
    "cwd": "cwd(student_layers=encoder.1,teacher_layers=encoder.0)",
    "pkd": "pkd(student_layers=encoder.1,teacher_layers=encoder.0)",
    "kl": "kl(layers=[mask],dim=3)",
    "jsd": "jsd(layers=[mask],dim=3)",
    "dist": "dist(layers=[mask],dim=3)",
    "hint": "hint(layers=[encoder.0,decoder.0],regressor=batch_norm)",
}
NOT_FOR_NOISE_SUPPRESSION = {"dkd": "needs labels", "linear_divergence": "needs output layers over classes"}
NAMES = [entry.name for entry in losses.table() if entry.name not in NOT_FOR_NOISE_SUPPRESSION]


def system(*specifications, student_layers=None, teacher_layers=None, **options):
    torch.manual_seed(0)
    student, teacher = own_networks.tiny(), own_networks.tiny_teacher().eval()
    parsed = [parse(specification, 1.0) for specification in specifications]
    made = build(parsed, student, teacher, student_layers, teacher_layers)
    return Distillation(student, teacher, made, **{"label_free": False, **options})


def a_batch(count=4):
    generator = torch.Generator().manual_seed(1)
    return {name: 0.1 * torch.randn(count, 4_000, generator=generator) for name in ("noisy", "clean")}


@pytest.mark.parametrize("name", [*NAMES, "response"])
def test_every_loss_trains(name):
    trained = system(SPECIFICATIONS.get(name, name))
    optimizer = torch.optim.AdamW([p for p in trained.parameters() if p.requires_grad], lr=1e-3)
    teacher = {key: value.clone() for key, value in trained.networks.teacher.state_dict().items()}
    for _ in range(2):
        outputs = trained(a_batch())
        assert outputs["loss"].isfinite() and outputs[f"kd/{name}"].isfinite()
        of_loss = torch.autograd.grad(
            outputs[f"kd/{name}"], trained.network.parameters(), None, True, allow_unused=True
        )
        assert sum(g.abs().sum() for g in of_loss if g is not None) > 0, "the loss does not reach the student"
        outputs["loss"].backward()
        assert all(p.grad is not None for p in trained.parameters() if p.requires_grad), "DDP waits for every gradient"
        optimizer.step()
        optimizer.zero_grad()
    assert all(torch.equal(value, teacher[key]) for key, value in trained.networks.teacher.state_dict().items())


def test_losses_that_do_not_apply_say_why():
    for name, reason in NOT_FOR_NOISE_SUPPRESSION.items():
        with pytest.raises(InputError, match=reason):
            system(f"{name}(layers=[mask])")


def test_specifications():
    assert parse("abc", 0.3).weight == 0.3
    full = parse(" abc(scores=uniform, grid=[25,33],temperature=0.5,weights=none)=1e-2", 0.3)
    assert (full.name, full.weight) == ("abc", 0.01)
    assert full.options == {"scores": "uniform", "grid": [25, 33], "temperature": 0.5, "weights": None}
    assert parse("rkd(squared=true)=0", 1).options == {"squared": True}


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("abd", "no loss is called abd; there are ab, abc,"),
        ("abc=much", "expected a number behind =, got 'much'"),
        ("abc=-1", "expected a weight of at least 0"),
        ("abc(scores)", "expected key=value.*'scores'"),
        ("abc(dim=4", "expected NAME"),
        ("abc(bands=3)", "abc has no option bands; its options: detach_queries, dim, grid,"),
        ("abc(scores=best)", "scores: expected one of 'learned'"),
        ("spectral(layers=[encoder.0])", "spectral has no option layers"),
        ("response(power=2)", "response has no option power"),
        ("kl", r"kl compares logits; name the layers .* kl\(layers=\[mask\],dim=3\)"),
        ("hint(student_layers=[encoder.0])", "there are 1 student layers .* 4 teacher layers .* --student-layers"),
        ("ickd(student_layers=[encoder.0])", "there are 1 student layers .* 4 teacher layers"),
        ("hint(layers=[encodr.0])", "'encodr.0'.*encoder.0"),
        ("abc(student_layers=[mask],mask=stage)", "leaves mask no teacher layer"),
    ],
)
def test_errors_name_the_specification(text, message):
    with pytest.raises(InputError, match=f"--loss.*{message}|cannot distil these layers.*{message}"):
        system(text)


def test_variants_of_abc_are_reachable():
    uniform = system("abc(scores=uniform,normalize=frame)").networks.loss
    assert uniform.scores == "uniform" and uniform.options["normalize"] == "frame"
    attention = system("abc(mask=stage)")(a_batch())["attention"]  # encoder.0, encoder.1, bottleneck, decoder.0
    expected = torch.tensor([[1, 1, 0, 0], [1, 1, 0, 0], [0, 0, 1, 0], [0, 0, 0, 1]], dtype=torch.bool)
    assert torch.equal(attention > 0, expected)
    torch.testing.assert_close(attention.sum(1), torch.ones(4))


def test_several_losses_add_up():
    parts = {name: system(name)(a_batch()) for name in ("at", "sp", "spectral")}
    together = system("at=2", "sp=3", "spectral=0.5")(a_batch())
    for name, part in parts.items():
        torch.testing.assert_close(together[f"kd/{name}"], part[f"kd/{name}"])
    kd = 2 * together["kd/at"] + 3 * together["kd/sp"] + 0.5 * together["kd/spectral"]
    torch.testing.assert_close(together["loss"], together["speech"] + kd)


def test_each_loss_has_its_own_layers():
    both = system("hint(layers=[decoder.0])", "at(student_layers=encoder.1,teacher_layers=encoder.0)", "at")
    alone = system("at", student_layers="encoder.1", teacher_layers="encoder.0")(a_batch())
    outputs = both(a_batch())
    assert outputs["kd/at(student_layers=encoder.1,teacher_layers=encoder.0)"] == alone["kd/at"]
    assert "kd/hint" in outputs and both.networks.loss.student_layers[:2] == ["decoder.0", "encoder.1"]


def test_warm_up_is_a_line():
    warming = system("at", warm_up=4)
    factors = []
    for _ in range(6):
        outputs = warming(a_batch())
        factors.append(((outputs["loss"] - outputs["speech"]) / outputs["kd/at"]).item())
    assert factors == pytest.approx([0.25, 0.5, 0.75, 1, 1, 1], abs=1e-3)


def test_target_is_clean_speech_where_there_is_any():
    mixed = system("at=0")
    batch = {**a_batch(), "has_clean": torch.tensor([True, False, True, False])}
    batch["clean"][1] = batch["clean"][3] = float("nan")  # nobody may look at it
    seen = []
    mixed.speech_loss.register_forward_pre_hook(lambda module, inputs: seen.append(inputs[1]))
    mixed(batch)
    response = mixed.networks.teacher(batch["noisy"])
    assert torch.equal(seen[0][0::2], batch["clean"][0::2])
    torch.testing.assert_close(seen[0][1::2], response[1::2])


def test_margins_of_ofd_are_those_of_the_batch_normalisation():
    named = system("ofd(layers=[encoder.0.1,encoder.1])").networks.loss.layers
    assert (named[0].margins > -3).all() and torch.equal(named[1].margins, torch.full((8,), -3.0))


def test_paraphrasers_learn_and_do_not_disturb_the_student():
    trained = system("ft")
    value = trained(a_batch())["kd/ft"]
    value.backward()
    loss = trained.networks.loss.loss
    assert loss.paraphrasers[0].encoder[0].weight.grad.abs().sum() > 0
    students, teachers = ([torch.randn(2, c, 9, 7) for c in (s, s2, s2, s)] for s, s2 in ((4, 6), (6, 8)))
    torch.testing.assert_close(trained.networks.loss.eval()(students, teachers), loss.eval()(students, teachers))
