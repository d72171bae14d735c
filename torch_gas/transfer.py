"""Asynchronous rows between history tables and the device: the only file that knows CUDA streams.

A *pull* gathers halo rows of a table into a device buffer, a *push* writes batch rows into a table. On a CUDA device
both run on side streams of their own, so that they overlap with the layers (Section 5, "Fast historical embeddings",
and Figure 2 of https://arxiv.org/abs/2106.05609). On the CPU they run at once.

Ordering rules, all kept by events and never by waiting on the host:

* a pull of a table waits for the last push to that table;
* a push waits for the stream that computed its rows, and for the last pull of its table;
* the consumer of a pull waits for that pull alone;
* a buffer is filled again only after its consumer has read it.
"""

from __future__ import annotations

from collections import deque
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from torch_gas import _core


@dataclass
class _Buffer:
    """Device memory for one pull in flight."""

    data: Tensor | None = None
    read: Any = None  # event: the consumer has read the last rows that were here


@dataclass(eq=False)
class _Pull:
    """One pull, from the call that asks for it to the one that frees it."""

    src: Tensor
    offset: Tensor | None
    count: Tensor | None
    index: Tensor | None
    dtype: torch.dtype
    rows: Tensor | None = None
    buffer: _Buffer | None = None
    done: Any = field(default=None)  # event: the rows have arrived


