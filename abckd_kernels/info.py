"""`python -m abckd_kernels.info`: versions, what was built, which backend serves each op, and why not the others."""

from __future__ import annotations

import importlib.metadata
import platform

import torch

from . import __version__, backends


def report() -> str:
    """The text that `python -m abckd_kernels.info` prints."""
    return "\n".join([*_versions(), "", *_build(), "", *_choices()])


def _versions() -> list[str]:
    try:
        triton = importlib.metadata.version("triton")
    except importlib.metadata.PackageNotFoundError:
        triton = "not installed"
    gpu = torch.cuda.get_device_name() if torch.cuda.is_available() else "none"
    rows = {
        "abckd_kernels": __version__,
        "python": platform.python_version(),
        "torch": f"{torch.__version__} (CUDA {torch.version.cuda or 'not included'})",
        "triton": triton,
        "GPU": gpu,
    }
    return [f"{name:14} {value}" for name, value in rows.items()]


def _build() -> list[str]:
    extension = backends.extension()
    if extension is None:
        return [f"extension      not built: {backends.EXTENSION_ERROR}"]
    lines = [f"extension      {key}: {value}" for key, value in extension.build_info().items()]
    return [*lines, f"forced backend {backends.forced()}"]


def _choices() -> list[str]:
    lines = []
    devices = ("cpu", "cuda")
    for device in devices:
        note = "" if device == "cpu" or torch.cuda.is_available() else " (no such device here)"
        lines.append(f"on {device}{note}")
        for op in backends.ops():
            try:
                chosen = backends.choose(op, device)
            except RuntimeError as error:
                chosen = f"none: {error}"
            lines.append(f"  {op:18} {chosen}")
            for backend in backends.PREFERENCE:
                reason = backends.why_not(op, backend, device)
                if backend != chosen and reason is not None:
                    lines.append(f"    not {backend:12} {reason}")
    return lines


if __name__ == "__main__":
    print(report())
