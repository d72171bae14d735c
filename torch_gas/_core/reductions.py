"""Means, variances, minima and maxima of the rows that entries of a sparse matrix lead to, in one pass, and their gradient."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from torch_gas._core import checks
from torch_gas._core.build import _C
from torch_gas._core.memory import addresses, empty
from torch_gas._core.product import Sparse, argument, checked_rows, checked_sparse


class Reductions(NamedTuple):
    """What :func:`reductions` returns; [R, C] each, zeros in rows without entries, or None where nobody asked for it.

    Attributes:
        mean: Means.
        variance: Means of the squared differences from the mean.
        least: Minima.
        least_ties: How many entries have the minimum.
        most: Maxima.
        most_ties: How many entries have the maximum.
    """

    mean: Tensor | None
    variance: Tensor | None
    least: Tensor | None
    least_ties: Tensor | None
    most: Tensor | None
    most_ties: Tensor | None


class ReductionsGradient(NamedTuple):
    """What the gradient of a row x consists of, summed up over the rows of the matrix that x was reduced to.

    It is `constant + slope * x`, and `grad_least` and `grad_most` where x is `least` and `most`; [R, C] each, or None. A
    minimum or maximum and its gradient come together.
    """

    constant: Tensor | None = None
    slope: Tensor | None = None
    least: Tensor | None = None
    grad_least: Tensor | None = None
    most: Tensor | None = None
    grad_most: Tensor | None = None


def reductions(
    matrix: Sparse, rows: Tensor, *, mean: bool = False, variance: bool = False, least: bool = False, most: bool = False
) -> Reductions:
    """Reduces the rows that the entries of each row of a matrix lead to, in several ways at once.

    Args:
        matrix: The matrix [R, num_cols], whose values are not read.
        rows: What is reduced, [num_cols, C], float32 or float64.
        mean: Whether means are asked for.
        variance: Whether variances are, which come with means.
        least: Whether minima are.
        most: Whether maxima are.

    Returns:
        What was asked for, the same for any number of threads.

    Raises:
        TypeError: An argument has a wrong type.
        ValueError: A shape is wrong or `matrix.rowptr` is no row pointer.
        IndexError: A column or a position in `matrix.order` is out of range.

    Example:
        >>> import torch
        >>> matrix = Sparse(torch.tensor([0, 2, 3]), torch.tensor([0, 2, 1]), num_cols=3)
        >>> found = reductions(matrix, torch.tensor([[1.0], [2.0], [4.0]]), mean=True, most=True)
        >>> found.mean.tolist(), found.most.tolist()
        ([[2.5], [2.0]], [[4.0], [2.0]])
    """
    call = "reductions"
    checked, num_rows = checked_sparse(call, matrix, is_part=True)
    rows = _rows(call, "rows", rows, matrix.num_cols)
    for name, flag in (("mean", mean), ("variance", variance), ("least", least), ("most", most)):
        checks.kind(call, name, flag, bool, "a bool")
    asked = (mean or variance, variance, least, least, most, most)
    out = Reductions(*[empty((num_rows, rows.shape[1]), rows.dtype) if each else None for each in asked])
    _C.reductions(argument(checked, rows), *addresses(rows, *out), rows.shape[1], torch.get_num_threads())
    return out


def reductions_backward(matrix: Sparse, rows: Tensor, grad: ReductionsGradient) -> Tensor:
    """The gradient of the rows that :func:`reductions` was given.

    Args:
        matrix: The transpose of the one there, or the first rows of it, [K, R].
        rows: The first K rows that were reduced, [K, C], float32 or float64.
        grad: What it consists of, of the type of `rows`.

    Returns:
        The gradient [K, C], the same for any number of threads.

    Raises:
        TypeError, ValueError, IndexError: As in :func:`reductions`.

    Example:
        >>> import torch
        >>> transpose = Sparse(torch.tensor([0, 1, 2]), torch.tensor([0, 0]), num_cols=1)
        >>> grad = ReductionsGradient(most=torch.tensor([[3.0]]), grad_most=torch.tensor([[0.5]]))
        >>> reductions_backward(transpose, torch.tensor([[2.0], [3.0]]), grad).tolist()
        [[0.0], [0.5]]
    """
    call = "reductions_backward"
    checked, num_rows = checked_sparse(call, matrix, is_part=True)
    rows = _rows(call, "rows", rows, num_rows)
    checks.kind(call, "grad", grad, ReductionsGradient, "a ReductionsGradient")
    for best, its_grad in (("least", "grad_least"), ("most", "grad_most")):
        if (getattr(grad, best) is None) != (getattr(grad, its_grad) is None):
            raise ValueError(f"{call}: `{best}` and `{its_grad}` must both be given, or none of them")
    parts = []
    for name, part in zip(grad._fields, grad, strict=True):
        if part is not None:
            part = _rows(call, name, part, matrix.num_cols)
            checks.same_type(call, name, part, "rows", rows)
            if part.shape[1] != rows.shape[1]:
                raise ValueError(
                    f"{call}: `{name}` must have {rows.shape[1]} columns as `rows`, but has {part.shape[1]}"
                )
        parts.append(part)
    out = empty(rows.shape, rows.dtype)
    given = addresses(rows, *parts, out)
    _C.reductions_backward(argument(checked, rows), *given, rows.shape[1], torch.get_num_threads())
    return out


def _rows(call: str, name: str, rows: Tensor, num_rows: int) -> Tensor:
    """Contiguous rows [num_rows, C]."""
    rows, *_ = checked_rows(call, name, rows, num_rows)
    if rows.dim() != 2:
        raise ValueError(f"{call}: `{name}` must have shape [{num_rows}, C], but has {list(rows.shape)}")
    return rows
