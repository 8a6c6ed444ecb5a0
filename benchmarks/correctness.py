"""What comes before every time: ours is the published form, and its rounding is that of the dtype."""

from __future__ import annotations

import copy
from dataclasses import replace

import torch
from torch import Tensor, nn

from .subjects import Setup, Subject, as_list, in_force

DTYPES = (torch.float32, torch.bfloat16, torch.float16)
SAMPLES = 8  # that the published form is computed of in float64: some of them need gigabytes for more
TOLERANCE = 1e-6
ROUNDING = {torch.float32: 1e-3, torch.bfloat16: 4 * 2.0**-7, torch.float16: 4 * 2.0**-10}


class Wrong(AssertionError):
    """A result is not what it has to be."""


def check(subject: Subject, setup: Setup, backend: str | None = None) -> None:
    """In float64 ours is the published form, where options say so; in the setup's dtype ours is ours in float64.

    Raises Wrong.
    """
    if subject.case.ours is None and subject.case.convention is not None:
        student, teacher = subject.inputs(replace(setup, dtype=torch.float64), batch=SAMPLES)
        extra, results = subject.extra(student, teacher), []
        for form, options in ((subject.entry.function, subject.case.convention), (subject.case.published, {})):
            with in_force(backend):
                loss = form(student, teacher, **extra, **options)
                results.append([loss.detach(), *torch.autograd.grad(loss, as_list(student))])
        for what, ours, theirs in zip(["loss", *["gradient"] * len(as_list(student))], *results, strict=True):
            _refuse(what, ((ours - theirs).norm() / theirs.norm()).item(), TOLERANCE)
    _refuse("gradient", error(subject, setup, backend)["gradient"], ROUNDING[setup.dtype])


def error(subject: Subject, setup: Setup, backend: str | None = None) -> dict[str, float]:
    """Relative error of loss and student gradient of ours to float64, and the share of zeros where that has none.

    In half precision the loss is multiplied by 2^16, where GradScaler begins, or by less where that overflows.
    """
    student, teacher = subject.inputs(setup)
    ours = subject.ours(student, teacher)
    exact_form = copy.deepcopy(ours).double() if isinstance(ours, nn.Module) else ours
    scale = 1.0 if setup.dtype == torch.float32 else 2.0**16

    def results(form, student, teacher, scale):
        with in_force(backend):
            loss = form(student, teacher, **subject.extra(student, teacher))
            gradients = torch.autograd.grad(loss * scale, as_list(student))
        return loss.detach(), torch.cat([g.flatten() for g in gradients])

    loss, gradient = results(ours, student, teacher, scale)
    while not gradient.isfinite().all() and scale > 2.0**-16:
        scale /= 2
        loss, gradient = results(ours, student, teacher, scale)
    exact, expected = results(exact_form, *(_widened(group) for group in (student, teacher)), scale)
    gradient = gradient.to(expected.dtype)
    return {
        "loss": ((loss - exact).abs() / exact.abs()).item(),
        "gradient": ((gradient - expected).norm() / expected.norm()).item(),
        "zeros": ((gradient == 0) & (expected != 0)).double().mean().item(),
    }


def errors(subject: Subject, setup: Setup) -> dict[str, dict[str, float]]:
    """`error` in every dtype that the loss takes."""
    setups = [replace(setup, dtype=dtype) for dtype in DTYPES]
    return {str(one.dtype).removeprefix("torch."): error(subject, one) for one in setups if not subject.why_not(one)}


def _refuse(what: str, off: float, allowed: float) -> None:
    if not off < allowed:
        raise Wrong(f"the {what} is off by {off:.1e}, allowed {allowed:.1e}: nothing measured")


def _widened(x: Tensor | list[Tensor]):
    if isinstance(x, list):
        return [_widened(one) for one in x]
    dtype = torch.promote_types(x.dtype, torch.float64)
    return x.detach().to(dtype).requires_grad_(x.requires_grad)
