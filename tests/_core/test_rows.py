"""Rows between tables and batches on the host: every call against its slow twin, and every refusal."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
import twins
from hypothesis import given
from hypothesis import strategies as st
from twins import int64

from torch_gas import _core
from torch_gas._core import placement

widths = st.sampled_from([(), (0,), (1,), (3,), (16,), (2, 5)])
TABLE = torch.arange(8.0).view(4, 2)
IDS = int64(3, 1)
ROWS = torch.full((2, 2), -1.0)


@given(twins.seeds, st.sampled_from(twins.TYPE_PAIRS), widths, st.integers(0, 60), twins.id_types, st.data())
def test_gather_rows(
    seed: int,
    types: tuple[torch.dtype, torch.dtype],
    width: tuple[int, ...],
    num_rows: int,
    ids: torch.dtype,
    data: st.DataObject,
) -> None:
    generator = torch.Generator().manual_seed(seed)
    table = twins.random_table(generator, num_rows, width, types[0])
    size = (data.draw(st.integers(0, 80)) if num_rows else 0,)
    index = torch.randint(0, max(num_rows, 1), size, generator=generator).to(ids)
    expected = twins.gather_rows(table, index, types[1])
    twins.same_bits(_core.gather_rows(table, twins.strided(index), types[1]), expected)
    out = torch.empty_like(expected)
    assert _core.gather_rows(table, index, out=out) is out
    twins.same_bits(out, expected)


@given(twins.seeds, st.sampled_from(twins.TYPE_PAIRS), widths, st.integers(0, 60), twins.id_types, st.data())
def test_scatter_rows(
    seed: int,
    types: tuple[torch.dtype, torch.dtype],
    width: tuple[int, ...],
    num_rows: int,
    ids: torch.dtype,
    data: st.DataObject,
) -> None:
    generator = torch.Generator().manual_seed(seed)
    table = twins.random_table(generator, num_rows, width, types[0])
    index = torch.randperm(num_rows, generator=generator)[: data.draw(st.integers(0, num_rows))]
    rows = twins.random_table(generator, index.numel(), width, types[1])
    expected = table.clone()
    twins.scatter_rows(expected, index, rows)
    _core.scatter_rows(table, index.to(ids), twins.strided(rows))
    twins.same_bits(table, expected)


# The types of a table and of rows that are added to it.
SUMS = [(table, rows) for table in _core.SUM_TYPES for rows in twins.FLOATS if rows.itemsize <= table.itemsize]


@given(twins.seeds, st.sampled_from(SUMS), widths, st.integers(0, 60), twins.id_types, st.data())
def test_add_rows(
    seed: int,
    types: tuple[torch.dtype, torch.dtype],
    width: tuple[int, ...],
    num_rows: int,
    ids: torch.dtype,
    data: st.DataObject,
) -> None:
    generator = torch.Generator().manual_seed(seed)
    table = twins.random_table(generator, num_rows, width, types[0])
    index = torch.randint(0, max(num_rows, 1), (data.draw(st.integers(0, 80)) if num_rows else 0,), generator=generator)
    index = data.draw(st.sampled_from([lambda x: x, torch.sort, torch.unique, twins.distinct]))(index)
    index = index if isinstance(index, torch.Tensor) else index[0]
    rows = twins.random_table(generator, index.numel(), width, types[1])
    expected = table.clone()
    twins.add_rows(expected, index, rows)
    _core.add_rows(table, twins.strided(index.to(ids)), twins.strided(rows))
    twins.same_bits(table, expected)


@pytest.mark.parametrize("types", SUMS)
@pytest.mark.parametrize("width", [1, 3, 7, 64, 129])
def test_sums_have_the_same_bits_for_any_number_of_threads(types: tuple[torch.dtype, torch.dtype], width: int) -> None:
    """More rows than a thread takes at a time, of ids in each order; some ids come many times, across pieces of the loop."""
    generator = torch.Generator().manual_seed(width)
    num_rows = 5 * 16384 // (width + 1)
    table = torch.randn(num_rows, width, generator=generator).to(types[0])
    rows = torch.randn(num_rows, width, generator=generator).to(types[1])
    few = torch.randint(0, 5, (num_rows,), generator=generator)
    for index in (torch.arange(num_rows), torch.randperm(num_rows, generator=generator), few, few.sort().values):
        expected = table.clone()
        np.add.at(expected.numpy(), index.numpy(), rows.to(types[0]).numpy())  # one after the other
        for threads in (1, 2, 3, 4):
            torch.set_num_threads(threads)
            sums = table.clone()
            _core.add_rows(sums, index, rows)
            twins.same_bits(sums, expected)


@given(twins.seeds, st.sampled_from(twins.TYPE_PAIRS), widths, st.integers(0, 60), st.data())
def test_chunks(
    seed: int,
    types: tuple[torch.dtype, torch.dtype],
    width: tuple[int, ...],
    num_rows: int,
    data: st.DataObject,
) -> None:
    generator = torch.Generator().manual_seed(seed)
    table = twins.random_table(generator, num_rows, width, types[0])
    offset, count = data.draw(twins.part_ranges(num_rows))
    index = twins.chunk_index(offset, count)
    expected = twins.gather_rows(table, index, types[1])
    twins.same_bits(_core.read_chunks(table, offset, count, types[1]), expected)
    out = torch.empty_like(expected)
    assert _core.read_chunks(table, twins.strided(offset), twins.strided(count), out=out) is out
    twins.same_bits(out, expected)

    rows = twins.random_table(generator, index.numel(), width, types[1])
    expected = table.clone()
    twins.scatter_rows(expected, index, rows)
    _core.write_chunks(table, offset, count, twins.strided(rows))
    twins.same_bits(table, expected)


@given(st.integers(0, 60), st.sampled_from([-(2**63), -1, 0, 2**63 - 1]), st.data())
def test_fill_chunks(num_rows: int, value: int, data: st.DataObject) -> None:
    table = torch.arange(num_rows)
    offset, count = data.draw(twins.part_ranges(num_rows))
    expected = table.clone()
    expected[twins.chunk_index(offset, count)] = value
    before = table._version
    _core.fill_chunks(table, twins.strided(offset), twins.strided(count), value)
    assert torch.equal(table, expected) and table._version > before


@pytest.mark.parametrize("threads", [1, 4])
def test_fill_chunks_on_threads(threads: int) -> None:
    """Ranges that pieces of the loop cut."""
    table, expected = torch.zeros(200_000, dtype=torch.int64), torch.zeros(200_000, dtype=torch.int64)
    offset, count = int64(150_000, 3, 70_000), int64(50_000, 60_000, 1)
    expected[twins.chunk_index(offset, count)] = 9
    before = torch.get_num_threads()
    torch.set_num_threads(threads)
    try:
        _core.fill_chunks(table, offset, count, 9)
    finally:
        torch.set_num_threads(before)
    assert torch.equal(table, expected)


@pytest.mark.parametrize("at", [0, 511, 512, 1300])
@pytest.mark.parametrize("wrong", [-1, -(2**63), 100, 2**63 - 1])
@pytest.mark.parametrize("table", [torch.arange(100), torch.rand(100), torch.rand(100, 3)])
def test_the_first_id_that_is_out_of_range_is_named(at: int, wrong: int, table: torch.Tensor) -> None:
    """Ids are looked at in blocks."""
    index = torch.arange(1500) % 100
    assert torch.equal(_core.gather_rows(table, index), table[index])
    index[at], index[1400] = wrong, -2
    out = torch.zeros(1500, *table.shape[1:], dtype=table.dtype)
    with pytest.raises(IndexError, match=rf"must be in \[0, 100\), but index\[{at}\] is {wrong}"):
        _core.gather_rows(table, index, out=out)
    assert not out.any()
    with pytest.raises(IndexError, match=r"must be in \[0, 0\), but index\[0\] is 0"):
        _core.gather_rows(table[:0], int64(0))


def test_adjacent_ranges() -> None:
    """They move as one, and errors still name the ranges of the caller."""
    table, count = torch.arange(10.0), torch.tensor([2, 0, 1, 3, 0, 2])
    offset = torch.tensor([3, 9, 5, 6, 0, 0])
    assert _core.read_chunks(table, offset, count).tolist() == [3, 4, 5, 6, 7, 8, 0, 1]
    _core.write_chunks(table, offset, count, torch.arange(8.0) + 20)
    assert table.tolist() == [26, 27, 2, 20, 21, 22, 23, 24, 25, 9]
    with pytest.raises(ValueError, match="ranges 1 and 2 do"):
        _core.write_chunks(table, torch.tensor([0, 2, 3]), torch.tensor([2, 2, 1]), torch.zeros(5))


def test_read_chunks_may_overlap() -> None:
    table = torch.arange(6.0)
    rows = _core.read_chunks(table, torch.tensor([1, 2, 1]), torch.tensor([3, 2, 1]))
    assert rows.tolist() == [1, 2, 3, 2, 3, 1]


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_every_16_bit_number_converts(dtype: torch.dtype) -> None:
    every = torch.arange(2**16)
    table = every.to(torch.uint16).view(dtype)
    wide = _core.gather_rows(table, every, torch.float32)
    twins.same_bits(wide, table.float())
    twins.same_bits(_core.gather_rows(wide, every, dtype), table)
    # Halfway between neighbours, where rounding is to even, and next to it on both sides.
    halfway = ((wide.double() + wide.double().roll(-1)) / 2).float()
    infinity = torch.tensor(float("inf"))
    for numbers in (halfway, halfway.nextafter(infinity), halfway.nextafter(-infinity)):
        twins.same_bits(_core.gather_rows(numbers, every, dtype), numbers.to(dtype))


@pytest.mark.parametrize("types", [(torch.float32, torch.float32), (torch.float16, torch.float32)])
def test_many_rows_with_any_number_of_threads(types: tuple[torch.dtype, torch.dtype]) -> None:
    generator = torch.Generator().manual_seed(0)
    num_rows = 50_000
    table = twins.random_table(generator, num_rows, (33,), types[0])
    index = torch.randperm(num_rows, generator=generator)
    offset, count = torch.tensor([20_000, 0]), torch.tensor([30_000, 20_000])
    for threads in (1, 2, 16):
        torch.set_num_threads(threads)
        rows = _core.gather_rows(table, index, types[1])
        twins.same_bits(rows, twins.gather_rows(table, index, types[1]))
        copy = torch.zeros_like(table)
        _core.scatter_rows(copy, index, rows)
        twins.same_bits(copy, table)
        rows = _core.read_chunks(table, offset, count, types[1])
        twins.same_bits(rows, table.roll(30_000, 0).to(types[1]))
        copy = torch.zeros_like(table)
        _core.write_chunks(copy, offset, count, rows)
        twins.same_bits(copy, table)


@pytest.mark.parametrize("types", [(torch.float32, torch.float32), (torch.float32, torch.bfloat16)])
@pytest.mark.parametrize("width", [32, 33, 700])
@pytest.mark.parametrize("first", [0, 1])
def test_rows_that_are_written_around_the_caches(
    types: tuple[torch.dtype, torch.dtype], width: int, first: int
) -> None:
    """Both tables hold more than what is written otherwise; rows start at lines of the cache and elsewhere."""
    num_rows = 2_200_000 // width
    generator = torch.Generator().manual_seed(0)
    table = torch.randn(first + num_rows * width, generator=generator).to(types[0])[first:].view(num_rows, width)
    index = torch.randperm(num_rows, generator=generator)
    offset, count = torch.tensor([num_rows // 2, 0]), torch.tensor([num_rows - num_rows // 2, num_rows // 2])
    for threads in (1, 3):
        torch.set_num_threads(threads)
        assert torch.equal(_core.gather_rows(table, index, types[1]), table[index].to(types[1]))
        rows = _core.read_chunks(table, offset, count, types[1])
        assert torch.equal(rows, table.roll(num_rows - num_rows // 2, 0).to(types[1]))
        copy = torch.zeros(first + num_rows * width, dtype=types[0])[first:].view(num_rows, width)
        _core.scatter_rows(copy, index, rows)
        assert torch.equal(copy[index], rows.to(types[0]))
        copy.zero_()
        _core.write_chunks(copy, offset, count, rows)
        assert torch.equal(copy, table.to(types[1]).to(types[0]))


@given(twins.seeds, st.sampled_from(twins.FLOATS + twins.COPIED), widths, st.integers(1, 60), st.data())
def test_batch_rows(seed: int, dtype: torch.dtype, width: tuple[int, ...], num_rows: int, data: st.DataObject) -> None:
    generator = torch.Generator().manual_seed(seed)
    table = twins.random_table(generator, num_rows, width, dtype)
    offset, count = data.draw(twins.part_ranges(num_rows))
    halo = torch.randint(0, num_rows, (data.draw(st.integers(0, 20)),), generator=generator)
    n_id = torch.cat([twins.chunk_index(offset, count), halo])
    twins.same_bits(_core.batch_rows(table, offset, count, halo), table[n_id])


def test_is_table() -> None:
    table = torch.zeros(4, 2)
    assert all(_core.is_table(x) for x in (table, table.bfloat16(), table.bool(), torch.zeros(3)))
    others = (None, [1.0], torch.tensor(1.0), table.T, table.cfloat(), table.to("meta"), table.to_sparse())
    assert not any(_core.is_table(x) for x in (*others, torch.nn.Parameter(table), table.clone().requires_grad_()))


def test_autograd_notices_a_write() -> None:
    table = torch.ones(3, 2)
    weight = torch.ones(3, 2, requires_grad=True)
    loss = (table * weight).sum()
    _core.scatter_rows(table, torch.tensor([0]), torch.zeros(1, 2))
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        loss.backward()


def test_writes_under_inference_mode() -> None:
    with torch.inference_mode():
        table = torch.zeros(3, 2)
        _core.scatter_rows(table, torch.tensor([1]), torch.ones(1, 2))
        assert table.sum() == 2


@pytest.mark.parametrize(
    ("call", "changes", "error", "message"),
    [
        ("gather_rows", {"table": None}, TypeError, "`table` must be a torch.Tensor"),
        ("gather_rows", {"table": TABLE.cfloat()}, TypeError, "`table` must be one of float32"),
        ("gather_rows", {"table": torch.tensor(1.0)}, ValueError, "`table` must have rows"),
        ("gather_rows", {"table": TABLE.T}, ValueError, "`table` must be contiguous"),
        ("gather_rows", {"table": TABLE.to("meta")}, ValueError, "on meta and `index` on cpu"),
        ("gather_rows", {"index": IDS.float()}, TypeError, "`index` must be one of int32, int64"),
        ("gather_rows", {"index": IDS.bool()}, TypeError, "`index` must be one of int32, int64"),
        ("gather_rows", {"index": IDS.view(2, 1)}, ValueError, "`index` must have one dimension"),
        ("gather_rows", {"index": int64(0, 4)}, IndexError, r"index\[1\] is 4"),
        ("gather_rows", {"index": int64(0, -1)}, IndexError, r"index\[1\] is -1"),
        ("gather_rows", {"index": int64(2**40).int() - 1}, IndexError, r"index\[0\] is -1"),
        ("gather_rows", {"dtype": torch.int64}, TypeError, "`dtype` must have the type of the"),
        ("gather_rows", {"out": ROWS.long()}, TypeError, "`out` must have the type of the table"),
        ("gather_rows", {"out": ROWS[:1]}, ValueError, r"\[2, 2\], but has shape \[1, 2\]"),
        ("gather_rows", {"out": ROWS.T}, ValueError, "`out` must be contiguous"),
        ("gather_rows", {"out": ROWS.to("meta")}, ValueError, "but are on cpu and meta"),
        (
            "gather_rows",
            {"out": ROWS, "dtype": torch.float16},
            TypeError,
            "`out` must be of the type asked for",
        ),
        (
            "gather_rows",
            {"table": TABLE.to("meta"), "index": IDS.to("meta")},
            ValueError,
            "`index` is on meta; keep the table on the host",
        ),
        ("scatter_rows", {"index": int64(0, 4)}, IndexError, r"index\[1\] is 4"),
        ("scatter_rows", {"index": int64(0, -1)}, IndexError, r"index\[1\] is -1"),
        (
            "scatter_rows",
            {"index": int64(3, 3)},
            ValueError,
            r"index\[0\] and index\[1\] are both",
        ),
        ("scatter_rows", {"rows": ROWS[:1]}, ValueError, r"\[2, 2\], but has shape \[1, 2\]"),
        ("scatter_rows", {"rows": ROWS[:, :1]}, ValueError, "never broadcast"),
        ("scatter_rows", {"rows": ROWS[0]}, ValueError, r"but has shape \[2\]"),
        ("scatter_rows", {"rows": ROWS.long()}, TypeError, "`rows` must have the type of the"),
        ("scatter_rows", {"rows": ROWS.to("meta")}, ValueError, "but are on cpu and meta"),
        ("add_rows", {"table": TABLE.half()}, TypeError, "`table` must be one of float32, float64"),
        ("add_rows", {"table": TABLE.T}, ValueError, "`table` must be contiguous"),
        ("add_rows", {"index": int64(0, 4)}, IndexError, r"index\[1\] is 4"),
        ("add_rows", {"index": int64(3, -1)}, IndexError, r"index\[1\] is -1"),
        ("add_rows", {"index": int64(4, 4)}, IndexError, r"index\[0\] is 4"),
        ("add_rows", {"rows": ROWS[:1]}, ValueError, r"\[2, 2\], but has shape \[1, 2\]"),
        ("add_rows", {"rows": ROWS[:, :1]}, ValueError, "never broadcast"),
        (
            "add_rows",
            {"rows": ROWS.double()},
            TypeError,
            r"not wider than that of `table` \(.*\), but is torch.float64",
        ),
        ("add_rows", {"rows": ROWS.long()}, TypeError, "`rows` must be of a floating-point type"),
        ("add_rows", {"rows": ROWS.to("meta")}, ValueError, "but are on cpu and meta"),
        (
            "read_chunks",
            {"offset": int64(3, 0)},
            IndexError,
            "range 0 has `offset` 3 and `count` 2",
        ),
        ("read_chunks", {"offset": int64(-1, 0)}, IndexError, "range 0 has `offset` -1"),
        ("read_chunks", {"count": int64(1, -1)}, IndexError, "range 1 has .* `count` -1"),
        ("read_chunks", {"count": int64(2**62, 2**62)}, IndexError, "range 0 has .* `count` 4611"),
        ("read_chunks", {"count": int64(1)}, ValueError, "`offset` and `count` must be equally"),
        ("read_chunks", {"count": int64(2, 1).int()}, TypeError, "`count` must be one of int64"),
        ("read_chunks", {"out": ROWS}, ValueError, r"\[3, 2\], but has shape \[2, 2\]"),
        ("write_chunks", {"offset": int64(3, 0)}, IndexError, "range 0 has `offset` 3"),
        ("write_chunks", {"offset": int64(0, 1)}, ValueError, "ranges 0 and 1 do"),
        ("write_chunks", {"count": int64(1, 1)}, ValueError, "`count` sums to 2 rows, .* are 3"),
        ("write_chunks", {"rows": ROWS[:, :1]}, ValueError, "never broadcast"),
        ("write_chunks", {"rows": torch.tensor(1.0)}, ValueError, r"\[M, 2\], but has shape \[\]"),
        ("fill_chunks", {"offset": int64(3, 0)}, IndexError, "range 0 has `offset` 3"),
        ("fill_chunks", {"offset": int64(0, 1)}, ValueError, "ranges 0 and 1 do"),
        ("fill_chunks", {"count": int64(1)}, ValueError, "`offset` and `count` must be equally"),
        ("fill_chunks", {"table": TABLE}, TypeError, "`table` must be one of int64"),
        ("fill_chunks", {"table": int64(*range(8))[::2]}, ValueError, "`table` must be contiguous"),
        ("fill_chunks", {"table": int64(*range(4)).view(2, 2)}, ValueError, "`table` must have one dimension"),
        ("fill_chunks", {"table": int64(1).to("meta")}, ValueError, "`table` must be on the host"),
        ("fill_chunks", {"value": 2**63}, ValueError, "`value` must have 64 bits"),
        ("fill_chunks", {"value": 1.0}, TypeError, "`value` must be an int"),
    ],
)
def test_rows_refuses(call: str, changes: dict[str, object], error: type, message: str) -> None:
    chunks = {"offset": int64(2, 0), "count": int64(2, 1)}
    arguments: dict[str, object] = {
        "gather_rows": {"index": IDS},
        "scatter_rows": {"index": IDS, "rows": ROWS},
        "add_rows": {"index": IDS, "rows": ROWS},
        "read_chunks": chunks,
        "write_chunks": {**chunks, "rows": torch.full((3, 2), -1.0)},
        "fill_chunks": {"table": torch.arange(4), **chunks, "value": 1},
    }[call]
    table, rows = TABLE.clone(), ROWS.clone()
    with pytest.raises(error, match=f"^{call}: .*{message}"):
        getattr(_core, call)(**{"table": TABLE, **arguments, **changes})
    assert torch.equal(TABLE, table), "nothing may be written before an error"
    assert torch.equal(ROWS, rows), "nothing may be written before an error"


@pytest.mark.parametrize("call", ["gather_rows", "read_chunks", "write_chunks"])
def test_staging_refuses(call: str) -> None:
    chunks = {"offset": int64(2), "count": int64(2)}
    arguments = {"gather_rows": {"index": IDS}, "read_chunks": chunks, "write_chunks": {**chunks, "rows": ROWS}}[call]
    table = TABLE.clone()
    with pytest.raises(TypeError, match=f"^{call}: `staging` must be a Staging, but is tuple"):
        getattr(_core, call)(table, **arguments, staging=(torch.empty(64, dtype=torch.uint8), None))
    assert torch.equal(table, TABLE)
    staging = object.__new__(_core.Staging)  # a whole one needs a CUDA device
    with pytest.raises(ValueError, match=f"^{call}: `staging` is for tables on the host, but `table` is on meta"):
        getattr(_core, call)(TABLE.to("meta"), **arguments, staging=staging)


@pytest.mark.parametrize(("threads", "half"), [(1, 1), (2, 1), (7, 3)])
def test_staged_copies_use_half_of_the_threads(threads: int, half: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """The main thread has a team of its own."""
    calls: list[tuple[str, int]] = []

    class Core:
        """The core as one with CUDA is called."""

        Staging = staticmethod(lambda *args: args)

        def __getattr__(self, name: str) -> Any:
            is_call = name in ("write_chunks", "staged_write_chunks")
            return (lambda *args: calls.append((name, args[-1]))) if is_call else getattr(placement_core, name)

    class Stream:
        cuda_stream = 0

    placement_core = placement._C
    monkeypatch.setattr(placement, "_C", Core())
    monkeypatch.setattr(torch, "get_num_threads", lambda: threads)
    staging = object.__new__(_core.Staging)
    staging.buffer, staging.stream = torch.empty(64, dtype=torch.uint8), Stream()
    where = int64(2), int64(2)
    placement.move("write_chunks", TABLE.clone(), ROWS, *(each.data_ptr() for each in where), 1, staging=staging)
    placement.move("write_chunks", TABLE.clone(), ROWS, *(each.data_ptr() for each in where), 1)
    assert calls == [("staged_write_chunks", half), ("write_chunks", threads)]


def test_rows_of_a_batch_in_memory_that_is_given() -> None:
    tables = [TABLE, torch.arange(4)]
    out = [torch.zeros(3, 2), torch.zeros(3, dtype=torch.int64)]
    found = _core.batch_rows_into(tables, int64(2), int64(2), int64(0), out)
    assert all(left is right for left, right in zip(found, out, strict=True))
    assert torch.equal(out[0], TABLE[[2, 3, 0]]) and torch.equal(out[1], int64(2, 3, 0))
    for wrong in (out[:1], [out[0], torch.zeros(2, dtype=torch.int64)], [torch.zeros(3, 2, device="meta"), out[1]]):
        with pytest.raises(ValueError, match=r"shorter|`out`"):
            _core.batch_rows_into(tables, int64(2), int64(2), int64(0), wrong)
