r"""GraphSAGE's sampling of neighbours (Hamilton, Ying and Leskovec, NeurIPS 2017, https://arxiv.org/abs/1706.02216).

A batch is of labelled nodes. Of each, k_L neighbours are drawn without replacement, of each of these k_(L-1), and so on (its
Algorithm 2). Sums over all d neighbours, which are weighted here, are estimated by the sample:

    z_v = A_vv h_v + (d_v / k) sum_(u in sample of N(v)) A_vu h_u

A node itself is never left out, as GraphSAGE concatenates it.
"""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor

from sampling.layers import Frame, Sample, edges_into


def sampled(adj_t: Tensor, dst: Tensor, number: int, generator: torch.Generator) -> tuple[Tensor, Tensor, Tensor]:
    """Edges into ``dst``, as :func:`edges_into` gives them: itself and at most ``number`` others, which make up for the rest."""
    row, col, value = edges_into(adj_t, dst)
    own = dst[row] == col
    order = torch.rand(len(row), generator=generator).masked_fill(own, -1).argsort()
    order = order[row[order].argsort(stable=True)]  # at random in each row, itself first
    row, col, value, own = row[order], col[order], value[order], own[order]
    count = torch.bincount(row, minlength=len(dst))
    first = count.cumsum(0) - count
    loops = torch.bincount(row, own.double(), minlength=len(dst)).long()
    rank = torch.arange(len(row)) - (first + loops)[row]  # below 0 for itself
    others = (count - loops)[row]
    value = torch.where(own, value, value * others / others.clamp(max=number))
    kept = rank < number
    return row[kept], col[kept], value[kept]


class Neighbors:
    """Batches of an epoch.

    Args:
        adj_t: the normalised adjacency, CSR [N, N].
        labelled: nodes with a label, a mask [N].
        batches: how many batches an epoch has.
        sizes: neighbours of a node in each layer, the first layer first; None for all.
        generator: of the order of nodes, and of neighbours.
    """

    def __init__(
        self, adj_t: Tensor, labelled: Tensor, batches: int, sizes: list[int | None], generator: torch.Generator
    ) -> None:
        self.adj_t, self.nodes, self.batches = adj_t, labelled.nonzero().view(-1), batches
        self.sizes, self.generator = sizes, generator
        self._frame = Frame(adj_t.size(0))

    def __iter__(self) -> Iterator[Sample]:
        order = self.nodes[torch.randperm(len(self.nodes), generator=self.generator)]
        for seeds in order.tensor_split(self.batches):
            yield self.sample(seeds)

    def sample(self, seeds: Tensor) -> Sample:
        """The sample of a batch."""
        dst, matrices = seeds, []
        for number in reversed(self.sizes):
            edges = edges_into(self.adj_t, dst) if number is None else sampled(self.adj_t, dst, number, self.generator)
            dst, matrix = self._frame.matrix(dst, *edges)
            matrices.insert(0, matrix)
        return Sample(dst, matrices, torch.full((len(seeds),), self.batches / len(self.nodes)))
