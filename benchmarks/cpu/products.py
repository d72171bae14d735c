"""Does a graph of ogbn-products' size train on a machine that a full batch does not fit?

A GCN of three layers and 256 channels with histories on a community graph of 2.4 million nodes and 124 million edges: memory of
the whole process from its start, partitioning included, and an epoch's time beside that of a small graph. Then full batches.
"""

from __future__ import annotations

import resource
import statistics
import time
from typing import Any

import torch
from bench import Peak, apart, arguments, machine, parse, peak_memory, save
from large import Size, community_graph, cut, full_batch, on_batches, pyg_full_batch, random_graph
from matplotlib import pyplot as plt
from shared import save_picture, table
from sides import Side

from torch_gas import SubgraphLoader
from torch_gas.partition.backends import BACKENDS

PRODUCTS = Size(2_400_000, 64.5, 100, 256, 47, nodes_a_part=2400, parts_a_batch=25, dropout=0.5)
TINY = Size(4000, 12.0, 16, 16, 4, nodes_a_part=100, parts_a_batch=4, dropout=0.5)
LIMIT = 12
DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16}
GIB = 2**30
# What makes a step, the share of the graph that its memory is measured on, and the limit in GiB under which it is tried.
FULL_BATCHES = {
    "our layers over CSR": (full_batch, 1 / 20, LIMIT),
    "PyG's GCN over an edge_index": (pyg_full_batch, 1 / 240, 24),
}


def limit_memory(gigabytes: float) -> None:
    """Makes allocations of this process fail beyond that size."""
    _, most = resource.getrlimit(resource.RLIMIT_DATA)
    resource.setrlimit(resource.RLIMIT_DATA, (int(gigabytes * GIB), most))


def seconds(side: Side) -> float:
    """Those of an epoch."""
    return sum(side.epoch().values())


def train(small: Size, size: Size, backend: str, dtype: str, limit: float | None) -> tuple[list[Any], list[Any]]:
    """Epochs on both graphs, the small one's before and after the other's; and the process' memory after each stage."""
    if limit is not None:
        limit_memory(limit)
    start = time.perf_counter()
    data, ptr, _ = cut(community_graph(small), small, backend)
    beside = on_batches(data, ptr, small, DTYPES[dtype])
    beside.epoch()
    epochs = {small: [seconds(beside) for _ in range(3)]}
    halos = {small: _halo(beside.batches)}
    edges = {small: data.adj_t.values().numel()}
    stages: list[dict[str, Any]] = []

    def stage(name: str) -> None:
        nonlocal start
        stages.append({"until": name, "s": time.perf_counter() - start, "peak so far, GiB": peak_memory() / GIB})
        print(stages[-1], flush=True)
        start = time.perf_counter()

    stage("a small graph")
    data = community_graph(size)
    edges[size] = data.adj_t.values().numel()
    stage("the graph is made and normalised")
    data, ptr, partitioning = cut(data, size, backend)
    stage(f"it is cut ({partitioning:.0f} s) and permuted")
    side = on_batches(data, ptr, size, DTYPES[dtype])
    side.epoch(steps=2)
    stage("the loader and two steps")
    epochs[size] = [seconds(side)]
    stage("an epoch")
    halos[size] = _halo(side.batches)
    epochs[small] += [seconds(beside) for _ in range(3)]
    rows = []
    for each, times in epochs.items():
        epoch = statistics.median(times)
        row = {"nodes": each.num_nodes, "edges": edges[each], "S / B": halos[each] / each.num_nodes, "epoch, s": epoch}
        rows.append(row | {"ns an edge": 1e9 * epoch / edges[each]})
    for row in rows:
        row["times the small graph's"] = row["ns an edge"] / rows[0]["ns an edge"]
    return rows, stages


def _halo(batches: Any) -> int:
    assert isinstance(batches, SubgraphLoader)
    return sum(batch.halo_size for batch in batches)


def full_batch_memory(name: str, size: Size, num_edges: int) -> int:
    """Bytes that a graph and a step on all of it take."""
    make, _, _ = FULL_BATCHES[name]
    with Peak() as peak:
        make(random_graph(size, num_edges), size).epoch()
    return peak.bytes


