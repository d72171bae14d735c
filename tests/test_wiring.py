"""Contract 1 for the layers of PyG: exact rows on a batch, or an error; never something else."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import pytest
import torch
import torch_geometric.nn as nn
from graphs import FORMATS, adjacency, random_graph
from torch import Tensor
from torch.nn import Linear, Module
from torch_geometric import EdgeIndex
from torch_geometric.data import Data
from torch_geometric.nn import MessagePassing

from torch_gas import ScalableGNN, SubgraphLoader
from torch_gas.wiring import refuse

N, C = 48, 8
PTR = torch.tensor([0, 12, 12, 30, N])


def attributed(fmt: str) -> Data:
    """A graph with whatever layers may ask for, its edges sorted as matrices hold them."""
    generator = torch.Generator().manual_seed(5)
    data = random_graph(N, 200, seed=4)
    src, dst = data.edge_index
    edges, data.edge_index = data.edge_index[:, (dst * N + src).argsort()], None
    data.num_nodes = N
    number = edges.size(1)
    data.pos = torch.rand(N, 3, generator=generator)
    data.normal = torch.nn.functional.normalize(torch.rand(N, 3, generator=generator), dim=1)
    data.node_type = torch.randint(2, (N,), generator=generator)
    data.edge_type = torch.randint(2, (number,), generator=generator)
    data.edge_attr = torch.rand(number, 3, generator=generator)
    data.edge_weight = torch.rand(number, generator=generator)
    if fmt == "edge_index":
        data.edge_index = edges
    elif fmt == "EdgeIndex":
        data.edge_index = EdgeIndex(edges, sparse_size=(N, N), sort_order="col")
    else:
        rowptr = torch.cat([torch.zeros(1, dtype=torch.int64), edges[1].bincount(minlength=N).cumsum(0)])
        if fmt == "csr":
            data.adj_t = torch.sparse_csr_tensor(
                rowptr, edges[0], torch.ones(number), size=(N, N), check_invariants=True
            )
        else:
            from torch_sparse import SparseTensor

            data.adj_t = SparseTensor(rowptr=rowptr, col=edges[0], sparse_sizes=(N, N))
    return data


class One(ScalableGNN):
    """A single layer, called with ``x``, the adjacency and attributes of the graph in ``order``."""

    def __init__(self, conv: Module, order: tuple[str, ...]) -> None:
        super().__init__(N, C, 1)
        self.conv, self.order = conv, order

    def inputs(self, data: Data, **kwargs: Any) -> Any:
        args, kwargs = super().inputs(data, **kwargs)
        return args, kwargs | {key: data[key] for key in self.order if key not in ("x", "adj", "x_0")}

    def forward(self, x: Tensor, adj: Any, *args: Any, **kwargs: Any) -> Any:
        given = {"x": x, "adj": adj, "x_0": x, **kwargs}
        out = self.conv(*(given[key] for key in self.order))
        return out[0] if isinstance(out, tuple) else out


class Case(NamedTuple):
    """A layer, and what it is called with."""

    make: Callable[[], Module]
    order: tuple[str, ...] = ("x", "adj")


def case(make: Callable[[], Module], *extra: str) -> Case:
    return Case(make, ("x", "adj", *extra))


def positions(make: Callable[[], Module], *extra: str) -> Case:
    return Case(make, ("x", "pos", *extra, "adj"))


def degrees() -> Tensor:
    return adjacency(attributed("edge_index"))[1].bincount(minlength=N).bincount()


PNA = {
    "aggregators": ["mean", "max", "std"],
    "scalers": ["identity", "amplification", "attenuation"],
}

EXACT: dict[str, Case] = {
    "SimpleConv": case(lambda: nn.SimpleConv()),
    "SimpleConv-sum": case(lambda: nn.SimpleConv("mean", combine_root="sum")),
    "SimpleConv-loop": case(lambda: nn.SimpleConv("mean", combine_root="self_loop")),
    "GCNConv": case(lambda: nn.GCNConv(C, 6, normalize=False)),
    "SAGEConv": case(lambda: nn.SAGEConv(C, 6)),
    "SAGEConv-max": case(lambda: nn.SAGEConv(C, 6, aggr="max", project=True, normalize=True)),
    "GraphConv": case(lambda: nn.GraphConv(C, 6)),
    "GraphConv-weight": case(lambda: nn.GraphConv(C, 6), "edge_weight"),
    "ResGatedGraphConv": case(lambda: nn.ResGatedGraphConv(C, 6)),
    "ResGatedGraphConv-edge": case(lambda: nn.ResGatedGraphConv(C, 6, edge_dim=3), "edge_attr"),
    "GATConv": case(lambda: nn.GATConv(C, 6, heads=2)),
    "GATConv-plain": case(lambda: nn.GATConv(C, 6, add_self_loops=False)),
    "GATConv-edge": case(lambda: nn.GATConv(C, 6, edge_dim=3), "edge_attr"),
    "GATv2Conv": case(lambda: nn.GATv2Conv(C, 6, heads=2)),
    "GATv2Conv-plain": case(lambda: nn.GATv2Conv(C, 6, add_self_loops=False)),
    "GATv2Conv-edge": case(lambda: nn.GATv2Conv(C, 6, edge_dim=3), "edge_attr"),
    "TransformerConv": case(lambda: nn.TransformerConv(C, 6)),
    "TransformerConv-edge": case(lambda: nn.TransformerConv(C, 6, edge_dim=3, beta=True), "edge_attr"),
    "AGNNConv": case(lambda: nn.AGNNConv()),
    "GINConv": case(lambda: nn.GINConv(Linear(C, 6), train_eps=True)),
    "GINEConv": case(lambda: nn.GINEConv(Linear(C, 6), edge_dim=3), "edge_attr"),
    "MFConv": case(lambda: nn.MFConv(C, 6)),
    "RGCNConv": case(lambda: nn.RGCNConv(C, 6, 2), "edge_type"),
    "FastRGCNConv": case(lambda: nn.FastRGCNConv(C, 6, 2), "edge_type"),
    "RGATConv": case(lambda: nn.RGATConv(C, 6, 2), "edge_type"),
    "SignedConv-first": Case(lambda: nn.SignedConv(C, 6, True), ("x", "adj", "adj")),
    "SignedConv": Case(lambda: nn.SignedConv(C // 2, 6, False), ("x", "adj", "adj")),
    "PointNetConv": positions(lambda: nn.PointNetConv(Linear(C + 3, 6))),
    "PointNetConv-plain": positions(lambda: nn.PointNetConv(Linear(C + 3, 6), add_self_loops=False)),
    "GMMConv": case(lambda: nn.GMMConv(C, 6, 3, 2), "edge_attr"),
    "SplineConv": case(lambda: nn.SplineConv(C, 6, 3, 2), "edge_attr"),
    "NNConv": case(lambda: nn.NNConv(C, 6, Linear(3, C * 6)), "edge_attr"),
    "CGConv": case(lambda: nn.CGConv(C, 3), "edge_attr"),
    "EdgeConv": case(lambda: nn.EdgeConv(Linear(2 * C, 6))),
    "PPFConv": positions(lambda: nn.PPFConv(Linear(C + 4, 6)), "normal"),
    "FeaStConv": case(lambda: nn.FeaStConv(C, 6, 2)),
    "PointTransformerConv": positions(lambda: nn.PointTransformerConv(C, 6)),
    "PointGNNConv": positions(lambda: nn.PointGNNConv(Linear(C, 3), Linear(C + 3, 6), Linear(6, C))),
    "LEConv": case(lambda: nn.LEConv(C, 6)),
    "LEConv-weight": case(lambda: nn.LEConv(C, 6), "edge_weight"),
    "PNAConv": case(lambda: nn.PNAConv(C, 6, deg=degrees(), **PNA)),
    "ClusterGCNConv": case(lambda: nn.ClusterGCNConv(C, 6, diag_lambda=0.5)),
    "GENConv": case(lambda: nn.GENConv(C, 6)),
    "GENConv-edge": case(lambda: nn.GENConv(C, 6, aggr="powermean", edge_dim=3), "edge_attr"),
    "GCN2Conv": Case(lambda: nn.GCN2Conv(C, 0.1, normalize=False), ("x", "x_0", "adj")),
    "WLConvContinuous": case(lambda: nn.WLConvContinuous()),
    "FiLMConv": case(lambda: nn.FiLMConv(C, 6)),
    "FiLMConv-type": case(lambda: nn.FiLMConv(C, 6, 2), "edge_type"),
    "SuperGATConv": case(lambda: nn.SuperGATConv(C, 6)),
    "FAConv": Case(lambda: nn.FAConv(C, normalize=False), ("x", "x_0", "adj", "edge_weight")),
    "EGConv": case(lambda: nn.EGConv(C, 6, ["sum", "max"], num_heads=2)),
    "PDNConv": case(lambda: nn.PDNConv(C, 6, 3, 4, normalize=False), "edge_attr"),
    "GeneralConv": case(lambda: nn.GeneralConv(C, 6)),
    "GeneralConv-edge": case(lambda: nn.GeneralConv(C, 6, 3, attention=True, heads=2, l2_normalize=True), "edge_attr"),
    "HEATConv": case(lambda: nn.HEATConv(C, 6, 2, 2, 4, 3, 4), "node_type", "edge_type", "edge_attr"),
    "LGConv": case(lambda: nn.LGConv(normalize=False)),
}

# A predecessor of this library ran most of them, and silently computed something else.
REFUSED: dict[str, Callable[[], Module]] = {
    "GCNConv": lambda: nn.GCNConv(C, 6),
    "ChebConv": lambda: nn.ChebConv(C, 6, 3),
    "GatedGraphConv": lambda: nn.GatedGraphConv(C, 2),
    "TAGConv": lambda: nn.TAGConv(C, 6),
    "ARMAConv": lambda: nn.ARMAConv(C, 6),
    "SGConv": lambda: nn.SGConv(C, 6),
    "SSGConv": lambda: nn.SSGConv(C, 6, 0.1),
    "APPNP": lambda: nn.APPNP(2, 0.1),
    "DNAConv": lambda: nn.DNAConv(C),
    "GCN2Conv": lambda: nn.GCN2Conv(C, 0.1),
    "PANConv": lambda: nn.PANConv(C, 6, 2),
    "FAConv": lambda: nn.FAConv(C),
    "EGConv": lambda: nn.EGConv(C, 6, num_heads=2),
    "PDNConv": lambda: nn.PDNConv(C, 6, 3, 4),
    "LGConv": lambda: nn.LGConv(),
    "MixHopConv": lambda: nn.MixHopConv(C, 6),
    "AntiSymmetricConv": lambda: nn.AntiSymmetricConv(C),
    "DirGNNConv": lambda: nn.DirGNNConv(nn.SAGEConv(C, 6)),
    "HypergraphConv": lambda: nn.HypergraphConv(C, 6),
    "GPSConv": lambda: nn.GPSConv(C, nn.SAGEConv(C, C), attn_type="performer"),
    "WLConv": lambda: nn.WLConv(),
    "LabelPropagation": lambda: nn.LabelPropagation(2, 0.5),
    "SparseLinear": lambda: nn.models.linkx.SparseLinear(N, 6),
}

# Not tried: layers of several node types (HGTConv, HANConv, HeteroConv), of meshes, and those whose
# compiled add-ons are no wheels (CuGraph*, Fused*, DynamicEdgeConv, GravNetConv, XConv).
OTHERS = {
    "MessagePassing", "HGTConv", "HANConv", "HeteroConv", "MeshCNNConv", "CuGraphSAGEConv",
    "CuGraphGATConv", "CuGraphRGCNConv", "FusedGATConv", "DynamicEdgeConv", "GravNetConv", "XConv",
}  # fmt: skip


def test_every_layer_of_pyg_is_in_a_table() -> None:
    named = {name.split("-")[0] for name in EXACT} | set(REFUSED) | OTHERS
    unknown = set(nn.conv.__all__) - named
    assert not unknown, f"new in PyG: add {unknown} to EXACT or REFUSED"


def gradients(model: ScalableGNN, rows: Tensor) -> list[Tensor | None]:
    parameters = [p for p in model.parameters() if p.requires_grad]
    if not parameters:
        return []
    return list(torch.autograd.grad(rows.square().sum(), parameters, retain_graph=True, allow_unused=True))


def check_exact(model: ScalableGNN, data: Data, full: Tensor) -> None:
    """Rows of each batch, and gradients of the layer's parameters, equal those of the whole graph."""
    for bipartite, ptr in ((True, PTR), (False, PTR[[0, 2, 4]])):
        for batch in SubgraphLoader(data, ptr, 1, bipartite=bipartite, prefetch=0):
            assert batch.halo_size > 0
            out, want = model(batch), full[batch.n_id[: batch.batch_size]]
            torch.testing.assert_close(out, want, rtol=1e-5, atol=1e-5)
            if not bool((batch.n_id == 0).any()):
                continue
            for left, right in zip(gradients(model, out), gradients(model, want), strict=True):
                torch.testing.assert_close(left, right, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("fmt", FORMATS)
@pytest.mark.parametrize("name", EXACT)
def test_exact(name: str, fmt: str) -> None:
    torch.manual_seed(0)
    make, order = EXACT[name]
    try:
        model = One(make(), order).eval()
    except ImportError as error:
        pytest.skip(str(error))
    data = attributed(fmt)
    args, kwargs = model.inputs(data)
    try:
        full = model(*args, **kwargs)
    except Exception as error:
        if fmt == "edge_index":
            raise
        pytest.skip(f"{name} takes no {fmt}: {type(error).__name__}")
    check_exact(model, data, full)


@pytest.mark.parametrize("name", REFUSED)
def test_refused(name: str) -> None:
    model = One(REFUSED[name](), ("x", "adj"))
    for batch in SubgraphLoader(attributed("edge_index"), PTR, 2):
        with pytest.raises(ValueError, match=rf"^{name} cannot be used on a batch: it .*(use|create|write)"):
            model(batch)


@pytest.mark.parametrize(
    ("norm", "is_refused"),
    [
        (nn.GraphNorm(C), True),
        (nn.GraphSizeNorm(), True),
        (nn.MeanSubtractionNorm(), True),
        (nn.PairNorm(), True),
        (nn.LayerNorm(C), True),
        (nn.LayerNorm(C, mode="node"), False),
        (nn.InstanceNorm(C), True),
        (nn.InstanceNorm(C, track_running_stats=True), False),
        (nn.BatchNorm(C), False),
        (torch.nn.LayerNorm(C), False),
    ],
)
def test_norms_over_all_nodes_are_refused(norm: Module, is_refused: bool) -> None:
    if is_refused:
        with pytest.raises(
            ValueError, match=f"{type(norm).__name__} cannot be used on a batch: it takes its statistics"
        ):
            refuse(norm)
    else:
        refuse(norm)


class NormInside(MessagePassing):
    def __init__(self) -> None:
        super().__init__()
        self.norm = torch.nn.BatchNorm1d(C)

    def forward(self, x: Tensor, edge_index: Tensor) -> Tensor:
        return self.norm(self.propagate(edge_index, x=x))

    def message(self, x_j: Tensor) -> Tensor:
        return x_j


def test_batch_norm_inside_a_layer_counts_the_rows_of_the_batch() -> None:
    data = random_graph(N, 4 * N, num_features=C)
    batch = next(iter(SubgraphLoader(data, torch.tensor([0, N // 2, N]))))
    assert batch.halo_size > 0
    model, alone = One(NormInside(), ("x", "adj")), torch.nn.BatchNorm1d(C)
    src, dst = batch.data.edge_index
    sums = torch.zeros(batch.batch_size, C).index_add(0, dst, batch.data.x[src])
    torch.testing.assert_close(model(batch), alone(sums))
    torch.testing.assert_close(model.conv.norm.running_var, alone.running_var)
    model.eval()(batch)  # running statistics are the same for each row


def test_batch_norm_without_running_statistics_is_refused() -> None:
    with pytest.raises(ValueError, match=r"BatchNorm1d with track_running_stats=False cannot be used on a batch"):
        refuse(torch.nn.BatchNorm1d(C, track_running_stats=False))


def test_refused_wherever_it_is() -> None:
    batch = next(iter(SubgraphLoader(attributed("edge_index"), PTR, 2)))

    class Own(nn.GCNConv):
        pass

    deep = torch.nn.Sequential(torch.nn.ModuleDict({"conv": Own(C, 6)}))
    with pytest.raises(ValueError, match="Own cannot be used on a batch: it normalises by degrees"):
        One(deep, ("x", "adj"))(batch)

    class Gated(MessagePassing):
        def __init__(self) -> None:
            super().__init__()
            self.inner = nn.SGConv(C, 6)

    with pytest.raises(ValueError, match="SGConv cannot be used on a batch: it reads several hops"):
        One(Gated(), ("x", "adj"))(batch)


def test_outgoing_edges_are_refused() -> None:
    model = One(nn.GraphConv(C, 6, flow="target_to_source"), ("x", "adj"))
    batch = next(iter(SubgraphLoader(attributed("edge_index"), PTR, 1)))
    with pytest.raises(ValueError, match="GraphConv cannot be used on a batch: with flow='target_to_"):
        model(batch)


# -- layers of users -------------------------------------------------------------------------------


class Plain(MessagePassing):
    """A layer without annotations, which knows of no pairs."""

    def __init__(self, aggr="sum"):
        super().__init__(aggr=aggr)
        self.lin = Linear(2 * C, 6)

    def forward(self, x, edge_index):
        return self.lin(torch.cat([x, self.propagate(edge_index, x=x)], dim=-1))

    def message(self, x_i, x_j):
        return x_j * x_i.sigmoid()


class Paired(nn.SAGEConv):
    """A layer that inherits its ``forward``."""


@pytest.mark.parametrize("fmt", FORMATS)
@pytest.mark.parametrize("make", [Plain, lambda: Plain("max"), lambda: Paired(C, 6)])
def test_layers_of_users_are_exact(make: Callable[[], Module], fmt: str) -> None:
    model, data = One(make(), ("x", "adj")).eval(), attributed(fmt)
    check_exact(model, data, model(data.x, adjacency(data)))


class Body(ScalableGNN):
    """Calls its layer in the way it was told to."""

    def __init__(self, conv: Module, call: Callable[..., Tensor]) -> None:
        super().__init__(N, C, 1)
        self.conv, self.call = conv, call

    def forward(self, x: Tensor, adj: Any, *args: Any) -> Tensor:
        return self.call(self.conv, x, adj)


@pytest.mark.parametrize(
    "call",
    [
        lambda conv, x, adj: conv(x, adj),
        lambda conv, x, adj: conv(x, edge_index=adj),
        lambda conv, x, adj: conv(x=x, edge_index=adj),
        lambda conv, x, adj: torch.nn.Sequential(conv)[0](x, adj),
    ],
)
@pytest.mark.parametrize("make", [lambda: nn.SAGEConv(C, 6), Plain, lambda: nn.SuperGATConv(C, 6)])
def test_ways_to_call_a_layer(make: Callable[[], Module], call: Callable[..., Tensor]) -> None:
    for fmt in ("edge_index", "csr"):
        model, data = Body(make(), call).eval(), attributed(fmt)
        check_exact(model, data, model(data.x, adjacency(data)))


@pytest.mark.parametrize("fmt", ["csr", "SparseTensor"])
def test_calls_in_the_manner_of_pygas(fmt: str) -> None:
    if fmt == "SparseTensor":
        pytest.importorskip("torch_sparse")
    data = attributed(fmt)
    for conv in (
        nn.SAGEConv(C, 6),
        nn.GATConv(C, 6, add_self_loops=False),
        nn.GINConv(Linear(C, 6)),
    ):
        model = Body(conv, lambda conv, x, adj: conv((x, x[: adj.size(0)]), adj)).eval()
        full = model(data.x, data.adj_t)
        for batch in SubgraphLoader(data, PTR, 1):
            want = full[batch.n_id[: batch.batch_size]]
            torch.testing.assert_close(model(batch), want, rtol=1e-5, atol=1e-5)


def test_gcn2_in_the_manner_of_pygas() -> None:
    pytest.importorskip("torch_sparse")
    data = attributed("SparseTensor")
    conv = nn.GCN2Conv(C, 0.1, 0.5, 1, normalize=False)
    model = Body(conv, lambda conv, x, adj: conv(x, x[: adj.size(0)], adj)).eval()
    full = model(data.x, data.adj_t)
    for batch in SubgraphLoader(data, PTR, 1):
        want = full[batch.n_id[: batch.batch_size]]
        torch.testing.assert_close(model(batch), want, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("name", ["GATConv", "GATv2Conv", "TransformerConv"])
def test_attention_weights_are_returned(name: str) -> None:
    torch.manual_seed(0)
    conv = getattr(nn, name)(C, 6)
    model = Body(conv, lambda conv, x, adj: conv(x, adj, return_attention_weights=True)).eval()
    data = attributed("edge_index")
    full, (edges, weights) = model(data.x, data.edge_index)
    alpha = {edge: w for edge, w in zip(map(tuple, edges.t().tolist()), weights, strict=True)}
    for batch in SubgraphLoader(data, PTR, 1):
        out, (edges, weights) = model(batch)
        torch.testing.assert_close(out, full[batch.n_id[: batch.batch_size]], rtol=1e-5, atol=1e-5)
        for edge, weight in zip(batch.n_id[edges].t().tolist(), weights, strict=True):
            torch.testing.assert_close(weight, alpha[tuple(edge)], rtol=1e-5, atol=1e-5)


def test_several_hops_in_one_model_are_an_error() -> None:
    data = attributed("edge_index")
    model = One(nn.GraphSAGE(C, 8, 2, 6), ("x", "adj"))
    batch = next(iter(SubgraphLoader(data, PTR, 1)))
    with pytest.raises(ValueError, match=r"SAGEConv was called with x of 12 rows .* x must have .*push_and_pull"):
        model(batch)
