"""permute() and unpermute(): a graph in another node order, and back."""

from __future__ import annotations

import copy
import itertools
import sys
import time
from typing import Any, Literal, TypeVar, cast

import numpy as np
import torch
from torch import Tensor
from torch_geometric import EdgeIndex
from torch_geometric.data import Batch, Data
from torch_geometric.typing import TensorFrame

from torch_gas.adjacency import (
    EDGES_AT_ONCE,
    check_adjacency,
    coo,
    edge_pieces,
    is_ascending,
    is_edge_index_object,
    is_matrix,
    is_sparse_tensor,
    num_edges_of,
    stored_edges,
    to_csr,
)
from torch_gas.checked import checked
from torch_gas.features import take
from torch_gas.partition.record import INTEGERS, Partition, check_ids, check_perm, count_nodes
from torch_gas.storage import StoredFeatures

DataOrTensor = TypeVar("DataOrTensor", Data, Tensor)


@checked
def permute(data: Data, perm: Tensor | Partition, log: bool = True) -> Data:
    """Reorders the nodes of a graph, so that the parts of :func:`metis` become contiguous.

    Node attributes (PyG's ``data.is_node_attr``) are reordered; adjacencies and attributes that
    hold node ids (PyG's ``data.__inc__``: ``edge_label_index``, ``train_index``, ...) are
    relabelled; graph-level attributes stay. A plain ``edge_index`` keeps the order of its edges. A
    sorted ``EdgeIndex`` and sparse matrices are sorted anew, and edge attributes follow.

    Args:
        data: the graph, which is left unchanged.
        perm: original id of the node at each new position, [N], or the partition itself.
        log: whether to print one line with the time.

    Returns:
        A new ``Data`` with ``perm`` [N], the original node ids, as a node attribute. If edges were
        reordered and there are edge attributes, it also has ``edge_perm`` [E], the original
        positions of the edges. Permuting twice composes both.

    Raises:
        TypeError: if ``perm`` is no integer tensor or ``data`` no ``Data``.
        ValueError: if ``perm`` is no permutation of N nodes, or the number of nodes is unknown.
        IndexError: if ``data`` holds node ids outside 0 .. N-1.

    Example:
        >>> edge_index = torch.tensor([[0, 1], [1, 2]])
        >>> data = Data(x=torch.tensor([[0.0], [1.0], [2.0]]), edge_index=edge_index)
        >>> out = permute(data, torch.tensor([2, 0, 1]), log=False)
        >>> out.x.view(-1), out.edge_index
        (tensor([2., 0., 1.]), tensor([[1, 2],
                [2, 0]]))
    """
    start = time.perf_counter()
    num_nodes = _check_data(data, "permute()")
    for key in ("edge_index", "adj_t"):
        if data.get(key) is not None:
            check_adjacency(data[key], f"permute(): data.{key}")
    perm = check_perm(perm.perm if isinstance(perm, Partition) else perm, num_nodes, "permute()")
    first = "perm" not in data
    if first and "edge_perm" in data:
        raise ValueError("permute(): data.edge_perm is reserved for the order of permuted edges: rename the attribute")
    if not first:
        check_perm(data.perm, num_nodes, "permute(): data.perm comes from an earlier permute()")
    if log:
        print("Permuting data...", end=" ", flush=True)
    out, edge_order = _reorder(data, perm, _inverse(perm), None, "permute()")
    if first:
        out.perm = perm
        # Where it is not stored, sorting by original ids restores the order of the edges.
        if edge_order is not None and (edge_attrs(data) or not _is_sorted(data)):
            out.edge_perm = edge_order
    else:
        out.perm.step = perm  # the loader compares the last step with the order that `ptr` is for
    if log:
        print(f"Done! [{time.perf_counter() - start:.2f}s]")
    return out


@checked
def unpermute(value: DataOrTensor, perm: Tensor | Partition | None = None) -> DataOrTensor:
    """Brings a permuted graph, or rows in its order (a model's output), back to the original order.

    Args:
        value: a ``Data`` from :func:`permute`, or rows in its node order, [N, ...].
        perm: for rows: original id of each row, ``data.perm`` [N], or the partition.

    Returns:
        The ``Data`` as it was before (any number of) :func:`permute`, or the rows by original id.

    Raises:
        ValueError: if ``data`` was not permuted, or ``perm`` does not fit.
        TypeError: if ``value`` is neither a ``Data`` nor a tensor, or ``perm`` no integer tensor.

    Example:
        >>> unpermute(torch.tensor([2.0, 0.0, 1.0]), torch.tensor([2, 0, 1]))
        tensor([0., 1., 2.])
    """
    if isinstance(value, Tensor):
        if perm is None:
            raise ValueError("unpermute(): perm is needed to bring rows back: pass data.perm")
        if value.dim() == 0:
            raise ValueError("unpermute(): value must have one row per node, [N, ...], but is a scalar")
        perm = check_perm(
            perm.perm if isinstance(perm, Partition) else perm,
            value.size(0),
            "unpermute(), one id per row of value",
        )
        return value.index_select(0, _inverse(perm).to(value.device))
    num_nodes = _check_data(value, "unpermute()")
    if perm is not None:
        raise ValueError("unpermute(): data carries its own perm: drop the argument")
    if "perm" not in value:
        raise ValueError("unpermute(): data has no perm, so it was not reordered: pass what permute() returned")
    perm = check_perm(value.perm, num_nodes, "unpermute(): data.perm")
    data = copy.copy(value)
    del data.perm
    edge_order = None
    if "edge_perm" in data:
        edge_order = _inverse(check_perm(data.edge_perm, _num_edges(data), "unpermute(): data.edge_perm, one per edge"))
        del data.edge_perm
    return _reorder(data, _inverse(perm), perm, edge_order, "unpermute()")[0]


