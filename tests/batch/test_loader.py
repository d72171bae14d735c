"""Batches against a slow twin, their order, and what happens when something goes wrong."""

from __future__ import annotations

import copy
import pickle
import sys
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import numpy as np
import pytest
import torch
from graphs import FORMATS, adjacency, random_graph, random_parts, to_format
from torch import Tensor
from torch_geometric import EdgeIndex
from torch_geometric.data import Data

from torch_gas import EvalSubgraphLoader, SubData, SubgraphLoader
from torch_gas._util import thread as worker
from torch_gas.batch import loader as loader_module
from torch_gas.graph.edges import coo

N, E = 70, 500
PTR = torch.tensor([0, 10, 10, 33, 50, 70, 70])  # parts 1 and 5 are empty


def graph(fmt: str = "edge_index", weighted: bool = False) -> Data:
    """A graph with attributes of every kind, in the order in which ``fmt`` holds its edges."""
    data = random_graph(N, E, seed=1)
    num_edges = data.num_edges
    if fmt in ("csr", "SparseTensor"):
        src, dst = data.edge_index
        data.edge_index = data.edge_index[:, (dst * N + src).argsort()]
    if weighted:
        data.edge_weight = torch.rand(num_edges, generator=torch.Generator().manual_seed(2))
    data.original = torch.arange(N)
    data.train_mask = torch.arange(N) % 3 == 0
    data.node_array = np.arange(N) * 2
    data.node_list = [f"node {i}" for i in range(N)]
    data = to_format(data, fmt)
    data.edge_id = torch.arange(num_edges)
    data.edge_attr = torch.arange(num_edges * 2.0).view(-1, 2)
    data.edge_array = np.arange(num_edges) * 3
    data.scalar = torch.tensor(5)
    data.graph_vector = torch.arange(3)
    data.name = "toy"
    return data


def slow_batch(data: Data, n_id: Tensor, batch_size: int) -> dict[tuple[int, int], int]:
    """Edge ids of all edges into the batch, by (local source, local destination)."""
    local = {int(node): row for row, node in enumerate(n_id)}
    batch = set(n_id[:batch_size].tolist())
    src, dst, _ = coo(adjacency(data))
    return {
        (local[s], local[d]): edge
        for edge, (s, d) in enumerate(zip(src.tolist(), dst.tolist(), strict=True))
        if d in batch
    }


def check_batch(data: Data, batch: SubData) -> None:
    n_id, batch_size, part = batch.n_id, batch.batch_size, batch.data
    ranges = zip(batch.offset.tolist(), batch.count.tolist(), strict=True)
    assert n_id[:batch_size].tolist() == [i for o, c in ranges for i in range(o, o + c)]
    src, dst, value = coo(adjacency(data))
    inside = torch.isin(dst, n_id[:batch_size])
    halo = sorted(set(src[inside].tolist()) - set(n_id[:batch_size].tolist()))
    assert n_id[batch_size:].tolist() == halo
    assert batch.halo_size == len(halo)

    wanted = slow_batch(data, n_id, batch_size)
    got_src, got_dst, got_value = coo(adjacency(part))
    pairs = list(zip(got_src.tolist(), got_dst.tolist(), strict=True))
    assert sorted(pairs) == sorted(wanted)
    e_id = torch.tensor([wanted[pair] for pair in pairs], dtype=torch.int64)
    assert bool((got_dst.diff() >= 0).all())
    if value is not None:
        assert torch.equal(got_value, value[e_id])

    assert part.num_nodes == n_id.numel()
    for key in ("x", "y", "original", "train_mask"):
        assert torch.equal(part[key], data[key][n_id]), key
    assert np.array_equal(part.node_array, data.node_array[n_id.numpy()])
    assert part.node_list == [data.node_list[i] for i in n_id.tolist()]
    assert torch.equal(part.edge_id, e_id)
    assert torch.equal(part.edge_attr, data.edge_attr[e_id])
    assert np.array_equal(part.edge_array, data.edge_array[e_id.numpy()])
    assert torch.equal(part.scalar, data.scalar) and part.name == "toy"
    assert torch.equal(part.graph_vector, data.graph_vector)
    assert set(part.keys()) - {"num_nodes", "n_id"} == set(data.keys()) - {"num_nodes"}


