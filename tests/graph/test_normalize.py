"""Normalisation, self-loops and degrees are the same in all four formats, and PyG's."""

import os
import shutil
from pathlib import Path

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch_geometric import EdgeIndex
from torch_geometric.data import Data
from torch_geometric.datasets import Planetoid
from torch_geometric.nn import GATConv, GCNConv

from torch_gas.graph import edges
from torch_gas.graph.edges import coo
from torch_gas.graph.normalize import add_self_loops, gcn_norm, in_degree
from torch_gas.partition import permute

FORMATS = ["plain", "EdgeIndex", "csr", "sparse_tensor"]


def build(kind, src, dst, weight, num_nodes):
    """A graph whose edges are sorted by destination; the matrices hold weights as values."""
    order = (dst * num_nodes + src).argsort(stable=True)
    src, dst = src[order], dst[order]
    weight = None if weight is None else weight[order]
    size = (num_nodes, num_nodes)
    data = Data(num_nodes=num_nodes)
    if kind == "csr":
        rowptr = torch.searchsorted(dst, torch.arange(num_nodes + 1))
        value = torch.ones(src.numel()) if weight is None else weight
        data.adj_t = torch.sparse_csr_tensor(rowptr, src, value, size, check_invariants=False)
    elif kind == "sparse_tensor":
        torch_sparse = pytest.importorskip("torch_sparse")
        data.adj_t = torch_sparse.SparseTensor(row=dst, col=src, value=weight, sparse_sizes=size)
    else:
        data.edge_index = torch.stack([src, dst])
        if kind == "EdgeIndex":
            data.edge_index = EdgeIndex(data.edge_index, sparse_size=size, sort_order="col")
        if weight is not None:
            data.edge_weight = weight
    return data


def adjacency(data):
    return data.edge_index if "edge_index" in data else data.adj_t


def dense(data):
    """The adjacency as [destinations, sources], duplicates summed."""
    src, dst, value = coo(adjacency(data))
    weight = data.get("edge_weight", value)
    weight = torch.ones(src.numel()) if weight is None else weight
    out = torch.zeros(data.num_nodes, data.num_nodes, dtype=weight.dtype)
    return out.index_put((dst, src), weight, accumulate=True)


@pytest.fixture(scope="module")
def cora(tmp_path_factory):
    root = os.environ.get("TORCH_GAS_DATA")
    if root is None:
        pytest.skip("TORCH_GAS_DATA does not name a folder with real graphs")
    copy = tmp_path_factory.mktemp("data") / "planetoid"
    shutil.copytree(Path(root) / "planetoid" / "Cora", copy / "Cora")
    return Planetoid(str(copy), "Cora")[0]


@pytest.mark.parametrize("kind", FORMATS)
@pytest.mark.parametrize("loops", [True, False])
@pytest.mark.parametrize("improved", [True, False])
@pytest.mark.parametrize("weighted", [True, False])
def test_cora_gives_what_the_convolution_computes(cora, kind, loops, improved, weighted):
    torch.manual_seed(0)
    (src, dst), size = cora.edge_index, cora.num_nodes
    weight = torch.rand(src.numel()) if weighted else None
    plain = build("plain", src, dst, weight, size)
    conv = GCNConv(cora.num_features, 16, add_self_loops=loops, improved=improved)
    # With no weights at all, GCNConv ignores `improved` on an edge_index.
    expected = conv(cora.x, plain.edge_index, plain.get("edge_weight", torch.ones(src.numel())))
    data = build(kind, src, dst, weight, size)
    before = adjacency(data)
    out = gcn_norm(data, add_self_loops=loops, improved=improved)
    assert type(adjacency(out)) is type(before) and adjacency(data) is before
    conv.normalize = False
    torch.testing.assert_close(conv(cora.x, adjacency(out), out.get("edge_weight")), expected, rtol=0, atol=1e-6)
    wrong = (conv(cora.x, adjacency(data), data.get("edge_weight")) - expected).abs().max()
    assert wrong > 1e-2


@pytest.mark.parametrize("kind", FORMATS)
def test_normalised_graph_can_be_permuted(cora, kind):
    out = gcn_norm(build(kind, *cora.edge_index, None, cora.num_nodes))
    perm = torch.randperm(cora.num_nodes)
    assert dense(permute(out, perm, log=False)).equal(dense(out)[perm][:, perm])


@st.composite
def weighted_graphs(draw):
    """Directed graphs with isolated nodes and self-loops; distinct edges, as CSR demands."""
    num_nodes = draw(st.integers(1, 6))
    node = st.integers(0, num_nodes - 1)
    edges = draw(st.lists(st.tuples(node, node), unique=True, max_size=12))
    src, dst = torch.tensor(edges, dtype=torch.int64).reshape(-1, 2).unbind(1)
    weight = torch.arange(1, len(edges) + 1).float() / 4
    return src, dst, draw(st.sampled_from([weight, None])), num_nodes


