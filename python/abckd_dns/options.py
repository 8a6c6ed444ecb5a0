"""The options of every command: their names, types, defaults and ranges, for command lines, files and code alike.

An `Options` is whole or not at all: what is out of range raises InputError with a sentence that names the option, what
was expected and what came. Nothing here needs torch, so that an error of a command line comes at once.
"""

from __future__ import annotations

import os
import re
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Annotated, Any, Literal

import tyro
from pydantic import AfterValidator, BaseModel, BeforeValidator, ConfigDict, Field, PlainSerializer, ValidationError

from .constants import SAMPLE_RATE
from .errors import InputError

_EXPECTED = {
    "int_type": "a whole number",
    "float_type": "a number",
    "finite_number": "a finite number",
    "bool_type": "true or false",
    "string_type": "text in quotes",
    "path_type": "a path",
    "tuple_type": "a list",
    "dict_type": "a table",
    "model_type": "a table",
    "greater_than": "more than {gt:g}",
    "greater_than_equal": "at least {ge:g}",
    "less_than": "less than {lt:g}",
    "less_than_equal": "at most {le:g}",
    "too_short": "at least {min_length} in a list",
    "too_long": "at most {max_length} in a list",
    "literal_error": "{expected}",
}


def describe(error: ValidationError, name: Callable[[Sequence[str | int]], str]) -> str:
    """What is wrong, in a sentence per value; `name` makes of a place, such as ("snr", 0), what the user calls it."""
    sentences = []
    for fault in error.errors(include_url=False):
        place = fault["loc"]
        if fault["type"] == "missing" and isinstance(place[-1], int):  # a list that is too short
            fault |= {"type": "too_short", "ctx": {"min_length": place[-1] + 1}}
            place = place[:-1]
        sentences.append(f"{name(place)}{_describe(fault)}")
    return "; ".join(sentences)


def _describe(fault: dict[str, Any]) -> str:
    kind, context = fault["type"], fault.get("ctx", {})
    if kind == "missing":
        return " is missing"
    if kind == "extra_forbidden":
        return " is not a key that is known here"
    if kind == "value_error":  # of a validator of this package
        return f": {context['error']}"
    if kind in _EXPECTED:
        return f": expected {_EXPECTED[kind].format(**context)}, got {fault['input']!r}"
    return f": {fault['msg'][0].lower()}{fault['msg'][1:]}, got {fault['input']!r}"


class Table(BaseModel):
    """Values that are what they should be: text is no number, and an unknown name is an error."""

    model_config = ConfigDict(strict=True, frozen=True, extra="forbid", allow_inf_nan=False)


class Options(Table):
    """Of a command. Raises InputError, whose cause is pydantic's ValidationError."""

    def __init__(self, **values: Any) -> None:
        try:
            super().__init__(**values)
        except ValidationError as error:
            raise InputError(describe(error, _flag)) from error


def _flag(place: Sequence[str | int]) -> str:
    return f"--{str(place[0]).replace('_', '-')}"


def _ascending(bounds: tuple[float, float]) -> tuple[float, float]:
    low, high = bounds
    if low > high:
        raise ValueError(f"expected the lower bound first, got {low:g} {high:g}")
    return bounds


def _not_nan(value: float) -> float:
    if value != value:
        raise ValueError("expected a number, got nan")
    return value


def _one_or_more(losses: tuple[str, ...]) -> tuple[str, ...]:
    if not losses:
        raise ValueError("expected none, or one or more losses; got nothing")
    return losses


def _a_part(fraction: float) -> float:
    if not 0 < fraction < 1:
        raise ValueError(
            f"expected a number between 0 and 1, got {fraction:g}; for 0 leave out --noisy, for 1 give --label-free"
        )
    return fraction


def _share_of_pairs(fraction: float) -> float:
    if not 0 < fraction < 1:
        raise ValueError(f"expected a number between 0 and 1, got {fraction:g}; for 1 give --pairs alone")
    return fraction


AUGMENTATIONS = ("level", "clip", "band", "codec")
"""Those of this package; the functions are those of data.augment."""


