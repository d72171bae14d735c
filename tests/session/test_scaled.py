"""How a scaled model is called, trained, saved and copied."""

from __future__ import annotations

import copy
import io
import pickle
from typing import Any

import pytest
import torch
import torch.nn.functional as F
import torch_geometric.nn as nn
from graphs import FORMATS, adjacency, random_graph, to_format
from nets import assert_same, batch_rows, tables
from plain_models import GCNII, OUT, C, H, LayerDrop, TakesData, layered
from torch import Tensor
from torch.nn import Module
from torch_geometric.data import Data

from torch_gas import EvalSubgraphLoader, ScaledGNN, SubgraphLoader, scale

N = 60
PTR = torch.tensor([0, 14, 37, N])


def graph(fmt: str = "edge_index", seed: int = 1, num_nodes: int = N) -> Data:
    data = random_graph(num_nodes, 4 * num_nodes, seed=seed)
    data.edge_weight = 0.5 + torch.rand(data.num_edges, generator=torch.Generator().manual_seed(3))
    return to_format(data, fmt)


def gcn(**kwargs: Any) -> nn.GCN:
    torch.manual_seed(0)
    return nn.GCN(C, H, 3, OUT, **kwargs)


def exact(model: Module, data: Data) -> tuple[ScaledGNN, Tensor]:
    """The model, scaled and with fresh histories, and its rows of the whole graph."""
    scaled = scale(model.eval(), data)
    with torch.no_grad():
        return scaled, scaled(data)


def close(left: Tensor, right: Tensor) -> None:
    torch.testing.assert_close(left, right, rtol=1e-4, atol=1e-5)


# -- calls -------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("fmt", FORMATS)
def test_ways_to_call_with_a_batch(fmt: str) -> None:
    data = graph(fmt)
    scaled, full = exact(gcn(), data)
    for batch, *ids in SubgraphLoader(data, PTR):
        want, adj = full[ids[1][: ids[0]]], adjacency(batch)
        names = dict(zip(("batch_size", "n_id", "offset", "count"), ids, strict=True))
        if "edge_weight" in data:
            weight = batch.edge_weight
            close(scaled(batch.x, adj, weight, *ids), want)
            close(scaled(batch.x, adj, *ids, edge_weight=weight), want)
            close(scaled(batch.x, adj, edge_weight=weight, **names), want)
            close(scaled(x=batch.x, edge_index=adj, edge_weight=weight, **names), want)
        else:
            close(scaled(batch.x, adj, *ids), want)
            close(scaled(batch.x, adj, **names), want)
            close(scaled(batch.x, adj, batch_size=ids[0], n_id=ids[1]), want)


def test_models_that_take_a_graph() -> None:
    data = graph()
    scaled, full = exact(TakesData(), data)
    for sub in SubgraphLoader(data, PTR):
        batch, *ids = sub
        close(scaled(sub), full[batch_rows(sub)])
        close(scaled(batch, *ids), full[batch_rows(sub)])
        close(
            scaled(data=batch, **dict(zip(("batch_size", "n_id", "offset", "count"), ids, strict=True))),
            full[batch_rows(sub)],
        )


def test_whole_graph_refreshes_histories() -> None:
    data = graph()
    scaled, full = exact(gcn(), data)
    want = [history.emb.clone() for history in scaled.histories]
    assert all(history.age.eq(0).all() for history in scaled.histories)
    for call in (lambda: scaled(data), lambda: scaled(data.x, data.edge_index, data.edge_weight)):
        scaled.histories[0].emb.zero_(), scaled.histories[1].emb.zero_()
        with torch.no_grad():
            assert torch.equal(call(), full)
            assert torch.equal(scaled.unscale()(data.x, data.edge_index, data.edge_weight), full)
        for history, emb in zip(scaled.histories, want, strict=True):
            assert torch.equal(history.emb, emb)


@pytest.mark.parametrize("num_nodes", [30, 90])
def test_other_graphs_in_evaluation(num_nodes: int) -> None:
    scaled, _ = exact(gcn(), graph())
    before, other = tables(scaled), graph(seed=7, num_nodes=num_nodes)
    want = scaled.unscale()(other.x, other.edge_index, other.edge_weight)
    assert torch.equal(scaled(other), want)
    assert torch.equal(scaled(other.x, other.edge_index, other.edge_weight), want)
    assert_same(tables(scaled), before)


