"""GraphSAGE (Hamilton et al., 2017) with mean aggregation."""

from __future__ import annotations

from itertools import pairwise
from typing import Any

import torch
from torch import Tensor
from torch.nn import ModuleList
from torch_geometric.nn import SAGEConv

from torch_gas._util.arguments import checked
from torch_gas.models.base import Model, batch_norms
from torch_gas.models.dropout import dropout


class SAGE(Model):
    r"""GraphSAGE (https://arxiv.org/abs/1706.02216) on all neighbours instead of sampled ones.

    .. math::
        h_v^{(l)} = \mathrm{ReLU}\Big(W_1^{(l)} h_v^{(l-1)} +
        W_2^{(l)} \, \mathrm{mean}_{w \in N(v)} h_w^{(l-1)} + b^{(l)}\Big)

    Args:
        num_nodes: N.
        in_channels: width of ``x``.
        hidden_channels: width of hidden layers and histories.
        out_channels: width of the output.
        num_layers: number of convolutions, L.
        dropout: probability of dropping an entry of a layer's input in training.
        drop_input: whether ``x`` is dropped from as well.
        batch_norm: whether batch norm follows each hidden convolution.
        residual: whether a hidden convolution's input is added to its output where widths agree.
        pool_size, buffer_size, device, **kwargs: see :class:`torch_gas.ScalableGNN`.

    Example:
        >>> from torch_gas.datasets import synthetic
        >>> from torch_gas.models import SAGE
        >>> data = synthetic(1000)
        >>> model = SAGE(1000, data.num_features, 16, out_channels=10, num_layers=2)
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
        batch_norm: bool = False,
        residual: bool = False,
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

        widths = [in_channels, *[hidden_channels] * (num_layers - 1), out_channels]
        self.convs = ModuleList(SAGEConv(*width) for width in pairwise(widths))
        self.bns = batch_norms(batch_norm, hidden_channels, num_layers - 1)

    @property
    def reg_modules(self) -> ModuleList:
        """All but the last convolution."""
        return ModuleList([*self.convs[:-1], *self.bns])

    @property
    def nonreg_modules(self) -> ModuleList:
        """The last convolution."""
        return self.convs[-1:]

    def forward(self, x: Tensor, adj_t: Any, *args: Any) -> Tensor:
        """Rows of the batch [B, out_channels] from those of batch and halo [B + S, in_channels]."""
        if self.drop_input:
            x = dropout(x, self.dropout, self.training)

        for conv, bn, history in zip(self.convs[:-1], self.bns, self.histories, strict=True):
            h = bn(conv(x, adj_t))
            if self.residual and h.size(1) == x.size(1):
                h = h + x[: h.size(0)]
            x = self.push_and_pull(history, h.relu(), *args)
            x = dropout(x, self.dropout, self.training)
        return self.convs[-1](x, adj_t)
