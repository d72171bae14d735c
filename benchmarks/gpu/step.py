"""What do histories cost in a training step, and is the link between host and GPU the limit?

The same steps with histories in six places: nowhere (zeros for the halo's rows: the same layers on the same shapes, and no
table), on the GPU, in page-locked host memory with transfers that overlap with layers (concurrent) or run between them
(serial), in pageable host memory (staged), and as PyGAS moves them (host_gather.py). The halo grows from a quarter of the
batch to twice as many nodes, nearly, and inter-connectivity with it, while each node keeps its edges inside of its part: the
sweep of the paper's Figure 4. A plain copy measured in the same run tells how long a step's bytes need on the link alone.
step_timeline.png is the paper's Figure 2: what ran on which stream.
"""

from __future__ import annotations

import gc
import statistics
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import torch
from common import NOT_ON_CPU, copy_rates, in_turn, parse_args, save, save_picture, table
from host_gather import HostGather, training_epoch
from matplotlib import pyplot as plt
from predictions import Machine, Step, place_seconds
from timeline import draw_timeline, record_steps
from torch import Tensor
from torch_geometric.data import Data
from workload import MODELS, block_graph, make_model, without_histories

from torch_gas import ScalableGNN, SubData, SubgraphLoader
from torch_gas.graph.formats import all_tensors

NUM_CLASSES, NUM_LAYERS = 32, 4
NONE, PYGAS = "no histories", "PyGAS's way"
OPTIONS: dict[str, dict[str, Any]] = {
    NONE: {},
    "on the GPU": {},
    "concurrent": {"io": "concurrent"},
    "serial": {"io": "serial"},
    "pageable": {"io": "concurrent", "tier": "host"},
    PYGAS: {},
}
COLORS = dict(zip(OPTIONS, ("black", "tab:green", "tab:blue", "tab:red", "tab:orange", "tab:gray"), strict=True))
PARTS_A_BATCH = 4  # at random, so that a push writes several ranges


class Bench:
    """Graphs of one size, and steps of models on them."""

    def __init__(self, device: torch.device, quick: bool) -> None:
        self.device = device
        self.batch_size, self.intra, self.hidden, self.features = (64, 4, 16, 8) if quick else (32_768, 20, 256, 64)
        self.num_batches, self.repeats = (4, 1) if quick else (8, 3)
        self.num_nodes = self.batch_size * self.num_batches

    def graph(self, ratio: float, layout: str = "csr") -> tuple[Data, Tensor]:
        num_edges, num_parts = round(self.num_nodes * self.intra * (1 + ratio)), self.num_batches * PARTS_A_BATCH
        return block_graph(self.num_nodes, num_edges, num_parts, ratio, self.features, NUM_CLASSES, layout)

    def loader(self, ratio: float) -> SubgraphLoader:
        """Batches of the same parts in each epoch, made and pinned once: no figure here is one of the loader's."""
        options = {"shuffle": True, "regroup": False, "seed": 0, "cache_size": 2**34, "device": self.device}
        return SubgraphLoader(*self.graph(ratio), PARTS_A_BATCH, **options)

    def model(self, name: str, data: Data, where: str) -> ScalableGNN:
        options = OPTIONS[where] or {"device": self.device}
        model = make_model(name, data, NUM_CLASSES, self.hidden, NUM_LAYERS, self.device, **options)
        return without_histories(model) if where == NONE else model

    def step(self, name: str, model: ScalableGNN, batches: Sequence[SubData]) -> Step:
        """What a step on one of ``batches`` computes, on average."""
        halo = statistics.mean(batch.halo_size for batch in batches)
        num_edges = statistics.mean(batch.data.num_edges for batch in batches)
        widths = tuple(history.embedding_dim for history in model.histories)
        return Step(name, self.batch_size, round(halo), round(num_edges), self.features, widths, NUM_CLASSES)

    def sweep(self, name: str, loader: SubgraphLoader, rates: dict[str, float]) -> dict[str, Any]:
        """Milliseconds of a step with histories in each place, as predicted and as measured, and of its bytes on the link."""
        models = {where: self.model(name, loader.data, where) for where in OPTIONS}
        gather = HostGather(models[PYGAS], self.device)
        epochs = {
            where: training_epoch(model, loader, gather if where == PYGAS else None) for where, model in models.items()
        }
        median = in_turn(epochs, self.repeats, self.device)
        ms = {where: 1e3 * each / self.num_batches for where, each in median.items()}
        batches = list(loader)
        step = self.step(name, models[NONE], batches)
        row = {"model": name, "S / B": step.halo / step.batch}
        for where, seconds in place_seconds(step, Machine()).items():
            row |= {f"{where}, ms": ms[where], f"{where}, predicted ms": 1e3 * seconds}
        row |= {f"{where} / {NONE}": ms[where] / ms[NONE] for where in OPTIONS if where != NONE}
        batch_bytes = statistics.mean(map(num_bytes, batches))
        row |= {"MB pulled": step.pulled / 1e6, "MB pushed": step.pushed / 1e6, "MB of a batch": batch_bytes / 1e6}
        on_cpu = self.device.type == "cpu"
        to_device, to_host = (step.pulled + batch_bytes) / rates["to the device"], step.pushed / rates["to the host"]
        row["link to the GPU, ms"] = NOT_ON_CPU if on_cpu else 1e3 * to_device
        row["link to the host, ms"] = NOT_ON_CPU if on_cpu else 1e3 * to_host
        return row

    def layouts(self) -> list[dict[str, Any]]:
        """Milliseconds of a GCN step over each adjacency format, histories on the GPU."""
        epochs, predicted = {}, {}
        for layout in ("csr", "EdgeIndex", "edge_index"):
            data, ptr = self.graph(1.0, layout)
            batches = [batch.to(self.device) for batch in SubgraphLoader(data, ptr, PARTS_A_BATCH)]
            model = self.model("GCN", data, "on the GPU")
            epochs[layout] = training_epoch(model, batches)
            step = self.step("GCN", model, batches)
            places = place_seconds(replace(step, csr=layout == "csr"), Machine())
            predicted[layout] = 1e3 * places["on the GPU"]
        median = in_turn(epochs, self.repeats, self.device)
        return [
            {"adjacency": layout, "step, ms": 1e3 * each / self.num_batches, "step, predicted ms": predicted[layout]}
            for layout, each in median.items()
        ]

    def timeline(self, loader: SubgraphLoader, out: Any) -> None:
        """Pictures what ran when, in serial and in concurrent steps."""
        bars = {}
        for io in ("serial", "concurrent"):
            model = self.model("GCN", loader.data, io)
            training_epoch(model, loader)()
            bars[io] = record_steps(model, torch.optim.Adam(model.parameters()), loader, self.device)
        save_picture(draw_timeline(bars), out, "step_timeline")


