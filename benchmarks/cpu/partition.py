"""What does a partition cost in time and memory, and how many edges and halo nodes does it leave between 40 parts?

METIS, KaMinPar, the streaming backend and random parts on real graphs (from the folder that TORCH_GAS_DATA names) and on
community graphs of 1, 10 and 100 million directed edges.
"""

from __future__ import annotations

import argparse
import json
import multiprocessing
import os
import shutil
import subprocess
import sys
import tempfile
import time
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

import kaminpar  # noqa: F401  (imported before the memory is looked at)
import numpy as np
import pymetis  # noqa: F401  (likewise)
import torch
from matplotlib import pyplot as plt
from torch import Tensor
from torch_geometric.datasets import Amazon, CitationFull, Coauthor, Flickr, HeterophilousGraphDataset, Planetoid

sys.path.insert(0, str(Path(__file__).parents[1]))

from shared import RESULTS, host, save_picture, save_section, table, today

from torch_gas import metis
from torch_gas.datasets import synthetic
from torch_gas.graph.edges import edge_pieces
from torch_gas.partition import Partition
from torch_gas.partition.memory import held_memory, peak_memory

NUM_PARTS = 40
AVG_DEGREE = 21.0
ALL = os.cpu_count() or 1
# What to call, and the number of threads.
PARTITIONERS = {
    "METIS": ("metis", 1),
    "KaMinPar": ("kaminpar", 1),
    f"KaMinPar, {ALL} threads": ("kaminpar", ALL),
    "stream": ("stream", 1),
    "random": ("random", 1),
}
# Folder below TORCH_GAS_DATA, and what reads a copy of it.
REAL = {
    "Cora": ("planetoid", lambda root: Planetoid(root, "Cora")),
    "DBLP": ("citation_full", lambda root: CitationFull(root, "DBLP")),
    "WordNet": ("wordnet", Flickr),
    "Coauthor-CS": ("coauthor", lambda root: Coauthor(root, "CS")),
    "Amazon-Computers": ("amazon", lambda root: Amazon(root, "Computers")),
    "Tolokers": ("heterophilous", lambda root: HeterophilousGraphDataset(root, "Tolokers")),
    "wing mesh": ("plain/wing.npz", None),
}
EDGES = {"community 1M": 1_000_000, "community 10M": 10_000_000, "community 100M": 100_000_000}
QUICK_EDGES = {"community": 4_000}


def parse_args() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    out = RESULTS / "cpu"
    parser.add_argument("--out", type=Path, default=out, help="folder of the results (default: benchmarks/results/cpu)")
    parser.add_argument("--quick", action="store_true", help="tiny graphs, whose figures say nothing")
    parser.add_argument("--most-edges", type=float, default=1e8, help="leave larger graphs out (default: 1e8)")
    parser.add_argument("--graph", help=argparse.SUPPRESS)  # a process of its own for each graph
    return parser.parse_args()


def load(name: str) -> tuple[Tensor, int]:
    """The edges [2, E] of a graph in both directions, and N."""
    if name not in REAL:
        num_edges = {**EDGES, **QUICK_EDGES}[name]
        data = synthetic(int(num_edges / AVG_DEGREE), num_features=1, avg_degree=AVG_DEGREE)
        return data.edge_index, data.num_nodes
    folder, read = REAL[name]
    source = Path(os.environ["TORCH_GAS_DATA"], folder)
    if read is None:
        with np.load(source) as file:
            one_way = torch.from_numpy(file["edge_index"].astype(np.int64))
            return torch.cat([one_way, one_way.flip(0)], dim=1), int(file["num_nodes"])
    with tempfile.TemporaryDirectory() as copy:  # PyG writes beside what it reads
        shutil.copytree(source, copy, dirs_exist_ok=True)
        data = read(copy)[0]
    return data.edge_index, data.num_nodes


def save(name: str, path: Path) -> None:
    edge_index, num_nodes = load(name)
    np.savez(path, edge_index=edge_index.numpy(), num_nodes=num_nodes)


def measure(sender: Connection, edge_index: Tensor, num_nodes: int, backend: str, threads: int) -> None:
    """Sends a row of the table, without the names; runs in a process of its own, which is born with the graph."""
    torch.set_num_threads(threads)
    held, start = held_memory(), time.perf_counter()
    seed = 0 if threads == 1 else None
    partition = metis(edge_index, NUM_PARTS, backend=backend, num_nodes=num_nodes, seed=seed, log=False)
    seconds, memory = time.perf_counter() - start, peak_memory() - held
    cut, halo = quality(edge_index, partition)
    sizes = partition.ptr.diff()
    sender.send(
        {
            "seconds": seconds,
            "edges cut, %": 100 * cut,
            "S / B": halo,
            "largest / average part": float(sizes.max() / sizes.double().mean()),
            "memory, MiB": memory / 2**20,
            "bytes an edge": memory / edge_index.size(1),
        }
    )


def quality(edge_index: Tensor, partition: Partition) -> tuple[float, float]:
    """The share of edges between parts, and nodes of all halos over all nodes, if each part is a batch."""
    perm, ptr = partition
    num_nodes, num_edges = perm.numel(), edge_index.size(1)
    part = torch.empty_like(perm)
    part[perm] = torch.repeat_interleave(ptr.diff())
    pairs = []  # (part, node of its halo) for each edge between parts
    for _, src, dst in edge_pieces(edge_index):
        between = part[src] != part[dst]
        pairs.append(part[dst[between]] * num_nodes + src[between])
    pair = torch.cat(pairs)
    return pair.numel() / num_edges, pair.unique().numel() / num_nodes


