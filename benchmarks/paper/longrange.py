"""What keeps batches below full batch where labels depend on 16 hops?

The graph is a piece of a mesh (`wing`). Each node has a cost, an edge the mean of those of its ends, and a node's label is the
decile of its eccentricity: of its largest distance to a node within 16 hops, as in City-Networks (https://arxiv.org/abs/2503.09008).
GraphSAGE of 16 layers with batch norm is trained on the whole graph and in four batches, and what batches do differently is taken
away, one thing after the other: batches of one place, old histories, cut gradients, norms whose statistics are those of a batch.
"""

from __future__ import annotations

import copy
import os
import statistics
from collections.abc import Callable, Iterator, Mapping
from functools import lru_cache, partial
from pathlib import Path
from types import MappingProxyType
from typing import Any, NamedTuple

import numpy as np
import torch
import torch.nn.functional as F
from cells import Cells, Job, Tasks
from command import parse, plain_arguments, save, spread
from grid import METIS, RANDOM, Cell
from scipy.sparse import csr_matrix
from scipy.sparse.csgraph import breadth_first_order, dijkstra
from shared import table
from torch import Tensor
from torch_geometric.data import Data
from torch_geometric.utils import degree, to_torch_csr_tensor
from tqdm import tqdm
from trainers import Compensated, Exact, Histories, Refreshed, Trainer
from training import Task, arrange

from torch_gas.extensions.compensation import Compensation

HOPS, CLASSES, NODES = 16, 10, 12_000
SMOOTH, SPREAD = 10, 0.5  # steps of averaging over neighbours, and standard deviation of the logarithm of costs
BATCHES, STEPS = 4, 400  # of an epoch, and of a run
SEEDS = 3


def mesh(root: str, nodes: int) -> Data:
    """A piece of the mesh with features [N, 6], the cost and the number of neighbours, and labels [N]."""
    stored = np.load(Path(root) / "plain" / "wing.npz")
    row, col = stored["edge_index"]
    whole = csr_matrix((np.ones(len(row)), (row, col)), shape=(int(stored["num_nodes"]),) * 2)
    piece = np.sort(breadth_first_order(whole + whole.T, 0)[0][:nodes])
    links = (whole + whole.T)[piece][:, piece].tocoo()
    rng = np.random.default_rng(0)
    cost = rng.standard_normal(len(piece))
    for _ in range(SMOOTH):  # as the lengths of streets: alike among neighbours, another in the next quarter
        cost = links @ cost / np.asarray(links.sum(axis=1)).ravel()
    cost = np.exp(SPREAD * (cost - cost.mean()) / cost.std())
    lengths = csr_matrix(((cost[links.row] + cost[links.col]) / 2, (links.row, links.col)), shape=links.shape)
    reach = np.concatenate([_reach(lengths, part) for part in np.array_split(np.arange(len(piece)), 100)])
    edge_index = torch.from_numpy(np.stack([links.row, links.col])).long()
    neighbours = degree(edge_index[0], len(piece)).long().clamp(max=4)
    x = torch.cat([torch.from_numpy(np.log(cost)).float()[:, None], torch.nn.functional.one_hot(neighbours, 5)], dim=1)
    y = torch.from_numpy(np.searchsorted(np.quantile(reach, np.arange(1, CLASSES) / CLASSES), reach))
    drawn = torch.from_numpy(rng.random(len(piece)))
    masks = {"train_mask": drawn < 0.5, "val_mask": (drawn >= 0.5) & (drawn < 0.75), "test_mask": drawn >= 0.75}
    adj_t = to_torch_csr_tensor(edge_index, size=links.shape)
    return Data(x=x, y=y, adj_t=adj_t, num_nodes=len(piece), **masks)


def _reach(lengths: Any, nodes: Any) -> Any:
    """The largest distance of each of ``nodes`` to a node that is at most 16 hops away."""
    near = np.isfinite(dijkstra(lengths, indices=nodes, unweighted=True, limit=HOPS))
    return np.where(near, dijkstra(lengths, indices=nodes), 0.0).max(axis=1)


class LossOfBatch(Trainer):
    """The exact gradient of the loss of a batch's rows: layers run on the whole graph."""

    def set_up(self) -> None:
        self.order = torch.Generator().manual_seed(self.seed)

    def batches(self) -> Iterator[Tensor]:
        """The rows of each batch, as a mask [N]."""
        for part in torch.randperm(len(self.ptr) - 1, generator=self.order).tolist():
            rows = torch.zeros(len(self.train_mask), dtype=torch.bool)
            rows[self.ptr[part] : self.ptr[part + 1]] = True
            yield rows

    def loss(self, batch: Tensor) -> Tensor:
        rows = batch & self.train_mask
        out = self.model(self.graph.x, self.graph.adj_t)
        return F.cross_entropy(out[rows], self.graph.y[rows], reduction="sum") * (self.cell.batches / self.labelled)


class Fresh(Histories):
    """Histories are made exact before each step, so that nothing is old in its forward pass.

    Args:
        compensate: whether batches get the gradients that others found for their rows.
    """

    def extend(self, compensate: bool = False) -> None:
        if compensate:
            self.model.add_extension(Compensation(trust=1.0))

    def step(self, batch: Any) -> None:
        with torch.no_grad():
            self.model.eval()(self.graph.x, self.graph.adj_t)
        self.model.train()
        super().step(batch)


