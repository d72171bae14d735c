"""When rows of gradient tables that were added in one step are read in another."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import torch

from torch_gas.batch.record import BatchRecord
from torch_gas.extensions.compensation.passes import Pass
from torch_gas.table import Table

Change = tuple[Table, Callable[[], Any]]


class Consumed:
    """One table for each history, whose rows are cleared when they are read: they hold what came since then.

    What a batch adds to a row is read once, whatever the order and the groups of parts.
    """

    names: tuple[str, ...] = ("gradient",)

    def begin(
        self, tables: Sequence[Sequence[Table]], record: BatchRecord | None
    ) -> tuple[Sequence[Table], Sequence[Table]]:
        """The tables that a step on a batch reads and those that it adds to, of all that there are, by name and layer."""
        return tables[0], tables[0]

    def changes(self, passed: Pass) -> list[Change]:
        """What a backward pass changes beside what it adds."""
        return [(passed.read[layer], partial(_clear, passed.read[layer], passed)) for layer in passed.taken]

    def epoch(self) -> None:
        """Told that an epoch has ended."""

    def state_dict(self) -> dict[str, Any]:
        """What tells which table is which."""
        return {}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Goes on from ``state``."""


class Swapped(Consumed):
    """Two tables for each history: steps read what the epoch before has added, and add to the other one.

    With fixed groups of parts and frozen parameters, what an epoch reads is exact. An epoch that was left early is forgotten.
    """

    names = ("gradient", "next_gradient")

    def __init__(self) -> None:
        self._read = 0  # which of both is read
        self._steps = 0  # of the epoch, also of those before a run was resumed
        self._num_batches: int | None = None  # of the epoch
        self._has_ended = False  # the epoch has; its last step reads its tables still

    def begin(
        self, tables: Sequence[Sequence[Table]], record: BatchRecord | None
    ) -> tuple[Sequence[Table], Sequence[Table]]:
        if record is None or record.epoch is None:
            raise ValueError(
                'Compensation(schedule="swapped"): the batch is of no epoch of a loader, and nothing tells when tables are '
                'complete; take batches of a loader, or schedule="consumed"'
            )
        if self._has_ended:
            if self._steps == self._num_batches:
                self._read = 1 - self._read
            for table in tables[1 - self._read]:
                table.clear()
            self._has_ended, self._steps = False, 0
        self._steps, self._num_batches = self._steps + 1, record.num_batches
        return tables[self._read], tables[1 - self._read]

    def changes(self, passed: Pass) -> list[Change]:
        return []

    def epoch(self) -> None:
        self._has_ended = True

    def state_dict(self) -> dict[str, Any]:
        return {name: getattr(self, f"_{name}") for name in _STATE}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        for name in _STATE:
            setattr(self, f"_{name}", state[name])


_STATE = ("read", "steps", "num_batches", "has_ended")


SCHEDULES: dict[str, type[Consumed]] = {"consumed": Consumed, "swapped": Swapped}


def _clear(table: Table, passed: Pass) -> None:
    """Makes the rows of a batch zero."""
    zeros = torch.zeros(passed.ids.numel(), table.width, dtype=table.dtype, device=table.pool.device)
    if passed.ranges is None:
        table.write(passed.ids, zeros)
    else:
        table.write_ranges(*passed.ranges, zeros)
