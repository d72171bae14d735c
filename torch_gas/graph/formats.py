"""The four adjacency formats a user may hold, and a batch in the same one.

``edge_index`` [2, E] and PyG's ``EdgeIndex`` hold (source, destination) pairs; ``torch.sparse_csr`` and
``torch_sparse.SparseTensor`` hold a matrix whose rows are destinations and whose columns are sources.
torch-sparse is never imported here: an object can only be a ``SparseTensor`` if the user imported it.
"""

from __future__ import annotations

import copy
import sys
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.utils import _pytree as pytree
from torch_geometric import EdgeIndex
from torch_geometric.data import Data
from torch_geometric.edge_index import SortOrder

from torch_gas import _core

FORMATS = "edge_index [2, E], EdgeIndex, torch.sparse_csr [N, N] or torch_sparse.SparseTensor [N, N]"


EDGES_AT_ONCE = 1 << 18  # whose int64 copies and what is computed of them stay within some MB


class Edges(NamedTuple):
    """The edges of a graph as an adjacency stores them.

    Args:
        rowptr: where each destination's edges start, [N + 1], or None.
        dst: destinations, [E], or None where there is ``rowptr``.
        src: sources, [E].
    """

    rowptr: Tensor | None
    dst: Tensor | None
    src: Tensor


class CSR(NamedTuple):
    """The edges of a graph sorted by destination.

    Args:
        rowptr: where each destination's edges start, [N + 1].
        col: sources, [E].
        value: edge weights of a sparse matrix, [E] or [E, C], or None.
        perm: position of each edge in the user's order, [E], or None where it is the same order.
    """

    rowptr: Tensor
    col: Tensor
    value: Tensor | None
    perm: Tensor | None


def is_sparse_tensor(adj: Any) -> bool:
    """Whether ``adj`` is a ``torch_sparse.SparseTensor``."""
    module = sys.modules.get("torch_sparse")
    return module is not None and isinstance(adj, module.SparseTensor)


def is_csr(adj: Any) -> bool:
    """Whether ``adj`` is a ``torch.sparse_csr`` matrix."""
    return isinstance(adj, Tensor) and adj.layout == torch.sparse_csr


def is_edge_index_object(adj: Any) -> bool:
    """Whether ``adj`` is PyG's ``EdgeIndex``."""
    return isinstance(adj, EdgeIndex)


def is_matrix(adj: Any) -> bool:
    """Whether ``adj`` is a sparse matrix (rows are destinations) and not a list of edges."""
    return is_csr(adj) or is_sparse_tensor(adj)


def is_edge_index(adj: Any) -> bool:
    """Whether ``adj`` is an integer tensor [2, E], an ``EdgeIndex`` included."""
    return (
        isinstance(adj, Tensor)
        and adj.layout == torch.strided
        and adj.dtype in (torch.int64, torch.int32)
        and adj.dim() == 2
        and adj.size(0) == 2
    )


def check_adjacency(adj: Any, name: str) -> None:
    """Raises TypeError unless ``adj`` is in one of the four formats."""
    if is_matrix(adj) or is_edge_index(adj):
        if isinstance(adj, Tensor) and adj.is_meta:
            raise ValueError(f"{name} is on the device meta, where no edges are; pass one with memory")
        return
    came = f"{tuple(adj.shape)} {adj.dtype} {adj.layout}" if isinstance(adj, Tensor) else type(adj)
    raise TypeError(f"{name} must be {FORMATS}, but is {came}")


def find_adjacency(data: Data) -> tuple[str, Any]:
    """The name and value of the one adjacency that ``data`` holds.

    Raises:
        ValueError: if ``data`` has neither ``edge_index`` nor ``adj_t``, or has both.
        TypeError: if the adjacency is in no known format.
    """
    keys = [key for key in ("edge_index", "adj_t") if data.get(key) is not None]
    if not keys:
        raise ValueError("data has no adjacency: set data.edge_index or data.adj_t")
    if len(keys) == 2:
        raise ValueError(
            "data has both edge_index and adj_t, and a batch carries one: remove the one that the model does not use"
            " (`del data.edge_index` or `del data.adj_t`)"
        )
    check_adjacency(data[keys[0]], f"data.{keys[0]}")
    return keys[0], data[keys[0]]


