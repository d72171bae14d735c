"""Which tensors the core takes for memory, and what becomes of memory that others share or change meanwhile."""

from __future__ import annotations

import sys
import threading
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensorMode
from torch_geometric import Index
from twins import int64

from torch_gas import AsyncIOPool, _core
from torch_gas._core import checks
from torch_gas._util.memory import has_memory

TABLE = torch.arange(24.0).view(6, 4)


def freed(value: Tensor, first: int = 0) -> Tensor:
    view = torch.cat([value[:first], value])[first:]
    view.untyped_storage().resize_(0)
    return view


def shrunk(value: Tensor) -> Tensor:
    view = torch.cat([value, value])[len(value) :]
    view.untyped_storage().resize_(value.nbytes)
    return view


class Subclass(Tensor):
    """Leaves all to torch."""


IDS: dict[str, Callable[[Tensor], Any]] = {
    "Index": Index,
    "freed": freed,
    "a view of freed memory": lambda ids: freed(ids, 1),
    "shrunk": shrunk,
    "fake": lambda ids: FakeTensorMode().from_tensor(ids),
    "zeros without memory": lambda ids: torch._efficientzerotensor(ids.shape, dtype=ids.dtype),
    "without a size": lambda ids: torch.nn.UninitializedBuffer(),
}


@pytest.mark.parametrize("kind", IDS)
def test_tensors_without_memory_are_refused(kind: str) -> None:
    ids = IDS[kind](int64(1, 2))
    assert not has_memory(ids)
    error = (TypeError, ValueError)
    with pytest.raises(error, match="gather_rows: `index` must be"):
        _core.gather_rows(TABLE, ids)
    with pytest.raises(error, match="to_csr: `dst` must be"):
        _core.to_csr(int64(1, 2), ids, 6)
    with pytest.raises(error, match="scatter_rows: `index` must be"):
        _core.scatter_rows(TABLE.clone(), ids, TABLE[:2])
    with pytest.raises(error, match="add_rows: `index` must be"):
        _core.add_rows(TABLE.clone(), ids, TABLE[:2])


def test_the_error_says_what_to_do() -> None:
    with pytest.raises(
        ValueError, match=r"is of type Index, which keeps its numbers elsewhere.*pass its `.as_tensor\(\)`"
    ):
        _core.gather_rows(TABLE, Index([1, 2]))
    with pytest.raises(ValueError, match=r"its memory is not there \(storage\(\).resize_\(\) frees it\)"):
        _core.gather_rows(TABLE, freed(int64(1, 2)))


@pytest.mark.parametrize("transform", [torch.func.vmap, torch.func.grad, torch.func.functionalize])
def test_inside_of_transforms(transform: Callable[..., Any]) -> None:
    def call(rows: Tensor) -> Tensor:
        with pytest.raises((ValueError, RuntimeError), match=r"torch\.func"):
            _core.scatter_rows(torch.zeros(6, 4), int64(1, 2, 3, 4, 5, 0), rows.view(6, 4))
        with pytest.raises((ValueError, RuntimeError), match=r"torch\.func"):
            _core.dropout(rows, 0.5, 0)
        return rows.sum()

    transform(call)(torch.ones(2, 24) if transform is torch.func.vmap else torch.ones(24))


def test_results_without_memory_are_refused() -> None:
    ids = int64(1)
    with FakeTensorMode(allow_non_fake_inputs=True), pytest.raises(RuntimeError, match="leave FakeTensorMode"):
        _core.gather_rows(TABLE, ids)


@pytest.mark.parametrize(
    "make",
    [
        lambda ids: torch.nn.Parameter(ids, requires_grad=False),
        lambda ids: ids.as_subclass(Subclass),
        lambda ids: torch.stack([ids, ids], dim=1)[:, 1],
        lambda ids: ids[:0],
        lambda ids: ids[-1:].expand(3),
        lambda ids: torch.from_numpy(ids.numpy()),
        lambda ids: ids.clone().share_memory_(),
    ],
)
def test_tensors_with_memory_are_taken(make: Callable[[Tensor], Tensor]) -> None:
    ids = make(int64(4, 0, 2))
    assert has_memory(ids)
    assert torch.equal(_core.gather_rows(TABLE, ids), TABLE[torch.Tensor.tolist(ids)].view(-1, 4))


def test_the_pool_asks_as_well() -> None:
    with pytest.raises(ValueError, match=r"AsyncIOPool\.async_pull: src must be a dense tensor with memory"):
        AsyncIOPool().async_pull(freed(TABLE), None, None, int64(1))
    with pytest.raises(ValueError, match=r"AsyncIOPool: `table` must be a dense tensor with memory"):
        AsyncIOPool()._table(freed(TABLE))


def test_plain_tensors_pass_by_few_calls() -> None:
    calls = []
    value = torch.arange(3)
    sys.setprofile(lambda frame, event, argument: calls.append(event) if event in ("call", "c_call") else None)
    try:
        checks.tensor("gather_rows", "index", value)
    finally:
        sys.setprofile(None)
    assert len(calls) <= 9, calls  # five of them ask the tensor and its storage; the last ends the count


# -- negative bits -----------------------------------------------------------------------------------------------------


def negative(rows: Tensor) -> Tensor:
    """A tensor of the same numbers, whose memory has them with the other sign."""
    view = torch._neg_view(-rows)
    assert torch.equal(view, rows) and view.is_neg()
    return view


