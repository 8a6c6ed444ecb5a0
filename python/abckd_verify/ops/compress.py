"""compress: definitions, cases and gates."""

from __future__ import annotations

import torch

from ..exact import oracle, plain
from ..spec import Make, Spec, cases, gate

WIDE = (torch.float32, torch.float64)  # maps have no other dtypes
ON_GRID = {"students": [(200, 64)] * 3, "teachers": [(200, 64)] * 6}
DOWN = {"students": [(7, 5), (4, 6)], "teachers": [(9, 5), (6, 3), (4, 4)]}
PADDED = {"students": [(10, 5), (5, 3)], "teachers": [(10, 5), (7, 4)], "lengths": (10, 7, 1, 4)}


def arguments(
    make: Make, batch: int, students, teachers, grid=None, per_frame=False, scored=False, masked=False, lengths=None,
    temperature: float = 0.1,
) -> dict:  # fmt: skip
    """students, teachers: shapes (T, F) of the maps."""
    maps = [make.numbers(batch, *shape).square_() for shape in (*students, *teachers)]
    n, m = len(students), len(teachers)
    mask = None
    if masked:
        mask = torch.arange(n * m).view(n, m) % 2 == 0
        mask[:, 0] = True
        mask = mask.to(make.device)
    return {
        "student_maps": maps[:n],
        "teacher_maps": maps[n:],
        "scores": make.numbers(batch, n, m) if scored else None,
        "mask": mask,
        "grid": list(grid or (min(axis) for axis in zip(*students, *teachers, strict=True))),
        "per_frame": per_frame,
        "temperature": temperature,
        "lengths": make.lengths(lengths),
        "padded_length": max(shape[0] for shape in (*students, *teachers)),
    }


def exact(student_maps, teacher_maps, **options):
    found = oracle.compress(student_maps, teacher_maps, **options)
    return found.distances, found.attention


SPEC = Spec(
    "compress",
    arguments,
    exact,
    plain.compress,
    cases=(
        *cases("padded", WIDE, batch=4, **PADDED),
        *cases("pooled", WIDE, batch=3, **DOWN),
        *cases("pooled, scores and mask", WIDE, batch=3, **DOWN, scored=True, masked=True),
        *cases("pooled, per frame", WIDE, batch=3, **DOWN, per_frame=True),
        *cases("padded, scores, per frame", WIDE, batch=4, **PADDED, scored=True, per_frame=True),
        *cases("finer grid", WIDE, batch=2, students=[(4, 5)], teachers=[(3, 7), (4, 5)], grid=(9, 8)),
        *cases("two cells", WIDE, batch=1, students=[(1, 2)], teachers=[(1, 2)]),
        *cases("long", WIDE, batch=2, students=[(1030, 1)], teachers=[(1030, 1)] * 2),
        # More student layers than a block has warps; products so many that a block sums over more cells than it holds.
        *cases("many layers", WIDE, batch=1, students=[(4, 3)] * 9, teachers=[(4, 3)] * 3),
        *cases("many cells", WIDE, batch=1, students=[(40, 40)] * 3, teachers=[(40, 40)] * 9),
        *cases("on the grid", WIDE, batch=2, students=[(40, 40)] * 2, teachers=[(40, 40)] * 3, masked=True),
    ),
    compiled=(
        *cases("on the grid", WIDE, batch=2, **ON_GRID, masked=True, lengths=(200, 77)),
        *cases("on the grid, per frame", WIDE, batch=2, **ON_GRID, per_frame=True, masked=True, lengths=(200, 77)),
        *cases("pooled", WIDE, batch=2, **ON_GRID, grid=(50, 24), masked=True, lengths=(200, 77)),
        *cases("pooled, per frame", WIDE, batch=2, **ON_GRID, grid=(50, 24), per_frame=True, lengths=(200, 77)),
        *cases("learned scores", WIDE, batch=2, **ON_GRID, scored=True),
    ),
    traffic=(
        *cases("frames", WIDE[:1], batch=1, students=[(130, 64)] * 3, teachers=[(130, 64)] * 6, per_frame=True),
        *cases("step", WIDE[:1], batch=1, students=[(130, 64)] * 3, teachers=[(130, 64)] * 6),
        *cases("step of two", WIDE[:1], batch=2, students=[(130, 64)] * 3, teachers=[(130, 64)] * 6),
        *cases("even", WIDE[1:], batch=1, students=[(130, 64)] * 2, teachers=[(130, 64)] * 3),
        *cases("odd", WIDE[:1], batch=1, students=[(51, 33)] * 2, teachers=[(51, 33), (27, 33), (51, 65)]),
        *cases("lengths", WIDE[:1], batch=3, students=[(96, 32)] * 2, teachers=[(96, 32)] * 2, lengths=(96, 60, 7)),
        *cases("odd lengths", WIDE[:1], batch=3, students=[(101, 33)] * 2, teachers=[(101, 33)] * 2,
               lengths=(101, 60, 7)),
    ),
    timed=tuple(cases("on the grid", WIDE, **ON_GRID)),
    launches={
        "triton": ("forward_kernel", "backward_kernel"),
        "cuda": tuple(
            f"compress_{part}_kernel"
            for part in ("norms", "products", "attention", "gradients", "frame_gradients", "backward")
        ),
    },
    gates=gate("unique_ratio"),
    framed={"student_maps": 1, "teacher_maps": 1},
    unread=("attention", "attention_grads"),
    through={"attention": "scores"},
    condition=lambda given: 1 / given["temperature"],
)  # fmt: skip
