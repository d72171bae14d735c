"""Tables of scaled types: what they hold, how far it is from what was written, and every refusal."""

from __future__ import annotations

import pytest
import torch
import twins
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor
from twins import int64

from torch_gas import _core

MAX = torch.finfo(torch.float32).max
widths = st.sampled_from([1, 2, 3, 4, 8, 31, 32, 33, 64, 257])
float_types = st.sampled_from(twins.FLOATS)


scaled_types = st.sampled_from(list(twins.LARGEST))
each_scaled_type = pytest.mark.parametrize("stored", list(twins.LARGEST))


def table_of(num_rows: int, width: int, stored: torch.dtype = torch.int8) -> Tensor:
    return torch.full((num_rows, _core.stored_width(width, stored)), 99, dtype=torch.int8).view(stored)


def written(rows: Tensor, stored: torch.dtype = torch.int8) -> Tensor:
    """A table that holds ``rows``."""
    table = table_of(*rows.shape, stored)
    _core.write_chunks(table, int64(0), int64(len(rows)), rows)
    return table


def read(table: Tensor, dtype: torch.dtype = torch.float32) -> Tensor:
    return _core.read_chunks(table, int64(0), int64(len(table)), dtype)


@given(twins.seeds, scaled_types, float_types, widths, st.integers(0, 40), twins.id_types, st.data())
def test_rows(
    seed: int, stored: torch.dtype, dtype: torch.dtype, width: int, num_rows: int, ids: torch.dtype, data: st.DataObject
) -> None:
    """All four calls are those of the twin, for numbers of all magnitudes, NaN and infinity."""
    generator = torch.Generator().manual_seed(seed)
    table = written(twins.random_table(generator, num_rows, (width,), torch.float32), stored)
    index = torch.randperm(num_rows, generator=generator)[: data.draw(st.integers(0, num_rows))].to(ids)
    offset, count = data.draw(twins.part_ranges(num_rows))
    for call, read_call, where, rows_at in (
        (_core.scatter_rows, _core.gather_rows, (index,), index),
        (_core.write_chunks, _core.read_chunks, (offset, count), twins.chunk_index(offset, count)),
    ):
        twins.same_bits(read_call(table, *where, dtype), twins.gather_rows(table, rows_at, dtype))
        rows = twins.random_table(generator, len(rows_at), (width,), dtype)
        expected = table.clone()
        twins.scatter_rows(expected, rows_at, rows)
        call(table, *where, twins.strided(rows))
        assert_same_rows(table, expected)


def assert_same_rows(actual: Tensor, expected: Tensor) -> None:
    """Equal bytes, but for the payload of scales that are NaN."""
    twins.same_bits(twins.scales(actual), twins.scales(expected))
    assert torch.equal(actual.view(torch.uint8)[:, :-4], expected.view(torch.uint8)[:, :-4])


@given(twins.seeds, scaled_types, widths, st.floats(-30, 37))
def test_a_row_is_off_by_its_tolerance(seed: int, stored: torch.dtype, width: int, magnitude: float) -> None:
    """Numbers are off by at most the tolerance of the codec times the largest, which is stored as the largest element."""
    rows = torch.randn(20, width, generator=torch.Generator().manual_seed(seed)) * 10**magnitude
    table = written(rows, stored)
    largest = rows.abs().amax(1, keepdim=True).double()
    assert ((read(table).double() - rows).abs() <= largest * twins.TOLERANCE[stored] * (1 + 1e-4)).all()
    assert (table[:, :-4].float().abs().amax(1) == twins.LARGEST[stored]).all()


@pytest.mark.parametrize("stored", [torch.float8_e4m3fn, torch.float8_e5m2])
def test_every_number_of_eight_bits_is_kept(stored: torch.dtype) -> None:
    """Subnormal ones and both zeros included, in rows whose scale is 1."""
    numbers = torch.arange(256, dtype=torch.uint8).view(stored).float()
    numbers = numbers[numbers.isfinite()].sort(stable=True)[0]
    rows = torch.stack([numbers, numbers.flip(0)])
    twins.same_bits(read(written(rows, stored)), rows)
    between = (numbers[1:].double() + numbers[:-1]) / 2  # ties, exact in float32
    rows = torch.cat([between.float(), numbers[:1]])[None]
    twins.same_bits(read(written(rows, stored)), rows.to(stored).float())


@pytest.mark.parametrize("dtype", twins.FLOATS)
def test_int8_keeps_what_it_can_hold(dtype: torch.dtype) -> None:
    """Multiples of a power of two, of which the largest is 127, and zeros."""
    whole = torch.arange(-127, 128).repeat(2, 1)
    rows = torch.stack([whole[0] * 0.25, whole[1] * 4, torch.zeros(255)]).to(dtype)
    twins.same_bits(read(written(rows), dtype), rows)


def test_ties_are_rounded_to_even() -> None:
    rows = torch.tensor([[127.0, 0.5, 1.5, 2.5, -0.5, -1.5, -2.5, 126.5]]).repeat(1, 5)
    assert read(written(rows)).tolist() == [[127, 0, 2, 2, 0, -2, -2, 126] * 5]


