"""Hot rows: those that many halos read are kept on the device of the model, in front of a table in any tier.

The table behind has every row at any time: a push writes hot rows to both. So training is bit for bit the same with and without.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, NamedTuple

import torch
from torch import Tensor

from torch_gas import _core
from torch_gas._util.version import version
from torch_gas.table.table import Table
from torch_gas.transfer import AsyncIOPool, send_ids

_PIECE = 2**20  # bytes
_SPLITS = 4  # that are remembered: of the batch and the halo, and of the next halo, with one to spare


class Split(NamedTuple):
    """Which of some rows are hot.

    Args:
        slots: where the hot ones lie among all hot rows, [M], int32.
        hot: where they belong among the rows, [M].
        cold: where the others belong, [R].
        cold_ids: ids of the others, [R], on the host.
    """

    slots: Tensor
    hot: Tensor
    cold: Tensor
    cold_ids: Tensor


class _Known:
    """The split of ids that may be asked for again."""

    def __init__(self, ids: Tensor, split: Split) -> None:
        self.ids, self.version, self.split = ids, version(ids), split
        self.content = None if ids.is_cuda else ids.clone()  # as versions do not tell of all writes
        self._there: dict[torch.device, Split] = {}

    def is_of(self, ids: Tensor) -> bool:
        """Whether these are the same ids: the same memory, which is kept here, and holds what it held."""
        if _place(self.ids) != _place(ids) or self.version != version(ids):
            return False
        return self.content is None or torch.equal(self.content, ids)

    def on(self, device: torch.device) -> Split:
        """The split with positions and slots on ``device``, brought there once for all layers."""
        if device not in self._there:
            slots, hot, cold = (send_ids(positions, device) for positions in self.split[:3])
            self._there[device] = Split(slots, hot, cold, self.split.cold_ids)
        return self._there[device]


def _place(ids: Tensor) -> tuple[object, ...]:
    return ids.data_ptr(), ids.shape, ids.stride(), ids.dtype, ids.device


class HotSet:
    """The nodes whose rows are hot, for all tables of a model.

    Args:
        n_id: their ids, [H], each once.
        num_nodes: N.

    Attributes:
        n_id: the ids, ascending, [H].

    Raises:
        TypeError: if ``n_id`` is no vector of integers.
        ValueError: if an id is there twice.
        IndexError: if an id is negative or not below N.
    """

    def __init__(self, n_id: Tensor, num_nodes: int) -> None:
        if not isinstance(n_id, Tensor) or n_id.dim() != 1 or n_id.dtype not in (torch.int64, torch.int32):
            raise TypeError("keep_hot: n_id must be a one-dimensional integer tensor, as hot_nodes() returns it")
        self.n_id = n_id.long().cpu().sort().values
        if self.n_id.numel() > 0 and not 0 <= int(self.n_id[0]) <= int(self.n_id[-1]) < num_nodes:
            raise IndexError(
                f"keep_hot: n_id goes from {int(self.n_id[0])} to {int(self.n_id[-1])}, but must be in 0 .. {num_nodes - 1}"
            )
        if bool((self.n_id.diff() == 0).any()):
            raise ValueError("keep_hot: n_id holds an id twice; pass n_id.unique()")
        self._slots = torch.full((num_nodes,), -1, dtype=torch.int32, device="cpu")
        self._slots[self.n_id] = torch.arange(self.n_id.numel(), dtype=torch.int32, device="cpu")
        self._splits: deque[_Known] = deque(maxlen=_SPLITS)
        self._ranges = (self.n_id, self.n_id), self.n_id  # copies of those that were asked for last, and their ids

    def split(self, ids: Tensor, device: torch.device | str = "cpu") -> Split:
        """Which rows are hot, found once for all layers.

        Args:
            ids: ids of the rows, [M + R].
            device: where the rows are put together.
        """
        known = next((known for known in self._splits if known.is_of(ids)), None)
        if known is None:
            on_host = ids.cpu()
            slots = _core.gather_rows(self._slots, on_host)
            is_hot = slots >= 0
            hot, cold = is_hot.nonzero().view(-1), is_hot.logical_not_().nonzero().view(-1)
            known = _Known(ids, Split(slots[hot], hot, cold, on_host[cold]))
            self._splits.append(known)
        return known.on(torch.device(device))

    def split_ranges(self, offset: Tensor, count: Tensor, device: torch.device) -> Split:
        """As :meth:`split`, for the rows of ranges that start at ``offset`` [P] and have the lengths ``count`` [P]."""
        known, ids = self._ranges
        if not (torch.equal(known[0], offset) and torch.equal(known[1], count)):
            shift = (offset - (count.cumsum(0) - count)).repeat_interleave(count)
            ids = shift + torch.arange(shift.numel(), device="cpu")
            self._ranges = (offset.clone(), count.clone()), ids
        return self.split(ids, device)

    def holds(self, ids: Tensor) -> Tensor:
        """Which of ``ids`` [S], on the host, are hot, [S]."""
        return _core.gather_rows(self._slots, ids) >= 0

    def __repr__(self) -> str:
        return f"HotSet({self.n_id.numel()} of {self._slots.numel()} nodes)"


class Hot(Table):
    """A table in front of which some rows are kept on the device of its pool, as they are stored.

    They come there when they are first read, and once more where somebody else wrote to the table.

    Args:
        table: the table, which holds all rows.
        nodes: whose rows are kept.
    """

    def __init__(self, table: Table, nodes: HotSet) -> None:
        self.table, self.nodes = table, nodes
        self.codec, self.num_rows, self.width, self.dtype = table.codec, table.num_rows, table.width, table.dtype
        self._rows: Tensor | None = None
        self._version: int | None = None  # of the table that the rows are of; None where they may be of none

    @property
    def base(self) -> Table:
        return self.table

    @property
    def storage(self) -> _core.Table:
        return self.table.storage

    @property
    def tier(self) -> str:
        return self.table.tier

    @property
    def hot_bytes(self) -> int:
        return self.nodes.n_id.numel() * self.row_bytes

    @property
    def pool(self) -> AsyncIOPool:
        return self.table.pool

    def use(self, pool: AsyncIOPool) -> None:
        self.table.use(pool)

    def tensor(self) -> Tensor:
        return self.table.tensor()

    def clear(self) -> None:
        self.table.clear()

    def asked_ids(self, ids: Tensor) -> Tensor:
        return self.nodes.split(ids).cold_ids

    def request(self, ids: Tensor, dtype: torch.dtype) -> None:
        self.table.request(self.asked_ids(ids), dtype)

    def read(self, ids: Tensor, out: Tensor) -> None:
        rows, split = self._current_rows(), self.nodes.split(ids, out.device)
        pieces = [(split.cold_ids, split.cold)]
        if not (out.is_cuda or self.pool.is_asked(self.storage)):
            # On the host, rows are read in pieces that the caches hold on their way.
            number = max(_PIECE // (self.width * out.element_size()), 1)
            pieces = list(zip(split.cold_ids.split(number), split.cold.split(number), strict=True))
        for cold_ids, cold in pieces:
            arrived = torch.empty(cold_ids.numel(), out.size(1), dtype=out.dtype, device=out.device)
            self.table.read(cold_ids, arrived)
            _core.scatter_rows(out, cold, arrived)
        _core.scatter_rows(out, split.hot, _core.gather_rows(rows, split.slots, out.dtype))

    def write(self, ids: Tensor, rows: Tensor) -> None:
        with self._written():
            self.table.write(ids, rows)
            self._write(rows, self.nodes.split(ids.cpu(), self.pool.device))

    def add(self, ids: Tensor, rows: Tensor) -> None:
        with self._written():
            self.table.add(ids, rows)
            self._write(rows, self.nodes.split(ids.cpu(), self.pool.device), _core.add_rows)

    def write_ranges(self, offset: Tensor, count: Tensor, rows: Tensor) -> None:
        with self._written():
            self.table.write_ranges(offset, count, rows)
            self._write(rows, self.nodes.split_ranges(offset, count, self.pool.device))

    @contextmanager
    def _written(self) -> Iterator[None]:
        """While entered, rows are written here and there; after an error they are of no table."""
        is_current, self._version = self._is_current, None
        yield
        self._version = self.table.version if is_current else None

    def _write(
        self, rows: Tensor, split: Split, move: Callable[[Tensor, Tensor, Tensor], None] = _core.scatter_rows
    ) -> None:
        if self._rows is not None:
            hot = rows.detach().to(self._rows.device).index_select(0, split.hot)
            move(self._rows, split.slots, hot)

    @property
    def _is_current(self) -> bool:
        """Whether the rows are those that the table has now, on the device of its pool."""
        if self._rows is None or self._version != self.table.version or self.storage.is_inference():
            return False
        return self._rows.device == self.pool.device

    def _current_rows(self) -> Tensor:
        """The hot rows, [H, C'], made anew from the table if need be."""
        if self._rows is None or not self._is_current:
            shape = (self.nodes.n_id.numel(), self.codec.stored_width(self.width))
            self._rows = torch.empty(shape, dtype=self.dtype, device=self.pool.device)
            self.table.read(self.nodes.n_id, self._rows)
            self._version = self.table.version
        return self._rows

    def settle(self) -> None:
        self.table.settle()
        self._version = None  # the host may write in ways that nothing tells of

    def check_usable(self) -> None:
        self.table.check_usable()

    def commit(self, pushed_at: Tensor | None = None, clock: int = 0, key: str = "") -> int:
        return self.table.commit(pushed_at, clock, key)

    def __getstate__(self) -> dict[str, Any]:
        return {**vars(self), "_rows": None, "_version": None}  # a copy of a table has rows of its own
