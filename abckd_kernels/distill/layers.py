"""Which tensor of a network a loss gets, and how its axes are read: one value per layer, with a short form in text.

    name[:element ...][@in][@call][@order]

    "encoder.0"            what this module returns
    "decoder:1:mask"       the element "mask" of the element 1 of what it returns
    "blocks.3@btc"         its axes are batch, time, channels
    "relu@in"              what it is given
    "block@0", "block@all" a module that runs several times: its first call, all of them as several features
    ":", ":logits"         what the network itself returns, an element of it
"""

from __future__ import annotations

import dataclasses
import difflib
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Literal

from torch import Tensor, nn

_WRAPPED_IN = ("_orig_mod", "module", "_checkpoint_wrapped_module", "_fsdp_wrapped_module")


@dataclass(frozen=True)
class Layer:
    """A layer of a network, and what is read of it.

    name        as in `named_modules()`; "" is the network itself. Parts of a name that wrappers add may be left out
                (torch.compile, DistributedDataParallel, AveragedModel, checkpoint wrappers, PEFT's models).
    element     the way into what the layer returns: indices of tuples and lists, keys of dicts, fields of dataclasses.
    order       the axes, in the order in which they lie: "b" batch, "c" channels, any other letter a spatial axis:
                "btc", "tbc", "bhwc". None: channels follow the batch, unless the network says otherwise (`orders`).
    input       read what the layer is given, not what it returns; `element` then chooses among its arguments, by
                position or by name. By default the first.
    call        of a module that runs several times: 0, 1, ..., or "all", which gives a feature per call.
    transform   of the tensor, before its axes are read: takes the class token away, joins windows. It must not change
                the tensor in place. The network goes on with what the layer returned.

    Raises ValueError that names the layer.
    """

    name: str
    element: tuple[str, ...] = ()
    order: str | None = None
    input: bool = False
    call: int | Literal["all"] | None = None
    transform: Callable[[Tensor], Tensor] | None = None

    def __post_init__(self) -> None:
        if self.order is not None:
            _check_order(self.order, self.name)
        if self.input and not self.name:
            raise ValueError(f"{self}: a network's own inputs are the caller's; name a layer")

    def __str__(self) -> str:
        parts = [":".join((self.name, *self.element)) or ":", "in" if self.input else None, self.call, self.order]
        return "@".join(str(part) for part in parts if part is not None)

    @property
    def path(self) -> tuple[str, ...]:
        """The way to the tensor in what the layer returns or, position or name first, in its arguments."""
        return self.element or (("0",) if self.input else ())

    @classmethod
    def parse(cls, text: str | Layer) -> Layer:
        """The layer that `text` names. Raises ValueError."""
        if isinstance(text, Layer):
            return text
        if not isinstance(text, str) or not text:
            raise ValueError(f"{text!r} is no layer: expected a name, ':' for the network's output, or a Layer")
        path, *how = text.split("@")
        name, *element = path.split(":")
        layer = cls(name, tuple(part for part in element if part))
        for part in how:
            if part == "in":
                layer = dataclasses.replace(layer, input=True)
            elif part == "all" or part.isdigit():
                layer = dataclasses.replace(layer, call="all" if part == "all" else int(part))
            else:
                _check_order(part, text)
                layer = dataclasses.replace(layer, order=part)
        return layer


def _check_order(order: str, layer: str) -> None:
    if not order.isalpha() or len(set(order)) < len(order) or not {"b", "c"} <= set(order):
        raise ValueError(
            f"'{layer}': {order!r} is no order of axes; expected b (batch), c (channels) and a letter for each other "
            "axis, as in 'btc' or 'bhwc', or 'in', 'all', or the number of a call"
        )


def find(network: Any, layer: Layer, where: str) -> nn.Module:
    """The module that the layer's name means now. Raises ValueError with near matches."""
    if not isinstance(network, nn.Module):
        kind = getattr(network, "__name__", type(network).__name__)
        raise ValueError(f"{where}: {kind} is a function, which has no layers; name what it returns, as in ':0'")
    module = _walk(network, layer.name.split("."))
    if module is not None:
        return module
    names = [name for name, _ in network.named_modules() if name]
    near = difflib.get_close_matches(layer.name, names, n=3, cutoff=0.5)
    hint = f"did you mean {', '.join(map(repr, near))}?" if near else f"it has {', '.join(names[:5])}, ..."
    raise ValueError(f"{where} is no layer of {type(network).__name__}; {hint}")


def _walk(module: nn.Module, parts: Sequence[str]) -> nn.Module | None:
    if not parts:
        return module
    inner = child(module, parts[0])
    found = None if inner is None else _walk(inner, parts[1:])
    if found is not None:
        return found
    of_peft = ("base_model", "model") if type(module).__module__.startswith("peft.") else ()
    for wrapped in (*_WRAPPED_IN, *of_peft):
        inner = child(module, wrapped)
        if inner is not None:
            return _walk(inner, parts)
    return None


def child(module: nn.Module, name: str) -> nn.Module | None:
    """A submodule, or None."""
    return module._modules[name] if name in module._modules else None  # TorchScript's dict has no get


def element_of(output: Any, path: Sequence[str], where: str) -> Any:
    """The element of a nested output. Raises ValueError that names the layer."""
    for part in path:
        output = _step(output, part, where)
    return output


def _step(output: Any, part: str, where: str) -> Any:
    if isinstance(output, Tensor):
        raise ValueError(f"{where}: it returns a tensor of shape {tuple(output.shape)}, which has no element {part!r}")
    try:
        if isinstance(output, dict):
            return output[part] if part in output else list(output.values())[int(part)]
        if dataclasses.is_dataclass(output) or not _is_index(part):
            return getattr(output, part)
        return output[int(part)]
    except (KeyError, IndexError, ValueError, TypeError, AttributeError) as error:
        raise ValueError(f"{where}: a {type(output).__name__} has no element {part!r}") from error


def _is_index(part: str) -> bool:
    return part.lstrip("-").isdigit()


def replaced(output: Any, path: Sequence[str], value: Tensor) -> Any:
    """The nested output with another tensor in the place that `path` leads to."""
    if not path:
        return value
    part, *others = path
    inner = replaced(_step(output, part, ""), others, value)
    if isinstance(output, dict):
        key = part if part in output else list(output)[int(part)]
        if type(output) is dict:
            return {**output, key: inner}
        changed = type(output)(**{**output, key: inner}) if dataclasses.is_dataclass(output) else type(output)(output)
        changed[key] = inner
        return changed
    if dataclasses.is_dataclass(output):
        return dataclasses.replace(output, **{part: inner})  # type: ignore[type-var]
    if hasattr(output, "_fields"):
        field = output._fields[int(part)] if _is_index(part) else part
        return output._replace(**{field: inner})
    items = list(output)
    items[int(part)] = inner
    return type(output)(items)
