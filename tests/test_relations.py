"""Relational losses: definitions in NumPy, published numbers, properties, precision, padding, process groups, errors.

A new loss is one line of LOSSES.
"""

import copy
import json
import warnings
from dataclasses import dataclass, field
from pathlib import Path

import cases
import naive_relations as naive
import numpy as np
import pytest
import torch

from abckd_kernels.losses import relations
from abckd_kernels.losses.relations import batch

PARITY = Path(__file__).resolve().parents[2] / "shared" / "parity"


@dataclass
class Loss:
    """What there is to know about a loss.

    shapes       (student, teacher) without the batch size; several: layers of one network.
    invariant    what of "scale" (of the student), "channels" (order of the student's), "batch" (order) changes nothing.
    of_batch     relates the samples to each other: takes vectors and a process group.
    """

    name: str
    function: callable
    definition: callable
    student: tuple = (3, 6, 5)
    teacher: tuple = (4, 6, 5)
    options: dict = field(default_factory=dict)
    invariant: str = "scale channels batch"
    of_batch: bool = False
    vectors: bool = False

    def __str__(self):
        return "-".join([self.name, *(f"{k}={v}" for k, v in self.options.items())])

    @property
    def layers(self):
        return self.name == "fsp"

    def features(self, dtype=torch.float64, batch=4, seed=0, axes=2):
        """(student, teacher), each a tensor, or a list of two layers for a loss on lists."""

        def one(shape, seed, requires_grad):
            return cases.feature((batch, *shape[: 1 + axes]), dtype, seed).requires_grad_(requires_grad)

        if self.layers:
            first, second = (3, 6, 5), (2, 4, 3)
            double = (3, 7, 6), (2, 5, 4)
            return ([one(x, seed + i, True) for i, x in enumerate((first, second))],
                    [one(x, seed + 9 + i, False) for i, x in enumerate(double)])  # fmt: skip
        return one(self.student, seed, True), one(self.teacher, seed + 9, False)

    def __call__(self, student, teacher, **options):
        return self.function(student, teacher, **self.options | options)

    def exact(self, student, teacher):
        arrays = [[x.detach().double().numpy() for x in as_list(group)] for group in (student, teacher)]
        return self.definition(*(arrays if self.layers else (x[0] for x in arrays)), **self.options)


def find(name):
    """The first loss of that name."""
    return next(loss for loss in LOSSES if loss.name == name)


def as_list(x):
    return [x] if isinstance(x, torch.Tensor) else list(x)


OTHER = (4, 9, 4)
BATCH = {"of_batch": True, "vectors": True}
r = relations
LOSSES = [
    Loss("sp", r.sp_loss, naive.sp, teacher=OTHER, **BATCH),
    Loss("sp", r.sp_loss, naive.sp, teacher=OTHER, options={"normalize": "l1"}, **BATCH),
    Loss("pkt", r.pkt_loss, naive.pkt, teacher=OTHER, **BATCH),
    Loss("hkd", r.hkd_loss, naive.hkd, teacher=OTHER, invariant="channels batch", **BATCH),
    Loss("rkd", r.rkd_loss, naive.rkd, teacher=OTHER, **BATCH),
    Loss("rkd", r.rkd_loss, naive.rkd, teacher=OTHER, options={"squared": True, "angle_weight": 0.0}, **BATCH),
    Loss("irg", r.irg_loss, naive.irg, teacher=OTHER, **BATCH),
    Loss("irg", r.irg_loss, naive.irg, teacher=(3, 6, 5), options={"vertex_weight": 0.5}, invariant="batch", **BATCH),
    Loss("cc", r.cc_loss, naive.cc, teacher=OTHER, **BATCH),
    Loss("cc", r.cc_loss, naive.cc, teacher=OTHER, options={"kernel": "bilinear"}, **BATCH),
    Loss("cc", r.cc_loss, naive.cc, teacher=OTHER, options={"order": 4, "gamma": 0.7}, **BATCH),
    Loss("neighbour", r.cc_loss, lambda s, t, **_: naive.neighbour(s, t), teacher=(3, 6, 5),
         options={"kernel": "neighbour"}, invariant="", **BATCH),
    Loss("nst", r.nst_loss, naive.nst),
    Loss("nst", r.nst_loss, naive.nst, teacher=OTHER),
    Loss("nst", r.nst_loss, naive.nst, teacher=OTHER, options={"kernel": "linear"}),
    Loss("nst", r.nst_loss, naive.nst, teacher=OTHER, options={"kernel": "gaussian", "bandwidth": 0.7}),
    Loss("fsp", r.fsp_loss, naive.fsp, invariant="batch"),
    Loss("fsp", r.fsp_loss, naive.fsp, options={"pooling": "max", "distance": "columns"}, invariant="batch"),
    Loss("fsp", r.fsp_loss, naive.fsp, options={"distance": "mean"}, invariant="batch"),
    Loss("ickd", r.ickd_loss, naive.ickd, teacher=(3, 9, 4), invariant="scale batch"),
    Loss("affinity", r.affinity_loss, naive.affinity, teacher=(3, 9, 4), invariant="scale batch"),
    Loss("affinity", r.affinity_loss, naive.affinity, teacher=(3, 6, 5), options={"squared": True},
         invariant="scale batch"),
    Loss("affinity", r.affinity_loss, naive.affinity, options={"relation": "position"}),
    Loss("affinity", r.affinity_loss, naive.affinity, teacher=OTHER, options={"relation": "position", "squared": True}),
    Loss("time", r.time_similarity_loss, naive.time_similarity),
    Loss("time", r.time_similarity_loss, naive.time_similarity, teacher=OTHER, options={"divergence": "kl"}),
    Loss("frame", r.frame_similarity_loss, naive.frame_similarity, teacher=OTHER, of_batch=True),
    Loss("frame", r.frame_similarity_loss, naive.frame_similarity, options={"divergence": "squared"}, of_batch=True),
    Loss("gram", r.gram_loss, naive.gram, teacher=OTHER),
    Loss("gram", r.gram_loss, naive.gram, teacher=OTHER, options={"axis": "bands"}),
    Loss("gram", r.gram_loss, naive.gram, teacher=(3, 9, 4), options={"axis": "channels"}, invariant="scale batch"),
]  # fmt: skip
each = pytest.mark.parametrize("loss", LOSSES, ids=str)
MODULES = {
    "sp": r.SPLoss, "pkt": r.PKTLoss, "hkd": r.HKDLoss, "rkd": r.RKDLoss, "irg": r.IRGLoss, "cc": r.CCLoss,
    "neighbour": r.CCLoss, "nst": r.NSTLoss, "fsp": r.FSPLoss, "ickd": r.ICKDLoss, "affinity": r.AffinityLoss,
    "time": r.TimeSimilarityLoss, "frame": r.FrameSimilarityLoss, "gram": r.GramLoss,
}  # fmt: skip


