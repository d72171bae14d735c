"""Layers that look degrees up: the rows and gradients of PyG's own path, whatever loops, weights and code a layer has."""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch_geometric.nn as nn
from graphs import random_graph, to_format
from nets import batch_rows
from plain_models import C, H
from torch import Tensor
from torch.nn import Linear, Module, ModuleList
from torch_geometric.data import Data

from torch_gas import ScaledGNN, SubgraphLoader, scale
from torch_gas.wiring import degrees

N = 60
PTR = torch.tensor([0, 1, 14, 37, N])
Body = Callable[[Any, Tensor, Any, Any], Tensor]


def graph(loops: str = "none", weights: str | None = None, fmt: str = "edge_index") -> Data:
    """With self-loops of some, all or no nodes, or several of one node."""
    data = random_graph(N, 4 * N, seed=1)
    edges = data.edge_index[:, data.edge_index[0] != data.edge_index[1]]
    nodes = {"none": [], "some": [0, 5, 20, 40], "all": [*range(N)], "several": [0, 3, 3, 20]}[loops]
    data.edge_index = torch.cat([edges, torch.tensor([nodes, nodes], dtype=torch.long)], dim=1)
    generator = torch.Generator().manual_seed(3)
    if weights is not None:
        data.edge_weight = 0.5 + torch.rand(data.num_edges, generator=generator)
    if weights == "zero":
        data.edge_weight[::3] = 0
    if weights == "all zero":
        data.edge_weight[:] = 0
    if weights == "negative":
        last = {int(node): entry for entry, node in enumerate(data.edge_index[1])}
        degree = data.edge_index[1].bincount()
        chosen = [entry for node, entry in last.items() if degree[node] > 2]
        data.edge_weight[chosen] *= -0.1  # and degrees are positive
    return to_format(data, fmt)


def plain_layers(self: Any, x: Tensor, adj: Any, weight: Any) -> Tensor:
    for conv in self.convs:
        x = (conv(x, x, adj, weight) if isinstance(conv, nn.GCN2Conv) else conv(x, adj, weight)).tanh()
    return x


class Net(Module):
    """Three layers that normalise."""

    def __init__(self, make: Callable[[], Module], body: Body = plain_layers) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.first, self.body, self.convs = Linear(C, H), body, ModuleList([make() for _ in range(3)])

    def forward(self, x: Tensor, edge_index: Any, edge_weight: Any = None) -> Tensor:
        return self.body(self, self.first(x), edge_index, edge_weight)


LAYERS: dict[str, Callable[[], Module]] = {
    "GCN": lambda: nn.GCNConv(H, H),
    "GCN without loops": lambda: nn.GCNConv(H, H, add_self_loops=False),
    "GCN2": lambda: nn.GCN2Conv(H, 0.1),
}


@pytest.fixture
def looked_up(monkeypatch: pytest.MonkeyPatch) -> list[Any]:
    """The weights that were computed from degrees so far."""
    found, own = [], degrees.NormalizeByDegrees._weights

    def note(self: Any, *args: Any) -> Any:
        found.append(own(self, *args))
        return found[-1]

    monkeypatch.setattr(degrees.NormalizeByDegrees, "_weights", note)
    return found


def arguments(data: Data) -> tuple[Any, ...]:
    return data.x, data.edge_index, data.get("edge_weight")


def whole(data: Data) -> Any:
    (batch,) = SubgraphLoader(data, torch.tensor([0, N]), 1)
    return batch


def assert_trains_alike(net: Net, data: Data, parts: bool = True) -> ScaledGNN:
    """One batch of all nodes has the rows and gradients of the plain model, and smaller ones its rows where ``parts``."""
    plain, model = copy.deepcopy(net).train(), scale(net, data).train()
    want, got = plain(*arguments(data)), model(whole(data))
    tolerance = {"rtol": 1e-4, "atol": 1e-5} if want.dtype == torch.float32 else {"rtol": 1e-10, "atol": 1e-12}
    torch.testing.assert_close(got, want, **tolerance)
    for rows in (got, want):
        (rows * torch.linspace(-1, 1, H, dtype=rows.dtype)).sum().backward()
    for left, right in zip(model.model.parameters(), plain.parameters(), strict=True):
        assert (left.grad is None) == (right.grad is None)
        if right.grad is not None:
            torch.testing.assert_close(left.grad, right.grad, **tolerance)
    if parts:
        with torch.no_grad():
            model.eval()(data)
        for batch in SubgraphLoader(data, PTR, 1):
            torch.testing.assert_close(model.train()(batch), want[batch_rows(batch)], **tolerance)
    return model


