"""A table in a file, as the calls that move rows take it."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager

import torch
from torch import Tensor

from torch_gas._core import checks
from torch_gas._core.build import _C
from torch_gas._core.checks import ID_BITS


class FileRows:
    """Rows that lie in an open file one after the other; says of itself what a table in host memory would.

    Whoever derives from it may extend `before_use`, `before_write`, `check_usable` and `explain`.

    Args:
        file: Descriptor of the file, open for reading and writing.
        offset: Where the first row begins, in bytes.
        shape: [N, C]; an int8 table that holds scales has shape [N, C + 4].
        dtype: Type of the elements.
    """

    is_cuda = False
    device = torch.device("cpu")

    def __init__(self, file: int, offset: int, shape: Sequence[int], dtype: torch.dtype) -> None:
        self.file, self.offset, self.shape, self.dtype = file, offset, torch.Size(shape), dtype
        self._version = 0  # as that of a tensor

    def before_use(self, first: Tensor, count: Tensor | None = None) -> None:
        """Called before rows are read or written: ids [M], or ranges that start at `first` [P] and have the lengths `count`.

        They need not lie in the table, which is found out later.
        """

    def before_write(self) -> None:
        """Called before rows are written."""
        self._version += 1

    def check_usable(self) -> None:
        """Raises if rows can be neither read nor written."""

    def explain(self, error: OSError) -> OSError:
        """What is raised where the system refuses to read or write rows."""
        return error

    @property
    def nbytes(self) -> int:
        """Bytes of all rows."""
        return self.shape.numel() * self.dtype.itemsize

    def is_pinned(self) -> bool:
        """False: a device cannot reach the rows."""
        return False

    def is_inference(self) -> bool:
        """False: writes are counted."""
        return False

    def data_ptr(self) -> int:
        """Tells tables apart, as the address of a tensor's memory does."""
        return id(self)


Table = Tensor | FileRows


@contextmanager
def in_use(table: FileRows, writes: bool) -> Iterator[None]:
    """While the core reads or writes rows of a table in a file."""
    table.check_usable()
    if writes:
        table.before_write()
    try:
        yield
    except OSError as error:
        raise table.explain(error) from error


def read_ahead(table: FileRows, index: Tensor) -> None:
    """Asks the system to read rows while others are computed on.

    Args:
        table: A table in a file.
        index: Ids of the rows [M], int32 or int64, on the host, best ascending.

    Raises:
        IndexError: An id lies outside 0 .. N-1.
    """
    checks.kind("read_ahead", "table", table, FileRows, "a FileRows")
    index = checks.ids("read_ahead", "index", index)
    table.check_usable()
    _C.read_ahead(_bytes(table), ID_BITS[index.dtype], index.data_ptr(), index.numel())


def clear_rows(table: FileRows, offset: Tensor, count: Tensor) -> None:
    """Makes rows zero by giving their place on the disk back, which needs none, where the file system can do so.

    Args:
        table: A table in a file.
        offset: First row of each range [P], int64, on the host.
        count: Number of rows of each range [P], int64, on the host.

    Raises:
        IndexError: A range lies outside the table.
        OSError: The system failed.
    """
    checks.kind("clear_rows", "table", table, FileRows, "a FileRows")
    offset, count = checks.ranges("clear_rows", "offset", offset, count)
    _C.clear_rows(_bytes(table), offset.data_ptr(), count.data_ptr(), offset.numel())


noted_failure: Callable[[int], str] = _C.noted_failure
"""What went wrong in the transfers of a GPU with an open file, for which nobody waits; empty if nothing did."""
forget_failure: Callable[[int], None] = _C.forget_failure
"""Forgets what went wrong with a file, whose descriptor may become that of another one."""


def _bytes(table: FileRows) -> object:
    return _C.FileTable(table.file, table.offset, _C.DType.bytes, table.shape[0], table.shape[1] * table.dtype.itemsize)