def parse_augmentation(text: str) -> tuple[str, float]:
    """Name and probability of NAME or NAME=PROBABILITY. Raises ValueError."""
    name, equals, probability = text.partition("=")
    if name not in AUGMENTATIONS and not re.fullmatch(r"[A-Za-z_][\w.]*:[A-Za-z_]\w*", name):
        raise ValueError(f"expected {', '.join(AUGMENTATIONS)} or package.module:function, got {name!r}")
    try:
        value = float(probability) if equals else 0.2
    except ValueError:
        value = -1.0
    if not 0 < value <= 1:
        raise ValueError(f"expected a probability above 0 and at most 1 behind =, got {probability!r}")
    return name, value


def _augmentations(texts: tuple[str, ...]) -> tuple[str, ...]:
    for text in texts:
        parse_augmentation(text)
    return texts


def _table_file(path: Path) -> Path:
    if path.suffix == ".md":
        raise ValueError(f"{path} is where the Markdown would go; choose another suffix, as .csv")
    if path.is_dir():
        raise ValueError(f"expected a file, but {path} is a folder")
    return path


def _several(places: Any) -> Any:
    return (places,) if isinstance(places, str | Path) else places


def _at_least_one(places: tuple[Path, ...]) -> tuple[Path, ...]:
    if not places:
        raise ValueError("expected one or more folders; got nothing")
    return places


# What a file gives as text or as a list is taken as a path or as a tuple, but never as a number.
Place = Annotated[Path, Field(strict=False)]
# One place may be given alone, and is saved alone.
Places = Annotated[
    tuple[Annotated[Path, Field(strict=False)], ...],
    Field(strict=False),
    BeforeValidator(_several),
    AfterValidator(_at_least_one),
    PlainSerializer(lambda places: places[0] if len(places) == 1 else places),
]
Bounds = Annotated[tuple[float, float], Field(strict=False), AfterValidator(_ascending)]
Texts = Annotated[tuple[str, ...], Field(strict=False)]
Sides = Annotated[tuple[str, str], Field(strict=False)]
Positive = Annotated[float, Field(gt=0)]
NonNegative = Annotated[float, Field(ge=0)]
Limit = Annotated[float, Field(allow_inf_nan=True), AfterValidator(_not_nan)]
Count = Annotated[int, Field(ge=1)]
CountOrNone = Annotated[int, Field(ge=0)]
Seconds = Annotated[float, Field(ge=1 / SAMPLE_RATE)]


def samples(seconds: float) -> int:
    """The samples of so many seconds."""
    return round(seconds * SAMPLE_RATE)


class MixtureOptions(Options):
    """Where examples come from and how they are mixed."""

    clean: Places | None = None
    """Folders of clean speech: files of any format that soundfile or FFmpeg reads, of any sample rate (they are
    resampled to 16 kHz), or .tar shards of such, at any depth; or shards, or a range of them:
    speech-{000..099}.tar."""
    noise: Places | None = None
    """Folders of noise, or shards."""
    rirs: Places | None = None
    """Folders, or shards, of room impulse responses. Half of the speech then reverberates; of a response of several
    channels one is drawn."""
    rir_target: Literal["reverberant", "early"] = "reverberant"
    """What the target of speech that reverberates is: that speech, or its direct sound and the reflections of the first
    50 ms, so that the network learns to take reverberation away."""
    snr: Bounds = (-5.0, 15.0)
    """Range of the signal-to-noise ratio in dB."""
    level: Bounds = (-35.0, -15.0)
    """Range of the level of the noisy speech in dBFS."""
    min_speech_level: Limit = -45.0
    """Segments of speech below this level (dBFS) are rejected: the SNR would mean nothing."""
    min_noise_level: Limit = -55.0
    """Segments of noise below this level (dBFS) are rejected."""
    max_corrupt: NonNegative = 0.1
    """Fraction of unreadable files in a folder above which the run stops."""


