"""`torch_gas._core` on the host: every function against its slow twin, and every refusal."""

from __future__ import annotations

import mmap
import os
import re
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
import twins
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from torch_gas import _core

seeds = st.integers(0, 2**32 - 1)
id_types = st.sampled_from(twins.IDS)
thread_counts = st.sampled_from([1, 2, 5])
widths = st.sampled_from([(), (0,), (1,), (3,), (16,), (2, 5)])


@pytest.fixture(autouse=True)
def restore_threads() -> Iterator[None]:
    before = torch.get_num_threads()
    yield
    torch.set_num_threads(before)


def strided(x: Tensor) -> Tensor:
    """The same values, one element apart in memory."""
    wide = x.new_zeros(*x.shape, 2)
    wide[..., 0] = x
    return wide[..., 0]


def assert_all_same(actual: tuple[Tensor | None, ...], expected: tuple[Tensor | None, ...]) -> None:
    for a, b in zip(actual, expected, strict=True):
        assert (a is None) == (b is None)
        if a is not None:
            twins.same_bits(a, b)


# --- graphs ---------------------------------------------------------------------------------------


@given(st.data(), seeds, st.integers(0, 150), st.integers(0, 600), id_types, st.booleans())
def test_subgraph(
    data: st.DataObject, seed: int, num_nodes: int, num_edges: int, ids: torch.dtype, apart: bool
) -> None:
    rowptr, col = twins.random_graph(torch.Generator().manual_seed(seed), num_nodes, num_edges)
    rowptr, col = rowptr.to(ids), col.to(ids)
    start, count = data.draw(twins.part_ranges(num_nodes))
    arguments = [strided(x) if apart else x for x in (rowptr, col, start, count)]
    for ascending in (False, True):
        for coo in (False, True):
            sub = _core.subgraph(*arguments, ascending=ascending, coo=coo)
            assert_all_same(sub, twins.subgraph(rowptr, col, start, count, ascending, coo))
            assert torch.equal(sub.halo, sub.n_id[int(count.sum()) :])


@given(seeds, st.integers(0, 40), st.integers(0, 40), st.integers(0, 300), id_types, st.booleans())
def test_transpose(seed: int, num_rows: int, num_cols: int, nnz: int, ids: torch.dtype, apart: bool) -> None:
    generator = torch.Generator().manual_seed(seed)
    nnz = nnz if num_rows and num_cols else 0
    row = torch.randint(0, max(num_rows, 1), (nnz,), generator=generator)
    rowptr = twins.pointers(row, num_rows).to(ids)
    col = torch.randint(0, max(num_cols, 1), (nnz,), generator=generator).to(ids)
    arguments = [strided(x) if apart else x for x in (rowptr, col)]
    for dtype in (None, *twins.IDS):
        actual = _core.transpose(*arguments, num_cols, dtype)
        assert_all_same(actual, twins.transpose(rowptr, col, num_cols, dtype))


@given(seeds, st.integers(0, 40), st.integers(0, 300), id_types, st.booleans())
def test_to_csr(seed: int, num_nodes: int, num_edges: int, ids: torch.dtype, apart: bool) -> None:
    generator = torch.Generator().manual_seed(seed)
    size = (num_edges if num_nodes else 0,)
    src = torch.randint(0, max(num_nodes, 1), size, generator=generator).to(ids)
    dst = torch.randint(0, max(num_nodes, 1), size, generator=generator).to(ids)
    arguments = [strided(x) if apart else x for x in (src, dst)]
    assert_all_same(_core.to_csr(*arguments, num_nodes), twins.to_csr(src, dst, num_nodes))


