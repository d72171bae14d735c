"""Modules that a user compiled within a model: their code is made once, serves batches of any size, and changes no result."""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any

import pytest
import torch
from dynamo import MARKS, Graphs, forgotten
from graphs import random_graph
from torch import Tensor
from torch.nn import BatchNorm1d, LayerNorm, Linear, Module, ModuleList, ReLU, Sequential
from torch_geometric.nn import GINConv, SAGEConv

from torch_gas import ScalableGNN, ScaledGNN, SubgraphLoader, scale

N, C = 400, 16
PTR = torch.tensor([0, 110, 205, 302, N])  # batches of four sizes
NORMS: dict[str, Callable[[], list[Module]]] = {
    "none": list,
    "batch": lambda: [BatchNorm1d(C)],
    "layer": lambda: [LayerNorm(C)],
}

pytestmark = MARKS
_no_compiled_code = pytest.fixture(autouse=True)(forgotten)


class Block(Sequential):
    """Of torch's own one, `compile()` compiles nothing."""

    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x)


class Plain(Module):
    """A module inside of a convolution, and another one between two."""

    def __init__(self, norm: str) -> None:
        super().__init__()
        torch.manual_seed(0)
        mlp = Block(Linear(8, C), *NORMS[norm](), ReLU(), Linear(C, C))
        self.convs = ModuleList([GINConv(mlp), SAGEConv(C, 3)])
        self.between = Block(*NORMS[norm](), ReLU(), Linear(C, C))

    def forward(self, x: Tensor, edge_index: Tensor) -> Tensor:
        return self.convs[1](self.between(self.convs[0](x, edge_index)), edge_index)


class Wired(ScalableGNN):
    """The same, wired by hand."""

    def __init__(self, norm: str) -> None:
        super().__init__(N, C, 2)
        plain = Plain(norm)
        self.convs, self.between = plain.convs, plain.between

    def forward(self, x: Tensor, edge_index: Tensor, *args: Any) -> Tensor:
        x = self.between(self.convs[0](x, edge_index))
        return self.convs[1](self.push_and_pull(self.histories[0], x, *args), edge_index)


def compiled(net: Any, backend: Graphs, in_place: bool) -> Any:
    net = copy.deepcopy(net)
    if in_place:
        net.convs[0].nn.compile(backend=backend)
        net.between.compile(backend=backend)
    else:
        net.convs[0].nn = torch.compile(net.convs[0].nn, backend=backend)
        net.between = torch.compile(net.between, backend=backend)
    return net


@pytest.mark.slow
@pytest.mark.filterwarnings(
    "ignore:Using `torch.compile:UserWarning"
)  # of the hook that looks for layers nobody registered
@pytest.mark.parametrize("in_place", [True, False])
@pytest.mark.parametrize("norm", NORMS)
@pytest.mark.parametrize("wiring", ["scale()", "by hand"])
def test_training(wiring: str, norm: str, in_place: bool) -> None:
    data, backend = random_graph(N, 3000), Graphs()
    plain = (Plain if wiring == "scale()" else Wired)(norm)
    models = [compiled(plain, backend, in_place), plain]
    if wiring == "scale()":
        models = [scale(model, data) for model in models]
    assert backend.number == 0  # none for the small graph of a trial
    made: list[int] = []
    for _ in range(2):
        for batch in SubgraphLoader(data, PTR, 1):
            found, expected = (model(batch) for model in models)
            torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-5)
            for out in (found, expected):
                out.square().mean().backward()
            made.append(backend.number)
    assert 0 < made[1] == made[-1]  # with the sizes of the first batch, and of any
    for left, right in zip(*(model.parameters() for model in models), strict=True):
        torch.testing.assert_close(left.grad, right.grad, rtol=1e-3, atol=1e-5)
    for model in models:
        model.eval()
    with torch.no_grad():
        found, expected = (model(data.x, data.edge_index) for model in models)
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-5)


def test_places_are_in_front_of_compiled_code() -> None:
    """Nobody sees what it does, so that histories do not depend on whether it runs compiled."""
    data, plain = random_graph(N, 3000), Plain("none")
    plain.between = torch.compile(ReLU(), backend="eager")
    model = scale(plain, data)
    assert isinstance(model, ScaledGNN) and [history.behind for history in model.histories] == [""]
