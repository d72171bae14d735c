"""Transfers on the CPU, and the schedule that they would follow on a CUDA device."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import pytest
import torch
from torch import Tensor

from torch_gas import AsyncIOPool, transfer


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
    assert len(pool._buffers) == pool_size


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
    assert pool._buffers[0].data.numel() == 40 * 3 * 4


def test_constructor_and_move() -> None:
    with pytest.raises(ValueError, match="pool_size must be at least 1, but is 0"):
        AsyncIOPool(0)
    pool = AsyncIOPool(3, 5, 7).to("cpu")
    assert repr(pool) == "AsyncIOPool(pool_size=3, buffer_size=5, device=cpu)"


# -- the schedule on a CUDA device -----------------------------------------------------------------


class FakeCuda:
    """Records what each stream does, and computes which operations precede which.

    Operations of a stream run in order; waiting for an event puts all that the event covers before
    whatever the stream does next. ``seen[op]`` is the set of operations that surely precede ``op``.
    """

    def __init__(self) -> None:
        self.ops: list[str] = []
        self.seen: dict[str, set[str]] = {}
        self.host_waits: list[str] = []
        self.compute = FakeStream(self)
        self.current = self.compute
        self.addresses: dict[str, int] = {}

    def op(self, name: str) -> None:
        name = f"{name}#{sum(op.startswith(name + '#') for op in self.ops)}"
        self.ops.append(name)
        self.seen[name] = set(self.current.covered)
        self.current.covered.add(name)


class FakeEvent:
    def __init__(self, cuda: FakeCuda, covered: set[str]) -> None:
        self.cuda, self.covered = cuda, set(covered)

    def synchronize(self) -> None:
        self.cuda.host_waits.append(f"after {len(self.cuda.ops)} operations")


class FakeStream:
    def __init__(self, cuda: FakeCuda) -> None:
        self.cuda, self.covered = cuda, set()

    def wait_event(self, event: FakeEvent) -> None:
        self.covered |= event.covered

    def wait_stream(self, stream: FakeStream) -> None:
        self.covered |= stream.covered

    def record_event(self) -> FakeEvent:
        return FakeEvent(self.cuda, self.covered)

    def synchronize(self) -> None:
        self.cuda.host_waits.append("stream")


@pytest.fixture
def cuda(monkeypatch: pytest.MonkeyPatch) -> FakeCuda:
    fake = FakeCuda()

    @contextmanager
    def use(stream: FakeStream) -> Iterator[None]:
        before, fake.current = fake.current, stream
        yield
        fake.current = before

    def read(src: Tensor, *where: Any, out: Tensor) -> None:
        names = {src.data_ptr(): name for name, src in fake.tables.items()}
        name = f"pull {names[src.data_ptr()]}"
        fake.op(name)
        fake.addresses[fake.ops[-1]] = out.data_ptr()

    def write(dst: Tensor, *where: Any) -> None:
        names = {src.data_ptr(): name for name, src in fake.tables.items()}
        fake.op(f"push {names[dst.data_ptr()]}")

    fake.tables = {"a": table(0), "b": table(1), "c": table(2)}
    monkeypatch.setattr(torch.cuda, "Stream", lambda device: FakeStream(fake))
    monkeypatch.setattr(torch.cuda, "current_stream", lambda device: fake.current)
    monkeypatch.setattr(torch.cuda, "stream", use)
    monkeypatch.setattr(Tensor, "record_stream", lambda self, stream: None)
    monkeypatch.setattr(AsyncIOPool, "_is_cuda", property(lambda self: True))
    monkeypatch.setattr(transfer._core, "gather_rows", read)
    monkeypatch.setattr(transfer._core, "read_chunks", read)
    monkeypatch.setattr(transfer._core, "write_chunks", write)
    return fake


def step(cuda: FakeCuda, pool: AsyncIOPool) -> None:
    """What a forward pass of three layers asks of the pool."""
    for src in cuda.tables.values():
        pool.async_pull(src, None, None, ids(1, 2))
    for name, src in cuda.tables.items():
        cuda.op(f"layer {name}")
        pool.synchronize_pull(src)
        cuda.op(f"use {name}")
        pool.free_pull(src)
        pool.async_push(torch.ones(2, 3), ids(5), ids(2), src)


@pytest.mark.parametrize("pool_size", [1, 2, 3, 5])
def test_schedule_keeps_the_rules(cuda: FakeCuda, pool_size: int) -> None:
    pool = AsyncIOPool(pool_size)
    step(cuda, pool)
    step(cuda, pool)
    step(cuda, pool)
    assert not cuda.host_waits  # the host never waits inside a step
    for name in cuda.tables:
        for i in range(3):
            assert f"pull {name}#{i}" in cuda.seen[f"use {name}#{i}"]  # consumer after its pull
            assert f"layer {name}#{i}" in cuda.seen[f"push {name}#{i}"]  # push after its rows
            assert f"pull {name}#{i}" in cuda.seen[f"push {name}#{i}"]  # and after the last pull
            if i > 0:
                assert f"push {name}#{i - 1}" in cuda.seen[f"pull {name}#{i}"]  # pull after last push
    last_use: dict[int, str] = {}
    for op in cuda.ops:  # a buffer is filled again only after it was read
        if op.startswith("pull"):
            address = cuda.addresses[op]
            if address in last_use:
                assert last_use[address].replace("pull", "use") in cuda.seen[op]
            last_use[address] = op
    assert len(last_use) <= pool_size


def test_schedule_overlaps(cuda: FakeCuda) -> None:
    pool = AsyncIOPool(3)
    step(cuda, pool)
    # All pulls are asked for before the first layer, and no layer waits for another one's pull
    # beyond those queued before it, nor for any push.
    assert cuda.ops[:3] == ["pull a#0", "pull b#0", "pull c#0"]
    assert not {"pull b#0", "pull c#0"} & cuda.seen["use a#0"]
    assert not {op for op in cuda.seen["use c#0"] if op.startswith("push")}
    # A pull waits for no layer.
    assert not {op for op in cuda.seen["pull c#0"] if op.startswith(("layer", "use"))}


def test_a_pull_waits_for_the_push_of_its_table_alone(cuda: FakeCuda) -> None:
    pool = AsyncIOPool(2)
    a, b = cuda.tables["a"], cuda.tables["b"]
    pool.async_push(torch.ones(2, 3), ids(5), ids(2), b)
    pool.async_pull(a, None, None, ids(1))
    assert "push b#0" not in cuda.seen["pull a#0"]
    pool.async_push(torch.ones(2, 3), ids(5), ids(2), a)
    pool.async_pull(a, None, None, ids(1))
    assert "push a#0" in cuda.seen["pull a#1"]


def test_a_push_waits_for_the_pulls_of_its_table_alone(cuda: FakeCuda) -> None:
    pool = AsyncIOPool(2)
    for name in ("a", "b"):
        pool.async_pull(cuda.tables[name], None, None, ids(1))
    pool.async_push(torch.ones(2, 3), ids(5), ids(2), cuda.tables["a"])
    assert "pull a#0" in cuda.seen["push a#0"]  # though nobody has taken it
    assert "pull b#0" not in cuda.seen["push a#0"]


def test_a_pull_by_ids_from_the_host_waits_for_no_layer(cuda: FakeCuda) -> None:
    cuda.op("layer")
    AsyncIOPool().async_pull(cuda.tables["a"], None, None, ids(1))
    assert not cuda.seen["pull a#0"]


def test_only_named_calls_make_the_host_wait(cuda: FakeCuda) -> None:
    pool = AsyncIOPool(2)
    step(cuda, pool)
    assert not cuda.host_waits
    pool.synchronize_push(cuda.tables["a"])
    assert len(cuda.host_waits) == 1
    pool.synchronize_push()
    assert len(cuda.host_waits) == 3
    pool.synchronize_push()
    assert len(cuda.host_waits) == 3
    pool.async_pull(cuda.tables["a"], None, None, ids(1))
    pool.reset()
    assert len(cuda.host_waits) == 4


def test_rows_may_change_after_a_push(cuda: FakeCuda, monkeypatch: pytest.MonkeyPatch) -> None:
    written = []
    monkeypatch.setattr(transfer._core, "write_chunks", lambda dst, o, c, rows: written.append(rows))
    rows = torch.ones(2, 3)
    AsyncIOPool().async_push(rows, ids(0), ids(2), cuda.tables["a"])
    rows.zero_()  # before a real device would have copied them
    assert bool((written[0] == 1).all())


def test_taking_pulls_out_of_order_needs_no_more_buffers_each_time() -> None:
    pool = AsyncIOPool(pool_size=1)
    first, second = torch.randn(9, 2), torch.randn(9, 2)
    for _ in range(5):
        for table in (first, second):
            pool.async_pull(table, None, None, torch.arange(4))
        for table in (second, first):
            assert torch.equal(pool.synchronize_pull(table), table[:4])
            pool.free_pull(table)
    assert len(pool._buffers) == 2
