"""The four adjacency formats a user may hold, a class each, and how the format of an object is found.

``edge_index`` [2, E] and PyG's ``EdgeIndex`` hold (source, destination) pairs; ``torch.sparse_csr`` and
``torch_sparse.SparseTensor`` hold a matrix whose rows are destinations and whose columns are sources.
torch-sparse is never imported here: an object can only be a ``SparseTensor`` if the user imported it.
"""

from __future__ import annotations

import copy
import sys
from collections.abc import Callable, Iterable
from typing import Any, Literal, cast

import numpy as np
import torch
from torch import Tensor
from torch.utils import _pytree as pytree
from torch_geometric import EdgeIndex
from torch_geometric.edge_index import SortOrder

from torch_gas import _core
from torch_gas._util.arguments import advice_for
from torch_gas._util.memory import is_readable, why_not
from torch_gas.graph.format import Format, Matrix, StoredEdges, csr_tensor, resized_pointers

ADJACENCIES = ("edge_index", "adj_t")  # under which PyG's Data holds edges
_ID_TYPES = (torch.int64, torch.int32)


class PlainEdgeIndex(Format):
    """An integer tensor [2, E], which states no size and has no order."""

    name = "edge_index [2, E]"

    def is_mine(self, value: Any) -> bool:
        if not isinstance(value, Tensor) or value.dtype not in _ID_TYPES or isinstance(value, EdgeIndex):
            return False
        return value.layout == torch.strided and value.dim() == 2 and value.size(0) == 2

    def stored_edges(self, adj: Any) -> StoredEdges:
        return StoredEdges(None, adj[1], adj[0])

    def num_edges(self, adj: Any) -> int:
        return int(adj.size(1))

    def from_edges(self, like: Any, edge_index: Tensor, values: Tensor | None, num_nodes: int) -> Tensor:
        return edge_index.to(like.dtype)

    def batch(self, like: Any, values: Tensor | None, sub: _core.Subgraph, num_dst: int, num_rows: int) -> Tensor:
        if sub.edge_index is not None:
            return sub.edge_index
        dst = torch.repeat_interleave(sub.rowptr.diff(), output_size=sub.col.numel()).to(sub.col.dtype)
        return torch.stack([sub.col, dst])

    def keep_edges(self, adj: Any, keep: Tensor, values: Tensor | None) -> Tensor:
        return cast(Tensor, adj[:, keep])

    def holder(self, adj: Any) -> Any:
        return None if adj.is_inference() else adj  # such a tensor does not count what is written to it


