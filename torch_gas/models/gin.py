"""GIN (Xu et al., 2019)."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.nn import BatchNorm1d, Identity, Linear, ModuleList, ReLU, Sequential
from torch_geometric.nn import GINConv

from torch_gas._util.arguments import checked
from torch_gas.models.base import Model
from torch_gas.models.dropout import dropout


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
        super().__init__(num_nodes, hidden_channels, num_layers, pool_size, buffer_size, device, **kwargs)
        self.check_sizes(dropout, in_channels=in_channels, out_channels=out_channels)
        self.in_channels = in_channels
        self.out_channels = out_channels
        self.dropout = dropout
        self.drop_input = drop_input
        self.residual = residual

        self.lins = ModuleList()
        self.lins.append(Linear(in_channels, hidden_channels))
        self.lins.append(Linear(hidden_channels, out_channels))
        self.convs = ModuleList()
        for _ in range(num_layers):
            mlp = Sequential(
                Linear(hidden_channels, hidden_channels),
                BatchNorm1d(hidden_channels) if batch_norm else Identity(),
                ReLU(),
                Linear(hidden_channels, hidden_channels),
                ReLU(),
            )
            self.convs.append(GINConv(mlp, train_eps=train_eps))

    @property
    def reg_modules(self) -> ModuleList:
        """All convolutions."""
        return self.convs

    @property
    def nonreg_modules(self) -> ModuleList:
        """The first and the last layer, which are linear."""
        return self.lins

    def forward(self, x: Tensor, adj_t: Any, *args: Any) -> Tensor:
        """Rows of the batch [B, out_channels] from those of batch and halo [B + S, in_channels]."""
        if self.drop_input:
            x = dropout(x, self.dropout, self.training)
        x = self.lins[0](x).relu()

        for i, conv in enumerate(self.convs):
            h = conv(x, adj_t)
            x = h + x[: h.size(0)] if self.residual else h
            if i < self.num_layers - 1:
                x = self.push_and_pull(self.histories[i], x, *args)
            x = dropout(x, self.dropout, self.training)
        return self.lins[1](x)