def num_nodes_of(adj: Any) -> int | None:
    """The number of nodes that ``adj`` states itself; None for a plain ``edge_index``."""
    if is_matrix(adj):
        return int(adj.size(0))
    if isinstance(adj, EdgeIndex):
        size = adj.sparse_size()
        return size[0] if size[0] is not None else size[1]
    return None


def coo(adj: Any) -> tuple[Tensor, Tensor, Tensor | None]:
    """(sources [E], destinations [E], values [E] or None) in the order in which ``adj`` stores its edges."""
    if is_sparse_tensor(adj):
        row, col, value = adj.coo()
        return col, row, value
    if is_csr(adj):
        row = torch.repeat_interleave(adj.crow_indices().diff()).to(torch.int64)
        return adj.col_indices().to(torch.int64), row, adj.values()
    plain = adj.as_tensor() if isinstance(adj, EdgeIndex) else adj
    return plain[0].to(torch.int64), plain[1].to(torch.int64), None


def num_edges_of(adj: Any) -> int:
    """E."""
    if is_sparse_tensor(adj):
        return int(adj.nnz())
    return int(adj.col_indices().numel() if is_csr(adj) else adj.size(1))


def edge_pieces(adj: Any) -> Iterator[tuple[slice, Tensor, Tensor]]:
    """The edges in the order in which ``adj`` stores them, in pieces, so that no copy of all of them is made.

    Yields:
        The positions of the piece, its sources and its destinations, int64.
    """
    stored = stored_edges(adj)
    for begin in range(0, stored.src.numel(), EDGES_AT_ONCE):
        piece = slice(begin, min(begin + EDGES_AT_ONCE, stored.src.numel()))
        src = stored.src[piece].to(torch.int64)
        if stored.dst is not None:
            yield piece, src, stored.dst[piece].to(torch.int64)
            continue
        assert stored.rowptr is not None
        ends = torch.tensor([piece.start, piece.stop - 1], device=src.device, dtype=stored.rowptr.dtype)
        first, last = (torch.searchsorted(stored.rowptr, ends, right=True) - 1).tolist()
        count = stored.rowptr[first : last + 2].clamp(piece.start, piece.stop).diff()
        rows = torch.arange(first, last + 1, device=src.device)
        yield piece, src, torch.repeat_interleave(rows, count, output_size=src.numel())


def stored_edges(adj: Any) -> Edges:
    """The tensors in which ``adj`` holds its edges, without a copy."""
    if is_sparse_tensor(adj):
        rowptr, col, _ = adj.csr()
        return Edges(rowptr, None, col)
    if is_csr(adj):
        return Edges(adj.crow_indices(), None, adj.col_indices())
    plain = adj.as_tensor() if isinstance(adj, EdgeIndex) else adj
    return Edges(None, plain[1], plain[0])


def to_csr(adj: Any, num_nodes: int) -> CSR:
    """The edges of ``adj`` sorted by destination; no copy where ``adj`` holds them so already."""
    if is_sparse_tensor(adj):
        rowptr, col, value = adj.csr()
        return CSR(rowptr, col, value, None)
    if is_csr(adj):
        return CSR(adj.crow_indices(), adj.col_indices(), adj.values(), None)
    if isinstance(adj, EdgeIndex):
        adj = adj.as_tensor()
    src, dst = adj[0].contiguous(), adj[1].contiguous()
    if is_ascending(dst):
        return CSR(row_pointers(dst, num_nodes), src, None, None)
    rowptr, col, perm = _core.to_csr(src, dst, num_nodes)
    return CSR(rowptr, col, None, perm)


