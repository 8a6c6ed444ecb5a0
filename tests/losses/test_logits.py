"""Losses on logits: rows, and what is theirs alone."""

import cases
import naive_logits as naive
import pytest
import torch
from suite import *  # noqa: F403 - the tests that every loss passes
from suite import Loss, Vectors, gradients
from torch._dynamo.testing import CompileCounterWithBackend
from torch.nn import functional

from abckd_kernels.losses import response as r

INF = float("inf")


def rows(classes, batch_factor=1):
    """inputs= of logits (B, classes)."""

    def inputs(dtype, batch, seed):
        generator = torch.Generator().manual_seed(seed)
        shape = (batch * batch_factor, classes)
        return tuple((3 * torch.randn(shape, generator=generator, dtype=torch.float64)).to(dtype) for _ in "st")

    return inputs


def labels(student, teacher):
    """What the teacher finds likeliest: belongs to a row wherever it goes."""
    pick = (lambda x: x.argmax(1)) if isinstance(teacher, torch.Tensor) else lambda xs: [x.argmax(1) for x in xs]
    return {"labels": pick(teacher)}


MAPS = {"student": (3, 6, 5), "teacher": (3, 6, 5), "invariant": "batch"}
ROWS = {"inputs": rows(7), "large": rows(1000, 64), "time": None, "spatial": (2,), "invariant": "batch"}
LOSSES = [
    Loss("kl", r.kl_loss, naive.kl, **MAPS),
    Loss("kl", r.kl_loss, naive.kl, **MAPS, options={"reverse": True, "temperature": 1.5}),
    Loss("kl", r.kl_loss, naive.kl, **MAPS, options={"standardize": True, "temperature": 2.0}),
    Loss("kl", r.kl_loss, naive.kl, **ROWS, options={"reduction": "rows"}),
    Loss("kl", r.kl_loss, naive.kl, **MAPS, options={"reduction": "batchmean"}),
    Loss("jsd", r.jsd_loss, naive.jsd, **MAPS),
    Loss("jsd", r.jsd_loss, naive.jsd, **ROWS, options={"beta": 0.1, "temperature": 2.0}),
    Loss("jsd", r.jsd_loss, naive.jsd, **ROWS, options={"beta": 1.0, "convention": "published"}),
    Loss("dkd", r.dkd_loss, naive.dkd, **MAPS, extra=labels, precision=5e-5),
    Loss("dkd", r.dkd_loss, naive.dkd, **ROWS, extra=labels, options={"temperature": 1.0, "alpha": 0.5}),
    Loss("dist", r.dist_loss, naive.dist, **MAPS, of_batch=True),
    Loss("dist", r.dist_loss, naive.dist, **ROWS, of_batch=True, options={"temperature": 2.0, "gamma": 0.5}),
]  # fmt: skip


# ---------------------------------------------------------------------------------------------- rows that count


@pytest.mark.parametrize("reduction", ["mean", "rows", "batchmean"])
def test_reductions(reduction):
    student, teacher = (torch.randn(3, 4, 5, dtype=torch.float64) for _ in "st")
    ignore = torch.zeros(3, 5, dtype=torch.bool)
    ignore[0, 1:], ignore[2] = True, True
    values = r.kl_loss(student, teacher, ignore=ignore, reduction=reduction)
    each = 16 * functional.kl_div(
        (student / 4).log_softmax(1), (teacher / 4).log_softmax(1), reduction="none", log_target=True
    ).sum(1)
    each = each.masked_fill(ignore, 0)
    expected = {"mean": (each[0, 0] + each[1].mean()) / 2, "rows": each.sum() / 6, "batchmean": each.sum() / 3}
    torch.testing.assert_close(values, expected[reduction])


CALLS = {
    "kl": r.kl_loss,
    "standardized": lambda s, t, **options: r.kl_loss(s, t, standardize=True, **options),
    "jsd": r.jsd_loss,
    "dkd": lambda s, t, **options: r.dkd_loss(s, t, torch.full(s[:, 0].shape, -100), **options),
    "dist": r.dist_loss,
}