@pytest.mark.parametrize("ids", twins.IDS)
def test_large_graph_with_any_number_of_threads(ids: torch.dtype) -> None:
    """Large enough for every loop to be split, with N that is no multiple of a bitmap word."""
    num_nodes, num_edges = 150_001, 400_000
    generator = torch.Generator().manual_seed(0)
    src = torch.randint(0, num_nodes, (num_edges,), generator=generator).to(ids)
    # Most edges share few destinations, so that counting sorts are split, too.
    dst = torch.randint(0, 1000, (num_edges,), generator=generator).to(ids)
    dst[:1000] = torch.randint(0, num_nodes, (1000,), generator=generator).to(ids)
    start, count = torch.tensor([90_000, 0, 30_000]), torch.tensor([60_001, 20_000, 7])
    csr = twins.to_csr(src, dst, num_nodes)
    by_source = twins.transpose(csr[0], csr[1], num_nodes)
    few = dst % 1000
    by_few = twins.to_csr(src % 1000, few, 1000)
    subs: list[_core.Subgraph] = []
    ascending: list[_core.Subgraph] = []
    for threads in (1, 2, 3, 16):
        torch.set_num_threads(threads)
        assert_all_same(_core.to_csr(src, dst, num_nodes), csr)
        assert_all_same(_core.to_csr(src % 1000, few, 1000), by_few)
        assert_all_same(_core.transpose(csr[0], csr[1], num_nodes), by_source)
        subs.append(_core.subgraph(csr[0], csr[1], start, count, coo=True))
        assert_all_same(subs[-1], subs[0])
        ascending.append(_core.subgraph(csr[0], csr[1], start, count, ascending=True))
        assert_all_same(ascending[-1], ascending[0])
    batch = twins.chunk_index(start, count)
    local = torch.cat([batch, subs[0].halo])
    assert torch.equal(local[subs[0].col.long()], csr[1][subs[0].e_id].long())
    assert subs[0].halo.numel() == subs[0].halo.unique().numel() > 10_000
    assert not torch.isin(subs[0].halo, batch).any()

    rowptr, col, e_id, n_id, edge_index = subs[0]
    row = torch.arange(batch.numel()).repeat_interleave(rowptr.long().diff())
    assert edge_index is not None and torch.equal(edge_index, torch.stack([col, row.to(ids)]))
    order = (row * n_id.numel() + col).sort(stable=True).indices
    assert_all_same(ascending[0], (rowptr, col[order], e_id[order], n_id, None))


@given(seeds, st.integers(1, 40), st.integers(0, 300), id_types, id_types, st.booleans(), st.booleans(), st.booleans())
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
    src, dst, rowptr = ((strided(x) if apart else x).to(ids) for x in (src, dst, rowptr))
    pairs, col, sums = _core.adjacent_pairs(src, None if csr else dst, rowptr if csr else None, num_nodes, weight, out)
    assert col.dtype == out and (sums is not None) == weighted
    assert_all_same((pairs, col.long(), *([sums] if weighted else [])), expected)

    integers = torch.randint(1, 100, (col.numel(),), generator=generator)
    assert_all_same(_core.symmetric(pairs, col, integers), twins.symmetric(pairs, col, integers))
    assert_all_same(_core.symmetric(pairs, col)[:2], twins.symmetric(pairs, col, integers)[:2])
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
        assert_all_same(results[-1], results[0])
        assert_all_same(_core.adjacent_pairs(col, None, rowptr, 3000, weight[perm]), results[0])
    expected = twins.adjacent_pairs(src, dst, 3000, weight)
    assert_all_same(results[0][:2], expected[:2])
    torch.testing.assert_close(results[0][2], expected[2])


def test_stream_parts_end_when_the_report_raises() -> None:
    rowptr, col = twins.random_graph(torch.Generator().manual_seed(0), 200, 2000)
    shares: list[float] = []

    def report(share: float) -> None:
        shares.append(share)
        if len(shares) == 3:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        _core.stream_parts(rowptr, col, 4, 0, report)
    assert len(shares) == 3
    part = _core.stream_parts(rowptr, col, 4, 0, shares.append)
    assert 6 < len(shares) - 3 <= _core.stream_passes()
    row = torch.arange(200).repeat_interleave(rowptr.diff())
    # Each pass sees nodes move while it goes, and the last moves few.
    assert shares[-1] == pytest.approx(float((part[row] != part[col]).double().mean()), abs=0.06)
    assert part.bincount(minlength=4).max() <= 52
    weight = torch.ones(2000, dtype=torch.float64), torch.ones(200, dtype=torch.int64)
    assert torch.equal(_core.stream_parts(rowptr.int(), col.int(), 4, 0, shares.append, *weight), part)


# --- rows -----------------------------------------------------------------------------------------


@given(seeds, st.sampled_from(twins.TYPE_PAIRS), widths, st.integers(0, 60), id_types, st.data())
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
    twins.same_bits(_core.gather_rows(table, strided(index), types[1]), expected)
    out = torch.empty_like(expected)
    assert _core.gather_rows(table, index, out=out) is out
    twins.same_bits(out, expected)


