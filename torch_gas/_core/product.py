"""Sparse matrices times rows, attention coefficients, and their gradients."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from torch_gas._core import checks
from torch_gas._core.build import _C
from torch_gas._core.checks import FLOAT_TYPES, ID_BITS
from torch_gas._core.memory import addresses, empty

_TYPES = (torch.float32, torch.float64)
PRODUCT_TYPES = (*_TYPES, torch.bfloat16)


class Sparse(NamedTuple):
    """A sparse matrix [R, num_cols] in CSR form, of whose entries others keep the numbers.

    Attributes:
        rowptr: Row pointers [R+1], int32 or int64.
        col: Column ids [nnz], same type.
        num_cols: Number of columns.
        order: Where the numbers of each entry are, [nnz], of the same type and all different; in the order of the entries
            by default. So a matrix and its transpose share them.
        num_numbers: How many numbers others keep; nnz by default, more for some rows of a matrix.
        ends: Where the entries of each row end, [R], of the same type; where those of the next one start by default. What lies
            between is left out: such a matrix can be multiplied with rows, and nothing else.
    """

    rowptr: Tensor
    col: Tensor
    num_cols: int
    order: Tensor | None = None
    num_numbers: int | None = None
    ends: Tensor | None = None

    @property
    def size(self) -> int:
        """How many numbers others keep."""
        return self.col.numel() if self.num_numbers is None else self.num_numbers

    def first(self, num_rows: int) -> Sparse:
        """The first rows of the matrix, which share its memory and the numbers of its entries."""
        if num_rows == self.rowptr.numel() - 1:
            return self
        rowptr = self.rowptr[: num_rows + 1]
        end = int(rowptr[-1])
        order = None if self.order is None else self.order[:end]
        ends = None if self.ends is None else self.ends[:num_rows]
        return Sparse(rowptr, self.col[:end], self.num_cols, order, self.size, ends)


def product(
    matrix: Sparse, rows: Tensor, weight: Tensor | None = None, mean: bool = False, gate: Tensor | None = None
) -> Tensor:
    """Multiplies a sparse matrix with rows, for each head by weights of its own.

    Args:
        matrix: The matrix [R, num_cols].
        rows: What is multiplied, [num_cols, C] or [num_cols, H, C], float32, float64 or bfloat16.
        weight: The entries of the matrix, [nnz] or [nnz, H], of the type of `rows`, but float32 for rows of bfloat16; ones by
            default.
        mean: Whether each sum is divided by the number of entries of its row.
        gate: Numbers of the result's shape and type, where it is zero unless they are positive: the gradient through a ReLU.

    Returns:
        The sums [R, C] or [R, H, C] in the type of `rows`, the same for any number of threads. Rows of bfloat16 are summed up
        in float32, and sums are rounded once.

    Raises:
        TypeError: An argument has a wrong type.
        ValueError: A shape is wrong or `matrix.rowptr` is no row pointer.
        IndexError: A column or a position in `matrix.order` is out of range.

    Example:
        >>> import torch
        >>> matrix = Sparse(torch.tensor([0, 2, 3]), torch.tensor([0, 2, 1]), num_cols=3)
        >>> product(matrix, torch.tensor([[1.0], [2.0], [4.0]])).tolist()
        [[5.0], [2.0]]
    """
    call = "product"
    checked, num_rows = checked_sparse(call, matrix, is_part=True)
    rows, heads, width = checked_rows(call, "rows", rows, matrix.num_cols, PRODUCT_TYPES)
    if weight is not None:
        dtype = torch.float32 if rows.dtype == torch.bfloat16 else rows.dtype
        weight = _entries(call, "weight", weight, matrix, heads, dtype)
    out = empty((num_rows, *rows.shape[1:]), rows.dtype)
    if gate is not None:
        gate, *_ = checked_rows(call, "gate", gate, num_rows, PRODUCT_TYPES)
        checks.same_type(call, "gate", gate, "rows", rows)
        if gate.shape != out.shape:
            raise ValueError(f"{call}: `gate` must have shape {list(out.shape)}, but has {list(gate.shape)}")
    checks.kind(call, "mean", mean, bool, "True or False")
    memory = addresses(weight, rows, gate, out)
    _C.product(argument(checked, rows), *memory, heads, width, mean, torch.get_num_threads())
    return out


def entry_dots(matrix: Sparse, left: Tensor, right: Tensor) -> Tensor:
    """The dot product of the rows that each entry of a matrix connects, for each head.

    The gradient of :func:`product` with regard to the weights, if `left` is that of the result and `right` its `rows`.

    Args:
        matrix: The matrix [R, num_cols].
        left: Rows [R, C] or [R, H, C], float32 or float64.
        right: Rows [num_cols, C] or [num_cols, H, C], of the same type.

    Returns:
        The dot products [nnz] or [nnz, H], the same for any number of threads.

    Raises:
        TypeError, ValueError, IndexError: As in :func:`product`.

    Example:
        >>> import torch
        >>> matrix = Sparse(torch.tensor([0, 2]), torch.tensor([0, 1]), num_cols=2)
        >>> entry_dots(matrix, torch.tensor([[1.0, 2.0]]), torch.tensor([[1.0, 0.0], [0.0, 1.0]])).tolist()
        [1.0, 2.0]
    """
    call = "entry_dots"
    checked, num_rows = checked_sparse(call, matrix)
    left, heads, width = checked_rows(call, "left", left, num_rows)
    right, *_ = checked_rows(call, "right", right, matrix.num_cols)
    checks.same_type(call, "right", right, "left", left)
    if left.shape[1:] != right.shape[1:]:
        raise ValueError(
            f"{call}: rows of `left` and `right` must have one shape, but have {list(left.shape[1:])} and "
            f"{list(right.shape[1:])}"
        )
    out = empty((matrix.col.numel(), *left.shape[1:-1]), left.dtype)
    _C.entry_dots(argument(checked, left), *addresses(left, right, out), heads, width, torch.get_num_threads())
    return out


def entry_softmax(matrix: Sparse, left: Tensor, right: Tensor, slope: float) -> Tensor:
    """Softmax over the entries of each row of `leaky_relu(left[row] + right[column])`, for each head.

    Attention coefficients of GAT (https://arxiv.org/abs/1710.10903, Equation 3).

    Args:
        matrix: The matrix [R, num_cols].
        left: A number for each row, [R, H], float32 or float64.
        right: A number for each column, [num_cols, H], of the same type.
        slope: Factor of negative numbers.

    Returns:
        The coefficients [nnz, H], the same for any number of threads. They sum to 1 over each row that has entries.

    Raises:
        TypeError, ValueError, IndexError: As in :func:`product`.

    Example:
        >>> import torch
        >>> matrix = Sparse(torch.tensor([0, 2]), torch.tensor([0, 1]), num_cols=2)
        >>> entry_softmax(matrix, torch.zeros(1, 1), torch.ones(2, 1), slope=0.2).tolist()
        [[0.5], [0.5]]
    """
    call = "entry_softmax"
    checked, left, right = _scores(call, matrix, left, right, slope)
    heads = left.shape[1]
    out = empty((matrix.col.numel(), heads), left.dtype)
    _C.entry_softmax(
        argument(checked, left), *addresses(left, right), slope, *addresses(out), heads, torch.get_num_threads()
    )
    return out


def entry_softmax_backward(
    matrix: Sparse, left: Tensor, right: Tensor, slope: float, softmax: Tensor, grad: Tensor
) -> tuple[Tensor, Tensor]:
    """The gradients of :func:`entry_softmax`.

    Args:
        matrix, left, right, slope: As given to :func:`entry_softmax`.
        softmax: What it returned, [nnz, H].
        grad: The gradient of that, [nnz, H].

    Returns:
        The gradient of `left`, [R, H], and that of `left[row] + right[column]` for each entry, [nnz, H].

    Raises:
        TypeError, ValueError, IndexError: As in :func:`product`.

    Example:
        >>> import torch
        >>> matrix = Sparse(torch.tensor([0, 2]), torch.tensor([0, 1]), num_cols=2)
        >>> scores, grad = (torch.zeros(1, 1), torch.ones(2, 1)), torch.tensor([[1.0], [0.0]])
        >>> softmax = entry_softmax(matrix, *scores, slope=0.2)
        >>> [each.tolist() for each in entry_softmax_backward(matrix, *scores, 0.2, softmax, grad)]
        [[[0.0]], [[0.25], [-0.25]]]
    """
    call = "entry_softmax_backward"
    checked, left, right = _scores(call, matrix, left, right, slope)
    heads = left.shape[1]
    softmax = _entries(call, "softmax", softmax, matrix, heads, left.dtype)
    grad = _entries(call, "grad", grad, matrix, heads, left.dtype)
    grad_left, grad_entry = empty(left.shape, left.dtype), empty(softmax.shape, left.dtype)
    results = addresses(softmax, grad, grad_left, grad_entry)
    _C.entry_softmax_backward(
        argument(checked, left), *addresses(left, right), slope, *results, heads, torch.get_num_threads()
    )
    return grad_left, grad_entry


def checked_sparse(call: str, matrix: Sparse, *, is_part: bool = False) -> tuple[Sparse, int]:
    """The matrix with contiguous tensors, and its number of rows; `is_part` allows more numbers than entries."""
    checks.kind(call, "matrix", matrix, Sparse, "a Sparse")
    rowptr, col, num_rows = checks.csr(call, matrix.rowptr, matrix.col)
    checks.size(call, "num_cols", matrix.num_cols)
    order = matrix.order
    if order is not None:
        order = checks.ids(call, "order", order, like=("rowptr", rowptr))
        checks.length(call, "order", order, col.numel())
    checks.size(call, "num_numbers", matrix.size)
    if matrix.size < col.numel() or (matrix.size > col.numel() and not is_part):
        raise ValueError(
            f"{call}: there must be a number for each entry, {col.numel()}, but `num_numbers` is {matrix.size}"
        )
    ends = matrix.ends
    if ends is not None:
        ends = checks.ids(call, "ends", ends, like=("rowptr", rowptr))
        checks.length(call, "ends", ends, num_rows)
        if not is_part:
            raise ValueError(f"{call}: there must be a number for each entry, but `ends` leaves some out")
    return Sparse(rowptr, col, matrix.num_cols, order, matrix.size, ends), num_rows


def argument(matrix: Sparse, elements: Tensor) -> object:
    """A checked matrix as the core takes it, with the type of what it is multiplied with."""
    types = ID_BITS[matrix.rowptr.dtype], FLOAT_TYPES[elements.dtype]
    memory = addresses(matrix.rowptr, matrix.col, matrix.order, matrix.ends)
    return _C.Sparse(*types, *memory, matrix.rowptr.numel() - 1, matrix.num_cols, matrix.col.numel(), matrix.size)


def checked_rows(
    call: str, name: str, rows: Tensor, num_rows: int, types: tuple[torch.dtype, ...] = _TYPES
) -> tuple[Tensor, int, int]:
    """Contiguous rows, their heads and the width of a head."""
    checks.host(call, name, rows)
    checks.element_type(call, name, rows, types)
    if rows.dim() not in (2, 3) or rows.shape[0] != num_rows:
        raise ValueError(
            f"{call}: `{name}` must have shape [{num_rows}, C] or [{num_rows}, H, C], but has {list(rows.shape)}"
        )
    return checks.packed(call, name, rows), rows.shape[1] if rows.dim() == 3 else 1, rows.shape[-1]


def _entries(call: str, name: str, value: Tensor, matrix: Sparse, heads: int, dtype: torch.dtype) -> Tensor:
    """Contiguous numbers for each entry and head."""
    checks.host(call, name, value)
    if value.dtype != dtype:
        raise TypeError(f"{call}: `{name}` must be {dtype}, which goes with the rows, but is {value.dtype}")
    size = matrix.size
    if value.shape != (size, heads) and (heads > 1 or value.shape != (size,)):
        raise ValueError(
            f"{call}: `{name}` must have a number for each entry and head, [{size}, {heads}], but has shape "
            f"{list(value.shape)}"
        )
    return checks.packed(call, name, value)


def _scores(call: str, matrix: Sparse, left: Tensor, right: Tensor, slope: float) -> tuple[Sparse, Tensor, Tensor]:
    """The checked matrix, and contiguous scores of its rows and columns."""
    checked, num_rows = checked_sparse(call, matrix)
    for name, value, size in (("left", left, num_rows), ("right", right, matrix.num_cols)):
        checks.host(call, name, value)
        checks.element_type(call, name, value, _TYPES)
        if value.dim() != 2 or value.shape[0] != size or value.shape[1] != left.shape[1]:
            raise ValueError(
                f"{call}: `{name}` must have a number for each of {size} rows and each head of `left`, but has shape "
                f"{list(value.shape)}"
            )
    checks.same_type(call, "right", right, "left", left)
    checks.number(call, "slope", slope)
    return checked, checks.packed(call, "left", left), checks.packed(call, "right", right)
