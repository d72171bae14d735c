"""Exact neighbourhoods of a batch, walked when it is trained on, and a GCN over them: what a step costs without histories.

A *neighbour tree* has a row for each walk that ends at a batch node, as GTTF (Markowitz et al., 2021) makes it; its size grows
exponentially with depth. *Merged*, each depth has a row for each node, as in a computation graph of L hops.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
from torch import Tensor

from torch_gas.graph.attributes import take
from torch_gas.graph.product import Edges, aggregate
from torch_gas.models import GCN


class Depth(NamedTuple):
    """The edges from rows at one depth to those at the depth before."""

    edges: Edges
    weight: Tensor  # [E]
    nodes: Tensor  # the node of each row at this depth


def walk(adj_t: Tensor, nodes: Tensor, hops: int, merged: bool) -> list[Depth]:
    """The neighbourhood of ``nodes`` against the edges, depth by depth from the nearest."""
    rowptr, found = adj_t.crow_indices().long(), []
    for _ in range(hops):
        start, count = rowptr[nodes], rowptr.diff()[nodes]
        end = count.cumsum(0)
        entry = torch.arange(int(end[-1])) + (start - end + count).repeat_interleave(count)
        ends, value = adj_t.col_indices()[entry].long(), adj_t.values()[entry]
        nodes, row = ends.unique(return_inverse=True) if merged else (ends, torch.arange(ends.numel()))
        size = (count.numel(), nodes.numel())
        matrix = torch.sparse_csr_tensor(torch.cat([end.new_zeros(1), end]), row, value, size, check_invariants=False)
        found.append(Depth(Edges(matrix, *size), value, nodes))
    return found


def forward(model: GCN, x: Tensor, depths: list[Depth]) -> Tensor:
    """What ``model`` gives for the batch that ``depths`` was walked from: the rows of the whole graph.

    The model has neither dropout nor batch norm. Features are multiplied with the first layer's weights once for each node,
    also in a tree.
    """
    first, *further = model.convs
    field = torch.cat([depth.nodes for depth in depths]).unique()
    near = first.lin(take(x, field))
    rows = [_sum(near[torch.searchsorted(field, depth.nodes)], depth) + first.bias for depth in depths]
    for conv in further:
        rows = [row.relu() for row in rows]
        pairs = zip(rows[1:], depths, strict=False)
        if conv.in_channels > conv.out_channels:
            rows = [_sum(conv.lin(row), depth) + conv.bias for row, depth in pairs]
        else:
            rows = [conv.lin(_sum(row, depth)) + conv.bias for row, depth in pairs]
    return rows[0]


def _sum(rows: Tensor, depth: Depth) -> Tensor:
    return aggregate(rows, depth.edges, depth.weight)


def tree_size(adj_t: Any, nodes: Tensor, hops: int) -> int:
    """The number of rows of the neighbour tree at all depths, which is not made."""
    degree, col = adj_t.crow_indices().diff(), adj_t.col_indices()
    walks = torch.zeros(degree.numel(), dtype=torch.float64)
    walks[nodes], total = 1.0, 0.0
    for _ in range(hops):
        walks = torch.zeros_like(walks).index_add_(0, col.long(), walks.repeat_interleave(degree))
        total += float(walks.sum())
    return int(total)
