"""Halo rows move as the formula of momentum says, computed by plain layers on the edges of the batch."""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch_geometric.nn as nn
from graphs import FORMATS, adjacency, random_graph, to_format
from nets import Net, assert_same, full_batch, refresh, tables
from plain_models import OUT, C, H
from torch import Tensor
from torch.nn import Module
from torch_geometric.data import Data
from torch_geometric.nn.conv.gcn_conv import gcn_norm
from torch_geometric.utils import to_dense_adj

from torch_gas import History, SubData, SubgraphLoader, plan, scale
from torch_gas.extensions import AgeWeights, Extension, Momentum
from torch_gas.extensions.regularization import LocalPerturbation
from torch_gas.models import GCN2
from torch_gas.wiring.compiled import OLDEST

N, BETA = 60, 0.3
PTR = torch.tensor([0, 14, 37, N])


def graph(fmt: str = "edge_index", directed: bool = True) -> Data:
    data = random_graph(N, 2 * N, seed=1, directed=directed)
    data.x = data.x.double()
    return to_format(data, fmt)


def loader_of(data: Data, neighbors: str = "both", ptr: Tensor = PTR) -> SubgraphLoader:
    return SubgraphLoader(data, ptr, neighbors=neighbors)


def off(model: Any, data: Data) -> Any:
    """``model`` in float64, with histories that are off."""
    model = model.double()
    refresh(model, data)
    generator = torch.Generator().manual_seed(5)
    for history in model.histories:
        rows = history.pull()
        history.push(rows + 0.1 * torch.randn(rows.shape, generator=generator, dtype=rows.dtype))
    return model


class Stack(Module):
    """Convolutions with a tanh between each two."""

    def __init__(self, make: Callable[[int, int], Module]) -> None:
        super().__init__()
        self.convs = torch.nn.ModuleList([make(C, H), make(H, H), make(H, OUT)])

    def forward(self, x: Tensor, edge_index: Any) -> Tensor:
        for conv in self.convs[:-1]:
            x = conv(x, edge_index).tanh()
        return self.convs[-1](x, edge_index)


