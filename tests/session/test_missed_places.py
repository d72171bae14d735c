"""Calls that leave layers or exchanges out: each is an error, but for layers that training skips at random."""

from __future__ import annotations

import random
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from graphs import random_graph
from nets import Net, assert_same, tables
from torch import Tensor
from torch.nn import Module
from torch_geometric.data import Data
from torch_geometric.nn import GCNConv, GraphSizeNorm, MessagePassing, PairNorm, SAGEConv, SimpleConv

from torch_gas import EvalSubgraphLoader, ScalableGNN, SubgraphLoader, scale
from torch_gas.extensions.refresh import BeforeTraining, Sweep

N, C = 60, 8
PTR = torch.tensor([0, 17, 41, N])


def graph() -> Data:
    """No edges go into the last part, and edges of kind 1 into the first one only."""
    data = random_graph(N, 300)
    data.edge_index = data.edge_index[:, data.edge_index[1] < 41]
    data.edge_type = (data.edge_index[1] < 17).long()
    return data


class Two(Module):
    """Two layers; ``steps`` has the ways to go through them."""

    def __init__(self, way: Callable[..., Tensor], layer: Callable[[], Module] = lambda: SAGEConv(C, C)) -> None:
        super().__init__()
        self.a, self.b, self.way = layer(), layer(), way

    def forward(self, x: Tensor, edge_index: Tensor, edge_type: Tensor) -> Tensor:
        return self.way(self, x, edge_index, edge_type)


def returns_early(model: Any, x: Tensor, edges: Tensor, kinds: Tensor) -> Tensor:
    return torch.zeros_like(x) if edges.numel() == 0 else model.b(model.a(x, edges).relu(), edges)


def skips_the_last_layer(model: Any, x: Tensor, edges: Tensor, kinds: Tensor) -> Tensor:
    h = model.a(x, edges).relu()
    return model.b(h, edges) if edges.size(1) > 0 else h


def only_kinds_that_are_there(model: Any, x: Tensor, edges: Tensor, kinds: Tensor) -> Tensor:
    for kind in kinds.unique().tolist():
        x = x + (model.a, model.b)[kind](x, edges[:, kinds == kind])
    return x


def jumps(model: Any, x: Tensor, edges: Tensor, kinds: Tensor) -> Tensor:
    h = model.a(x, edges)
    try:
        return model.b(h + kinds.max(), edges)
    except RuntimeError:  # of no edges
        return h


WAYS = [returns_early, skips_the_last_layer, only_kinds_that_are_there, jumps]


@pytest.mark.parametrize("way", WAYS)
def test_a_batch_that_leaves_layers_out(way: Callable[..., Tensor]) -> None:
    data = graph()
    scaled = scale(Two(way).eval(), data)
    message = r"Two: on a batch of \d+ nodes, forward returned without (a|b|a and b), .*Call each layer in each call"
    with pytest.raises(RuntimeError, match=message):
        scaled(loader=EvalSubgraphLoader(data, PTR))
    with pytest.raises(RuntimeError, match=message):
        list(map(scaled, EvalSubgraphLoader(data, PTR)))
    with pytest.raises(RuntimeError, match=message):
        list(map(scaled.train(), SubgraphLoader(data, PTR)))
    with pytest.raises(RuntimeError, match=message):
        BeforeTraining(Sweep()).bind(scaled, EvalSubgraphLoader(data, PTR)).before_training()


@pytest.mark.parametrize("draw", [lambda: float(torch.rand(())), random.random, np.random.rand])
def test_layers_that_training_skips_at_random(draw: Callable[[], float]) -> None:
    def way(model: Any, x: Tensor, edges: Tensor, kinds: Tensor) -> Tensor:
        for layer in (model.a, model.b):
            if not (model.training or sloppy) or draw() < 0.3:
                x = x + layer(x, edges)
        return x

    data, sloppy = graph(), False
    runs = []
    for met in (False, True):  # whether it is known beforehand which layers are skipped
        for seed in (random.seed, np.random.seed, torch.manual_seed):
            seed(0)
        scaled = scale(Two(way), data)
        scaled._at_random = scaled.found.called[1] if met else frozenset()
        for _ in range(5):
            for batch in SubgraphLoader(data, PTR):
                scaled(batch).sum()
        runs.append(tables(scaled))
        assert len(scaled._at_random) == 2 and scaled.histories[0].age.unique().numel() > 1
        scaled.eval()(loader=EvalSubgraphLoader(data, PTR))
        sloppy = True
        with pytest.raises(RuntimeError, match="forward returned without"):
            [scaled(batch) for _ in range(5) for batch in SubgraphLoader(data, PTR)]
        sloppy = False
    assert_same(*runs)  # looking for the reason has left random numbers and modules alone


def test_a_layer_that_only_evaluation_calls() -> None:
    def way(model: Any, x: Tensor, edges: Tensor, kinds: Tensor) -> Tensor:
        x = model.a(x, edges)
        return x if model.training else model.b(x, edges)

    data = graph()
    scaled = scale(Two(way), data)
    for batch in SubgraphLoader(data, PTR):
        scaled(batch).sum().backward()
    scaled.eval()(loader=EvalSubgraphLoader(data, PTR))