def measure_graph(name: str) -> list[dict[str, Any]]:
    """Rows of all partitioners. Their processes are forked, so that their memory begins with the graph alone."""
    torch.set_num_threads(1)  # so that no thread is lost in a fork
    fork = multiprocessing.get_context("fork")
    with tempfile.TemporaryDirectory() as folder:
        # Made elsewhere: memory that making it had taken and freed would be used again, and not be seen.
        path = Path(folder, "graph.npz")
        maker = fork.Process(target=save, args=(name, path))
        maker.start()
        maker.join()
        with np.load(path) as file:
            edge_index, num_nodes = torch.from_numpy(file["edge_index"]), int(file["num_nodes"])
    rows = []
    for by, (backend, threads) in PARTITIONERS.items():
        receiver, sender = fork.Pipe(duplex=False)
        process = fork.Process(target=measure, args=(sender, edge_index, num_nodes, backend, threads))
        process.start()
        sender.close()
        try:
            row = receiver.recv()
        except EOFError:  # out of memory, most of all
            row = None
        process.join()
        about = {"graph": name, "nodes": num_nodes, "edges": edge_index.size(1), "by": by}
        rows.append(about | (row or {"seconds": f"failed, exit status {process.exitcode}"}))
    return rows


def graphs(args: argparse.Namespace) -> list[str]:
    """Names of those to measure; says which are left out."""
    sizes = QUICK_EDGES if args.quick else EDGES
    names = [name for name, num_edges in sizes.items() if num_edges <= args.most_edges]
    root = os.environ.get("TORCH_GAS_DATA")
    if root is None:
        print("TORCH_GAS_DATA names no folder: no real graphs", flush=True)
        return names
    real = ["Cora"] if args.quick else list(REAL)
    missing = [name for name in real if not Path(root, REAL[name][0]).exists()]
    if missing:
        print(f"not in {root}: {', '.join(missing)}", flush=True)
    return [name for name in real if name not in missing] + names


def draw(rows: list[dict[str, Any]]) -> Any:
    """Halos beside those of random parts; time and memory over the edges of community graphs."""
    figure, (left, middle, right) = plt.subplots(1, 3, figsize=(16, 4.8), layout="constrained", width_ratios=(3, 2, 2))
    names = list(dict.fromkeys(row["graph"] for row in rows))
    shown = [by for by in PARTITIONERS if by != "random" and PARTITIONERS[by][1] == 1]
    value = {(row["graph"], row["by"]): row for row in rows}
    width = 0.8 / len(shown)
    for i, by in enumerate(shown):
        heights = [_ratio(value[name, by], value[name, "random"], "S / B") for name in names]
        left.bar([j + (i - (len(shown) - 1) / 2) * width for j in range(len(names))], heights, width, label=by)
    left.set_xticks(range(len(names)), names, rotation=30, ha="right")
    left.set(ylabel="S / B over that of random parts", title=f"Halos of {NUM_PARTS} parts")
    for by in PARTITIONERS:
        points = [row for row in rows if row["by"] == by and row["graph"] not in REAL and "S / B" in row]
        for axes, column in ((middle, "seconds"), (right, "bytes an edge")):
            axes.plot([row["edges"] for row in points], [row[column] for row in points], "o-", label=by)
    middle.set(xscale="log", yscale="log", xlabel="directed edges", ylabel="seconds", title="Time, community graphs")
    right.set(
        xscale="log", yscale="log", xlabel="directed edges", ylabel="bytes an edge", title="Memory beside the graph"
    )
    left.legend(frameon=False)
    right.legend(frameon=False)
    for axes in (left, middle, right):
        axes.grid(alpha=0.3, axis="y")
        axes.spines[["top", "right"]].set_visible(False)
    return figure


def _ratio(row: dict[str, Any], other: dict[str, Any], column: str) -> float:
    return row[column] / other[column] if column in row and column in other else 0.0


def main() -> None:
    args = parse_args()
    if args.graph is not None:
        print(json.dumps(measure_graph(args.graph)))
        return
    machine = {"date": today(), "load": f"{os.getloadavg()[0]:.2f}", **host()}
    rows: list[dict[str, Any]] = []
    for name in graphs(args):
        command = [sys.executable, __file__, "--graph", name]
        done = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True)
        rows += json.loads(done.stdout.splitlines()[-1])
        print(name, {row["by"]: row["seconds"] for row in rows if row["graph"] == name}, flush=True)
    if not rows:
        raise SystemExit("no graph to measure: raise --most-edges or set TORCH_GAS_DATA")
    save_picture(draw(rows), args.out, "partition")
    columns = list(dict.fromkeys(column for row in rows for column in row))
    rows = [{column: row.get(column, "-") for column in columns} for row in rows]
    note = (
        f"{NUM_PARTS} parts; S / B for batches of one part each. Community graphs: torch_gas.datasets.synthetic of average "
        f"degree {AVG_DEGREE:.0f}, given as an edge_index sorted by destination. Memory: what the process held at its peak over "
        "what it held before, the graph included (16 bytes an edge). One thread where no other number is given."
    )
    save_section(
        args.out, "Results on a CPU", "partition", __doc__, machine, args.quick, [table("Partitioners", rows, note)]
    )


if __name__ == "__main__":
    main()