@pytest.mark.parametrize("compute", CALLS.values(), ids=CALLS)
def test_all_rows_ignored(compute):
    student = torch.full((3, 4, 5), float("nan"), requires_grad=True)
    value = compute(student, student.detach(), ignore=torch.ones(3, 5, dtype=torch.bool))
    assert value == 0 and not gradients(value, student)[0].any()


@pytest.mark.parametrize("name", [name for name in CALLS if name != "dkd"])
def test_ignored_rows_are_left_out(name):
    student, teacher = (torch.randn(6, 5, dtype=torch.float64) for _ in "st")
    ignore = torch.tensor([0, 1, 0, 0, 1, 0]).bool()
    expected = CALLS[name](student[~ignore], teacher[~ignore])
    for x in (student, teacher):
        x[ignore] = float("nan")
    student.requires_grad_()
    value = CALLS[name](student, teacher, ignore=ignore)
    torch.testing.assert_close(value, expected)
    (grad,) = gradients(value, student)
    assert grad.isfinite().all() and not grad[ignore].any()


@pytest.mark.parametrize("compute", [r.kl_loss, r.jsd_loss], ids=["kl", "jsd"])
def test_frames_of_sequences_of_rows(compute):
    """(B, T, K) with dim=-1 is (B, K, T) with the classes second."""
    student, teacher = (torch.randn(2, 4, 6) for _ in "st")
    lengths = torch.tensor([6, 2])
    expected = compute(student, teacher, lengths=lengths)
    torch.testing.assert_close(compute(student.mT, teacher.mT, lengths=lengths, dim=-1), expected)


def test_classes_that_neither_network_has():
    student, teacher = (torch.randn(4, 6, dtype=torch.float64) for _ in "st")
    more = torch.full((4, 2), -INF).double()
    y = torch.tensor([0, 3, 5, 1])
    for loss, given in ((r.kl_loss, ()), (r.jsd_loss, ()), (r.dkd_loss, (y,))):
        wider = torch.cat([student, more], 1).requires_grad_()
        value = loss(wider, torch.cat([teacher, more], 1), *given)
        torch.testing.assert_close(value, loss(student, teacher, *given))
        assert gradients(value, wider)[0].isfinite().all()


# ---------------------------------------------------------------------------------------------- temperature and limits


@pytest.mark.parametrize("name", ["kl", "jsd", "dkd", "dist"])
def test_gradients_keep_their_size_at_any_temperature(name):
    """With temperature^2 the gradient tends to a limit, where it would vanish without."""
    student, teacher = rows(6)(torch.float64, 5, 0)
    student.requires_grad_()
    options = {"labels": teacher.argmax(1)} if name == "dkd" else {}
    sizes = []
    for temperature in (200.0, 400.0):
        value = getattr(r, f"{name}_loss")(student, teacher, temperature=temperature, **options)
        sizes.append(gradients(value, student)[0].norm().item())
    # DIST's correlations don't shrink with the temperature: there, temperature^2 grows.
    assert sizes[1] / sizes[0] == pytest.approx(4 if name == "dist" else 1, rel=0.1)


def test_endpoints_of_jensen_shannon():
    student, teacher = rows(6)(torch.float64, 5, 0)
    assert r.jsd_loss(student, teacher, beta=0.0) < 1e-15 and r.jsd_loss(student, teacher, beta=1e-9) < 1e-7
    for beta, reverse in ((0, False), (1, True)):
        ours = r.jsd_loss(student, teacher, beta=beta, convention="published")
        torch.testing.assert_close(ours, r.kl_loss(student, teacher, temperature=1.0, reverse=reverse))


