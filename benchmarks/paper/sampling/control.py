r"""VR-GCN's control variate (Chen, Zhu and Song, ICML 2018, https://arxiv.org/abs/1710.10568).

Neighbours are sampled as in GraphSAGE, two of each. A sum over neighbours is that of histories over all of them, plus an estimate
of what has changed since:

    z_v = sum_(u in N(v)) A_vu h*_u + A_vv (h_v - h*_v) + (d_v / k) sum_(u in sample of N(v)) A_vu (h_u - h*_u)

The histories h* of the sampled nodes are then replaced by their h, without a gradient. The first layer uses all neighbours, as in
the paper, where their features are summed up once.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor

from sampling.layers import Sample, edges_into, forward, times
from sampling.neighbors import Neighbors
from torch_gas.models import GCN, GCN2


class ControlVariate(Neighbors):
    """Batches of an epoch, and the histories that they need: the input of each layer, [N, C].

    Args:
        model: the model, whose activations of the whole graph fill the histories.
        x: features of all nodes.
        adj_t, labelled, batches, generator: as :class:`Neighbors` has them.
        number: neighbours of a node in each layer.
    """

    def __init__(
        self,
        model: GCN | GCN2,
        x: Any,
        adj_t: Tensor,
        labelled: Tensor,
        batches: int,
        number: int,
        generator: torch.Generator,
    ) -> None:
        super().__init__(adj_t, labelled, batches, [None] + [number] * (model.num_layers - 1), generator)
        self.tables: list[Tensor] = []
        everything = torch.arange(adj_t.size(0))

        def fill(layer: int, rows: Tensor) -> Tensor:
            self.tables.append(rows)
            return times(adj_t, rows)

        with torch.no_grad():
            forward(model.eval(), x, Sample(everything, [adj_t] * model.num_layers, everything), fill)
        model.train()

    def __iter__(self) -> Iterator[Sample]:
        for sample in super().__iter__():
            number, sample.more["full"] = len(sample.n_id), [None]
            for matrix in sample.matrices[1:]:
                dst = sample.n_id[: matrix.size(0)]
                sample.more["full"].append(self._frame.matrix(dst, *edges_into(self.adj_t, dst)))
            assert number == len(sample.n_id)
            yield sample

    def product(self, sample: Sample, layer: int, rows: Tensor) -> Tensor:
        """The estimate of a layer's sums over neighbours."""
        matrix = sample.matrices[layer]
        if layer == 0:  # has all neighbours
            return times(matrix, rows)
        table, sources = self.tables[layer], sample.n_id[: matrix.size(1)]
        everyone, full = sample.more["full"][layer]
        changed = times(matrix, rows - table[sources])
        known = times(full, table[everyone])
        table[sources] = rows.detach()
        return known + changed
