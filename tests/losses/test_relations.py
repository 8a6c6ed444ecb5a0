"""Relational losses: rows, and what is theirs alone."""

import copy

import cases
import naive_relations as naive
import pytest
import torch
from suite import *  # noqa: F403 - the tests that every loss passes
from suite import Loss, Vectors, gradients, only
from torch.nn import functional

from abckd_kernels.losses import relations
from abckd_kernels.losses.relations import batch

OTHER = (4, 9, 4)
BATCH = {"of_batch": True, "vectors": True}
FLOW = {"student": [(3, 6, 5), (2, 4, 3)], "teacher": [(3, 7, 6), (2, 5, 4)]}
r = relations
LOSSES = [
    Loss("sp", r.sp_loss, naive.sp, teacher=OTHER, **BATCH),
    Loss("sp", r.sp_loss, naive.sp, teacher=OTHER, options={"normalize": "l1"}, **BATCH),
    Loss("pkt", r.pkt_loss, naive.pkt, teacher=OTHER, **BATCH),
    Loss("hkd", r.hkd_loss, naive.hkd, teacher=OTHER, invariant="channels batch", **BATCH),
    Loss("rkd", r.rkd_loss, naive.rkd, teacher=OTHER, **BATCH),
    Loss("rkd", r.rkd_loss, naive.rkd, teacher=OTHER, options={"squared": True, "angle_weight": 0.0}, **BATCH),
    Loss("irg", r.irg_loss, naive.irg, teacher=OTHER, pairs=False, **BATCH),
    Loss("irg", r.irg_loss, naive.irg, teacher=(3, 6, 5), options={"vertex_weight": 0.5}, pairs=False,
         invariant="batch", **BATCH),
    Loss("cc", r.cc_loss, naive.cc, teacher=OTHER, **BATCH),
    Loss("cc", r.cc_loss, naive.cc, teacher=OTHER, options={"kernel": "linear"}, **BATCH),
    Loss("cc", r.cc_loss, naive.cc, teacher=OTHER, options={"order": 4, "gamma": 0.7}, **BATCH),
    Loss("neighbour", r.cc_loss, lambda s, t, **_: naive.neighbour(s, t), teacher=(3, 6, 5),
         options={"kernel": "neighbour"}, invariant="", **BATCH),
    Loss("nst", r.nst_loss, naive.nst),
    Loss("nst", r.nst_loss, naive.nst, teacher=OTHER),
    Loss("nst", r.nst_loss, naive.nst, teacher=OTHER, options={"kernel": "linear"}),
    Loss("nst", r.nst_loss, naive.nst, teacher=OTHER, options={"kernel": "gaussian", "bandwidth": 0.7}),
    Loss("fsp", r.fsp_loss, naive.fsp, **FLOW, invariant="batch"),
    Loss("fsp", r.fsp_loss, naive.fsp, **FLOW, options={"pooling": "max", "distance": "columns"}, invariant="batch"),
    Loss("fsp", r.fsp_loss, naive.fsp, **FLOW, options={"distance": "mean"}, invariant="batch"),
    Loss("ickd", r.ickd_loss, naive.ickd, teacher=(3, 9, 4), invariant="scale batch"),
    Loss("affinity", r.affinity_loss, naive.affinity, teacher=(3, 9, 4), invariant="scale batch"),
    Loss("affinity", r.affinity_loss, naive.affinity, teacher=(3, 6, 5), options={"squared": True},
         invariant="scale batch", half_scale=40),
    Loss("affinity", r.affinity_loss, naive.affinity, options={"relation": "position"}),
    Loss("affinity", r.affinity_loss, naive.affinity, teacher=OTHER, options={"relation": "position", "squared": True}),
    Loss("time", r.time_similarity_loss, naive.time_similarity),
    Loss("time", r.time_similarity_loss, naive.time_similarity, teacher=OTHER, options={"divergence": "kl"}),
    Loss("frame", r.frame_similarity_loss, naive.frame_similarity, teacher=OTHER, of_batch=True),
    Loss("frame", r.frame_similarity_loss, naive.frame_similarity, options={"divergence": "squared"}, of_batch=True),
    Loss("gram", r.gram_loss, naive.gram, teacher=OTHER),
    Loss("gram", r.gram_loss, naive.gram, teacher=OTHER, options={"axis": "bands"}, spatial=(2,)),
    Loss("gram", r.gram_loss, naive.gram, teacher=(3, 9, 4), options={"axis": "channels"}, invariant="scale batch"),
    Loss("ickd_embedding", None, naive.ickd_embedding, module=lambda: r.ICKDLoss(3, 4), spatial=(2,), of_batch=True,
         invariant="batch", zero_at_equality=False),
    Loss("cc_embedding", None, naive.cc_embedding, teacher=OTHER, module=lambda: r.CCLoss(3, 4, 5), of_batch=True,
         invariant="batch", zero_at_equality=False),
]  # fmt: skip


