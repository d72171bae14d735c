"""GAT (Veličković et al., 2018)."""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.nn import ModuleList
from torch_geometric.nn import GATConv

from torch_gas._util.arguments import checked
from torch_gas.graph.dropout import dropout
from torch_gas.models.base import Model


class _Conv(GATConv):  # type: ignore[misc]  # PyG has no types
    """GAT's convolution; on the CPU its attention coefficients are dropped by this package's function."""

    drop_attention = staticmethod(dropout)


class GAT(Model):
    r"""Graph attention network (https://arxiv.org/abs/1710.10903; Table 1 of
    https://arxiv.org/abs/2106.05609).

    .. math::
        h_v^{(l)} = \Big\Vert_k \mathrm{ELU}\Big(\sum_{w \in N(v)}
        \alpha_{vw}^{(k,l)} W^{(k,l)} h_w^{(l-1)}\Big)

    Hidden layers concatenate their heads, so histories are ``hidden_channels * hidden_heads`` wide;
    the last layer averages them. A node attends to itself if the graph has self-loops: get them
    from :func:`torch_gas.add_self_loops`, as the paper does, or set ``add_self_loops``.

    Args:
        num_nodes: N.
        in_channels: width of ``x``.
        hidden_channels: width of a head of a hidden layer.
        hidden_heads: number of heads of a hidden layer.
        out_channels: width of the output.
        out_heads: number of heads of the last layer.
        num_layers: number of convolutions, L.
        dropout: probability of dropping an entry of a layer's input, or an attention weight, in
            training.
        add_self_loops: whether layers add self-loops themselves.
        pool_size, buffer_size, device, **kwargs: see :class:`torch_gas.ScalableGNN`.

    Example:
        >>> from torch_gas import add_self_loops
        >>> from torch_gas.datasets import synthetic
        >>> from torch_gas.models import GAT
        >>> data = add_self_loops(synthetic(1000))
        >>> model = GAT(1000, data.num_features, 8, 4, out_channels=10, out_heads=1, num_layers=2)
        >>> model(data.x, data.edge_index).shape
        torch.Size([1000, 10])
    """

    @checked
    def __init__(
        self,
        num_nodes: int,
        in_channels: int,
        hidden_channels: int,
        hidden_heads: int,
        out_channels: int,
        out_heads: int,
        num_layers: int,
        dropout: float = 0.0,
        pool_size: int | None = None,
        buffer_size: int | None = None,
        device: torch.device | str | int | None = None,
        *,
        add_self_loops: bool = False,
        **kwargs: Any,
    ) -> None:
        # Before the base, which sees the product of two sizes only.
        self.check_sizes(hidden_channels=hidden_channels, hidden_heads=hidden_heads, out_heads=out_heads)
        width = hidden_channels * hidden_heads
        histories = {"pool_size": pool_size, "buffer_size": buffer_size, "device": device, **kwargs}
        super().__init__(num_nodes, in_channels, width, out_channels, num_layers, dropout, **histories)
        self.hidden_heads = hidden_heads
        self.out_heads = out_heads
        options = {"dropout": dropout, "add_self_loops": add_self_loops}
        *hidden, last = [in_channels, *[width] * (num_layers - 1)]
        convs = [_Conv(channels, hidden_channels, hidden_heads, **options) for channels in hidden]
        self.add_layers([*convs, _Conv(last, out_channels, out_heads, concat=False, **options)])

    @property
    def reg_modules(self) -> ModuleList:
        """All convolutions, as in the paper's experiments."""
        return self.convs

    @property
    def nonreg_modules(self) -> ModuleList:
        """None."""
        return ModuleList()

    def activation(self, x: Tensor) -> Tensor:
        """ELU."""
        return F.elu(x)
