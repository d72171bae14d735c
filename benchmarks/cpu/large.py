"""Graphs that may be large, and a GCN that trains on them: what ``scaling.py`` and ``products.py`` measure.

Adjacencies are CSR matrices with 32-bit ids: 8 bytes an edge, weights included.
"""

from __future__ import annotations

import time
from typing import NamedTuple

import torch
from sides import Side
from torch import Tensor
from torch_geometric.data import Data
from torch_geometric.nn import GCN as PlainGCN

from torch_gas import SubgraphLoader, gcn_norm, metis, permute
from torch_gas.datasets import synthetic
from torch_gas.models import GCN


class Size(NamedTuple):
    """Sizes of graph, batches and model."""

    num_nodes: int
    avg_degree: float  # as drawn; repeated edges are then removed
    features: int
    channels: int
    classes: int
    nodes_a_part: int
    parts_a_batch: int
    dropout: float = 0.0
    num_layers: int = 3

    @property
    def num_parts(self) -> int:
        """As many as give parts of that many nodes."""
        return max(self.num_nodes // self.nodes_a_part, 1)


def community_graph(size: Size) -> Data:
    """Communities of 200 nodes, nine in ten edges drawn inside of one; normalised as GCN asks for."""
    data = synthetic(size.num_nodes, size.classes, size.features, size.avg_degree, homophily=0.9)
    rowptr = torch.searchsorted(data.edge_index[1], torch.arange(size.num_nodes + 1), out_int32=True)
    col = data.edge_index[0].int()
    del data.edge_index
    data = Data(x=data.x, y=data.y, adj_t=_csr(rowptr, col))
    return gcn_norm(data)


def random_graph(size: Size, num_edges: int) -> Data:
    """As many edges between nodes that are drawn at random: as large as a real graph, and made at once."""
    generator = torch.Generator().manual_seed(0)
    rowptr = torch.linspace(0, num_edges, size.num_nodes + 1, dtype=torch.float64).int()
    col = torch.randint(size.num_nodes, (num_edges,), dtype=torch.int32, generator=generator)
    x = torch.randn(size.num_nodes, size.features, generator=generator)
    y = torch.randint(size.classes, (size.num_nodes,), generator=generator)
    return Data(x=x, y=y, adj_t=_csr(rowptr, col))


def _csr(rowptr: Tensor, col: Tensor) -> Tensor:
    num_nodes = rowptr.numel() - 1
    value = torch.full((col.numel(),), num_nodes / max(col.numel(), 1))
    return torch.sparse_csr_tensor(rowptr, col, value, (num_nodes, num_nodes), check_invariants=False)


def cut(data: Data, size: Size, backend: str) -> tuple[Data, Tensor, float]:
    """The graph in the order of its parts, where these start, and the seconds that the partitioner took."""
    start = time.perf_counter()
    perm, ptr = metis(data, size.num_parts, backend=backend, log=False, seed=0)
    seconds = time.perf_counter() - start
    return permute(data, perm, log=False), ptr, seconds


def make_model(size: Size, history_dtype: torch.dtype | None = None) -> GCN:
    """A GCN of that size with its histories."""
    widths = (size.features, size.channels, size.classes)
    torch.manual_seed(0)
    return GCN(size.num_nodes, *widths, size.num_layers, size.dropout, history_dtype=history_dtype)


def on_batches(data: Data, ptr: Tensor, size: Size, history_dtype: torch.dtype | None = None) -> Side:
    """Training with histories."""
    model = make_model(size, history_dtype)
    loader = SubgraphLoader(data, ptr, size.parts_a_batch, shuffle=True, seed=0)
    return Side(model, loader, lambda batch: (model(batch), batch.data.y[: batch.batch_size]))


def full_batch(data: Data, size: Size) -> Side:
    """Training on the whole graph, without histories."""
    model = make_model(size._replace(num_nodes=1))
    model.push_and_pull = lambda history, x, *_: x
    return Side(model, [data], lambda graph: (model.forward(graph.x, graph.adj_t), graph.y))


def pyg_full_batch(data: Data, size: Size) -> Side:
    """Training of PyG's GCN on the whole graph, over a list of edges."""
    rowptr, col, weight = data.adj_t.crow_indices(), data.adj_t.col_indices(), data.adj_t.values()
    edge_index = torch.stack([col.long(), torch.repeat_interleave(rowptr.diff()).long()])
    data = Data(x=data.x, y=data.y, edge_index=edge_index, edge_weight=weight)
    torch.manual_seed(0)
    model = PlainGCN(size.features, size.channels, size.num_layers, size.classes, size.dropout, normalize=False)
    model.push_and_pull = None  # which Side times, and which this model has not
    return Side(model, [data], lambda graph: (model(graph.x, graph.edge_index, edge_weight=graph.edge_weight), graph.y))