def is_ascending(ids: Tensor) -> bool:
    """Whether no id is smaller than the one before."""
    starts = range(0, ids.numel(), EDGES_AT_ONCE)
    pieces = (ids[start : start + EDGES_AT_ONCE + 1] for start in starts)
    return all(bool((piece[1:] >= piece[:-1]).all()) for piece in pieces)


def row_pointers(ids: Tensor, num_nodes: int) -> Tensor:
    """Where the edges of each node start, [N + 1], in the ascending ids of one of their ends, [E]."""
    nodes = torch.arange(num_nodes + 1, device=ids.device, dtype=ids.dtype)
    return torch.searchsorted(ids, nodes, out_int32=ids.dtype == torch.int32)


def batch_adjacency(
    like: Any, value: Tensor | None, sub: _core.Subgraph, num_dst: int, num_rows: int
) -> tuple[Any, Tensor]:
    """A batch's adjacency in the format of ``like``.

    Args:
        like: the whole graph's adjacency, which gives the format.
        value: values of its edges in the order of :func:`to_csr`, [E], or None.
        sub: the batch, with B rows, or B + S where edges go into the halo as well. For a matrix, columns ascend in each row.
        num_dst: rows of the result if it is a matrix, B or, maybe with S empty rows at the end, B + S.
        num_rows: B + S.

    Returns:
        The adjacency [num_dst, B + S], and the positions [E_B] of its edges in the order of :func:`to_csr`.
    """
    pad = sub.rowptr[-1:].expand(num_dst + 1 - sub.rowptr.numel())
    rowptr, col, e_id = torch.cat([sub.rowptr, pad]), sub.col, sub.e_id
    if not is_matrix(like):
        edge_index = sub.edge_index
        if edge_index is None:
            dst = torch.repeat_interleave(rowptr.diff(), output_size=col.numel()).to(col.dtype)
            edge_index = torch.stack([col, dst])
        if isinstance(like, EdgeIndex):
            return _batch_edge_index(edge_index, rowptr, num_dst, num_rows), e_id
        return edge_index, e_id

    value = None if value is None else value.index_select(0, e_id)
    if is_csr(like):
        assert value is not None
        size = (num_dst, num_rows, *like.shape[2:])
        return torch.sparse_csr_tensor(rowptr, col, value, size=size, check_invariants=False), e_id
    torch_sparse = sys.modules["torch_sparse"]
    colptr, _, csr2csc = _core.transpose(rowptr, col, num_rows)
    storage = torch_sparse.SparseStorage(
        rowptr=rowptr,
        col=col,
        value=value,
        sparse_sizes=(num_dst, num_rows),
        colptr=colptr,
        csr2csc=csr2csc,
        is_sorted=True,
        trust_data=True,
    )
    return torch_sparse.SparseTensor.from_storage(storage), e_id


def _batch_edge_index(edge_index: Tensor, colptr: Tensor, num_dst: int, num_rows: int) -> EdgeIndex:
    """An ``EdgeIndex`` sorted by destination, with what ``fill_cache_`` would find by a sort."""
    adj = EdgeIndex(edge_index, sparse_size=(num_rows, num_dst), sort_order="col")
    rowptr, dst, perm = _core.transpose(colptr, edge_index[0], num_rows)
    src = torch.repeat_interleave(rowptr.diff(), output_size=dst.numel()).to(dst.dtype)
    adj._indptr, adj._T_indptr, adj._T_index, adj._T_perm = colptr, rowptr, (src, dst), perm
    return adj


def num_destinations(adj: Any) -> int | None:
    """Rows of a matrix (B of a batch); None for a plain ``edge_index``, which does not say."""
    if is_matrix(adj):
        return int(adj.size(0))
    if isinstance(adj, EdgeIndex):
        return adj.sparse_size(1)
    return None