def test_number_of_nodes_instead_of_data() -> None:
    data = graph()
    plain = nn.GraphSAGE(C, H, 3, OUT).eval()
    for call in (
        lambda s, b: s(b),
        lambda s, b: s(b.data.x, b.data.edge_index, *b[1:]),
        lambda s, b: s(b.data.x, b.data.edge_index, None, *b[1:], edge_attr=None),
    ):
        scaled = scale(plain, num_nodes=N)
        for _ in range(3):  # two sweeps make the histories exact
            outs = [(call(scaled, batch), batch_rows(batch)) for batch in SubgraphLoader(data, PTR)]
        want = plain(data.x, data.edge_index)
        for out, rows in outs:
            close(out, want[rows])
        assert len(scaled.histories) == 2
    scaled = scale(gcn().eval(), num_nodes=N)
    want = gcn().eval()(data.x, data.edge_index, data.edge_weight)
    close(scaled(loader=EvalSubgraphLoader(data, PTR)), want)  # the loader knows the whole graph


def test_inputs() -> None:
    data = graph()
    data.feat = data.x * 2
    model = gcn().eval()
    scaled = scale(model, data, inputs=lambda batch: (batch.feat, batch.edge_index))
    want = model(data.feat, data.edge_index)
    close(scaled(loader=EvalSubgraphLoader(data, PTR)), want)
    for batch in SubgraphLoader(data, PTR):
        close(scaled(batch), want[batch_rows(batch)])


def test_a_batch_that_is_the_graph() -> None:
    data = graph()
    scaled, full = exact(gcn(), data)
    (batch,) = SubgraphLoader(data, PTR, 3)
    assert batch.halo_size == 0
    close(scaled(batch), full)


# -- training ----------------------------------------------------------------------------------------------------------


def train(scaled: ScaledGNN, data: Data, epochs: int = 5, **kwargs: Any) -> list[float]:
    scaled.train()
    optimizer = torch.optim.Adam(scaled.parameters(), lr=0.02)
    losses = []
    torch.manual_seed(5)
    for _ in range(epochs):
        for batch in SubgraphLoader(data, PTR, **kwargs):
            optimizer.zero_grad()
            loss = F.cross_entropy(scaled(batch), batch.data.y[: batch.batch_size])
            loss.backward()
            optimizer.step()
            losses.append(loss.item())
    return losses


@pytest.mark.parametrize("make", [lambda: gcn(dropout=0.2, norm="batch_norm", jk="cat"), GCNII, layered(nn.GATConv)])
def test_training(make: Any) -> None:
    data = graph()
    runs = []
    for _ in range(2):
        torch.manual_seed(1)
        scaled = scale(make(), data)
        losses = train(scaled, data, 12, shuffle=True, seed=0)
        assert sum(losses[-3:]) < 0.95 * sum(losses[:3])
        assert all(
            p.grad is not None and p.grad.abs().sum() > 0 for n, p in scaled.named_parameters() if "norm" not in n
        )
        runs.append(tables(scaled))
    assert_same(*runs)


def test_pushes_are_of_the_rows_of_the_batch() -> None:
    data = graph()
    scaled = scale(gcn(), data)
    optimizer = torch.optim.SGD(scaled.parameters(), lr=0.1)
    first, second, third = SubgraphLoader(data, PTR)
    for batch in (first, second):
        scaled(batch).sum().backward()
        optimizer.step()
    age = torch.full((N,), -1)
    age[batch_rows(first)], age[batch_rows(second)] = 1, 0
    for history in scaled.histories:
        assert torch.equal(history.age, age)
        assert (history.emb[batch_rows(third)] == 0).all() and (history.emb[batch_rows(second)] != 0).any()


def test_layers_that_are_dropped_at_random() -> None:
    scaled = scale(LayerDrop(), graph())
    losses = train(scaled, graph(), 8)
    assert losses[-1] < losses[0]
    first, second = (history.clock - history.age for history in scaled.histories)
    assert (first >= second).all() and (first > second).any()  # the second layer was skipped at times