@pytest.mark.parametrize("loops", ["none", "some", "all", "several"])
@pytest.mark.parametrize("weights", [None, "positive", "zero", "negative"])
@pytest.mark.parametrize("name", LAYERS)
def test_loops_and_weights(name: str, weights: str | None, loops: str, looked_up: list[Any]) -> None:
    if weights == "negative" and name == "GCN without loops":
        pytest.skip("the small graph, which draws weights anew, has nodes of negative degree")
    assert_trains_alike(Net(LAYERS[name]), graph(loops, weights))
    # Once a batch for all layers; where a node has several loops, PyG takes one of them.
    assert len(looked_up) == len(PTR) and (looked_up[0] is None) == (loops == "several" and name != "GCN without loops")


def test_nodes_without_degree(looked_up: list[Any]) -> None:
    assert_trains_alike(Net(LAYERS["GCN without loops"]), graph(weights="all zero"))
    assert looked_up


def test_layers_of_one_model_with_and_without_loops(looked_up: list[Any]) -> None:
    def body(self: Any, x: Tensor, adj: Any, weight: Any) -> Tensor:
        x = self.convs[0](x, x, adj).relu()
        return self.convs[2](self.convs[1](x, adj, weight).relu(), adj)

    net = Net(LAYERS["GCN"], body)
    net.convs[0], net.convs[1] = LAYERS["GCN2"](), LAYERS["GCN without loops"]()
    assert_trains_alike(net, graph("some", "positive"))
    assert len(looked_up) == 2 * len(PTR)


def test_double_precision() -> None:
    data = graph("some", "positive")
    data.x, data.edge_weight = data.x.double(), data.edge_weight.double()
    for name in LAYERS:
        assert_trains_alike(Net(LAYERS[name]).double(), data)


@pytest.mark.parametrize("name", ["GCN", "GCN2"])
def test_edge_index_of_pyg(name: str) -> None:
    assert_trains_alike(Net(LAYERS[name]), graph("some", fmt="EdgeIndex"))


# -- training on other edges -------------------------------------------------------------------------------------------


def drops_edges(self: Any, x: Tensor, adj: Any, weight: Any) -> Tensor:
    if self.training:
        kept = (adj[0] + 2 * adj[1]) % 3 != 0  # by what both orders of edges have
        adj, weight = adj[:, kept], None if weight is None else weight[kept]
    return plain_layers(self, x, adj, weight)


def scales_weights(self: Any, x: Tensor, adj: Any, weight: Any) -> Tensor:
    weight = torch.ones(adj.size(1)) if weight is None else weight
    return plain_layers(self, x, adj, 2 * weight if self.training else weight)


@pytest.mark.parametrize("weights", [None, "positive"])
@pytest.mark.parametrize("body", [drops_edges, scales_weights])
@pytest.mark.parametrize("name", LAYERS)
def test_degrees_of_what_training_is_given(name: str, body: Body, weights: str | None, looked_up: list[Any]) -> None:
    """Those of the batch's nodes are counted, as PyG does."""
    data = graph("some", weights)
    if weights is None and body is scales_weights:
        data.edge_weight = torch.ones(data.num_edges)
    assert_trains_alike(Net(LAYERS[name], body), data, parts=False)
    assert looked_up and None not in looked_up


def test_weights_that_learn_in_training() -> None:
    def body(self: Any, x: Tensor, adj: Any, weight: Any) -> Tensor:
        return plain_layers(self, x, adj, weight * self.scale if self.training else weight)

    net = Net(LAYERS["GCN"], body)
    net.scale = torch.nn.Parameter(torch.tensor(1.5))
    assert_trains_alike(net, graph("some", "positive"), parts=False)


