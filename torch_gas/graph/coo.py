"""Edges as pairs of ids: adjacencies made from them, and what a graph holds for each edge."""

from __future__ import annotations

import sys
from typing import Any, Literal, cast

import numpy as np
import torch
from torch import Tensor
from torch_geometric import EdgeIndex
from torch_geometric.data import Data
from torch_geometric.typing import TensorFrame

from torch_gas.graph.checks import INTEGERS, count_nodes
from torch_gas.graph.formats import is_edge_index_object, is_matrix, is_sparse_tensor, num_edges_of


def edge_attrs(data: Data) -> list[str]:
    """Names of what ``data`` holds per edge, its adjacency aside."""
    num_nodes, num_edges = count_nodes(data, "edge_attrs()"), count_edges(data)
    return [
        key
        for key, value in data.to_dict().items()
        if not holds_edges(data, key, value) and level_of(data, key, value, num_nodes, num_edges) == "edge"
    ]


def from_coo(
    like: Any,
    src: Tensor,
    dst: Tensor,
    value: Tensor | None,
    num_nodes: int,
    order: Tensor | None = None,
) -> tuple[Any, Tensor | None]:
    """The adjacency with these edges in the format of ``like``, and the order of its edges.

    Args:
        like: an adjacency [N, N], which gives format, integer type and sort order.
        src: sources, [E].
        dst: destinations, [E].
        value: values of a sparse matrix, [E, ...], or None.
        num_nodes: N.
        order: position of each edge in the arguments, [E]. By default, edges are sorted as the
            format asks for: by destination, then source, in a matrix; not at all in a plain
            ``edge_index``.

    Returns:
        The adjacency and ``order``, which is None where edges stay where they are.
    """
    if order is None:
        key = sort_key(like, src, dst, num_nodes)
        order = None if key is None else key.argsort(stable=True)
    if order is not None:
        order = order.to(src.device)
        src, dst = src[order], dst[order]
        value = None if value is None else value[order]
    if is_matrix(like):
        rowptr = torch.searchsorted(dst, torch.arange(num_nodes + 1, device=dst.device))
        return matrix_like(like, rowptr, src, value), order
    return edge_index_like(like, torch.stack([src, dst]).to(like.dtype), num_nodes), order


def matrix_like(like: Any, rowptr: Tensor, col: Tensor, value: Tensor | None) -> Any:
    size = (rowptr.numel() - 1, rowptr.numel() - 1)
    if is_sparse_tensor(like):
        torch_sparse = sys.modules["torch_sparse"]
        storage = torch_sparse.SparseStorage(
            rowptr=rowptr,
            col=col,
            value=value,
            sparse_sizes=size,
            is_sorted=True,
            trust_data=True,
        )
        return torch_sparse.SparseTensor.from_storage(storage)
    dtype = like.col_indices().dtype
    return torch.sparse_csr_tensor(
        rowptr.to(dtype),
        col.to(dtype),
        cast(Tensor, value),
        size=(*size, *like.shape[2:]),
        check_invariants=False,  # Sorted by the callers; unset, torch warns.
    )


def edge_index_like(like: Any, edge_index: Tensor, num_nodes: int) -> Any:
    if not is_edge_index_object(like):
        return edge_index
    return EdgeIndex(
        edge_index,
        sparse_size=(num_nodes, num_nodes),
        sort_order=like.sort_order,
        is_undirected=like.is_undirected,
    )


def primary_key(data: Data) -> str | None:
    """The adjacency whose order edge attributes follow: PyG looks at ``edge_index`` first."""
    return next((key for key in ("edge_index", "adj_t") if data.get(key) is not None), None)


def count_edges(data: Data) -> int:
    # Not data.num_edges: beside a sparse matrix, it counts any attribute with "edge" in its name.
    key = primary_key(data)
    return 0 if key is None else num_edges_of(data[key])


def holds_edges(data: Data, key: str, value: Any) -> bool:
    named = key in ("edge_index", "adj_t") and value is not None
    return named or is_edge_index_object(value) or isinstance(data.__cat_dim__(key, value), tuple)


def level_of(data: Data, key: str, value: Any, num_nodes: int, num_edges: int) -> Literal["node", "edge"] | None:
    """What ``value`` holds one entry of per node or per edge; None where it is neither."""
    stem = key.removesuffix("_index")
    # A list of ids (edge_label_index) keeps its order, and so does what describes its entries
    # (edge_label).
    if (stem != key and stem in data) or (key != "edge" and f"{key}_index" in data):
        return None
    ids = holds_ids(data, key, value, num_nodes)
    if isinstance(value, (Tensor, np.ndarray)):
        if value.ndim == 0 or (ids and value.ndim > 1):
            return None
        length = value.shape[data.__cat_dim__(key, value)]
    elif is_sparse_tensor(value):
        length = value.size(0)
    elif isinstance(value, (list, tuple, TensorFrame)):
        length = len(value)
    else:
        return None
    # PyG's rule for graphs with as many edges as nodes, which it does not apply to lists.
    named, tie = "edge" in key, num_nodes == num_edges
    is_node = data.is_node_attr(key) or (is_sparse_tensor(value) and length == num_nodes)
    if is_node and not (tie and named):
        return "node"
    return "edge" if length == num_edges and (named or not (tie or ids)) else None


def holds_ids(data: Data, key: str, value: Any, num_nodes: int) -> bool:
    if "batch" in key:  # Counts graphs, not nodes.
        return False
    if isinstance(value, Tensor):
        integer = value.dtype in INTEGERS
    elif isinstance(value, np.ndarray):
        integer = value.dtype.kind in "iu"
    else:
        integer = isinstance(value, (list, tuple)) and all(type(item) is int for item in value)
    inc = data.__inc__(key, value) if integer else None
    return isinstance(inc, int) and inc == num_nodes


def sort_key(adj: Any, src: Tensor, dst: Tensor, num_nodes: int) -> Tensor | None:
    """Ascends along the edges as ``adj`` must hold them; None if any order will do."""
    if is_matrix(adj):
        return dst * num_nodes + src
    sort_order = adj.sort_order if is_edge_index_object(adj) else None
    if sort_order is None:
        return None
    return dst * num_nodes + src if sort_order == "col" else src * num_nodes + dst
