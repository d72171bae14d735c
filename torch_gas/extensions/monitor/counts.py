"""What is counted while a model trains: a bounded sample of the rows of each exchange, added up and not kept."""

from __future__ import annotations

import copy
import math
import random
from collections.abc import Callable, Sequence
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

    @staticmethod
    def zeros(history: History) -> Sums:
        """Nothing yet. Ages are counted where those of the history are, so that no row has to move."""
        device = history.compute_device
        squares, rounding = torch.zeros(2, 2, dtype=torch.float64, device=device)
        ages = torch.zeros(AGES + 1, dtype=torch.int64, device=history.pushed_at.device)
        return Sums(ages, squares, rounding, torch.zeros((), dtype=torch.int64, device=device))

    def add(self, other: Sums, factor: int = 1) -> None:
        """Adds ``factor * other``, wherever its values are."""
        for name, value in vars(other).items():
            vars(self)[name] += factor * value.to(vars(self)[name].device)

    def statistics(self, layer: int) -> LayerStatistics:
        """What they tell of the history of a layer."""
        pulled = int(self.ages.sum())
        never, hot = (int(number) / max(pulled, 1) for number in (self.ages[0], self.hot))
        drift, storage = _relative(self.squares), _relative(self.rounding)
        return LayerStatistics(layer, pulled, self.ages[1:].cpu(), never, drift, storage, hot)


def _relative(squares: Tensor) -> float:
    """A norm relative to another, from the squares of both, [2]; nan where the other is zero."""
    change, size = squares.sqrt().tolist()
    return change / size if size > 0 else math.nan


@dataclass
class Counts:
    """Everything that was counted; ``sums`` by number of the history, from 0."""

    steps: int = 0
    observed: int = 0
    batch_rows: int = 0
    halo_rows: int = 0
    sums: dict[int, Sums] = field(default_factory=dict)

    @property
    def halo_ratio(self) -> float:
        """S / B of all batches; nan where there were none."""
        return self.halo_rows / self.batch_rows if self.batch_rows > 0 else math.nan

    def statistics(self) -> list[LayerStatistics]:
        """Those of each history that was used."""
        return [sums.statistics(number + 1) for number, sums in sorted(self.sums.items())]

    def since(self, earlier: Counts) -> Counts:
        """What was counted after ``earlier``."""
        counts = copy.deepcopy(self)
        for name in ("steps", "observed", "batch_rows", "halo_rows"):
            vars(counts)[name] -= vars(earlier)[name]
        for number, sums in earlier.sums.items():
            counts.sums[number].add(sums, -1)
        return counts

    @staticmethod
    def from_state(state: dict[str, Any], histories: Sequence[History]) -> Counts:
        """The counts of which ``asdict`` made ``state``."""
        sums = {number: Sums.zeros(histories[number]) for number in state["sums"]}
        for number, values in state["sums"].items():
            sums[number].add(Sums(**values))
        return Counts(**{**state, "sums": sums})


@torch.no_grad()
def count_exchange(sums: Sums, history: History, rows: Tensor, n_id: Tensor, choose: Callable[[int], slice]) -> None:
    """Counts the ages of halo rows, and how far batch rows are from those that they replace.

    It asks no device for a result, so that the host never waits for one.

    Args:
        sums: of the history.
        history: before ``rows`` are pushed.
        rows: of the batch, [B, C].
        n_id: ids of batch and halo, [B + S].
        choose: which of a number of rows are looked at.
    """
    batch_size, where = rows.size(0), history.pushed_at.device
    halo = n_id[batch_size:][choose(n_id.numel() - batch_size)]
    pushed_at = history.pushed_at[send_ids(halo, where)]
    ages = (int(history.clock) - pushed_at).clamp_(0, AGES - 1).add_(1).masked_fill_(pushed_at < 0, 0)
    sums.ages.index_add_(0, ages, torch.ones_like(ages))
    sums.hot += history.num_hot(halo)

    batch = choose(batch_size)
    ids, pushed = send_ids(n_id[:batch_size][batch], where), rows.detach()[batch]
    new, old = pushed.float(), history.pull(ids, torch.float32)
    written = send_ids((history.pushed_at[ids] >= 0).float(), rows.device)
    sums.squares += torch.stack([(new - old).square_().sum(1), old.square_().sum(1)]) @ written
    if history.table.codec.rounds(rows.dtype):
        lost = (history.as_stored(pushed) - pushed).float()
        sums.rounding += torch.stack([lost.square_().sum(), new.square().sum()])


def evenly_spread(number: int, most: int, generator: random.Random) -> slice:
    """At most ``most`` rows out of ``number``, evenly spread, each with the same probability."""
    stride = max(-(-number // most), 1)
    return slice(generator.randrange(stride), None, stride)
