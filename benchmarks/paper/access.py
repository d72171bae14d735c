"""What do accesses to histories add to a step, the more edges come from outside of the batch? (The paper's Figure 4.)

Models of four layers train on batches whose nodes have the same edges from inside of the batch and more and more from outside,
from as many more nodes of the halo. The same steps without histories have zeros for the halo's rows: the same layers on the
same shapes, and no table. Histories and models are in the memory of the host; benchmarks/gpu/step.py asks the same of a GPU.
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable
from itertools import cycle, islice
from typing import Any, NamedTuple

import torch
from command import host, parse, plain_arguments, save, today
from matplotlib import pyplot as plt
from shared import save_picture, table
from workload import MODELS, block_graph, make_model, train_step, without_histories

from torch_gas import SubgraphLoader

CPU = torch.device("cpu")
NUM_LAYERS, NUM_CLASSES = 4, 32
RATIOS = (0.25, 0.5, 1.0, 2.0, 3.0)
WARM_UP = 2  # steps that do not count
COLORS = dict(zip(MODELS, ("tab:blue", "tab:orange", "tab:green", "tab:red"), strict=True))


class Setting(NamedTuple):
    """Sizes of batches and models, and how often steps are repeated."""

    batch_size: int = 4000
    intra: int = 30
    hidden: int = 128
    num_features: int = 64
    num_parts: int = 6
    repeats: int = 15


QUICK = Setting(batch_size=60, intra=4, hidden=16, num_features=8, repeats=2)


def in_turn(steps: dict[str, Callable[[Any], object]], batches: list[Any], repeats: int) -> dict[str, list[float]]:
    """Seconds of each step. All take turns on the same batches, and each is first as often as last."""
    seconds: dict[str, list[float]] = {name: [] for name in steps}
    for repeat, batch in enumerate(islice(cycle(batches), repeats + WARM_UP)):
        for name, step in list(steps.items())[:: 1 if repeat % 2 else -1]:
            start = time.perf_counter()
            step(batch)
            if repeat >= WARM_UP:
                seconds[name].append(time.perf_counter() - start)
    return seconds


def copy_rate(num_bytes: int) -> float:
    """Bytes a second of a plain copy within the memory of the host."""
    source, target = torch.ones(num_bytes, dtype=torch.uint8), torch.empty(num_bytes, dtype=torch.uint8)
    seconds = in_turn({"copy": lambda _: target.copy_(source)}, [None], 5)
    return num_bytes / statistics.median(seconds["copy"])


def measure(name: str, setting: Setting, ratio: float, rate: float) -> dict[str, Any]:
    """A row: milliseconds of a step with and without histories, and of its accesses by a plain copy."""
    num_nodes = setting.batch_size * setting.num_parts
    num_edges = round(num_nodes * setting.intra * (1 + ratio))
    data, ptr = block_graph(num_nodes, num_edges, setting.num_parts, ratio, setting.num_features, NUM_CLASSES)
    batches = list(SubgraphLoader(data, ptr, prefetch=0))
    models = [make_model(name, data, NUM_CLASSES, setting.hidden, NUM_LAYERS, CPU) for _ in range(2)]
    width = sum(history.emb[0].nbytes for history in models[0].histories)
    steps = {}
    for title, model in (("with", models[0]), ("without", without_histories(models[1]))):
        optimizer = torch.optim.Adam(model.parameters())
        steps[title] = lambda batch, model=model, optimizer=optimizer: train_step(model, optimizer, batch)
    seconds = in_turn(steps, batches, setting.repeats)
    halo = statistics.mean(batch.halo_size / batch.batch_size for batch in batches)
    num_bytes = setting.batch_size * (1 + halo) * width
    ratios = [a / b for a, b in zip(seconds["with"], seconds["without"], strict=True)]
    return {
        "model": name,
        "inter / intra": ratio,
        "S / B": halo,
        "with histories, ms": 1e3 * statistics.median(seconds["with"]),
        "without, ms": 1e3 * statistics.median(seconds["without"]),
        "overhead, %": f"{100 * (statistics.median(ratios) - 1):.1f}",
        "pushed and pulled, MB": num_bytes / 1e6,
        "a plain copy of it, ms": 1e3 * num_bytes / rate,
    }


def draw(rows: list[dict[str, Any]]) -> Any:
    """Overhead over the ratio of connections, beside the time of the steps."""
    figure, (left, right) = plt.subplots(1, 2, figsize=(11, 4.2), layout="constrained")
    for name, color in COLORS.items():
        shown = [row for row in rows if row["model"] == name]
        ratios = [row["inter / intra"] for row in shown]
        left.plot(ratios, [float(row["overhead, %"]) for row in shown], "o-", color=color, label=name, markersize=4)
        right.plot(ratios, [row["with histories, ms"] for row in shown], "o-", color=color, markersize=4)
        right.plot(ratios, [row["without, ms"] for row in shown], "--", color=color)
    left.axhline(0, color="black", linewidth=0.8)
    left.set_ylabel("what histories add to a step, %")
    right.set_ylabel("ms a step")
    right.set_ylim(bottom=0)
    right.plot([], [], "o-", color="black", markersize=4, label="with histories")
    right.plot([], [], "--", color="black", label="without")
    for axes in (left, right):
        axes.set_xlabel("edges from outside of the batch for each from inside")
        axes.grid(alpha=0.3)
        axes.legend(frameon=False)
        axes.spines[["top", "right"]].set_visible(False)
    return figure


def main() -> None:
    parser = plain_arguments(__doc__)
    parser.add_argument("--quick", action="store_true", help="tiny sizes, whose figures say nothing")
    args = parse(parser)
    setting = QUICK if args.quick else Setting()
    rate = copy_rate(2**20 if args.quick else 2**27)
    rows = [measure(name, setting, ratio, rate) for name in MODELS for ratio in RATIOS]
    save_picture(draw(rows), args.out, "access")
    note = (
        f"{NUM_LAYERS} layers, {setting.hidden} wide, float32; batches of {setting.batch_size:,} nodes with {setting.intra} "
        f"edges each from inside of the batch, made before; Adam. Medians of {setting.repeats} steps; with and without histories "
        "take turns on the same batches, and the overhead is the median of their ratios. The plain copy is one of "
        f"{rate / 1e9:.1f} GB/s, measured in the same run."
    )
    machine = {"date": today(), **host()}
    save(args, "access", __doc__, machine, [table("Accesses to histories", rows, note)], args.quick)


if __name__ == "__main__":
    main()
