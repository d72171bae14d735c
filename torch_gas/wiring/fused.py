"""Layers that are sparse products are computed as such, on the CPU over whatever adjacency they are given.

These are layers whose messages are rows, rows times edge weights or rows times GAT's attention coefficients, and are summed or
averaged. On a GPU the first two are, over CSR matrices and over batches that a loader has brought there.
"""

from __future__ import annotations

from functools import cache, partial
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.nn import Module
from torch_geometric.nn import GATConv, GCNConv, Linear, MessagePassing

from torch_gas._util.modules import modules_of
from torch_gas.graph import product as sparse
from torch_gas.graph.device import DeviceEdges
from torch_gas.graph.formats import format_of, is_csr, is_matrix, tensors_of
from torch_gas.graph.halo import linear
from torch_gas.graph.product import Edges, aggregate, attention, edges_of, is_weight
from torch_gas.wiring.batch import WIRING
from torch_gas.wiring.compiled import is_compiled
from torch_gas.wiring.degrees import with_loops
from torch_gas.wiring.undo import Undo


def fuse(undo: Undo, model: Module) -> None:
    """Has layers of ``model`` that compute a sparse product do so by :func:`aggregate` where they can.

    Linear layers compute no gradients of halo rows that come from histories, and multiply sparse features as such.
    """
    for module in modules_of(model):
        if type(module) in (Linear, torch.nn.Linear) and "forward" not in vars(module):
            undo.set(module, "forward", partial(_linear, module))
        if not isinstance(module, MessagePassing) or is_compiled(module):
            continue
        layer: Any = type(module)
        kinds = _kinds(layer)
        for kind in kinds:
            undo.set(module, kind.method, kind(module))
        if kinds == (_Propagate,) and layer.forward is GCNConv.forward:
            _DenseBehind(module).set(undo)


@cache
def _kinds(layer: Any) -> tuple[type[_Fused], ...]:
    """What stands in for methods of a class of layers; nothing where the class has more of its own than is said here."""
    if layer.aggregate is not MessagePassing.aggregate or layer.update is not MessagePassing.update:
        return ()
    if issubclass(layer, GATConv) and layer.message is GATConv.message and layer.edge_update is GATConv.edge_update:
        return _PropagateHeads, _Attention
    # PyG itself says that these are products, by a method that fuses message and sum.
    fused = layer.message_and_aggregate
    of_pyg = all(function.__module__.startswith("torch_geometric.") for function in (fused, layer.message))
    if fused is MessagePassing.message_and_aggregate or not of_pyg:
        return ()
    names = _arguments(layer.message)
    return (_Propagate,) if "x_j" in names and names <= {"x_j", "edge_weight"} else ()


def _arguments(function: Any) -> set[str]:
    return set(function.__code__.co_varnames[1 : function.__code__.co_argcount])


_HOOKS = [
    f"_{part}_forward{kind}_hooks"
    for part in ("propagate", "message", "aggregate", "message_and_aggregate", "edge_update")
    for kind in ("_pre", "")
]


def _linear(lin: Any, x: Tensor) -> Tensor:
    """``forward`` of a linear layer."""
    if is_csr(x) and x.device.type == "cpu":
        return sparse.linear(x, lin.weight, lin.bias)
    return linear(x, lin.weight, lin.bias)


class _DenseBehind:
    """Has GCN multiply by its weights behind the sum over edges, for the batch's rows alone, unless that is over wider rows.

    It does so before, in a layer of its own, whose result goes to ``propagate`` and nowhere else.
    """

    def __init__(self, conv: Any) -> None:
        self.lin, self.conv, self.own, self.waits = conv.lin, conv, conv.propagate, False

    def set(self, undo: Undo) -> None:
        """Stands in for the dense layer and for ``propagate``, if nobody looks at what goes from one to the other."""
        lin = self.lin
        hooks = lin._forward_hooks or lin._forward_pre_hooks or lin._backward_hooks or lin._backward_pre_hooks
        is_plain = type(lin) is Linear and lin.bias is None and not hooks and "forward" not in vars(lin)
        if is_plain and lin.in_channels <= lin.out_channels and self.own.is_product:
            undo.set(lin, "forward", self.dense)
            undo.set(self.conv, "propagate", self.propagate)

    def dense(self, x: Tensor) -> Tensor:
        layer = getattr(self.conv, WIRING, None)
        under_way = layer is not None and layer.batch.is_under_way(x)  # to a place behind this layer
        self.waits = not is_csr(x) and not under_way
        return x if self.waits else _linear(self.lin, x)

    def propagate(self, *args: Any, **kwargs: Any) -> Tensor:
        out = self.own(*args, **kwargs)
        return _linear(self.lin, out) if self.waits else out


