"""The symmetric graph of partitioners against its slow twins, and every refusal."""

from __future__ import annotations

import pytest
import torch
import twins
from hypothesis import given
from hypothesis import strategies as st
from twins import id_types, int64

from torch_gas import _core

PAIRS = {"src": torch.tensor([0, 1]), "dst": torch.tensor([1, 2]), "rowptr": None, "num_nodes": 3, "weight": None}


@given(
    twins.seeds,
    st.integers(1, 40),
    st.integers(0, 300),
    id_types,
    id_types,
    st.booleans(),
    st.booleans(),
    st.booleans(),
)
def test_adjacent_pairs_and_symmetric(
    seed: int,
    num_nodes: int,
    num_edges: int,
    ids: torch.dtype,
    out: torch.dtype,
    weighted: bool,
    csr: bool,
    apart: bool,
) -> None:
    generator = torch.Generator().manual_seed(seed)
    rowptr, src = twins.random_graph(generator, num_nodes, num_edges)
    dst = torch.arange(num_nodes).repeat_interleave(rowptr.diff())
    weight = torch.randint(0, 4, (num_edges,), generator=generator).double() / 4 if weighted else None
    expected = twins.adjacent_pairs(src, dst, num_nodes, weight)
    src, dst, rowptr = ((twins.strided(x) if apart else x).to(ids) for x in (src, dst, rowptr))
    pairs, col, sums = _core.adjacent_pairs(src, None if csr else dst, rowptr if csr else None, num_nodes, weight, out)
    assert col.dtype == out and (sums is not None) == weighted
    twins.all_same_bits((pairs, col.long(), *([sums] if weighted else [])), expected)

    integers = torch.randint(1, 100, (col.numel(),), generator=generator)
    twins.all_same_bits(_core.symmetric(pairs, col, integers), twins.symmetric(pairs, col, integers))
    twins.all_same_bits(_core.symmetric(pairs, col)[:2], twins.symmetric(pairs, col, integers)[:2])
    assert _core.symmetric(pairs, col)[2] is None


def test_pairs_with_any_number_of_threads() -> None:
    """Sums of fractions as well, whose order matters."""
    generator = torch.Generator().manual_seed(0)
    src, dst = torch.randint(0, 3000, (2, 400_000), generator=generator) // 10
    weight = torch.rand(400_000, generator=generator, dtype=torch.float64)
    rowptr, col, perm = twins.to_csr(src, dst, 3000)
    results = []
    for threads in (1, 2, 3, 16):
        torch.set_num_threads(threads)
        results.append(_core.adjacent_pairs(src, dst, None, 3000, weight))
        twins.all_same_bits(results[-1], results[0])
        twins.all_same_bits(_core.adjacent_pairs(col, None, rowptr, 3000, weight[perm]), results[0])
    expected = twins.adjacent_pairs(src, dst, 3000, weight)
    twins.all_same_bits(results[0][:2], expected[:2])
    torch.testing.assert_close(results[0][2], expected[2])


@pytest.mark.parametrize(
    ("changes", "error", "message"),
    [
        ({"dst": None}, ValueError, "one of `dst` and `rowptr` must be given"),
        ({"dst": torch.tensor([1])}, ValueError, "`dst` must have 2 elements, but has 1"),
        ({"dst": torch.tensor([1, 2]).int()}, TypeError, "`dst` must have the type of `src`"),
        ({"dst": torch.tensor([1, 3])}, IndexError, r"every id in `dst` must be in \[0, 3\)"),
        ({"src": torch.tensor([-1, 0])}, IndexError, r"`src` must be in \[0, 3\), but src\[0\] is -1"),
        ({"dst": None, "rowptr": torch.tensor([0, 2])}, ValueError, "`rowptr` must have 4 elements"),
        ({"dst": None, "rowptr": torch.tensor([0, 2, 1, 2])}, ValueError, "`rowptr` must ascend"),
        ({"dst": None, "rowptr": torch.tensor([0, 1, 1, 1])}, ValueError, "goes from 0 to 1"),
        ({"weight": torch.ones(2)}, TypeError, "`weight` must be one of float64"),
        ({"weight": torch.ones(3).double()}, ValueError, "`weight` must have 2 elements"),
        ({"dtype": torch.int16}, TypeError, "`dtype` must be one of int32, int64"),
    ],
)
def test_adjacent_pairs_refuses(changes: dict[str, object], error: type, message: str) -> None:
    with pytest.raises(error, match=f"^adjacent_pairs: .*{message}"):
        _core.adjacent_pairs(**{**PAIRS, **changes})


@pytest.mark.parametrize(
    ("changes", "error", "message"),
    [
        ({"rowptr": int64(0, 2, 1, 2)}, ValueError, r"`rowptr` must ascend .* rowptr\[1\] is 2 and rowptr\[2\] is 1"),
        ({"rowptr": int64(0, 1, 1, 1)}, ValueError, r"`rowptr` must ascend .* \(2\), but goes from 0 to 1"),
        ({"rowptr": int64(0, 1, 2, 2**40)}, ValueError, r"`rowptr` must ascend .* rowptr\[3\] is 1099511627776"),
        ({"rowptr": int64()}, ValueError, "`rowptr` must have one element more"),
        ({"rowptr": int64(0, 1, 2, 2).int()}, TypeError, "`rowptr` must be one of int64"),
        ({"col": int64(1, 3)}, IndexError, r"`col` must be in \[0, 3\), but col\[1\] is 3"),
        ({"col": int64(-1, 2)}, IndexError, r"`col` must be in \[0, 3\), but col\[0\] is -1"),
        ({"weight": int64(1)}, ValueError, "`weight` must have 2 elements, but has 1"),
    ],
)
def test_symmetric_refuses(changes: dict[str, object], error: type, message: str) -> None:
    arguments = {"rowptr": int64(0, 1, 2, 2), "col": int64(1, 2), **changes}
    with pytest.raises(error, match=f"^symmetric: .*{message}"):
        _core.symmetric(**arguments)