@given(seeds, st.sampled_from(twins.TYPE_PAIRS), widths, st.integers(0, 60), id_types, st.data())
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
    _core.scatter_rows(table, index.to(ids), strided(rows))
    twins.same_bits(table, expected)


@given(seeds, st.sampled_from(twins.TYPE_PAIRS), widths, st.integers(0, 60), st.data())
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
    assert _core.read_chunks(table, strided(offset), strided(count), out=out) is out
    twins.same_bits(out, expected)

    rows = twins.random_table(generator, index.numel(), width, types[1])
    expected = table.clone()
    twins.scatter_rows(expected, index, rows)
    _core.write_chunks(table, offset, count, strided(rows))
    twins.same_bits(table, expected)


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


@given(seeds, st.sampled_from(twins.FLOATS + twins.COPIED), widths, st.integers(1, 60), st.data())
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


# --- memory ---------------------------------------------------------------------------------------


def mapping_flags(address: int) -> set[str]:
    """What Linux knows of the mapping that `address` lies in."""
    inside = False
    for line in Path("/proc/self/smaps").read_text().splitlines():
        first = re.match("([0-9a-f]+)-([0-9a-f]+) ", line)
        if first:
            inside = int(first[1], 16) <= address < int(first[2], 16)
        elif inside and line.startswith("VmFlags:"):
            return set(line.split()[1:])
    raise LookupError(f"no mapping holds {address:#x}")


@pytest.mark.skipif(not Path("/sys/kernel/mm/transparent_hugepage").exists(), reason="needs huge pages of Linux")
def test_advise_huge_pages() -> None:
    table = torch.frombuffer(mmap.mmap(-1, 2**25), dtype=torch.float32).view(-1, 2)
    expected = torch.arange(2.0**23).view(-1, 2)
    table.copy_(expected)
    assert "hg" not in mapping_flags(table[2**21].data_ptr())
    assert _core.advise_huge_pages(table[1:]) is True
    assert "hg" in mapping_flags(table[2**21].data_ptr())
    assert torch.equal(table, expected)


def test_no_huge_pages_below_less_than_one_page() -> None:
    assert _core.advise_huge_pages(torch.zeros(8)) is False


# --- threads and processes ------------------------------------------------------------------------


def test_concurrent_callers() -> None:
    """More callers than threads, all splitting their loops."""
    generator = torch.Generator().manual_seed(0)
    num_nodes = 20_000
    src = torch.randint(0, num_nodes, (200_000,), generator=generator)
    dst = torch.randint(0, num_nodes, (200_000,), generator=generator)
    rowptr, col, _ = _core.to_csr(src, dst, num_nodes)
    starts = [torch.tensor([n, 10_000 + n]) for n in range(0, 4000, 500)]
    count = torch.tensor([5000, 5000])
    torch.set_num_threads(1)
    expected = [_core.subgraph(rowptr, col, s, count, coo=True) for s in starts]
    wrong: list[int] = []

    def caller(which: int) -> None:
        torch.set_num_threads(3)
        for _ in range(20):
            sub = _core.subgraph(rowptr, col, starts[which], count, coo=True)
            if not all(torch.equal(a, b) for a, b in zip(sub, expected[which], strict=True)):
                wrong.append(which)

    callers = [threading.Thread(target=caller, args=(which,)) for which in range(len(starts))]
    for thread in callers:
        thread.start()
    for thread in callers:
        thread.join()
    assert not wrong


@pytest.mark.skipif(not hasattr(os, "fork"), reason="needs fork")
def test_fork() -> None:
    """A child gets a pool of its own, whatever the threads of its parent were doing."""
    program = """
import os, sys, threading, torch
from torch_gas import _core
torch.set_num_threads(4)
table, index = torch.randn(50_000, 16), torch.randperm(50_000)
expected = table[index].numpy().tobytes()
stop = threading.Event()

def keep_the_pool_busy():
    while not stop.is_set():
        _core.gather_rows(table, index)

busy = threading.Thread(target=keep_the_pool_busy)
busy.start()
for _ in range(10):
    child = os.fork()
    if child == 0:
        same = _core.gather_rows(table, index).numpy().tobytes() == expected
        threads = len(os.listdir("/proc/self/task")) if sys.platform == "linux" else 4
        os._exit(0 if same and threads == 4 else 1)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0
stop.set()
busy.join()
print("done")
"""
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, timeout=120)
    assert done.stdout == "done\n", done.stderr


