"""Loaders: the mini-batches of an epoch, made ahead and brought to the model's device."""

from __future__ import annotations

import copy
import os
import warnings
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from functools import cached_property, partial
from typing import Any

import torch
from torch import Tensor
from torch.utils.data import DataLoader, RandomSampler, SequentialSampler
from torch_geometric.data import Data

from torch_gas._util.allocator import keep_freed_memory
from torch_gas._util.arguments import checked
from torch_gas._util.thread import Task, Worker, check_process
from torch_gas.batch.builder import Builder, check_partition
from torch_gas.batch.cache import BatchCache, Contents, learned
from torch_gas.batch.courier import Courier
from torch_gas.batch.data import SubData
from torch_gas.batch.epochs import Epoch, Epochs, checksum
from torch_gas.batch.groups import Groups
from torch_gas.batch.record import Lookahead
from torch_gas.graph.device import tell_order
from torch_gas.graph.formats import format_of, num_destinations
from torch_gas.graph.mirror import Need
from torch_gas.graph.product import Edges, edges_of, kept_edges
from torch_gas.graph.sample import Samples
from torch_gas.transfer import Event

MakeBatch = Callable[[], SubData]
_of_parents: list[
    Any
] = []  # iterators that would end the workers of a parent process if they were forgotten in a fork of it