class ExampleOptions(MixtureOptions):
    """What is learned from."""

    pairs: Places | None = None
    """Folders of noisy recordings and their clean speech, as noisy/ and clean/, or noisy_trainset_28spk_wav/ and
    clean_trainset_28spk_wav/ of VoiceBank-DEMAND; alone, or beside --clean and --noise or --prepared."""
    pairs_fraction: Annotated[float, AfterValidator(_share_of_pairs)] = 0.5
    """Which part of the examples --pairs gives, where others are mixed."""
    sides: Sides | None = None
    """The folders of --pairs that hold the noisy and the clean side, where their names do not say so."""
    augment: Annotated[Texts, AfterValidator(_augmentations)] = ()
    """What examples go through besides, in this order, each NAME or NAME=PROBABILITY (0.2): level, clip (the noisy side
    alone), band (limits, both sides), codec (Opus, MP3, AAC, G.722, G.711 by FFmpeg, the noisy side alone), or
    package.module:function, as (noisy, clean, rng) -> (noisy, clean), of your own."""


class PrepareOptions(ExampleOptions):
    """Mix speech and noise once, for any number of epochs of `train` and `distill` with --prepared."""

    out: Place
    """Folder to be made."""
    count: Count
    """Number of examples."""
    segment_seconds: Seconds = 2.0
    """Length of an example. Training may use less of it, at a random place."""
    seed: CountOrNone = 0
    """Seed of the examples."""
    workers: CountOrNone = 0
    """Processes that mix, besides this one."""


