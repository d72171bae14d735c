"""The convolution of PNA (Corso et al., 2020) in the light form of the paper's experiments."""

from __future__ import annotations

import math
from collections.abc import Sequence
from itertools import product
from typing import Any

import torch
from torch import Tensor
from torch.nn import Linear, ModuleList
from torch_geometric.nn import MessagePassing
from torch_geometric.typing import PairTensor
from torch_geometric.utils import scatter, segment, spmm

from torch_gas._util.arguments import checked
from torch_gas.graph.activated import relu_sums
from torch_gas.graph.edges import degrees
from torch_gas.graph.formats import format_of, is_csr
from torch_gas.graph.halo import linear
from torch_gas.graph.product import Edges, edges_of
from torch_gas.graph.reductions import reduce as reduced

AGGREGATORS = ("sum", "mean", "min", "max")
SCALERS = ("identity", "amplification", "attenuation")


class PNAConv(MessagePassing):  # type: ignore[misc]  # PyG has no types
    r"""Principal neighbourhood aggregation (https://arxiv.org/abs/2004.05718), the light layer of
    PyGAS.

    .. math::
        h_v' = W h_v + \sum_{a, s} s(d_v) \cdot \mathrm{post}_{a,s}\Big(
        a_{w \in N(v)} \, \mathrm{ReLU}\big(\mathrm{pre}_{a,s}(h_w)\big)\Big)

    over all pairs of an aggregator :math:`a` and a scaler :math:`s`. With :math:`\delta` the mean
    of :math:`\log(d + 1)` over the graph, the scalers are 1 (``"identity"``),
    :math:`\log(d_v + 1) / \delta` (``"amplification"``) and :math:`\delta / \log(d_v + 1)`
    (``"attenuation"``, which counts :math:`d_v = 0` as 1). Edge weights are not used.

    Args:
        in_channels: width of the input.
        out_channels: width of the output.
        aggregators: any of ``"sum"``, ``"mean"``, ``"min"``, ``"max"``; of no neighbours they
            are 0.
        scalers: any of ``"identity"``, ``"amplification"``, ``"attenuation"``.
        deg: in-degree of each node of the whole graph, [N].

    Raises:
        ValueError: if a name is unknown, none is given, or ``deg`` holds no positive degree.

    Example:
        >>> import torch
        >>> from torch_gas.models import PNAConv
        >>> edge_index = torch.tensor([[0, 1, 2], [1, 1, 0]])
        >>> deg = torch.tensor([1, 2, 0])
        >>> conv = PNAConv(4, 8, ["mean", "max"], ["identity", "amplification"], deg)
        >>> conv(torch.randn(3, 4), edge_index).shape
        torch.Size([3, 8])
    """

    avg_log_deg: Tensor

    @checked
    def __init__(
        self, in_channels: int, out_channels: int, aggregators: Sequence[str], scalers: Sequence[str], deg: Tensor
    ) -> None:
        super().__init__(aggr=None)
        if in_channels < 1 or out_channels < 1:
            raise ValueError(
                f"PNAConv: in_channels and out_channels must be at least 1, but are {in_channels} and {out_channels}"
            )
        for argument, names, valid in (("aggregators", aggregators, AGGREGATORS), ("scalers", scalers, SCALERS)):
            if not names or not set(names) <= set(valid):
                raise ValueError(f"PNAConv: {argument} must be a list of some of {valid}, but is {names!r}")
        if deg.is_complex() or not bool((deg > 0).any()):
            raise ValueError(
                "PNAConv: deg must hold the in-degree of each node, of which some are positive; "
                "get it from torch_gas.in_degree(data.edge_index, data.num_nodes)"
            )
        self.in_channels = in_channels
        self.out_channels = out_channels
        self.pairs = list(product(aggregators, scalers))
        self.num_scalers = len(scalers)
        self.register_buffer("avg_log_deg", deg.to(torch.get_default_dtype()).log1p().mean())
        self.pre_lins = ModuleList(Linear(in_channels, out_channels) for _ in self.pairs)
        self.post_lins = ModuleList(Linear(out_channels, out_channels) for _ in self.pairs)
        self.lin = Linear(in_channels, out_channels)

    def reset_parameters(self) -> None:
        """Draws all parameters anew."""
        super().reset_parameters()
        for lin in (*self.pre_lins, *self.post_lins, self.lin):
            lin.reset_parameters()

    def forward(self, x: Tensor | PairTensor, adj_t: Any) -> Tensor:
        """New rows [N, out_channels], or [B, out_channels] of a pair ([B + S, C], [B, C])."""
        x_src, x_dst = (x, x) if isinstance(x, Tensor) else x
        size = (x_src.size(0), x_dst.size(0))
        out = self.lin(x_dst)
        takes_edges = x_src.device.type == "cpu" and not torch.compiler.is_compiling()
        edges = edges_of(adj_t, *size[::-1]) if takes_edges else None
        if isinstance(edges, Edges):
            degree = edges.degrees
        else:
            # A matrix where edges are held by destination, of the type of all linear layers, which autocast may change.
            adj_t = format_of(adj_t).unweighted(adj_t, size[1], size[0], out.dtype)
            degree = degrees(adj_t, size[1])
        scale = self._scale(degree, x_src.dtype)
        biases: list[Any] = [lin.bias for lin in self.post_lins]
        out = torch.addmm(out, scale, torch.stack(biases))
        for first in range(0, len(self.pairs), self.num_scalers):
            # One pass for all scalers of an aggregator: rows are read once.
            group = slice(first, first + self.num_scalers)
            reduce = self.pairs[first][0]
            pre_lins: list[Any] = [*self.pre_lins[group]]
            weight, bias = torch.cat([lin.weight for lin in pre_lins]), torch.cat([lin.bias for lin in pre_lins])
            if isinstance(edges, Edges) and reduce in ("sum", "mean"):
                counts = edges.degrees.clamp(min=1).view(-1, 1)
                factors = scale[:, group] / counts if reduce == "mean" else scale[:, group]
                h = relu_sums(x_src, weight, bias, edges, factors)
            else:
                h = linear(x_src, weight, bias).relu_()
                if isinstance(edges, Edges):
                    (h,) = reduced(h, edges, [reduce])
                else:
                    h = self.propagate(adj_t, x=h, reduce=reduce, size=size)
                h = (h.view(size[1], self.num_scalers, -1) * scale[:, group].unsqueeze(-1)).flatten(1)
            post_lins: list[Any] = [*self.post_lins[group]]
            out = torch.addmm(out, h, torch.cat([lin.weight for lin in post_lins], dim=1).t())
        return out

    def _scale(self, degree: Tensor, dtype: torch.dtype) -> Tensor:
        """The scaler of each pair at each node, [B, pairs]."""
        log_deg = degree.to(dtype).log1p()
        scale = {
            "identity": torch.ones_like(log_deg),
            "amplification": log_deg / self.avg_log_deg,
            "attenuation": self.avg_log_deg / log_deg.clamp(min=math.log(2)),
        }
        return torch.stack([scale[scaler] for _, scaler in self.pairs], dim=1)

    def aggregate(self, inputs: Tensor, index: Tensor, dim_size: int, reduce: str) -> Tensor:
        return scatter(inputs, index, 0, dim_size, reduce)

    def message_and_aggregate(self, adj_t: Any, x: Tensor, reduce: str) -> Tensor:
        if is_csr(adj_t) and adj_t.is_cuda and reduce in ("min", "max"):
            # torch has no such product on a GPU: the rows are gathered, one for each edge.
            return segment(x[adj_t.col_indices()], adj_t.crow_indices(), reduce)
        return spmm(adj_t, x, reduce)

    def __repr__(self) -> str:
        return f"{type(self).__name__}({self.in_channels}, {self.out_channels}, {self.pairs})"