def test_dkd_is_kl_decoupled():
    """KL = TCKD + (1 - p_y) NCKD, row by row."""
    student, teacher = rows(6)(torch.float64, 1, 0)
    y = torch.tensor([2])
    rest = 1 - (teacher / 4).softmax(1)[0, 2].item()
    decoupled = r.dkd_loss(student, teacher, y, alpha=1.0, beta=rest)
    torch.testing.assert_close(decoupled, r.kl_loss(student, teacher))


@pytest.mark.parametrize("dtype", cases.DTYPES, ids=cases.name_of)
def test_dkd_of_two_classes_and_of_one(dtype):
    student, teacher = rows(2)(dtype, 4, 0)
    student.requires_grad_()
    y = torch.tensor([0, 1, 1, 0])
    value = r.dkd_loss(student, teacher, y)
    torch.testing.assert_close(value, r.kl_loss(student, teacher))  # TCKD is all there is
    assert gradients(value, student)[0].isfinite().all()
    assert r.dkd_loss(student[:, :1], teacher[:, :1], torch.zeros_like(y)) == 0


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=cases.name_of)
def test_dist_near_equality_keeps_its_digits(dtype):
    teacher = rows(50)(torch.float64, 400, 0)[0]
    student = (teacher + 0.02 * torch.randn(teacher.shape, generator=torch.Generator().manual_seed(1))).to(dtype)
    teacher = teacher.to(dtype)
    exact = r.dist_loss(student.double(), teacher.double())
    assert r.dist_loss(student, teacher).item() == pytest.approx(exact.item(), rel=1e-4)


@pytest.mark.parametrize("wide", ["student", "teacher"])
def test_dkd_of_two_dtypes(wide):
    """As that of both in the wider one."""
    student, teacher = rows(6)(torch.float32, 5, 0)
    y = teacher.argmax(1)
    expected = r.dkd_loss(student.double(), teacher.double(), y)
    mixed = (x.double() if name == wide else x for name, x in (("student", student), ("teacher", teacher)))
    mixed = [x.requires_grad_(index == 0) for index, x in enumerate(mixed)]
    value = r.dkd_loss(*mixed, y)
    torch.testing.assert_close(value, expected)
    assert gradients(value, mixed[0])[0].dtype == mixed[0].dtype


# ---------------------------------------------------------------------------------------------- compiled steps

LABELS = torch.arange(32) % 10
CHANGING = {  # all options of a loss at once: each that is compiled as a constant compiles every time
    "kl": lambda s, t, x: r.kl_loss(s, t, temperature=x, weights=[2 * x]),
    "kl standardized": lambda s, t, x: r.kl_loss(s, t, temperature=x, standardize=True),
    "jsd": lambda s, t, x: r.jsd_loss([s, s], [t, t], temperature=x, beta=x / 10, weights=[x, 2 * x]),
    "jsd published": lambda s, t, x: r.jsd_loss(s, t, beta=x / 10, convention="published"),
    "dkd": lambda s, t, x: r.dkd_loss(s, t, LABELS, temperature=x, alpha=x, beta=2 * x, weights=[3 * x]),
    "dist": lambda s, t, x: r.dist_loss(s, t, temperature=x, beta=x, gamma=2 * x, weights=[3 * x]),
}


def assert_compiled_twice(function, calls, dynamic=None):
    """Once for the first of the calls (student, teacher, ...), once more for all others; with eager's results."""
    torch._dynamo.reset()
    counter = CompileCounterWithBackend("aot_eager")
    compiled = torch.compile(function, backend=counter, fullgraph=True, dynamic=dynamic)
    before = torch._dynamo.utils.counters["stats"]["unique_graphs"]
    for student, *others in calls:
        results = []
        for form in (function, compiled):
            leaf = student.detach().clone().requires_grad_()
            value = form(leaf, *others)
            results.append((value, *gradients(value, leaf)))
        torch.testing.assert_close(*results, rtol=1e-4, atol=1e-6)
    assert torch._dynamo.utils.counters["stats"]["unique_graphs"] - before <= 2
    torch._dynamo.reset()


