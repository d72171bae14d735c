"""Row-wise code between convolutions and histories: how far it is found to go, and that batches stay exact behind it."""

from __future__ import annotations

import copy
import gc
import weakref
from typing import Any

import pytest
import torch
import torch.nn.functional as F
import torch_geometric.nn as nn
from nets import batch_rows
from plain_models import OUT, C, H
from rowwise_nets import BODIES, PLACES, PTR, Body, Layers, N, batches, close, graph, norm, relu, steps
from torch import Tensor
from torch.nn import Linear, Module, ModuleList
from torch.utils._pytree import tree_leaves, tree_map
from torch_geometric.data import Data

from torch_gas import ScaledGNN, SubgraphLoader, scale
from torch_gas.graph.halo import batch_rows as batch_rows_of


def assert_exact(model: ScaledGNN, plain: Module, data: Data) -> None:
    """The contracts of a model without random numbers: exact rows, the fixed point, inference and training."""
    for training in (False, True):
        want = plain.train(training)(data.x, data.edge_index)
        with torch.no_grad():
            model.eval()(data)
        model.train(training)
        for batch in batches(data):
            close(model(batch), tree_map(lambda each: each[batch_rows(batch)], want))  # noqa: B023
    with torch.no_grad():
        model.eval()
        want = plain.eval()(data.x, data.edge_index)
        for history in model.histories:
            history.reset_parameters()
        for _ in range(model.num_layers - 1):
            for batch in batches(data):
                model(batch)
        for batch in batches(data):
            close(model(batch), tree_map(lambda each: each[batch_rows(batch)], want))  # noqa: B023
        for history in model.histories:
            history.reset_parameters()
        close(model(loader=batches(data)), want)
    for batch in batches(data):
        sum(each.sum() for each in tree_leaves(model.train()(batch))).backward()
    (everything,) = batches(data, torch.tensor([0, N]))
    grads = []
    for net, given in ((model.train(), (everything,)), (plain.train(), (data.x, data.edge_index))):
        net.zero_grad()
        sum(each.square().sum() for each in tree_leaves(net(*given))).backward()
        grads.append([parameter.grad for parameter in (net.model if net is model else net).parameters()])
    for got, wanted in zip(*grads, strict=True):
        assert (got is None) == (wanted is None)
        if got is not None:
            torch.testing.assert_close(got, wanted, rtol=1e-3, atol=1e-4)


@pytest.mark.parametrize("places", PLACES)
@pytest.mark.parametrize("name", BODIES)
def test_code_between_layers(name: str, places: str) -> None:
    body, by_default, cheap = BODIES[name]
    data, plain = graph(), Layers(body)
    model = scale(copy.deepcopy(plain), data, places=places)
    want = {"outputs": (), "row-wise": by_default, "cheap": cheap}[places]
    assert steps(model) == [want, want]
    assert [history.behind for history in model.histories][-2:] == [", ".join(want)] * 2  # behind those of inputs
    assert_exact(model, plain, data)


@pytest.mark.parametrize("mode", ["cat", "max", "lstm"])
@pytest.mark.parametrize("in_the_middle", [False, True])
def test_jumping_knowledge(mode: str, in_the_middle: bool) -> None:
    class Net(Module):
        def __init__(self) -> None:
            super().__init__()
            torch.manual_seed(0)
            self.convs, self.jump = ModuleList([nn.SAGEConv(C, C) for _ in range(3)]), nn.JumpingKnowledge(mode, C, 3)
            width = 3 * C if mode == "cat" else C
            self.last: Module = nn.SAGEConv(width, OUT) if in_the_middle else Linear(width, OUT)

        def forward(self, x: Tensor, edge_index: Tensor) -> Tensor:
            found = []
            for conv in self.convs:
                x = conv(x, edge_index).relu()
                found.append(x)
            x = self.jump(found)
            return self.last(x, edge_index) if in_the_middle else self.last(x)

    plain = Net()
    model = scale(copy.deepcopy(plain), graph())
    assert steps(model) == [("relu",)] * (3 if in_the_middle else 2)
    assert_exact(model, plain, graph())


@pytest.mark.parametrize("block", ["res+", "res", "dense", "plain"])
@pytest.mark.parametrize("places", PLACES)
def test_deep_layers(block: str, places: str) -> None:
    class Net(Module):
        def __init__(self) -> None:
            super().__init__()
            torch.manual_seed(0)
            self.layers, width = ModuleList(), C
            for _ in range(3):
                between = torch.nn.LayerNorm(width if block == "res+" else C)
                self.layers.append(nn.DeepGCNLayer(nn.SAGEConv(width, C), between, torch.nn.ReLU(), block, 0.0))
                width += C if block == "dense" else 0

        def forward(self, x: Tensor, edge_index: Tensor) -> Tensor:
            for layer in self.layers:
                x = layer(x, edge_index)
            return x

    plain = Net()
    assert_exact(scale(copy.deepcopy(plain), graph(), places=places), plain, graph())


