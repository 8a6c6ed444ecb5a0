"""Losses on waveforms and spectra: rows, and what is theirs alone."""

import cases
import naive_signals as naive
import pytest
import torch
from suite import *  # noqa: F403 - the tests that every loss passes
from suite import Loss, gradients

from abckd_kernels.losses import SpectralLoss, dispatch_loss, si_snr_loss, spectral_loss


def normal(*shape):
    """(student, teacher) of normal numbers."""

    def make(dtype, batch, seed):
        generator = torch.Generator().manual_seed(seed)
        student, teacher = (torch.randn((batch, *shape), generator=generator, dtype=torch.float64) for _ in range(2))
        return (student + 0.5 * teacher).to(dtype), teacher.to(dtype)

    return make


def loud(*shape):
    """As `normal`, of magnitudes, which are positive."""

    def make(dtype, batch, seed):
        return tuple(x.abs() + 0.1 for x in normal(*shape)(dtype, batch, seed))

    return make


def half_as_loud(student, teacher):
    """A clean signal to go with any other two."""
    return {"clean": 0.5 * teacher.detach()}


AT_SILENCE = {"test_silence": "a silent bin's gradient is 16000 times its error by definition; test_spectral_silence"}
SPECTRA = {"inputs": normal(6, 5, 2), "large": normal(64, 200, 2), "invariant": "batch", "half_scale": 20}
# The error of a ratio near 1 in the logarithm: of the loss itself, which may be near zero.
WAVEFORMS = {"inputs": normal(40), "large": normal(16000), "time": 1, "nonnegative": False, "zero_at_equality": False,
             "invariant": "scale batch", "half_scale": 16, "precision": 4e-5}  # fmt: skip
SPECTROGRAMS = {"inputs": loud(7, 5), "large": loud(64, 200), "extra": half_as_loud, "pairs": False,
                "invariant": "batch", "half_scale": 24}  # fmt: skip
LOSSES = [
    Loss("spectral", spectral_loss, naive.spectral, excused=AT_SILENCE, **SPECTRA),
    Loss("spectral", spectral_loss, naive.spectral, excused=AT_SILENCE, **SPECTRA,
         options={"magnitude_weight": 70.0, "complex_weight": 30.0}),
    Loss("spectral", spectral_loss, naive.spectral, **SPECTRA, options={"power": 0.5, "complex_weight": 0.0}),
    Loss("spectral", spectral_loss, naive.spectral, options={"power": 1.0, "eps": 1e-8},
         **SPECTRA | {"inputs": normal(2, 3, 5, 2), "large": normal(2, 32, 200, 2), "time": 3}),
    Loss("si_snr", si_snr_loss, naive.si_snr, **WAVEFORMS),
    Loss("si_snr", si_snr_loss, naive.si_snr, options={"zero_mean": False, "factor": 1.0}, **WAVEFORMS),
    Loss("si_snr", si_snr_loss, naive.si_snr, options={"eps": 1e-9},
         **WAVEFORMS | {"inputs": normal(2, 40), "large": normal(2, 8000), "time": 2}),
    Loss("dispatch", dispatch_loss, naive.dispatch, options={"patch_bands": 2, "share": 0.4}, **SPECTROGRAMS),
    Loss("dispatch", dispatch_loss, naive.dispatch, options={"patch_bands": 16, "share": 1.0}, **SPECTROGRAMS),
    Loss("dispatch", dispatch_loss, naive.dispatch, padded=False, **SPECTROGRAMS,
         options={"patch_bands": 3, "share": 0.3, "convention": "published"}),
    Loss("dispatch", dispatch_loss, naive.dispatch_of_waveforms, extra=half_as_loud, inputs=normal(60),
         large=normal(16000), time=1, pairs=False, invariant="batch", half_scale=16,
         options={"patch_bands": 4, "share": 0.5, "n_fft": 16, "hop_length": 4}),
]  # fmt: skip


def published_hybrid(peer):
    window = torch.hann_window(512, dtype=torch.float64).sqrt()
    spectra = [torch.view_as_complex(x) for x in (peer.students[0], peer["t0"])]
    waveforms = [torch.istft(x, 512, 256, 512, window=window) for x in spectra]
    of_spectra = spectral_loss(*spectra, magnitude_weight=70, complex_weight=30)
    return of_spectra + si_snr_loss(*waveforms, zero_mean=False, factor=1), {}


def published_dispatch(patch_bands, share):
    def run(peer):
        options = {"patch_bands": patch_bands, "share": share, "convention": "published"}
        return dispatch_loss(peer.students, peer.teachers, [peer["x.y"]], **options), {}

    return run


