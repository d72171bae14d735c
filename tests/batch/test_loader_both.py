"""SubgraphLoader(neighbors="both") against a slow twin in plain PyTorch."""

from __future__ import annotations

import pickle
from typing import Any

import pytest
import torch
from graphs import FORMATS, adjacency, random_graph, random_parts, to_format
from hypothesis import given
from hypothesis import strategies as st
from torch_geometric import EdgeIndex
from torch_geometric.data import Data

from torch_gas import EvalSubgraphLoader, SubData, SubgraphLoader
from torch_gas.graph.edges import coo
from torch_gas.models import GCN

N, E = 50, 260
PTR = torch.tensor([0, 9, 9, 22, 37, N, N])  # parts 1 and 5 are empty


def graph(fmt: str = "edge_index", weighted: bool = False, double: bool = False) -> Data:
    """A graph with attributes; matrices get its edges in the order in which they hold them."""
    data = random_graph(N, E, seed=2)
    if double:
        data.edge_index = torch.cat([data.edge_index, data.edge_index[:, ::4]], dim=1)
    if fmt in ("csr", "SparseTensor"):
        src, dst = data.edge_index
        data.edge_index = data.edge_index[:, (dst * N + src).argsort()]
    if weighted:
        data.edge_weight = torch.rand(data.num_edges, generator=torch.Generator().manual_seed(2))
    number = data.num_edges
    data = to_format(data, fmt)
    data.original, data.edge_id = torch.arange(N), torch.arange(number)
    data.edge_attr = torch.arange(number * 2.0).view(-1, 2)
    return data