def test_negative_bits_are_signs() -> None:
    rows, matrix = TABLE[1:4].clone(), _core.Sparse(int64(0, 2, 3), int64(0, 2, 1), 3)
    for write in (lambda t: _core.scatter_rows(t, int64(5, 0, 2), negative(rows)),
                  lambda t: _core.add_rows(t, int64(5, 0, 2), negative(rows)),
                  lambda t: _core.write_chunks(t, int64(3), int64(3), negative(rows))):  # fmt: skip
        table = torch.zeros(6, 4)
        write(table)
        assert table.sum() == rows.sum()
    single = torch.complex(torch.ones(1, 1), torch.full((1, 1), 2.0)).conj().imag
    _core.scatter_rows(table, int64(0), single.expand(1, 4))
    assert table[0].tolist() == [-2.0] * 4
    assert torch.equal(_core.product(matrix, negative(rows)), _core.product(matrix, rows))
    assert torch.equal(_core.entry_dots(matrix, rows[:2], negative(rows)), _core.entry_dots(matrix, rows[:2], rows))


def test_memory_with_negative_bits_is_refused() -> None:
    """A table, or what is written to, is used where it is."""
    for call in (
        lambda: _core.gather_rows(negative(TABLE), int64(0)),
        lambda: _core.scatter_rows(negative(TABLE), int64(0), TABLE[:1]),
        lambda: _core.add_rows(negative(TABLE), int64(0), TABLE[:1]),
        lambda: _core.gather_rows(TABLE, int64(0), out=negative(TABLE[:1])),
        lambda: _core.dropout(negative(TABLE), 0.5, 0),
    ):
        with pytest.raises(ValueError, match=r"must have no negative bit.*resolve_neg\(\)"):
            call()
    assert not _core.is_table(negative(TABLE))


# -- shared memory -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("threads", [1, 3])
def test_rows_may_lie_in_the_table(threads: int) -> None:
    torch.set_num_threads(threads)
    for first, last in ((0, 3000), (2, 3002), (1, 3001)):
        table = torch.randn(3002, 40)
        wanted, ids = table.clone(), torch.arange(1, 3001)
        wanted[ids] = wanted[first:last].clone()
        by_ids, by_ranges, flipped = table.clone(), table.clone(), table.clone()
        _core.scatter_rows(by_ids, ids, by_ids[first:last])
        _core.write_chunks(by_ranges, int64(1), int64(3000), by_ranges[first:last])
        assert torch.equal(by_ids, wanted) and torch.equal(by_ranges, wanted)
        _core.scatter_rows(flipped, ids.flip(0), flipped[first:last].flip(0))
        assert torch.equal(flipped, wanted)
        for order in (ids, ids.flip(0)):
            wanted, sums = table.clone(), table.clone()
            wanted[order] += table[first:last]
            _core.add_rows(sums, order, sums[first:last])
            assert torch.equal(sums, wanted)


def test_rows_of_another_type_may_lie_in_the_table() -> None:
    table = torch.arange(8.0).view(4, 2)
    halves = table.view(torch.float16)[:2, :2]  # whatever these numbers are
    wanted = table.clone()
    wanted[2:] = halves.clone().float()
    _core.scatter_rows(table, int64(2, 3), halves)
    assert torch.equal(table, wanted)


def test_ids_may_lie_in_what_is_written() -> None:
    table = torch.tensor([3, 2, 1, 0, 7])
    wanted = table.clone()
    wanted[table[:4].clone()] = int64(10, 11, 12, 13)
    _core.scatter_rows(table, table[:4], int64(10, 11, 12, 13))
    assert torch.equal(table, wanted)
    ids = torch.tensor([1, 2, 3, 0, 0])
    wanted = int64(5, 6, 7, 8)[ids[:4]]
    _core.gather_rows(int64(5, 6, 7, 8), ids[:4], out=ids[1:])
    assert torch.equal(ids[1:], wanted)


def test_a_result_in_the_table_is_refused() -> None:
    table = TABLE.clone()
    with pytest.raises(ValueError, match="`out` must not share memory with `table`"):
        _core.gather_rows(table, int64(1, 2), out=table[:2])
    with pytest.raises(ValueError, match="`out` must not share memory with `table`"):
        _core.read_chunks(table, int64(1), int64(2), out=table[2:4])
    assert torch.equal(table, TABLE)
    _core.gather_rows(table[:2], int64(1, 0), out=table[2:4])  # side by side
    assert torch.equal(table[2:4], TABLE[[1, 0]])


# -- other threads -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("threads", [1, 2])
def test_ids_that_another_thread_changes(threads: int) -> None:
    """What is checked is what is used: ids that change in between are an error, and no address."""
    torch.set_num_threads(threads)
    table, rows, good = torch.zeros(50_000, 2), torch.ones(50_000, 2), torch.arange(50_000)
    ids, bad, done = good.clone(), good.masked_fill(good % 3 == 0, 2**55), threading.Event()

    def change() -> None:
        while not done.is_set():
            ids.copy_(bad)
            ids.copy_(good)

    other = threading.Thread(target=change)
    other.start()
    refused = 0
    for _ in range(300):
        for call in (
            lambda: _core.scatter_rows(table, ids, rows),
            lambda: _core.gather_rows(table, ids),
            lambda: _core.add_rows(table, ids, rows),
        ):
            try:
                call()
            except (IndexError, ValueError):
                refused += 1
    done.set()
    other.join()
    assert refused > 0
