"""How much faster is an epoch than with another release?

The other release lies in a folder of its own, built in place (``git worktree add ../other v0.1.0``, then ``setup.py build_ext
--inplace`` there). Both train the same models on the same batches, each in a process of its own; their epochs take turns.
"""

from __future__ import annotations

import os
import random
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from bench import arguments, machine, parse, save
from matplotlib import pyplot as plt
from release_side import BY_HAND, CHEAP, SCALED
from shared import readable_log, save_picture, table
from sides import MODELS, Setting, make_graphs

FULL_SIZE = Setting(50_000, 21.5, 128, num_parts=40, parts_a_batch=10)  # as in step.py
TINY = Setting(600, 8.0, 16, num_parts=8, parts_a_batch=4)
HERE = Path(__file__).parent
ROOT = HERE.parents[1]
# How the model is wired in the other release, and in this one.
PAIRS = ((BY_HAND, BY_HAND), (SCALED, SCALED), (SCALED, CHEAP))
QUIET, PATIENCE = 0.25, 60.0  # cores that others may use while a pair is waited for, and the seconds to wait for it


class Process:
    """A release that trains one model."""

    def __init__(self, tree: Path, graphs: Path, name: str, dropout: float, threads: int) -> None:
        environment = {**os.environ, "PYTHONPATH": str(tree.resolve()), "OMP_NUM_THREADS": str(threads)}
        command = [sys.executable, "-W", "ignore", HERE / "release_side.py", graphs, name, str(dropout), str(threads)]
        self.process = subprocess.Popen(
            command, env=environment, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
        )

    def epoch(self, wiring: str) -> float:
        """Its seconds."""
        assert self.process.stdin is not None and self.process.stdout is not None
        print(wiring, file=self.process.stdin, flush=True)
        for line in self.process.stdout:
            if line.startswith("seconds "):
                return float(line.split()[1])
        raise SystemExit(f"releases.py: {' '.join(map(str, self.process.args))} failed")

    def close(self) -> None:
        self.process.communicate()


def busy_cores(seconds: float = 0.2) -> float:
    """How many cores anybody uses, while this process and its sides wait."""
    before, start = _busy(), time.perf_counter()
    time.sleep(seconds)
    return (_busy() - before) / (time.perf_counter() - start)


def _busy() -> float:
    """Seconds that all cores have worked since the machine started."""
    user, nice, system, _idle, _wait, *interrupts = map(int, Path("/proc/stat").read_text().split("\n")[0].split()[1:])
    return (user + nice + system + sum(interrupts[:3])) / os.sysconf("SC_CLK_TCK")


def wait_until_quiet(patience: float) -> None:
    """Returns once others leave the machine alone, or have not for so many seconds."""
    start = time.perf_counter()
    while time.perf_counter() - start < patience and busy_cores() > QUIET:
        pass


def interval(others: Sequence[float], ours: Sequence[float], share: float = 0.9) -> tuple[float, float]:
    """A bootstrap interval of the ratio of medians: pairs are drawn anew 2,000 times."""
    draw = random.Random(0)
    pairs = list(zip(others, ours, strict=True))
    ratios = []
    for _ in range(2000):
        drawn = draw.choices(pairs, k=len(pairs))
        ratios.append(statistics.median(a for a, _ in drawn) / statistics.median(b for _, b in drawn))
    ratios.sort()
    cut = int((1 - share) / 2 * len(ratios))
    return ratios[cut], ratios[-1 - cut]


def compare(
    other: Path, graphs: Path, name: str, dropout: float, rounds: int, threads: int, patience: float
) -> list[dict[str, Any]]:
    """Epochs of one model by both releases, in turn."""
    sides = [Process(tree, graphs, name, dropout, threads) for tree in (other, ROOT)]
    wirings = [tuple(dict.fromkeys(pair[i] for pair in PAIRS)) for i in range(2)]
    seconds: dict[tuple[int, str], list[float]] = {(i, wiring): [] for i in range(2) for wiring in wirings[i]}
    for i, wiring in seconds:
        sides[i].epoch(wiring)  # which does not count, as the one before it, in which the model is made
    for _ in range(rounds):
        for wiring in dict.fromkeys((*wirings[0], *wirings[1])):
            wait_until_quiet(patience)
            for i in range(2):
                if (i, wiring) in seconds:
                    seconds[i, wiring].append(sides[i].epoch(wiring))
    for side in sides:
        side.close()
    rows = []
    for then, now in PAIRS:
        others, ours = seconds[0, then], seconds[1, now]
        low, high = interval(others, ours)
        row = {"model": name, "dropout": str(dropout), "wired by": now, "other release, s": statistics.median(others)}
        row |= {"this one, s": statistics.median(ours)}
        row["other / this one"] = row["other release, s"] / row["this one, s"]
        rows.append(row | {"90 % from": low, "to": high})
        print(rows[-1], flush=True)
    return rows