@pytest.mark.parametrize("name", CHANGING)
def test_values_that_change_do_not_recompile(name):
    student, teacher = rows(10)(torch.float32, 32, 0)
    values = (4.0, 3.5, 3.0, 2.5, 2.25, 1.75, 1.5, 1.25)
    assert_compiled_twice(CHANGING[name], [(student, teacher, x) for x in values])


@pytest.mark.parametrize("name, dynamic", [(x, None) for x in ("kl", "jsd", "dkd", "dist")] + [("kl", True)])
def test_batch_sizes_that_change_do_not_recompile(name, dynamic):
    sizes = (32, 33, 40, 70, 64, 100, 9, 48)
    calls = []
    for size in sizes:
        student, teacher = rows(10)(torch.float32, size, 0)
        calls.append((student, teacher, *([teacher.argmax(1)] if name == "dkd" else [])))
    assert_compiled_twice(getattr(r, f"{name}_loss"), calls, dynamic)


# ---------------------------------------------------------------------------------------------- published numbers


def with_cross_entropy(alpha, beta, **options):
    def published(peer):
        hard = functional.cross_entropy(peer.students[0], peer["x.target"])
        return alpha * hard + beta * r.kl_loss(peer.students[0], peer.teachers[0], **options), {}

    return published


def liger(peer):
    """Logits are features times an lm-head's weight; labels of -100 are ignored; cross entropy is in float32."""
    options = peer.entry["hyper"]
    weight = peer["p.student_weight"].requires_grad_()
    student = peer.students[0] @ weight.T
    teacher = peer.teachers[0] @ peer["x.teacher_weight"].to(student.dtype).T
    target = peer["x.target"]
    given = {"beta": options["beta"], "temperature": options["temperature"], "convention": "published"}
    soft = r.jsd_loss(student, teacher, weights=[options["temperature"] ** -2], ignore=target == -100, **given)
    loss = options["weight_soft"] * soft
    if options["weight_hard"]:
        loss = loss + options["weight_hard"] * functional.cross_entropy(student.float(), target)
    return loss, {"student_weight": weight}


PUBLISHED = {
    "md__KD_T4": (r.kl_loss, {}),
    "sem__KD_T4": (r.kl_loss, {}),
    "td__KDLoss_alpha0.5": with_cross_entropy(0.5, 0.5),
    "td__LogitStdKD_alpha0.1_beta9": with_cross_entropy(0.1, 9.0, temperature=2.0, standardize=True),
    "td__SKDInstance_T4": (r.kl_loss, {"weights": [1 / 16]}),
    "md__DKD_a1_b8_T4": lambda peer: (r.dkd_loss(peer.students, peer.teachers, peer["x.target"]), {}),
    "td__DIST_b1_g2_tau4": (r.dist_loss, {"gamma": 2.0, "temperature": 4.0}),
    "liger__JSD_beta0.0_soft_float32": liger,
    "liger__JSD_beta0.1_soft_float32": liger,
    "liger__JSD_beta0.5_hard_soft_float32": liger,
    "liger__JSD_beta0.5_hard_soft_float64": liger,
    "liger__JSD_beta0.5_soft_float64": liger,
    "liger__JSD_beta1.0_soft_float64": liger,
}
LOG_PROBABILITIES = "same value; published: by log-probabilities, ours by logits, equal behind log-softmax"
DIFFERS = {
    name: LOG_PROBABILITIES
    for name in (
        "liger__triton_JSD_beta0.0", "liger__triton_JSD_beta0.5", "liger__triton_KLDIV_batchmean",
        "liger__triton_KLDIV_sum",
    )
}  # fmt: skip
NOT_APPLICABLE = {
    "liger__triton_TVD_batchmean": "total variation distance isn't offered",
    "liger__triton_TVD_sum": "total variation distance isn't offered",
    "liger__COS_soft_float32": "a cosine of logits isn't offered; published: ignored rows count in its numerator",
    "td__SKDDirection": "SKD's direction term, a Mahalanobis norm of Gram differences, isn't offered",
    "td__DISTPlus": "DISTPlus' map terms aren't offered: published, the channel term has the wrong sign (+rho)",
}


