r"""Sampling of layers: FastGCN and LADIES.

FastGCN (Chen, Ma and Xiao, ICLR 2018, https://arxiv.org/abs/1801.10247) draws s nodes for each layer from the whole graph, by

    q(u) ~ || A_(:,u) ||^2

LADIES (Zou et al., NeurIPS 2019, https://arxiv.org/abs/1911.07323) draws them among neighbours of the layer above, S:

    q(u) ~ || A_(S,u) ||^2

In both, a sum over neighbours is estimated by those that were drawn, as FastGCN has it:

    z_v = A_vv h_v + sum over draws j of A_(v,u_j) h_(u_j) / (s q(u_j))

Destinations are among the sources as well, with their exact weights, for self-loops and initial residuals need them; draws are of
other nodes. LADIES divides rows by their sums as well, which is left out, so that sums are right on average.
"""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor

from sampling.layers import Frame, Sample, edges_into


class Layers:
    """Batches of an epoch.

    Args:
        adj_t: the normalised adjacency, CSR [N, N].
        labelled: nodes with a label, a mask [N].
        batches: how many batches an epoch has.
        draws: nodes drawn for a layer, s.
        num_layers: layers of the model.
        dependent: whether q depends on the layer above: LADIES.
        generator: of the order of nodes, and of draws.
    """

    def __init__(
        self,
        adj_t: Tensor,
        labelled: Tensor,
        batches: int,
        draws: int,
        num_layers: int,
        dependent: bool,
        generator: torch.Generator,
    ) -> None:
        self.adj_t, self.nodes, self.batches = adj_t, labelled.nonzero().view(-1), batches
        self.draws, self.num_layers, self.dependent, self.generator = draws, num_layers, dependent, generator
        self.squares = self._squares(adj_t.col_indices().long(), adj_t.values())
        self._frame = Frame(adj_t.size(0))

    def __iter__(self) -> Iterator[Sample]:
        order = self.nodes[torch.randperm(len(self.nodes), generator=self.generator)]
        for seeds in order.tensor_split(self.batches):
            dst, matrices = seeds, []
            for _ in range(self.num_layers):
                dst, matrix = self._frame.matrix(dst, *self.sampled(dst))
                matrices.insert(0, matrix)
            yield Sample(dst, matrices, torch.full((len(seeds),), self.batches / len(self.nodes)))

    def sampled(self, dst: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Edges into ``dst`` from itself and from draws, which make up for the others."""
        row, col, value = edges_into(self.adj_t, dst)
        q = self._squares(col, value) if self.dependent else self.squares.clone()
        q[dst] = 0  # which are there anyway
        total = q.sum()
        factor = torch.zeros(len(q), dtype=q.dtype)  # how often a node was drawn, by how often it is on average
        factor[dst] = 1
        if total > 0:
            q /= total
            points = torch.rand(self.draws, dtype=q.dtype, generator=self.generator)
            drawn = torch.searchsorted(q.cumsum(0), points, right=True).clamp(max=len(q) - 1)
            count = torch.bincount(drawn, minlength=len(q))
            factor = torch.where(count > 0, count / (self.draws * q).clamp(min=1e-30), factor)
        kept = factor[col] > 0
        return row[kept], col[kept], (value * factor[col])[kept].float()

    def _squares(self, col: Tensor, value: Tensor) -> Tensor:
        """The squared norm of each column, [N]."""
        return torch.zeros(self.adj_t.size(0), dtype=torch.float64).index_add_(0, col, value.double().square())
