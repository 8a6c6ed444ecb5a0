"""Every loss of the library: what it computes, from which paper, by which op, and what it needs. One entry per loss."""

from __future__ import annotations

import inspect
from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal, NamedTuple

from torch import nn

from . import abc, afd, attention, hints, relations, response, semckd
from .common.modules import option_names


class Needs(NamedTuple):
    """What a loss wants besides its options; `build` gives the module what belongs to its construction.

    layers         "pairs": as many student as teacher layers. "any": any number of either. "chain": at least two pairs.
    channels       what the module's `student_channels` and `teacher_channels` are: "" it has none, "layers" a number
                   per layer, "pair" two numbers: it serves one pair of layers.
    spatial_axes   the module is told how many axes follow the channels.
    margins        the module is told the teacher's margins (`hints.margins`).
    group          relations within a batch: `group=`, a process group, joins the parts of a batch.
    labels, clean  forward's third argument: class labels, the clean signal.
    heads          forward's third and fourth argument: the weights of the student's and the teacher's output layer.
    """

    layers: Literal["pairs", "any", "chain"] = "pairs"
    channels: Literal["", "layers", "pair"] = ""
    spatial_axes: bool = False
    margins: bool = False
    group: bool = False
    labels: bool = False
    clean: bool = False
    heads: bool = False


@dataclass(frozen=True)
class Entry:
    """A loss.

    name         what it is called in tests, benchmarks and documentation.
    function     functional form; None where all of it is learned.
    module       nn.Module form.
    inputs       "features", "logits", "spectra", "waveforms", or "hidden": the inputs of output layers.
    op           the ops that carry it, as they run: "tap, compress"; "" if PyTorch does.
    needs        what it wants besides its options.
    learned      its learned parts; "" if there are none.
    formula      in one line.
    paper        authors, venue and year.
    reproduces   which published code, by which option.
    """

    name: str
    function: Callable | None
    module: type[nn.Module]
    inputs: Literal["features", "logits", "spectra", "waveforms", "hidden"] = "features"
    op: str = ""
    needs: Needs = Needs()
    learned: str = ""
    formula: str = ""
    paper: str = ""
    reproduces: str = ""

    def options(self) -> list[str]:
        """The names of what can be chosen when the module is made, beside what `needs` says."""
        parameters = inspect.signature(self.module.__init__).parameters.values()
        names = [x.name for x in parameters if x.kind in (x.POSITIONAL_OR_KEYWORD, x.KEYWORD_ONLY)]
        if self.function and any(x.kind is x.VAR_KEYWORD for x in parameters):  # the function's
            names += option_names(self.function)
        found = {"self", "student_channels", "teacher_channels", "margins", "group"}
        return [name for name in dict.fromkeys(names) if name not in found]


