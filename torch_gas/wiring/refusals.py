"""Layers that would compute something else on a batch than on the whole graph, and what to use instead.

In explicit wiring these tables are all that stands between such a layer and wrong rows. In automatic wiring they give better
words to what the trial of :mod:`torch_gas.wiring.trial.probe` would find as well.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

from torch.jit import ScriptModule
from torch.nn import Module, ModuleDict, ModuleList
from torch.nn.modules.batchnorm import _BatchNorm
from torch_geometric.nn import MessagePassing

_SCALE = "; or leave the wiring to torch_gas.scale(model, data), which makes it exact"
_STATISTICS = "takes its statistics over all nodes of the graph, also in evaluation, and a batch holds some; use "


def _by_name(reasons: dict[str, str]) -> dict[str, str]:
    """Reasons by the name of one class: tables go by names, so that no layer needs to be imported to be known."""
    return {name: reason for names, reason in reasons.items() for name in names.split()}


# Neither wiring can make these exact.
_NEVER = _by_name({
    "GPSConv": "attends to all nodes of the graph, and a batch holds some; use its message-passing layer alone, or local "
    "attention (GATConv, TransformerConv)",
    "DynamicEdgeConv GravNetConv XConv": "finds its neighbours among all nodes by their embeddings, and a batch holds some; "
    "use EdgeConv, PointNetConv or PointTransformerConv on a graph that is built once (torch_geometric.nn.knn_graph)",
    "HypergraphConv": "passes messages over hyperedges, which reach all of their nodes; use GCNConv on the graph that the "
    "hyperedges induce",
    "PANConv": "multiplies the adjacency matrix with itself, and a batch holds one hop of it; use TAGConv or MixHopConv with "
    "torch_gas.scale(model, data)",
    "WLConv": "numbers colours in the order in which it meets them over the whole graph; use WLConvContinuous",
    "MeshCNNConv": "works on the edges of a mesh and not on nodes; use EdgeConv on the mesh's vertices",
    "HGTConv HANConv HeteroConv": "is for graphs of several node or edge types, and histories are for one type; use "
    "RGCNConv, RGATConv or HEATConv on a graph with edge_type",
    "CuGraphSAGEConv CuGraphGATConv CuGraphRGCNConv FusedGATConv": "takes its graph as CSC or CSR tensors that a batch does "
    "not carry; use the layer of the same name without CuGraph or Fused",
    "GraphNorm MeanSubtractionNorm PairNorm": _STATISTICS + "one with running statistics (BatchNorm1d) or over the channels "
    "of each node (torch.nn.LayerNorm)",
    "LayerNorm": _STATISTICS + "mode='node', which takes those of each node: LayerNorm(channels, mode='node'), or "
    "norm_kwargs=dict(mode=\"node\") beside norm=\"layer_norm\"",
    "InstanceNorm": _STATISTICS + "running statistics, InstanceNorm(channels, track_running_stats=True), or "
    "norm_kwargs=dict(track_running_stats=True) beside norm=\"instance_norm\"",
})  # fmt: skip

# Explicit wiring cannot make these exact; automatic wiring can.
_NORMALIZING = "GCNConv GCN2Conv DNAConv FAConv LGConv PDNConv"
_EXPLICIT = _by_name({
    _NORMALIZING: "normalises by degrees that it counts on the edges it is given, and a batch has no edges into its halo; "
    "create it with normalize=False and give it the weights of the whole graph: data = torch_gas.gcn_norm(data), then pass "
    "edge_weight=batch.edge_weight (or the weighted batch.adj_t)",
    "EGConv": "normalises by degrees that it counts on the edges it is given (aggregator 'symnorm'), and a batch has no "
    "edges into its halo; use other aggregators",
    "APPNP ARMAConv ChebConv GatedGraphConv LabelPropagation MixHopConv SGConv SSGConv TAGConv": "reads several hops at "
    "once, and a batch holds one; write it as one-hop layers with a history between them, as torch_gas.models.APPNP does",
    "AntiSymmetricConv": "calls the convolution inside of it several times, which reads several hops; use that convolution "
    "in a loop of your own, with a history after each call",
    "DirGNNConv": "reads outgoing edges, and a batch holds the incoming ones; use two layers, one on each direction's graph",
})  # fmt: skip


# When a class is refused, for those that are not always.
_CONDITIONS: dict[str, Callable[[Any], bool]] = {
    "LayerNorm": lambda norm: norm.mode == "graph",
    "InstanceNorm": lambda norm: not norm.track_running_stats,
    "EGConv": lambda conv: "symnorm" in conv.aggregators,
    **dict.fromkeys(_NORMALIZING.split(), lambda conv: getattr(conv, "normalize", False) is True),
}


def refuse(module: Module, automatic: bool = False) -> None:
    """Raises ValueError if ``module`` would compute something else on a batch than on the whole graph."""
    if not automatic and isinstance(module, MessagePassing) and module.flow != "source_to_target":
        raise ValueError(
            f"{type(module).__name__} cannot be used on a batch: with flow={module.flow!r} it reads outgoing edges, and a batch "
            f"holds the incoming ones; use the default flow on the graph with its edges reversed{_SCALE}"
        )
    if isinstance(module, ScriptModule) and hasattr(module, "aggr_module"):
        raise ValueError(
            f"{module.original_name} cannot be used on a batch: it is TorchScript (torch.jit.script or trace), whose code "
            "nothing can be wired into; use the plain layer, and script the model after training"
        )
    for cls in type(module).__mro__:
        if not cls.__module__.startswith("torch_geometric."):
            continue
        name = cls.__name__
        reason = _NEVER.get(name) or (not automatic and name in _EXPLICIT and _EXPLICIT[name] + _SCALE)
        if reason and (name not in _CONDITIONS or _CONDITIONS[name](module)):
            raise ValueError(f"{type(module).__name__} cannot be used on a batch: it {reason}")


def refuse_evaluation(model: Module, batch_size: int, num_nodes: int) -> None:
    """Raises ValueError if ``model``, in evaluation mode, would take statistics of B of the N nodes for those of all."""
    if model.training or batch_size == num_nodes:
        return
    for module in model.modules():
        if isinstance(module, _BatchNorm) and module.running_mean is None:
            raise ValueError(
                f"{type(module).__name__} with track_running_stats=False cannot be used on a batch in evaluation mode: it takes "
                "its statistics over all nodes of the graph, and a batch holds some; evaluate the model on the whole graph, "
                "model(data.x, data.edge_index), or use running statistics, track_running_stats=True. Training takes those of "
                "each batch, as with any batch norm"
            )


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


def instead_of_wrapper(model: Module) -> str:
    """What to do where ``model`` holds all of its layers in one module (GAE, an encoder), and that could be scaled alone."""
    convs = set(outermost_convs(model, automatic=True))
    for name, child in model.named_children():
        if convs and convs <= set(child.modules()) and not isinstance(child, (MessagePassing, ModuleDict, ModuleList)):
            return f"; or scale the encoder alone: model.{name} = scale(model.{name}, data)"
    return ""
