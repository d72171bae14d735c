"""What does a training epoch cost on the CPU, and what share of it is arithmetic?

Epochs of our models over each adjacency format, of PyGAS (the library that came with the paper, where --pygas names a local
build), of PyG's layers alone over the same batches and over sampled neighbours, of Cluster-GCN and of full-batch training. All
take turns in one process.
"""

from __future__ import annotations

import argparse
import os
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from types import ModuleType
from typing import Any

import torch
from matplotlib import pyplot as plt

sys.path.insert(0, str(Path(__file__).parents[1]))

from predecessor import PYGAS, load_pygas
from shared import RESULTS, host, save_picture, save_section, table, today
from sides import (
    CLUSTER,
    FORMATS,
    FULL,
    HAS_SAMPLER,
    MODELS,
    PHASES,
    PLAIN,
    SAMPLING,
    Graphs,
    Setting,
    Sides,
    make_graphs,
)

from torch_gas import SubgraphLoader

OURS = "csr"  # stands for us beside others
FULL_SIZE = Setting(50_000, 21.5, 128, num_parts=40, parts_a_batch=10)
TINY = Setting(600, 8.0, 16, num_parts=8, parts_a_batch=4)
MOST_ROUNDS, ENOUGH_SECONDS = 5, 30  # of epochs of each side of a model
COLORS = dict(zip(PHASES, ("tab:gray", "tab:blue", "tab:red", "tab:cyan", "black"), strict=True))


def parse_args() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    out = RESULTS / "cpu"
    parser.add_argument("--out", type=Path, default=out, help="folder of the results (default: benchmarks/results/cpu)")
    parser.add_argument("--pygas", type=Path, help="root of PyGAS' repository, built in place (default: no PyGAS)")
    parser.add_argument("--quick", action="store_true", help="tiny sizes, whose figures say nothing")
    parser.add_argument("--threads", type=int, help="threads of torch (default: 2, or 1 in a quick run)")
    args = parser.parse_args()
    args.threads = args.threads or (1 if args.quick else 2)
    return args