def assert_same_batch(left: SubData, right: SubData) -> None:
    assert left.batch_size == right.batch_size
    for a, b in zip(left[2:], right[2:], strict=True):
        assert torch.equal(a, b)
    for a, b in zip(coo(adjacency(left.data)), coo(adjacency(right.data)), strict=True):
        assert (a is None and b is None) or torch.equal(a, b)
    for key, value in left.data.to_dict().items():
        if isinstance(value, Tensor) and key not in ("edge_index", "adj_t"):
            assert torch.equal(value, right.data[key]), key


def order(loader: SubgraphLoader) -> list[list[int]]:
    """First nodes of the parts of each batch."""
    return [batch.offset.tolist() for batch in loader]


# -- contents --------------------------------------------------------------------------------------


@pytest.mark.parametrize("weighted", [False, True])
@pytest.mark.parametrize("fmt", FORMATS)
def test_batches_equal_slow_twin(fmt: str, weighted: bool) -> None:
    data = graph(fmt, weighted)
    with torch.sparse.check_sparse_tensor_invariants():
        for batch_size in (1, 2, 4):
            loader = SubgraphLoader(data, PTR, batch_size, shuffle=True, seed=0)
            for batch in loader:
                check_batch(data, batch)


@pytest.mark.parametrize("fmt", FORMATS)
def test_adjacency_comes_back_in_kind(fmt: str) -> None:
    data = graph(fmt)
    batch = next(iter(SubgraphLoader(data, PTR, 2)))
    adj, size, rows = adjacency(batch.data), batch.batch_size, batch.n_id.numel()
    assert type(adj) is type(adjacency(data))
    if fmt == "EdgeIndex":
        assert adj.sparse_size() == (rows, size) and adj.is_sorted_by_col
        adj.validate()
        (colptr, row), perm = adj.get_csc()  # the caches that fused products read
        assert perm is None and torch.equal(row, adj[0])
        assert torch.equal(colptr.diff(), torch.bincount(adj[1], minlength=size))
        (rowptr, col), perm = adj.get_csr()
        assert torch.equal(adj[0][perm], adj[0].sort(stable=True).values)
        assert torch.equal(adj[1][perm], col)
        assert torch.equal(rowptr.diff(), torch.bincount(adj[0], minlength=rows))
    elif fmt != "edge_index":
        assert (adj.size(0), adj.size(1)) == (size, rows)


def test_matrix_columns_ascend_in_each_row() -> None:
    data = graph("csr")
    for batch in SubgraphLoader(data, PTR, 2, shuffle=True, seed=3):
        src, dst, _ = coo(batch.data.adj_t)
        key = dst * batch.n_id.numel() + src
        assert bool((key.diff() > 0).all())


@pytest.mark.parametrize("weighted", [False, True])
def test_sparse_tensor_carries_its_transpose(weighted: bool) -> None:
    torch_sparse = pytest.importorskip("torch_sparse")
    data = graph("SparseTensor", weighted)
    for batch in SubgraphLoader(data, PTR, 2, shuffle=True, seed=0):
        row, col, value = batch.data.adj_t.coo()
        fresh = torch_sparse.SparseTensor(row=row, col=col, value=value, sparse_sizes=batch.data.adj_t.sizes())
        kept, made = batch.data.adj_t.storage, fresh.storage
        assert kept._csr2csc is not None and kept._colptr is not None  # not computed on demand
        assert torch.equal(kept._csr2csc, made.csr2csc())
        assert torch.equal(kept._colptr, made.colptr())


