"""Shapes, dtypes and padding: what every op agrees on.

A feature is (B, C, *spatial) with spatial = (T,), (T, F) or (H, W); the first spatial axis is called frames.

Padding: `lengths` (B,) counts valid frames on the scale of `padded_length`, the frames that the padded batch has on
that scale. A map with T frames then has ceil(lengths * T / padded_length) valid ones, in integers, so that layers of
different resolution agree on where an utterance ends.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

LONGEST = 100  # characters of a value in a message
FEATURE_DTYPES = (torch.float32, torch.float64, torch.bfloat16, torch.float16)


def accumulation_dtype(dtype: torch.dtype) -> torch.dtype:
    """float64 stays float64; everything narrower accumulates in float32."""
    return torch.float64 if dtype == torch.float64 else torch.float32


def matrix_dtype(device: torch.device) -> torch.dtype:
    """float64, where the device has it: of small results that losses take differences of."""
    return torch.float32 if device.type == "mps" else torch.float64


def check_feature(x: Tensor, name: str) -> None:
    """Raise TypeError or ValueError, naming the argument, unless `x` is a feature that the ops can read."""
    if not isinstance(x, Tensor):
        raise TypeError(f"{name}: expected a tensor (B, C, *spatial), got {type(x).__name__}")
    if x.dtype not in FEATURE_DTYPES:
        raise TypeError(f"{name}: expected float32, float64, bfloat16 or float16, got {x.dtype}")
    if x.layout != torch.strided:
        raise TypeError(f"{name}: expected a dense tensor, got layout {x.layout}")
    if x.dim() not in (3, 4):
        raise ValueError(f"{name}: expected (B, C, T) or (B, C, T, F), got shape {tuple(x.shape)}")
    if 0 in x.shape[1:]:
        raise ValueError(f"{name}: channels and spatial sizes must not be zero, got shape {tuple(x.shape)}")


def check_features(features: Sequence[Tensor], name: str) -> None:
    """As check_feature for each item; the items must share the batch size and the device."""
    if isinstance(features, Tensor) or not isinstance(features, Sequence) or not features:
        raise TypeError(f"{name}: expected a non-empty list of tensors (B, C, *spatial), got {describe(features)}")
    for index, x in enumerate(features):
        check_feature(x, f"{name}[{index}]")
        first = features[0]
        if x.shape[0] != first.shape[0]:
            raise ValueError(f"{name}[{index}]: expected batch size {first.shape[0]} as in {name}[0], got {x.shape[0]}")
        if x.device != first.device:
            raise ValueError(f"{name}[{index}]: expected device {first.device} as in {name}[0], got {x.device}")


def check_lengths(lengths: Tensor | Sequence[int] | None, batch: int, device: torch.device) -> Tensor | None:
    """`lengths` as int64 on `device`. Raises TypeError or ValueError unless None or integers (batch,)."""
    if lengths is None:
        return None
    if not isinstance(lengths, Tensor):
        try:
            lengths = torch.as_tensor(lengths)
        except (TypeError, ValueError, RuntimeError) as error:
            raise TypeError(f"lengths: expected integers (valid frames), got {describe(lengths)}") from error
    dtype = lengths.dtype
    if dtype.is_floating_point or dtype.is_complex or dtype == torch.bool:
        raise TypeError(f"lengths: expected integers (valid frames), got {dtype}")
    if lengths.shape != (batch,):
        raise ValueError(f"lengths: expected shape ({batch},), got {tuple(lengths.shape)}")
    return lengths.to(device=device, dtype=torch.int64).contiguous()


def check_padded_length(padded_length: int) -> int:
    """`padded_length`. Raises TypeError unless it is a number, ValueError unless that is whole and positive."""
    if isinstance(padded_length, bool) or not isinstance(padded_length, int | float | torch.SymInt):
        raise TypeError(f"padded_length: expected a positive whole number of frames, got {describe(padded_length)}")
    if isinstance(padded_length, float) or padded_length < 1:
        raise ValueError(f"padded_length: expected a positive whole number of frames, got {padded_length!r}")
    return padded_length


def valid_frames(lengths: Tensor, frames: int, padded_length: int) -> Tensor:
    """Valid frames (B,) of a map with `frames` frames: ceil(lengths * frames / padded_length), within 0..frames."""
    return (lengths.clamp(0, padded_length) * frames + padded_length - 1) // padded_length


def frame_mask(lengths: Tensor | None, frames: int, padded_length: int) -> Tensor | None:
    """(B, frames) bool, true where a frame is valid; None where every frame is."""
    if lengths is None:
        return None
    return torch.arange(frames, device=lengths.device) < valid_frames(lengths, frames, padded_length)[:, None]


def broadcast_mask(x: Tensor, lengths: Tensor | None, padded_length: int) -> Tensor | None:
    """frame_mask of a feature, with the axes to broadcast over it: (B, 1, T) or (B, 1, T, 1)."""
    mask = frame_mask(lengths, x.shape[2], padded_length)
    return None if mask is None else mask.view(x.shape[0], 1, x.shape[2], *[1] * (x.dim() - 3))


def is_channels_last(x: Tensor) -> bool:
    """True if `x` lies in memory as (B, *spatial, C) and not at the same time as (B, C, *spatial)."""
    return not x.is_contiguous() and x.movedim(1, -1).is_contiguous()


def dense(x: Tensor) -> Tensor:
    """`x` as it lies if it is contiguous or channels_last, else one contiguous copy."""
    return x if is_channels_last(x) else x.contiguous()


def empty_like(x: Tensor) -> Tensor:
    """Uninitialised memory with the shape and dtype of `x`, in the layout that `dense(x)` has."""
    if is_channels_last(x):
        order = (0, *range(2, x.dim()), 1)
        return x.new_empty([x.shape[axis] for axis in order]).movedim(-1, 1)
    return x.new_empty(x.shape)


def describe(value) -> str:
    """What came instead of what was expected, for a message: of tensors the shape, dtype and device, never values."""
    if isinstance(value, Tensor):
        return f"a {value.dtype} tensor of shape {tuple(value.shape)} on {value.device}"
    if isinstance(value, list | tuple | dict | set):
        items = list(value.values() if isinstance(value, dict) else value)
        if any(isinstance(item, Tensor | list | tuple | dict | set) for item in items):
            return f"{type(value).__name__} of {len(items)}, the first {describe(items[0])}"
    text = repr(value)
    return f"{type(value).__name__} {text if len(text) <= LONGEST else text[:LONGEST] + '...'}"


def changing(*values: float) -> bool:
    """Whether torch.compile, which traces this, takes one of the numbers for one that changes from call to call."""
    if not torch.compiler.is_compiling():
        return False
    from torch.fx.experimental.symbolic_shapes import has_static_value  # slow to import

    return not all(has_static_value(value) for value in values)


def scalar(value: float, device: torch.device, dtype: torch.dtype | None = None) -> Tensor:
    """A number that may change from call to call, as an op takes it: 0-dim, by default in matrix_dtype.

    torch.compile makes a constant of a float that an op takes, and compiles again when it changes; of this it does not.
    """
    dtype = matrix_dtype(device) if dtype is None else dtype
    if torch.compiler.is_compiling():  # of these, only arithmetic with a tensor keeps a float that changes
        return torch.ones((), dtype=dtype, device=device) * value
    return torch.full((), value, dtype=dtype, device=device)
