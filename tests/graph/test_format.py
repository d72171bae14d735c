"""Each format satisfies the interface: what it says of edges is what a list of tuples says, its slow twin."""

from __future__ import annotations

import weakref
from collections.abc import Iterator
from typing import Any

import pytest
import torch
from graphs import FORMATS, adjacency, random_graph, to_format
from torch import Tensor
from torch_geometric.data import Data

from torch_gas import SubgraphLoader, gcn_norm, in_degree, metis, permute, unpermute
from torch_gas.graph import edges, formats
from torch_gas.graph.format import Format, Matrix, StoredEdges, resized_pointers, row_pointers
from torch_gas.graph.product import edges_of, kept_edges
from torch_gas.pygas import dropout

N = 30
Twin = list[
    tuple[int, int, float]
]  # source, destination and weight of each edge, in the order in which they are stored


class Pairs:
    """An adjacency as a user may hold it one day."""

    def __init__(self, ids: Tensor) -> None:
        self.ids = ids  # [E, 2]

    def cpu(self) -> Pairs:
        return self


class PairsFormat(Format):
    """The fifth format: one class, and an entry in FORMATS."""

    name = "Pairs"
    holds_only_edges = True

    def is_mine(self, value: Any) -> bool:
        return isinstance(value, Pairs)

    def stored_edges(self, adj: Any) -> StoredEdges:
        return StoredEdges(None, adj.ids[:, 1], adj.ids[:, 0])

    def from_edges(self, like: Any, edge_index: Tensor, values: Tensor | None, num_nodes: int) -> Pairs:
        return Pairs(edge_index.t().contiguous())

    def batch(self, like: Any, values: Tensor | None, sub: Any, num_dst: int, num_rows: int) -> Pairs:
        return Pairs(sub.edge_index.t().contiguous())

    def keep_edges(self, adj: Any, keep: Tensor, values: Tensor | None) -> Pairs:
        return Pairs(adj.ids[keep])

    def tensors(self, adj: Any) -> list[Tensor]:
        return [adj.ids]

    def map_tensors(self, adj: Any, fn: Any) -> Pairs:
        return Pairs(fn(adj.ids))


