"""Outbox: rows on their way into a table in a file, where they are added to those that are there."""

from __future__ import annotations

import os
from typing import BinaryIO

import torch
from torch import Tensor

from torch_gas import _core
from torch_gas._util.replace import nameless

_BLOCK = 2**24  # bytes of the rows that are summed up at a time

Run = tuple[int, int]  # where rows begin in the files of an outbox, and their number


class Outbox:
    """Rows that wait to be added to those of a table in a file.

    To add to rows anywhere in a file is to read and to write a page for each. So they are appended to files beside it, ordered
    by *blocks* of neighbouring rows of the table; a block is read, summed up and written as a whole when one of its rows is
    asked for. Sums are made in the order in which rows came. The files take no more than the table and one call of
    :meth:`append`; the memory that summing up takes is a block and the rows of one call.

    They have no names and end with the process, as the rows of a table do that were not committed.

    Args:
        table: the table, [N, C], of float32 or float64.
        path: of its file.

    Attributes:
        table: the same.
    """

    def __init__(self, table: _core.FileRows, path: str) -> None:
        self.table = table
        self._block_rows = max(1, _BLOCK // (table.shape[1] * table.dtype.itemsize))
        self._ids, self._rows = nameless(path), nameless(path)  # ids count from the start of their block
        self._size = 0  # rows in these files
        self._waiting: dict[int, list[Run]] = {}  # by block

    def is_full(self, num_rows: int) -> bool:
        """Whether all blocks are to be summed up before ``num_rows`` more rows come."""
        return self._size > max(self.table.shape[0] - num_rows, 0)

    def append(self, ids: Tensor, rows: Tensor) -> dict[int, Run]:
        """Writes ``rows`` [M, C] and their ``ids`` [M], which are in range, to the files; :meth:`post` has them count."""
        ids = ids.long()
        if bool((ids.diff() < 0).any()):
            ids, order = ids.sort(stable=True)
            rows = rows[order]
        block = ids // self._block_rows
        for file, values in (
            (self._ids, (ids % self._block_rows).int().view(-1, 1)),
            (self._rows, rows.to(self.table.dtype)),
        ):
            log = _log(file, self._size + len(ids), values.size(1), values.dtype)
            _core.write_chunks(log, *_range(self._size, len(ids)), values)
        blocks, counts = block.unique_consecutive(return_counts=True)
        begins = counts.cumsum(0) - counts + self._size
        runs = zip(begins.tolist(), counts.tolist(), strict=True)
        return dict(zip(blocks.tolist(), runs, strict=True))

    def post(self, appended: dict[int, Run]) -> None:
        """Has rows count that were appended."""
        for block, run in appended.items():
            self._waiting.setdefault(block, []).append(run)
            self._size += run[1]

    def blocks(self, first: Tensor, count: Tensor) -> list[int]:
        """Those for which rows wait, where ranges of rows start at ``first`` [P] and have the lengths ``count`` [P]."""
        if not self._waiting:
            return []
        num_rows = self.table.shape[0]
        first, count = (
            first.long().clamp(0, num_rows - 1),
            count.long().clamp(0, num_rows),
        )  # though they may be refused later
        last = (first + count - 1).clamp(max=num_rows - 1)
        # How many ranges begin in a block, less those that ended before it.
        change = torch.zeros((num_rows - 1) // self._block_rows + 2, dtype=torch.int64, device="cpu")
        change.index_add_(0, first // self._block_rows, torch.ones_like(first))
        change.index_add_(0, last // self._block_rows + 1, torch.full_like(first, -1))
        return sorted(self._waiting.keys() & set(change.cumsum(0).nonzero().view(-1).tolist()))

    def sums(self, block: int) -> tuple[tuple[Tensor, Tensor], Tensor]:
        """A block's range of rows, and what they are when those that wait have been added."""
        begin = block * self._block_rows
        place = _range(begin, min(self._block_rows, self.table.shape[0] - begin))
        sums = _core.read_chunks(self.table, *place)
        for run in self._waiting[block]:
            ids = _core.read_chunks(_log(self._ids, sum(run), 1, torch.int32), *_range(*run))
            rows = _core.read_chunks(_log(self._rows, sum(run), sums.size(1), sums.dtype), *_range(*run))
            _core.add_rows(sums, ids.view(-1), rows)
        return place, sums

    def forget(self, block: int) -> None:
        """Forgets the rows that wait for a block; the files are emptied with the last ones."""
        del self._waiting[block]
        if not self._waiting:
            self._size = 0
            for file in (self._ids, self._rows):
                os.ftruncate(file.fileno(), 0)

    def __del__(self) -> None:
        for file in vars(self).keys() & {"_ids", "_rows"}:  # or they could not be made
            getattr(self, file).close()


def _log(file: BinaryIO, size: int, width: int, dtype: torch.dtype) -> _core.FileRows:
    return _core.FileRows(file.fileno(), 0, (size, width), dtype)


def _range(begin: int, count: int) -> tuple[Tensor, Tensor]:
    return torch.tensor([begin], device="cpu"), torch.tensor([count], device="cpu")
