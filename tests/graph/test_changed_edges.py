"""Edges that are written to: before the backward pass that is an error of torch's, and after it the new ones count."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor
from torch_geometric import EdgeIndex

from torch_gas.graph.key import graph_key
from torch_gas.graph.product import aggregate, attention, edges_of, linear
from torch_gas.models import GCN, SAGE

N, E, C = 60, 300, 4
X = torch.randn(N, C, generator=torch.Generator().manual_seed(0))
FORMS = ["unsorted", "sorted", "csr", "EdgeIndex"]


def pairs(seed: int) -> Tensor:
    edges = torch.randint(N, (2, E), generator=torch.Generator().manual_seed(seed)).unique(dim=1)[:, :250]
    return edges[:, torch.randperm(250, generator=torch.Generator().manual_seed(seed))]


def adjacency(form: str, seed: int = 0) -> Any:
    edges = pairs(seed)
    if form == "csr":
        return torch.sparse_coo_tensor(edges.flip(0), torch.ones(250), (N, N)).coalesce().to_sparse_csr()
    if form == "EdgeIndex":
        return EdgeIndex(edges, sparse_size=(N, N))
    return edges[:, edges[1].argsort(stable=True)] if form == "sorted" else edges


def held(adj: Any) -> list[Tensor]:
    """The tensors in which an adjacency holds its edges."""
    return [adj.crow_indices(), adj.col_indices()] if adj.layout == torch.sparse_csr else [adj]


def products(adj: Any, weight: Tensor) -> dict[str, Tensor]:
    """What the backward pass of each kind of product reads the edges for."""
    edges, x = edges_of(adj, N, N), X.clone().requires_grad_()
    assert edges is not None
    scores = X[:, :2].clone().requires_grad_()
    return {
        "rows": aggregate(x, edges),
        "mean": aggregate(x, edges, mean=True),
        "weights": aggregate(X, edges, weight),
        "heads": attention(scores, scores, 0.2, edges),
    }


@pytest.mark.parametrize("kind", ["rows", "mean", "weights", "heads"])
@pytest.mark.parametrize("form", FORMS)
def test_a_write_before_the_backward_pass(form: str, kind: str) -> None:
    adj, weight = adjacency(form), torch.rand(250, requires_grad=True)
    products(adj, weight)[kind].square().sum().backward()  # which nothing was written before
    out = products(adj, weight)[kind]
    for own, other in zip(held(adj), held(adjacency(form, 1)), strict=True):
        own.copy_(other)
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        out.square().sum().backward()


@pytest.mark.parametrize("model", [SAGE, GCN])
def test_models(model: Callable[..., Any]) -> None:
    net, edges = model(N, C, 8, 2, num_layers=2), adjacency("unsorted")
    out = net(X, edges)
    edges.copy_(adjacency("unsorted", 1))
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        out.square().sum().backward()


def test_places_of_features_that_are_written_to() -> None:
    x, weight = adjacency("csr"), torch.ones(3, N, requires_grad=True)
    out = linear(x, weight, None)
    x.col_indices().copy_(adjacency("csr", 1).col_indices())
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        out.sum().backward()


def through_numpy(own: Tensor, other: Tensor) -> None:
    own.numpy()[:] = other.numpy()


def through_data(own: Tensor, other: Tensor) -> None:
    own.data.copy_(other)


@pytest.mark.parametrize("write", [through_numpy, through_data])
@pytest.mark.parametrize("form", ["unsorted", "sorted", "csr"])
def test_whole_graphs_that_are_written_to_between_calls(form: str, write: Callable[[Tensor, Tensor], None]) -> None:
    net, adj, other = SAGE(N, C, 8, 2, num_layers=2).eval(), adjacency(form), adjacency(form, 1)
    before = net(X, adj)
    for own, new in zip(held(adj), held(other), strict=True):
        write(own, new)
    after = net(X, adj)
    assert torch.equal(after, net(X, adjacency(form, 1))) and not torch.equal(after, before)


def test_one_edge_of_many() -> None:
    adj = torch.zeros(2, 200_000, dtype=torch.int64)  # more than a sample sees
    x, first = torch.arange(1.0, 4.0).view(3, 1), graph_key(adj, 3)
    edges = edges_of(adj, 3, 3)
    assert edges is edges_of(adj, 3, 3) and edges is not None and aggregate(x, edges)[0] == 200_000
    adj.numpy()[0, 12_345] = 2
    assert graph_key(adj, 3) != first  # by which each call of a model looks at its graph
    edges = edges_of(adj, 3, 3)
    assert edges is not None and aggregate(x, edges)[0] == 200_002
    adj.numpy()[0, 12_345] = 0
    assert graph_key(adj, 3) == first


@pytest.mark.parametrize("form", ["unsorted", "csr"])
def test_edges_of_inference_mode(form: str) -> None:
    with torch.inference_mode():
        adj, other = adjacency(form), adjacency(form, 1)
    net = SAGE(N, C, 8, 2, num_layers=2).eval()
    with torch.inference_mode():
        before = net(X, adj)
        for own, new in zip(held(adj), held(other), strict=True):
            own.copy_(new)
        after = net(X, adj)
        assert torch.equal(after, net(X, adjacency(form, 1))) and not torch.equal(after, before)


def test_orders_that_are_written_to() -> None:
    adj, perm = adjacency("sorted"), torch.arange(N)
    first = graph_key(adj, N, perm)
    perm.numpy()[:2] = [1, 0]
    assert graph_key(adj, N, perm) != first