@pytest.mark.parametrize("name", DIFFERS)
def test_published_by_log_probabilities(name):
    """A gradient by log-probabilities, taken back through log-softmax, is ours by logits."""
    peer = Vectors(name)
    student, teacher = peer.students[0], peer.teachers[0]
    if "KLDIV" in name:  # its teacher's are probabilities
        loss = r.kl_loss(student, teacher.log(), temperature=1.0)
    else:
        loss = r.jsd_loss(student, teacher, beta=peer.entry["hyper"]["beta"], convention="published")
    loss = loss * (len(student) if name.endswith("sum") else 1)
    assert loss.item() == pytest.approx(peer["loss"].item(), rel=1e-5)
    published = peer["gs0"]
    expected = published - student.detach().exp() * published.sum(1, keepdim=True)
    torch.testing.assert_close(gradients(loss, student)[0], expected, rtol=1e-4, atol=1e-6)


# ---------------------------------------------------------------------------------------------- errors

S = torch.zeros(2, 3, 6)
Y = torch.zeros(2, 6, dtype=torch.int64)
MASK = torch.zeros(2, 6, dtype=torch.bool)
WRONG = [
    (lambda: r.kl_loss(S.int(), S), TypeError, "student_logits\\[0\\]"),
    (lambda: r.kl_loss(None, S), TypeError, "student_logits"),
    (lambda: r.kl_loss([S], [S, S]), ValueError, "teacher_logits"),
    (lambda: r.kl_loss(S, S[:, :2]), ValueError, "teacher_logits\\[0\\]"),
    (lambda: r.kl_loss([S, S[:1]], [S, S[:1]]), ValueError, "student_logits\\[1\\]"),
    (lambda: r.kl_loss(S[0, 0], S[0, 0]), ValueError, "student_logits\\[0\\]"),
    (lambda: r.kl_loss(S, S, dim=0), ValueError, "dim"),
    (lambda: r.kl_loss(S, S, dim=3), ValueError, "dim"),
    (lambda: r.kl_loss(S, S, temperature=0), ValueError, "temperature"),
    (lambda: r.kl_loss(S, S, reduction="sum"), ValueError, "reduction"),
    (lambda: r.kl_loss(S, S, ignore=Y), ValueError, "ignore"),
    (lambda: r.kl_loss(S, S, ignore=MASK[:1]), ValueError, "ignore"),
    (lambda: r.kl_loss([S, S], [S, S], ignore=[MASK]), ValueError, "ignore"),
    (lambda: r.kl_loss(S[..., 0], S[..., 0], lengths=[1, 1]), ValueError, "lengths"),
    (lambda: r.kl_loss(S[:, :1], S[:, :1], standardize=True), ValueError, "student_logits"),
    (lambda: r.kl_loss(S, S, weights=[1, 2]), ValueError, "weights"),
    (lambda: r.jsd_loss(S, S, beta=2), ValueError, "beta"),
    (lambda: r.jsd_loss(S, S, convention="liger"), ValueError, "convention"),
    (lambda: r.dkd_loss(S, S, Y[:1]), ValueError, "labels"),
    (lambda: r.dkd_loss(S, S, Y.float()), ValueError, "labels"),
    (lambda: r.dkd_loss([S, S], [S, S], [Y]), ValueError, "labels"),
    (lambda: r.dist_loss(S, S, temperature=-1), ValueError, "temperature"),
]


@pytest.mark.parametrize("call, error, named", WRONG)
def test_wrong_arguments(call, error, named):
    with pytest.raises(error, match=f"^{named}: expected"):
        call()


def test_modules_take_options_only():
    for name in ("labels", "ignore", "student_logits", "lengths", "heat"):
        with pytest.raises(TypeError, match=name):
            r.DKDLoss(**{name: 1})
