"""Each format satisfies the interface: what it says about edges is what a list of Python tuples says, its slow twin."""

from __future__ import annotations

import weakref
from typing import Any

import pytest
import torch
from graphs import FORMATS, adjacency, random_graph, to_format
from torch import Tensor
from torch_geometric.data import Data

from torch_gas import SubgraphLoader, gcn_norm, in_degree, metis, permute, unpermute
from torch_gas._util.version import version
from torch_gas.graph import edges, formats
from torch_gas.graph.format import Format, Matrix, StoredEdges, resized_pointers, row_pointers
from torch_gas.graph.product import Edges, edges_of, kept_edges
from torch_gas.pygas import dropout

N = 30
Twin = list[tuple[int, int, float]]  # (source, destination, weight) of each edge, in the order in which they are stored


def make(fmt: str, weighted: bool = True) -> tuple[Any, Format]:
    data = random_graph(N, 120, seed=3)
    if weighted:
        data.edge_weight = torch.arange(1.0, data.num_edges + 1)
    adj = adjacency(to_format(data, fmt))
    return adj, formats.format_of(adj)


def twin_of(adj: Any) -> Twin:
    """By way of the user's own calls where there are some."""
    if isinstance(adj, Tensor) and adj.layout == torch.sparse_csr:
        row, col = adj.to_sparse_coo().indices().tolist()
        return list(zip(col, row, adj.values().tolist(), strict=True))
    if isinstance(adj, Tensor):
        return [(s, d, 1.0) for s, d in adj.tolist_() if False] or [(s, d, 1.0) for s, d in zip(*pairs(adj), strict=True)]
    row, col, value = adj.coo()
    weight = [1.0] * row.numel() if value is None else value.tolist()
    return list(zip(col.tolist(), row.tolist(), weight, strict=True))


def pairs(adj: Any) -> list[list[int]]:
    return [[int(i) for i in ids] for ids in adj]
