"""Sparse products in place of messages: the same rows and gradients, computed once, and only where they are products."""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import pytest
import torch
import torch_geometric.nn as nn
from graphs import FORMATS, adjacency, random_graph, to_format
from nets import Net
from torch import Tensor

from torch_gas import _core, wiring
from torch_gas.graph import product as sparse
from torch_gas.graph.formats import format_of
from torch_gas.graph.product import Edges, aggregate, attention
from torch_gas.wiring.fused import fuse
from torch_gas.wiring.undo import Undo

N = 40
DATA = random_graph(N, 200)
LAYERS: dict[str, Callable[[], torch.nn.Module]] = {
    "APPNP": lambda: nn.APPNP(3, 0.1),
    "ClusterGCN": lambda: nn.ClusterGCNConv(8, 8),
    "GAT": lambda: nn.GATConv(8, 4, heads=2),
    "GAT mean": lambda: nn.GATConv(8, 4, heads=3, concat=False, negative_slope=0.5),
    "GAT that averages": lambda: nn.GATConv(8, 8, aggr="mean"),
    "GAT without loops": lambda: nn.GATConv(8, 8, add_self_loops=False, residual=True),
    "GCN": lambda: nn.GCNConv(8, 8),
    "GCN2": lambda: nn.GCN2Conv(8, 0.1),
    "GIN": lambda: nn.GINConv(torch.nn.Linear(8, 8)),
    "GatedGraph": lambda: nn.GatedGraphConv(8, 2),
    "Graph": lambda: nn.GraphConv(8, 8),
    "LG": lambda: nn.LGConv(),
    "MF": lambda: nn.MFConv(8, 8),
    "MixHop": lambda: nn.MixHopConv(8, 8),
    "SAGE mean": lambda: nn.SAGEConv(8, 8),
    "SAGE sum": lambda: nn.SAGEConv(8, 8, aggr="sum"),
    "SG": lambda: nn.SGConv(8, 8, K=2),
    "SSG": lambda: nn.SSGConv(8, 8, alpha=0.1, K=2),
    "Simple": lambda: nn.SimpleConv("mean"),
    "TAG": lambda: nn.TAGConv(8, 8),
    "WL": lambda: nn.WLConvContinuous(),
}
OTHERS: dict[str, Callable[[], torch.nn.Module]] = {
    "ARMA": lambda: nn.ARMAConv(8, 8),  # messages of three dimensions
    "EG": lambda: nn.EGConv(8, 8),
    "GAT against the edges": lambda: nn.GATConv(8, 8, flow="target_to_source"),
    "GATv2": lambda: nn.GATv2Conv(8, 8),
    "GCN against the edges": lambda: nn.GCNConv(8, 8, flow="target_to_source"),
    "SAGE median": lambda: nn.SAGEConv(8, 8, aggr="median"),
}


@contextmanager
def fused(model: torch.nn.Module) -> Iterator[None]:
    with Undo() as undo:
        fuse(undo, model)
        yield


@pytest.fixture
def products(monkeypatch: pytest.MonkeyPatch) -> list[Tensor]:
    """The results of products so far."""
    results = []

    def note(*args: Any, **kwargs: Any) -> Tensor:
        results.append(aggregate(*args, **kwargs))
        return results[-1]

    monkeypatch.setattr(wiring.fused, "aggregate", note)
    return results


def run(conv: torch.nn.Module, adj: Any) -> tuple[Tensor, Tensor]:
    """Rows of a layer and the gradient of its input."""
    x = torch.randn(N, 8, generator=torch.Generator().manual_seed(1)).requires_grad_()
    out = conv(x, x, adj) if isinstance(conv, nn.GCN2Conv) else conv(x, adj)
    (out * torch.linspace(-1, 1, N).view(-1, 1)).sum().backward()
    return out.detach(), x.grad


