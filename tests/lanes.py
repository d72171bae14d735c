"""Lanes that work as late, or in as odd an order, as the events between them allow: a model of CUDA streams on the CPU.

What is queued on a side lane is done when an event that covers it is waited for by the computing lane or the host, or at any
moment before, by chance. Rows that arrive in spite of that are ordered by events and by nothing else. Besides, each operation
says what memory it reads and writes, so that two that touch the same memory in no order are found (:meth:`FakeLanes.races`),
whatever moment they were done at.
"""

from __future__ import annotations

import random
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import torch
from torch import Tensor

from torch_gas import AsyncIOPool, _core


@dataclass(eq=False)
class Operation:
    """Work of a lane."""

    name: str
    work: Callable[[], object]
    before: set[Operation]  # what surely precedes it
    reads: list[Tensor] = field(default_factory=list)
    writes: list[Tensor] = field(default_factory=list)
    done: bool = False


def touches(left: Tensor, right: Tensor) -> bool:
    """Whether both lie in the same memory."""
    starts = left.data_ptr(), right.data_ptr()
    return (
        left.numel() > 0
        and right.numel() > 0
        and starts[0] < starts[1] + right.nbytes
        and starts[1] < starts[0] + left.nbytes
    )


class FakeEvent:
    def __init__(self, lanes: FakeLanes, covered: set[Operation]) -> None:
        self.lanes, self.covered = lanes, set(covered)

    def synchronize(self) -> None:
        self.lanes.host_waits += 1
        self.lanes.finish(self.covered)
        for lane in (self.lanes.compute, self.lanes.pull, self.lanes.push):  # the host queues nothing before it goes on
            lane.covered |= self.covered


class FakeLane:
    """A lane; the computing one works at once, as all torch operations here do."""

    def __init__(self, lanes: FakeLanes, name: str) -> None:
        self.lanes, self.name = lanes, name
        self.covered: set[Operation] = set()
        self.held: list[Tensor] = []
        self.made: list[Tensor] = []

    def run(self, work: Callable[[], object]) -> None:
        assert isinstance(work, partial)
        operation = Operation(self.name, work, set(self.covered))
        if work.func is _core.write_chunks:
            table, rows = work.args[0], work.args[3]
            operation.name, operation.writes, operation.reads = "push", [table], [rows]
            torch.autograd.graph.increment_version(table)  # the core does so when the work is queued

            def quietly() -> None:
                with torch.autograd._unsafe_preserve_version_counter(table):
                    work()

            operation.work = quietly
        else:
            operation.name, operation.reads, operation.writes = "pull", [work.args[0]], [work.keywords["out"]]
        self.lanes.add(self, operation)

    def wait(self, event: FakeEvent | None) -> None:
        if event is not None:
            self.covered |= event.covered
            if self is self.lanes.compute:
                self.lanes.finish(event.covered)

    def record(self) -> FakeEvent:
        return FakeEvent(self.lanes, self.covered)

    def empty(self, size: int, dtype: torch.dtype, device: torch.device) -> Tensor:
        self.made.append(torch.full((size,), 255, dtype=dtype))  # NaN, if anybody reads it
        return self.made[-1]

    def hold(self, tensor: Tensor) -> None:
        self.held.append(tensor)
        if self is self.lanes.compute:  # rows that were pulled are about to be used
            self.lanes.add(self, Operation("use", lambda: None, set(self.covered), reads=[tensor]))


class FakeLanes:
    """Three lanes, as :class:`torch_gas.transfer.lanes.Lanes` has them.

    Args:
        seed: of the moments at which work is done that nobody has waited for; None for as late as possible.
    """

    def __init__(self, seed: int | None = None) -> None:
        self.random = None if seed is None else random.Random(seed)
        self.operations: list[Operation] = []
        self.host_waits = 0
        self.compute, self.pull, self.push = (FakeLane(self, name) for name in ("compute", "pull", "push"))

    def add(self, lane: FakeLane, operation: Operation) -> None:
        self.operations.append(operation)
        lane.covered.add(operation)
        if lane is self.compute:
            self.finish({operation})
        elif self.random is not None:
            waiting = [other for other in self.operations if not other.done]
            for other in self.random.sample(waiting, self.random.randint(0, len(waiting))):
                self.finish({other})

    def finish(self, operations: set[Operation]) -> None:
        """Does what has not been done of ``operations``, and all before it."""
        for operation in [o for o in self.operations if o in operations and not o.done]:
            if not operation.done:  # nor on the way to another
                self.finish(operation.before)
                operation.done = True
                operation.work()

    def races(self) -> list[tuple[str, str]]:
        """Pairs of operations that touch the same memory, one of them writing, in no order."""
        found = []
        for i, late in enumerate(self.operations):
            for early in self.operations[:i]:
                if early in late.before or late in early.before:
                    continue
                clashes = [(early.writes, late.reads + late.writes), (early.reads, late.writes)]
                if any(touches(a, b) for left, right in clashes for a in left for b in right):
                    found.append((early.name, late.name))
        return found


def fake_pool(pool_size: int = 2, seed: int | None = None, **kwargs: Any) -> tuple[AsyncIOPool, FakeLanes]:
    """A pool whose lanes are fake ones."""
    pool, lanes = AsyncIOPool(pool_size, **kwargs), FakeLanes(seed)
    pool._lanes = lanes  # type: ignore[assignment]  # a model of them
    return pool, lanes
