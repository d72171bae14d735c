"""Models with row-wise code of many kinds behind their convolutions, and what is compared of them."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
import torch_geometric.nn as nn
from graphs import random_graph
from plain_models import OUT, C, H
from torch import Tensor
from torch.nn import Linear, Module, ModuleList
from torch.utils._pytree import tree_leaves
from torch_geometric.data import Data

from torch_gas import ScaledGNN, SubgraphLoader

N = 60
PTR = torch.tensor([0, 1, 14, 37, N])  # one batch has a single row
PLACES = ["outputs", "row-wise", "cheap"]
Body = Callable[[Any, Module, Tensor, Tensor, Tensor], Tensor]  # one layer: model, convolution, rows, edges, first rows


def graph() -> Data:
    return random_graph(N, 4 * N, seed=1)


def batches(data: Data, ptr: Tensor = PTR) -> SubgraphLoader:
    return SubgraphLoader(data, ptr, 1)


class Layers(Module):
    """Three convolutions between linear layers, each in ``body``."""

    def __init__(self, body: Body, conv: Any = nn.SAGEConv, width: int = H) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.body, self.first, self.last = body, Linear(C, width), Linear(width, OUT)
        self.convs = ModuleList([conv(width, width) for _ in range(3)])
        self.gate, self.alpha = Linear(width, width), torch.nn.Parameter(torch.tensor(0.7))
        self.row = torch.nn.Parameter(torch.rand(1, width))

    def forward(self, x: Tensor, edge_index: Tensor) -> Any:
        x = first = self.first(x)
        for conv in self.convs:
            x = self.body(self, conv, x, edge_index, first)
        return self.last(x)


class Clamp(torch.autograd.Function):
    """Which no mode of torch's functions sees."""

    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        ctx.save_for_backward(x)
        return x.clamp(min=0)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> Tensor:
        return grads[0] * (ctx.saved_tensors[0] > 0)


def relu(m: Any, conv: Module, x: Tensor, e: Tensor, first: Tensor) -> Tensor:
    return conv(x, e).relu()


def norm(m: Any, conv: Module, x: Tensor, e: Tensor, first: Tensor) -> Tensor:
    return F.layer_norm(conv(x, e), (x.size(1),)).relu()


def gated(m: Any, conv: Module, x: Tensor, e: Tensor, first: Tensor) -> Tensor:
    gate = m.gate(x).sigmoid()
    return gate * conv(x, e).relu() + (1 - gate) * x


def in_place(m: Any, conv: Module, x: Tensor, e: Tensor, first: Tensor) -> Tensor:
    h = conv(x, e)
    h += x
    return h.tanh()


def written_later(m: Any, conv: Module, x: Tensor, e: Tensor, first: Tensor) -> Tensor:
    h = conv(x, e).neg()
    h.mul_(2)
    return h.tanh()


def written_by_view(m: Any, conv: Module, x: Tensor, e: Tensor, first: Tensor) -> Tensor:
    h = conv(x, e)
    h.detach()[:, :2].mul_(2)
    return h.tanh()


def fork(m: Any, conv: Module, x: Tensor, e: Tensor, first: Tensor) -> Tensor:
    h = conv(x, e)
    return h.relu() - 0.5 * h


def late_fork(m: Any, conv: Module, x: Tensor, e: Tensor, first: Tensor) -> Tensor:
    h = conv(x, e).tanh()
    return h.relu() - 0.5 * h


def unseen_fork(m: Any, conv: Module, x: Tensor, e: Tensor, first: Tensor) -> Tensor:
    h = conv(x, e)
    return Clamp.apply(h) + h.tanh()


def unseen_in_training(m: Any, conv: Module, x: Tensor, e: Tensor, first: Tensor) -> Tensor:
    h = conv(x, e)
    if not m.training:
        return h.relu()
    with torch._C.DisableTorchFunction():  # as code of torch.jit and of C++ is
        zeros = 0 * h
    return h.relu() + zeros


