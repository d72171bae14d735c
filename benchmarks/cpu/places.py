"""What accuracy do the places of histories cost, with compensation and without?

Models of PyG train by ``scale()`` for as many epochs with each choice of ``places``, and in full batch for as many steps. Runs
of a seed begin with the same parameters and take the same parts in the same order, so that differences are those of pairs.
A command that was stopped goes on where it was.
"""

from __future__ import annotations

import copy
import json
import os
import statistics
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
import torch_geometric.nn as pyg
from bench import arguments, machine, parse, save
from matplotlib import pyplot as plt
from matplotlib.ticker import FixedLocator
from scipy.special import stdtrit
from shared import save_picture, table
from sides import FULL, in_format
from torch import Tensor
from torch.nn import Module
from torch_geometric.data import Data
from torch_geometric.utils import sort_edge_index

from torch_gas import SubgraphLoader, get_data, labelled_mean, metis, permute, scale
from torch_gas.datasets import synthetic
from torch_gas.extensions import Compensation

WITH = ", compensation"
# Without compensation, "outputs" trains what "row-wise" does, but for rounding: what lies between them has no parameters.
SIDES = (FULL, "row-wise", "cheap", "outputs" + WITH, "row-wise" + WITH, "cheap" + WITH)
PAIRS = {
    "outputs - row-wise, both with compensation": ("outputs" + WITH, "row-wise" + WITH),
    "cheap - row-wise": ("cheap", "row-wise"),
    "cheap - row-wise, both with compensation": ("cheap" + WITH, "row-wise" + WITH),
    "cheap with compensation - row-wise without": ("cheap" + WITH, "row-wise"),
    "row-wise with compensation - without": ("row-wise" + WITH, "row-wise"),
    "cheap with compensation - without": ("cheap" + WITH, "cheap"),
}


class Case(NamedTuple):
    """A graph, how it is cut, and how models train on it."""

    name: str
    graph: str
    backend: str
    num_parts: int
    parts_a_batch: int
    models: tuple[str, ...]
    epochs: int
    norm: str | None = None
    weight_decay: float = 0.0
    refreshed: bool = False  # whether histories are made exact after each epoch; else once, before the first
    channels: int = 64


COMMUNITIES = "communities"  # 8,000 nodes in ten classes, with features that say little
CASES = (
    (Case("Cora", "Cora", "metis", 40, 10, ("GCN", "SAGE", "GAT", "APPNP"), 40, weight_decay=5e-4), 4),
    (
        Case(
            "Cora, random parts", "Cora", "random", 20, 5, ("GCN", "SAGE", "GAT"), 40, weight_decay=5e-4, refreshed=True
        ),
        4,
    ),
    (Case("communities", COMMUNITIES, "metis", 40, 10, ("GCN", "SAGE", "GAT"), 25, "batch_norm", refreshed=True), 3),
    (Case("WordNet's eighth", "WordNet", "metis", 40, 10, ("GCN", "SAGE", "GAT"), 20, "batch_norm"), 3),
)
TINY = ((Case("tiny", "synthetic:600", "metis", 8, 2, ("GCN", "APPNP"), 2, refreshed=True, channels=8), 2),)

Runs = dict[tuple[str, str, str], list[float]]  # test accuracies of the seeds, by case, model and side


class OnLayers(Module):
    """APPNP behind two dense layers."""

    def __init__(self, channels: list[int], dropout: float) -> None:
        super().__init__()
        self.lins, self.conv = pyg.MLP(channels, dropout=dropout, norm=None), pyg.APPNP(10, 0.1)

    def forward(self, x: Tensor, edge_index: Any) -> Tensor:
        out: Tensor = self.conv(self.lins(x), edge_index)
        return out


def plain(name: str, data: Data, case: Case) -> Module:
    """A model that knows nothing of histories: three layers, or ten hops of APPNP."""
    sizes, classes = [data.num_features, case.channels], int(data.y.max()) + 1
    if name == "APPNP":
        return OnLayers([*sizes, classes], dropout=0.5)
    makes: dict[str, Any] = {"GCN": pyg.GCN, "SAGE": pyg.GraphSAGE, "GAT": partial(pyg.GAT, heads=8)}
    made: Module = makes[name](*sizes, num_layers=3, out_channels=classes, dropout=0.5, norm=case.norm)
    return made


def graph_of(case: Case, root: str) -> tuple[Data, Tensor]:
    """The graph in the order of its parts, and these."""
    if case.graph == COMMUNITIES:
        data = synthetic(8000, homophily=0.6, noise=20.0)
    else:
        data, *_ = get_data(root, case.graph, layout="edge_index")
    if case.graph == "WordNet":  # five of forty parts, without their edges to others
        perm, ptr = metis(data, 40, log=False)
        data = permute(data, perm, log=False).subgraph(torch.arange(int(ptr[5])))
        del data.perm
    perm, ptr = metis(data, case.num_parts, backend=case.backend, log=False)
    data = permute(data, perm, log=False)
    data.edge_index = sort_edge_index(data.edge_index, sort_by_row=False)
    return in_format(data, "csr"), ptr