class TrainingOptions(ExampleOptions):
    """What every training run needs."""

    out: Place
    """Folder of the run: configuration, checkpoint, TensorBoard log. Where it holds the same run, interrupted,
    that run goes on as if it had not been."""
    prepared: Place | None = None
    """Folder that `abckd-dns prepare` made, in place of --clean and --noise."""
    steps: Count = 20_000
    """Optimiser steps. More of them than a finished run has done let it go on."""
    batch_size: Count = 16
    """Examples per batch and process: N processes with B do what one process with N B does."""
    accumulate: Count = 1
    """Batches per step and process, whose gradients are averaged: a large batch in little memory."""
    segment_seconds: Seconds = 2.0
    """Length of an example."""
    lr: Positive = 2e-3
    """Peak learning rate, reached after a twentieth of the steps and then lowered to 0 along a cosine."""
    clip: Annotated[Limit, Field(gt=0)] = 1.0
    """Norm to which gradients are clipped."""
    seed: CountOrNone = 0
    """Seed of weights and examples."""
    workers: CountOrNone = min(8, (os.cpu_count() or 1) // 4)
    """Processes that make examples; 0 makes them in the training process, which is faster on few cores."""
    log_every: Count = 20
    """Steps between log entries, each the mean of the steps since the last."""
    save_every: Count = 1000
    """Steps between checkpoints; the last step is always saved."""
    valid: Place | None = None
    """What the network is measured on as it learns: a folder of pairs, as for --pairs (and --sides), or one that
    `abckd-dns prepare` made."""
    valid_every: Count = 1000
    """Steps between measurements; the last step is always measured."""
    valid_count: Count = 50
    """How many examples of --valid are measured, spread over it, their first 10 s: loss and SI-SDR."""
    valid_pesq: CountOrNone = 10
    """Of how many of these PESQ is measured, too: about half a second each."""
    best_by: Literal["loss", "si-sdr", "pesq"] = "loss"
    """By what the best network is chosen, which best.safetensors beside model.safetensors holds."""
    patience: CountOrNone = 0
    """The run stops early after this many measurements in a row without a better network; 0: never."""
    ema: Annotated[float, Field(ge=0, lt=1)] = 0.0
    """Decay of the running mean of the weights, as 0.999; what is measured and saved as the network is then this mean.
    0: the last weights."""
    init: Place | None = None
    """Checkpoint (a file, or the folder of a run) of whose weights training starts: fine-tuning."""
    compile: bool = False
    """Compile the networks by torch.compile: slow first steps, and on GPUs faster ones after them."""
    data_moved: bool = False
    """Go on with a run whose data lies elsewhere now: folders may have other names, and must hold the same files."""
    max_skipped: Count = 20
    """A step whose loss or gradient is not finite is skipped; this many in a row end the run."""
    precision: Literal["fp32", "bf16", "fp16"] | None = None
    """Precision of the networks; fp16 needs a GPU. By default that of accelerate launch, which is fp32."""

    @property
    def segment_length(self) -> int:
        """In samples."""
        return samples(self.segment_seconds)


class TrainOptions(TrainingOptions):
    """Train a network on mixtures of clean speech and noise."""

    preset: str | None = None
    """teacher, student, gtcrn, dpcrn, or package.module:factory for a network of your own. By default teacher, or, with
    --init, the network of that checkpoint."""


class DistillOptions(TrainingOptions):
    """Distil a student from a trained teacher.

    The loss is SpeechLoss(student, target) + the sum of weight * KD. The target is the clean speech where there is any,
    else the output of the teacher: KD on features alone would leave the last layer of the decoder without any gradient.
    """

    teacher: str
    """Checkpoint, or package.module:factory (which then loads its own weights), or package.module:factory@checkpoint;
    or a public denoiser (dfn3, gtcrn, dtln, nsnet2: pip install 'abckd-kernels[rivals]'), or MODEL.onnx from waveform
    to waveform. These run on the CPU."""
    student: str | None = None
    """student, gtcrn or another preset, package.module:factory, or a checkpoint to start from. By default student, or,
    with --init, the network of that checkpoint."""
    loss: Annotated[Texts, AfterValidator(_one_or_more)] = ("abc",)
    """KD terms, behind one --loss or each behind its own, NAME[(key=value,...)][=WEIGHT], as in: abc=0.1
    "hint(layers=[encoder.1])=0.5" spectral=1. NAME is any loss of abckd_kernels (docs/losses.md), response:
    SpeechLoss(student, teacher), or, alone, none."""
    kd_weight: NonNegative = 0.1
    """Weight of KD terms that give none. About 0.1 is right for abc; 2 does harm."""
    kd_warmup: CountOrNone = 0
    """Steps in which the weights of the KD terms rise from 0, along a line."""
    label_free: bool = False
    """Use no clean speech: train on --noisy, or on the noisy side of mixtures."""
    noisy: Places | None = None
    """Folders of noisy speech, or shards: for --label-free, or, beside what has labels, for a part of the examples."""
    noisy_fraction: Annotated[float, AfterValidator(_a_part)] = 0.5
    """Which part of the examples --noisy gives, where others have clean speech."""
    student_layers: str | None = None
    """Layers to distil, as dotted module names a.b,c.d ("a.b:0" for an element of a tuple). Networks of this
    package have a default."""
    teacher_layers: str | None = None
    """As --student-layers; of dfn3 layers.e0 ... layers.d1, of an ONNX model layers.NAME for a value in it."""


class EvaluateOptions(MixtureOptions):
    """Compare networks and other systems with each other and with the noisy input.

    On a folder of pairs (--pairs), on recordings without clean counterpart (--noisy), or on mixtures made from
    --clean and --noise with a fixed seed. What is measured is written example by example: interrupted or killed, the
    same command goes on. A recording that cannot be used is named and counted, and does not keep the others from it.
    """

    checkpoints: Texts = ()
    """Checkpoints (files, or folders of runs); a network of your own is package.module:factory@checkpoint."""
    systems: Annotated[tuple[Literal["nsnet2", "gtcrn", "dtln", "dfn3"], ...], Field(strict=False)] = ()
    """Public denoisers: pip install 'abckd-kernels[rivals]'."""
    enhanced: Texts = ()
    """Folders of what other programs made of the noisy recordings, under the same names: FOLDER or NAME=FOLDER. Sample
    rates are converted, and delays found and taken off."""
    pairs: Place | None = None
    """Folder with noisy/ and clean/, or noisy_NAME/ and clean_NAME/ as in VoiceBank-DEMAND; the files of a pair have
    equal names, or, as in the DNS Challenge, the same number behind fileid_."""
    sides: Annotated[tuple[str, str], Field(strict=False)] | None = None
    """Folders in --pairs with the noisy and with the clean side, where they are called otherwise."""
    cut: bool = False
    """Cut the longer of two files of unequal length, instead of leaving such a pair out."""
    noisy: Place | None = None
    """Folder of noisy recordings without clean counterparts: DNSMOS only."""
    metrics: Annotated[
        tuple[Literal["si-sdr", "pesq", "stoi", "estoi", "composite", "segsnr", "lsd", "dnsmos"], ...],
        Field(strict=False),
    ] = ()
    """What to measure; composite is CSIG, CBAK and COVL. By default dnsmos with --noisy, and otherwise si-sdr, pesq,
    stoi and estoi; dnsmos takes several times as long as the others together."""
    dry: Annotated[float, Field(ge=0, lt=1)] = 0.0
    """Share of the noisy input that is mixed into the output of every network, from 0 up to 1."""
    baseline: str | None = None
    """System, as the table names it, with which the others are compared example by example."""
    count: Count = 100
    """Number of mixtures."""
    seconds: Seconds = 4.0
    """Length of a mixture."""
    seed: CountOrNone = 12345
    """Seed of the mixtures."""
    workers: CountOrNone = min(16, (os.cpu_count() or 1) // 2) if (os.cpu_count() or 1) > 3 else 0
    """Processes with one thread each that enhance and measure; 0 does it in this process."""
    csv: Annotated[Place, AfterValidator(_table_file)] = Path("evaluation.csv")
    """Where the table goes, as CSV, and as Markdown beside it; the value of every example goes to
    <name>_files.csv."""


class DenoiseOptions(Options):
    """Denoise a recording, or every recording of a folder, of any length, sample rate and number of channels.

    The networks work at 16 kHz: what a recording has above 8 kHz is lost. A recording of a folder that cannot be
    denoised does not keep the others from it.
    """

    checkpoint: str
    """Checkpoint (a file, or the folder of a run), or package.module:factory@checkpoint."""
    input: Place
    """Noisy file or folder."""
    output: Place
    """Enhanced file or folder; the format is that of the suffix."""
    scale_down: bool = False
    """Scale a recording down as a whole where its values would exceed full scale, instead of clipping them."""
    stream: bool = False
    """Step by step, as a device does while sound comes in; the result is the same."""


class ExportOptions(Options):
    """Write a network as ONNX, one step of 16 ms of sound: (samples, states) to (enhanced, next states).

    The file is kept only if onnxruntime computes the same with it as torch.
    """

    checkpoint: str
    """Checkpoint of a network of this package (a file, or the folder of a run)."""
    output: Place
    """Where the model goes, a file *.onnx."""
    opset: Annotated[int, Field(ge=7)] = 18
    """Version of ONNX's operators; 18 is what onnxruntime 1.14 and later run."""
    int8: Place | None = None
    """Folder of pairs, as for evaluate: on its recordings a model in int8 is calibrated, written as NAME.int8.onnx, and
    measured beside the other."""
    sides: Sides | None = None
    """The folders of --int8 that hold the noisy and the clean side, where their names do not say so."""
    c_example: bool = False
    """Write denoise.c beside the model: a program that runs it by onnxruntime's C API."""


class DescribeOptions(Options):
    """Print the parameters, operations, latency, speed and layers of a network."""

    network: tyro.conf.Positional[str]
    """teacher, student, a checkpoint (a file, or the folder of a run), or package.module:factory, alone or with
    @checkpoint."""


class DemoOptions(Options):
    """Train a teacher, train a student alone and distilled from that teacher, compare them on held-out
    mixtures, and denoise a file. Speech and noise come from Debian packages (fetch-demo-data) unless folders
    are given."""

    out: Place = Path("demo_results")
    """Folder of the results."""
    clean: Places | None = None
    """Folders of clean speech for training, in place of the demo's own data."""
    noise: Places | None = None
    """Folders of noise for training; needed with --clean."""
    test_clean: Places | None = None
    """Folders of clean speech for the comparison; without it the one for training."""
    test_noise: Places | None = None
    """Folders of noise for the comparison; without it the one for training."""
    teacher_steps: Count = 800
    """Training steps of the teacher."""
    student_steps: Count = 400
    """Training steps of either student."""
    count: Count = 100
    """Number of mixtures in the comparison."""
    seed: CountOrNone = 0
    """Seed of weights and training mixtures."""


class FetchDemoDataOptions(Options):
    """Get the speech and noise of the demo, once, into the user's cache folder, and print that folder."""


class FetchStudyDataOptions(Options):
    """Get the speech and noise of the study (about 900 MB of packages), once, into the user's cache folder, and print
    that folder and how many minutes of what it has."""