@pytest.mark.parametrize("fmt", FORMATS)
def test_bipartite_false_adds_empty_rows(fmt: str) -> None:
    data = graph(fmt)
    pairs = zip(SubgraphLoader(data, PTR, 2), SubgraphLoader(data, PTR, 2, bipartite=False), strict=True)
    for batch, square in pairs:
        rows = batch.n_id.numel()
        for a, b in zip(coo(adjacency(batch.data)), coo(adjacency(square.data)), strict=True):
            assert (a is None and b is None) or torch.equal(a, b)
        if fmt in ("csr", "SparseTensor"):
            assert (square.data.adj_t.size(0), square.data.adj_t.size(1)) == (rows, rows)
        if fmt == "EdgeIndex":
            assert square.data.edge_index.sparse_size() == (rows, rows)


@pytest.mark.parametrize("sort", ["row", "col"])
def test_sorted_edge_index_objects(sort: str) -> None:
    data = graph("EdgeIndex")
    data.edge_index, perm = data.edge_index.sort_by(sort)
    for key in ("edge_id", "edge_attr"):
        data[key] = data[key][perm]
    data.edge_array = data.edge_array[perm.numpy()]
    for batch in SubgraphLoader(data, PTR, 2):
        src, dst = batch.data.edge_index.as_tensor()
        n_id = batch.n_id
        wanted = data.edge_index.as_tensor()[:, [(data.edge_id == e).nonzero().item() for e in batch.data.edge_id]]
        assert torch.equal(torch.stack([n_id[src], n_id[dst]]), wanted)


def test_csr_matrix_with_vector_values() -> None:
    data = graph("csr")
    adj = data.adj_t
    values = torch.rand(adj.values().numel(), 4)
    data.adj_t = torch.sparse_csr_tensor(adj.crow_indices(), adj.col_indices(), values, size=(N, N, 4))
    for batch in SubgraphLoader(data, PTR, 2):
        assert torch.equal(batch.data.adj_t.values(), values[batch.data.edge_id])


@pytest.mark.parametrize("dtype", [torch.int32, torch.int64])
def test_integer_types_stay(dtype: torch.dtype) -> None:
    data = graph()
    data.edge_index = data.edge_index.to(dtype)
    for batch, wanted in zip(SubgraphLoader(data, PTR, 2), SubgraphLoader(graph(), PTR, 2), strict=True):
        assert batch.data.edge_index.dtype == dtype
        assert torch.equal(batch.data.edge_index.long(), wanted.data.edge_index)


def test_as_many_edges_as_nodes() -> None:
    edge_index = torch.stack([torch.arange(6).roll(2), torch.arange(6)])[:, [3, 1, 5, 0, 2, 4]]
    data = Data(x=torch.arange(6.0).view(-1, 1), edge_index=edge_index)
    data.edge_attr = torch.arange(6) * 10
    data.edge_names = [str(i) for i in range(6)]
    batch = next(iter(SubgraphLoader(data, torch.tensor([0, 2, 6]), 1)))
    assert batch.n_id.tolist() == [0, 1, 4, 5]
    assert batch.data.x.view(-1).tolist() == [0, 1, 4, 5]
    assert batch.data.edge_attr.tolist() == [30, 10]  # the edges into 0 and 1
    assert batch.data.edge_names == ["3", "1"]


def test_number_of_edges_is_that_of_the_adjacency() -> None:
    # PyG takes `edge_label_index` beside a matrix for the edges of the graph.
    data = graph("csr")
    del data.edge_attr
    data.edge_label_index = torch.randint(N, (2, 7))
    batch = next(iter(SubgraphLoader(data, PTR, 2)))
    assert torch.equal(batch.data.edge_label_index, data.edge_label_index)
    assert batch.data.edge_id.numel() == batch.data.adj_t.values().numel()