def num_bytes(batch: SubData) -> int:
    """Bytes of the tensors of a batch."""
    return sum(tensor.nbytes for tensor in all_tensors(batch.data.to_dict()))


def draw(rows: list[dict[str, Any]]) -> Any:
    """Milliseconds of a step over S / B, a panel for each model."""
    names = list(dict.fromkeys(row["model"] for row in rows))
    figure, panels = plt.subplots(
        1, len(names), figsize=(max(8, 4.5 * len(names)), 5), layout="constrained", squeeze=False
    )
    for axes, name in zip(panels.flat, names, strict=True):
        shown = [row for row in rows if row["model"] == name]
        ratios = [row["S / B"] for row in shown]
        link = [(row["link to the GPU, ms"], row["link to the host, ms"]) for row in shown]
        if NOT_ON_CPU not in link[0]:
            busier = [max(pair) for pair in link]
            axes.fill_between(
                ratios, busier, color="tab:gray", alpha=0.25, label="link alone, busier direction", linewidth=0
            )
        for where, color in COLORS.items():
            style = "--" if where == NONE else "-"
            axes.plot(
                ratios,
                [row[f"{where}, ms"] for row in shown],
                style,
                marker="o",
                markersize=4,
                color=color,
                label=where,
            )
        axes.set(title=name, xlabel="nodes of the halo by nodes of the batch, S / B", ylabel="ms a step")
        axes.set_ylim(bottom=0)
        axes.grid(alpha=0.3)
        axes.spines[["top", "right"]].set_visible(False)
    handles, labels = panels[0, 0].get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside upper center", ncols=len(labels), frameon=False)
    return figure


def main() -> None:
    args = parse_args(__doc__, models=MODELS)
    bench = Bench(args.device, args.quick)
    rates = copy_rates(2**20 if args.quick else 2**28, args.device)
    name = "step" if "GCN" in args.models else "step_others"
    note = (
        f"{NUM_LAYERS} layers, {bench.hidden} wide, float32; batches of {bench.batch_size:,} nodes in {PARTS_A_BATCH} parts, "
        f"with {bench.intra} edges each from inside of its part; N = {bench.num_nodes:,}; Adam. Medians of {bench.repeats} "
        f"epochs of {bench.num_batches} steps, all places in turn. All copy their batches to the device while the step before "
        "runs; batches are made before. The link's times are bytes by the plain copy's bandwidth: pulls and batches to the "
        "GPU, pushes to the host. Predictions are of predictions.py, for an H200."
    )
    copies = [{f"{way}, GB/s": each / 1e9 for way, each in rates.items()}]
    rows: list[dict[str, Any]] = []
    layouts: list[dict[str, Any]] = []

    def keep(last: bool = False) -> None:
        ordered = sorted(rows, key=lambda row: (MODELS.index(row["model"]), row["S / B"]))
        tables = [table("Step time by place of the histories", ordered, note), table("Plain pinned copies", copies)]
        if layouts:
            layouts_note = "GCN, halo ratio 1, batches and histories on the GPU; otherwise as above."
            tables.append(table("Step time by adjacency format", layouts, layouts_note))
        save_picture(draw(ordered), args.out, name)
        save(args.out, name, __doc__, args.device, args.quick, tables, shows=last)

    for ratio in (1.0, 0.5) if args.quick else (1.0, 0.25, 2.0, 0.5):  # the one that is compared most comes first
        loader = bench.loader(ratio)
        for model in args.models:
            rows.append(bench.sweep(model, loader, rates))
            gc.collect()  # tables are unlocked before others are
            keep()
        if ratio == 1 and "GCN" in args.models:
            bench.timeline(loader, args.out)
            layouts += bench.layouts()
            keep()
    keep(last=True)


if __name__ == "__main__":
    main()