# -- state -------------------------------------------------------------------------------------------------------------


def test_scale_changes_nothing() -> None:
    data, model = graph(), gcn(norm="batch_norm")
    model.norms[0].eval()
    before, modes = tables(model), [module.training for module in model.modules()]
    state = torch.random.get_rng_state()
    scaled = scale(model, data)
    assert torch.equal(torch.random.get_rng_state(), state)
    assert_same(tables(model), before)
    assert [module.training for module in model.modules()] == modes
    assert scaled.unscale() is model
    assert [id(p) for p in scaled.parameters()] == [id(p) for p in model.parameters()]
    assert not any("forward" in vars(module) or "propagate" in vars(module) for module in model.modules())


def test_state_dict() -> None:
    data = graph()
    scaled, full = exact(gcn(norm="batch_norm"), data)
    state, plain = scaled.state_dict(), scaled.unscale().state_dict()
    histories = {key for key in state if key.startswith("histories.")}
    assert set(state) == set(plain) | histories and len(histories) == 6
    torch.manual_seed(9)
    other = scale(nn.GCN(C, H, 3, OUT, norm="batch_norm").eval(), data)
    other.load_state_dict(state)
    assert_same(tables(other), tables(scaled))
    for batch in SubgraphLoader(data, PTR):
        close(other(batch), full[batch_rows(batch)])
    assert (
        set(nn.GCN(C, H, 3, OUT, norm="batch_norm").load_state_dict(state, strict=False).unexpected_keys) == histories
    )


def test_state_of_the_plain_model() -> None:
    data = graph()
    scaled, _ = exact(gcn(), data)
    kept = [history.emb.clone() for history in scaled.histories]
    plain = nn.GCN(C, H, 3, OUT).state_dict()
    result = scaled.load_state_dict(plain, strict=False)
    assert not result.unexpected_keys and all(key.startswith("histories.") for key in result.missing_keys)
    assert_same(scaled.unscale().state_dict(), plain)
    for history, emb in zip(scaled.histories, kept, strict=True):
        assert torch.equal(history.emb, emb)
    with pytest.raises(RuntimeError, match=r"Missing key.*histories\.0\.emb"):
        scaled.load_state_dict(plain)


def test_inside_another_module() -> None:
    data = graph()
    outer = torch.nn.ModuleDict({"gnn": scale(gcn(), data), "head": torch.nn.Linear(OUT, 2)})
    state = outer.state_dict()
    assert "gnn.convs.0.lin.weight" in state and "gnn.histories.0.emb" in state
    other = torch.nn.ModuleDict({"gnn": scale(nn.GCN(C, H, 3, OUT), data), "head": torch.nn.Linear(OUT, 2)})
    other.load_state_dict(state)
    assert_same(tables(other), tables(outer))


def test_histories_that_are_not_saved() -> None:
    scaled = scale(gcn(), graph(), save_histories=False)
    assert list(scaled.state_dict()) == list(scaled.unscale().state_dict())
    scaled.load_state_dict(nn.GCN(C, H, 3, OUT).state_dict())


def test_modes() -> None:
    scaled = scale(gcn(), graph())
    assert scaled.training and scaled.unscale().training
    assert scaled.eval() is scaled and not scaled.training and not scaled.unscale().convs[0].training
    scaled.train()
    assert scaled.training and scaled.unscale().training
    scaled.unscale().eval()
    assert not scaled.training
    assert not scale(gcn().eval(), graph()).training


@pytest.mark.parametrize("scaled_first", [False, True])
def test_other_types(scaled_first: bool) -> None:
    data = graph()
    data.x, data.edge_weight = data.x.double(), data.edge_weight.double()
    scaled = scale(gcn(), graph()).to(torch.float64) if scaled_first else scale(gcn().double(), data)
    scaled.eval()
    full = scaled(data).detach()
    assert full.dtype == scaled.histories[0].emb.dtype == torch.float64
    for batch in SubgraphLoader(data, PTR):
        torch.testing.assert_close(scaled(batch), full[batch_rows(batch)], rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.int8])
