r"""``PNAConv``, whose messages are a dense layer of destination and source, without a row for each edge.

Where that is :math:`W_1 x_i + W_2 x_j + b` alone, a node's minimum, maximum and mean of it are those of :math:`W_2 x_j`, shifted
by :math:`W_1 x_i + b`, and variances are those of :math:`W_2 x_j`. So rows are multiplied once for each source, or, where all
reductions are sums, once for each destination, and reduced in one pass over the edges.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch_geometric.nn import Linear, PNAConv

from torch_gas.graph.attributes import first_rows
from torch_gas.graph.formats import is_csr, num_destinations
from torch_gas.graph.halo import batch_rows, join, linear
from torch_gas.graph.product import Edges, edges_of
from torch_gas.graph.reductions import SUMS, reduce
from torch_gas.wiring.aggregations import combine
from torch_gas.wiring.batch import WIRING
from torch_gas.wiring.standin import StandIn, is_rows


def is_of_pairs(layer: Any) -> bool:
    """Whether a class of layers is ``PNAConv``, or has its code."""
    return issubclass(layer, PNAConv) and layer.forward is PNAConv.forward and layer.message is PNAConv.message


_HOOKS = ("_forward_hooks", "_forward_pre_hooks", "_backward_hooks", "_backward_pre_hooks")


def _is_dense(layers: Any) -> bool:
    """Whether it is one dense layer, at which nobody looks."""
    if len(layers) != 1 or type(layers[0]) is not Linear or "forward" in vars(layers[0]):
        return False
    return not any(vars(module)[hooks] for module in (layers, layers[0]) for hooks in _HOOKS)


class PropagatePairs(StandIn):
    """``propagate`` of a pair of rows, [num_src, C] and [num_dst, C], which :class:`ForwardOfPairs` gives; else PyG's."""

    def fast(self, adj: Any, size: Any, x: Any = None, **others: Any) -> Tensor | None:
        if not isinstance(x, tuple):
            return None
        conv, (rows, targets) = self.conv, x
        edges = edges_of(adj, targets.size(0), rows.size(0))
        assert isinstance(edges, Edges)
        is_linear = SUMS.issuperset(self.names)
        parts = reduce(rows if is_linear else self._dense(rows, 1), edges, self.names)
        if is_linear:
            parts = [self._dense(part, 1) for part in parts]
        shift = self._dense(targets, 0) + torch.cat([dense[0].bias for dense in conv.pre_nns])
        degree = edges.degrees.view(-1, 1)
        shift = shift.masked_fill(degree == 0, 0)
        shifts = dict.fromkeys(("mean", "min", "max"), shift)
        if "sum" in self.names:
            shifts["sum"] = shift * degree.to(shift.dtype)
        parts = [part + shifts[name] if name in shifts else part for name, part in zip(self.names, parts, strict=True)]
        return combine(conv.aggr_module, [part.view(-1, conv.towers, conv.F_in) for part in parts], edges.degrees)

    def _dense(self, x: Tensor, end: int) -> Tensor:
        """Rows times what messages multiply destinations (0) or sources (1) by, for all towers, [., T * C]."""
        conv, width = self.conv, self.conv.F_in
        weights = [dense[0].weight[:, end * width : (end + 1) * width] for dense in conv.pre_nns]
        if conv.divide_input:
            towers = zip(x.chunk(conv.towers, dim=-1), weights, strict=True)
            return torch.cat([linear(rows, weight, None) for rows, weight in towers], dim=-1)
        return linear(x, torch.cat(weights), None)


class ForwardOfPairs(StandIn):
    """``forward`` of the layer, for the batch's rows alone, though PyG's takes no pair of rows.

    Attributes:
        cuts_itself: says so to the wiring of batches.
    """

    method = "forward"
    cuts_itself = True

    def __init__(self, conv: Any) -> None:
        super().__init__(conv)
        is_dense = conv.edge_dim is None and all(map(_is_dense, conv.pre_nns))
        self.names = self.names if is_dense else ()

    def __call__(self, x: Any, edge_index: Any, edge_attr: Any = None) -> Any:  # type: ignore[override]  # another method
        conv: Any = self.conv
        layer: Any = getattr(conv, WIRING, None)
        if not is_rows(x, 2) or x.device.type != "cpu" or is_csr(x):
            return self.own(x, edge_index, edge_attr)
        with torch._C.DisableTorchFunction():  # whoever follows rows need not know
            num_src = num_dst = x.size(0)
        under_way = layer is not None and layer.batch.is_under_way(x)
        if under_way:
            num_src = num_dst = layer.batch.num_rows
        is_cut = layer is not None and layer.cuts_itself and num_src == layer.batch.num_rows
        if is_cut:
            num_dst = layer.batch.batch_size
        if not self._runs(edge_index, edge_attr, num_dst, num_src, layer if is_cut else None):
            square = layer.batch.resize(edge_index, num_src, num_src) if is_cut else edge_index
            return self.own(x, square, edge_attr)
        towers = conv.towers if conv.divide_input else 1
        seen = x.view(-1, towers, conv.F_in)  # as PyG begins, behind which rows may be exchanged
        if under_way:
            own = batch_rows(seen)
            x = seen.flatten(1) if own is None else join(own.flatten(1), seen.detach().flatten(1))
        own = batch_rows(x)
        targets = first_rows(x, num_dst) if own is None else own
        out = conv.propagate(edge_index, x=(x, targets), edge_attr=None)
        root = targets.view(-1, towers, conv.F_in).expand(-1, conv.towers, -1)
        out = torch.cat([root, out], dim=-1)
        return conv.lin(torch.cat([post(out[:, i]) for i, post in enumerate(conv.post_nns)], dim=1))

    def _runs(self, adj: Any, edge_attr: Any, num_dst: int, num_src: int, layer: Any) -> bool:
        """Whether a call is one that can be computed so."""
        if not self.names or edge_attr is not None or num_destinations(adj) not in (None, num_dst):
            return False
        keeps_halo = None if layer is None else layer.batch.rows.keeps_halo  # what it computes for destinations there
        if keeps_halo is not None and keeps_halo():
            return False
        return isinstance(edges_of(adj, num_dst, num_src), Edges)
