"""How long does training take to reach a given accuracy?

Validation accuracy of a GCN over epochs and over seconds of training: with histories, on the edges inside of batches
(Cluster-GCN), and full batch. All take turns, epoch by epoch, in one process.
"""

from __future__ import annotations

import os
import statistics
from typing import Any, NamedTuple

import torch
from bench import arguments, machine, parse, save
from matplotlib import pyplot as plt
from shared import save_picture, table
from sides import CLUSTER, FULL, Side, WithoutHalo, in_format
from torch import Tensor
from torch_geometric.data import Data

from torch_gas import SubgraphLoader, gcn_norm, get_data, metis, permute
from torch_gas.datasets import synthetic
from torch_gas.models import GCN

OURS = "histories"
SIDES = (OURS, CLUSTER, FULL)
GOALS = (0.95, 0.99)
COLORS = dict(zip(SIDES, ("tab:blue", "tab:orange", "tab:gray"), strict=True))


class Task(NamedTuple):
    """A graph and how a GCN is trained on it."""

    graph: str
    data: Data  # normalised, in the order of its parts
    ptr: Tensor
    epochs: int
    parts_a_batch: int = 10
    channels: int = 64
    num_layers: int = 2


class Curve(NamedTuple):
    """Validation accuracy after each epoch, and the seconds trained until then."""

    accuracy: list[float]
    seconds: list[float]


def tasks(quick: bool) -> list[Task]:
    """A community graph and, where the folder TORCH_GAS_DATA holds it, WordNet."""
    if quick:
        return [Task("communities", *_cut(synthetic(1000, 4, 16), 8), epochs=3, parts_a_batch=2, channels=16)]
    found = [Task("communities", *_cut(synthetic(50_000, 10, 64, noise=12.0), 40), epochs=60, num_layers=3)]
    root = os.environ.get("TORCH_GAS_DATA")
    if root is None:
        print("WordNet is left out: TORCH_GAS_DATA names no folder of data sets")
        return found
    data, *_ = get_data(root, "WordNet", layout="edge_index")
    return [*found, Task("WordNet", *_cut(data, 40), epochs=100)]


def _cut(data: Data, num_parts: int) -> tuple[Data, Tensor]:
    data = Data(x=data.x, y=data.y, edge_index=data.edge_index, train_mask=data.train_mask, val_mask=data.val_mask)
    perm, ptr = metis(data, num_parts, log=False)
    data = gcn_norm(data)
    src, dst = data.edge_index
    order = (dst * data.num_nodes + src).argsort()
    data.edge_index, data.edge_weight = data.edge_index[:, order], data.edge_weight[order]
    data = permute(in_format(data, "csr"), perm, log=False)
    return data, ptr


def make(side: str, task: Task, seed: int) -> Side:
    """A model that trains on the training nodes of its batches."""
    data, classes = task.data, int(task.data.y.max()) + 1
    torch.manual_seed(seed)
    widths = (data.num_features, task.channels, classes)
    model = GCN(data.num_nodes, *widths, task.num_layers, dropout=0.5, drop_input=False, batch_norm=True)
    loader = SubgraphLoader(data, task.ptr, task.parts_a_batch, shuffle=True, seed=seed)

    def with_histories(batch: Any) -> tuple[Tensor, Tensor]:
        mask = batch.data.train_mask[: batch.batch_size]
        return model(batch)[mask], batch.data.y[: batch.batch_size][mask]

    def on_graph(graph: Data) -> tuple[Tensor, Tensor]:
        return model.forward(graph.x, graph.adj_t)[graph.train_mask], graph.y[graph.train_mask]

    if side == OURS:
        made = Side(model, loader, with_histories)
    else:
        model.push_and_pull = lambda history, x, *_: x
        made = Side(model, [data] if side == FULL else WithoutHalo(loader), on_graph)
    made.optimizer = torch.optim.Adam(model.parameters(), lr=0.01)
    return made


@torch.no_grad()
def accuracy(model: GCN, data: Data) -> float:
    """The share of validation nodes that the model tells right, on the whole graph; histories are left alone."""
    exchange, model.push_and_pull = model.push_and_pull, lambda history, x, *_: x
    out = model.eval().forward(data.x, data.adj_t)
    model.train().push_and_pull = exchange
    return float((out.argmax(1) == data.y)[data.val_mask].float().mean())


