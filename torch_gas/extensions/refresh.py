"""Refresh policies: when histories are renewed beside training, how, and what it costs.

A policy says when, and a :class:`Refresh` how: ``EverySteps(20, Stalest(batches=2))``. Policies are joined by ``|``; that of
https://arxiv.org/abs/2106.05609 is :data:`PUBLISHED`: an exact pass before the first epoch, and one after each.

Example:
    >>> import torch
    >>> from torch_gas import EvalSubgraphLoader, SubgraphLoader, metis, permute
    >>> from torch_gas.datasets import synthetic
    >>> from torch_gas.models import SAGE
    >>> from torch_gas.extensions.refresh import BeforeTraining, EveryEpochs
    >>> data = synthetic(1000)
    >>> perm, ptr = metis(data, num_parts=8, log=False)
    >>> data = permute(data, perm, log=False)
    >>> model = SAGE(data.num_nodes, data.num_features, 16, out_channels=10, num_layers=2)
    >>> refresher = (BeforeTraining() | EveryEpochs(2)).bind(model, EvalSubgraphLoader(data, ptr, batch_size=4))
    >>> _ = refresher.before_training()
    >>> for epoch in range(2):
    ...     for batch in SubgraphLoader(data, ptr, batch_size=4):
    ...         loss = model(batch).square().mean()  # and a step of the optimiser
    ...         _ = refresher.after_step()
    ...     out = refresher.after_epoch()
    >>> out.shape  # exact, because the second epoch ended with a refresh
    torch.Size([1000, 10])
    >>> refresher.cost.refreshes, refresher.cost.sweeps, refresher.cost.batches
    (2, 4, 8)
"""

from __future__ import annotations

import time
from abc import ABC, abstractmethod
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from typing import Any, ClassVar, Literal

import torch
from torch import Tensor
from torch_geometric.data import Data

from torch_gas._util.arguments import checked, checked_fields
from torch_gas.batch.data import SubData
from torch_gas.batch.loader import SubgraphLoader
from torch_gas.graph.adjacency import find_adjacency
from torch_gas.graph.edges import check_edges
from torch_gas.graph.origin import difference, key_of
from torch_gas.session.extension import Extension
from torch_gas.session.model import HistoryModel
from torch_gas.transfer import finish

Moment = Literal["training", "step", "epoch"]


@dataclass
class Cost:
    """What refreshes have cost so far.

    Args:
        seconds: wall-clock time; on a GPU, until it was done.
        refreshes: how many there were.
        sweeps: passes over all nodes: L for exact inference layer by layer, 1 for a pass over the whole graph.
        batches: forward passes of a batch, or of the whole graph.
    """

    seconds: float = 0.0
    refreshes: int = 0
    sweeps: int = 0
    batches: int = 0


def _check_positive(value: int, what: str) -> None:
    if value < 1:
        raise ValueError(f"{what} must be a whole number of at least 1, but is {value!r}")


# -- how ---------------------------------------------------------------------------------------------------------------


class Refresh(ABC):
    """A way to renew histories: without gradient, with the parameters as they are, and in evaluation mode by default."""

    exact: ClassVar[bool] = False  # whether all histories are exact afterwards, and the outputs are known
    in_training: ClassVar[bool] = False  # whether it runs in training mode

    @abstractmethod
    def run(self, refresher: Refresher) -> Any:
        """Renews the histories of the refresher's model.

        Returns:
            The exact outputs of all nodes, or None.
        """


@dataclass(frozen=True)
class Exact(Refresh):
    """All histories become what they are on the whole graph, and the exact outputs come with them.

    Over the loader it takes L sweeps, each of which computes one layer, in the memory of one batch. Where :meth:`Policy.bind`
    got the whole graph, it takes one pass over that, in the memory of full-batch evaluation: less work where it fits, because
    what lies between two convolutions is not computed L times.
    """

    exact: ClassVar[bool] = True

    def run(self, refresher: Refresher) -> Any:
        model, loader, cost = refresher.model, refresher.loader, refresher.cost
        if refresher.data is not None:
            cost.sweeps += 1
            cost.batches += 1
            return model._on_graph(refresher.data)
        num_layers = len(model.histories) + 1
        cost.sweeps += num_layers
        cost.batches += num_layers * len(loader)
        return model(loader=loader)


@checked_fields
@dataclass(frozen=True)
class Sweep(Refresh):
    """Forward passes of all batches, ``times`` in a row.

    All rows become those of the parameters as they are, but are computed from halo rows that may be older: the history of layer l
    is exact after l sweeps, and all are after L-1. The outputs of the last sweep are not kept.
    """

    times: int = 1

    def __post_init__(self) -> None:
        _check_positive(self.times, "Sweep: times")

    def run(self, refresher: Refresher) -> None:
        for _ in range(self.times):
            refresher.cost.sweeps += 1
            refresher.forward(refresher.loader)


