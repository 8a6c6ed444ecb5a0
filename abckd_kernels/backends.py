"""Which implementation serves an op: the table, the choice, and every environment variable of the library.

An op is one schema in the dispatcher's namespace `abckd` with one implementation per backend:

    cuda        C++/CUDA kernels of the extension, registered for CUDA tensors   abckd::op
    cpu         C++ kernels of the extension, registered for CPU tensors         abckd::op
    triton      Triton kernels, compiled when first used                         abckd::op.triton
    reference   plain PyTorch, the definition                                    abckd::op.reference

`abckd::op` itself serves every device: where the extension has no kernel it falls back to what `auto` chooses.

Environment variables:
    ABCKD_BACKEND     auto (default) or the name of a backend to force, as `use_backend` does
    ABCKD_CPU_ISA     baseline, avx2 or avx512: the instruction set of the cpu backend (default: the best there is)
    TRITON_INTERPRET  1: Triton's own switch; its kernels then run in the interpreter, on CPU tensors
    ABCKD_BUILD_CUDA  auto (default), 1 or 0: read by setup.py only
"""

from __future__ import annotations

import functools
import importlib
import importlib.util
import os
import re
import warnings
from collections.abc import Callable

import torch

PREFERENCE = ("cuda", "triton", "cpu", "reference")
TRITON_INTERPRET = os.environ.get("TRITON_INTERPRET") == "1"

try:
    _C = importlib.import_module("abckd_kernels._C")
    EXTENSION_ERROR = None
except ImportError as error:
    _C = None  # type: ignore[assignment]
    EXTENSION_ERROR = f"the C++ extension is not there ({error}); reinstall where a C++ compiler is found"

_TRITON_FOUND = importlib.util.find_spec("triton") is not None
_OPS: dict[str, tuple[str, ...]] = {}
_forced = "auto"


def extension():
    """The pybind11 module `abckd_kernels._C`, or None where it was not built."""
    return _C


def ops() -> tuple[str, ...]:
    """Names of all ops, in the order of their definition."""
    return tuple(_OPS)


def why_not(op: str, backend: str, device: str) -> str | None:
    """The reason for which `backend` can't serve `op` on a device type such as "cpu", or None where it can."""
    if backend not in _OPS[op]:
        return f"{op} has no {backend} implementation in this version"
    if backend == "reference":
        return None
    if backend == "triton":
        if not _TRITON_FOUND:
            return "triton is not installed"
        if device == "cuda" or TRITON_INTERPRET:
            return None
        return f"triton has no {device} target; TRITON_INTERPRET=1 runs it in the interpreter"
    if device != backend:
        return f"serves {backend} tensors only"
    if backend == "cuda" and _C is not None:
        return _why_no_cuda_kernels()
    return EXTENSION_ERROR


def _why_no_cuda_kernels() -> str | None:
    """The reason for which the extension's CUDA kernels can't run on this machine's GPUs, or None."""
    if not _C.has_cuda:
        return "the extension was built without CUDA kernels; reinstall where nvcc and a CUDA build of torch are found"
    return _gpu_without_code() if torch.cuda.is_available() else None


@functools.cache
def _gpu_without_code() -> str | None:
    """The sentence about the first GPU for which the extension has no code, or None. Asked for at every op."""
    built = _C.build_info()["CUDA kernels"].removeprefix("for ")
    for index in range(torch.cuda.device_count()):
        gpu = torch.cuda.get_device_properties(index)
        if not runs_on(built, gpu.major, gpu.minor):
            return f"its kernels were built for compute capability {built}, {gpu.name} has {gpu.major}.{gpu.minor}"
    return None


def runs_on(built: str, major: int, minor: int) -> bool:
    """True if code built for capabilities such as "8.0 9.0+PTX" runs on a GPU of the given one.

    Machine code runs on GPUs of its major version that are not older, PTX on every GPU that is not older.
    """
    for name in built.split():
        if found := re.fullmatch(r"(\d+)\.(\d+)(\+PTX)?", name):
            code = int(found[1]), int(found[2])
            if code <= (major, minor) and (found[3] or code[0] == major):
                return True
    return False


def choose(op: str, device: str) -> str:
    """The backend that serves `op` on a device type: the forced one, else the first of PREFERENCE that can.

    An op without native kernels for the device that is forced is served as by "auto", with a warning (`use_backend`).
    Raises RuntimeError if the forced backend can't serve, with the reason and the backends that can.
    """
    if _forced == "auto":
        return _preferred(op, device)
    reason = why_not(op, _forced, device)
    if reason is None:
        return _forced
    if _forced == device and _forced not in _OPS[op]:
        serving = _preferred(op, device)
        _warn_once(f"backend '{_forced}' was asked for, but {reason}: {serving} serves it")
        return serving
    able = [name for name in PREFERENCE if why_not(op, name, device) is None]
    raise RuntimeError(
        f"backend '{_forced}' was asked for but can't serve {op} on {device}: {reason}. Able: {', '.join(able)}"
    )


def _preferred(op: str, device: str) -> str:
    """The first of PREFERENCE that serves. On the CPU the interpreter is for tests only, and is never chosen."""
    for name in PREFERENCE:
        if name == "triton" and device != "cuda":
            continue
        if why_not(op, name, device) is None:
            if name == "reference":
                _warn_of_reference(op, device)
            return name
    raise RuntimeError(f"no backend serves {op} on {device}")


def forced() -> str:
    """The name given to `use_backend` or ABCKD_BACKEND, or "auto"."""
    return _forced


