"""Orders of edges against their slow twins, and every refusal."""

from __future__ import annotations

import pytest
import torch
import twins
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor
from twins import int64

from torch_gas import _core


@given(twins.seeds, st.integers(0, 40), st.integers(0, 40), st.integers(0, 300), twins.id_types, st.booleans())
def test_transpose(seed: int, num_rows: int, num_cols: int, nnz: int, ids: torch.dtype, apart: bool) -> None:
    generator = torch.Generator().manual_seed(seed)
    nnz = nnz if num_rows and num_cols else 0
    row = torch.randint(0, max(num_rows, 1), (nnz,), generator=generator)
    rowptr = twins.pointers(row, num_rows).to(ids)
    col = torch.randint(0, max(num_cols, 1), (nnz,), generator=generator).to(ids)
    arguments = [twins.strided(x) if apart else x for x in (rowptr, col)]
    expected = twins.transpose(rowptr, col, num_cols)
    twins.all_same_bits(_core.transpose(*arguments, num_cols), expected)
    for dtype in twins.IDS:
        found = _core.transpose(*arguments, num_cols, dtype=dtype)
        twins.all_same_bits(found, [each.to(dtype) for each in expected])


def test_transpose_gives_no_other_types() -> None:
    with pytest.raises(TypeError, match=r"^transpose: `dtype` must be one of int32, int64, but is torch.int16"):
        _core.transpose(int64(0, 1), int64(0), 1, dtype=torch.int16)


def mirrored(seed: int, num_rows: int, num_cols: int, num_pairs: int, dtype: torch.dtype) -> tuple[Tensor, ...]:
    """A matrix whose first columns are their own transpose, some of them twice: row pointers, columns and weights."""
    generator = torch.Generator().manual_seed(seed)
    num_pairs, num_outer = (num_pairs if num_rows else 0), (30 if num_rows and num_cols > num_rows else 0)
    low, high = (torch.randint(0, max(num_rows, 1), (num_pairs,), generator=generator) for _ in range(2))
    value = torch.randn(num_pairs + num_outer, generator=generator, dtype=dtype)
    row = torch.cat([low, high, torch.randint(0, max(num_rows, 1), (num_outer,), generator=generator)])
    col = torch.cat(
        [high, low, torch.randint(num_rows, max(num_cols, num_rows + 1), (num_outer,), generator=generator)]
    )
    order = (row * num_cols + col).argsort(stable=True)
    weight = torch.cat([value[:num_pairs], value])[order]
    return twins.pointers(row, num_rows), col[order], weight


@given(
    twins.seeds, st.integers(0, 30), st.integers(0, 20), st.integers(0, 60), twins.id_types, st.sampled_from(twins.FLOATS[:2]),
    st.sampled_from(["nothing", "a column", "a weight", "an order", "an edge"]), st.booleans(),
)  # fmt: skip
def test_own_transpose(
    seed: int, num_rows: int, more: int, pairs: int, ids: torch.dtype, dtype: torch.dtype, change: str, apart: bool
) -> None:
    rowptr, col, weight = mirrored(seed, num_rows, num_rows + more, pairs, dtype)
    at = seed % max(col.numel(), 1)
    if col.numel() and change == "a column":
        col[at] = (col[at] + 1 + seed % 3) % (num_rows + more)
    elif col.numel() and change == "a weight":
        weight[at] += 1
    elif col.numel() and change == "an order":
        col[[at, at - 1]] = col[[at - 1, at]]
    elif col.numel() and change == "an edge":
        kept = torch.arange(col.numel()) != at
        rowptr, col, weight = rowptr - (rowptr > at).long(), col[kept], weight[kept]
    rowptr, col = rowptr.to(ids), col.to(ids)
    for numbers in (None, weight):
        given = [twins.strided(x) if apart and x is not None else x for x in (rowptr, col, numbers)]
        found, expected = _core.own_transpose(*given), twins.own_transpose(rowptr, col, numbers)
        assert (found is None) == (expected is None)
        if found is not None:
            twins.all_same_bits([found], [expected])
    if change == "nothing":
        assert _core.own_transpose(rowptr, col) is not None


def test_weights_of_an_own_transpose_are_compared_bit_by_bit() -> None:
    rowptr, col = int64(0, 2, 4), int64(0, 1, 0, 1)
    for a, b, is_own in [(0.0, -0.0, False), (float("nan"), float("nan"), True), (1.0, 1.0 + 2**-23, False)]:
        assert (_core.own_transpose(rowptr, col, torch.tensor([5.0, a, b, 7.0])) is not None) == is_own
    twice = int64(0, 2, 4), int64(1, 1, 0, 0)
    assert _core.own_transpose(*twice, torch.tensor([1.0, 2.0, 1.0, 2.0])).tolist() == [2, 4]
    assert _core.own_transpose(*twice, torch.tensor([1.0, 2.0, 2.0, 1.0])) is None  # summed up in another order


