r"""GraphSAINT with random walks (Zeng et al., ICLR 2020, https://arxiv.org/abs/1907.04931).

A batch is the subgraph of all nodes that walks from r random roots visit. How often a node v and an edge (u, v)
is in a batch is counted over T subgraphs that are drawn first, as C_v and C_uv. Sums over neighbours and the loss are then right
on average (its section 3.2):

    z_v = sum_(u in batch) A_vu h_u C_v / C_uv,    loss = sum_(v in batch) loss_v T / (C_v * number of labelled nodes)
"""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor

from sampling.layers import Frame, Sample
from torch_gas.graph.edges import row_entries


class RandomWalks:
    """Batches of an epoch.

    Args:
        adj_t: the normalised adjacency, CSR [N, N].
        labelled: nodes with a label, a mask [N].
        batches: how many batches an epoch has.
        roots, length: walks of a batch, and their steps.
        num_layers: layers of the model.
        generator: of roots and walks.
        counted: how many subgraphs are drawn to count, T, at least 1.
    """

    def __init__(
        self,
        adj_t: Tensor,
        labelled: Tensor,
        batches: int,
        roots: int,
        length: int,
        num_layers: int,
        generator: torch.Generator,
        counted: int,
    ) -> None:
        self.rowptr, self.col, self.value = adj_t.crow_indices(), adj_t.col_indices().long(), adj_t.values()
        self.labelled, self.batches, self.generator = labelled, batches, generator
        self.roots, self.length, self.num_layers = roots, length, num_layers
        self._frame = Frame(adj_t.size(0))
        self._is_inside = torch.zeros(adj_t.size(0), dtype=torch.bool)
        of_node, of_edge = torch.zeros(adj_t.size(0)), torch.zeros(len(self.col))
        for _ in range(counted):
            nodes, _, entry = self._subgraph()
            of_node[nodes] += 1
            of_edge[entry] += 1
        # One that was never drawn, and is met later, is taken for one that was drawn once.
        of_node, of_edge = of_node.clamp(min=1), of_edge.clamp(min=1)
        self.value = self.value * of_node[torch.repeat_interleave(self.rowptr.diff())] / of_edge
        self.weight = labelled * counted / of_node / int(labelled.sum())

    def __iter__(self) -> Iterator[Sample]:
        for _ in range(self.batches):
            nodes, row, entry = self._subgraph()
            _, matrix = self._frame.matrix(nodes, row, self.col[entry], self.value[entry])
            yield Sample(nodes, [matrix] * self.num_layers, self.weight[nodes])

    def _subgraph(self) -> tuple[Tensor, Tensor, Tensor]:
        """The nodes that walks visit, and of each edge between them the place of its destination and that in the matrix."""
        here = torch.randint(len(self.rowptr) - 1, (self.roots,), generator=self.generator)
        visited = [here]
        for _ in range(self.length):
            first, degree = self.rowptr[here].long(), (self.rowptr[here + 1] - self.rowptr[here]).long()
            step = (torch.rand(self.roots, generator=self.generator) * degree).long()
            here = torch.where(degree > 0, self.col[(first + step).clamp(max=len(self.col) - 1)], here)
            visited.append(here)
        nodes = torch.cat(visited).unique()
        rowptr, entry = row_entries(self.rowptr, nodes)
        self._is_inside[nodes] = True
        inside = self._is_inside[self.col[entry]]
        self._is_inside[nodes] = False
        return nodes, torch.repeat_interleave(rowptr.diff())[inside], entry[inside]
