"""The edges of an adjacency on a GPU, as torch's sparse products take them: as a matrix, and as its transpose.

The backward pass of ``torch.sparse.mm`` sorts all edges, in each layer and step, and message passing over an ``edge_index``
copies a row to each edge. Here edges are sorted once a batch, on the device, and the host never waits to learn what ids are.
So it must know beforehand that a list of edges is in order, which is what a loader tells by :func:`tell_order`.
"""

from __future__ import annotations

import functools
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.utils.weak import WeakIdKeyDictionary

from torch_gas._util.version import version
from torch_gas.graph.format import csr_tensor, row_pointers
from torch_gas.graph.formats import format_of, is_csr
from torch_gas.graph.mirror import Need

_told: Any = WeakIdKeyDictionary()  # by adjacency: the versions of its tensors, and their order


class Order(NamedTuple):
    """What is known of the edges of a batch, which ascend by destination.

    Args:
        num_dst: destinations, B, or B + S where edges go into the halo as well.
        num_src: B + S.
        batch_size: B.
        num_inner: how many edges start at one of the batch's B nodes, and not in the halo.
    """

    num_dst: int
    num_src: int
    batch_size: int
    num_inner: int


def tell_order(adj: Any, copied: Any, num_dst: int, num_src: int, batch_size: int) -> None:
    """Says that the edges of a batch, ``adj`` in host memory, ascend by destination, for ``copied``, its copy on a device.

    It holds until somebody writes to ``copied``; of what is made from it, nothing is known.
    """
    holder = format_of(copied).holder(copied)
    if holder is not None:
        num_inner = int(torch.count_nonzero(format_of(adj).stored_edges(adj).src < batch_size))
        _told[holder] = _versions(copied), Order(num_dst, num_src, batch_size, num_inner)


def pass_on(adj: Any, resized: Any) -> None:
    """What was told of ``adj`` holds for ``resized`` as well, which differs in destinations without edges."""
    order = _order_of(adj)
    holder = None if order is None else format_of(resized).holder(resized)
    if holder is not None:
        _told[holder] = _versions(resized), order


def _versions(adj: Any) -> list[int]:
    return [version(tensor) for tensor in format_of(adj).tensors(adj)]


def _order_of(adj: Any) -> Order | None:
    """What was told of ``adj``, if it still holds."""
    holder = format_of(adj).holder(adj)
    versions, order = (None, None) if holder is None else _told.get(holder, (None, None))
    return order if order is not None and versions == _versions(adj) else None


class _Entries(NamedTuple):
    """Where the entries of a matrix are: row pointers [R + 1], columns [nnz], and where their numbers are, [nnz]."""

    rowptr: Tensor
    col: Tensor
    order: Tensor | None  # None where they are in the order of the entries


