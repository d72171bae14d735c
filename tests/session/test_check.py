"""check(): a model wired by hand is tried out, and an error names what a batch gets wrong."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from graphs import FORMATS, random_graph, to_format
from nets import Net, assert_same, tables
from torch import Tensor, nn
from torch.nn import Module
from torch_geometric.nn import GCNConv, GraphConv, GraphSAGE, MessagePassing, SAGEConv

from torch_gas import check, gcn_norm, models, scale

N = 80


class OverAllEdges(SAGEConv):
    """Attention whose softmax runs over all edges it is given, and not over those into a node."""

    def message(self, x_j: Tensor) -> Tensor:
        return torch.softmax(x_j.mean(dim=1), dim=0)[:, None] * x_j


class TwoHops(MessagePassing):
    def __init__(self, in_channels: int, out_channels: int) -> None:
        super().__init__()
        self.lin = nn.Linear(in_channels, out_channels)

    def forward(self, x: Tensor, edge_index: Tensor) -> Tensor:
        x = self.propagate(edge_index, x=x)
        return self.lin(self.propagate(edge_index, x=x))


class Centred(Net):
    """Rows are centred by the mean of those that the call happens to hold."""

    def forward(self, x: Tensor, adj: Any, *args: Any) -> Tensor:
        x = self.push_and_pull(self.histories[0], self.convs[0](x, adj), *args)
        x = self.convs[1](x, adj)
        x = self.push_and_pull(self.histories[1], x - x.mean(dim=0), *args)
        return self.convs[2](x, adj)


class Forgetful(Net):
    """One exchange is missing."""

    def forward(self, x: Tensor, adj: Any, *args: Any) -> Tensor:
        x = self.push_and_pull(self.histories[0], self.convs[0](x, adj), *args)
        return self.convs[2](self.convs[1](x, adj), adj)


class Shifted(Net):
    """What comes behind the last layer depends on the batch."""

    def forward(self, x: Tensor, adj: Any, *args: Any) -> Tensor:
        out = super().forward(x, adj, *args)
        return out - out.max()


class Gated(Net):
    """The wrong layer is behind a gate that is shut at first."""

    def __init__(self, num_nodes: int) -> None:
        super().__init__(num_nodes)
        self.gate = nn.Parameter(torch.zeros(1))
        self.wrong = OverAllEdges(8, 16)

    def forward(self, x: Tensor, adj: Any, *args: Any) -> Tensor:
        h = self.convs[0](x, adj) + self.gate * self.wrong(x, adj)
        h = self.push_and_pull(self.histories[0], h, *args)
        h = self.push_and_pull(self.histories[1], self.convs[1](h, adj), *args)
        return self.convs[2](h, adj)


@pytest.fixture
def data() -> Any:
    return random_graph(N, 300)


WRONG = {
    "over all edges": (lambda: Net(N, conv=OverAllEdges), r"convs\.0 \(OverAllEdges\) gives other rows"),
    "two hops": (lambda: Net(N, conv=TwoHops), r"convs\.0 \(TwoHops\) gives other rows"),
    "between layers": (lambda: Centred(N), "push_and_pull number 2 is given other rows than on the whole graph"),
    "no exchange": (lambda: Forgetful(N), r"SAGEConv was called with x of \d+ rows .* call x = self.push_and_pull"),
    "behind the last layer": (lambda: Shifted(N), "the output of Shifted gives other rows"),
    "behind a gate": (lambda: Gated(N), r"wrong \(OverAllEdges\) gives other rows"),
    "by name": (lambda: Net(N, conv=GCNConv), "^GCNConv cannot be used on a batch: it normalises by degrees"),
}


@pytest.mark.parametrize("name", WRONG)
def test_what_batches_get_wrong_is_named(data: Any, name: str) -> None:
    make, match = WRONG[name]
    with pytest.raises(ValueError, match=match):
        check(make(), data)


@pytest.mark.parametrize("name", ["SAGE", "GCN", "GAT", "APPNP", "GCN2", "GIN", "PNA"])
def test_models_of_the_package_pass(data: Any, name: str) -> None:
    more = {"APPNP": {"alpha": 0.1}, "GCN2": {"alpha": 0.1, "theta": 0.5}, "GAT": {"hidden_heads": 2, "out_heads": 1}}
    if name == "PNA":
        more["PNA"] = {"aggregators": ["mean", "max"], "scalers": ["identity"], "deg": torch.ones(N)}
    if name in ("GCN", "APPNP", "GCN2"):
        data = gcn_norm(data)
    check(getattr(models, name)(N, 8, 16, out_channels=3, num_layers=3, **more.get(name, {})), data)


def test_models_that_are_scaled_or_are_to_be(data: Any) -> None:
    check(GraphSAGE(8, 16, 3, 3), data)
    model = scale(GraphSAGE(8, 16, 3, 3), data)
    check(model, data)
    model.convs[1] = OverAllEdges(16, 16)
    with pytest.raises(ValueError, match=r"convs\.1 \(OverAllEdges\) gives other rows"):
        check(model, data)


@pytest.mark.parametrize("make", [lambda: Net(N, dropout=0.5).train(), lambda: Centred(N).train()])
def test_the_model_is_left_as_it_was(data: Any, make: Any) -> None:
    model = make()
    model(data.x, data.edge_index)
    before, held = torch.get_rng_state(), tables(model)
    pointers = [parameter.data_ptr() for parameter in model.parameters()]
    try:
        check(model, data)
    except ValueError:
        assert isinstance(model, Centred)
    assert model.training and torch.equal(torch.get_rng_state(), before)
    assert [parameter.data_ptr() for parameter in model.parameters()] == pointers
    assert_same(tables(model), held)


def test_a_compiled_model_is_run_as_it_was_written(data: Any) -> None:
    def backend(graph: Any, inputs: Any) -> Any:
        raise AssertionError("compiled")

    model = Net(N)
    model.compile(backend=backend)
    check(model, data)


@pytest.mark.parametrize("fmt", FORMATS)
def test_any_format(fmt: str, data: Any) -> None:
    data = to_format(data, fmt)
    check(Net(N), data)
    with pytest.raises(ValueError, match="push_and_pull number 2 is given other rows"):
        check(Centred(N), data)


def test_layers_without_a_size(data: Any) -> None:
    with pytest.raises(ValueError, match=r"has layers without a size \(in_channels=-1\)"):
        check(Net(N, conv=lambda _, out: SAGEConv(-1, out)), data)


def test_a_model_that_fails_anywhere(data: Any) -> None:
    with pytest.raises(
        ValueError, match=r"check\(\): Net fails on a graph of 61 nodes with rows of data \(RuntimeError"
    ):
        check(Net(N, conv=lambda _, out: SAGEConv(5, out)), data)


def test_what_was_found_is_a_table(data: Any) -> None:
    print_of = str(scale(GraphSAGE(8, 16, 3, 3), data).found)
    assert [line.split() for line in print_of.splitlines()] == [
        ["neighbors='in'"],
        ["what", "width", "behind"],
        ["history", "0", "16", "convs.0,", "relu"],
        ["history", "1", "16", "convs.1,", "relu"],
    ]


class Sized(Module):
    def __init__(self, most: int) -> None:
        super().__init__()
        self.conv, self.most = SAGEConv(8, 3), most

    def forward(self, x: Tensor, edge_index: Tensor) -> Tensor:
        return self.conv(x, edge_index) * (2 if x.size(0) > self.most else 1)


class SizedNet(Net):
    most = 0

    def forward(self, x: Tensor, adj: Any, *args: Any) -> Tensor:
        return super().forward(x, adj, *args) * (2 if x.size(0) > self.most else 1)


@pytest.mark.parametrize(("nodes", "most"), [(90, 70), (90, 89), (3000, 1000), (3000, 2047)])
def test_a_model_that_goes_by_the_number_of_nodes(nodes: int, most: int) -> None:
    data, net = random_graph(nodes, 4 * nodes, num_features=8), SizedNet(nodes)
    net.most = most
    message = (
        r"gives a node other rows where the graph has more nodes, .* on 61 and on \d+ nodes.*goes by the number of rows"
    )
    for run in (lambda: check(net, data), lambda: scale(Sized(most), data), lambda: check(Sized(most), data)):
        with pytest.raises(ValueError, match=message):
            run()
    net.most = nodes
    check(net, data)
    scale(Sized(nodes), data)


def test_states_of_edges_are_not_compared_as_rows_of_nodes() -> None:
    class States(MessagePassing):
        def forward(self, x: Tensor, edge_index: Tensor) -> Tensor:
            return (x[edge_index[0]] - x[edge_index[1]]).sum(dim=1)

    class Stateful(Net):
        def __init__(self, num_nodes: int) -> None:
            super().__init__(num_nodes, num_layers=2, conv=GraphConv)
            self.states = States()

        def forward(self, x: Tensor, adj: Any, *args: Any) -> Tensor:
            h = self.convs[0](x, adj, self.states(x, adj))
            return self.convs[1](self.push_and_pull(self.histories[0], h, *args), adj)

    check(Stateful(90), random_graph(90, 360, num_features=8))
