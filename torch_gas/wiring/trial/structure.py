"""What a model computes from the whole graph, whatever its parameters are: degrees, a largest eigenvalue.

It is computed once, batch by batch, by the model's own code.
"""

from __future__ import annotations

import copy
from collections.abc import Sequence
from contextlib import suppress
from math import prod
from typing import Any, NoReturn

import torch
from torch import Tensor
from torch.nn import Module
from torch_geometric.data import Data

from torch_gas.batch.data import SubData
from torch_gas.batch.loader import SubgraphLoader
from torch_gas.history import History
from torch_gas.wiring.arguments import Arguments, Inputs, edge_tensors
from torch_gas.wiring.batch import pad
from torch_gas.wiring.places import Handler, Place, missed
from torch_gas.wiring.trial.found import Found, Need
from torch_gas.wiring.trial.undisturbed import call, undisturbed

_EDGES = 2**18  # in a batch, about


class _Done(BaseException):
    """All tables have had their rows of this batch. No ``Exception``, which a model may catch around a layer."""


def tables(found: Found, num_nodes: int, **options: Any) -> list[History]:
    """Empty tables for what ``found`` needs of the whole graph, with ``options`` of :class:`History`."""
    made = []
    for need in found.of("rows", "sum", "maximum"):
        rows = 1 if need.action == "maximum" else num_nodes
        dtype = need.dtype if need.dtype.is_floating_point else torch.float64
        made.append(History(rows, prod(need.shape), dtype=dtype, persistent=False, **options))
    return made


def refuse_missing_graph(name: str, found: Found) -> NoReturn:
    """Raises ValueError for a model that counts over all edges, where these are not at hand."""
    place = next(place for place, need in found.needs.items() if need.action != "history")
    raise ValueError(
        f"{name} normalises by what it counts on the edges it is given ({place}), and only the whole graph has them all: pass it "
        "to scale(model, data) instead of num_nodes"
    )


def refuse_learned(name: str, given: dict[str, Any], adj: Any) -> None:
    """Raises ValueError where the arguments of a call hold learned weights, which tables would not follow."""
    if adj is not None and any(value.requires_grad for value in edge_tensors(given, adj)):
        raise ValueError(
            f"{name}: edge weights require grad, but what the model counts on the whole graph is computed once and would not "
            "follow them; compute them inside the model, from edge attributes"
        )


def read(need: Need, table: History, n_id: Tensor, batch_size: int) -> Tensor:
    """What a batch needs of ``table``."""
    if need.action == "maximum":
        return table.pull(torch.zeros(1, dtype=torch.int64, device="cpu"))
    return table.pull(n_id if need.action == "sum" else n_id[batch_size:])


def complete(need: Need, value: Tensor, rows: Tensor, batch_size: int) -> Tensor:
    """``value`` of a batch, with what needs the whole graph taken from ``rows``, which :func:`read` gave."""
    rows = rows.to(value)
    if need.action == "maximum":
        return rows.view(())
    rows = rows.view(-1, *value.shape[1:])
    return rows if need.action == "sum" else torch.cat([value[:batch_size], rows])


class _Fill(Handler):
    """Writes a batch's share of each table."""

    def __init__(self, found: Found, tables: Sequence[History], sums: dict[int, Tensor], batch: SubData) -> None:
        self.found, self.tables, self.sums, self.batch = found, tables, sums, batch
        tabled = [(need.number, place) for place, need in found.needs.items() if need.action != "history"]
        self.left = set(dict(reversed(tabled)).values())  # equal tables are one, which is filled where it is met first

    def substitute(self, place: Place, module: Module) -> Tensor | None:
        if place not in self.found.shapes or any(other.scope == place.scope for other in self.left):
            return None
        like: Tensor = next(module.parameters(), torch.empty(0, device="cpu"))
        return like.new_zeros(self.batch.n_id.numel(), *self.found.shapes[place])

    def at(self, place: Place, value: Tensor) -> Tensor | None:
        need = self.found.needs.get(place)
        batch_size, num_rows = self.batch.batch_size, self.batch.n_id.numel()
        if need is None or need.action == "history":
            return pad(value, batch_size, num_rows) if self.found.is_padded(place) else None
        table = self.tables[need.number]
        out = complete(need, value, read(need, table, self.batch.n_id, batch_size), batch_size)
        if place in self.left:
            self._write(need, table, value.cpu())
            self.left.remove(place)
            if not self.left:
                raise _Done
        return out

    def _write(self, need: Need, table: History, value: Tensor) -> None:
        batch_size = self.batch.batch_size
        if need.action == "rows":
            rows = value[:batch_size].reshape(batch_size, -1).to(table.emb.dtype)
            table.push(rows, None, self.batch.offset, self.batch.count)
        elif need.action == "sum":
            total = self.sums.setdefault(need.number, torch.zeros_like(table.emb))
            total.index_add_(0, self.batch.n_id, value.reshape(value.size(0), -1).to(total.dtype))
        else:
            value = value.view(1, 1)
            self.sums[need.number] = torch.maximum(self.sums.get(need.number, value), value)


