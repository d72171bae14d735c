"""Layers that are sparse products are computed as such on the CPU, over whatever adjacency they are given.

These are layers whose messages are rows, rows times edge weights or rows times GAT's attention coefficients, and are summed or
averaged.
"""

from __future__ import annotations

from functools import cache, partial
from typing import Any, cast

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.nn import Module
from torch_geometric.nn import GATConv, Linear, MessagePassing

from torch_gas.graph import product as sparse
from torch_gas.graph.formats import format_of, is_csr, is_matrix
from torch_gas.graph.halo import linear
from torch_gas.graph.product import Edges, aggregate, attention, edges_of, is_weight
from torch_gas.wiring.batch import WIRING
from torch_gas.wiring.compiled import is_compiled
from torch_gas.wiring.undo import Undo


def fuse(undo: Undo, model: Module) -> None:
    """Has layers of ``model`` that compute a sparse product do so by :func:`aggregate` where they can.

    Linear layers compute no gradients of halo rows that come from histories, and multiply sparse features as such.
    """
    for module in model.modules():
        if type(module) in (Linear, torch.nn.Linear) and "forward" not in vars(module):
            undo.set(module, "forward", partial(_linear, module))
        if not isinstance(module, MessagePassing) or is_compiled(module):
            continue
        layer: Any = type(module)
        if _is_product(layer):
            undo.set(module, "propagate", _Propagate(module))
        elif _is_gat(layer):
            undo.set(module, "propagate", _PropagateHeads(module))
            undo.set(module, "edge_updater", _Attention(module))


@cache
def _is_product(layer: type[MessagePassing]) -> bool:
    """Whether PyG itself says so by a fused product, messages are rows and edge weights, and nothing else is the layer's own."""
    own, base = layer.message_and_aggregate, MessagePassing
    if own is base.message_and_aggregate or not _sums_messages(layer):
        return False
    names = _arguments(layer.message)
    of_pyg = all(function.__module__.startswith("torch_geometric.") for function in (own, layer.message))
    return of_pyg and "x_j" in names and names <= {"x_j", "edge_weight"}


@cache
def _is_gat(layer: type[MessagePassing]) -> bool:
    """Whether attention and messages are those of GAT, and nothing else is the layer's own."""
    own = issubclass(layer, GATConv) and layer.message is GATConv.message and layer.edge_update is GATConv.edge_update
    return own and _sums_messages(layer)


def _sums_messages(layer: type[MessagePassing]) -> bool:
    return layer.aggregate is MessagePassing.aggregate and layer.update is MessagePassing.update


def _arguments(function: Any) -> set[str]:
    return set(function.__code__.co_varnames[1 : function.__code__.co_argcount])


_PARTS = ("propagate", "message", "aggregate", "message_and_aggregate", "edge_update")


def _linear(lin: Any, x: Tensor) -> Tensor:
    """``forward`` of a linear layer."""
    if is_csr(x) and x.device.type == "cpu":
        return sparse.linear(x, lin.weight, lin.bias)
    return linear(x, lin.weight, lin.bias)


class _Fused:
    """Stands in for a method of one layer."""

    def __init__(self, conv: Any) -> None:
        self.conv, self.propagate, self.edge_updater = conv, conv.propagate, conv.edge_updater
        hooked = any(getattr(conv, f"_{part}_forward{kind}_hooks", None) for part in _PARTS for kind in ("_pre", ""))
        hooked = hooked or bool(conv.aggr_module._forward_hooks or conv.aggr_module._forward_pre_hooks)
        is_sum = conv.aggr in ("sum", "add", "mean") and conv.flow == "source_to_target" and conv.node_dim in (0, -2)
        self.is_product = is_sum and not hooked and not conv.explain and conv.decomposed_layers == 1

    def edges(self, adj: Any, size: Any, rows: Tensor, targets: Tensor | None) -> Edges | None:
        """The edges of a call with ``rows`` of sources and ``targets`` of destinations; None where they are no matrix."""
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
        known = self.is_product and kwargs.keys() <= {"x", "edge_weight"}
        out = self._product(edge_index, size, **kwargs) if known else None
        return self.propagate(edge_index, size=size, **kwargs) if out is None else out

    def _product(self, adj: Any, size: Any, x: Any = None, edge_weight: Tensor | None = None) -> Tensor | None:
        """The result as a product; None where it is none that can be computed as such."""
        rows, targets = x if isinstance(x, tuple) else (x, x)
        if not _is_rows(rows, 2):
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

    def __call__(self, edge_index: Any, size: Any = None, **kwargs: Any) -> Any:
        x, alpha = kwargs.get("x"), kwargs.get("alpha")
        if self.is_product and isinstance(x, tuple) and _is_rows(x[0], 3) and isinstance(alpha, Tensor):
            edges = self.edges(edge_index, size, *x)
            if edges is not None:
                return aggregate(x[0], edges, alpha)
        return self.propagate(edge_index, size=size, **kwargs)


class _Attention(_Fused):
    """``edge_updater`` of GAT: attention coefficients."""

    def __call__(self, edge_index: Any, size: Any = None, **kwargs: Any) -> Any:
        conv, (src, dst) = self.conv, kwargs["alpha"]
        if self.is_product and conv.lin_edge is None and dst is not None and _is_rows(src, 2):
            edges = self.edges(edge_index, size, src, dst)
            if edges is not None:
                drop = getattr(conv, "drop_attention", F.dropout)
                return drop(
                    attention(dst[: edges.num_dst], src, conv.negative_slope, edges), conv.dropout, conv.training
                )
        return self.edge_updater(edge_index, size=size, **kwargs)


def _is_rows(value: Any, dim: int) -> bool:
    is_tensor = isinstance(value, Tensor) and value.device.type == "cpu"
    return is_tensor and value.dim() == dim and cast(Tensor, value).is_floating_point()