# --- refusals -------------------------------------------------------------------------------------


def tensor(*values: int) -> Tensor:
    return torch.tensor(values, dtype=torch.int64)


ROWPTR, COL = tensor(0, 2, 3, 4), tensor(1, 2, 0, 0)
ONE, TWO = tensor(1), tensor(2)


@pytest.mark.parametrize(
    ("changes", "error", "message"),
    [
        ({"rowptr": [0, 1]}, TypeError, "`rowptr` must be a torch.Tensor, but is list"),
        ({"rowptr": ROWPTR.float()}, TypeError, "`rowptr` must be one of int32, int64, but is"),
        ({"rowptr": ROWPTR.int()}, TypeError, "`col` must have the type of `rowptr`"),
        ({"rowptr": ROWPTR.view(2, 2)}, ValueError, "`rowptr` must have one dimension"),
        ({"rowptr": tensor()}, ValueError, "`rowptr` must have one element more"),
        ({"rowptr": ROWPTR.to("meta")}, ValueError, "`rowptr` must be on the host"),
        ({"rowptr": ROWPTR.view(2, 2).to_sparse()}, TypeError, "`rowptr` must be a dense tensor"),
        ({"rowptr": tensor(0, 3, 2, 4)}, ValueError, r"rowptr\[1\] is 3 and rowptr\[2\] is 2"),
        (
            {"rowptr": tensor(0, 2, 9, 9)},
            ValueError,
            r"length of `col` \(4\), but rowptr\[1\] is 2",
        ),
        ({"rowptr": tensor(0, -2, 3, 4)}, ValueError, r"rowptr\[1\] is -2"),
        ({"col": tensor(1, 2, 3, 0)}, IndexError, r"in \[0, 3\), but col\[2\] is 3"),
        ({"col": tensor(1, 2, -1, 0)}, IndexError, r"in \[0, 3\), but col\[2\] is -1"),
        ({"start": tensor(1, 0)}, ValueError, "`start` and `count` must be equally long"),
        ({"start": ONE.int()}, TypeError, "`start` must be one of int64"),
        ({"start": tensor(3)}, IndexError, "range 0 has `start` 3 and `count` 1"),
        ({"start": tensor(-1)}, IndexError, "range 0 has `start` -1 and `count` 1"),
        ({"count": tensor(-1)}, IndexError, "range 0 has `start` 1 and `count` -1"),
        ({"count": tensor(2**63 - 1)}, IndexError, "range 0 has `start` 1 and `count` 9223"),
        (
            {"start": tensor(1, 2, 1), "count": tensor(1, 1, 1)},
            ValueError,
            "ranges 0 and 2 do .*pass every part once",
        ),
        (
            {"start": tensor(1, 0), "count": tensor(2, 2)},
            ValueError,
            r"ranges 0 and 1 do \(`start` 1 and 0, `count` 2 and 2\)",
        ),
    ],
)
def test_subgraph_refuses(changes: dict[str, Tensor], error: type, message: str) -> None:
    arguments = {"rowptr": ROWPTR, "col": COL, "start": ONE, "count": ONE, **changes}
    with pytest.raises(error, match=f"^subgraph: .*{message}"):
        _core.subgraph(**arguments)


def test_subgraph_checks_only_what_it_reads() -> None:
    sub = _core.subgraph(tensor(9, 2, 3, -4), COL, ONE, ONE)
    assert sub.e_id.tolist() == [2]


PAIRS = {"src": torch.tensor([0, 1]), "dst": torch.tensor([1, 2]), "rowptr": None, "num_nodes": 3, "weight": None}
STREAM = {"rowptr": torch.tensor([0, 1, 2]), "col": torch.tensor([1, 0]), "num_parts": 2, "seed": 0, "report": print}