def is_native(backend: str) -> bool:
    """True for backends whose kernels the C++ extension registers under `abckd::op` itself."""
    return backend in ("cpu", "cuda")


def kernel(op: str, device: torch.device) -> Callable:
    """The dispatcher entry of the backend that serves `op` on `device`."""
    backend = choose(op, device.type)
    packet = getattr(torch.ops.abckd, op)
    return packet.default if is_native(backend) else getattr(packet, backend)


class use_backend:  # noqa: N801 - reads as a verb, both as a call and as a context manager
    """Force one backend for every op that has it, or return to "auto".

    `use_backend("reference")` holds from now on; `with use_backend("reference"): ...` for the block only. The backend
    is chosen when an op runs, so a backward pass outside the block follows the choice that holds there. All threads
    of the process share it.

    "cpu" and "cuda" ask for the extension's kernels on tensors of that device. Not every op has such kernels in this
    version (`python -m abckd_kernels.info` lists them): one that has none is served as by "auto", and a warning says so
    once, so that no loss is lost to the choice. Whatever else keeps a forced backend from serving is a RuntimeError
    when an op runs: an extension that was not built, or tensors of another device.

    Raises ValueError for an unknown name.
    """

    def __init__(self, name: str):
        self._previous = _force(name)

    def __enter__(self) -> use_backend:
        return self

    def __exit__(self, *exception) -> None:
        _force(self._previous)


def _force(name: str) -> str:
    global _forced
    if name != "auto" and name not in PREFERENCE:
        raise ValueError(f"unknown backend {name!r}; expected 'auto' or one of {', '.join(PREFERENCE)}")
    previous, _forced = _forced, name
    return previous


_force(os.environ.get("ABCKD_BACKEND", "auto"))
_library = torch.library.Library("abckd", "FRAGMENT")


def define(op: str, signature: str, *, folder: str, fake: Callable, native: tuple[str, ...]) -> None:
    """Register a kernel, such as tap_forward, in the dispatcher: one overload per backend that is not native.

    op: its name. signature: arguments and results in the dispatcher's schema language; the extension's kernels have it
    from here. folder: the package that holds reference.py and triton.py, each with the Python implementation, `forward`
    or `backward`; they are imported when first used. fake: shapes and dtypes of the results. native: the backends for
    which this version has C++ kernels.

    Raises ImportError if an extension of another version is installed.
    """
    _OPS[op] = (*native, "triton", "reference")
    try:
        _library.define(f"{op}{signature}")
    except RuntimeError as error:  # the dispatcher compares the schema with the types of the extension's functions
        raise ImportError(f"abckd_kernels._C was built from another version, reinstall: {error}") from error
    _library.impl(op, lambda *args: _fallback(op, args), "CompositeExplicitAutograd")
    torch.library.register_fake(f"abckd::{op}", fake, lib=_library)
    function = op.rpartition("_")[2]
    for backend in ("triton", "reference"):
        overload = f"{op}.{backend}"
        _library.define(f"{overload}{signature}")
        _library.impl(overload, _on_first_use(f"{folder}.{backend}", function), "CompositeExplicitAutograd")
        torch.library.register_fake(f"abckd::{overload}", fake, lib=_library)


def compose(op: str, signature: str, make_kernel: Callable[[], Callable]) -> Callable:
    """Register the op `abckd::<op>` over its kernels (ops/contract.py); the function to call.

    The extension differentiates it where there is one; elsewhere what `make_kernel` makes does.
    """
    _library.define(f"{op}{signature}")
    if _C is not None:
        _C.differentiate(op, _overload)
    else:
        _library.impl(op, make_kernel(), "CompositeImplicitAutograd")
    registered = getattr(torch.ops.abckd, op).default

    def call(*arguments):
        if torch.compiler.is_compiling():
            # The backend is chosen below what Dynamo traces: a look at it makes compiled code depend on it.
            forced() == "auto"  # noqa: B015
        return registered(*arguments)

    return call


def _overload(op: str, device: str) -> str:
    """The overload of a kernel that serves a device type: "" of the native ones."""
    backend = choose(op, device)
    return "" if is_native(backend) else backend


def _fallback(op: str, args):
    """Serve a call for which the extension has no kernel."""
    device = _first_tensor(args).device
    serving = kernel(op, device)
    if serving is getattr(torch.ops.abckd, op).default:  # the native kernel, and yet it was not taken
        raise ValueError(f"{op}: expected dense tensors, all on {device}")
    return serving(*args)


def _on_first_use(module: str, function: str) -> Callable:
    def implementation(*args):
        # Autocast would compute parts of it in half precision.
        with torch.autocast(_first_tensor(args).device.type, enabled=False):
            return getattr(importlib.import_module(module), function)(*args)

    return implementation


def _warn_of_reference(op: str, device: str) -> None:
    """Say that plain PyTorch serves a device, and why nothing faster does; nothing of tensors without data, nor where
    it is what the op has for that device."""
    better = "cpu" if device == "cpu" else "triton"
    if device != "meta" and better in _OPS[op]:
        _warn_once(f"abckd_kernels runs its slow reference on {device}: {why_not(op, better, device)}")


@functools.cache
def _warn_once(message: str) -> None:
    if not torch.compiler.is_compiling():
        warnings.warn(message, stacklevel=5)


def _first_tensor(args) -> torch.Tensor:
    for arg in args:
        if isinstance(arg, torch.Tensor):
            return arg
        if isinstance(arg, list | tuple) and any(isinstance(item, torch.Tensor) for item in arg):
            return _first_tensor(arg)
    raise ValueError("an op of abckd needs at least one tensor")
