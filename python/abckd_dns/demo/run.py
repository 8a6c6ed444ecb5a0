"""The command `demo`: everything this package does, once, on real speech, in minutes on two CPU cores."""

from __future__ import annotations

import os
import shutil
import time

import torch

from ..constants import SAMPLE_RATE
from ..data.audio import read_speech
from ..data.mixtures import Mixtures
from ..data.writing import write
from ..errors import InputError
from ..evaluation.compare import evaluate
from ..evaluation.denoise import denoise_file
from ..network.load import load_network
from ..options import DemoOptions, DistillOptions, EvaluateOptions, MixtureOptions, TrainOptions
from ..training.distillation import distill
from ..training.supervised import train
from .data import fetch_demo_data
from .spectrogram import spectrogram_figure


def demo(options: DemoOptions) -> None:
    start = time.monotonic()
    # Threads of one operation wait for each other: where another process takes one of two cores, two threads
    # are several times slower than one. On an idle machine one thread costs a third of the speed.
    torch.set_num_threads(max(1, (os.cpu_count() or 1) // 2))
    training, test = _data(options)
    out = options.out
    # Measured: many small steps at a high learning rate gain most within minutes.
    shared = dict(
        clean=training.clean,
        noise=training.noise,
        batch_size=8,
        segment_seconds=1.0,
        lr=5e-3,
        seed=options.seed,
    )
    teacher, alone, distilled = (out / name for name in ("teacher", "student_alone", "student_distilled"))

    train(TrainOptions(out=teacher, preset="teacher", steps=options.teacher_steps, **shared))
    for folder, loss in ((alone, "none"), (distilled, "abc")):
        distill(DistillOptions(out=folder, teacher=str(teacher), loss=(loss,), steps=options.student_steps, **shared))

    checkpoints = tuple(map(str, (teacher, alone, distilled)))
    comparison = EvaluateOptions(
        clean=test.clean,
        noise=test.noise,
        checkpoints=checkpoints,
        baseline=alone.name,
        count=options.count,
        csv=out / "evaluation.csv",
    )
    evaluate(comparison)

    shown = MixtureOptions(clean=test.clean, noise=test.noise, snr=(0, 0), level=(-25, -25))
    example = Mixtures(shown, length=6 * SAMPLE_RATE, count=1, seed=2)[0]
    noisy_file, enhanced_file = out / "noisy.wav", out / "enhanced.wav"
    write(noisy_file, example["noisy"], SAMPLE_RATE)
    denoise_file(load_network(str(distilled), "--out").eval(), noisy_file, enhanced_file)
    for file, title in ((noisy_file, "noisy"), (enhanced_file, "denoised by the distilled student")):
        spectrogram_figure(read_speech(file), title).savefig(file.with_suffix(".png"), dpi=120)
    shutil.copy(distilled / "attention.png", out / "attention.png")
    print(_SUMMARY.format(out=out.resolve(), minutes=(time.monotonic() - start) / 60))


_SUMMARY = """
Done in {minutes:.1f} minutes. Results in {out}:
  evaluation.csv, .md, evaluation_files.csv  the tables above, and the value of every mixture
  noisy.wav, enhanced.wav                    one file, before and after the distilled student
  noisy.png, enhanced.png                    their spectrograms
  attention.png                              which teacher layers each student layer learned from
  teacher/ student_alone/ student_distilled/ checkpoints, configurations, TensorBoard logs"""


def _data(options: DemoOptions) -> tuple[MixtureOptions, MixtureOptions]:
    """Where the mixtures for training and for the comparison come from."""
    if (options.clean is None) != (options.noise is None):
        raise InputError("--clean and --noise: give both, or neither to use the demo's own data")
    if options.clean is None:
        folder = fetch_demo_data()
        print(f"speech and noise: {folder} (sources and licences: manifest.json there)")
        parts = (folder / "train", folder / "test")
        return tuple(MixtureOptions(clean=part / "speech", noise=part / "noise") for part in parts)
    if options.test_clean is None or options.test_noise is None:
        print("note: without --test-clean and --test-noise the comparison uses recordings of the training")
    training = MixtureOptions(clean=options.clean, noise=options.noise)
    test = MixtureOptions(clean=options.test_clean or options.clean, noise=options.test_noise or options.noise)
    return training, test
