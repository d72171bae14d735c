"""Counts the bytes of tensors that a call allocates."""

from __future__ import annotations

import gc
import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, NamedTuple

import torch

_CPU = torch.profiler.ProfilerActivity.CPU
_LOG_LEVEL = "KINETO_LOG_LEVEL"


class Metered(NamedTuple):
    """What a call returned, and the bytes that it allocated.

    Args:
        result: what it returned.
        peak: the most bytes that were allocated at a time, beyond those from before the call.
        held: those that are left, such as the result's.
    """

    result: Any
    peak: int
    held: int


def metered(function: Callable[[], Any], device: torch.device) -> Metered:
    """Calls ``function`` and counts what it allocates on ``device``.

    CUDA's allocator keeps count, and its peak is set back. On the CPU, the allocations and frees that torch's profiler saw are
    summed up. Python collects no garbage meanwhile, because what is left of earlier calls would be subtracted.
    """
    was_enabled = gc.isenabled()
    gc.disable()
    try:
        return _metered(function, device)
    finally:
        if was_enabled:
            gc.enable()


def _metered(function: Callable[[], Any], device: torch.device) -> Metered:
    if device.type == "cuda":
        torch.cuda.synchronize(device)
        torch.cuda.reset_peak_memory_stats(device)
        before = torch.cuda.memory_allocated(device)
        result = function()
        torch.cuda.synchronize(device)
        peak, held = torch.cuda.max_memory_allocated(device), torch.cuda.memory_allocated(device)
        return Metered(result, peak - before, held - before)
    with _quiet(), torch.profiler.profile(activities=[_CPU], profile_memory=True) as profiler:
        result = function()
    events = [event for event in profiler.profiler.kineto_results.events() if event.name() == "[memory]"]
    changes = [event.nbytes() for event in sorted(events, key=lambda event: event.start_ns())]
    total = torch.tensor([0, *changes], device="cpu").cumsum(0)
    return Metered(result, int(total.max()), int(total[-1]))


@contextmanager
def _quiet() -> Iterator[None]:
    """The profiler announces each start and stop on stderr, unless told not to when it first runs in a process."""
    was_set = _LOG_LEVEL in os.environ
    os.environ.setdefault(_LOG_LEVEL, "6")
    try:
        yield
    finally:
        if not was_set:
            del os.environ[_LOG_LEVEL]
