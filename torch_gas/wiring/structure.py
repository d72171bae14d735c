"""What a model computes from the whole graph, whatever its parameters are: degrees, a largest eigenvalue.

It is computed once, batch by batch, by the model's own code.
"""

from __future__ import annotations

import copy
from collections.abc import Sequence

import torch
from torch import Tensor
from torch.nn import Module
from torch_geometric.data import Data

from torch_gas.history import History
from torch_gas.loader import SubData, SubgraphLoader
from torch_gas.wiring.arguments import Inputs
from torch_gas.wiring.batch import pad
from torch_gas.wiring.places import Handler, Place
from torch_gas.wiring.probe import Found, Need, call, undisturbed

_EDGES = 2**18  # in a batch, about


class _Done(Exception):
    """All tables have had their rows of this batch."""


def tables(found: Found, num_nodes: int) -> list[History]:
    """Empty tables for what ``found`` needs of the whole graph."""
    made = []
    for need in found.of("rows", "sum", "maximum"):
        width = int(torch.tensor(need.shape).prod()) if need.action != "maximum" else 1
        dtype = need.dtype if need.dtype.is_floating_point else torch.float64
        rows = 1 if need.action == "maximum" else num_nodes
        made.append(History(rows, width, dtype=dtype, persistent=False))
    return made


def look_up(need: Need, table: History, value: Tensor, n_id: Tensor, batch_size: int) -> Tensor:
    """``value`` of a batch, with what needs the whole graph taken from ``table``."""
    if need.action == "maximum":
        return table.pull(dtype=value.dtype).view(())
    if need.action == "sum":
        return _pull(table, n_id, value)
    return torch.cat([value[:batch_size], _pull(table, n_id[batch_size:], value)])


def _pull(table: History, n_id: Tensor, like: Tensor) -> Tensor:
    return table.pull(n_id).to(like.dtype).view(n_id.numel(), *like.shape[1:])


class _Fill(Handler):
    """Writes a batch's share of each table."""

    def __init__(self, found: Found, tables: Sequence[History], sums: dict[int, Tensor], batch: SubData) -> None:
        self.found, self.tables, self.sums, self.batch = found, tables, sums, batch
        first: dict[int, Place] = {}  # equal tables are one, which is filled where it is met first
        for place, need in found.needs.items():
            if need.action != "history":
                first.setdefault(need.number, place)
        self.left = set(first.values())

    def substitute(self, place: Place, module: Module) -> Tensor | None:
        if place.kind == "hop" or any(other.scope == place.scope for other in self.left):
            return None
        parameter = next(module.parameters(), None)
        shape = (self.batch.n_id.numel(), *self.found.shapes[place])
        return torch.zeros(shape) if parameter is None else parameter.new_zeros(shape)

    def at(self, place: Place, value: Tensor) -> Tensor | None:
        need = self.found.needs.get(place)
        batch_size, num_rows = self.batch.batch_size, self.batch.n_id.numel()
        if need is None or need.action == "history":
            return pad(value, batch_size, num_rows) if place.kind == "output" else None
        table = self.tables[need.number]
        out = look_up(need, table, value, self.batch.n_id, batch_size)
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
            seen = self.sums.get(need.number, value.view(1, 1))
            self.sums[need.number] = torch.maximum(seen, value.view(1, 1))


def fill(model: Module, found: Found, data: Data, inputs: Inputs, tables: Sequence[History]) -> None:
    """Computes ``tables`` on the whole graph, in the memory of a batch."""
    with undisturbed(model):
        for _ in tables:  # one may need another
            before = [table.emb.clone() for table in tables]
            sums: dict[int, Tensor] = {}
            for batch in _batches(data, found.neighbors):
                try:
                    call(model, inputs, batch, _Fill(found, tables, sums, batch))
                except _Done:
                    continue
            for number, total in sums.items():
                tables[number].push(total)
            if all(map(torch.equal, before, [table.emb for table in tables])):
                break
    for table in tables:
        table.mark(None)


def _batches(data: Data, neighbors: str) -> SubgraphLoader:
    data = copy.copy(data).cpu()
    loader = SubgraphLoader(data, torch.tensor([0, data.num_nodes]), bipartite=False, neighbors=neighbors)
    work = loader.builder.csr.rowptr.long() + torch.arange(loader.num_nodes + 1)
    cuts = torch.searchsorted(work, torch.arange(0, int(work[-1]), _EDGES))
    ptr = torch.cat([cuts, torch.tensor([loader.num_nodes])]).unique()
    return SubgraphLoader(data, ptr, bipartite=False, neighbors=neighbors)
