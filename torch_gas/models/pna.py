"""PNA (Corso et al., 2020), as the paper trains it."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from torch_gas._util.arguments import checked
from torch_gas.models.base import Model
from torch_gas.models.pna_conv import PNAConv


class PNA(Model):
    r"""Principal neighbourhood aggregation (https://arxiv.org/abs/2004.05718; Table 5 of
    https://arxiv.org/abs/2106.05609) with the light layer :class:`PNAConv`.

    Args:
        num_nodes: N.
        in_channels: width of ``x``.
        hidden_channels: width of hidden layers and histories.
        out_channels: width of the output.
        num_layers: number of convolutions, L.
        aggregators: any of ``"sum"``, ``"mean"``, ``"min"``, ``"max"``.
        scalers: any of ``"identity"``, ``"amplification"``, ``"attenuation"``.
        deg: in-degree of each node of the whole graph, [N].
        dropout: probability of dropping an entry of a layer's input in training.
        drop_input: whether ``x`` is dropped from as well.
        batch_norm: whether batch norm follows each hidden convolution.
        residual: whether a hidden convolution's input is added to its output where widths agree.
        pool_size, buffer_size, device, **kwargs: see :class:`torch_gas.ScalableGNN`.

    Raises:
        ValueError: if the name of an aggregator or scaler is unknown, or ``deg`` is not [N].

    Example:
        >>> from torch_gas import in_degree
        >>> from torch_gas.datasets import synthetic
        >>> from torch_gas.models import PNA
        >>> data = synthetic(1000)
        >>> deg = in_degree(data.edge_index, data.num_nodes)
        >>> scalers = ["identity", "amplification"]
        >>> model = PNA(1000, data.num_features, 64, 10, 3, ["mean", "max"], scalers, deg)
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
        histories = {"pool_size": pool_size, "buffer_size": buffer_size, "device": device, **kwargs}
        super().__init__(num_nodes, in_channels, hidden_channels, out_channels, num_layers, dropout, **histories)
        if deg.is_complex() or deg.dim() != 1 or deg.numel() != num_nodes:
            raise ValueError(
                f"{type(self).__name__}: deg must be the in-degree of each node, [{num_nodes}] "
                f"(not the histogram that PyG's PNAConv takes), but is {deg.dtype} {list(deg.shape)}; "
                "get it from torch_gas.in_degree(data.edge_index, data.num_nodes)"
            )
        convs = (PNAConv(*width, aggregators, scalers, deg) for width in self.widths)
        self.add_layers(convs, batch_norm, drop_input, residual)