def test_data_classes_with_arguments() -> None:
    class Molecule(Data):
        def __init__(self, kind: str) -> None:
            super().__init__()
            self.kind = kind

    data = Molecule("water")
    data.x, data.edge_index = torch.rand(4, 1), torch.tensor([[0, 3], [1, 0]])
    batch = next(iter(SubgraphLoader(data, torch.tensor([0, 2, 4]), 1)))
    assert type(batch.data) is Molecule and batch.data.kind == "water"
    assert batch.data.x.size(0) == 3


def test_graph_without_edges() -> None:
    for fmt in ("edge_index", "EdgeIndex", "csr"):
        data = Data(x=torch.rand(5, 2), edge_index=torch.empty(2, 0, dtype=torch.long))
        batches = list(SubgraphLoader(to_format(data, fmt), torch.tensor([0, 2, 5]), 1))
        assert [batch.batch_size for batch in batches] == [2, 3]
        assert [batch.halo_size for batch in batches] == [0, 0]


def test_to_moves_data_and_keeps_ids_on_the_host() -> None:
    batch = next(iter(SubgraphLoader(graph(), PTR, 2)))
    moved = batch.to("meta")
    assert moved.data.x.device.type == "meta" and moved.data.edge_index.device.type == "meta"
    assert moved.n_id is batch.n_id and moved.offset.device.type == "cpu"
    assert batch.data.x.device.type == "cpu"


# -- order -----------------------------------------------------------------------------------------


