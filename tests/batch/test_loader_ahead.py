"""What a loader knows beyond a batch, and batches that are brought to a device; here by a courier that stays on the host."""

from __future__ import annotations

import copy
import pickle
from typing import ClassVar

import pytest
import torch
from graphs import FORMATS, random_graph, to_format
from torch.utils.data import SequentialSampler

from torch_gas import EvalSubgraphLoader, SubData, SubgraphLoader
from torch_gas._util.thread import Task
from torch_gas.batch import courier as batches
from torch_gas.batch import loader
from torch_gas.graph.adjacency import find_adjacency
from torch_gas.graph.formats import all_tensors, map_tensors
from torch_gas.graph.product import kept_edges
from torch_gas.models import SAGE

N = 70
PTR = torch.tensor([0, 10, 10, 33, 50, 70])
DATA = random_graph(N, 500)


class Courier:
    """Copies, and counts."""

    sent = received = pinned = 0
    allocated: ClassVar[list[int]] = []  # addresses of rows
    threads: ClassVar[set[int]] = set()  # how many torch used where batches were sent

    def __init__(self, device: torch.device) -> None:
        assert device.type == "cuda"
        Courier.sent = Courier.received = Courier.pinned = 0
        Courier.allocated, Courier.threads = [], set()

    def allocate(self, shape: tuple[int, ...], dtype: torch.dtype) -> torch.Tensor:
        rows = torch.full(shape, -1, dtype=dtype)
        Courier.allocated.append(rows.data_ptr())
        return rows

    def pin(self, data: SubData) -> SubData:
        Courier.pinned += 1
        return copy.copy(data)

    def send(self, data: SubData) -> tuple[SubData, str]:
        Courier.sent += 1
        Courier.threads.add(torch.get_num_threads())
        sent = copy.copy(data)
        for key, value in data.to_dict().items():
            sent[key] = map_tensors(value, torch.clone)
        return sent, f"arrival of {data.num_nodes}"

    def receive(self, data: SubData, arrived: str) -> None:
        Courier.received += 1
        assert arrived == f"arrival of {data.num_nodes}"


@pytest.fixture
def courier(monkeypatch: pytest.MonkeyPatch) -> type[Courier]:
    monkeypatch.setattr(loader, "Courier", Courier)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    return Courier


def coming(batch: SubData) -> SubData | None:
    """The next batch, when it is there."""
    for future in batch.record.lookahead._ahead:
        future.result()
    return batch.record.lookahead.next


@pytest.mark.parametrize("shuffle", [False, True])
def test_a_batch_knows_the_next_one(shuffle: bool) -> None:
    batches = SubgraphLoader(DATA, PTR, 1, shuffle=shuffle, prefetch=1)
    expected = None
    for i, batch in enumerate(batches):
        assert expected is None or batch.n_id is expected.n_id
        expected = coming(batch)
        assert (expected is None) == (i == len(batches) - 1)


def test_nothing_is_known_ahead_without_prefetch() -> None:
    assert [coming(batch) for batch in SubgraphLoader(DATA, PTR, 1, prefetch=0)] == [None] * 4


def test_a_batch_that_is_not_there_yet_or_fails_is_not_known() -> None:
    batches = SubgraphLoader(DATA, PTR, 1, prefetch=1)
    batch = next(iter(batches))
    batch.record.lookahead._ahead.clear()
    assert batch.record.lookahead.next is None
    task = Task(lambda: [][1])
    batch.record.lookahead._ahead.append(task)
    assert batch.record.lookahead.next is None
    task.run()
    assert task.is_done and batch.record.lookahead.next is None


@pytest.mark.parametrize("copier", [copy.deepcopy, lambda batch: pickle.loads(pickle.dumps(batch))])
def test_copies_look_not_ahead(copier: object) -> None:
    batch = next(iter(SubgraphLoader(DATA, PTR, 2)))
    copied = copier(batch)
    assert batch.record.lookahead is not None and copied.record.lookahead is None
    assert torch.equal(copied.n_id, batch.n_id)


@pytest.mark.parametrize("neighbors", ["in", "both"])
@pytest.mark.parametrize("size", [1, 2, 3])
def test_largest_halo(size: int, neighbors: str) -> None:
    batches = SubgraphLoader(DATA, PTR, size, neighbors=neighbors)
    assert batches.largest_halo == max(batch.halo_size for batch in batches)
    shuffled = SubgraphLoader(DATA, PTR, size, shuffle=True, seed=3, neighbors=neighbors)
    halos = sorted(batch.halo_size for batch in SubgraphLoader(DATA, PTR, 1, neighbors=neighbors))
    assert shuffled.largest_halo == min(sum(halos[-size:]), N)
    for _ in range(5):
        assert max(batch.halo_size for batch in shuffled) <= shuffled.largest_halo


