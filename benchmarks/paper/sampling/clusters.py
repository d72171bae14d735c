r"""Cluster-GCN (Chiang et al., KDD 2019, https://arxiv.org/abs/1905.07953).

A batch is a union of METIS clusters, chosen anew in each epoch, with the edges inside of it (its Algorithm 1):

    h_B^(l) = act( A_BB h_B^(l-1) W^(l) )

Rows are normalised again, as there: weights of the edges that are left are scaled so that each row sums up to what it does in the
whole graph.
"""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor

from sampling.layers import Frame, Sample, edges_into


class Clusters:
    """Batches of an epoch.

    Args:
        adj_t: the normalised adjacency, CSR [N, N].
        labelled: nodes with a label, a mask [N].
        ptr: first node of each cluster, and N.
        batches: how many batches an epoch has.
        num_layers: layers of the model.
        generator: of the choice of clusters.
    """

    def __init__(
        self, adj_t: Tensor, labelled: Tensor, ptr: Tensor, batches: int, num_layers: int, generator: torch.Generator
    ) -> None:
        self.adj_t, self.labelled, self.ptr, self.batches = adj_t, labelled, ptr, batches
        self.num_layers, self.generator = num_layers, generator
        row, _, value = edges_into(adj_t, torch.arange(adj_t.size(0)))
        self.sums = torch.zeros(adj_t.size(0)).index_add_(0, row, value)
        self._is_inside = torch.zeros(adj_t.size(0), dtype=torch.bool)
        self._frame = Frame(adj_t.size(0))

    def __iter__(self) -> Iterator[Sample]:
        number = len(self.ptr) - 1
        for chosen in torch.randperm(number, generator=self.generator).tensor_split(self.batches):
            nodes = torch.cat([torch.arange(int(self.ptr[i]), int(self.ptr[i + 1])) for i in chosen.tolist()])
            row, col, value = self._inside(nodes)
            left = torch.zeros(len(nodes)).index_add_(0, row, value)
            value = value * (self.sums[nodes] / left.clamp(min=1e-12))[row]
            _, matrix = self._frame.matrix(nodes, row, col, value)
            share = self.batches / int(self.labelled.sum())
            yield Sample(nodes, [matrix] * self.num_layers, self.labelled[nodes] * share)

    def _inside(self, nodes: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """The edges between nodes, as :func:`edges_into` gives them."""
        row, col, value = edges_into(self.adj_t, nodes)
        self._is_inside[nodes] = True
        inside = self._is_inside[col]
        self._is_inside[nodes] = False
        return row[inside], col[inside], value[inside]