def train(task: Task, seed: int) -> dict[str, Curve]:
    """A curve for each side."""
    running = {side: make(side, task, seed) for side in SIDES}
    curves = {side: Curve([], []) for side in SIDES}
    for _ in range(task.epochs):
        for side, each in running.items():
            seconds = sum(each.epoch().values())
            curve = curves[side]
            curve.seconds.append(seconds + (curve.seconds[-1] if curve.seconds else 0.0))
            curve.accuracy.append(accuracy(each.model, task.data))
    return curves


def rows_of(task: Task, runs: list[dict[str, Curve]]) -> list[dict[str, Any]]:
    """Medians over runs: the best accuracy of each side, and when it reaches shares of full batch's best."""
    rows = []
    for side in SIDES:
        row = {"graph": task.graph, "side": side}
        row["best accuracy, %"] = 100 * statistics.median(max(run[side].accuracy) for run in runs)
        row["epoch, s"] = statistics.median(run[side].seconds[-1] / task.epochs for run in runs)
        for goal in GOALS:
            for unit in ("s", "epochs"):
                reached = [_until(run[side], goal * max(run[FULL].accuracy), unit) for run in runs]
                median = statistics.median(reached)
                row[f"to {100 * goal:.0f} %, {unit}"] = "not reached" if median == float("inf") else median
        rows.append(row)
    return rows


def _until(curve: Curve, goal: float, unit: str) -> float:
    """Seconds or epochs until the goal is reached; infinity where it never is."""
    epoch = next((i for i, each in enumerate(curve.accuracy) if each >= goal), None)
    if epoch is None:
        return float("inf")
    return curve.seconds[epoch] if unit == "s" else float(epoch + 1)


def draw(runs: dict[str, list[dict[str, Curve]]]) -> Any:
    """Accuracy over epochs and over seconds, a line for each run, and the goals."""
    figure, grid = plt.subplots(len(runs), 2, figsize=(11, 3.8 * len(runs)), layout="constrained", squeeze=False)
    for (graph, curves_of_runs), (left, right) in zip(runs.items(), grid, strict=True):
        for run in curves_of_runs:
            for side, curve in run.items():
                label = side if run is curves_of_runs[0] else None
                percent = [100 * each for each in curve.accuracy]
                left.plot(range(1, len(percent) + 1), percent, color=COLORS[side], alpha=0.7, label=label)
                right.plot(curve.seconds, percent, color=COLORS[side], alpha=0.7)
        best = statistics.median(100 * max(run[FULL].accuracy) for run in curves_of_runs)
        left.set(xlabel="epochs", ylabel="validation accuracy, %", title=graph)
        right.set(xlabel="seconds of training", title=graph)
        left.legend(frameon=False, loc="lower right")
        for axes in (left, right):
            for goal in GOALS:
                axes.axhline(goal * best, color="black", linewidth=0.7, linestyle=":")
            axes.grid(alpha=0.3)
            axes.spines[["top", "right"]].set_visible(False)
    return figure


def main() -> None:
    args = parse(arguments(__doc__))
    record = machine()
    runs: dict[str, list[dict[str, Curve]]] = {}
    rows, settings = [], []
    for task in tasks(args.quick):
        runs[task.graph] = [train(task, seed) for seed in range(1 if args.quick else 3)]
        rows += rows_of(task, runs[task.graph])
        settings.append(
            f"{task.graph}: {task.data.num_nodes:,} nodes, {task.data.adj_t.values().numel():,} edges, {task.num_layers} layers, "
            f"{task.parts_a_batch} of {task.ptr.numel() - 1} METIS parts in a batch, {task.epochs} epochs"
        )
        print(rows[-len(SIDES) :], flush=True)
    save_picture(draw(runs), args.out, "accuracy")
    note = (
        f"{'. '.join(settings)}. 64 hidden channels, batch norm, dropout 0.5, Adam with 0.01. Medians of runs with several "
        "seeds. Accuracy is that on the whole graph with all edges, whatever trained; computing it does not count as training. "
        "To 95 %: until validation accuracy is 95 % of the best that the full batch has in the same run."
    )
    save(args, "accuracy", __doc__, record, [table("Time to accuracy", rows, note)])


if __name__ == "__main__":
    main()