@pytest.mark.parametrize("kind", FORMATS)
@settings(deadline=None, max_examples=40)
@given(graph=weighted_graphs(), loops=st.booleans(), fill=st.sampled_from([1.0, 2.0]))
def test_gcn_norm_is_the_formula(kind, graph, loops, fill):
    data = build(kind, *graph)
    matrix = dense(data)
    has_loop = torch.zeros(data.num_nodes, dtype=torch.bool)
    has_loop[graph[0][graph[0] == graph[1]]] = True
    if loops:
        matrix = matrix + torch.diag(torch.where(has_loop, 0.0, fill))
    scale = matrix.sum(dim=1).pow(-0.5)
    scale[scale.isinf()] = 0
    out = gcn_norm(data, add_self_loops=loops, improved=fill == 2)
    torch.testing.assert_close(dense(out), scale[:, None] * matrix * scale)
    if kind == "EdgeIndex":
        out.edge_index.validate()
        assert out.edge_index.sort_order == "col"


@pytest.mark.parametrize("kind", ["csr", "sparse_tensor"])
@pytest.mark.parametrize("edges_at_once", [0, 1, 3])
@settings(deadline=None, max_examples=40)
@given(graph=weighted_graphs(), loops=st.booleans())
def test_rows_at_a_time_give_the_same(kind, edges_at_once, graph, loops):
    data = build(kind, *graph)
    whole = [gcn_norm(data, add_self_loops=loops), add_self_loops(data)]
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(edges, "EDGES_AT_ONCE", edges_at_once)
        parts = [gcn_norm(data, add_self_loops=loops), add_self_loops(data)]
    for a, b in zip(whole, parts, strict=True):
        for one, other in zip(coo(a.adj_t), coo(b.adj_t), strict=True):
            assert one is other is None or one.equal(other)


@pytest.mark.parametrize("dtype", [torch.int32, torch.int64])
def test_matrices_keep_the_type_of_ids_and_ascending_columns(dtype):
    src, dst = torch.tensor([2, 0, 2, 1]), torch.tensor([0, 1, 1, 2])
    rowptr = torch.tensor([0, 1, 3, 4], dtype=dtype)
    weight = torch.tensor([1.0, 2.0, 3.0, 4.0], requires_grad=True)
    plain = Data(edge_index=torch.stack([src, dst]), edge_weight=weight, num_nodes=3)
    for call in (gcn_norm, add_self_loops):
        adj = torch.sparse_csr_tensor(rowptr, src.to(dtype), weight, (3, 3), check_invariants=True)
        out = call(Data(adj_t=adj, num_nodes=3)).adj_t
        assert out.crow_indices().dtype == out.col_indices().dtype == dtype
        assert out.crow_indices().tolist() == [0, 2, 5, 7] and out.col_indices().tolist() == [0, 2, 0, 1, 2, 1, 2]
        grads = [
            torch.autograd.grad(weights.square().sum(), weight)[0]
            for weights in (out.values(), call(plain).edge_weight)
        ]
        torch.testing.assert_close(*grads)


@pytest.mark.parametrize("kind", FORMATS)
@settings(deadline=None, max_examples=40)
@given(graph=weighted_graphs())
def test_add_self_loops(kind, graph):
    data = build(kind, *graph)
    out = add_self_loops(data)
    missing = dense(data).diagonal() == 0
    assert dense(out).equal(dense(data) + torch.diag(missing.float()))
    assert type(adjacency(out)) is type(adjacency(data))
    assert coo(adjacency(out))[0].numel() == coo(adjacency(data))[0].numel() + int(missing.sum())
    weighted = kind == "csr" or graph[2] is not None
    assert (out.get("edge_weight") is not None or coo(adjacency(out))[2] is not None) == weighted


@pytest.mark.parametrize("kind", FORMATS)
def test_add_self_loops_is_what_gat_computes(cora, kind):
    torch.manual_seed(0)
    conv = GATConv(cora.num_features, 4, heads=2).eval()
    expected = conv(cora.x, cora.edge_index)
    conv.add_self_loops = False
    out = add_self_loops(build(kind, *cora.edge_index, None, cora.num_nodes))
    adj = adjacency(out)
    if kind == "csr":  # GATConv would take the values for edge attributes.
        adj = torch.stack(coo(adj)[:2])
    torch.testing.assert_close(conv(cora.x, adj), expected, rtol=0, atol=1e-6)


