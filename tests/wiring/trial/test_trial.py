"""What might fool the trial of scale(): each model is exact on batches, or refused; never something else."""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch_geometric.nn as nn
from graphs import random_graph
from torch import Tensor
from torch.nn import Linear, Module, Parameter
from torch_geometric.data import Data
from torch_geometric.nn import MessagePassing
from torch_geometric.utils import degree

from torch_gas import EvalSubgraphLoader, ScalableGNN, ScaledGNN, SubgraphLoader, permute, scale

N, C = 60, 8
PTR = torch.tensor([0, 17, 41, N])


def graph(**attributes: Any) -> Data:
    data = random_graph(N, 240)
    for name, value in attributes.items():
        data[name] = value
    return data


class Two(Module):
    """Two layers with something of the row-wise kind in between and behind."""

    def __init__(self, between: Callable[..., Any] = lambda h: h, behind: Callable[..., Any] = lambda h, _: h) -> None:
        super().__init__()
        self.a, self.b = nn.SAGEConv(C, C), nn.SAGEConv(C, C)
        self.between, self.behind = between, behind

    def forward(self, x: Tensor, edge_index: Tensor) -> Any:
        return self.behind(self.b(self.between(self.a(x, edge_index).relu()), edge_index), edge_index)


def check(model: Module, data: Data, **kwargs: Any) -> ScaledGNN:
    """Each batch's rows and inference equal the plain model's on the whole graph."""
    scaled = scale(model.eval(), data, **kwargs)
    with torch.no_grad():
        full = scaled(data)
        for batch in SubgraphLoader(data, PTR, neighbors=scaled.found.neighbors):
            torch.testing.assert_close(scaled(batch), full[batch.n_id[: batch.batch_size]], rtol=1e-4, atol=1e-4)
        out = scaled(loader=EvalSubgraphLoader(data, PTR, neighbors=scaled.found.neighbors))
    torch.testing.assert_close(out, full, rtol=1e-4, atol=1e-4)
    return scaled


class Gate(Module):
    def __init__(self) -> None:
        super().__init__()
        self.alpha = Parameter(torch.zeros(1))

    def forward(self, h: Tensor) -> Tensor:
        return h + self.alpha * h.mean(dim=0)


@pytest.mark.parametrize(
    "between",
    [
        Gate(),  # zero at first
        lambda h: torch.cat([h[:, :-1] - h[:, :-1].mean(0), h[:, -1:] * 1e9], dim=1),  # beside a column of other units
    ],
)
def test_pooling_that_hides(between: Any) -> None:
    with pytest.raises(ValueError, match=r"b \(SAGEConv\) gives other rows than on the whole graph"):
        scale(Two(between), graph())


def test_values_of_edges_read_the_halo() -> None:
    data = graph()
    model = Two(behind=lambda h, edges: (h, (h[edges[0]] * h[edges[1]]).sum(-1))).eval()
    scaled = scale(model, data)
    with torch.no_grad():
        full, _ = scaled(data)
        for batch in SubgraphLoader(data, PTR):
            _, scores = scaled(batch)
            src, dst = batch.n_id[batch.data.edge_index]
            torch.testing.assert_close(scores, (full[src] * full[dst]).sum(-1), rtol=1e-4, atol=1e-4)


class TwoOutputs(MessagePassing):
    def forward(self, x: Tensor, edge_index: Tensor) -> tuple[Tensor, Tensor]:
        out = self.propagate(edge_index, x=x)
        return out, out.tanh() * 2

    def message(self, x_j: Tensor) -> Tensor:
        return x_j


@pytest.mark.parametrize("last", [nn.SAGEConv, nn.GCNConv])
def test_a_layer_that_returns_two_tensors_of_nodes(last: Any) -> None:
    class Net(Module):
        def __init__(self) -> None:
            super().__init__()
            self.a, self.b = TwoOutputs(), last(C, C)

        def forward(self, x: Tensor, edge_index: Tensor) -> Tensor:
            left, right = self.a(x, edge_index)
            return self.b(left + right, edge_index)

    check(Net(), graph())


class Counts(Module):
    """Counts neighbours with a property, in forward itself."""

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("factor", torch.ones(1))
        self.conv = nn.SAGEConv(C, C)

    def forward(self, x: Tensor, edge_index: Tensor, known: Tensor) -> Tensor:
        count = torch.zeros(x.size(0)).index_add_(0, edge_index[1], known[edge_index[0]].float() * self.factor)
        return self.conv(x * count.view(-1, 1), edge_index)


