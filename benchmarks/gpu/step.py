"""What do histories cost in a training step, and is the link between host and GPU the limit?

The same steps with histories in five places: nowhere (zeros for the halo's rows: the same layers on the same shapes, and no
table), on the GPU, in pinned host memory with transfers that overlap with layers (concurrent) or run between them (serial),
and in pageable host memory (staged). The halo grows from a quarter of the batch to twice as many nodes, and
inter-connectivity with it, while each node keeps its edges inside of the batch: the sweep of the paper's Figure 4. A plain
copy measured in the same run tells how long a step's bytes need on the link alone. step_timeline.png is the paper's Figure 2:
what ran on which stream.
"""

from __future__ import annotations

import statistics
from collections.abc import Callable, Iterable
from typing import Any

import torch
from common import NOT_ON_CPU, copy_rates, in_turn, parse_args, save, save_picture, table
from matplotlib import pyplot as plt
from timeline import draw_timeline, record_steps
from torch import Tensor
from torch_geometric.data import Data
from workload import MODELS, block_graph, make_model, train_step, without_histories

from torch_gas import ScalableGNN, SubData, SubgraphLoader
from torch_gas.graph.formats import all_tensors

NUM_CLASSES, NUM_LAYERS = 32, 4
NONE = "no histories"
OPTIONS: dict[str, dict[str, Any]] = {
    NONE: {},
    "on the GPU": {},
    "concurrent": {"io": "concurrent"},
    "serial": {"io": "serial"},
    "pageable": {"io": "concurrent", "tier": "host"},
}
COLORS = dict(zip(OPTIONS, ("black", "tab:green", "tab:blue", "tab:red", "tab:orange"), strict=True))


class Bench:
    """Graphs of one size, and steps of models on them."""

    def __init__(self, device: torch.device, quick: bool) -> None:
        self.device = device
        self.part_size, self.intra, self.hidden, self.features = (64, 4, 16, 8) if quick else (32_768, 20, 256, 64)
        self.num_parts, self.repeats = (4, 1) if quick else (8, 4)
        self.num_nodes = self.part_size * self.num_parts

    def graph(self, ratio: float, layout: str = "csr") -> tuple[Data, Tensor]:
        num_edges = round(self.num_nodes * self.intra * (1 + ratio))
        return block_graph(self.num_nodes, num_edges, self.num_parts, ratio, self.features, NUM_CLASSES, layout)

    def loader(self, ratio: float) -> SubgraphLoader:
        """Batches of one part each, made and pinned once: no figure here is one of the loader's."""
        return SubgraphLoader(*self.graph(ratio), cache_size=2**34, device=self.device)

    def model(self, name: str, data: Data, where: str) -> ScalableGNN:
        options = OPTIONS[where] or {"device": self.device}
        model = make_model(name, data, NUM_CLASSES, self.hidden, NUM_LAYERS, self.device, **options)
        return without_histories(model) if where == NONE else model

    def epoch(self, model: ScalableGNN, batches: Iterable[SubData]) -> Callable[[], None]:
        """An epoch of training, one step for each part."""
        optimizer = torch.optim.Adam(model.parameters())

        def epoch() -> None:
            for batch in batches:
                train_step(model, optimizer, batch)

        return epoch

    def sweep(self, name: str, loader: SubgraphLoader, rates: dict[str, float]) -> dict[str, Any]:
        """Milliseconds of a step with histories in each place, and of its bytes on the link."""
        models = {where: self.model(name, loader.data, where) for where in OPTIONS}
        epochs = {where: self.epoch(model, loader) for where, model in models.items()}
        median = in_turn(epochs, self.repeats, self.device)
        ms = {where: 1e3 * each / self.num_parts for where, each in median.items()}
        batches = list(loader)
        halo = statistics.mean(batch.halo_size / batch.batch_size for batch in batches)
        pushed = self.part_size * sum(history.embedding_dim * 4 for history in models[NONE].histories)
        pulled, batch_bytes = halo * pushed, statistics.mean(map(num_bytes, batches))
        row = {"model": name, "S / B": halo, **{f"{where}, ms": each for where, each in ms.items()}}
        row |= {f"{where} / {NONE}": ms[where] / ms[NONE] for where in OPTIONS if where != NONE}
        row |= {"MB pulled": pulled / 1e6, "MB pushed": pushed / 1e6, "MB of a batch": batch_bytes / 1e6}
        on_cpu = self.device.type == "cpu"
        to_device, to_host = (pulled + batch_bytes) / rates["to the device"], pushed / rates["to the host"]
        row["link to the GPU, ms"] = NOT_ON_CPU if on_cpu else 1e3 * to_device
        row["link to the host, ms"] = NOT_ON_CPU if on_cpu else 1e3 * to_host
        return row

    def layouts(self) -> list[dict[str, Any]]:
        """Milliseconds of a GCN step over each adjacency format, histories on the GPU."""
        epochs = {}
        for layout in ("csr", "EdgeIndex", "edge_index"):
            data, ptr = self.graph(1.0, layout)
            batches = [batch.to(self.device) for batch in SubgraphLoader(data, ptr)]
            epochs[layout] = self.epoch(self.model("GCN", data, "on the GPU"), batches)
        median = in_turn(epochs, self.repeats, self.device)
        return [{"adjacency": layout, "step, ms": 1e3 * each / self.num_parts} for layout, each in median.items()]

    def timeline(self, out: Any) -> None:
        """Pictures what ran when, in serial and in concurrent steps."""
        loader = self.loader(1.0)
        bars = {}
        for io in ("serial", "concurrent"):
            model = self.model("GCN", loader.data, io)
            self.epoch(model, loader)()
            bars[io] = record_steps(model, torch.optim.Adam(model.parameters()), loader, self.device)
        save_picture(draw_timeline(bars), out, "step_timeline")


