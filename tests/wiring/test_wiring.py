"""How layers are called on a batch, users' own included, and what is refused.

The layers of PyG themselves are in test_conformance.py.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch_geometric.nn as nn
from conformance import REFUSED, SCALED, class_of, graph
from conformance.graph import PTR, C, N
from graphs import FORMATS, adjacency, random_graph
from torch import Tensor
from torch.nn import Linear, Module
from torch_geometric.data import Data
from torch_geometric.nn import MessagePassing

from torch_gas import EvalSubgraphLoader, ScalableGNN, SubgraphLoader, check
from torch_gas.wiring import refuse


class One(ScalableGNN):
    """A single layer."""

    def __init__(self, conv: Module) -> None:
        super().__init__(N, C, 1)
        self.conv = conv

    def forward(self, x: Tensor, adj: Any, *args: Any) -> Tensor:
        return self.conv(x, adj)


# A predecessor of this library ran most of them, and silently computed something else.
REFUSED_BY_NAME: dict[str, Callable[[], Module]] = {
    **{name: case.make for name, case in (SCALED | REFUSED).items() if "flow=" not in name},
    "LabelPropagation": lambda: nn.LabelPropagation(2, 0.5),
}


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


@pytest.mark.parametrize("name", REFUSED_BY_NAME)
def test_refused(name: str) -> None:
    try:
        model = One(REFUSED_BY_NAME[name]())
    except ImportError as error:
        pytest.skip(str(error))
    pattern = rf"^{class_of(name)} cannot be used on a batch: it .*(use|create|write)"
    for batch in SubgraphLoader(graph(), PTR, 2):
        with pytest.raises(ValueError, match=pattern):
            model(batch)


@pytest.mark.parametrize(
    ("norm", "is_refused"),
    [
        (nn.GraphNorm(C), True),
        (nn.GraphSizeNorm(), False),
        (nn.MeanSubtractionNorm(), True),
        (nn.PairNorm(), True),
        (nn.LayerNorm(C), True),
        (nn.LayerNorm(C, mode="node"), False),
        (nn.InstanceNorm(C), True),
        (nn.InstanceNorm(C, track_running_stats=True), False),
        (nn.BatchNorm(C), False),
        (nn.BatchNorm(C, track_running_stats=False), False),
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
    model, alone = One(NormInside()), torch.nn.BatchNorm1d(C)
    src, dst = batch.data.edge_index
    sums = torch.zeros(batch.batch_size, C).index_add(0, dst, batch.data.x[src])
    torch.testing.assert_close(model(batch), alone(sums))
    torch.testing.assert_close(model.conv.norm.running_var, alone.running_var)
    model.eval()(batch)  # running statistics are the same for each row


class NormOfMessages(NormInside):
    def forward(self, x: Tensor, edge_index: Tensor) -> Tensor:
        return self.propagate(edge_index, x=x)

    def message(self, x_j: Tensor) -> Tensor:
        return self.norm(x_j)


def test_batch_norm_of_messages_counts_all_edges() -> None:
    """Also where a batch has as many edges as rows."""
    edge_index = torch.tensor([[2, 3, 0, 1], [0, 1, 1, 0]])
    data = Data(x=torch.randn(N, C), edge_index=edge_index, num_nodes=N)
    batch = next(iter(SubgraphLoader(data, torch.tensor([0, 2, N]))))
    assert batch.n_id.numel() == batch.data.num_edges == 4
    model, alone = One(NormOfMessages()), torch.nn.BatchNorm1d(C)
    src, dst = edge_index
    torch.testing.assert_close(model(batch), torch.zeros(2, C).index_add(0, dst, alone(data.x[src])))
    torch.testing.assert_close(model.conv.norm.running_mean, alone.running_mean)


def test_refused_wherever_it_is() -> None:
    batch = next(iter(SubgraphLoader(graph(), PTR, 2)))

    class Own(nn.GCNConv):
        pass

    deep = torch.nn.Sequential(torch.nn.ModuleDict({"conv": Own(C, 6)}))
    with pytest.raises(ValueError, match="Own cannot be used on a batch: it normalises by degrees"):
        One(deep)(batch)

    class Gated(MessagePassing):
        def __init__(self) -> None:
            super().__init__()
            self.inner = nn.SGConv(C, 6)

    with pytest.raises(ValueError, match="SGConv cannot be used on a batch: it reads several hops"):
        One(Gated())(batch)


def test_outgoing_edges_are_refused() -> None:
    model = One(nn.GraphConv(C, 6, flow="target_to_source"))
    batch = next(iter(SubgraphLoader(graph(), PTR, 1)))
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
    model, data = One(make()).eval(), graph(fmt)
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
        model, data = Body(make(), call).eval(), graph(fmt)
        check_exact(model, data, model(data.x, adjacency(data)))


@pytest.mark.parametrize("fmt", ["csr", "SparseTensor"])
def test_calls_in_the_manner_of_pygas(fmt: str) -> None:
    if fmt == "SparseTensor":
        pytest.importorskip("torch_sparse")
    data = graph(fmt)
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
    data = graph("SparseTensor")
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
    data = graph()
    full, (edges, weights) = model(data.x, data.edge_index)
    alpha = {edge: w for edge, w in zip(map(tuple, edges.t().tolist()), weights, strict=True)}
    for batch in SubgraphLoader(data, PTR, 1):
        out, (edges, weights) = model(batch)
        torch.testing.assert_close(out, full[batch.n_id[: batch.batch_size]], rtol=1e-5, atol=1e-5)
        for edge, weight in zip(batch.n_id[edges].t().tolist(), weights, strict=True):
            torch.testing.assert_close(weight, alpha[tuple(edge)], rtol=1e-5, atol=1e-5)


def test_several_hops_in_one_model_are_an_error() -> None:
    data = graph()
    model = One(nn.GraphSAGE(C, 8, 2, 6))
    batch = next(iter(SubgraphLoader(data, PTR, 1)))
    with pytest.raises(ValueError, match=r"SAGEConv was called with x of 12 rows .* x must have .*push_and_pull"):
        model(batch)


class Edges(MessagePassing):
    """A state for each edge."""

    def __init__(self) -> None:
        super().__init__()
        self.lin = torch.nn.Linear(2 * C, 6)

    def forward(self, x: Tensor, edge_index: Tensor) -> Tensor:
        return self.lin(torch.cat([x[edge_index[0]], x[edge_index[1]]], dim=-1))


class Weighted(MessagePassing):
    def forward(self, x: Tensor, edge_index: Tensor, weight: Tensor) -> Tensor:
        return self.propagate(edge_index, x=x, weight=weight)

    def message(self, x_j: Tensor, weight: Tensor) -> Tensor:
        return x_j[:, :6] * weight


class Stateful(ScalableGNN):
    def __init__(self, num_nodes: int) -> None:
        super().__init__(num_nodes, 6, num_layers=2)
        self.edges, self.first, self.last = Edges(), Weighted(), nn.SAGEConv(6, 6)

    def forward(self, x: Tensor, edge_index: Tensor, *args: Any) -> Tensor:
        x = self.first(x, edge_index, self.edges(x, edge_index))
        return self.last(self.push_and_pull(self.histories[0], x, *args), edge_index)


def test_states_of_as_many_edges_as_rows() -> None:
    nodes = torch.arange(20)
    ring = torch.stack([nodes, (nodes + 1) % 20])
    data = Data(x=torch.randn(20, C), edge_index=torch.cat([ring, ring.flip(0)], dim=1))
    ptr = torch.arange(0, 21, 2)  # two nodes, two of a halo, four edges
    model, twin = Stateful(20), Stateful(20)
    twin.load_state_dict(model.state_dict())
    with pytest.raises(
        ValueError, match=r"Edges returned 4 rows on a batch of 4 nodes and as many edges.*check\(model, data\)"
    ):
        model(next(iter(SubgraphLoader(data, ptr))))
    check(model, data)
    wanted = twin(data.x, data.edge_index)
    assert_same_rows(model, data, ptr, wanted)
    other = Stateful(20)  # which has seen batches of other sizes
    other.load_state_dict(twin.state_dict())
    assert_same_rows(other, data, torch.tensor([0, 7, 20]), wanted)
    assert_same_rows(other, data, ptr, wanted)


def assert_same_rows(model: ScalableGNN, data: Data, ptr: Tensor, wanted: Tensor) -> None:
    model(data.x, data.edge_index)
    for batch in EvalSubgraphLoader(data, ptr):
        torch.testing.assert_close(model(batch), wanted[batch.n_id[: batch.batch_size]])