@pytest.mark.parametrize(
    ("call", "changes", "error", "message"),
    [
        ("adjacent_pairs", {"dst": None}, ValueError, "one of `dst` and `rowptr` must be given"),
        ("adjacent_pairs", {"dst": torch.tensor([1])}, ValueError, "`dst` must have 2 elements, but has 1"),
        ("adjacent_pairs", {"dst": torch.tensor([1, 2]).int()}, TypeError, "`dst` must have the type of `src`"),
        ("adjacent_pairs", {"dst": torch.tensor([1, 3])}, IndexError, r"every id in `dst` must be in \[0, 3\)"),
        (
            "adjacent_pairs",
            {"src": torch.tensor([-1, 0])},
            IndexError,
            r"`src` must be in \[0, 3\), but src\[0\] is -1",
        ),
        ("adjacent_pairs", {"dst": None, "rowptr": torch.tensor([0, 2])}, ValueError, "`rowptr` must have 4 elements"),
        ("adjacent_pairs", {"dst": None, "rowptr": torch.tensor([0, 2, 1, 2])}, ValueError, "`rowptr` must ascend"),
        ("adjacent_pairs", {"dst": None, "rowptr": torch.tensor([0, 1, 1, 1])}, ValueError, "goes from 0 to 1"),
        ("adjacent_pairs", {"weight": torch.ones(2)}, TypeError, "`weight` must be one of float64"),
        ("adjacent_pairs", {"weight": torch.ones(3).double()}, ValueError, "`weight` must have 2 elements"),
        ("adjacent_pairs", {"dtype": torch.int16}, TypeError, "`dtype` must be one of int32, int64"),
        ("stream_parts", {"rowptr": torch.tensor([0, 1, 1])}, ValueError, "goes from 0 to 1"),
        ("stream_parts", {"col": torch.tensor([1, 2])}, IndexError, r"`col` must be in \[0, 2\), but col\[1\] is 2"),
        ("stream_parts", {"num_parts": 0}, ValueError, r"`num_parts` must lie in 1 \.\. 2\*\*31 - 1, but is 0"),
        ("stream_parts", {"seed": -1}, ValueError, "`seed` must not be negative"),
        ("stream_parts", {"edge_weight": torch.ones(3).double()}, ValueError, "`edge_weight` must have 2 elements"),
        ("stream_parts", {"node_weight": torch.ones(2)}, TypeError, "`node_weight` must be one of int64"),
    ],
)
def test_partitioning_refuses(call: str, changes: dict[str, object], error: type, message: str) -> None:
    arguments = {**(PAIRS if call == "adjacent_pairs" else STREAM), **changes}
    with pytest.raises(error, match=message):
        getattr(_core, call)(**arguments)


@pytest.mark.parametrize("threads", [1, 4])
def test_errors_name_the_first_bad_id(threads: int) -> None:
    torch.set_num_threads(threads)
    col = torch.zeros(100_000, dtype=torch.int64)
    col[[30_000, 70_000, 99_999]] = tensor(5, 6, 7)
    with pytest.raises(IndexError, match=r"col\[30000\] is 5"):
        _core.subgraph(tensor(0, 100_000), col, tensor(0), ONE)
    with pytest.raises(IndexError, match=r"index\[30000\] is 5"):
        _core.gather_rows(torch.zeros(5), col)
    repeated = torch.arange(100_000)
    repeated[[40_000, 90_000]] = 7
    with pytest.raises(ValueError, match=r"index\[7\] and index\[40000\] are both 7"):
        _core.scatter_rows(torch.zeros(100_000), repeated, torch.zeros(100_000))


@pytest.mark.parametrize(
    ("rowptr", "col", "num_cols", "error", "message"),
    [
        (tensor(0, 2, 1), tensor(0, 0), 1, ValueError, r"rowptr\[1\] is 2 and rowptr\[2\] is 1"),
        (tensor(0, 1), tensor(0, 0), 1, ValueError, r"\(2\), but goes from 0 to 1"),
        (tensor(1, 2), tensor(0, 0), 1, ValueError, r"\(2\), but goes from 1 to 2"),
        (tensor(0, 3), tensor(0, 0), 1, ValueError, r"rowptr\[1\] is 3"),
        (
            tensor(0, 2),
            tensor(0, 4),
            4,
            IndexError,
            r"`col` must be in \[0, 4\), but col\[1\] is 4",
        ),
        (tensor(0, 1), tensor(0).int(), 1, TypeError, "`col` must have the type of `rowptr`"),
        (tensor(0, 1), tensor(0), -1, ValueError, "`num_cols` must not be negative, but is -1"),
        (tensor(0, 1), tensor(0), 1.5, TypeError, "`num_cols` must be an int, but is float"),
        (tensor(0, 1), tensor(0), True, TypeError, "`num_cols` must be an int, but is bool"),
    ],
)
def test_transpose_refuses(rowptr: Tensor, col: Tensor, num_cols: int, error: type, message: str) -> None:
    with pytest.raises(error, match=f"^transpose: .*{message}"):
        _core.transpose(rowptr, col, num_cols)


