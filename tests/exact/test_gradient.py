"""ExactGradient gives the gradient of the full batch, to rounding, and follows full-batch training."""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as F
import torch_geometric.nn as nn
from full_batch import N, assert_same, batches, buffers, compare, criterion, grads, graph, whole, wired
from gradient_models import JK, PYG, SHIPPED, of_pyg, plain
from graphs import FORMATS
from plain_models import MODELS, OUT, C, H, Stack
from torch import Tensor
from torch.nn import BatchNorm1d, Linear, Module, ModuleList, Parameter, ReLU, Sequential
from torch_geometric.nn import MessagePassing

from torch_gas import ScalableGNN, SubgraphLoader
from torch_gas.exact import DropoutById, ExactGradient
from torch_gas.extensions.regularization import spectral_norm
from torch_gas.models import GCN, GCN2, GIN, SAGE

# -- models of PyG -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("jk", JK)
@pytest.mark.parametrize("name", PYG)
def test_models_of_pyg(name: str, jk: str | None) -> None:
    torch.manual_seed(0)
    data = graph()
    compare(wired(of_pyg(name, jk), data, inputs=plain), data)


@pytest.mark.parametrize("name", PYG)
def test_places_behind_all_code(name: str) -> None:
    torch.manual_seed(0)
    data = graph()
    compare(wired(of_pyg(name, "cat"), data, inputs=plain, places="cheap"), data)


@pytest.mark.parametrize("name", [name for name in MODELS if name != "LayerDrop"])
def test_models_as_users_write_them(name: str) -> None:
    torch.manual_seed(0)
    data = graph()
    compare(wired(MODELS[name](), data), data)


@pytest.mark.parametrize("fmt", FORMATS)
@pytest.mark.parametrize("name", ["GCN", "GAT"])
def test_formats(name: str, fmt: str) -> None:
    torch.manual_seed(0)
    data = graph(fmt)
    model = wired(getattr(nn, name)(C, 8, 2, OUT, dropout=0.4, norm="batch_norm"), data)
    compare(model, data, batches(data, model, 2))


# -- models of this package --------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", SHIPPED)
def test_shipped_models(name: str) -> None:
    torch.manual_seed(0)
    data = graph()
    compare(wired(SHIPPED[name](), data), data)


class Deep(Module):
    """GCNII of 64 layers."""

    def __init__(self) -> None:
        super().__init__()
        self.lins = ModuleList([Linear(C, H), Linear(H, OUT)])
        self.convs = ModuleList([nn.GCN2Conv(H, 0.1, 0.5, number + 1) for number in range(64)])

    def forward(self, x: Tensor, edge_index: Tensor) -> Tensor:
        x = x_0 = self.lins[0](x).relu()
        for conv in self.convs:
            x = conv(F.dropout(x, 0.1, self.training), x_0, edge_index).relu()
        return self.lins[1](x)


@pytest.mark.slow
@pytest.mark.parametrize("make", [Deep, lambda: GCN2(N, C, H, OUT, 64, 0.1, 0.5)], ids=["scaled", "explicit"])
def test_gcnii_of_64_layers(make: Callable[[], Module]) -> None:
    torch.manual_seed(0)
    data = graph()
    compare(wired(make(), data), data, batches(data, batch_size=3))


# -- what learns -------------------------------------------------------------------------------------------------------


class Weighted(Module):
    """Features and weights of edges, and rows of embeddings by the ids of nodes."""

    def __init__(self, embeds: bool = False) -> None:
        super().__init__()
        self.convs = ModuleList([nn.GraphConv(C, H), nn.GraphConv(H, H), nn.GraphConv(H, OUT)])
        self.embeds = torch.nn.Embedding(N, C) if embeds else None

    def forward(self, x: Tensor, edge_index: Any, edge_weight: Tensor, ids: Any = None) -> Tensor:
        if self.embeds is not None:
            x = x + self.embeds(ids)
        for conv in self.convs:
            x = conv(x, edge_index, edge_weight).tanh()
        return x


