"""Losses by name, and several at once: at, "abc_maps(attention=uniform)", "at + response"."""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import Any

import torch
from torch import nn

from .cache import CHANNELS, Cache, with_features
from .candidates import CANDIDATES
from .package import InputError
from .rivals import RIVALS, Stacked
from .segments import LENGTH
from .views import Loss, Shapes

LOSSES = {**RIVALS, **CANDIDATES}


def build(text: str, shapes: Shapes) -> Loss:
    """NAME, NAME(key=value,...), or several of them joined by ' + ', each maybe behind a factor: '0.5 * at'."""
    parts = [part.strip() for part in text.split(" + ")]
    losses = []
    for part in parts:
        match = re.fullmatch(r"(?:([\d.]+)\s*\*\s*)?(\w+)(?:\((.*)\))?", part)
        if match is None or match[2] not in LOSSES:
            raise InputError(f"loss {text!r}: expected some of {', '.join(LOSSES)}, got {part!r}")
        options = dict(item.split("=") for item in re.findall(r"[^,\[]+=(?:\[[^\]]*\]|[^,]+)", match[3] or ""))
        options = {key.strip(" ,"): _value(value) for key, value in options.items()}
        losses.append((float(match[1] or 1), LOSSES[match[2]](shapes, **options)))
    return losses[0][1] if len(losses) == 1 and losses[0][0] == 1 else Stacked(losses)


def _value(text: str) -> Any:
    text = text.strip()
    if text.startswith("["):
        return [_value(part) for part in text[1:-1].split(",")]
    for kind in (int, float):
        try:
            return kind(text)
        except ValueError:
            pass
    return {"true": True, "false": False}.get(text, text)


@torch.no_grad()
def shapes_of(student: nn.Module, cache: Cache) -> Shapes:
    _, features = with_features(student, torch.zeros(1, LENGTH))
    return Shapes(
        tuple(features),
        tuple(x.shape[1] for x in features.values()),
        tuple(x.shape[3] for x in features.values()),
        tuple(layer.name for layer in cache.layers),
        tuple(layer.bands for layer in cache.layers),
        CHANNELS,
    )


def parameters_of(losses: Sequence[nn.Module]) -> list[nn.Parameter]:
    return [p for loss in losses for p in loss.parameters() if p.requires_grad]