def test_transpose_refuses_types() -> None:
    with pytest.raises(TypeError, match=r"^transpose: `dtype` must be one of int32, int64, but is torch\.int16"):
        _core.transpose(tensor(0, 1), tensor(0), 1, torch.int16)


@pytest.mark.parametrize(
    ("src", "dst", "num_nodes", "error", "message"),
    [
        (tensor(0, 1), tensor(0), 2, ValueError, "equally long, but have 2 and 1 elements"),
        (tensor(2), tensor(0), 2, IndexError, r"`src` must be in \[0, 2\), but src\[0\] is 2"),
        (tensor(0), tensor(-1), 2, IndexError, r"`dst` must be in \[0, 2\), but dst\[0\] is -1"),
        (tensor(0), tensor(0).int(), 2, TypeError, "`dst` must have the type of `src`"),
        (tensor(0), tensor(0), -2, ValueError, "`num_nodes` must not be negative"),
    ],
)
def test_to_csr_refuses(src: Tensor, dst: Tensor, num_nodes: int, error: type, message: str) -> None:
    with pytest.raises(error, match=f"^to_csr: .*{message}"):
        _core.to_csr(src, dst, num_nodes)


TABLE = torch.arange(8.0).view(4, 2)
IDS = tensor(3, 1)
ROWS = torch.full((2, 2), -1.0)


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
        ("gather_rows", {"index": tensor(0, 4)}, IndexError, r"index\[1\] is 4"),
        ("gather_rows", {"index": tensor(0, -1)}, IndexError, r"index\[1\] is -1"),
        ("gather_rows", {"index": tensor(2**40).int() - 1}, IndexError, r"index\[0\] is -1"),
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
        ("scatter_rows", {"index": tensor(0, 4)}, IndexError, r"index\[1\] is 4"),
        ("scatter_rows", {"index": tensor(0, -1)}, IndexError, r"index\[1\] is -1"),
        (
            "scatter_rows",
            {"index": tensor(3, 3)},
            ValueError,
            r"index\[0\] and index\[1\] are both",
        ),
        ("scatter_rows", {"rows": ROWS[:1]}, ValueError, r"\[2, 2\], but has shape \[1, 2\]"),
        ("scatter_rows", {"rows": ROWS[:, :1]}, ValueError, "never broadcast"),
        ("scatter_rows", {"rows": ROWS[0]}, ValueError, r"but has shape \[2\]"),
        ("scatter_rows", {"rows": ROWS.long()}, TypeError, "`rows` must have the type of the"),
        ("scatter_rows", {"rows": ROWS.to("meta")}, ValueError, "but are on cpu and meta"),
        (
            "read_chunks",
            {"offset": tensor(3, 0)},
            IndexError,
            "range 0 has `offset` 3 and `count` 2",
        ),
        ("read_chunks", {"offset": tensor(-1, 0)}, IndexError, "range 0 has `offset` -1"),
        ("read_chunks", {"count": tensor(1, -1)}, IndexError, "range 1 has .* `count` -1"),
        ("read_chunks", {"count": tensor(2**62, 2**62)}, IndexError, "range 0 has .* `count` 4611"),
        ("read_chunks", {"count": tensor(1)}, ValueError, "`offset` and `count` must be equally"),
        ("read_chunks", {"count": tensor(2, 1).int()}, TypeError, "`count` must be one of int64"),
        ("read_chunks", {"out": ROWS}, ValueError, r"\[3, 2\], but has shape \[2, 2\]"),
        ("write_chunks", {"offset": tensor(3, 0)}, IndexError, "range 0 has `offset` 3"),
        ("write_chunks", {"offset": tensor(0, 1)}, ValueError, "ranges 0 and 1 do"),
        ("write_chunks", {"count": tensor(1, 1)}, ValueError, "`count` sums to 2 rows, .* are 3"),
        ("write_chunks", {"rows": ROWS[:, :1]}, ValueError, "never broadcast"),
        ("write_chunks", {"rows": torch.tensor(1.0)}, ValueError, r"\[M, 2\], but has shape \[\]"),
    ],
)
def test_rows_refuses(call: str, changes: dict[str, object], error: type, message: str) -> None:
    chunks = {"offset": tensor(2, 0), "count": tensor(2, 1)}
    arguments: dict[str, object] = {
        "gather_rows": {"index": IDS},
        "scatter_rows": {"index": IDS, "rows": ROWS},
        "read_chunks": chunks,
        "write_chunks": {**chunks, "rows": torch.full((3, 2), -1.0)},
    }[call]
    table, rows = TABLE.clone(), ROWS.clone()
    with pytest.raises(error, match=f"^{call}: .*{message}"):
        getattr(_core, call)(**{"table": TABLE, **arguments, **changes})
    assert torch.equal(TABLE, table), "nothing may be written before an error"
    assert torch.equal(ROWS, rows), "nothing may be written before an error"