class PyGEdgeIndex(PlainEdgeIndex):
    """PyG's ``EdgeIndex``, which may state its size and sort order and keeps the order by the other end."""

    name = "EdgeIndex"
    holds_only_edges = True

    def is_mine(self, value: Any) -> bool:
        return isinstance(value, EdgeIndex)

    def stored_edges(self, adj: Any) -> StoredEdges:
        return super().stored_edges(adj.as_tensor())

    def num_destinations(self, adj: Any) -> int | None:
        return cast("int | None", adj.sparse_size(1))

    def num_nodes(self, adj: Any) -> int | None:
        size = adj.sparse_size()
        return size[0] if size[0] is not None else size[1]

    def sort_order(self, adj: Any) -> Literal["row", "col"] | None:
        return cast("Literal['row', 'col'] | None", adj.sort_order)

    def from_edges(self, like: Any, edge_index: Tensor, values: Tensor | None, num_nodes: int) -> EdgeIndex:
        ids, size = edge_index.to(like.dtype), (num_nodes, num_nodes)
        return EdgeIndex(ids, sparse_size=size, sort_order=like.sort_order, is_undirected=like.is_undirected)

    def batch(self, like: Any, values: Tensor | None, sub: _core.Subgraph, num_dst: int, num_rows: int) -> EdgeIndex:
        """Sorted by destination, with what ``fill_cache_`` would find by a sort."""
        edge_index = super().batch(like, values, sub, num_dst, num_rows)
        adj = EdgeIndex(edge_index, sparse_size=(num_rows, num_dst), sort_order="col")
        colptr = resized_pointers(sub.rowptr, num_dst)
        rowptr, dst, perm = _core.transpose(colptr, edge_index[0], num_rows)
        src = torch.repeat_interleave(rowptr.diff(), output_size=dst.numel()).to(dst.dtype)
        adj._indptr, adj._T_indptr, adj._T_index, adj._T_perm = colptr, rowptr, (src, dst), perm
        return adj

    def resize(self, adj: Any, num_dst: int, num_src: int) -> EdgeIndex:
        """As ``sparse_resize_``, which makes the host wait for a GPU."""
        ends, old_ends = (num_src, num_dst), adj.sparse_size()
        if adj._sort_order == SortOrder.COL:
            ends, old_ends = ends[::-1], old_ends[::-1]
        grows = all(old is not None and old <= new for old, new in zip(old_ends, ends, strict=True))
        if adj._sort_order is None or not grows:
            return copy.copy(adj).sparse_resize_(num_src, num_dst)
        resized = copy.copy(adj)
        for name, end in zip(("_indptr", "_T_indptr"), ends, strict=True):
            if getattr(adj, name) is not None:
                setattr(resized, name, resized_pointers(getattr(adj, name), end))
        resized._sparse_size = (num_src, num_dst)
        return resized

    def keep_edges(self, adj: Any, keep: Tensor, values: Tensor | None) -> EdgeIndex:
        # Of all the properties only size and order survive the loss of edges.
        return EdgeIndex(adj.as_tensor()[:, keep], sparse_size=adj.sparse_size(), sort_order=adj.sort_order)

    def unweighted(self, adj: Any, num_dst: int, num_src: int, dtype: torch.dtype) -> Any:
        if not adj.is_sorted_by_col:
            return adj
        (colptr, row), _ = adj.get_csc()
        return csr_tensor(colptr, row, row.new_ones(row.numel(), dtype=dtype), (num_dst, num_src))

    def all_tensors(self, adj: Any) -> list[Tensor]:
        return [held for held in pytree.tree_leaves(vars(adj)) if isinstance(held, Tensor)]


class TorchCSR(Matrix):
    """A ``torch.sparse_csr`` matrix, which always has values."""

    name = "torch.sparse_csr [N, N]"
    is_always_weighted = True

    def is_mine(self, value: Any) -> bool:
        return is_csr(value)

    def stored_edges(self, adj: Any) -> StoredEdges:
        return StoredEdges(adj.crow_indices(), None, adj.col_indices())

    def values(self, adj: Any) -> Tensor:
        return cast(Tensor, adj.values())

    def make(self, like: Any, rowptr: Tensor, col: Tensor, values: Tensor | None, num_src: int) -> Tensor:
        assert values is not None
        dtype = like.col_indices().dtype
        return csr_tensor(rowptr.to(dtype), col.to(dtype), values, (rowptr.numel() - 1, num_src, *like.shape[2:]))

    def resize(self, adj: Any, num_dst: int, num_src: int) -> Tensor:
        rowptr = resized_pointers(adj.crow_indices(), num_dst)
        return self.make(adj, rowptr, adj.col_indices(), adj.values(), num_src)

    def unweighted(self, adj: Any, num_dst: int, num_src: int, dtype: torch.dtype) -> Tensor:
        rowptr, col = adj.crow_indices(), adj.col_indices()
        return csr_tensor(rowptr, col, col.new_ones(col.numel(), dtype=dtype), (num_dst, num_src))

    def tensors(self, adj: Any) -> list[Tensor]:
        return [adj.crow_indices(), adj.col_indices(), adj.values()]

    def map_tensors(self, adj: Any, fn: Callable[[Tensor], Tensor]) -> Tensor:
        return csr_tensor(fn(adj.crow_indices()), fn(adj.col_indices()), fn(adj.values()), adj.shape)


