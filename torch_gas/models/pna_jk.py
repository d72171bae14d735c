"""PNA with jumping knowledge (Xu et al., 2018)."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor
from torch.nn import BatchNorm1d, Identity, Linear, ModuleList, ReLU, Sequential

from torch_gas._util.arguments import checked
from torch_gas.models.base import Model, batch_norms
from torch_gas.models.dropout import dropout
from torch_gas.models.pna import PNAConv, check_degrees


class PNA_JK(Model):
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

    @checked
    def __init__(
        self,
        num_nodes: int,
        in_channels: int,
        hidden_channels: int,
        out_channels: int,
        num_layers: int,
        aggregators: Sequence[str],
        scalers: Sequence[str],
        deg: Tensor,
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
        check_degrees(self, deg)
        self.in_channels = in_channels
        self.out_channels = out_channels
        self.dropout = dropout
        self.drop_input = drop_input
        self.residual = residual

        self.lins = ModuleList()
        self.lins.append(
            Sequential(
                Linear(in_channels, hidden_channels),
                BatchNorm1d(hidden_channels) if batch_norm else Identity(),
                ReLU(),
            )
        )
        self.lins.append(Linear((num_layers + 1) * hidden_channels, out_channels))
        self.convs = ModuleList(
            PNAConv(hidden_channels, hidden_channels, aggregators, scalers, deg) for _ in range(num_layers)
        )
        self.bns = batch_norms(batch_norm, hidden_channels, num_layers)

    @property
    def reg_modules(self) -> ModuleList:
        """All convolutions."""
        return ModuleList([*self.convs, *self.bns])

    @property
    def nonreg_modules(self) -> ModuleList:
        """The first and the last layer."""
        return self.lins

    def forward(self, x: Tensor, adj_t: Any, *args: Any) -> Tensor:
        """Rows of the batch [B, out_channels] from those of batch and halo [B + S, in_channels]."""
        if self.drop_input:
            x = dropout(x, self.dropout, self.training)
        x = self.lins[0](x)

        xs = [x]
        for i, (conv, bn) in enumerate(zip(self.convs, self.bns, strict=True)):
            h = bn(conv(x, adj_t))
            if self.residual:
                h = h + x[: h.size(0)]
            x = h.relu()
            xs.append(x)
            if i < self.num_layers - 1:
                x = self.push_and_pull(self.histories[i], x, *args)
                x = dropout(x, self.dropout, self.training)
        xs[0] = xs[0][: x.size(0)]
        x = dropout(torch.cat(xs, dim=1), self.dropout, self.training)
        return self.lins[1](x)