class Bench:
    """Epochs of the sides of each model, measured in turn."""

    def __init__(self, setting: Setting, pygas: ModuleType | None) -> None:
        self.setting, self.pygas = setting, pygas
        self.graphs: Graphs = make_graphs(setting)
        self.beside = (OURS, PYGAS) if pygas is not None else (OURS,)
        self.sampling = (SAMPLING,) if HAS_SAMPLER else ()
        loader = SubgraphLoader(self.graphs.unweighted, self.graphs.ptr, setting.parts_a_batch, shuffle=True, seed=0)
        self.halo = sum(batch.halo_size for batch in loader)  # rows that an epoch pulls from a history

    def measure(self, name: str, dropout: float, sides: Sequence[str]) -> dict[str, dict[str, float]]:
        """Seconds by phase of each side's median epoch (of two, the faster), after a step that does not count."""
        makes = Sides(self.setting, self.graphs, name, dropout, self.pygas)
        running = {side: makes.make(side) for side in sides}
        for side in running.values():
            side.epoch(steps=1)
        laps: dict[str, list[dict[str, float]]] = {side: [] for side in sides}
        start, rounds = time.perf_counter(), 0
        while rounds < 2 or (rounds < MOST_ROUNDS and time.perf_counter() - start < ENOUGH_SECONDS):
            for side, each in running.items():
                laps[side].append(each.epoch())
            rounds += 1
        print(
            name,
            dropout,
            {side: [round(sum(lap.values()), 3) for lap in each] for side, each in laps.items()},
            flush=True,
        )
        return {side: sorted(each, key=_total)[(rounds - 1) // 2] for side, each in laps.items()}

    def exchanged(self, name: str) -> int:
        """Bytes that an epoch pushes and pulls."""
        width = self.setting.num_classes if name == "APPNP" else self.setting.channels
        return 4 * width * (self.setting.num_layers - 1) * (self.setting.num_nodes + self.halo)


def _total(lap: dict[str, float]) -> float:
    return sum(lap.values())


def beside_row(name: str, dropout: float, laps: dict[str, dict[str, float]]) -> dict[str, Any]:
    """Seconds of our epoch and of PyGAS'."""
    ours, theirs = (_total(laps[side]) for side in (OURS, PYGAS))
    return {"model": name, "dropout": str(dropout), "ours, s": ours, "PyGAS, s": theirs, "ours / PyGAS": ours / theirs}


def split_row(side: str, name: str, dropout: float, lap: dict[str, float], exchanged: int) -> dict[str, Any]:
    """Shares of an epoch's phases."""
    epoch = _total(lap)
    row = {"by": PYGAS if side == PYGAS else "ours", "model": name, "dropout": str(dropout), "epoch, s": epoch}
    row |= {f"{phase}, %": 100 * lap[phase] / epoch for phase in PHASES}
    row["arithmetic, %"] = 100 * (lap["forward"] + lap["backward"] + lap["optimiser"]) / epoch
    return row | {"MB exchanged": exchanged / 1e6, "exchange, GB/s": exchanged / 1e9 / lap["push and pull"]}


def draw(by_side: list[dict[str, Any]], splits: list[dict[str, Any]]) -> Any:
    """Epochs of all sides, and the phases of ours."""
    figure, (left, right) = plt.subplots(1, 2, figsize=(14, 5), layout="constrained", width_ratios=(3, 2))
    sides = [column.removesuffix(", s") for column in by_side[0] if column.endswith(", s")]
    width = 0.85 / len(sides)
    for i, side in enumerate(sides):
        offset = (i - (len(sides) - 1) / 2) * width
        left.bar([j + offset for j in range(len(by_side))], [row[f"{side}, s"] for row in by_side], width, label=side)
    left.set(ylabel="seconds an epoch", yscale="log", title="Epoch by side, without dropout")
    left.set_xticks(range(len(by_side)), [row["model"] for row in by_side])

    ours = [row for row in splits if row["by"] == "ours"]
    bottom = [0.0] * len(ours)
    for phase, color in COLORS.items():
        heights = [row["epoch, s"] * row[f"{phase}, %"] / 100 for row in ours]
        right.bar(range(len(ours)), heights, 0.8, bottom, label=phase, color=color)
        bottom = [low + height for low, height in zip(bottom, heights, strict=True)]
    right.set(ylabel="seconds an epoch", title="Our epochs over CSR, by phase")
    right.set_xticks(range(len(ours)), [f"{row['model']}, {row['dropout']}" for row in ours], rotation=90)
    right.set_xlabel("model, dropout")
    left.legend(loc="upper center", bbox_to_anchor=(0.5, -0.08), ncols=5, frameon=False, columnspacing=1)
    right.legend(frameon=False)
    for axes in (left, right):
        axes.grid(alpha=0.3, axis="y")
        axes.spines[["top", "right"]].set_visible(False)
    return figure


def main() -> None:
    args = parse_args()
    torch.set_num_threads(args.threads)
    machine = {"date": today(), "load": f"{os.getloadavg()[0]:.2f}", "torch_sparse": _version("torch_sparse"), **host()}
    setting = TINY if args.quick else FULL_SIZE
    bench = Bench(setting, None if args.pygas is None else load_pygas(args.pygas))

    by_side, beside, splits = [], [], []
    for name in MODELS:
        for dropout in (0.5, 0.0):
            others = () if dropout else (*FORMATS[1:], PLAIN, *bench.sampling, CLUSTER, FULL)
            laps = bench.measure(name, dropout, (*bench.beside, *others))
            if not dropout:
                by_side.append({"model": name, **{f"{side}, s": _total(lap) for side, lap in laps.items()}})
            if bench.pygas is not None:
                beside.append(beside_row(name, dropout, laps))
            splits += [split_row(side, name, dropout, laps[side], bench.exchanged(name)) for side in bench.beside]

    save_picture(draw(by_side, splits), args.out, "step")
    num_edges = bench.graphs.unweighted.num_edges
    note = (
        f"{setting.num_nodes:,} nodes, {num_edges:,} directed edges (self-loops among them), {setting.channels} features and "
        f"hidden channels, {setting.num_layers} layers, {setting.num_classes} classes; {setting.num_parts} parts by METIS, "
        f"{setting.parts_a_batch} at random in a batch, S / B = {bench.halo / setting.num_nodes:.2f}; Adam. Medians of up to "
        f"{MOST_ROUNDS} epochs after a step that does not count, all sides in turn. {PLAIN}: the same layers over an edge_index "
        f"on all rows of a batch, without histories. {SAMPLING}: as many nodes in a batch, ten sampled "
        f"neighbours a node and layer. {CLUSTER}: the edges inside of a batch only. {FULL}: one step an epoch, over CSR."
    )
    tables = [table("Epoch by side, without dropout", by_side, note)]
    if beside:
        tables.append(
            table("Ours over CSR beside PyGAS", beside, "PyGAS lacks SAGE and GIN: our layers on its histories.")
        )
    note = (
        "Arithmetic: forward, backward and optimiser, dropout among it. Loader: what the model waits for. Push and pull: with "
        "the check for overflow and the copy that joins rows of batch and halo."
    )
    tables.append(table("Phases of an epoch", splits, note))
    save_section(args.out, "Results on a CPU", "step", __doc__, machine, args.quick, tables)


def _version(package: str) -> str:
    return str(getattr(sys.modules.get(package), "__version__", "none"))


if __name__ == "__main__":
    main()