def test_what_may_change_is_no_table() -> None:
    model = Counts()
    scaled = check(model, graph(known=torch.arange(N) % 2 == 0))
    assert len(scaled.tables) == 0
    model.factor.fill_(3)
    data = graph(known=torch.arange(N) % 3 == 0)
    scaled.eval()
    with torch.no_grad():
        full = scaled(data)
        for batch in SubgraphLoader(data, PTR):
            torch.testing.assert_close(scaled(batch), full[batch.n_id[: batch.batch_size]], rtol=1e-4, atol=1e-4)


def test_a_layer_that_only_training_reads_on() -> None:
    class Net(Two):
        def forward(self, x: Tensor, edge_index: Tensor) -> Tensor:
            h = self.a(x, edge_index)
            return h + self.b(h if self.training else x, edge_index)

    with pytest.raises(ValueError, match=r"a \(SAGEConv\) is read by further layers in training and not in evaluation"):
        scale(Net(), graph())


@pytest.mark.parametrize(
    "wrap", [torch.nn.utils.parametrizations.spectral_norm, torch.nn.utils.parametrizations.weight_norm]
)
def test_parametrizations(wrap: Any) -> None:
    model = Two()
    for conv in (model.a, model.b):
        wrap(conv.lin_l)
    check(model, graph())


# -- arguments and tables ----------------------------------------------------------------------------------------------


def test_a_call_with_other_arguments_than_the_trial() -> None:
    weighted, plain = graph(edge_weight=1 + torch.rand(graph().num_edges)), graph()
    batch, *ids = next(iter(SubgraphLoader(weighted, PTR)))
    with pytest.raises(
        ValueError, match="with edge_index, edge_weight, x, but is called with edge_index, x, which is another function"
    ):
        scale(nn.GCN(C, C, 2), weighted)(batch.x, batch.edge_index, *ids)
    scaled = scale(nn.GCN(C, C, 2), plain)
    with pytest.raises(ValueError, match="with edge_index, x, but is called with edge_index, edge_weight, x"):
        scaled(batch.x, batch.edge_index, *ids, edge_weight=batch.edge_weight)
    scale(nn.GCN(C, C, 2), weighted, inputs=lambda b: (b.x, b.edge_index))(batch.x, batch.edge_index, *ids)


class Weighted(Module):
    def __init__(self) -> None:
        super().__init__()
        self.a, self.b = nn.GraphConv(C, C), nn.GraphConv(C, C)

    def forward(
        self, x: Tensor, edge_index: Tensor, edge_weight: Any = None, extra: Any = None, times: float = 1
    ) -> Tensor:
        return self.b(self.a(x, edge_index, edge_weight).relu(), edge_index, edge_weight) * times


def test_one_function_is_trained_and_inferred() -> None:
    data = graph(edge_weight=torch.rand(graph().num_edges), extra=torch.rand(N))
    batch, *ids = next(iter(SubgraphLoader(data, PTR)))
    loader = EvalSubgraphLoader(data, PTR)
    scaled = scale(Weighted(), data)
    assert not scaled.tables and scaled.found.ignored == {"extra"}
    other = "but is called with .*, which is another function than"
    early = scale(Weighted(), num_nodes=N).eval()
    early(loader=loader)
    for call in (
        lambda: scaled(batch.x, batch.edge_index, *ids),
        lambda: scaled(data.x, data.edge_index),
        lambda: early.train()(batch.x, batch.edge_index, *ids),
    ):
        with pytest.raises(ValueError, match=other):
            call()
    scaled(batch.x, batch.edge_index, batch.edge_weight, *ids)  # and not what makes no difference
    scaled(batch.x, batch.edge_index, batch.edge_weight, *ids, times=2.0)
    late = scale(Weighted(), num_nodes=N)
    late(batch.x, batch.edge_index, *ids)
    with pytest.raises(ValueError, match=other):
        late.eval()(loader=loader)