def by_shape(m: Any, conv: Module, x: Tensor, e: Tensor, first: Tensor) -> Tensor:
    h = conv(x, e)
    return h.relu() if h.shape[0] == x.shape[0] else h.tanh()


def other_in_training(m: Any, conv: Module, x: Tensor, e: Tensor, first: Tensor) -> Tensor:
    return conv(x, e).relu().neg() if m.training else conv(x, e).relu().mul(-1)


def dropped(m: Any, conv: Module, x: Tensor, e: Tensor, first: Tensor) -> Tensor:
    return F.dropout(conv(x, e).relu(), 0.0, m.training)


# What lies behind each convolution but the last, by default and in "cheap".
BODIES: dict[str, tuple[Body, tuple[str, ...], tuple[str, ...]]] = {
    "relu": (relu, ("relu",), ("relu",)),
    "module": (lambda m, c, x, e, f: torch.nn.LeakyReLU(0.2)(c(x, e)), ("leaky_relu",), ("leaky_relu",)),
    "several": (lambda m, c, x, e, f: 1 - 2 * c(x, e).tanh(), ("tanh", "mul", "__rsub__"), ("tanh", "mul", "__rsub__")),
    "product": (lambda m, c, x, e, f: (lambda h: h * h)(c(x, e)), ("mul",), ("mul",)),
    "residual": (lambda m, c, x, e, f: x + c(x, e).relu(), ("relu",), ("relu", "add")),
    "times alpha": (lambda m, c, x, e, f: torch.add(x, c(x, e), alpha=2).relu(), (), ("add", "relu")),
    "first rows": (lambda m, c, x, e, f: (c(x, e) - 0.2 * f).relu(), (), ("sub", "relu")),
    "shared": (lambda m, c, x, e, f: m.convs[0](x, e).relu(), ("relu",), ("relu",)),
    "learned": (lambda m, c, x, e, f: c(x, e).relu() * m.alpha, ("relu",), ("relu",)),
    "a row": (lambda m, c, x, e, f: c(x, e).relu() * m.row, ("relu",), ("relu",)),
    "gated": (gated, ("relu",), ("relu", "mul", "add")),
    "norm": (norm, (), ("layer_norm", "relu")),
    "linear": (lambda m, c, x, e, f: m.gate(c(x, e)).relu(), (), ("linear", "relu")),
    "dropout": (dropped, ("relu",), ("relu", "dropout")),
    "in place": (in_place, (), ()),
    "activation in place": (lambda m, c, x, e, f: F.relu(c(x, e), inplace=True), (), ()),
    "written later": (written_later, ("neg",), ("neg",)),
    "written by view": (written_by_view, (), ()),
    "fork": (fork, (), ()),
    "late fork": (late_fork, ("tanh",), ("tanh",)),
    "unseen": (lambda m, c, x, e, f: Clamp.apply(c(x, e)), (), ()),
    "unseen fork": (unseen_fork, (), ()),
    "unseen in training": (unseen_in_training, (), ()),
    "by shape": (by_shape, (), ()),
    "other in training": (other_in_training, ("relu",), ("relu",)),
    "rows beside": (lambda m, c, x, e, f: (lambda h: torch.where(h > 0, h, f))(c(x, e)), (), ()),
    "columns": (lambda m, c, x, e, f: c(x, e).clamp(min=torch.zeros(H)), (), ()),
}


def steps(model: ScaledGNN) -> list[tuple[str, ...] | None]:
    """Names of the functions in front of each history behind a layer, in their order."""
    places = [place for place, need in model.found.needs.items() if need.action == "history" and place.kind == "output"]
    found = [model.found.steps.get(place, ()) for place in places]
    return [None if each is None else tuple(step.name for step in each) for each in found]


def close(left: Any, right: Any) -> None:
    for a, b in zip(tree_leaves(left), tree_leaves(right), strict=True):
        torch.testing.assert_close(a, b, rtol=1e-4, atol=1e-5)
