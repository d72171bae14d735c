"""GCNII (Chen et al., 2020)."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.nn import Linear, ModuleList
from torch_geometric.nn import GCN2Conv

from torch_gas._util.arguments import checked
from torch_gas.models.base import Model, batch_norms
from torch_gas.models.dropout import dropout


class GCN2(Model):
    r"""GCNII, a deep GCN with initial residual connection and identity mapping
    (https://arxiv.org/abs/2007.02133; Tables 1 and 5 of https://arxiv.org/abs/2106.05609).

    .. math::
        H^{(l)} = \mathrm{ReLU}\Big(\big((1 - \alpha) \hat{A} H^{(l-1)} + \alpha H^{(0)}\big)
        \big((1 - \beta_l) I + \beta_l W^{(l)}\big)\Big), \qquad \beta_l = \log(\theta / l + 1)

    The weights :math:`\hat{A}` belong to the whole graph: get them from :func:`torch_gas.gcn_norm`.

    Args:
        num_nodes: N.
        in_channels: width of ``x``.
        hidden_channels: width of all convolutions and histories.
        out_channels: width of the output.
        num_layers: number of convolutions, L; a linear layer precedes and another follows them.
        alpha: strength of the initial residual connection.
        theta: strength of the weights :math:`W^{(l)}` against the identity.
        shared_weights: whether neighbours and :math:`H^{(0)}` share :math:`W^{(l)}`; if not, each
            has its own.
        dropout: probability of dropping an entry of a layer's input in training.
        drop_input: whether ``x`` is dropped from as well.
        batch_norm: whether batch norm follows each convolution.
        residual: whether a convolution's input is added to its output.
        pool_size, buffer_size, device, **kwargs: see :class:`torch_gas.ScalableGNN`.

    Example:
        >>> from torch_gas import gcn_norm
        >>> from torch_gas.datasets import synthetic
        >>> from torch_gas.models import GCN2
        >>> data = gcn_norm(synthetic(1000))
        >>> model = GCN2(1000, data.num_features, 64, 10, num_layers=8, alpha=0.1, theta=0.5)
        >>> model(data.x, data.edge_index, edge_weight=data.edge_weight).shape
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
        alpha: float,
        theta: float,
        shared_weights: bool = True,
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
        self.check_share(alpha=alpha)
        if theta < 0:
            raise ValueError(f"GCN2: theta must not be negative, but is {theta}")
        self.in_channels = in_channels
        self.out_channels = out_channels
        self.dropout = dropout
        self.drop_input = drop_input
        self.residual = residual

        self.lins = ModuleList()
        self.lins.append(Linear(in_channels, hidden_channels))
        self.lins.append(Linear(hidden_channels, out_channels))
        self.convs = ModuleList(
            GCN2Conv(hidden_channels, alpha, theta, i + 1, shared_weights, normalize=False) for i in range(num_layers)
        )
        self.bns = batch_norms(batch_norm, hidden_channels, num_layers)

    @property
    def reg_modules(self) -> ModuleList:
        """All convolutions."""
        return ModuleList([*self.convs, *self.bns])

    @property
    def nonreg_modules(self) -> ModuleList:
        """The first and the last layer, which are linear."""
        return self.lins

    def forward(self, x: Tensor, adj_t: Any, *args: Any, edge_weight: Tensor | None = None) -> Tensor:
        """Rows of the batch [B, out_channels] from those of batch and halo [B + S, in_channels]."""
        self.check_edge_weight(adj_t, edge_weight)
        if self.drop_input:
            x = dropout(x, self.dropout, self.training)
        x = x_0 = self.lins[0](x).relu()
        x = dropout(x, self.dropout, self.training)

        for i, (conv, bn) in enumerate(zip(self.convs, self.bns, strict=True)):
            h = bn(conv(x, x_0, adj_t, edge_weight))
            if self.residual:
                h = h + x[: h.size(0)]
            x = h.relu()
            if i < self.num_layers - 1:
                x = self.push_and_pull(self.histories[i], x, *args)
            x = dropout(x, self.dropout, self.training)
        return self.lins[1](x)
