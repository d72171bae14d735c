"""GCNII (Chen et al., 2020)."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch_geometric.nn import GCN2Conv

from torch_gas._util.arguments import checked
from torch_gas.models.base import WeightedModel


class GCN2(WeightedModel):
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
        histories = {"pool_size": pool_size, "buffer_size": buffer_size, "device": device, **kwargs}
        super().__init__(num_nodes, in_channels, hidden_channels, out_channels, num_layers, dropout, **histories)
        self.check_share(alpha=alpha)
        if theta < 0:
            raise ValueError(f"GCN2: theta must not be negative, but is {theta}")
        self.add_linear()
        numbers = range(1, num_layers + 1)
        convs = (GCN2Conv(hidden_channels, alpha, theta, i, shared_weights, normalize=False) for i in numbers)
        self.add_layers(convs, batch_norm, drop_input, residual)

    def first_input(self, x: Tensor, *conv_args: Any) -> tuple[Tensor, tuple[Any, ...]]:
        """The input of the first convolution; all of them take :math:`H^{(0)}`, without dropout, after theirs."""
        x_0 = self.lins[0](x).relu()
        return self.drop(x_0), (x_0, *conv_args)
