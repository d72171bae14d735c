"""What the benchmarks run: random graphs that need no partitioner, models, and a training step."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch_geometric import EdgeIndex
from torch_geometric.data import Data

from torch_gas import ScalableGNN, SubData, in_degree
from torch_gas.graph.halo import appended, join
from torch_gas.models import GAT, GCN, GCN2, PNA

MODELS = ("GCN", "GAT", "GCNII", "PNA")


def spread(count: int, limit: int, generator: torch.Generator) -> Tensor:
    """``count`` different ids below ``limit``, ascending: a random one of each of as many stretches of equal length."""
    start = torch.arange(count + 1) * limit // count
    return start[:-1] + _below(start.diff(), generator)


def _below(limit: Tensor, generator: torch.Generator) -> Tensor:
    return (torch.rand(limit.shape, dtype=torch.float64, generator=generator) * limit).long()


def block_graph(
    num_nodes: int,
    num_edges: int,
    num_parts: int,
    ratio: float,
    num_features: int,
    num_classes: int,
    layout: str = "csr",
    labels: str = "class",
) -> tuple[Data, Tensor]:
    """A random graph whose parts are consecutive nodes already, so that no partitioner is needed.

    Each node has E / N incoming edges (up to one). For each edge from its own part, ``ratio`` edges come from outside, from a
    halo of ``ratio`` times as many nodes as the part has: so ``ratio`` is both S / B and inter- by intra-connectivity.

    Args:
        num_nodes: N.
        num_edges: E.
        num_parts: parts, of equal size (up to one node).
        ratio: nodes of the halo by nodes of the part; less than ``num_parts - 1``.
        num_features: width of ``x``.
        num_classes: number of classes, or of labels.
        layout: ``"csr"``, ``"EdgeIndex"`` or ``"edge_index"``; weights are N / E.
        labels: ``"class"`` for one class a node, ``"multi"`` for several labels.

    Returns:
        The graph, and the start of each part and N, [num_parts + 1].
    """
    assert 0 < ratio < num_parts - 1
    generator = torch.Generator().manual_seed(0)

    ptr = torch.arange(num_parts + 1) * num_nodes // num_parts
    size = ptr.diff()
    halo_size = (size * ratio).long().clamp(min=1)
    halo_ptr = torch.cat([halo_size.new_zeros(1), halo_size.cumsum(0)])
    halos = []
    for start, length, count in zip(ptr[:-1].tolist(), size.tolist(), halo_size.tolist(), strict=True):
        halos.append((start + length + spread(count, num_nodes - length, generator)) % num_nodes)
    halo = torch.cat(halos)

    rowptr = torch.arange(num_nodes + 1) * num_edges // num_nodes
    part_of_edge = torch.arange(num_parts).repeat_interleave(rowptr[ptr].diff())
    edge = torch.arange(num_edges)
    num_inter = round(num_edges * ratio / (1 + ratio))
    is_inter = (edge + 1) * num_inter // num_edges > edge * num_inter // num_edges  # spread evenly
    col = ptr[part_of_edge] + _below(size[part_of_edge], generator)
    outside = part_of_edge[is_inter]
    col[is_inter] = halo[halo_ptr[outside] + _below(halo_size[outside], generator)]

    x = torch.randn(num_nodes, num_features, generator=generator)
    y = torch.randint(num_classes, (num_nodes,), generator=generator)
    if labels == "multi":
        y = torch.nn.functional.one_hot(y, num_classes).float()
    weight = torch.full((num_edges,), num_nodes / num_edges)
    if layout == "csr":
        adj_t = torch.sparse_csr_tensor(rowptr, col, weight, (num_nodes, num_nodes), check_invariants=False)
        return Data(x=x, y=y, adj_t=adj_t), ptr
    edge_index = torch.stack([col, torch.arange(num_nodes).repeat_interleave(rowptr.diff())])
    if layout == "EdgeIndex":
        edge_index = EdgeIndex(edge_index, sparse_size=(num_nodes, num_nodes), sort_order="col")
    return Data(x=x, y=y, edge_index=edge_index, edge_weight=weight), ptr


def make_model(
    name: str, data: Data, num_classes: int, hidden: int, num_layers: int, device: torch.device, /, **options: Any
) -> ScalableGNN:
    """A model on ``device`` with the histories that ``options`` of :class:`torch_gas.ScalableGNN` ask for."""
    torch.manual_seed(0)
    shape = (data.num_nodes, data.num_features)
    if name == "GAT":
        model = GAT(*shape, hidden // 8, 8, num_classes, 1, num_layers, **options)
    elif name == "GCNII":
        model = GCN2(*shape, hidden, num_classes, num_layers, alpha=0.1, theta=0.5, **options)
    elif name == "PNA":
        adj = data.adj_t if "adj_t" in data else data.edge_index
        scalers = ["identity", "amplification"]
        model = PNA(
            *shape, hidden, num_classes, num_layers, ["mean"], scalers, in_degree(adj, data.num_nodes), **options
        )
    else:
        model = GCN(*shape, hidden, num_classes, num_layers, **options)
    return model.to(device).train()


def without_histories(model: ScalableGNN) -> ScalableGNN:
    """``model`` with zeros for the halo's rows between layers: the same layers and gradients, and no table is touched."""

    def zeros_for_halo(
        history: Any, x: Tensor, batch_size: int | None = None, n_id: Tensor | None = None, *_: Any
    ) -> Tensor:
        assert model._session.call is not None
        model._session.call.used.add(history)  # as far as the model is told
        if n_id is None or batch_size is None:  # the whole graph has no halo
            return x
        return join(x[:batch_size], appended(x[:batch_size], n_id.numel() - batch_size, Tensor.zero_))

    model.push_and_pull = zeros_for_halo  # type: ignore[method-assign]  # of this model alone
    return model


def train_step(model: ScalableGNN, optimizer: torch.optim.Optimizer, batch: Any) -> None:
    """Forward, backward and optimiser step on a batch of a loader, or on a whole graph."""
    data, *ids = batch if isinstance(batch, SubData) else (batch,)
    with torch.profiler.record_function("forward"):
        inputs, kwargs = model.inputs(data)
        out = model(*inputs, *ids, **kwargs)
        y = data.y[: out.size(0)]
        if y.dim() == 1:
            loss = torch.nn.functional.cross_entropy(out, y)
        else:
            loss = torch.nn.functional.binary_cross_entropy_with_logits(out, y)
    with torch.profiler.record_function("backward"):
        optimizer.zero_grad()
        loss.backward()
    with torch.profiler.record_function("optimizer"):
        optimizer.step()
