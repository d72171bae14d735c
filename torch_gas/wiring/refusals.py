"""Layers that would compute something else on a batch than on the whole graph, and what to use instead.

In explicit wiring these tables are all that stands between such a layer and wrong rows. In automatic wiring they give better
words to what the trial of :mod:`torch_gas.wiring.trial.probe` would find as well.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any, NamedTuple

from torch.jit import ScriptModule
from torch.nn import Module, ModuleDict, ModuleList
from torch.nn.modules.batchnorm import _BatchNorm
from torch_geometric.nn import GraphSizeNorm, MessagePassing

from torch_gas._util.modules import modules_of

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


_SCRIPT = (
    "is TorchScript (torch.jit.script or trace), whose code nothing can be wired into; use the plain layer, and script the model "
    "after training"
)

# When a class is refused, for those that are not always.
_CONDITIONS: dict[str, Callable[[Any], bool]] = {
    "LayerNorm": lambda norm: norm.mode == "graph",
    "InstanceNorm": lambda norm: not norm.track_running_stats,
    "EGConv": lambda conv: "symnorm" in conv.aggregators,
    "ScriptModule": lambda module: hasattr(module, "aggr_module"),  # as message passing has
    **dict.fromkeys(_NORMALIZING.split(), lambda conv: getattr(conv, "normalize", False) is True),
}


@functools.cache
def _reasons(cls: Any, automatic: bool) -> list[tuple[str, str]]:
    """Names of a class and its bases that are in the tables, with the reason for each."""
    names = [base.__name__ for base in cls.__mro__ if base.__module__.startswith("torch_geometric.")]
    explicit = {} if automatic else _EXPLICIT
    found = [(name, reason) for name in names if (reason := _NEVER.get(name, ""))]
    found += [(name, explicit[name] + _SCALE) for name in names if name in explicit]
    return [*found, ("ScriptModule", _SCRIPT)] if issubclass(cls, ScriptModule) else found


def refuse(module: Module, automatic: bool = False) -> None:
    """Raises ValueError if ``module`` would compute something else on a batch than on the whole graph."""
    if not automatic and isinstance(module, MessagePassing) and module.flow != "source_to_target":
        raise ValueError(
            f"{type(module).__name__} cannot be used on a batch: with flow={module.flow!r} it reads outgoing edges, and a batch "
            f"holds the incoming ones; use the default flow on the graph with its edges reversed{_SCALE}"
        )
    cls: Any = type(module)
    for name, reason in _reasons(cls, automatic):
        if name not in _CONDITIONS or _CONDITIONS[name](module):
            called = getattr(module, "original_name", cls.__name__)
            raise ValueError(f"{called} cannot be used on a batch: it {reason}")


def refuse_evaluation(model: Module, batch_size: int, num_nodes: int) -> None:
    """Raises ValueError if ``model``, in evaluation mode, would take statistics of B of the N nodes for those of all."""
    if model.training or batch_size == num_nodes:
        return
    for module in modules_of(model):
        if isinstance(module, _BatchNorm) and module.running_mean is None:
            raise ValueError(
                f"{type(module).__name__} with track_running_stats=False cannot be used on a batch in evaluation mode: it takes "
                "its statistics over all nodes of the graph, and a batch holds some; evaluate the model on the whole graph, "
                "model(data.x, data.edge_index), or use running statistics, track_running_stats=True. Training takes those of "
                "each batch, as with any batch norm"
            )


class Layers(NamedTuple):
    """What of a model is wired to a batch, in the order of its modules.

    Args:
        convs: message-passing layers that are not inside another one.
        sizes: norms that go by the number of nodes.
    """

    convs: list[MessagePassing]
    sizes: list[GraphSizeNorm]


def find_layers(model: Module, automatic: bool = False) -> Layers:
    """The layers of ``model``; raises ValueError if one is refused."""
    found = Layers([], [])
    _find(model, automatic, found)
    return found


def _find(module: Module, automatic: bool, found: Layers) -> None:
    is_conv = isinstance(module, MessagePassing)
    if is_conv:
        found.convs.append(module)
    for inner in modules_of(module) if is_conv else [module]:
        refuse(inner, automatic)
        if isinstance(inner, GraphSizeNorm):
            found.sizes.append(inner)
    for child in () if is_conv else dict.fromkeys(module._modules.values()):
        if child is not None:
            _find(child, automatic, found)


def instead_of_wrapper(model: Module) -> str:
    """What to do where ``model`` holds all of its layers in one module (GAE, an encoder), and that could be scaled alone."""
    convs = set(find_layers(model, automatic=True).convs)
    for name, child in model.named_children():
        if convs and convs <= set(child.modules()) and not isinstance(child, (MessagePassing, ModuleDict, ModuleList)):
            return f"; or scale the encoder alone: model.{name} = scale(model.{name}, data)"
    return ""