@pytest.mark.parametrize("neighbors", ["in", "both"])
@pytest.mark.parametrize("names", [("x",), ("edge_weight",), ("x", "edge_weight")], ids="-".join)
def test_learned_attributes(names: tuple[str, ...], neighbors: str) -> None:
    torch.manual_seed(0)
    data = graph()
    model = wired(Weighted(), data)
    for name in names:
        data[name] = Parameter(data[name])
    compare(model, data, batches(data, batch_size=2, neighbors=neighbors) if neighbors == "both" else None)
    assert all(data[name].grad is not None for name in names)


def test_learned_features_alone() -> None:
    """Nothing of the model learns."""
    torch.manual_seed(0)
    data = graph()
    model = wired(Weighted().requires_grad_(False), data)
    data.x.requires_grad_()
    compare(model, data)
    assert not grads(model)


def test_learned_features_of_a_shipped_model() -> None:
    torch.manual_seed(0)
    data = graph()
    data.x.requires_grad_()
    compare(wired(GCN(N, C, 8, OUT, 3, dropout=0.3), data), data)
    assert data.x.grad is not None and data.x.grad.shape == (N, C)


def test_learned_features_add_to_their_gradient_and_change_between_steps() -> None:
    torch.manual_seed(0)
    data = graph()
    data.x = Parameter(data.x)
    model = wired(Weighted(), data)
    exact = ExactGradient(model, batches(data))
    exact.backward(criterion)
    before = data.x.grad.clone()
    with torch.no_grad():
        data.x -= 0.5
    exact.backward(criterion)
    summed, data.x.grad = data.x.grad, None
    criterion(whole(model, data), data).backward()
    assert_same({"x": summed}, {"x": before + data.x.grad})
    assert float((before - data.x.grad).norm()) > 1e-3  # the second step saw the new features


def test_embeddings_by_id_as_an_attribute() -> None:
    torch.manual_seed(0)
    data = graph()
    data.ids = torch.arange(N)
    compare(wired(Weighted(embeds=True), data), data)


class Embedded(ScalableGNN):
    def __init__(self) -> None:
        super().__init__(N, H, 3)
        self.rows = torch.nn.Embedding(N, H)
        self.convs = ModuleList([nn.SAGEConv(C, H), nn.SAGEConv(H, H), nn.SAGEConv(H, OUT)])

    def forward(self, x: Tensor, adj: Any, *ids: Any) -> Tensor:
        n_id = torch.arange(N) if ids[1] is None else ids[1]
        for conv, history in zip(self.convs, self.histories, strict=False):
            out = conv(x, adj)
            x = self.push_and_pull(history, (out + self.rows(n_id)[: len(out)]).relu(), *ids)
        return self.convs[-1](x, adj)


def test_embeddings_by_id_in_explicit_wiring() -> None:
    torch.manual_seed(0)
    data = graph()
    compare(wired(Embedded(), data), data)


@pytest.mark.parametrize("frozen", [(0,), (1,), (2,), (0, 1), (1, 2), (0, 2)], ids=str)
def test_frozen_layers(frozen: tuple[int, ...]) -> None:
    torch.manual_seed(0)
    data = graph()
    net = nn.GraphSAGE(C, 8, 3, OUT, jk="cat", norm="batch_norm")
    for number in frozen:
        net.convs[number].requires_grad_(False)
        if number < len(net.norms):
            net.norms[number].requires_grad_(False)
    model = wired(net, data, inputs=plain)
    compare(model, data)
    assert not any(f"convs.{number}." in name for number in frozen for name in grads(model))


def test_nothing_is_computed_below_what_learns() -> None:
    torch.manual_seed(0)
    data = graph()
    net = nn.GraphSAGE(C, 8, 4, OUT)
    for conv in net.convs[:2]:
        conv.requires_grad_(False)
    model = wired(net, data, inputs=plain)
    exact = compare(model, data)
    calls = [0] * 4
    for number in range(4):

        def count(*_: Any, number: int = number) -> None:
            calls[number] += 1

        net.convs[number].lin_l.register_forward_hook(count)
    model.zero_grad()
    exact.backward(criterion)
    # In four batches: a sweep for each history, one for the output, and one back for the third.
    assert calls == [4, 4, 8, 4]


