"""What does compensation add to an epoch on histories and to the memory of a step?

Epochs with and without take turns in one process.
"""

from __future__ import annotations

import gc
import statistics
import time
from typing import Any

import torch
from bench import arguments, machine, parse, save
from shared import table
from sides import Graphs, Setting, Sides, make_graphs

from torch_gas.extensions import Compensation
from torch_gas.planner.meter import metered

FULL_SIZE = Setting(50_000, 21.5, 128, num_parts=40, parts_a_batch=10)
TINY = Setting(600, 8.0, 16, num_parts=8, parts_a_batch=4)
MODELS = ("GCN", "SAGE", "GIN", "GAT", "GCNII")
GAS = "histories alone"
SIDES: dict[str, dict[str, Any]] = {
    GAS: {},
    "all of it": {"trust": 1.0},
    "auto": {"trust": "auto"},
    "swapped": {"trust": 1.0, "schedule": "swapped"},
}


def measure(setting: Setting, graphs: Graphs, name: str, rounds: int) -> dict[str, Any]:
    """Seconds of each side, medians of epochs after one that does not count, bytes of a step, and ratios of these."""
    sides = Sides(setting, graphs, name, 0.0, None)
    running, bytes_of = {}, {}
    for side, options in SIDES.items():
        made = sides.make("csr")
        if options:
            made.model.add_extension(Compensation(**options))
        made.epoch()
        running[side] = made
        bytes_of[side] = metered(lambda made=made: made.epoch(steps=1), torch.device("cpu")).peak
    seconds: dict[str, list[float]] = {side: [] for side in SIDES}
    for _ in range(rounds):
        for side, made in running.items():
            gc.collect()
            start = time.perf_counter()
            made.epoch()
            seconds[side].append(time.perf_counter() - start)
    medians = {side: statistics.median(each) for side, each in seconds.items()}
    row: dict[str, Any] = {"model": name, f"{GAS}, s": medians[GAS]}
    others = [side for side in SIDES if side != GAS]
    row |= {f"{side} / {GAS}": medians[side] / medians[GAS] for side in others}
    row |= {f"{GAS}, MB": bytes_of[GAS] / 1e6, "auto, MB": bytes_of["auto"] / 1e6}
    tables: Any = running["auto"].model.extension_tables.values()
    row["MB of tables"] = sum(each.table.nbytes for layers in tables for each in layers) / 1e6
    print(row, flush=True)
    return row


def main() -> None:
    args = parse(arguments(__doc__))
    record = machine()
    setting, rounds = (TINY, 1) if args.quick else (FULL_SIZE, 9)
    graphs = make_graphs(setting)
    rows = [measure(setting, graphs, name, rounds) for name in MODELS]
    note = (
        f"{setting.num_nodes:,} nodes, {graphs.unweighted.num_edges:,} directed edges, {setting.channels} features and "
        f"channels, {setting.num_layers} layers; {setting.parts_a_batch} of {setting.num_parts} parts in a batch. Medians of "
        f"{rounds} epochs, without dropout, Adam. All of it: trust=1.0. Ratios are those of an epoch. MB: the most bytes of "
        "tensors that a step allocates at a time, with the batch, beyond model, optimiser and tables."
    )
    save(args, "compensation", __doc__, record, [table("Compensation", rows, note)])


if __name__ == "__main__":
    main()