class Twice(Module):
    """A layer of two hops, between which there is a history."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.SGConv(C, OUT, K=2)

    def forward(self, x: Tensor, edge_index: Any) -> Tensor:
        return self.conv(x, edge_index)


def layers(name: str, plain: Module, data: Data) -> list[Callable[[Tensor, Tensor], Tensor]]:
    """What lies between histories, as functions of all rows [N, C] and of the edges of a batch [2, E]; no code of batches."""
    weights, loops = gcn_norm(data.edge_index, None, N, dtype=torch.float64)[::-1]
    norm = to_dense_adj(loops, edge_attr=weights, max_num_nodes=N)[0].t()  # from whom to whom: [destination, source]

    def product(rows: Tensor, edges: Tensor) -> Tensor:
        kept = torch.eye(N, dtype=torch.float64).index_put((edges[1], edges[0]), torch.tensor(1.0).double())
        return (norm * kept) @ rows

    if name == "hops":
        conv: Any = plain.conv
        return [product, lambda rows, edges: conv.lin(product(rows, edges))]
    convs: list[Any] = list(plain.convs)
    if name == "GCN":
        apply: Any = [lambda x, edges, conv=conv: product(conv.lin(x), edges) + conv.bias for conv in convs]
    else:
        apply = convs
    return [apply[0], *(lambda x, edges, conv=conv: conv(x.tanh(), edges) for conv in apply[1:])]


MODELS: dict[str, Callable[[], Module]] = {
    "SAGE": lambda: Stack(nn.SAGEConv),
    "GCN": lambda: Stack(nn.GCNConv),
    "GAT": lambda: Stack(nn.GATConv),
    "max": lambda: Stack(lambda *width: nn.SAGEConv(*width, aggr="max")),
    "hops": Twice,
}


def edges_of(data: Data, batch: SubData) -> Tensor:
    """Edges into the batch, and from it to its halo."""
    own = torch.isin(data.edge_index, batch.n_id[: batch.batch_size])
    return data.edge_index[:, own[0] | own[1]]


@pytest.mark.parametrize("name", MODELS)
def test_rows_move_as_the_formula_says_in_a_scaled_model(name: str) -> None:
    data = graph()
    torch.manual_seed(0)
    plain = MODELS[name]().double()
    model = off(scale(plain, data, places="outputs"), data)
    assert len(model.histories) == (1 if name == "hops" else 2)
    model.add_extension(Momentum(BETA))
    for batch in loader_of(data):
        before = [history.pull() for history in model.histories]
        own, halo = batch.n_id[: batch.batch_size], batch.n_id[batch.batch_size :]
        edges = edges_of(data, batch)
        reached = halo[torch.isin(halo, edges[1])]
        assert 0 < len(reached) < len(halo)
        rows = data.x
        *hidden, last = layers(name, plain, data)
        for layer, history in zip(hidden, before, strict=True):
            new, rows = layer(rows, edges), history.clone()
            rows[own], rows[reached] = new[own], (1 - BETA) * history[reached] + BETA * new[reached]
            history.copy_(rows)
        ages = [history.pushed_at[halo].clone() for history in model.histories]
        out = model(batch)
        torch.testing.assert_close(out, last(rows, edges)[own], rtol=1e-10, atol=1e-10)
        for history, want, pushed_at in zip(model.histories, before, ages, strict=True):
            torch.testing.assert_close(history.pull(), want, rtol=1e-10, atol=1e-10)
            assert torch.equal(history.pushed_at[halo], pushed_at)
            assert bool((history.age[own] == 0).all())
        out.sum().backward()


@pytest.mark.parametrize("fmt", FORMATS)
def test_rows_move_as_the_formula_says_in_a_scalable_gnn(fmt: str) -> None:
    data = graph(fmt)
    model = off(Net(N, H), data)
    model.add_extension(Momentum(BETA))
    for batch in loader_of(data):
        size, halo = batch.batch_size, batch.n_id[batch.batch_size :]
        adj, rows = adjacency(batch.data), batch.data.x
        twin = copy.deepcopy(model.convs)
        for conv, history in zip(twin, model.histories, strict=False):
            full = conv(rows, adj).relu()
            old = history.pull(halo)
            moved = torch.isin(halo, edges_of(graph(), batch)[1]).view(-1, 1)
            rows = torch.cat([full[:size], torch.where(moved, old.lerp(full[size:].detach(), BETA), old)])
        want = twin[-1](rows, adj)[:size]
        out = model(batch)
        torch.testing.assert_close(out, want, rtol=1e-10, atol=1e-10)
        out.pow(2).sum().backward()
        want.pow(2).sum().backward()
        for own, other in zip(model.convs.parameters(), twin.parameters(), strict=True):
            torch.testing.assert_close(own.grad, other.grad, rtol=1e-8, atol=1e-10)
        model.zero_grad()


def test_shipped_models_and_penalties_take_rows_of_the_halo() -> None:
    data = graph(directed=False)
    model = off(GCN2(N, C, H, OUT, 4, 0.1, 0.5, batch_norm=True, residual=True, dropout=0.5), data)
    model.add_extension(Momentum())
    LocalPerturbation().attach(model)
    for batch in loader_of(data):
        out = model(batch)
        assert out.shape == (batch.batch_size, OUT)
        (out.sum() + model.regularization()).backward()


def test_halo_nodes_move_where_messages_go_both_ways() -> None:
    data = graph()
    model = off(scale(Stack(lambda *width: nn.DirGNNConv(nn.SAGEConv(*width))).double(), data), data)
    model.add_extension(Momentum(BETA))
    (batch, *_) = loader_of(data)
    before = [history.pull() for history in model.histories]
    model(batch)
    halo = batch.n_id[batch.batch_size :]
    for history, rows in zip(model.histories, before, strict=True):
        assert bool((history.pull()[halo] != rows[halo]).any(dim=1).all())


class Halo(Extension):
    """Keeps the rows that batches read."""

    def __init__(self) -> None:
        self.rows: list[Tensor] = []

    def exchange(self, call: Any, history: History, rows: Tensor, pulled: Tensor) -> None:
        self.rows.append(pulled.clone())


def test_what_was_pulled_is_what_the_history_holds_then() -> None:
    data, halo = graph(), Halo()
    model = off(Net(N, H), data)
    for extension in (Momentum(1.0), halo):
        model.add_extension(extension)
    (batch, *_) = loader_of(data)
    model(batch)
    for history, rows in zip(model.histories, halo.rows, strict=True):
        assert torch.equal(history.pull(batch.n_id[batch.batch_size :]), rows)


@pytest.mark.parametrize("kind", ["explicit", "scaled"])
def test_evaluation_and_whole_graphs_move_nothing(kind: str) -> None:
    data = graph()
    model = off(Net(N, H) if kind == "explicit" else scale(Stack(nn.SAGEConv).double(), data), data)
    twin = copy.deepcopy(model)
    model.add_extension(Momentum(BETA))
    for each in (model, twin):
        each.eval()
        each(next(iter(loader_of(data))))
        each(next(iter(loader_of(data, "in"))))
        with torch.no_grad():
            each.train()(next(iter(loader_of(data))))
        each(data.x, adjacency(data))
    assert_same(tables(model), tables(twin))


def test_a_batch_of_the_whole_graph_needs_no_edges_out_of_it() -> None:
    data = graph()
    model = Net(N, H).double()
    model.add_extension(Momentum(BETA))
    (batch,) = loader_of(data, "in", torch.tensor([0, N]))
    torch.testing.assert_close(model(batch), full_batch(model, data))


# -- refused -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("beta", [-0.1, 1.1, float("inf")])
def test_beta_is_a_share(beta: float) -> None:
    with pytest.raises(ValueError, match="Momentum: beta must be from 0 to 1, but is"):
        Momentum(beta)


@pytest.mark.parametrize("kind", ["explicit", "scaled"])
def test_batches_without_edges_into_the_halo_are_refused(kind: str) -> None:
    data = graph()
    model = Net(N, H).double() if kind == "explicit" else scale(Stack(nn.SAGEConv).double(), data)
    model.add_extension(Momentum(BETA))
    before = tables(model.histories)
    with pytest.raises(ValueError, match=r'Momentum needs the edges .* SubgraphLoader\(\.\.\., neighbors="both"\)'):
        model(next(iter(loader_of(data, "in"))))
    after = tables(model.histories)
    assert_same(*({k: v for k, v in each.items() if k.endswith("emb")} for each in (before, after)))
    plan(data, model, device_memory="1 GiB", ptr=PTR, neighbors="both")  # which measures steps on such batches


class Cuts(Net):
    """Cuts rows itself, as code for batches without such edges may."""

    def forward(self, x: Tensor, adj: Any, *ids: Any) -> Tensor:
        for conv, history in zip(self.convs, self.histories, strict=False):
            x = self.push_and_pull(history, conv(x, adj).relu()[: ids[0]] if ids else conv(x, adj).relu(), *ids)
        return self.convs[-1](x, adj)


def test_a_forward_that_cuts_halo_rows_is_refused() -> None:
    data = graph()
    model = Cuts(N, H).double()
    model.add_extension(Momentum(BETA))
    with pytest.raises(
        ValueError, match=r"Cuts: Momentum needs .* the 14 rows of the batch only; leave the other \d+ rows"
    ):
        model(next(iter(loader_of(data))))
    model.remove_extension(model.extensions[0])
    assert model(next(iter(loader_of(data)))).shape == (14, 3)


@pytest.mark.skipif(torch.__version__ < OLDEST, reason="models with histories compile from this version on")
def test_compiled_models_are_refused() -> None:
    data = graph()
    model = Net(N, H).double()
    model.add_extension(Momentum(BETA))
    with pytest.raises(RuntimeError, match="Momentum needs rows that compiled code cuts off"):
        torch.compile(model, backend="eager")(next(iter(loader_of(data))))


class Inverse(nn.SAGEConv):
    """Divides by a feature, which must not be 0."""

    def forward(self, x: Tensor, edge_index: Any) -> Tensor:
        return super().forward(x, edge_index) / x[:, :1]


def test_rows_that_are_not_finite_are_refused() -> None:
    data = graph()
    (batch, *_) = loader_of(data)
    reached = edges_of(data, batch)[1]
    data.x[reached[reached >= batch.batch_size][0], 0] = 0  # in the halo
    model = Net(N, H).double()
    model.convs[0] = Inverse(C, H).double()
    model(next(iter(loader_of(data))))  # needs no such rows
    model.add_extension(Momentum(BETA))
    before = model.histories[0].pull()
    with pytest.raises(ValueError, match="hold NaN or infinity"):
        model(next(iter(loader_of(data))))
    assert torch.equal(model.histories[0].pull(), before)


def test_order_beside_other_extensions() -> None:
    model = Net(N, H)
    momentum = Momentum()
    model.add_extension(momentum)
    with pytest.raises(ValueError, match="the model has a Momentum already"):
        model.add_extension(Momentum())
    model.add_extension(AgeWeights())
    model.remove_extension(momentum)
    with pytest.raises(ValueError, match="add Momentum before AgeWeights"):
        model.add_extension(momentum)
