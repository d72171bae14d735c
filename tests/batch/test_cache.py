"""Kept batches: whatever is written to the graph or to a batch, and however, the next epoch's are those of the graph as it is."""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor
from torch_geometric.data import Data

from torch_gas import EvalSubgraphLoader, SubgraphLoader
from torch_gas.batch.data import SubData
from torch_gas.graph.formats import format_of

N, E, PARTS = 600, 4000, 6
PTR = torch.arange(0, N + 1, N // PARTS)
LAST = N // PARTS - 1  # row of the first batch


def graph(**attributes: Any) -> Data:
    generator = torch.Generator().manual_seed(0)
    edges = torch.randint(N, (2, E), generator=generator)
    x = torch.randn(N, 200, generator=generator)
    return Data(x=x, edge_index=edges, edge_weight=torch.ones(E), **attributes)


def kept(data: Data, **kwargs: Any) -> SubgraphLoader:
    """A loader that has kept the batches of an epoch."""
    loader = SubgraphLoader(data, PTR, **kwargs)
    list(loader)
    assert len(loader._cache._entries) == PARTS
    return loader


# -- the graph is written to --------------------------------------------------------------------------------------------


def through_numpy(value: Tensor) -> None:
    value.numpy()[-1] = 7


def through_data(value: Tensor) -> None:
    value.data[-1] = 7


def in_place(value: Tensor) -> None:
    value[-1] = 7


@pytest.mark.parametrize("write", [through_numpy, through_data, in_place])
@pytest.mark.parametrize("name", ["x", "edge_weight", "y"])
def test_one_entry_is_written(name: str, write: Callable[[Tensor], None]) -> None:
    data = graph(y=torch.zeros(N, dtype=torch.int64))
    loader = kept(data)
    write(data[name])
    for batch, fresh in zip(loader, SubgraphLoader(data, PTR, cache_size=0), strict=True):
        assert torch.equal(batch[name], fresh[name])


def test_features_that_were_made_in_inference_mode() -> None:
    with torch.inference_mode():
        data = graph()
    loader = SubgraphLoader(data, PTR)
    list(loader)
    with torch.inference_mode():
        data.x[-1] = 7
    assert bool((list(loader)[-1].x[LAST] == 7).all())


@pytest.mark.parametrize("value", [np.zeros((N, 2)), [0.0] * N], ids=["array", "list"])
def test_attributes_that_are_no_tensors(value: Any) -> None:
    data = graph(extra=value)
    loader = kept(data)
    value[N - 1] = value[0] + 5
    assert np.all(np.asarray(list(loader)[-1].extra[LAST]) == 5)


@pytest.mark.parametrize("kwargs", [{}, {"shuffle": True, "batch_size": 2}, {"prefetch": 2}])
@pytest.mark.parametrize("layout", ["edge_index", "sorted", "csr"])
def test_edges_that_are_written_through_numpy(layout: str, kwargs: dict[str, Any]) -> None:
    data = graph()
    del data.edge_weight
    if layout == "sorted":
        data.edge_index = data.edge_index[:, data.edge_index[1].argsort()]
    if layout == "csr":
        ends = data.edge_index.flip(0).unique(dim=1)
        del data.edge_index
        data.adj_t = torch.sparse_coo_tensor(ends, torch.ones(ends.size(1)), (N, N)).to_sparse_csr()
    loader = SubgraphLoader(data, PTR, **kwargs)
    list(loader)
    held = format_of(data.adj_t if layout == "csr" else data.edge_index)
    held.stored_edges(data.adj_t if layout == "csr" else data.edge_index).src.numpy()[17] ^= 1
    with pytest.raises(RuntimeError, match=r"data changed its .*adjacency.*; make a new loader"):
        list(loader)


def test_a_partition_that_is_written_to() -> None:
    data, ptr = graph(), PTR.clone()
    loader = SubgraphLoader(data, ptr, shuffle=True, batch_size=2, seed=0)
    ptr += 1
    for batch, fresh in zip(loader, SubgraphLoader(data, PTR, shuffle=True, batch_size=2, seed=0), strict=True):
        assert torch.equal(batch.n_id, fresh.n_id)


# -- a batch is written to ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["x", "edge_weight", "edge_index"])
@pytest.mark.parametrize("prefetch", [0, 2])
def test_a_batch_is_written_to_through_numpy(name: str, prefetch: int) -> None:
    data = graph()
    loader = kept(data, prefetch=prefetch)
    for batch in loader:
        batch[name].numpy()[:] = 0
    for batch, fresh in zip(loader, SubgraphLoader(data, PTR, cache_size=0), strict=True):
        assert torch.equal(batch[name], fresh[name])


@pytest.mark.parametrize("name", ["y", "train_mask", "soft", "edge_weight"])
def test_one_entry_of_a_batch_is_written_through_numpy(name: str) -> None:
    """Of small attributes, wherever it is."""
    data = graph(
        y=torch.zeros(N, dtype=torch.int64), train_mask=torch.zeros(N, dtype=torch.bool), soft=torch.zeros(N, 9)
    )
    loader = kept(data)
    for index in (1, 40, 77):
        for batch in loader:
            batch[name].numpy()[index] = 3
    for batch, fresh in zip(loader, SubgraphLoader(data, PTR, cache_size=0), strict=True):
        assert torch.equal(batch[name], fresh[name])


def test_values_of_a_batch_that_gather_gradients() -> None:
    data = graph()
    weight, ends = torch.rand(E), data.edge_index.flip(0)
    del data.edge_index, data.edge_weight
    data.adj_t = torch.sparse_coo_tensor(ends, weight, (N, N)).coalesce().to_sparse_csr()
    loader = kept(data)
    for batch in loader:
        batch.adj_t.requires_grad_(True)
    assert not any(batch.adj_t.requires_grad for batch in loader)


# -- rows that are learned ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("prefetch", [0, 2])
@pytest.mark.parametrize("name", ["x", "edge_weight"])
def test_learned_attributes_are_those_of_the_step_before(name: str, prefetch: int) -> None:
    data = graph()
    with torch.no_grad():
        loader = kept(data, prefetch=prefetch)
    data[name] = torch.nn.Parameter(data[name])
    with torch.no_grad():
        list(loader)  # a sweep, whose batches have no gradient
    now = SubgraphLoader(data, PTR, cache_size=0, prefetch=0)
    optimizer = torch.optim.SGD([data[name]], lr=1.0)
    for number, batch in enumerate(loader):
        assert torch.equal(batch[name], next(now.only([[number]]))[name])
        before = data[name].detach().clone()
        optimizer.zero_grad()
        batch[name].sum().backward()
        optimizer.step()
        assert bool((data[name] != before).any())


@pytest.mark.parametrize("kind", [SubgraphLoader, EvalSubgraphLoader])
def test_workers_refuse_what_is_learned(kind: type[SubgraphLoader]) -> None:
    data = graph()
    loader = kind(data, PTR, num_workers=1)
    data.x = torch.nn.Parameter(data.x)
    with pytest.raises(ValueError, match=r"gradients are wanted of data\.x.*num_workers=0"):
        next(iter(loader))


@pytest.mark.parametrize("local", [False, True])
def test_workers_refuse_what_cannot_be_sent(local: bool) -> None:
    class Local(Data):
        pass

    data = graph()
    data = Local(**data.to_dict()) if local else data
    if not local:
        data.name = lambda: "mine"
    with pytest.raises(TypeError, match=r"workers cannot send what data holds.*num_workers=0"):
        next(iter(SubgraphLoader(data, PTR, num_workers=1, multiprocessing_context="fork")))


# -- forks --------------------------------------------------------------------------------------------------------------


def in_fork(call: Callable[[], Any]) -> str:
    """What ``call`` raises in a forked process, or its result, in words; an alarm ends one that waits for ever."""
    there, here = os.pipe()
    child = os.fork()
    if child == 0:
        signal.alarm(20)
        try:
            answer = str(call())
        except BaseException as error:
            answer = f"{type(error).__name__}: {error}"
        os.write(here, answer.encode())
        os._exit(0)
    os.close(here)
    with os.fdopen(there) as file:
        answer = file.read()
    assert os.waitpid(child, 0)[1] == 0, "the fork was killed by its alarm"
    return answer


@pytest.mark.filterwarnings("ignore:.*multi-threaded:DeprecationWarning")
@pytest.mark.parametrize("seconds", [0.0, 0.3])  # after which batches ahead are not there, or are
@pytest.mark.parametrize("kwargs", [{"prefetch": 2}, {"num_workers": 1, "multiprocessing_context": "fork"}])
def test_a_fork_that_goes_on_with_batches_of_its_parent(kwargs: dict[str, Any], seconds: float) -> None:
    loader = SubgraphLoader(graph(), PTR, **kwargs)
    batches = iter(loader)
    next(batches)
    time.sleep(seconds)
    assert "RuntimeError: this is under way in process" in in_fork(lambda: len(list(batches)))
    assert len(list(batches)) == PARTS - 1  # the parent's are all there


@pytest.mark.filterwarnings("ignore:.*multi-threaded:DeprecationWarning")
def test_a_fork_leaves_workers_that_persist_alone() -> None:
    loader = SubgraphLoader(graph(), PTR, num_workers=1, persistent_workers=True, multiprocessing_context="fork")
    assert len(list(loader)) == PARTS
    assert in_fork(lambda: len(list(loader))) == str(PARTS)
    assert len(list(loader)) == PARTS


@pytest.mark.filterwarnings("ignore:.*multi-threaded:DeprecationWarning")
def test_a_fork_may_begin_anew() -> None:
    loader = SubgraphLoader(graph(), PTR, prefetch=2)
    batches = iter(loader)
    next(batches)
    loader._cache._lock.acquire()  # as a thread may have it at any time
    try:
        assert in_fork(lambda: len(list(loader))) == str(PARTS)
    finally:
        loader._cache._lock.release()
    alone: Iterator[SubData] = iter(SubgraphLoader(graph(), PTR, prefetch=0))
    next(alone)
    assert in_fork(lambda: len(list(alone))) == str(PARTS - 1)