def test_what_learns_may_change_between_steps() -> None:
    torch.manual_seed(0)
    data = graph()
    net = nn.GraphSAGE(C, 8, 3, OUT, norm="batch_norm")
    net.convs[0].requires_grad_(False)
    model = wired(net, data, inputs=plain)
    compare(model, data)
    model.zero_grad()
    net.convs[0].requires_grad_()
    exact = ExactGradient(model, batches(data))
    for frozen in (True, False, True):
        net.convs[1].requires_grad_(not frozen)
        model.zero_grad()
        reference = copy.deepcopy(model)
        criterion(whole(reference, data), data).backward()
        exact.backward(criterion)
        assert_same(grads(model), grads(reference))


@pytest.mark.parametrize("explicit", [False, True])
def test_model_of_which_nothing_learns_is_refused(explicit: bool) -> None:
    data = graph()
    net: Module = GCN(N, C, 8, OUT, 3) if explicit else nn.GraphSAGE(C, 8, 3, OUT)
    model = wired(net.requires_grad_(False), data, inputs=plain)
    with pytest.raises(RuntimeError, match=r"no parameter of .* requires a gradient"):
        ExactGradient(model, batches(data)).backward(criterion)


# -- norms -------------------------------------------------------------------------------------------------------------


def two_calls(net: Stack, x: Tensor, adj: Any) -> Tensor:
    x = net.norm(net.convs[0](x, adj)).relu()
    x = x + net.norm(net.convs[1](x, adj)).relu()
    return net.convs[2](net.norm(x), adj)


def test_norm_that_is_called_several_times() -> None:
    """Behind a layer, and once more on the rows of the halo; running statistics move three times."""
    torch.manual_seed(0)
    data = graph()
    net = Stack(nn.SAGEConv(C, H), nn.SAGEConv(H, H), nn.SAGEConv(H, OUT), body=two_calls)
    net.norm = BatchNorm1d(H)
    compare(wired(net, data), data)
    assert net.norm.num_batches_tracked == 3


def test_norm_of_the_input_and_of_the_output() -> None:
    torch.manual_seed(0)
    data = graph()
    net = Stack(BatchNorm1d(C), nn.SAGEConv(C, OUT), BatchNorm1d(OUT))
    net.body = lambda self, x, adj: self.convs[2](self.convs[1](self.convs[0](x), adj))
    data.x.requires_grad_()
    compare(wired(net, data), data)


class NormsOfEdges(MessagePassing):
    def __init__(self, in_channels: int, out_channels: int) -> None:
        super().__init__(aggr="mean")
        self.lin, self.edge = Linear(2 * in_channels, out_channels), Linear(2 * in_channels, 1)
        self.of_messages, self.of_edges = BatchNorm1d(out_channels), BatchNorm1d(1, momentum=None)

    def forward(self, x: Tensor, edge_index: Any) -> Tensor:
        alpha = self.edge_updater(edge_index, x=x)
        return self.propagate(edge_index, x=x, alpha=alpha)

    def edge_update(self, x_i: Tensor, x_j: Tensor) -> Tensor:
        return self.of_edges(self.edge(torch.cat([x_i, x_j], -1))).sigmoid()

    def message(self, x_i: Tensor, x_j: Tensor, alpha: Tensor) -> Tensor:
        return alpha * self.of_messages(self.lin(torch.cat([x_i, x_j - x_i], -1)))


def test_norms_of_edges() -> None:
    torch.manual_seed(0)
    data = graph()
    compare(wired(Stack(NormsOfEdges(C, H), NormsOfEdges(H, OUT)), data), data)


@pytest.mark.parametrize("norm", ["batch_norm", "instance_norm"])
def test_evaluation_mode(norm: str) -> None:
    """Norms apply their running statistics, dropout is off, and running statistics stay."""
    torch.manual_seed(0)
    data = graph()
    options = {"track_running_stats": True}
    model = wired(nn.GIN(C, 8, 3, OUT, dropout=0.5, norm=norm, norm_kwargs=options), data, inputs=plain)
    whole(model, data)
    before = buffers(model)
    compare(model.eval(), data)
    for name, value in buffers(model).items():
        assert torch.equal(value, before[name])


def test_some_norms_in_evaluation_mode() -> None:
    torch.manual_seed(0)
    data = graph()
    model = wired(nn.GIN(C, 8, 3, OUT, dropout=0.5, norm="batch_norm"), data, inputs=plain)
    model.model.norms[0].eval()
    compare(model, data)


# -- state and detours -------------------------------------------------------------------------------------------------