def inputs(graph: Data) -> tuple[Tensor, Tensor]:
    """What all models take."""
    return graph.x, graph.adj_t


def train(case: Case, name: str, side: str, seed: int, data: Data, ptr: Tensor) -> dict[str, float]:
    """The best validation accuracy of a run, and the test accuracy after that epoch, in per cent."""
    torch.manual_seed(seed)
    inner = plain(name, data, case)
    on_graph = copy.deepcopy(inner)  # whose calls leave histories alone
    loader = SubgraphLoader(data, ptr, case.parts_a_batch, shuffle=True, seed=seed)
    model, batches = inner, [data] * len(loader)
    if side != FULL:
        extension, places = Compensation() if side.endswith(WITH) else None, side.removesuffix(WITH)
        model, batches = scale(inner, data, inputs=inputs, places=places, compensation=extension), loader
        model.eval()(data)
    optimizer = torch.optim.Adam(inner.parameters(), lr=0.01, weight_decay=case.weight_decay)
    best = (0.0, 0.0)
    for _ in range(case.epochs):
        model.train()
        for batch in batches:
            optimizer.zero_grad()
            out = model(*inputs(batch)) if side == FULL else model(batch)
            mask, y = batch.train_mask[: len(out)], batch.y[: len(out)]
            labelled_mean(F.cross_entropy(out[mask], y[mask], reduction="none"), batch).backward()
            optimizer.step()
        if case.refreshed and side != FULL:
            model.eval()(data)
        on_graph.load_state_dict(inner.state_dict())
        best = max(best, accuracies(on_graph, data), key=lambda each: each[0])
    return {"validation": best[0], "test": best[1]}


@torch.no_grad()
def accuracies(model: Module, data: Data) -> tuple[float, float]:
    """On validation and test nodes, in per cent, with all edges."""
    right = (model.eval()(*inputs(data)).argmax(1) == data.y).double()
    return 100 * float(right[data.val_mask].mean()), 100 * float(right[data.test_mask].mean())


def run(cases: list[tuple[Case, int]], root: str, path: Path) -> Runs:
    """All runs, the first seed of all cases before the second; those that the file has are not run again."""
    lines = [json.loads(line) for line in path.read_text().splitlines()] if path.exists() else []
    known = {json.dumps(each["of"]): each["result"] for each in lines}
    graphs: dict[str, tuple[Data, Tensor]] = {}
    runs: Runs = {}
    path.parent.mkdir(parents=True, exist_ok=True)
    for seed in range(max(seeds for _, seeds in cases)):
        for case in (case for case, seeds in cases if seed < seeds):
            for name in case.models:
                for side in SIDES:
                    # A norm ends row-wise code at once.
                    same = side.replace("outputs", "row-wise") if case.norm else side
                    of = {**case._asdict(), "models": name, "side": same, "seed": seed}
                    if (key := json.dumps(of)) not in known:
                        if case.name not in graphs:
                            graphs[case.name] = graph_of(case, root)
                        known[key] = train(case, name, same, seed, *graphs[case.name])
                        with path.open("a") as file:
                            file.write(json.dumps({"of": of, "result": known[key]}) + "\n")
                        print(case.name, name, same, seed, known[key], flush=True)
                    runs.setdefault((case.name, name, side), []).append(known[key]["test"])
    return runs


def interval(values: list[float]) -> tuple[float, float]:
    """Mean and half of its 95 % interval, by Student's t."""
    error = statistics.stdev(values) / len(values) ** 0.5
    return statistics.fmean(values), float(stdtrit(len(values) - 1, 0.975)) * error


def differences(runs: Runs, case: str, name: str, pair: str) -> list[float]:
    """Points of test accuracy, seed by seed."""
    left, right = (runs[case, name, side] for side in PAIRS[pair])
    return [a - b for a, b in zip(left, right, strict=True)]