def gradients(value, student):
    return torch.autograd.grad(value, as_list(student))


def changed(features, change):
    """The features with `change` applied to each, as new leaves."""
    new = [change(x.detach().clone()).requires_grad_(x.requires_grad) for x in as_list(features)]
    return new[0] if isinstance(features, torch.Tensor) else new


# ---------------------------------------------------------------------------------------------- definitions


@each
@pytest.mark.parametrize("size", [1, 2, 3, 5])
def test_definition(loss, size):
    student, teacher = loss.features(batch=size)
    assert loss(student, teacher).item() == pytest.approx(loss.exact(student, teacher), rel=1e-9, abs=1e-14)


@each
def test_frames_only(loss):
    if loss.layers or loss.options.get("axis") == "bands":
        pytest.skip("needs bands" if not loss.layers else "has its own shapes")
    student, teacher = loss.features(axes=1)
    assert loss(student, teacher).item() == pytest.approx(loss.exact(student, teacher), rel=1e-9)


@pytest.mark.parametrize("loss", [x for x in LOSSES if x.vectors], ids=str)
def test_vectors(loss):
    student, teacher = loss.features(axes=2)
    rows = [x.flatten(1) for x in (student, teacher)]
    assert loss(*rows).item() == pytest.approx(loss(student, teacher).item(), rel=1e-12)


@each
def test_gradient(loss):
    bands = loss.layers or loss.options.get("axis") == "bands"
    student, teacher = loss.features(batch=3, axes=2 if bands else 1)

    def value(*students):
        return loss(list(students) if loss.layers else students[0], teacher)

    assert torch.autograd.gradcheck(value, tuple(as_list(student)), eps=1e-6, atol=1e-7, rtol=1e-5)
    assert all(g.abs().max() > 0 for g in gradients(value(*as_list(student)), student))


@each
def test_module_is_the_function(loss):
    student, teacher = loss.features()
    module = MODULES[loss.name](**loss.options)
    assert torch.equal(module(student, teacher), loss(student, teacher))
    assert not list(module.parameters()) and all(str(value) in repr(module) for value in loss.options.values())


@each
def test_several_pairs_are_weighted(loss):
    if loss.layers or loss.name == "irg":
        pytest.skip("relates the layers to each other, tested below")
    pairs = [loss.features(seed=seed) for seed in (0, 20)]
    alone = torch.stack([loss(*pair) for pair in pairs])
    students, teachers = zip(*pairs, strict=True)
    torch.testing.assert_close(loss(students, teachers), alone.mean())
    torch.testing.assert_close(loss(students, teachers, weights=[2.0, 0.5]), alone @ torch.tensor([2.0, 0.5]).double())


def test_irg_compares_the_change_from_layer_to_layer():
    def changes(features):
        squared = [((x.flatten(1)[:, None] - x.flatten(1)[None]) ** 2).sum(-1) for x in features]
        edges = [d / d.max() for d in squared]
        return torch.stack([((a - b) ** 2).mean() for a, b in zip(edges, edges[1:], strict=False)])

    students, teachers = zip(*[find("irg").features(seed=seed) for seed in (0, 20, 40)], strict=True)
    graphs = relations.irg_loss(students, teachers, transform_weight=0.0)
    change = (changes(students) - changes(teachers)).square().mean()
    torch.testing.assert_close(relations.irg_loss(students, teachers), graphs + change)
    torch.testing.assert_close(relations.irg_loss(students, teachers, transform_weight=3.0), graphs + 3 * change)


