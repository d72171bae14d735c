"""Sampled neighbourhoods as PyG's NeighborLoader makes them, without the packages that it needs.

A library for beside.py.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from baselines import batch_of
from torch import Tensor
from torch_geometric.data import Data

from torch_gas import SubData


def sampled_batch(data: Data, seeds: Tensor, num_sampled: Sequence[int], generator: torch.Generator) -> SubData:
    """Seeds, some in-neighbours of each, some of each node that these add, ...: all of them rows of one batch, seeds first.

    Args:
        data: a graph with ``adj_t`` as a CSR matrix [N, N], ``x`` and ``y``.
        seeds: ids of nodes, each once, [B].
        num_sampled: neighbours of a node at each depth; they are drawn with replacement, and count once.
        generator: of the draws.
    """
    rowptr, col = data.adj_t.crow_indices(), data.adj_t.col_indices()
    place = torch.full((data.num_nodes,), -1)
    place[seeds] = torch.arange(len(seeds))
    found, frontier, edges = [seeds], seeds, []
    for number in num_sampled:
        degree = rowptr[frontier + 1] - rowptr[frontier]
        drawn = (torch.rand(len(frontier), number, generator=generator, dtype=torch.float64) * degree[:, None]).long()
        picked = (rowptr[frontier][:, None] + drawn)[degree > 0].unique()
        source = col[picked].long()
        destination = torch.searchsorted(rowptr, picked, right=True) - 1
        frontier = source[place[source] < 0].unique()
        place[frontier] = sum(map(len, found)) + torch.arange(len(frontier))
        found.append(frontier)
        edges.append(torch.stack([place[destination], place[source]]))
    n_id = torch.cat(found)
    rows, columns = torch.cat(edges, dim=1)
    order = (rows * len(n_id) + columns).argsort()
    counts = torch.bincount(rows, minlength=len(n_id))
    new_rowptr = torch.cat([counts.new_zeros(1), counts.cumsum(0)])
    weight = (1 / counts.clamp(min=1).float())[rows[order]]
    size = (len(n_id), len(n_id))
    adj_t = torch.sparse_csr_tensor(new_rowptr, columns[order], weight, size, check_invariants=False)
    sampled = Data(x=data.x[n_id], y=data.y[n_id], adj_t=adj_t)
    return batch_of(sampled, n_id, data.num_nodes, None, None)
