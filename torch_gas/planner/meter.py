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

    CUDA's allocator keeps count, and its peak is set back. On the CPU, the allocations that torch's profiler saw are summed up,
    less those of them that were freed. Python collects no garbage meanwhile, because what CUDA has left of earlier calls would be
    subtracted.
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
    nodes, changes = list(profiler.profiler.kineto_results.experimental_event_tree()), []
    while nodes:
        node = nodes.pop()
        nodes += node.children
        if node.name == "[memory]":
            changes.append((node.start_time_ns, node.extra_fields.ptr, node.extra_fields.alloc_size))
    # By address: of memory from before the call, frees tell sizes that lay there in earlier profiles, if any.
    sizes, held, peak = dict[int, int](), 0, 0
    for _, address, size in sorted(changes, key=lambda change: change[0]):
        if size > 0:
            sizes[address] = size
            held += size
            peak = max(peak, held)
        else:
            held -= sizes.pop(address, 0)
    return Metered(result, peak, held)


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
