"""The interface of an adjacency format: what differs between formats, and nothing else.

To add a format, write one class in ``formats.py`` that derives from :class:`Format`, or from :class:`Matrix` where users hold a
matrix whose rows are destinations and whose columns are sources, and add an instance to ``FORMATS`` there. All else (loaders,
partitions, normalisation, models) goes through this interface. ``tests/graph/test_format.py`` then says whether it is right.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable
from typing import Any, Literal, NamedTuple

import torch
from torch import Tensor

from torch_gas import _core


class StoredEdges(NamedTuple):
    """The edges of a graph as an adjacency stores them.

    Args:
        rowptr: where each destination's edges start, [N + 1], or None where there is ``dst``.
        dst: destinations, [E], or None where there is ``rowptr``.
        src: sources, [E].
    """

    rowptr: Any  # a Tensor if and only if `dst` is None, which types cannot tell
    dst: Tensor | None
    src: Tensor


class Format(ABC):
    """An adjacency format: a class without state, whose methods take an adjacency ``adj`` of this format.

    ``like`` is an adjacency whose integer type, sort order and further properties a new one takes over.

    Attributes:
        name: how messages call it.
        holds_only_edges: whether no object in this format is anything else than an adjacency, whatever an attribute is called.
        is_always_weighted: whether PyG multiplies by the values even in layers that take no edge weights.
    """

    name: str
    holds_only_edges = False
    is_always_weighted = False

    @abstractmethod
    def is_mine(self, value: Any) -> bool:
        """Whether ``value``, which may be anything, is in this format and in no other."""

    @abstractmethod
    def stored_edges(self, adj: Any) -> StoredEdges:
        """The tensors in which ``adj`` holds its edges, without a copy."""

    def values(self, adj: Any) -> Tensor | None:
        """The values of a matrix, [E, ...] in the order of :meth:`stored_edges`; None where there are none."""
        return None

    def num_edges(self, adj: Any) -> int:
        """E of a graph, E_B of a batch."""
        return self.stored_edges(adj).src.numel()

    def num_destinations(self, adj: Any) -> int | None:
        """N of a graph, B or B + S of a batch; None where ``adj`` does not say."""
        return None

    def num_nodes(self, adj: Any) -> int | None:
        """N of a graph; None where ``adj`` does not say."""
        return self.num_destinations(adj)

    def sort_order(self, adj: Any) -> Literal["row", "col"] | None:
        """Whether edges are sorted by source (``"row"``, PyG's word), by destination (``"col"``) or need not be."""
        return None

    @abstractmethod
    def from_edges(self, like: Any, edge_index: Tensor, values: Tensor | None, num_nodes: int) -> Any:
        """The adjacency [N, N] of edges [2, E], int64, that are sorted as :meth:`sort_order` of ``like`` says."""

    @abstractmethod
    def batch(self, like: Any, values: Tensor | None, sub: _core.Subgraph, num_dst: int, num_rows: int) -> Any:
        """The adjacency [num_dst, B + S] of a batch.

        Args:
            like: the whole graph's adjacency.
            values: values of its edges sorted by destination, [E, ...], or None.
            sub: the batch, with B rows, or B + S where edges go into the halo as well. For a matrix, columns ascend in each row.
            num_dst: B or, maybe with S empty rows at the end, B + S. Only formats that state a size need it.
            num_rows: B + S.
        """

    def resize(self, adj: Any, num_dst: int, num_src: int) -> Any:
        """``adj`` with empty destinations added or cut off at the end; itself where it states no size."""
        return adj

    @abstractmethod
    def keep_edges(self, adj: Any, keep: Tensor, values: Tensor | None) -> Any:
        """``adj`` with the edges where ``keep`` [E] is true, and with the values that ``values`` [E, ...] has for them."""

    def unweighted(self, adj: Any, num_dst: int, num_src: int, dtype: torch.dtype) -> Any:
        """``adj`` without weights, a matrix (with ones of type ``dtype``) where edges are stored by destination.

        No value is read, so that the host need not wait for a GPU.
        """
        return adj

    def tensors(self, adj: Any) -> list[Tensor]:
        """The dense tensors that state ``adj``: where none was written to, ``adj`` is what it was."""
        return [adj]

    def all_tensors(self, adj: Any) -> list[Tensor]:
        """:meth:`tensors`, with those that ``adj`` has computed for later."""
        return self.tensors(adj)

    def map_tensors(self, adj: Any, fn: Callable[[Tensor], Tensor]) -> Any:
        """A copy of ``adj`` with each of its tensors replaced by ``fn`` of it."""
        return fn(adj)

    def holder(self, adj: Any) -> Any:
        """The object with which to keep what was computed from ``adj``, or None where changes in place would go unnoticed."""
        return adj


class Matrix(Format):
    """A sparse matrix: rows are destinations, columns are sources, and columns ascend in each row."""

    @abstractmethod
    def make(self, like: Any, rowptr: Tensor, col: Tensor, values: Tensor | None, num_src: int) -> Any:
        """The matrix [R, num_src] with row pointers [R + 1], columns [E] and values [E, ...] or None."""

    def num_destinations(self, adj: Any) -> int:
        return int(adj.size(0))

    def sort_order(self, adj: Any) -> Literal["col"]:
        return "col"

    def from_edges(self, like: Any, edge_index: Tensor, values: Tensor | None, num_nodes: int) -> Any:
        return self.make(like, row_pointers(edge_index[1], num_nodes), edge_index[0], values, num_nodes)

    def batch(self, like: Any, values: Tensor | None, sub: _core.Subgraph, num_dst: int, num_rows: int) -> Any:
        values = None if values is None else entries(values, sub.e_id)
        return self.make(like, resized_pointers(sub.rowptr, num_dst), sub.col, values, num_rows)

    def keep_edges(self, adj: Any, keep: Tensor, values: Tensor | None) -> Any:
        rowptr, _, col = self.stored_edges(adj)
        kept_before = torch.cat([keep.new_zeros(1), keep]).cumsum(0)
        return self.make(adj, kept_before[rowptr], col[keep], None if values is None else values[keep], adj.size(1))


def entries(values: Tensor, index: Tensor) -> Tensor:
    """``values[index]`` for ids [M], in host memory on all threads: torch uses one for rows of one number, where it is faster."""
    is_shared = torch.get_num_threads() > 1 and _core.is_table(values)
    return _core.gather_rows(values, index) if is_shared else values.index_select(0, index)


def row_pointers(ids: Tensor, num_nodes: int) -> Tensor:
    """Where the edges of each node start, [N + 1], in the ascending ids of one of their ends, [E]."""
    nodes = torch.arange(num_nodes + 1, device=ids.device, dtype=ids.dtype)
    return torch.searchsorted(ids, nodes, out_int32=ids.dtype == torch.int32)


def resized_pointers(rowptr: Tensor, num_rows: int) -> Tensor:
    """Row pointers with empty rows added, or rows cut off, at the end, [num_rows + 1]; themselves where there are as many."""
    if rowptr.numel() == num_rows + 1:
        return rowptr
    rowptr = rowptr[: num_rows + 1]
    return torch.cat([rowptr, rowptr[-1:].expand(num_rows + 1 - rowptr.numel())])


def csr_tensor(rowptr: Tensor, col: Tensor, values: Tensor, size: tuple[int, ...]) -> Tensor:
    """A ``torch.sparse_csr`` matrix whose parts are known to be right: a check would make the host wait for a GPU."""
    return torch.sparse_csr_tensor(rowptr, col, values, size=size, device=rowptr.device, check_invariants=False)