@pytest.fixture(autouse=True)
def five_formats(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(formats, "FORMATS", (*formats.FORMATS, PairsFormat()))


def graph(fmt: str) -> Data:
    """Weights of a matrix are its values; lists of edges have none."""
    data = random_graph(N, 120, seed=3)
    if fmt in ("csr", "SparseTensor"):
        data.edge_weight = torch.arange(1.0, data.num_edges + 1)
    if fmt != "Pairs":
        return to_format(data, fmt)
    data.edge_index = Pairs(data.edge_index.t().contiguous())
    data.num_nodes = N
    return data


def twin_of(adj: Any) -> Twin:
    """The edges by the ways of each library."""
    if isinstance(adj, Pairs):
        return [(s, d, 1.0) for s, d in adj.ids.tolist()]
    if isinstance(adj, Tensor) and adj.layout == torch.sparse_csr:
        rows = [row for row, size in enumerate(adj.crow_indices().diff().tolist()) for _ in range(size)]
        return list(zip(adj.col_indices().tolist(), rows, adj.values().tolist(), strict=True))
    if isinstance(adj, Tensor):
        return [(s, d, 1.0) for s, d in torch.stack([adj[0], adj[1]]).t().tolist()]
    row, col, value = adj.coo()
    return list(zip(col.tolist(), row.tolist(), [1.0] * adj.nnz() if value is None else value.tolist(), strict=True))


every_format = pytest.mark.parametrize("fmt", [*FORMATS, "Pairs"])


@pytest.fixture
def case(fmt: str) -> Iterator[tuple[Any, Any, Twin]]:
    adj = adjacency(graph(fmt))
    twin = twin_of(adj)
    yield formats.format_of(adj), adj, twin
    assert twin_of(adj) == twin  # which no method changes


@every_format
def test_it_is_found_by_itself_only(case: tuple[Any, Any, Twin]) -> None:
    known, adj, _ = case
    assert [each for each in formats.FORMATS if each.is_mine(adj)] == [known]
    assert formats.is_adjacency(adj) and formats.is_matrix(adj) == isinstance(known, Matrix)
    for other in (None, 1, "edge_index", torch.zeros(2, 3), torch.zeros(3, 2, dtype=torch.int64), [[0], [1]]):
        assert not known.is_mine(other)


@every_format
def test_its_edges(case: tuple[Any, Any, Twin]) -> None:
    known, adj, twin = case
    rowptr, dst, src = known.stored_edges(adj)
    assert (rowptr is None) != (dst is None) and (rowptr is not None) == isinstance(known, Matrix)
    assert src.tolist() == [s for s, _, _ in twin] and known.num_edges(adj) == len(twin)
    found, value = list(zip(*(ids.tolist() for ids in edges.coo(adj)[:2]), strict=True)), known.values(adj)
    assert found == [(s, d) for s, d, _ in twin]
    assert (value is not None) == isinstance(known, Matrix)
    assert value is None or value.tolist() == [w for _, _, w in twin]
    assert in_degree(adj, N).tolist() == [sum(d == node for _, d, _ in twin) for node in range(N)]
    assert known.num_nodes(adj) in (None, N) and known.num_destinations(adj) in (None, N)


@every_format
def test_it_is_made_of_edges_in_its_order(case: tuple[Any, Any, Twin]) -> None:
    known, adj, twin = case
    mixed = torch.randperm(len(twin), generator=torch.Generator().manual_seed(0)).tolist()
    src, dst = torch.tensor([twin[i][:2] for i in mixed]).t()
    made, order = edges.from_coo(adj, src, dst, torch.tensor([twin[i][2] for i in mixed]), N)
    moved = [twin[mixed[i]] for i in (range(len(twin)) if order is None else order.tolist())]
    assert known.is_mine(made) and twin_of(made) == moved
    assert (order is None) == (known.sort_order(adj) is None)
    if known.sort_order(adj) == "col":
        assert moved == sorted(moved, key=lambda edge: (edge[1], edge[0]))


@every_format
@pytest.mark.parametrize("bipartite", [True, False])
def test_its_batches(fmt: str, bipartite: bool) -> None:
    data = graph(fmt)
    known, twin = formats.format_of(adjacency(data)), twin_of(adjacency(data))
    for batch in SubgraphLoader(data, torch.tensor([0, 11, 11, N]), 1, bipartite=bipartite):
        adj, n_id = adjacency(batch.data), batch.n_id.tolist()
        assert known.is_mine(adj)
        found = sorted((n_id[s], n_id[d], w) for s, d, w in twin_of(adj))
        assert found == sorted(edge for edge in twin if edge[1] in n_id[: batch.batch_size])
        num_dst = batch.batch_size if bipartite else len(n_id)
        assert known.num_destinations(adj) in (None, num_dst)
        if isinstance(known, Matrix):
            assert tuple(adj.sizes() if hasattr(adj, "sizes") else adj.shape) == (num_dst, len(n_id))


@every_format
def test_edges_are_kept_where_a_mask_says(case: tuple[Any, Any, Twin]) -> None:
    known, adj, twin = case
    values = known.values(adj)
    for keep in (torch.arange(len(twin)) % 3 > 0, torch.zeros(len(twin), dtype=torch.bool)):
        kept = known.keep_edges(adj, keep, None if values is None else 2 * values)
        factor = 1 if values is None else 2
        wanted = [(s, d, factor * w) for (s, d, w), stays in zip(twin, keep.tolist(), strict=True) if stays]
        assert known.is_mine(kept) and twin_of(kept) == wanted
        assert known.num_destinations(kept) == known.num_destinations(adj)
    assert twin_of(dropout(adj, 1.0)) == []


@every_format
def test_resizing_adds_and_cuts_empty_destinations(case: tuple[Any, Any, Twin]) -> None:
    known, adj, twin = case
    wide = formats.resize(adj, N + 4, N + 4)
    assert known.is_mine(wide) and twin_of(wide) == twin
    assert known.num_destinations(wide) in (None, N + 4)
    assert formats.resize(wide, N + 4, N + 4) is wide
    assert twin_of(formats.resize(wide, N, N + 4)) == twin


@every_format
def test_its_tensors_tell_of_changes(case: tuple[Any, Any, Twin]) -> None:
    known, adj, twin = case
    copied = formats.map_tensors(adj, torch.clone)
    assert known.is_mine(copied) and twin_of(copied) == twin
    own = {tensor.data_ptr() for tensor in known.all_tensors(adj)}
    assert not own & {tensor.data_ptr() for tensor in known.all_tensors(copied)}
    assert own and len(known.all_tensors(adj)) == len(known.all_tensors(copied))
    values = known.values(copied)
    assert values is None or values.data_ptr() in {tensor.data_ptr() for tensor in known.tensors(copied)}
    # What was computed of an adjacency is kept as long as the adjacency, and until it is written to.
    assert known.holder(copied) is not None and weakref.ref(known.holder(copied))() is not None
    computed = edges_of(copied, N, N)
    assert computed is not None and edges_of(copied, N, N) is computed is kept_edges(copied)
    for tensor in known.tensors(copied):
        computed = edges_of(copied, N, N)
        tensor.add_(0)
        assert edges_of(copied, N, N) is not computed


@every_format
def test_without_weights(case: tuple[Any, Any, Twin]) -> None:
    known, adj, twin = case
    plain = known.unweighted(adj, N, N, torch.float64)
    assert twin_of(plain) == [(s, d, 1.0) for s, d, _ in twin]
    values = formats.format_of(plain).values(plain)
    assert values is None or values.dtype == torch.float64


@every_format
def test_a_graph_is_partitioned_permuted_and_normalised(fmt: str) -> None:
    data = graph(fmt)
    twin = twin_of(adjacency(data))
    perm, ptr = metis(data, 3, log=False)
    out = permute(data, perm, log=False)
    ids = perm.tolist()
    assert sorted((ids[s], ids[d], w) for s, d, w in twin_of(adjacency(out))) == sorted(twin)
    assert twin_of(adjacency(unpermute(out))) == twin
    assert int(ptr[-1]) == N
    weight = {(s, d): w for s, d, w in twin}
    weight = {(node, node): 1.0 for node in range(N)} | weight
    degree = [sum(w for (_, d), w in weight.items() if d == node) for node in range(N)]
    normalised = gcn_norm(data)
    src, dst, value = edges.coo(adjacency(normalised))
    wanted = [weight[s, d] / (degree[s] * degree[d]) ** 0.5 for s, d in zip(src.tolist(), dst.tolist(), strict=True)]
    torch.testing.assert_close(normalised.edge_weight if value is None else value, torch.tensor(wanted))


def test_pointers() -> None:
    ids = torch.tensor([0, 0, 2, 5])
    assert row_pointers(ids, 7).tolist() == [sum(i < node for i in ids.tolist()) for node in range(8)]
    assert row_pointers(ids.int(), 7).dtype == torch.int32
    rowptr = torch.tensor([0, 2, 2, 5])
    assert resized_pointers(rowptr, 5).tolist() == [0, 2, 2, 5, 5, 5]
    assert resized_pointers(rowptr, 1).tolist() == [0, 2]
    assert resized_pointers(rowptr, 3).tolist() == rowptr.tolist()


@pytest.mark.parametrize("at_once", [1, 2, 5, 100])
def test_pieces_cover_all_rows(at_once: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(edges, "EDGES_AT_ONCE", at_once)
    rowptr = torch.tensor([0, 0, 3, 4, 4, 5, 5])
    pieces = list(edges.row_pieces(rowptr))
    assert [row for first, last in pieces for row in range(first, last)] == list(range(6))
    for first, last in pieces:
        assert last - first == 1 or int(rowptr[last] - rowptr[first]) <= at_once
    assert list(edges.row_pieces(torch.tensor([0]))) == []


@pytest.mark.parametrize("at_once", [1, 2, 3, 100])
def test_ascending_ids_are_told_across_pieces(at_once: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(edges, "EDGES_AT_ONCE", at_once)
    for ids in ([], [4], [1, 1, 2, 7], [1, 0, 2, 7], [0, 2, 1, 7], [0, 1, 7, 2]):
        assert edges.is_ascending(torch.tensor(ids, dtype=torch.int64)) == (ids == sorted(ids))