def resize(adj: Any, num_dst: int, num_src: int) -> Any:
    """``adj`` with empty destination rows added at the end, or cut off there, to [num_dst, num_src].

    A plain ``edge_index``, which states no size, stays as it is.
    """
    if is_edge_index(adj) and not isinstance(adj, EdgeIndex):
        return adj
    if num_destinations(adj) == num_dst:
        return adj
    if is_sparse_tensor(adj):
        return adj.sparse_resize((num_dst, num_src))
    if is_csr(adj):
        rowptr = adj.crow_indices()[: num_dst + 1]
        pad = rowptr[-1:].expand(num_dst + 1 - rowptr.numel())
        return torch.sparse_csr_tensor(
            torch.cat([rowptr, pad]),
            adj.col_indices(),
            adj.values(),
            size=(num_dst, num_src, *adj.shape[2:]),
            check_invariants=False,
        )
    return _resize_edge_index(adj, num_src, num_dst)


def _resize_edge_index(adj: EdgeIndex, num_src: int, num_dst: int) -> EdgeIndex:
    """As ``sparse_resize_``, which makes the host wait for a GPU."""
    ends = {SortOrder.ROW: (num_src, num_dst), SortOrder.COL: (num_dst, num_src)}.get(adj._sort_order)
    old_ends = {SortOrder.ROW: adj.sparse_size(), SortOrder.COL: adj.sparse_size()[::-1]}.get(adj._sort_order)
    if (
        ends is None
        or old_ends is None
        or any(old is None or old > new for old, new in zip(old_ends, ends, strict=True))
    ):
        return copy.copy(adj).sparse_resize_(num_src, num_dst)
    resized = copy.copy(adj)
    for name, end in zip(("_indptr", "_T_indptr"), ends, strict=True):
        pointers = getattr(adj, name)
        if pointers is not None:
            setattr(resized, name, torch.cat([pointers, pointers[-1:].expand(end + 1 - pointers.numel())]))
    resized._sparse_size = (num_src, num_dst)
    return resized


def map_tensors(value: Any, fn: Callable[[Tensor], Tensor]) -> Any:
    """``value``, an adjacency, a tensor, or lists and dictionaries of such, with each tensor replaced by ``fn`` of it."""
    return pytree.tree_map(lambda leaf: _map_leaf(leaf, fn), value)


def _map_leaf(leaf: Any, fn: Callable[[Tensor], Tensor]) -> Any:
    if is_sparse_tensor(leaf):
        mapped = copy.copy(leaf)
        mapped.storage = copy.copy(leaf.storage)
        for name, held in vars(leaf.storage).items():
            if isinstance(held, Tensor):
                setattr(mapped.storage, name, fn(held))
        return mapped
    if is_csr(leaf):
        held = (fn(leaf.crow_indices()), fn(leaf.col_indices()), fn(leaf.values()))
        return torch.sparse_csr_tensor(*held, size=leaf.shape, check_invariants=False)
    return fn(leaf) if isinstance(leaf, Tensor) else leaf


def tensors_of(value: Any) -> list[Tensor]:
    """The dense tensors that state ``value``; none for what is no tensor."""
    if is_sparse_tensor(value):
        return [part for part in value.csr() if part is not None]
    if not isinstance(value, Tensor):
        return []
    return [value.crow_indices(), value.col_indices(), value.values()] if value.is_sparse_csr else [value]


def all_tensors(value: Any) -> list[Tensor]:
    """The dense tensors in whose memory ``value`` lies, with those that an adjacency has computed for later."""
    found = []
    for leaf in pytree.tree_leaves(value):
        if is_sparse_tensor(leaf):
            found += all_tensors(vars(leaf.storage))
        elif is_csr(leaf):
            found += [leaf.crow_indices(), leaf.col_indices(), leaf.values()]
        elif isinstance(leaf, EdgeIndex):
            found += all_tensors(vars(leaf))
        elif isinstance(leaf, Tensor):
            found.append(leaf)
    return found