class _Fused:
    """Stands in for a method of one layer, which is called where there is no product that can be computed as such."""

    method = "propagate"
    product: Any  # what the method returns, given its arguments; None where it is no product

    def __init__(self, conv: Any) -> None:
        self.conv, self.own = conv, getattr(conv, self.method)
        hooked = any(map(vars(conv).get, _HOOKS))
        hooked = hooked or bool(conv.aggr_module._forward_hooks or conv.aggr_module._forward_pre_hooks)
        is_sum = conv.aggr in ("sum", "add", "mean") and conv.flow == "source_to_target" and conv.node_dim in (0, -2)
        self.is_product = is_sum and not hooked and not conv.explain and conv.decomposed_layers == 1

    def __call__(self, edge_index: Any, size: Any = None, **kwargs: Any) -> Any:
        out = self.product(edge_index, size, **kwargs) if self.is_product else None
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
        return None if num_dst is None else edges_of(adj, int(num_dst), rows.size(0))


class _Propagate(_Fused):
    """``propagate`` of rows, or rows times edge weights."""

    def __init__(self, conv: Any) -> None:
        super().__init__(conv)
        self.takes_weight = "edge_weight" in _arguments(type(conv).message)

    def __call__(self, edge_index: Any, size: Any = None, **kwargs: Any) -> Any:
        out = super().__call__(edge_index, size, **kwargs)
        x = kwargs.get("x")
        return with_loops(self.conv, out, x) if isinstance(x, Tensor) else out

    def product(self, adj: Any, size: Any, x: Any = None, edge_weight: Any = None, **others: Any) -> Tensor | None:
        rows, targets = x if isinstance(x, tuple) else (x, x)
        if others or not _is_rows(rows, 2):
            return None
        weighted = edge_weight is not None and not is_matrix(adj) and self.takes_weight
        edges = self.edges(adj, size, rows, targets)
        if edges is None or (weighted and not is_weight(edge_weight)):
            return None
        known = format_of(adj)
        own = known.values(adj) if known.is_always_weighted or self.takes_weight else None
        return aggregate(rows, edges, edge_weight if weighted else own, self.conv.aggr == "mean")


class _PropagateHeads(_Fused):
    """``propagate`` of GAT: rows of each head times their attention coefficients."""

    def product(self, adj: Any, size: Any, x: Any = None, alpha: Any = None, **others: Any) -> Tensor | None:
        if not isinstance(x, tuple) or not _is_rows(x[0], 3) or not isinstance(alpha, Tensor):
            return None
        edges = self.edges(adj, size, *x)
        return aggregate(x[0], edges, alpha) if isinstance(edges, Edges) else None


class _Attention(_Fused):
    """``edge_updater`` of GAT: attention coefficients."""

    method = "edge_updater"

    def product(self, adj: Any, size: Any, alpha: Any = None, **others: Any) -> Any:
        conv, (src, dst) = self.conv, alpha
        known = conv.lin_edge is None and dst is not None and _is_rows(src, 2)
        edges = self.edges(adj, size, src, dst) if known else None
        if not isinstance(edges, Edges):  # a GPU has no kernel for it
            return None
        alpha = attention(dst[: edges.num_dst], src, conv.negative_slope, edges)
        return getattr(conv, "drop_attention", F.dropout)(alpha, conv.dropout, conv.training)


def _is_rows(value: Any, dim: int) -> bool:
    return isinstance(value, Tensor) and value.dim() == dim and value.is_floating_point()
