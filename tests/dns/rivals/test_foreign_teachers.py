"""Teachers that are not ours: ONNX models from waveform to waveform, with features where they are named."""

import numpy as np
import pytest
import safetensors.torch
import torch
from made_audio import SHORT, data_arguments

from abckd_dns.cli import main
from abckd_dns.errors import InputError

onnx = pytest.importorskip("onnx", reason="extra [export]")
pytest.importorskip("onnxruntime", reason="extra [export]")

from abckd_dns.rivals.teachers import load_teacher  # noqa: E402


def write_model(path, inputs=1, samples="samples"):
    """Half of what comes in; the value `frames` is (1, 4, T), a frame for every 160 samples."""
    helper, numeric = onnx.helper, onnx.TensorProto.FLOAT
    weight = np.random.default_rng(0).standard_normal((4, 1, 320)).astype(np.float32)
    constants = [
        onnx.numpy_helper.from_array(weight, "weight"),
        onnx.numpy_helper.from_array(np.float32(0.5), "half"),
        onnx.numpy_helper.from_array(np.array([1]), "axis"),
    ]
    nodes = [
        helper.make_node("Unsqueeze", ["sound", "axis"], ["row"]),
        helper.make_node("Conv", ["row", "weight"], ["frames"], strides=[160], pads=[160, 160]),
        helper.make_node("Mul", ["sound", "half"], ["enhanced"]),
    ]
    given = [helper.make_tensor_value_info(name, numeric, [1, samples]) for name in ("sound", "state")[:inputs]]
    graph = helper.make_graph(
        nodes, "teacher", given, [helper.make_tensor_value_info("enhanced", numeric, [1, samples])], constants
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=9)
    onnx.save(model, str(path))
    return path


def test_outputs_and_features(tmp_path):
    teacher = load_teacher(str(write_model(tmp_path / "t.onnx")), "layers.frames")
    found = []
    teacher.layers["frames"].register_forward_hook(lambda module, inputs, output: found.append(output))
    noisy = torch.randn(3, 16_000)
    torch.testing.assert_close(teacher(noisy), noisy / 2)
    assert found[0].shape == (3, 4, 101, 1) and teacher.distillation_layers == ("layers.frames",)
    assert not torch.equal(found[0][0], found[0][1])
    other = load_teacher(str(write_model(tmp_path / "u.onnx", samples="length")), None)
    assert other.distillation_layers == () and not torch.equal(other.identity, teacher.identity)


def test_a_student_learns_from_it(folders, tmp_path):
    model = write_model(tmp_path / "t.onnx")
    shared = ["distill", "--teacher", str(model), "--student", "own_networks:tiny", *data_arguments(folders), *SHORT]
    main([*shared, "--out", str(tmp_path / "a"), "--loss", "response", "--label-free"])
    main(
        [
            *shared,
            "--out",
            str(tmp_path / "b"),
            "--loss",
            "at(student_layers=[encoder.0],teacher_layers=[layers.frames])",
        ]
        + ["--teacher-layers", "layers.frames"]
    )
    main([*shared, "--out", str(tmp_path / "c"), "--loss", "none"])
    a, b, c = (safetensors.torch.load_file(tmp_path / run / "model.safetensors") for run in "abc")
    name = "encoder.0.0.weight"
    assert not torch.equal(a[name], c[name]) and not torch.equal(b[name], c[name])


@pytest.mark.parametrize(
    ("change", "layers", "said"),
    [
        ({"inputs": 2}, None, "expected a model of one input, a waveform, got sound, state"),
        ({}, "layers.nowhere", "has no value nowhere; it has"),
        ({}, "layers.row,layers.enhanced", r"enhanced of .* is \(1, 16000\), expected \(1, C, T\)"),
        ({"samples": 99}, None, "it failed on a waveform"),
    ],
)
def test_models_that_are_no_teachers(tmp_path, change, layers, said):
    with pytest.raises(InputError, match=said):
        load_teacher(str(write_model(tmp_path / "t.onnx", **change)), layers)


def test_what_is_no_model(tmp_path):
    (tmp_path / "t.onnx").write_text("nothing")
    with pytest.raises(InputError, match="it is no ONNX model that onnxruntime runs"):
        load_teacher(str(tmp_path / "t.onnx"), None)
    with pytest.raises(SystemExit, match="--teacher: the model nowhere.onnx does not exist"):
        main(["distill", "--teacher", "nowhere.onnx", "--out", str(tmp_path / "run")])
