"""What does an epoch on histories cost beside a full batch of PyG, sampled neighbourhoods, and the transfers of PyGAS?

The same GCN of four layers on one random graph. The full batch is PyG's own model on the whole graph, one step an epoch.
Sampled neighbourhoods have as many seeds as batches have nodes, all sampled nodes are rows, and every layer computes all rows,
as NeighborLoader has it. Histories lie in host memory or on the GPU, and are moved by this library or as PyGAS does. Batches
are made before, and all but those of histories in host memory are on the GPU before; what making them costs stands below.
"""

from __future__ import annotations

import copy
import gc
import statistics
from collections.abc import Callable
from typing import Any

import torch
from common import in_turn, parse_args, peak_memory, save, table
from host_gather import HostGather, training_epoch
from predictions import Machine, Step, host_seconds, layer_seconds, loader_seconds, place_seconds
from sampling import sampled_batch
from torch import Tensor
from torch_geometric.data import Data
from torch_geometric.nn import GCN
from workload import block_graph, make_model, without_histories

from torch_gas import SubgraphLoader

FULL, SAMPLED, HOST, GPU, PYGAS = (
    "PyG, full batch",
    "sampled neighbourhoods",
    "host memory",
    "on the GPU",
    "PyGAS's way",
)
WAYS = (FULL, SAMPLED, HOST, GPU, PYGAS)
PLACES = {HOST: "concurrent", GPU: "on the GPU", PYGAS: "PyGAS's way"}  # of predictions
NUM_LAYERS, NUM_CLASSES, PARTS_A_BATCH, NUM_SAMPLED = 4, 32, 4, (10, 5, 5, 5)


class Plain(torch.nn.Module):
    """PyG's GCN, called as :func:`workload.train_step` calls models."""

    def __init__(self, features: int, hidden: int) -> None:
        super().__init__()
        self.gcn = GCN(features, hidden, NUM_LAYERS, NUM_CLASSES, normalize=False)

    def inputs(self, data: Data) -> tuple[tuple[Tensor, Tensor], dict[str, Any]]:
        return (data.x, data.adj_t), {}

    def forward(self, x: Tensor, adj_t: Tensor) -> Tensor:
        return self.gcn(x, adj_t)


class Bench:
    """One graph, its batches, and epochs on them."""

    def __init__(self, device: torch.device, quick: bool) -> None:
        self.device = device
        batch_size, degree, self.hidden, self.features = (64, 8, 16, 8) if quick else (32_768, 40, 256, 64)
        self.num_batches, self.repeats = (4, 1) if quick else (8, 3)
        num_nodes, num_parts = batch_size * self.num_batches, self.num_batches * PARTS_A_BATCH
        self.data, self.ptr = block_graph(num_nodes, num_nodes * degree, num_parts, 1.0, self.features, NUM_CLASSES)
        options = {"shuffle": True, "regroup": False, "seed": 0, "cache_size": 2**34}
        self.loader = SubgraphLoader(self.data, self.ptr, PARTS_A_BATCH, device=device, **options)
        self.batches = [batch.to(device) for batch in SubgraphLoader(self.data, self.ptr, PARTS_A_BATCH, **options)]
        generator = torch.Generator().manual_seed(0)
        seeds = torch.randperm(num_nodes, generator=generator).split(batch_size)
        self.sampled = [sampled_batch(self.data, each, NUM_SAMPLED, generator).to(device) for each in seeds]

    def epoch(self, way: str) -> Callable[[], None]:
        """An epoch of training."""
        gather, batches = None, {FULL: [], SAMPLED: self.sampled, GPU: self.batches}.get(way, self.loader)
        if way == FULL:
            torch.manual_seed(0)
            model: Any = Plain(self.features, self.hidden).to(self.device).train()
            batches = [copy.copy(self.data).to(self.device)]
        else:
            options = {SAMPLED: {"tier": "host"}, GPU: {"device": self.device}}.get(way, {})
            model = make_model("GCN", self.data, NUM_CLASSES, self.hidden, NUM_LAYERS, self.device, **options)
            model = without_histories(model) if way == SAMPLED else model
            gather = HostGather(model, self.device) if way == PYGAS else None
        return training_epoch(model, batches, gather)

    def steps(self, way: str) -> list[Step]:
        """What each step of an epoch computes."""
        widths = (self.hidden,) * (NUM_LAYERS - 1)

        def step(batch: int, halo: int, num_edges: int) -> Step:
            return Step("GCN", batch, halo, num_edges, self.features, widths, NUM_CLASSES)

        if way == FULL:
            return [step(self.data.num_nodes, 0, self.data.num_edges)]
        batches = self.sampled if way == SAMPLED else self.batches
        return [step(batch.batch_size, batch.halo_size, batch.data.num_edges) for batch in batches]

    def batches_made(self) -> dict[str, float]:
        """An epoch of batches that are made anew and brought to the device, with no step between them."""
        loader = SubgraphLoader(self.data, self.ptr, PARTS_A_BATCH, shuffle=True, seed=0, device=self.device)
        steps = {"batches": lambda: [None for _ in loader]}
        predicted = sum(loader_seconds(step, Machine()) for step in self.steps(HOST))
        median = in_turn(steps, self.repeats, self.device)["batches"]
        return {"epoch of batches, ms": 1e3 * median, "epoch of batches, predicted ms": 1e3 * predicted}

    def row(self, way: str, seconds: float, peak: int | str) -> dict[str, Any]:
        """The figures of a way, beside what is predicted for it."""
        steps, machine = self.steps(way), Machine()
        if way in PLACES:
            predicted = [place_seconds(step, machine)[PLACES[way]] for step in steps]
        else:
            predicted = [max(sum(layer_seconds(s, machine)), host_seconds(s, machine, histories=False)) for s in steps]
        return {
            "way": way,
            "steps an epoch": len(steps),
            "rows a step": statistics.mean(step.batch + step.halo for step in steps),
            "edges a step": float(statistics.mean(step.edges for step in steps)),
            "epoch, ms": 1e3 * seconds,
            "epoch, predicted ms": 1e3 * sum(predicted),
            "peak, MiB": peak if isinstance(peak, str) else peak / 2**20,
        }


def main() -> None:
    args = parse_args(__doc__)
    bench = Bench(args.device, args.quick)
    peaks: dict[str, int | str] = {}
    for way in WAYS:
        peaks[way] = peak_memory(lambda way=way: bench.epoch(way)(), args.device)
        gc.collect()
    fitting = [way for way in WAYS if peaks[way] != "out of memory"]
    median = in_turn({way: bench.epoch(way) for way in fitting}, bench.repeats, args.device)
    rows = [bench.row(way, median[way], peaks[way]) for way in fitting]
    note = (
        f"GCN, {NUM_LAYERS} layers, {bench.hidden} wide; N = {bench.data.num_nodes:,}, E = {bench.data.num_edges:,}; Adam. "
        f"Medians of {bench.repeats} epochs, all ways in turn; a full batch makes one step of optimisation an epoch and the "
        f"others {bench.num_batches}. At most {NUM_SAMPLED} sampled neighbours by depth. Peaks are of torch's allocator, beyond "
        "batches that are on the GPU before. Predictions are of predictions.py, for an H200."
    )
    tables = [table("Epochs beside other ways", rows, note)]
    save(args.out, "beside", __doc__, args.device, args.quick, tables, shows=False)
    tables.append(table("Batches made anew, without steps", [bench.batches_made()]))
    save(args.out, "beside", __doc__, args.device, args.quick, tables)


if __name__ == "__main__":
    main()
