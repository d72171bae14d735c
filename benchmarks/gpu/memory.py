"""How much device memory does a training step take, as the graph grows and as layers are added?

First the graph grows sixteen-fold while the batch stays the same: full batch grows with it, and so do histories on the GPU;
with histories in host memory the line should be flat. Then the shape of the paper's Table 3: two to four layers on graphs as
large as two of its data sets, full batch, batches without their halo (as Cluster-GCN has them), and batches with histories,
beside the share of the edges into a batch's nodes that each of them uses. Memory is the peak of torch's allocator over three
steps: parameters, optimiser, the batch and the next one, activations, and the buffers of transfers.
"""

from __future__ import annotations

import copy
from collections.abc import Iterator
from typing import Any

import torch
from common import NOT_ON_CPU, parse_args, peak_memory, save, save_picture, table
from matplotlib import pyplot as plt
from matplotlib.patches import Patch
from predictions import full_batch_bytes, growth
from torch import Tensor
from torch_geometric.data import Data
from workload import block_graph, make_model, train_step, without_histories

from torch_gas import SubData, SubgraphLoader

MIB, STEPS = 2**20, 3
FULL, ALONE, HOST, GPU = "full batch", "halo dropped", "histories in host memory", "histories on the GPU"
COLORS = {FULL: "black", ALONE: "tab:gray", HOST: "tab:blue", GPU: "tab:green"}
# Nodes and directed edges of the data sets, features, classes, and GB for 2, 3 and 4 layers as the paper gives them.
GRAPHS = {
    "ogbn-arxiv": (
        169_343,
        2_332_486,
        128,
        40,
        {FULL: (1.44, 2.11, 2.77), ALONE: (0.15, 0.22, 0.29), HOST: (0.22, 0.34, 0.46)},
    ),
    "Yelp": (
        716_847,
        13_954_819,
        300,
        100,
        {FULL: (6.64, 9.44, 12.24), ALONE: (0.17, 0.23, 0.30), HOST: (0.51, 0.79, 1.07)},
    ),
}


class Bench:
    """Steps of a GCN on one graph, in each of the ways to train."""

    def __init__(self, data: Data, ptr: Tensor, hidden: int, device: torch.device) -> None:
        self.data, self.hidden, self.device = data, hidden, device
        self.num_classes = int(data.y.max()) + 1
        self.loader = SubgraphLoader(data, ptr, device=device)
        batches = [batch for _, batch in zip(range(2), SubgraphLoader(data, ptr, prefetch=0), strict=False)]
        self.without_halo = [without_halo(batch) for batch in batches]
        rowptr = data.adj_t.crow_indices()
        all_edges = int(rowptr[ptr[1]] - rowptr[ptr[0]])
        used = {FULL: all_edges, ALONE: self.without_halo[0].num_edges, HOST: batches[0].data.num_edges}
        # Of all edges into the nodes of the first batch.
        self.edges_used = {way: num_edges / all_edges for way, num_edges in used.items()}

    def peak(self, way: str, num_layers: int) -> tuple[float | str, int]:
        """MiB that the steps take in the given way, and bytes of it in the buffers of transfers."""
        buffer_bytes = 0

        def run() -> None:
            nonlocal buffer_bytes
            options = {FULL: {"tier": "host"}, ALONE: {"tier": "host"}, HOST: {}, GPU: {"device": self.device}}[way]
            # To a model without histories, a batch alone is a graph.
            data = self.without_halo[0] if way == ALONE else self.data
            model = make_model("GCN", data, self.num_classes, self.hidden, num_layers, self.device, **options)
            batches: Any = self.loader
            if way == FULL:
                model, batches = without_histories(model), [copy.copy(data).to(self.device)] * STEPS
            elif way == ALONE:
                there = [copy.copy(batch).to(self.device) for batch in self.without_halo]  # this one and the next
                model, batches = without_histories(model), there[:1] * STEPS
            optimizer = torch.optim.Adam(model.parameters())
            for _, batch in zip(range(STEPS), batches, strict=False):
                train_step(model, optimizer, batch)
            buffer_bytes = model.buffer_bytes

        peak = peak_memory(run, self.device)
        return (peak if isinstance(peak, str) else peak / MIB), buffer_bytes


def without_halo(batch: SubData) -> Data:
    """The batch's own nodes and the edges between them."""
    size, adj = batch.batch_size, batch.data.adj_t
    keep = adj.col_indices() < size
    rowptr = torch.cat([keep.new_zeros(1, dtype=torch.int64), keep.cumsum(0)])[adj.crow_indices()]
    parts = (rowptr, adj.col_indices()[keep], adj.values()[keep])
    inside = torch.sparse_csr_tensor(*parts, (size, size), check_invariants=False)
    return Data(x=batch.data.x[:size].clone(), y=batch.data.y[:size].clone(), adj_t=inside)


