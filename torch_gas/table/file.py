"""FileTable: a table in a file that one process at a time may use."""

from __future__ import annotations

import errno
import fcntl
import mmap
import os
import warnings
import weakref
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from functools import cache, partial
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from torch_gas import _core
from torch_gas._util.arguments import checked
from torch_gas._util.thread import Task, Worker
from torch_gas.table.codec import Codec
from torch_gas.table.header import SIZE, Header, type_name
from torch_gas.table.table import Table
from torch_gas.table.tier import FileTier, Sync

_owned: weakref.WeakSet[FileTable] = weakref.WeakSet()


class FileTable(_core.FileRows, Table):
    """A table [N, C] in a file.

    Commits make generations: what was written before a commit can be relied upon after a crash. A file in which rows were
    written since the last commit by a process that is gone is *torn*: nobody knows which rows are old and which are new.

    Args:
        tier: the file, and how it is used.
        num_rows: N.
        num_cols: elements of a row.
        dtype: their type.

    Attributes:
        path: the file.
        pushed_at: for a file that is reused, when each row was last pushed, [N], else None.
        torn: whether the file was found torn, and its rows are forgotten.
        header: what the file says of itself.

    Raises:
        FileExistsError: if there is such a file, which is not to be reused.
        ValueError: if the file is no table or holds another one.
        RuntimeError: if a process has it open.
        OSError: if the system refuses.
    """

    tier = "file"

    @checked
    def __init__(self, tier: FileTier, num_rows: int, num_cols: int, dtype: torch.dtype) -> None:
        if num_rows < 1 or num_cols < 1:
            raise ValueError(f"FileTable: num_rows and num_cols must be at least 1, but are {num_rows} and {num_cols}")
        wanted = Header(num_rows, num_cols, type_name(dtype))
        path = os.fspath(tier.path)
        Path(path).parent.mkdir(parents=True, exist_ok=True)
        file, is_new = _open(path, tier.reuse)
        try:
            _lock(file, path, fcntl.LOCK_EX)
            header = wanted if is_new else Header.read(file, path)
            header.check_same(wanted, path)
            header.owner = os.getpid()
            if is_new:
                os.ftruncate(file, wanted.file_size)
            header.write(file)
        except BaseException:
            os.close(file)
            if is_new:
                os.unlink(path)
            raise
        self._begin(path, file, header, os.getpid(), tier.sync)
        if self.torn:
            self.clear()
            warnings.warn(
                f"{path}: the process that wrote these rows ended before it committed them (after generation "
                f"{self.generation}), so they are forgotten; fill them by a refresh, or load a checkpoint",
                stacklevel=2,
            )
        elif not is_new:
            times = np.memmap(path, np.int64, "r", header.rows_end, header.num_rows)
            self.pushed_at: Tensor | None = torch.from_numpy(np.asarray(times) - 1)

    @classmethod
    def read_only(cls, path: str | os.PathLike[str]) -> FileTable:
        """The table of a file that nobody writes to; any number of processes may read it.

        Raises:
            FileNotFoundError: if there is no such file.
            ValueError: if the file is no table, or torn.
            RuntimeError: if a process has it open for writing.
        """
        path = os.fspath(path)
        file = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
        try:
            _lock(file, path, fcntl.LOCK_SH)
            header = Header.read(file, path)
            if not header.committed:
                raise ValueError(
                    f"{path}: the process that wrote these rows ended before it was done; write them again"
                )
        except BaseException:
            os.close(file)
            raise
        table = cls.__new__(cls)
        table._begin(path, file, header, None, "never")
        return table

    def _begin(self, path: str, file: int, header: Header, owner: int | None, sync: Sync) -> None:
        super().__init__(file, SIZE, (header.num_rows, header.num_cols), header.torch_dtype)
        self.codec, self.num_rows = Codec(self.dtype), header.num_rows
        self.width = _core.row_shape(self, torch.float32).numel()
        _core.forget_failure(file)
        self.path, self.sync, self.header = path, sync, header
        self.torn = not header.committed
        self.pushed_at = None
        self._owner = owner  # None if all may read
        self._failure = ""
        self._close = weakref.finalize(self, os.close, file)
        if owner is not None:
            _owned.add(self)
        self._reading_ahead: Task[None] | None = None

    @property
    def storage(self) -> FileTable:
        return self

    @property
    def generation(self) -> int:
        """Number of commits so far."""
        return self.header.generation

    def check_usable(self) -> None:
        """Raises if the file is closed, belongs to another process, or failed while nobody waited for it."""
        if self._owner not in (None, os.getpid()):
            raise RuntimeError(
                f"{self.path} belongs to process {self._owner}, of which this one is a copy; one process only can use a table in "
                "a file"
            )
        if not self._close.alive:
            raise ValueError(f"{self.path}: the table was closed; open it again with FileTier(..., reuse=True)")
        failure = self._failure or _core.noted_failure(self.file)
        if failure:
            raise OSError(
                f"{self.path}: rows could not be moved in an earlier step ({failure}), so that some histories are wrong; make "
                "room or repair the disk, then call reset_parameters() of the history, and load a checkpoint where there is one"
            )

    def before_write(self) -> None:
        """Notes in the file that its rows change from now on."""
        if self._owner is None:
            raise ValueError(f"{self.path} was opened to be read, not to be written to")
        super().before_write()
        self._tear()

    def _tear(self) -> None:
        if self.header.committed:
            self._write_header(replace(self.header, committed=False))

    def explain(self, error: OSError) -> OSError:
        """The error with the name of the file, and what to do."""
        fix = "make room on the disk" if error.errno in (errno.ENOSPC, errno.EDQUOT) else "see to the disk"
        return OSError(error.errno, f"{error.strerror}; {fix}, and go on", self.path)

    def _write_header(self, header: Header) -> None:
        header.write(self.file)
        self._flush()
        self.header = header  # which holds only once the file says so

    def _flush(self) -> None:
        if self.sync != "never":
            os.fsync(self.file)

    def commit(self, pushed_at: Tensor | None = None, clock: int = 0, key: str = "") -> int:
        """Makes all rows written so far the next generation, which survives a crash.

        Args:
            pushed_at: when each row was last pushed, [N], int64; as it was by default.
            clock: optimiser steps so far.
            key: of the graph whose embeddings the rows are; see :func:`torch_gas.graph.key.graph_key`.

        Returns:
            Its number.
        """
        self.check_usable()
        if pushed_at is not None:
            self._tear()  # though rows stay as they are
            _write(self.file, pushed_at.cpu() + 1, self.header.rows_end)  # so that what was never written says "never"
        self._flush()
        self._write_header(replace(self.header, generation=self.generation + 1, clock=clock, key=key, committed=True))
        return self.generation

    def name_graph(self, key: str) -> None:
        """Notes in the file of which graph its rows are, which stay as they are."""
        self._write_header(replace(self.header, key=key))

    def clear(self) -> None:
        """Makes all rows zero; their place on the disk is given back."""
        self.before_write()
        os.ftruncate(self.file, SIZE)
        os.ftruncate(self.file, self.header.file_size)
        _core.forget_failure(self.file)
        self._failure = ""

    def write(self, ids: Tensor, rows: Tensor) -> None:
        starts = ids.long().cpu()
        with self._all_or_none(starts, torch.ones_like(starts)):
            super().write(ids, rows)

    def write_ranges(self, offset: Tensor, count: Tensor, rows: Tensor) -> None:
        with self._all_or_none(offset, count):
            super().write_ranges(offset, count, rows)

    @contextmanager
    def _all_or_none(self, offset: Tensor, count: Tensor) -> Iterator[None]:
        """Makes rows zero whose write fails, which needs no room on the disk; where that fails too, the table is not used."""
        self.check_usable()  # or its rows stay as they are
        try:
            yield
        except OSError:
            try:
                self.before_write()
                _core.clear_rows(self, offset, count)
            except OSError as error:
                self._failure = str(error)
            raise

    def request(self, ids: Tensor, dtype: torch.dtype) -> None:
        self.read_ahead(ids)
        super().request(ids, dtype)

    def read_ahead(self, index: Tensor) -> None:
        """Asks the system for the rows ``index`` [M], which will be read soon; a thread does, and what it cannot do is left."""
        if self._reading_ahead is None or self._reading_ahead.is_done:
            rows = _core.FileRows(self.file, self.offset, self.shape, self.dtype)  # which does not keep the file open
            self._reading_ahead = _reader(os.getpid()).submit(partial(_core.read_ahead, rows, index))

    def tensor(self) -> Tensor:
        self.before_write()  # whoever asks may write to it
        return self.map()

    def map(self) -> Tensor:
        """The rows as a tensor [N, C'] in the page cache, for those who read; a full disk ends a process that writes to it."""
        self.check_usable()
        return torch.frombuffer(mmap.mmap(self.file, self.nbytes, offset=SIZE), dtype=self.dtype).view(self.shape)

    def close(self) -> None:
        """Closes the file, which another process may then use."""
        if self._close.alive:
            _core.forget_failure(self.file)
        self._close()

    def __repr__(self) -> str:
        return f"FileTable({self.path!r}, {list(self.shape)}, dtype={self.dtype}, generation={self.generation})"


