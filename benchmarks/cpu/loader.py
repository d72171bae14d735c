"""How much of an epoch does a user wait for batches?

Batches a second of the loader alone, over each adjacency format, and the share of training epochs that the model waits for it:
with batches made when they are asked for, by a thread ahead, by worker processes, and kept from the first epoch.
"""

from __future__ import annotations

import statistics
import time
import warnings
from collections.abc import Iterable
from itertools import product
from typing import Any

import torch
from bench import arguments, machine, parse, save
from matplotlib import pyplot as plt
from shared import save_picture, table
from sides import FORMATS, Graphs, Setting, Side, Sides, in_format, make_graphs

from torch_gas import SubgraphLoader

FULL_SIZE = Setting(50_000, 21.5, 128, num_parts=40, parts_a_batch=10)
TINY = Setting(600, 8.0, 16, num_parts=8, parts_a_batch=4)
MODELS = {"GCN": 7, "GAT": 3}  # with the epochs of each way
WAYS: dict[str, dict[str, Any]] = {
    "when asked for": {"prefetch": 0, "shuffle": True, "seed": 0},
    "a thread ahead": {"prefetch": 2, "shuffle": True, "seed": 0},
    "two processes": {"num_workers": 2, "persistent_workers": True, "shuffle": True, "seed": 0},
    "kept": {"shuffle": False},
}


def loaders(graphs: Graphs, setting: Setting, name: str, weighted: bool) -> dict[str, SubgraphLoader]:
    """A loader of each way, which has made the batches of one epoch."""
    data = in_format(graphs.weighted if weighted else graphs.unweighted, name)
    made = {way: SubgraphLoader(data, graphs.ptr, setting.parts_a_batch, **options) for way, options in WAYS.items()}
    for loader in made.values():
        _drain(loader)
    return made


def alone(graphs: Graphs, setting: Setting, rounds: int) -> list[dict[str, Any]]:
    """Epochs of the loader with nothing beside it, all ways in turn."""
    rows = []
    for name in FORMATS:
        made = loaders(graphs, setting, name, weighted=True)
        seconds: dict[str, list[float]] = {way: [] for way in made}
        for _ in range(rounds):
            for way, loader in made.items():
                seconds[way].append(_drain(loader))
        for way, each in seconds.items():
            epoch = statistics.median(each)
            rows.append(
                {
                    "format": name,
                    "batches are made": way,
                    "batches/s": len(made[way]) / epoch,
                    "million edges/s": graphs.weighted.num_edges / 1e6 / epoch,
                    "ns an edge": 1e9 * epoch / graphs.weighted.num_edges,
                }
            )
    return rows


def _drain(batches: Iterable[Any]) -> float:
    start = time.perf_counter()
    for _ in batches:
        pass
    return time.perf_counter() - start


def in_training(graphs: Graphs, setting: Setting, quick: bool) -> list[dict[str, Any]]:
    """Epochs of models over CSR and what of them is spent waiting for the loader, all ways in turn.

    Torch has all threads, or one less, which leaves a core to the thread that makes batches.
    """
    rows = []
    most = torch.get_num_threads()
    for threads, (name, rounds) in product(sorted({most, max(most - 1, 1)}, reverse=True), MODELS.items()):
        torch.set_num_threads(threads)
        sides = Sides(setting, graphs, name, 0.0, None)
        running: dict[str, Side] = {}
        for way, loader in loaders(graphs, setting, "csr", sides.data is graphs.weighted).items():
            running[way] = sides.make("csr")
            running[way].batches = loader
            running[way].epoch(steps=1)
        laps: dict[str, list[dict[str, float]]] = {way: [] for way in running}
        for _ in range(1 if quick else rounds):
            for way, side in running.items():
                laps[way].append(side.epoch())
        for way, each in laps.items():
            epoch = statistics.median(sum(lap.values()) for lap in each)
            wait = statistics.median(lap["loader"] for lap in each)
            share = statistics.median(100 * lap["loader"] / sum(lap.values()) for lap in each)
            row = {"model": name, "threads": threads, "batches are made": way, "epoch, s": epoch}
            rows.append(row | {"waiting, ms": 1e3 * wait, "waiting, %": share})
    torch.set_num_threads(most)
    return rows


def draw(speed: list[dict[str, Any]], waits: list[dict[str, Any]]) -> Any:
    """Edges a second by format, and the share of an epoch that is spent waiting."""
    figure, (left, right) = plt.subplots(1, 2, figsize=(13, 4.5), layout="constrained", width_ratios=(1, 1))
    _bars(left, [way for way in WAYS if way != "kept"], speed, "format", "million edges/s")
    left.set(ylabel="million edges a second", title="The loader alone")
    labelled = [{**row, "model": f"{row['model']},\nthreads: {row['threads']}"} for row in waits]
    _bars(right, list(WAYS), labelled, "model", "waiting, %")
    right.set(ylabel="% of an epoch", title="Waiting for batches while training, CSR")
    right.legend(title="batches are made", frameon=False)
    for axes in (left, right):
        axes.grid(alpha=0.3, axis="y")
        axes.set_axisbelow(True)
        axes.spines[["top", "right"]].set_visible(False)
    return figure


def _bars(axes: Any, ways: list[str], rows: list[dict[str, Any]], group: str, value: str) -> None:
    groups, width = list(dict.fromkeys(row[group] for row in rows)), 0.8 / len(ways)
    for i, way in enumerate(ways):
        heights = [row[value] for row in rows if row["batches are made"] == way]
        places = [j + (i - (len(ways) - 1) / 2) * width for j in range(len(groups))]
        bars = axes.bar(places, heights, width, label=way, color=f"C{list(WAYS).index(way)}")
        axes.bar_label(bars, fmt="%.3g", fontsize=8, padding=1)
    axes.set_xticks(range(len(groups)), groups)


def main() -> None:
    args = parse(arguments(__doc__))
    record = machine()
    setting, rounds = (TINY, 1) if args.quick else (FULL_SIZE, 15)
    graphs = make_graphs(setting)
    speed, waits = alone(graphs, setting, rounds), in_training(graphs, setting, args.quick)
    save_picture(draw(speed, waits), args.out, "loader")
    of_loader = (
        f"{setting.num_nodes:,} nodes, {graphs.weighted.num_edges:,} weighted edges, {setting.channels} features; "
        f"{setting.parts_a_batch} of {setting.num_parts} METIS parts in a batch. Median epoch, all ways in turn, after one that "
        "does not count. A thread ahead cannot help a loader alone, which has nothing to run beside. Kept: batches "
        "of the first epoch come again, as they do without shuffling while they fit cache_size."
    )
    of_training = (
        "Over CSR, without dropout. Threads: torch's. The first batch of an epoch has nothing to hide behind: with four "
        "batches an epoch, a quarter of the loader's time remains."
    )
    tables = [
        table("The loader alone", speed, of_loader),
        table("Waiting for batches while training", waits, of_training),
    ]
    save(args, "loader", __doc__, record, tables)


if __name__ == "__main__":
    # PyTorch warns where the parent of worker processes has started threads before.
    warnings.filterwarnings("ignore", "This process .* is multi-threaded", DeprecationWarning)
    main()