UNPINNED = torch.empty(64, dtype=torch.uint8)


@pytest.mark.parametrize(
    ("staging", "error", "message"),
    [
        ((UNPINNED, None), TypeError, "`staging` must be a Staging, but is tuple"),
        (_core.Staging(None, None), TypeError, "`staging.buffer` must be a torch.Tensor"),
        (_core.Staging(UNPINNED.to("meta"), None), ValueError, "`staging.buffer` must be on the host"),
        (_core.Staging(UNPINNED.view(8, 8), None), ValueError, "`staging.buffer` must have one dimension"),
        (_core.Staging(UNPINNED[::2], None), ValueError, "`staging.buffer` must be contiguous"),
        (_core.Staging(UNPINNED.float(), None), TypeError, "`staging.buffer` must be one of uint8"),
        (_core.Staging(UNPINNED[1:], None), ValueError, "`staging.buffer` must start at a multiple of 8"),
        (_core.Staging(UNPINNED, None), TypeError, "`staging.stream` must be a torch.cuda.Stream, but is NoneType"),
    ],
)
@pytest.mark.parametrize("call", ["gather_rows", "read_chunks", "write_chunks"])
def test_staging_refuses(call: str, staging: object, error: type, message: str) -> None:
    chunks = {"offset": tensor(2), "count": tensor(2)}
    arguments = {"gather_rows": {"index": IDS}, "read_chunks": chunks, "write_chunks": {**chunks, "rows": ROWS}}[call]
    table = TABLE.clone()
    with pytest.raises(error, match=f"^{call}: .*{message}"):
        getattr(_core, call)(table, **arguments, staging=staging)
    assert torch.equal(table, TABLE)
    with pytest.raises(ValueError, match=f"^{call}: `staging` is for tables on the host, but `table` is on meta"):
        getattr(_core, call)(TABLE.to("meta"), **arguments, staging=_core.Staging(UNPINNED, None))


@pytest.mark.parametrize(
    ("value", "error", "message"),
    [
        ([1.0], TypeError, "`tensor` must be a torch.Tensor, but is list"),
        (TABLE.to("meta"), ValueError, "`tensor` must be on the host, but is on meta"),
        (TABLE.T, ValueError, "`tensor` must be contiguous"),
    ],
)
@pytest.mark.parametrize(("call", "arguments"), [("register", ["cuda"]), ("advise_huge_pages", [])])
def test_memory_refuses(call: str, arguments: list[str], value: object, error: type, message: str) -> None:
    with pytest.raises(error, match=f"^{call}: {message}"):
        getattr(_core, call)(value, *arguments)


def test_register_refuses() -> None:
    with pytest.raises(ValueError, match=r"^register: `tensor` must have elements, but has shape \[0, 2\]"):
        _core.register(TABLE[:0], "cuda")
    with pytest.raises(ValueError, match=r'^register: `device` must be a CUDA device, but is cpu; pass "cuda"'):
        _core.register(TABLE, "cpu")


def test_register_needs_cuda(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(_core, "has_cuda", lambda: False)
    with pytest.raises(RuntimeError, match=r"^register: .*built without CUDA; .*TORCH_GAS_CUDA=1 pip install"):
        _core.register(TABLE, "cuda")


def test_missing_build_is_explained() -> None:
    program = "import sys; sys.modules['torch_gas._C'] = None; import torch_gas._core"
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True)
    assert done.returncode != 0
    assert re.search(r"ImportError: the compiled core .*pip install -e \.", done.stderr)
