"""The table of cases: each layer of ``torch_geometric.nn.conv``, how to make it, and what to call it with.

A case is named by its class, and in brackets by what sets it apart from other cases of that class.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import torch_geometric.nn as nn
from torch import Tensor
from torch.nn import BatchNorm1d, Linear, Module, ReLU, Sequential

from conformance.graph import C, N, graph


class Case(NamedTuple):
    """A layer, and what it is called with.

    Args:
        make: makes one; it takes rows of width C.
        order: names of its positional arguments: ``x`` for the rows, ``adj`` for the adjacency in whatever format, ``x_0`` for
            the features, ``x_all`` for both as [N, 2, C], and attributes of the graph.
        features: the attribute of the graph that the first layer gets as ``x``.
    """

    make: Callable[[], Module]
    order: tuple[str, ...] = ("x", "adj")
    features: str = "x"

    @property
    def attributes(self) -> tuple[str, ...]:
        """The attributes of the graph in ``order``."""
        return tuple(name for name in self.order if name not in ("x", "adj", "x_0", "x_all"))


def class_of(name: str) -> str:
    """The class of a case."""
    return name.partition(" ")[0]


def _with(*attributes: str) -> tuple[str, ...]:
    return ("x", "adj", *attributes)


def _degrees() -> Tensor:
    return graph().edge_index[1].bincount(minlength=N).bincount()


def _normed(in_channels: int) -> Module:
    """Of 6 channels, with a batch norm inside."""
    return Sequential(Linear(in_channels, 6), BatchNorm1d(6), ReLU(), Linear(6, 6))


def _pna() -> Module:
    scalers = ["identity", "amplification", "attenuation"]
    return nn.PNAConv(C, 6, aggregators=["mean", "max", "std"], scalers=scalers, deg=_degrees())


_TYPED = ("x", "adj", "node_type", "edge_type", "edge_attr")
_WITH_POSITIONS = ("x", "pos", "adj")

# Exact in both wirings.
EXACT: dict[str, Case] = {
    "SimpleConv": Case(lambda: nn.SimpleConv()),
    "SimpleConv (combine_root='sum')": Case(lambda: nn.SimpleConv("mean", combine_root="sum")),
    "SimpleConv (combine_root='self_loop')": Case(lambda: nn.SimpleConv("mean", combine_root="self_loop")),
    "GCNConv (normalize=False)": Case(lambda: nn.GCNConv(C, 6, normalize=False)),
    "SAGEConv": Case(lambda: nn.SAGEConv(C, 6)),
    "SAGEConv (aggr='max')": Case(lambda: nn.SAGEConv(C, 6, aggr="max", project=True, normalize=True)),
    "GraphConv": Case(lambda: nn.GraphConv(C, 6)),
    "GraphConv (edge_weight)": Case(lambda: nn.GraphConv(C, 6), _with("edge_weight")),
    "ResGatedGraphConv": Case(lambda: nn.ResGatedGraphConv(C, 6)),
    "ResGatedGraphConv (edge_attr)": Case(lambda: nn.ResGatedGraphConv(C, 6, edge_dim=3), _with("edge_attr")),
    "GATConv": Case(lambda: nn.GATConv(C, 6, heads=2)),
    "GATConv (add_self_loops=False)": Case(lambda: nn.GATConv(C, 6, add_self_loops=False)),
    "GATConv (edge_attr)": Case(lambda: nn.GATConv(C, 6, edge_dim=3), _with("edge_attr")),
    "GATConv (dropout=0.5)": Case(lambda: nn.GATConv(C, 6, heads=2, dropout=0.5)),
    "GATv2Conv": Case(lambda: nn.GATv2Conv(C, 6, heads=2)),
    "GATv2Conv (add_self_loops=False)": Case(lambda: nn.GATv2Conv(C, 6, add_self_loops=False)),
    "GATv2Conv (edge_attr)": Case(lambda: nn.GATv2Conv(C, 6, edge_dim=3), _with("edge_attr")),
    "GATv2Conv (dropout=0.5)": Case(lambda: nn.GATv2Conv(C, 6, heads=2, dropout=0.5)),
    "TransformerConv": Case(lambda: nn.TransformerConv(C, 6)),
    "TransformerConv (edge_attr)": Case(lambda: nn.TransformerConv(C, 6, edge_dim=3, beta=True), _with("edge_attr")),
    "TransformerConv (dropout=0.5)": Case(lambda: nn.TransformerConv(C, 6, dropout=0.5)),
    "AGNNConv": Case(lambda: nn.AGNNConv()),
    "GINConv": Case(lambda: nn.GINConv(Linear(C, 6), train_eps=True)),
    "GINConv (batch norm)": Case(lambda: nn.GINConv(_normed(C))),
    "GINEConv": Case(lambda: nn.GINEConv(Linear(C, 6), edge_dim=3), _with("edge_attr")),
    "MFConv": Case(lambda: nn.MFConv(C, 6)),
    "RGCNConv": Case(lambda: nn.RGCNConv(C, 6, 2), _with("edge_type")),
    "FastRGCNConv": Case(lambda: nn.FastRGCNConv(C, 6, 2), _with("edge_type")),
    "RGATConv": Case(lambda: nn.RGATConv(C, 6, 2), _with("edge_type")),
    "RGATConv (dropout=0.5)": Case(lambda: nn.RGATConv(C, 6, 2, dropout=0.5), _with("edge_type")),
    "SignedConv (first_aggr=True)": Case(lambda: nn.SignedConv(C, 6, True), ("x", "adj", "adj")),
    "SignedConv (first_aggr=False)": Case(lambda: nn.SignedConv(C // 2, 6, False), ("x", "adj", "adj")),
    "DNAConv (normalize=False)": Case(lambda: nn.DNAConv(C, normalize=False), ("x_all", "adj", "edge_weight")),
    "DNAConv (normalize=False, dropout=0.5)": Case(
        lambda: nn.DNAConv(C, normalize=False, dropout=0.5), ("x_all", "adj", "edge_weight")
    ),
    "PointNetConv": Case(lambda: nn.PointNetConv(Linear(C + 3, 6)), _WITH_POSITIONS),
    "PointNetConv (add_self_loops=False)": Case(
        lambda: nn.PointNetConv(Linear(C + 3, 6), add_self_loops=False), _WITH_POSITIONS
    ),
    "GMMConv": Case(lambda: nn.GMMConv(C, 6, 3, 2), _with("edge_attr")),
    "SplineConv": Case(lambda: nn.SplineConv(C, 6, 3, 2), _with("edge_attr")),
    "NNConv": Case(lambda: nn.NNConv(C, 6, Linear(3, C * 6)), _with("edge_attr")),
    "CGConv": Case(lambda: nn.CGConv(C, 3), _with("edge_attr")),
    "EdgeConv": Case(lambda: nn.EdgeConv(Linear(2 * C, 6))),
    "EdgeConv (batch norm)": Case(lambda: nn.EdgeConv(_normed(2 * C))),
    "PPFConv": Case(lambda: nn.PPFConv(Linear(C + 4, 6)), ("x", "pos", "normal", "adj")),
    "FeaStConv": Case(lambda: nn.FeaStConv(C, 6, 2)),
    "PointTransformerConv": Case(lambda: nn.PointTransformerConv(C, 6), _WITH_POSITIONS),
    "PointGNNConv": Case(
        lambda: nn.PointGNNConv(Linear(C, 3), Linear(C + 3, 6), Linear(6, C)),
        _WITH_POSITIONS,
    ),
    "LEConv": Case(lambda: nn.LEConv(C, 6)),
    "LEConv (edge_weight)": Case(lambda: nn.LEConv(C, 6), _with("edge_weight")),
    "PNAConv": Case(_pna),
    "ClusterGCNConv": Case(lambda: nn.ClusterGCNConv(C, 6, diag_lambda=0.5)),
    "GENConv": Case(lambda: nn.GENConv(C, 6)),
    "GENConv (edge_attr)": Case(lambda: nn.GENConv(C, 6, aggr="powermean", edge_dim=3), _with("edge_attr")),
    "GCN2Conv (normalize=False)": Case(lambda: nn.GCN2Conv(C, 0.1, normalize=False), ("x", "x_0", "adj")),
    "WLConvContinuous": Case(lambda: nn.WLConvContinuous()),
    "FiLMConv": Case(lambda: nn.FiLMConv(C, 6)),
    "FiLMConv (edge_type)": Case(lambda: nn.FiLMConv(C, 6, 2), _with("edge_type")),
    "SuperGATConv": Case(lambda: nn.SuperGATConv(C, 6)),
    "SuperGATConv (dropout=0.5)": Case(lambda: nn.SuperGATConv(C, 6, dropout=0.5)),
    "FAConv (normalize=False)": Case(lambda: nn.FAConv(C, normalize=False), ("x", "x_0", "adj", "edge_weight")),
    "FAConv (normalize=False, dropout=0.5)": Case(
        lambda: nn.FAConv(C, normalize=False, dropout=0.5), ("x", "x_0", "adj", "edge_weight")
    ),
    "EGConv ('sum', 'max')": Case(lambda: nn.EGConv(C, 6, ["sum", "max"], num_heads=2)),
    "PDNConv (normalize=False)": Case(lambda: nn.PDNConv(C, 6, 3, 4, normalize=False), _with("edge_attr")),
    "GeneralConv": Case(lambda: nn.GeneralConv(C, 6)),
    "GeneralConv (edge_attr)": Case(
        lambda: nn.GeneralConv(C, 6, 3, attention=True, heads=2, l2_normalize=True), _with("edge_attr")
    ),
    "HEATConv": Case(lambda: nn.HEATConv(C, 6, 2, 2, 4, 3, 4), _TYPED),
    "HEATConv (dropout=0.5)": Case(lambda: nn.HEATConv(C, 6, 2, 2, 4, 3, 4, dropout=0.5), _TYPED),
    "LGConv (normalize=False)": Case(lambda: nn.LGConv(normalize=False)),
}

# Exact in automatic wiring; refused in explicit wiring, where they would silently compute something else.
SCALED: dict[str, Case] = {
    "GCNConv": Case(lambda: nn.GCNConv(C, 6)),
    "GCNConv (edge_weight)": Case(lambda: nn.GCNConv(C, 6, improved=True), _with("edge_weight")),
    "GCNConv (cached=True)": Case(lambda: nn.GCNConv(C, 6, cached=True)),
    "GraphConv (flow='target_to_source')": Case(lambda: nn.GraphConv(C, 6, flow="target_to_source")),
    "ChebConv": Case(lambda: nn.ChebConv(C, 6, 3)),
    "ChebConv (normalization=None)": Case(lambda: nn.ChebConv(C, 6, 3, normalization=None)),
    "ChebConv (normalization='rw')": Case(lambda: nn.ChebConv(C, 6, 3, normalization="rw"), _with("edge_weight")),
    "GatedGraphConv": Case(lambda: nn.GatedGraphConv(C, 3)),
    "TAGConv": Case(lambda: nn.TAGConv(C, 6)),
    "ARMAConv": Case(lambda: nn.ARMAConv(C, 6, num_stacks=2, num_layers=3)),
    "ARMAConv (dropout=0.5)": Case(lambda: nn.ARMAConv(C, 6, num_stacks=2, num_layers=3, dropout=0.5)),
    "SGConv": Case(lambda: nn.SGConv(C, 6, K=3)),
    "SSGConv": Case(lambda: nn.SSGConv(C, 6, 0.1, K=3)),
    "APPNP": Case(lambda: nn.APPNP(4, 0.1)),
    "APPNP (dropout=0.5)": Case(lambda: nn.APPNP(4, 0.1, dropout=0.5)),
    "DNAConv": Case(lambda: nn.DNAConv(C), ("x_all", "adj")),
    "DNAConv (dropout=0.5)": Case(lambda: nn.DNAConv(C, dropout=0.5), ("x_all", "adj")),
    "GCN2Conv": Case(lambda: nn.GCN2Conv(C, 0.1), ("x", "x_0", "adj")),
    "FAConv": Case(lambda: nn.FAConv(C), ("x", "x_0", "adj")),
    "FAConv (dropout=0.5)": Case(lambda: nn.FAConv(C, dropout=0.5), ("x", "x_0", "adj")),
    "EGConv": Case(lambda: nn.EGConv(C, 6, num_heads=2)),
    "EGConv ('symnorm', 'max')": Case(lambda: nn.EGConv(C, 6, ["symnorm", "max"], num_heads=2)),
    "PDNConv": Case(lambda: nn.PDNConv(C, 6, 3, 4), _with("edge_attr")),
    "LGConv": Case(lambda: nn.LGConv()),
    "AntiSymmetricConv": Case(lambda: nn.AntiSymmetricConv(C, num_iters=3)),
    "DirGNNConv (SAGEConv)": Case(lambda: nn.DirGNNConv(nn.SAGEConv(C, 6))),
    "DirGNNConv (GCNConv)": Case(lambda: nn.DirGNNConv(nn.GCNConv(C, 6))),
    "MixHopConv": Case(lambda: nn.MixHopConv(C, 6)),
}

# Refused in both wirings.
REFUSED: dict[str, Case] = {
    "DynamicEdgeConv": Case(lambda: nn.DynamicEdgeConv(Linear(2 * C, 6), k=3), ("x",)),
    "GravNetConv": Case(lambda: nn.GravNetConv(C, 6, 3, 4, k=3), ("x",)),
    "XConv": Case(lambda: nn.XConv(C, 6, 3, 3), ("x", "pos")),
    "HypergraphConv": Case(lambda: nn.HypergraphConv(C, 6)),
    "PANConv": Case(lambda: nn.PANConv(C, 6, 2)),
    "WLConv": Case(lambda: nn.WLConv(), features="node_type"),
    "GPSConv": Case(lambda: nn.GPSConv(C, nn.SAGEConv(C, C), heads=2)),
}

CASES: dict[str, Case] = EXACT | SCALED | REFUSED

_SEVERAL_TYPES = "takes dictionaries of several node types, and histories are for one"
_COMPILED = "needs a compiled add-on and a CUDA device, and takes its graph as CSC or CSR tensors"

# Classes without a case. All but the first are refused by name in both wirings.
WITHOUT: dict[str, str] = {
    "MessagePassing": "the base class, which computes nothing by itself",
    "HGTConv": _SEVERAL_TYPES,
    "HANConv": _SEVERAL_TYPES,
    "HeteroConv": _SEVERAL_TYPES,
    "MeshCNNConv": "takes one row for each edge of a mesh, and no rows of nodes",
    "CuGraphSAGEConv": _COMPILED,
    "CuGraphGATConv": _COMPILED,
    "CuGraphRGCNConv": _COMPILED,
    "FusedGATConv": _COMPILED,
}
