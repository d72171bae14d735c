"""Layers that normalise edges by degrees (``GCNConv``, ``GCN2Conv``) on a batch whose degrees are known.

PyG puts self-loops among the edges and sums up their weights, in each layer. A batch's edges are all that its nodes have: their
degrees are counted, as training may drop edges, and those of the halo come from a table of the whole graph. So weights are two
lookups an edge, made once a batch, and self-loops are a multiple of each row: edges stay those that the loader has put in order.
"""

from __future__ import annotations

from collections.abc import Callable, MutableMapping
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch_geometric.nn import GCN2Conv, GCNConv

from torch_gas.graph.halo import own_rows
from torch_gas.wiring.batch import WIRING
from torch_gas.wiring.undo import Undo

LOOPS = "_loops_of_batch"
_LAYERS = (GCNConv.forward, GCN2Conv.forward)


class _Weights(NamedTuple):
    """What a batch's edges weigh.

    Args:
        adj, given: the edges, and their weights before, kept alive so that their ids stay their own.
        edges: of the edges, [E].
        loops: of the self-loops that are not among them, [B]; None where there are none.
    """

    adj: Tensor
    given: Tensor | None
    edges: Tensor
    loops: Tensor | None


def can_normalize(conv: Any) -> bool:
    """Whether it is one of these layers, as PyG has it."""
    return (
        isinstance(conv, (GCNConv, GCN2Conv))
        and type(conv).forward in _LAYERS
        and conv.normalize
        and conv.aggr in ("add", "sum")
        and conv.flow == "source_to_target"
        and not getattr(conv, "improved", False)
    )


class NormalizeByDegrees:
    """Stands in for ``forward`` of a layer.

    Args:
        conv: the layer.
        degrees: gives the weighted degrees of the nodes of batch and halo in the graph, [B + S], loops included where the layer
            adds them.
        batch_size: B.
        known: what layers of the same batch share.
    """

    def __init__(
        self, conv: Any, degrees: Callable[[], Tensor], batch_size: int, known: MutableMapping[Any, _Weights | None]
    ) -> None:
        self.conv, self.own, self.degrees, self.batch_size, self.known = conv, conv.forward, degrees, batch_size, known

    def set(self, undo: Undo) -> None:
        """Has the layer call this."""
        undo.set(self.conv, LOOPS, None)
        undo.set(self.conv, "_cached_edge_index", None)
        undo.set(self.conv, "forward", self)

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        layer = getattr(self.conv, WIRING)
        self.conv._cached_edge_index = None  # that of an earlier call, which may have been over other edges
        setattr(self.conv, LOOPS, None)
        layer.cuts_itself = False
        names = type(self.conv).forward.__code__.co_varnames[1:]
        given = dict(zip(names, args, strict=False)) | kwargs
        x, adj, weight = given.get("x"), given.get("edge_index"), given.get("edge_weight")
        if isinstance(x, Tensor) and isinstance(adj, Tensor) and adj.layout == torch.strided:
            # Layers that differ in whether they add loops have other degrees as well.
            key = (id(adj), id(weight), x.dtype, self.conv.add_self_loops)
            if key not in self.known:
                self.known[key] = self._weights(adj, weight, x.dtype)
            found = self.known[key]
            if found is not None:  # which the layer then takes for what it has computed before
                self.conv._cached_edge_index = (adj, found.edges)
                setattr(self.conv, LOOPS, found.loops)
                layer.cuts_itself = layer.batch.bipartite  # as no loops are added to all rows
        return self.own(*args, **kwargs)

    def _weights(self, adj: Tensor, weight: Tensor | None, dtype: torch.dtype) -> _Weights | None:
        """Weights of the edges; None where these learn, or a node has several loops, of which PyG takes one."""
        if weight is not None and (weight.requires_grad or weight.dim() != 1):
            return None
        src, dst = adj[0], adj[1]
        loops = None
        if self.conv.add_self_loops:
            loops = torch.ones(self.batch_size, dtype=dtype, device=src.device)
            own = dst[src == dst]
            if own.numel() > 0:
                has_one = torch.zeros_like(loops).index_add_(0, own, torch.ones_like(own, dtype=dtype))
                if bool((has_one > 1).any()):
                    return None
                loops = None if bool(has_one.all()) else 1 - has_one
        degrees = self.degrees().to(src.device).view(-1)
        counted = torch.ones_like(dst, dtype=degrees.dtype) if weight is None else weight.to(degrees.dtype)
        counted = torch.zeros_like(degrees).index_add_(0, dst, counted)[: self.batch_size]
        counted = counted if loops is None else counted + loops
        root = torch.cat([counted, degrees[self.batch_size :]]).to(dtype).rsqrt()
        root.masked_fill_(root == torch.inf, 0)
        edges = root[src] * root[dst] if weight is None else root[src] * weight * root[dst]
        return _Weights(adj, weight, edges, None if loops is None else loops * root[: self.batch_size].square())


def with_loops(conv: Any, out: Tensor, x: Tensor) -> Tensor:
    """The sum over edges, [B, C] or [B + S, C], with the self-loops that are not among them; ``x`` is [B + S, C]."""
    loops = getattr(conv, LOOPS, None)
    if loops is None:
        return out
    own = own_rows(x, loops.numel())
    loops = loops.view(-1, 1)
    if out.size(0) == own.size(0):
        return torch.addcmul(out, loops, own)
    return out.index_add(0, torch.arange(own.size(0), device=out.device), loops * own)