class SparseTensor(Matrix):
    """``torch_sparse.SparseTensor``, whose ``storage`` keeps further orders of the edges."""

    name = "torch_sparse.SparseTensor [N, N]"

    def is_mine(self, value: Any) -> bool:
        module = sys.modules.get("torch_sparse")
        return module is not None and isinstance(value, module.SparseTensor)

    def stored_edges(self, adj: Any) -> StoredEdges:
        return StoredEdges(adj.storage.rowptr(), None, adj.storage.col())

    def values(self, adj: Any) -> Tensor | None:
        return cast("Tensor | None", adj.storage.value())

    def make(self, like: Any, rowptr: Tensor, col: Tensor, values: Tensor | None, num_src: int) -> Any:
        cls, size = sys.modules["torch_sparse"].SparseTensor, (rowptr.numel() - 1, num_src)
        return cls(rowptr=rowptr, col=col, value=values, sparse_sizes=size, is_sorted=True, trust_data=True)

    def batch(self, like: Any, values: Tensor | None, sub: _core.Subgraph, num_dst: int, num_rows: int) -> Any:
        """With the order by source, which the backward pass would find by a sort."""
        adj = super().batch(like, values, sub, num_dst, num_rows)
        rowptr, _, col = self.stored_edges(adj)
        adj.storage._colptr, _, adj.storage._csr2csc = _core.transpose(rowptr, col, num_rows)
        return adj

    def resize(self, adj: Any, num_dst: int, num_src: int) -> Any:
        return adj.sparse_resize((num_dst, num_src))

    def unweighted(self, adj: Any, num_dst: int, num_src: int, dtype: torch.dtype) -> Any:
        return adj.set_value(None, layout=None)

    def tensors(self, adj: Any) -> list[Tensor]:
        return [part for part in adj.csr() if part is not None]

    def all_tensors(self, adj: Any) -> list[Tensor]:
        return [held for held in vars(adj.storage).values() if isinstance(held, Tensor)]

    def map_tensors(self, adj: Any, fn: Callable[[Tensor], Tensor]) -> Any:
        mapped = copy.copy(adj)
        mapped.storage = copy.copy(adj.storage)
        for name, held in vars(adj.storage).items():
            if isinstance(held, Tensor):
                setattr(mapped.storage, name, fn(held))
        return mapped

    def holder(self, adj: Any) -> Any:
        return adj.storage


FORMATS: tuple[Format, ...] = (PlainEdgeIndex(), PyGEdgeIndex(), TorchCSR(), SparseTensor())
_MATRICES = tuple(known for known in FORMATS if isinstance(known, Matrix))


def find_format(value: Any) -> Format | None:
    """The format of ``value``, which may be anything; None where it is no adjacency."""
    if _is_rows(value):
        return None
    for known in FORMATS:
        if known.is_mine(value):
            return known
    return None


def _is_rows(value: Any) -> bool:
    """Whether ``value`` is a dense tensor of numbers, which is no adjacency: layers ask in each step, most often of such."""
    return type(value) is Tensor and value.layout is torch.strided and value.is_floating_point()


def format_of(adj: Any, name: str = "the adjacency") -> Format:
    """The format of ``adj``.

    Raises:
        TypeError: if ``adj`` is in none of the formats.
    """
    found = find_format(adj)
    if found is None:
        *names, last = [known.name for known in FORMATS]
        came = f"{tuple(adj.shape)} {adj.dtype} {adj.layout}" if isinstance(adj, Tensor) else type(adj)
        raise TypeError(
            f"{name} must be {', '.join(names)} or {last}, but is {came}{advice_for(adj) or _conversion(adj)}"
        )
    return found