@pytest.mark.filterwarnings("ignore:.*counts parts")
@pytest.mark.parametrize("batch_size", [1, 3, 10])
def test_every_node_once_an_epoch(batch_size: int) -> None:
    loader = SubgraphLoader(graph(), PTR, batch_size, shuffle=True)
    for _ in range(2):
        batches = list(loader)
        seen = torch.cat([batch.n_id[: batch.batch_size] for batch in batches])
        assert seen.sort().values.tolist() == list(range(N))
        assert len(batches) == len(loader) == -(-4 // batch_size)  # empty parts make no batch
        assert all(bool((batch.count > 0).all()) for batch in batches)


@pytest.mark.parametrize("kind", [SubgraphLoader, EvalSubgraphLoader])
def test_a_batch_size_of_nodes(kind: type[SubgraphLoader]) -> None:
    with pytest.warns(
        UserWarning, match=r"batch_size=1024 counts parts, of which there are 6.*pass the number"
    ) as caught:
        loader = kind(graph(), PTR, batch_size=1024)
    assert len(list(loader)) == 1 and caught[0].filename == __file__
    kind(graph(), PTR, batch_size=PTR.numel() - 1)  # which may be meant
    kind(graph(), torch.tensor([0, N]), batch_size=2)  # or was chosen for the number of parts


def test_seed_makes_the_order() -> None:
    data, ptr = random_graph(80, 100), torch.arange(0, 81, 4)
    loaders = [SubgraphLoader(data, ptr, 2, shuffle=True, seed=seed) for seed in (7, 7, 8)]
    epochs = []
    for state, loader in enumerate(loaders):
        torch.manual_seed(state)
        epochs.append([order(loader) for _ in range(3)])
    assert epochs[0] == epochs[1]
    assert epochs[0] != epochs[2]
    assert epochs[0][0] != epochs[0][1] != epochs[0][2]
    with pytest.raises(ValueError, match="seed or generator, not both"):
        SubgraphLoader(data, ptr, seed=0, generator=torch.Generator())


def test_batches_are_made_ahead_where_a_core_is_left_for_that(monkeypatch: pytest.MonkeyPatch) -> None:
    default, fixed = SubgraphLoader(graph(), PTR, 1), SubgraphLoader(graph(), PTR, 1, prefetch=3)
    for threads, prefetch in ((1, 2), (3, 2), (4, 0), (5, 0)):
        monkeypatch.setattr(torch, "get_num_threads", lambda threads=threads: threads)
        monkeypatch.setattr(loader_module, "_num_cores", lambda: 4)
        assert (default.prefetch, fixed.prefetch) == (prefetch, 3)
        default.device = torch.device("cuda")
        assert default.prefetch == 2  # the step runs elsewhere
        default.device = torch.device("cpu")


@pytest.mark.parametrize("prefetch", [2, 4, 20])
def test_prefetch_changes_nothing(prefetch: int) -> None:
    data = graph()
    epochs = [list(SubgraphLoader(data, PTR, 1, shuffle=True, seed=0, prefetch=p)) for p in (0, prefetch)]
    for left, right in zip(*epochs, strict=True):
        assert_same_batch(left, right)


def test_two_iterators_at_once() -> None:
    loader = SubgraphLoader(graph(), PTR, 1, cache_size=0)
    wanted = list(loader)
    for left, right, batch in zip(loader, loader, wanted, strict=True):
        assert_same_batch(left, batch)
        assert_same_batch(right, batch)


# -- workers ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("fmt", FORMATS)
def test_forked_workers_make_the_same_batches(fmt: str) -> None:
    data = graph(fmt)
    loader = SubgraphLoader(data, PTR, 2, num_workers=2, multiprocessing_context="fork")
    for left, right in zip(loader, SubgraphLoader(data, PTR, 2), strict=True):
        assert_same_batch(left, right)


def test_threads_of_torch_are_left_as_they_were() -> None:
    before = torch.get_num_threads()
    torch.set_num_threads(3)
    try:
        list(SubgraphLoader(graph(), PTR, 2))
        with ThreadPoolExecutor(1) as pool:
            assert pool.submit(torch.get_num_threads).result() == torch.get_num_threads() == 3
    finally:
        torch.set_num_threads(before)


def test_a_loader_can_be_copied_and_pickled() -> None:
    loader = SubgraphLoader(graph(), PTR, 2)
    batches = list(loader)
    for twin in (copy.deepcopy(loader), pickle.loads(pickle.dumps(loader))):
        for left, right in zip(twin, batches, strict=True):
            assert_same_batch(left, right)


@pytest.mark.parametrize("is_sorted", [True, False])
@pytest.mark.parametrize("fmt", ["edge_index", "EdgeIndex"])
def test_ids_of_32_bits(fmt: str, is_sorted: bool) -> None:
    data = graph()
    order = data.edge_index[1].argsort(stable=True) if is_sorted else slice(None)
    narrow, wide = Data(x=data.x), Data(x=data.x)
    wide.edge_index = data.edge_index[:, order]
    narrow.edge_index = wide.edge_index.int()
    if fmt == "EdgeIndex":
        size = (data.num_nodes, data.num_nodes)
        narrow.edge_index, wide.edge_index = (
            EdgeIndex(e, sparse_size=size) for e in (narrow.edge_index, wide.edge_index)
        )
    for left, right in zip(SubgraphLoader(narrow, PTR, 2), SubgraphLoader(wide, PTR, 2), strict=True):
        assert left.data.edge_index.dtype == torch.int32
        assert torch.equal(torch.Tensor(left.data.edge_index).long(), torch.Tensor(right.data.edge_index).long())


def test_seed_makes_the_same_order_with_workers() -> None:
    data = graph()
    orders = [order(SubgraphLoader(data, PTR, 2, shuffle=True, seed=3, num_workers=n)) for n in (0, 1)]
    assert orders[0] == orders[1]


@pytest.mark.slow
def test_spawned_workers_make_the_same_batches() -> None:
    data = graph("csr")
    loader = SubgraphLoader(data, PTR, 2, num_workers=1, multiprocessing_context="spawn")
    for left, right in zip(loader, SubgraphLoader(data, PTR, 2), strict=True):
        assert_same_batch(left, right)


def test_persistent_workers_follow_the_data() -> None:
    data = graph()
    loader = SubgraphLoader(data, PTR, 2, num_workers=1, persistent_workers=True, multiprocessing_context="fork")
    first, again = list(loader), list(loader)
    for left, right in zip(first, again, strict=True):
        assert_same_batch(left, right)
    data.y = data.y + 1
    for left, right in zip(loader, first, strict=True):
        assert torch.equal(left.data.y, right.data.y + 1)


# -- cache -----------------------------------------------------------------------------------------


def test_batches_that_come_again_are_kept() -> None:
    loader = SubgraphLoader(graph(), PTR, 1)
    first, second = list(loader), list(loader)
    for left, right in zip(first, second, strict=True):
        assert left.data is not right.data  # what a user adds to one is not on the other
        assert left.x is not right.x and left.edge_index.data_ptr() == right.edge_index.data_ptr()
    nothing = SubgraphLoader(graph(), PTR, 1, cache_size=0)
    first, second = list(nothing), list(nothing)
    assert first[0].edge_index.data_ptr() != second[0].edge_index.data_ptr()
    shuffled = SubgraphLoader(graph(), PTR, 2, shuffle=True)  # other batches each time
    assert shuffled._cache.capacity == 0


def test_cache_stays_within_its_budget() -> None:
    everything = SubgraphLoader(graph(), PTR, 1)
    list(everything)
    budget = everything._cache.size // 2
    loader = SubgraphLoader(graph(), PTR, 1, cache_size=budget, prefetch=0)
    for _ in range(2):
        first, second = list(loader), list(loader)
    assert 0 < loader._cache.size <= budget
    held = [[batch.edge_index.data_ptr() for batch in each] for each in (first, second)]
    kept = sum(left == right for left, right in zip(*held, strict=True))
    assert 0 < kept < len(first)


@pytest.mark.parametrize("fmt", FORMATS)
def test_cached_batch_changed_in_place_is_made_anew(fmt: str) -> None:
    data = graph(fmt, weighted=True)
    loader = SubgraphLoader(data, PTR, 1)
    for batch in loader:
        batch.data.x.zero_()
        batch.n_id.zero_()
        batch.data.extra = "mine"
    for batch in loader:
        check_batch(data, batch)
        if fmt == "csr":
            batch.data.adj_t.values().zero_()
        if fmt == "SparseTensor":
            batch.data.adj_t.storage.value().zero_()
    for batch in loader:
        check_batch(data, batch)


def test_cache_follows_the_data() -> None:
    data = graph()
    loader = SubgraphLoader(data, PTR, 1)
    first = list(loader)
    data.y = data.y + 1  # another tensor
    for left, right in zip(loader, first, strict=True):
        assert torch.equal(left.data.y, right.data.y + 1)
    data.train_mask.logical_not_()  # in place
    for left, right in zip(loader, first, strict=True):
        assert torch.equal(left.data.train_mask, ~right.data.train_mask)


def test_batches_made_in_inference_mode_are_not_kept() -> None:
    for prefetch in (0, 2):
        loader = SubgraphLoader(graph(), PTR, 1, prefetch=prefetch)
        with torch.inference_mode():
            first = list(loader)
        for left, right in zip(loader, first, strict=True):
            assert not left.data.x.is_inference()
            assert torch.equal(left.data.x, right.data.x)


# -- failures --------------------------------------------------------------------------------------


def loader_threads() -> list[str]:
    """Names of the functions that threads of loaders began with."""
    names = []
    for frame in sys._current_frames().values():
        while frame.f_back is not None:
            frame = frame.f_back
        if frame.f_code.co_filename == worker.__file__:
            names.append(frame.f_code.co_name)
    return names


def wait_for_threads(number: int) -> None:
    """Waits until there are no more than ``number``, which other tests have left."""
    for _ in range(1000):
        if len(loader_threads()) <= number:
            return
        time.sleep(0.01)
    raise AssertionError("a thread goes on")


def test_an_abandoned_epoch_leaves_no_threads() -> None:
    before = len(loader_threads())
    loader = SubgraphLoader(graph(), PTR, 1, cache_size=0)
    with pytest.raises(KeyError, match="user"):
        for _ in loader:
            assert loader_threads()
            raise KeyError("user")
    for _ in loader:
        break
    wait_for_threads(before)
    assert len(list(loader)) == 4


class Failing(Data):
    """Fails while a batch is made, as long as ``fail`` is set."""

    fail = False

    def __cat_dim__(self, key: str, value: Any, *args: Any, **kwargs: Any) -> Any:
        if Failing.fail and threading.current_thread() is not threading.main_thread():
            raise OSError("disk on fire")
        return super().__cat_dim__(key, value, *args, **kwargs)


def test_an_error_while_making_a_batch_arrives() -> None:
    before = len(loader_threads())
    data = Failing.from_dict(graph().to_dict())
    loader = SubgraphLoader(data, PTR, 1, cache_size=0)
    Failing.fail = True
    try:
        with pytest.raises(OSError, match="disk on fire"):
            list(loader)
    finally:
        Failing.fail = False
    wait_for_threads(before)
    assert len(list(loader)) == 4


# -- evaluation ------------------------------------------------------------------------------------


def test_arguments_of_a_loader_that_samples() -> None:
    for make in (SubgraphLoader, EvalSubgraphLoader):
        with pytest.raises(
            TypeError, match=r"num_neighbors, input_nodes of PyG's NeighborLoader .* nothing is sampled"
        ):
            make(graph(), PTR, num_neighbors=[10, 10], input_nodes=None)


@pytest.mark.filterwarnings("ignore:.*counts parts")
@pytest.mark.parametrize("batch_size", [1, 2, 4, 9])
def test_eval_loader_merges_parts(batch_size: int) -> None:
    data = graph()
    loader = EvalSubgraphLoader(data, PTR, batch_size)
    start = 0
    for batch in loader:
        assert batch.offset.tolist() == [start] and batch.count.tolist() == [batch.batch_size]
        check_batch(data, batch)
        start += batch.batch_size
    assert start == N
    assert len(loader) == sum(PTR[min(i + batch_size, 6)] > PTR[i] for i in range(0, 6, batch_size))
    with pytest.raises(ValueError, match="shuffle must be False"):
        EvalSubgraphLoader(data, PTR, shuffle=True)
    with pytest.raises(ValueError, match="batch_size must be at least 1"):
        EvalSubgraphLoader(data, PTR, 0)


def test_loader_leaves_data_alone() -> None:
    data = graph()
    before = copy.deepcopy(data)
    for batch in SubgraphLoader(data, PTR, 2):
        batch.data.extra = 1
    assert data.keys() == before.keys()
    for key, value in before.to_dict().items():
        same = torch.equal(value, data[key]) if isinstance(value, Tensor) else np.array_equal(value, data[key])
        assert same, key


def test_random_parts_and_sizes() -> None:
    for seed in range(8):
        data = random_graph(40, 30 * seed, seed=seed)
        data.edge_id = torch.arange(data.num_edges)
        for batch in SubgraphLoader(data, random_parts(40, 7, seed), 3, shuffle=True, seed=seed):
            wanted = slow_batch(data, batch.n_id, batch.batch_size)
            pairs = zip(*batch.data.edge_index.tolist(), strict=True)
            assert [wanted.pop(pair) for pair in pairs] == batch.data.edge_id.tolist()
            assert not wanted


def test_workers_that_persist_serve_one_epoch_at_a_time() -> None:
    loader = SubgraphLoader(random_graph(60, 240), torch.tensor([0, 20, 60]), num_workers=1, persistent_workers=True)
    with pytest.raises(RuntimeError, match="have begun another since; leave out persistent_workers"):
        for _ in loader:
            assert len(list(loader)) == 2
    assert len(list(loader)) == 2