class Counting(Stack):
    """Has a buffer that grows with each pass in training, in place or not."""

    def __init__(self, in_place: bool) -> None:
        super().__init__(nn.SAGEConv(C, H), nn.SAGEConv(H, OUT))
        self.in_place = in_place
        self.register_buffer("running_mean", torch.ones(()))

    def forward(self, x: Tensor, edge_index: Any) -> Tensor:  # type: ignore[override]
        if self.training and self.in_place:
            self.running_mean += 1
        elif self.training:
            self.running_mean = self.running_mean + 1
        return super().forward(x * self.running_mean, edge_index)


@pytest.mark.parametrize("in_place", [True, False])
def test_state_moves_once_a_step(in_place: bool) -> None:
    torch.manual_seed(0)
    data, net = graph(), Counting(in_place)
    model = wired(net, data, inputs=plain)
    before = net.running_mean
    exact = compare(model, data)
    assert net.running_mean is before and before == 2  # the buffer of before, as after a step of the full batch
    exact.backward(criterion)
    assert before == 3


class Detours(Module):
    def __init__(self, body: Callable[..., Tensor]) -> None:
        super().__init__()
        self.a, self.b, self.c = nn.SAGEConv(C, H), nn.SAGEConv(H, H), nn.SAGEConv(H, OUT)
        self.body = body

    def forward(self, x: Tensor, edge_index: Any) -> Tensor:
        return self.body(self, x, edge_index)


def detached(net: Detours, x: Tensor, adj: Any) -> Tensor:
    x = net.a(x, adj).relu()
    return net.c(x + net.b(x.detach(), adj).relu(), adj)


def without_grad(net: Detours, x: Tensor, adj: Any) -> Tensor:
    x = net.a(x, adj).relu()
    with torch.no_grad():
        y = net.b(x, adj).relu()
    return net.c(x * y, adj)


def in_place(net: Detours, x: Tensor, adj: Any) -> Tensor:
    x = net.a(x, adj).relu_()
    y = net.b(x, adj)
    y += x
    return net.c(y.clamp_(-1, 1), adj)


def unused(net: Detours, x: Tensor, adj: Any) -> Tensor:
    x = net.a(x, adj).relu()
    net.b(x, adj)
    return net.c(x, adj)


def tied(net: Detours, x: Tensor, adj: Any) -> Tensor:
    net.b.lin_l.weight = net.b.lin_r.weight
    return net.c(net.b(net.b(net.a(x, adj).relu(), adj).relu(), adj), adj)


@pytest.mark.parametrize("body", [detached, without_grad, in_place, unused, tied])
def test_detours_of_autograd(body: Callable[..., Tensor]) -> None:
    torch.manual_seed(0)
    data = graph()
    compare(wired(Detours(body), data, inputs=plain), data)


# -- what only some batches read -----------------------------------------------------------------------------------------


class Types(Module):
    """Treats nodes of the second type in a way of their own, where there are any."""

    def __init__(self, way: str) -> None:
        super().__init__()
        self.a, self.b, self.c, self.other = (
            nn.SAGEConv(C, H),
            nn.SAGEConv(H, H),
            nn.SAGEConv(H, OUT),
            nn.SAGEConv(C, H),
        )
        self.lins = ModuleList([Linear(H, H), Linear(H, H)])
        self.shift, self.way = Parameter(torch.ones(H)), way
        if way == "shift":  # which is all that learns below the last layer
            self.a.requires_grad_(False)
            self.b.requires_grad_(False)

    def forward(self, x: Tensor, edge_index: Any, kind: Tensor) -> Tensor:
        other = self.other(x, edge_index) if self.way == "history" else None
        x = self.a(x, edge_index).relu()
        second = (kind == 1)[: len(x)]
        if self.way == "layers":
            out = torch.zeros_like(x)
            for number, of_kind in enumerate((~second, second)):
                if of_kind.any():
                    out[of_kind] = self.lins[number](x[of_kind])
            x = out
        elif self.way == "shift" and second.any():
            x = torch.where(second[:, None], x + self.shift, x)
        x = self.b(x, edge_index)
        second = second[: len(x)]
        if other is not None and second.any():
            x = torch.where(second[:, None], x + other[: len(x)], x)
        return self.c(x.relu(), edge_index)