@checked_fields
@dataclass(frozen=True)
class Ranked(Refresh):
    """Forward passes of the batches that come first by a score of their rows, until a budget is spent.

    The score of a batch is the mean over its rows.

    Args:
        batches: how many batches of the loader.
        nodes: instead, how many rows B these may have together.
    """

    batches: int | None = None
    nodes: int | None = None

    def __post_init__(self) -> None:
        name = type(self).__name__
        if (self.batches is None) == (self.nodes is None):
            raise ValueError(f"{name}: give a budget, either batches or nodes")
        for key, budget in (("batches", self.batches), ("nodes", self.nodes)):
            if budget is not None:
                _check_positive(budget, f"{name}: {key}")

    @abstractmethod
    def scores(self, refresher: Refresher) -> Tensor:
        """The score of each row, [N], on the CPU."""

    def run(self, refresher: Refresher) -> None:
        loader = refresher.loader
        # Those that are not empty; a batch is of parts that follow each other.
        parts = torch.tensor(loader.dataset, device="cpu")
        batches = parts.split(loader.batch_size or 1)
        bounds = torch.cat([loader.ptr[parts[:: loader.batch_size or 1]], loader.ptr[-1:]])
        sizes, scores = bounds.diff(), self.scores(refresher)
        sums = torch.cat([scores.new_zeros(1), scores.cumsum(0)])[bounds].diff()
        order = (sums / sizes).argsort(descending=True, stable=True)
        if self.nodes is not None:
            largest = int(sizes.max())
            if self.nodes < largest:
                raise ValueError(
                    f"{type(self).__name__}: nodes is {self.nodes}, but the largest batch of the loader has {largest}; raise it, "
                    "or make the loader's batches smaller"
                )
            order = order[sizes[order].cumsum(0) <= self.nodes]
        refresher.forward(loader.only([batches[i].tolist() for i in order[: self.batches]]))


class Stalest(Ranked):
    """Forward passes of the batches whose rows are the oldest, until a budget is spent.

    The age of a batch is the mean over its rows and all histories; a row that was never pushed is older than any other.

    Args:
        batches: how many batches of the loader.
        nodes: instead, how many rows B these may have together.
    """

    def scores(self, refresher: Refresher) -> Tensor:
        return ages(refresher)


def ages(refresher: Refresher) -> Tensor:
    """Steps since each row was pushed, summed over all histories, [N], int64; one step more than there were if it never was."""
    total = torch.zeros(refresher.loader.num_nodes, dtype=torch.int64, device="cpu")
    for history in refresher.model.histories:
        total += (history.clock.to(history.pushed_at.device) - history.pushed_at).cpu()  # pushed_at is -1 for never
    return total


# -- when --------------------------------------------------------------------------------------------------------------


class Policy(ABC):
    """Says when histories are refreshed, and how."""

    @abstractmethod
    def due(self, moment: Moment, count: int) -> Sequence[Refresh]:
        """The refreshes that are due before ``"training"``, or after the ``count``-th ``"step"`` or ``"epoch"``."""

    def __or__(self, other: Policy) -> Policy:
        return Joined(self, other)

    @checked
    def bind(self, model: HistoryModel, loader: SubgraphLoader, data: Data | None = None) -> Refresher:
        """The policy at work.

        Args:
            model: the model that trains.
            loader: batches that together hold each node once; best an :class:`torch_gas.EvalSubgraphLoader`.
            data: the whole graph in the order of the loader's, on the device of the model. Where it is given, exact refreshes run
                it in one pass.

        Raises:
            TypeError: if ``model`` has no histories.
            ValueError: if ``loader`` or ``data`` are of another graph or order than the model's.
        """
        return Refresher(self, model, loader, data)


@dataclass(frozen=True)
class Never(Policy):
    """No refresh: histories hold what training pushed, and rows are up to an epoch old."""

    def due(self, moment: Moment, count: int) -> Sequence[Refresh]:
        return ()


@checked_fields
@dataclass(frozen=True)
class BeforeTraining(Policy):
    """Once, before the first epoch, so that no batch reads rows that were never pushed."""

    refresh: Refresh = Exact()

    def due(self, moment: Moment, count: int) -> Sequence[Refresh]:
        return (self.refresh,) if moment == "training" else ()


@checked_fields
@dataclass(frozen=True)
class EverySteps(Policy):
    """After every ``k``-th step of the optimiser."""

    k: int
    refresh: Refresh = Exact()
    moment: ClassVar[Moment] = "step"

    def __post_init__(self) -> None:
        _check_positive(self.k, f"{type(self).__name__}: k")

    def due(self, moment: Moment, count: int) -> Sequence[Refresh]:
        return (self.refresh,) if moment == self.moment and count % self.k == 0 else ()


@checked_fields
@dataclass(frozen=True)
class EveryEpochs(EverySteps):
    """After every ``k``-th epoch."""

    k: int = 1
    moment: ClassVar[Moment] = "epoch"