def full_batch_under(name: str, size: Size, num_edges: int) -> str:
    """Whether the step succeeds while memory is limited."""
    make, _, limit = FULL_BATCHES[name]
    limit_memory(limit)
    try:
        make(random_graph(size, num_edges), size).epoch()
    except RuntimeError as error:  # as torch raises it where memory ends
        if "allocate memory" not in str(error):
            raise
        return "out of memory"
    return "trains"


def full_batches(size: Size, num_edges: int, quick: bool) -> list[dict[str, Any]]:
    """What full batches need, by a straight line through two smaller graphs, and whether they run within a limit."""
    rows = []
    for name, (_, share, limit) in FULL_BATCHES.items():
        needs = []
        for part in (share / 2, share):
            call = (name, size._replace(num_nodes=int(size.num_nodes * part)), int(num_edges * part))
            needs.append(full_batch_memory(*call) if quick else apart(full_batch_memory, *call))
        whole = needs[1] + max(needs[1] - needs[0], 0) / (share / 2) * (1 - share)
        outcome = "not tried" if quick else apart(full_batch_under, name, size, num_edges)
        rows.append({"full batch": name, "needs, GiB": whole / GIB, "limit, GiB": limit, "under the limit": outcome})
        print(rows[-1], flush=True)
    return rows


def draw(stages: list[dict[str, Any]], batches: list[dict[str, Any]], limit: float) -> Any:
    """The most memory of the process after each stage, beside what full batches need."""
    figure, axes = plt.subplots(figsize=(10, 4), layout="constrained")
    names = [row["until"] for row in stages] + [f"full batch: {row['full batch']}" for row in batches]
    heights = [row["peak so far, GiB"] for row in stages] + [row["needs, GiB"] for row in batches]
    axes.barh(names, heights, color=["tab:blue"] * len(stages) + ["tab:gray"] * len(batches))
    axes.bar_label(axes.containers[0], fmt="%.3g", padding=2)
    axes.axvline(limit, color="black", linestyle=":", linewidth=1)
    axes.set(
        xscale="log", xlabel="GiB, from the start of the process", title="Memory with histories, and of a full batch"
    )
    axes.xaxis.set_major_formatter("{x:g}")
    axes.margins(x=0.12)
    axes.invert_yaxis()
    axes.spines[["top", "right"]].set_visible(False)
    return figure


def main() -> None:
    parser = arguments(__doc__)
    parser.add_argument("--backend", choices=BACKENDS, default="kaminpar", help="the partitioner (default: kaminpar)")
    parser.add_argument("--histories", choices=DTYPES, default="float32", help="type of histories (default: float32)")
    parser.add_argument("--share", type=float, default=1.0, help="a share of the nodes and edges, to try it out")
    args = parse(parser)
    record = machine()
    size = TINY if args.quick else PRODUCTS._replace(num_nodes=int(args.share * PRODUCTS.num_nodes))
    small = (
        size._replace(num_nodes=1000)
        if args.quick
        else size._replace(num_nodes=50_000, nodes_a_part=1250, parts_a_batch=10)
    )
    call = (small, size, args.backend, args.histories)
    rows, stages = train(*call, None) if args.quick else apart(train, *call, LIMIT)
    print(*rows, sep="\n", flush=True)
    batches = full_batches(size, rows[1]["edges"], args.quick)
    save_picture(draw(stages, batches, LIMIT), args.out, "products")
    sizes = (
        f"{size.features} features, {size.channels} channels, {size.classes} classes, {size.num_layers} layers, dropout "
        f"{size.dropout}; parts of about {size.nodes_a_part:,} nodes ({small.nodes_a_part:,} of the small graph) by "
        f"{args.backend}, {size.parts_a_batch} ({small.parts_a_batch}) in a batch; histories in {args.histories}. "
    )
    memory = (
        "Physical memory of the process at its highest since its start, the interpreter and its libraries among it, while "
        f"allocations beyond {LIMIT} GiB fail (RLIMIT_DATA)."
    )
    full = (
        "Needs: graph and one step, by a straight line through two smaller graphs of the same degree. Under the limit: a step "
        "on the whole graph, where allocations beyond the limit fail."
    )
    tables = [
        table("Epochs", rows, sizes + "The small graph's epoch: median of six, half of them after the other's."),
        table("Memory by stage", stages, memory),
        table("Full batches", batches, full),
    ]
    save(args, "products", __doc__, record, tables)


if __name__ == "__main__":
    main()
