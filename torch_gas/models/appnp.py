"""APPNP (Klicpera et al., 2019) with a history between its propagation steps."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.nn import Linear, ModuleList
from torch_geometric.nn import LGConv

from torch_gas._util.arguments import checked
from torch_gas.graph.halo import own_rows
from torch_gas.models.base import WeightedModel


class APPNP(WeightedModel):
    r"""Approximate personalised propagation of neural predictions
    (https://arxiv.org/abs/1810.05997; Table 1 of https://arxiv.org/abs/2106.05609).

    .. math::
        H^{(l)} = (1 - \alpha) \hat{A} H^{(l-1)} + \alpha H^{(0)},
        \qquad H^{(0)} = \mathrm{MLP}(X)

    The MLP has two layers; each propagation step is a layer with a history, ``out_channels`` wide.
    The weights :math:`\hat{A}` belong to the whole graph: get them from :func:`torch_gas.gcn_norm`.

    Args:
        num_nodes: N.
        in_channels: width of ``x``.
        hidden_channels: width of the MLP's hidden layer.
        out_channels: width of the output and of histories.
        num_layers: number of propagation steps, L.
        alpha: teleport probability.
        dropout: probability of dropping an entry of the MLP's inputs in training.
        pool_size, buffer_size, device, **kwargs: see :class:`torch_gas.ScalableGNN`.

    Example:
        >>> from torch_gas import gcn_norm
        >>> from torch_gas.datasets import synthetic
        >>> from torch_gas.models import APPNP
        >>> data = gcn_norm(synthetic(1000))
        >>> model = APPNP(1000, data.num_features, 64, out_channels=10, num_layers=10, alpha=0.1)
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
        dropout: float = 0.0,
        pool_size: int | None = None,
        buffer_size: int | None = None,
        device: torch.device | str | int | None = None,
        **kwargs: Any,
    ) -> None:
        self.check_sizes(hidden_channels=hidden_channels)
        self.check_share(alpha=alpha)
        histories = {"pool_size": pool_size, "buffer_size": buffer_size, "device": device, **kwargs}
        super().__init__(num_nodes, in_channels, out_channels, out_channels, num_layers, dropout, **histories)
        self.alpha = alpha
        self.lins.extend([Linear(in_channels, hidden_channels), Linear(hidden_channels, out_channels)])
        self.conv = LGConv(normalize=False)  # a product with the adjacency, without parameters

    @property
    def reg_modules(self) -> ModuleList:
        """The first linear layer."""
        return self.lins[:1]

    @property
    def nonreg_modules(self) -> ModuleList:
        """The second linear layer."""
        return self.lins[1:]

    def run_layers(self, x: Tensor, ids: tuple[Any, ...], *conv_args: Any) -> Tensor:
        """The MLP, then L propagation steps."""
        x = self.drop(self.lins[0](self.drop(x)).relu())
        x = x_0 = self.lins[1](x)
        for i in range(self.num_layers):
            h = self.conv(x, *conv_args)
            x_0 = own_rows(x_0, h.size(0))
            x = (1 - self.alpha) * h + self.alpha * x_0
            if i < self.num_layers - 1:
                x = self.push_and_pull(self.histories[i], x, *ids)
        return x
