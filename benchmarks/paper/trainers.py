"""Ways to train one model on one graph, which differ in the gradient of a step.

All begin with the same parameters, and weigh the loss of labelled nodes alike: that of a batch is their sum, divided by the
mean number of labelled nodes in a batch.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import torch
import torch.nn.functional as F
from grid import Cell, make
from torch import Tensor
from torch_geometric.data import Data
from training import Task, split_of

from torch_gas import EvalSubgraphLoader, ExactGradient, SubgraphLoader
from torch_gas.extensions import Momentum, Waves
from torch_gas.extensions.compensation import Compensation
from torch_gas.extensions.refresh import EveryEpochs
from torch_gas.graph.formats import all_tensors
from torch_gas.planner.meter import metered


class Trainer:
    """Full batch: a step of the whole graph in an epoch.

    Args:
        cell: what is trained.
        task: on which graph.
        seed: of parameters, of the split where there are several, and of the order of batches.
        options: of the method.
    """

    def __init__(self, cell: Cell, task: Task, seed: int, **options: Any) -> None:
        self.cell, self.graph, self.ptr, self.seed, self.options = cell, task.graph, task.ptr, seed, options
        self.model = make(cell, task)
        torch.manual_seed(seed)
        self.model.reset_parameters()
        groups = self.model.parameter_groups(cell.weight_decay, cell.last_weight_decay)
        self.optimizer = torch.optim.Adam(groups, lr=cell.lr)
        self.train_mask, *self.held_out = split_of(self.graph, seed)
        self.labelled = int(self.train_mask.sum())
        self._evaluated = make(cell, task).eval()
        self._evaluated.histories = self.model.histories  # instead of its own: it neither reads nor writes any
        self._evaluated.push_and_pull = lambda history, x, *ids: x
        self.set_up()

    def set_up(self) -> None:
        """What a method needs before the first epoch."""

    def batches(self) -> Iterable[Any]:
        """What the steps of an epoch are made on."""
        return [self.graph]

    def loss(self, batch: Any) -> Tensor:
        """The loss of a step."""
        return self.mean_loss(self.model(batch.x, batch.adj_t), batch, 1)

    def mean_loss(self, out: Tensor, batch: Data, batches: int) -> Tensor:
        """The sum over labelled rows by the number that a batch has on average; 0, which has a gradient, where there are none."""
        rows = len(out)
        mask, y = split_of(batch, self.seed)[0][:rows], batch.y[:rows]
        return F.cross_entropy(out[mask], y[mask], reduction="sum") * (batches / self.labelled)

    def epoch(self) -> None:
        """Trains for an epoch."""
        self.model.train()
        for batch in self.batches():
            self.step(batch)

    def step(self, batch: Any) -> None:
        """A step of the optimiser."""
        self.optimizer.zero_grad()
        self.loss(batch).backward()
        self.optimizer.step()

    @torch.no_grad()
    def evaluate(self) -> list[float]:
        """Accuracy on validation and test nodes, by the plain model on the whole graph; no history changes."""
        trained = {name: value for name, value in self.model.state_dict().items() if not name.startswith("histories.")}
        self._evaluated.load_state_dict(trained, strict=False)
        right = self._evaluated.forward(self.graph.x, self.graph.adj_t).argmax(1) == self.graph.y
        return [float(right[mask].float().mean()) for mask in self.held_out]

    def step_bytes(self) -> int:
        """The most bytes of tensors in a step on the largest batch, with the batch, without parameters, optimiser and tables."""
        self.model.train()
        largest = max(self.batches(), key=self.bytes_of)
        return int(metered(lambda: self.step(largest), torch.device("cpu")).peak) + self.bytes_of(largest)

    def bytes_of(self, batch: Any) -> int:
        """Bytes of a batch."""
        return sum(tensor.nbytes for tensor in all_tensors(batch.to_dict()))

    def table_bytes(self) -> int:
        """Bytes of histories, and of what extensions keep beside them."""
        return 0


class Histories(Trainer):
    """GAS: batches with their halo, whose rows come from histories that were filled once. Their gradients end there."""

    neighbors = "in"

    def set_up(self) -> None:
        with torch.no_grad():
            self.model.eval()(self.graph.x, self.graph.adj_t)
        options = {"shuffle": True, "seed": self.seed, "prefetch": 0, "neighbors": self.neighbors}
        self.loader = SubgraphLoader(self.graph, self.ptr, self.cell.grouped, **options)
        self.extend(**self.options)

    def extend(self) -> None:
        """Adds what a method has beyond GAS."""

    def batches(self) -> Iterable[Any]:
        return self.loader

    def loss(self, batch: Any) -> Tensor:
        data, *ids = batch
        return self.mean_loss(self.model(data.x, data.adj_t, *ids), data, self.cell.batches)

    def table_bytes(self) -> int:
        return sum(each.table.nbytes for each in self.model._history_tables)


class Compensated(Histories):
    """GAS with the gradient of rows that other batches pulled, which their own batch adds to its own.

    Args:
        trust, schedule: of :class:`~torch_gas.extensions.compensation.Compensation`.
    """

    def extend(self, **options: Any) -> None:
        self.model.add_extension(Compensation(**options))


class Moved(Histories):
    """GraphFM-OB: halo rows move towards what the batch can compute of them.

    Args:
        beta: of :class:`~torch_gas.extensions.Momentum`.
    """

    neighbors = "both"

    def extend(self, beta: float) -> None:
        self.model.add_extension(Momentum(beta=beta))


class Refreshed(Histories):
    """GAS whose histories are renewed after each epoch: made exact in a pass over the whole graph, or by waves.

    Args:
        waves: passes of :class:`~torch_gas.extensions.Waves` instead.
    """

    def extend(self, waves: int = 0) -> None:
        loader = EvalSubgraphLoader(self.graph, self.ptr, self.cell.grouped)
        policy = EveryEpochs(1, Waves(waves)) if waves else EveryEpochs()
        self.refresher = policy.bind(self.model, loader, self.graph)

    def epoch(self) -> None:
        super().epoch()
        self.refresher.after_epoch()


class Exact(Histories):
    """The exact gradient of the whole graph, computed in batches: a step an epoch."""

    def extend(self) -> None:
        loader = EvalSubgraphLoader(self.graph, self.ptr, self.cell.grouped)
        # Unchecked: features that are a sparse matrix cannot be cut in halves.
        self.exact = ExactGradient(self.model, loader, check=False)

    def epoch(self) -> None:
        self.model.train()
        self.step(None)

    def step(self, batch: Any) -> None:
        self.optimizer.zero_grad()
        self.exact.backward(lambda out, batch: self.mean_loss(out, batch, 1))
        self.optimizer.step()

    def step_bytes(self) -> int:
        self.model.train()
        return int(metered(lambda: self.step(None), torch.device("cpu")).peak) + max(map(self.bytes_of, self.batches()))
