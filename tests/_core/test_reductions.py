"""Reductions in one pass and their gradient: the numbers of their slow twins, whatever is asked for, and errors that say why."""

from __future__ import annotations

from typing import Any

import pytest
import torch
import twins
from hypothesis import given
from hypothesis import strategies as st
from test_product import close, numbers, sparse

from torch_gas import _core
from torch_gas._core import ReductionsGradient, Sparse

NAMES = ("mean", "variance", "least", "most")


@given(
    num_rows=st.integers(1, 30),
    num_cols=st.integers(1, 30),
    nnz=st.integers(0, 200),
    width=st.integers(0, 40),
    ids=st.sampled_from(twins.IDS),
    dtype=st.sampled_from([torch.float32, torch.float64]),
    has_order=st.booleans(),
    has_ties=st.booleans(),
    asked=st.sets(st.sampled_from(NAMES)),
    seed=st.integers(0, 1000),
)
def test_kernels_give_what_their_twins_do(
    num_rows: int,
    num_cols: int,
    nnz: int,
    width: int,
    ids: torch.dtype,
    dtype: torch.dtype,
    has_order: bool,
    has_ties: bool,
    asked: set[str],
    seed: int,
) -> None:
    matrix = sparse(num_rows, num_cols, nnz, ids, has_order, seed)
    rows = numbers(num_cols, width, dtype=dtype, seed=seed)
    rows = rows.round() if has_ties else rows
    found = _core.reductions(matrix, rows, **dict.fromkeys(asked, True))
    wanted = {*asked, *(f"{name}_ties" for name in asked & {"least", "most"})}
    wanted |= {"mean"} if "variance" in asked else set()
    for name, result, expected in zip(found._fields, found, twins.reductions(matrix, rows), strict=True):
        assert (result is not None) == (name in wanted)
        if result is not None:
            close(result, expected)

    parts = ReductionsGradient(*(numbers(num_cols, width, dtype=dtype, seed=seed + i) for i in range(6)))
    parts = ReductionsGradient(*(each.round() for each in parts)) if has_ties else parts
    at = numbers(num_rows, width, dtype=dtype, seed=seed + 7)
    at = at.round() if has_ties else at
    terms = torch.tensor(8.0 * nnz)  # not far from one each
    expected = twins.reductions_backward(matrix, at, parts)
    close(_core.reductions_backward(matrix, at, parts), expected, terms)
    for name in ("constant", "slope"):
        only = ReductionsGradient(**{name: getattr(parts, name)})
        zeros = ReductionsGradient(*[torch.zeros_like(each) for each in parts])._replace(**only._asdict())
        zeros = ReductionsGradient(*[torch.zeros_like(parts[0]) if each is None else each for each in zeros])
        expected = twins.reductions_backward(matrix, at, zeros)
        close(_core.reductions_backward(matrix, at, only), expected, terms)


def test_results_do_not_depend_on_the_number_of_threads() -> None:
    matrix = sparse(3000, 2000, 60_000, torch.int64, has_order=False)
    rows = numbers(2000, 30, dtype=torch.float32, seed=0).round()
    results = []
    for threads in (1, 2, 5):
        torch.set_num_threads(threads)
        found = _core.reductions(matrix, rows, **dict.fromkeys(NAMES, True))
        back = ReductionsGradient(rows, rows, rows, rows, rows, rows)
        results.append([*found, _core.reductions_backward(matrix, found.most, back)])
    assert all(torch.equal(a, b) for other in results[1:] for a, b in zip(results[0], other, strict=True))


@pytest.mark.parametrize("where", range(3))
@pytest.mark.parametrize("width", [1, 8, 20])
def test_numbers_that_are_not_finite(where: int, width: int) -> None:
    """NaN stays wherever it comes; infinities are numbers as others."""
    matrix = Sparse(torch.tensor([0, 3]), torch.arange(3), 3)
    for value in (torch.nan, torch.inf, -torch.inf):
        rows = torch.ones(3, width)
        rows[where] = value
        found = _core.reductions(matrix, rows, least=True, most=True)
        torch.testing.assert_close(found.least[0], rows.amin(0), equal_nan=True)
        torch.testing.assert_close(found.most[0], rows.amax(0), equal_nan=True)
    found = _core.reductions(matrix, torch.full((3, width), -torch.inf), most=True)
    assert found.most.isneginf().all() and (found.most_ties == 3).all()


ROWPTR, COL, ROWS = torch.tensor([0, 1, 3]), torch.tensor([0, 1, 2]), torch.ones(3, 4)
ERRORS: dict[str, tuple[type[Exception], str, dict[str, Any]]] = {
    "a column too large": (IndexError, "`col` must be in", {"col": COL + 1}),
    "pointers that end early": (ValueError, "`rowptr` must go from 0", {"rowptr": torch.tensor([0, 1, 2])}),
    "rows of half type": (TypeError, "`rows` must be one of float32", {"rows": ROWS.half()}),
    "too few rows": (ValueError, "`rows` must have shape", {"rows": ROWS[:2]}),
    "heads": (ValueError, r"`rows` must have shape \[3, C\]", {"rows": ROWS[:, None]}),
}


@pytest.mark.parametrize("name", ERRORS)
def test_errors_name_the_argument(name: str) -> None:
    kind, text, change = ERRORS[name]
    given = {"rowptr": ROWPTR, "col": COL, "rows": ROWS} | change
    rows = given.pop("rows")
    with pytest.raises(kind, match=f"reductions: .*{text}"):
        _core.reductions(Sparse(**given, num_cols=3), rows, mean=True)


def test_errors_of_the_gradient() -> None:
    matrix, two = Sparse(ROWPTR, COL, 3), ROWS[:2]
    for kind, text, grad in [
        (ValueError, "`most` and `grad_most` must both be given", ReductionsGradient(most=ROWS)),
        (ValueError, "`least` and `grad_least` must both be given", ReductionsGradient(grad_least=ROWS)),
        (ValueError, "`slope` must have shape", ReductionsGradient(slope=two)),
        (ValueError, "`slope` must have 4 columns as `rows`, but has 3", ReductionsGradient(slope=ROWS[:, :3])),
        (TypeError, "`constant` must have the type", ReductionsGradient(constant=ROWS.double())),
        (TypeError, "`grad` must be a ReductionsGradient", (ROWS,)),
    ]:
        with pytest.raises(kind, match=f"reductions_backward: {text}"):
            _core.reductions_backward(matrix, two, grad)


def test_product_with_a_gate() -> None:
    matrix = sparse(20, 30, 100, torch.int64, has_order=True)
    rows, weight = (numbers(*shape, dtype=torch.float32, seed=1) for shape in ((30, 2, 5), (100, 2)))
    gate = numbers(20, 2, 5, dtype=torch.float32, seed=2).clamp(min=0)
    close(_core.product(matrix, rows, weight, gate=gate), twins.product(matrix, rows, weight, gate))
    for kind, text, bad in [
        (ValueError, r"`gate` must have shape \[20, 2, 5\]", gate[..., :4]),
        (TypeError, "`gate` must have the type", gate.double()),
    ]:
        with pytest.raises(kind, match=f"product: {text}"):
            _core.product(matrix, rows, weight, gate=bad)