@pytest.mark.parametrize(
    ("change", "error", "message"),
    [
        ({"rowptr": int64(0, 2, 1)}, ValueError, r"rowptr\[1\] is 2 and rowptr\[2\] is 1"),
        ({"rowptr": int64(0, 1)}, ValueError, r"\(2\), but goes from 0 to 1"),
        ({"col": int64(0, 1).int()}, TypeError, "`col` must have the type of `rowptr`"),
        ({"weight": torch.ones(3)}, ValueError, "`weight` must have 2 elements, but has 3"),
        ({"weight": torch.ones(2).half()}, TypeError, "`weight` must be one of float32, float64"),
        ({"weight": torch.ones(2, 1)}, ValueError, "`weight` must have one dimension"),
    ],
)
def test_own_transpose_refuses(change: dict[str, Tensor], error: type, message: str) -> None:
    given = {"rowptr": int64(0, 1, 2), "col": int64(0, 1), "weight": None} | change
    with pytest.raises(error, match=f"^own_transpose: .*{message}"):
        _core.own_transpose(**given)


@given(twins.seeds, st.integers(0, 40), st.integers(0, 300), twins.id_types, st.booleans())
def test_to_csr(seed: int, num_nodes: int, num_edges: int, ids: torch.dtype, apart: bool) -> None:
    generator = torch.Generator().manual_seed(seed)
    size = (num_edges if num_nodes else 0,)
    src = torch.randint(0, max(num_nodes, 1), size, generator=generator).to(ids)
    dst = torch.randint(0, max(num_nodes, 1), size, generator=generator).to(ids)
    arguments = [twins.strided(x) if apart else x for x in (src, dst)]
    twins.all_same_bits(_core.to_csr(*arguments, num_nodes), twins.to_csr(src, dst, num_nodes))


@pytest.mark.parametrize(
    ("rowptr", "col", "num_cols", "error", "message"),
    [
        (int64(0, 2, 1), int64(0, 0), 1, ValueError, r"rowptr\[1\] is 2 and rowptr\[2\] is 1"),
        (int64(0, 1), int64(0, 0), 1, ValueError, r"\(2\), but goes from 0 to 1"),
        (int64(1, 2), int64(0, 0), 1, ValueError, r"\(2\), but goes from 1 to 2"),
        (int64(0, 3), int64(0, 0), 1, ValueError, r"rowptr\[1\] is 3"),
        (
            int64(0, 2),
            int64(0, 4),
            4,
            IndexError,
            r"`col` must be in \[0, 4\), but col\[1\] is 4",
        ),
        (int64(0, 1), int64(0).int(), 1, TypeError, "`col` must have the type of `rowptr`"),
        (int64(0, 1), int64(0), -1, ValueError, "`num_cols` must not be negative, but is -1"),
        (int64(0, 1), int64(0), 1.5, TypeError, "`num_cols` must be an int, but is float"),
        (int64(0, 1), int64(0), True, TypeError, "`num_cols` must be an int, but is bool"),
    ],
)
def test_transpose_refuses(rowptr: Tensor, col: Tensor, num_cols: int, error: type, message: str) -> None:
    with pytest.raises(error, match=f"^transpose: .*{message}"):
        _core.transpose(rowptr, col, num_cols)


@given(
    st.lists(st.integers(0, 30), max_size=80), st.integers(25, 40), twins.id_types, st.booleans(), st.booleans(),
    st.sampled_from([0, 20_000, 60_000]),
)  # fmt: skip
def test_row_pointers(
    found: list[int], num_nodes: int, ids: torch.dtype, ascend: bool, apart: bool, copies: int
) -> None:
    nodes = torch.tensor(sorted(found) if ascend else found, dtype=ids)
    if copies and nodes.numel():  # more than one thread takes
        nodes = nodes.repeat_interleave(copies // nodes.numel())
    torch.set_num_threads(3)
    pointers = _core.row_pointers(twins.strided(nodes) if apart else nodes, num_nodes)
    expected = twins.row_pointers(nodes, num_nodes)
    assert (pointers is None) == (expected is None)
    if pointers is not None:
        twins.all_same_bits([pointers], [expected])


def test_row_pointers_refuse() -> None:
    assert _core.row_pointers(int64(-1, 0), 2) is None and _core.row_pointers(int64(), 0).tolist() == [0]
    assert _core.row_pointers(int64(0), 0) is None
    for ids, num_nodes, error, message in [
        (torch.ones(2), 2, TypeError, "`ids` must be one of int32, int64"),
        (int64(0).view(1, 1), 2, ValueError, "`ids` must have one dimension"),
        (int64(0), -1, ValueError, "`num_nodes` must not be negative"),
    ]:
        with pytest.raises(error, match=f"^row_pointers: {message}"):
            _core.row_pointers(ids, num_nodes)


@pytest.mark.parametrize(
    ("src", "dst", "num_nodes", "error", "message"),
    [
        (int64(0, 1), int64(0), 2, ValueError, "equally long, but have 2 and 1 elements"),
        (int64(2), int64(0), 2, IndexError, r"`src` must be in \[0, 2\), but src\[0\] is 2"),
        (int64(0), int64(-1), 2, IndexError, r"`dst` must be in \[0, 2\), but dst\[0\] is -1"),
        (int64(0), int64(0).int(), 2, TypeError, "`dst` must have the type of `src`"),
        (int64(0), int64(0), -2, ValueError, "`num_nodes` must not be negative"),
    ],
)
def test_to_csr_refuses(src: Tensor, dst: Tensor, num_nodes: int, error: type, message: str) -> None:
    with pytest.raises(error, match=f"^to_csr: .*{message}"):
        _core.to_csr(src, dst, num_nodes)
