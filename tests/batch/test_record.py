"""What a batch knows of itself: it stands wherever the batch has been, and each guard that rests on it still does."""

from __future__ import annotations

import copy
import gc
import pickle
import weakref
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest
import torch
import torch_geometric.nn as nn
import torch_geometric.transforms as T
from graphs import FORMATS, random_graph, to_format
from nets import Net
from torch import Tensor
from torch_geometric.data import Batch, Data

from torch_gas import EvalSubgraphLoader, SubData, SubgraphLoader, metis, permute, scale
from torch_gas.batch.record import BatchSize, record_of
from torch_gas.graph.adjacency import find_adjacency
from torch_gas.graph.key import digest, graph_key, order_key

N, C = 60, 8
PTR = torch.tensor([0, 14, 14, 37, 50, 60])


def graph(seed: int = 0, num_nodes: int = N, num_edges: int = 200) -> Data:
    data = random_graph(num_nodes, num_edges, seed)
    data.x = torch.rand(num_nodes, C, generator=torch.Generator().manual_seed(seed)) + 0.1
    return data


def first(data: Data, **kwargs: Any) -> SubData:
    return next(iter(SubgraphLoader(data, PTR, **kwargs)))


def pickled(value: Any) -> Any:
    return pickle.loads(pickle.dumps(value))


WAYS: dict[str, Callable[[SubData], SubData]] = {
    "as it is": lambda batch: batch,
    "copy": copy.copy,
    "deepcopy": copy.deepcopy,
    "clone": lambda batch: batch.clone(),
    "to": lambda batch: batch.to("cpu"),
    "contiguous": lambda batch: batch.contiguous(),
    "pickle": pickled,
    "transform": T.NormalizeFeatures(),
    "transforms": T.Compose([T.RemoveDuplicatedEdges(), T.NormalizeFeatures()]),
    "ids * 1": lambda batch: batch.update({"n_id": batch.n_id * 1}),
}
moved = pytest.mark.parametrize("way", WAYS.values(), ids=WAYS)


# -- a Data ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("fmt", FORMATS)
def test_a_batch_is_a_data(fmt: str) -> None:
    data = to_format(graph(), fmt)
    batch = first(data)
    assert isinstance(batch, Data) and isinstance(batch, SubData)
    assert torch.equal(batch.x, data.x[batch.n_id]) and torch.equal(batch["n_id"], batch.n_id)
    assert torch.equal(batch.y[: batch.batch_size], data.y[:14]) and batch.num_nodes == batch.n_id.numel()
    assert batch.halo_size == batch.num_nodes - 14 and "n_id" in batch
    assert str(batch).startswith("SubData(Data(x=[")
    assert str(batch).endswith(f"batch_size=14, halo_size={batch.halo_size}, parts=1)")


def test_it_unpacks_as_before() -> None:
    batch = first(graph(), batch_size=2)
    plain, *ids = batch
    assert type(plain) is type(batch[0]) is type(batch.data) is Data
    for one, other in zip(ids, [batch.batch_size, batch.n_id, batch.offset, batch.count], strict=True):
        assert one is other
    assert len(batch[1:]) == 4 and batch[-1] is batch.count and batch[2] is batch.n_id
    assert torch.equal(batch.count, PTR.diff()[[0, 2]]) and batch.batch_size == 37


def test_what_is_set_in_the_plain_data_is_set_in_the_batch() -> None:
    batch = first(graph())
    batch.data.x = batch.x.double()
    batch.extra = "mine"
    assert batch.x.dtype == torch.float64 and batch.data.extra == "mine"
    del batch.data.extra
    assert "extra" not in batch


class Molecule(Data):
    """A graph whose ``order`` is joined along its second dimension."""

    def __cat_dim__(self, key: str, value: Any, *args: Any, **kwargs: Any) -> Any:
        return 1 if key == "order" else super().__cat_dim__(key, value, *args, **kwargs)

    def hello(self) -> str:
        return f"{self.num_nodes} atoms"


