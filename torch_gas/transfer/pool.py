"""AsyncIOPool: pulls and pushes of one model, with their events and buffers."""

from __future__ import annotations

import weakref
from collections import deque
from functools import partial
from typing import Literal, get_args

import torch
from torch import Tensor

from torch_gas import _core
from torch_gas._core import checks
from torch_gas._core.naming import arg, called, naming
from torch_gas._util.arguments import checked
from torch_gas._util.version import version
from torch_gas.transfer.lanes import Lane, make_lanes, with_index
from torch_gas.transfer.pull import Buffer, Pull, TableState

IO = Literal["concurrent", "serial"]
STAGING_BYTES = 2**24  # pinned memory through which rows of pageable tables travel; some MB keep the bus busy


def _finish(tables: dict[int, TableState]) -> None:
    for table in tables.values():
        table.settle()
    tables.clear()


def _layout(table: _core.Table) -> tuple[int, torch.Size, torch.dtype]:
    return table.data_ptr(), table.shape, table.dtype


def _fitting(buffers: list[Buffer], pull: Pull) -> Buffer | None:
    return next((buffer for buffer in buffers if buffer.data.nbytes >= pull.nbytes), None)


def _is_still(index: Tensor, content: Tensor | int) -> bool:
    """Whether ids are what they were, by a copy of them or by their version."""
    if isinstance(content, Tensor):
        return torch.equal(index, content)
    return version(index) == content and not index.is_inference()


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
        sizes = {"buffer_size": buffer_size, "embedding_dim": embedding_dim, "pool_bytes": pool_bytes}
        for name, size in sizes.items():
            if size is not None and size < 0:
                raise ValueError(f"AsyncIOPool: {name} must not be negative, but is {size}")
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
        self._tables: dict[int, TableState] = {}  # by address
        weakref.finalize(self, _finish, self._tables)  # tables outlive their transfers, also when Python ends
        self._queue: deque[Pull] = deque()
        self._buffers: list[Buffer] = []
        # Ids, with a copy or their version, the lane that reads them, and on the device: those of this batch and of the next.
        self._ids: deque[tuple[Tensor, Tensor | int, Lane, Tensor]] = deque(maxlen=4)

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
        self._ask(src, None if offset is None or count is None else (offset, count), index, dtype)

    @naming("AsyncIOPool.async_pull", table="src")
    def _ask(
        self, src: _core.Table, ranges: tuple[Tensor, Tensor] | None, index: Tensor | None, dtype: torch.dtype | None
    ) -> None:
        """As :meth:`async_pull`, of arguments of the right types."""
        table = self._table(src)
        if ranges is not None:
            ranges = checks.ranges("async_pull", "offset", *ranges)
            checks.within("async_pull", *ranges, src.shape[0])
        if index is not None:
            checks.vector("async_pull", "index", index)
            checks.element_type("async_pull", "index", index, checks.ID_BITS)
        pull = Pull(table, ranges, index, dtype or src.dtype)
        if self.io == "concurrent" and not any(p.buffer is None for p in self._queue) and self._may_start(pull):
            self._start(pull)
        self._queue.append(pull)

    @checked
    def synchronize_pull(self, src: _core.Table | None = None) -> Tensor:
        """The rows [R, C] of the oldest pull (of table ``src``), ready for the current stream.

        The tensor is a view of a buffer: use it before :meth:`free_pull`.
        """
        return self._arrived(self._find(src))

    def _arrived(self, pull: Pull) -> Tensor:
        """The rows of ``pull``, ready for the current stream."""
        buffer = pull.buffer
        if buffer is None:
            buffer = self._start(pull)  # at once, though others may be in flight: it is needed now
        elif not pull.taken and pull.state != pull.table.state:
            self._fill(pull)
        pull.taken = True
        self._lanes.compute.wait(pull.done)
        self._lanes.compute.hold(buffer.data)
        return pull.rows

    @checked
    def free_pull(self, src: _core.Table | None = None) -> None:
        """Releases the buffer of the oldest pull (of table ``src``) and starts the next one that waits."""
        self._free(self._find(src))

    def _free(self, done: Pull) -> None:
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

    def _find(self, src: _core.Table | None) -> Pull:
        for pull in self._queue:
            if src is None or pull.table.rows.data_ptr() == src.data_ptr():
                return pull
        of = "" if src is None else " of src"
        raise RuntimeError(f"AsyncIOPool: no such pull{of} is under way; call async_pull first")

    def _drop(self, pull: Pull) -> None:
        if pull.buffer is not None and pull.taken:
            pull.buffer.read = self._lanes.compute.record()
        self._queue.remove(pull)

    def _may_start(self, pull: Pull) -> bool:
        in_flight = sum(p.buffer is not None for p in self._queue)
        if in_flight == 0 or in_flight >= self.pool_size:
            return in_flight == 0  # one at a time is always allowed
        if self.pool_bytes is None:
            return True
        free = self._free_buffers()
        if _fitting(free, pull) is not None:
            return True
        return not self._exceeds(self.nbytes - sum(buffer.data.nbytes for buffer in free) + self._reserve(pull))

    def _exceeds(self, size: int) -> bool:
        return self.pool_bytes is not None and size > self.pool_bytes

    def _start(self, pull: Pull) -> Buffer:
        buffer = self._buffer_for(pull)
        self._lanes.pull.wait(buffer.read)
        pull.rows = pull.rows_in(buffer)
        self._fill(pull)
        pull.buffer = buffer  # last: a pull that fails still waits
        return buffer

    def _buffer_for(self, pull: Pull) -> Buffer:
        free = self._free_buffers()
        fitting = _fitting(free, pull)
        if fitting is not None:
            return fitting
        size = self._reserve(pull)
        while free and (len(self._buffers) >= self.pool_size or self._exceeds(self.nbytes + size)):
            self._buffers.remove(free.pop())  # a larger one takes its place
        self._buffers.append(Buffer(self._lanes.pull.empty(size, torch.uint8, self.device)))
        return self._buffers[-1]

    def _free_buffers(self) -> list[Buffer]:
        """Buffers that no pull uses, the smallest first."""
        used = [pull.buffer for pull in self._queue]
        return sorted((b for b in self._buffers if not any(b is u for u in used)), key=lambda b: b.data.nbytes)

    def _reserve(self, pull: Pull) -> int:
        """Bytes of a new buffer for ``pull``."""
        reserved = self.buffer_size * max(self.embedding_dim * pull.dtype.itemsize, pull.row_bytes)
        if self.pool_bytes is not None:
            reserved = min(reserved, self.pool_bytes // self.pool_size)
        return max(pull.nbytes, reserved)

    def _fill(self, pull: Pull) -> None:
        lane, table, rows = self._lanes.pull, pull.table, pull.rows
        lane.wait(table.pushed)
        lane.wait(table.pulled)  # so that the event below stands for both
        staging = self._staging_of(table, lane)
        pull.state = table.state
        if pull.ranges is not None:
            out = rows[: pull.num_chunked]
            lane.run(partial(_core.read_chunks, table.rows, *pull.ranges, out=out, staging=staging))
        if pull.index is not None:
            index = pull.index if table.staged else self._ids_for(pull.index, lane)
            out = rows[pull.num_chunked :] if pull.num_chunked > 0 else rows
            lane.run(partial(_core.gather_rows, table.rows, index, out=out, staging=staging))
        pull.done = table.pulled = lane.record()

    def _ids_for(self, index: Tensor, lane: Lane) -> Tensor:
        """``index`` where ``lane`` reads it; one copy serves all layers."""
        for known, content, of_lane, there in self._ids:
            if known is index and of_lane is lane and _is_still(index, content):
                return there
        if index.device == self.device:
            there = index
            if index.is_cuda:  # where it may still be computed
                lane.wait(self._lanes.compute.record())
                lane.hold(index)
        else:
            there = lane.empty(index.numel(), index.dtype, self.device)
            pinned = index if index.is_pinned() else index.pin_memory()
            lane.run(partial(there.copy_, pinned, non_blocking=True))
        # Where ids are not looked at, versions tell of writes, but for tensors of inference mode.
        self._ids.append((index, index.clone() if index.device.type == "cpu" else version(index), lane, there))
        return there

    @checked
    @torch.no_grad()
    def pull_now(self, src: _core.Table, index: Tensor, out: Tensor) -> None:
        """Writes the rows ``index`` of ``src`` to ``out``, [S, C], for the current stream; the host does not wait."""
        self._pull_now(src, index, out)

    @naming("AsyncIOPool.pull_now", table="src")
    def _pull_now(self, src: _core.Table, index: Tensor, out: Tensor) -> None:
        """As :meth:`pull_now`, of arguments of the right types."""
        lane, table = self._lanes.compute, self._table(src)
        lane.wait(table.pushed)
        lane.wait(table.pulled)  # so that the event below stands for both
        ids = index if table.staged else self._ids_for(index, lane)
        lane.run(partial(_core.gather_rows, src, ids, out=out, staging=self._staging_of(table, lane)))
        table.pulled = lane.record()

    # -- push ----------------------------------------------------------------------------------------------------------

    @checked
    def async_push(self, rows: Tensor, offset: Tensor, count: Tensor, dst: _core.Table) -> None:
        """Writes ``rows`` [B, C] to the ranges ``offset``/``count`` of table ``dst`` [N, C]."""
        self._push(rows, offset, count, dst)

    @naming("AsyncIOPool.async_push", table="dst")
    def _push(self, rows: Tensor, offset: Tensor, count: Tensor, dst: _core.Table) -> None:
        """As :meth:`async_push`, of arguments of the right types."""
        lane, table = self._lanes.push, self._table(dst)
        if lane is not self._lanes.compute:
            # A copy, because the caller may go on to change its rows in place. It is of what is stored: the device computes
            # that fast, and nothing but bytes has to travel.
            rows = _core.stored_copy(dst, rows)
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
        return type(self._lanes.compute) is Lane

    @property
    def overlaps(self) -> bool:
        """Whether rows move while layers run."""
        return self._lanes.pull is not self._lanes.compute

    def request(self, src: _core.Table, index: Tensor, dtype: torch.dtype) -> None:
        """Asks for the rows ``index`` [S] of ``src``, as numbers of type ``dtype``, unless somebody has."""
        if self.overlaps and not src.is_cuda and self._asked(src, index) is None:
            self._ask(src, None, index, dtype)

    def take(self, src: _core.Table, index: Tensor, out: Tensor) -> None:
        """Writes the rows ``index`` [S] of ``src`` to ``out`` [S, C], for the current stream; the host does not wait."""
        pull = self._asked(src, index) if self._queue else None
        if pull is not None:
            out.copy_(self._arrived(pull))
            self._free(pull)
        elif self._is_immediate:
            _core.gather_rows(src, index.to(out.device), out=out)
        else:
            self._pull_now(src, index, out)

    def put(self, rows: Tensor, offset: Tensor, count: Tensor, dst: _core.Table) -> None:
        """Writes ``rows`` [B, C] to the ranges ``offset``/``count`` of ``dst``; they may change afterwards."""
        if self._is_immediate or dst.is_cuda:
            _core.write_chunks(dst, offset, count, rows.to(dst.device))
        else:
            self._push(rows, offset, count, dst)

    def _asked(self, src: _core.Table, index: Tensor) -> Pull | None:
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

    def _table(self, rows: _core.Table) -> TableState:
        known = self._tables.get(rows.data_ptr())
        if known is not None and known.rows is rows:
            return known
        if isinstance(rows, Tensor):
            checks.tensor("AsyncIOPool", "table", rows)
            checks.contiguous("AsyncIOPool", "table", rows)
        if len(rows.shape) != 2:
            raise ValueError(f"{called('AsyncIOPool')}: `{arg('table')}` must be [N, C], but is {list(rows.shape)}")
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
            known = self._tables[rows.data_ptr()] = TableState(rows, staged=on_host and not rows.is_pinned())
        return known

    def _staging_of(self, table: TableState, lane: Lane) -> _core.Staging | None:
        if not table.staged:
            return None
        if lane not in self._staging:
            self._staging[lane] = _core.Staging(STAGING_BYTES, self.device)
        return self._staging[lane]

    def __repr__(self) -> str:
        return f"AsyncIOPool(pool_size={self.pool_size}, buffer_size={self.buffer_size}, device={self.device}, io={self.io!r})"
