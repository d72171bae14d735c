"""The edges of an adjacency in any format: as pairs, by destination, or a few at a time; and adjacencies made from them."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, NamedTuple, cast

import torch
from torch import Tensor
from torch_geometric.utils import degree

from torch_gas import _core
from torch_gas.graph.checks import check_ids
from torch_gas.graph.formats import format_of

EDGES_AT_ONCE = 1 << 18  # whose int64 copies and what is computed of them stay within some MB


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


def coo(adj: Any) -> tuple[Tensor, Tensor, Tensor | None]:
    """(sources [E], destinations [E], values [E] or None) in the order in which ``adj`` stores its edges."""
    known = format_of(adj)
    rowptr, dst, src = known.stored_edges(adj)
    if dst is None:
        dst = torch.repeat_interleave(rowptr.diff(), output_size=src.numel())
    return src.to(torch.int64), dst.to(torch.int64), known.values(adj)


def stored_csr(adj: Any, num_nodes: int) -> CSR | None:
    """The edges of ``adj``, if it holds them sorted by destination; None if not, or where one ends at no node."""
    known = format_of(adj)
    rowptr, dst, src = known.stored_edges(adj)
    if dst is None:
        return CSR(rowptr, src, known.values(adj), None)
    pointers = _core.row_pointers(dst, num_nodes)
    return None if pointers is None else CSR(pointers, src.contiguous(), None, None)


def to_csr(adj: Any, num_nodes: int) -> CSR:
    """The edges of ``adj`` sorted by destination; no copy where ``adj`` holds them so already."""
    stored = stored_csr(adj, num_nodes)
    if stored is not None:
        return stored
    _, dst, src = format_of(adj).stored_edges(adj)
    rowptr, col, perm = _core.to_csr(src, cast(Tensor, dst), num_nodes)
    return CSR(rowptr, col, None, perm)


def degrees(adj: Any, num_dst: int) -> Tensor:
    """The number of edges into each destination, [num_dst], int64."""
    rowptr, dst, _ = format_of(adj).stored_edges(adj)
    if dst is None:
        return cast(Tensor, rowptr.diff().to(torch.int64))
    return cast(Tensor, degree(dst.to(torch.int64), num_dst, dtype=torch.int64))


def from_coo(
    like: Any, src: Tensor, dst: Tensor, value: Tensor | None, num_nodes: int, order: Tensor | None = None
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
    return format_of(like).from_edges(like, torch.stack([src, dst]), value, num_nodes), order


def _sort_key(adj: Any, src: Tensor, dst: Tensor, num_nodes: int) -> Tensor | None:
    """Ascends along the edges as ``adj`` must hold them; None if any order will do."""
    sort_order = format_of(adj).sort_order(adj)
    if sort_order is None:
        return None
    return dst * num_nodes + src if sort_order == "col" else src * num_nodes + dst


def check_edges(adj: Any, num_nodes: int, where: str) -> None:
    """Raises IndexError, with the value, where an edge starts or ends at no node of the graph."""
    _, dst, src = format_of(adj).stored_edges(adj)
    for ids in (src, dst):
        if ids is not None:
            check_ids(ids, num_nodes, where)


def is_ascending(ids: Tensor) -> bool:
    """Whether no id is smaller than the one before."""
    starts = range(0, ids.numel(), EDGES_AT_ONCE)
    pieces = (ids[start : start + EDGES_AT_ONCE + 1] for start in starts)
    return all(bool((piece[1:] >= piece[:-1]).all()) for piece in pieces)


def is_sorted(adj: Any, num_nodes: int) -> bool:
    """Whether edges are in the order in which :func:`from_coo` would put them by default."""
    last = -1
    for _, src, dst in edge_pieces(adj):
        key = _sort_key(adj, src, dst, num_nodes)
        if key is None:
            return True
        if int(key[0]) < last or not is_ascending(key):
            return False
        last = int(key[-1])
    return True


def edge_pieces(adj: Any) -> Iterator[tuple[slice, Tensor, Tensor]]:
    """The edges in the order in which ``adj`` stores them, in pieces, so that no copy of all of them is made.

    Yields:
        The positions of the piece, its sources and its destinations, int64.
    """
    stored = format_of(adj).stored_edges(adj)
    for begin in range(0, stored.src.numel(), EDGES_AT_ONCE):
        piece = slice(begin, min(begin + EDGES_AT_ONCE, stored.src.numel()))
        src = stored.src[piece].to(torch.int64)
        if stored.dst is not None:
            yield piece, src, stored.dst[piece].to(torch.int64)
            continue
        ends = torch.tensor([piece.start, piece.stop - 1], device=src.device, dtype=stored.rowptr.dtype)
        first, last = (torch.searchsorted(stored.rowptr, ends, right=True) - 1).tolist()
        count = stored.rowptr[first : last + 2].clamp(piece.start, piece.stop).diff()
        rows = torch.arange(first, last + 1, device=src.device)
        yield piece, src, torch.repeat_interleave(rows, count, output_size=src.numel())


def row_entries(rowptr: Tensor, rows: Tensor) -> tuple[Tensor, Tensor]:
    """Row pointers [M + 1] of some rows [M] of a matrix, and the positions of their entries in it, one row after the other."""
    start = rowptr[rows]
    count = rowptr[rows + 1] - start  # and not of all rows, which may be many more
    pointers = torch.cat([count.new_zeros(1), count.cumsum(0)])
    total = int(pointers[-1])
    shift = torch.repeat_interleave(start - pointers[:-1], count, output_size=total)
    return pointers.to(rowptr.dtype), shift + torch.arange(total, device=rowptr.device)


def row_pieces(rowptr: Tensor) -> Iterator[tuple[int, int]]:
    """Ranges of rows that together have few edges each, or are a single row; they cover all rows."""
    first, num_rows = 0, rowptr.numel() - 1
    while first < num_rows:
        end = int(rowptr[first]) + EDGES_AT_ONCE
        last = max(int(torch.searchsorted(rowptr, end, right=True)) - 1, first + 1)
        yield first, last
        first = last
