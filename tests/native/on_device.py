"""Models on the emulated device.

Layers compute on the host, which works at once; tables, buffers, streams, events and copies are those of transfer/, in
schedules that a seed draws. All must have the bits of models whose rows the host moves at once.
"""

from __future__ import annotations

import tempfile
import threading
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from typing import Any

import _emulated as device
import torch
from test_schedule import DATA, PTR, N, make, step, train
from torch import Tensor

from torch_gas import AsyncIOPool, EvalSubgraphLoader, FileTier, SubgraphLoader, _core, hot_nodes
from torch_gas._core import placement, rows
from torch_gas._core.build import _C
from torch_gas.extensions import Compensation
from torch_gas.extensions.refresh import EveryEpochs
from torch_gas.transfer.lanes import Lane, Lanes

CUDA = torch.device("cuda", 0)
queue = threading.local()  # the stream that calls of the core are put on, if any


class Event:
    """An event of the emulated runtime."""

    def __init__(self, stream: int) -> None:
        self.handle = device.record(stream)

    def synchronize(self) -> None:
        device.synchronize(self.handle)


class StreamLane(Lane):
    """A stream of the emulated device."""

    def __init__(self) -> None:
        self.stream = device.stream()
        self.held: list[tuple[Event, Tensor]] = []

    def run(self, operation: Callable[[], object]) -> None:
        func = getattr(operation, "func", None)
        if getattr(func, "__name__", "") == "copy_":  # of ids, from page-locked memory
            there, pinned = func.__self__, operation.args[0]
            assert device.is_locked(pinned.data_ptr(), pinned.nbytes)
            device.copy(there.data_ptr(), pinned.data_ptr(), pinned.nbytes, self.stream)
            return
        with on(self.stream):
            operation()

    def wait(self, event: Event | None) -> None:
        if event is not None:
            device.wait(self.stream, event.handle)

    def record(self) -> Event:
        return Event(self.stream)

    def empty(self, size: int, dtype: torch.dtype, device: torch.device) -> Tensor:
        return torch.full((size * dtype.itemsize,), 255, dtype=torch.uint8).view(dtype)  # NaN, if anybody reads it

    def hold(self, tensor: Tensor) -> None:
        self.held = [(event, kept) for event, kept in self.held if not device.is_done(event.handle)]
        self.held.append((self.record(), tensor))


class HostLane(StreamLane):
    """Where layers compute: at once, so that the host waits for what they wait for and for what moves rows here."""

    def run(self, operation: Callable[[], object]) -> None:
        super().run(operation)
        self.record().synchronize()

    def wait(self, event: Event | None) -> None:
        if event is not None:
            event.synchronize()


@contextmanager
def on(stream: int) -> Iterator[None]:
    """Puts calls of the core on a stream."""
    queue.stream = stream
    try:
        yield
    finally:
        queue.stream = None


class Staging(_core.Staging):
    """A page-locked buffer, and a stream that fills and empties it."""

    def __init__(self, num_bytes: int, device_: Any) -> None:
        self.buffer = torch.zeros(BUFFER, dtype=torch.uint8)
        device.lock(self.buffer.data_ptr(), self.buffer.nbytes)
        self.stream: Any = Stream()


class Stream:
    def __init__(self) -> None:
        self.device, self.cuda_stream = torch.device("cpu"), device.stream()


BUFFER = 1 << 10  # some rows: many chunks a call
on_host = placement.move


def move(call: str, table: Any, rows: Tensor, *where: int, staging: Staging | None = None) -> None:
    """As :func:`torch_gas._core.placement.move`, with rows on the device where a stream is given."""
    stream = getattr(queue, "stream", None)
    if stream is None:
        on_host(call, table, rows, *where)
        return
    width = rows.shape[1:].numel()
    if table.dtype == rows.dtype:
        width, types = width * table.dtype.itemsize, (_C.DType.bytes, _C.DType.bytes)
    else:
        kinds = placement.SCALED_TYPES if placement.is_scaled(table, rows.dtype) else placement.FLOAT_TYPES
        types = kinds[table.dtype], placement.FLOAT_TYPES[rows.dtype]
    arguments = (placement._table_at(table, types[0], width), *where, _C.Rows(rows.data_ptr(), types[1], rows.shape[0]))
    writes = call in ("scatter_rows", "add_rows", "write_chunks")
    there = _C.Stream(0, stream)
    with placement.in_use(table, writes) if not isinstance(table, Tensor) else placement._NOTHING:
        if staging is None:
            assert device.is_locked(table.data_ptr(), table.nbytes), "a table that the device cannot see"
            getattr(_C, f"cuda_{call}")(*arguments, there, True)
        else:
            getattr(_C, f"staged_{call}")(*arguments, there, placement._staging_at(call, staging, rows), 1)
    written = table if writes else rows
    if isinstance(written, Tensor):
        placement.mark_written(written)


class Pool(AsyncIOPool):
    """A pool whose lanes are streams of the emulated device."""

    def __init__(self) -> None:
        super().__init__(3)
        self._lanes = Lanes(HostLane(), StreamLane(), StreamLane())

    # What asks for the device sees one.

    def _ids_for(self, index: Tensor, lane: Lane) -> Tensor:
        with self._as_device():
            return super()._ids_for(index, lane)

    def _table(self, rows: Any) -> Any:
        with self._as_device():
            return super()._table(rows)

    @contextmanager
    def _as_device(self) -> Iterator[None]:
        before, self.device = self.device, CUDA
        try:
            yield
        finally:
            self.device = before


