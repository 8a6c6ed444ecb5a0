"""Every command end to end, in this process, on generated audio."""

import csv
import json
import math

import numpy as np
import pytest
import safetensors.torch
import soundfile
import torch
from accelerate.utils import set_seed
from made_audio import SHORT, data_arguments, noise_like, speech_like, write_wav
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from abckd_dns.cli import main
from abckd_dns.data import mixtures as data
from abckd_dns.network.config import PRESETS
from abckd_dns.network.denoiser import Denoiser
from abckd_dns.network.load import load_network
from abckd_dns.options import DistillOptions
from abckd_dns.training.distillation import Distillation
from abckd_dns.training.kd import build, parse
from abckd_dns.training.objective import SpeechLoss


def weights(run):
    return safetensors.torch.load_file(run / "model.safetensors")


def fails_with(capsys, *arguments: str) -> str:
    with pytest.raises(SystemExit) as stopped:
        main(list(arguments))
    assert "Traceback" not in str(stopped.value)
    return str(stopped.value) + capsys.readouterr().err


def distill(runs, out, *arguments: str) -> None:
    main(["distill", "--out", str(out), "--teacher", str(runs / "teacher"), *SHORT, *arguments])


def logged_tags(run) -> set[str]:
    log = EventAccumulator(str(next(run.rglob("events.out.*")).parent)).Reload()
    return {*log.Tags()["scalars"], *log.Tags()["images"]}


def test_train_leaves_a_run(runs):
    run = runs / "teacher"
    assert json.loads((run / "config.json").read_text())["steps"] == 2
    assert logged_tags(run) == {"loss", "lr", "skipped"}
    fresh = Denoiser(PRESETS["teacher"]).state_dict()
    trained = weights(run)
    assert trained.keys() == fresh.keys()
    assert all(value.isfinite().all() for value in trained.values())


def test_seed_makes_a_run_repeatable(folders, tmp_path):
    for name, seed in (("a", 1), ("b", 1), ("c", 2)):
        main(
            ["train", "--preset", "student", "--out", str(tmp_path / name), "--seed", str(seed)]
            + [*data_arguments(folders), *SHORT]
        )
    first, again, other = (weights(tmp_path / name) for name in "abc")
    assert all(torch.equal(first[name], again[name]) for name in first)
    assert not torch.equal(first["mask.weight"], other["mask.weight"])


def test_training_lowers_the_loss(folders, tmp_path):
    main(
        ["train", "--preset", "student", "--out", str(tmp_path), *data_arguments(folders)]
        + "--steps 30 --batch-size 4 --segment-seconds 0.5 --workers 0 --log-every 5 --lr 0.005".split()
    )
    log = EventAccumulator(str(next(tmp_path.rglob("events.out.*")).parent)).Reload()
    losses = [event.value for event in log.Scalars("loss")]
    assert losses[-1] < losses[0] - 0.05


@pytest.mark.parametrize("loss", ["abc", "response", "none"])
def test_distill_with_labels(folders, runs, tmp_path, loss):
    distill(runs, tmp_path, "--loss", loss, *data_arguments(folders))
    assert weights(tmp_path).keys() == Denoiser(PRESETS["student"]).state_dict().keys()
    expected = {
        "abc": {"loss", "lr", "skipped", "speech", "kd/abc", "attention"},
        "response": {"loss", "lr", "skipped", "speech", "kd/response"},
    }
    assert logged_tags(tmp_path) == expected.get(loss, {"loss", "lr", "skipped"})
    assert (tmp_path / "attention.png").exists() == (loss == "abc")


@pytest.mark.parametrize("loss", ["abc", "response"])
def test_distill_without_labels(folders, runs, tmp_path, loss):
    distill(runs, tmp_path, "--loss", loss, "--label-free", "--noisy", str(folders / "noisy"))
    set_seed(0)
    untrained = Denoiser(PRESETS["student"]).state_dict()
    # The last layer learns too: features alone would give it no gradient.
    assert not torch.equal(weights(tmp_path)["mask.weight"], untrained["mask.weight"])


def test_distill_with_several_losses(folders, runs, tmp_path):
    losses = ["abc(scores=uniform,mask=stage)=0.1", "at", "spectral=1", "si_snr=0.01"]
    distill(runs, tmp_path, *data_arguments(folders), "--kd-warmup", "5", "--loss", *losses)
    assert logged_tags(tmp_path) == {
        *("loss", "lr", "skipped", "speech"),
        *("kd/abc", "kd/at", "kd/spectral", "kd/si_snr"),
    }


