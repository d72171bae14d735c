"""One call of a model: its checked arguments, and the transfers of its histories."""

from __future__ import annotations

from collections.abc import Callable, Collection, Sequence
from contextlib import AbstractContextManager
from functools import partial
from typing import TYPE_CHECKING, Any, NamedTuple

import torch
from torch import Tensor
from torch.nn import Module
from torch_geometric.nn import MessagePassing

from torch_gas._util.memory import has_memory
from torch_gas._util.modules import modules_of
from torch_gas._util.tracing import unseen
from torch_gas.batch.record import BatchRecord, record_of
from torch_gas.graph.formats import check_adjacency, is_adjacency, num_destinations
from torch_gas.graph.halo import appended, join
from torch_gas.graph.key import digest
from torch_gas.graph.origin import Origin
from torch_gas.history import History
from torch_gas.session.extension import Extension
from torch_gas.session.identity import check_batch, compare_graph, meet_graph
from torch_gas.wiring import check_adjacency_of_batch
from torch_gas.wiring.arguments import NO_EDGES
from torch_gas.wiring.undo import Undo

if TYPE_CHECKING:
    from torch_gas.session.model import HistoryModel
    from torch_gas.session.session import Session


# batch_size, n_id, offset and count of a batch
Ids = tuple[int | None, Tensor | None, Tensor | None, Tensor | None]


class NextBatch(NamedTuple):
    """A batch that the loader has made ahead."""

    digest: int  # of its n_id
    batch_size: int
    halo: Tensor  # ids whose rows have been asked for


