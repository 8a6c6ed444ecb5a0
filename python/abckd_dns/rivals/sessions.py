"""Networks in ONNX files, run by onnxruntime on one thread."""

from __future__ import annotations

from pathlib import Path

import onnxruntime


def quiet_options() -> onnxruntime.SessionOptions:
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = options.inter_op_num_threads = 1
    options.log_severity_level = 3
    return options


def session(path: Path) -> onnxruntime.InferenceSession:
    return onnxruntime.InferenceSession(str(path), quiet_options(), providers=["CPUExecutionProvider"])