def test_outputs_before_and_behind_an_activation() -> None:
    class Net(Layers):
        def forward(self, x: Tensor, edge_index: Tensor) -> Any:
            raw = self.convs[0](self.first(x), edge_index)
            rows = self.convs[1](raw.relu(), edge_index).relu()
            return {"raw": raw, "more": (rows, [self.convs[2](rows, edge_index).softmax(-1)])}

    plain = Net(relu)
    model = scale(copy.deepcopy(plain), graph())
    assert steps(model) == [(), ("relu",)]
    assert_exact(model, plain, graph())


# -- what histories hold, and whose rows are computed ------------------------------------------------------------------


@pytest.mark.parametrize("places", PLACES)
def test_histories_hold_what_code_gave(places: str) -> None:
    data, plain = graph(), Layers(norm).eval()
    model = scale(plain, data, places=places).train()
    for batch in [*batches(data), *batches(data)]:  # rows of inputs first
        model(batch)
    with torch.no_grad():
        raw = plain.convs[0](plain.first(data.x), data.edge_index)
        want = F.layer_norm(raw, (H,)).relu() if places == "cheap" else raw
    close(model.histories[-2].emb, want)
    relus = scale(Layers(relu).eval(), data, places=places).train()
    for batch in [*batches(data), *batches(data)]:  # rows of inputs first
        relus(batch)
    close(relus.histories[-2].emb, raw if places == "outputs" else raw.relu())


@pytest.mark.parametrize("places", PLACES)
def test_outputs_without_history_keep_the_rows_of_the_batch(places: str) -> None:
    data, plain, seen = graph(), Layers(relu), []
    plain.last.register_forward_hook(lambda module, args, out: seen.append(len(args[0])))
    model = scale(plain, data, places=places).train()
    if places != "outputs":
        assert [place.scope for place, names in model.found.steps.items() if names is None] == ["convs.2"]
    for batch in batches(data):
        seen.clear()
        model(batch)
        assert seen == [batch.n_id.numel() if places == "outputs" else batch.batch_size]


class Branches(Layers):
    """The first convolution needs no history, and rows of the halo are read on after it."""

    def forward(self, x: Tensor, edge_index: Tensor) -> Tensor:
        x = self.first(x)
        beside = self.convs[0](x, edge_index).relu()
        x = torch.maximum(x * self.row, self.row)
        rows = self.convs[1](x, edge_index).relu() * self.row
        return self.last(beside + self.convs[2](rows, edge_index) + x)


def test_a_row_that_is_taken_for_each_node() -> None:
    """A batch of one node has as many rows as a parameter has."""
    plain = Branches(relu)
    model = scale(copy.deepcopy(plain), graph())
    assert [place.scope for place, names in model.found.steps.items() if names is None] == ["convs.0", "convs.2"]
    assert_exact(model, plain, graph())


def test_tensors_one_behind_the_other_are_no_rows() -> None:
    """The last convolution is followed by a list of edges' weights, of which a batch may have as many as rows."""

    class Net(Layers):
        def forward(self, x: Tensor, edge_index: Tensor) -> Tensor:
            out = super().forward(x, edge_index)
            number = edge_index.size(1)
            both = torch.cat([out.new_ones(number, 1), out.new_ones(x.size(0), 1)])
            assert len(both) == number + x.size(0)
            return out

    steps_apart = torch.arange(N)
    data = Data(x=torch.rand(N, C), edge_index=torch.stack([(steps_apart + 7) % N, steps_apart]))  # one edge a node
    plain = Net(relu)
    model = scale(copy.deepcopy(plain), data)
    with torch.no_grad():
        full = model.eval()(data)
        for batch in batches(data):
            assert batch.num_edges == batch.batch_size < batch.n_id.numel()
            close(model(batch), full[batch_rows(batch)])


def test_weights_with_as_many_rows_as_a_batch() -> None:
    data = graph()
    for width in sorted({batch.n_id.numel() for batch in batches(data)} | {14 - 1, 61}):
        plain = Layers(lambda m, c, x, e, f: m.gate(c(x, e)).relu(), width=width)
        assert_exact(scale(copy.deepcopy(plain), data, places="cheap"), plain, data)


# -- errors ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("other", "what"),
    [
        (lambda m, c, x, e, f: c(x, e).tanh(), "forward calls tanh where it called relu"),
        (lambda m, c, x, e, f: F.layer_norm(c(x, e), (H,)).relu(), "forward calls layer_norm where it called relu"),
        (lambda m, c, x, e, f: c(x, e).view(-1, H).relu(), "forward calls view where it called relu"),
    ],
)
def test_other_code_than_before(other: Body, what: str) -> None:
    data, plain = graph(), Layers(relu)
    model = scale(plain, data).train()
    plain.body = other
    with pytest.raises(RuntimeError, match=f'behind convs.0, {what}.*places="outputs"'):
        model(next(iter(batches(data))))
    plain.body = relu
    model(next(iter(batches(data))))  # usable still
    outputs = scale(plain, data, places="outputs").train()
    plain.body = other
    outputs(next(iter(batches(data))))