def num_bytes(batch: SubData) -> int:
    """Bytes of the tensors of a batch."""
    return sum(tensor.nbytes for tensor in all_tensors(batch.data.to_dict()))


def draw(rows: list[dict[str, Any]]) -> Any:
    """Milliseconds of a step over S / B, a panel for each model."""
    figure, panels = plt.subplots(2, 2, figsize=(11, 7.5), layout="constrained")
    for axes, name in zip(panels.flat, MODELS, strict=True):
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
    args = parse_args(__doc__)
    bench = Bench(args.device, args.quick)
    rates = copy_rates(2**20 if args.quick else 2**28, args.device)
    rows = []
    for ratio in (0.5, 1.0) if args.quick else (0.25, 0.5, 1.0, 2.0):
        loader = bench.loader(ratio)
        rows += [bench.sweep(name, loader, rates) for name in MODELS]
    rows.sort(key=lambda row: MODELS.index(row["model"]))
    save_picture(draw(rows), args.out, "step")
    bench.timeline(args.out)
    note = (
        f"{NUM_LAYERS} layers, {bench.hidden} wide, float32; batches of {bench.part_size:,} nodes with {bench.intra} edges "
        f"each from inside of the batch; N = {bench.num_nodes:,}; Adam. Medians of {bench.repeats} epochs of {bench.num_parts} "
        "steps, all places in turn. All copy their batches to the device while the step before runs; batches are made before. "
        "The link's times are bytes by the plain copy's bandwidth: pulls and batches to the GPU, pushes to the host."
    )
    tables = [
        table("Step time by place of the histories", rows, note),
        table(
            "Step time by adjacency format",
            bench.layouts(),
            "GCN, S / B = 1, batches and histories on the GPU; otherwise as above.",
        ),
        table("Plain pinned copies", [{f"{name}, GB/s": each / 1e9 for name, each in rates.items()}]),
    ]
    save(args.out, "step", __doc__, args.device, args.quick, tables)


if __name__ == "__main__":
    main()