@pytest.mark.parametrize("loss", ["none", "abc"])
def test_distill_with_some_labels(folders, runs, tmp_path, monkeypatch, loss):
    """Examples without clean speech are learned from, and nothing stands in for it but the teacher's output."""
    noisy = ["--noisy", str(folders / "noisy"), "--noisy-fraction", "0.4"]
    common = ["--loss", loss, *data_arguments(folders)]
    distill(runs, tmp_path / "some", *common, *noisy)
    distill(runs, tmp_path / "all", *common)
    make, made = data.PartlyLabelled.__getitem__, []

    def without_clean_speech(self, index):
        example = make(self, index)
        made.append(bool(example["has_clean"]))
        return example if made[-1] else {**example, "clean": torch.full_like(example["clean"], math.nan)}

    monkeypatch.setattr(data.PartlyLabelled, "__getitem__", without_clean_speech)
    distill(runs, tmp_path / "nan", *common, *noisy)
    assert set(made) == {True, False}
    some, every, nan = (weights(tmp_path / name) for name in ("some", "all", "nan"))
    assert all(torch.equal(some[name], nan[name]) for name in some)
    assert not torch.equal(some["mask.weight"], every["mask.weight"])


def test_bf16_run_learns_the_same_weights_to_its_precision(folders, tmp_path):
    for precision in ("fp32", "bf16"):
        main(
            ["train", "--preset", "own_networks:tiny", "--precision", precision, "--out", str(tmp_path / precision)]
            + [*data_arguments(folders), *SHORT]
        )
    full, half = weights(tmp_path / "fp32"), weights(tmp_path / "bf16")
    assert all(value.dtype == full[name].dtype for name, value in half.items())
    assert not torch.equal(half["encoder.0.0.weight"], full["encoder.0.0.weight"])
    torch.testing.assert_close(half["encoder.0.0.weight"], full["encoder.0.0.weight"], rtol=0, atol=5e-3)


def test_label_free_never_looks_at_clean_speech(folders, runs, tmp_path, monkeypatch):
    distill(runs, tmp_path / "a", "--label-free", *data_arguments(folders))
    mix = data.mix
    monkeypatch.setattr(data, "mix", lambda *arguments: (mix(*arguments)[0], torch.full((8_000,), math.nan)))
    distill(runs, tmp_path / "b", "--label-free", *data_arguments(folders))
    a, b = weights(tmp_path / "a"), weights(tmp_path / "b")
    assert all(torch.equal(a[name], b[name]) for name in a)


@pytest.mark.parametrize("label_free", [False, True])
@pytest.mark.parametrize("loss", ["abc", "response"])
def test_what_a_distilled_student_is_compared_with(loss, label_free):
    student, teacher = Denoiser(PRESETS["student"]), Denoiser(PRESETS["teacher"]).eval()
    batch = {name: 0.1 * torch.randn(2, 8_000) for name in ("noisy", "clean")}
    losses = build([parse(loss, 0.5)], student, teacher, "bottleneck", "bottleneck")
    outputs = Distillation(student, teacher, losses, label_free)(batch)
    outputs["loss"].backward()
    assert student.mask.weight.grad.abs().sum() > 0

    speech_loss, enhanced, response = SpeechLoss(), student(batch["noisy"]), teacher(batch["noisy"])
    from_clean, from_teacher = speech_loss(enhanced, batch["clean"]), speech_loss(enhanced, response)
    if loss == "abc":
        expected = (from_teacher if label_free else from_clean) + 0.5 * outputs["kd/abc"]
    else:
        expected = from_teacher if label_free else from_clean + 0.5 * from_teacher
    torch.testing.assert_close(outputs["loss"], expected)


def test_kd_term_changes_the_student(folders, runs, tmp_path):
    for name, weight in (("without", "0"), ("with", "0.1")):
        distill(runs, tmp_path / name, "--kd-weight", weight, *data_arguments(folders))
    without, with_kd = weights(tmp_path / "without"), weights(tmp_path / "with")
    assert not torch.equal(without["encoder.0.0.weight"], with_kd["encoder.0.0.weight"])


def test_teacher_is_not_changed(folders, runs, tmp_path):
    before = weights(runs / "teacher")
    teacher = load_network(str(runs / "teacher"), "--teacher")
    student = Denoiser(PRESETS["student"])
    build([parse("semckd", 1)], student, teacher, "bottleneck", "bottleneck")
    assert all(torch.equal(value, before[name]) for name, value in teacher.state_dict().items())
    assert student.encoder[0][1].num_batches_tracked == 0 and student.training