def test_batches_have_the_class_of_the_graph() -> None:
    data = Molecule.from_dict(graph().to_dict())
    data.order = torch.rand(2, N)
    for workers in (0, 1):
        batch = first(data, num_workers=workers)
        for each in (batch, pickled(batch), copy.deepcopy(batch), batch.clone()):
            assert isinstance(each, SubData) and isinstance(each, Molecule) and type(each.data) is Molecule
            assert each.hello() == f"{batch.num_nodes} atoms" and torch.equal(each.order, data.order[:, batch.n_id])
            assert each.record.batch_size == 14


def test_ids_stay_in_host_memory() -> None:
    batch = first(graph())
    there = batch.to("meta")
    assert there.x.is_meta and there.edge_index.is_meta and not there.n_id.is_meta and not batch.x.is_meta
    batch.apply(lambda value: value.to("meta"))
    assert batch.x.is_meta and not batch.n_id.is_meta
    assert batch.to("meta", "x").x.is_meta


def test_parts_of_a_batch_are_plain() -> None:
    batch = first(graph())
    nodes = torch.arange(9)
    for part in (batch.subgraph(nodes), batch.edge_subgraph(nodes), T.LargestConnectedComponents()(batch)):
        assert type(part) is Data
    assert torch.equal(batch.subgraph(nodes).x, batch.x[:9]) and batch.edge_subgraph(nodes).num_edges == 9


def test_users_may_set_what_they_like() -> None:
    data = graph()
    loader = EvalSubgraphLoader(data, torch.tensor([0, 20, N]))
    model = Net(N).eval()
    norms = []
    for _ in range(3):
        batch = next(iter(loader))
        assert not hasattr(batch, "mine") and not batch.x.requires_grad
        batch.mine = 1
        batch.x.requires_grad_(True)
        model(batch).sum().backward()
        norms.append(batch.x.grad.norm())
    assert norms[0] > 0 and len(loader._cache._entries) > 0
    assert next(iter(loader)).x.grad is None


@pytest.mark.parametrize("dtype", [torch.int64, torch.bool, torch.bfloat16, torch.float32])
def test_labels_that_are_written_through_numpy(dtype: torch.dtype) -> None:
    data = graph()
    data.y = torch.zeros(N, dtype=dtype)
    loader = SubgraphLoader(data, PTR)
    assert not any(batch.y.any() for batch in loader)
    data.y.view(torch.uint8).numpy()[:] = 1
    assert all(bool(batch.y.all()) for batch in loader)


def test_the_name_of_the_ids_is_taken() -> None:
    data = graph()
    data.n_id = torch.arange(N)
    with pytest.raises(ValueError, match=r"data\.n_id: under this name a batch holds the ids"):
        SubgraphLoader(data, PTR)


# -- guards ------------------------------------------------------------------------------------------------------------


@moved
@pytest.mark.parametrize("workers", [0, 2])
def test_a_model_takes_the_batch(way: Callable[[SubData], SubData], workers: int) -> None:
    data = graph()
    model = Net(N).eval()
    loader = SubgraphLoader(data, PTR, 2, num_workers=workers)
    for batch in loader:
        here = way(batch)
        assert here.record is not None and here.record.num_rows == here.n_id.numel() == here.x.size(0)
        assert here.record.key == graph_key(data.edge_index, N) and here.record.digest == digest(here.n_id)
        out = model(here.x, here.edge_index, *here[1:])
        assert out.size(0) == batch.batch_size
        assert torch.equal(model(here), out)


@moved
@pytest.mark.parametrize("workers", [0, 1])
def test_batches_of_another_graph(way: Callable[[SubData], SubData], workers: int) -> None:
    batch = way(first(graph(), num_workers=workers))
    for model in (Net(N + 1), scale(nn.GraphSAGE(C, C, 2, 3), graph(num_nodes=N + 1))):
        with pytest.raises(ValueError, match=f"made for a graph of {N} nodes, but the model for {N + 1}"):
            model(batch)
        with pytest.raises(ValueError, match=f"made for a graph of {N} nodes, but the model for {N + 1}"):
            model(batch.x * 1, batch.edge_index, *batch[1:])


