"""Sparse node features: batches and models give what they give on the same features stored densely."""

from __future__ import annotations

import copy
from collections.abc import Callable
from functools import partial
from typing import Any

import pytest
import torch
from torch_geometric.data import Data
from torch_geometric.nn import GCNConv, GraphSAGE

from torch_gas import (
    EvalSubgraphLoader,
    ScalableGNN,
    SubgraphLoader,
    add_self_loops,
    gcn_norm,
    metis,
    permute,
    scale,
    unpermute,
)
from torch_gas.datasets import synthetic
from torch_gas.graph.attributes import first_rows, take
from torch_gas.graph.dropout import dropout
from torch_gas.models import APPNP, GAT, GCN, GCN2, GIN, PNA, SAGE

WIDTH, CLASSES, NODES = 40, 5, 300
MODELS = {
    "GCN": lambda **options: GCN(NODES, WIDTH, 8, CLASSES, 3, **options),
    "wide GCN": lambda **options: GCN(NODES, WIDTH, 64, CLASSES, 3, **options),
    "GAT": lambda **options: GAT(NODES, WIDTH, 4, 2, CLASSES, 1, 3, **options),
    "APPNP": lambda **options: APPNP(NODES, WIDTH, 8, CLASSES, 4, alpha=0.1, **options),
    "GCN2": lambda **options: GCN2(NODES, WIDTH, 8, CLASSES, 4, alpha=0.1, theta=0.5, **options),
    "GIN": lambda **options: GIN(NODES, WIDTH, 8, CLASSES, 3, **options),
    "PNA": lambda **options: PNA(NODES, WIDTH, 8, CLASSES, 3, ["mean"], ["identity"], torch.ones(NODES), **options),
}


def bags(num_nodes: int = NODES) -> torch.Tensor:
    """Features of which a tenth is not zero; some rows are empty."""
    generator = torch.Generator().manual_seed(0)
    x = torch.rand(num_nodes, WIDTH, generator=generator)
    return torch.where(torch.rand(x.shape, generator=generator) < 0.1, x, 0.0)


def graph(name: str, layout: str = "edge_index") -> Data:
    data = synthetic(NODES)
    data.x = bags().double()
    data = add_self_loops(data) if name == "GAT" else gcn_norm(data) if name != "GIN" else data
    if "edge_weight" in data:
        data.edge_weight = data.edge_weight.double()
    if layout == "csr":
        src, dst = data.edge_index
        weight = data.get("edge_weight", torch.ones(src.numel()).double())
        data.adj_t = torch.sparse_coo_tensor(torch.stack([dst, src]), weight, (NODES, NODES)).to_sparse_csr()
        del data.edge_index
        if "edge_weight" in data:
            del data.edge_weight
    return data


@pytest.mark.parametrize("index", [[], [3], [5, 0, 5, 299], list(range(299, -1, -1))])
def test_rows_of_a_matrix_are_those_of_the_dense_tensor(index: list[int]) -> None:
    x, rows = bags(), torch.tensor(index, dtype=torch.int64)
    taken = take(x.to_sparse_csr(), rows)
    assert taken.layout == torch.sparse_csr and taken.shape == (len(index), WIDTH)
    assert torch.equal(taken.to_dense(), x[rows])


def test_first_rows_share_memory() -> None:
    x = bags().to_sparse_csr()
    head = first_rows(x, 7)
    assert torch.equal(head.to_dense(), bags()[:7]) and head.values().data_ptr() == x.values().data_ptr()


def test_dropout_keeps_the_pattern_and_its_expectation() -> None:
    x = torch.ones(400, 500).to_sparse_csr()
    out = dropout(x, 0.25, training=True)
    assert torch.equal(out.col_indices(), x.col_indices())
    assert out.values().unique().tolist() == [0.0, pytest.approx(1 / 0.75)]
    assert abs(float(out.values().mean()) - 1) < 0.01
    assert dropout(x, 0.25, training=False) is x


