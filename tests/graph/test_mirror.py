"""Gradients of sums over edges by rows of the matrix itself: the bits that its transpose gives, and no transpose."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from graphs import FORMATS, adjacency, random_graph, random_parts, to_format
from torch import Tensor
from torch_geometric.data import Data

from torch_gas import SubgraphLoader, _core
from torch_gas.graph.format import csr_tensor, row_pointers
from torch_gas.graph.formats import format_of, is_matrix
from torch_gas.graph.product import Edges, _Product, aggregate, edges_of, kept_edges
from torch_gas.models import GCN, SAGE

N, PTR = 60, random_parts(60, 6, seed=1)


def graph(fmt: str, directed: bool = False, weighted: bool = True, double: bool = False) -> Data:
    """A graph with isolated nodes and self-loops, whose weights are the same in both directions of an edge."""
    data = random_graph(N, 200, seed=4, directed=directed)
    if double:  # some edges three times, as long as both directions are
        src, dst = data.edge_index
        chosen = data.edge_index[:, (src + dst) % 3 == 0]
        data.edge_index = torch.cat([data.edge_index, chosen, chosen], dim=1)
    src, dst = data.edge_index
    data.edge_index = data.edge_index[:, (dst * N + src).argsort(stable=True)]
    if weighted:
        low, high = data.edge_index.sort(0).values
        data.edge_weight = torch.rand(N, N, generator=torch.Generator().manual_seed(0))[low, high]
    if fmt != "csr":
        return to_format(data, fmt)
    src, dst = data.edge_index  # which torch's checks let have no edge twice
    rowptr = row_pointers(dst, N)
    value = data.edge_weight if weighted else torch.ones(src.numel())
    return Data(x=data.x, y=data.y, adj_t=csr_tensor(rowptr, src, value, (N, N)), num_nodes=N)


def weights(batch: Data) -> Tensor | None:
    """The weights of its edges, as layers take them."""
    adj = adjacency(batch)
    return format_of(adj).values(adj) if is_matrix(adj) else batch.get("edge_weight")


def gradient(edges: Edges, weight: Tensor | None, num_rows: int) -> Tensor:
    rows = torch.randn(edges.num_dst, 5, generator=torch.Generator().manual_seed(1))
    return edges.multiply(rows, weight, True, num_rows)


def compare(adj: Any, num_dst: int, num_src: int, weight: Tensor | None, num_rows: int) -> bool:
    """Whether the first rows of a gradient took no transpose; they must have the bits of one either way."""
    edges, other = (Edges(adj, num_dst, num_src) for _ in range(2))
    found = gradient(edges, weight, num_rows)
    other.transpose  # noqa: B018  # which is then taken
    assert torch.equal(found, gradient(other, weight, num_rows))
    assert ("matrix" in vars(edges._by_source)) == (edges.needs == "transpose")
    return edges.needs == "mirror"


@pytest.mark.parametrize("fmt", FORMATS)
@pytest.mark.parametrize("neighbors", ["in", "both"])
@pytest.mark.parametrize("bipartite", [True, False])
@pytest.mark.parametrize("double", [False, True])
@pytest.mark.parametrize("weighted", [False, True])
def test_batches_of_undirected_graphs(fmt: str, neighbors: str, bipartite: bool, double: bool, weighted: bool) -> None:
    data = graph(fmt, weighted=weighted, double=double)
    loader = SubgraphLoader(data, PTR, 2, bipartite, neighbors=neighbors, shuffle=True, seed=0, prefetch=0)
    took_none = []
    for batch in [*loader, *loader.only([[3], [4, 1]])]:
        adj, num_rows = adjacency(batch), batch.n_id.numel()
        num_dst = adj.size(0) if is_matrix(adj) else num_rows
        for weight in (weights(batch), None):
            took_none.append(compare(adj, num_dst, num_rows, weight, batch.batch_size))
        # All rows of the transpose are there only where edges go into the halo as well.
        assert compare(adj, num_dst, num_rows, None, num_rows) <= (neighbors == "both" or batch.halo_size == 0)
    assert all(took_none) if is_matrix(adjacency(data)) else True


@pytest.mark.parametrize("fmt", FORMATS)
def test_batches_of_directed_graphs_take_the_transpose(fmt: str) -> None:
    data = graph(fmt, directed=True)
    for batch in SubgraphLoader(data, PTR, 2, shuffle=True, seed=0, prefetch=0):
        num_dst = batch.batch_size
        assert not compare(adjacency(batch), num_dst, batch.n_id.numel(), weights(batch), num_dst)


@pytest.mark.parametrize("fmt", FORMATS)
@pytest.mark.parametrize("double", [False, True])
def test_whole_graphs(fmt: str, double: bool) -> None:
    adj, weight = adjacency(graph(fmt, double=double)), weights(graph(fmt, double=double))
    assert compare(adj, N, N, weight, N) and compare(adj, N, N, None, N)  # lists of edges are in order here
    assert compare(adj, N, N, weight, N // 2) or not is_matrix(adj)
    directed = graph(fmt, directed=True)
    assert not compare(adjacency(directed), N, N, weights(directed), N)


@pytest.mark.parametrize("fmt", ["csr", *FORMATS[3:]])
def test_one_edge_or_weight_that_is_not_mirrored(fmt: str) -> None:
    data = graph(fmt)
    batch = next(iter(SubgraphLoader(data, PTR, 3, prefetch=0)))
    adj, num_dst, num_src = adjacency(batch), batch.batch_size, batch.n_id.numel()
    rowptr, _, col = format_of(adj).stored_edges(adj)
    row = torch.arange(num_dst).repeat_interleave(rowptr.diff())
    (inside,) = ((col < num_dst) & (col != row)).nonzero(as_tuple=True)
    for entry in inside[[0, inside.numel() // 2, -1]]:
        weight = weights(batch).clone()
        weight[entry] = torch.nextafter(weight[entry], torch.tensor(2.0))
        assert not compare(adj, num_dst, num_src, weight, num_dst)
        keep = torch.arange(col.numel()) != entry
        less = format_of(adj).keep_edges(adj, keep, weights(batch))
        assert not compare(less, num_dst, num_src, weights(batch)[keep], num_dst)
    outside = (col >= num_dst).nonzero()[0]  # whose own numbers are of no account
    weight = weights(batch).clone()
    weight[outside] = 7
    assert compare(adj, num_dst, num_src, weight, num_dst)


@pytest.mark.parametrize("write", ["in place", "by NumPy", "other memory"])
def test_weights_that_change_are_compared_again(write: str) -> None:
    batch = next(iter(SubgraphLoader(graph("csr"), PTR, 3, prefetch=0)))
    edges, weight = Edges(batch.adj_t, batch.batch_size, batch.n_id.numel()), batch.adj_t.values()
    gradient(edges, weight, batch.batch_size)
    assert edges.needs == "mirror"
    drawn = torch.rand(weight.numel(), generator=torch.Generator().manual_seed(5))
    if write == "in place":
        weight.mul_(drawn)
    elif write == "by NumPy":
        weight.numpy()[:] *= drawn.numpy()
    else:
        weight = weight * drawn
    assert compare(batch.adj_t, batch.batch_size, batch.n_id.numel(), weight, batch.batch_size) is False
    other = Edges(batch.adj_t, batch.batch_size, batch.n_id.numel())
    other.transpose  # noqa: B018
    assert torch.equal(gradient(edges, weight, batch.batch_size), gradient(other, weight, batch.batch_size))


def test_weights_of_other_kinds() -> None:
    batch = next(iter(SubgraphLoader(graph("csr"), PTR, 3, prefetch=0)))
    edges = Edges(batch.adj_t, batch.batch_size, batch.n_id.numel())
    x = torch.randn(batch.n_id.numel(), 2, 4, requires_grad=True)
    heads = torch.rand(batch.num_edges, 2)
    aggregate(x, edges, heads).sum().backward()  # of two heads
    assert edges.needs == "transpose"
    edges = edges_of(batch.adj_t, batch.batch_size, batch.n_id.numel())
    rows = torch.randn(batch.batch_size, 4, requires_grad=True)
    full = torch.cat([rows.detach(), x.detach()[batch.batch_size :, 0]])
    for dtype in (torch.float16, torch.float64):  # which are converted first
        weight = batch.adj_t.values().to(dtype).to(torch.float32).requires_grad_()
        _Product.apply(rows, weight, edges, False, full).sum().backward()
    assert edges.needs == "mirror"
    out = _Product.apply(rows, None, edges, False, full)
    (slope,) = torch.autograd.grad(out.square().sum(), rows, create_graph=True)
    slope.square().sum().backward()  # which has a gradient itself
    assert edges.needs == "transpose"


@pytest.mark.parametrize("prefetch", [0, 2])
@pytest.mark.parametrize("workers", [0, 2])
def test_training_over_an_undirected_graph_takes_no_transpose(
    prefetch: int, workers: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    data = graph("csr")
    made: list[Any] = []
    monkeypatch.setattr(_core, "transpose", lambda *args, **_: made.append(args))
    for kind in (GCN, SAGE):
        model = kind(N, data.num_features, 8, 8, num_layers=3)  # GCN multiplies by weights that narrow before it sums
        loader = SubgraphLoader(data, PTR, 2, shuffle=True, seed=0, prefetch=prefetch, num_workers=workers)
        for _ in range(2):
            for batch in loader:
                model(batch).sum().backward()
                assert kept_edges(batch.adj_t).needs == "mirror"
        assert loader._needs == "mirror" and not made
