"""What is counted while a model trains: a bounded sample of the rows of each exchange, added up and not kept."""

from __future__ import annotations

import copy
import math
import random
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import torch
from torch import Tensor

from torch_gas.history import History
from torch_gas.transfer import send_ids

AGES = 1024  # ages are counted one by one up to here, and together from here on


class LayerStatistics(NamedTuple):
    r"""What the exchanges with one history tell.

    Args:
        layer: number of the layer whose rows the history holds, from 1.
        pulled: number of pulled rows that were looked at.
        ages: how many of them had each age, in optimiser steps, [1024]; the last entry counts older ones as well.
        never: share of them that had never been written.
        drift: :math:`\|h - \bar h\| / \|\bar h\|` of all rows :math:`h` that were to replace :math:`\bar h`; nan where none were.
        storage: the same of all pushed rows :math:`\bar h` and what the storage type makes of them, :math:`h`; nan where it can
            hold them exactly.
        hot: share of the pulled rows that were hot; see :meth:`ScalableGNN.keep_hot`.
    """

    layer: int
    pulled: int
    ages: Tensor
    never: float
    drift: float
    storage: float
    hot: float

    def age(self, share: float = 0.5) -> int:
        """The age that ``share`` of the pulled rows do not exceed, of those that had been written; 0 where there are none."""
        total = self.ages.cumsum(0)
        return int(torch.searchsorted(total, math.ceil(share * int(total[-1]))))


@dataclass
class Sums:
    """What is added up for one history.

    Args:
        ages: [1 + AGES]; the first entry counts rows that were never written.
        squares: squared norms, of the differences between new and old rows and of the old ones, [2].
        rounding: squared norms, of the differences between rows and what is stored of them and of the rows, [2].
        hot: number of pulled rows that were hot, a scalar.
    """

    ages: Tensor
    squares: Tensor
    rounding: Tensor
    hot: Tensor

    def copy(self) -> Sums:
        """Sums of their own with the same values."""
        return Sums(self.ages.clone(), self.squares.clone(), self.rounding.clone(), self.hot.clone())

    def statistics(self, layer: int, earlier: Sums | None) -> LayerStatistics:
        """What was counted since ``earlier``."""
        ages, squares, rounding, hot = self.ages.cpu(), self.squares.cpu(), self.rounding.cpu(), self.hot.cpu()
        if earlier is not None:
            ages, hot = ages - earlier.ages.cpu(), hot - earlier.hot.cpu()
            squares, rounding = squares - earlier.squares.cpu(), rounding - earlier.rounding.cpu()
        pulled = int(ages.sum())
        never = int(ages[0]) / pulled if pulled > 0 else 0.0
        share = int(hot) / pulled if pulled > 0 else 0.0
        return LayerStatistics(layer, pulled, ages[1:], never, _relative(squares), _relative(rounding), share)


def _relative(squares: Tensor) -> float:
    """A norm relative to another, from the squares of both, [2]; nan where the other is zero."""
    change, size = squares.sqrt().tolist()
    return change / size if size > 0 else math.nan


@dataclass
class Counts:
    """Everything that was counted."""

    steps: int = 0
    observed: int = 0
    batch_rows: int = 0
    halo_rows: int = 0
    sums: dict[History, Sums] = field(default_factory=dict)

    def copy(self) -> Counts:
        """Counts of their own with the same values."""
        sums = {history: own.copy() for history, own in self.sums.items()}
        return Counts(self.steps, self.observed, self.batch_rows, self.halo_rows, sums)

    def state(self, histories: Sequence[History]) -> dict[str, Any]:
        """All of them in plain types and tensors, by number of the history."""
        sums = {number: vars(self.sums[each]) for number, each in enumerate(histories) if each in self.sums}
        return {**vars(self), "sums": copy.deepcopy(sums)}

    @staticmethod
    def from_state(state: dict[str, Any], histories: Sequence[History]) -> Counts:
        """The counts of a :meth:`state`."""
        sums = {}
        for number, own in state["sums"].items():
            history = histories[number]
            where = {name: history.pushed_at.device if name == "ages" else history.compute_device for name in own}
            sums[history] = Sums(**{name: value.to(where[name], copy=True) for name, value in own.items()})
        return Counts(**{**state, "sums": sums})


class Counter:
    """The observer of a model: counts its steps, and what a sample of the rows of each exchange tells.

    It asks no device for a result, so that the host never waits for one.

    Args:
        sample: the most rows of batch and halo that are looked at in each exchange.
        every: one step out of so many is looked at, chosen at random.
    """

    def __init__(self, sample: int, every: int) -> None:
        self.sample, self.every = sample, every
        self.counts = Counts()
        self.random = random.Random(0)  # its own, so that those of the user go on as they would

    def step(self, batch_size: int, halo_size: int) -> bool:
        """Counts a step; whether its exchanges are looked at."""
        self.counts.steps += 1
        self.counts.batch_rows += batch_size
        self.counts.halo_rows += halo_size
        observes = self.every == 1 or self.random.randrange(self.every) == 0
        self.counts.observed += observes
        return observes

    @torch.no_grad()
    def exchange(self, history: History, rows: Tensor, n_id: Tensor) -> None:
        """Counts the ages of halo rows, and how far batch rows are from those that they replace."""
        batch_size, where = rows.size(0), history.pushed_at.device
        sums = self._sums(history, rows.device)
        halo = self._choose(n_id.numel() - batch_size)
        ids = send_ids(n_id[batch_size:][halo], where)
        pushed_at = history.pushed_at[ids]
        ages = (int(history.clock) - pushed_at).clamp_(0, AGES - 1).add_(1).masked_fill_(pushed_at < 0, 0)
        sums.ages.index_add_(0, ages, torch.ones_like(ages))
        sums.hot += history.num_hot(n_id[batch_size:][halo])

        batch = self._choose(batch_size)
        ids, pushed = send_ids(n_id[:batch_size][batch], where), rows.detach()[batch]
        new, old = pushed.float(), history.pull(ids, torch.float32)
        written = send_ids((history.pushed_at[ids] >= 0).float(), rows.device)
        sums.squares += torch.stack([(new - old).square_().sum(1), old.square_().sum(1)]) @ written
        if history.table.codec.rounds(rows.dtype):
            lost = (history.as_stored(pushed) - pushed).float()
            sums.rounding += torch.stack([lost.square_().sum(), new.square().sum()])

    def _choose(self, number: int) -> slice:
        """At most ``sample`` rows out of ``number``, evenly spread, each with the same probability."""
        stride = max(-(-number // self.sample), 1)
        return slice(self.random.randrange(stride), None, stride)

    def _sums(self, history: History, device: torch.device) -> Sums:
        sums = self.counts.sums.get(history)
        if sums is None:
            ages = torch.zeros(AGES + 1, dtype=torch.int64, device=history.pushed_at.device)
            squares, rounding = torch.zeros(2, 2, dtype=torch.float64, device=device)
            hot = torch.zeros((), dtype=torch.int64, device=device)
            sums = self.counts.sums[history] = Sums(ages, squares, rounding, hot)
        return sums
