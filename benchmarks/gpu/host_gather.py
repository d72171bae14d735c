"""Histories as PyGAS moves them: a thread gathers rows on the host into pinned memory and copies them to the device.

A library for step.py and beside.py, written after PyGAS's description and without its code. A call begins by asking for the
halo's rows of all tables. A worker gathers them one table after the other (index_select) and queues a copy of each on a
stream; a layer waits, on the host, until its gather is done. Pushes are copies of ranges to pinned tables, queued by the same
worker. The next call's gathers come behind them, so that rows are those that were pushed last.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterable
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any

import torch
from torch import Tensor
from workload import train_step

from torch_gas import History, ScalableGNN, SubData
from torch_gas.graph.halo import appended, join


class HostGather:
    """Takes the place of the transfers of ``model``, whose tables lie in host memory; one call at a time.

    Args:
        model: with its histories in pinned memory, on ``device``.
        device: where layers run.
    """

    def __init__(self, model: ScalableGNN, device: torch.device) -> None:
        self.model, self.device = model, device
        self.tables = [history.table.tensor() for history in model.histories]
        self._is_cuda = device.type == "cuda"
        self._pull_stream, self._push_stream = (torch.cuda.Stream(device) if self._is_cuda else None for _ in range(2))
        self._worker = ThreadPoolExecutor(1)
        self._buffers: dict[int, Tensor] = {}  # pinned
        self._copied: dict[int, Any] = {}  # events: a buffer may be written to again
        self._pulls: deque[Future[tuple[Tensor, Any]]] = deque()
        model.push_and_pull = self._exchange  # type: ignore[method-assign]  # of this model alone

    def begin(self, batch: SubData) -> None:
        """Asks for the halo's rows of ``batch``, which the next call is for."""
        halo = batch.n_id[batch.batch_size :]
        self._pulls = deque(self._worker.submit(self._pull, number, halo) for number in range(len(self.tables)))

    def finish(self) -> None:
        """Waits for all pushes."""
        self._worker.submit(lambda: None).result()

    def _pull(self, number: int, halo: Tensor) -> tuple[Tensor, Any]:
        if number in self._copied:
            self._copied[number].synchronize()
        table, buffer = self.tables[number], self._buffers.get(number)
        if buffer is None or len(buffer) < len(halo):
            shape = (len(halo), table.size(1))
            buffer = self._buffers[number] = torch.empty(shape, dtype=table.dtype, pin_memory=self._is_cuda)
        rows = torch.index_select(table, 0, halo, out=buffer[: len(halo)])
        if self._pull_stream is None:
            return rows, None
        with torch.cuda.stream(self._pull_stream):
            there = rows.to(self.device, non_blocking=True)
            self._copied[number] = self._pull_stream.record_event()
        return there, self._copied[number]

    def _push(self, number: int, rows: Tensor, computed: Any, offset: Tensor, count: Tensor) -> None:
        table = self.tables[number]
        with torch.cuda.stream(self._push_stream):
            if self._push_stream is not None:
                self._push_stream.wait_event(computed)
            for first, piece in zip(offset.tolist(), rows.split(count.tolist()), strict=True):
                table[first : first + len(piece)].copy_(piece, non_blocking=True)
            if self._push_stream is not None:
                self._push_stream.synchronize()

    def _exchange(
        self,
        history: History,
        x: Tensor,
        batch_size: int,
        n_id: Tensor,
        offset: Tensor,
        count: Tensor,
        *_: Any,
    ) -> Tensor:
        assert self.model._session.call is not None
        self.model._session.call.used.add(history)  # as far as the model is told
        number = list(self.model.histories).index(history)
        there, arrived = self._pulls.popleft().result()  # the host waits for the gather
        batch, computed = x[:batch_size], None
        pushed = batch.detach()
        if self._push_stream is not None:
            compute = torch.cuda.current_stream(self.device)
            compute.wait_event(arrived)
            there.record_stream(compute)
            pushed.record_stream(self._push_stream)
            computed = compute.record_event()
        self._worker.submit(self._push, number, pushed, computed, offset, count)
        return join(batch, appended(batch, len(there), lambda out: out.copy_(there)))


def training_epoch(model: Any, batches: Iterable[Any], gather: HostGather | None = None) -> Callable[[], None]:
    """An epoch of training, one step for each batch, with rows moved by ``gather`` or as the model does it."""
    optimizer = torch.optim.Adam(model.parameters())

    def epoch() -> None:
        for batch in batches:
            if gather is not None:
                gather.begin(batch)
            train_step(model, optimizer, batch)
        if gather is not None:
            gather.finish()

    return epoch