@pytest.mark.parametrize("caught", [Exception, BaseException])
def test_exceptions_that_are_caught_around_a_layer(caught: type[BaseException]) -> None:
    def way(model: Any, x: Tensor, edges: Tensor, kinds: Tensor) -> Tensor:
        try:
            h = model.a(x, edges)
        except caught:
            h = x
        return model.b(h, edges)

    data = graph()
    model = Two(way).eval()
    scaled = scale(model, data)
    if caught is Exception:
        out = scaled(loader=EvalSubgraphLoader(data, PTR))
        torch.testing.assert_close(out, model(data.x, data.edge_index, data.edge_type), rtol=1e-4, atol=1e-5)
    else:
        with pytest.raises(RuntimeError, match=r"forward returned without a,.*an exception is caught"):
            scaled(loader=EvalSubgraphLoader(data, PTR))


class OutDegrees(MessagePassing):
    def forward(self, x: Tensor, edge_index: Tensor) -> Tensor:
        count = torch.zeros(x.size(0)).index_add_(0, edge_index[0], torch.ones(edge_index.size(1)))
        return x + self.propagate(edge_index, x=x / (1 + count.view(-1, 1)))


def test_counts_of_the_whole_graph(monkeypatch: pytest.MonkeyPatch) -> None:
    data = graph()
    monkeypatch.setattr("torch_gas.wiring.trial.structure._EDGES", 40)  # so that tables are filled batch by batch
    with pytest.raises(ValueError, match=r"forward returned without a reduction over edges in a "):
        scale(Two(returns_early, OutDegrees), data)


# -- explicit wiring ---------------------------------------------------------------------------------------------------


class Guarded(Net):
    def forward(self, x: Tensor, adj: Any, *ids: Any) -> Tensor:
        if adj.size(1) == 0:
            return x.new_zeros(ids[0], 3)
        return super().forward(x, adj, *ids)


class Unlucky(Net):
    def forward(self, x: Tensor, adj: Any, *ids: Any) -> Tensor:
        for conv, history in zip(self.convs, self.histories, strict=False):
            if not self.training or float(torch.rand(())) < 0.5:
                x = self.push_and_pull(history, conv(x, adj).relu(), *ids)
        return self.convs[-1](x, adj)


class Rescued(Net):
    def forward(self, x: Tensor, adj: Any, *ids: Any) -> Tensor:
        h = self.convs[0](x, adj)
        try:
            h = self.push_and_pull(self.histories[0], h / adj[1].max(), *ids)
        except RuntimeError:
            h = x.new_zeros(x.size(0), 16)
        return self.convs[1](h, adj)


def test_histories_that_are_left_out() -> None:
    data = graph()
    for model in (Guarded(N), Rescued(N, num_layers=2)):
        with pytest.raises(RuntimeError, match=r"forward returned without push_and_pull on histories 0.*in each call"):
            model.eval()(loader=EvalSubgraphLoader(data, PTR))
        with pytest.raises(RuntimeError, match=r"without push_and_pull"):
            list(map(model.train(), SubgraphLoader(data, PTR)))
    torch.manual_seed(0)
    with pytest.raises(
        RuntimeError, match=r"Unlucky: .* without push_and_pull on histories .*a layer is skipped at random"
    ):
        list(map(Unlucky(N, [8, 8]), SubgraphLoader(data, PTR)))
    model = Net(N, 3, num_layers=4)
    model.convs = model.convs[:2]
    with pytest.raises(RuntimeError, match=r"histories 2 of 3, .* num_layers counts one more"):
        model(data.x, data.edge_index)


Way = Callable[..., Tensor]


class Steps(ScalableGNN):
    """Two layers, with a history between them; ``way`` goes from the second one's input to the output."""

    def __init__(self, way: Way, **options: Any) -> None:
        super().__init__(N, C, 2)
        self.a, self.b, self.way, self.options = SAGEConv(C, C), SAGEConv(C, C), way, options

    def forward(self, x: Tensor, adj: Tensor, *ids: Any, **options: Any) -> Tensor:
        h = self.push_and_pull(self.histories[0], self.a(x, adj).relu(), *ids)
        out: Tensor = self.way(self, h, adj, **self.options, **options)
        return out[: ids[0]] if ids and ids[0] is not None else out


def unless_empty(model: Any, h: Tensor, adj: Tensor) -> Tensor:
    return model.b(h, adj) if adj.numel() > 0 else h


def when_large(model: Any, h: Tensor, adj: Tensor) -> Tensor:
    h = model.b(h, adj)
    return model.b(torch.cat([h, h.new_zeros(adj.max() + 1 - len(h), C)]), adj) if len(h) > 20 else h


def when_rows_are_large(model: Any, h: Tensor, adj: Tensor) -> Tensor:
    return model.b(h, adj) if len(h) == N or int(adj[1].numel()) > 100 else h


