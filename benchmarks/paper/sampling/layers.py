r"""Samples of a graph, and GCN and GCNII on them.

A sample has a matrix P for each layer, which takes rows of more nodes to rows of fewer: destinations come first among the sources
of their layer. So a layer computes

    GCN:   h' = act( norm( P h W + b ) )
    GCNII: h' = relu( (1 - beta) z + beta z W ),  z = (1 - alpha) P h + alpha h_0

with P in place of the normalised adjacency of the whole graph, whose product it has on average.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from torch_gas.graph.attributes import take
from torch_gas.graph.edges import row_entries
from torch_gas.graph.format import csr_tensor
from torch_gas.graph.product import aggregate, edges_of
from torch_gas.graph.product import linear as sparse_linear
from torch_gas.models import GCN, GCN2


@dataclass
class Sample:
    """What a step computes.

    Args:
        n_id: sources of the first layer, [R_0].
        matrices: of each layer, CSR [R_l, R_(l-1)] with R_l <= R_(l-1); the rows R_L of the last are those of the loss.
        weight: what the loss of each of these is multiplied by, [R_L]; 0 where it has no label.
        more: what a sampler needs beside.
    """

    n_id: Tensor
    matrices: list[Tensor]
    weight: Tensor
    more: dict[str, Any] = field(default_factory=dict)

    @property
    def nbytes(self) -> int:
        """Bytes of matrices and ids; of those that several layers share, once."""
        matrices = {id(each): each for each in self.matrices}.values()
        edges = sum(each.col_indices().nbytes + each.values().nbytes + each.crow_indices().nbytes for each in matrices)
        return edges + self.n_id.nbytes + self.weight.nbytes


Aggregate = Callable[[int, Tensor], Tensor]  # rows of the sources of a layer to those of its destinations


def times(matrix: Tensor, rows: Tensor) -> Tensor:
    """A CSR matrix times rows, with a gradient by the rows."""
    edges = edges_of(matrix, *matrix.shape)
    assert edges is not None
    return aggregate(rows, edges, matrix.values())


def forward(model: GCN | GCN2, x: Any, sample: Sample, product: Aggregate | None = None) -> Tensor:
    """The rows of the loss, [R_L, C].

    Args:
        model: whose parameters are used, and none of its histories.
        x: features of the sample's sources, [R_0, F], dense or a sparse matrix.
        sample: the sample.
        product: what stands in for the product with the matrix of a layer.
    """
    product = product or (lambda layer, rows: times(sample.matrices[layer], rows))
    h = model.drop(x) if model.drop_input else x
    if model.linear:
        h = _linear(model.lins[0], h).relu()
    h_0 = h
    h = model.drop(h) if model.linear else h
    for layer, conv in enumerate(model.convs):
        if isinstance(model, GCN2):
            z = (1 - conv.alpha) * product(layer, h)
            z = z + conv.alpha * h_0[: len(z)]
            h = torch.addmm(z, z, conv.weight1, beta=1 - conv.beta, alpha=conv.beta)
        elif layer == 0:  # features are wide or sparse, so that the product comes last
            h = product(layer, _linear(conv.lin, h)) + conv.bias
        else:
            h = conv.lin(product(layer, h)) + conv.bias
        if layer < len(model.bns):
            h = model.drop(model.bns[layer](h).relu())
    return model.lins[1](h) if model.linear else h


def _linear(lin: Any, x: Any) -> Tensor:
    return sparse_linear(x, lin.weight, lin.bias) if x.layout == torch.sparse_csr else lin(x)


def edges_into(matrix: Tensor, nodes: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Edges of some rows of a CSR matrix: the place of the row in ``nodes``, the column, the value; row by row."""
    rowptr, entry = row_entries(matrix.crow_indices(), nodes)
    return torch.repeat_interleave(rowptr.diff()), matrix.col_indices()[entry].long(), matrix.values()[entry]


class Frame:
    """Numbers nodes in the order in which a step meets them: destinations first, then further sources.

    Args:
        num_nodes: N.
    """

    def __init__(self, num_nodes: int) -> None:
        self._place = torch.full((num_nodes,), -1)

    def matrix(self, dst: Tensor, row: Tensor, col: Tensor, value: Tensor) -> tuple[Tensor, Tensor]:
        """The sources of edges, those of ``dst`` first, and the edges as a CSR matrix [len(dst), len(sources)].

        Args:
            dst: destinations, [R].
            row, col, value: of each edge the place of its destination in ``dst``, ascending; its source; its weight.
        """
        place = self._place
        place[dst] = torch.arange(len(dst))
        others = col[place[col] < 0].unique()
        place[others] = torch.arange(len(dst), len(dst) + len(others))
        rowptr = torch.zeros(len(dst) + 1, dtype=torch.long)
        rowptr[1:] = torch.bincount(row, minlength=len(dst)).cumsum(0)
        sources = torch.cat([dst, others])
        matrix = csr_tensor(rowptr, place[col], value, (len(dst), len(sources)))
        place[sources] = -1
        return sources, matrix


def features(x: Any, nodes: Tensor) -> Any:
    """Rows of features, dense or a sparse matrix."""
    return take(x, nodes)
