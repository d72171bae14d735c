"""What Ctrl-C does, at a moment that is chosen."""

from __future__ import annotations

import signal
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import FrameType
from typing import Any

import torch


def interrupt_after(seconds: float, work: Callable[[], None], times: int = 1) -> bool:
    """Interrupts ``work`` after some time, and again soon after that if it is to happen twice; whether it came in time."""
    left = 0

    def interrupt(*_: Any) -> None:
        nonlocal left
        if left > 0:
            left -= 1
            raise KeyboardInterrupt

    before = signal.signal(signal.SIGALRM, interrupt)
    with _ignored_in_finalizers():
        try:
            try:
                left = times
                signal.setitimer(signal.ITIMER_REAL, seconds, 1e-4)
                work()
            finally:
                left = 0
        except KeyboardInterrupt:
            return True
        finally:
            signal.setitimer(signal.ITIMER_REAL, 0)
            signal.signal(signal.SIGALRM, before)
    return False


def interrupt_at(number: int, files: set[str | None], work: Callable[[], None]) -> bool:
    """Interrupts ``work`` where a function in some files begins or ends, the one of this number; whether it came so far."""
    count = 0

    def trace(frame: FrameType, event: str, argument: Any) -> Any:
        nonlocal count
        if frame.f_code.co_filename not in files:
            return None
        frame.f_trace_lines = False
        if event in ("call", "return"):
            count += 1
            if count == number:
                raise KeyboardInterrupt
        return trace

    before = sys.gettrace()
    with _ignored_in_finalizers():
        sys.settrace(trace)
        try:
            work()
        except KeyboardInterrupt:
            return True
        finally:
            sys.settrace(before)
    return False


@contextmanager
def _ignored_in_finalizers() -> Iterator[None]:
    """Python reports an interrupt there, and goes on."""
    before, mode = sys.unraisablehook, torch.is_grad_enabled()

    def report(failure: Any) -> None:
        if failure.exc_type is not KeyboardInterrupt:
            before(failure)

    sys.unraisablehook = report
    try:
        yield
    finally:
        sys.unraisablehook = before
        # What torch does not always put back where it is interrupted: `with torch.no_grad()`, and how it compiles.
        torch.set_grad_enabled(mode)
        if hasattr(torch.compiler, "set_stance"):
            torch.compiler.set_stance("default")
