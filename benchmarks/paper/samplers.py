"""Training on samples of the graph, by the samplers in sampling/."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from functools import partial
from typing import Any

import torch
import torch.nn.functional as F
from sampling import Clusters, ControlVariate, Layers, Neighbors, RandomWalks, Sample, forward
from torch import Tensor
from trainers import Trainer

from torch_gas.graph.attributes import take

SAMPLED = (10, 5)  # neighbours of a node of the loss, and of any other
SAMPLED_FOR_CONTROL = 2  # neighbours of a node where histories stand in for the others
WALK = 2  # steps of a random walk
COVERAGE = 20  # how often a node is met on average while GraphSAINT counts


class Sampling(Trainer):
    """Steps on samples of the graph.

    Args:
        by: name of what draws the samples of an epoch, in ``SAMPLERS``.
    """

    def set_up(self) -> None:
        self.generator = torch.Generator().manual_seed(self.seed)
        self.samples: Iterable[Sample] = SAMPLERS[self.options["by"]](self)

    @property
    def common(self) -> dict[str, Any]:
        """What all samplers take."""
        return {
            "adj_t": self.graph.adj_t,
            "labelled": self.train_mask,
            "batches": self.cell.batches,
            "generator": self.generator,
        }

    def batches(self) -> Iterable[Sample]:
        return self.samples

    def loss(self, batch: Sample) -> Tensor:
        product = getattr(self.samples, "product", None)
        x = take(self.graph.x, batch.n_id)
        out = forward(self.model, x, batch, product and (lambda layer, rows: product(batch, layer, rows)))
        has_loss = batch.weight > 0
        y = self.graph.y[batch.n_id[: len(out)]]
        return F.cross_entropy(out[has_loss], y[has_loss], reduction="none") @ batch.weight[has_loss]

    def bytes_of(self, batch: Sample) -> int:
        return batch.nbytes

    def table_bytes(self) -> int:
        return sum(table.nbytes for table in getattr(self.samples, "tables", ()))


def _neighbors(of: Sampling) -> Neighbors:
    first, further = SAMPLED
    return Neighbors(**of.common, sizes=[further] * (of.model.num_layers - 1) + [first])


def _layers(of: Sampling, dependent: bool) -> Layers:
    """All layers together draw three times as many nodes as a batch of GAS has."""
    depth = of.model.num_layers
    draws = -(-3 * of.graph.num_nodes // (of.cell.batches * depth))
    return Layers(**of.common, draws=draws, num_layers=depth, dependent=dependent)


def _walks(of: Sampling) -> RandomWalks:
    """Walks visit as many nodes as a batch of GAS has, counted with repetitions."""
    roots = -(-of.graph.num_nodes // (of.cell.batches * (WALK + 1)))
    counted = COVERAGE * of.cell.batches
    return RandomWalks(**of.common, roots=roots, length=WALK, num_layers=of.model.num_layers, counted=counted)


SAMPLERS: dict[str, Callable[[Sampling], Iterable[Sample]]] = {
    "clusters": lambda of: Clusters(**of.common, ptr=of.ptr, num_layers=of.model.num_layers),
    "neighbors": _neighbors,
    "walks": _walks,
    "layers": partial(_layers, dependent=False),
    "dependent layers": partial(_layers, dependent=True),
    "control variate": lambda of: ControlVariate(of.model, of.graph.x, **of.common, number=SAMPLED_FOR_CONTROL),
}
