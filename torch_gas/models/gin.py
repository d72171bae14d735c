"""GIN (Xu et al., 2019)."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.nn import Linear, Module, ReLU, Sequential
from torch_geometric.nn import GINConv

from torch_gas._util.arguments import checked
from torch_gas.models.base import Model, norm


class GIN(Model):
    r"""Graph isomorphism network (https://arxiv.org/abs/1810.00826), as the paper trains it on
    CLUSTER (Section 6.1 of https://arxiv.org/abs/2106.05609).

    .. math::
        h_v^{(l)} = \mathrm{MLP}^{(l)}\Big((1 + \epsilon_l) h_v^{(l-1)} +
        \sum_{w \in N(v)} h_w^{(l-1)}\Big) + h_v^{(l-1)}

    A linear layer precedes and another follows the convolutions. Batch norm keeps running
    statistics, so that a node's output in evaluation does not depend on its batch.

    Args:
        num_nodes: N.
        in_channels: width of ``x``.
        hidden_channels: width of all convolutions, their MLPs and histories.
        out_channels: width of the output.
        num_layers: number of convolutions, L.
        dropout: probability of dropping an entry of a layer's input in training.
        drop_input: whether ``x`` is dropped from as well.
        batch_norm: whether batch norm follows the first layer of each MLP.
        residual: whether a convolution's input is added to its output.
        train_eps: whether :math:`\epsilon_l` is learned; 0 otherwise.
        pool_size, buffer_size, device, **kwargs: see :class:`torch_gas.ScalableGNN`.

    Example:
        >>> from torch_gas.datasets import synthetic
        >>> from torch_gas.models import GIN
        >>> data = synthetic(1000)
        >>> model = GIN(1000, data.num_features, 64, out_channels=10, num_layers=4)
        >>> model(data.x, data.edge_index).shape
        torch.Size([1000, 10])
    """

    @checked
    def __init__(
        self,
        num_nodes: int,
        in_channels: int,
        hidden_channels: int,
        out_channels: int,
        num_layers: int,
        dropout: float = 0.0,
        drop_input: bool = True,
        batch_norm: bool = True,
        residual: bool = True,
        train_eps: bool = True,
        pool_size: int | None = None,
        buffer_size: int | None = None,
        device: torch.device | str | int | None = None,
        **kwargs: Any,
    ) -> None:
        histories = {"pool_size": pool_size, "buffer_size": buffer_size, "device": device, **kwargs}
        super().__init__(num_nodes, in_channels, hidden_channels, out_channels, num_layers, dropout, **histories)
        self.add_linear()
        convs = (GINConv(self.make_mlp(batch_norm), train_eps=train_eps) for _ in range(num_layers))
        self.add_layers(convs, drop_input=drop_input, residual=residual)

    def make_mlp(self, batch_norm: bool) -> Module:
        """The MLP of a convolution; it ends with an activation."""
        channels = self.hidden_channels
        first, second = Linear(channels, channels), Linear(channels, channels)
        return Sequential(first, norm(batch_norm, channels), ReLU(), second, ReLU())

    def first_input(self, x: Tensor, *conv_args: Any) -> tuple[Tensor, tuple[Any, ...]]:
        """The input of the first convolution, without dropout."""
        return self.lins[0](x).relu(), conv_args

    def activation(self, x: Tensor) -> Tensor:
        """None: the MLP ends with one, before the residual connection."""
        return x
