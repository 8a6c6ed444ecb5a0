"""ONNX models compute what torch computes."""

import contextlib
import io
import re
import shutil

import pytest
import torch
from made_audio import changed, speech_like
from made_networks import SMALL, lively

import abckd_dns.network.export as export_module
from abckd_dns.cli import main
from abckd_dns.network.load import save_checkpoint
from abckd_dns.network.streaming import enhance_by_steps

onnx = pytest.importorskip("onnx", reason="extra [export]")
onnxruntime = pytest.importorskip("onnxruntime", reason="extra [export]")
pytest.importorskip("onnxscript", reason="extra [export]")


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory):
    path = tmp_path_factory.mktemp("run") / "model.safetensors"
    save_checkpoint(path, lively(SMALL))
    return path


@pytest.fixture(scope="module")
def model(checkpoint):
    """An exported model."""
    path = checkpoint.parent / "deep" / "model.onnx"
    with contextlib.redirect_stdout(io.StringIO()) as printed:
        main(["export", "--checkpoint", str(checkpoint), "--output", str(path)])
    assert re.search(r"differ by at most \d\.\de-\d\d \(allowed: 1e-05\)\nwritten: .*model.onnx", printed.getvalue())
    return path


@torch.inference_mode()
def test_a_whole_waveform_equals_the_result_at_once(model):
    noisy = torch.from_numpy(speech_like(1.01, 0))[None]
    enhanced = enhance_by_steps(*export_module.onnx_step(model), noisy)
    torch.testing.assert_close(enhanced, lively(SMALL)(noisy), rtol=0, atol=1e-5)


@torch.inference_mode()
def test_any_batch(model):
    step, state = export_module.onnx_step(model)
    noisy = 0.1 * torch.randn(3, 2_000)
    state = {name: values.expand(3, *values.shape[1:]).contiguous() for name, values in state.items()}
    torch.testing.assert_close(enhance_by_steps(step, state, noisy), lively(SMALL)(noisy), rtol=0, atol=1e-5)


def test_the_model_says_what_it_needs(model):
    onnx.checker.check_model(onnx.load(model), full_check=True)
    session = onnxruntime.InferenceSession(model)
    metadata = session.get_modelmeta().custom_metadata_map
    assert {name: metadata[name] for name in ("sample_rate", "hop", "delay", "latency")} == {
        "sample_rate": "16000",
        "hop": "256",
        "delay": "256",
        "latency": "512",
    }
    inputs = {given.name: given.shape for given in session.get_inputs()}
    outputs = {given.name: given.shape for given in session.get_outputs()}
    assert inputs["samples"] == outputs["enhanced"] == ["batch", 256]
    states = {name.removeprefix("state."): shape for name, shape in inputs.items() if name != "samples"}
    assert {name.removeprefix("next."): shape for name, shape in outputs.items() if name != "enhanced"} == states
    assert states["bottleneck"] == ["batch", 8]
    assert [path.name for path in model.parent.iterdir()] == ["model.onnx"]


def test_a_model_that_computes_something_else_is_not_kept(model, tmp_path, monkeypatch):
    other = lively(SMALL)
    with torch.no_grad():
        other.mask.bias.add_(0.1)
    save_checkpoint(tmp_path / "model.safetensors", other)
    monkeypatch.setattr(export_module, "write_onnx", lambda _, path, opset: shutil.copy(model, path))
    with pytest.raises(SystemExit, match="onnxruntime and torch differ by .* more than 1e-05; nothing was written"):
        main(["export", "--checkpoint", str(tmp_path), "--output", str(tmp_path / "out" / "model.onnx")])
    assert not list((tmp_path / "out").iterdir())


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--output", "file/model.onnx"], "cannot write file/model.onnx: "),
        (["--output", "model.bin"], r"--output: expected a file \*.onnx"),
        (
            ["--output", "model.onnx", "--checkpoint", "own_networks:small"],
            "--checkpoint: only networks of this package",
        ),
        (["--output", "model.onnx", "--checkpoint", "student"], "has not learned anything"),
    ],
)
def test_what_cannot_be_exported(checkpoint, tmp_path, monkeypatch, arguments, message):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "file").touch()
    with pytest.raises(SystemExit, match=message):
        main(changed(["export", "--checkpoint", str(checkpoint)], *arguments))


def test_missing_packages_are_named(checkpoint, tmp_path, monkeypatch):
    monkeypatch.setattr(export_module, "find_spec", lambda name: None if name == "onnxscript" else name)
    with pytest.raises(SystemExit, match=r"export needs onnxscript: pip install 'abckd-kernels\[export\]'"):
        main(["export", "--checkpoint", str(checkpoint), "--output", str(tmp_path / "model.onnx")])