@pytest.mark.parametrize("fmt", FORMATS)
@pytest.mark.parametrize("name", LAYERS)
def test_layers_that_are_products(name: str, fmt: str, products: list[Tensor]) -> None:
    if fmt == "csr" and name in ("MF", "WL"):
        pytest.skip("PyG's own layer fails over this format")
    torch.manual_seed(0)
    adj, conv = adjacency(to_format(copy.copy(DATA), fmt)), LAYERS[name]()
    expected = run(conv, adj)
    assert not products
    with fused(conv):
        found = run(conv, adj)
    assert products and "propagate" not in vars(conv)
    for left, right in zip(found, expected, strict=True):
        torch.testing.assert_close(left, right, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("name", OTHERS)
def test_layers_that_are_not(name: str, products: list[Tensor]) -> None:
    torch.manual_seed(0)
    conv = OTHERS[name]()
    expected = run(conv, DATA.edge_index)
    with fused(conv):
        found = run(conv, DATA.edge_index)
    assert not products
    assert all(map(torch.equal, found, expected))


def weights(requires_grad: bool = False) -> Tensor:
    return torch.rand(DATA.num_edges, generator=torch.Generator().manual_seed(2)).requires_grad_(requires_grad)


def test_edge_weights(products: list[Tensor]) -> None:
    conv, x = nn.GraphConv(8, 8), DATA.x
    for weight in (weights(), weights().double(), weights(True)):
        expected = conv(x, DATA.edge_index, weight.float())
        with fused(conv):
            out = conv(x, DATA.edge_index, weight if weight.requires_grad else weight.float())
        torch.testing.assert_close(out, expected, rtol=1e-5, atol=1e-5)
        if weight.requires_grad:
            grads = [torch.autograd.grad((each**2).sum(), weight)[0] for each in (out, expected)]
            torch.testing.assert_close(*grads, rtol=1e-4, atol=1e-4)
    assert len(products) == 3
    weight = weights()
    with fused(conv):
        before = conv(x, DATA.edge_index, weight)
        weight *= 2  # in place
        after = conv(x, DATA.edge_index, weight)
    torch.testing.assert_close(after, conv(x, DATA.edge_index, weight), rtol=1e-5, atol=1e-5)
    assert not torch.allclose(before, after)


@pytest.mark.parametrize("training", [True, False])
def test_dropout_of_attention(training: bool, products: list[Tensor]) -> None:
    """The numbers that PyG would draw."""
    conv = nn.GATConv(8, 4, heads=2, dropout=0.5, add_self_loops=False).train(training)
    torch.manual_seed(3)
    expected = conv(DATA.x, DATA.edge_index)
    with fused(conv):
        torch.manual_seed(3)
        out, (edge_index, alpha) = conv(DATA.x, DATA.edge_index, return_attention_weights=True)
    assert len(products) == 1 and edge_index is DATA.edge_index and alpha.shape == (DATA.num_edges, 2)
    torch.testing.assert_close(out, expected, rtol=1e-5, atol=1e-5)


def test_attention_to_attributes_of_edges(products: list[Tensor]) -> None:
    """Scores are PyG's then, and rows are summed up as a product."""
    conv, attr = nn.GATConv(8, 4, heads=2, edge_dim=3), torch.randn(DATA.num_edges, 3)
    expected = conv(DATA.x, DATA.edge_index, attr)
    with fused(conv):
        out = conv(DATA.x, DATA.edge_index, attr)
    assert len(products) == 1
    torch.testing.assert_close(out, expected, rtol=1e-5, atol=1e-5)


class OwnMessage(nn.SAGEConv):
    def message(self, x_j: Tensor) -> Tensor:
        return x_j.relu()


class OwnAttention(nn.GATConv):
    def edge_update(self, alpha_j: Tensor, alpha_i: Tensor, index: Tensor) -> Tensor:
        return (alpha_j + alpha_i).sigmoid()


class OwnUpdate(nn.GINConv):
    def update(self, inputs: Tensor) -> Tensor:
        return 2 * inputs


def test_layers_with_something_of_their_own(products: list[Tensor]) -> None:
    hooked = nn.GCNConv(8, 8)
    hooked.register_message_forward_hook(lambda conv, inputs, out: out * 3)
    counted = nn.GCNConv(8, 8)
    counted.aggr_module.register_forward_hook(lambda *_: None)
    for conv in (OwnMessage(8, 8), OwnAttention(8, 8), OwnUpdate(torch.nn.Linear(8, 8)), hooked, counted):
        expected = run(conv, DATA.edge_index)
        with fused(conv):
            found = run(conv, DATA.edge_index)
        assert all(map(torch.equal, found, expected))
    assert not products


def test_edges_are_put_in_order_once(monkeypatch: pytest.MonkeyPatch) -> None:
    made = []
    transpose = _core.transpose
    monkeypatch.setattr(_core, "transpose", lambda *args, **kwargs: made.append(args) or transpose(*args, **kwargs))
    model = Net(N, num_layers=3)
    edge_index = DATA.edge_index.clone()
    with torch.no_grad():
        model(DATA.x, edge_index)
    assert not made  # nobody needs a gradient
    for _ in range(3):
        model(DATA.x, edge_index).sum().backward()
    assert len(made) == 1
    edge_index[0, 0] = 0  # another graph
    expected = [conv(DATA.x, edge_index).detach() for conv in model.convs[:1]]
    model(DATA.x, edge_index).sum().backward()
    assert len(made) == 2
    with fused(model):
        torch.testing.assert_close(model.convs[0](DATA.x, edge_index), expected[0], rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16, torch.float16])
