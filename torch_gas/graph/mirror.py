"""Rows of a transpose that nobody needs to compute, because they are rows of the matrix itself: those of undirected graphs.

The matrix of a batch [B, B + S] is not symmetric, but in an undirected graph its first B columns are, and the gradient of a sum
over edges needs no others where it ends at the batch's rows. The transpose of all columns takes twice the memory of the batch's
columns, and more time than a comparison.
"""

from __future__ import annotations

from typing import Any, Literal

from torch import Tensor

from torch_gas import _core
from torch_gas._util.version import version

Need = Literal["", "mirror", "transpose"]  # what backward passes need of edges: nothing, a comparison, or the transpose
_SAMPLE = 64  # lines of the numbers of a matrix that was compared before, for writes that torch does not count


class Mirror:
    """Finds the first rows of the transpose of a matrix in the matrix itself.

    Nothing is taken on trust, such as what somebody says of a graph: the entries of the batch at hand are compared, with their
    numbers bit by bit and in the order in which sums take them, once for as long as the numbers stay the same.

    Args:
        matrix: the matrix [R, C], whose numbers are in the order of its entries.
    """

    def __init__(self, matrix: _core.Sparse) -> None:
        self._matrix = matrix
        # The last matrix that was found, for which size and numbers; these are kept, so that their memory stays theirs.
        self._found: tuple[Any, Tensor | None, _core.Sparse] | None = None

    def first(self, num_rows: int, weight: Tensor | None) -> _core.Sparse | None:
        """The first rows of the transpose, [num_rows, R], or None where they are others than those of the matrix.

        Args:
            num_rows: how many.
            weight: the numbers of all entries, [nnz], or None where each is 1.
        """
        rowptr = self._matrix.rowptr
        is_one_each = weight is None or (weight.dim() == 1 and weight.dtype in _core.SUM_TYPES)
        if num_rows >= rowptr.numel() or not is_one_each:
            return None
        # Rows of the halo are empty, unless edges from the batch are there as well, which then mirror those into it.
        size = num_rows if rowptr[num_rows] == rowptr[-1] else rowptr.numel() - 1
        weight = None if weight is None else weight.detach()
        state = (size, None if weight is None else _state(weight))
        if self._found is None or self._found[0] != state:
            found = self._compare(size, weight)
            if found is None:
                return None
            self._found = (state, weight, found)
        return self._found[2].first(num_rows)

    def _compare(self, size: int, weight: Tensor | None) -> _core.Sparse | None:
        """The first ``size`` rows and columns, if they are their own transpose."""
        rowptr, col, num_cols, *_ = self._matrix.first(size)
        ends = _core.own_transpose(rowptr, col, weight)
        if ends is None:
            return None
        num_dst = self._matrix.rowptr.numel() - 1
        return _core.Sparse(rowptr, col, num_dst, ends=None if size == num_cols else ends)


def _state(weight: Tensor) -> tuple[int, int, int]:
    """What differs between numbers that may not be the same."""
    return weight.data_ptr(), version(weight), _core.fingerprint([weight], _SAMPLE)
