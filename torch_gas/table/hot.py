"""Hot rows: those that many halos read are kept on the device of the model, in front of a table in any tier.

The table behind has every row at any time: a push writes hot rows to both. So training is bit for bit the same with and without.
"""

from __future__ import annotations

import weakref
from collections import deque
from collections.abc import Callable
from typing import Any, NamedTuple

import torch
from torch import Tensor

from torch_gas import _core
from torch_gas._util.version import version
from torch_gas.transfer import send_ids

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
        self._there: dict[torch.device, Split] = {}

    def is_of(self, ids: Tensor) -> bool:
        """Whether these are the same ids: the same memory, which is kept here, and has not been written to since."""
        return _place(self.ids) == _place(ids) and self.version == version(ids)

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
        self._slots = torch.full((num_nodes,), -1, dtype=torch.int32)
        self._slots[self.n_id] = torch.arange(self.n_id.numel(), dtype=torch.int32)
        self._splits: deque[_Known] = deque(maxlen=_SPLITS)

    def split(self, ids: Tensor, device: torch.device | str = "cpu") -> Split:
        """Which rows are hot, found once for all layers.

        Args:
            ids: ids of the rows, [M + R].
            device: where the rows are put together.
        """
        known = next((known for known in self._splits if known.is_of(ids)), None)
        if known is None:
            known = _Known(ids, self._split(ids.cpu()))
            self._splits.append(known)
        return known.on(torch.device(device))

    def _split(self, ids: Tensor) -> Split:
        slots = _core.gather_rows(self._slots, ids)
        is_hot = slots >= 0
        hot, cold = is_hot.nonzero().view(-1), is_hot.logical_not_().nonzero().view(-1)
        return Split(slots[hot], hot, cold, ids[cold])

    def holds(self, ids: Tensor) -> Tensor:
        """Which of ``ids`` [S], on the host, are hot, [S]."""
        return _core.gather_rows(self._slots, ids) >= 0

    def __repr__(self) -> str:
        return f"HotSet({self.n_id.numel()} of {self._slots.numel()} nodes)"


class HotRows:
    """The hot rows of one table, in its storage type; made anew from it when somebody else wrote to it.

    Args:
        nodes: whose rows they are.
    """

    def __init__(self, nodes: HotSet) -> None:
        self.nodes = nodes
        self._rows: Tensor | None = None
        self._table: Callable[[], _core.Table | None] = lambda: None
        self._version = -1

    def are_of(self, table: _core.Table, device: torch.device) -> bool:
        """Whether these are the rows that ``table`` has now, on ``device``."""
        if self._rows is None or self._table() is not table or table.is_inference():
            return False
        return self._version == version(table) and self._rows.device == device

    def note(self, table: _core.Table) -> None:
        """Says that these are the rows of ``table`` as it is now."""
        self._table, self._version = weakref.ref(table), version(table)

    def forget(self) -> None:
        """Says that somebody may write to the table in ways that nothing tells of."""
        self._version = -1

    def load(self, table: _core.Table, device: torch.device, read: Callable[[Tensor, Tensor], None]) -> None:
        """Makes the rows anew: ``read(n_id, out)`` writes rows of ``table`` to ``out``."""
        shape = (self.nodes.n_id.numel(), table.size(1))
        if self._rows is None or (self._rows.shape, self._rows.dtype, self._rows.device) != (
            shape,
            table.dtype,
            device,
        ):
            self._rows = torch.empty(shape, dtype=table.dtype, device=device)
        read(self.nodes.n_id, self._rows)
        self.note(table)

    def pull(self, n_id: Tensor, out: Tensor, read: Callable[[Tensor, Tensor], None]) -> None:
        """Writes the rows ``n_id`` to ``out`` [M + R, C]; ``read(ids, rows)`` writes rows of the table to ``rows``.

        On the host cold rows come in pieces that the caches hold on their way.
        """
        split = self.nodes.split(n_id, out.device)
        row_bytes = out.size(1) * out.element_size()
        number = max(split.cold_ids.numel() if out.is_cuda else _PIECE // row_bytes, 1)
        for ids, cold in zip(split.cold_ids.split(number), split.cold.split(number), strict=True):
            rows = torch.empty(ids.numel(), out.size(1), dtype=out.dtype, device=out.device)
            read(ids, rows)
            _core.scatter_rows(out, cold, rows)
        self._fill(out, split)

    def put_together(self, n_id: Tensor, out: Tensor, cold: Tensor) -> None:
        """Writes the rows ``n_id`` to ``out`` [M + R, C], of which the cold ones, [R, C], came from the table."""
        split = self.nodes.split(n_id, out.device)
        _core.scatter_rows(out, split.cold, cold)
        self._fill(out, split)

    def _fill(self, out: Tensor, split: Split) -> None:
        assert self._rows is not None
        _core.scatter_rows(out, split.hot, _core.gather_rows(self._rows, split.slots, out.dtype))

    def write(self, x: Tensor, n_id: Tensor) -> None:
        """Writes those of the rows ``x`` [B, C] that are hot; ``n_id`` are their ids, [B]."""
        assert self._rows is not None
        split = self.nodes.split(n_id, self._rows.device)
        _core.scatter_rows(self._rows, split.slots, x.to(self._rows.device).index_select(0, split.hot))

    def __getstate__(self) -> dict[str, Any]:
        return {"nodes": self.nodes}  # a copy of a table has rows of its own

    def __setstate__(self, state: dict[str, Any]) -> None:
        HotRows.__init__(self, **state)