@pytest.mark.parametrize("way", ["layers", "history", "shift"])
def test_batches_that_read_more_than_the_first(way: str) -> None:
    """A history, or a parameter in a segment of which nothing else learns."""
    torch.manual_seed(0)
    data = graph()
    data.kind = torch.ones(N, dtype=torch.long)
    data.kind[next(iter(batches(data))).n_id] = 0  # which the first batch does not see
    compare(wired(Types(way), data, inputs=lambda data: (data.x, data.edge_index, data.kind)), data)
    assert data.kind.any()


# -- models of few layers ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "net", [lambda: nn.GCN(C, 8, 1, OUT), lambda: GCN(N, C, 8, OUT, 1)], ids=["scaled", "explicit"]
)
def test_models_without_histories(net: Callable[[], Module]) -> None:
    torch.manual_seed(0)
    data = graph()
    model = wired(net(), data)
    assert not len(model.histories)
    compare(model, data)


def test_norm_in_a_model_without_histories() -> None:
    torch.manual_seed(0)
    data = graph()
    compare(wired(Stack(nn.GINConv(Sequential(Linear(C, H), BatchNorm1d(H), ReLU(), Linear(H, OUT)))), data), data)


# -- training ----------------------------------------------------------------------------------------------------------


def bounded(net: Module) -> Module:
    """Whose weights each pass in training changes by one step of the power method."""
    spectral_norm(net, 0.5)
    return net


FOLLOWED: dict[str, Callable[[], Module]] = {
    "GCN": lambda: nn.GCN(C, 8, 3, OUT, dropout=0.5, norm="batch_norm"),
    "GAT": lambda: nn.GAT(C, 8, 3, OUT, heads=2, jk="cat", dropout=0.3, norm="batch_norm"),
    "EdgeCNN": lambda: nn.EdgeCNN(C, 8, 2, OUT, dropout=0.3, norm="batch_norm"),
    "spectral norm": lambda: bounded(nn.GraphSAGE(C, 8, 3, OUT, dropout=0.3)),
    "explicit GIN": lambda: GIN(N, C, 8, OUT, 3, dropout=0.5),
    "explicit SAGE": lambda: SAGE(N, C, 8, OUT, 3, dropout=0.5, batch_norm=True, residual=True),
}


@pytest.mark.parametrize("name", FOLLOWED)
def test_ten_steps_follow_full_batch_training(name: str) -> None:
    torch.manual_seed(0)
    data = graph()
    data.x = (data.x - data.x.mean(0)) / data.x.std(0)
    ours = wired(FOLLOWED[name](), data, inputs=plain) if "exp" not in name else wired(FOLLOWED[name](), data)
    theirs = copy.deepcopy(ours)
    exact, losses = ExactGradient(ours, batches(data, batch_size=2)), []
    optimizers = [torch.optim.Adam(model.parameters(), 0.01) for model in (ours, theirs)]
    for _ in range(10):
        for optimizer in optimizers:
            optimizer.zero_grad()
        losses.append(exact.backward(criterion))
        loss = criterion(whole(theirs, data), data)
        loss.backward()
        torch.testing.assert_close(losses[-1], loss.detach(), rtol=1e-9, atol=0)
        for optimizer in optimizers:
            optimizer.step()
    wanted = dict(theirs.named_parameters()) | buffers(theirs)
    for key, value in (dict(ours.named_parameters()) | buffers(ours)).items():
        torch.testing.assert_close(value, wanted[key], rtol=1e-9, atol=1e-9, msg=lambda text, key=key: f"{key}: {text}")
    assert len(set(map(float, losses))) == 10  # it trained, and masks differed
    assert [each.step for model in (ours, theirs) for each in model.extensions if isinstance(each, DropoutById)] == [
        10
    ] * 2


def test_lbfgs() -> None:
    """Which calls its closure several times a step."""
    torch.manual_seed(0)
    data = graph()
    ours = wired(nn.GraphSAGE(C, 8, 2, OUT), data, inputs=plain)
    theirs = copy.deepcopy(ours)
    exact = ExactGradient(ours, batches(data))

    def full() -> Tensor:
        loss = criterion(whole(theirs, data), data)
        loss.backward()
        return loss.detach()

    for model, compute in ((ours, lambda: exact.backward(criterion)), (theirs, full)):
        optimizer = torch.optim.LBFGS(model.parameters(), 0.1, max_iter=8, line_search_fn="strong_wolfe")

        def closure(optimizer: Any = optimizer, compute: Callable[[], Tensor] = compute) -> Tensor:
            optimizer.zero_grad()
            return compute()

        first = optimizer.step(closure)
    assert float(full()) < float(first)
    for left, right in zip(ours.parameters(), theirs.parameters(), strict=True):
        torch.testing.assert_close(left, right, rtol=1e-6, atol=1e-8)