def growing(device: torch.device, quick: bool) -> Iterator[dict[str, Any]]:
    """Peaks as N grows sixteen-fold and batches keep their size, and by what factor they are expected to grow."""
    part_size, hidden, features = (32, 16, 8) if quick else (16_384, 256, 128)
    least = 4 * part_size
    for num_parts in (4, 8, 16, 32, 64):
        num_nodes = num_parts * part_size
        data, ptr = block_graph(num_nodes, 20 * num_nodes, num_parts, 1.0, features, 32)
        bench = Bench(data, ptr, hidden, device)
        row: dict[str, Any] = {"N": num_nodes}
        for way in (FULL, GPU, HOST):
            row[f"{way}, MiB"], buffer_bytes = bench.peak(way, num_layers=3)
        row[f"{FULL}, predicted MiB"] = full_batch_bytes(num_nodes, data.num_edges, features, hidden, 3) / MIB
        row[f"{HOST}, predicted growth"] = growth(HOST, num_nodes, least)
        row["of it buffers of transfers, MiB"] = NOT_ON_CPU if device.type == "cpu" else buffer_bytes / MIB
        row["histories, MiB"] = 2 * num_nodes * hidden * 4 / MIB
        yield row


def layers(device: torch.device, quick: bool) -> Iterator[dict[str, Any]]:
    """Peaks and used edges for two to four layers."""
    for name, (num_nodes, num_edges, features, classes, paper) in GRAPHS.items():
        shrink = 1000 if quick else 1
        num_nodes, num_edges, hidden = num_nodes // shrink, num_edges // shrink, 16 if quick else 256
        data, ptr = block_graph(num_nodes, num_edges, 16, 1.5, features, classes)
        bench = Bench(data, ptr, hidden, device)
        for num_layers in (2, 3, 4):
            for way in (FULL, ALONE, HOST):
                yield {
                    "as large as": name,
                    "N": num_nodes,
                    "E": num_edges,
                    "layers": num_layers,
                    "method": way,
                    "MiB": bench.peak(way, num_layers)[0],
                    "edges used": bench.edges_used[way],
                    "the paper's GB": paper[way][num_layers - 2],
                }


def draw(grown: list[dict[str, Any]], layered: list[dict[str, Any]]) -> Any:
    """Memory over N, and by layers."""
    figure, (left, *panels) = plt.subplots(1, 1 + len(GRAPHS), figsize=(14, 4.8), layout="constrained")
    for way in (FULL, GPU, HOST):
        shown = [(row["N"], row[f"{way}, MiB"]) for row in grown if not isinstance(row[f"{way}, MiB"], str)]
        if shown:
            left.plot(*zip(*shown, strict=True), marker="o", color=COLORS[way])
    left.set_xscale("log", base=2)
    left.set_xticks([row["N"] for row in grown], [f"{row['N'] / 1000:,.0f}k" for row in grown])
    left.set(title="The graph grows, the batch does not", xlabel="nodes of the graph, N", yscale="log")
    for axes, name in zip(panels, GRAPHS, strict=True):
        rows = [row for row in layered if row["as large as"] == name]
        for shift, way in zip((-0.27, 0, 0.27), (FULL, ALONE, HOST), strict=True):
            for row in (row for row in rows if row["method"] == way):
                place, peak = row["layers"] + shift, row["MiB"]
                if isinstance(peak, str):
                    axes.text(place, 0, f" {peak}", rotation=90, ha="center", va="bottom")
                else:
                    axes.bar(place, peak, width=0.25, color=COLORS[way])
        kept = next(row["edges used"] for row in rows if row["method"] == ALONE)
        axes.set_title(f"As large as {name} (halo dropped: {100 * kept:.0f} % of edges)", fontsize=10)
        axes.set(xlabel="layers", xticks=(2, 3, 4), xlim=(1.5, 4.5))
    for axes in (left, *panels):
        axes.set(ylabel="peak of a step, MiB")
        axes.grid(axis="y", alpha=0.3)
        axes.set_axisbelow(True)
        axes.spines[["top", "right"]].set_visible(False)
    handles = [Patch(color=color, label=way) for way, color in COLORS.items()]
    figure.legend(handles=handles, loc="outside lower center", ncols=len(handles), frameon=False)
    return figure


def main() -> None:
    args = parse_args(__doc__)
    grown: list[dict[str, Any]] = []
    layered: list[dict[str, Any]] = []
    growth_note = (
        "GCN, 3 layers; batches of a fourth of the smallest graph with as large a halo, 20 edges a node. Histories take N rows "
        "of each hidden layer, wherever they are. Predictions are of predictions.py."
    )
    layers_note = (
        "GCN on random graphs of these sizes, a sixteenth as batch, halo 1.5 times the batch, one width for all layers. The last "
        "column is the paper's (Table 3), on the real graph with its batches, widths and hardware: the shape compares, not the "
        "figures."
    )

    def keep(last: bool = False) -> None:
        tables = [table("The graph grows, the batch does not", grown, growth_note)]
        tables += [table("Memory and edges by layers", layered, layers_note)] if layered else []
        save(args.out, "memory", __doc__, args.device, args.quick, tables, shows=last)

    for rows, measured in ((grown, growing), (layered, layers)):
        for row in measured(args.device, args.quick):
            rows.append(row)
            keep()
    save_picture(draw(grown, layered), args.out, "memory")
    keep(last=True)


if __name__ == "__main__":
    main()