class SubgraphLoader(DataLoader[SubData]):
    """Mini-batches of ``batch_size`` parts each, over all parts, with the halo of each batch.

    Args:
        data: a graph in the order of ``perm``; see :func:`torch_gas.permute`.
        ptr: start of each part and N, [num_parts + 1], from :func:`torch_gas.metis`.
        batch_size: parts in a batch, and not nodes; more than there are give the whole graph, with a warning.
        bipartite: whether the adjacency has B rows (default) or B+S rows, of which the last S are empty.
        neighbors: ``"in"`` for the edges into the batch, or ``"both"`` for those from it as well, whose ends outside then
            belong to the halo. Layers that read both directions need it; its adjacency has B+S rows.
        log: accepted for PyGAS scripts; nothing is precomputed, so there is nothing to print.
        shuffle: whether parts are grouped anew at random in each epoch.
        regroup: with ``shuffle``, False has the same parts meet in each epoch, and only the order of batches drawn anew. Batches
            are then kept (``cache_size``). The groups are drawn at random when the loader is made: parts from anywhere mix better
            than parts that follow one another, which partitioners make of neighbours. For groups of k such parts leave out the
            starts between, ``ptr=torch.cat([ptr[:-1:k], ptr[-1:]])``. Without ``shuffle`` it changes nothing.
        seed: makes groups and order reproducible whatever the global random state is.
        prefetch: batches that a thread makes ahead while a step runs; 0 makes each when it is asked for. By default 2 where the
            thread has a core to itself or batches go to a GPU, and 0 where torch's threads have all cores. With
            ``num_workers``, which make them instead, those that are brought to ``device`` ahead.
        device: a CUDA device that batches are brought to, from pinned memory while a step runs, by a thread that uses all cores
            but two. Their ids stay in host memory. By default all of a batch does, and ``batch.to(device)`` moves it.
        cache_size: bytes for batches that are the same in each epoch (no shuffling, ``regroup=False``, or one part a batch). They
            are made anew where ``data`` holds something else when an epoch begins, and each time where it is learned (requires a
            gradient).
        **kwargs: further arguments of :class:`torch.utils.data.DataLoader`, such as ``num_workers``.

    Raises:
        ValueError: if ``ptr`` does not ascend from 0 to N, or ``data`` is not in the order that ``ptr`` belongs to, or
            ``shuffle=True`` or ``regroup=False`` comes with a sampler.
        RuntimeError: where an epoch begins, if the edges are others than when the loader was made.

    Example:
        >>> from torch_gas import SubgraphLoader, metis, permute
        >>> from torch_gas.datasets import synthetic
        >>> data = synthetic(1000)
        >>> perm, ptr = metis(data, num_parts=8, log=False)
        >>> data = permute(data, perm, log=False)
        >>> loader = SubgraphLoader(data, ptr, batch_size=2, shuffle=True, seed=0)
        >>> for batch, batch_size, n_id, offset, count in loader:
        ...     assert batch.x.size(0) == n_id.numel()
        ...     assert batch_size == int(count.sum())
    """

    @checked
    def __init__(
        self,
        data: Data,
        ptr: Tensor,
        batch_size: int = 1,
        bipartite: bool = True,
        log: bool = True,
        *,
        neighbors: str = "in",
        shuffle: bool = False,
        regroup: bool = True,
        seed: int | None = None,
        prefetch: int | None = None,
        cache_size: int = 2**30,
        device: torch.device | str | int | None = None,
        **kwargs: Any,
    ) -> None:
        if (prefetch or 0) < 0 or cache_size < 0:
            came = f"{prefetch} and {cache_size}"
            raise ValueError(f"SubgraphLoader: prefetch and cache_size must not be negative, but are {came}")
        if neighbors not in ("in", "both"):
            raise ValueError(f'SubgraphLoader: neighbors must be "in" or "both", but is {neighbors!r}')
        if sampling := [name for name in ("num_neighbors", "input_nodes", "replace") if name in kwargs]:
            raise TypeError(
                f"SubgraphLoader: {', '.join(sampling)} of PyG's NeighborLoader have no place here, because nothing is sampled: "
                "an epoch has all nodes, and a batch all edges into its own. Leave them out, and take the loss of labelled nodes"
            )
        self.builder = Builder(data, check_partition(ptr, data), bipartite, neighbors)
        _warn_of_whole_graph(batch_size, ptr)
        self._prefetch = prefetch
        self.device = torch.device("cpu" if device is None else device)
        if self.device.type not in ("cpu", "cuda"):
            raise ValueError(f"SubgraphLoader: device must be a CUDA device or the CPU, but is {self.device}")
        if self.device.type == "cuda" and not torch.cuda.is_available():
            raise ValueError(
                f"SubgraphLoader: device is {self.device}, but there is no CUDA device here; leave device out"
            )
        self._needs: Need = ""  # what the backward pass of the last batch needed of its edges
        self._courier: Courier | None = None
        self._process = os.getpid()
        capacity = cache_size if batch_size == 1 or not (shuffle and regroup) else 0
        self._cache = BatchCache(capacity, is_sent=self.device.type == "cuda")
        self._features: Samples = {}
        self._contents: Contents | None = None  # of which the kept batches are
        self._learned: str | None = None  # an attribute of the graph that gradients are wanted of
        if seed is not None and kwargs.get("generator") is not None:
            raise ValueError("SubgraphLoader: give seed or generator, not both")
        samplers = [name for name in ("sampler", "batch_sampler") if kwargs.get(name) is not None]
        if samplers and (shuffle or not regroup):
            beside = "shuffle=True" if shuffle else "regroup=False"
            raise ValueError(
                f"SubgraphLoader: {samplers[0]} says which parts meet, and so would {beside}; leave one of them out"
            )
        self._parts: list[int] = (ptr.diff() > 0).nonzero().view(-1).tolist()
        # A generator of its own, because workers would draw from the loader's as well.
        generator = kwargs.get("generator") if seed is None else torch.Generator().manual_seed(seed)
        groups: Groups | None = None
        order: dict[str, Any] = {"batch_size": batch_size, "shuffle": shuffle}
        if shuffle and not regroup:
            groups = Groups(len(self._parts), batch_size, kwargs.pop("drop_last", False), generator)
            order = {"batch_sampler": groups}
        elif shuffle and seed is not None:
            order = {"batch_size": batch_size, "sampler": RandomSampler(self._parts, generator=generator)}
        # DataLoader wants a data set of batches; its items are numbers of parts, of which the builder makes a batch.
        super().__init__(self._parts, collate_fn=self.builder, **order, **kwargs)  # type: ignore[arg-type]
        if groups is not None:  # DataLoader leaves these empty where it is given a batch sampler
            vars(self).update(batch_size=batch_size, drop_last=groups.drop_last, sampler=groups.sampler)
        self._epochs = Epochs(self.batch_sampler, self.generator)

    @property
    def _index_sampler(self) -> Epochs:  # what DataLoader draws batches from
        return self._epochs

    @property
    def data(self) -> Data:
        """The graph."""
        return self.builder.data

    @property
    def ptr(self) -> Tensor:
        """Start of each part and N, [num_parts + 1]."""
        return self.builder.ptr

    @property
    def num_nodes(self) -> int:
        """N."""
        return self.builder.num_nodes

    @property
    def prefetch(self) -> int:
        """How many batches are made ahead."""
        default = 2 if self.device.type == "cuda" or torch.get_num_threads() < _num_cores() else 0
        return default if self._prefetch is None else self._prefetch

    def __iter__(self) -> Iterator[SubData]:  # type: ignore[override]
        with self._epochs.begin() as epoch:
            yield from self._serve(lambda: self._tasks(epoch), epoch)

    @checked
    def only(self, batches: Sequence[Sequence[int]]) -> Iterator[SubData]:
        """Batches of the given parts, in their order, instead of those of an epoch.

        Args:
            batches: the parts of each batch, by their position in :attr:`ptr`.

        Raises:
            IndexError: if a part is negative or not below the number of parts.
        """
        num_parts = self.ptr.numel() - 1
        for part in (part for parts in batches for part in parts):
            if not 0 <= part < num_parts:
                raise IndexError(f"SubgraphLoader.only: part {part} must be in 0 .. {num_parts - 1}")
        return self._serve(lambda: iter([partial(self._make, tuple(parts)) for parts in batches]))

    def _serve(self, tasks: Callable[[], Iterator[MakeBatch]], epoch: Epoch | None = None) -> Iterator[SubData]:
        """The batches that ``tasks`` make, where the model can use them."""
        self.builder.check_unchanged()
        if self._process != os.getpid():
            _of_parents.append(self._iterator)  # of workers that persist
            self._iterator, self._process = None, os.getpid()
        is_sampled = self._cache.capacity == 0 and not self.persistent_workers
        mask_sizes = self.builder.mask_sizes()
        contents = Contents(self.data, is_sampled, beside=self.builder.adj if is_sampled else None)
        if self._contents is None or contents.differ(self._contents):
            self._contents, self._features = contents, self.builder.features()
            self._learned = learned(self.data)
            self._cache = copy.copy(self._cache)
            vars(self.builder).pop("graph_key", None)  # data.perm may be another one
            self._iterator = None  # workers that persist hold the data as it was
        if self.num_workers > 0:
            self.builder.check_sendable(self._learned)
        self.builder.graph_key  # noqa: B018  # before workers start, which would each compute it
        for batch, arrived, ahead in self._batches(tasks()):
            if self._courier is not None and arrived is not None:
                self._courier.receive(batch, arrived)
            place: dict[str, Any] = {} if epoch is None else self._epochs.hand_out(epoch)
            known = {"lookahead": Lookahead(self, ahead), "features": self._features, "mask_sizes": mask_sizes}
            yield batch.hand_out(**known, **place)
            edges = kept_edges(batch[self.builder.key])
            self._needs = "" if edges is None else edges.needs

    def _batches(self, tasks: Iterator[MakeBatch]) -> Iterator[tuple[SubData, Event | None, deque[Task[Any]]]]:
        """Batches on their way to the device, the event of their arrival, and those that a thread makes ahead."""
        if self.device.type == "cpu":
            keep_freed_memory()
        elif self._courier is None:
            self._courier = Courier(self.device)
            if self.num_workers == 0:  # other processes have no CUDA
                self.builder.allocate = self._courier.allocate
        ahead: deque[Task[tuple[SubData, Event | None]]] = deque()
        # Rows that are learned change in each step: a batch that was made ahead would have older ones.
        prefetch = 0 if self._learned else self.prefetch
        if prefetch == 0 or (self.num_workers > 0 and self._courier is None):
            for task in tasks:
                yield *self._send(task), ahead
            return
        worker = Worker()
        try:
            # On the CPU, two teams of threads would spin for the same cores. With a GPU, cores have nothing else to do but
            # to launch kernels and to move rows of tables.
            _use_threads(worker, max(1, _num_cores() - 2) if self.device.type == "cuda" else 1)
            for task in tasks:
                ahead.append(worker.submit(partial(self._send, task)))
                if len(ahead) > prefetch:
                    yield *ahead.popleft().result(), ahead
            while ahead:
                yield *ahead.popleft().result(), ahead
        finally:
            worker.close()
            ahead.clear()

    def _tasks(self, epoch: Epoch) -> Iterator[MakeBatch]:
        """Calls that make one batch of ``epoch`` each."""
        with self._epochs.drawn(epoch):
            batches: Any = super().__iter__() if self.num_workers > 0 else None
        if batches is not None:
            number = len(self) if epoch.batches is None else len(epoch.batches)
            return iter([partial(_next, batches, os.getpid())] * number)
        return (partial(self._make, tuple(self._parts[i] for i in batch)) for batch in self._epochs)

    def _send(self, task: MakeBatch) -> tuple[SubData, Event | None]:
        batch = task()
        if self._courier is None:
            return batch, None
        sent, arrived = self._courier.send(batch)
        num_dst = self._num_destinations(batch)
        tell_order(batch[self.builder.key], sent[self.builder.key], num_dst, batch.n_id.numel(), batch.batch_size)
        return sent, arrived

    def _num_destinations(self, batch: SubData) -> int:
        """Of its edges, B or B + S."""
        return batch.batch_size if self.builder.neighbors == "in" else batch.n_id.numel()

    def state_dict(self) -> dict[str, Any]:
        """From which a loader made in the same way goes on with the very next batch, and with the epochs that follow.

        It holds what is left of the epoch under way, and what decides the order of the next: the state of ``seed`` or
        ``generator``, and the groups of ``regroup=False``. Where the order comes from the global random state, save that as well,
        as :func:`torch_gas.checkpoint.save` does. An epoch that was left by ``break`` counts as under way until the next one
        begins.

        Raises:
            TypeError: if the order comes from a sampler of the user's that has no ``state_dict`` and ``load_state_dict``, which
                must hold what decides its next epoch.
        """
        return self._epochs.state_dict(self._identity)

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Goes on from ``state``: whoever iterates next gets the rest of the epoch that was under way.

        With ``regroup=False`` the groups are then those of the state, whatever this loader drew.

        Raises:
            ValueError: if it is of a loader of another graph, partition, order of nodes, batch size or way of shuffling.
        """
        groups = self._epochs.groups
        self._epochs.load_state_dict(state, self._identity)
        if self._epochs.groups != groups:
            vars(self).pop("largest_halo", None)
            self._cache = copy.copy(self._cache)

    @cached_property
    def _identity(self) -> dict[str, Any]:
        """What decides which nodes a batch has."""
        return {
            "num_nodes": self.num_nodes,
            "num_parts": self.ptr.numel() - 1,
            "batch_size": self.batch_size,
            "drop_last": self.drop_last,
            "ptr": checksum(self.ptr),
            "perm": checksum(self.data.get("perm")),
        }

    @cached_property
    def largest_halo(self) -> int | None:
        """The most halo nodes that a batch may have, max S; None where a sampler of the user's decides on batches.

        Where parts are grouped anew it is an upper bound: the sum of the largest halos of single parts.
        """
        if not isinstance(self._epochs.sampler, (RandomSampler, SequentialSampler)):
            return None
        sizes = sorted(halo.numel() for halo in self.halos())
        number = self._epochs.batch_sampler.batch_size if self._fixed_batches is None else 1
        return min(sum(sizes[-number:]), self.num_nodes)

    @property
    def _fixed_batches(self) -> list[list[int]] | None:
        """The parts of each batch, where batches are the same in each epoch."""
        groups: Any = self._epochs.groups
        if isinstance(self._epochs.sampler, SequentialSampler):
            groups = self._epochs.batch_sampler
        return None if groups is None else [[self._parts[i] for i in group] for group in groups]

    def halos(self) -> Iterator[Tensor]:
        """Ids of the halo of each batch, or of each part where batches are not always the same."""
        batches = self._fixed_batches
        return map(self.builder.halo, [[part] for part in self._parts] if batches is None else batches)

    def _make(self, parts: tuple[int, ...]) -> SubData:
        if self._cache.capacity == 0 or self._learned:  # a gradient reaches the graph through a batch of this step
            return self._build(parts)
        kept = self._cache.get(parts)
        if kept is not None:
            return kept
        batch = self._build(parts)
        return self._cache.put(parts, batch if self._courier is None else self._courier.pin(batch))

    def _build(self, parts: tuple[int, ...]) -> SubData:
        batch = self.builder(parts)
        if self._needs:
            adj = batch[self.builder.key]
            edges = edges_of(adj, num_destinations(adj) or self._num_destinations(batch), batch.n_id.numel())
            if isinstance(edges, Edges):  # on the CPU
                edges.prepare(self._needs, batch.batch_size, format_of(adj).values(adj))
        if self.pin_memory and torch.cuda.is_available():  # as DataLoader does for batches of workers
            batch.pin_memory()
        return batch

    def __repr__(self) -> str:
        sizes = f"num_parts={self.ptr.numel() - 1}, batches={len(self)}, batch_size={self.batch_size}"
        return f"{type(self).__name__}({self.data}, {sizes})"


class EvalSubgraphLoader(SubgraphLoader):
    """Batches of ``batch_size`` consecutive parts in a fixed order, for evaluation.

    Takes the arguments of :class:`SubgraphLoader` but ``shuffle``. Neighbouring parts are merged, so each batch is
    one contiguous range of nodes and moves as one block.
    """

    @checked
    def __init__(
        self, data: Data, ptr: Tensor, batch_size: int = 1, bipartite: bool = True, log: bool = True, **kwargs: Any
    ) -> None:
        if kwargs.pop("shuffle", False):
            raise ValueError("EvalSubgraphLoader: shuffle must be False; use SubgraphLoader to shuffle")
        if batch_size < 1:
            raise ValueError(f"EvalSubgraphLoader: batch_size must be at least 1, but is {batch_size}")
        ptr = check_partition(ptr, data)
        _warn_of_whole_graph(batch_size, ptr)
        merged = torch.cat([ptr[:-1][::batch_size], ptr[-1:]])
        super().__init__(data, merged, batch_size=1, bipartite=bipartite, log=log, shuffle=False, **kwargs)


def _warn_of_whole_graph(batch_size: int, ptr: Tensor) -> None:
    """Warns where ``batch_size`` is a number of nodes, as it is in other loaders."""
    num_parts = ptr.numel() - 1
    if batch_size > num_parts > 1:
        warnings.warn(
            f"SubgraphLoader: batch_size={batch_size} counts parts, of which there are {num_parts}, so that a batch is the whole "
            "graph; pass the number of parts in a batch, or partition the graph into more of them",
            stacklevel=4,
        )


def _next(batches: Iterator[SubData], process: int) -> SubData:
    """The next batch that worker processes have made for ``process``."""
    if os.getpid() != process:
        _of_parents.append(batches)
    check_process(process)
    try:
        return next(batches)
    except StopIteration:
        raise RuntimeError(
            "SubgraphLoader: workers that persist serve one epoch at a time, and have begun another since; leave out "
            "persistent_workers where one loader is iterated over inside of its own loop, or make two loaders"
        ) from None


def _num_cores() -> int:
    """Those that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def _use_threads(worker: Worker, number: int) -> None:
    """Has torch use so many threads inside of ``worker``."""
    num_threads = torch.get_num_threads()
    try:
        worker.submit(partial(torch.set_num_threads, number)).result()
        # A thread takes the setting over when it first asks for it, so that it can then be put back for all others.
        worker.submit(torch.get_num_threads).result()
    finally:
        torch.set_num_threads(num_threads)