def test_a_shared_layer_over_other_edges() -> None:
    """What it was given before is not taken for what it is given now."""

    def body(self: Any, x: Tensor, adj: Any, weight: Any) -> Tensor:
        x = self.convs[0](x, adj).tanh()
        if self.training:
            loop = torch.zeros(2, 2, dtype=torch.long)
            adj = torch.cat([adj[:, adj[0] % 2 == 0], loop], dim=1)  # with two loops of a node
        return self.convs[1](self.convs[0](x, adj).tanh(), adj)

    assert_trains_alike(Net(LAYERS["GCN"], body), graph(), parts=False)


# -- layers with code of their own -------------------------------------------------------------------------------------


class OfMessages(nn.GCNConv):
    def message(self, x_j: Tensor, edge_weight: Any) -> Tensor:
        return super().message(x_j.relu(), edge_weight)


class OfSums(nn.GCNConv):
    def aggregate(self, inputs: Tensor, index: Tensor, ptr: Any = None, dim_size: Any = None) -> Tensor:
        return super().aggregate(inputs, index, ptr, dim_size).tanh()


class OfResults(nn.GCNConv):
    def update(self, inputs: Tensor) -> Tensor:
        return inputs.tanh()


class OfAll(nn.GCNConv):
    def propagate(self, edge_index: Any, size: Any = None, **kwargs: Any) -> Tensor:
        return super().propagate(edge_index, size=size, **kwargs).tanh()


def hooked(register: Callable[[Any], Any]) -> Callable[[], Module]:
    def make() -> Module:
        conv = nn.GCNConv(H, H)
        register(conv)
        return conv

    return make


def _replaced(conv: Any) -> None:
    own = conv.propagate
    conv.propagate = lambda *args, **kwargs: own(*args, **kwargs).tanh()


OWN_CODE: dict[str, Callable[[], Module]] = {
    "message": lambda: OfMessages(H, H),
    "aggregate": lambda: OfSums(H, H),
    "update": lambda: OfResults(H, H),
    "propagate": lambda: OfAll(H, H),
    "hook on messages": hooked(lambda conv: conv.register_message_forward_hook(lambda *given: given[-1].relu())),
    "hook on sums": hooked(lambda conv: conv.register_aggregate_forward_hook(lambda *given: given[-1].tanh())),
    "hook on all": hooked(lambda conv: conv.register_propagate_forward_hook(lambda *given: given[-1].tanh())),
    "hook on the aggregation": hooked(
        lambda conv: conv.aggr_module.register_forward_hook(lambda *given: given[-1].tanh())
    ),
    "hook on weights": hooked(lambda conv: conv.lin.register_forward_hook(lambda *given: given[-1].tanh())),
    "weight norm": hooked(lambda conv: torch.nn.utils.parametrizations.weight_norm(conv.lin)),
}


@pytest.mark.parametrize("name", OWN_CODE)
def test_layers_with_code_of_their_own(name: str, looked_up: list[Any]) -> None:
    """Loops are messages to such code, and not a multiple of the rows."""
    assert_trains_alike(Net(OWN_CODE[name]), graph("some", "positive"))
    assert len(looked_up) == (len(PTR) if name in ("hook on weights", "weight norm") else 0)


@pytest.mark.parametrize("training", [False, True])
def test_a_method_that_was_replaced(training: bool) -> None:
    data = graph("some", "positive")
    net = Net(hooked(_replaced))
    model = scale(net, data).train(training)
    with torch.no_grad():
        want = net(*arguments(data))
        torch.testing.assert_close(model(whole(data)), want, rtol=1e-4, atol=1e-5)
        assert all(conv.propagate.__name__ == "<lambda>" for conv in net.convs)


@pytest.mark.parametrize("options", [{"improved": True}, {"aggr": "mean"}, {"aggr": "max"}, {"decomposed_layers": 2}])
def test_other_options(options: dict[str, Any]) -> None:
    assert_trains_alike(Net(lambda: nn.GCNConv(H, H, **options)), graph("some", "positive"))


def test_what_layers_have_stored_is_left() -> None:
    data, net = graph("some", "positive"), Net(lambda: nn.GCNConv(H, H, cached=True))
    net(*arguments(data))
    before = [conv._cached_edge_index for conv in net.convs]
    model = scale(net, data).train()
    for batch in SubgraphLoader(data, PTR, 1):
        model(batch).sum().backward()
    assert all(conv._cached_edge_index is each for conv, each in zip(net.convs, before, strict=True))
    assert not any(degrees.LOOPS in vars(conv) for conv in net.convs)
