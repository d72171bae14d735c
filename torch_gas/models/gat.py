"""GAT (Veličković et al., 2018)."""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.nn import ModuleList
from torch_geometric.nn import GATConv

from torch_gas._util.arguments import checked
from torch_gas.models.base import Model
from torch_gas.models.dropout import dropout


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
        pool_size, buffer_size, device, **kwargs: see :class:`torch_gas.ScalableGNN`.
        add_self_loops: whether layers add self-loops themselves.

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
        self.check_sizes(
            dropout, in_channels=in_channels, hidden_channels=hidden_channels, hidden_heads=hidden_heads,
            out_channels=out_channels, out_heads=out_heads,
        )  # fmt: skip
        width = hidden_channels * hidden_heads
        super().__init__(num_nodes, width, num_layers, pool_size, buffer_size, device, **kwargs)
        self.in_channels = in_channels
        self.hidden_heads = hidden_heads
        self.out_channels = out_channels
        self.out_heads = out_heads
        self.dropout = dropout

        options = {"dropout": dropout, "add_self_loops": add_self_loops}
        self.convs = ModuleList(
            _Conv(width if i > 0 else in_channels, hidden_channels, hidden_heads, **options)
            for i in range(num_layers - 1)
        )
        in_last = width if num_layers > 1 else in_channels
        self.convs.append(_Conv(in_last, out_channels, out_heads, concat=False, **options))

    @property
    def reg_modules(self) -> ModuleList:
        """All convolutions, as in the paper's experiments."""
        return self.convs

    @property
    def nonreg_modules(self) -> ModuleList:
        """None."""
        return ModuleList()

    def forward(self, x: Tensor, adj_t: Any, *args: Any) -> Tensor:
        """Rows of the batch [B, out_channels] from those of batch and halo [B + S, in_channels]."""
        for conv, history in zip(self.convs[:-1], self.histories, strict=True):
            x = dropout(x, self.dropout, self.training)
            x = F.elu(conv(x, adj_t))
            x = self.push_and_pull(history, x, *args)
        x = dropout(x, self.dropout, self.training)
        return self.convs[-1](x, adj_t)
