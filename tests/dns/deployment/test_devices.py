"""What is exported for devices: operators' versions, int8, and a C program."""

import shutil
import subprocess
from pathlib import Path

import numpy as np
import pytest
import torch
from made_audio import noise_like, speech_like, write_wav
from made_networks import SMALL, lively

from abckd_dns.cli import main
from abckd_dns.network.load import save_checkpoint
from abckd_dns.network.stft import BINS, HOP
from abckd_dns.network.streaming import DELAY, enhance_by_steps
from abckd_dns.sisdr import sisdr

onnx = pytest.importorskip("onnx", reason="extra [export]")
onnxruntime = pytest.importorskip("onnxruntime", reason="extra [export]")
pytest.importorskip("onnxscript", reason="extra [export]")


@pytest.fixture(scope="module")
def exported(tmp_path_factory):
    """A folder with model.onnx, model.int8.onnx and denoise.c."""
    root = tmp_path_factory.mktemp("device")
    for seed in range(3):
        speech = speech_like(1.2, seed)
        write_wav(root / "pairs" / "clean" / f"{seed}.wav", speech)
        write_wav(root / "pairs" / "noisy" / f"{seed}.wav", speech + 0.3 * noise_like(1.2, seed))
    save_checkpoint(root / "model.safetensors", lively(SMALL))
    options = ["--output", str(root / "model.onnx"), "--int8", str(root / "pairs"), "--c-example"]
    main(["export", "--checkpoint", str(root / "model.safetensors"), *options])
    return root


def step_of(path):
    from abckd_dns.network.export import onnx_step

    return onnx_step(path)


def test_int8_is_close_and_not_the_same(exported):
    noisy = torch.from_numpy(speech_like(1, 7) + 0.3 * noise_like(1, 7))[None]
    with torch.inference_mode():
        full, int8 = (enhance_by_steps(*step_of(exported / name), noisy) for name in ("model.onnx", "model.int8.onnx"))
    assert not torch.equal(full, int8)
    assert sisdr(int8[0].double(), full[0].double()).item() > 15


def test_the_transform_stays_in_float(exported):
    graph = onnx.load(str(exported / "model.int8.onnx")).graph
    constants = {constant.name: constant for constant in graph.initializer}
    kinds = [node.op_type for node in graph.node]
    assert kinds.count("QuantizeLinear") > 5
    matrices = [x for x in constants.values() if sorted(x.dims) == [2 * HOP, 2 * BINS]]
    assert len(matrices) == 2 and all(x.data_type == onnx.TensorProto.FLOAT for x in matrices)
    weights = [x for x in constants.values() if x.data_type == onnx.TensorProto.INT8 and len(x.dims) == 4]
    assert len(weights) >= 4  # of the convolutions


def test_versions(exported, tmp_path):
    model = onnx.load(str(exported / "model.onnx"))
    assert model.ir_version == 10 and [x.version for x in model.opset_import if x.domain == ""] == [18]
    checkpoint = str(exported / "model.safetensors")
    main(["export", "--checkpoint", checkpoint, "--output", str(tmp_path / "m.onnx"), "--opset", "20"])
    assert [x.version for x in onnx.load(str(tmp_path / "m.onnx")).opset_import if x.domain == ""] == [20]


def test_the_c_program(exported, tmp_path):
    """Runs where a compiler and onnxruntime's header are; the library is that of the Python package."""
    compiler = shutil.which("cc") or shutil.which("gcc")
    if compiler is None:
        pytest.skip("no C compiler")
    probe = subprocess.run(
        [compiler, "-E", "-"], input=b"#include <onnxruntime_c_api.h>", capture_output=True, check=False
    )
    if probe.returncode:
        pytest.skip("onnxruntime_c_api.h is not among the compiler's headers (CPATH)")
    (library,) = (Path(onnxruntime.__file__).parent / "capi").glob("libonnxruntime.so.*")
    shutil.copy(library, tmp_path / library.name)
    for name in ("libonnxruntime.so", "libonnxruntime.so.1"):
        (tmp_path / name).symlink_to(library.name)
    program = tmp_path / "denoise"
    flags = ["-O1", "-Wall", "-Werror", str(exported / "denoise.c"), "-o", str(program), f"-L{tmp_path}"]
    subprocess.run([compiler, *flags, "-lonnxruntime", f"-Wl,-rpath,{tmp_path}"], check=True)
    noisy = np.round(2**14 * (speech_like(1.01, 7) + 0.3 * noise_like(1.01, 7))).astype("<i2")
    done = subprocess.run(
        [str(program), str(exported / "model.onnx")], input=noisy.tobytes(), capture_output=True, check=True
    )
    enhanced = torch.from_numpy(np.frombuffer(done.stdout, "<i2").astype(np.float32) / 2**15)
    assert len(enhanced) == len(noisy)
    with torch.inference_mode():
        expected = lively(SMALL)(torch.from_numpy(noisy.astype(np.float32) / 2**15)[None])[0]
    # The last window is not divided by (`flush`).
    torch.testing.assert_close(enhanced[:-DELAY], expected[:-DELAY], atol=2 / 2**15, rtol=0)
