"""Graphs that hold their edges twice, as T.ToSparseTensor(remove_edge_index=False) leaves them."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
from graphs import random_graph, to_format
from nets import Net
from torch_geometric.data import Data
from torch_geometric.nn import GCN
from torch_geometric.transforms import ToSparseTensor

from torch_gas import ScaledGNN, SubgraphLoader, add_self_loops, gcn_norm, metis, permute, scale

N = 60
PTR = torch.tensor([0, 14, 37, N])


def graph(fmt: str = "csr") -> Data:
    data = random_graph(N, 240)
    data.adj_t = to_format(data, fmt).adj_t
    return data


def test_batches_hold_the_matrix() -> None:
    data = graph()
    alone = copy.copy(data)
    del alone.edge_index
    for batch, other in zip(SubgraphLoader(data, PTR), SubgraphLoader(alone, PTR), strict=True):
        assert "edge_index" not in batch
        assert torch.equal(batch.adj_t.to_dense(), other.adj_t.to_dense())
        assert batch.record.key == other.record.key
    assert "edge_index" in data and "adj_t" in data


def test_from_the_transform_to_inference() -> None:
    data = ToSparseTensor(remove_edge_index=False, layout=torch.sparse_csr)(random_graph(N, 240))
    perm, ptr = metis(data, 4, log=False)
    data = permute(data, perm, log=False)
    for model in (scale(GCN(8, 16, 2, 3), data).eval(), Net(N).eval()):
        full = model(data) if isinstance(model, ScaledGNN) else model(data.x, data.adj_t)
        for batch in SubgraphLoader(data, ptr, 2):
            torch.testing.assert_close(model(batch), full[batch.n_id[: batch.batch_size]], rtol=1e-4, atol=1e-5)


def test_normalisation_keeps_one() -> None:
    data = graph()
    for out in (gcn_norm(data), add_self_loops(data)):
        assert "edge_index" not in out and (out.adj_t.to_dense().diagonal() != 0).all()
    assert "edge_index" in data


def test_other_edges() -> None:
    data = graph()
    data.edge_index = data.edge_index[:, 1:]
    for call in (
        lambda: metis(data, 4, log=False),
        lambda: SubgraphLoader(data, PTR),
        lambda: scale(GCN(8, 16, 2, 3), data),
        lambda: gcn_norm(data),
        lambda: Net(N).inputs(data),
    ):
        with pytest.raises(ValueError, match=r"which state different edges; keep one: `del data\.edge_index` or"):
            call()


def test_edges_that_become_others_later() -> None:
    data = graph()
    loader = SubgraphLoader(data, PTR)
    data.edge_index[:, 0] = data.edge_index.flip(1)[:, 0]
    with pytest.raises(ValueError, match="which state different edges"):
        next(iter(loader))


def test_attributes_of_edges() -> None:
    data = graph()
    data.edge_attr = torch.rand(data.num_edges, 3)
    with pytest.raises(ValueError, match=r"two orders, and edge_attr go by that of edge_index; keep one"):
        SubgraphLoader(data, PTR)
    src, dst = data.edge_index
    order = (dst * N + src).argsort()  # as the matrix has them
    data.edge_index, data.edge_attr = data.edge_index[:, order], data.edge_attr[order]
    alone = copy.copy(data)
    del alone.adj_t
    for batch, other in zip(SubgraphLoader(data, PTR), SubgraphLoader(alone, PTR), strict=True):
        dst = torch.repeat_interleave(batch.adj_t.crow_indices().diff()), other.edge_index[1]
        left, right = (
            torch.zeros(N, 3).index_add_(0, i, b.edge_attr) for i, b in zip(dst, (batch, other), strict=True)
        )
        torch.testing.assert_close(left, right)


def test_weights_of_edges_for_the_partition() -> None:
    data = graph()
    weight: Any = torch.rand(data.num_edges)
    with pytest.raises(ValueError, match=r"edge_weight goes by one of data\.edge_index and data\.adj_t: pass that"):
        metis(data, 4, edge_weight=weight, log=False)
    metis(data.edge_index, 4, edge_weight=weight, num_nodes=N, log=False)
