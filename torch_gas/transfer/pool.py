"""AsyncIOPool: pulls and pushes of one model, with their events and buffers."""

from __future__ import annotations

import weakref
from collections import deque
from dataclasses import dataclass
from functools import partial
from typing import Literal, get_args

import torch
from torch import Tensor

from torch_gas import _core
from torch_gas._core import checks
from torch_gas._core.naming import arg, called, naming
from torch_gas._util.arguments import checked
from torch_gas._util.version import version
from torch_gas.transfer.lanes import AtOnce, Event, Lane, make_lanes, make_staging, with_index

IO = Literal["concurrent", "serial"]


@dataclass
class _Table:
    """What is known of a table: it is kept until its last transfer is done."""

    rows: _core.Table
    staged: bool  # whether its memory is out of reach of the device
    pushed: Event | None = None  # its last push
    pulled: Event | None = None  # its last pull
    visits: int = 0  # of the host, which may write in ways that no version tells

    @property
    def state(self) -> tuple[int, int]:
        """Changes whenever the rows may have changed."""
        return version(self.rows), self.visits

    def settle(self) -> None:
        """Blocks the host until no transfer is under way."""
        for event in (self.pulled, self.pushed):
            if event is not None:
                event.synchronize()
        self.pulled = self.pushed = None


@dataclass(eq=False)
class _Buffer:
    """Device memory for one pull in flight."""

    data: Tensor
    read: Event | None = None  # the consumer has read the last rows that were here


@dataclass(eq=False)
class _Pull:
    """One pull, from the call that asks for it to the one that frees it."""

    table: _Table
    offset: Tensor | None
    count: Tensor | None
    index: Tensor | None
    dtype: torch.dtype
    buffer: _Buffer | None = None
    done: Event | None = None  # the rows have arrived
    state: tuple[int, int] = (0, 0)  # of the table when it was read
    taken: bool = False

    @property
    def num_chunked(self) -> int:
        """Rows of ranges."""
        return 0 if self.count is None else int(self.count.sum())

    @property
    def num_rows(self) -> int:
        """Rows of ranges and ids, R."""
        return self.num_chunked + (0 if self.index is None else self.index.numel())

    @property
    def width(self) -> int:
        """Elements of a row when it has arrived, C."""
        return _core.row_shape(self.table.rows, self.dtype).numel()

    @property
    def row_bytes(self) -> int:
        """Bytes of a row when it has arrived."""
        return self.width * self.dtype.itemsize

    @property
    def nbytes(self) -> int:
        """Bytes of all rows when they have arrived."""
        return self.num_rows * self.row_bytes

    @property
    def rows(self) -> Tensor:
        """The rows, [R, C]."""
        assert self.buffer is not None
        return self.buffer.data[: self.nbytes].view(self.dtype).view(self.num_rows, self.width)


def _finish(tables: dict[int, _Table]) -> None:
    for table in tables.values():
        table.settle()
    tables.clear()


def _layout(table: _core.Table) -> tuple[int, torch.Size, torch.dtype]:
    return table.data_ptr(), table.shape, table.dtype


def _fitting(buffers: list[_Buffer], pull: _Pull) -> _Buffer | None:
    return next((buffer for buffer in buffers if buffer.data.nbytes >= pull.nbytes), None)


