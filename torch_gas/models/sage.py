"""GraphSAGE (Hamilton et al., 2017) with mean aggregation."""

from __future__ import annotations

from typing import Any

import torch
from torch_geometric.nn import SAGEConv

from torch_gas._util.arguments import checked
from torch_gas.models.base import Model


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
        histories = {"pool_size": pool_size, "buffer_size": buffer_size, "device": device, **kwargs}
        super().__init__(num_nodes, in_channels, hidden_channels, out_channels, num_layers, dropout, **histories)
        self.add_layers((SAGEConv(*width) for width in self.widths), batch_norm, drop_input, residual)
