"""The methods that train one model on a large graph: their batches, the edges that these use, and the memory of a step."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from itertools import islice
from math import ceil
from typing import Any, NamedTuple

import torch
from baselines import NeighborSampling, without_halo
from baselines import TrimmedNorms as TrimmedNorms
from torch_geometric.data import Data
from training import FULL_BATCH, HISTORIES, Recipe, Task, arrange, step

from torch_gas import SubgraphLoader, dropout, get_data, in_degree, models
from torch_gas.datasets import synthetic
from torch_gas.graph.formats import all_tensors
from torch_gas.planner.meter import metered

SAMPLING, CLUSTER = "GraphSAGE sampling", "Cluster-GCN"
METHODS = (FULL_BATCH, SAMPLING, CLUSTER, HISTORIES)
COLORS = dict(zip(METHODS, ("tab:gray", "tab:green", "tab:orange", "tab:blue"), strict=True))


@dataclass(frozen=True)
class LargeRecipe(Recipe):
    """A recipe for a large graph; recipes/*.toml say what each entry is."""

    steps: int | None = None
    edge_dropout: float = 0.0
    synthetic: dict[str, Any] = field(default_factory=dict)
    methods: tuple[str, ...] = (HISTORIES,)
    epochs_by_method: dict[str, int] = field(default_factory=dict)

    def settings_of(self, method: str) -> dict[str, Any]:
        """What decides on results of that method."""
        settings = {key: value for key, value in self.settings.items() if key not in ("methods", "epochs_by_method")}
        return {**settings, "epochs": self.epochs_of(method)}

    def epochs_of(self, method: str) -> int:
        """Full batch makes one step an epoch, and may need more epochs than others."""
        return self.epochs_by_method.get(method, self.epochs)


def prepare_large(root: str, model: str, dataset: str, recipe: LargeRecipe) -> Task:
    """The graph of a recipe, ready for ``model``."""
    if recipe.synthetic:
        data = made_graph(recipe.synthetic)
        shape = data.num_features, int(data.y.max()) + 1
    else:
        data, *shape = get_data(root, dataset, layout="csr")
    return Task(*arrange(data, model, recipe.parts), *shape)


def made_graph(arguments: dict[str, Any]) -> Data:
    """A synthetic graph with its edges as a CSR matrix."""
    data = synthetic(**arguments)
    rowptr = torch.searchsorted(data.edge_index[1], torch.arange(data.num_nodes + 1))
    ones, size = torch.ones(data.num_edges), (data.num_nodes, data.num_nodes)
    data.adj_t = torch.sparse_csr_tensor(rowptr, data.edge_index[0], ones, size, check_invariants=False)
    del data.edge_index
    return data


def make_large(name: str, task: Task, recipe: LargeRecipe, device: str) -> models.base.Model:
    """A shipped model of that name on ``device``, its histories in host memory."""
    shape = {"in_channels": task.in_channels, "out_channels": task.out_channels, **recipe.model}
    if name.startswith("PNA"):
        shape["deg"] = in_degree(task.graph.adj_t, task.graph.num_nodes)
    return getattr(models, name)(task.graph.num_nodes, **shape).to(device)


class Batches:
    """What a method trains on: iterating gives the batches of an epoch, as models take them.

    All methods but full batch have equally many, each of about as many training nodes: those of a union of parts
    or, for sampling, random ones. With ``of_all_nodes``, sampling takes as many random nodes as the others have in a batch.
    """

    def __init__(
        self, method: str, task: Task, recipe: LargeRecipe, seed: int, device: str, of_all_nodes: bool = False
    ) -> None:
        self.method, self.graph, self.recipe, self.device = method, task.graph, recipe, device
        self.made: Iterable[Any] = [(task.graph,)]
        if method == SAMPLING:
            seeds = torch.arange(task.graph.num_nodes) if of_all_nodes else task.graph.train_mask.nonzero().view(-1)
            # Rounded up, so that no batch of a few seeds is left over: its step would undo much of the others'.
            batch_size = ceil(seeds.numel() * recipe.batch_size / recipe.parts)
            num_layers = recipe.model["num_layers"]
            self.made = NeighborSampling(task.graph, seeds, batch_size, num_layers, seed)
        elif method != FULL_BATCH:
            self.made = SubgraphLoader(task.graph, task.ptr, recipe.batch_size, shuffle=True, seed=seed, prefetch=0)

    def __iter__(self) -> Iterator[tuple[Any, ...]]:
        for batch in islice(self.made, self.recipe.steps):
            data, *ids = without_halo(batch) if self.method == CLUSTER else batch
            data = data.to(self.device) if ids else data.clone().to(self.device)
            data.adj_t = dropout(data.adj_t, self.recipe.edge_dropout)
            yield data, *ids

    def survey(self) -> Survey:
        """What an epoch is made of."""
        degree = self.graph.adj_t.crow_indices().diff()
        largest: tuple[Any, ...] = ()
        steps = used = there = 0
        for data, *ids in self:
            steps += 1
            if not largest or data.num_nodes > largest[0].num_nodes:
                largest = (data, *ids)
            reached = data.adj_t.crow_indices().diff().cpu() > 0
            rows = ids[1][: reached.numel()] if ids else torch.arange(reached.numel())
            used += data.adj_t.values().numel()
            there += int(degree[rows[reached]].sum())
        return Survey(steps, used / there, largest)


class Survey(NamedTuple):
    """Steps of an epoch; the edges that they use, of all edges into nodes whose neighbours they look at; the largest batch."""

    steps: int
    share_of_edges: float
    largest: tuple[Any, ...]


def step_bytes(model: Any, optimizer: torch.optim.Optimizer, batch: tuple[Any, ...], device: str) -> int:
    """Peak bytes of tensors in a step: the batch, activations, gradients and buffers.

    Parameters, the state of the optimiser, histories in host memory and, but for full batch, the graph come on top.
    """
    data, *ids = batch
    model.train()
    optimizer.zero_grad()
    peak = metered(lambda: step(model, optimizer, data, ids, data.train_mask), torch.device(device)).peak
    return peak + sum(tensor.nbytes for tensor in all_tensors(data.to_dict()))


def history_bytes(model: Any) -> int:
    """Bytes of all histories."""
    return sum(history.emb.nbytes for history in model.histories)
