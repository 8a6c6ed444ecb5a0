"""compress: the small end of attention-based compression, from attention maps to a distance per student layer.

For n student maps and m teacher maps of any resolution, pooled to `grid` by the windows W_u of adaptive average pooling
(floor(u N / g) .. ceil((u + 1) N / g) along each axis; they overlap where g does not divide N, and repeat where g > N):

    A_l[u]   = mean of map l over the valid positions in W_u
    a_l      = A_l / max(||A_l||, 1e-12)        over the whole map, or over each frame (row) by itself
    s_ij     = <a_i, a_j> / temperature         unless scores are given; per frame: the mean over valid frames
    alpha_i  = softmax_j s_ij                   over the teacher layers that the mask allows; a layer of weight 0
                                                takes no part, whatever its map holds
    c_i      = sum_j alpha_ij a_j
    d_i      = ||a_i - c_i||^2                  per frame: the mean over valid frames; in [0, 2]

Everything is float32, or float64 if any map is. Distances are summed from differences (cpu, triton, reference) or from
inner products in float64 (cuda): where a student has learned its teacher, the difference of two large float32 products
would have no digits left. On cuda a distance below 1e-15 is noise, also for float64 maps.

Ranges: float32 squares its maps twice (cuda does that in float64), so that features must stay below about 1e8 in size,
and below 1e-6 the norm of their energies reaches the 1e-12 of the definition.

Forward also computes the derivative of each d_i (d_i depends on map i only), so that backward needs no map again:
what is saved is one grid per student layer. Bytes: the maps are 1/C of the features; both passes together move less
than 4/C of a feature's bytes.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from .. import shapes
from ..contract import op


def compress(
    student_maps: Sequence[Tensor],
    teacher_maps: Sequence[Tensor],
    *,
    scores: Tensor | None = None,
    mask: Tensor | None = None,
    grid: Sequence[int] | None = None,
    per_frame: bool = False,
    temperature: float = 0.1,
    lengths: Tensor | None = None,
    padded_length: int | None = None,
) -> tuple[Tensor, Tensor]:
    """Distances and attention of attention-based compression (the definition is at the top of this module).

    student_maps    n maps (B, T) or (B, T, F) as `tap` returns them, of any sizes.
    teacher_maps    m such maps.
    scores          (B, n, m), taken instead of similarities; temperature is then not used.
    mask            (n, m) bool, true where student layer i may use teacher layer j.
    grid            common resolution, (T,) or (T, F); default: the minimum of all maps, per axis.
    per_frame       normalise each frame by itself.
    temperature     of the similarities.
    lengths         (B,) integers: valid frames.
    padded_length   the frames to which lengths refer; default: T of the map with most.

    Returns distances (B, n) and attention (B, n, m). Gradients reach the student maps and `scores`; never the teacher
    maps. The attention is differentiable with respect to `scores` and constant without them.

    Raises TypeError or ValueError that names the argument. Source: our reading of ABC-KD, arXiv 2305.16665.
    """
    maps = [*student_maps, *teacher_maps]
    _check_maps(student_maps, teacher_maps)
    frames_only = maps[0].dim() == 2
    grid = common_grid(maps, grid)
    if per_frame and grid[1] == 1:
        raise ValueError(
            f"normalize='frame' (per_frame) needs a second spatial axis: one value per frame is constant when "
            f"normalised, got grid {tuple(grid)}"
        )
    if not temperature > 0:
        raise ValueError(f"temperature: expected a positive number, got {temperature}")
    batch, device = maps[0].shape[0], maps[0].device
    padded_length = max(x.shape[1] for x in maps) if padded_length is None else padded_length
    padded_length = shapes.check_padded_length(padded_length)
    lengths = shapes.check_lengths(lengths, batch, device)
    dtype = torch.float64 if any(x.dtype == torch.float64 for x in maps) else torch.float32
    student_maps, teacher_maps = (
        [(x.unsqueeze(-1) if frames_only else x).to(dtype) for x in group] for group in (student_maps, teacher_maps)
    )
    pairs = (len(student_maps), len(teacher_maps))
    if scores is not None:
        if not isinstance(scores, Tensor):
            raise TypeError(f"scores: expected a tensor {(batch, *pairs)}, got {type(scores).__name__}")
        if scores.shape != (batch, *pairs):
            expected = f"{(batch, *pairs)} (batch, student layers, teacher layers)"
            raise ValueError(f"scores: expected shape {expected}, got {tuple(scores.shape)}")
        if scores.device != device:
            raise ValueError(f"scores: expected device {device}, got {scores.device}")
        scores = scores.to(dtype)
    mask = check_mask(mask, pairs, device)
    teacher_maps = [x.detach() for x in teacher_maps]
    distances, attention = _compress(
        student_maps, teacher_maps, scores, mask, grid, per_frame, temperature, lengths, padded_length
    )
    return distances, attention if scores is not None else attention.detach()


def check_mask(mask, pairs: tuple[int, int], device: torch.device | None = None) -> Tensor | None:
    """`mask` as a bool tensor on `device`. Raises ValueError if its shape is not `pairs` or a row allows nothing."""
    if mask is None:
        return None
    try:
        mask = torch.as_tensor(mask)
    except (ValueError, TypeError, RuntimeError) as error:
        expected = f"{pairs} booleans (student layers, teacher layers)"
        raise ValueError(f"mask: expected {expected}, got {shapes.describe(mask)}") from error
    if mask.shape != pairs:
        raise ValueError(f"mask: expected shape {pairs} (student layers, teacher layers), got {tuple(mask.shape)}")
    mask = mask.bool()
    # Reading a mask that lies on a GPU would wait for the GPU: such a mask is taken as it is.
    if mask.device.type == "cpu" and not torch.compiler.is_compiling():
        for index, row in enumerate(mask.tolist()):
            if not any(row):
                raise ValueError(f"mask[{index}]: student layer {index} may use no teacher layer; allow at least one")
    return mask.to(device)


def _check_maps(student_maps: Sequence[Tensor], teacher_maps: Sequence[Tensor]) -> None:
    for name, maps in (("student_maps", student_maps), ("teacher_maps", teacher_maps)):
        if isinstance(maps, Tensor) or not maps:
            raise TypeError(f"{name}: expected a non-empty list of maps (B, T) or (B, T, F)")
        for index, x in enumerate(maps):
            first = student_maps[0]
            if x.dim() not in (2, 3) or x.dim() != first.dim() or x.shape[0] != first.shape[0] or 0 in x.shape[1:]:
                expected = f"({first.shape[0]}, {'T' if first.dim() == 2 else 'T, F'})"
                raise ValueError(f"{name}[{index}]: expected shape {expected}, got {tuple(x.shape)}")
            if x.device != first.device:
                raise ValueError(f"{name}[{index}]: expected device {first.device}, got {x.device}")


def common_grid(maps: Sequence[Tensor], grid: Sequence[int] | None) -> list[int]:
    """`grid` as [T, F] (F = 1 for maps (B, T)); by default the elementwise minimum of the maps' spatial sizes."""
    axes = maps[0].dim() - 1
    if grid is None:
        grid = [min(x.shape[1 + axis] for x in maps) for axis in range(axes)]
    elif not isinstance(grid, Sequence) or len(grid) != axes or not all(isinstance(x, int) and x > 0 for x in grid):
        raise ValueError(f"grid: expected {axes} positive whole number{'s' * (axes > 1)}, got {shapes.describe(grid)}")
    return [*grid, 1][:2]