def find(name):
    """The first loss of that name."""
    return next(loss for loss in LOSSES if loss.name == name)


# ---------------------------------------------------------------------------------------------- definitions


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


def all_angles(x):
    """Cosines of the angles at x_i between x_j and x_k, (B, B, B), with unit vectors that are zero where x_j = x_i."""
    unit = functional.normalize(x[None] - x[:, None], dim=2)
    return unit @ unit.mT


@pytest.mark.parametrize("who", ["nobody", "student", "teacher", "both"])
def test_published_rkd_counts_the_angle_of_a_sample_with_itself(who):
    """psi_ijj is 1, of two equal samples 0: where only one network has equal samples, that makes a difference."""
    student, teacher = torch.randn(5, 6, dtype=torch.float64), torch.randn(5, 8, dtype=torch.float64)
    if who in ("student", "both"):
        student[3] = student[1]
    if who in ("teacher", "both"):
        teacher[3] = teacher[1]
    student.requires_grad_()
    ours = relations.rkd_loss(student, teacher, convention="published", distance_weight=0.0)
    theirs = 50 * functional.smooth_l1_loss(all_angles(student.detach()), all_angles(teacher))
    torch.testing.assert_close(ours, theirs)
    assert gradients(ours, student)[0].isfinite().all()


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


# ---------------------------------------------------------------------------------------------- precision


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=cases.name_of)
@only(lambda loss: loss.name in ("sp", "pkt", "rkd", "hkd", "irg", "cc"))
@pytest.mark.big
def test_speech_sizes_keep_their_digits(loss, dtype):
    """Required: 1e-3 in float32, 2e-2 for bfloat16 features, whose Gram matrix is the float32 one of the rounded.

    Features have a mean, which takes digits from differences.
    """
    generator = torch.Generator().manual_seed(1)
    shape = (4, 64, 200, 64)
    student, teacher = (torch.randn(shape, generator=generator).add_(3).to(dtype) for _ in range(2))
    student.requires_grad_()
    value = loss(student, teacher)
    (grad,) = gradients(value * 2.0**20, student)
    exact_student = student.detach().double().requires_grad_()
    exact = loss(exact_student, teacher.double())
    (expected,) = gradients(exact * 2.0**20, exact_student)
    assert value.item() == pytest.approx(exact.item(), rel=1e-3)
    error = (grad.double() - expected).abs().max() / expected.abs().max()
    assert error < (1e-2 if dtype == torch.bfloat16 else 2e-3)


@pytest.mark.parametrize("size", [0, 1, 5])
def test_differences_and_products_come_from_one_read(size):
    x = torch.randn(size, 3, 40, dtype=torch.float64, requires_grad=True)
    differences, products = relations._gram.between_differences(x)
    rows = x.flatten(1)
    torch.testing.assert_close(products, rows @ rows.T)
    rows = rows - rows[:1]
    torch.testing.assert_close(differences, rows @ rows.T)
    if size > 1:
        assert torch.autograd.gradcheck(relations._gram.between_differences, x)


@pytest.mark.parametrize("outlier", [0.0, 30.0])
def test_distances_do_not_need_a_typical_first_sample(outlier):
    """All differences are to the first sample: silent or loud, those between the others keep their digits."""
    generator = torch.Generator().manual_seed(1)
    x = torch.randn(6, 200_000, generator=generator) + 3
    x[0] = outlier
    ours = relations._gram.squared_distances(relations._gram.between_differences(x)[0])
    exact = torch.cdist(x.double(), x.double()).square()
    torch.testing.assert_close(ours, exact, rtol=2e-5, atol=0)


@only(lambda loss: loss.name == "sp")
def test_second_derivatives_are_refused_rather_than_zero(loss):
    student, teacher = loss.features()
    with pytest.raises(RuntimeError):
        (first,) = torch.autograd.grad(loss(student, teacher), student, create_graph=True)
        torch.autograd.grad(first.square().sum(), student)


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


# ---------------------------------------------------------------------------------------------- published numbers


