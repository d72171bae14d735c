"""What users call the calls and arguments of the core, of which errors speak."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import ParamSpec, TypeVar

from torch_gas._core.build import _C

P = ParamSpec("P")
R = TypeVar("R")

called: Callable[[str], str] = _C.call_name
"""What the user called where the core runs a call."""
arg: Callable[[str], str] = _C.argument_name
"""The user's name for an argument of the core."""


def at(call: str, name: str) -> str:
    """How an error about an argument begins."""
    return f"{called(call)}: `{arg(name)}`"


def naming(call: str, **names: str) -> Callable[[Callable[P, R]], Callable[P, R]]:
    """Decorator: errors that the core raises inside of the function speak of the call and the arguments that its user knows.

    Names are looked up when the text of an error is made, here and in C++, so that other calls cost nothing.

    Args:
        call: what the user called.
        **names: the user's name for an argument of the core.

    Example:
        >>> import torch
        >>> from torch_gas._core import gather_rows
        >>> @naming("read", index="ids")
        ... def read(table, ids):
        ...     return gather_rows(table, ids)
        >>> read(torch.zeros(2, 1), torch.tensor([2]))
        Traceback (most recent call last):
        IndexError: read: every id in `ids` must be in [0, 2), but ids[0] is 2
    """
    known = _C.Naming(call, names)
    enter, leave = known.enter, known.leave

    def decorate(function: Callable[P, R]) -> Callable[P, R]:
        @functools.wraps(function)
        def wrapper(*args: P.args, **kwargs: P.kwargs) -> R:
            try:
                enter()  # Ctrl-C may end this line, and only when it is done: so it belongs into the block
                return function(*args, **kwargs)
            finally:
                leave()

        return wrapper

    return decorate