class Call:
    """One call of a model: its arguments and its transfers.

    Args:
        session: of the model.
        undo: holds what the call changes until it ends.
        num_rows: rows of its input, or None where it has none.
        ids: of the batch, or four times None.

    Attributes:
        model: the model.
        histories: its histories.
        record: what the batch was when the loader made it, where that is known.
        on_own_graph: whether the input is a whole graph whose embeddings the histories are to hold.
        origin: what they then note of it, where they do not hold them yet.
        is_step: whether it is a training step on a batch.
        used: the histories whose exchange has been made.
        met: convolutions that were called, where the model is wired by hand to a batch.
        pushes: whether exchanges write to histories.
        asks_for_halo: whether an extension asked, when the call began, for what layers compute for the halo. They compute
            something for it on a batch that holds the edges out of its nodes as well.
        of_halo: that, for the exchange under way, [S, C]; None where it was not asked for, or forward cut it off.
        joined: what exchanges returned until the call ends, where extensions are told of its gradient, [B + S, C] each.
        rehearsals: while what they make is entered, layers may be called beside the forward pass, without being counted.
        adj: the adjacency of the batch or the graph.
        forbidden: why no history may be used now, for those who call layers beside the forward pass.
    """

    def __init__(self, session: Session, undo: Undo, num_rows: int | None, ids: Ids) -> None:
        self.session, self.model, self.undo = session, session.model, undo
        self.histories: list[History] = list(self.model.histories)
        self.batch_size, self.n_id, self.offset, self.count = ids
        self.record = record_of(self.batch_size)
        if self.record is not None:
            self.batch_size = self.record.batch_size  # a plain int
        self.used: set[History] = set()
        self.met: list[Module] | None = None
        self.pushes = True
        self.asks_for_halo = False
        self.of_halo: Tensor | None = None
        self.forbidden: str | None = None
        self.joined: list[Tensor] = []
        self.rehearsals: list[Callable[[], AbstractContextManager[None]]] = []
        self.adj: Any = None
        self.next_batch: NextBatch | None = None  # where its pulls have been asked for
        self._pushed: list[History] = []  # whose pulls for the next batch have not been asked for
        # Ids of the halo whose rows the pool was asked for.
        self._halo = torch.empty(0, dtype=torch.int64, device="cpu")
        self.on_own_graph = num_rows == self.model.num_nodes
        self.origin: Origin | None = None
        self._leaves_alone = False
        self.is_step = (
            self.n_id is not None and self.model.training and torch.is_grad_enabled() and session.replay is None
        )
        self.neighbors = "in" if self.record is None else self.record.neighbors

    # -- arguments -----------------------------------------------------------------------------------------------------

    def check(self, num_rows: int | None, given: dict[str, Any], adj: Any) -> None:
        """Raises unless input, adjacency and ids are those of one batch of the model's graph, or of a whole graph.

        Args:
            num_rows: rows of the input, or None where it has none.
            given: what the model is given beside the adjacency, by name; features are "x".
            adj: adjacency of the batch or the graph, or None.
        """
        self.adj = adj
        if adj is not None:
            check_adjacency(adj, f"{self.model._name}: the adjacency")
        elif _has_layers(self.model) and not any(map(is_adjacency, given.values())):
            raise ValueError(f"{self.model._name} {NO_EDGES}")
        if self.n_id is None:
            self._check_graph(num_rows, adj)
            compare_graph(self, given, adj)
        else:
            self._check_batch(num_rows, given, adj, self.n_id)

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

    def leave_alone(self) -> None:
        """Has a call on a whole graph that is not the model's own neither read nor write histories."""
        self.on_own_graph, self._leaves_alone = False, True

    def _check_batch(self, rows_of_x: int | None, given: dict[str, Any], adj: Any, n_id: Tensor) -> None:
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
        if (self.offset is None) != (self.count is None):
            raise ValueError(f"{name}: offset and count go together; give both or neither")
        if record is None:
            self._check_ids(n_id)
        else:
            self._check_record(record, n_id)
        if rows_of_x not in (None, num_rows):
            raise ValueError(f"{name}: x has {rows_of_x} rows, but n_id has {num_rows}")
        if adj is not None and batch_size is not None and self.neighbors == "in":
            check_adjacency_of_batch(adj, batch_size, num_rows, num_destinations(adj))
        if record is not None and self.model.check and len(self.model.histories) > 0:
            check_batch(self, record, self.model.histories[0].origin, given, adj)

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
        stores = self.model._stores
        if stores and stores[0].origin.is_tentative:
            meet_graph(self.model, record)
        for history in stores:
            if history.origin.key != record.key:
                history.take_graph(record.key)

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
        """Raises unless ``history`` may be used now: it belongs to the model, and was not used in this call."""
        if self.forbidden is not None:
            raise ValueError(self.forbidden)
        if history not in self.histories:
            raise ValueError("push_and_pull: history must be one of self.histories")
        if history in self.used:
            raise ValueError(
                "push_and_pull: this history was used already in this forward pass, and would hold the rows of two layers; "
                "give each call its own (num_layers counts one more than the histories)"
            )

    def check_used(self) -> None:
        """Raises unless each history was used, where rows of the model's graph were computed: others would read rows of old."""
        histories = self.histories
        unused = [str(i) for i, history in enumerate(histories) if history not in self.used]
        if unused and (self.n_id is not None or self.on_own_graph):
            raise RuntimeError(
                f"{self.model._name}: forward returned without push_and_pull on histories {', '.join(unused)} of "
                f"{len(histories)}, whose rows of these nodes are as they were. Use each history in each call, whatever a batch "
                "holds: also where it has no edges, a layer is skipped at random, or an exception is caught; num_layers counts "
                "one more than the histories"
            )

    def keeps_halo(self) -> bool:
        """Whether layers give their halo rows as well: where they are asked for, up to the last exchange."""
        return self.asks_for_halo and len(self.used) < len(self.histories)

    # -- transfers -----------------------------------------------------------------------------------------------------

    def begin(self) -> None:
        """Counts an optimiser step, and has the rows of the halo come."""
        session = self.session
        self.undo.add(self.joined.clear)  # whose functions hold the call
        if self.is_step:
            for history in self.model._history_tables:
                history.tick()
        if self._leaves_alone:
            close(
                self.model,
                self.undo,
                "this whole graph is another one than the histories are of, which it must leave alone",
            )
        if self.n_id is None or self.batch_size is None:
            return
        if session.replay is not None:  # which reads rows of the batch as well
            self._ask(list(session.replay.asked), self.n_id)
            return
        expected, session.next_batch = session.next_batch, None
        own = None if self.record is None else (self.record.digest, self.record.batch_size)
        self._halo = self.n_id[self.batch_size :] if expected is None or expected[:2] != own else expected.halo
        self._ask(self.histories, self._halo)

    def _ask(self, histories: Collection[History], ids: Tensor) -> None:
        """Asks for the rows ``ids``, as far as the step before has not, and for no others."""
        pool, lookahead = self.session.pool, None if self.record is None else self.record.lookahead
        if lookahead is not None and self.model.buffer_size is None and pool.overlaps:
            pool.buffer_size = max(pool.buffer_size, lookahead.largest_halo or 0)
        pool.forget_pulls(*(history.table.asked_ids(ids) for history in histories))
        for history in histories:
            history.request(ids)

    def exchange(
        self, history: History, rows: Tensor, n_id: Tensor, offset: Tensor | None, count: Tensor | None
    ) -> Tensor:
        """Pushes ``rows`` and returns them together with the halo's rows, [B + S, C]."""
        batch_size = rows.size(0)
        # The very tensor whose rows were asked for, unless forward was given other ids than the call.
        is_asked = n_id is self.n_id and batch_size == self.batch_size
        halo = self._halo if is_asked else n_id[batch_size:]
        extensions = self.session.told()
        out, instead = rows, None
        if halo.numel() > 0 or extensions:
            full = unseen(appended, rows, halo.numel(), partial(history.table.read, halo))
            for extension in extensions:
                answer = extension.exchange(self, history, rows, full[batch_size:])
                instead = instead if answer is None else answer
            out = self._joined(history, rows, full, extensions) if instead is None else instead
        if self.pushes:
            unseen(history.write, rows, n_id[:batch_size] if offset is None else None, offset, count)
        self._pushed.append(history)
        self._ask_ahead()
        return out

    def _joined(self, history: History, rows: Tensor, full: Tensor, extensions: Sequence[Extension]) -> Tensor:
        """``full`` with the gradient of its first rows, which are ``rows``."""
        told = [extension for extension in extensions if type(extension).backward is not Extension.backward]
        if not told:
            return join(rows, full)

        def backward(grad: Tensor) -> Tensor:
            own = grad[: rows.size(0)]
            for extension in told:
                more = extension.backward(self, history, grad)
                own = own if more is None else own + more
            return own

        out = join(rows, full, backward)
        self.joined.append(out)
        return out

    def _ask_ahead(self) -> None:
        """Asks for rows of the batch that the loader has made ahead, from histories that have this one's."""
        lookahead = None if self.record is None else self.record.lookahead
        batch = None if lookahead is None or self.next_batch is not None else lookahead.next
        if batch is not None and batch.record is not None:
            self.next_batch = NextBatch(batch.record.digest, batch.batch_size, batch.n_id[batch.batch_size :])
        if self.next_batch is not None:
            for history in self._pushed:
                history.request(self.next_batch.halo)
            self._pushed.clear()


def close(model: HistoryModel, undo: Undo, why: str) -> None:
    """Makes it an error that ``forward`` reads or writes histories by hand."""
    for history in model.histories:
        undo.set(
            history,
            "closed",
            f"{model._name}: forward reads or writes a history by hand, by pull, push or emb; {why}. Do it in training on "
            "batches only, `if self.training and n_id is not None: ...`, and leave the rest to push_and_pull",
        )


def _has_layers(model: Module) -> bool:
    return any(isinstance(module, MessagePassing) for module in modules_of(model))


def _is_vector(value: Any) -> bool:
    """Whether it is a dense tensor of one dimension, with memory."""
    return has_memory(value) and value.dim() == 1


def _same_ids(value: Any, own: Tensor) -> bool:
    return value is own or (_is_vector(value) and value.dtype == own.dtype and torch.equal(value.cpu(), own))