class AsyncIOPool:
    """Moves rows between tables and ``device``, several at a time.

    Pulls are queued by :meth:`async_pull`, of which at most ``pool_size`` are in flight, taken by
    :meth:`synchronize_pull` and released by :meth:`free_pull`. Device memory is ``pool_size`` buffers of the largest pull
    seen, whatever N is, and one more for each that is taken before those in flight.

    A pull may be asked for long before it is taken, in a step before even: what is taken are the rows that the table holds
    then, which are read once more if the table was written to in the meantime.

    Args:
        pool_size: number of pulls in flight, at least 1.
        buffer_size: rows reserved in each buffer from the start; buffers grow when a larger halo arrives.
        embedding_dim: width of the rows that ``buffer_size`` reserves, C.
        device: where rows are pulled to and pushed from.
        io: ``"concurrent"`` moves rows while layers run, ``"serial"`` when a layer needs them; the rows are the same. On the CPU
            there is no difference.
        pool_bytes: device memory that pulls in flight may take. One at a time is always allowed.

    Raises:
        ValueError: if ``pool_size`` is below 1, ``buffer_size`` or ``pool_bytes`` is negative, or ``io`` is none of both.
    """

    @checked
    def __init__(
        self,
        pool_size: int = 2,
        buffer_size: int | None = None,
        embedding_dim: int | None = None,
        device: torch.device | str = "cpu",
        *,
        io: IO = "concurrent",
        pool_bytes: int | None = None,
    ) -> None:
        if pool_size < 1:
            raise ValueError(f"AsyncIOPool: pool_size must be at least 1, but is {pool_size}")
        if buffer_size is not None and buffer_size < 0:
            raise ValueError(f"AsyncIOPool: buffer_size must not be negative, but is {buffer_size}")
        if embedding_dim is not None and embedding_dim < 0:
            raise ValueError(f"AsyncIOPool: embedding_dim must not be negative, but is {embedding_dim}")
        if pool_bytes is not None and pool_bytes < 0:
            raise ValueError(f"AsyncIOPool: pool_bytes must not be negative, but is {pool_bytes}")
        if io not in get_args(IO):
            raise ValueError(f"AsyncIOPool: io must be one of {get_args(IO)}, but is {io!r}")
        self.pool_size = pool_size
        self.buffer_size = buffer_size or 0
        self.embedding_dim = embedding_dim or 0
        self.device = with_index(torch.device(device))
        self.io = io
        self.pool_bytes = pool_bytes
        self._lanes = make_lanes(self.device, io == "concurrent")
        self._staging: dict[Lane, _core.Staging] = {}
        self._tables: dict[int, _Table] = {}  # by address
        weakref.finalize(self, _finish, self._tables)  # tables outlive their transfers, also when Python ends
        self._queue: deque[_Pull] = deque()
        self._buffers: list[_Buffer] = []
        # Ids on the host, with their version, the lane that reads them, and on the device: those of this batch and of the next.
        self._ids: deque[tuple[Tensor, int, Lane, Tensor]] = deque(maxlen=4)

    @checked
    def to(self, device: torch.device | str) -> AsyncIOPool:
        """This pool for another device; transfers under way are finished first."""
        self.reset()
        return AsyncIOPool(
            self.pool_size, self.buffer_size, self.embedding_dim, device, io=self.io, pool_bytes=self.pool_bytes
        )

    @property
    def nbytes(self) -> int:
        """Device memory of the buffers, in bytes."""
        return sum(buffer.data.nbytes for buffer in self._buffers)

    # -- pull ----------------------------------------------------------------------------------------------------------

    @checked
    @naming("AsyncIOPool.async_pull", table="src")
    @torch.no_grad()
    def async_pull(
        self,
        src: _core.Table,
        offset: Tensor | None,
        count: Tensor | None,
        index: Tensor | None,
        dtype: torch.dtype | None = None,
    ) -> None:
        """Asks for the rows ``offset``/``count`` of ``src`` followed by its rows ``index``.

        Args:
            src: table [N, C], on the device or in host memory, or [N, C + 4] of int8 with a floating-point ``dtype``.
            offset: starts of contiguous ranges, [P], or None.
            count: lengths of these ranges, [P], or None.
            index: row ids, [S], or None.
            dtype: type of the rows that arrive; that of the table by default.
        """
        if (offset is None) != (count is None):
            raise ValueError("AsyncIOPool.async_pull: offset and count go together; give both or neither")
        table = self._table(src)
        if offset is not None and count is not None:
            checks.within("async_pull", *checks.ranges("async_pull", "offset", offset, count), src.size(0))
        if index is not None:
            checks.vector("async_pull", "index", index)
            checks.element_type("async_pull", "index", index, checks.ID_BITS)
        pull = _Pull(table, offset, count, index, dtype or src.dtype)
        if self.io == "concurrent" and not any(p.buffer is None for p in self._queue) and self._may_start(pull):
            self._start(pull)
        self._queue.append(pull)

    @checked
    def synchronize_pull(self, src: _core.Table | None = None) -> Tensor:
        """The rows [R, C] of the oldest pull (of table ``src``), ready for the current stream.

        The tensor is a view of a buffer: use it before :meth:`free_pull`.
        """
        return self._arrived(self._find(src))

    def _arrived(self, pull: _Pull) -> Tensor:
        """The rows of ``pull``, ready for the current stream."""
        if pull.buffer is None:
            self._start(pull)  # at once, though others may be in flight: it is needed now
        elif not pull.taken and pull.state != pull.table.state:
            self._fill(pull)
        pull.taken = True
        self._lanes.compute.wait(pull.done)
        assert pull.buffer is not None
        self._lanes.compute.hold(pull.buffer.data)
        return pull.rows

    @checked
    def free_pull(self, src: _core.Table | None = None) -> None:
        """Releases the buffer of the oldest pull (of table ``src``) and starts the next one that waits."""
        self._free(self._find(src))

    def _free(self, done: _Pull) -> None:
        """Releases the buffer of a pull and starts the next one that waits."""
        self._drop(done)
        for pull in self._queue:
            if pull.buffer is None:
                if self.io == "serial" or not self._may_start(pull):
                    break
                self._start(pull)

    def is_asked(self, src: _core.Table) -> bool:
        """Whether a pull of table ``src`` waits or is in flight."""
        return any(pull.table.rows is src for pull in self._queue)

    def forget_pulls(self, *wanted: Tensor) -> None:
        """Drops all pulls that were asked for, but those of the very tensors ``wanted``. The host does not wait."""
        for pull in [p for p in self._queue if not any(p.index is index for index in wanted)]:
            self._drop(pull)

    def _find(self, src: _core.Table | None) -> _Pull:
        for pull in self._queue:
            if src is None or pull.table.rows.data_ptr() == src.data_ptr():
                return pull
        of = "" if src is None else " of src"
        raise RuntimeError(f"AsyncIOPool: no such pull{of} is under way; call async_pull first")

    def _drop(self, pull: _Pull) -> None:
        if pull.buffer is not None and pull.taken:
            pull.buffer.read = self._lanes.compute.record()
        self._queue.remove(pull)

    def _may_start(self, pull: _Pull) -> bool:
        in_flight = sum(p.buffer is not None for p in self._queue)
        if in_flight == 0:
            return True
        free = self._free_buffers()
        if in_flight >= self.pool_size or _fitting(free, pull) is not None:
            return in_flight < self.pool_size
        return not self._exceeds(self.nbytes - sum(buffer.data.nbytes for buffer in free) + self._reserve(pull))

    def _exceeds(self, size: int) -> bool:
        return self.pool_bytes is not None and size > self.pool_bytes

    def _start(self, pull: _Pull) -> None:
        pull.buffer = self._buffer_for(pull)
        self._lanes.pull.wait(pull.buffer.read)
        try:
            self._fill(pull)
        except BaseException:
            pull.buffer = None
            raise

    def _buffer_for(self, pull: _Pull) -> _Buffer:
        free = self._free_buffers()
        fitting = _fitting(free, pull)
        if fitting is not None:
            return fitting
        size = self._reserve(pull)
        while free and (len(self._buffers) >= self.pool_size or self._exceeds(self.nbytes + size)):
            self._buffers.remove(free.pop())  # a larger one takes its place
        self._buffers.append(_Buffer(self._lanes.pull.empty(size, torch.uint8, self.device)))
        return self._buffers[-1]

    def _free_buffers(self) -> list[_Buffer]:
        """Buffers that no pull uses, the smallest first."""
        used = [pull.buffer for pull in self._queue]
        return sorted((b for b in self._buffers if not any(b is u for u in used)), key=lambda b: b.data.nbytes)

    def _reserve(self, pull: _Pull) -> int:
        """Bytes of a new buffer for ``pull``."""
        reserved = self.buffer_size * max(self.embedding_dim * pull.dtype.itemsize, pull.row_bytes)
        return max(
            pull.nbytes, reserved if self.pool_bytes is None else min(reserved, self.pool_bytes // self.pool_size)
        )

    def _fill(self, pull: _Pull) -> None:
        lane, table, rows = self._lanes.pull, pull.table, pull.rows
        lane.wait(table.pushed)
        lane.wait(table.pulled)  # so that the event below stands for both
        staging = self._staging_of(table, lane)
        pull.state = table.state
        if pull.offset is not None and pull.count is not None:
            out = rows[: pull.num_chunked]
            lane.run(partial(_core.read_chunks, table.rows, pull.offset, pull.count, out=out, staging=staging))
        if pull.index is not None:
            index = pull.index if table.staged else self._ids_for(pull.index, lane)
            out = rows[pull.num_chunked :]
            lane.run(partial(_core.gather_rows, table.rows, index, out=out, staging=staging))
        pull.done = table.pulled = lane.record()

    def _ids_for(self, index: Tensor, lane: Lane) -> Tensor:
        """``index`` where ``lane`` reads it; one copy serves all layers."""
        for known, version_then, of_lane, there in self._ids:
            if known is index and version_then == version(index) and of_lane is lane:
                return there
        there = self._on_device(index, lane)
        self._ids.append((index, version(index), lane, there))
        return there

    def _on_device(self, index: Tensor, lane: Lane) -> Tensor:
        if index.device == self.device:
            if index.is_cuda:  # where it may still be computed
                lane.wait(self._lanes.compute.record())
                lane.hold(index)
            return index
        there = lane.empty(index.numel(), index.dtype, self.device)
        pinned = index if index.is_pinned() else index.pin_memory()
        lane.run(partial(there.copy_, pinned, non_blocking=True))
        return there

    @checked
    @naming("AsyncIOPool.pull_now", table="src")
    @torch.no_grad()
    def pull_now(self, src: _core.Table, index: Tensor, out: Tensor) -> None:
        """Writes the rows ``index`` of ``src`` to ``out``, [S, C], for the current stream; the host does not wait."""
        lane, table = self._lanes.compute, self._table(src)
        lane.wait(table.pushed)
        lane.wait(table.pulled)  # so that the event below stands for both
        ids = index if table.staged else self._ids_for(index, lane)
        lane.run(partial(_core.gather_rows, src, ids, out=out, staging=self._staging_of(table, lane)))
        table.pulled = lane.record()

    # -- push ----------------------------------------------------------------------------------------------------------

    @checked
    @naming("AsyncIOPool.async_push", table="dst")
    @torch.no_grad()
    def async_push(self, rows: Tensor, offset: Tensor, count: Tensor, dst: _core.Table) -> None:
        """Writes ``rows`` [B, C] to the ranges ``offset``/``count`` of table ``dst`` [N, C]."""
        lane, table = self._lanes.push, self._table(dst)
        if lane is not self._lanes.compute:
            rows = rows.to(
                _core.sent_dtype(dst, rows.dtype), copy=True
            )  # the caller may go on to change its rows in place
            lane.wait(self._lanes.compute.record())
        lane.wait(table.pulled)
        staging = self._staging_of(table, lane)
        lane.run(partial(_core.write_chunks, dst, offset, count, rows, staging=staging))
        if lane is not self._lanes.compute:
            lane.hold(rows)
        table.pushed = lane.record()

    # -- what a table asks for -----------------------------------------------------------------------------------------

    # A pull may be asked for by :meth:`request` and taken by :meth:`take`, which reads rows that nobody has asked for at
    # once. Where nothing runs beside the layers, or rows are on the device already, asking does nothing.

    @property
    def _is_immediate(self) -> bool:
        """Whether the host itself moves rows, so that nothing is ever under way."""
        return isinstance(self._lanes.compute, AtOnce)

    @property
    def overlaps(self) -> bool:
        """Whether rows move while layers run."""
        return self._lanes.pull is not self._lanes.compute

    def request(self, src: _core.Table, index: Tensor, dtype: torch.dtype) -> None:
        """Asks for the rows ``index`` [S] of ``src``, as numbers of type ``dtype``, unless somebody has."""
        if self.overlaps and not src.is_cuda and self._asked(src, index) is None:
            self.async_pull(src, None, None, index, dtype)

    def take(self, src: _core.Table, index: Tensor, out: Tensor) -> None:
        """Writes the rows ``index`` [S] of ``src`` to ``out`` [S, C], for the current stream; the host does not wait."""
        pull = self._asked(src, index)
        if pull is not None:
            out.copy_(self._arrived(pull))
            self._free(pull)
        elif self._is_immediate:
            _core.gather_rows(src, index.to(out.device), out=out)
        else:
            self.pull_now(src, index, out)

    def put(self, rows: Tensor, offset: Tensor, count: Tensor, dst: _core.Table) -> None:
        """Writes ``rows`` [B, C] to the ranges ``offset``/``count`` of ``dst``; they may change afterwards."""
        if self._is_immediate or dst.is_cuda:
            _core.write_chunks(dst, offset, count, rows.to(dst.device))
        else:
            self.async_push(rows, offset, count, dst)

    def _asked(self, src: _core.Table, index: Tensor) -> _Pull | None:
        return next((pull for pull in self._queue if pull.table.rows is src and pull.index is index), None)

    # -- waiting -------------------------------------------------------------------------------------------------------

    def settle(self, table: _core.Table) -> None:
        """Blocks the host until no transfer of ``table`` is under way: it may then be read and written by the host."""
        known = self._tables.get(table.data_ptr())
        if known is not None:
            known.settle()
            known.visits += 1

    def synchronize_push(self, dst: _core.Table | None = None) -> None:
        """Blocks the host until the pushes (to table ``dst``) have arrived; needed before the host reads a table."""
        for table in self._tables.values():
            if table.pushed is not None and (dst is None or table.rows.data_ptr() == dst.data_ptr()):
                table.pushed.synchronize()
                table.pushed = None

    def reset(self) -> None:
        """Forgets pulls that nobody took, as after an exception, and waits for all transfers."""
        self.forget_pulls()
        _finish(self._tables)

    # -- tables --------------------------------------------------------------------------------------------------------

    def _table(self, rows: _core.Table) -> _Table:
        if rows.dim() != 2:
            raise ValueError(f"{called('AsyncIOPool')}: `{arg('table')}` must be [N, C], but is {list(rows.shape)}")
        if isinstance(rows, Tensor):
            checks.contiguous("AsyncIOPool", "table", rows)
        known = self._tables.get(rows.data_ptr())
        # It may be a view of the same memory, or lie where a table lay that is gone.
        if known is not None and _layout(known.rows) != _layout(rows):
            if any(pull.table is known for pull in self._queue):
                raise ValueError(
                    f"{called('AsyncIOPool')}: `{arg('table')}` is {list(rows.shape)}, but begins where a table of "
                    f"{list(known.rows.shape)} does that is being pulled; pass the whole table"
                )
            known.settle()
            known = None
        if known is None:
            on_host = self.device.type == "cuda" and rows.device.type == "cpu"
            known = self._tables[rows.data_ptr()] = _Table(rows, staged=on_host and not rows.is_pinned())
        return known

    def _staging_of(self, table: _Table, lane: Lane) -> _core.Staging | None:
        if not table.staged:
            return None
        if lane not in self._staging:
            self._staging[lane] = make_staging(self.device)
        return self._staging[lane]

    def __repr__(self) -> str:
        return f"AsyncIOPool(pool_size={self.pool_size}, buffer_size={self.buffer_size}, device={self.device}, io={self.io!r})"
