"""How far is an epoch from what the machine could do?

Bytes and floating-point operations of each model's epoch are counted by hand from the sizes of its batches, and divided by the
bandwidth and the peak that the same run measures. What the epoch takes is put beside that, as a whole and phase by phase.
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable
from typing import Any, NamedTuple

import torch
from bench import arguments, machine, parse, save
from counts import AGGREGATION, PARTS, Sizes, Work, count
from matplotlib import pyplot as plt
from shared import save_picture, table
from sides import MODELS, PHASES, Graphs, Setting, Sides, make_graphs

from torch_gas import SubgraphLoader, _core

FULL_SIZE = Setting(50_000, 21.5, 128, num_parts=40, parts_a_batch=10)
TINY = Setting(600, 8.0, 16, num_parts=8, parts_a_batch=4)
MOST_ROUNDS, ENOUGH_SECONDS = 5, 30  # of epochs of each model
OURS = "csr"
NO_REUSE, COMPULSORY = "no reuse", "compulsory"


# -- the machine -------------------------------------------------------------------------------------------------------


class Peaks(NamedTuple):
    """The most that the machine was seen to do: bytes and operations a second."""

    bandwidth: float
    flops: float

    def seconds(self, work: Work) -> dict[str, float]:
        """Both bounds of some work."""
        arithmetic = work.flops / self.flops
        return {
            NO_REUSE: work.no_reuse / self.bandwidth + arithmetic,
            COMPULSORY: work.compulsory / self.bandwidth + arithmetic,
        }


def measure_peaks(setting: Setting, quick: bool) -> tuple[Peaks, dict[str, Any]]:
    """The peaks, and a row of what they are the best of."""
    size, repeats = (2**18, 2) if quick else (2**27, 7)  # numbers: 512 MiB, more than caches hold
    large = _bandwidths(size, setting.channels, repeats)
    small = _bandwidths(setting.num_nodes * setting.channels, setting.channels, repeats)
    rows, side = setting.num_nodes, 64 if quick else 3072
    shapes = {"square": (side, side, side), "rows by weights": (rows, setting.channels, setting.channels)}
    products = {}
    for name, (n, k, m) in shapes.items():
        left, right, out = torch.rand(n, k), torch.rand(k, m), torch.empty(n, m)
        products[name] = 2 * n * k * m / _best(lambda a=left, b=right, c=out: torch.mm(a, b, out=c), repeats)
    peaks = Peaks(max(large.values()), max(products.values()))
    row: dict[str, Any] = {"MB": 4 * size / 1e6}
    row |= {f"{name}, GB/s": each / 1e9 for name, each in large.items()}
    row |= {"MB of a graph's rows": 4 * rows * setting.channels / 1e6, "the same, GB/s": max(small.values()) / 1e9}
    row |= {f"product, {name}, GFLOP/s": each / 1e9 for name, each in products.items()}
    return peaks, row


def _bandwidths(size: int, width: int, repeats: int) -> dict[str, float]:
    """Bytes a second that are read and written of tensors with so many float32 numbers."""
    a, b, c = (torch.rand(size // width, width) for _ in range(3))
    everything = torch.tensor([0]), torch.tensor([a.size(0)])
    calls: dict[str, tuple[int, Callable[[], Any]]] = {
        "copy": (2, lambda: c.copy_(a)),
        "triad": (3, lambda: torch.add(a, b, alpha=3.0, out=c)),
        "sum": (1, lambda: a.sum()),
        "copy by the core": (2, lambda: _core.read_chunks(a, *everything, out=c)),
    }
    return {name: tensors * a.nbytes / _best(call, repeats) for name, (tensors, call) in calls.items()}


def _best(call: Callable[[], Any], repeats: int) -> float:
    """Seconds of the fastest of some calls, after one that does not count."""
    seconds = []
    for _ in range(repeats + 1):
        start = time.perf_counter()
        call()
        seconds.append(time.perf_counter() - start)
    return min(seconds[1:])


# -- epochs ------------------------------------------------------------------------------------------------------------


class Epoch(NamedTuple):
    """The median epoch of a model: seconds by phase, and the sizes of its batches."""

    laps: dict[str, float]
    sizes: list[Sizes]
    parameters: int

    @property
    def seconds(self) -> float:
        return sum(self.laps.values())


def measure(name: str, setting: Setting, graphs: Graphs) -> Epoch:
    """Epochs of a model over CSR, after one that does not count. Batches are made when they are asked for."""
    side = Sides(setting, graphs, name, 0.0, None).make(OURS)
    data = side.batches.data
    side.batches, twin = (
        SubgraphLoader(data, graphs.ptr, setting.parts_a_batch, prefetch=0, shuffle=True, seed=0) for _ in range(2)
    )
    side.epoch()
    laps: list[dict[str, float]] = []
    start = time.perf_counter()
    while len(laps) < 2 or (len(laps) < MOST_ROUNDS and time.perf_counter() - start < ENOUGH_SECONDS):
        laps.append(side.epoch())
    # The other loader makes the same batches, so that their sizes are not looked at while somebody measures.
    sizes = [[Sizes.of(batch) for batch in twin] for _ in range(len(laps) + 1)][1:]
    totals = [sum(each.values()) for each in laps]
    chosen = totals.index(statistics.median_low(totals))
    print(name, [round(each, 3) for each in totals], flush=True)
    return Epoch(laps[chosen], sizes[chosen], sum(each.numel() for each in side.model.parameters()))


def work_of(name: str, setting: Setting, epoch: Epoch, phase: str | None = None, part: str | None = None) -> Work:
    """The work of an epoch, or of its share of a phase or a part."""
    steps = (count(name, setting, sizes, epoch.parameters) for sizes in epoch.sizes)
    return sum((step.total(phase, part) for step in steps), Work())


# -- tables ------------------------------------------------------------------------------------------------------------


def _shares(seconds: float, bounds: dict[str, float]) -> dict[str, float]:
    """Bound / time."""
    return {f"{kind}, % of time": 100 * bound / seconds for kind, bound in bounds.items()}


def tables_of(epochs: dict[str, Epoch], setting: Setting, peaks: Peaks) -> list[list[dict[str, Any]]]:
    """Rows of whole epochs, of their phases, and of what the bounds consist of."""
    whole, phases, parts = [], [], []
    for name, epoch in epochs.items():
        work = work_of(name, setting, epoch)
        bounds = peaks.seconds(work)
        row: dict[str, Any] = {"model": name, "epoch, s": epoch.seconds}
        row |= {f"{kind}, s": bound for kind, bound in bounds.items()}
        whole.append(row | _shares(epoch.seconds, bounds))
        for phase in PHASES:
            share = work_of(name, setting, epoch, phase=phase)
            bounds, seconds = peaks.seconds(share), epoch.laps[phase]
            row = {"model": name, "phase": phase, "time, ms": 1e3 * seconds, "GFLOP": f"{share.flops / 1e9:.3g}"}
            row |= {f"{NO_REUSE}, MB": share.no_reuse / 1e6, f"{COMPULSORY}, MB": share.compulsory / 1e6}
            row |= {f"{kind}, ms": 1e3 * bound for kind, bound in bounds.items()}
            phases.append(row | _shares(seconds, bounds))
        row = {"model": name}
        for part in PARTS:
            each = peaks.seconds(work_of(name, setting, epoch, part=part))
            kinds = (NO_REUSE, COMPULSORY) if part == AGGREGATION else (COMPULSORY,)
            row |= {f"{part}{f', {kind}' if len(kinds) > 1 else ''}, s": each[kind] for kind in kinds}
        parts.append(row | {"arithmetic, s": work.flops / peaks.flops})
    return [whole, phases, parts]


def draw(whole: list[dict[str, Any]], phases: list[dict[str, Any]]) -> Any:
    """Time and both bounds of epochs, and of their phases one by one."""
    figure, (left, right) = plt.subplots(1, 2, figsize=(15, 5), layout="constrained", width_ratios=(1, 2))
    _bars(left, whole, "epoch", "s", "tab:blue")
    left.set(ylabel="seconds an epoch", title="Epoch beside what the machine could do")
    left.set_xticks(range(len(whole)), [row["model"] for row in whole], rotation=45)
    left.set_ylim(top=1.25 * max(row["epoch, s"] for row in whole))
    left.legend(frameon=False)

    _bars(right, phases, "time", "ms", [f"C{PHASES.index(row['phase'])}" for row in phases])
    right.set(ylabel="milliseconds an epoch", yscale="log", xlim=(-0.5, len(phases) - 0.5))
    right.set_title("The same by phase", pad=20)
    right.set_xticks(range(len(phases)), [row["phase"] for row in phases], rotation=90, fontsize=7)
    for place, row in enumerate(whole):  # a group for each model
        middle = (place + 0.5) * len(PHASES) - 0.5
        right.text(
            middle, 1.01, row["model"], transform=right.get_xaxis_transform(), ha="center", va="bottom", fontsize=9
        )
        right.axvline(middle + len(PHASES) / 2, color="lightgray", linewidth=0.8)
    for axes in (left, right):
        axes.grid(alpha=0.3, axis="y")
        axes.set_axisbelow(True)
        axes.spines[["top", "right"]].set_visible(False)
    return figure


def _bars(axes: Any, rows: list[dict[str, Any]], what: str, unit: str, color: Any) -> None:
    axes.bar(range(len(rows)), [row[f"{what}, {unit}"] for row in rows], 0.75, color=color, alpha=0.6)
    for kind, line in ((NO_REUSE, "tab:red"), (COMPULSORY, "black")):
        ends = [(place - 0.375, place + 0.375) for place in range(len(rows))]
        heights = [row[f"{kind}, {unit}"] for row in rows]
        label = f"bound, {kind}"
        axes.hlines(heights, *zip(*ends, strict=True), color=line, linewidth=2, label=label)


def main() -> None:
    args = parse(arguments(__doc__))
    record = machine()
    setting = TINY if args.quick else FULL_SIZE
    peaks, measured = measure_peaks(setting, args.quick)
    graphs = make_graphs(setting)
    epochs = {name: measure(name, setting, graphs) for name in MODELS}
    whole, phases, parts = tables_of(epochs, setting, peaks)
    save_picture(draw(whole, phases), args.out, "roofline")

    any_sizes = epochs[MODELS[0]].sizes
    ratio = sum(each.halo for each in any_sizes) / sum(each.rows for each in any_sizes)
    of_peaks = (
        "Bytes are those read and written. Bandwidth is the best of four passes over large tensors: a copy, a triad a + 3 b, a "
        "sum, and a copy by the core, which writes around caches. The peak is the better of two float32 products. "
        "A graph's rows are a smaller tensor: where that is faster, caches hold some of it, and an epoch may pass a bound."
    )
    of_whole = (
        f"{setting.num_nodes:,} nodes, {graphs.unweighted.num_edges:,} directed edges (self-loops among them), "
        f"{setting.channels} features and hidden channels, {setting.num_layers} layers, {setting.num_classes} classes; "
        f"{setting.num_parts} parts by METIS, {setting.parts_a_batch} at random in a batch, S / B = {ratio:.2f}; over CSR, "
        f"without dropout, Adam. Medians of up to {MOST_ROUNDS} epochs after one that does not count. A bound is bytes / "
        f"bandwidth + operations / peak, and shares are bound / time. {NO_REUSE.capitalize()}: each edge reads its row of C "
        f"numbers from memory, 4 C E bytes. {COMPULSORY.capitalize()}: each distinct row is read once, 4 C (B + S) bytes."
    )
    of_phases = (
        "Each operator reads its inputs and writes its results once. A sum over edges: rows as above, ids of edges and "
        "destinations, weights, and 4 C B bytes of results; 2 C E operations. Its gradient: rows of B destinations, for the "
        "E' edges that start in the batch, or for all E and B + S results where no history precedes it. A dense layer of n "
        "rows, C to K: 4 (n C + C K + n K) bytes and 2 n C K operations; as much for the gradient of its weights, and for that "
        "of its input, with as many rows as need one. A history: 4 C (5 B + 2 S) bytes. Loader: ids and weights of edges, their "
        "transpose (SAGE: a comparison with it), and attributes of nodes, read and written. Adam: 28 bytes a parameter."
    )
    of_parts = (
        "Both passes together. Columns but the last add up to a bound: no reuse or compulsory, by the column that is taken for "
        "aggregation. Arithmetic: operations / peak, which the others contain."
    )
    tables = [
        table("Peaks of the machine", [measured], of_peaks),
        table("Epochs beside both bounds", whole, of_whole),
        table("Phases beside both bounds", phases, of_phases),
        table("What the bounds consist of", parts, of_parts),
    ]
    save(args, "roofline", __doc__, record, tables)


if __name__ == "__main__":
    main()
