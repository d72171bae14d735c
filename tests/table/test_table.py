"""Each kind of table does what a dictionary of rows does, in each storage type, through the interface of all tables."""

from __future__ import annotations

import math
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from torch import Tensor
from twins import TOLERANCE

from torch_gas import FileTable, FileTier
from torch_gas.table import HotSet, Table
from torch_gas.table.codec import FLOATS, STORED, Codec
from torch_gas.table.hot import Hot
from torch_gas.table.memory import MemoryTable

N, C = 23, 5
HOT = torch.tensor([0, 3, 4, 11, 22])
DTYPES = [pytest.param(dtype, id=str(dtype).removeprefix("torch.")) for dtype in STORED]
CODECS = [Codec(dtype) for dtype in STORED]
SCALED = [codec for codec in CODECS if codec.is_scaled]


def memory(folder: Path, dtype: torch.dtype) -> Table:
    return MemoryTable.zeros(N, C, dtype, torch.device("cpu"), huge_pages=False, pageable=False)


def file(folder: Path, dtype: torch.dtype) -> Table:
    return FileTable(FileTier(folder / "x.table"), N, Codec(dtype).stored_width(C), dtype)


KINDS: dict[str, Callable[[Path, torch.dtype], Table]] = {
    "memory": memory,
    "file": file,
    "hot memory": lambda folder, dtype: Hot(memory(folder, dtype), HotSet(HOT, N)),
    "hot file": lambda folder, dtype: Hot(file(folder, dtype), HotSet(HOT, N)),
    "all hot": lambda folder, dtype: Hot(memory(folder, dtype), HotSet(torch.arange(N), N)),
}


@pytest.fixture(params=KINDS)
def kind(request: pytest.FixtureRequest) -> Callable[[Path, torch.dtype], Table]:
    return KINDS[request.param]


class Rows(dict[int, Tensor]):
    """The slow reference: rows by number, as they were written."""

    def __init__(self, codec: Codec) -> None:
        super().__init__({i: torch.zeros(C) for i in range(N)})
        self.codec = codec

    def check(self, ids: Tensor, got: Tensor) -> None:
        """That ``got`` is what a table of this codec may give for the rows ``ids``."""
        for i, row in zip(ids.tolist(), got, strict=True):
            wanted = self[i]
            if not self.codec.is_scaled:
                assert torch.equal(row, wanted.to(self.codec.dtype).to(row.dtype)), i
            else:
                bound = float(wanted.double().abs().max()) * (TOLERANCE[self.codec.dtype] + torch.finfo(row.dtype).eps)
                assert bool(((row.double() - wanted.double()).abs() <= bound).all()), i


def read(table: Table, ids: Tensor, dtype: torch.dtype = torch.float32) -> Tensor:
    out = torch.full((ids.numel(), C), math.nan, dtype=dtype)
    table.read(ids, out)
    table.wait()
    return out