PUBLISHED = {
    "gtcrn__HybridLoss": published_hybrid,
    "dispatch__DISPatch_sb4_k0.3": published_dispatch(4, 0.3),
    "dispatch__DISPatch_sb64_k0.5": published_dispatch(64, 0.5),
}


# ---------------------------------------------------------------------------------------------- spectra


@pytest.mark.parametrize("dtype", [*cases.DTYPES, torch.complex64, torch.complex128], ids=cases.name_of)
@pytest.mark.parametrize("who", ["student", "teacher", "both", "frame"])
def test_spectral_silence(who, dtype):
    real = dtype.to_real() if dtype.is_complex else dtype
    student, teacher = (torch.view_as_complex(x) if dtype.is_complex else x for x in normal(6, 5, 2)(real, 3, 0))
    for name, x in (("student", student), ("teacher", teacher)):
        if who in (name, "both"):
            x[1] = 0
        elif who == "frame":
            x[:, :, 1] = 0
    student.requires_grad_()
    value = spectral_loss(student, teacher)
    (grad,) = gradients(value, student)
    assert value.isfinite() and grad.isfinite().all()


def test_complex_spectra_of_stft_and_pairs_are_one():
    student, teacher = normal(400)(torch.float32, 2, 0)
    stft = [torch.stft(x, 64, 16, window=torch.hann_window(64), return_complex=True) for x in (student, teacher)]
    pairs = [torch.view_as_real(x) for x in stft]
    assert torch.equal(spectral_loss(*stft), spectral_loss(*pairs))
    assert spectral_loss(*stft).dtype == torch.float32
    assert spectral_loss(*(x.to(torch.complex128) for x in stft)).dtype == torch.float64


