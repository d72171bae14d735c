"""Which places the trial finds in small models, and what they need."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch_geometric.nn as nn
from graphs import FORMATS, random_graph, to_format
from plain_models import MODELS, OUT, C, H, Own, Shared, TutorialConv, alone, layered
from torch import Tensor
from torch.nn import Linear, Module
from torch_geometric.data import Data
from torch_geometric.utils import degree

from torch_gas import scale
from torch_gas.wiring.places import Handler, Place, Places
from torch_gas.wiring.undo import Undo

N = 60


def graph(fmt: str = "edge_index") -> Data:
    data = random_graph(N, 240, seed=1)
    src, dst = data.edge_index
    data.edge_index = data.edge_index[:, (dst * N + src).argsort()]
    return to_format(data, fmt)


def needs(model: Module, data: Data | None = None) -> list[tuple[str, str, str, int, tuple[int, ...]]]:
    """(scope, kind, action, number, shape) of each place, in order."""
    found = scale(model, data or graph()).found
    return [(p.scope, p.kind, n.action, n.number, n.shape) for p, n in found.needs.items()]


def output(scope: str, number: int, *shape: int) -> Any:
    return scope, "output", "history", number, shape


def hop(scope: str, number: int, *shape: int) -> Any:
    return scope, "hop", "history", number, shape


def rows(scope: str, number: int = 0) -> Any:
    return scope, "reduction", "rows", number, ()


NEEDS: dict[str, tuple[Callable[[], Module], list[Any]]] = {
    "GCN": (
        lambda: nn.GCN(C, H, 3, OUT),
        [
            rows("convs.0"),
            output("convs.0", 0, H),
            rows("convs.1"),
            output("convs.1", 1, H),
            rows("convs.2"),
        ],
    ),
    "GAT": (lambda: nn.GAT(C, H, 3, OUT), [output("convs.0", 0, H), output("convs.1", 1, H)]),
    "GAT-heads": (lambda: nn.GAT(C, H, 2, OUT, heads=2), [output("convs.0", 0, H)]),
    "JK": (
        lambda: nn.GraphSAGE(C, H, 3, OUT, jk="cat"),
        [output("convs.0", 0, H), output("convs.1", 1, H)],
    ),
    "one-layer": (alone(lambda: nn.SAGEConv(C, OUT)), []),
    "SGConv": (
        alone(lambda: nn.SGConv(C, OUT, K=3)),
        [rows("convs.1"), hop("convs.1", 0, C), hop("convs.1", 1, C)],
    ),
    "APPNP": (
        alone(lambda: nn.APPNP(3, 0.1)),
        [rows("convs.1"), hop("convs.1", 0, C), hop("convs.1", 1, C)],
    ),
    "shared": (
        lambda: Shared(nn.SAGEConv(H, H)),
        [output("conv", 0, H), output("conv#2", 1, H)],
    ),
    "tutorial": (
        layered(TutorialConv),
        [
            rows("convs.0"),
            output("convs.0", 0, H),
            rows("convs.1"),
            output("convs.1", 1, H),
            rows("convs.2"),
        ],
    ),
    "Cheb": (
        alone(lambda: nn.ChebConv(C, OUT, 3)),
        [("convs.1", "reduction", "sum", 0, ()), hop("convs.1", 0, C)],
    ),
    "PDN": (
        layered(lambda i, o: nn.PDNConv(i, o, 3, 4), "edge_attr"),
        [
            ("convs.0", "reduction", "history", 0, ()),
            output("convs.0", 1, H),
            ("convs.1", "reduction", "history", 2, ()),
            output("convs.1", 3, H),
            ("convs.2", "reduction", "history", 4, ()),
        ],
    ),
}


@pytest.mark.parametrize("name", NEEDS)
def test_needs(name: str) -> None:
    make, want = NEEDS[name]
    data = graph()
    if name == "PDN":
        data.edge_attr = torch.rand(data.num_edges, 3)
    assert needs(make(), data) == want


def test_maximum_over_edges() -> None:
    found = needs(alone(lambda: nn.ChebConv(C, OUT, 3, normalization=None))())
    assert {("convs.1", "reduction", "sum"), ("convs.1", "maximum", "maximum")} <= {need[:3] for need in found}


@pytest.mark.parametrize("fmt", FORMATS)
@pytest.mark.parametrize("name", ["GCN", "GAT", "SGConv", "shared"])
def test_needs_are_those_of_any_format(name: str, fmt: str) -> None:
    make, want = NEEDS[name]
    assert [need[2:] for need in needs(make(), graph(fmt))] == [need[2:] for need in want]


def test_sums_in_plain_torch() -> None:
    found = needs(layered(lambda i, o: Own(i, o, "index_add_"))())
    assert found == [("", "reduction", "history", i, (H,)) for i in (0, 1)]


def test_layers_before_sums_in_plain_torch() -> None:
    class Mixed(Module):
        def __init__(self) -> None:
            super().__init__()
            self.first, self.second = nn.SAGEConv(C, H), Own(H, OUT, "index_add_")

        def forward(self, x: Tensor, edge_index: Tensor) -> Tensor:
            return self.second(self.first(x, edge_index).relu(), edge_index)

    assert needs(Mixed()) == [output("first", 0, H)]


def test_directions() -> None:
    for name, neighbors in (("DirGNN", "both"), ("outgoing", "both"), ("GCNII", "in"), ("Cheb", "in")):
        assert scale(MODELS[name](), graph()).found.neighbors == neighbors


def test_outputs_with_a_row_for_each_node() -> None:
    model = layered(nn.SAGEConv)()
    weight = model.convs[0].lin_l.weight
    assert scale(model, graph(), inputs=lambda data: (data.x, data.edge_index)).found.per_node == (True,)
    model.body = lambda self, x, adj: {"out": self.convs[0](x, adj), "more": (weight, 3)}
    assert scale(model, graph()).found.per_node == (True, False, False)


# -- tables of the whole graph -----------------------------------------------------------------------------------------


def weighted() -> Data:
    data = graph()
    data.edge_weight = torch.rand(data.num_edges)
    return data


def test_table_of_degrees() -> None:
    data = weighted()
    scaled = scale(nn.GCN(C, H, 3, OUT), data)
    assert len(scaled.tables) == 1
    src, dst = data.edge_index
    loops = src == dst
    weight = data.edge_weight.where(~loops, torch.zeros(()))
    want = torch.zeros(N).index_add(0, dst, weight) + torch.ones(N).index_put((dst[loops],), data.edge_weight[loops])
    torch.testing.assert_close(scaled.tables[0].emb.view(-1), want)


def test_table_of_sums_from_several_batches(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("torch_gas.wiring.trial.structure._EDGES", 40)
    data = graph()
    scaled = scale(alone(lambda: nn.ChebConv(C, OUT, 3))(), data)
    src, dst = data.edge_index
    torch.testing.assert_close(scaled.tables[0].emb.view(-1), degree(src[src != dst], N))


# -- meeting places ----------------------------------------------------------------------------------------------------


class Note(Handler):
    def __init__(self) -> None:
        self.met: list[tuple[Place, tuple[int, ...]]] = []

    def at(self, place: Place, value: Tensor) -> None:
        self.met.append((place, tuple(value.shape)))


def test_places_are_met_in_order_and_change_nothing() -> None:
    data, model, note = graph(), nn.GCN(C, H, 2, OUT).eval(), Note()
    want = model(data.x, data.edge_index)
    with Undo() as undo:
        Places(model, note, N).wire(undo)
        assert torch.equal(model(data.x, data.edge_index), want)
    scopes = [(place.scope, place.kind, shape) for place, shape in note.met]
    one = [("convs.0", "reduction", (N,)), ("convs.0", "hop", (N, H)), ("convs.0", "output", (N, H))]
    assert scopes == one + [(scope.replace("0", "1"), kind, (N, OUT)[: len(shape)]) for scope, kind, shape in one]
    assert "gcn_conv.py" in note.met[0][0].line and "gcn_conv.py" not in note.met[1][0].line
    assert [str(place) for place, _ in note.met[1:3]] == ["hop 1 in convs.0", "convs.0"]
    assert len({place for place, _ in note.met}) == 6
    count = len(note.met)
    model(data.x, data.edge_index)
    assert len(note.met) == count  # nothing is met outside of it


def test_only_the_kinds_of_interest() -> None:
    data, model, note = graph(), nn.GCN(C, H, 2, OUT), Note()
    with Undo() as undo:
        Places(model, note, N, frozenset({"output"})).wire(undo)
        model(data.x, data.edge_index)
    assert [place.kind for place, _ in note.met] == ["output", "output"]


def test_places_are_left_after_an_error() -> None:
    model = nn.GCN(C, H, 2, OUT)
    with pytest.raises(RuntimeError), Undo() as undo:
        Places(model, Note(), N).wire(undo)
        model(graph().x[:, :3], graph().edge_index)
    assert not any("forward" in vars(m) or "propagate" in vars(m) or m._forward_hooks for m in model.modules())
    torch.zeros(3).index_add_(0, torch.tensor([1]), torch.ones(1))
    assert torch.overrides._get_current_function_mode_stack() == []


def test_layers_with_a_forward_of_their_own_keep_it() -> None:
    model = alone(lambda: nn.SAGEConv(C, OUT))()
    conv = model.convs[1]
    own = conv.forward
    conv.forward = lambda x, adj: own(x, adj) * 2
    kept = conv.forward
    scale(model, graph())
    assert conv.forward is kept
    assert isinstance(model.convs[0], Linear)