@moved
def test_batches_of_another_order(way: Callable[[SubData], SubData]) -> None:
    data = graph()
    one, two = (permute(data, torch.randperm(N, generator=torch.Generator().manual_seed(i)), log=False) for i in (1, 2))
    scaled = scale(nn.GraphSAGE(C, C, 2, 3), one)
    scaled(first(one))
    with pytest.raises(ValueError, match=r"another order than the one that scale\(\) was given"):
        scaled(way(first(two)))
    later = scale(nn.GraphSAGE(C, C, 2, 3), num_nodes=N)
    later(first(two))
    with pytest.raises(ValueError, match="another order"):
        later(way(first(one)))


@moved
def test_batches_without_the_edges_that_a_model_reads(way: Callable[[SubData], SubData]) -> None:
    class Both(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.conv = nn.DirGNNConv(nn.SAGEConv(C, 3))

        def forward(self, x: Tensor, edge_index: Tensor) -> Tensor:
            return self.conv(x, edge_index)

    scaled = scale(Both(), graph())
    with pytest.raises(ValueError, match=r'neighbors="both"'):
        scaled(way(first(graph())))
    assert scaled(way(first(graph(), neighbors="both"))).shape == (14, 3)


def without_last(batch: SubData) -> dict[str, Any]:
    return {"n_id": batch.n_id[:-1], "x": batch.x[:-1], "num_nodes": batch.num_nodes - 1}


def reordered(batch: SubData) -> dict[str, Any]:
    order = torch.arange(batch.num_nodes).roll(1)
    return {"n_id": batch.n_id[order], "x": batch.x[order]}


def other_id(batch: SubData) -> dict[str, Any]:
    n_id = batch.n_id.clone()
    n_id[-1] = n_id[-2]
    return {"n_id": n_id}


@moved
@pytest.mark.parametrize("change", [without_last, reordered, other_id])
def test_rows_that_are_not_those_of_the_batch(
    change: Callable[[SubData], dict[str, Any]], way: Callable[[SubData], SubData]
) -> None:
    batch = way(first(graph()))
    batch.update(change(batch))
    for model in (Net(N), scale(nn.GraphSAGE(C, C, 2, 3), graph())):
        for call in (lambda m: m(batch), lambda m: m(batch.x, batch.edge_index, *batch[1:])):
            with pytest.raises(
                ValueError, match=r"n_id holds \d+ ids, which are not the \d+ that the batch was made with"
            ):
                call(model)


def test_transforms_that_drop_rows() -> None:
    batch = first(graph(num_edges=40))
    smaller = T.RemoveIsolatedNodes()(batch)
    assert isinstance(smaller, SubData) and smaller.num_nodes < batch.num_nodes == batch.n_id.numel()
    with pytest.raises(ValueError, match="use transforms that keep all rows"):
        Net(N)(smaller)


def test_transforms_that_drop_edges() -> None:
    data = graph()
    batch = first(data)
    fewer = copy.copy(batch)
    fewer.edge_index = batch.edge_index[:, 3:]
    assert batch.record.num_edges == batch.num_edges == fewer.record.num_edges == fewer.num_edges + 3
    for model in (Net(N), scale(nn.GCN(C, C, 2, 3), data)):
        model(fewer)  # the tables that the second one checks on its first batch count more edges
    whole = scale(nn.GCN(C, C, 2, 3), data)
    with pytest.raises(ValueError, match="counts other edges"):
        whole(fewer.with_record(replace(batch.record, num_edges=fewer.num_edges)))


def test_ids_made_by_hand() -> None:
    batch = first(graph())
    by_hand = (int(batch.batch_size), *batch[2:])
    for make in (
        lambda **kwargs: Net(N, **kwargs),
        lambda **kwargs: scale(nn.GraphSAGE(C, C, 2, 3), graph(), **kwargs),
    ):
        with pytest.raises(ValueError, match=r"batch_size is 14 and does not say.*model\(batch\).*check=False"):
            make()(batch.x, batch.edge_index, *by_hand)
        with pytest.raises(ValueError, match="does not say which batch"):
            make()(SubData(batch.data, *by_hand))
        model = make(check=False).eval()
        assert torch.equal(model(batch.x, batch.edge_index, *by_hand), model(batch))
        assert torch.equal(model(SubData(batch.data, *by_hand)), model(batch))
        with pytest.raises(ValueError, match="which are not the"):  # a batch is checked all the same
            model(batch.x, batch.edge_index, batch.batch_size, batch.n_id.flip(0), *batch[3:])


def test_offset_and_count_of_another_batch() -> None:
    one, two = list(SubgraphLoader(graph(), PTR))[:2]
    model = Net(N)
    with pytest.raises(ValueError, match="offset is not that of the batch"):
        model(one.x, one.edge_index, one.batch_size, one.n_id, two.offset, one.count)
    model(one.x, one.edge_index, one.batch_size, one.n_id, one.offset.clone(), one.count * 1)


PTR_WAYS: dict[str, Callable[[Tensor], Tensor]] = {
    "as it is": lambda ptr: ptr,
    "clone": lambda ptr: ptr.clone(),
    "* 1": lambda ptr: ptr * 1,
    "int": lambda ptr: ptr.int(),
    "numpy": lambda ptr: torch.from_numpy(ptr.numpy().copy()),
    "pickle": pickled,
}


@pytest.mark.parametrize("way", PTR_WAYS.values(), ids=PTR_WAYS)
@pytest.mark.parametrize("backend", ["metis", "random"])  # parts of any size, and of one size
def test_a_graph_that_was_not_permuted(backend: str, way: Callable[[Tensor], Tensor]) -> None:
    data = graph(seed=3, num_nodes=600, num_edges=1500)
    perm, ptr = metis(data, 6, backend=backend, seed=1, log=False)
    for wrong in (data, data.clone(), to_format(data, "csr")):
        with pytest.raises(ValueError, match=r"call data = permute\(data, perm\)"):
            SubgraphLoader(wrong, way(ptr))
    right = permute(data, perm.clone(), log=False)
    SubgraphLoader(right.clone(), way(ptr))
    again, ptr_again = metis(right, 5, seed=1, log=False)
    twice = permute(right, again, log=False).clone()
    SubgraphLoader(twice, way(ptr_again))
    if backend == "metis":
        with pytest.raises(ValueError, match="not in the order that ptr belongs to"):
            SubgraphLoader(twice, way(ptr))
    SubgraphLoader(graph(seed=4, num_nodes=600), torch.arange(0, 601, 100))  # the same parts by chance
    metis(right, 1, backend=backend, seed=1, log=False)  # as plan() does
    SubgraphLoader(right, torch.tensor([0, 600]))  # a single part is in any order


# -- keys --------------------------------------------------------------------------------------------------------------


def test_keys_go_by_content() -> None:
    data = graph()
    edges, perm = data.edge_index, torch.randperm(N)
    keys = {graph_key(find_adjacency(to_format(data, fmt))[1], N) for fmt in ("edge_index", "EdgeIndex", "csr")}
    shuffled = edges[:, torch.randperm(edges.size(1))]
    assert keys == {graph_key(shuffled, N)} == {graph_key(shuffled.int(), N)}
    assert graph_key(edges, N, perm) == graph_key(edges, N, perm.clone()).lower()
    others = [
        graph_key(edges.flip(0), N), graph_key(edges[:, 1:], N), graph_key(edges, N + 1), graph_key(edges, N, perm),
        graph_key(edges, N, perm.flip(0)), graph_key(torch.cat([edges, edges[:, :1]], dim=1), N),
        graph_key(torch.cat([edges, edges.new_zeros(2, 1)], dim=1), N),
    ]  # fmt: skip
    assert len({*keys, *others}) == len(others) + 1
    changed = edges.clone()
    before = graph_key(changed, N)
    changed[0, 0] = (changed[0, 0] + 1) % N
    assert graph_key(changed, N) != before
    assert order_key(None) == ""


def test_keys_are_found_in_pieces(monkeypatch: pytest.MonkeyPatch) -> None:
    from torch_gas.graph import edges as edges_of_graph
    from torch_gas.graph import key

    edges, perm = graph().edge_index, torch.randperm(N)
    whole = graph_key(edges, N, perm)
    for module in (edges_of_graph, key):
        monkeypatch.setattr(module, "EDGES_AT_ONCE", 7)
    assert graph_key(edges.clone(), N, perm.clone()) == whole


def test_a_loader_does_not_look_at_the_edges_before_its_first_batch(monkeypatch: pytest.MonkeyPatch) -> None:
    from torch_gas.batch import builder

    calls: list[int] = []
    monkeypatch.setattr(builder, "graph_key", lambda *args: calls.append(0) or graph_key(*args))
    loader = SubgraphLoader(graph(), PTR, num_workers=1)
    assert not calls
    keys = {batch.record.key for _ in range(2) for batch in loader}
    assert len(calls) == len(keys) == 1


@pytest.mark.parametrize("number", [0, 1, 2, 63, 64, 1000])
def test_digests_go_by_values_and_places(number: int) -> None:
    ids = torch.randperm(2 * number)[:number]
    found = digest(ids)
    assert found == digest(ids.clone()) == digest(ids.int()) == digest(torch.stack([ids, ids], dim=1)[:, 0])
    others = [digest(torch.cat([ids, ids.new_zeros(1)]))]
    if number > 1:
        others += [digest(ids.flip(0)), digest(ids[:-1]), digest(ids + 1), digest(ids + ids.eq(ids[0]))]
    assert len({found, *others}) == len(others) + 1


# -- batch_size --------------------------------------------------------------------------------------------------------


def test_batch_size_is_an_int() -> None:
    batch = first(graph())
    size = batch.batch_size
    assert (
        isinstance(size, int) and size == 14 and repr(size) == "14" and f"{size:3d}" == " 14" and hash(size) == hash(14)
    )
    assert batch.x[:size].size(0) == torch.zeros(size).numel() == len(range(size)) == 14
    for other in (copy.copy(size), copy.deepcopy(size), pickled(size)):
        assert type(other) is BatchSize and other == 14 and record_of(other).digest == batch.record.digest
    assert type(size + 1) is int and record_of(size * 1) is None and record_of(14) is None


# -- epochs ------------------------------------------------------------------------------------------------------------


def places(batches: Any) -> list[tuple[Any, ...]]:
    return [(b.record.epoch, b.record.index, b.record.num_batches, b.record.completes_epoch) for b in batches]


@pytest.mark.parametrize("kwargs", [{}, {"num_workers": 1}, {"prefetch": 2}])
def test_places_in_epochs(kwargs: dict[str, Any]) -> None:
    loader = SubgraphLoader(graph(), PTR, shuffle=True, seed=0, **kwargs)
    for epoch in range(2):
        assert places(loader) == [(epoch, i, 4, i == 3) for i in range(4)]
    for batch in loader:
        assert places([batch]) == [(2, 0, 4, False)]
        break
    assert places(loader)[0] == (3, 0, 4, False)
    assert places(loader.only([[0], [2]])) == [(None, None, None, False)] * 2


def test_a_resumed_epoch_goes_on_counting() -> None:
    loader = SubgraphLoader(graph(), PTR, shuffle=True, seed=0)
    list(loader)
    for i, _ in enumerate(loader):
        if i == 1:
            state = loader.state_dict()
            break
    other = SubgraphLoader(graph(), PTR, shuffle=True, seed=0)
    other.load_state_dict(state)
    assert places(other) == [(1, 2, 4, False), (1, 3, 4, True)]
    assert places(other)[0] == (2, 0, 4, False)
    del state["number"]  # as before epochs were numbered
    other.load_state_dict(state)
    assert places(other)[-1] == (0, 3, 4, True)


def test_what_comes_next_keeps_no_loader_alive() -> None:
    loader = SubgraphLoader(graph(), PTR, prefetch=1)
    batch = next(iter(loader))
    lookahead = batch.record.lookahead
    assert lookahead.largest_halo == max(each.halo_size for each in loader)
    gone = weakref.ref(loader)
    del loader
    gc.collect()
    assert gone() is None and lookahead.largest_halo is None
    assert pickled(batch).record.lookahead is None


def test_batches_are_not_put_together() -> None:
    with pytest.raises(TypeError, match="batches cannot be put together, as by Batch: have the loader do it"):
        Batch.from_data_list(list(SubgraphLoader(random_graph(40, 200), torch.tensor([0, 20, 40]))))