def _open(path: str, reuse: bool) -> tuple[int, bool]:
    """The descriptor of the file, and whether it is a new one."""
    if reuse and os.path.exists(path):
        return os.open(path, os.O_RDWR | os.O_CLOEXEC), False
    try:
        return os.open(path, os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o644), True
    except FileExistsError as error:
        raise FileExistsError(
            f"{path} exists already; pass FileTier(..., reuse=True) to go on with its rows, or delete it to begin anew"
        ) from error


def _lock(file: int, path: str, kind: int) -> None:
    try:
        fcntl.flock(file, kind | fcntl.LOCK_NB)
    except BlockingIOError as error:
        owner = Header.read(file, path).owner
        if owner == os.getpid():
            who, fix = "another table of this process", "delete the model that has it"
        else:
            who, fix = f"process {owner}", "wait until that has ended"
        raise RuntimeError(
            f"{path} is in use by {who}, and only one may write to it; {fix}, or choose another path"
        ) from error


def _let_go() -> None:
    """Closes, in a fork, the files of its parent, which it may not use: else a worker that outlives a killed run locks them."""
    for table in _owned:
        if table._close.detach() is not None:
            os.close(table.file)


os.register_at_fork(after_in_child=_let_go)


def _write(file: int, tensor: Tensor, place: int) -> None:
    data = memoryview(tensor.numpy().data).cast("B")
    while data:
        done = os.pwrite(file, data, place)
        data, place = data[done:], place + done


@cache
def _reader(process: int) -> Worker:
    return Worker()