class FixedStatistics(Trainer):
    """Full batch, in which the statistics of norms are numbers: no gradient goes through them."""

    def set_up(self) -> None:
        for norm in self.model.bns:
            norm.momentum = 1.0  # statistics are those of the last pass

    def step(self, batch: Any) -> None:
        with torch.no_grad():
            self.model(batch.x, batch.adj_t)
        self.model.bns.eval()
        super().step(batch)
        self.model.bns.train()


class Way(NamedTuple):
    """A way to train, and what it is to show."""

    trainer: Callable[..., Trainer]
    parts: str
    without: str  # what batches have and it has not
    options: Mapping[str, Any] = MappingProxyType({})


WAYS = {
    "full batch": Way(Trainer, METIS, "all of it"),
    "full batch, statistics without gradient": Way(FixedStatistics, METIS, "all but the gradient through norms"),
    "exact gradient of a batch's loss, METIS": Way(LossOfBatch, METIS, "old rows, cut gradients"),
    "exact gradient of a batch's loss, random": Way(
        LossOfBatch, RANDOM, "old rows, cut gradients, batches of one place"
    ),
    "GAS, METIS": Way(Histories, METIS, "nothing"),
    "GAS, random": Way(Histories, RANDOM, "batches of one place"),
    "GAS, METIS, refreshed": Way(Refreshed, METIS, "rows that are old by more than an epoch"),
    "GAS, METIS, exact histories in each step": Way(Fresh, METIS, "old rows"),
    "compensation, METIS, the same": Way(Fresh, METIS, "old rows, cut gradients", {"compensate": True}),
    "compensation, METIS": Way(Compensated, METIS, "cut gradients", {"trust": 1.0}),
    "compensation, random": Way(Compensated, RANDOM, "cut gradients, batches of one place", {"trust": 1.0}),
    "exact mode": Way(Exact, METIS, "all of it"),
}
WHOLE = (Trainer, Exact, FixedStatistics)  # a step an epoch

MODEL = {"hidden_channels": 32, "num_layers": 16, "batch_norm": True}


def run(name: str, seed: int, steps: int, task: Task) -> dict[str, Any]:
    """One run: the best validation accuracy, test accuracy there, and the step from which it is."""
    way = WAYS[name]
    stride = 1 if way.trainer in WHOLE else BATCHES
    cell = Cell("SAGE-16", "mesh", "SAGE", MODEL, steps, steps, batches=BATCHES, parts=way.parts, lr=0.003)
    trainer = way.trainer(cell, task, seed, **way.options)
    best = (0.0, 0.0, 0)
    for step in tqdm(range(stride, steps + 1, stride), leave=False, position=1, mininterval=1):
        trainer.epoch()
        val, test = trainer.evaluate()
        best = max(best, (val, test, step), key=lambda each: each[0])
    return {"validation": best[0], "test": best[1], "step": best[2]}


@lru_cache(maxsize=1)
def loaded(root: str, nodes: int) -> Data:
    """The mesh, made once."""
    return mesh(root, nodes)


def prepare(root: str, model: str, data: str, nodes: int, parts: str, seed: int) -> Task:
    """The mesh in parts; random ones are drawn by the seed."""
    graph, ptr = arrange(copy.copy(loaded(root, nodes)), "SAGE", BATCHES, parts, seed)
    return Task(graph, ptr, graph.num_features, CLASSES)


def job(name: str, seed: int, nodes: int, steps: int) -> Job:
    """A run."""
    of = {"model": "SAGE-16", "data": "mesh", "method": name, "seed": seed}
    parts = WAYS[name].parts
    recipe = {"model": MODEL, "steps": steps, "nodes": nodes, "parts": parts}
    return Job(of, recipe, partial(run, name, seed, steps), (nodes, parts, seed if parts == RANDOM else 0))


NOTE = (
    "Mean and standard deviation over seeds of test accuracy at the best validation epoch. All make as many steps: full batch "
    f"and exact mode one an epoch, the others {BATCHES}. Histories are filled once."
)


def main() -> None:
    parser = plain_arguments(__doc__)
    root = os.environ.get("TORCH_GAS_DATA", "data")
    parser.add_argument("--root", default=root, help=f"folder of the data sets (default: {root})")
    parser.add_argument("--seeds", type=int, default=SEEDS, help=f"runs with seeds 0, 1, ... (default: {SEEDS})")
    parser.add_argument("--nodes", type=int, default=NODES, help=f"of the mesh (default: {NODES})")
    parser.add_argument("--steps", type=int, default=STEPS, help=f"of a run (default: {STEPS})")
    parser.add_argument("--page", action="store_true", help="only write the table of the runs that are there")
    parser.set_defaults(threads=1, question=__doc__)
    args = parse(parser)
    cells = Cells(args.out / "cells" / "longrange.jsonl")
    jobs = [job(name, seed, args.nodes, args.steps) for seed in range(args.seeds) for name in WAYS]
    if not args.page:
        cells.run(jobs, Tasks(partial(prepare, args.root)))
    results: dict[str, list[dict[str, Any]]] = {name: [] for name in WAYS}
    for each in jobs:
        result = cells.get(each.of, each.recipe)
        if result is not None:
            results[each.of["method"]].append(result)
    rows = [
        {
            "way": name,
            "does without": WAYS[name].without,
            "seeds": len(found),
            "test, %": spread([100 * each["test"] for each in found]),
            "best step": int(statistics.median(each["step"] for each in found)),
        }
        for name, found in results.items()
        if found
    ]
    if not rows:
        raise SystemExit("no run is complete: --root names no folder with plain/wing.npz, or --seeds is 0")
    save(args, "longrange", args.question, cells.machine(), [table("Labels of 16 hops", rows, NOTE)])


if __name__ == "__main__":
    main()