def _forward_shapes(
    student_maps, teacher_maps, scores, mask, grid, per_frame, temperature, lengths, padded_length, gradients
):
    like, pairs = student_maps[0], (len(student_maps), len(teacher_maps))
    batch = like.shape[0]
    attention = like.new_empty((batch, *pairs))
    if not gradients:
        return like.new_empty((batch, pairs[0])), attention, like.new_empty(0), like.new_empty(0)
    return (
        like.new_empty((batch, pairs[0])),
        attention,
        torch.empty_like(attention),
        like.new_empty((batch, pairs[0], *grid)),
    )


def _backward_shapes(
    grad_distances, grad_attention, attention, attention_grads, map_grads, student_maps_sizes, lengths, padded_length,
    needed,
):  # fmt: skip
    sizes = zip(student_maps_sizes[::2], student_maps_sizes[1::2], strict=True)
    wanted = needed[0] and grad_distances is not None
    maps = [map_grads.new_empty((map_grads.shape[0], *size)) for size in sizes if wanted]
    return maps, torch.empty_like(attention) if needed[1] else attention.new_empty(0)


def score_gradients(
    grad_distances: Tensor | None, grad_attention: Tensor | None, attention: Tensor, attention_grads: Tensor,
    needed: bool,
) -> Tensor:  # fmt: skip
    """The gradient of the scores (B, n, m), through the attention's and through the distances'; empty if not needed."""
    if not needed:
        return attention.new_empty(0)
    total = torch.zeros_like(attention) if grad_attention is None else grad_attention
    if grad_distances is not None:
        total = total + grad_distances.unsqueeze(-1) * attention_grads
    total = total.masked_fill(attention == 0, 0)  # the derivative of an entropy is infinite there
    return attention * (total - (attention * total).sum(-1, keepdim=True))


_compress = op(
    __name__,
    forward="(Tensor[] student_maps, Tensor[] teacher_maps, Tensor? scores, Tensor? mask, SymInt[] grid,"
    " bool per_frame, float temperature, Tensor? lengths, SymInt padded_length, bool gradients)"
    " -> (Tensor distances, Tensor attention, Tensor attention_grads, Tensor map_grads)",
    backward="(Tensor? grad_distances, Tensor? grad_attention, Tensor attention, Tensor attention_grads,"
    " Tensor map_grads, SymInt[] student_maps_sizes, Tensor? lengths, SymInt padded_length, bool[] needed)"
    " -> (Tensor[] student_maps, Tensor scores)",
    forward_shapes=_forward_shapes,
    backward_shapes=_backward_shapes,
    native=("cpu", "cuda"),
)