def draw(rows: list[dict[str, Any]]) -> Any:
    """The ratio of each model, wired in each way."""
    figure, axes = plt.subplots(figsize=(11, 4.5), layout="constrained")
    groups = list(dict.fromkeys((row["model"], row["dropout"]) for row in rows))
    for i, (_, wiring) in enumerate(PAIRS):
        of_wiring = [row for row in rows if row["wired by"] == wiring]
        at = [groups.index((row["model"], row["dropout"])) + 0.28 * (i - 1) for row in of_wiring]
        ratios = [row["other / this one"] for row in of_wiring]
        errors = [
            [ratio - row["90 % from"] for ratio, row in zip(ratios, of_wiring, strict=True)],
            [row["to"] - ratio for ratio, row in zip(ratios, of_wiring, strict=True)],
        ]
        axes.bar(at, ratios, 0.26, yerr=errors, label=wiring, error_kw={"linewidth": 1})
    axes.axhline(1, color="black", linewidth=1)
    axes.set(ylabel="times as fast", yscale="log", title="Epochs beside the other release, wired in the same way")
    readable_log(axes.yaxis)
    axes.set_xticks(range(len(groups)), [f"{name}, {dropout}" for name, dropout in groups], rotation=45)
    axes.set_xlabel("model, dropout")
    axes.legend(frameon=False)
    axes.grid(alpha=0.3, axis="y")
    axes.set_axisbelow(True)
    axes.spines[["top", "right"]].set_visible(False)
    return figure


def main() -> None:
    parser = arguments(__doc__)
    parser.add_argument("--other", type=Path, required=True, help="root of the other release, built in place")
    parser.add_argument("--models", nargs="+", choices=MODELS, default=MODELS, help="default: all")
    parser.add_argument("--rounds", type=int, help="epochs of each side (default: 15, or 2 in a quick run)")
    args = parse(parser)
    if not (args.other / "torch_gas" / "__init__.py").is_file():
        parser.error(f"--other: {args.other} has no folder torch_gas; give the root of a release, built in place")
    record = machine()
    setting = TINY if args.quick else FULL_SIZE
    rounds = args.rounds or (2 if args.quick else 15)
    with tempfile.TemporaryDirectory() as folder:
        graphs = Path(folder) / "graphs.pt"
        made = make_graphs(setting)
        held = {"weighted": made.weighted.to_dict(), "unweighted": made.unweighted.to_dict(), "ptr": made.ptr}
        torch.save({**held, "setting": tuple(setting)}, graphs)
        rows = [
            row
            for name in args.models
            for dropout in (0.0, 0.5)
            for row in compare(args.other, graphs, name, dropout, rounds, args.threads, 0.0 if args.quick else PATIENCE)
        ]
    save_picture(draw(rows), args.out, "releases")
    note = (
        f"{setting.num_nodes:,} nodes, {made.unweighted.num_edges:,} directed edges, {setting.channels} features and hidden "
        f"channels, {setting.num_layers} layers; {setting.num_parts} parts by METIS, {setting.parts_a_batch} at random in a "
        "batch; Adam. By hand: this package's models over CSR. By scale(): PyG's over an edge_index, beside scale() of the other "
        f"release in both cases. Medians of {rounds} epochs in turn, each of them begun when others use less than {QUIET} "
        "cores; the interval draws pairs anew."
    )
    save(args, "releases", __doc__, record, [table("Epochs of both releases", rows, note)])


if __name__ == "__main__":
    main()