def ickd_embedding(peer):
    module = relations.ICKDLoss(6, 10, convention="published").double()
    module.embedding.weight.data = peer["p.conv2d.weight"]
    module.normalisation.weight.data = peer["p.l2norm.weight"]
    module.normalisation.bias.data = peer["p.l2norm.bias"]
    names = "conv2d.weight", "l2norm.weight", "l2norm.bias"
    return module(peer.students, peer.teachers), zip(names, module.parameters(), strict=True)


def cc_embedding(peer):
    module = relations.CCLoss(10, 14, 16, kernel="neighbour").double()
    for index, linear in enumerate(module.embeddings):
        linear.weight.data, linear.bias.data = (peer[f"p.{index}.linear.{x}"] for x in ("weight", "bias"))
    names = [f"{i}.linear.{x}" for i in range(2) for x in ("weight", "bias")]
    return module(peer.students, peer.teachers), zip(names, module.parameters(), strict=True)


def time_and_frame_similarity(peer):
    """I2RF-TFCKD: row_weights are an attention over teacher layers, of queries and keys of raw Gram matrices.

    Its frame term is summed, not averaged, over T frames and divided by B once more: T / B times ours.
    """
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
    return total, ()


PUBLISHED = {
    "md__SP_eq": (r.sp_loss, {}),
    "rep__SP_s_larger_t_square": (r.sp_loss, {}),
    "td__SPKD_batchmean_both_nonsquare_mismatch": (r.sp_loss, {"normalize": "l1"}),
    "md__PKT_vec": (r.pkt_loss, {"convention": "published"}),
    "td__PKT_vec": (r.pkt_loss, {"convention": "published"}),
    "rep__PKT_flat_map": (r.pkt_loss, {"convention": "published"}),
    # SemCKD's distance of a sample to itself is rounding noise under a root: its own numbers are good to 1e-9.
    "sem__HKD_3layers": (r.hkd_loss, {"convention": "published", "eps": 1e-14, "weights": [100, 1, 1]}, 1e-9),
    "md__RKD_vec": (r.rkd_loss, {"convention": "published"}),
    "rep__RKD_vec": (r.rkd_loss, {"convention": "published"}),
    "rep__RKD_flat_map": (r.rkd_loss, {"convention": "published"}),
    "sem__IRG_vec_no_transform": (r.irg_loss, {}),
    "td__CCKD_bilinear": (r.cc_loss, {"kernel": "linear", "normalize": False, "squared": False}),
    "td__CCKD_gaussian": (r.cc_loss, {"kernel": "gaussian", "normalize": False, "squared": False}),
    "rep__NST_eq": (r.nst_loss, {}),
    "rep__NST_s_square_t_larger": (r.nst_loss, {}),
    "md__NST_3layers": (r.nst_loss, {"weights": [1, 1, 1]}),
    "rep__FSP_2layers_square_pool": (r.fsp_loss, {"distance": "mean"}),
    "td__FSP_maxpool": (r.fsp_loss, {"pooling": "max", "distance": "columns"}),
    "td__ChSim_other_TF": (r.ickd_loss, {"convention": "published"}),
    "td__Affinity_mean": (r.affinity_loss, {}),
    "td__ChSim_embed": ickd_embedding,
    "rep__CC_embed": cc_embedding,
    "tfckd__TFCKD_1s_2t": time_and_frame_similarity,
}
DIFFERS = {
    "rep__SP_edge_zero_samples": "the row of a silent sample has no gradient; published: divided by 1e-12, 1e10",
    "rep__RKD_edge_batch1": "one sample has no relations: 0; published: the mean over no pairs, NaN",
}
NOT_APPLICABLE = {
    name: "KDSVD is left out: it depends on the arbitrary signs of a singular value decomposition"
    for name in ("md__KDSVD_k1_nonsquare", "rep__KDSVD_k1_nonsquare")
}


class TestPublished:
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
        for convention in ("paper", "published"):
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
                for name in ("paper", "published")
            )
            assert paper[0] == pytest.approx(published[0] * size / (size - 1))
            assert paper[1] == pytest.approx(published[1] * size**2 / (size - 1) / (size - 2))

    def test_ickd_is_a_mean_over_the_batch(self):
        """Published: over B^2 although only one sum runs over the batch."""
        peer = Vectors("td__ChSim_other_TF")
        assert relations.ickd_loss(peer.students, peer.teachers).item() == pytest.approx(4 * peer["loss"].item())


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
    (lambda: r.nst_loss(S, T, bandwidth=0.0), ValueError, ["bandwidth", "positive number", "0.0"]),
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
