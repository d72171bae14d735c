"""Layers that reduce messages in other ways than by a sum: the rows and gradients of PyG's, in one pass over the edges."""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import pytest
import torch
import torch_geometric.nn as nn
from graphs import FORMATS, adjacency, random_graph, to_format
from torch import Tensor
from torch_geometric.nn import aggr

from torch_gas import ScalableGNN, SubgraphLoader, _core, scale, wiring
from torch_gas.graph.reductions import reduce
from torch_gas.wiring import pairs
from torch_gas.wiring.fused import fuse
from torch_gas.wiring.undo import Undo

N = 40
DATA = random_graph(N, 200)
DEGREES = torch.bincount(torch.bincount(DATA.edge_index[1], minlength=N))
SCALERS = ["identity", "amplification", "attenuation", "linear", "inverse_linear"]


class Several(nn.SAGEConv):
    """A class of its own: in PyG, the first layer of a class says whether others multiply by matrices."""


LAYERS: dict[str, Callable[[], Any]] = {
    "PNA": lambda: nn.PNAConv(8, 8, ["mean", "min", "max", "std"], SCALERS, DEGREES, train_norm=True),
    "PNA of sums": lambda: nn.PNAConv(8, 8, ["sum", "mean"], SCALERS[:2], DEGREES),
    "PNA of towers": lambda: nn.PNAConv(8, 8, ["mean", "var"], ["linear"], DEGREES, towers=2, post_layers=2),
    "PNA of parts": lambda: nn.PNAConv(8, 8, ["sum", "max"], SCALERS[1:3], DEGREES, towers=4, divide_input=True),
    "PNA of sums of parts": lambda: nn.PNAConv(8, 8, ["mean"], ["identity"], DEGREES, towers=4, divide_input=True),
    "SAGE": lambda: Several(8, 8, aggr=["mean", "max", "std"]),
    "SAGE of a sum": lambda: Several(8, 8, aggr=aggr.MultiAggregation(["min", "max", "var"], mode="sum")),
    "SAGE of a scaler": lambda: Several(8, 8, aggr=aggr.DegreeScalerAggregation("max", "linear", DEGREES)),
    "SAGE by a module": lambda: Several(8, 8, aggr=aggr.StdAggregation()),
    "SAGE max": lambda: nn.SAGEConv(8, 8, aggr="max"),
    "Graph": lambda: nn.GraphConv(8, 8, aggr="min"),
}
# PyG has torch multiply by a matrix, where one of several equal edges has the gradient of their maximum.
BY_TORCH = {"SAGE max", "Graph"}


@contextmanager
def fused(model: torch.nn.Module) -> Iterator[None]:
    with Undo() as undo:
        fuse(undo, model)
        yield


@pytest.fixture
def reduced(monkeypatch: pytest.MonkeyPatch) -> list[Any]:
    """The names of reductions so far."""
    seen: list[Any] = []

    def note(rows: Tensor, edges: Any, names: Any) -> Any:
        seen.append(names)
        return reduce(rows, edges, names)

    for module in (wiring.fused, wiring.pairs):
        monkeypatch.setattr(module, "reduce", note)
    return seen


def run(conv: Any, adj: Any, x: Tensor) -> list[Tensor]:
    """Rows of a layer, and the gradients of its input and parameters."""
    x = x.detach().clone().requires_grad_()
    out = conv(x, adj)
    weight = torch.linspace(-1, 1, N, dtype=x.dtype).view(-1, 1)
    return [out.detach(), *torch.autograd.grad((out * weight).sum(), [x, *conv.parameters()], allow_unused=True)]


def same(conv: Any, adj: Any, x: Tensor, slack: float) -> None:
    expected = run(conv, adj, x)
    with fused(conv):
        found = run(conv, adj, x)
    assert not {"forward", "propagate"} & vars(conv).keys()
    for left, right in zip(found, expected, strict=True):
        torch.testing.assert_close(left, right, rtol=slack, atol=slack)


