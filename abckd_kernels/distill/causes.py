"""Why a named layer did not run: the cause, in one sentence."""

from __future__ import annotations

import inspect
import re
from collections.abc import Sequence

import torch
from torch import nn

from .layers import child


def why_not(name: str, network: nn.Module) -> str:
    """The cause for which no hook on the layer `name` was called in a forward pass of the network."""
    parts = name.split(".")
    around = [network, *_above(network, parts)]
    if any(isinstance(module, torch.jit.ScriptModule) for module in around):
        return "did not run: it is part of a TorchScript program, which calls no hooks; name what that returns"
    if any(isinstance(module, torch.fx.GraphModule) for module in around):
        return "did not run: it is part of an exported program, which calls no layers; name what that returns"
    if any(hasattr(module, "_orig_mod") for module in network.modules()):
        return (
            "did not run: it is part of a module that torch.compile compiled before, without hooks; compile the "
            "Distiller or the training step instead, or call torch.compiler.reset() before the first step"
        )
    for module in network.modules():
        try:
            source = inspect.getsource(type(module).forward)
        except (OSError, TypeError):
            continue
        if re.search(rf"(\b{re.escape(parts[-1])}|\])\.forward\(", source):
            return f"did not run: {type(module).__name__} calls .forward() of its layers, which skips their hooks"
    return "did not run in the forward pass"


def _above(module: nn.Module, parts: Sequence[str]) -> list[nn.Module]:
    """The modules on the way to a layer."""
    found = []
    for part in parts:
        inner = child(module, part)
        if inner is None:
            break
        found.append(inner)
        module = inner
    return found