def _conversion(adj: Any) -> str:
    """How something that states edges in another way comes into one of the formats."""
    if isinstance(adj, np.ndarray):
        return "; pass torch.from_numpy(...)"
    if not isinstance(adj, Tensor) or adj.dim() != 2:
        return ""
    if adj.layout in (torch.sparse_coo, torch.sparse_csc):
        return "; pass .to_sparse_csr() of it"
    if adj.size(0) == 2 and adj.layout == torch.strided:
        return "; pass .long() of it"
    if adj.size(1) == 2 and adj.dtype in _ID_TYPES:
        return "; pass .t().contiguous() of it"
    dense = adj.size(0) == adj.size(1) and adj.layout == torch.strided
    return "; pass .to_sparse_csr() of it, if it is a dense matrix whose rows are destinations" if dense else ""


def check_adjacency(adj: Any, name: str) -> None:
    """Raises TypeError unless ``adj`` is in one of the formats, and ValueError unless it lies in memory."""
    format_of(adj, name)
    if isinstance(adj, Tensor) and adj.is_meta:
        raise ValueError(f"{name} is on the device meta, where no edges are; pass one with memory")
    if isinstance(adj, Tensor) and not is_readable(adj):
        raise ValueError(f"{name} must be a dense tensor with memory, but {why_not(adj)}")


def is_adjacency(value: Any) -> bool:
    """Whether ``value`` is in one of the formats."""
    return find_format(value) is not None


def is_csr(value: Any) -> bool:
    """Whether ``value`` is a ``torch.sparse_csr`` matrix: an adjacency, or features of which few are not zero."""
    return isinstance(value, Tensor) and value.layout == torch.sparse_csr


def is_matrix(value: Any) -> bool:
    """Whether ``value`` is a sparse matrix (rows are destinations) and not a list of edges."""
    if _is_rows(value):
        return False
    for known in _MATRICES:  # noqa: SIM110  # layers ask in each step, and a generator takes twice as long
        if known.is_mine(value):
            return True
    return False


def num_destinations(value: Any) -> int | None:
    """N of a graph's adjacency, B or B + S of a batch's; None where it does not say or is none."""
    known = find_format(value)
    return None if known is None else known.num_destinations(value)


def resize(value: Any, num_dst: int, num_src: int) -> Any:
    """An adjacency with empty destinations added at the end, or cut off there, to [num_dst, num_src].

    A plain ``edge_index``, which states no size, and what is no adjacency stay as they are.
    """
    known = find_format(value)
    if known is None or known.num_destinations(value) == num_dst:
        return value
    return known.resize(value, num_dst, num_src)


def map_tensors(value: Any, fn: Callable[[Tensor], Tensor]) -> Any:
    """``value``, an adjacency, a tensor, or lists and dictionaries of such, with each tensor replaced by ``fn`` of it."""

    def mapped(leaf: Any) -> Any:
        known = find_format(leaf)
        if known is not None:
            return known.map_tensors(leaf, fn)
        return fn(leaf) if isinstance(leaf, Tensor) else leaf

    return pytree.tree_map(mapped, value)


def tensors_of(value: Any) -> list[Tensor]:
    """The dense tensors that state ``value``; none for what is no tensor."""
    known = find_format(value)
    if known is not None:
        return known.tensors(value)
    return [value] if isinstance(value, Tensor) else []


def in_memory(tensors: Iterable[Tensor]) -> list[Tensor]:
    """Those of ``tensors`` that lie in host memory, as plain ones: what :func:`_core.fingerprint` reads."""
    found = []
    for tensor in tensors:
        # PyG's classes of ids say so themselves; a parameter is plain enough.
        plain = tensor.as_tensor() if type(tensor) is not Tensor and hasattr(tensor, "as_tensor") else tensor
        if plain.layout == torch.strided and plain.device.type == "cpu":
            found.append(plain)
    return found


def all_tensors(value: Any) -> list[Tensor]:
    """The dense tensors in whose memory ``value`` lies, with those that an adjacency has computed for later."""
    found = []
    for leaf in pytree.tree_leaves(value):
        known = find_format(leaf)
        found += tensors_of(leaf) if known is None else known.all_tensors(leaf)
    return found
