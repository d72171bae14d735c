"""FileTable: a table in a file that one process at a time may use."""

from __future__ import annotations

import errno
import fcntl
import mmap
import os
import warnings
import weakref
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import replace
from functools import cache, partial
from io import BufferedIOBase
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from torch_gas import _core
from torch_gas._core.naming import naming
from torch_gas._util.arguments import checked
from torch_gas._util.replace import existing, replacing
from torch_gas._util.thread import Task, Worker
from torch_gas.table.codec import Codec
from torch_gas.table.header import SIZE, Header, other_code, type_name
from torch_gas.table.outbox import Outbox
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
        FileExistsError: if there is such a file, which is not to be reused; one to which nothing was ever written is.
        ValueError: if the file is no table, is damaged or holds another one.
        RuntimeError: if a process has it open.
        OSError: if the system refuses.
    """

    tier = "file"
    pushed_at: Tensor | None

    @checked
    def __init__(self, tier: FileTier, num_rows: int, num_cols: int, dtype: torch.dtype) -> None:
        if num_rows < 1 or num_cols < 1:
            raise ValueError(f"FileTable: num_rows and num_cols must be at least 1, but are {num_rows} and {num_cols}")
        wanted = Header(num_rows, num_cols, type_name(dtype))
        path = os.path.abspath(tier.path)  # which a change of the working directory leaves as it is
        Path(path).parent.mkdir(parents=True, exist_ok=True)
        if not os.path.lexists(path):
            with suppress(FileExistsError), replacing(path, new=True) as new:  # or somebody else was faster
                os.ftruncate(new.fileno(), wanted.file_size)
                wanted.write(new.fileno())
        file = existing(path, writes=True)
        try:
            _lock(file, path, fcntl.LOCK_EX)
            header = Header.read(file.fileno(), path)
            if not (tier.reuse or header.is_untouched):
                raise FileExistsError(
                    f"{path} exists already; pass FileTier(..., reuse=True) to go on with its rows, or delete it to begin anew"
                )
            header.check_same(wanted, path)
            header.owner = os.getpid()
            has_rows = header.committed and header.generation > 0
            self.pushed_at = _read_times(file, header, path) if has_rows else None
            header.write(file.fileno())
            self._begin(path, file, header, os.getpid(), tier.sync)
            if self.torn:
                warnings.warn(
                    f"{path}: the process that wrote these rows ended before it committed them (after generation "
                    f"{self.generation}), so they are forgotten; fill them by a refresh, or load a checkpoint",
                    stacklevel=2,
                )
                self.clear()
        except BaseException:
            file.close()
            raise

    @classmethod
    def read_only(cls, path: str | os.PathLike[str]) -> FileTable:
        """The table of a file that nobody writes to; any number of processes may read it.

        Raises:
            FileNotFoundError: if there is no such file.
            ValueError: if the file is no table, is damaged, or was not completed.
            RuntimeError: if a process has it open for writing.
        """
        path = os.path.abspath(path)
        file = existing(path)
        try:
            _lock(file, path, fcntl.LOCK_SH)
            header = Header.read(file.fileno(), path)
            if not header.committed or header.generation == 0:
                raise ValueError(
                    f"{path}: the process that wrote these rows ended before it was done; write them again"
                )
            table = cls.__new__(cls)
            table._begin(path, file, header, None, "never")
            table.pushed_at = None
        except BaseException:
            file.close()
            raise
        return table

    def _begin(self, path: str, file: BufferedIOBase, header: Header, owner: int | None, sync: Sync) -> None:
        self._open_file = file
        super().__init__(file.fileno(), SIZE, (header.num_rows, header.num_cols), header.torch_dtype)
        self.codec, self.num_rows = Codec(self.dtype), header.num_rows
        self.width = _core.row_shape(self, torch.float32).numel()
        _core.forget_failure(self.file)
        self.path, self.sync, self.header = path, sync, header
        self.torn = self._says_torn = not header.committed
        self._owner = owner  # None if all may read
        self._failure = ""
        self._outbox: Outbox | None = None
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

    def _check_open(self) -> None:
        """Raises if the file is closed or belongs to another process, so that its descriptor may be that of another file."""
        if self._owner not in (None, os.getpid()):
            raise RuntimeError(
                f"{self.path} belongs to process {self._owner}, of which this one is a copy; one process only can use a table in "
                "a file"
            )
        if self._open_file.closed:
            raise ValueError(f"{self.path}: the table was closed; open it again with FileTier(..., reuse=True)")

    def check_usable(self) -> None:
        """Raises if the file is closed, belongs to another process, or failed while nobody waited for it."""
        self._check_open()
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
        self._check_open()
        super().before_write()
        self._tear()

    def _tear(self) -> None:
        if not self._says_torn:
            self._write_header(replace(self.header, committed=False))

    def explain(self, error: OSError) -> OSError:
        """The error with the name of the file, and what to do."""
        fix = "make room on the disk" if error.errno in (errno.ENOSPC, errno.EDQUOT) else "see to the disk"
        return OSError(error.errno, f"{error.strerror}; {fix}, and go on", self.path)

    def _write_header(self, header: Header) -> None:
        self._says_torn = False  # until it is known: after an error or Ctrl-C, whoever writes rows says it again
        header.write(self.file)
        self._flush()
        self.header, self._says_torn = header, not header.committed

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

        Raises:
            FileNotFoundError: if the file was deleted, moved or replaced meanwhile.
            ValueError: if ``pushed_at`` is not one time for each row.
            OSError: if the disk is full or fails.
        """
        self._sum_up_all()
        header = replace(self.header, generation=self.generation + 1, clock=clock, key=key, committed=True)
        if pushed_at is not None and (pushed_at.dtype != torch.int64 or pushed_at.shape != (self.num_rows,)):
            raise ValueError(f"{self.path}: pushed_at must be [{self.num_rows}] of int64, a time for each row")
        self._check_there()
        if pushed_at is not None:
            self._tear()  # though rows stay as they are
            _write(self.file, pushed_at.cpu() + 1, header.rows_end)  # so that what was never written says "never"
        self._flush()
        self._write_header(header)
        return self.generation

    def _check_there(self) -> None:
        """Raises if somebody has taken the file away, so that rows would end with this process."""
        with suppress(FileNotFoundError, NotADirectoryError):
            if os.path.samestat(os.stat(self.path), os.fstat(self.file)):
                return
        raise FileNotFoundError(
            errno.ENOENT,
            "the file was deleted, moved or replaced while the table was in use, so that its rows do not survive this process; "
            "save a checkpoint, and load it into a model with files of its own",
            self.path,
        )

    def name_graph(self, key: str) -> None:
        """Notes in the file of which graph its rows are, which stay as they are."""
        self._check_open()
        self._write_header(replace(self.header, key=key))

    def take_code(self, behind: str) -> None:
        """Notes which row-wise code rows have been through; an error where the file holds rows of other code."""
        if self.pushed_at is not None and (differ := other_code(self.path, self.header.behind, behind)):
            raise ValueError(differ)
        self.header = replace(self.header, behind=behind)

    def clear(self) -> None:
        """Makes all rows zero; their place on the disk is given back."""
        self.before_write()
        self._outbox = None
        try:
            os.ftruncate(self.file, SIZE)
        finally:
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

    @naming("Table.add", index="ids")
    def add(self, ids: Tensor, rows: Tensor) -> None:
        self.codec.check_sums()
        self.check_usable()
        ids, rows = ids.cpu(), rows.detach().cpu()
        if rows.shape != (ids.numel(), self.width):
            raise ValueError(
                f"Table.add: `rows` must be [{ids.numel()}, {self.width}], a row of the table's width for each id, but has shape "
                f"{list(rows.shape)}"
            )
        _core.add_rows(
            torch.empty(self.num_rows, 0, dtype=self.dtype, device="cpu"), ids, rows[:, :0]
        )  # checks the rest
        if self._outbox is not None and self._outbox.is_full(ids.numel()):
            self._sum_up_all()
        self.before_write()
        try:
            if self._outbox is None:
                self._outbox = Outbox(self._bare, self.path)
            appended = self._outbox.append(ids, rows)
        except OSError as error:
            raise self.explain(error) from error
        with self._at_once() as outbox:
            outbox.post(appended)

    def before_use(self, first: Tensor, count: Tensor | None = None) -> None:
        """Sums up rows that were added, where these blocks of rows have some."""
        if self._outbox is None:
            return
        first = first.cpu()
        blocks = self._outbox.blocks(first, torch.ones_like(first) if count is None else count)
        if blocks:
            self.check_usable()
            self.wait()
        for block in blocks:
            try:
                place, sums = self._outbox.sums(block)
                with self._at_once() as outbox:
                    _core.write_chunks(outbox.table, *place, sums)
                    outbox.forget(block)
            except OSError as error:
                raise self.explain(error) from error

    def _sum_up_all(self) -> None:
        self.check_usable()
        self.before_use(*self._whole)

    @contextmanager
    def _at_once(self) -> Iterator[Outbox]:
        """For steps of which a part alone would lose rows, or add them twice: the table is not used then, until it is cleared."""
        assert self._outbox is not None
        outbox, self._outbox, self._failure = self._outbox, None, "rows were not added"
        yield outbox
        self._outbox, self._failure = outbox, ""

    @property
    def _bare(self) -> _core.FileRows:
        """The rows for those who need no checks; it does not keep the file open."""
        return _core.FileRows(self.file, self.offset, self.shape, self.dtype)

    def settle(self) -> None:
        super().settle()
        self.before_use(*self._whole)

    def request(self, ids: Tensor, dtype: torch.dtype) -> None:
        self.read_ahead(ids)
        super().request(ids, dtype)

    def read_ahead(self, index: Tensor) -> None:
        """Asks the system for the rows ``index`` [M], which will be read soon; a thread does, and what it cannot do is left."""
        if self._reading_ahead is None or self._reading_ahead.is_done:
            self._reading_ahead = _reader(os.getpid()).submit(partial(_core.read_ahead, self._bare, index))

    def tensor(self) -> Tensor:
        self.before_write()  # whoever asks may write to it
        return self.map()

    def map(self) -> Tensor:
        """The rows as a tensor [N, C'] in the page cache, for those who read; a full disk ends a process that writes to it."""
        self._sum_up_all()
        return torch.frombuffer(mmap.mmap(self.file, self.nbytes, offset=SIZE), dtype=self.dtype).view(self.shape)

    def unlink(self) -> None:
        """Takes the file out of its folder; its place on the disk is given back when the table is gone."""
        os.unlink(self.path)

    def close(self) -> None:
        """Closes the file, which another process may then use."""
        if not self._open_file.closed:
            _core.forget_failure(self.file)
        self._open_file.close()
        self._outbox = None

    def __del__(self) -> None:
        if hasattr(self, "_open_file"):  # or it could not be opened
            self._open_file.close()  # where Ctrl-C comes before, Python closes it, with a warning

    def __repr__(self) -> str:
        return f"FileTable({self.path!r}, {list(self.shape)}, dtype={self.dtype}, generation={self.generation})"


def _lock(file: BufferedIOBase, path: str, kind: int) -> None:
    try:
        fcntl.flock(file, kind | fcntl.LOCK_NB)
    except BlockingIOError as error:
        owner = Header.read(file.fileno(), path).owner
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
        table._open_file.close()
        table._outbox = None


os.register_at_fork(after_in_child=_let_go)


def _read_times(file: BufferedIOBase, header: Header, path: str) -> Tensor:
    """When each row was last pushed, [N]."""
    times = np.memmap(file, np.int64, "r", header.rows_end, header.num_rows)
    if int(times.min()) < 0 or int(times.max()) > header.clock + 1:
        raise ValueError(f"{path} is damaged: it holds rows that were pushed at no time; delete the file")
    return torch.from_numpy(np.asarray(times) - 1)


def _write(file: int, tensor: Tensor, place: int) -> None:
    data = memoryview(tensor.numpy().data).cast("B")
    while data:
        done = os.pwrite(file, data, place)
        data, place = data[done:], place + done


@cache
def _reader(process: int) -> Worker:
    return Worker()
