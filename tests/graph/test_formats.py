"""The four formats: recognised, read and written alike."""

from __future__ import annotations

import copy
import subprocess
import sys
from typing import Any

import pytest
import torch
from graphs import FORMATS, adjacency, random_graph, to_format
from torch_geometric import EdgeIndex
from torch_geometric.data import Data

from torch_gas.graph import edges, formats
from torch_gas.graph.adjacency import find_adjacency

N = 30


def test_formats_are_told_apart() -> None:
    for fmt in ("edge_index", "EdgeIndex", "csr"):
        adj = adjacency(to_format(random_graph(N, 90), fmt))
        found = formats.format_of(adj)
        assert [known is found for known in formats.FORMATS] == [known.is_mine(adj) for known in formats.FORMATS]
        assert isinstance(found, formats.PyGEdgeIndex) == (fmt == "EdgeIndex")
        assert formats.is_csr(adj) == formats.is_matrix(adj) == (fmt == "csr")
        assert not isinstance(found, formats.SparseTensor)


@pytest.mark.parametrize("fmt", FORMATS)
def test_num_nodes_and_destinations(fmt: str) -> None:
    adj = adjacency(to_format(random_graph(N, 90), fmt))
    stated = None if fmt == "edge_index" else N
    assert formats.format_of(adj).num_nodes(adj) == stated
    assert formats.num_destinations(adj) == stated


def test_edge_index_objects_may_state_one_size() -> None:
    pair = torch.tensor([[0, 1], [1, 0]])
    for size, stated in (((5, None), 5), ((None, 4), 4), (None, None)):
        adj = EdgeIndex(pair, sparse_size=size)
        assert formats.format_of(adj).num_nodes(adj) == stated


@pytest.mark.parametrize("weighted", [False, True])
@pytest.mark.parametrize("fmt", FORMATS)
def test_coo_and_to_csr_hold_the_same_edges(fmt: str, weighted: bool) -> None:
    data = random_graph(N, 200)
    pairs = data.edge_index
    weight = torch.arange(1.0, pairs.size(1) + 1)
    if weighted:
        data.edge_weight = weight
    adj = adjacency(to_format(data, fmt))
    wanted = {(s, d): w for s, d, w in zip(*pairs.tolist(), weight.tolist(), strict=True)}

    src, dst, value = edges.coo(adj)
    pairs = list(zip(src.tolist(), dst.tolist(), strict=True))
    assert sorted(pairs) == sorted(wanted)
    if weighted and formats.is_matrix(adj):
        assert value.tolist() == [wanted[pair] for pair in pairs]

    csr = edges.to_csr(adj, N)
    assert csr.rowptr.tolist() == [0, *dst.bincount(minlength=N).cumsum(0).tolist()]
    order = torch.arange(len(pairs)) if csr.perm is None else csr.perm
    assert torch.equal(csr.col, src[order])
    assert torch.equal(torch.arange(N).repeat_interleave(csr.rowptr.diff()), dst[order])
    assert (csr.value is not None) == (fmt == "csr" or (weighted and fmt == "SparseTensor"))
    if formats.is_matrix(adj):
        assert csr.perm is None


def test_sorted_edges_are_not_copied() -> None:
    pairs = random_graph(N, 200).edge_index
    pairs = pairs[:, pairs[1].argsort(stable=True)].contiguous()
    csr = edges.to_csr(pairs, N)
    assert csr.perm is None and csr.col.data_ptr() == pairs.data_ptr()
    shuffled = edges.to_csr(pairs.flip(1), N)
    assert shuffled.perm is not None
    assert torch.equal(shuffled.rowptr, csr.rowptr)


@pytest.mark.parametrize("fmt", FORMATS)
def test_resize_adds_or_cuts_empty_rows_and_leaves_the_batch_alone(fmt: str) -> None:
    from torch_gas import SubgraphLoader

    data = to_format(random_graph(N, 90), fmt)
    for batch in SubgraphLoader(data, torch.tensor([0, 12, N]), 1):
        rows, adj = batch.n_id.numel(), adjacency(batch.data)
        before = [None if part is None else part.clone() for part in edges.coo(adj)]
        square = formats.resize(adj, rows, rows)
        narrow = formats.resize(square, batch.batch_size, rows)
        assert type(square) is type(narrow) is type(adj)
        if fmt != "edge_index":
            assert formats.num_destinations(square) == rows
            assert formats.num_destinations(narrow) == formats.num_destinations(adj) == batch.batch_size
        if fmt == "EdgeIndex":
            square.validate()
            narrow.validate()
        for resized in (square, narrow, adj):
            for left, right in zip(edges.coo(resized), before, strict=True):
                assert (left is None and right is None) or torch.equal(left, right)


