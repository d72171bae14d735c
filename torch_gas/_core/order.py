"""Orders of edges: by destination, and by source."""

from __future__ import annotations

import torch
from torch import Tensor

from torch_gas._core import checks
from torch_gas._core.build import _C
from torch_gas._core.checks import FLOAT_TYPES, ID_BITS
from torch_gas._core.memory import addresses, empty


def transpose(
    rowptr: Tensor, col: Tensor, num_cols: int, *, dtype: torch.dtype | None = None
) -> tuple[Tensor, Tensor, Tensor]:
    """Transposes a CSR matrix [R, num_cols].

    Equivalent to a stable sort of the entries by column.

    Args:
        rowptr: Row pointers [R+1], int32 or int64.
        col: Column ids [nnz], same type.
        num_cols: Number of columns.
        dtype: Type of the result, int32 or int64; that of `col` by default.

    Returns:
        `colptr` [num_cols+1], `row` [nnz] and `perm` [nnz], the position in `col` of each entry of the transpose.

    Raises:
        TypeError: An argument is no tensor or has a wrong type.
        ValueError: A shape is wrong, `rowptr` is no row pointer, or R does not fit its type.
        IndexError: A column lies outside 0 .. num_cols-1.

    Example:
        >>> import torch
        >>> [t.tolist() for t in transpose(torch.tensor([0, 2, 3]), torch.tensor([0, 2, 0]), 3)]
        [[0, 2, 2, 3], [0, 1, 0], [0, 2, 1]]
    """
    call = "transpose"
    rowptr, col, num_rows = checks.csr(call, rowptr, col)
    checks.size(call, "num_cols", num_cols)
    dtype = col.dtype if dtype is None else dtype
    if dtype not in tuple(ID_BITS):  # by comparison, because it may be anything
        raise TypeError(f"{call}: `dtype` must be one of {checks.names(ID_BITS)}, but is {dtype}")
    colptr, row, perm = (empty(size, dtype) for size in (num_cols + 1, col.numel(), col.numel()))
    given = (ID_BITS[rowptr.dtype], *addresses(rowptr, col), num_rows, num_cols, col.numel())
    _C.transpose(*given, ID_BITS[dtype], *addresses(colptr, row, perm), torch.get_num_threads())
    return colptr, row, perm


def own_transpose(rowptr: Tensor, col: Tensor, weight: Tensor | None = None) -> Tensor | None:
    """Finds out whether the first R columns of a CSR matrix [R, C] are a matrix that is its own transpose, order and all.

    Equivalent to a comparison with what :func:`transpose` makes of these columns, in a fourth of its time on one thread, or at
    once where the first rows differ.

    Args:
        rowptr: Row pointers [R+1], int32 or int64.
        col: Column ids [nnz], same type. Those of R and above are left out, and may have any value.
        weight: Numbers of the entries [nnz], float32 or float64, which must then have the same bits as those of the transpose.

    Returns:
        Where the entries of these columns end in each row, [R], of the type of `col`. None where the matrix is another than its
        transpose, or columns do not ascend in each row.

    Raises:
        TypeError: An argument is no tensor or has a wrong type.
        ValueError: A shape is wrong, or `rowptr` is no row pointer.

    Example:
        >>> import torch
        >>> own_transpose(torch.tensor([0, 2, 3]), torch.tensor([1, 2, 0])).tolist()
        [1, 3]
    """
    call = "own_transpose"
    rowptr, col, num_rows = checks.csr(call, rowptr, col)
    dtype = torch.float32
    if weight is not None:
        weight = checks.numbers(call, "weight", weight, torch.float32, torch.float64)
        checks.length(call, "weight", weight, col.numel())
        dtype = weight.dtype
    end = empty(num_rows, col.dtype)
    given = (ID_BITS[rowptr.dtype], *addresses(rowptr, col, weight), FLOAT_TYPES[dtype], num_rows, col.numel())
    return end if _C.own_transpose(*given, *addresses(end)) else None


def row_pointers(ids: Tensor, num_nodes: int) -> Tensor | None:
    """Finds out whether ids ascend, and where those of each node start.

    Args:
        ids: Ids [E], int32 or int64.
        num_nodes: Number of nodes N.

    Returns:
        Row pointers [N+1], of the type of `ids`. None where an id is smaller than the one before, or lies outside 0 .. N-1.

    Raises:
        TypeError: An argument has a wrong type.
        ValueError: `ids` is no vector on the host, or E does not fit its type.

    Example:
        >>> import torch
        >>> row_pointers(torch.tensor([0, 0, 2]), 4).tolist()
        [0, 2, 2, 3, 3]
    """
    call = "row_pointers"
    ids = checks.ids(call, "ids", ids)
    checks.size(call, "num_nodes", num_nodes)
    rowptr = empty(num_nodes + 1, ids.dtype)
    given = (ID_BITS[ids.dtype], *addresses(ids), ids.numel(), num_nodes)
    return rowptr if _C.row_pointers(*given, *addresses(rowptr), torch.get_num_threads()) else None


def to_csr(src: Tensor, dst: Tensor, num_nodes: int) -> tuple[Tensor, Tensor, Tensor]:
    """Sorts edges by destination, keeping the order of those with the same one.

    Equivalent to a stable sort of `dst`.

    Args:
        src: Sources [E], int32 or int64.
        dst: Destinations [E], same type.
        num_nodes: Number of nodes N.

    Returns:
        `rowptr` [N+1], `col` [E] and `perm` [E], the position in `src` of each entry of `col`, all of the type of `dst`.

    Raises:
        TypeError: An argument is no tensor or has a wrong type.
        ValueError: A shape is wrong, or E does not fit the type of `dst`.
        IndexError: An id lies outside 0 .. N-1.

    Example:
        >>> import torch
        >>> [t.tolist() for t in to_csr(torch.tensor([0, 1, 2]), torch.tensor([2, 0, 2]), 3)]
        [[0, 1, 1, 3], [1, 0, 2], [1, 0, 2]]
    """
    call = "to_csr"
    src, dst = checks.ids(call, "src", src), checks.ids(call, "dst", dst, like=("src", src))
    checks.same_length(call, "src", src, "dst", dst)
    checks.size(call, "num_nodes", num_nodes)
    rowptr, col, perm = (empty(size, src.dtype) for size in (num_nodes + 1, src.numel(), src.numel()))
    given = (ID_BITS[src.dtype], *addresses(src, dst), num_nodes, src.numel())
    _C.to_csr(*given, *addresses(rowptr, col, perm), torch.get_num_threads())
    return rowptr, col, perm