ENTRIES = (
    Entry(
        "abc", abc.abc_loss, abc.ABCLoss, op="tap, compress", learned="queries, keys, layer embeddings (optional)",
        needs=Needs(layers="any", channels="layers"),
        formula="sum_i w_i ||a_i - sum_j alpha_ij a_j||^2, a normalised attention maps, alpha = softmax_j of scores",
        paper="ABC-KD, arXiv 2305.16665 (our reading of the abstract)",
        reproduces="AT.code (RepDistiller, mdistiller, torchdistill): mask= to one teacher layer, over positions",
    ),
    Entry(
        "at", attention.at_loss, attention.ATLoss, op="tap, compress",
        formula="||a_s - a_t||^2, a = mean_c |x|^r scaled to norm 1; views over time, bands and channels on request",
        paper="Zagoruyko and Komodakis, ICLR 2017; views: arXiv 2208.10367 (our reading of the abstract)",
        reproduces="RepDistiller, mdistiller, torchdistill 'code': distance='mean', equal sizes; 'paper': 'norm'",
    ),
    Entry(
        "afd", afd.afd_loss, afd.AFDLoss, op="tap, compress", learned="keys, queries, layer embeddings",
        needs=Needs(layers="any", channels="layers"),
        formula="sum_ij alpha_ij ||v_ij - w_j||^2 / m, v, w energy maps scaled to norm 1, alpha = softmax_i of scores",
        paper="Ji, Heo and Park, AAAI 2021",
        reproduces="clovaai/attention-feature-distillation: distance='mean', weights=[1, ...]",
    ),
    Entry(
        "semckd", semckd.semckd_loss, semckd.SemCKDLoss, op="project, tap, pointwise",
        needs=Needs(layers="any", channels="layers", spatial_axes=True),
        learned="queries, keys, n m projections",
        formula="sum_i w_i sum_j alpha_ij mean (p_ij(s_i) - t_j)^2, alpha = softmax_j q_i.k_j",
        paper="Chen et al., AAAI 2021",
        reproduces="SemCKD: regressor='convolutions', batch_size=B, dim=B // 4",
    ),
    Entry(
        "sp", relations.sp_loss, relations.SPLoss, op="gram",
        needs=Needs(group=True),
        formula="||R_s - R_t||_F^2 / B^2, R the rows of X X^T scaled to norm 1",
        paper="Tung and Mori, ICCV 2019",
        reproduces="RepDistiller, mdistiller, SemCKD; torchdistill: normalize='l1'",
    ),
    Entry(
        "pkt", relations.pkt_loss, relations.PKTLoss, op="gram",
        needs=Needs(group=True),
        formula="mean_i KL(q_i || p_i), rows of (cos + 1) / 2 between samples scaled to sum 1",
        paper="Passalis and Tefas, ECCV 2018",
        reproduces="RepDistiller, mdistiller, torchdistill, SemCKD: convention='published'",
    ),
    Entry(
        "hkd", relations.hkd_loss, relations.HKDLoss, op="gram",
        needs=Needs(group=True),
        formula="Jeffreys divergence of rows of (cos + 1) / 2 and of 1 / (1 + d), summed",
        paper="Passalis, Tzelepi and Tefas, CVPR 2020",
        reproduces="SemCKD: convention='published', eps=0, weights=[100, 1, ...]",
    ),
    Entry(
        "rkd", relations.rkd_loss, relations.RKDLoss, op="gram",
        needs=Needs(group=True),
        formula="25 mean h(D_s - D_t) + 50 mean h(psi_s - psi_t), D distances over their mean, psi angles, h smooth L1",
        paper="Park et al., CVPR 2019",
        reproduces="RepDistiller, mdistiller, torchdistill, SemCKD: convention='published' (squared=, weights of both)",
    ),
    Entry(
        "irg", relations.irg_loss, relations.IRGLoss, op="gram",
        needs=Needs(group=True),
        formula="mean (E_s - E_t)^2, E squared distances over their maximum, and of their change between layers",
        paper="Liu et al., CVPR 2019",
        reproduces="SemCKD: vertex_weight=1 where shapes agree",
    ),
    Entry(
        "cc", relations.cc_loss, relations.CCLoss, op="gram", learned="two linear embeddings (optional)",
        needs=Needs(group=True),
        formula="||K_s - K_t||_F^2 / B^2, K = e^(-2 gamma) sum_p (2 gamma cos)^p / p!",
        paper="Peng et al., ICCV 2019",
        reproduces="torchdistill: normalize=False, squared=False; RepDistiller, SemCKD: kernel='neighbour'",
    ),
    Entry(
        "nst", relations.nst_loss, relations.NSTLoss, op="gram",
        formula="mean k(u_t, u_t) + mean k(u_s, u_s) - 2 mean k(u_s, u_t), u channels' maps, k(x, y) = (x.y)^2",
        paper="Huang and Wang, arXiv 1707.01219, 2017",
        reproduces="RepDistiller; mdistiller: weights=[1, ...]",
    ),
    Entry(
        "fsp", relations.fsp_loss, relations.FSPLoss,
        needs=Needs(layers="chain"),
        formula="sum (G_s - G_t)^2, G = X_i X_(i+1)^T / N",
        paper="Yim et al., CVPR 2017",
        reproduces="RepDistiller: distance='mean'; torchdistill: pooling='max', distance='columns'; weights=[1, ...]",
    ),
    Entry(
        "ickd", relations.ickd_loss, relations.ICKDLoss, op="gram", learned="convolution and batch norm (optional)",
        needs=Needs(channels="pair", spatial_axes=True),
        formula="||R_s - R_t||_F^2 / C per sample, R the rows of X X^T (C x C) scaled to norm 1",
        paper="Liu et al., ICCV 2021",
        reproduces="torchdistill: convention='published'",
    ),
    Entry(
        "affinity", relations.affinity_loss, relations.AffinityLoss, op="dots",
        formula="sum_c ||u_s u_s^T - u_t u_t^T||_F / N, u a channel's map scaled to norm 1",
        paper="He et al., CVPR 2019",
        reproduces="torchdistill",
    ),
    Entry(
        "time_similarity", relations.time_similarity_loss, relations.TimeSimilarityLoss, op="gram",
        formula="Jeffreys divergence of rows of (cos + 1) / 2 between the frames of a sample",
        paper="I2RF-TFCKD ('time' in its code)",
        reproduces="I2RF-TFCKD: norm_eps=1e-6, row_weights= its attention",
    ),
    Entry(
        "frame_similarity", relations.frame_similarity_loss, relations.FrameSimilarityLoss, op="gram",
        needs=Needs(group=True),
        formula="Jeffreys divergence of rows of (cos + 1) / 2 between the samples at each frame",
        paper="I2RF-TFCKD ('freq' in its code)",
        reproduces="I2RF-TFCKD: norm_eps=1e-6, row_weights= its attention, times T / B",
    ),
    Entry(
        "gram", relations.gram_loss, relations.GramLoss, op="gram",
        formula="mean over rows of ||R_s - R_t||^2, R the rows of X X^T (T x T) scaled to norm 1",
        paper="arXiv 2309.08144 (our reading of the abstract)",
    ),
    Entry(
        "vid", hints.vid_loss, hints.VIDLoss, op="pointwise", learned="three linear maps, a variance per channel",
        needs=Needs(channels="layers"),
        formula="mean of ((s - t)^2 / v_c + log v_c) / 2, v = log(1 + e^scale) + eps",
        paper="Ahn et al., CVPR 2019",
        reproduces="RepDistiller, mdistiller, torchdistill, SemCKD",
    ),
    Entry(
        "pad", hints.pad_loss, hints.PADLoss, op="pointwise", learned="linear map and batch norm: log variances",
        needs=Needs(channels="layers"),
        formula="mean of (t - s)^2 / (eps + e^l) + l",
        paper="Zhang et al., ECCV 2020",
        reproduces="torchdistill",
    ),
    Entry(
        "srd", hints.srd_loss, hints.SRDLoss, op="pointwise", learned="linear map, normalisations without parameters",
        needs=Needs(channels="layers"),
        formula="log(1 + mean |s - t|^p / 1e-8), p = 4",
        paper="Miles and Mikolajczyk, AAAI 2024",
        reproduces="torchdistill: convention='published', weights=[2], without its divergence of logits",
    ),
    Entry(
        "ab", hints.ab_loss, hints.ABLoss, op="pointwise", learned="linear map and batch norm (optional)",
        needs=Needs(channels="layers"),
        formula="mean of max(0, m - s)^2 where t > 0, max(0, s + m)^2 elsewhere",
        paper="Heo et al., AAAI 2019",
        reproduces="torchdistill: reduction='batchmean'; RepDistiller: that, weights=[2^(i - n + 1) 3 / 1000, ...]",
    ),
    Entry(
        "ofd", hints.ofd_loss, hints.OFDLoss, op="pointwise", learned="linear map and batch norm",
        needs=Needs(channels="layers", margins=True),
        formula="mean of (s - t')^2 where t > 0 or s > t', t' = max(t, m_c)",
        paper="Heo et al., ICCV 2019",
        reproduces="mdistiller: reduction='batchmean', weights=[2^-(n - i - 1), ...]",
    ),
    Entry(
        "spectral", response.spectral_loss, response.SpectralLoss, inputs="spectra", op="spectral",
        formula="0.7 mean (m_s^c - m_t^c)^2 + 0.3 mean |s m_s^(c-1) - t m_t^(c-1)|^2, m = |z|, c = 0.3",
        paper="as in GTCRN, Rong et al., ICASSP 2024",
        reproduces="gtcrn (its spectral terms): magnitude_weight=70, complex_weight=30",
    ),
    Entry(
        "si_snr", response.si_snr_loss, response.SiSNRLoss, inputs="waveforms", op="dots",
        formula="-10 log10(|y|^2 / |s - y|^2), y the projection of s onto t, means taken off",
        paper="Le Roux et al., ICASSP 2019",
        reproduces="gtcrn (its waveform term): zero_mean=False, factor=1",
    ),
    Entry(
        "dispatch", response.dispatch_loss, response.DispatchLoss, inputs="waveforms",
        needs=Needs(clean=True),
        formula="mean (|S| - |T|)^2 over the patches where |S| is farther from the clean signal than |T| by most",
        paper="DISPatch, its repository rlaehghks5/DISPATCH",
        reproduces="DISPATCH: convention='published'",
    ),
    Entry(
        "hint", hints.hint_loss, hints.HintLoss, op="pointwise, project",
        needs=Needs(channels="layers"),
        learned="linear map (and batch norm, and ReLU) over channels, or a module (optional)",
        formula="mean of (W s + b - t)^2",
        paper="Romero et al., ICLR 2015",
        reproduces="RepDistiller, mdistiller: regressor='relu', or ConvReg.between(...) where sizes differ",
    ),
    Entry(
        "review", hints.review_loss, hints.ReviewLoss, op="pyramid",
        learned="attention-based fusion of layers (optional)",
        needs=Needs(channels="layers", spatial_axes=True),
        formula="[mean d^2 + sum_l w_l mean pool_l(d)^2] / (1 + sum_l w_l), d = s - t, l = 4, 2, 1, w = 1/2, 1/4, 1/8",
        paper="Chen et al., CVPR 2021",
        reproduces="ReviewKD, mdistiller, torchdistill: fit='frames', weights=[1, ...]; I2RF-TFCKD: norm='instance'",
    ),
    Entry(
        "ft", hints.ft_loss, hints.FTLoss, op="tap", learned="translators, paraphrasers (optional)",
        needs=Needs(channels="layers", spatial_axes=True),
        formula="mean |Q_s - Q_t|, Q the attention map of the factors scaled to norm 1",
        paper="Kim et al., NeurIPS 2018",
        reproduces="RepDistiller; torchdistill (FTLoss, KTALoss): normalize='factor'",
    ),
    Entry(
        "cwd", hints.cwd_loss, hints.CWDLoss, op="divergence",
        formula="tau^2 mean_c KL(p_c || q_c), p_c, q_c the softmax of a channel over positions, of X / tau",
        paper="Shu et al., ICCV 2021",
        reproduces="mmrazor (ChannelWiseDivergence)",
    ),
    Entry(
        "pkd", hints.pkd_loss, hints.PKDLoss, op="dots",
        needs=Needs(group=True),
        formula="mean_c (1 - rho_c), rho_c Pearson's correlation of a channel over all positions of the batch",
        paper="Cao et al., NeurIPS 2022",
        reproduces="mmrazor (PKDLoss): convention='published', weights=[1, ...]",
    ),
    Entry(
        "kl", response.kl_loss, response.KLLoss, inputs="logits", op="divergence",
        formula="tau^2 mean KL(p || q), or KL(q || p); p, q = softmax of teacher's and student's logits / tau",
        paper="Hinton, Vinyals and Dean, arXiv 1503.02531, 2015; standardize: Sun et al., CVPR 2024",
        reproduces="RepDistiller, mdistiller, SemCKD (maps: reduction='batchmean'); torchdistill's KDLoss with cross "
        "entropy, LogitStdKDLoss: standardize=True, SKDInstanceLoss: weights=[1 / tau^2]",
    ),
    Entry(
        "jsd", response.jsd_loss, response.JSDLoss, inputs="logits", op="divergence",
        formula="tau^2 mean (beta KL(p || m) + (1 - beta) KL(q || m)), m = beta p + (1 - beta) q",
        paper="Agarwal et al., ICLR 2024",
        reproduces="Liger-Kernel: convention='published', weights=[1 / tau^2]",
    ),
    Entry(
        "linear_divergence", response.linear_divergence_loss, response.LinearDivergenceLoss, inputs="hidden",
        op="divergence",
        needs=Needs(heads=True),
        formula="tau^2 mean KL(p || q), KL(q || p) or jsd's, of logits W x that are never there all at once",
        paper="as kl and jsd; in chunks: Hsu et al., Liger Kernel, arXiv 2410.10989",
        reproduces="Liger-Kernel, TRL (fused linear JSD): kind='jsd', divided by tau^2",
    ),
    Entry(
        "dkd", response.dkd_loss, response.DKDLoss, inputs="logits", op="divergence",
        needs=Needs(labels=True),
        formula="alpha tau^2 KL((p_y, 1 - p_y) || (q_y, 1 - q_y)) + beta tau^2 KL(p without y || q without y)",
        paper="Zhao et al., CVPR 2022",
        reproduces="mdistiller (its warm-up is the caller's)",
    ),
    Entry(
        "dist", response.dist_loss, response.DISTLoss, inputs="logits", op="correlation",
        formula="tau^2 (beta (1 - mean_rows rho(q, p)) + gamma (1 - mean_classes rho(q, p))), rho Pearson's",
        paper="Huang et al., NeurIPS 2022",
        reproduces="torchdistill",
    ),
)  # fmt: skip


def table() -> tuple[Entry, ...]:
    """All losses."""
    return ENTRIES


def entry_of(name: str) -> Entry:
    """The entry of that name. Raises ValueError."""
    for entry in ENTRIES:
        if entry.name == name:
            return entry
    raise ValueError(f"name: expected one of {', '.join(entry.name for entry in ENTRIES)}, got {name!r}")