@checked_fields
@dataclass(frozen=True)
class Joined(Policy):
    """Whenever one of two policies says so. Of refreshes that are due at once, an exact one replaces all others."""

    first: Policy
    second: Policy

    def due(self, moment: Moment, count: int) -> Sequence[Refresh]:
        due = [*self.first.due(moment, count), *self.second.due(moment, count)]
        exact = [refresh for refresh in due if refresh.exact]
        return exact[:1] or list(dict.fromkeys(due))


PUBLISHED: Policy = BeforeTraining() | EveryEpochs()
"""The paper's recipe: an exact pass before the first epoch, and after each epoch, whose outputs serve as evaluation."""


# -- at work -----------------------------------------------------------------------------------------------------------


class Refresher(Extension):
    """A policy bound to a model, made by :meth:`Policy.bind`. Tell it what happens; it refreshes histories when they are due.

    Or add it to the model, ``model.add_extension(policy.bind(model, loader))``, which then tells it of steps and epochs itself.
    What is due after a step is done before the next one begins.

    Each call returns the exact outputs of all nodes in evaluation mode (over the loader, in host memory) where a refresh has
    computed them on the way, so that evaluation costs nothing more; otherwise None. Modes of the model and random numbers stay as
    they were.

    Attributes:
        cost: what it has cost so far.
        steps, epochs: how many there were. A run that was interrupted goes on from :meth:`state_dict`.
    """

    def __init__(self, policy: Policy, model: HistoryModel, loader: SubgraphLoader, data: Data | None = None) -> None:
        model._check_size(loader.num_nodes, "Policy.bind: loader")
        if data is not None:
            model._check_size(data.num_nodes, "Policy.bind: data")
            key, adj = find_adjacency(data)
            check_edges(adj, model.num_nodes, f"Policy.bind: data.{key}")
            if differ := difference(key_of(data, model.num_nodes), loader.builder.graph_key):
                raise ValueError(
                    f"Policy.bind: data is another graph than the loader's: they differ in {differ}; pass what the loader was "
                    "made of, which permute() returned"
                )
        self.policy, self.model, self.loader, self.data = policy, model, loader, data
        self.cost, self.steps, self.epochs = Cost(), 0, 0
        # Where the model tells: whether there is a step, and the end of an epoch, after which nothing has been done yet.
        self._step_over = self._epoch_over = False

    def added(self, model: HistoryModel) -> None:
        if model is not self.model:
            raise ValueError("add_extension: this Refresher was bound to another model; bind the policy to this one")

    def before(self, model: HistoryModel) -> None:
        if self._step_over:
            self.after_step()
        elif self.steps == 0:
            self.before_training()
        if self._epoch_over:
            self._epoch_over = False
            self.after_epoch()
        self._step_over = True

    def epoch(self, number: int, complete: bool) -> None:
        self._epoch_over = True

    def before_training(self) -> Any:
        """To be called before the first epoch."""
        return self._refresh("training", 0)

    def after_step(self) -> Any:
        """To be called after each step of the optimiser."""
        self.steps += 1
        return self._refresh("step", self.steps)

    def after_epoch(self) -> Any:
        """To be called after each epoch."""
        self.epochs += 1
        return self._refresh("epoch", self.epochs)

    def state_dict(self) -> dict[str, Any]:
        """What was counted, which decides when refreshes are due, and their cost."""
        over = {"step_over": self._step_over, "epoch_over": self._epoch_over}
        return {"steps": self.steps, "epochs": self.epochs, "cost": asdict(self.cost), **over}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Goes on from ``state``; a run that does so has had its refresh before training."""
        if not {"steps", "epochs", "cost"} <= state.keys():
            raise ValueError("Refresher.load_state_dict: this is not what state_dict() of a refresher returned")
        self.cost = Cost(**state["cost"])  # first, as it may be refused
        self.steps, self.epochs = state["steps"], state["epochs"]
        self._step_over, self._epoch_over = state.get("step_over", False), state.get("epoch_over", False)

    def forward(self, batches: Iterable[SubData]) -> None:
        """Runs the model on ``batches``, whose rows are pushed, and counts them."""
        for batch in batches:
            self.cost.batches += 1
            self.model(batch.to(self.model.device))

    def _refresh(self, moment: Moment, count: int) -> Any:
        outputs = None
        for refresh in self.policy.due(moment, count):
            with self._aside(refresh.in_training):
                outputs = refresh.run(self)
            self.cost.refreshes += 1
        return outputs

    @contextmanager
    def _aside(self, in_training: bool) -> Iterator[None]:
        """One mode, without gradient; its time counts, and it leaves modes and random numbers as they were."""
        modes = [(module, module.training) for module in self.model.modules()]
        devices = [self.model.device] if self.model.device.type == "cuda" else []
        for each in devices:
            finish(each)
        start = time.perf_counter()
        try:
            with torch.random.fork_rng(devices), torch.no_grad():
                if not (in_training and self.model.training):  # where each module has the mode that its user gave it
                    self.model.train(in_training)
                yield
            for each in devices:
                finish(each)
        finally:
            for module, mode in modes:
                module.training = mode
            self.cost.seconds += time.perf_counter() - start
