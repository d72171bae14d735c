"""Kernels of sparse products and attention: the numbers of their slow twins, and errors for whatever they cannot compute."""

from __future__ import annotations

from typing import Any

import pytest
import torch
import twins
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from torch_gas import _core
from torch_gas._core import Sparse


def sparse(num_rows: int, num_cols: int, nnz: int, ids: torch.dtype, has_order: bool, seed: int = 0) -> Sparse:
    generator = torch.Generator().manual_seed(seed)
    row = (
        torch.randint(num_rows, (nnz,), generator=generator).sort().values if nnz else torch.empty(0, dtype=torch.long)
    )
    col = torch.randint(num_cols, (nnz,), generator=generator) if nnz else row
    rowptr = torch.searchsorted(row, torch.arange(num_rows + 1))
    order = torch.randperm(nnz, generator=generator).to(ids) if has_order else None
    return Sparse(rowptr.to(ids), col.to(ids), num_cols, order)


def numbers(*shape: int, dtype: torch.dtype, seed: int) -> Tensor:
    return torch.randn(*shape, dtype=torch.float64, generator=torch.Generator().manual_seed(seed)).to(dtype)


def close(left: Tensor, right: Tensor, terms: Tensor | None = None) -> None:
    """Equal up to rounding, which grows with the sums of the magnitudes of ``terms``: up to 200 numbers go into one row."""
    assert left.dtype == right.dtype
    slack = 1e-12 if left.dtype == torch.float64 else 3e-6
    largest = 0.0 if terms is None or not terms.numel() else float(terms.max())
    torch.testing.assert_close(left, right, rtol=slack, atol=slack * max(1.0, largest / 16))


@given(
    num_rows=st.integers(1, 30),
    num_cols=st.integers(1, 30),
    nnz=st.integers(0, 200),
    heads=st.integers(0, 9),
    width=st.integers(0, 40),
    ids=st.sampled_from(twins.IDS),
    dtype=st.sampled_from([torch.float32, torch.float64]),
    has_order=st.booleans(),
    seed=st.integers(0, 1000),
)
def test_kernels_give_what_their_twins_do(
    num_rows: int,
    num_cols: int,
    nnz: int,
    heads: int,
    width: int,
    ids: torch.dtype,
    dtype: torch.dtype,
    has_order: bool,
    seed: int,
) -> None:
    matrix = sparse(num_rows, num_cols, nnz, ids, has_order, seed)
    left, right = (numbers(size, heads, width, dtype=dtype, seed=seed) for size in (num_rows, num_cols))
    weight, grad = (numbers(nnz, heads, dtype=dtype, seed=seed + i) for i in (1, 2))
    for factors in (None, weight):
        terms = twins.product(matrix, right.abs(), None if factors is None else factors.abs())
        close(_core.product(matrix, right, factors), twins.product(matrix, right, factors), terms)
    close(_core.entry_dots(matrix, left, right), twins.entry_dots(matrix, left, right))

    scores = [numbers(size, heads, dtype=dtype, seed=seed + 3).requires_grad_() for size in (num_rows, num_cols)]
    expected = twins.entry_softmax(matrix, *scores, 0.2)
    expected.backward(grad)
    args = (matrix, scores[0].detach(), scores[1].detach(), 0.2)
    softmax = _core.entry_softmax(*args)
    close(softmax, expected.detach())
    grad_left, grad_entry = _core.entry_softmax_backward(*args, softmax, grad)
    close(grad_left, scores[0].grad)
    _, entry = twins.entries(matrix)
    close(torch.zeros_like(args[2]).index_add_(0, matrix.col.long(), grad_entry[entry]), scores[1].grad)