def test_spectra_of_several_resolutions():
    student, teacher = normal(400)(torch.float64, 2, 0)
    resolutions = [
        [
            torch.stft(x, n, n // 4, window=torch.hann_window(n).double(), return_complex=True)
            for x in (student, teacher)
        ]
        for n in (32, 64)
    ]
    students, teachers = zip(*resolutions, strict=True)
    expected = sum(w * spectral_loss(*pair) for w, pair in zip((2, 3), resolutions, strict=True))
    torch.testing.assert_close(spectral_loss(students, teachers, weights=[2, 3]), expected)


# ---------------------------------------------------------------------------------------------- waveforms


def test_si_snr_in_decibels():
    """A signal and an orthogonal noise of a tenth of its amplitude: 20 dB."""
    time = torch.arange(800, dtype=torch.float64) * 2 * torch.pi / 100
    teacher, noise = time.sin()[None], time.cos()[None]
    assert si_snr_loss(3 * (teacher + 0.1 * noise) + 5, teacher - 1).item() == pytest.approx(-20, abs=1e-6)


def test_si_snr_does_not_see_an_offset():
    student, teacher = normal(500)(torch.float32, 2, 0)
    expected = si_snr_loss(student.double() + 30, teacher.double() - 20)
    torch.testing.assert_close(si_snr_loss(student + 30, teacher - 20).double(), expected, rtol=1e-3, atol=1e-3)


def test_si_snr_of_equal_waveforms_is_large_and_finite():
    student, _ = normal(500)(torch.float32, 2, 0)
    student.requires_grad_()
    value = si_snr_loss(student, student.detach().clone())
    assert value < -80 and gradients(value, student)[0].isfinite().all()


# ---------------------------------------------------------------------------------------------- patches


def test_dispatch_lengths():
    """A padded utterance gives what it gives alone."""
    student, teacher = normal(100)(torch.float64, 1, 0)
    options = {"patch_bands": 4, "n_fft": 16, "hop_length": 4}
    alone = dispatch_loss(student, teacher, teacher / 2, **options)
    padded = [torch.nn.functional.pad(x, (0, 33), value=float("nan")) for x in (student, teacher, teacher / 2)]
    padded[0].requires_grad_()
    value = dispatch_loss(*padded, **options, lengths=[100])
    torch.testing.assert_close(value, alone)
    (grad,) = gradients(value, padded[0])
    assert grad.isfinite().all() and (grad[:, 100:] == 0).all() and grad.abs().max() > 0


def test_dispatch_lengths_of_the_published_form():
    student, teacher = loud(6, 9)(torch.float64, 2, 0)
    options = {"patch_bands": 4, "share": 0.3, "convention": "published"}
    value = dispatch_loss(student, teacher, teacher / 2, **options, lengths=[5, 9])
    parts = [
        dispatch_loss(*(x[b : b + 1, :, :n] for x in (student, teacher, teacher / 2)), **options)
        for b, n in ((0, 5), (1, 9))
    ]
    torch.testing.assert_close(value, torch.stack(parts).mean())


def test_dispatch_leaves_out_what_the_student_does_better():
    """Published code selects share of all patches even so."""
    teacher = torch.ones(1, 4, 5)
    student, clean = teacher.clone(), torch.zeros(1, 4, 5)
    student[..., 0], student[..., 1:] = 3, 0.5  # worse than the teacher in frame 0 only
    student.requires_grad_()
    value = dispatch_loss(student, teacher, clean, patch_bands=4, share=0.6)
    assert value.item() == 4  # (3 - 1)^2
    (grad,) = gradients(value, student)
    assert (grad[..., 0] == 1).all() and (grad[..., 1:] == 0).all()
    published = dispatch_loss(student, teacher, clean, patch_bands=4, share=0.6, convention="published")
    assert published.item() == pytest.approx((4 + 4 * 0.25) / 3)  # all of the ties
    assert dispatch_loss(teacher, student.detach() * 0 + 9, clean, patch_bands=4) == 0


def test_dispatch_counts_no_padding_bins():
    student, teacher = torch.full((1, 5, 3), 3.0), torch.full((1, 5, 3), 1.0)
    clean = torch.zeros(1, 5, 3)
    options = {"patch_bands": 4, "share": 1.0}
    assert dispatch_loss(student, teacher, clean, **options) == 4
    assert dispatch_loss(student, teacher, clean, **options, convention="published") == pytest.approx((4 + 1) / 2)


def test_dispatch_of_spectra_is_that_of_their_magnitudes():
    student, teacher = (torch.view_as_complex(x) for x in normal(6, 9, 2)(torch.float64, 2, 0))
    clean = teacher * 0.5j
    torch.testing.assert_close(
        dispatch_loss(student, teacher, clean, patch_bands=4),
        dispatch_loss(student.abs(), teacher.abs(), clean.abs(), patch_bands=4),
    )


# ---------------------------------------------------------------------------------------------- errors


X, W = torch.zeros(2, 3, 4, dtype=torch.complex64), torch.zeros(2, 600)
WRONG = {
    "numbers": (lambda: spectral_loss(1, X), TypeError, "student: .*1"),
    "no spectra": (lambda: spectral_loss([], []), TypeError, "student: .*non-empty"),
    "counts": (lambda: spectral_loss([X, X], [X]), ValueError, "teacher: expected 2"),
    "shapes": (lambda: spectral_loss([X, X], [X, X[:, :2]]), ValueError, r"teacher\[1\]: expected shape \(2, 3, 4\)"),
    "batches": (lambda: spectral_loss([X, X[:1]], [X, X[:1]]), ValueError, r"student\[1\]: expected batch size 2"),
    "weight": (lambda: spectral_loss(X, X, complex_weight=-1), ValueError, "complex_weight: .*-1"),
    "weights": (lambda: spectral_loss(X, X, weights=[1, 2]), ValueError, "weights"),
    "option": (lambda: SpectralLoss(tau=1), TypeError, "tau"),
    "integers": (lambda: si_snr_loss(W.long(), W), TypeError, "student: .*int64"),
    "axes": (lambda: si_snr_loss(W[0], W[0]), ValueError, r"student: .*\(B, samples\)"),
    "eps": (lambda: si_snr_loss(W, W, eps=0.0), ValueError, "eps: .*positive"),
    "lengths": (lambda: si_snr_loss(W, W, lengths=[1]), ValueError, r"lengths: .*\(2,\)"),
    "share": (lambda: dispatch_loss(W, W, W, share=1.5), ValueError, "share: .*at most 1"),
    "patch_bands": (lambda: dispatch_loss(W, W, W, patch_bands=0), ValueError, "patch_bands: .*0"),
    "convention": (lambda: dispatch_loss(W, W, W, convention="mean"), ValueError, "convention: .*'mean'"),
    "clean": (lambda: dispatch_loss(W, W, W[:, :9]), ValueError, r"clean: expected shape \(2, 600\)"),
    "cleans": (lambda: dispatch_loss([W], [W], [W, W]), ValueError, "clean: expected number of signals 1"),
    "no clean": (lambda: dispatch_loss(W, W, None), TypeError, "clean"),
    "short": (lambda: dispatch_loss(*[W[:, :9]] * 3, convention="published"), ValueError, "student: .*reflect"),
}


@pytest.mark.parametrize("call, error, message", WRONG.values(), ids=WRONG)
def test_errors_name_the_argument(call, error, message):
    with pytest.raises(error, match=message):
        call()