@pytest.mark.parametrize("ties", [False, True])
@pytest.mark.parametrize("fmt", FORMATS)
@pytest.mark.parametrize("name", LAYERS)
def test_layers_give_what_those_of_pyg_do(name: str, fmt: str, ties: bool, reduced: list[Any]) -> None:
    """Gradients of ties are those of PyG over the same format."""
    torch.manual_seed(0)
    adj, conv, x = adjacency(to_format(copy.copy(DATA), fmt)), LAYERS[name](), DATA.x
    is_matrix = fmt in ("csr", "SparseTensor")
    if ties:  # of whole rows; no messages that differ are as near as rounding
        x = x[torch.arange(N) // 4 * 4]
    if is_matrix and name in BY_TORCH:
        same(conv, adj, x, 1e-6)
        assert not reduced
        return
    same(conv.double(), adj, x.double(), 1e-10)
    assert len(reduced) == 1


def test_edge_weights_are_left_to_pyg(reduced: list[Any]) -> None:
    conv, weight = nn.GraphConv(8, 8, aggr="max"), torch.rand(DATA.num_edges)
    expected = conv(DATA.x, DATA.edge_index, weight)
    with fused(conv):
        assert torch.equal(conv(DATA.x, DATA.edge_index, weight), expected)
    assert not reduced


class OwnForward(nn.PNAConv):
    def forward(self, x: Tensor, edge_index: Any) -> Tensor:
        return super().forward(2 * x, edge_index)


class OwnMessage(nn.PNAConv):
    def message(self, x_i: Tensor, x_j: Tensor) -> Tensor:
        return super().message(x_i, x_j, None).relu()


def hooked(part: Callable[[Any], Any]) -> Any:
    conv = LAYERS["PNA"]()
    part(conv).register_forward_hook(lambda module, inputs, out: 2 * out)
    return conv


def watched() -> Any:
    conv = LAYERS["PNA"]()
    conv.register_message_forward_hook(lambda conv, inputs, out: out * 3)
    return conv


ARGS = (8, 8, ["mean", "max"], ["identity"], DEGREES)
OTHERS: dict[str, Callable[[], Any]] = {
    "forward": lambda: OwnForward(*ARGS),
    "message": lambda: OwnMessage(*ARGS),
    "two layers": lambda: nn.PNAConv(*ARGS, pre_layers=2),
    "an aggregation": lambda: nn.PNAConv(8, 8, ["mean", "median"], ["identity"], DEGREES),
    "half a gradient": lambda: Several(8, 8, aggr=["mean", aggr.VarAggregation(semi_grad=True)]),
    "hook of a dense layer": lambda: hooked(lambda conv: conv.pre_nns[0][0]),
    "hook of dense layers": lambda: hooked(lambda conv: conv.pre_nns[0]),
    "hook of an aggregation": lambda: hooked(lambda conv: conv.aggr_module.aggr.aggrs[1]),
    "hook of messages": watched,
    "flow": lambda: Several(8, 8, aggr=["max", "mean"], flow="target_to_source"),
}


@pytest.mark.parametrize("name", OTHERS)
def test_layers_that_are_left_alone(name: str, reduced: list[Any]) -> None:
    torch.manual_seed(0)
    conv = OTHERS[name]()
    expected = run(conv, DATA.edge_index, DATA.x)
    with fused(conv):
        found = run(conv, DATA.edge_index, DATA.x)
    assert not reduced
    assert all(map(torch.equal, found, expected))


def test_attributes_of_edges_are_left_to_pyg(reduced: list[Any]) -> None:
    conv, attr = nn.PNAConv(*ARGS, edge_dim=3), torch.randn(DATA.num_edges, 3)
    expected = conv(DATA.x, DATA.edge_index, attr)
    with fused(conv):
        assert torch.equal(conv(DATA.x, DATA.edge_index, attr), expected)
    assert not reduced


def test_gradients_of_gradients() -> None:
    conv = LAYERS["PNA"]().double()
    x = DATA.x.double().requires_grad_()

    def second() -> Tensor:
        (grad,) = torch.autograd.grad((conv(x, DATA.edge_index) ** 2).sum(), x, create_graph=True)
        return torch.autograd.grad((grad**2).sum(), x)[0]

    expected = second()
    with fused(conv):
        torch.testing.assert_close(second(), expected, rtol=1e-8, atol=1e-8)


@pytest.mark.parametrize("towers", [1, 2])
@pytest.mark.parametrize("places", ["row-wise", "cheap", "outputs"])
@pytest.mark.parametrize("fmt", FORMATS)
def test_batches_of_a_scaled_model(
    fmt: str, places: Any, towers: int, reduced: list[Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Exact rows of the batch alone, over edges that are put in order once for all layers."""
    torch.manual_seed(0)
    data = to_format(copy.copy(DATA), fmt)
    options = {"aggregators": ["mean", "max"], "scalers": ["identity", "attenuation"], "deg": DEGREES}
    plain = nn.PNA(8, 8, 3, 6, towers=towers, divide_input=towers > 1, **options)
    expected = plain(data.x, adjacency(data))
    model = scale(plain, data, places=places)
    with torch.no_grad():
        model.eval()(data)
    sizes, made = [], []
    forward, transpose = pairs.ForwardOfPairs.__call__, _core.transpose

    def note(*args: Any, **kwargs: Any) -> Any:
        out = forward(*args, **kwargs)
        sizes.append(out.size(0))
        return out

    monkeypatch.setattr(pairs.ForwardOfPairs, "__call__", note)
    monkeypatch.setattr(_core, "transpose", lambda *args, **kwargs: made.append(args) or transpose(*args, **kwargs))
    for number, batch in enumerate(SubgraphLoader(data, torch.tensor([0, 20, N]), 1, prefetch=0)):
        reduced.clear(), sizes.clear(), made.clear()
        out = model.train()(batch)
        out.sum().backward()
        assert len(reduced) == len(sizes) == 3 and set(sizes) == {batch.batch_size}
        assert len(made) <= 1  # none where the loader has seen to it
        torch.testing.assert_close(out, expected[20 * number :][:20], rtol=1e-5, atol=1e-5)


def test_a_layer_in_a_model_that_calls_push_and_pull(reduced: list[Any]) -> None:
    class Model(ScalableGNN):
        def __init__(self) -> None:
            super().__init__(N, 8, 2)
            self.convs = torch.nn.ModuleList(nn.PNAConv(*ARGS) for _ in range(2))

        def forward(self, x: Tensor, edge_index: Any, *args: Any) -> Tensor:
            x = self.push_and_pull(self.histories[0], self.convs[0](x, edge_index).relu(), *args)
            return self.convs[1](x, edge_index)

    torch.manual_seed(0)
    model = Model()
    x, edge_index = DATA.x, DATA.edge_index
    first, second = copy.deepcopy(model.convs)
    expected = second(first(x, edge_index).relu(), edge_index)
    loader = SubgraphLoader(DATA, torch.tensor([0, 20, N]), 1)
    for _ in range(2):
        out = torch.cat([model(batch) for batch in loader])
    assert reduced
    torch.testing.assert_close(out, expected, rtol=1e-5, atol=1e-5)