def test_find_adjacency() -> None:
    data = random_graph(N, 90)
    key, adj = find_adjacency(data)
    assert key == "edge_index" and adj is data.edge_index
    assert find_adjacency(to_format(data, "csr"))[0] == "adj_t"
    with pytest.raises(ValueError, match=r"data has no adjacency: set data\.edge_index"):
        find_adjacency(Data(x=data.x))
    data.adj_t = to_format(data, "csr").adj_t
    assert find_adjacency(data) == ("adj_t", data.adj_t)
    data.edge_index = data.edge_index[:, 1:]
    with pytest.raises(ValueError, match=r"both edge_index and adj_t, which state different.*del data\.edge_index"):
        find_adjacency(data)


@pytest.mark.parametrize(
    ("adj", "came"),
    [
        (torch.zeros(2, 5), r"\(2, 5\) torch\.float32"),
        (torch.zeros(3, 5, dtype=torch.int64), r"\(3, 5\) torch\.int64"),
        (torch.eye(3).to_sparse(), r"sparse_coo"),
        ([[0], [1]], "list"),
    ],
)
def test_other_formats_are_refused(adj: object, came: str) -> None:
    with pytest.raises(TypeError, match=rf"my adj must be edge_index .*EdgeIndex.*but is .*{came}"):
        formats.check_adjacency(adj, "my adj")


@pytest.mark.slow
def test_torch_sparse_is_not_imported() -> None:
    code = (
        "import sys; sys.modules['torch_sparse'] = None; from torch_gas import adjacency; "
        "assert not adjacency.is_matrix(1)"
    )
    done = subprocess.run([sys.executable, "-W", "ignore", "-c", code], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


@pytest.mark.parametrize("fmt", FORMATS)
def test_map_tensors_and_all_tensors(fmt: str) -> None:
    adj = adjacency(to_format(random_graph(20, 60), fmt))
    if fmt == "EdgeIndex":
        adj = adj.fill_cache_()
    held = {"a": [adj, torch.zeros(3)], "b": "text"}
    mapped = formats.map_tensors(held, torch.clone)
    assert mapped["b"] == "text" and type(mapped["a"][0]) is type(adj)
    for left, right in zip(edges.coo(adj), edges.coo(mapped["a"][0]), strict=True):
        assert (left is right is None) or torch.equal(left, right)
    left, right = formats.all_tensors(held), formats.all_tensors(mapped)
    assert len(left) == len(right) > 1
    for a, b in zip(left, right, strict=True):
        assert torch.equal(a, b) and a.data_ptr() != b.data_ptr()


@pytest.mark.parametrize("order", ["row", "col", None])
@pytest.mark.parametrize("filled", [False, True])
@pytest.mark.parametrize("size", [(10, 10), (14, 10), (10, 17), (12, 12), (None, 12)])
def test_resized_edge_indices_are_those_of_pyg(size: tuple[int | None, int], filled: bool, order: str | None) -> None:
    pairs = torch.tensor([[0, 3, 9, 3], [1, 1, 2, 8]])
    if order is not None:
        pairs = pairs[:, pairs[0 if order == "row" else 1].argsort(stable=True)]
    adj = EdgeIndex(pairs, sparse_size=(10, 10), sort_order=order)
    if filled and order is not None:
        adj = adj.fill_cache_()
    num_src, num_dst = size[0] or 5, size[1]
    expected = copy.copy(adj).sparse_resize_(num_src, num_dst)
    resized = formats.resize(adj, num_dst, num_src)
    if num_dst == 10:  # the number of destinations is what counts
        assert resized is adj
        return
    assert resized.sparse_size() == expected.sparse_size() == (num_src, num_dst)
    for name in ("_indptr", "_T_indptr"):
        left, right = getattr(resized, name), getattr(expected, name)
        assert (left is right is None) or torch.equal(left, right), name
    assert adj.sparse_size() == (10, 10)


@pytest.mark.parametrize(
    ("convert", "advice"),
    [
        (lambda edges: edges.t().contiguous(), r"\.t\(\)\.contiguous\(\)"),
        (lambda edges: edges.double(), r"\.long\(\)"),
        (lambda edges: edges.numpy(), r"torch\.from_numpy"),
        (lambda edges: torch.sparse_coo_tensor(edges, torch.ones(edges.size(1)), (N, N)), r"\.to_sparse_csr\(\)"),
        (lambda edges: torch.zeros(N, N).index_put((edges[1], edges[0]), torch.ones(())), r"\.to_sparse_csr\(\)"),
    ],
)
def test_what_states_edges_in_another_way(convert: Any, advice: str) -> None:
    edges = random_graph(N, 90).edge_index
    assert edges.size(1) != N
    with pytest.raises(TypeError, match=rf"^adj must be edge_index \[2, E\].*; pass .*{advice}"):
        formats.format_of(convert(edges), "adj")