def rows_of(runs: Runs) -> tuple[list[dict[str, Any]], list[dict[str, Any]], list[dict[str, Any]]]:
    """Accuracies, differences to full batch, and differences between places."""
    reached: list[dict[str, Any]] = []
    to_full: list[dict[str, Any]] = []
    paired: list[dict[str, Any]] = []
    groups = list(dict.fromkeys((case, name) for case, name, _ in runs))
    for case, name in groups:
        of_case = {side: runs[case, name, side] for side in SIDES}
        title = {"graph": case, "model": name, "seeds": len(of_case[FULL])}
        errors = {side: statistics.stdev(values) / len(values) ** 0.5 for side, values in of_case.items()}
        reached.append(title | {side: f"{statistics.fmean(of_case[side]):.2f} ± {errors[side]:.2f}" for side in SIDES})
        gaps = {side: statistics.fmean(of_case[side]) - statistics.fmean(of_case[FULL]) for side in SIDES[1:]}
        to_full.append(title | {side: f"{gap:+.2f}" for side, gap in gaps.items()})
        paired.append(title | {pair: _shown(differences(runs, case, name, pair)) for pair in PAIRS})
    pooled = {pair: [each for group in groups for each in differences(runs, *group, pair)] for pair in PAIRS}
    better = {pair: f"above 0 in {sum(each > 0 for each in gaps)} of {len(gaps)}" for pair, gaps in pooled.items()}
    paired.append({"graph": "all", "model": "all", "seeds": sum(row["seeds"] for row in reached)} | better)
    return reached, to_full, paired


def _shown(values: list[float]) -> str:
    mean, half = interval(values)
    return f"{round(mean, 2) + 0:+.2f} ± {half:.2f}"


def draw(runs: Runs) -> Any:
    """For each graph and model: differences to full batch, and those between places with their intervals."""
    groups = list(dict.fromkeys((case, name) for case, name, _ in runs))
    figure, (left, right) = plt.subplots(
        1, 2, figsize=(14, 1.6 + 0.45 * len(groups)), layout="constrained", sharey=True
    )
    for i, side in enumerate(SIDES[1:]):
        means = [[statistics.fmean(runs[case, name, each]) for case, name in groups] for each in (side, FULL)]
        gaps = [ours - full for ours, full in zip(*means, strict=True)]
        rows = [row + 0.12 * (i - 2) for row in range(len(groups))]
        marker = {"row-wise": "s", "cheap": "^", "outputs": "o"}[side.removesuffix(WITH)]
        color = "tab:orange" if side.endswith(WITH) else "tab:blue"
        left.plot(gaps, rows, marker, color=color, markersize=5, label=side)
    for i, pair in enumerate(PAIRS):
        found = [interval(differences(runs, *group, pair)) for group in groups]
        rows = [row + 0.12 * (i - 2.5) for row in range(len(groups))]
        centers, halves = zip(*found, strict=True)
        right.errorbar(centers, rows, xerr=halves, fmt="o", markersize=4, capsize=2, label=pair)
    left.set_yticks(range(len(groups)), [f"{case}: {name}" for case, name in groups])
    left.invert_yaxis()
    left.set_xlabel("test accuracy minus full batch's, points")
    right.set_xlabel("differences of pairs and their 95 % intervals, points")
    for axes in (left, right):
        axes.set_xscale("symlog", linthresh=3)
        axes.xaxis.set_major_locator(FixedLocator([-30, -10, -3, -2, -1, 0, 1, 2, 3, 10, 30]))
        axes.xaxis.set_major_formatter("{x:g}")
        axes.axvline(0, color="black", linewidth=1)
        axes.grid(alpha=0.3)
        axes.spines[["top", "right"]].set_visible(False)
        axes.legend(frameon=False, fontsize=8, loc="upper center", bbox_to_anchor=(0.5, -0.1), ncols=2)
    return figure


def main() -> None:
    parser = arguments(__doc__)
    root = os.environ.get("TORCH_GAS_DATA", "data")
    parser.add_argument("--root", default=root, help=f"folder of the data sets (default: {root})")
    parser.add_argument("--graphs", nargs="+", help="names of graphs as the tables have them (default: all)")
    parser.add_argument("--seeds", type=int, help="as many seeds of each graph at most")
    parser.set_defaults(threads=1)
    args = parse(parser)
    record = machine()
    cases = [
        (case, min(seeds, args.seeds or seeds))
        for case, seeds in (TINY if args.quick else CASES)
        if args.graphs is None or case.name in args.graphs
    ]
    runs = run(cases, args.root, args.out / "cells" / "places.jsonl")
    reached, to_full, paired = rows_of(runs)
    save_picture(draw(runs), args.out, "places")
    save(
        args,
        "places",
        __doc__,
        record,
        [
            table("Test accuracy, %", reached, NOTE),
            table("Mean difference to full batch, points", to_full),
            table("Differences of pairs, points", paired, "Means over seeds, and their 95 % intervals (Student's t)."),
        ],
    )


NOTE = (
    "Mean and standard error over seeds of the test accuracy at the best validation accuracy. Three layers of 64 channels (GAT: "
    "8 heads of 8), APPNP of ten hops behind two dense layers; dropout 0.5, Adam at 0.01, trust of compensation by itself."
)


if __name__ == "__main__":
    main()