def test_edge_attributes_stay_aligned_without_new_loops():
    src, dst = torch.tensor([1, 0, 2]), torch.tensor([0, 0, 1])
    csr = torch.sparse_csr_tensor(  # columns of row 0 descend
        torch.tensor([0, 2, 3, 3]), src, torch.tensor([1, 2, 4]), (3, 3), check_invariants=False
    )
    data = Data(adj_t=csr, edge_attr=torch.stack([src, dst], dim=1), num_nodes=3)
    out = gcn_norm(data, add_self_loops=False)
    assert torch.stack(coo(out.adj_t)[:2], dim=1).equal(out.edge_attr)
    assert out.adj_t.values().dtype == torch.float32


def test_weights_get_the_type_of_the_features():
    edge_index, weight = torch.tensor([[0, 1], [1, 0]]), torch.tensor([1, 2])
    data = Data(x=torch.zeros(2, 1, dtype=torch.float64), edge_index=edge_index)
    assert gcn_norm(data).edge_weight.dtype == torch.float64
    data.edge_weight = weight
    assert gcn_norm(data).edge_weight.dtype == torch.float64
    data.edge_weight = weight.half()
    assert gcn_norm(data).edge_weight.dtype == torch.float16


@pytest.mark.parametrize("kind", FORMATS)
@settings(deadline=None, max_examples=40)
@given(graph=weighted_graphs())
def test_in_degree(kind, graph):
    data = build(kind, *graph)
    degree = in_degree(adjacency(data), data.num_nodes)
    assert degree.dtype == torch.int64
    assert degree.tolist() == [int((graph[1] == v).sum()) for v in range(data.num_nodes)]


def test_in_degree_of_a_batch():
    """2 destinations, 4 sources."""
    torch_sparse = pytest.importorskip("torch_sparse")
    src, dst = torch.tensor([3, 0, 2]), torch.tensor([0, 1, 1])
    adjacencies = [
        torch.stack([src, dst]),
        EdgeIndex(torch.stack([src, dst]), sparse_size=(4, 2), sort_order="col"),
        torch.sparse_csr_tensor(torch.tensor([0, 1, 3]), src, torch.ones(3), (2, 4), check_invariants=True),
        torch_sparse.SparseTensor(row=dst, col=src, sparse_sizes=(2, 4)),
    ]
    for adj in adjacencies:
        assert in_degree(adj, 2).tolist() == [1, 2]
    for adj in adjacencies[1:]:
        with pytest.raises(ValueError, match=r"num_nodes is 4, but adj has 2 destinations"):
            in_degree(adj, 4)
    with pytest.raises(IndexError, match=r"in_degree\(\): adj holds the node id 1"):
        in_degree(adjacencies[0], 1)


def data3(**extra):
    return Data(edge_index=torch.tensor([[0, 1], [1, 2]]), num_nodes=3, **extra)


@pytest.mark.parametrize(
    ("data", "message"),
    [
        (data3(edge_attr=torch.ones(2, 1)), r"would have no edge_attr.*pass add_self_loops=False"),
        (data3(edge_weight=torch.ones(2, 1)), r"shape \[2\], but have \[2, 1\]"),
        (data3(edge_weight=torch.ones(4)), r"one weight per edge, 2, but has shape \[4\]"),
        (data3(edge_weight=torch.tensor([1.0, -5.0])), r"must be finite and sum to a degree"),
        (data3(edge_weight=torch.tensor([1.0, torch.nan])), r"must be finite"),
        (Data(edge_index=torch.tensor([[0], [1]])), r"unknown: set data\.num_nodes"),
        (Data(num_nodes=3), r"data has no adjacency"),
    ],
)
def test_gcn_norm_refuses(data, message):
    with pytest.raises(ValueError, match=message):
        gcn_norm(data)


def test_refusals_of_both():
    data = build("csr", torch.tensor([0]), torch.tensor([1]), None, 2)
    data.edge_weight = torch.ones(1)
    for call in (gcn_norm, add_self_loops):
        with pytest.raises(ValueError, match=rf"{call.__name__}\(\): data\.adj_t is a matrix, whose values"):
            call(data)
        with pytest.raises(IndexError, match=r"data\.edge_index holds the node id 2"):
            call(Data(edge_index=torch.tensor([[2], [1]]), num_nodes=2))
    with pytest.raises(ValueError, match=r"add_self_loops\(\): new self-loops would have no edge_attr"):
        add_self_loops(data3(edge_attr=torch.ones(2, 1)))
    with pytest.raises(ValueError, match=r"no edge_perm.*permute\(\), which is to be called afterwards"):
        add_self_loops(data3(edge_perm=torch.arange(2), perm=torch.arange(3)))