def edge_attrs(data: Data) -> list[str]:
    """Names of what ``data`` holds per edge, its adjacency aside."""
    num_nodes, num_edges = count_nodes(data, "edge_attrs()"), _num_edges(data)
    return [
        key
        for key, value in data.to_dict().items()
        if not _is_adjacency(data, key, value) and _level(data, key, value, num_nodes, num_edges) == "edge"
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
        key = _sort_key(like, src, dst, num_nodes)
        order = None if key is None else key.argsort(stable=True)
    if order is not None:
        order = order.to(src.device)
        src, dst = src[order], dst[order]
        value = None if value is None else value[order]
    if is_matrix(like):
        rowptr = torch.searchsorted(dst, torch.arange(num_nodes + 1, device=dst.device))
        return _matrix_like(like, rowptr, src, value), order
    return _edge_index_like(like, torch.stack([src, dst]).to(like.dtype), num_nodes), order


def _matrix_like(like: Any, rowptr: Tensor, col: Tensor, value: Tensor | None) -> Any:
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


def _edge_index_like(like: Any, edge_index: Tensor, num_nodes: int) -> Any:
    if not is_edge_index_object(like):
        return edge_index
    return EdgeIndex(
        edge_index,
        sparse_size=(num_nodes, num_nodes),
        sort_order=like.sort_order,
        is_undirected=like.is_undirected,
    )


def _reorder(
    data: Data, index: Tensor, new_id: Tensor, edge_order: Tensor | None, where: str
) -> tuple[Data, Tensor | None]:
    """``data`` with node ``index[i]`` at i; ``new_id`` is the inverse of ``index``."""
    num_nodes, num_edges, primary = index.numel(), _num_edges(data), _primary(data)
    out = copy.copy(data)
    if primary is not None:
        out[primary], edge_order = _relabel_adjacency(data, primary, new_id, edge_order, where)
    for key, value in data.to_dict().items():
        if key == primary:
            continue
        if _is_adjacency(data, key, value):
            out[key], _ = _relabel_adjacency(data, key, new_id, None, where)
            continue
        if isinstance(value, StoredFeatures):
            raise ValueError(
                f"{where}: data.{key} lies in a file, whose rows are not moved; leave it out, and then set "
                f"data.{key} = store_features(..., perm=perm)"
            )
        level = _level(data, key, value, num_nodes, num_edges)
        if _holds_ids(data, key, value, num_nodes):
            value = _relabel(value, new_id, f"{where}: data.{key}")
        if level == "node":
            value = take(value, index, data.__cat_dim__(key, value))
        elif level == "edge" and edge_order is not None:
            value = take(value, edge_order, data.__cat_dim__(key, value))
        out[key] = value
    return out, edge_order


def _relabel_adjacency(
    data: Data, key: str, new_id: Tensor, order: Tensor | None, where: str
) -> tuple[Any, Tensor | None]:
    adj, num_nodes = data[key], new_id.numel()
    check_adjacency(adj, f"{where}: data.{key}")
    if is_matrix(adj) and (adj.size(0) != num_nodes or adj.size(1) != num_nodes):
        raise ValueError(
            f"{where}: data.{key} must be [{num_nodes}, {num_nodes}], one row and column per node,"
            f" but is {[adj.size(0), adj.size(1)]}: correct it or data.num_nodes"
        )
    _, dst, src = stored_edges(adj)
    for ids in (src, dst):
        if ids is not None:
            check_ids(ids, num_nodes, f"{where}: data.{key}")
    new_id = new_id.to(src.device)
    if order is None and is_matrix(adj):
        return _permute_matrix(adj, new_id)
    if order is None and (not is_edge_index_object(adj) or adj.sort_order is None):
        edge_index = torch.empty(2, src.numel(), dtype=src.dtype, device=src.device)
        for piece, src, dst in edge_pieces(adj):
            edge_index[0, piece], edge_index[1, piece] = new_id[src], new_id[dst]
        return _edge_index_like(adj, edge_index, num_nodes), None
    src, dst, value = coo(adj)
    return from_coo(adj, new_id[src], new_id[dst], value, num_nodes, order)


def _permute_matrix(adj: Any, new_id: Tensor) -> tuple[Any, Tensor]:
    """As :func:`from_coo` of the relabelled edges, a few rows at a time."""
    rowptr, col, value, _ = to_csr(adj, new_id.numel())
    index = _inverse(new_id)
    count = rowptr.diff()[index]
    end = count.cumsum(0)
    new_rowptr = torch.cat([end.new_zeros(1), end])
    new_col, order = torch.empty_like(col), torch.empty(col.numel(), dtype=torch.int64, device=col.device)
    bounds = torch.arange(0, col.numel() + EDGES_AT_ONCE, EDGES_AT_ONCE, device=col.device)
    cuts = torch.searchsorted(new_rowptr, bounds).clamp(max=new_id.numel()).unique().tolist()
    for begin, stop in itertools.pairwise([0, *cuts]):
        rows = slice(begin, stop)
        size = count[rows]
        first, last = int(new_rowptr[begin]), int(new_rowptr[stop])
        shift = rowptr[:-1][index[rows]] - new_rowptr[begin:stop]
        edge = torch.repeat_interleave(shift, size) + torch.arange(first, last, device=col.device)
        local = torch.repeat_interleave(torch.arange(stop - begin, device=col.device), size)
        key, by_column = (local * new_id.numel() + new_id[col[edge].to(torch.int64)]).sort(stable=True)
        new_col[first:last] = key % new_id.numel()
        order[first:last] = edge[by_column]
    value = None if value is None else value[order]
    return _matrix_like(adj, new_rowptr, new_col, value), order


def _primary(data: Data) -> str | None:
    """The adjacency whose order edge attributes follow: PyG looks at ``edge_index`` first."""
    return next((key for key in ("edge_index", "adj_t") if data.get(key) is not None), None)


def _num_edges(data: Data) -> int:
    # Not data.num_edges: beside a sparse matrix, it counts any attribute with "edge" in its name.
    key = _primary(data)
    return 0 if key is None else num_edges_of(data[key])


def _is_adjacency(data: Data, key: str, value: Any) -> bool:
    named = key in ("edge_index", "adj_t") and value is not None
    return named or is_edge_index_object(value) or isinstance(data.__cat_dim__(key, value), tuple)


def _level(data: Data, key: str, value: Any, num_nodes: int, num_edges: int) -> Literal["node", "edge"] | None:
    """What ``value`` holds one entry of per node or per edge; None where it is neither."""
    stem = key.removesuffix("_index")
    # A list of ids (edge_label_index) keeps its order, and so does what describes its entries
    # (edge_label).
    if (stem != key and stem in data) or (key != "edge" and f"{key}_index" in data):
        return None
    ids = _holds_ids(data, key, value, num_nodes)
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


def _holds_ids(data: Data, key: str, value: Any, num_nodes: int) -> bool:
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


def _relabel(value: Any, new_id: Tensor, where: str) -> Any:
    ids = torch.as_tensor(value).to(torch.int64)
    check_ids(ids, new_id.numel(), where)
    new = new_id.to(ids.device)[ids]
    if isinstance(value, Tensor):
        return new.to(value.dtype)
    if isinstance(value, np.ndarray):
        return new.numpy().astype(value.dtype)
    return type(value)(new.tolist())


def _sort_key(adj: Any, src: Tensor, dst: Tensor, num_nodes: int) -> Tensor | None:
    """Ascends along the edges as ``adj`` must hold them; None if any order will do."""
    if is_matrix(adj):
        return dst * num_nodes + src
    sort_order = adj.sort_order if is_edge_index_object(adj) else None
    if sort_order is None:
        return None
    return dst * num_nodes + src if sort_order == "col" else src * num_nodes + dst


def _is_sorted(data: Data) -> bool:
    adj = data[cast(str, _primary(data))]
    num_nodes, last = count_nodes(data, "permute()"), -1
    for _, src, dst in edge_pieces(adj):
        key = _sort_key(adj, src, dst, num_nodes)
        if key is None:
            return True
        if int(key[0]) < last or not is_ascending(key):
            return False
        last = int(key[-1])
    return True


def _inverse(perm: Tensor) -> Tensor:
    inverse = torch.empty_like(perm)
    inverse[perm] = torch.arange(perm.numel(), device=perm.device)
    return inverse


def _check_data(data: Any, where: str) -> int:
    if not isinstance(data, Data):
        raise TypeError(f"{where}: data must be a torch_geometric.data.Data, but is {type(data).__name__}")
    if isinstance(data, Batch):
        raise ValueError(
            f"{where}: data is a Batch, whose graphs would no longer be contiguous: pass one Data,"
            " `Data.from_dict({k: v for k, v in batch.to_dict().items() if k not in ('batch',"
            " 'ptr')})`"
        )
    return count_nodes(data, where)