def test_types(dtype: torch.dtype) -> None:
    edges, rows = Edges(DATA.edge_index, N, N), DATA.x.to(dtype)
    expected = torch.zeros(N, 8, dtype=torch.float64).index_add_(
        0, DATA.edge_index[1], weights().double().view(-1, 1) * rows.double()[DATA.edge_index[0]]
    )
    out = aggregate(rows, edges, weights())
    slack = {torch.float64: 1e-6, torch.float32: 1e-5}.get(dtype, 5e-2)
    assert out.dtype == dtype
    torch.testing.assert_close(out.double(), expected, rtol=slack, atol=slack)


def test_gradients_of_gradients() -> None:
    edges = Edges(DATA.edge_index, N, N)
    rows = DATA.x.double().requires_grad_()
    assert torch.autograd.gradcheck(lambda x: aggregate(x, edges, weights().double(), mean=True), rows)
    assert torch.autograd.gradgradcheck(lambda x: aggregate(x, edges) ** 2, rows)


def test_gradients_of_heads() -> None:
    edges = Edges(DATA.edge_index, N, N)
    rows, dst, src = (torch.randn(N, *shape, dtype=torch.float64, requires_grad=True) for shape in ((2, 3), (2,), (2,)))

    def run(rows: Tensor, dst: Tensor, src: Tensor) -> Tensor:
        return aggregate(rows, edges, attention(dst, src, 0.2, edges)) ** 2

    assert torch.autograd.gradcheck(run, (rows, dst, src))
    assert torch.autograd.gradgradcheck(run, (rows, dst, src))
    inputs = (rows, dst, src)
    plain, differentiable = (torch.autograd.grad(run(*inputs).sum(), inputs, create_graph=c) for c in (False, True))
    torch.testing.assert_close(differentiable, plain)  # two ways to the same gradients


def test_compiled_layers_are_left_alone() -> None:
    conv = nn.GCNConv(8, 8)
    conv.compile(backend="eager")
    with fused(conv):
        assert "propagate" not in vars(conv)


@pytest.mark.parametrize("bad", [-1, N])
@pytest.mark.parametrize("end", [0, 1])
def test_edges_outside_of_the_rows_are_errors(end: int, bad: int) -> None:
    """A product would read whatever lies there; by message passing torch raises."""
    edge_index = DATA.edge_index[:, DATA.edge_index[1].argsort()].clone()
    edge_index[end, 0 if bad < 0 else -1] = bad
    conv = nn.GraphConv(8, 8)
    with fused(conv), pytest.raises(IndexError, match="of the adjacency"):
        conv(DATA.x, edge_index)


@pytest.mark.parametrize("form", FORMATS)
def test_edges_are_kept_as_long_as_their_adjacency(form: str) -> None:
    before = len(sparse._kept)
    data = to_format(random_graph(N, 200), form)
    adj = adjacency(data)
    rows = torch.rand(N, 3, requires_grad=True)
    for _ in range(2):
        edges = sparse.edges_of(adj, N, N)
        assert edges is not None
        aggregate(rows, edges, format_of(adj).values(adj)).sum().backward()
    assert len(sparse._kept) == before + 1
    del data, adj, edges
    assert len(sparse._kept) == before