def test_many_samples_take_angles_in_blocks(monkeypatch):
    student, teacher = torch.randn(7, 5, requires_grad=True, dtype=torch.float64), torch.randn(7, 9).double()
    whole = relations.rkd_loss(student, teacher)
    monkeypatch.setattr(batch, "ANGLES", 7 * 7 * 3)
    blocks = relations.rkd_loss(student, teacher)
    torch.testing.assert_close(blocks, whole)
    torch.testing.assert_close(gradients(blocks, student), gradients(whole, student))


def test_nst_takes_its_bandwidth_from_the_features():
    student, teacher = find("nst").features()
    value = relations.nst_loss(student, teacher, kernel="gaussian")
    arrays = (x.detach().numpy() for x in (student, teacher))
    assert value.item() == pytest.approx(naive.nst(*arrays, kernel="gaussian"), rel=1e-9)


def test_gram_of_channels_is_ickd():
    student, teacher = torch.randn(2, 3, 6, 5), torch.randn(2, 3, 9, 4)
    torch.testing.assert_close(
        relations.gram_loss(student, teacher, axis="channels"), relations.ickd_loss(student, teacher)
    )


# ---------------------------------------------------------------------------------------------- properties


@each
def test_never_negative_and_zero_at_equality(loss):
    for seed in range(5):
        assert loss(*loss.features(seed=seed)) >= 0
    student, _ = loss.features()
    value = loss(student, changed(student, torch.clone))
    value.backward()
    assert abs(value) < 1e-12
    assert all(x.grad.abs().max() < 1e-6 for x in as_list(student))


@each
def test_invariances(loss):
    student, teacher = loss.features()
    reference = loss(student, teacher)
    order = torch.tensor([2, 0, 3, 1])
    changes = {
        "scale": (changed(student, lambda x: x * 3.5), teacher),
        "channels": (changed(student, lambda x: x.flip(1)), teacher),
        "batch": (changed(student, lambda x: x[order]), changed(teacher, lambda x: x[order])),
    }
    for name, features in changes.items():
        same = torch.allclose(loss(*features), reference, rtol=1e-9, atol=1e-13)
        assert same == (name in loss.invariant), name


@each
@pytest.mark.parametrize("dtype", cases.DTYPES, ids=cases.name_of)
@pytest.mark.parametrize("who", ["student", "teacher", "both", "all", "frame"])
def test_silence(loss, who, dtype):
    """Silent samples, silent everything and a silent frame: finite, and gradients of ordinary size."""
    student, teacher = loss.features(dtype)
    usual = max(g.abs().max().item() for g in gradients(loss(student, teacher), student))

    def silence(x):
        if who == "frame":
            x[:, :, 1] = 0
        else:
            x[slice(None) if who == "all" else 1] = 0
        return x

    student = changed(student, silence) if who != "teacher" else student
    teacher = changed(teacher, silence) if who != "student" else teacher
    value = loss(student, teacher)
    assert value.isfinite()
    for grad in gradients(value, student):
        assert grad.isfinite().all() and grad.abs().max() < 100 * max(usual, 0.1)


@each
@pytest.mark.parametrize("dtype", cases.DTYPES, ids=cases.name_of)
def test_one_sample_and_one_frame(loss, dtype):
    for batch_size, frames in ((1, 6), (3, 1), (1, 1), (2, 6)):
        student, teacher = (
            changed(x, lambda x, frames=frames: x[:, :, :frames]) for x in loss.features(dtype, batch=batch_size)
        )
        value = loss(student, teacher)
        assert value.isfinite() and all(g.isfinite().all() for g in gradients(value, student))


@each
def test_empty_batch(loss):
    student, teacher = loss.features(torch.float32, batch=0)
    value = loss(student, teacher)
    assert value == 0 and all(g.shape[0] == 0 for g in gradients(value, student))


@each
def test_two_equal_samples(loss):
    student, teacher = (changed(x, lambda x: x[[0, 1, 1, 3]]) for x in loss.features())
    value = loss(student, teacher)
    assert value.isfinite() and all(g.isfinite().all() for g in gradients(value, student))


@each
def test_teacher_is_detached_and_inputs_stay(loss):
    student, teacher = loss.features()
    teacher = changed(teacher, lambda x: x)
    for x in as_list(teacher):
        x.requires_grad_()
    before = [x.detach().clone() for x in (*as_list(student), *as_list(teacher))]
    loss(student, teacher, **({"lengths": [6, 2, 3, 5]})).backward()
    assert all(x.grad is None for x in as_list(teacher)) and all(x.grad is not None for x in as_list(student))
    assert all(map(torch.equal, before, [x.detach() for x in (*as_list(student), *as_list(teacher))]))


