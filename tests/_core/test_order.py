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
    twins.all_same_bits(_core.transpose(*arguments, num_cols), twins.transpose(rowptr, col, num_cols))


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
