"""What draws random numbers in a forward pass is named."""

from __future__ import annotations

import random
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from graphs import random_graph
from torch import Tensor
from torch.nn import Module
from torch_geometric.nn import SAGEConv, SuperGATConv
from torch_geometric.utils import dropout_edge

from torch_gas import scale
from torch_gas.checkpoint.rng import random_states
from torch_gas.extensions import DropoutById
from torch_gas.wiring.draws import is_same_state, refuse_draws

DATA = random_graph(30, 90)


class Net(Module):
    def __init__(self, function: Callable[[Tensor], Any] = lambda x: x, conv: Any = SAGEConv) -> None:
        super().__init__()
        self.convs, self.function = torch.nn.ModuleList([conv(8, 8), SAGEConv(8, 3)]), function

    def forward(self, x: Tensor, edge_index: Tensor) -> Tensor:
        return self.convs[1](self.function(self.convs[0](x, edge_index)), edge_index)


def _noise(x: Tensor) -> Tensor:
    return x + torch.randn_like(x)


def _edges(x: Tensor) -> Tensor:
    dropout_edge(DATA.edge_index)
    return x


def _numpy(x: Tensor) -> Tensor:
    return x * float(np.random.rand())


def _python(x: Tensor) -> Tensor:
    return x * random.random()


def _own(x: Tensor) -> Tensor:
    return x + torch.rand(8, generator=GENERATOR)


def _caught(x: Tensor) -> Tensor:
    try:
        return x.clone().uniform_()
    except ValueError:
        return x


GENERATOR = torch.Generator()

DRAWS = [
    (
        lambda x: F.dropout(x),
        "by torch.nn.functional.dropout, called in <lambda> .*add_extension.torch_gas.extensions.DropoutById",
    ),
    (lambda x: F.alpha_dropout(x, 0.5, True), "by torch.nn.functional.alpha_dropout, .*drop entries by"),
    (lambda x: F.dropout1d(x), "by torch.nn.functional.dropout1d, "),
    (lambda x: F.rrelu(x, training=True), "by torch.nn.functional.rrelu, "),
    (lambda x: F.gumbel_softmax(x), "by torch.nn.functional.gumbel_softmax, "),
    (_noise, r"by torch.randn_like, called in _noise \(test_draws.py:"),
    (_edges, r"by torch.rand, called in dropout_edge \(dropout.py:"),
    (_numpy, "by numpy.random"),
    (_python, "by random"),
    (_own, "by torch.rand, called in _own"),
    (_caught, "by torch.Tensor.uniform_, called in _caught"),
]


@pytest.mark.parametrize(("function", "message"), DRAWS)
def test_draws_are_named(function: Callable[[Tensor], Any], message: str) -> None:
    net, before = Net(function), random_states()
    with pytest.raises(ValueError, match=f"Net draws random numbers {message}"):
        refuse_draws(net, lambda: net(DATA.x, DATA.edge_index))
    assert is_same_state(before, random_states())


def test_layers_are_named() -> None:
    net = Net(conv=SuperGATConv)
    with pytest.raises(ValueError, match=r"random numbers in convs.0 \(SuperGATConv\) by random, called in sample"):
        refuse_draws(net, lambda: net(DATA.x, DATA.edge_index))


def test_what_draws_nothing() -> None:
    net = Net(lambda x: F.dropout(x, training=net.training)).eval()
    out = refuse_draws(net, lambda: net(DATA.x, DATA.edge_index))
    assert torch.equal(out, net(DATA.x, DATA.edge_index))
    model = scale(net, DATA)
    model.add_extension(DropoutById(seed=0))
    refuse_draws(net, lambda: model.train()(DATA))
    model.remove_extension(model.extensions[0])
    with pytest.raises(ValueError, match=r"by torch_gas\.graph\.dropout"):
        refuse_draws(net, lambda: model(DATA))
