"""Transfers on the CPU, and the schedule that they would follow on a CUDA device."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from lanes import FakeLanes, Operation, fake_pool
from torch import Tensor

from torch_gas import AsyncIOPool, FileTier, _core
from torch_gas.table import FileTable


def table(seed: int = 0, rows: int = 10, width: int = 3) -> Tensor:
    return torch.randn(rows, width, generator=torch.Generator().manual_seed(seed))


def ids(*values: int) -> Tensor:
    return torch.tensor(values, dtype=torch.int64)


# -- CPU -------------------------------------------------------------------------------------------


def test_a_pull_sees_the_pushes_before_it() -> None:
    pool, src = AsyncIOPool(), table()
    rows = torch.ones(3, 3)
    pool.async_push(rows, ids(4, 0), ids(2, 1), src)
    pool.async_pull(src, None, None, ids(5, 0, 4, 9))
    assert torch.equal(pool.synchronize_pull(), src[[5, 0, 4, 9]])
    assert torch.equal(pool.synchronize_pull()[:3], rows)
    pool.free_pull()
    pool.synchronize_push(src)
    pool.synchronize_push()


def test_pull_of_ranges_and_ids() -> None:
    pool, src = AsyncIOPool(pool_size=1), table()
    pool.async_pull(src, ids(7, 2, 0), ids(2, 0, 1), ids(3, 3))
    assert torch.equal(pool.synchronize_pull(), src[[7, 8, 0, 3, 3]])
    pool.free_pull()
    pool.async_pull(src, ids(2), ids(4), None, torch.float64)
    assert torch.equal(pool.synchronize_pull(), src[2:6].double())
    pool.free_pull()
    pool.async_pull(src, None, None, ids())
    assert pool.synchronize_pull().shape == (0, 3)


@pytest.mark.parametrize("pool_size", [1, 2, 7])
def test_more_pulls_than_the_pool_holds(pool_size: int) -> None:
    pool = AsyncIOPool(pool_size)
    sources = [table(i) for i in range(5)]
    for src in sources:
        pool.async_pull(src, None, None, ids(1, 2))
    for src in sources:
        assert torch.equal(pool.synchronize_pull(src), src[1:3])
        pool.free_pull(src)
    assert len(pool._buffers) == min(pool_size, len(sources))


@pytest.mark.parametrize("pool_size", [1, 2, 4])
@pytest.mark.parametrize("order", [[3, 0, 2, 1], [3, 2, 1, 0], [1, 3, 0, 2]])
def test_pulls_taken_out_of_order(order: list[int], pool_size: int) -> None:
    pool = AsyncIOPool(pool_size)
    sources = [table(i) for i in range(4)]
    for src in sources:
        pool.async_pull(src, None, None, ids(1, 2))
    taken = []
    for i in order:  # all are held at once: no buffer may be filled under another's rows
        taken.append((pool.synchronize_pull(sources[i]), sources[i]))
    for rows, src in taken:
        assert torch.equal(rows, src[1:3])
        pool.free_pull(src)
    with pytest.raises(RuntimeError, match="no such pull is under way; call async_pull first"):
        pool.synchronize_pull()


def test_a_pull_freed_before_it_started() -> None:
    pool = AsyncIOPool(pool_size=1)
    sources = [table(i) for i in range(3)]
    for src in sources:
        pool.async_pull(src, None, None, ids(1))
    pool.free_pull(sources[1])
    for src in (sources[0], sources[2]):
        assert torch.equal(pool.synchronize_pull(src), src[1:2])
        pool.free_pull(src)


def test_reset_forgets_abandoned_pulls() -> None:
    pool = AsyncIOPool(pool_size=2)
    for seed in range(5):
        pool.async_pull(table(seed), None, None, ids(0))
    pool.reset()
    src = table(9)
    pool.async_pull(src, None, None, ids(4))
    assert torch.equal(pool.synchronize_pull(), src[4:5])


def test_a_pull_that_fails_is_not_queued() -> None:
    pool, src = AsyncIOPool(pool_size=1), table()
    with pytest.raises(IndexError, match="10"):
        pool.async_pull(src, None, None, ids(10))
    with pytest.raises(ValueError, match="offset and count go together"):
        pool.async_pull(src, ids(0), None, None)
    pool.async_pull(src, None, None, ids(9))
    assert torch.equal(pool.synchronize_pull(), src[9:])


def test_a_push_that_fails_changes_nothing() -> None:
    pool, src = AsyncIOPool(), table()
    before = src.clone()
    with pytest.raises(ValueError, match="count"):
        pool.async_push(torch.ones(3, 3), ids(0), ids(2), src)
    with pytest.raises(IndexError, match="range 1 has `offset` 9 and `count` 2"):
        pool.async_push(torch.ones(3, 3), ids(0, 9), ids(1, 2), src)
    with pytest.raises(ValueError, match="never broadcast"):
        pool.async_push(torch.ones(3, 1), ids(0), ids(3), src)
    assert torch.equal(src, before)


def test_buffers_grow_and_are_used_again() -> None:
    pool, src = AsyncIOPool(pool_size=1, buffer_size=4, embedding_dim=3), table(rows=50)
    addresses = []
    for size in (2, 4, 1, 40, 3):
        pool.async_pull(src, None, None, torch.arange(size))
        rows = pool.synchronize_pull()
        assert torch.equal(rows, src[:size])
        addresses.append(rows.data_ptr())
        pool.free_pull()
    assert addresses[0] == addresses[1] == addresses[2]  # reserved from the start
    assert addresses[3] == addresses[4]
    assert pool.nbytes == 40 * 3 * 4


def test_constructor_and_move() -> None:
    with pytest.raises(ValueError, match="pool_size must be at least 1, but is 0"):
        AsyncIOPool(0)
    pool = AsyncIOPool(3, 5, 7).to("cpu")
    assert repr(pool) == "AsyncIOPool(pool_size=3, buffer_size=5, device=cpu, io='concurrent')"
    with pytest.raises(ValueError, match="pool_bytes must not be negative, but is -1"):
        AsyncIOPool(pool_bytes=-1)
    with pytest.raises(ValueError, match=r"io must be one of \('concurrent', 'serial'\), but is 'async'"):
        AsyncIOPool(io="async")


def test_taking_pulls_out_of_order_needs_no_more_buffers_each_time() -> None:
    pool = AsyncIOPool(pool_size=1)
    first, second = torch.randn(9, 2), torch.randn(9, 2)
    for _ in range(5):
        for src in (first, second):
            pool.async_pull(src, None, None, torch.arange(4))
        for src in (second, first):
            assert torch.equal(pool.synchronize_pull(src), src[:4])
            pool.free_pull(src)
    assert len(pool._buffers) == 2


def test_what_is_taken_is_what_the_table_holds_then() -> None:
    pool, src = AsyncIOPool(pool_size=1), table()
    pool.async_pull(src, None, None, ids(1, 2))
    src[1] = 7.0
    rows = pool.synchronize_pull(src)
    assert torch.equal(rows, src[1:3])
    src[1] = 8.0  # while somebody uses the rows: they stay
    assert torch.equal(pool.synchronize_pull(src)[0], torch.full((3,), 7.0))


def test_pulls_are_forgotten_but_those_of_some_ids() -> None:
    pool = AsyncIOPool(pool_size=2)
    first, second, kept = table(0), table(1), ids(3)
    pool.async_pull(first, None, None, ids(1))
    pool.async_pull(second, None, None, kept)
    pool.forget_pulls(kept)
    assert not pool.is_asked(first) and pool.is_asked(second)
    pool.forget_pulls()
    assert not pool.is_asked(second)


def test_pool_bytes_bounds_the_buffers_but_for_one() -> None:
    sources = [table(i) for i in range(4)]
    for pool_bytes, number in ((0, 1), (23, 1), (24, 2), (47, 3), (1000, 4)):
        pool = AsyncIOPool(pool_size=4, pool_bytes=pool_bytes)
        for src in sources:
            pool.async_pull(src, None, None, ids(5))
        assert len(pool._buffers) == number and pool.nbytes == 12 * number
        for src in sources:
            assert torch.equal(pool.synchronize_pull(src), src[5:6])
            pool.free_pull(src)
        assert pool.nbytes == 12 * number
    pool = AsyncIOPool(pool_size=2, buffer_size=100, embedding_dim=3, pool_bytes=240)
    pool.async_pull(sources[0], None, None, ids(5))
    assert pool.nbytes == 120  # what is reserved leaves room for the others


def test_rows_of_their_own() -> None:
    pool, src = AsyncIOPool(), table()
    rows = torch.empty(3, 3, dtype=torch.float16)
    pool.pull_now(src, ids(4, 4, 0), rows)
    assert torch.equal(rows, src[[4, 4, 0]].half())
    assert not pool.is_asked(src)


# -- the schedule on a CUDA device -----------------------------------------------------------------


class Step:
    """What forward passes of layers ``a``, ``b`` and ``c`` ask of a pool, and the names of its operations."""

    def __init__(self, pool: AsyncIOPool, lanes: FakeLanes) -> None:
        self.pool, self.lanes = pool, lanes
        self.tables = {name: table(i) for i, name in enumerate("abc")}

    def ask(self, index: Tensor) -> None:
        for src in self.tables.values():
            if not self.pool.is_asked(src):
                self.pool.async_pull(src, None, None, index)

    def run(self, index: Tensor, value: float, coming: Tensor | None = None) -> None:
        self.ask(index)
        for src in self.tables.values():
            rows = self.pool.synchronize_pull(src)
            assert torch.equal(rows, self.now(src)[index])
            self.pool.free_pull(src)
            layer = Operation("layer", lambda: None, set(self.lanes.compute.covered))
            self.lanes.add(self.lanes.compute, layer)
            self.pool.async_push(torch.full((2, 3), value), ids(5), ids(2), src)
            if self.lanes.push is not self.lanes.compute:
                assert layer in [o for o in self.lanes.operations if o.name == "push"][-1].before
            if coming is not None:
                self.pool.async_pull(src, None, None, coming)

    def now(self, src: Tensor) -> Tensor:
        """The table when all pushes so far have arrived, for comparison; they do not arrive by it."""
        rows = src.clone()
        for push in self.lanes.operations:
            if push.name == "push" and push.writes[0] is src and not push.done:
                rows[5:7] = push.reads[0]
        return rows

    def find(self, kind: str, name: str, number: int) -> Operation:
        """The operation ``kind`` of a table with this number."""
        of_kind = [operation for operation in self.lanes.operations if operation.name == kind]
        tables = [(operation.writes if kind == "push" else operation.reads)[0] for operation in of_kind]
        return [o for o, src in zip(of_kind, tables, strict=True) if src is self.tables[name]][number]


@pytest.mark.parametrize("seed", [None, *range(5)])
@pytest.mark.parametrize("ahead", [False, True])
@pytest.mark.parametrize("pool_size", [1, 2, 3, 5])
def test_schedule_keeps_the_rules(pool_size: int, ahead: bool, seed: int | None) -> None:
    pool, lanes = fake_pool(pool_size, seed)
    step = Step(pool, lanes)
    batches = [ids(5, 1), ids(6), ids(1, 2, 6), ids(0, 5)]
    for i, index in enumerate(batches):
        step.run(index, float(i), batches[i + 1] if ahead and i + 1 < len(batches) else None)
    assert lanes.host_waits == 0
    assert lanes.races() == []
    assert len(pool._buffers) <= pool_size
    for name in step.tables:
        for i in range(1, len(batches)):
            assert step.find("push", name, i - 1) in step.find("pull", name, i).before
            assert step.find("pull", name, i) in step.find("push", name, i).before
    held = {tensor.data_ptr() for tensor in lanes.push.held}  # the allocator knows who uses memory
    assert {o.reads[0].data_ptr() for o in lanes.operations if o.name == "push"} <= held
    assert {tensor.data_ptr() for tensor in lanes.pull.made} <= {tensor.data_ptr() for tensor in lanes.compute.held}
    pool.reset()
    assert all(operation.done for operation in lanes.operations)


def test_schedule_overlaps() -> None:
    pool, lanes = fake_pool(3)
    step = Step(pool, lanes)
    step.run(ids(1, 2), 1.0, ids(5))
    # All pulls are asked for before the first layer, and a layer waits for its own pull alone.
    assert [operation.name for operation in lanes.operations[:3]] == ["pull", "pull", "pull"]
    uses = [operation for operation in lanes.operations if operation.name == "use"]
    assert step.find("pull", "b", 0) not in uses[0].before
    # No layer waits for a push, and no pull for a layer whose buffer it does not take over.
    assert not any(before.name == "push" for before in uses[-1].before)
    assert not any(before.name == "use" for before in step.find("pull", "c", 0).before)
    # The next batch is pulled from a table when this one has been pushed to it, whatever goes on with the others.
    coming = step.find("pull", "a", 1)
    assert step.find("push", "a", 0) in coming.before
    assert step.find("push", "b", 0) not in coming.before and uses[1] not in coming.before
    # What was not waited for has not been done: here, all that is for later.
    assert not step.find("push", "a", 0).done and not coming.done


def test_serial_transfers_wait_for_their_layer() -> None:
    pool, lanes = fake_pool(3, io="serial")
    lanes.pull = lanes.push = lanes.compute
    step = Step(pool, lanes)
    step.run(ids(1, 2), 1.0)
    assert [operation.name for operation in lanes.operations] == ["pull", "use", "layer", "push"] * 3
    assert len(pool._buffers) == 1


def test_a_push_waits_for_the_pulls_of_its_table_alone() -> None:
    pool, lanes = fake_pool(2)
    step = Step(pool, lanes)
    for name in ("a", "b"):
        pool.async_pull(step.tables[name], None, None, ids(1))
    pool.async_push(torch.ones(2, 3), ids(5), ids(2), step.tables["a"])
    push = step.find("push", "a", 0)
    assert step.find("pull", "a", 0) in push.before  # though nobody has taken it
    assert step.find("pull", "b", 0) not in push.before


def test_rows_of_their_own_are_in_order() -> None:
    pool, lanes = fake_pool(2)
    src = table()
    pool.async_push(torch.ones(2, 3), ids(5), ids(2), src)
    rows = torch.empty(1, 3)
    pool.pull_now(src, ids(5), rows)
    assert torch.equal(rows, torch.ones(1, 3))
    pool.async_push(torch.zeros(2, 3), ids(5), ids(2), src)
    assert lanes.races() == [] and lanes.host_waits == 0
    pool.settle(src)
    assert lanes.host_waits == 2  # for the push, and for the reading before it


def test_only_named_calls_make_the_host_wait() -> None:
    pool, lanes = fake_pool(2)
    step = Step(pool, lanes)
    step.run(ids(1, 2), 1.0)
    assert lanes.host_waits == 0
    pool.synchronize_push(step.tables["a"])
    assert lanes.host_waits == 1 and torch.equal(step.tables["a"][5:7], torch.ones(2, 3))
    pool.synchronize_push()
    assert lanes.host_waits == 3 and torch.equal(step.tables["c"][5:7], torch.ones(2, 3))
    pool.synchronize_push()
    assert lanes.host_waits == 3
    pool.async_push(torch.zeros(2, 3), ids(5), ids(2), step.tables["b"])
    pool.settle(step.tables["a"])
    assert not step.find("push", "b", 1).done
    pool.settle(step.tables["b"])
    assert step.find("push", "b", 1).done


def test_the_end_of_a_pool_waits_for_its_transfers() -> None:
    pool, _lanes = fake_pool(2)
    src = table()
    pool.async_push(torch.ones(2, 3), ids(5), ids(2), src)
    del pool
    assert torch.equal(src[5:7], torch.ones(2, 3))


def test_rows_may_change_after_a_push() -> None:
    pool, _lanes = fake_pool()
    src, rows = table(), torch.ones(2, 3)
    pool.async_push(rows, ids(0), ids(2), src)
    rows.zero_()  # before the device has copied them
    pool.settle(src)
    assert torch.equal(src[:2], torch.ones(2, 3))


@pytest.mark.parametrize("stored", [*_core.SCALED_TYPES, torch.float16, torch.float32])
@pytest.mark.parametrize("given", [torch.float32, torch.float64, torch.bfloat16])
def test_what_a_push_keeps_is_what_the_table_stores(stored: torch.dtype, given: torch.dtype) -> None:
    rows = torch.randn(5, 7, generator=torch.Generator().manual_seed(0)).to(given)
    rows[1, 3], rows[2] = torch.nan, 0.0
    width = _core.stored_width(7, stored)
    at_once, later = (torch.zeros(9, width, dtype=stored) for _ in range(2))
    offset, count = ids(6, 0), ids(2, 3)
    _core.write_chunks(at_once, offset, count, rows)
    pool, lanes = fake_pool()
    pool.async_push(rows, offset, count, later)
    kept = lanes.operations[-1].reads[0]
    assert (kept.dtype, kept.shape) == (stored, (5, width)) and kept.nbytes == 5 * width * stored.itemsize
    assert [each.data_ptr() for each in lanes.push.held] == [kept.data_ptr()]
    rows.zero_()  # before the rows have travelled
    pool.settle(later)
    assert torch.equal(later.view(torch.uint8), at_once.view(torch.uint8))
    assert lanes.races() == []


@pytest.mark.parametrize("stored", [*_core.SCALED_TYPES, torch.float32])
def test_a_push_to_a_file_keeps_what_is_stored(stored: torch.dtype, tmp_path: Path) -> None:
    file = FileTable(FileTier(tmp_path / "rows"), 9, _core.stored_width(7, stored), stored)
    rows, expected = table(rows=2, width=7), torch.zeros(9, _core.stored_width(7, stored), dtype=stored)
    _core.write_chunks(expected, ids(4), ids(2), rows)
    pool, lanes = fake_pool()
    lanes.push.run = lambda work: work()  # type: ignore[method-assign]  # a model of lanes knows tensors only
    pool.async_push(rows, ids(4), ids(2), file.storage)
    assert [each.dtype for each in lanes.push.held] == [stored]
    assert torch.equal(file.tensor().view(torch.uint8), expected.view(torch.uint8))


def test_rows_that_no_table_of_scaled_rows_takes_are_refused_at_once() -> None:
    pool, lanes = fake_pool()
    dst = torch.zeros(9, 7 + 4, dtype=torch.int8)
    for rows in (torch.ones(2, 6), torch.ones(2), torch.tensor(1.0)):
        with pytest.raises(
            ValueError, match=r"AsyncIOPool.async_push: `rows` must have one row of the table's shape.* 7\]"
        ):
            pool.async_push(rows, ids(0), ids(2), dst)
    assert lanes.operations == [] and not dst.any()


def test_a_pull_that_a_push_outdates_is_read_again() -> None:
    pool, lanes = fake_pool()
    src = table()
    pool.async_pull(src, None, None, ids(5))
    pool.async_push(torch.ones(2, 3), ids(5), ids(2), src)
    assert torch.equal(pool.synchronize_pull(src), torch.ones(1, 3))
    assert lanes.races() == []


def test_a_bound_holds_when_halos_grow() -> None:
    generator = torch.Generator().manual_seed(0)
    for _ in range(50):
        bound = int(torch.randint(60, 400, (), generator=generator))
        pool, src, largest = AsyncIOPool(pool_size=3, pool_bytes=bound), table(rows=50), 0
        other = table(1, rows=50)
        for size in torch.randint(1, 40, (20,), generator=generator).tolist():
            for rows in (src, other):
                pool.async_pull(rows, None, None, torch.arange(size))
            largest = max(largest, 12 * size)
            assert pool.nbytes <= max(bound, largest)
            for rows in (src, other):
                assert torch.equal(pool.synchronize_pull(rows), rows[:size])
                pool.free_pull(rows)
                assert pool.nbytes <= max(bound, largest)


def test_views_of_a_table_and_tables_that_moved() -> None:
    pool, table = AsyncIOPool(), torch.arange(12.0).view(6, 2)
    out = torch.empty(1, 2)
    pool.pull_now(table, torch.tensor([5]), out)
    pool.pull_now(table[:3], torch.tensor([2]), out)  # begins where the table does
    assert out.tolist() == [[4.0, 5.0]]
    with pytest.raises(IndexError, match=r"AsyncIOPool.pull_now: .*`index`.* 5"):
        pool.pull_now(table[:3], torch.tensor([5]), out)
    pool.async_pull(table, None, None, torch.tensor([5]))
    with pytest.raises(ValueError, match=r"`src` is .* that is being pulled; pass the whole table"):
        pool.async_pull(table[:3], None, None, torch.tensor([2]))
    assert pool.synchronize_pull(table).tolist() == [[10.0, 11.0]]

    pool.reset()
    known = pool._table(torch.zeros(6, 2))
    pool._tables[table.data_ptr()] = known  # as if that table had lain here before it moved
    pool.pull_now(table, torch.tensor([5]), out)
    assert out.tolist() == [[10.0, 11.0]]
    assert pool._tables[table.data_ptr()] is not known
