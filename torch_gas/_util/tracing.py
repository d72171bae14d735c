"""Functions that torch.compile leaves as they are, or that modes of torch's functions do not look into."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, TypeVar

import torch

_F = TypeVar("_F", bound=Callable[..., Any])


def untraced(function: _F) -> _F:
    """Decorator: neither the function nor what it calls is compiled."""
    return _of_methods(torch.compiler.disable(function))


def untraced_frame(function: _F) -> _F:
    """Decorator: the function is not compiled, but what it calls may be."""
    return _of_methods(torch.compiler.disable(function, recursive=False))


def _of_methods(wrapper: Any) -> Any:
    """``wrapper`` without the attribute by which older versions of torch see through it, and then lose a method's object."""
    vars(wrapper).pop("_torchdynamo_orig_callable", None)
    return wrapper


def unseen(function: Callable[..., Any], *args: Any) -> Any:
    """Calls a function whose work on tensors is no part of what a model does with them, for whoever follows that.

    Modes of torch's functions take a microsecond for each, and for each attribute of a tensor.
    """
    if torch.compiler.is_compiling():
        return function(*args)
    with torch._C.DisableTorchFunction():
        return function(*args)