@given(
    num_rows=st.integers(1, 30),
    nnz=st.integers(0, 200),
    width=st.integers(0, 40),
    ids=st.sampled_from(twins.IDS),
    dtype=st.sampled_from([torch.float32, torch.float64]),
    has_order=st.booleans(),
    seed=st.integers(0, 1000),
)
def test_rows_that_end_early(
    num_rows: int, nnz: int, width: int, ids: torch.dtype, dtype: torch.dtype, has_order: bool, seed: int
) -> None:
    matrix = sparse(num_rows, 20, nnz, ids, has_order, seed)
    start, stop = matrix.rowptr[:-1], matrix.rowptr[1:]
    share = torch.rand(num_rows, generator=torch.Generator().manual_seed(seed))
    ends = start + (share * (stop - start + 1)).to(ids)
    row = torch.arange(num_rows).repeat_interleave(matrix.rowptr.long().diff())
    outside = torch.arange(nnz) >= ends.long()[row]
    col = matrix.col.clone()
    col[outside] = torch.tensor([-1, 20, 2**31 - 1]).to(ids)[torch.arange(nnz) % 3][outside]  # which nobody reads
    part = matrix._replace(col=col, ends=ends)
    rows, weight = numbers(20, width, dtype=dtype, seed=seed), numbers(nnz, dtype=dtype, seed=seed + 1)
    for factors in (None, weight):
        expected = twins.product(part, rows, factors)
        close(_core.product(part, rows, factors), expected)
        close(_core.product(part.first(num_rows // 2), rows, factors), expected[: num_rows // 2])


@pytest.mark.parametrize("shape", [(64,), (8, 16), (3, 5)])
def test_results_do_not_depend_on_the_number_of_threads(shape: tuple[int, ...]) -> None:
    matrix = sparse(3000, 2000, 60_000, torch.int64, has_order=True)
    rows = numbers(2000, *shape, dtype=torch.float32, seed=0)
    weight = numbers(60_000, *shape[:-1], dtype=torch.float32, seed=1)
    scores = [numbers(size, 4, dtype=torch.float32, seed=2) for size in (3000, 2000)]
    results = []
    for threads in (1, 2, 5):
        torch.set_num_threads(threads)
        out = _core.product(matrix, rows, weight)
        part = _core.product(matrix._replace(ends=(matrix.rowptr[:-1] + matrix.rowptr[1:]) // 2), rows, weight)
        softmax = _core.entry_softmax(matrix, *scores, 0.2)
        backward = _core.entry_softmax_backward(matrix, *scores, 0.2, softmax, softmax**2)
        results.append([out, part, _core.entry_dots(matrix, out, rows), softmax, *backward])
    assert all(torch.equal(a, b) for other in results[1:] for a, b in zip(results[0], other, strict=True))


@given(
    heads=st.integers(1, 3),
    width=st.integers(0, 40),
    dtype=st.sampled_from([torch.float32, torch.float64, torch.bfloat16]),
    ids=st.sampled_from(twins.IDS),
    is_weighted=st.booleans(),
    has_order=st.booleans(),
    seed=st.integers(0, 1000),
)
def test_means_and_rows_of_bfloat16(
    heads: int, width: int, dtype: torch.dtype, ids: torch.dtype, is_weighted: bool, has_order: bool, seed: int
) -> None:
    """Sums and quotients have the bits that float32 gives, and are rounded once."""
    matrix = sparse(20, 15, 100, ids, has_order, seed)
    wide = torch.float32 if dtype == torch.bfloat16 else dtype
    rows, weight = numbers(15, heads, width, dtype=dtype, seed=seed), numbers(100, heads, dtype=wide, seed=seed + 1)
    weights = weight if is_weighted else None
    sums = _core.product(matrix, rows.to(wide), weights)
    means = sums / matrix.rowptr.diff().clamp(min=1).to(wide).view(-1, 1, 1)
    assert torch.equal(_core.product(matrix, rows, weights), sums.to(dtype))
    assert torch.equal(_core.product(matrix, rows, weights, mean=True), means.to(dtype))


def test_bfloat16_that_is_no_number() -> None:
    matrix = Sparse(torch.tensor([0, 2, 2]), torch.tensor([0, 1]), 2)
    rows = torch.tensor([[float("inf"), float("nan"), 3e38], [float("-inf"), 1.0, 3e38]]).bfloat16()
    expected = torch.tensor([[float("nan"), float("nan"), float("inf")], [0.0, 0.0, 0.0]]).bfloat16()
    torch.testing.assert_close(_core.product(matrix, rows), expected, equal_nan=True)


@pytest.mark.parametrize("far", [80.0, 1e4, float("inf")])
def test_softmax_of_scores_far_apart(far: float) -> None:
    matrix = Sparse(torch.tensor([0, 3]), torch.tensor([0, 1, 2]), 3)
    left, right = torch.zeros(1, 1), torch.tensor([[far], [0.0], [-far]])
    expected = torch.nn.functional.leaky_relu(right, 1.0).softmax(0)
    torch.testing.assert_close(_core.entry_softmax(matrix, left, right, 1.0), expected, equal_nan=True)
    right = torch.tensor([[0.0], [float("nan")], [1.0]])
    assert _core.entry_softmax(matrix, left, right, 1.0).isnan().all()


ROWPTR, COL, ROWS, WEIGHT = torch.tensor([0, 1, 3]), torch.tensor([0, 1, 2]), torch.ones(3, 2, 4), torch.ones(3, 2)
ERRORS: dict[str, tuple[type[Exception], str, dict[str, Any]]] = {
    "a column too large": (IndexError, "`col` must be in", {"col": COL + 1}),
    "a negative column": (IndexError, "`col` must be in", {"col": COL - 1}),
    "an order out of range": (IndexError, "`order` must be in", {"order": COL + 1}),
    "a short order": (ValueError, "`order` must have 3 elements, but has 2", {"order": COL[:2]}),
    "an order of another type": (TypeError, "`order` must have the type", {"order": COL.int()}),
    "columns of another type": (TypeError, "`col` must have the type", {"col": COL.int()}),
    "pointers that descend": (ValueError, "`rowptr` must ascend", {"rowptr": torch.tensor([0, 3, 1])}),
    "pointers beyond the end": (ValueError, "`rowptr` must", {"rowptr": torch.tensor([0, 1, 4])}),
    "pointers that end early": (ValueError, "`rowptr` must go from 0", {"rowptr": torch.tensor([0, 1, 2])}),
    "no pointers": (ValueError, "`rowptr` must have one element more", {"rowptr": COL[:0]}),
    "a negative number of columns": (ValueError, "`num_cols` must not be negative", {"num_cols": -1}),
    "an end before its row": (ValueError, r"`?ends\[1\]`? is 0", {"ends": torch.tensor([1, 0])}),
    "an end behind the next row": (
        ValueError,
        r"row 0 must end between .* 0 and 1, but ends\[0\] is 2",
        {"ends": COL[1:] + 1},
    ),
    "too few ends": (ValueError, "`ends` must have 2 elements, but has 1", {"ends": COL[:1]}),
    "ends of another type": (TypeError, "`ends` must have the type", {"ends": COL[1:].int()}),
    "a column too large before an end": (IndexError, "`col` must be in", {"ends": COL[1:], "col": COL + 2}),
    "rows of half type": (TypeError, "`rows` must be one of float32", {"rows": ROWS.half()}),
    "too few rows": (ValueError, "`rows` must have shape", {"rows": ROWS[:2]}),
    "rows of four dimensions": (ValueError, "`rows` must have shape", {"rows": ROWS[None]}),
    "sparse rows": (TypeError, "`rows` must be a dense", {"rows": ROWS.to_sparse()}),
    "a weight of another type": (TypeError, "`weight` must be torch.float32", {"weight": WEIGHT.double()}),
    "a weight of bfloat16": (
        TypeError,
        "`weight` must be torch.float32",
        {"rows": ROWS.bfloat16(), "weight": WEIGHT.bfloat16()},
    ),
    "a weight for each edge only": (ValueError, "`weight` must have a number", {"weight": WEIGHT[:, 0]}),
    "no tensor": (TypeError, "`weight` must be a torch.Tensor", {"weight": 1.0}),
}


@pytest.mark.parametrize("name", ERRORS)
def test_errors_name_the_argument(name: str) -> None:
    kind, text, change = ERRORS[name]
    given = {"rowptr": ROWPTR, "col": COL, "num_cols": 3, "order": None, "rows": ROWS, "weight": WEIGHT} | change
    rows, weight = given.pop("rows"), given.pop("weight")
    with pytest.raises(kind, match=f"product: .*{text}"):
        _core.product(Sparse(**given), rows, weight)


def test_errors_of_dots_and_scores() -> None:
    matrix, scores = Sparse(ROWPTR, COL, 3), (torch.ones(2, 2), torch.ones(3, 2))
    part = matrix._replace(ends=torch.tensor([0, 2]))
    softmax = _core.entry_softmax(matrix, *scores, 0.2)
    for kind, text, call in [
        (ValueError, "rows of `left` and `right`", lambda: _core.entry_dots(matrix, ROWS[:2], ROWS[..., :1])),
        (TypeError, "`right` must have the type", lambda: _core.entry_dots(matrix, ROWS[:2], ROWS.double())),
        (ValueError, "`left` must have shape", lambda: _core.entry_dots(matrix, ROWS, ROWS)),
        (ValueError, "`ends` leaves some out", lambda: _core.entry_dots(part, ROWS[:2], ROWS)),
        (ValueError, "`left` must have a number", lambda: _core.entry_softmax(matrix, scores[1], scores[1], 0.2)),
        (ValueError, "`right` must have a number", lambda: _core.entry_softmax(matrix, scores[0], ROWS[:, 0], 0.2)),
        (TypeError, "`left` must be one of", lambda: _core.entry_softmax(matrix, scores[0].int(), scores[1], 0.2)),
        (ValueError, "`grad` must", lambda: _core.entry_softmax_backward(matrix, *scores, 0.2, softmax, softmax[1:])),
    ]:
        with pytest.raises(kind, match=text):
            call()
