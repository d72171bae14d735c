"""The simple symmetric graph that partitioners need."""

from __future__ import annotations

import torch
from torch import Tensor

from torch_gas._core import checks
from torch_gas._core.build import _C
from torch_gas._core.checks import ID_BITS
from torch_gas._core.memory import addresses, empty


def adjacent_pairs(
    src: Tensor,
    dst: Tensor | None,
    rowptr: Tensor | None,
    num_nodes: int,
    weight: Tensor | None = None,
    dtype: torch.dtype = torch.int64,
) -> tuple[Tensor, Tensor, Tensor | None]:
    """The pairs of nodes that edges join, without self-loops and edges of weight 0.

    Equivalent to `torch.stack([torch.minimum(src, dst), torch.maximum(src, dst)]).unique(dim=1)`.

    Args:
        src: Sources [E], int32 or int64.
        dst: Destinations [E], same type; or None, with `rowptr`.
        rowptr: Row pointers [N+1] of edges sorted by destination, same type; or None, with `dst`.
        num_nodes: Number of nodes N.
        weight: Non-negative weights [E], float64.
        dtype: Type of `col`, int32 or int64.

    Returns:
        `rowptr` [N+1], int64, and `col` [U], ascending in each row and greater than it; with weights, their sums [U],
        float64. `col` and the sums are views of memory for E elements.

    Raises:
        TypeError: An argument is no tensor or has a wrong type.
        ValueError: A shape is wrong, `rowptr` is no row pointer, or ids do not fit `dtype`.
        IndexError: An id lies outside 0 .. N-1.

    Example:
        >>> import torch
        >>> src, dst = torch.tensor([0, 2, 1, 1]), torch.tensor([1, 1, 0, 1])
        >>> rowptr, col, _ = adjacent_pairs(src, dst, None, num_nodes=3)
        >>> rowptr.tolist(), col.tolist()
        ([0, 1, 2, 2], [1, 2])
    """
    call = "adjacent_pairs"
    src = checks.ids(call, "src", src)
    checks.size(call, "num_nodes", num_nodes)
    if (dst is None) == (rowptr is None):
        raise ValueError(f"{call}: one of `dst` and `rowptr` must be given, and the other be None")
    if dst is not None:
        dst = checks.ids(call, "dst", dst, like=("src", src))
        checks.length(call, "dst", dst, src.numel())
    if rowptr is not None:
        rowptr = checks.ids(call, "rowptr", rowptr, like=("src", src))
        checks.length(call, "rowptr", rowptr, num_nodes + 1)
    weight = None if weight is None else checks.numbers(call, "weight", weight, torch.float64, size=src.numel())
    if dtype not in tuple(ID_BITS):  # by comparison, because it may be anything
        raise TypeError(f"{call}: `dtype` must be one of {checks.names(ID_BITS)}, but is {dtype}")
    out_rowptr = empty(num_nodes + 1, torch.int64)
    col = empty(src.numel(), dtype)
    sums = None if weight is None else empty(weight.shape, weight.dtype)
    given = (ID_BITS[src.dtype], *addresses(rowptr, dst, src), num_nodes, src.numel(), *addresses(weight))
    size = _C.adjacent_pairs(*given, ID_BITS[dtype], *addresses(out_rowptr, col, sums), torch.get_num_threads())
    return out_rowptr, col[:size], None if sums is None else sums[:size]


def symmetric(rowptr: Tensor, col: Tensor, weight: Tensor | None = None) -> tuple[Tensor, Tensor, Tensor | None]:
    """Both directions of pairs of nodes, as a CSR matrix whose rows ascend.

    Equivalent to the sum of the matrix and its transpose.

    Args:
        rowptr: Row pointers [N+1] from `adjacent_pairs`, int64.
        col: Column ids [U] from there, int32 or int64.
        weight: A weight for each pair [U], int64.

    Returns:
        `rowptr` [N+1], `col` [2 U] and, with weights, `weight` [2 U], all of the type of `col`, which must hold them.

    Raises:
        TypeError: An argument is no tensor or has a wrong type.
        ValueError: A shape is wrong, `rowptr` is no row pointer, or 2 U does not fit the type of `col`.
        IndexError: A column lies outside 0 .. N-1.

    Example:
        >>> import torch
        >>> rowptr, col, _ = symmetric(torch.tensor([0, 1, 2, 2]), torch.tensor([1, 2]))
        >>> rowptr.tolist(), col.tolist()
        ([0, 1, 3, 4], [1, 0, 2, 1])
    """
    call = "symmetric"
    col = checks.ids(call, "col", col)
    rowptr = checks.numbers(call, "rowptr", rowptr, torch.int64)
    num_nodes = checks.num_rows(call, rowptr)
    weight = None if weight is None else checks.numbers(call, "weight", weight, torch.int64, size=col.numel())
    out_rowptr, out_col = empty(num_nodes + 1, col.dtype), empty(2 * col.numel(), col.dtype)
    out_weight = None if weight is None else empty(out_col.shape, col.dtype)
    given = (ID_BITS[col.dtype], *addresses(rowptr, col, weight), num_nodes, col.numel())
    _C.symmetric(*given, *addresses(out_rowptr, out_col, out_weight))
    return out_rowptr, out_col, out_weight
