"""Self-loops and normalisation of a sparse matrix, some rows at a time.

Nothing but the result is as large as the matrix: pairs of 64-bit ids of all its edges would be several times larger.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor

from torch_gas.graph.edges import CSR, row_pieces


def transform(csr: CSR, fill: float | None, normalise: bool) -> CSR:
    r"""``csr`` with a self-loop of weight ``fill`` at each node that has none, and normalised.

    Normalised, it is :math:`D^{-1/2} (A + I) D^{-1/2}`, without the :math:`I` where ``fill`` is None. Columns ascend.
    """
    num_nodes = csr.rowptr.numel() - 1
    count = csr.rowptr.new_zeros(num_nodes)
    degree = csr.value.new_zeros(num_nodes) if normalise and csr.value is not None else None
    for dst, _, value in _rows(csr, fill):
        count.index_add_(0, dst, torch.ones_like(dst, dtype=count.dtype))
        if degree is not None:
            degree.index_add_(0, dst, value)
    scale = None if degree is None else degree.pow(-0.5).masked_fill_(degree == 0, 0)
    rowptr = torch.cat([count.new_zeros(1), count.cumsum(0).to(count.dtype)])
    num_edges = int(rowptr[-1])
    col = csr.col.new_empty(num_edges)
    values = None if csr.value is None else csr.value.new_empty(num_edges, *csr.value.shape[1:])
    done = 0
    for dst, src, value in _rows(csr, fill):
        if fill is not None:
            order = (dst * num_nodes + src).argsort(stable=True)
            dst, src, value = dst[order], src[order], None if value is None else value[order]
        if scale is not None and value is not None:
            value = scale[src] * value * scale[dst]
        chunk = slice(done, done := done + src.numel())
        col[chunk] = src.to(col.dtype)
        if values is not None:
            values[chunk] = value
    return CSR(rowptr, col, values, None)


def _rows(csr: CSR, fill: float | None) -> Iterator[tuple[Tensor, Tensor, Any]]:
    """Destinations, sources and values of the edges of some rows after the other.

    With ``fill``, each row has one self-loop, its own or a new one; these come after the other edges.
    """
    rowptr = csr.rowptr
    for first, last in row_pieces(rowptr):
        edges, node = slice(int(rowptr[first]), int(rowptr[last])), torch.arange(first, last, device=rowptr.device)
        dst = torch.repeat_interleave(node, rowptr[first : last + 1].diff())
        src = csr.col[edges].to(torch.int64)
        value = None if csr.value is None else csr.value[edges]
        if fill is not None:
            is_loop = src == dst
            if value is not None:
                loops = value.new_full((node.numel(), *value.shape[1:]), fill)
                loops[dst[is_loop] - first] = value[is_loop]
                value = torch.cat([value[~is_loop], loops])
            dst, src = torch.cat([dst[~is_loop], node]), torch.cat([src[~is_loop], node])
        yield dst, src, value
