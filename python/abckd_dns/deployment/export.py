"""The command `export`: a network as an ONNX model, in int8 beside it, and a C program that runs either."""

from __future__ import annotations

import shutil
from pathlib import Path

from ..files import write_atomically
from ..network.export import check_installed, export_onnx
from ..options import ExportOptions
from .int8 import export_int8

_PROGRAM = Path(__file__).with_name("denoise.c")


def export(options: ExportOptions) -> None:
    check_installed(options)
    export_onnx(options)
    if options.int8 is not None:
        export_int8(options.output, options.int8, options.sides)
    if options.c_example:
        program = options.output.with_name(_PROGRAM.name)
        write_atomically(program, lambda unfinished: shutil.copyfile(_PROGRAM, unfinished))
        print(f"written: {program} (how it is built stands at its top)")
