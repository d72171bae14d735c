"""Lanes that are CUDA streams, with streams in their place that note what they are told."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from typing import Any, NamedTuple

import pytest
import torch
from torch import Tensor

from torch_gas.transfer import finish, refuse_capture, send_ids, with_index
from torch_gas.transfer.lanes import CurrentStream, Lane, SideStream, make_lanes

CUDA = torch.device("cuda", 0)


class Event(NamedTuple):
    """An event; one that a stream has recorded names it."""

    blocking: bool = False
    stream: str = ""


class Stream:
    """A stream, by its name, of streams that share a log."""

    def __init__(self, name: str, log: list[tuple[Any, ...]], device: torch.device = CUDA, priority: int = 0) -> None:
        self.name, self.log, self.device, self.priority = name, log, device, priority

    def wait_event(self, event: Event) -> None:
        self.log.append((self.name, "waits for", event))

    def record_event(self, event: Event) -> Event:
        self.log.append((self.name, "records"))
        return event._replace(stream=self.name)

    def synchronize(self) -> None:
        self.log.append((self.name, "is finished"))


class Runtime:
    """What torch.cuda is asked for: streams, and which of them is current."""

    def __init__(self) -> None:
        self.log: list[tuple[Any, ...]] = []
        self.made: list[Stream] = []
        self.current = Stream("default", self.log)

    def make(self, device: torch.device, priority: int) -> Stream:
        self.made.append(Stream(f"side {len(self.made)}", self.log, device, priority))
        return self.made[-1]

    def current_stream(self, device: torch.device) -> Stream:
        assert device == CUDA
        return self.current

    @contextmanager
    def stream(self, stream: Stream) -> Iterator[None]:
        before, self.current = self.current, stream
        try:
            yield
        finally:
            self.current = before


@pytest.fixture
def cuda(monkeypatch: pytest.MonkeyPatch) -> Runtime:
    runtime = Runtime()
    monkeypatch.setattr(torch.cuda, "Stream", runtime.make)
    monkeypatch.setattr(torch.cuda, "Event", Event)
    monkeypatch.setattr(torch.cuda, "current_stream", runtime.current_stream)
    monkeypatch.setattr(torch.cuda, "stream", runtime.stream)
    monkeypatch.setattr(torch.cuda, "current_device", lambda: 3)
    monkeypatch.setattr(torch.Tensor, "record_stream", lambda _, stream: runtime.log.append((stream.name, "holds")))
    return runtime


def test_lanes_of_a_device_that_overlap(cuda: Runtime) -> None:
    lanes = make_lanes(CUDA, True)
    assert type(lanes.compute) is CurrentStream and type(lanes.pull) is type(lanes.push) is SideStream
    assert [lane.stream for lane in lanes] == [cuda.current, *cuda.made] and len(cuda.made) == 2
    assert {(stream.device, stream.priority) for stream in cuda.made} == {(CUDA, -1)}


def test_serial_lanes_and_those_of_the_host_are_one(cuda: Runtime) -> None:
    for device, concurrent, kind in ((CUDA, False, CurrentStream), ("cpu", True, Lane), ("cpu", False, Lane)):
        lanes = make_lanes(torch.device(device), concurrent)
        assert lanes.compute is lanes.pull is lanes.push and type(lanes.compute) is kind
    assert cuda.made == []


def test_a_side_stream_is_current_for_its_work_alone(cuda: Runtime, monkeypatch: pytest.MonkeyPatch) -> None:
    lane, default, seen = SideStream(CUDA), cuda.current, []
    lane.run(lambda: seen.append(cuda.current))
    with pytest.raises(ZeroDivisionError):
        lane.run(lambda: 1 // 0)
    assert cuda.current is default
    # Memory is the stream's on which it is asked for: the allocator gives it out again behind work of that stream.
    empty = torch.empty
    monkeypatch.setattr(torch, "empty", lambda *args, **kwargs: (seen.append(cuda.current), empty(*args, **kwargs))[1])
    made = lane.empty(5, torch.float16, torch.device("cpu"))
    assert made.shape == (5,) and made.dtype == torch.float16
    assert seen == [cuda.made[0]] * 2 and cuda.current is default


def test_the_computing_lane_is_the_stream_that_is_current_then(cuda: Runtime) -> None:
    lane, seen = CurrentStream(CUDA), []
    other = Stream("other", cuda.log)
    with cuda.stream(other):
        event = lane.record()
        lane.run(lambda: seen.append(cuda.current))
    lane.wait(event)
    with cuda.stream(other):
        lane.hold(torch.empty(1))
    assert seen == [other] and event.stream == "other"
    assert cuda.log == [("other", "records"), ("default", "waits for", event), ("other", "holds")]


def test_a_side_lane_is_its_own_stream_whatever_is_current(cuda: Runtime) -> None:
    lanes = make_lanes(CUDA, True)
    computed = lanes.compute.record()
    with cuda.stream(cuda.made[1]):
        lanes.pull.wait(computed)
        pulled = lanes.pull.record()
        lanes.pull.hold(torch.empty(1))
    lanes.compute.wait(pulled)
    assert cuda.log == [
        ("default", "records"),
        ("side 0", "waits for", computed),
        ("side 0", "records"),
        ("side 0", "holds"),
        ("default", "waits for", pulled),
    ]


@pytest.mark.parametrize("make", [CurrentStream, SideStream])
def test_nothing_is_waited_for_where_there_is_no_event(cuda: Runtime, make: type[CurrentStream]) -> None:
    make(CUDA).wait(None)
    assert cuda.log == []


@pytest.mark.parametrize("make", [CurrentStream, SideStream])
def test_a_host_that_waits_for_an_event_sleeps_if_asked_to(cuda: Runtime, make: type[CurrentStream]) -> None:
    lane: Any = make(CUDA)
    assert lane.record(blocking=True).blocking and not lane.record().blocking


def test_the_host_as_a_lane() -> None:
    lane, done = Lane(), []
    lane.run(partial(done.append, 1))
    lane.wait(None)
    lane.hold(torch.empty(1))
    assert done == [1] and lane.record() is None
    assert lane.empty(2, torch.int8, torch.device("cpu")).shape == (2,)


def test_devices_have_an_index_where_tensors_on_them_have_one(cuda: Runtime) -> None:
    assert with_index(torch.device("cuda")) == torch.device("cuda", 3)
    for device in (torch.device("cuda", 1), torch.device("cpu")):
        assert with_index(device) is device


class Ids:
    """Ids in host memory, and what is done with them."""

    device = torch.device("cpu")

    def __init__(self, pinned: bool) -> None:
        self.pinned = pinned

    def is_pinned(self) -> bool:
        return self.pinned

    def pin_memory(self) -> Ids:
        return Ids(True)

    def to(self, device: torch.device, non_blocking: bool = False) -> tuple[Ids, torch.device, bool]:
        return self, device, non_blocking


@pytest.mark.parametrize("pinned", [False, True])
def test_ids_are_sent_from_pinned_memory_so_that_the_host_does_not_wait(pinned: bool) -> None:
    ids: Any = Ids(pinned)
    sent: Any = send_ids(ids, CUDA)
    assert sent[0].pinned and sent[1:] == (CUDA, True)
    assert (sent[0] is ids) is pinned


def test_ids_that_are_there_are_not_sent() -> None:
    ids: Tensor = torch.arange(3)
    assert send_ids(ids, torch.device("cpu")) is ids


def test_the_host_waits_for_the_current_stream(cuda: Runtime) -> None:
    with cuda.stream(Stream("other", cuda.log)):
        finish(CUDA)
    assert cuda.log == [("other", "is finished")]


def test_a_capture_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_current_stream_capturing", lambda: False)
    refuse_capture("Net")
    monkeypatch.setattr(torch.cuda, "is_current_stream_capturing", lambda: True)
    with pytest.raises(RuntimeError, match="Net was called while a CUDA graph is captured, and a step cannot be"):
        refuse_capture("Net")
