"""Small graphs for tests, in each of the four adjacency formats."""

from __future__ import annotations

import copy
import importlib.util
import os
from typing import Any

import pytest
import torch
from torch_geometric import EdgeIndex
from torch_geometric.data import Data

from torch_gas.graph.adjacency import find_adjacency

# A machine that must test SparseTensor declares it, so that absence fails instead of skipping.
requires_sparse = pytest.mark.skipif(
    importlib.util.find_spec("torch_sparse") is None and os.environ.get("TORCH_GAS_REQUIRE_SPARSE") != "1",
    reason="torch-sparse is not installed",
)

FORMATS = ["edge_index", "EdgeIndex", "csr", pytest.param("SparseTensor", marks=requires_sparse)]


def random_graph(num_nodes: int, num_edges: int, seed: int = 0, directed: bool = True, num_features: int = 8) -> Data:
    """A graph with features, 3 classes, some isolated nodes and self-loops, no double edges.

    ``num_edges`` are drawn among the first nine tenths of the nodes; double ones are dropped and,
    in an undirected graph, the inverse ones added. The order of edges is random.
    """
    generator = torch.Generator().manual_seed(seed)
    linked = max(1, num_nodes * 9 // 10)
    edge_index = torch.randint(linked, (2, num_edges), generator=generator)
    if not directed:
        edge_index = torch.cat([edge_index, edge_index.flip(0)], dim=1)
    edge_index = edge_index.unique(dim=1)
    edge_index = edge_index[:, torch.randperm(edge_index.size(1), generator=generator)]
    ids = torch.randperm(num_nodes, generator=generator)  # isolated nodes anywhere
    return Data(
        x=torch.randn(num_nodes, num_features, generator=generator),
        y=torch.randint(3, (num_nodes,), generator=generator),
        edge_index=ids[edge_index],
    )


def random_parts(num_nodes: int, num_parts: int, seed: int = 0) -> torch.Tensor:
    """``ptr`` of parts of random sizes, [num_parts + 1]; some may be empty."""
    generator = torch.Generator().manual_seed(seed)
    cuts = torch.randint(num_nodes + 1, (num_parts - 1,), generator=generator).sort().values
    return torch.cat([torch.tensor([0]), cuts, torch.tensor([num_nodes])])


def to_format(data: Data, fmt: str) -> Data:
    """A copy of ``data``, which holds an ``edge_index``, with the same edges in format ``fmt``.

    Matrices hold ``edge_weight`` as values, or 1 in torch's format without weights. ``EdgeIndex``
    and ``edge_index`` keep the order of edges, so that edge attributes still fit.
    """
    if fmt not in ("edge_index", "EdgeIndex", "csr", "SparseTensor"):
        raise ValueError(f"unknown format {fmt!r}")
    data, num_nodes = copy.copy(data), data.num_nodes
    if fmt == "edge_index":
        return data
    edge_index = data.edge_index
    if fmt == "EdgeIndex":
        data.edge_index = EdgeIndex(edge_index, sparse_size=(num_nodes, num_nodes))
        return data
    weight = data.pop("edge_weight", None)
    del data.edge_index
    data.num_nodes = num_nodes
    src, dst = edge_index
    if fmt == "SparseTensor":
        from torch_sparse import SparseTensor

        data.adj_t = SparseTensor(row=dst, col=src, value=weight, sparse_sizes=(num_nodes, num_nodes))
        return data
    order = (dst * num_nodes + src).argsort(stable=True)
    rowptr = torch.cat([dst.new_zeros(1), dst.bincount(minlength=num_nodes).cumsum(0)])
    values = torch.ones(src.numel(), dtype=data.x.dtype) if weight is None else weight[order]
    data.adj_t = torch.sparse_csr_tensor(rowptr, src[order], values, size=(num_nodes, num_nodes), check_invariants=True)
    return data


def adjacency(data: Data) -> Any:
    """The adjacency of ``data``, in whatever format."""
    return find_adjacency(data)[1]