def expected(data: Data, nodes: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Halo [S], ascending, and ids of the edges that touch ``nodes``, ascending."""
    src, dst, _ = coo(adjacency(data))
    edges = torch.isin(src, nodes) | torch.isin(dst, nodes)
    ends = torch.cat([src[edges], dst[edges]]).unique()
    return ends[~torch.isin(ends, nodes)], edges.nonzero().flatten()


def check(data: Data, batch: SubData) -> None:
    nodes = torch.cat([torch.arange(o, o + c) for o, c in zip(batch.offset, batch.count, strict=True)])
    halo, edges = expected(data, nodes)
    assert batch.batch_size == nodes.numel()
    assert torch.equal(batch.n_id, torch.cat([nodes, halo]))
    assert torch.equal(batch.data.original, batch.n_id)
    assert torch.equal(batch.data.x, data.x[batch.n_id])
    whole, adj = coo(adjacency(data)), adjacency(batch.data)
    src, dst, value = coo(adj)
    # Edge k of the batch is edge e[k] of the graph.
    e = batch.data.edge_id
    assert torch.equal(e.sort().values, edges)
    assert torch.equal(batch.n_id[src], whole[0][e])
    assert torch.equal(batch.n_id[dst], whole[1][e])
    assert torch.equal(batch.data.edge_attr, data.edge_attr[e])
    assert (value is None) == (whole[2] is None)
    if value is not None:
        assert torch.equal(value, whole[2][e])
    if "edge_weight" in data:
        assert torch.equal(batch.data.edge_weight, data.edge_weight[e])
    assert (dst.diff() >= 0).all()  # sorted by destination
    check_form(adj, batch.n_id.numel())


def check_form(adj: Any, num_rows: int) -> None:
    if isinstance(adj, EdgeIndex):
        assert adj.sparse_size() == (num_rows, num_rows)
        adj.validate()
    elif not isinstance(adj, torch.Tensor):
        assert adj.sizes() == [num_rows, num_rows]
        (row, col, _), t = adj.coo(), adj.t().coo()
        assert torch.equal((row * num_rows + col).sort().values, row * num_rows + col)
        assert torch.equal((t[1] * num_rows + t[0]).sort().values, row * num_rows + col)
    elif adj.layout == torch.sparse_csr:
        assert adj.shape == (num_rows, num_rows)
        torch.sparse_csr_tensor(
            adj.crow_indices(), adj.col_indices(), adj.values(), size=adj.shape, check_invariants=True
        )


@pytest.mark.parametrize("weighted", [False, True])
@pytest.mark.parametrize("parts", [1, 2, 4])
@pytest.mark.parametrize("fmt", FORMATS)
def test_equals_the_twin(fmt: str, parts: int, weighted: bool) -> None:
    data = graph(fmt, weighted)
    loader = SubgraphLoader(data, PTR, parts, neighbors="both")
    batches = list(loader)
    assert len(batches) == -(-4 // parts)
    for batch in batches:
        assert (batch.halo_size > 0) == (parts < 4)
        check(data, batch)


@pytest.mark.parametrize("fmt", FORMATS)
def test_shuffled_and_from_workers(fmt: str) -> None:
    data = graph(fmt)
    for kwargs in ({"num_workers": 2}, {"prefetch": 0}, {"bipartite": False}):
        loader = SubgraphLoader(data, PTR, 2, neighbors="both", shuffle=True, seed=1, **kwargs)
        for _ in range(2):
            for batch in loader:
                assert batch.record.neighbors == "both"
                check(data, batch)


def test_double_edges() -> None:
    data = graph(double=True)
    for batch in SubgraphLoader(data, PTR, 2, neighbors="both"):
        check(data, batch)


@pytest.mark.filterwarnings("ignore:.*counts parts")
@given(st.integers(1, 30), st.integers(0, 80), st.integers(1, 6), st.integers(1, 3), st.integers(0, 1000))
def test_any_graph(num_nodes: int, num_edges: int, num_parts: int, batch_size: int, seed: int) -> None:
    data = random_graph(num_nodes, num_edges, seed)
    data.original, data.edge_id = torch.arange(num_nodes), torch.arange(data.num_edges)
    data.edge_attr = torch.rand(data.num_edges, 2)
    ptr = random_parts(num_nodes, num_parts, seed)
    for batch in SubgraphLoader(data, ptr, batch_size, neighbors="both", prefetch=0):
        check(data, batch)


def test_ids_of_32_bits() -> None:
    data = graph()
    data.edge_index = data.edge_index.int()
    for batch in SubgraphLoader(data, PTR, 2, neighbors="both"):
        assert batch.data.edge_index.dtype == torch.int32
        wide = batch.clone()
        wide.edge_index = batch.edge_index.long()
        check(graph(), wide)


@pytest.mark.parametrize("fmt", FORMATS)
def test_undirected_graphs_have_the_halo_of_incoming_edges(fmt: str) -> None:
    data = to_format(random_graph(N, 100, seed=3, directed=False), fmt)
    one, both = SubgraphLoader(data, PTR, 2), SubgraphLoader(data, PTR, 2, neighbors="both")
    for left, right in zip(one, both, strict=True):
        assert torch.equal(left.n_id, right.n_id)
        src, dst, _ = coo(adjacency(right.data))
        into = dst < right.batch_size
        want = coo(adjacency(left.data))
        assert torch.equal(src[into], want[0]) and torch.equal(dst[into], want[1])
        assert (~into).any()


def test_evaluation_loader() -> None:
    data = graph()
    for batch in EvalSubgraphLoader(data, PTR, 2, neighbors="both"):
        assert batch.offset.numel() == 1
        check(data, batch)


def test_loader_can_be_pickled() -> None:
    loader = pickle.loads(pickle.dumps(SubgraphLoader(graph(), PTR, 2, neighbors="both")))
    for batch in loader:
        check(graph(), batch)


@pytest.mark.parametrize("neighbors", ["out", None, "IN", True])
def test_other_neighbors_are_an_error(neighbors: Any) -> None:
    with pytest.raises((TypeError, ValueError), match=rf"neighbors must be .*, but is {neighbors!r}"):
        SubgraphLoader(graph(), PTR, neighbors=neighbors)


@pytest.mark.parametrize("prefetch", [0, 2])
def test_edges_by_source_are_prepared_of_all_rows(prefetch: int) -> None:
    """A model that uses them in its backward pass has the loader prepare those of the next batch."""
    data = graph()
    model, loader = GCN(N, 8, 8, 3, num_layers=3), SubgraphLoader(data, PTR, 2, neighbors="both", prefetch=prefetch)
    for _ in range(2):
        for batch in loader:
            model(batch).sum().backward()
    assert loader._needs == "transpose"