class AsyncIOPool:
    """Moves rows between tables and ``device``, several at a time.

    Pulls are queued by :meth:`async_pull`, of which at most ``pool_size`` are in flight, taken by
    :meth:`synchronize_pull` and released by :meth:`free_pull`. Device memory is ``pool_size`` buffers of the largest pull
    seen, whatever N is, and one more for each that is taken before those in flight.

    Args:
        pool_size: number of pulls in flight, at least 1.
        buffer_size: rows reserved in each buffer from the start; buffers grow when a larger halo arrives.
        embedding_dim: width of the rows that ``buffer_size`` reserves, C.
        device: where rows are pulled to and pushed from.

    Raises:
        ValueError: if ``pool_size`` is below 1.
    """

    def __init__(
        self,
        pool_size: int = 2,
        buffer_size: int | None = None,
        embedding_dim: int | None = None,
        device: torch.device | str = "cpu",
    ) -> None:
        if pool_size < 1:
            raise ValueError(f"AsyncIOPool: pool_size must be at least 1, but is {pool_size}")
        self.pool_size = pool_size
        self.buffer_size = buffer_size or 0
        self.embedding_dim = embedding_dim or 0
        self.device = torch.device(device)
        self._queue: deque[_Pull] = deque()
        self._buffers = [_Buffer() for _ in range(pool_size)]
        self._streams: dict[str, torch.cuda.Stream] = {}
        self._pushed: dict[int, Any] = {}  # by table address: event of its last push
        self._pulled: dict[int, Any] = {}  # by table address: event of its last pull

    def to(self, device: torch.device | str) -> AsyncIOPool:
        """This pool for another device; transfers under way are finished first."""
        self.reset()
        return AsyncIOPool(self.pool_size, self.buffer_size, self.embedding_dim, device)

    # -- pull ----------------------------------------------------------------------------------------------------------

    @torch.no_grad()
    def async_pull(
        self,
        src: Tensor,
        offset: Tensor | None,
        count: Tensor | None,
        index: Tensor | None,
        dtype: torch.dtype | None = None,
    ) -> None:
        """Asks for the rows ``offset``/``count`` of ``src`` followed by its rows ``index``.

        Args:
            src: table [N, C], on the device or in host memory (pinned, where the device is CUDA).
            offset: starts of contiguous ranges, [P], or None.
            count: lengths of these ranges, [P], or None.
            index: row ids, [S], or None.
            dtype: type of the rows that arrive; that of the table by default.
        """
        if (offset is None) != (count is None):
            raise ValueError("AsyncIOPool.async_pull: offset and count go together; give both or neither")
        pull = _Pull(src, offset, count, index, dtype or src.dtype)
        if len(self._queue) < self.pool_size:
            self._start(pull)
        self._queue.append(pull)

    def synchronize_pull(self, src: Tensor | None = None) -> Tensor:
        """The rows [R, C] of the oldest pull (of table ``src``), ready for the current stream.

        The tensor is a view of a buffer: use it before :meth:`free_pull`.
        """
        pull = self._find(src)
        if pull.rows is None:  # asked for before those in flight, which may be in use: it gets a buffer of its own
            if self._free_buffer() is None:
                self._buffers.append(_Buffer())
            self._start(pull)
        assert pull.rows is not None
        if pull.done is not None:
            torch.cuda.current_stream(self.device).wait_event(pull.done)
        return pull.rows

    def free_pull(self, src: Tensor | None = None) -> None:
        """Releases the buffer of the oldest pull (of table ``src``) and starts the next one that waits."""
        self._drop(self._find(src))

    def _find(self, src: Tensor | None) -> _Pull:
        for pull in self._queue:
            if src is None or pull.src.data_ptr() == src.data_ptr():
                return pull
        raise RuntimeError("AsyncIOPool: no such pull is under way; call async_pull first")

    def _drop(self, pull: _Pull) -> None:
        if pull.buffer is not None and self._is_cuda:
            pull.buffer.read = torch.cuda.current_stream(self.device).record_event()
        self._queue.remove(pull)
        waiting = next((p for p in self._queue if p.rows is None), None)
        if waiting is not None and self._free_buffer() is not None:
            self._start(waiting)

    def _start(self, pull: _Pull) -> None:
        pull.buffer = self._free_buffer()
        assert pull.buffer is not None
        if not self._is_cuda:
            pull.rows = self._read(pull)
            return
        stream = self._stream("pull")
        index = pull.index
        if index is not None and index.is_cuda:  # ids from the host are copied by the side stream itself
            stream.wait_stream(torch.cuda.current_stream(self.device))
        with torch.cuda.stream(stream):
            for event in (self._pushed.get(pull.src.data_ptr()), pull.buffer.read):
                if event is not None:
                    stream.wait_event(event)
            if index is not None:
                pull.index = index.to(self.device, non_blocking=True)
                pull.index.record_stream(stream)
            pull.rows = self._read(pull)
            pull.done = stream.record_event()
        self._pulled[pull.src.data_ptr()] = pull.done

    def _free_buffer(self) -> _Buffer | None:
        used = [pull.buffer for pull in self._queue]
        return next((b for b in self._buffers if not any(b is u for u in used)), None)

    def _read(self, pull: _Pull) -> Tensor:
        num_chunked = 0 if pull.count is None else int(pull.count.sum())
        num_rows = num_chunked + (0 if pull.index is None else pull.index.numel())
        rows = self._rows(pull, num_rows)
        if pull.offset is not None and pull.count is not None:
            _core.read_chunks(pull.src, pull.offset, pull.count, out=rows[:num_chunked])
        if pull.index is not None:
            _core.gather_rows(pull.src, pull.index, out=rows[num_chunked:])
        return rows

    def _rows(self, pull: _Pull, num_rows: int) -> Tensor:
        """[num_rows, C] in the pull's buffer, which grows if it must."""
        assert pull.buffer is not None
        width, itemsize = pull.src.size(1), pull.dtype.itemsize
        need = num_rows * width * itemsize
        if pull.buffer.data is None or pull.buffer.data.numel() < need:
            reserve = max(need, self.buffer_size * self.embedding_dim * itemsize)
            pull.buffer.data = torch.empty(reserve, dtype=torch.uint8, device=self.device)
        return pull.buffer.data[:need].view(pull.dtype).view(num_rows, width)

    # -- push ----------------------------------------------------------------------------------------------------------

    @torch.no_grad()
    def async_push(self, rows: Tensor, offset: Tensor, count: Tensor, dst: Tensor) -> None:
        """Writes ``rows`` [B, C] to the ranges ``offset``/``count`` of table ``dst`` [N, C]."""
        if not self._is_cuda:
            _core.write_chunks(dst, offset, count, rows)
            return
        stream = self._stream("push")
        rows = rows.clone()  # the caller may go on to change its rows in place
        stream.wait_stream(torch.cuda.current_stream(self.device))
        pulled = self._pulled.get(dst.data_ptr())
        if pulled is not None:
            stream.wait_event(pulled)
        with torch.cuda.stream(stream):
            _core.write_chunks(dst, offset, count, rows)
            rows.record_stream(stream)
            self._pushed[dst.data_ptr()] = stream.record_event()

    def synchronize_push(self, dst: Tensor | None = None) -> None:
        """Blocks the host until the pushes (to table ``dst``) have arrived; needed before the host reads a table."""
        keys = list(self._pushed) if dst is None else [dst.data_ptr()]
        for key in keys:
            event = self._pushed.pop(key, None)
            if event is not None:
                event.synchronize()

    def reset(self) -> None:
        """Forgets pulls that nobody took, as after an exception, and waits for all pushes."""
        while self._queue:
            pull = self._queue.popleft()
            if pull.done is not None:
                pull.done.synchronize()
        self.synchronize_push()

    # -- streams -------------------------------------------------------------------------------------------------------

    @property
    def _is_cuda(self) -> bool:
        return self.device.type == "cuda"

    def _stream(self, name: str) -> torch.cuda.Stream:
        if name not in self._streams:
            self._streams[name] = torch.cuda.Stream(self.device)
        return self._streams[name]

    def __repr__(self) -> str:
        return f"AsyncIOPool(pool_size={self.pool_size}, buffer_size={self.buffer_size}, device={self.device})"
