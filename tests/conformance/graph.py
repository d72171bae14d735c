"""A small graph with whatever a layer of PyG may ask for."""

from __future__ import annotations

import importlib.util

import torch
import torch.nn.functional as F
from torch_geometric import EdgeIndex
from torch_geometric.data import Data

N, C = 48, 8
PTR = torch.tensor([0, 12, 12, 30, N])  # one part is empty
FORMATS = ("edge_index", "EdgeIndex", "csr", "SparseTensor")

_LINKED = N * 9 // 10  # the other nodes are isolated


def formats() -> tuple[str, ...]:
    """The adjacency formats that are installed: all but ``SparseTensor`` need nothing but PyG."""
    has_sparse = importlib.util.find_spec("torch_sparse") is not None
    return FORMATS if has_sparse else FORMATS[:-1]


def graph(fmt: str = "edge_index", dtype: torch.dtype = torch.float32) -> Data:
    """A directed graph with self-loops, isolated nodes and attributes of nodes and edges.

    Its edges are sorted as matrices hold them, so that attributes of edges fit in every format.

    Args:
        fmt: one of :data:`FORMATS`.
        dtype: of all attributes that are not ids.

    Example:
        >>> from conformance import graph
        >>> graph("csr").adj_t.layout
        torch.sparse_csr
    """
    if fmt not in FORMATS:
        raise ValueError(f"graph(): fmt must be one of {', '.join(FORMATS)}, but is {fmt!r}")
    generator = torch.Generator().manual_seed(5)
    pairs = torch.randperm(_LINKED**2, generator=generator)[:200]
    src, dst = torch.randperm(N, generator=generator)[torch.stack([pairs // _LINKED, pairs % _LINKED])]
    edge_index = torch.stack([src, dst])[:, (dst * N + src).argsort()]
    num_edges = edge_index.size(1)

    data = Data(num_nodes=N)
    data.x = torch.randn(N, C, generator=generator, dtype=dtype)
    data.pos = torch.rand(N, 3, generator=generator, dtype=dtype)
    data.normal = F.normalize(torch.rand(N, 3, generator=generator, dtype=dtype), dim=1)
    data.node_type = torch.randint(2, (N,), generator=generator)
    data.edge_type = torch.randint(2, (num_edges,), generator=generator)
    data.edge_attr = torch.rand(num_edges, 3, generator=generator, dtype=dtype)
    data.edge_weight = torch.rand(num_edges, generator=generator, dtype=dtype)

    if fmt == "edge_index":
        data.edge_index = edge_index
    elif fmt == "EdgeIndex":
        data.edge_index = EdgeIndex(edge_index, sparse_size=(N, N), sort_order="col")
    else:
        col, dst = edge_index
        rowptr = F.pad(dst.bincount(minlength=N).cumsum(0), (1, 0))
        if fmt == "csr":
            ones = torch.ones(num_edges, dtype=dtype)
            data.adj_t = torch.sparse_csr_tensor(rowptr, col, ones, size=(N, N), check_invariants=True)
        else:
            from torch_sparse import SparseTensor

            data.adj_t = SparseTensor(rowptr=rowptr, col=col, sparse_sizes=(N, N))
    return data
