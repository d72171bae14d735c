"""A mode of torch's functions that Ctrl-C does not leave behind."""

from __future__ import annotations

from typing import TypeVar

from torch.overrides import TorchFunctionMode, _get_current_function_mode_stack, _pop_mode, _push_mode

T = TypeVar("T", bound="Mode")


class Mode(TorchFunctionMode):
    """Is left once, whatever torch was doing with it.

    Where torch calls a mode, it takes it off its stack by a generator, which puts it back. If Ctrl-C comes in between, a mode may
    be gone when it is left, or come back when the generator is freed, long after that.
    """

    def __init__(self) -> None:
        super().__init__()
        self._is_entered = False

    def __enter__(self: T) -> T:
        _take_off(
            [each for each in _get_current_function_mode_stack() if isinstance(each, Mode) and not each._is_entered]
        )
        super().__enter__()
        self._is_entered = True
        return self

    def __exit__(self, *error: object) -> None:
        self._is_entered = False  # from here on, functions of torch are as they were, even if Ctrl-C comes now
        _take_off([self])


def _take_off(modes: list[TorchFunctionMode]) -> None:
    """Takes modes off torch's stack, if they are there, and leaves the others in their order."""
    stack = _get_current_function_mode_stack()
    first = next((place for place, mode in enumerate(stack) if any(mode is each for each in modes)), len(stack))
    for _ in stack[first:]:
        _pop_mode()
    for mode in stack[first:]:
        if not any(mode is each for each in modes):
            _push_mode(mode)
