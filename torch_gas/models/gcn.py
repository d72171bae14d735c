"""GCN (Kipf and Welling, 2017)."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch_geometric.nn import GCNConv

from torch_gas._util.arguments import checked
from torch_gas.graph.formats import is_csr
from torch_gas.models.base import WeightedModel


class _Conv(GCNConv):  # type: ignore[misc]  # PyG is not typed
    """Multiplies by its weights behind the sum over edges, for fewer rows, unless that is over wider or sparse rows."""

    def forward(self, x: Tensor | tuple[Tensor, Tensor], edge_index: Any, edge_weight: Tensor | None = None) -> Tensor:
        sources, targets = x if isinstance(x, tuple) else (x, x)
        size = (sources.size(0), targets.size(0))
        if self.in_channels > self.out_channels or is_csr(sources):
            out = self.propagate(edge_index, x=self.lin(sources), edge_weight=edge_weight, size=size)
        else:
            out = self.lin(self.propagate(edge_index, x=sources, edge_weight=edge_weight, size=size))
        return out if self.bias is None else out + self.bias


class GCN(WeightedModel):
    r"""Graph convolutional network (https://arxiv.org/abs/1609.02907; Tables 1, 3 and 5 of
    https://arxiv.org/abs/2106.05609).

    .. math::
        H^{(l)} = \mathrm{ReLU}(\hat{A} H^{(l-1)} W^{(l)} + b^{(l)})

    The weights :math:`\hat{A}` belong to the whole graph: get them from :func:`torch_gas.gcn_norm`.

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
        linear: whether a linear layer precedes the first convolution and another follows the last.
        pool_size, buffer_size, device, **kwargs: see :class:`torch_gas.ScalableGNN`.

    Example:
        >>> from torch_gas import gcn_norm
        >>> from torch_gas.datasets import synthetic
        >>> from torch_gas.models import GCN
        >>> data = gcn_norm(synthetic(1000))
        >>> model = GCN(1000, data.num_features, 16, out_channels=10, num_layers=2)
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
        dropout: float = 0.0,
        drop_input: bool = True,
        batch_norm: bool = False,
        residual: bool = False,
        linear: bool = False,
        pool_size: int | None = None,
        buffer_size: int | None = None,
        device: torch.device | str | int | None = None,
        **kwargs: Any,
    ) -> None:
        histories = {"pool_size": pool_size, "buffer_size": buffer_size, "device": device, **kwargs}
        super().__init__(num_nodes, in_channels, hidden_channels, out_channels, num_layers, dropout, **histories)
        if linear:
            self.add_linear()
        self.add_layers((_Conv(*width, normalize=False) for width in self.widths), batch_norm, drop_input, residual)
