"""MemoryTable: a table in the memory of the host or of a GPU."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from torch_gas import _core
from torch_gas.table.codec import Codec
from torch_gas.table.table import Table
from torch_gas.transfer import AsyncIOPool


class MemoryTable(Table):
    """A table whose rows are a tensor.

    Where a GPU reads a table in host memory, it is page-locked in place, unless it is to stay pageable.

    Args:
        storage: the rows as they are stored, [N, C'], contiguous.
        width: numbers in a row, C.
        pageable: whether it is never page-locked; rows then go through pinned buffers.
        huge_pages: whether a cast may use huge pages, where the system has them: rows are found faster there.
    """

    def __init__(self, storage: Tensor, width: int, *, pageable: bool = False, huge_pages: bool = False) -> None:
        self._storage, self._pageable, self._huge_pages = storage, pageable, huge_pages
        self.codec, self.num_rows, self.width = Codec(storage.dtype), storage.size(0), width
        self._registration: object = None  # holds the memory page-locked

    @classmethod
    def zeros(
        cls, num_rows: int, width: int, dtype: torch.dtype, device: torch.device, *, huge_pages: bool, pageable: bool
    ) -> MemoryTable:
        """A table of zeros."""
        storage = _allocate((num_rows, Codec(dtype).stored_width(width)), dtype, device, huge_pages)
        return cls(storage.zero_(), width, pageable=pageable, huge_pages=huge_pages)

    @classmethod
    def of_rows(cls, rows: Tensor, dtype: torch.dtype) -> MemoryTable:
        """A table of the rows [N, C], on their device."""
        width = rows.size(1)
        storage = torch.empty(len(rows), Codec(dtype).stored_width(width), dtype=dtype, device=rows.device)
        table = cls(storage, width)
        table.fill(rows)
        return table

    @property
    def storage(self) -> Tensor:
        return self._storage

    @storage.setter
    def storage(self, storage: Tensor) -> None:
        if storage is not self._storage:
            self._storage, self.codec, self.num_rows = storage, Codec(storage.dtype), storage.size(0)
            self._registration = None  # of the memory that is left
            self._pin()

    @property
    def dtype(self) -> torch.dtype:  # type: ignore[override]  # of a table in a file it is an attribute
        return self.codec.dtype

    def cast(self, dtype: torch.dtype) -> Tensor:
        """The rows in another plain type, in new memory."""
        cast = _allocate(self._storage.shape, dtype, self._storage.device, self._huge_pages)
        return cast.copy_(self._storage)

    @property
    def tier(self) -> str:
        if self._storage.is_cuda:
            return "device"
        return "pinned" if self.pool.device.type == "cuda" and self._storage.is_pinned() else "host"

    def tensor(self) -> Tensor:
        return self._storage

    def clear(self) -> None:
        self._storage.zero_()

    def use(self, pool: AsyncIOPool) -> None:
        if pool.device != self.pool.device:
            self._registration = None  # which waits until the device has finished its work
        super().use(pool)
        self._pin()

    def _pin(self) -> None:
        """Page-locks rows in host memory for the GPU of the pool, unless they are or are to stay pageable."""
        device, rows = self.pool.device, self._storage
        if device.type == "cuda" and not (rows.is_cuda or self._pageable):
            # One of another table, which has views of the same memory, is kept as well.
            self._registration = _core.locked_by(rows) if rows.is_pinned() else _core.register(rows, device)

    @property
    def is_shared(self) -> bool:
        """Whether other processes map the rows as well."""
        return self._storage.device.type == "cpu" and self._storage.is_shared()

    @property
    def is_registered(self) -> bool:
        """Whether the table itself has page-locked the memory."""
        return self._registration is not None

    def share(self) -> None:
        """Moves rows to memory that other processes can map."""
        if self._storage.device.type != "cpu":
            raise ValueError("History: a table on a GPU cannot move to shared memory; create it in host memory")
        self._registration = None  # of the memory that is left
        if not self._storage.is_shared():
            shared = torch.empty_like(self._storage).share_memory_()  # which begins at a page
            self._storage.set_(shared.copy_(self._storage))
        self._pin()

    def __getstate__(self) -> dict[str, Any]:
        passing = ("_registration", "_pool")
        return {**{name: value for name, value in vars(self).items() if name not in passing}, "_registration": None}


def _allocate(shape: Sequence[int], dtype: torch.dtype, device: torch.device, huge_pages: bool) -> Tensor:
    if device.type != "cpu":
        return torch.empty(shape, dtype=dtype, device=device)
    storage = _core.at_page(shape, dtype)
    if huge_pages:
        _core.advise_huge_pages(storage)  # before anybody writes to it; rows are found without them as well
    return storage
