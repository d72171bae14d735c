"""Table: rows of numbers by node, wherever they live."""

from __future__ import annotations

import weakref
from abc import ABC, abstractmethod
from collections.abc import Callable

import torch
from torch import Tensor

from torch_gas import _core
from torch_gas._core.naming import naming
from torch_gas._util.version import version
from torch_gas.table.codec import Codec
from torch_gas.transfer import AsyncIOPool

_AT_ONCE = AsyncIOPool()  # of tables that nobody gave a pool


class Table(ABC):
    """Rows [N, C] that are read and written by id or by range. Each place where rows may live is a class of its own.

    Rows move by a pool: at once on the CPU, on streams of their own on a GPU. What is read are the rows that were written
    last, whatever moment they arrive at. The host itself may read and write :meth:`tensor` after :meth:`settle`.

    Attributes:
        codec: how rows are stored.
        num_rows: N.
        width: numbers in a row, C.
        dtype: type of the stored elements.
    """

    codec: Codec
    num_rows: int
    width: int
    dtype: torch.dtype
    # Weak, because a pool keeps tables whose transfers are under way; a file is closed when nobody holds its table any more.
    _pool: Callable[[], AsyncIOPool | None] = staticmethod(lambda: None)

    @property
    @abstractmethod
    def storage(self) -> _core.Table:
        """The rows as they are stored, [N, C'], for the calls of the core; whoever uses them orders transfers by the pool."""

    @property
    @abstractmethod
    def tier(self) -> str:
        """Where rows live: ``"device"``, ``"pinned"``, ``"host"`` or ``"file"``."""

    @abstractmethod
    def tensor(self) -> Tensor:
        """The rows as they are stored, [N, C'], for the host to read and to write; see :meth:`settle`."""

    @abstractmethod
    def clear(self) -> None:
        """Makes all rows zero."""

    @property
    def base(self) -> Table:
        """The table itself, without those in front of it."""
        return self

    @property
    def pool(self) -> AsyncIOPool:
        """What moves rows."""
        return self._pool() or _AT_ONCE

    def use(self, pool: AsyncIOPool) -> None:
        """Has rows moved by ``pool``, from and to its device. The caller keeps the pool."""
        self._pool = weakref.ref(pool)

    @property
    def device(self) -> torch.device:
        """Where rows live."""
        return self.storage.device

    @property
    def row_bytes(self) -> int:
        """Bytes of a row as it is stored."""
        return self.codec.row_bytes(self.width)

    @property
    def nbytes(self) -> int:
        """Bytes of all rows as they are stored."""
        return self.storage.nbytes

    @property
    def hot_bytes(self) -> int:
        """Bytes on the pool's device of rows that are kept there besides."""
        return 0

    @property
    def version(self) -> int:
        """Changes whenever rows are written."""
        return version(self.storage)

    def request(self, ids: Tensor, dtype: torch.dtype) -> None:
        """Says that the rows ``ids`` [S] will be read soon, as numbers of type ``dtype``: whoever can, fetches them meanwhile."""
        self.pool.request(self.storage, ids, dtype)

    def asked_ids(self, ids: Tensor) -> Tensor:
        """Those of ``ids`` [S] that :meth:`request` asks the pool for: the same tensor for the same ``ids``."""
        return ids

    def read(self, ids: Tensor, out: Tensor) -> None:
        """Writes the rows ``ids`` [S] to ``out`` [S, C] on the pool's device, for its current stream."""
        self.pool.take(self.storage, ids, out)

    def numbers(self, dtype: torch.dtype) -> Tensor:
        """All rows as numbers of type ``dtype``, [N, C], where they live; transfers must be over."""
        return _core.read_chunks(self.storage, *self._whole, dtype)

    def write(self, ids: Tensor, rows: Tensor) -> None:
        """Replaces the rows ``ids`` [B], each at most once, by ``rows`` [B, C]."""
        self.wait()
        rows = rows.to(self.device)
        _core.scatter_rows(self.storage, ids.to(rows.device), rows)

    @naming("Table.add", table="storage", index="ids")
    def add(self, ids: Tensor, rows: Tensor) -> None:
        """Adds ``rows`` [M, C] to the rows ``ids`` [M]; where an id repeats, in the order of the call.

        Sums have the same bits wherever rows live. Ids that ascend, as those of a halo do, are the fastest.

        Raises:
            TypeError: if the table stores a type in which each sum would be rounded, or rows are wider than that.
            ValueError: if there is not one row of C numbers for each id.
            IndexError: if an id is negative or not below N.
        """
        self.codec.check_sums()
        self.wait()
        storage = self.storage
        assert isinstance(storage, Tensor)  # a file has another way
        rows = rows.to(self.device)
        ascending = rows.is_cuda and not ids.is_cuda and bool((ids.diff() >= 0).all())
        _core.add_rows(storage, ids.to(rows.device), rows, ascending=ascending)

    def write_ranges(self, offset: Tensor, count: Tensor, rows: Tensor) -> None:
        """Replaces ranges of rows, which start at ``offset`` [P] and have the lengths ``count`` [P], by ``rows`` [B, C]."""
        self.pool.put(rows, offset, count, self.storage)

    def fill(self, rows: Tensor) -> None:
        """Replaces all rows by ``rows`` [N, C]."""
        self.write_ranges(*self._whole, rows)

    @property
    def _whole(self) -> tuple[Tensor, Tensor]:
        return torch.tensor([0], device="cpu"), torch.tensor([self.num_rows], device="cpu")

    def wait(self) -> None:
        """Blocks the host until no transfer of the table is under way."""
        self.pool.settle(self.storage)

    def settle(self) -> None:
        """As :meth:`wait`; the host may then read and write :meth:`tensor`."""
        self.wait()

    def check_usable(self) -> None:
        """Raises if rows can be neither read nor written."""
        return

    def commit(self, pushed_at: Tensor | None = None, clock: int = 0, key: str = "") -> int:
        """Makes rows survive a crash from now on, with the times at which they were written, [N], and the key of their graph.

        Nothing is done in memory, which does not survive one. Returns the number of commits so far.
        """
        return 0

    def __repr__(self) -> str:
        return f"{type(self).__name__}({self.num_rows}, {self.width}, dtype={self.dtype}, tier={self.tier!r})"
