"""How much of the host's time does a step take with histories, and how much without?

Tensors are so small that nothing but Python and the dispatch of operators takes time: what a GPU waits for in a light model.
"""

from __future__ import annotations

import statistics
import time
from typing import Any

import torch
from bench import arguments, machine, parse, save
from shared import table
from workload import MODELS, block_graph, make_model, train_step, without_histories

from torch_gas import SubgraphLoader

NUM_NODES, NUM_EDGES, NUM_PARTS, PARTS_A_BATCH = 600, 3000, 8, 2
CHANNELS, NUM_CLASSES, NUM_LAYERS = 16, 4, 4
WITHOUT, WITH = "no histories", "histories"


def measure(name: str, steps: int) -> dict[str, Any]:
    """Milliseconds of a step of one model, medians over steps that take turns, and of their differences."""
    data, ptr = block_graph(NUM_NODES, NUM_EDGES, NUM_PARTS, 1.0, CHANNELS, NUM_CLASSES)
    batches = list(SubgraphLoader(data, ptr, PARTS_A_BATCH))
    models = {
        way: make_model(name, data, NUM_CLASSES, CHANNELS, NUM_LAYERS, torch.device("cpu")) for way in (WITHOUT, WITH)
    }
    without_histories(models[WITHOUT])
    sides = [(way, model, torch.optim.SGD(model.parameters(), lr=0.01)) for way, model in models.items()]
    seconds: dict[str, list[float]] = {way: [] for way in models}
    warm_up = len(batches)
    for number in range(warm_up + steps):
        batch = batches[number % len(batches)]
        for way, model, optimizer in sides[:: 1 if number % 2 else -1]:  # neither is always first
            start = time.perf_counter()
            train_step(model, optimizer, batch)
            seconds[way].append(time.perf_counter() - start)
    ms = {way: [1e3 * each for each in laps[warm_up:]] for way, laps in seconds.items()}
    more = statistics.median(one - other for one, other in zip(ms[WITH], ms[WITHOUT], strict=True))
    medians = {f"{way}, ms": statistics.median(each) for way, each in ms.items()}
    return {"model": name, **medians, "more, ms": more, "more a history, µs": 1e3 * more / (NUM_LAYERS - 1)}


def main() -> None:
    args = parse(arguments(__doc__))
    record = machine()
    steps = 20 if args.quick else 1000
    rows = [measure(name, steps) for name in MODELS]
    note = (
        f"{NUM_LAYERS} layers, {CHANNELS} channels, {NUM_NODES} nodes in batches of {NUM_NODES * PARTS_A_BATCH // NUM_PARTS} "
        f"over CSR; forward, backward and SGD. No histories: zeros for the halo's rows. Medians of {steps} steps; "
        "more: median of the differences of steps that take turns. Run it with `--threads 1` where something else runs."
    )
    save(args, "host", __doc__, record, [table("Host time of a step", rows, note)])


if __name__ == "__main__":
    main()
