"""What stands in for a method of one layer where its result can be computed by a faster way."""

from __future__ import annotations

from typing import Any

from torch import Tensor

from torch_gas._util.tracing import unseen
from torch_gas.graph.device import DeviceEdges
from torch_gas.graph.formats import is_matrix, tensors_of
from torch_gas.graph.product import Edges, edges_of
from torch_gas.wiring.aggregations import names_of
from torch_gas.wiring.batch import WIRING

_HOOKS = [
    f"_{part}_forward{kind}_hooks"
    for part in ("propagate", "message", "aggregate", "message_and_aggregate", "edge_update")
    for kind in ("_pre", "")
]


class StandIn:
    """Stands in for a method of one layer, which is called where the faster way does not lead.

    Attributes:
        names: the reductions of messages that the layer consists of, none where these are others, or somebody looks at them.
        is_product: whether they are the sum or the mean by name, which PyG has torch multiply where it can.
    """

    method = "propagate"
    fast: Any  # what the method returns, given its arguments, or None; asked where there are names

    def __init__(self, conv: Any) -> None:
        self.conv, self.own = conv, getattr(conv, self.method)
        is_plain = conv.flow == "source_to_target" and conv.node_dim in (0, -2) and not any(map(vars(conv).get, _HOOKS))
        is_plain = is_plain and not conv.explain and conv.decomposed_layers == 1
        self.names = names_of(conv.aggr_module) if is_plain else ()
        self.is_product = self.names in (("sum",), ("mean",)) and conv.aggr in ("sum", "add", "mean")

    def __call__(self, edge_index: Any, size: Any = None, **kwargs: Any) -> Any:
        out = self.fast(edge_index, size, **kwargs) if self.names else None
        return self.own(edge_index, size=size, **kwargs) if out is None else out

    def edges(self, adj: Any, size: Any, rows: Tensor, targets: Tensor | None) -> Edges | DeviceEdges | None:
        """The edges of a call with ``rows`` of sources and ``targets`` of destinations; None where they are no matrix."""
        parts = [adj] if isinstance(adj, Tensor) else tensors_of(adj)  # of a CSR matrix, new ones each time
        if any(tensor.device != rows.device for tensor in parts):  # which PyG refuses
            return None
        layer = getattr(self.conv, WIRING, None)
        if is_matrix(adj):
            num_dst = adj.size(0)
        elif layer is not None and layer.cuts_itself:
            num_dst = layer.batch.batch_size
        elif size is not None:
            num_dst = size[1]
        else:
            num_dst = None if targets is None else targets.size(0)
        return None if num_dst is None else unseen(edges_of, adj, int(num_dst), rows.size(0))


def is_rows(value: Any, dim: int) -> bool:
    """Whether ``value`` is a tensor of numbers of that many dimensions."""
    return isinstance(value, Tensor) and value.dim() == dim and value.is_floating_point()
