"""One call of a model: its checked arguments, and the transfers of its histories."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any, NamedTuple, Protocol

import torch
from torch import Tensor

from torch_gas._util.tracing import untraced
from torch_gas.batch.record import BatchRecord, record_of
from torch_gas.graph.formats import check_adjacency, num_destinations
from torch_gas.graph.halo import append
from torch_gas.graph.key import digest
from torch_gas.history import History
from torch_gas.transfer import AsyncIOPool, send_ids
from torch_gas.wiring import check_adjacency_of_batch
from torch_gas.wiring.undo import Undo

if TYPE_CHECKING:
    from torch_gas.session.base import ScalableGNN


class Observer(Protocol):
    """Who is told of the training steps that a model makes on batches; see :mod:`torch_gas.extensions.monitor`."""

    def step(self, batch_size: int, halo_size: int) -> bool:
        """Told B and S when a step begins. Returns whether to be told of its exchanges."""

    def exchange(self, history: History, rows: Tensor, n_id: Tensor) -> None:
        """Told the rows [B, C] that are about to be pushed, and the ids of batch and halo, [B + S]."""


class Coming(NamedTuple):
    """A batch that the loader has made ahead."""

    digest: int  # of its n_id
    batch_size: int
    halo: Tensor

    def is_batch(self, record: BatchRecord | None) -> bool:
        """Whether this is the batch of ``record``."""
        return record is not None and (self.digest, self.batch_size) == (record.digest, record.batch_size)


class Call:
    """One call of a model: its checked arguments and its transfers.

    Args:
        model: the model.
        undo: holds what the call changes.
        num_rows: rows of its input, or None where it has none.
        adj: adjacency of the batch or the graph, or None.
        batch_size, n_id, offset, count: those of the batch, or None.
    """

    def __init__(
        self,
        model: ScalableGNN,
        undo: Undo,
        num_rows: int | None,
        adj: Any,
        batch_size: int | None,
        n_id: Tensor | None,
        offset: Tensor | None,
        count: Tensor | None,
    ) -> None:
        self.model, self.undo = model, undo
        self.record = record_of(batch_size)
        self.batch_size = batch_size if self.record is None else int(batch_size)  # type: ignore[arg-type]  # it has a record
        self.n_id, self.offset, self.count = n_id, offset, count
        self.used: set[History] = set()
        self.forbidden: str | None = None  # why no history may be used now
        self.pool: AsyncIOPool | None = None  # where histories are in host memory and the model on a GPU
        self.coming: Coming | None = None
        self.at_end: Callable[[], None] | None = None  # what follows a forward pass without an error
        self._pushed: list[History] = []  # whose pulls for the next batch have not been asked for
        self._halo = torch.empty(0, dtype=torch.int64)  # ids of the halo whose rows the pool was asked for
        self._halo_there: Tensor | None = None
        self._observer: Observer | None = None
        self.on_own_graph = num_rows == model.num_nodes
        self.neighbors = "in" if self.record is None else self.record.neighbors
        if adj is not None:
            check_adjacency(adj, f"{model._name}: the adjacency")
        if n_id is None:
            self._check_graph(num_rows, adj)
        else:
            self._check_batch(num_rows, adj, n_id)

    def _check_graph(self, num_rows: int | None, adj: Any) -> None:
        name = self.model._name
        if any(given is not None for given in (self.batch_size, self.offset, self.count)):
            raise ValueError(f"{name}: batch_size, offset and count need n_id; pass `*args` of the loader's batch")
        if num_rows is None:
            return
        hint = (
            f"x has {num_rows} rows, but the graph of this model has {self.model.num_nodes} nodes. If this is a batch, "
            f"pass its ids: `for batch, *args in loader: model(batch.x, batch.edge_index, *args)`"
        )
        num_dst = num_destinations(adj)
        if num_dst is not None and num_dst != num_rows:
            raise ValueError(f"{name}: the adjacency has {num_dst} destinations. {hint}")
        if self.model.training and not self.on_own_graph:
            raise ValueError(f"{name}: {hint}. To run on another graph, call model.eval() first")

    def _check_batch(self, given: int | None, adj: Any, n_id: Tensor) -> None:
        name, batch_size, record = self.model._name, self.batch_size, self.record
        if not _is_vector(n_id) or n_id.dtype not in (torch.int64, torch.int32):
            raise TypeError(f"{name}: n_id must be a one-dimensional integer tensor")
        if record is None and self.model.check:
            raise ValueError(
                f"{name}: batch_size is {batch_size!r} and does not say which batch it is of, so that nothing tells whether rows "
                "and ids are those of one batch. Pass the batch, model(batch), or its ids as the loader gave them: `for batch, "
                "*ids in loader: model(batch.x, batch.edge_index, *ids)`. For ids of your own, make the model with check=False"
            )
        num_rows = n_id.numel()
        if record is None:
            self._check_ids(n_id)
        else:
            self._check_record(record, n_id)
        if given not in (None, num_rows):
            raise ValueError(f"{name}: x has {given} rows, but n_id has {num_rows}")
        if adj is not None and batch_size is not None and self.neighbors == "in":
            check_adjacency_of_batch(adj, batch_size, num_rows, num_destinations(adj))

    def _check_record(self, record: BatchRecord, n_id: Tensor) -> None:
        """Raises unless the ids are those of the batch that ``record`` is of, and that is one of the model's graph."""
        name = self.model._name
        if record.num_nodes != self.model.num_nodes:
            raise ValueError(
                f"{name}: the batch was made for a graph of {record.num_nodes} nodes, but the model for {self.model.num_nodes}"
            )
        if n_id.numel() != record.num_rows or digest(n_id) != record.digest:
            raise ValueError(
                f"{name}: n_id holds {n_id.numel()} ids, which are not the {record.num_rows} that the batch was made with; pass "
                "all ids of one batch, use transforms that keep all rows in their order, or transform the graph before it is "
                "partitioned"
            )
        for key, own in (("offset", self.offset), ("count", self.count)):
            if own is not None and not _same_ids(own, getattr(record, key)):
                raise ValueError(
                    f"{name}: {key} is not that of the batch; pass all four of its ids as the loader gave them"
                )
        self._check_pair()

    def _check_pair(self) -> None:
        if (self.offset is None) != (self.count is None):
            raise ValueError(f"{self.model._name}: offset and count go together; give both or neither")

    def _check_ids(self, n_id: Tensor) -> None:
        """Checks ids that were made by hand."""
        name, batch_size, num_rows = self.model._name, self.batch_size, n_id.numel()
        if n_id.device.type == "cpu" and num_rows > 0:
            low, high = (int(bound) for bound in n_id.aminmax())
            if low < 0 or high >= self.model.num_nodes:
                raise IndexError(
                    f"{name}: n_id goes from {low} to {high}, but must be in 0 .. {self.model.num_nodes - 1}"
                )
        if batch_size is None:
            return
        if isinstance(batch_size, bool) or not isinstance(batch_size, int) or not 0 < batch_size <= num_rows:
            raise ValueError(f"{name}: batch_size must be in 1 .. {num_rows} (rows of n_id), but is {batch_size}")
        self._check_pair()
        if self.offset is not None and self.count is not None:
            for key, ranges in (("offset", self.offset), ("count", self.count)):
                if not _is_vector(ranges) or ranges.dtype != torch.int64:
                    raise TypeError(f"{name}: {key} must be a one-dimensional int64 tensor, as the loader makes it")
            if self.offset.numel() != self.count.numel():
                raise ValueError(
                    f"{name}: offset and count must be equally long, but have {self.offset.numel()} and "
                    f"{self.count.numel()} entries"
                )
            if bool((self.count < 0).any()):
                raise ValueError(f"{name}: count must not be negative")
            total = int(self.count.sum())
            if total != batch_size:
                raise ValueError(f"{name}: count sums to {total}, but batch_size is {batch_size}")
            shift = self.offset - (self.count.cumsum(0) - self.count)
            ids = torch.arange(batch_size, device=shift.device) + shift.repeat_interleave(self.count)
            if not torch.equal(ids, n_id[:batch_size].to(ids)):
                raise ValueError(f"{name}: offset and count do not describe the first {batch_size} rows of n_id")

    def use(self, history: History) -> None:
        """Notes that ``history`` is used; it must belong to the model and be used once."""
        if self.forbidden is not None:
            raise ValueError(self.forbidden)
        if not any(history is own for own in self.model.histories):
            raise ValueError("push_and_pull: history must be one of self.histories")
        if history in self.used:
            raise ValueError(
                "push_and_pull: this history was used already in this forward pass, and would hold the rows of two layers; "
                "give each call its own (num_layers counts one more than the histories)"
            )
        self.used.add(history)

    def begin(self) -> None:
        """Counts an optimiser step, and has the rows of the halo come."""
        model = self.model
        if self.n_id is not None and model.training and torch.is_grad_enabled():
            for history in model.histories:
                history.tick()
            observer = None if model._observer is None else model._observer()
            batch_size = self.n_id.numel() if self.batch_size is None else self.batch_size
            if observer is not None and observer.step(batch_size, self.n_id.numel() - batch_size):
                self._observer = observer
        if self.n_id is not None and self.batch_size is not None and self.offset is not None and model._replay is None:
            pool = model.pool  # which serves all tables, and histories where they are in host memory
            self.pool = pool if any(not history.table.is_cuda for history in model.histories) else None
        if self.n_id is None or self.batch_size is None or self.pool is None:
            if self.n_id is not None and self.batch_size is not None:
                for history in model.histories:
                    history.read_ahead(self.n_id[self.batch_size :])
            return
        coming, model._coming = model._coming, None
        is_this = coming is not None and coming.is_batch(self.record)
        self._halo = coming.halo if coming is not None and is_this else self.n_id[self.batch_size :]
        self._ask(self.pool, self._halo)

    @untraced
    def end(self) -> None:
        """Ends a call whose forward pass has met no error."""
        if self.at_end is not None:
            self.at_end()
        if self.pool is not None:
            self.model._coming = self.coming  # whose pulls are under way

    def _ask(self, pool: AsyncIOPool, halo: Tensor) -> None:
        """Asks for the halo's rows, as far as the step before has not."""
        lookahead = None if self.record is None else self.record.lookahead
        if lookahead is not None and self.model.buffer_size is None:
            pool.buffer_size = max(pool.buffer_size, lookahead.largest_halo or 0)
        wanted = [history.cold(halo) for history in self.model.histories]
        pool.forget_pulls(*wanted)
        for history, index in zip(self.model.histories, wanted, strict=True):
            if not pool.is_asked(history.table):
                pool.async_pull(history.table, None, None, index, history.row_dtype or history.pull_dtype)

    def exchange(
        self, history: History, rows: Tensor, n_id: Tensor, offset: Tensor | None, count: Tensor | None
    ) -> Tensor:
        """Pushes ``rows`` and returns them together with the halo's rows, [B + S, C]."""
        batch_size = rows.size(0)
        if self._observer is not None:
            self._observer.exchange(history, rows, n_id)
        if self.pool is None or offset is None or count is None:
            history.push(rows, n_id[:batch_size], offset, count)
            coming = self._next_batch()
            if coming is not None:
                history.read_ahead(coming.halo)
            if n_id.numel() == batch_size:
                return rows
            far = self._halo_at(history.table.device, n_id, batch_size)
            return append(rows, far.numel(), lambda out: history.pull(far, out=out))
        table, halo = history.table, self._halo
        arrived = self.pool.synchronize_pull(table)
        out = append(rows, halo.numel(), lambda out: history.put_together(out, halo, arrived))
        self.pool.free_pull(table)
        with history.writing(rows, n_id[:batch_size]):
            self.pool.async_push(rows.detach(), offset, count, table)
        history.mark(n_id[:batch_size], offset, count)
        history.row_dtype = rows.dtype
        self._pushed.append(history)
        self._ask_ahead(self.pool)
        return out

    def _halo_at(self, device: torch.device, n_id: Tensor, batch_size: int) -> Tensor:
        """The halo's ids on ``device``, brought there once for all layers."""
        if n_id is not self.n_id or batch_size != self.batch_size:
            return n_id[batch_size:]
        if self._halo_there is None or self._halo_there.device != device:
            self._halo_there = send_ids(n_id[batch_size:], device)
        return self._halo_there

    def _ask_ahead(self, pool: AsyncIOPool) -> None:
        """Asks for rows of the next batch, from histories that have this one's."""
        coming = None if pool.io == "serial" else self._next_batch()
        if coming is None:
            return
        for history in self._pushed:
            pool.async_pull(
                history.table, None, None, history.cold(coming.halo), history.row_dtype or history.pull_dtype
            )
        self._pushed.clear()

    def _next_batch(self) -> Coming | None:
        """The batch that the loader has made ahead, if it has."""
        lookahead = None if self.record is None else self.record.lookahead
        batch = None if lookahead is None or self.coming is not None else lookahead.next
        if batch is not None and batch.record is not None:
            self.coming = Coming(batch.record.digest, batch.batch_size, batch.n_id[batch.batch_size :])
        return self.coming


def _is_vector(value: Any) -> bool:
    """Whether it is a dense tensor of one dimension, with memory."""
    return isinstance(value, Tensor) and value.dim() == 1 and value.layout == torch.strided and not value.is_meta


def _same_ids(value: Any, own: Tensor) -> bool:
    return value is own or (_is_vector(value) and value.dtype == own.dtype and torch.equal(value.cpu(), own))
