"""Subgraphs against their slow twin, and every refusal."""

from __future__ import annotations

import pytest
import torch
import twins
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor
from twins import int64

from torch_gas import _core

ROWPTR, COL, ONE = int64(0, 2, 3, 4), int64(1, 2, 0, 0), int64(1)


@given(st.data(), twins.seeds, st.integers(0, 150), st.integers(0, 600), twins.id_types, st.booleans())
def test_subgraph(
    data: st.DataObject, seed: int, num_nodes: int, num_edges: int, ids: torch.dtype, apart: bool
) -> None:
    rowptr, col = twins.random_graph(torch.Generator().manual_seed(seed), num_nodes, num_edges)
    rowptr, col = rowptr.to(ids), col.to(ids)
    start, count = data.draw(twins.part_ranges(num_nodes))
    arguments = [twins.strided(x) if apart else x for x in (rowptr, col, start, count)]
    for ascending in (False, True):
        for coo in (False, True):
            sub = _core.subgraph(*arguments, ascending=ascending, coo=coo)
            twins.all_same_bits(sub, twins.subgraph(rowptr, col, start, count, ascending, coo))
            assert torch.equal(sub.halo, sub.n_id[int(count.sum()) :])


@pytest.mark.parametrize("ids", twins.IDS)
def test_large_graph_with_any_number_of_threads(ids: torch.dtype) -> None:
    """Large enough for every loop to be split, with N that is no multiple of a bitmap word."""
    num_nodes, num_edges = 150_001, 400_000
    generator = torch.Generator().manual_seed(0)
    src = torch.randint(0, num_nodes, (num_edges,), generator=generator).to(ids)
    # Most edges share few destinations, so that counting sorts are split, too.
    dst = torch.randint(0, 1000, (num_edges,), generator=generator).to(ids)
    dst[:1000] = torch.randint(0, num_nodes, (1000,), generator=generator).to(ids)
    start, count = torch.tensor([90_000, 0, 30_000]), torch.tensor([60_001, 20_000, 7])
    csr = twins.to_csr(src, dst, num_nodes)
    by_source = twins.transpose(csr[0], csr[1], num_nodes)
    few = dst % 1000
    by_few = twins.to_csr(src % 1000, few, 1000)
    subs: list[_core.Subgraph] = []
    ascending: list[_core.Subgraph] = []
    for threads in (1, 2, 3, 16):
        torch.set_num_threads(threads)
        twins.all_same_bits(_core.to_csr(src, dst, num_nodes), csr)
        twins.all_same_bits(_core.to_csr(src % 1000, few, 1000), by_few)
        twins.all_same_bits(_core.transpose(csr[0], csr[1], num_nodes), by_source)
        subs.append(_core.subgraph(csr[0], csr[1], start, count, coo=True))
        twins.all_same_bits(subs[-1], subs[0])
        ascending.append(_core.subgraph(csr[0], csr[1], start, count, ascending=True))
        twins.all_same_bits(ascending[-1], ascending[0])
    batch = twins.chunk_index(start, count)
    local = torch.cat([batch, subs[0].halo])
    assert torch.equal(local[subs[0].col.long()], csr[1][subs[0].e_id].long())
    assert subs[0].halo.numel() == subs[0].halo.unique().numel() > 10_000
    assert not torch.isin(subs[0].halo, batch).any()

    rowptr, col, e_id, n_id, edge_index = subs[0]
    row = torch.arange(batch.numel()).repeat_interleave(rowptr.long().diff())
    assert edge_index is not None and torch.equal(edge_index, torch.stack([col, row.to(ids)]))
    order = (row * n_id.numel() + col).sort(stable=True).indices
    twins.all_same_bits(ascending[0], (rowptr, col[order], e_id[order], n_id, None))


@pytest.mark.parametrize(
    ("changes", "error", "message"),
    [
        ({"rowptr": [0, 1]}, TypeError, "`rowptr` must be a torch.Tensor, but is list"),
        ({"rowptr": ROWPTR.float()}, TypeError, "`rowptr` must be one of int32, int64, but is"),
        ({"rowptr": ROWPTR.int()}, TypeError, "`col` must have the type of `rowptr`"),
        ({"rowptr": ROWPTR.view(2, 2)}, ValueError, "`rowptr` must have one dimension"),
        ({"rowptr": int64()}, ValueError, "`rowptr` must have one element more"),
        ({"rowptr": ROWPTR.to("meta")}, ValueError, "`rowptr` must be on the host"),
        ({"rowptr": ROWPTR.view(2, 2).to_sparse()}, TypeError, "`rowptr` must be a dense tensor"),
        ({"rowptr": int64(0, 3, 2, 4)}, ValueError, r"rowptr\[1\] is 3 and rowptr\[2\] is 2"),
        (
            {"rowptr": int64(0, 2, 9, 9)},
            ValueError,
            r"length of `col` \(4\), but rowptr\[1\] is 2",
        ),
        ({"rowptr": int64(0, -2, 3, 4)}, ValueError, r"rowptr\[1\] is -2"),
        ({"col": int64(1, 2, 3, 0)}, IndexError, r"in \[0, 3\), but col\[2\] is 3"),
        ({"col": int64(1, 2, -1, 0)}, IndexError, r"in \[0, 3\), but col\[2\] is -1"),
        ({"start": int64(1, 0)}, ValueError, "`start` and `count` must be equally long"),
        ({"start": ONE.int()}, TypeError, "`start` must be one of int64"),
        ({"start": int64(3)}, IndexError, "range 0 has `start` 3 and `count` 1"),
        ({"start": int64(-1)}, IndexError, "range 0 has `start` -1 and `count` 1"),
        ({"count": int64(-1)}, IndexError, "range 0 has `start` 1 and `count` -1"),
        ({"count": int64(2**63 - 1)}, IndexError, "range 0 has `start` 1 and `count` 9223"),
        (
            {"start": int64(1, 2, 1), "count": int64(1, 1, 1)},
            ValueError,
            "ranges 0 and 2 do .*pass every part once",
        ),
        (
            {"start": int64(1, 0), "count": int64(2, 2)},
            ValueError,
            r"ranges 0 and 1 do \(`start` 1 and 0, `count` 2 and 2\)",
        ),
    ],
)
def test_subgraph_refuses(changes: dict[str, Tensor], error: type, message: str) -> None:
    arguments = {"rowptr": ROWPTR, "col": COL, "start": ONE, "count": ONE, **changes}
    with pytest.raises(error, match=f"^subgraph: .*{message}"):
        _core.subgraph(**arguments)


def test_subgraph_checks_only_what_it_reads() -> None:
    sub = _core.subgraph(int64(9, 2, 3, -4), COL, ONE, ONE)
    assert sub.e_id.tolist() == [2]