pinned: list[Tensor] = []  # until the device has done all: an allocator of page-locked memory waits as well


def pin_memory(tensor: Tensor) -> Tensor:
    """A copy in page-locked memory."""
    copied = tensor.clone()
    if copied.nbytes > 0:
        device.lock(copied.data_ptr(), copied.nbytes)
    pinned.append(copied)
    return copied


def is_pinned(tensor: Tensor) -> bool:
    return tensor.nbytes > 0 and device.is_locked(tensor.data_ptr(), tensor.nbytes)


def lock_tables(model: Any) -> None:
    """Page-locks the model's tables, as those of a model on a GPU are."""
    for history in model._stores:
        storage = history.table.storage
        if not is_pinned(storage):
            device.lock(storage.data_ptr(), storage.nbytes)
            pinned.append(storage)


def run(model: Any, seed: int | None, locked: bool, work: Callable[[Any], list[Tensor]]) -> list[Tensor]:
    """What ``work`` finds on ``model``, with transfers on the emulated device by ``seed``, or at once."""
    if seed is not None:
        device.reset(seed)
        pinned.clear()
        if locked:
            lock_tables(model)
        model._session.use_pool(Pool())
    found = work(model)
    if seed is not None:
        device.finish()
    return found


def compensated(model: Any) -> list[Tensor]:
    """Training with gradient tables, whose rows travel as those of histories."""
    model.add_extension(Compensation(trust=1.0))
    return train(model)


def refreshed(model: Any) -> list[Tensor]:
    """Training with an exact pass after each epoch, from a loader that makes batches ahead, and inference at the end."""
    loader = SubgraphLoader(DATA, PTR, 3, shuffle=True, seed=1, prefetch=2)
    policy = EveryEpochs(1).bind(model, EvalSubgraphLoader(DATA, PTR, 4), DATA)
    optimizer = torch.optim.Adam(model.parameters(), lr=0.01)
    torch.manual_seed(7)
    found = []
    for _ in range(3):
        model.train()
        found += [step(model, optimizer, batch) for batch in loader]
        policy.after_epoch()
    found.append(model.eval()(loader=EvalSubgraphLoader(DATA, PTR, 5)))
    return found + [value.clone() for value in model.state_dict().values()]


def checkpointed(model: Any) -> list[Tensor]:
    """Training that goes on from what was saved between two steps, while rows may be on their way."""
    loader = list(SubgraphLoader(DATA, PTR, 3, shuffle=True, seed=2))
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    torch.manual_seed(3)
    found = [step(model, optimizer, batch) for batch in loader[:2]]
    saved = {name: value.clone() for name, value in model.state_dict().items()}
    found += [step(model, optimizer, batch) for batch in loader[2:]]
    model.load_state_dict(saved)
    found += [step(model, optimizer, batch) for batch in loader[2:]]
    return found + [value.clone() for value in model.state_dict().values()]


def warm(model: Any) -> list[Tensor]:
    """Training with some rows of each table kept where layers compute."""
    model.keep_hot(hot_nodes(SubgraphLoader(DATA, PTR, 3), N // 4))
    return train(model)


def changed_ids(model: Any) -> list[Tensor]:
    """Rows of ids that the caller writes to between one pull and the next."""
    table, pool, index = model.histories[0].emb, model._session._pool, torch.arange(0, N // 2, 2)
    table.copy_(torch.arange(table.numel()).view_as(table))
    found = []
    for _ in range(4):
        index += 1
        if pool is None:
            found.append(table[index])
        else:
            pool.async_pull(table, None, None, index)
            found.append(pool.synchronize_pull(table).clone())
            pool.free_pull(table)
    return found


def in_files(folder: str, number: int, name: str) -> dict[str, Any]:
    """Where the tables of a model are, if that is part of the case."""
    return {"tier": FileTier(f"{folder}/{number}")} if "in files" in name else {}


# A model's arguments, whether its tables are page-locked, and what is done with it.
CASES: dict[str, tuple[dict[str, Any], bool, Callable[[Any], list[Tensor]]]] = {
    "page-locked tables": ({}, True, train),
    "pageable tables": ({}, False, train),
    "tables in files": ({}, False, train),
    "hot rows": ({}, True, warm),
    "hot rows, pageable": ({}, False, warm),
    "half precision": ({"history_dtype": torch.float16}, True, train),
    "int8, pageable": ({"history_dtype": torch.int8}, False, train),
    "gradient tables": ({}, True, compensated),
    "gradient tables, pageable": ({}, False, compensated),
    "refreshed": ({}, True, refreshed),
    "refreshed, pageable": ({}, False, refreshed),
    "checkpoints": ({}, True, checkpointed),
    "ids that change": ({}, True, changed_ids),
}


def compare(name: str, seeds: Iterable[int]) -> None:
    """Ends the process where a case has other bits on the device than on the host, for one of the seeds."""
    options, locked, work = CASES[name]
    with tempfile.TemporaryDirectory() as folder:
        expected = run(make(**options, **in_files(folder, -1, name)), None, False, work)
        for seed in seeds:
            found = run(make(**options, **in_files(folder, seed, name)), seed, locked, work)
            if len(found) != len(expected) or not all(map(torch.equal, found, expected)):
                raise SystemExit(f"{name}, seed {seed}: other bits than on the host")


placement.move = rows.move = move
_core.Staging = Staging  # type: ignore[misc]
Tensor.pin_memory, Tensor.is_pinned = pin_memory, is_pinned  # type: ignore[assignment,method-assign]
device.trust_host_memory(True)