class DeviceEdges:
    """The edges of an adjacency on a device, by destination and, once somebody needs a gradient, by source.

    Args:
        rowptr: where each destination's edges start, [num_dst + 1].
        dst: destinations, [E], or None where only ``rowptr`` states them.
        src: sources, [E], of the same type.
        num_src: rows of what is multiplied.
        order: what is known of them.
    """

    needs: Need = ""  # there is nothing that a loader could compute ahead

    def __init__(self, rowptr: Tensor, dst: Tensor | None, src: Tensor, num_src: int, order: Order | None) -> None:
        # Detached: views would keep the adjacency alive, by which they are kept.
        self._by_destination = _Entries(rowptr.detach(), src.detach(), None)
        self._dst = None if dst is None else dst.detach()
        self.num_dst, self.num_src = rowptr.numel() - 1, num_src
        self._order = order
        # For autograd, which then finds out if one was written to before the backward pass.
        self.stated = [self._by_destination.col, *([self._by_destination.rowptr] if self._dst is None else [self._dst])]

    @classmethod
    def of(cls, adj: Any, num_dst: int, num_src: int) -> DeviceEdges | None:
        """Those of ``adj``, [num_dst, num_src]; None where it is no CSR matrix, and nobody says that its edges are in order."""
        known = format_of(adj)
        rowptr, dst, src = known.stored_edges(adj)
        order = _order_of(adj)
        if any(tensor.is_inference() for tensor in known.tensors(adj)):  # which autograd keeps none of
            return None
        if dst is None:
            # torch-sparse keeps the order by source itself.
            is_mine = is_csr(adj) and tuple(adj.shape[:2]) == (num_dst, num_src)
            return cls(rowptr, None, src, num_src, order) if is_mine else None
        # Scatter, unlike cuSPARSE, can be made to give the same bits each time.
        is_known = order is not None or known.sort_order(adj) == "col"
        if not is_known or torch.are_deterministic_algorithms_enabled():
            return None
        least, most = (known.num_destinations(adj), adj.sparse_size(0)) if order is None else order[:2]
        if most != num_src or least is None or least > num_dst:
            return None
        return cls(row_pointers(dst, num_dst), dst, src, num_src, order)

    @property
    def degrees(self) -> Tensor:
        """The number of edges into each destination, [num_dst]."""
        return self._by_destination.rowptr.diff()

    @functools.cached_property
    def transpose(self) -> _Entries:
        """The matrix [num_src, num_dst], by the only sort that there is."""
        (rowptr, src, _), dst = self._by_destination, self._dst
        if dst is None:
            dst = torch.repeat_interleave(rowptr.diff(), output_size=src.numel())
        if max(src.numel(), self.num_src) < 2**31:  # half as many bits to sort by
            src, dst = src.to(torch.int32), dst.to(torch.int32)
        ascending, order = src.sort(stable=True)
        return _Entries(row_pointers(ascending, self.num_src), dst.index_select(0, order), order)

    def _matrix(self, transposed: bool, num_rows: int | None) -> tuple[_Entries, int]:
        """The matrix or its transpose, cut after ``num_rows`` where the host knows their entries, and its columns."""
        if not transposed:
            return self._by_destination, self.num_src
        rowptr, col, positions = self.transpose
        if self._order is not None and num_rows == self._order.batch_size:
            end = self._order.num_inner
            rowptr, col = rowptr[: num_rows + 1], col[:end]
            positions = None if positions is None else positions[:end]
        return _Entries(rowptr, col, positions), self.num_dst

    def multiply(
        self, rows: Tensor, weight: Tensor | None, transposed: bool, num_rows: int | None = None, mean: bool = False
    ) -> Tensor:
        """As of :class:`~torch_gas.graph.product.Edges`."""
        (rowptr, col, order), num_cols = self._matrix(transposed, num_rows)
        if weight is None:
            weight = rows.new_ones(col.numel())
        elif order is not None:
            weight = weight.index_select(0, order)
        with torch.autocast(rows.device.type, enabled=False):
            out = torch.sparse.mm(_csr(rowptr, col, weight, num_cols), rows)
        if mean:
            out = out / rowptr.diff().clamp(min=1).to(out.dtype).view(-1, 1)
        return out if num_rows is None else out[:num_rows]

    def dots(self, left: Tensor, right: Tensor, transposed: bool) -> Tensor:
        """The dot product of the rows of ``left`` and ``right`` that each edge connects, [E]."""
        (rowptr, col, order), num_cols = self._matrix(transposed, None)
        matrix = _csr(rowptr, col, left.new_zeros(col.numel()), num_cols)
        with torch.autocast(left.device.type, enabled=False):
            found = torch.sparse.sampled_addmm(matrix, left, right.t(), beta=0).values()
        return found if order is None else torch.empty_like(found).index_copy_(0, order, found)


def _csr(rowptr: Tensor, col: Tensor, values: Tensor, num_cols: int) -> Tensor:
    return csr_tensor(rowptr, col, values, (rowptr.numel() - 1, num_cols))
