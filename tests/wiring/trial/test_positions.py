"""Sizes, positions and the order of arguments stand for nothing: what is rows of nodes or edges is tried out."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import pytest
import torch
from graphs import random_graph
from torch import Tensor
from torch.nn import Linear, Module
from torch_geometric.data import Data
from torch_geometric.nn import GraphConv, MessagePassing, SAGEConv
from torch_geometric.typing import OptPairTensor

from torch_gas import EvalSubgraphLoader, ScalableGNN, ScaledGNN, SubgraphLoader, scale

N, C = 300, 8
PTR = torch.arange(0, N + 1, 50)


def graph(ring: bool = False) -> Data:
    data = random_graph(N, 5 * N)
    if ring:  # in each batch of one part as many edges as nodes
        data.edge_index = torch.stack([torch.arange(N), (torch.arange(N) + 1) % N])
    data.edge_weight = torch.rand(data.num_edges)
    return data


def leaf(out: Any) -> Tensor:
    return out[0] if isinstance(out, tuple) else out


def check(model: Module, data: Data, want: Any, **kwargs: Any) -> ScaledGNN:
    """Inference and each batch give the rows of ``want``, and training runs."""
    scaled = scale(model.eval(), data, **kwargs)
    torch.testing.assert_close(leaf(scaled(loader=EvalSubgraphLoader(data, PTR))), leaf(want), rtol=1e-4, atol=1e-4)
    for batch in SubgraphLoader(data, PTR):
        want_rows = leaf(want)[batch.n_id[: batch.batch_size]]
        torch.testing.assert_close(leaf(scaled(batch)), want_rows, rtol=1e-4, atol=1e-4)
        leaf(scaled.train()(batch)).sum().backward()
        scaled.eval()
    return scaled


class Body(Module):
    """Two layers that are called by ``run``."""

    def __init__(self, first: Module, second: Module, run: Callable[..., Any]) -> None:
        super().__init__()
        self.a, self.b, self.run = first, second, run

    def forward(self, x: Tensor, edge_index: Tensor, edge_weight: Any = None) -> Any:
        return self.run(self, x, edge_index, edge_weight)


# -- the order of arguments --------------------------------------------------------------------------------------------


class EdgesFirst(MessagePassing):
    def __init__(self) -> None:
        super().__init__("mean")
        self.lin = Linear(C, C)

    def forward(self, edge_index: Tensor, h: Tensor) -> Tensor:
        return (self.lin(h) + self.propagate(edge_index, h=h)).tanh()

    def message(self, h_j: Tensor) -> Tensor:
        return h_j


class WeightsFirst(EdgesFirst):
    def forward(self, weight: Tensor, edge_index: Tensor, feats: Tensor) -> Tensor:
        return (self.lin(feats) + self.propagate(edge_index, h=feats, weight=weight)).tanh()

    def message(self, h_j: Tensor, weight: Tensor) -> Tensor:
        return h_j * weight.view(-1, 1)


class PairSecond(SAGEConv):
    def forward(self, edge_index: Tensor, x: Tensor | OptPairTensor, size: Any = None) -> Tensor:
        return super().forward(x, edge_index, size).tanh()


LAYERS = {
    "edges first": (EdgesFirst, lambda m, x, e, w: m.b(e, m.a(e, x))),
    "by name": (EdgesFirst, lambda m, x, e, w: m.b(h=m.a(edge_index=e, h=x), edge_index=e)),
    "weights first": (WeightsFirst, lambda m, x, e, w: m.b(w, e, m.a(w, e, x))),
    "pair second": (lambda: PairSecond(C, C), lambda m, x, e, w: m.b(e, m.a(e, x))),
}


@pytest.mark.parametrize("ring", [False, True])
@pytest.mark.parametrize("name", LAYERS)
def test_layers_take_their_arguments_in_any_order(name: str, ring: bool) -> None:
    data, (layer, run) = graph(ring), LAYERS[name]
    model = Body(layer(), layer(), run).eval()
    check(model, data, model(data.x, data.edge_index, data.edge_weight))


def test_layers_of_an_explicit_model_as_well() -> None:
    class Net(ScalableGNN):
        def __init__(self) -> None:
            super().__init__(N, C, 2)
            self.convs = torch.nn.ModuleList([PairSecond(C, C), EdgesFirst()])

        def forward(self, x: Tensor, edge_index: Tensor, *ids: Any) -> Tensor:
            x = self.push_and_pull(self.histories[0], self.convs[0](edge_index, x), *ids)
            return self.convs[1](edge_index, x)

    data, model = graph(), Net().eval()
    out = model(loader=EvalSubgraphLoader(data, PTR))
    torch.testing.assert_close(out, model(data.x, data.edge_index), rtol=1e-4, atol=1e-4)


class Swapped(Body):
    def forward(self, edge_index: Tensor, h: Tensor) -> Any:
        return super().forward(h, edge_index)


class OtherName(Body):
    def forward(self, edges: Tensor, x: Tensor) -> Any:
        return super().forward(x, edges)


@pytest.mark.parametrize("cls", [Swapped, OtherName])
def test_models_take_their_arguments_in_any_order(cls: type[Body]) -> None:
    data = graph()
    model = cls(SAGEConv(C, C), SAGEConv(C, C), lambda m, x, e, w: m.b(m.a(x, e).relu(), e)).eval()
    scaled = check(model, data, model(data.edge_index, data.x))
    scaled.histories[0].reset_parameters()
    scaled(data.edge_index, data.x)  # which is known to be the whole graph
    assert (scaled.histories[0].emb != 0).any()


# -- rows of edges -----------------------------------------------------------------------------------------------------


class EdgeStates(MessagePassing):
    """Returns states of edges, alone or beside rows of nodes."""

    def __init__(self, build: Callable[[Tensor, Tensor], Any]) -> None:
        super().__init__()
        self.lin, self.build = Linear(C, C), build

    def forward(self, x: Tensor, edge_index: Tensor) -> Any:
        rows = self.propagate(edge_index, h=self.lin(x))
        return self.build(rows, self.edge_updater(edge_index, x=x))

    def message(self, h_j: Tensor) -> Tensor:
        return h_j

    def edge_update(self, x_i: Tensor, x_j: Tensor) -> Tensor:
        return (x_i * x_j).sum(-1).sigmoid()


class Both(NamedTuple):
    rows: Tensor
    states: Tensor


def add(h: Tensor, edges: Tensor, states: Tensor) -> Tensor:
    return h.index_add(0, edges[1], states.view(-1, 1) * h[edges[0]])


OUTPUTS = {
    "states": (lambda rows, s: s, lambda m, x, e: add(m.b(x, e), e, m.a(m.b(x, e), e))),
    "states first": (lambda rows, s: (s, rows), lambda m, x, e: m.b(add(m.a(x, e)[1], e, m.a(x, e)[0]), e)),
    "states last": (lambda rows, s: (rows, s), lambda m, x, e: m.b(add(m.a(x, e)[0], e, m.a(x, e)[1]), e)),
    "by name": (Both, lambda m, x, e: m.b(add(m.a(x, e).rows, e, m.a(x, e).states), e)),
    "list": (lambda rows, s: [s, rows], lambda m, x, e: m.b(add(m.a(x, e)[1], e, m.a(x, e)[0]), e)),
}


@pytest.mark.parametrize("ring", [False, True])
@pytest.mark.parametrize("name", OUTPUTS)
def test_layers_that_return_states_of_edges(name: str, ring: bool) -> None:
    data, (build, run) = graph(ring), OUTPUTS[name]
    model = Body(EdgeStates(build), SAGEConv(C, C), lambda m, x, e, w: run(m, x, e)).eval()
    check(model, data, model(data.x, data.edge_index), inputs=lambda batch: (batch.x, batch.edge_index))


def test_states_of_edges_before_tables_are_filled() -> None:
    class Counts(MessagePassing):
        def forward(self, x: Tensor, edge_index: Tensor) -> Tensor:
            degree = torch.zeros(x.size(0)).index_add_(0, edge_index[0], torch.ones(edge_index.size(1)))
            return x + self.propagate(edge_index, x=x / (1 + degree.view(-1, 1)))

    data = graph(ring=True)
    model = Body(EdgeStates(lambda rows, s: s), Counts(), lambda m, x, e, w: m.b(add(x, e, m.a(x, e)), e)).eval()
    with torch.no_grad():
        want = model(data.x, data.edge_index)
        scaled = scale(model, data, inputs=lambda batch: (batch.x, batch.edge_index))
        assert len(scaled.tables) == 1
        out = scaled(loader=EvalSubgraphLoader(data, PTR))
    torch.testing.assert_close(out, want, rtol=1e-4, atol=1e-4)


def test_weights_that_are_trained_on_a_ring() -> None:
    data = graph(ring=True)
    data.edge_weight.requires_grad_()

    class Degrees(Module):
        def __init__(self) -> None:
            super().__init__()
            self.conv = GraphConv(C, C)

        def forward(self, x: Tensor, edge_index: Tensor, edge_weight: Tensor) -> Tensor:
            degree = torch.zeros(x.size(0)).index_add(0, edge_index[0], edge_weight)
            return self.conv(x / (1 + degree).view(-1, 1), edge_index)

    with pytest.raises(ValueError, match="edge weights require grad"):
        scale(Degrees(), data)


# -- what inputs picks -------------------------------------------------------------------------------------------------

PICKS = {
    **{f"first {k}": lambda d, k=k: (d.x, d.edge_index[:, :k]) for k in (100, 250, 1000, 1450)},
    **{f"not the first {k}": lambda d, k=k: (d.x, d.edge_index[:, k:]) for k in (5, 250, 1450)},
    "a share": lambda d: (d.x, d.edge_index[:, : d.num_edges // 2]),
    "every other": lambda d: {"x": d.x, "edge_index": d.edge_index[:, ::2]},
    "rows": lambda d: (torch.cat([d.x[:200], 0 * d.x[200:]]), d.edge_index),
    "nodes": lambda d: (d.x * (torch.arange(d.num_nodes) < 100).view(-1, 1), d.edge_index),
}


@pytest.mark.parametrize("name", PICKS)
def test_inputs_that_picks_by_position(name: str) -> None:
    model = Body(SAGEConv(C, C), SAGEConv(C, C), lambda m, x, e, w: m.b(m.a(x, e).relu(), e))
    what = "rows of nodes" if name in ("rows", "nodes") else "edges"
    with pytest.raises(
        ValueError, match=f"inputs takes other {what} from a batch than from the whole graph.*batch.mask"
    ):
        scale(model, graph(), inputs=PICKS[name])


def test_inputs_that_picks_by_ids() -> None:
    ids = torch.randperm(graph().num_edges)[:N]
    model = Body(SAGEConv(C, C), SAGEConv(C, C), lambda m, x, e, w: m.b(m.a(x, e).relu(), e))
    with pytest.raises(ValueError, match=r"scale\(\): inputs fails on a batch \(IndexError.*Store a mask"):
        scale(model, graph(), inputs=lambda d: (d.x, d.edge_index[:, ids]))


@pytest.mark.parametrize("num_nodes", [N, 40])
def test_inputs_that_picks_what_batches_bring_along(num_nodes: int) -> None:
    data = random_graph(num_nodes, 5 * num_nodes)
    data.keep, data.level = torch.rand(data.num_edges) < 0.3, torch.rand(num_nodes, 1)
    model = Body(SAGEConv(C, C), SAGEConv(C, C), lambda m, x, e, w: m.b(m.a(x, e).relu(), e)).eval()
    scaled = scale(model, data, inputs=lambda d: (d.x @ torch.eye(C) * d.level, d.edge_index[:, d.keep]))
    out = scaled(loader=EvalSubgraphLoader(data, torch.tensor([0, 13, 25, num_nodes])))
    torch.testing.assert_close(out, model(data.x * data.level, data.edge_index[:, data.keep]), rtol=1e-4, atol=1e-4)
