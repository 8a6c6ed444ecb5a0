"""Functions of the user's, named package.module:function."""

from __future__ import annotations

import importlib
import os
import sys
from collections.abc import Callable
from typing import Any

from .errors import InputError


def function_of(name: str, argument: str) -> Callable[..., Any]:
    """The function of that name, of an installed package or of the current folder.

    argument   what the user wrote, for messages. Raises InputError.
    """
    module_name, _, function_name = name.partition(":")
    if os.getcwd() not in sys.path:  # an installed command does not search the current folder by itself
        sys.path.append(os.getcwd())
    try:
        function = getattr(importlib.import_module(module_name), function_name)
    except ImportError as error:
        raise InputError(f"{argument}: cannot import {module_name} of {name}: {error}") from error
    except AttributeError as error:
        raise InputError(f"{argument}: {module_name} has no {function_name}") from error
    if not callable(function):
        raise InputError(f"{argument}: expected a function, got {name}, which is a {type(function).__name__}")
    return function