def test_own_networks(folders, tmp_path):
    shared = [*data_arguments(folders), *SHORT]
    main(["train", "--preset", "own_networks:large", "--out", str(tmp_path / "teacher"), *shared])
    main(
        ["distill", "--out", str(tmp_path / "student"), *shared]
        + ["--teacher", f"own_networks:large@{tmp_path / 'teacher'}", "--teacher-layers", "features,pair:0"]
        + ["--student", "own_networks:small", "--student-layers", "features,pair:1"]
    )
    assert weights(tmp_path / "student")["features.weight"].shape == (4, 1, 64)
    assert (tmp_path / "student" / "attention.png").exists()


def test_layers_are_checked(folders, runs, tmp_path, capsys):
    start = [
        "distill",
        "--out",
        str(tmp_path),
        "--teacher",
        str(runs / "teacher"),
        *data_arguments(folders),
        *SHORT,
    ]
    message = fails_with(capsys, *start, "--student-layers", "encodr.1")
    assert "student_layers[0] 'encodr.1'" in message and "encoder.1" in message
    message = fails_with(capsys, *start, "--student", "own_networks:small")
    assert "--student-layers" in message and "features" in message


def test_combinations_that_make_no_sense(folders, runs, tmp_path, capsys):
    start = ["distill", "--out", str(tmp_path), "--teacher", str(runs / "teacher"), *SHORT]
    message = fails_with(capsys, *start, "--loss", "none", "--label-free", "--noisy", str(folders / "noisy"))
    assert "leaves nothing to learn from" in message
    assert "--label-free" in fails_with(capsys, *start, "--noisy", str(folders / "noisy"))
    assert "--clean" in fails_with(capsys, *start)
    labels = data_arguments(folders)
    assert "no loss is called abd" in fails_with(capsys, *start, *labels, "--loss", "abd")
    assert "compares with clean speech" in fails_with(capsys, *start, *labels, "--loss", "dispatch", "--label-free")
    assert "--kd-warmup" in fails_with(capsys, *start, *labels, "--kd-warmup", "-1")
    message = fails_with(capsys, *start, *labels, "--noisy", str(folders / "noisy"), "--noisy-fraction", "1")
    assert "--noisy-fraction: expected a number between 0 and 1" in message
    if not torch.accelerator.is_available():
        assert "fp16: needs a GPU" in fails_with(capsys, *start, *labels, "--precision", "fp16")
    assert "--steps" in fails_with(capsys, *start, *data_arguments(folders), "--steps", "0")


def test_too_many_corrupt_files_end_the_command(folders, tmp_path, capsys):
    (tmp_path / "clean").mkdir()
    (tmp_path / "clean" / "broken.wav").write_bytes(b"x")
    with pytest.warns(UserWarning, match="broken.wav"):
        message = fails_with(
            capsys,
            *["train", "--out", str(tmp_path / "run"), *data_arguments(folders), *SHORT],
            *["--clean", str(tmp_path / "clean")],
        )
    assert "1 of 1 files" in message and "--max-corrupt" in message


def test_error_of_a_worker_process_reads_like_any_other(folders, tmp_path, capsys):
    write_wav(tmp_path / "clean" / "silent.wav", np.zeros(8_000, np.float32))
    message = fails_with(
        capsys,
        *["train", "--out", str(tmp_path / "run"), *data_arguments(folders), *SHORT],
        *["--clean", str(tmp_path / "clean"), "--workers", "1"],
    )
    assert message.startswith("abckd-dns: error: --clean: ")