@pytest.mark.parametrize("layout", ["edge_index", "csr"])
@pytest.mark.parametrize("name", MODELS)
def test_models_give_what_they_give_on_dense_features(name: str, layout: str) -> None:
    data = graph(name, layout)
    perm, ptr = metis(data, 6, log=False)
    dense = permute(data, perm, log=False)
    sparse = copy.copy(data)
    sparse.x = data.x.to_sparse_csr()
    sparse = permute(sparse, perm, log=False)
    assert torch.equal(sparse.x.to_dense(), dense.x)
    assert torch.equal(unpermute(sparse).x.to_dense(), data.x)

    torch.manual_seed(0)
    model = MODELS[name]().double()
    loaders = [SubgraphLoader(each, ptr, 2) for each in (dense, sparse)]
    for pair in zip(*loaders, strict=True):
        grads, outs = [], []
        for batch in pair:
            model.zero_grad()
            outs.append(model(batch))
            outs[-1].square().sum().backward()
            grads.append([parameter.grad.clone() for parameter in model.parameters()])
        assert pair[1].data.x.layout == torch.sparse_csr
        torch.testing.assert_close(*outs)
        torch.testing.assert_close(*grads)

    model.eval()
    with torch.no_grad():
        whole = [model(*model.inputs(each)[0], **model.inputs(each)[1]) for each in (dense, sparse)]
        torch.testing.assert_close(*whole)
        torch.testing.assert_close(model(loader=EvalSubgraphLoader(sparse, ptr, 2)), whole[0])


def test_training_with_dropout_runs() -> None:
    data = graph("GCN", "csr")
    data.x = data.x.to_sparse_csr()
    perm, ptr = metis(data, 6, log=False)
    model = MODELS["GCN"](dropout=0.5).double()
    for batch in SubgraphLoader(permute(data, perm, log=False), ptr, 2, shuffle=True, seed=0):
        model(batch).sum().backward()
    assert all(bool(parameter.grad.isfinite().all()) for parameter in model.parameters())


class Plain(ScalableGNN):
    """A layer that takes no pair, and gets a square adjacency."""

    def __init__(self, conv: Callable[..., torch.nn.Module]) -> None:
        super().__init__(NODES, 8, 2)
        self.convs = torch.nn.ModuleList([conv(WIDTH, 8), conv(8, CLASSES)])

    def forward(self, x: torch.Tensor, adj_t: Any, *args: Any, edge_weight: Any = None) -> torch.Tensor:
        x = self.push_and_pull(self.histories[0], self.convs[0](x, adj_t, edge_weight).relu(), *args)
        return self.convs[1](x, adj_t, edge_weight)


@pytest.mark.parametrize("layout", ["edge_index", "csr"])
def test_layers_of_ones_own_take_sparse_features(layout: str) -> None:
    data = graph("GCN", layout)
    model = Plain(partial(GCNConv, normalize=False)).double()
    ptr, outs = torch.tensor([0, 100, NODES]), []
    for x in (data.x, data.x.to_sparse_csr()):
        data.x = x
        model.reset_parameters()
        outs.append([model(batch) for batch in SubgraphLoader(data, ptr, 1)])
    torch.testing.assert_close(*outs)


def test_layers_that_sum_up_features_say_that_they_take_dense_ones() -> None:
    data = graph("GIN", "csr")
    with pytest.raises(TypeError, match="to_dense"):
        SAGE(NODES, WIDTH, 64, CLASSES, 2)(data.x.float().to_sparse_csr(), data.adj_t)


def test_scale_takes_dense_features() -> None:
    data = graph("GIN")
    data.x = data.x.to_sparse_csr()
    with pytest.raises(ValueError, match="to_dense"):
        scale(GraphSAGE(WIDTH, 8, 2, CLASSES), data)


@pytest.mark.parametrize("threads", [1, 2])
@pytest.mark.parametrize("ids", [torch.int64, torch.int32])
def test_entries_are_the_same_on_any_number_of_threads(threads: int, ids: torch.dtype) -> None:
    index = torch.randint(0, 500, (40_000,), generator=torch.Generator().manual_seed(0)).to(ids)
    before = torch.get_num_threads()
    torch.set_num_threads(threads)
    try:
        for values in (
            torch.rand(500),
            torch.rand(500, 3),
            torch.rand(500, 6)[:, ::2],
            torch.arange(500),
            torch.rand(500) > 0.5,
        ):
            assert torch.equal(take(values, index), values[index.long()])
        learned = torch.rand(500, requires_grad=True)
        take(learned, index).sum().backward()
        assert torch.equal(learned.grad, torch.bincount(index, minlength=500).float())
        with pytest.raises(IndexError):
            take(torch.rand(5), index)
    finally:
        torch.set_num_threads(before)
