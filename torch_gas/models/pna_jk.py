"""PNA with jumping knowledge (Xu et al., 2018)."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import torch
from torch import Tensor
from torch.nn import Linear, Module, ReLU, Sequential

from torch_gas.graph.halo import own_rows
from torch_gas.models.base import norm
from torch_gas.models.pna import PNA


class PNA_JK(PNA):
    r"""PNA whose last layer reads the results of all layers (https://arxiv.org/abs/1806.03536),
    as the paper trains it on Reddit (Table 5 of https://arxiv.org/abs/2106.05609).

    .. math::
        h_v = W \, \Big[ h_v^{(0)} \,\Vert\, h_v^{(1)} \,\Vert \cdots \Vert\, h_v^{(L)} \Big] + b

    Args:
        num_nodes: N.
        in_channels: width of ``x``.
        hidden_channels: width of all convolutions and histories.
        out_channels: width of the output.
        num_layers: number of convolutions, L; a linear layer precedes and another follows them.
        aggregators: any of ``"sum"``, ``"mean"``, ``"min"``, ``"max"``.
        scalers: any of ``"identity"``, ``"amplification"``, ``"attenuation"``.
        deg: in-degree of each node of the whole graph, [N].
        dropout: probability of dropping an entry of a layer's input in training.
        drop_input: whether ``x`` is dropped from as well.
        batch_norm: whether batch norm follows the first layer and each convolution.
        residual: whether a convolution's input is added to its output.
        pool_size, buffer_size, device, **kwargs: see :class:`torch_gas.ScalableGNN`.

    Raises:
        ValueError: if the name of an aggregator or scaler is unknown, or ``deg`` is not [N].

    Example:
        >>> from torch_gas import in_degree
        >>> from torch_gas.datasets import synthetic
        >>> from torch_gas.models import PNA_JK
        >>> data = synthetic(1000)
        >>> deg = in_degree(data.edge_index, data.num_nodes)
        >>> scalers = ["identity", "amplification"]
        >>> model = PNA_JK(1000, data.num_features, 64, 10, 3, ["mean", "max"], scalers, deg)
        >>> model(data.x, data.edge_index).shape
        torch.Size([1000, 10])
    """

    @property
    def widths(self) -> Iterable[tuple[int, int]]:
        """Widths of the input and the output of each convolution, between the linear layers."""
        return [(self.hidden_channels, self.hidden_channels)] * self.num_layers

    def add_layers(
        self, convs: Iterable[Module], batch_norm: bool = False, drop_input: bool = True, residual: bool = False
    ) -> None:
        """Adds the linear layer that precedes the convolutions, the one that reads all results, and then the convolutions."""
        hidden, num_results = self.hidden_channels, self.num_layers + 1
        first = Sequential(Linear(self.in_channels, hidden), norm(batch_norm, hidden), ReLU())
        self.lins.extend([first, Linear(num_results * hidden, self.out_channels)])
        super().add_layers(convs, batch_norm, drop_input, residual)

    def run_layers(self, x: Tensor, ids: tuple[Any, ...], *conv_args: Any) -> Tensor:
        """All layers; the last one reads the results of the others."""
        if self.drop_input:
            x = self.drop(x)
        x = self.lins[0](x)
        xs = [x]
        for i in range(self.num_layers):
            x = self.layer(i, x, *conv_args)
            xs.append(x)
            if i < self.num_layers - 1:
                x = self.drop(self.push_and_pull(self.histories[i], x, *ids))
        xs[0] = own_rows(xs[0], x.size(0))
        return self.lins[1](self.drop(torch.cat(xs, dim=1)))
