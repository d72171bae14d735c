"""What a pool for a GPU does with ids and with tables that the GPU cannot see, on lanes that note it."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor

from torch_gas import AsyncIOPool, _core
from torch_gas.transfer.lanes import Lane, Lanes

CUDA = torch.device("cuda", 0)


class NotingLane(Lane):
    """The host in place of a stream; events are names of lanes."""

    def __init__(self, name: str, log: list[Any]) -> None:
        self.name, self.log = name, log

    def run(self, operation: Callable[[], object]) -> None:
        self.log.append((self.name, "runs", operation))
        operation()

    def wait(self, event: Any) -> None:
        self.log.append((self.name, "waits for", event))

    def record(self) -> Any:
        return self.name

    def empty(self, size: int, dtype: torch.dtype, device: torch.device) -> Tensor:
        assert device == CUDA
        return torch.full((size,), -1, dtype=dtype)

    def hold(self, tensor: Tensor) -> None:
        self.log.append((self.name, "holds", tensor.data_ptr()))


class OnDevice(Tensor):
    """A tensor that says it lies on a GPU."""

    device = CUDA
    is_cuda = True


@pytest.fixture
def pool() -> AsyncIOPool:
    pool, log = AsyncIOPool(), []
    pool.device = CUDA
    pool._lanes = Lanes(*(NotingLane(name, log) for name in ("compute", "pull", "push")))
    return pool


def log_of(pool: AsyncIOPool) -> list[Any]:
    lane: Any = pool._lanes.pull
    return lane.log


def test_ids_on_the_device_are_read_once_they_are_computed(pool: AsyncIOPool) -> None:
    ids = torch.arange(5).as_subclass(OnDevice)
    expected = [("pull", "waits for", "compute"), ("pull", "holds", ids.data_ptr())]
    for _ in range(2):  # for the second layer, nothing more is needed
        assert pool._ids_for(ids, pool._lanes.pull) is ids
        assert log_of(pool) == expected
    ids.add_(1)
    assert pool._ids_for(ids, pool._lanes.pull) is ids
    assert log_of(pool) == 2 * expected
    pool._ids_for(ids, pool._lanes.push)  # on which they have been waited for by no other
    assert log_of(pool)[4:] == [("push", *each[1:]) for each in expected]


def test_ids_of_inference_mode_may_change_unseen(pool: AsyncIOPool) -> None:
    with torch.inference_mode():
        ids = torch.arange(5).as_subclass(OnDevice)
    for times in (1, 2):
        pool._ids_for(ids, pool._lanes.pull)
        assert log_of(pool).count(("pull", "waits for", "compute")) == times


@pytest.mark.parametrize("is_pinned", [False, True])
def test_ids_in_host_memory_are_sent_once_from_pinned_memory(
    is_pinned: bool, pool: AsyncIOPool, monkeypatch: pytest.MonkeyPatch
) -> None:
    copies: list[Tensor] = []

    def pin_memory(tensor: Tensor) -> Tensor:
        copies.append(tensor.clone())
        return copies[-1]

    monkeypatch.setattr(Tensor, "is_pinned", lambda _: is_pinned)
    monkeypatch.setattr(Tensor, "pin_memory", pin_memory)
    ids = torch.arange(5)
    there = pool._ids_for(ids, pool._lanes.pull)
    assert torch.equal(there, ids) and pool._ids_for(ids, pool._lanes.pull) is there
    ids.numpy()[0] = 3  # which no version tells
    again = pool._ids_for(ids, pool._lanes.pull)
    assert torch.equal(again, ids) and not torch.equal(there, ids)
    sent = [operation for _, call, operation in log_of(pool) if call == "runs"]
    assert len(sent) == 2 and len(copies) == (0 if is_pinned else 2)
    for copy, pinned in zip(sent, [ids, ids] if is_pinned else copies, strict=True):
        assert copy.args == (pinned,) and copy.keywords == {"non_blocking": True}


def test_tables_out_of_reach_of_the_device_go_by_a_buffer_for_each_lane(
    pool: AsyncIOPool, monkeypatch: pytest.MonkeyPatch
) -> None:
    made: list[tuple[int, torch.device]] = []

    class Staging:
        def __init__(self, num_bytes: int, device: torch.device) -> None:
            made.append((num_bytes, device))

    monkeypatch.setattr(_core, "Staging", Staging)
    pageable, pinned, lanes = torch.zeros(4, 2), torch.zeros(4, 2), pool._lanes
    monkeypatch.setattr(Tensor, "is_pinned", lambda tensor: tensor is pinned)
    staging = pool._staging_of(pool._table(pageable), lanes.pull)
    assert staging is pool._staging_of(pool._table(torch.zeros(4, 2)), lanes.pull)
    assert staging is not pool._staging_of(pool._table(pageable), lanes.push)
    assert pool._staging_of(pool._table(pinned), lanes.pull) is None
    assert made == [(2**24, CUDA)] * 2


@pytest.mark.parametrize("shape", [(), (4,), (4, 2, 3)])
def test_a_table_has_rows_of_one_dimension(shape: tuple[int, ...]) -> None:
    pool, index, where = AsyncIOPool(), torch.tensor([0]), torch.tensor([1])
    for call, name, arguments in (
        ("async_pull", "src", (torch.zeros(shape), None, None, index)),
        ("pull_now", "src", (torch.zeros(shape), index, torch.zeros(1, 2))),
        ("async_push", "dst", (torch.zeros(1, 2), index, where, torch.zeros(shape))),
    ):
        with pytest.raises(ValueError, match=rf"AsyncIOPool.{call}: `{name}` must be \[N, C\], but is"):
            getattr(pool, call)(*arguments)
