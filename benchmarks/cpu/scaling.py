"""Do an epoch's time per edge and a batch's memory stay flat as the graph grows?

A GCN with histories on community graphs of 50,000 to 3,200,000 nodes, with as many nodes in a batch on each. Graphs take turns,
each in a process of its own.
"""

from __future__ import annotations

import statistics
from typing import Any

from bench import Peak, apart, arguments, machine, parse, save
from large import Size, community_graph, cut, on_batches
from matplotlib import pyplot as plt
from shared import save_picture, table

from torch_gas import SubgraphLoader
from torch_gas.partition.backends import BACKENDS

SMALLEST = Size(50_000, 22.0, 64, 64, 10, nodes_a_part=1250, parts_a_batch=8)
TINY = Size(2000, 8.0, 16, 16, 4, nodes_a_part=100, parts_a_batch=4)
GROWTH = (1, 4, 16, 64)


def measure(size: Size, backend: str, epochs: int) -> dict[str, Any]:
    """Epochs of training, after one that does not count, and the memory that they take beside graph and histories."""
    data, ptr, seconds = cut(community_graph(size), size, backend)
    side = on_batches(data, ptr, size)
    side.epoch()
    times = []
    with Peak() as peak:
        for _ in range(epochs):
            times.append(sum(side.epoch().values()))
    epoch, num_edges = statistics.median(times), data.adj_t.values().numel()
    loader = SubgraphLoader(data, ptr, size.parts_a_batch, shuffle=True, seed=0)
    adj = data.adj_t
    graph = (data.x, data.y, adj.crow_indices(), adj.col_indices(), adj.values())
    return {
        "nodes": size.num_nodes,
        "edges": num_edges,
        "batches": len(loader),
        "S / B": sum(batch.halo_size for batch in loader) / size.num_nodes,
        "partitioning, s": seconds,
        "epoch, s": epoch,
        "ns an edge": 1e9 * epoch / num_edges,
        "batches' MB": peak.bytes / 1e6,
        "histories' MB": sum(history.table.nbytes for history in side.model.histories) / 1e6,
        "graph's MB": sum(tensor.nbytes for tensor in graph) / 1e6,
    }


def draw(rows: list[dict[str, Any]]) -> Any:
    """Time per edge and memory over the number of nodes."""
    figure, (left, right) = plt.subplots(1, 2, figsize=(11, 4.5), layout="constrained")
    nodes = [row["nodes"] for row in rows]
    left.plot(nodes, [row["ns an edge"] for row in rows], "o-", color="tab:blue")
    left.set(ylabel="ns an edge", title="An epoch's time per edge")
    styles = {"batches": ("batches' MB", "o-"), "histories": ("histories' MB", "s--"), "graph": ("graph's MB", "^:")}
    for label, (name, style) in styles.items():
        color = "tab:blue" if label == "batches" else "tab:gray"
        right.plot(nodes, [row[name] for row in rows], style, color=color, label=label)
    right.set(yscale="log", ylabel="MB", title="Memory")
    right.legend(frameon=False)
    left.set_ylim(0, 1.3 * max(row["ns an edge"] for row in rows))
    for axes in (left, right):
        axes.set(xscale="log", xlabel="nodes")
        axes.set_xticks(nodes, [f"{number:,}" for number in nodes])
        axes.minorticks_off()
        axes.grid(alpha=0.3)
        axes.spines[["top", "right"]].set_visible(False)
    return figure


def main() -> None:
    parser = arguments(__doc__)
    parser.add_argument("--backend", choices=BACKENDS, default="metis", help="the partitioner (default: metis)")
    args = parse(parser)
    record = machine()
    smallest = TINY if args.quick else SMALLEST
    rows = []
    for factor in GROWTH[:2] if args.quick else GROWTH:
        size = smallest._replace(num_nodes=factor * smallest.num_nodes)
        call = (size, args.backend, 1 if args.quick else max(2, 12 // factor))
        rows.append(measure(*call) if args.quick else apart(measure, *call))
        print(rows[-1], flush=True)
    save_picture(draw(rows), args.out, "scaling")
    note = (
        f"{smallest.features} features and {smallest.channels} hidden channels, {smallest.num_layers} layers, Adam; batches of "
        f"{smallest.parts_a_batch} parts of about {smallest.nodes_a_part:,} nodes, by {args.backend}. Median epoch, "
        "after one that does not count. Batches' MB: the most physical memory that training takes beyond what the process "
        "held between two epochs: two batches made ahead, activations, gradients. Histories and graph, with features: as stored."
    )
    save(args, "scaling", __doc__, record, [table("Growing graphs", rows, note)])


if __name__ == "__main__":
    main()