@each
@pytest.mark.parametrize("layout", cases.LAYOUTS, ids=lambda layout: layout.__name__)
def test_layouts_and_backward_twice(loss, layout):
    student, teacher = loss.features()
    strided = changed(student, torch.clone)
    leaves = as_list(strided)
    laid_out = [layout(x) for x in leaves]
    teachers = [layout(x) for x in as_list(teacher)]
    ours = loss(laid_out if loss.layers else laid_out[0], teachers if loss.layers else teachers[0])
    copies = [x.detach().contiguous().requires_grad_() for x in laid_out]
    teachers = [x.contiguous() for x in teachers]
    value = loss(copies if loss.layers else copies[0], teachers if loss.layers else teachers[0])
    torch.testing.assert_close(ours, value)
    first = torch.autograd.grad(ours, leaves, retain_graph=True)
    assert all(map(torch.equal, first, torch.autograd.grad(ours, leaves)))
    expected = torch.autograd.grad(laid_out, leaves, torch.autograd.grad(value, copies))
    torch.testing.assert_close(first, expected)


@each
def test_compiles_in_one_graph(loss):
    student, teacher = loss.features(torch.float32)
    compiled = torch.compile(loss.function, fullgraph=True, backend="aot_eager")
    ours = compiled(student, teacher, **loss.options)
    torch.testing.assert_close(ours, loss(student, teacher))
    torch.testing.assert_close(
        gradients(ours, student), gradients(loss(student, teacher), student), rtol=1e-4, atol=1e-6
    )
    torch._dynamo.reset()


# ---------------------------------------------------------------------------------------------- precision


@each
@pytest.mark.parametrize("dtype", [torch.float32, *cases.HALF_DTYPES], ids=cases.name_of)
@pytest.mark.parametrize("autocast", [False, True], ids=["", "autocast"])
def test_narrow_dtypes_compute_in_float32(loss, dtype, autocast):
    student, teacher = loss.features(dtype, seed=5)
    with torch.autocast("cpu", torch.bfloat16, enabled=autocast):
        value = loss(student, teacher)
    assert value.dtype == torch.float32
    scale = 2.0**10  # shows the digits that float16's smallest numbers hide
    grads = gradients(value * scale, student)
    exact_student = changed(student, lambda x: x.double())
    exact = loss(exact_student, changed(teacher, lambda x: x.double()))
    assert value.item() == pytest.approx(exact.item(), rel=2e-5, abs=1e-7)
    for grad, expected in zip(grads, gradients(exact * scale, exact_student), strict=True):
        assert grad.dtype == dtype
        error = (grad.double() - expected).abs().max() / expected.abs().max()
        assert error < max(torch.finfo(dtype).eps, 5e-5)


