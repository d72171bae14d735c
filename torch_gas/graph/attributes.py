"""Rows of what a graph holds for each node or edge, sparse matrices among them.

Features of which few are not zero (bags of words) take little memory and time as a ``torch.sparse_csr`` matrix [N, C]: linear
layers multiply it as it is, and dropout draws a number for each stored entry only, as all others stay zero.
"""

from __future__ import annotations

from typing import Any, cast

import numpy as np
from torch import Tensor

from torch_gas.graph.edges import row_entries
from torch_gas.graph.format import csr_tensor, entries
from torch_gas.graph.formats import is_csr


def take(value: Any, index: Tensor, dim: int = 0) -> Any:
    """The entries ``index`` [M] along ``dim`` of a tensor, sparse matrix, array or list."""
    if is_csr(value):
        rowptr, entry = row_entries(value.crow_indices(), index.to(value.device))
        return csr_tensor(rowptr, value.col_indices()[entry], value.values()[entry], (index.numel(), *value.shape[1:]))
    if isinstance(value, Tensor):
        index = index.to(value.device)
        return entries(value, index) if dim == 0 else value.index_select(dim, index)
    if isinstance(value, np.ndarray):
        return value.take(index.cpu().numpy(), axis=dim)
    if isinstance(value, (list, tuple)):
        return type(value)(value[i] for i in index.tolist())
    return value[index]


def first_rows(x: Tensor, number: int) -> Tensor:
    """The first rows of a tensor or sparse matrix, which share its memory."""
    if not is_csr(x):
        return x[:number]
    rowptr, end = x.crow_indices()[: number + 1], int(x.crow_indices()[number])
    return csr_tensor(rowptr, x.col_indices()[:end], x.values()[:end], (number, *x.shape[1:]))


def with_values(x: Tensor, values: Tensor) -> Tensor:
    """The sparse matrix with other values at the places of ``x``, which stays its :func:`pattern`."""
    out: Any = csr_tensor(x.crow_indices(), x.col_indices(), values, x.shape)
    out._pattern = pattern(x)
    return cast(Tensor, out)


def pattern(x: Tensor) -> Tensor:
    """The sparse matrix whose places ``x`` took over."""
    return getattr(x, "_pattern", x)