def test_largest_halo_of_a_sampler_that_is_not_known() -> None:
    class Own(torch.utils.data.Sampler):
        def __iter__(self):
            return iter([0, 0, 1])

        def __len__(self) -> int:
            return 3

    assert SubgraphLoader(DATA, PTR, 2, sampler=Own()).largest_halo is None
    assert SubgraphLoader(DATA, PTR, 2, sampler=SequentialSampler(range(4))).largest_halo is not None


@pytest.mark.parametrize("workers", [0, 1])
@pytest.mark.parametrize("prefetch", [0, 2])
def test_batches_on_a_device(courier: type[Courier], prefetch: int, workers: int) -> None:
    here = list(SubgraphLoader(DATA, PTR, 2, prefetch=prefetch, num_workers=workers))
    batches = SubgraphLoader(DATA, PTR, 2, prefetch=prefetch, device="cuda", num_workers=workers)
    for _ in range(2):
        there = list(batches)
        for left, right in zip(here, there, strict=True):
            assert torch.equal(left.n_id, right.n_id) and torch.equal(left.data.x, right.data.x)
            assert torch.equal(left.data.edge_index, right.data.edge_index)
            assert right.record.num_nodes == N and right.record.digest == left.record.digest
    assert courier.sent == courier.received == 2 * len(there)
    assert courier.pinned == (0 if workers else len(there))  # kept batches, once and for all
    assert len(courier.allocated) == (0 if workers else 2 * len(there))  # features and labels


def test_rows_are_gathered_in_the_memory_that_they_are_sent_from(
    courier: type[Courier], monkeypatch: pytest.MonkeyPatch
) -> None:
    sent, send = [], courier.send

    def note(self: Courier, data: SubData) -> tuple[SubData, str]:
        sent.append([data.x.data_ptr(), data.y.data_ptr()])
        return send(self, data)

    monkeypatch.setattr(courier, "send", note)
    there = list(SubgraphLoader(DATA, PTR, 2, device="cuda", shuffle=True))
    assert len(sent) == len(there) and {each for pair in sent for each in pair} == set(courier.allocated)
    for batch in there:
        assert torch.equal(batch.x, DATA.x[batch.n_id]) and torch.equal(batch.y, DATA.y[batch.n_id])


def test_the_thread_of_a_loader_uses_the_cores_that_a_model_on_a_gpu_leaves(
    courier: type[Courier], monkeypatch: pytest.MonkeyPatch
) -> None:
    before = torch.get_num_threads()
    for cores, threads in ((6, 4), (3, 1), (2, 1), (1, 1)):
        monkeypatch.setattr(loader, "_num_cores", lambda cores=cores: cores)
        list(SubgraphLoader(DATA, PTR, 1, device="cuda"))
        assert courier.threads == {threads} and torch.get_num_threads() == before
    found = set()
    builder = loader.Builder.batch
    monkeypatch.setattr(
        loader.Builder, "batch", lambda *args: found.add(torch.get_num_threads()) or builder(*args), raising=True
    )
    monkeypatch.setattr(loader, "_num_cores", lambda: 6)
    list(SubgraphLoader(DATA, PTR, 1, prefetch=2))
    assert found == {1}  # beside a model on the CPU


def test_an_epoch_that_is_left_early_on_a_device(courier: type[Courier]) -> None:
    batches = SubgraphLoader(DATA, PTR, 1, device="cuda", prefetch=1)
    next(iter(batches))
    assert len(list(batches)) == 4
    assert courier.received == 5


def test_a_device_that_nothing_is_brought_to() -> None:
    with pytest.raises(ValueError, match="device must be a CUDA device or the CPU, but is meta"):
        SubgraphLoader(DATA, PTR, 1, device="meta")
    if not torch.cuda.is_available():
        with pytest.raises(ValueError, match="device is cuda, but there is no CUDA device here; leave device out"):
            SubgraphLoader(DATA, PTR, 1, device="cuda")


class Stream:
    """A lane of the courier's."""

    stream = None  # the one that is current

    def __init__(self, device: torch.device) -> None:
        self.log: list[object] = []

    def record(self, blocking: bool = False) -> Stream:
        self.log.append("record, to sleep until it" if blocking else "record")
        return self

    def wait(self, event: object) -> None:
        self.log.append("wait")

    def hold(self, tensor: torch.Tensor) -> None:
        self.log.append(tensor.data_ptr())

    def synchronize(self) -> None:
        self.log.append("host waits")