@pytest.mark.parametrize("way", [unless_empty, when_large, when_rows_are_large])
@pytest.mark.parametrize("number", [0, 1, 2])  # whether the batch that leaves the layer out comes first
def test_layers_behind_the_last_history(way: Way, number: int) -> None:
    data = graph()
    batches = list(SubgraphLoader(data, PTR))
    batches = batches[number:] + batches[:number]
    message = r"Steps: on a batch of \d+ nodes, forward called b more or less often than on others of the epoch"
    for training in (True, False):
        with pytest.raises(RuntimeError, match=message):
            list(map(Steps(way).train(training), batches))
    with pytest.raises(RuntimeError, match=message):
        Steps(way).eval()(loader=EvalSubgraphLoader(data, PTR))


def test_a_model_without_histories() -> None:
    class Single(ScalableGNN):
        def __init__(self) -> None:
            super().__init__(N, C, 1)
            self.conv = SAGEConv(C, C)

        def forward(self, x: Tensor, adj: Tensor, batch_size: Any, *ids: Any) -> Tensor:
            return self.conv(x, adj) if adj.numel() > 0 else x[:batch_size]

    with pytest.raises(RuntimeError, match=r"Single: on a batch of \d+ nodes, forward called conv more or less often"):
        Single().eval()(loader=EvalSubgraphLoader(graph(), PTR))


def test_layers_that_an_explicit_model_skips_at_random() -> None:
    def way(model: Any, h: Tensor, adj: Tensor) -> Tensor:
        return model.b(h, adj) if not model.training or float(torch.rand(())) < 0.3 else h

    data, runs = graph(), []
    for known in (set[str](), {"b"}):
        torch.manual_seed(0)
        model = Steps(way)
        model._session.met._at_random = known
        for _ in range(5):
            for batch in SubgraphLoader(data, PTR):
                model(batch).sum()
        assert model._session.met._at_random == {"b"}
        runs.append({**tables(model), "drawn": torch.rand(3)})
        model.eval()(loader=EvalSubgraphLoader(data, PTR))
    assert_same(*runs)  # looking for the reason has left random numbers and histories alone


def test_options_that_choose_layers() -> None:
    def way(model: Any, h: Tensor, adj: Tensor, inner: bool = False) -> Tensor:
        return h if inner else model.b(h, adj)

    model = Steps(way).eval()
    list(map(model, SubgraphLoader(graph(), PTR)))
    for batch in SubgraphLoader(graph(), PTR):
        assert not torch.equal(model(batch), model(batch, inner=True))
    for inner in (True, False):  # from one epoch to the next
        model.options = {"inner": inner}
        list(map(model, SubgraphLoader(graph(), PTR, shuffle=True)))


@pytest.mark.parametrize("lost", [lambda model: SimpleConv(), lambda model: model.options["layers"][0]])
def test_layers_that_are_no_modules_of_the_model(lost: Callable[[Any], Module]) -> None:
    def way(model: Any, h: Tensor, adj: Tensor, layers: Any = None) -> Tensor:
        return lost(model)(model.b(h, adj), adj)

    data, batch = graph(), next(iter(SubgraphLoader(graph(), PTR)))
    model = Steps(way, layers=[GCNConv(C, C)])
    model.eval()(data.x, data.edge_index)
    for training in (True, False):
        with pytest.raises(
            ValueError, match=r"Steps: forward calls a (SimpleConv|GCNConv) that is none of .*make it in __init__"
        ):
            model.train(training)(batch)
    assert torch.nn.modules.module._global_forward_pre_hooks == {}


def test_norms_that_are_no_modules_of_the_model() -> None:
    batch = next(iter(SubgraphLoader(graph(), PTR)))
    with pytest.raises(ValueError, match="PairNorm cannot be used on a batch"):
        Steps(lambda model, h, adj: PairNorm()(model.b(h, adj)))(batch)
    with pytest.raises(ValueError, match="Steps: forward calls a GraphSizeNorm that is none of the model's modules"):
        Steps(lambda model, h, adj: GraphSizeNorm()(model.b(h, adj)))(batch)


def test_ids_that_forward_does_not_pass_on() -> None:
    class Forgets(Net):
        def forward(self, x: Tensor, adj: Any, *ids: Any) -> Tensor:
            return self.push_and_pull(self.histories[0], x)[: ids[0]]

    batch = next(iter(SubgraphLoader(graph(), PTR)))
    with pytest.raises(ValueError, match=r"forward runs on a batch and did not pass its ids on"):
        Forgets(N, 8, num_layers=2)(batch)


@pytest.mark.parametrize("other", [lambda rows: rows[:1], lambda rows: rows.sum(), lambda rows: (rows, rows)])
def test_outputs_that_differ_between_batches(other: Callable[[Tensor], Any]) -> None:
    class Changing(Net):
        def forward(self, x: Tensor, adj: Any, *ids: Any) -> Any:
            rows = super().forward(x, adj, *ids)
            return other(rows) if adj.size(1) == 0 else rows

    with pytest.raises(ValueError, match=r"inference over a loader: forward returned .* on a batch of 19 nodes"):
        Changing(N).eval()(loader=EvalSubgraphLoader(graph(), PTR))
