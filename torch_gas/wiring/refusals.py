"""Layers that would compute something else on a batch than on the whole graph, and what to use instead.

In explicit wiring these tables are all that stands between such a layer and wrong rows. In automatic wiring they give better
words to what the trial of :mod:`torch_gas.wiring.trial.probe` would find as well.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

from torch.nn import Module
from torch.nn.modules.batchnorm import _BatchNorm
from torch_geometric.nn import MessagePassing

# (condition, reason) by class name, along the bases, so that no layer needs to be imported to be known.
_Table = dict[str, tuple[Callable[[Any], bool], str]]


def _always(names: str, reason: str) -> _Table:
    return {name: (lambda module: True, reason) for name in names.split()}


_SCALE = "; or leave the wiring to torch_gas.scale(model, data), which makes it exact"
_WEIGHTS = (
    "normalises by degrees that it counts on the edges it is given, and a batch has no edges into its halo; "
    "create it with normalize=False and give it the weights of the whole graph: data = torch_gas.gcn_norm(data), "
    "then pass edge_weight=batch.edge_weight (or the weighted batch.adj_t)" + _SCALE
)
_HOPS = (
    "reads several hops at once, and a batch holds one; write it as one-hop layers with a history between them, as "
    "torch_gas.models.APPNP does" + _SCALE
)
_NORM = (
    "takes its statistics over all nodes of the graph, also in evaluation, and a batch holds some; use one with running "
    "statistics (BatchNorm1d) or over the channels of each node (torch.nn.LayerNorm, or mode='node')"
)
_TYPES = (
    "is for graphs of several node or edge types, and histories are for one type; use RGCNConv, RGATConv or HEATConv on "
    "a graph with edge_type"
)

# Neither wiring can make these exact.
NEVER: _Table = {
    **_always(
        "GPSConv",
        "attends to all nodes of the graph, and a batch holds some; use its message-passing layer alone, or local attention "
        "(GATConv, TransformerConv)",
    ),
    **_always(
        "DynamicEdgeConv GravNetConv XConv",
        "finds its neighbours among all nodes by their embeddings, and a batch holds some; use EdgeConv, PointNetConv or "
        "PointTransformerConv on a graph that is built once (torch_geometric.nn.knn_graph)",
    ),
    **_always(
        "HypergraphConv",
        "passes messages over hyperedges, which reach all of their nodes; use GCNConv on the graph that the "
        "hyperedges induce",
    ),
    **_always(
        "PANConv",
        "multiplies the adjacency matrix with itself, and a batch holds one hop of it; use TAGConv or MixHopConv with "
        "torch_gas.scale(model, data)",
    ),
    **_always(
        "WLConv", "numbers colours in the order in which it meets them over the whole graph; use WLConvContinuous"
    ),
    **_always("MeshCNNConv", "works on the edges of a mesh and not on nodes; use EdgeConv on the mesh's vertices"),
    **_always("HGTConv HANConv HeteroConv", _TYPES),
    **_always(
        "CuGraphSAGEConv CuGraphGATConv CuGraphRGCNConv FusedGATConv",
        "takes its graph as CSC or CSR tensors that a batch does not carry; use the layer of the same name without "
        "CuGraph or Fused",
    ),
    **_always("SparseLinear", "has a parameter for each node of the graph; use a layer that works on node features"),
    **_always("GraphNorm GraphSizeNorm MeanSubtractionNorm PairNorm", _NORM),
    "LayerNorm": (lambda norm: norm.mode == "graph", _NORM),
    "InstanceNorm": (lambda norm: not norm.track_running_stats, _NORM),
}

# Explicit wiring cannot make these exact; automatic wiring can.
EXPLICIT: _Table = {
    **{
        name: (lambda conv: getattr(conv, "normalize", False) is True, _WEIGHTS)
        for name in ("GCNConv", "GCN2Conv", "DNAConv", "FAConv", "LGConv", "PDNConv")
    },
    "EGConv": (
        lambda conv: "symnorm" in conv.aggregators,
        "normalises by degrees that it counts on the edges it is given (aggregator 'symnorm'), and a batch has no "
        "edges into its halo; use other aggregators" + _SCALE,
    ),
    **_always(
        "APPNP ARMAConv ChebConv GatedGraphConv LabelPropagation MixHopConv SGConv SSGConv TAGConv",
        _HOPS,
    ),
    **_always(
        "AntiSymmetricConv",
        "calls the convolution inside of it several times, which reads several hops; use that convolution in a loop of your "
        "own, with a history after each call" + _SCALE,
    ),
    **_always(
        "DirGNNConv",
        "reads outgoing edges, and a batch holds the incoming ones; use two layers, one on each direction's graph"
        + _SCALE,
    ),
}


def refuse(module: Module, automatic: bool = False) -> None:
    """Raises ValueError if ``module`` would compute something else on a batch than on the whole graph."""
    if not automatic and isinstance(module, MessagePassing) and module.flow != "source_to_target":
        raise ValueError(
            f"{type(module).__name__} cannot be used on a batch: with flow={module.flow!r} it reads outgoing edges, and a batch "
            f"holds the incoming ones; use the default flow on the graph with its edges reversed{_SCALE}"
        )
    if isinstance(module, _BatchNorm) and not module.track_running_stats:
        raise ValueError(
            f"{type(module).__name__} with track_running_stats=False cannot be used on a batch: it {_NORM}"
        )
    for cls in type(module).__mro__:
        if not cls.__module__.startswith("torch_geometric."):
            continue
        for table in (NEVER,) if automatic else (NEVER, EXPLICIT):
            condition, reason = table.get(cls.__name__, (None, ""))
            if condition is not None and condition(module):
                raise ValueError(f"{type(module).__name__} cannot be used on a batch: it {reason}")


def outermost_convs(module: Module, automatic: bool = False) -> Iterator[MessagePassing]:
    """The message-passing layers in ``module`` that are not inside another one."""
    refuse(module, automatic)
    if isinstance(module, MessagePassing):
        for inner in module.modules():
            refuse(inner, automatic)
        yield module
        return
    for child in module.children():
        yield from outermost_convs(child, automatic)