@pytest.mark.parametrize("dtype", DTYPES)
def test_rows_are_those_of_a_dictionary(
    kind: Callable[[Path, torch.dtype], Table], dtype: torch.dtype, tmp_path: Path
) -> None:
    table, rows, random = kind(tmp_path, dtype), Rows(Codec(dtype)), torch.Generator().manual_seed(0)
    assert (table.num_rows, table.width, table.dtype, table.codec) == (N, C, dtype, Codec(dtype))
    assert table.nbytes == N * table.row_bytes == N * table.codec.row_bytes(C)
    rows.check(torch.arange(N), read(table, torch.arange(N)))
    for step in range(24):
        number = int(torch.randint(0, N + 1, (1,), generator=random))
        ids = torch.randperm(N, generator=random)[:number]
        if step % 4 == 0:
            ids = torch.stack([ids, ids], dim=1)[:, 0]  # which is strided
        if step % 3 == 0:
            offset, count = torch.tensor([number // 2, 0]), torch.tensor([N - number, number // 2])
            ids = torch.cat([torch.arange(start, start + n) for start, n in zip(offset, count, strict=True)])
        x = torch.randn(ids.numel(), 2 * C, generator=random).to(FLOATS[step % len(FLOATS)])
        x = x[:, ::2] if step % 2 else x[:, :C].t().contiguous().t()  # strided, both ways
        before = table.version
        if step % 3 == 0:
            table.write_ranges(offset, count, x)
        elif step == 7:
            ids, x = torch.arange(N), torch.randn(N, C, generator=random)
            table.fill(x)
        elif step == 17:
            table.clear()
            ids, x = torch.arange(N), torch.zeros(N, C)
        else:
            table.write(ids.int() if step % 5 == 0 else ids, x)
        table.wait()
        assert ids.numel() == 0 or table.version != before
        rows.update(zip(ids.tolist(), x, strict=True))

        asked = torch.randint(0, N, (2 * N,), generator=random)  # with duplicates
        for wanted in (asked, asked[::3], torch.stack([asked, asked])[1], asked.int(), asked[:0], HOT, HOT.flip(0)):
            table.request(wanted, torch.float32)
            rows.check(wanted, read(table, wanted, FLOATS[step % 2]))
        rows.check(torch.arange(N), table.numbers(torch.float64))


@pytest.mark.parametrize("dtype", DTYPES)
def test_rows_out_of_range_are_errors_that_change_nothing(
    kind: Callable[[Path, torch.dtype], Table], dtype: torch.dtype, tmp_path: Path
) -> None:
    table, rows = kind(tmp_path, dtype), Rows(Codec(dtype))
    x = torch.randn(N, C, generator=torch.Generator().manual_seed(0))
    table.fill(x)
    rows.update(enumerate(x))
    read(table, torch.arange(N))
    for bad in (-1, N, 2**40, -(2**63)):
        with pytest.raises(IndexError, match="every id in `index` must be in"):
            read(table, torch.tensor([2, bad]))
        with pytest.raises(IndexError, match="every id in `index` must be in"):
            table.write(torch.tensor([2, bad]), torch.zeros(2, C))
        with pytest.raises(IndexError, match="every range must lie in"):
            table.write_ranges(torch.tensor([1, bad]), torch.tensor([1, 1]), torch.zeros(2, C))
    with pytest.raises(IndexError, match="every range must lie in"):
        table.write_ranges(torch.tensor([N - 1]), torch.tensor([2]), torch.zeros(2, C))
    for width in (C - 1, C + 1):
        with pytest.raises(ValueError, match="must have one row of the table's shape"):
            table.write(torch.tensor([2]), torch.zeros(1, width))
    rows.check(torch.arange(N), read(table, torch.arange(N)))


# -- codecs ------------------------------------------------------------------------------------------------------------


def stored(codec: Codec, x: Tensor) -> Tensor:
    """What a table of this codec gives back for ``x``."""
    return MemoryTable.of_rows(x, codec.dtype).numbers(torch.float64)


@pytest.mark.parametrize("codec", CODECS, ids=str)
@pytest.mark.parametrize("exponent", [-3, 0, 3])
def test_errors_are_within_the_tolerance_that_is_stated(codec: Codec, exponent: int) -> None:
    x = torch.randn(500, 32, dtype=torch.float64, generator=torch.Generator().manual_seed(exponent)) * 10.0**exponent
    if codec.is_scaled or not codec.rounds(torch.float64):
        x = x.float()  # scaled types have a float32 scale
    error = (stored(codec, x) - x.double()).abs() / x.double().abs().amax(dim=1, keepdim=True)
    of_scale = torch.finfo(torch.float32).eps if codec.is_scaled else 0.0
    assert float(error.max()) <= TOLERANCE[codec.dtype] * (1 + 1e-5) + of_scale
    if codec.rounds(x.dtype):
        assert float(error.max()) > TOLERANCE[codec.dtype] / 8  # it is not stated too large
    else:
        assert float(error.max()) == 0


@pytest.mark.parametrize("codec", SCALED, ids=str)
@pytest.mark.parametrize("dtype", FLOATS)
def test_rows_with_scales_at_the_ends_of_the_range(codec: Codec, dtype: torch.dtype) -> None:
    limits = torch.finfo(dtype)
    huge = min(limits.max, torch.finfo(torch.float32).max)
    for value in (0.0, huge, -huge, 1.0):
        x = torch.tensor([[value, 0.0, value / 2, -value]], dtype=dtype)
        got = stored(codec, x)
        assert bool(got.isfinite().all())
        assert float((got - x.double()).abs().max()) <= abs(value) * (TOLERANCE[codec.dtype] + 1e-6), value
    for value in (
        torch.finfo(torch.float32).tiny,
        2.0**-149,
        2.0**-140,
    ):  # whose scale may be 0: rows are small, not NaN
        x = torch.tensor([[value, 0.0, -value]]).to(dtype)
        got = stored(codec, x)
        assert bool(got.isfinite().all()) and float(got.abs().max()) <= 2 * value


@pytest.mark.parametrize("codec", SCALED, ids=str)
@pytest.mark.parametrize("bad", [math.nan, math.inf, -math.inf])
def test_rows_with_scales_that_are_not_finite_read_as_nan(codec: Codec, bad: float) -> None:
    x = torch.tensor([[1.0, 2.0], [bad, 1.0], [3.0, 0.0]])
    got = stored(codec, x)
    assert bool(got[1].isnan().all()) and bool(got[[0, 2]].isfinite().all())
