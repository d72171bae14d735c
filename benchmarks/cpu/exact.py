"""What does a step with the exact gradient of the whole graph cost in batches, in time and memory, beside full batch?

Sides take turns in one process for their time. Memory is that of a step, in batches of one size over graphs of growing size,
each in a process of its own.
"""

from __future__ import annotations

import gc
import statistics
import time
from typing import Any

import torch
import torch.nn.functional as F
from bench import apart, arguments, machine, parse, save
from large import Size, community_graph, cut
from shared import table
from sides import FULL, Graphs, Setting, Sides, in_format, make_graphs
from torch import Tensor
from torch.nn import Identity

from torch_gas import EvalSubgraphLoader, ExactGradient, SubgraphLoader
from torch_gas.models import GCN
from torch_gas.planner.meter import metered

FULL_SIZE = Setting(50_000, 21.5, 128, num_parts=40, parts_a_batch=10)
TINY = Setting(600, 8.0, 16, num_parts=8, parts_a_batch=4)
PLAIN_GIN, GIN, DEEP = "GIN, no norm inside", "GIN, norms inside", "GCNII, 64 layers"
MODELS = ("GCN", "SAGE", "GAT", PLAIN_GIN, GIN, DEEP)
ONE, EPOCH, EXACT, LEAN = "one batch", "epoch of batches", "exact", "exact, no batch kept"
SIDES = (FULL, ONE, EPOCH, EXACT, LEAN)
SMALLEST = Size(50_000, 22.0, 64, 64, 10, nodes_a_part=1250, parts_a_batch=8)
TINY_GRAPH = Size(2000, 8.0, 16, 16, 4, nodes_a_part=100, parts_a_batch=4)
GROWTH = (1, 4, 16)


class Bench:
    """Steps of all sides of one model, which have the same parameters at first."""

    def __init__(self, setting: Setting, graphs: Graphs, name: str) -> None:
        depth = min(64, setting.channels // 2) if name == DEEP else 3  # fewer in a quick run
        self.setting, self.ptr, self.name = setting._replace(num_layers=depth), graphs.ptr, name
        self.sides = Sides(self.setting, graphs, name.partition(",")[0], 0.0, None)
        self.data = in_format(self.sides.data, "csr")

    def make(self, side: str) -> Any:
        """A function that makes one step, or one epoch of them."""
        if side not in (EXACT, LEAN):
            made = self.sides.make(FULL if side == FULL else "csr")
            self._without_norms(made.model)
            if side in (ONE, EPOCH):
                made.batches = SubgraphLoader(
                    self.data, self.ptr, self.setting.num_parts if side == ONE else self.setting.parts_a_batch
                )
            return made.epoch
        torch.manual_seed(0)
        model = self._without_norms(self.sides.make("csr").model).train()
        optimizer = torch.optim.Adam(model.parameters())
        kept = {"cache_size": 0} if side == LEAN else {}
        exact = ExactGradient(model, EvalSubgraphLoader(self.data, self.ptr, self.setting.parts_a_batch, **kept))

        def step() -> None:
            optimizer.zero_grad()
            exact.backward(self.criterion)
            optimizer.step()

        return step

    def criterion(self, out: Tensor, batch: Any) -> Tensor:
        """The mean over all nodes."""
        return F.cross_entropy(out, batch.y[: len(out)], reduction="sum") / self.setting.num_nodes

    def _without_norms(self, model: Any) -> Any:
        for conv in model.convs if self.name == PLAIN_GIN else ():
            for number, layer in enumerate(conv.nn):
                if isinstance(layer, torch.nn.BatchNorm1d):
                    conv.nn[number] = Identity()
        return model

    def measure(self, rounds: int) -> dict[str, Any]:
        """Seconds of each side, medians of steps after two that do not count, and ratios of these."""
        running = {side: self.make(side) for side in SIDES}
        seconds: dict[str, list[float]] = {side: [] for side in SIDES}
        for lap in range(rounds + 2):
            for side, run in running.items():
                gc.collect()
                start = time.perf_counter()
                run()
                if lap > 1:
                    seconds[side].append(time.perf_counter() - start)
        medians = {side: statistics.median(each) for side, each in seconds.items()}
        row: dict[str, Any] = {"model": self.name, **{f"{side}, s": spent for side, spent in medians.items()}}
        row |= {f"exact / {side}": medians[EXACT] / medians[side] for side in (FULL, ONE, EPOCH)}
        row[f"{LEAN} / {FULL}"] = medians[LEAN] / medians[FULL]
        print(row, flush=True)
        return row


def memory(size: Size) -> dict[str, Any]:
    """The most bytes of a step beyond graph, model and tables, and the bytes of these tables."""
    data, ptr, _ = cut(community_graph(size), size, "metis")
    torch.manual_seed(0)
    model = GCN(size.num_nodes, size.features, size.channels, size.classes, size.num_layers).train()
    loader = EvalSubgraphLoader(data, ptr, size.parts_a_batch, cache_size=0)
    exact = ExactGradient(model, loader)

    def criterion(out: Tensor, batch: Any) -> Tensor:
        return F.cross_entropy(out, batch.y[: len(out)], reduction="sum") / size.num_nodes

    exact.backward(criterion)
    peak = metered(lambda: exact.backward(criterion), torch.device("cpu")).peak
    rows = [batch.n_id.numel() for batch in loader]
    return {
        "nodes": size.num_nodes,
        "batches": len(rows),
        "most rows, B + S": max(rows),
        "MB of a step": peak / 1e6,
        "KB a row": peak / max(rows) / 1e3,
        "MB of tables": sum(each.table.nbytes for each in model._history_tables) / 1e6,
    }


def main() -> None:
    args = parse(arguments(__doc__))
    record = machine()
    setting, rounds = (TINY, 1) if args.quick else (FULL_SIZE, 5)
    graphs = make_graphs(setting)
    rows = [Bench(setting, graphs, name).measure(1 if name == DEEP else rounds) for name in MODELS]
    growing, smallest = [], TINY_GRAPH if args.quick else SMALLEST
    for factor in GROWTH:
        grown = smallest._replace(num_nodes=smallest.num_nodes * factor)
        growing.append(memory(grown) if args.quick else apart(memory, grown))
        print(growing[-1], flush=True)
    note = (
        f"{setting.num_nodes:,} nodes, {graphs.unweighted.num_edges:,} directed edges, {setting.channels} features and channels, "
        f"3 layers; {setting.parts_a_batch} of {setting.num_parts} parts in a batch. Medians of {rounds} steps ({DEEP}: of one), "
        f"without dropout, Adam. {FULL}: one step by the same layers on the whole graph. {ONE}: on a batch of all parts. "
        f"{EPOCH}: a step for each batch, with gradients that end at histories. {EXACT}: one step, "
        f"batches included, which the loader keeps for the next sweep. {LEAN}: they are made anew in each."
    )
    more = (
        f"GCN, 3 layers, {smallest.channels} channels; community graphs of one degree, batches of one size whatever the graph, "
        "none of them kept. MB of a step: the most bytes of tensors at a time, beyond graph, model, tables. KB a row: these by "
        "the rows of batch and halo of the largest batch. Tables: two histories and their gradient tables, in memory or in files."
    )
    tables = [table("A step with the exact gradient", rows, note), table("Memory of it", growing, more)]
    save(args, "exact", __doc__, record, tables)


if __name__ == "__main__":
    main()