class OutDegree(MessagePassing):
    def __init__(self) -> None:
        super().__init__()
        self.lin = Linear(C, C)

    def forward(self, x: Tensor, edge_index: Tensor) -> Tensor:
        x = self.lin(x) / degree(edge_index[0], x.size(0)).clamp(min=1).view(-1, 1)
        return x + self.propagate(edge_index, x=x)

    def message(self, x_j: Tensor) -> Tensor:
        return x_j


class OfOutDegree(Module):
    def __init__(self) -> None:
        super().__init__()
        self.conv = OutDegree()

    def forward(self, x: Tensor, edge_index: Tensor) -> Tensor:
        return self.conv(x, edge_index)


@pytest.mark.parametrize("make", [OfOutDegree, lambda: nn.GCN(C, C, 2)])
def test_a_loader_of_another_graph(make: Callable[[], Module]) -> None:
    data = graph()
    check(make(), data)
    other = copy.copy(data)
    other.edge_index = (data.edge_index + 7) % N
    with pytest.raises(ValueError, match="the batch counts other edges or weights than the graph that scale"):
        scale(make(), data)(next(iter(SubgraphLoader(other, PTR))))


def test_edges_that_went_after_the_first_batch() -> None:
    data = graph()
    scaled = scale(nn.GCN(C, C, 2), data).eval()
    scaled(next(iter(SubgraphLoader(data, PTR))))
    fewer = copy.copy(data)
    fewer.edge_index = data.edge_index[:, : data.num_edges // 2]
    with pytest.raises(ValueError, match=r"embeddings of another graph.*they differ in edges"):
        scaled(next(iter(SubgraphLoader(fewer, PTR))))


def test_edge_weights_that_are_trained() -> None:
    data = graph(edge_weight=torch.rand(graph().num_edges, requires_grad=True))
    with pytest.raises(ValueError, match="GCN: edge weights require grad, but what the model counts"):
        scale(nn.GCN(C, C, 2), data)
    data.edge_weight = data.edge_weight.detach()
    batch, *ids = next(iter(SubgraphLoader(data, PTR)))
    with pytest.raises(ValueError, match="GCN: edge weights require grad"):
        scale(nn.GCN(C, C, 2), data)(batch.x, batch.edge_index, batch.edge_weight.requires_grad_(), *ids)


def test_features_that_are_not_finite() -> None:
    data = graph()
    data.x[:, 3] = torch.nan
    with pytest.raises(
        ValueError, match="GCN gives NaN or infinity on a small graph with rows of data; check that data"
    ):
        scale(nn.GCN(C, C, 2), data)


# -- what the trial leaves behind --------------------------------------------------------------------------------------


def test_caches_and_counters_of_a_model() -> None:
    class Net(Two):
        def __init__(self) -> None:
            super().__init__()
            self.norm: Tensor | None = None
            self.steps, self.log = 0, ["made"]
            self.seen = {"made": self.log}

        def forward(self, x: Tensor, edge_index: Tensor) -> Tensor:
            if self.norm is None:
                self.norm = degree(edge_index[1], x.size(0))
            self.steps += 1
            self.log.append("called")
            self.last = x
            return super().forward(x, edge_index)

    model = Net()
    log = model.log
    scale(model, graph())
    assert model.norm is None and model.steps == 0 and not hasattr(model, "last")
    assert model.log is log and log == ["made"] and model.seen == {"made": log}


def test_lazy_parameters_follow_the_seed_of_the_user() -> None:
    weights = []
    for seed in (0, 1, 1):
        torch.manual_seed(seed)
        model = nn.GraphSAGE(-1, C, 2)
        scale(model, graph())
        weights.append(model.convs[0].lin_l.weight.detach().clone())
    assert not torch.equal(weights[0], weights[1]) and torch.equal(weights[1], weights[2])


def test_attributes_are_set_where_they_are_read() -> None:
    model = nn.GCN(C, C, 2)
    scaled = scale(model, graph())
    scaled.some_number = 3
    scaled.supports_edge_weight = False
    assert not hasattr(model, "some_number") and scaled.some_number == 3
    assert model.supports_edge_weight is False and scaled.supports_edge_weight is False


def test_a_state_with_histories_before_the_first_batch() -> None:
    state = scale(nn.GraphSAGE(C, C, 2), graph()).state_dict()
    with pytest.raises(RuntimeError, match="this scaled model has none yet; give scale"):
        scale(nn.GraphSAGE(C, C, 2), num_nodes=N).load_state_dict(state)


def test_errors_name_the_plain_model() -> None:
    data = graph()
    scaled = scale(nn.GraphSAGE(C, C, 2), data)
    batch, batch_size, n_id, offset, count = next(iter(SubgraphLoader(data, PTR)))
    with pytest.raises(ValueError, match=f"GraphSAGE: x has {n_id.numel() - 1} rows, but n_id has {n_id.numel()}"):
        scaled(batch.x[:-1], batch.edge_index, batch_size, n_id, offset, count)


def test_arguments_in_any_order() -> None:
    class Net(Two):
        def forward(self, edge_index: Tensor, edge_weight: Tensor, x: Tensor) -> Tensor:
            return super().forward(x, edge_index) * (1 + 0 * edge_weight.sum())

    check(Net(), graph(edge_weight=torch.rand(graph().num_edges)))


# -- what depends on values --------------------------------------------------------------------------------------------


class Chosen(Module):
    """Reads edges into nodes of a high degree only, of which the small graph has none."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b = nn.SAGEConv(C, C), nn.SAGEConv(C, C)

    def forward(self, x: Tensor, edge_index: Tensor) -> Tensor:
        h = self.a(x, edge_index).relu()
        chosen = degree(edge_index[1], x.size(0))[edge_index[1]] > 12
        return self.b(h, edge_index[:, chosen])


def test_edges_that_are_chosen_by_values() -> None:
    data = graph()
    hub = torch.stack([torch.arange(N), torch.full((N,), 20)])
    data.edge_index = torch.cat([data.edge_index, hub], dim=1)
    scaled = check(Chosen(), data)
    assert len(scaled.histories) == 1


# -- slips -------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("make", [lambda: scale(nn.GraphSAGE(C, C, 2), graph()), lambda: Explicit()])
def test_a_batch_without_its_ids(make: Callable[[], Any]) -> None:
    model = make()
    for loader in (SubgraphLoader(graph(), PTR), SubgraphLoader(graph(), PTR, num_workers=1)):
        batch, *_ = next(iter(loader))
        with pytest.raises(
            ValueError, match=r"rows, but the graph of this model has .* If this is a batch, pass its ids"
        ):
            model.train()(batch.x * 1, batch.edge_index)
    if isinstance(model.eval(), ScaledGNN):
        with pytest.raises(ValueError, match="GraphSAGE was called with rows of a batch and without its ids"):
            model(batch)


class Explicit(ScalableGNN):
    def __init__(self) -> None:
        super().__init__(N, C, num_layers=1)
        self.conv = nn.SAGEConv(C, C)

    def forward(self, x: Tensor, edge_index: Tensor, *ids: Any) -> Tensor:
        return self.conv(x, edge_index)


def test_a_loader_of_another_order() -> None:
    data = graph()
    ordered = permute(data, torch.randperm(N), log=False)
    batch = next(iter(SubgraphLoader(permute(data, torch.arange(N), log=False), PTR)))
    with pytest.raises(ValueError, match=r"GraphSAGE: the loader's graph is in another order .*data.perm differs"):
        scale(nn.GraphSAGE(C, C, 2), ordered)(batch)
    scale(nn.GraphSAGE(C, C, 2), ordered)(next(iter(SubgraphLoader(ordered, PTR))))


def test_arguments_that_cannot_be_found() -> None:
    class Star(Two):
        def forward(self, *args: Any) -> Tensor:
            return super().forward(*args)

    with pytest.raises(
        ValueError, match=r"Star.forward does not name what it takes; say it: scale\(model, data, inputs="
    ):
        scale(Star(), graph())
    check(Star(), graph(), inputs=lambda batch: (batch.x, batch.edge_index))

    class TwoGraphs(Two):
        def forward(self, x: Tensor, edge_index: Tensor, neg_edge_index: Tensor) -> Tensor:
            return super().forward(x, edge_index) - super().forward(x, neg_edge_index)

    with pytest.raises(
        ValueError, match=r"takes data.neg_edge_index beside data.edge_index, and a batch is made of one"
    ):
        scale(TwoGraphs(), graph(neg_edge_index=graph().edge_index.flip(0)))
    with pytest.raises(ValueError, match="data has neither x nor num_nodes"):
        scale(Two(), Data(edge_index=graph().edge_index))
