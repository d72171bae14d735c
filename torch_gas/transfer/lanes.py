"""Lanes: queues of work, each in order, that events put in order among each other."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple, Protocol

import torch
from torch import Tensor


class Event(Protocol):
    """A point in a lane."""

    def synchronize(self) -> None:
        """Blocks the host until all work before it is done."""


class Lane:
    """Work that is done in the order in which it comes. This one is the host itself, which does it at once."""

    def run(self, operation: Callable[[], object]) -> None:
        """Queues ``operation``."""
        operation()

    def wait(self, event: Any) -> None:
        """Lets what is queued from now on start only after ``event``, where there is one."""

    def record(self) -> Event | None:
        """The point that has been reached when all is done that was queued so far; None where it is done already."""
        return None

    def empty(self, size: int, dtype: torch.dtype, device: torch.device) -> Tensor:
        """Memory for the use of this lane."""
        return torch.empty(size, dtype=dtype, device=device)

    def hold(self, tensor: Tensor) -> None:
        """Keeps the memory of ``tensor``, which another lane allocated, for what is queued here."""


class CurrentStream(Lane):
    """Whatever CUDA stream the caller computes on."""

    def __init__(self, device: torch.device) -> None:
        self.device = device

    @property
    def stream(self) -> torch.cuda.Stream:
        """The stream."""
        return torch.cuda.current_stream(self.device)

    def wait(self, event: Any) -> None:
        if event is not None:
            self.stream.wait_event(event)

    def record(self, blocking: bool = False) -> torch.cuda.Event:
        """As of any lane; with ``blocking``, a host that waits for it sleeps, and leaves its core to others."""
        return self.stream.record_event(torch.cuda.Event(blocking=blocking))

    def hold(self, tensor: Tensor) -> None:
        tensor.record_stream(self.stream)


class SideStream(CurrentStream):
    """A CUDA stream of its own, which goes before others where they compete for the device."""

    def __init__(self, device: torch.device) -> None:
        super().__init__(device)
        self._stream = torch.cuda.Stream(device, priority=-1)

    @property
    def stream(self) -> torch.cuda.Stream:
        return self._stream

    def run(self, operation: Callable[[], object]) -> None:
        with torch.cuda.stream(self._stream):
            operation()

    def empty(self, size: int, dtype: torch.dtype, device: torch.device) -> Tensor:
        with torch.cuda.stream(self._stream):
            return torch.empty(size, dtype=dtype, device=device)


class Lanes(NamedTuple):
    """The lanes that transfers of one pool run on, and the one that layers run on."""

    compute: Lane
    pull: Lane
    push: Lane


def with_index(device: torch.device) -> torch.device:
    """``device`` as tensors on it name it."""
    if device.type != "cuda" or device.index is not None:
        return device
    return torch.device("cuda", torch.cuda.current_device())


def make_lanes(device: torch.device, concurrent: bool) -> Lanes:
    """Lanes for ``device``; all the same one unless transfers are to overlap with layers there."""
    compute = CurrentStream(device) if device.type == "cuda" else Lane()
    if device.type != "cuda" or not concurrent:
        return Lanes(compute, compute, compute)
    return Lanes(compute, SideStream(device), SideStream(device))


def send_ids(ids: Tensor, device: torch.device) -> Tensor:
    """``ids`` on ``device``; a copy from host memory is queued on the current stream, and the host does not wait for it."""
    if device.type != "cuda" or ids.device.type != "cpu":
        return ids.to(device)
    return (ids if ids.is_pinned() else ids.pin_memory()).to(device, non_blocking=True)


def finish(device: torch.device) -> None:
    """Blocks the host until all is done that was queued on the current stream of ``device``."""
    torch.cuda.current_stream(device).synchronize()


def refuse_capture(name: str) -> None:
    """Raises RuntimeError while a CUDA graph is captured: replaying it would move the rows of one batch again and again."""
    if torch.cuda.is_current_stream_capturing():
        raise RuntimeError(
            f"{name} was called while a CUDA graph is captured, and a step cannot be captured as a whole: batches differ in "
            "size, and the host says which rows move. Capture parts of forward that see no histories, or use torch.compile(model)"
        )