@each_scaled_type
@pytest.mark.parametrize("bad", [float("nan"), float("inf"), -float("inf")])
def test_a_row_that_is_not_finite_reads_as_nan(bad: float, stored: torch.dtype) -> None:
    for width, place in ((1, 0), (40, 3), (40, 39)):
        rows = torch.ones(3, width)
        rows[1, place] = bad
        assert read(written(rows, stored)).isnan().all(1).tolist() == [False, True, False]


@each_scaled_type
@pytest.mark.parametrize("repeats", [1, 20])  # fewer and more numbers than vector instructions take
def test_extreme_magnitudes(repeats: int, stored: torch.dtype) -> None:
    tiny, largest = (
        2.0**-149,
        twins.LARGEST[stored],
    )  # below half a unit the scale is zero; where it is not, it is rounded
    more = 1.496 * largest * tiny
    rows = torch.tensor([[MAX, -MAX, 0.0], [tiny, -tiny, 0], [more, -more, tiny], [1e-39, 0.0, -1e-39]])
    rows = rows.repeat(1, repeats)
    numbers = read(written(rows, stored))
    assert numbers.isfinite().all()
    torch.testing.assert_close(numbers[0] / MAX, torch.tensor([1.0, -1, 0]).repeat(repeats))
    assert not numbers[1].any()
    assert numbers[2].tolist() == [largest * tiny, -largest * tiny, tiny] * repeats
    assert ((numbers[3] - rows[3]).abs() <= 1e-39 * twins.TOLERANCE[stored] + largest * tiny / 2).all()


@each_scaled_type
def test_any_number_of_threads_and_rows_around_the_caches(stored: torch.dtype) -> None:
    """The tables read are larger than what is written around the caches; rows of 64 numbers fill whole lines."""
    generator = torch.Generator().manual_seed(0)
    for width, first in ((64, 0), (64, 1), (33, 3)):
        rows = torch.randn(40_000, width, generator=generator)
        index = torch.randperm(len(rows), generator=generator)
        flat = torch.zeros(first + len(rows) * (width + 4), dtype=torch.int8)
        raw = flat[first:].view(len(rows), width + 4)  # which starts anywhere
        table = raw.view(stored)
        for threads in (1, 2, 16):
            torch.set_num_threads(threads)
            raw.zero_()
            _core.write_chunks(table, int64(0), int64(len(rows)), rows)
            assert torch.equal(raw, twins.quantize(rows, stored).view(torch.int8))
            for dtype in (torch.float32, torch.bfloat16):
                assert torch.equal(read(table, dtype), twins.dequantize(table, dtype))
                gathered = _core.gather_rows(table, index, dtype)
                assert torch.equal(gathered, twins.dequantize(table, dtype)[index])
            shuffled = torch.zeros_like(raw)
            _core.scatter_rows(shuffled.view(stored), index, rows)
            assert torch.equal(shuffled[index], raw)


def test_int8_rows_are_copied() -> None:
    table = torch.arange(-12, 12, dtype=torch.int8).view(3, 8)
    assert torch.equal(_core.gather_rows(table, int64(2, 0)), table[[2, 0]])
    assert torch.equal(_core.batch_rows(table, int64(1), int64(2), int64(0)), table[[1, 2, 0]])
    copied = torch.zeros_like(table)
    _core.scatter_rows(copied, int64(0, 1, 2), table)
    assert torch.equal(copied, table)
    assert _core.is_table(table) and _core.is_table(table[:, 0].contiguous())


def test_widths() -> None:
    assert [_core.stored_width(7, dtype) for dtype in (torch.float32, torch.float16, torch.int8)] == [7, 7, 11]
    table = torch.zeros(3, 11, dtype=torch.int8)
    assert _core.row_shape(table, torch.float32) == (7,) and _core.row_shape(table, torch.int8) == (11,)
    assert _core.row_shape(torch.zeros(3, 2, 5), torch.float16) == (2, 5)


@pytest.mark.parametrize(
    ("table", "rows", "error", "message"),
    [
        (torch.zeros(4, 6, dtype=torch.int8), torch.zeros(2, 6), ValueError, r"\[2, 2\], but has shape \[2, 6\]"),
        (torch.zeros(4, 6, dtype=torch.int8), torch.zeros(2, 2).int(), TypeError, "must have the type of the table"),
        (torch.zeros(4, 4, dtype=torch.int8), torch.zeros(2, 0), TypeError, r"if it is \[N, C \+ 4\], but `table` is"),
        (torch.zeros(4, dtype=torch.int8), torch.zeros(2), TypeError, r"`table` is \[4\] and `\w+` torch\.float32"),
        (torch.zeros(4, 2, 6, dtype=torch.int8), torch.zeros(2, 2, 2), TypeError, r"\[4, 2, 6\]"),
        (torch.zeros(4, 2), torch.zeros(2, 6, dtype=torch.int8), TypeError, "must have the type of the table"),
    ],
)
def test_int8_refuses(table: Tensor, rows: Tensor, error: type, message: str) -> None:
    before = table.clone()
    with pytest.raises(error, match=f"^scatter_rows: .*{message}"):
        _core.scatter_rows(table, int64(1, 0), rows)
    with pytest.raises(error, match=message):
        _core.gather_rows(table, int64(1, 0), out=rows)
    assert torch.equal(table, before)