def test_infinite_loss_stops_the_run(folders, tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(
        "abckd_dns.training.supervised.SpeechLoss.forward", lambda self, estimate, target: estimate.sum() * math.nan
    )
    start = ["train", "--out", str(tmp_path), *data_arguments(folders), *SHORT, "--max-skipped", "2"]
    message = fails_with(capsys, *start)
    assert "2 steps in a row had a loss or gradient that is not finite" in message
    assert not (tmp_path / "model.safetensors").exists()
    path = tmp_path / "offending_batch_0.safetensors"
    assert str(path) in message
    assert safetensors.torch.load_file(path)["noisy"].shape == (2, 8_000)


def test_evaluate_on_mixtures(folders, runs, tmp_path, capsys):
    main(
        ["evaluate", "--checkpoints", str(runs / "teacher"), *data_arguments(folders)]
        + ["--count", "2", "--seconds", "2", "--csv", str(tmp_path / "table.csv"), "--snr", "5", "5"]
    )
    printed = capsys.readouterr().out
    assert "noisy input" in printed and "teacher" in printed
    with (tmp_path / "table.csv").open() as file:
        rows = {(row["system"], row["metric"]): row for row in csv.DictReader(file)}
    assert float(rows["noisy input", "SI-SDR (dB)"]["mean"]) == pytest.approx(5, abs=0.5)
    with (tmp_path / "table_files.csv").open() as file:
        assert len(list(csv.DictReader(file))) == 4


def test_evaluate_on_pairs(runs, tmp_path):
    for index in range(2):
        clean = speech_like(2, index)
        write_wav(tmp_path / "clean" / f"{index}.wav", clean)
        write_wav(tmp_path / "noisy" / f"{index}.wav", clean + 0.1 * noise_like(2, index + 9))
    start = ["evaluate", "--checkpoints", str(runs / "teacher"), "--pairs", str(tmp_path)]
    main([*start, "--csv", str(tmp_path / "table.csv")])
    with (tmp_path / "table_files.csv").open() as file:
        rows = [row for row in csv.DictReader(file) if row["system"] == "noisy input"]
    assert [row["example"] for row in rows] == ["0", "1"]
    assert all(0.5 < float(row["STOI"]) < 0.95 and float(row["SI-SDR (dB)"]) > 10 for row in rows)


@pytest.mark.parametrize(("rate", "channels", "length"), [(16_000, 1, 24_001), (44_100, 2, 30_000), (8_000, 1, 5)])
def test_denoise_keeps_rate_channels_and_length(runs, tmp_path, rate, channels, length):
    samples = 0.1 * np.random.default_rng(0).standard_normal((length, channels))
    source, target = tmp_path / "noisy.wav", tmp_path / "out" / "enhanced.wav"
    soundfile.write(source, samples, rate, subtype="PCM_24")
    main(["denoise", "--checkpoint", str(runs / "teacher"), "--input", str(source), "--output", str(target)])
    info = soundfile.info(target)
    assert (info.samplerate, info.channels, info.frames, info.subtype) == (rate, channels, length, "PCM_24")


def test_denoise_treats_channels_alone(runs, tmp_path):
    left, right = speech_like(1, 0), noise_like(1, 0)
    write_wav(tmp_path / "in" / "both.wav", np.stack([left, right], 1))
    write_wav(tmp_path / "in" / "deep" / "left.wav", left)
    start = ["denoise", "--checkpoint", str(runs / "teacher")]
    main([*start, "--input", str(tmp_path / "in"), "--output", str(tmp_path / "out")])
    both, _ = soundfile.read(tmp_path / "out" / "both.wav")
    alone, _ = soundfile.read(tmp_path / "out" / "deep" / "left.wav")
    np.testing.assert_allclose(both[:, 0], alone, atol=1e-4)
    assert np.abs(both[:, 0] - both[:, 1]).max() > 0.01


def test_denoise_errors(runs, tmp_path, capsys):
    start = ["denoise", "--checkpoint", str(runs / "teacher"), "--output", str(tmp_path / "out.wav")]
    assert "does not exist" in fails_with(capsys, *start, "--input", str(tmp_path / "no.wav"))
    (tmp_path / "broken.wav").write_bytes(b"x")
    assert "cannot read" in fails_with(capsys, *start, "--input", str(tmp_path / "broken.wav"))
    recording = write_wav(tmp_path / "folder" / "noisy.wav", noise_like(0.1, 0))
    before = recording.read_bytes()
    network = start[:3]
    alike = [("folder", "folder"), ("folder/noisy.wav", "folder/noisy.wav")]
    for source, target in alike:
        paths = "--input", str(tmp_path / source), "--output", str(tmp_path / target)
        assert "is the recording itself, which would be lost" in fails_with(capsys, *network, *paths)
    assert recording.read_bytes() == before
    paths = "--input", str(recording), "--output", str(tmp_path)
    assert "--output: expected a file, as --input is one" in fails_with(capsys, *network, *paths)


def test_demo_on_own_folders(folders, tmp_path, capsys):
    main(
        ["demo", "--out", str(tmp_path), *data_arguments(folders)]
        + ["--teacher-steps", "2", "--student-steps", "2", "--count", "2"]
    )
    printed = capsys.readouterr().out
    assert all(name in printed for name in ("noisy input", "teacher", "student_alone", "student_distilled", "paired"))
    for name in ("evaluation.csv", "noisy.wav", "enhanced.wav", "noisy.png", "enhanced.png", "attention.png"):
        assert (tmp_path / name).stat().st_size > 0
        assert name in printed
    assert "--noise" in fails_with(capsys, "demo", "--clean", str(folders / "clean"))


def test_kd_weight_default_is_the_one_known_to_be_right():
    assert DistillOptions(out="run", teacher="").kd_weight == 0.1