@pytest.mark.parametrize("mean", [0.0, 3.0], ids=["", "offset"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=cases.name_of)
@pytest.mark.parametrize("loss", [x for x in LOSSES if x.name in ("sp", "pkt", "rkd", "hkd", "irg", "cc")], ids=str)
@pytest.mark.big
def test_speech_sizes_keep_their_digits(loss, dtype, mean):
    """Required: 1e-3 in float32, 2e-2 for bfloat16 features, whose Gram matrix is the float32 one of the rounded."""
    generator = torch.Generator().manual_seed(1)
    shape = (8, 64, 200, 64)
    student, teacher = (torch.randn(shape, generator=generator).add_(mean).to(dtype) for _ in range(2))
    student.requires_grad_()
    value = loss(student, teacher)
    (grad,) = gradients(value * 2.0**20, student)
    exact_student = student.detach().double().requires_grad_()
    exact = loss(exact_student, teacher.double())
    (expected,) = gradients(exact * 2.0**20, exact_student)
    assert value.item() == pytest.approx(exact.item(), rel=1e-3)
    error = (grad.double() - expected).abs().max() / expected.abs().max()
    assert error < (1e-2 if dtype == torch.bfloat16 else 2e-3)


@pytest.mark.parametrize("columns", [1, 4095, 4096, 4097, 12300])
@pytest.mark.parametrize("block", [1000, 2**21])
def test_gram_in_chunks(columns, block, monkeypatch):
    monkeypatch.setattr(relations.gram, "BLOCK", block)
    x = torch.randn(5, columns, requires_grad=True)
    for centred in (False, True):
        rows = x.detach().double() - (x.detach().double().mean(0) if centred else 0)
        g = relations.gram.gram(x, centred=centred)
        assert g.dtype == torch.float64
        torch.testing.assert_close(g, rows @ rows.T, rtol=1e-5, atol=1e-6 * columns)
        upstream = torch.randn(5, 5).double()
        (grad,) = torch.autograd.grad(g, x, upstream)
        expected = (upstream + upstream.T) @ rows
        expected = expected - expected.mean(0) if centred else expected
        torch.testing.assert_close(grad.double(), expected, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("centred", [False, True])
def test_second_derivative_of_gram(centred):
    x = torch.randn(3, 4, dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradgradcheck(lambda x: relations.gram.gram(x, centred=centred), x)


@pytest.mark.parametrize("name", ["sp", "pkt", "rkd", "hkd", "irg", "cc"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=cases.name_of)
def test_what_is_kept_for_backward_is_the_feature_itself(name, dtype):
    loss, kept = find(name), set()
    student, teacher = torch.randn(4, 3, 50, 40).to(dtype).requires_grad_(), torch.randn(4, 5, 50, 40).to(dtype)

    def keep(x):
        if x.numel() >= teacher[0].numel():
            kept.add(x.untyped_storage().data_ptr())
        return x

    with torch.autograd.graph.saved_tensors_hooks(keep, lambda x: x):
        loss(student, teacher)
    assert kept <= {student.untyped_storage().data_ptr(), teacher.untyped_storage().data_ptr()}


# ---------------------------------------------------------------------------------------------- padding


def padded(loss, dtype, fill, lengths, frames=6):
    """Features of the loss whose frames beyond lengths hold `fill`; all layers valid to ceil(lengths T / frames)."""

    def filled(x):
        for b, length in enumerate(lengths):
            x[b, :, -(-length * x.shape[2] // frames) :] = fill
        return x

    student, teacher = loss.features(dtype, batch=len(lengths))
    return changed(student, filled), changed(teacher, filled)


@each
@pytest.mark.parametrize("dtype", cases.DTYPES, ids=cases.name_of)
@pytest.mark.parametrize("garbage", [float("nan"), float("inf")])
def test_garbage_in_padded_frames(loss, garbage, dtype):
    lengths, results = (6, 3, 4, 0), []
    for fill in (0.0, garbage):
        student, teacher = padded(loss, dtype, fill, lengths)
        value = loss(student, teacher, lengths=torch.tensor(lengths), padded_length=6)
        results.append([value, *gradients(value, student)])
    assert all(map(torch.equal, *results)) and results[0][0].isfinite()
    for grad in results[0][1:]:
        assert grad.isfinite().all() and (grad[3] == 0).all()
        assert (grad[1, :, -(-3 * grad.shape[2] // 6) :] == 0).all()


@each
def test_lengths_are_cropping(loss):
    """A batch whose samples all end at frame 4 of 6, in layers of any resolution, is the batch cut there."""
    student, teacher = loss.features()
    if len({x.shape[2] for x in (*as_list(student), *as_list(teacher))}) > 1:
        student, teacher = (changed(x, lambda x: x.repeat_interleave(6, 2)[:, :, :12]) for x in (student, teacher))
    frames = as_list(student)[0].shape[2]
    keep = frames * 2 // 3
    value = loss(student, teacher, lengths=torch.full((4,), keep))
    cut_student = changed(student, lambda x: x[:, :, :keep])
    expected = loss(cut_student, changed(teacher, lambda x: x[:, :, :keep]))
    torch.testing.assert_close(value, expected)
    for grad, part in zip(gradients(value, student), gradients(expected, cut_student), strict=True):
        torch.testing.assert_close(grad[:, :, :keep], part)


@pytest.mark.parametrize("loss", [x for x in LOSSES if not x.of_batch], ids=str)
def test_each_sample_counts_its_own_frames(loss):
    """Ragged lengths: the mean over samples of what each gives alone, cut to its own frames."""
    lengths = (6, 3, 4, 2)
    student, teacher = loss.features()
    if len({x.shape[2] for x in (*as_list(student), *as_list(teacher))}) > 1:
        student, teacher = (changed(x, lambda x: x[:, :, [0, 0, 1, 1, 2, 3]]) for x in (student, teacher))
    value = loss(student, teacher, lengths=lengths)
    alone = [
        loss(*(changed(x, lambda x, b=b, n=n: x[b : b + 1, :, :n]) for x in (student, teacher)))
        for b, n in enumerate(lengths)
    ]
    torch.testing.assert_close(value, torch.stack(alone).mean())


# ---------------------------------------------------------------------------------------------- published numbers


class Vectors:
    """Features, and the loss and student gradients that published code gives for them."""

    def __init__(self, name):
        entries = json.loads((PARITY / "INDEX.json").read_text())["entries"]
        self.entry = next(entry for entry in entries if entry["file"] == f"{name}.npz")
        self.data = {key: torch.from_numpy(x) for key, x in np.load(PARITY / self.entry["file"]).items()}
        self.students = [self[f"s{i}"].requires_grad_() for i in range(len(self.entry["student_shapes"]))]
        self.teachers = [self[f"t{i}"] for i in range(len(self.entry["teacher_shapes"]))]

    def __getitem__(self, key):
        return self.data[key]

    def assert_equal(self, loss, rtol=1e-10, parameters=()):
        assert loss.item() == pytest.approx(self["loss"].item(), rel=rtol)
        names = [f"gs{i}" for i in range(len(self.students))] + [f"gp.{name}" for name, _ in parameters]
        ours = torch.autograd.grad(loss, [*self.students, *(p for _, p in parameters)])
        for name, grad in zip(names, ours, strict=True):
            torch.testing.assert_close(grad, self[name], rtol=1e-7, atol=1e-7 * self[name].abs().max().item())


PUBLISHED = {
    "md__SP_eq": (r.sp_loss, {}),
    "rep__SP_s_larger_t_square": (r.sp_loss, {}),
    "td__SPKD_batchmean_both_nonsquare_mismatch": (r.sp_loss, {"normalize": "l1"}),
    "md__PKT_vec": (r.pkt_loss, {"convention": "published"}),
    "td__PKT_vec": (r.pkt_loss, {"convention": "published"}),
    "rep__PKT_flat_map": (r.pkt_loss, {"convention": "published"}),
    "sem__HKD_3layers": (r.hkd_loss, {"convention": "published", "eps": 1e-14, "weights": [100, 1, 1]}),
    "md__RKD_vec": (r.rkd_loss, {"convention": "published"}),
    "rep__RKD_vec": (r.rkd_loss, {"convention": "published"}),
    "rep__RKD_flat_map": (r.rkd_loss, {"convention": "published"}),
    "sem__IRG_vec_no_transform": (r.irg_loss, {}),
    "td__CCKD_bilinear": (r.cc_loss, {"kernel": "bilinear", "normalize": False, "squared": False}),
    "td__CCKD_gaussian": (r.cc_loss, {"kernel": "gaussian", "normalize": False, "squared": False}),
    "rep__NST_eq": (r.nst_loss, {}),
    "rep__NST_s_square_t_larger": (r.nst_loss, {}),
    "md__NST_3layers": (r.nst_loss, {"weights": [1, 1, 1]}),
    "rep__FSP_2layers_square_pool": (r.fsp_loss, {"distance": "mean"}),
    "td__FSP_maxpool": (r.fsp_loss, {"pooling": "max", "distance": "columns"}),
    "td__ChSim_other_TF": (r.ickd_loss, {"reduction": "batch_squared"}),
    "td__Affinity_mean": (r.affinity_loss, {}),
}


@pytest.mark.skipif(not PARITY.is_dir(), reason="the parity vectors (../shared/parity) are not here")
class TestPublished:
    @pytest.mark.parametrize("name", PUBLISHED)
    def test_equal(self, name):
        function, options = PUBLISHED[name]
        peer = Vectors(name)
        # SemCKD's distance of a sample to itself is rounding noise under a root: its own numbers are good to 1e-9.
        rtol = 1e-9 if function is r.hkd_loss else 1e-10
        peer.assert_equal(function(peer.students, peer.teachers, **options), rtol)

    def test_silent_sample_of_sp_has_no_gradient_of_its_own(self):
        """Published: the silent row is divided by 1e-12, the gradient is 1e10. Ours leaves that row out."""
        peer = Vectors("rep__SP_edge_zero_samples")
        loss = relations.sp_loss(peer.students, peer.teachers)
        assert loss.item() == pytest.approx(peer["loss"].item(), rel=1e-10)
        (ours,) = gradients(loss, peer.students)
        assert peer["gs0"][1].abs().max() > 1e10 and ours[1].abs().max() < 0.1
        for b in (0, 2, 3):
            torch.testing.assert_close(ours[b], peer["gs0"][b], rtol=1e-7, atol=1e-10)

    def test_one_sample_of_rkd_is_zero(self):
        """Published: the mean over no pairs, NaN."""
        peer = Vectors("rep__RKD_edge_batch1")
        for convention in batch.CONVENTIONS:
            assert relations.rkd_loss(peer.students, peer.teachers, convention=convention) == 0
        assert peer["loss"].isnan()

    def test_zero_rows_of_pkt_have_finite_gradients(self):
        student = torch.randn(4, 5, dtype=torch.float64)
        student[1] = 0
        student.requires_grad_()
        (grad,) = gradients(relations.pkt_loss(student, torch.randn(4, 7), convention="published"), student)
        assert grad.isfinite().all()

    @pytest.mark.parametrize("name, factor", [("md__PKT_vec", 8), ("md__RKD_vec", None)])
    def test_paper_leaves_out_what_compares_a_sample_with_itself(self, name, factor):
        """PKT: other samples only and the mean of rows, not of all B^2. RKD: means over different samples."""
        peer, size = Vectors(name), 8
        if factor:
            ours = relations.pkt_loss(peer.students, peer.teachers)
            assert ours.item() > factor * peer["loss"].item()
        else:
            parts = [{"angle_weight": 0.0}, {"distance_weight": 0.0}]
            paper, published = (
                [relations.rkd_loss(peer.students, peer.teachers, **part, convention=name).item() for part in parts]
                for name in batch.CONVENTIONS
            )
            assert paper[0] == pytest.approx(published[0] * size / (size - 1))
            assert paper[1] == pytest.approx(published[1] * size**2 / (size - 1) / (size - 2))

    def test_ickd_is_a_mean_over_the_batch(self):
        """Published: over B^2 although only one sum runs over the batch."""
        peer = Vectors("td__ChSim_other_TF")
        assert relations.ickd_loss(peer.students, peer.teachers).item() == pytest.approx(4 * peer["loss"].item())

    def test_ickd_embedding(self):
        peer = Vectors("td__ChSim_embed")
        module = relations.ICKDLoss(6, 10, reduction="batch_squared").double()
        module.embedding.weight.data = peer["p.conv2d.weight"]
        module.normalisation.weight.data = peer["p.l2norm.weight"]
        module.normalisation.bias.data = peer["p.l2norm.bias"]
        names = "conv2d.weight", "l2norm.weight", "l2norm.bias"
        parameters = list(zip(names, module.parameters(), strict=True))
        peer.assert_equal(module(peer.students, peer.teachers), parameters=parameters)

    def test_cc_embedding(self):
        peer = Vectors("rep__CC_embed")
        module = relations.CCLoss(10, 14, 16, kernel="neighbour").double()
        for index, linear in enumerate(module.embeddings):
            linear.weight.data, linear.bias.data = (peer[f"p.{index}.linear.{x}"] for x in ("weight", "bias"))
        names = [f"{i}.linear.{x}" for i in range(2) for x in ("weight", "bias")]
        parameters = list(zip(names, module.parameters(), strict=True))
        peer.assert_equal(module(peer.students, peer.teachers), parameters=parameters)

    def test_time_and_frame_similarity(self):
        """I2RF-TFCKD: row_weights are an attention over teacher layers, of queries and keys of raw Gram matrices.

        Its frame term is summed, not averaged, over T frames and divided by B once more: T / B times ours.
        """
        peer = Vectors("tfckd__TFCKD_1s_2t")
        (student,), teachers = peer.students, peer.teachers

        def embedded(g, name, axis):
            for layer in ("linear1", "linear2"):
                g = torch.relu(g) if layer == "linear2" else g
                g = g @ peer[f"p.{name}.{layer}.weight"].T + peer[f"p.{name}.{layer}.bias"]
            return g / g.norm(dim=axis, keepdim=True)

        total = 0
        for kind, function, factor in (
            ("time", relations.time_similarity_loss, 1),
            ("freq", relations.frame_similarity_loss, 10 / 8),
        ):

            def rows(x, kind=kind):
                x = x.transpose(1, 2).flatten(2)
                return x if kind == "time" else x.transpose(0, 1)

            axis = 1 if kind == "time" else 0  # of the embeddings' norm: frames
            query = embedded(rows(student) @ rows(student).mT, f"{kind}_query_weight0", axis)
            keys = [embedded(rows(t) @ rows(t).mT, f"{kind}_key_weight{j}", axis) for j, t in enumerate(teachers)]
            attention = torch.stack([(query * key).sum(-1) for key in keys]).softmax(0)
            options = {"eps": 1e-15, "norm_eps": 1e-6, "weights": [factor] * 2}
            total = total + function([student, student], teachers, row_weights=list(attention), **options)
        peer.assert_equal(total)


# ---------------------------------------------------------------------------------------------- learned parts


def test_embeddings_ignore_padded_frames():
    torch.manual_seed(0)
    lengths = torch.tensor([6, 3, 4])
    for module in (relations.ICKDLoss(3, 4), relations.CCLoss(3, 4, 5)):
        for mode in (True, False):
            module.train(mode)
            results = []
            for fill in (0.0, float("nan")):
                student, teacher = torch.randn(2, 3, 4, 6, 5, generator=torch.Generator().manual_seed(0))
                student = student[:, :3].contiguous()
                for x in (student, teacher):
                    for b, length in enumerate(lengths):
                        x[b, :, length:] = fill
                student.requires_grad_()
                value = copy.deepcopy(module)(student, teacher, lengths=lengths)
                results.append([value, *gradients(value, student)])
            assert all(map(torch.equal, *results)) and results[0][0].isfinite()


def test_masked_batch_norm_without_padding_is_batch_norm():
    torch.manual_seed(0)
    student, teacher = torch.randn(3, 3, 6, 5), torch.randn(3, 4, 6, 5)
    module = relations.ICKDLoss(3, 4)
    other = copy.deepcopy(module)
    torch.testing.assert_close(module(student, teacher), other(student, teacher, lengths=[6, 6, 6]))
    for name, buffer in module.named_buffers():
        torch.testing.assert_close(buffer, dict(other.named_buffers())[name])


# ---------------------------------------------------------------------------------------------- process groups


GROUPED = [x for x in LOSSES if x.of_batch]


def grouped_losses(rank, folder, world):
    warnings.simplefilter("ignore")
    torch.set_num_threads(1)
    torch.distributed.init_process_group("gloo", f"file://{folder}/store", rank=rank, world_size=world)
    group, results = torch.distributed.group.WORLD, []
    for loss in GROUPED:
        for lengths in (None, torch.tensor([6, 3, 4, 5])):
            student, teacher = loss.features(batch=4)
            mine = slice(rank * 2, rank * 2 + 2)
            student, teacher = (changed(x, lambda x, mine=mine: x[mine]) for x in (student, teacher))
            options = {} if lengths is None else {"lengths": lengths[mine]}
            value = loss(student, teacher, group=group, **options)
            (grad,) = gradients(value, student)
            results.append((value.detach(), grad))
    torch.save(results, f"{folder}/{rank}.pt")
    torch.distributed.destroy_process_group()


@pytest.mark.skipif(not torch.distributed.is_available(), reason="this torch has no torch.distributed")
def test_two_processes_are_one_with_the_whole_batch(tmp_path):
    """Every process has the loss of the whole batch; averaged over processes (DDP) the gradients are those of one."""
    torch.multiprocessing.spawn(grouped_losses, (str(tmp_path), 2), nprocs=2)
    ranks = [torch.load(tmp_path / f"{rank}.pt") for rank in range(2)]
    index = 0
    for loss in GROUPED:
        for lengths in (None, torch.tensor([6, 3, 4, 5])):
            student, teacher = loss.features(batch=4)
            value = loss(student, teacher, **({} if lengths is None else {"lengths": lengths}))
            (grad,) = gradients(value, student)
            for rank in range(2):
                ours, ours_grad = ranks[rank][index]
                torch.testing.assert_close(ours, value.detach(), msg=lambda m, loss=loss: f"{loss}: {m}")
                torch.testing.assert_close(ours_grad / 2, grad[rank * 2 : rank * 2 + 2])
            index += 1


# ---------------------------------------------------------------------------------------------- errors


S, T = torch.zeros(2, 3, 6, 4), torch.zeros(2, 5, 6, 4)
WRONG = [
    (lambda: r.sp_loss(S.int(), T), TypeError, ["student_features[0]", "float32", "int32"]),
    (lambda: r.sp_loss([], T), TypeError, ["student_features", "non-empty", "[]"]),
    (lambda: r.sp_loss([S], [T, T]), ValueError, ["teacher_features", "1", "2"]),
    (lambda: r.sp_loss([S, None], [T, T]), TypeError, ["student_features[1]", "NoneType"]),
    (lambda: r.sp_loss(S, T[:1]), ValueError, ["teacher_features[0]", "batch size 2", "1"]),
    (lambda: r.sp_loss(S, T.to("meta")), ValueError, ["teacher_features[0]", "cpu", "meta"]),
    (lambda: r.sp_loss(S, T, normalize="l3"), ValueError, ["normalize", "'l1'", "'l3'"]),
    (lambda: r.sp_loss(S, T, weights=[1, 2]), ValueError, ["weights", "1", "2"]),
    (lambda: r.sp_loss(S, T, lengths=[1.0, 2.0]), TypeError, ["lengths", "integers"]),
    (lambda: r.sp_loss(S, T, lengths=[1]), ValueError, ["lengths", "(2,)", "(1,)"]),
    (lambda: r.sp_loss(S[:, :, 0, 0], T[:, :, 0, 0], lengths=[1, 2]), ValueError, ["lengths", "(B, D)"]),
    (lambda: r.sp_loss(S, T, lengths=[1, 2], padded_length=0), ValueError, ["padded_length", "0"]),
    (lambda: r.pkt_loss(S, T, convention="mine"), ValueError, ["convention", "'paper'", "'mine'"]),
    (lambda: r.irg_loss(S, T, vertex_weight=1.0), ValueError, ["teacher_features[0]", "(2, 3", "(2, 5"]),
    (lambda: r.cc_loss(S, T, kernel="neighbour"), ValueError, ["teacher_features[0]", "72", "120"]),
    (lambda: r.cc_loss(S, T, kernel="rbf"), ValueError, ["kernel", "'gaussian'", "'rbf'"]),
    (lambda: r.cc_loss(S, T, order=-1), ValueError, ["order", "-1"]),
    (lambda: r.nst_loss(S, T, bandwidth=0.0), ValueError, ["bandwidth", "positive", "0.0"]),
    (lambda: r.nst_loss(S[:, :, 0, 0], T), ValueError, ["student_features[0]", "(B, C, T)", "(2, 3)"]),
    (lambda: r.nst_loss(S, T[..., 0]), ValueError, ["teacher_features[0]", "axes 4", "3"]),
    (lambda: r.fsp_loss(S, S), ValueError, ["student_features", "two layers", "1"]),
    (lambda: r.fsp_loss([S, S], [S, T]), ValueError, ["teacher_features[1]", "channels 3", "5"]),
    (lambda: r.ickd_loss(S, T), ValueError, ["teacher_features[0]", "channels 3", "5"]),
    (lambda: r.affinity_loss(S, T), ValueError, ["teacher_features[0]", "channels 3", "5"]),
    (lambda: r.gram_loss(S[..., 0], T, axis="bands"), ValueError, ["student_features[0]", "bands", "(2, 3, 6)"]),
    (lambda: r.time_similarity_loss(S, T, divergence="js"), ValueError, ["divergence", "'kl'", "'js'"]),
    (lambda: r.time_similarity_loss(S, T, row_weights=[S]), ValueError, ["row_weights[0]", "(2, 6)", "(2, 3, 6, 4)"]),
    (lambda: r.time_similarity_loss(S, T, row_weights=[]), ValueError, ["row_weights", "per pair"]),
    (lambda: r.SPLoss(norm="l2"), TypeError, ["SPLoss", "'norm'"]),
    (lambda: r.CCLoss(3), ValueError, ["teacher_dim"]),
    (lambda: r.CCLoss(4, 5)(S, T), ValueError, ["student_features", "4 channels", "3"]),
    (lambda: r.ICKDLoss(3), ValueError, ["teacher_channels"]),
    (lambda: r.ICKDLoss(4, 5)(S, T), ValueError, ["student_features", "4 channels", "(2, 3, 6, 4)"]),
]


@pytest.mark.parametrize("call, error, words", WRONG, ids=[str(i) for i in range(len(WRONG))])
def test_errors(call, error, words):
    with pytest.raises(error) as caught:
        call()
    assert all(word in str(caught.value) for word in words), str(caught.value)
