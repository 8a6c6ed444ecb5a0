"""Losses as modules: a function with its options chosen once."""

from __future__ import annotations

import inspect
import sys
from collections.abc import Callable

from torch import Tensor, nn

from .checks import check_weights
from .options import check_options

PER_CALL = ("ignore", "lengths", "padded_length")  # besides what has no default


class Configured(nn.Module):
    """A loss with its options chosen, and checked, when it is made; forward takes the function's other arguments.

    Subclasses name the function: `class ATLoss(Configured, function=at_loss)`. An option `weights` that is a tensor is
    a buffer, which moves with the module but is no part of its state; a list stays the numbers that were given.

    Raises TypeError or ValueError that names the option.
    """

    function: Callable[..., Tensor]

    def __init_subclass__(cls, function: Callable[..., Tensor] | None = None, **others):
        super().__init_subclass__(**others)
        if function is not None:
            cls.function = staticmethod(function)

    def __init__(self, **options):
        super().__init__()
        known = option_names(self.function)
        for name in options:
            if name not in known:
                raise TypeError(f"{type(self).__name__}: unexpected option {name!r}; it has {', '.join(known)}")
        check_options(self.function, **options)
        hold_weights(self, options.pop("weights", None), None)
        self.options = options

    def forward(self, *inputs, **per_call) -> Tensor:
        """The loss; arguments as in the functional form, but for the options."""
        if self.weights is not None:
            per_call["weights"] = self.weights
        return self.function(*inputs, **per_call, **self.options)

    def extra_repr(self) -> str:
        """The options."""
        weights = {} if self.weights is None else {"weights": self.weights}
        return ", ".join(f"{name}={value!r}" for name, value in (self.options | weights).items())


def hold_weights(loss: nn.Module, weights, n: int | None) -> None:
    """`loss.weights`: a buffer where they are a tensor, numbers otherwise (None: equal). Raises ValueError."""
    weights = check_weights(weights, n)
    if isinstance(weights, Tensor):
        loss.register_buffer("weights", weights, persistent=False)
    else:
        loss.weights = weights


def option_names(function: Callable) -> list[str]:
    """The options of a loss: what is keyword-only in its signature and does not change from call to call."""
    parameters = inspect.signature(function).parameters.values()
    return [x.name for x in parameters if x.kind is x.KEYWORD_ONLY and x.name not in PER_CALL]


def module(function: Callable[..., Tensor], name: str) -> type[Configured]:
    """The module `name` of a loss that has no learned parts: `PKTLoss = module(pkt_loss, "PKTLoss")`."""
    home = sys.modules[function.__module__]
    document = f"`{function.__name__}` with its options chosen, and checked, once.\n\n{inspect.getdoc(function)}"
    cls = type(name, (Configured,), {"__doc__": document, "__module__": home.__name__}, function=function)
    parameters = list(inspect.signature(function).parameters.values())
    options = option_names(function)
    cls.__signature__ = inspect.Signature([x for x in parameters if x.name in options])  # type: ignore[attr-defined]

    def forward(self, *inputs, **per_call):
        return Configured.forward(self, *inputs, **per_call)

    me = inspect.Parameter("self", inspect.Parameter.POSITIONAL_OR_KEYWORD)
    forward.__signature__ = inspect.Signature(  # type: ignore[attr-defined]
        [me, *(x for x in parameters if x.name not in options)]
    )
    cls.forward = forward  # type: ignore[attr-defined]
    return cls