def test_gradients_are_added_to() -> None:
    torch.manual_seed(0)
    data = graph()
    model = wired(nn.GIN(C, 8, 3, OUT, norm="batch_norm"), data, inputs=plain)
    reference, exact = copy.deepcopy(model), ExactGradient(model, batches(data))
    for parameter in model.parameters():
        parameter.grad = torch.full_like(parameter, 2.0)
    exact.backward(criterion)
    exact.backward(lambda out, batch: 3 * criterion(out, batch))
    criterion(whole(reference, data), data).backward()
    (3 * criterion(whole(reference, data), data)).backward()
    assert_same({name: grad - 2 for name, grad in grads(model).items()}, grads(reference))
    wanted = buffers(reference)
    for name, value in buffers(model).items():
        torch.testing.assert_close(value, wanted[name])


def test_same_gradient_is_given_twice() -> None:
    """Nothing of a step is left in tables."""
    torch.manual_seed(0)
    data = graph()
    model = wired(nn.GraphSAGE(C, 8, 3, OUT, jk="lstm"), data, inputs=plain)
    exact = ExactGradient(model, batches(data))
    found = []
    for _ in range(3):
        model.zero_grad()
        exact.backward(criterion)
        found.append({name: grad.clone() for name, grad in grads(model).items()})
    for again in found[1:]:
        assert all(torch.equal(again[name], grad) for name, grad in found[0].items())


def test_hooks_of_parameters_are_given_the_whole_gradient_once() -> None:
    """Such as those that clip it."""
    torch.manual_seed(0)
    data = graph()
    ours = wired(nn.GraphSAGE(C, 8, 3, OUT), data, inputs=plain)
    theirs, seen = copy.deepcopy(ours), []
    for model in (ours, theirs):
        weight = model.model.convs[0].lin_l.weight
        weight.register_hook(lambda grad: grad.clamp(-1e-3, 1e-3) * 2)
        weight.register_post_accumulate_grad_hook(lambda each: seen.append(each.grad.clone()))
    exact = ExactGradient(ours, batches(data))
    exact.backward(criterion)
    criterion(whole(theirs, data), data).backward()
    assert_same(grads(ours), grads(theirs))
    assert len(seen) == 2 and float(seen[0].abs().max()) == 2e-3


@pytest.mark.parametrize(
    "options",
    [
        {"shuffle": True, "seed": 0},
        {"drop_last": True},
        {"shuffle": True, "drop_last": True},
        {"prefetch": 2},
        {"bipartite": False},
    ],
    ids=str,
)
def test_loaders(options: dict[str, Any]) -> None:
    """Batches are those of a loader in the order of parts, all of them, and the loader's own epochs go on as they were."""
    torch.manual_seed(0)
    data = graph()
    model = wired(nn.GraphSAGE(C, 8, 3, OUT, norm="batch_norm"), data, inputs=plain)
    loader, other = (batches(data, batch_size=2, **options) for _ in range(2))
    state = torch.get_rng_state()
    compare(model, data, loader)
    assert torch.equal(state, torch.get_rng_state())
    if options.get("seed") is not None:
        for batch, same in zip(loader, other, strict=True):
            assert torch.equal(batch.n_id, same.n_id)


@pytest.mark.parametrize("ptr", [[0, 0, 30, N], [0, 1, 2, N], [0, 30, N, N], [0, N]], ids=str)
def test_odd_parts(ptr: list[int]) -> None:
    """The first or the last is empty, two have one node, and there is but one."""
    torch.manual_seed(0)
    data = graph()
    model = wired(nn.GIN(C, 8, 3, OUT, dropout=0.3, norm="batch_norm"), data, inputs=plain)
    compare(model, data, SubgraphLoader(data, torch.tensor(ptr)))