def test_storage_type(dtype: torch.dtype) -> None:
    data = graph()
    scaled = scale(gcn().eval(), data, history_dtype=dtype)
    full = scaled(data)
    assert scaled.histories[0].emb.dtype == dtype
    assert all(table.emb.dtype in (torch.float32, torch.float64) for table in scaled.tables)
    for batch in SubgraphLoader(data, PTR):
        torch.testing.assert_close(scaled(batch), full[batch_rows(batch)], rtol=0.02, atol=0.02)


def copies(scaled: ScaledGNN) -> dict[str, ScaledGNN]:
    file = io.BytesIO()
    torch.save(scaled, file)
    file.seek(0)
    return {
        "deepcopy": copy.deepcopy(scaled),
        "pickle": pickle.loads(pickle.dumps(scaled)),
        "torch.save": torch.load(file, weights_only=False),  # a whole model, which the test wrote itself
    }


@pytest.mark.parametrize("name", ["deepcopy", "pickle", "torch.save"])
def test_copies(name: str) -> None:
    data = graph()
    scaled, full = exact(gcn(norm="batch_norm"), data)
    before = tables(scaled)
    other = copies(scaled)[name]
    for batch in SubgraphLoader(data, PTR):
        close(other(batch), full[batch_rows(batch)])
    train(other, data, 1)
    assert_same(tables(scaled), before)
    assert not torch.equal(other.convs[0].lin.weight, scaled.convs[0].lin.weight)
    close(other.eval()(loader=EvalSubgraphLoader(data, PTR)), other(data))


def test_reset_parameters() -> None:
    data = graph()
    scaled, _ = exact(gcn(), data)
    before = scaled.convs[0].lin.weight.clone()
    scaled.reset_parameters()
    assert not torch.equal(scaled.convs[0].lin.weight, before)
    assert all((history.age == -1).all() and (history.emb == 0).all() for history in scaled.histories)
    full = scaled(data)
    for batch in SubgraphLoader(data, PTR):
        close(scaled(batch), full[batch_rows(batch)])


def test_attributes_of_the_model() -> None:
    scaled = scale(gcn(), graph())
    assert scaled.convs is scaled.unscale().convs and scaled.in_channels == C
    assert "GCN" in repr(scaled)
    with pytest.raises(AttributeError, match="nothing"):
        _ = scaled.nothing


def test_the_plain_model_afterwards() -> None:
    data = graph()
    scaled = scale(gcn(), data)
    train(scaled, data, 2)
    model = scaled.unscale().eval()
    want = model(data.x, data.edge_index, data.edge_weight)
    close(scaled(loader=EvalSubgraphLoader(data, PTR)), want)
    fresh = gcn().eval()
    fresh.load_state_dict(model.state_dict())
    assert torch.equal(fresh(data.x, data.edge_index, data.edge_weight), want)
    assert type(model) is nn.GCN and not any(m._forward_hooks or m._forward_pre_hooks for m in model.modules())


def test_a_backward_pass_may_wait_while_a_model_is_scaled() -> None:
    data, model = graph(), nn.GCN(C, H, 2, OUT, norm="batch_norm")
    loss = model(data.x, data.edge_index).square().sum()
    scale(model, data)
    loss.backward()
    assert all(parameter.grad is not None for parameter in model.parameters())


@pytest.mark.parametrize(
    ("make", "hops"),
    [
        (lambda: nn.GCN(C, H, 4, OUT, jk="cat"), 4),
        (lambda: nn.GAT(C, H, 3, OUT), 3),
        (lambda: nn.Sequential("x, edge_index", [(nn.APPNP(5, 0.1), "x, edge_index -> x")]), 5),
        (GCNII, 4),
    ],
)
def test_inference_passes_each_message_once(make: Any, hops: int) -> None:
    model, data = make().eval(), graph()
    scaled, calls = scale(model, data), 0

    def count(*_: Any) -> None:
        nonlocal calls
        calls += 1

    for module in model.modules():
        if isinstance(module, nn.MessagePassing):
            module.register_propagate_forward_pre_hook(count)
    loader = EvalSubgraphLoader(data, PTR)
    scaled(loader=loader)
    assert calls == hops * len(loader)