@pytest.mark.parametrize("fmt", FORMATS)
def test_the_courier(fmt: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(batches, "SideStream", Stream)
    monkeypatch.setattr(batches, "CurrentStream", Stream)
    monkeypatch.setattr(torch.Tensor, "pin_memory", torch.Tensor.clone)
    monkeypatch.setattr(torch.Tensor, "is_pinned", lambda self: False)
    data = to_format(random_graph(N, 500), fmt)
    courier = batches.Courier(torch.device("cpu"))
    compute: list[object] = courier._compute.log
    sent, arrived = courier.send(data)
    assert courier.receive(sent, arrived) is sent
    tensors = all_tensors(sent.to_dict())
    assert compute == ["record, to sleep until it", "wait", *[tensor.data_ptr() for tensor in tensors]]
    for left, right in zip(all_tensors(data.to_dict()), tensors, strict=True):
        assert torch.equal(left, right) and left.data_ptr() != right.data_ptr()
    # Two batches may have been received and not computed, but a third one is sent only then.
    courier.receive(*courier.send(data))
    assert "host waits" not in compute
    courier.send(data)
    assert compute.count("host waits") == 1


def test_a_batch_is_held_for_the_stream_on_which_the_loop_asks_for_it(monkeypatch: pytest.MonkeyPatch) -> None:
    """As docs/gpu.md says: the stream that steps run on is entered around the loop."""

    class Current:
        def __init__(self) -> None:
            self.waits, self.held = 0, []

        def record_event(self, event: None) -> None:
            return event

        def wait_event(self, event: object) -> None:
            self.waits += 1

    streams = Current(), Current()
    monkeypatch.setattr(batches, "SideStream", Stream)
    monkeypatch.setattr(torch.Tensor, "record_stream", lambda tensor, stream: stream.held.append(tensor.data_ptr()))
    monkeypatch.setattr(torch.Tensor, "pin_memory", torch.Tensor.clone)
    monkeypatch.setattr(torch.cuda, "Event", lambda blocking: None)
    courier = batches.Courier(torch.device("cpu"))
    for current in streams:
        monkeypatch.setattr(torch.cuda, "current_stream", lambda device, current=current: current)
        sent, arrived = courier.send(DATA)
        courier.receive(sent, arrived)
        assert current.waits == 1
        assert current.held == [tensor.data_ptr() for tensor in all_tensors(sent.to_dict())]


def test_the_courier_leaves_ids_in_host_memory_that_is_pinned(monkeypatch: pytest.MonkeyPatch) -> None:
    pinned: list[int] = []

    def pin(tensor: torch.Tensor) -> torch.Tensor:
        copied = tensor.clone()
        pinned.append(copied.data_ptr())
        return copied

    monkeypatch.setattr(batches, "SideStream", Stream)
    monkeypatch.setattr(batches, "CurrentStream", Stream)
    monkeypatch.setattr(torch.Tensor, "pin_memory", pin)
    batch = next(iter(SubgraphLoader(DATA, PTR, 2)))
    courier = batches.Courier(torch.device("cpu"))
    for sent in (courier.send(batch)[0], courier.pin(batch)):
        assert sent.n_id.is_cpu and sent.n_id.data_ptr() in pinned
        assert torch.equal(sent.n_id, batch.n_id) and sent.record is batch.record
    assert batch.n_id.data_ptr() not in pinned


@pytest.mark.parametrize("prefetch", [0, 2])
@pytest.mark.parametrize("fmt", FORMATS)
def test_edges_are_put_in_the_order_of_sources_ahead(fmt: str, prefetch: int) -> None:
    """Once a backward pass has needed it, and as long as one does."""
    data = to_format(copy.copy(DATA), fmt)
    model = SAGE(N, data.num_features, 4, 3, num_layers=2)

    def ready(train: bool) -> list[bool]:
        found = []
        for batch in SubgraphLoader(data, PTR, 1, prefetch=prefetch) if train else EvalSubgraphLoader(data, PTR):
            edges = kept_edges(find_adjacency(batch.data)[1])
            found.append(edges is not None and "matrix" in vars(edges._by_source))
            with torch.set_grad_enabled(train):
                out = model(batch)
            if train:
                out.sum().backward()
        return found

    trained = ready(True)
    assert not trained[0] and (fmt == "EdgeIndex" or trained[-1]), trained
    assert not any(ready(False))