def agrees(need: Need, value: Tensor, rows: Tensor, all_edges: bool) -> bool:
    """Whether a batch's ``value`` may be of the graph that a table, of which ``rows`` are, was computed from.

    Args:
        need: what the table is for; no maximum, of which a part tells nothing.
        value: [B + S, ...], as the batch alone gives it.
        rows: of the table, [B, ...] or, for a sum, [B + S, ...].
        all_edges: whether none of the batch's edges was dropped on purpose.
    """
    rows = rows.to(value)
    value = value[: len(rows)].reshape(rows.shape)
    slack = 1e-3 * rows.abs() + 1e-6
    if need.action == "rows" and all_edges:
        return bool(((value - rows).abs() <= slack).all())
    return bool((rows < 0).any()) or bool((value <= rows + slack).all())  # a part of the edges


class _Verify(_Fill):
    """Compares a batch's share of each table."""

    def __init__(self, found: Found, tables: Sequence[History], batch: SubData, all_edges: bool) -> None:
        super().__init__(found, tables, {}, batch)
        self.all_edges = all_edges

    def _write(self, need: Need, table: History, value: Tensor) -> None:
        ids = self.batch.n_id[: self.batch.batch_size] if need.action == "rows" else self.batch.n_id
        if need.action != "maximum" and not agrees(need, value, table.pull(ids).cpu(), self.all_edges):
            raise ValueError(OTHER_GRAPH)


OTHER_GRAPH = (
    "the batch counts other edges or weights than the graph that scale() was given; pass scale() the data that the loader "
    "has, after permute() and with the same edges and weights, and scale the model again after a change of these"
)
OF_TRAINING = (
    "ExactGradient: a layer sums up other weights of edges than scale() has seen, as if dropout or other code of training "
    "changed them, or the loader's graph were another; scale the model on the graph of the loader, and normalise weights before "
    "they are dropped: data = torch_gas.gcn_norm(data), and normalize=False in the layer"
)


def verify(
    model: Module, found: Found, arguments: Arguments, batch: SubData, tables: Sequence[History], all_edges: bool
) -> None:
    """Raises ValueError if ``tables`` are of another graph, or another order of its nodes, than ``batch``."""
    handler = _Verify(found, tables, batch, all_edges)
    with undisturbed(model), suppress(_Done):
        call(model, lambda data: arguments, batch, handler, found.layout)


def fill(model: Module, found: Found, data: Data, inputs: Inputs, tables: Sequence[History]) -> None:
    """Computes ``tables`` on the whole graph, in the memory of a batch."""
    with undisturbed(model):
        for _ in tables:  # one may need another
            before = [table.emb.clone() for table in tables]
            sums: dict[int, Tensor] = {}
            for batch in _batches(data, found.neighbors):
                handler = _Fill(found, tables, sums, batch)
                with suppress(_Done):
                    call(model, inputs, batch, handler, found.layout)
                if handler.left:
                    raise ValueError(missed(model, handler.left, batch.batch_size))
            for number, total in sums.items():
                tables[number].push(total)
            if all(map(torch.equal, before, [table.emb for table in tables])):
                break
    for table in tables:
        table.mark(None)


def _batches(data: Data, neighbors: str) -> SubgraphLoader:
    data = copy.copy(data).cpu()
    loader = SubgraphLoader(data, torch.tensor([0, data.num_nodes], device="cpu"), bipartite=False, neighbors=neighbors)
    work = loader.builder.csr.rowptr.long() + torch.arange(loader.num_nodes + 1, device="cpu")
    cuts = torch.searchsorted(work, torch.arange(0, int(work[-1]), _EDGES, device="cpu"))
    ptr = torch.cat([cuts, torch.tensor([loader.num_nodes], device="cpu")]).unique()
    return SubgraphLoader(data, ptr, bipartite=False, neighbors=neighbors)