@pytest.mark.parametrize("conv", [nn.SAGEConv, nn.GCNConv])
def test_models_are_left_as_they_were(conv: Any) -> None:
    def body(m: Any, c: Module, x: Tensor, e: Tensor, f: Tensor) -> Tensor:
        h = c(x, e)
        if m.fails and c is m.convs[1]:
            raise KeyError("on purpose")
        return h.relu()

    def parts() -> Any:
        return {name: (set(vars(each)), len(each._forward_hooks)) for name, each in plain.named_modules()}

    data, plain = graph(), Layers(body, conv)
    plain.fails = False
    before = parts()
    model = scale(plain, data).train()
    plain.fails = True
    for given in (*batches(data), data):
        with pytest.raises(KeyError):
            model(given)
        assert parts() == before
        assert not torch.overrides._get_current_function_mode_stack()
    plain.fails = False
    with torch.no_grad():
        full = model.eval()(data)
        for batch in batches(data):
            close(model(batch), full[batch_rows(batch)])


@pytest.mark.parametrize("flow", ["source_to_target", "target_to_source"])  # of which one takes several trials
def test_models_are_freed_at_once(flow: str) -> None:
    data = graph()
    plain = Layers(relu, lambda a, b: nn.GCNConv(a, b, flow=flow))
    gc.collect()
    gc.disable()
    try:
        model = scale(plain, data)
        loader = SubgraphLoader(data, PTR, 1, neighbors=model.found.neighbors)
        for batch in loader:
            model.train()(batch).sum().backward()
        left = weakref.ref(plain)
        del model, plain, batch
        assert left() is None
    finally:
        gc.enable()


@pytest.mark.parametrize("places", PLACES)
@pytest.mark.filterwarnings("ignore:Full backward hook is firing")
@pytest.mark.parametrize("at_once", [True, False])
def test_hooks_of_modules(at_once: bool, places: str) -> None:
    """Places are where they are without hooks, and gradients what they are."""

    class Net(Module):
        def __init__(self) -> None:
            super().__init__()
            torch.manual_seed(0)
            self.convs, self.act, self.last = (
                ModuleList([nn.GCNConv(C, C), nn.SAGEConv(C, C)]),
                torch.nn.ReLU(),
                Linear(C, OUT),
            )

        def forward(self, x: Tensor, edge_index: Tensor) -> Tensor:
            for conv in self.convs:
                x = self.act(conv(x, edge_index))
            return self.last(x)

    plain, data = Net(), graph()
    seen: list[tuple[Module, str, Any]] = []

    def watch(net: Module) -> None:
        for module in net.modules():
            module.register_forward_hook(lambda module, args, out: seen.append((module, "forward", out)))
            module.register_full_backward_hook(lambda module, grads, out: seen.append((module, "backward", grads)))

    hooked = copy.deepcopy(plain)
    if at_once:
        watch(hooked)
    model, twin = scale(hooked, data, places=places), scale(plain, data, places=places)
    assert model.found.needs == twin.found.needs and steps(model) == steps(twin)
    if not at_once:
        watch(hooked)
    seen.clear()
    grads = []
    for each in (model, twin):
        for batch in batches(data):
            each(batch).square().sum().backward()
        grads.append([parameter.grad for parameter in each.model.parameters()])
    for left, right in zip(*grads, strict=True):
        torch.testing.assert_close(left, right, rtol=1e-4, atol=1e-6)
    for module in (hooked.act, *hooked.convs, hooked.last):
        kinds = [kind for owner, kind, _ in seen if owner is module]
        assert kinds.count("forward") == kinds.count("backward") > 0


def test_hooks_that_look_on_keep_gradients_short(monkeypatch: pytest.MonkeyPatch) -> None:
    class Net(Module):
        def __init__(self) -> None:
            super().__init__()
            self.convs = ModuleList([nn.SAGEConv(C, C), nn.SAGEConv(C, OUT)])

        def forward(self, x: Tensor, edge_index: Tensor) -> Tensor:
            return self.convs[1](self.convs[0](x, edge_index).relu(), edge_index)

    net, data = Net(), graph()
    for conv in net.convs:
        conv.register_forward_hook(lambda *_: None)
        conv.register_forward_pre_hook(lambda *_: None)
    model, known = scale(net, data), []
    monkeypatch.setattr("torch_gas.graph.product.batch_rows", lambda x: (known.append(batch_rows_of(x)), known[-1])[1])
    model(next(iter(batches(data))))
    assert known[-1] is not None
