"""Tables and figures of the comparison of gradients, from all runs that are there."""

from __future__ import annotations

import statistics
from collections.abc import Callable
from typing import Any, TypeAlias

import numpy as np
from cells import MOST_SEEDS, Cells
from command import check_found, save, spread
from grid import METIS, Cell
from matplotlib import pyplot as plt
from registry import FULL, GAS, METHODS, named
from shared import save_picture, table

GOAL = 0.99  # of the best validation accuracy that the full batch reaches with the same seed
MIB = 2**20

Run: TypeAlias = "dict[str, Any]"  # what a run left
Runs: TypeAlias = "dict[str, dict[int, Run]]"  # of a cell, by method and seed
Found: TypeAlias = "list[tuple[Cell, Runs]]"
Of: TypeAlias = "Callable[[str, Cell, int], dict[str, Any]]"


def collect(recipes: list[Cell], cells: Cells, of: Of) -> Found:
    """All runs of each cell; variants that only add methods or seeds are part of the cell that they vary."""
    found: dict[str, tuple[Cell, Runs]] = {}
    for cell in recipes:
        _, runs = found.setdefault(str(cell.of), (cell, {}))
        for name in named((*cell.methods, FULL)):  # full batch is the same for all partitions
            settings = METHODS[name].settings(cell)
            there = {seed: cells.get(of(name, cell, seed), settings) for seed in range(MOST_SEEDS)}
            done = {seed: run for seed, run in there.items() if run is not None}
            if done:
                runs[name] = done
    return [(cell, {name: runs[name] for name in METHODS if name in runs}) for cell, runs in found.values() if runs]


def test_of(run: Run, epochs: int | None = None) -> float:
    """Test accuracy at the best validation epoch of the first ``epochs``, in per cent."""
    test = [test for epoch, _, test, _ in run["records"] if epochs is None or epoch <= epochs]
    return float(test[-1]) / 100


def tests(cell: Cell, runs: dict[int, Run]) -> dict[int, float]:
    """Test accuracies by seed, of the epochs that all methods have."""
    return {seed: test_of(run, cell.epochs) for seed, run in runs.items()}


def paired(ours: dict[int, float], theirs: dict[int, float]) -> tuple[float, float, int] | None:
    """Mean difference over the seeds that both have, its standard error (nan of one seed), and their number."""
    gaps = [ours[seed] - theirs[seed] for seed in ours if seed in theirs]
    if not gaps:
        return None
    error = statistics.stdev(gaps) / len(gaps) ** 0.5 if len(gaps) > 1 else float("nan")
    return statistics.fmean(gaps), error, len(gaps)


def difference(ours: dict[int, float], theirs: dict[int, float]) -> str:
    """The paired difference in words."""
    pair = paired(ours, theirs)
    if pair is None:
        return "-"
    mean, error, number = pair
    return f"{mean:+.2f}" + (f" ± {error:.2f}" if number > 1 else "")


def title(cell: Cell) -> dict[str, Any]:
    """The columns that name a cell."""
    batches = f"{cell.batches}" if cell.grouped == 1 else f"{cell.batches} of {cell.grouped} parts"
    return {"model": cell.name, "data set": cell.data, "parts": cell.parts, "batches": batches, "rate": f"{cell.lr:g}"}


def accuracy_rows(found: Found) -> list[dict[str, Any]]:
    """A row for each cell: test accuracies of the methods that all cells have."""
    core = [name for name, each in METHODS.items() if each.core]
    return [
        {
            **title(cell),
            "epochs": cell.epochs,
            "seeds": max(map(len, runs.values())),
            **{name: spread(list(tests(cell, runs[name]).values())) if name in runs else "-" for name in core},
        }
        for cell, runs in found
    ]


def difference_rows(found: Found) -> list[dict[str, Any]]:
    """A row for each cell: paired differences to GAS."""
    core = [name for name, each in METHODS.items() if each.core and name != GAS]
    rows = []
    for cell, runs in found:
        if GAS in runs:
            gas = tests(cell, runs[GAS])
            gaps = {name: difference(tests(cell, runs.get(name, {})), gas) for name in core}
            rows.append({**title(cell), **gaps})
    return rows


def best_rate_rows(found: Found) -> list[dict[str, Any]]:
    """For each base whose full batch was run at several rates: methods beside the full batch at the best of them.

    The best rate is chosen by test accuracy, in favour of the full batch, and apart for as many epochs and for all of its steps.
    """
    rows: list[dict[str, Any]] = []
    seen = set()
    for cell, runs in found:
        graph = (cell.name, cell.data)
        if graph in seen:
            continue
        seen.add(graph)  # by its base, which comes first
        rates = {other.lr: done[FULL] for other, done in found if (other.name, other.data) == graph and FULL in done}
        if len(rates) < 2:
            continue
        epochs = {lr: tests(cell, done) for lr, done in rates.items()}
        steps = {lr: {seed: test_of(run) for seed, run in done.items()} for lr, done in rates.items()}
        best = [max(each.items(), key=lambda item: statistics.fmean(item[1].values())) for each in (epochs, steps)]
        head = {"model": cell.name, "data set": cell.data, "batches": cell.batches}
        for (lr, accuracies), count in zip(best, (cell.epochs, cell.full_epochs), strict=True):
            row = {"method": f"{FULL}, {count} steps", "rate": f"{lr:g}", "seeds": len(accuracies)}
            rows.append(
                {**head, **row, "test, %": spread(list(accuracies.values())), **dict.fromkeys(_MINUS_BEST, "-")}
            )
        for name, done in runs.items():
            if name != FULL and not METHODS[name].fixed:
                here = tests(cell, done)
                row = {
                    "method": name,
                    "rate": f"{cell.lr:g}",
                    "seeds": len(done),
                    "test, %": spread(list(here.values())),
                }
                gaps = (difference(here, accuracies) for _, accuracies in best)
                rows.append({**head, **row, **dict(zip(_MINUS_BEST, gaps, strict=True))})
    return rows


_MINUS_BEST = ("minus full batch of as many epochs", "minus full batch of as many steps")


def verdict(found: Found, name: str) -> str:
    """How a method compares with GAS over all cells, in words."""
    pairs = []
    for cell, runs in found:
        pair = paired(tests(cell, runs.get(name, {})), tests(cell, runs.get(GAS, {})))
        if pair is not None:
            pairs.append((pair, " ".join(map(str, title(cell).values()))))
    if not pairs:
        return ""
    below = [
        f"{where} ({mean:+.2f} ± {error:.2f})" for (mean, error, _), where in pairs if mean < -1 and mean < -2 * error
    ]
    between = [
        f"{where} ({mean:+.2f})"
        for (mean, error, _), where in pairs
        if mean < 0 and not (mean < -1 and mean < -2 * error)
    ]
    return (
        f" {name}: mean of {len(pairs)} cells {statistics.fmean(mean for (mean, *_), _ in pairs):+.2f} points; below GAS by "
        f"more than a point and two standard errors in {', '.join(below) or 'none'}; "
        f"below it by less in {', '.join(between) or 'none'}."
    )


def reached(run: Run, full: Run) -> tuple[int, float] | None:
    """The first epoch, from 1, that reaches the goal, and seconds until then."""
    goal = GOAL * full["records"][-1][1]
    return next(((epoch, ms / 1e3) for epoch, val, _, ms in run["records"] if val >= goal), None)


def cost_rows(found: Found) -> list[dict[str, Any]]:
    """A row for each base and method: how soon it reaches the full batch, and what a step takes."""
    rows = []
    for cell, runs in found:
        for name, done in runs.items():
            full, gas = runs.get(FULL, {}), tests(cell, runs.get(GAS, {}))
            goals = {seed: reached(run, full[seed]) for seed, run in done.items() if seed in full}
            times = [each for each in goals.values() if each is not None]
            epochs, seconds = (statistics.median(each) for each in zip(*times, strict=True)) if times else (0, 0)
            all_reach = len(times) == len(goals) > 0
            memory = next((run for run in done.values() if "step, bytes" in run), None)
            here = tests(cell, done)
            rows.append(
                {
                    **title(METHODS[name].cell(cell)),
                    "method": name,
                    "seeds": len(done),
                    "test, %": spread(list(here.values())),
                    "minus GAS": difference(here, gas) if name != GAS else "-",
                    f"epochs to {GOAL:.0%} of full batch": f"{epochs:g}" if all_reach else "-",
                    "seconds to it": f"{seconds:.3g}" if all_reach else "-",
                    "runs that reach it": f"{len(times)} of {len(goals)}",
                    "epoch, s": statistics.median(_epoch_seconds(run) for run in done.values()),
                    "memory of a step, MiB": memory["step, bytes"] / MIB if memory else "-",
                    "tables, MiB": memory["tables, bytes"] / MIB if memory else "-",
                }
            )
            if METHODS[name].full and any(run["last"][0] > cell.epochs for run in done.values()):
                longest = max(run["last"][0] for run in done.values())
                all_of_it = {seed: test_of(run) for seed, run in done.items()}
                row = {**rows[-1], "method": f"{name}, {longest} epochs", "test, %": spread(list(all_of_it.values()))}
                rows.append({**row, "minus GAS": difference(all_of_it, gas)})
    return rows


def _epoch_seconds(run: Run) -> float:
    epoch, _, _, ms = run["last"]
    return float(ms / epoch / 1e3)


def draw(found: Found) -> Any:
    """A panel for each base, over epochs above and over seconds below: the best validation accuracy so far, mean over seeds."""
    figure, grid = plt.subplots(2, len(found), figsize=(4.8 * len(found), 7.2), layout="constrained", squeeze=False)
    shown: dict[str, Any] = {}
    for column, (cell, runs) in zip(grid.T, found, strict=True):
        top = 0.0
        for name, done in runs.items():
            number = min(run["last"][0] for run in done.values())
            epochs = np.arange(1, number + 1)
            val = np.mean([_best_so_far(run, epochs) for run in done.values()], axis=0) / 100
            seconds = epochs * statistics.fmean(_epoch_seconds(run) for run in done.values())
            top = max(top, float(val.max()))
            for axes, x in zip(column, (epochs, seconds), strict=True):
                (shown[name],) = axes.plot(
                    x, val, color=METHODS[name].color, linestyle=METHODS[name].line, linewidth=1.4
                )
        for axes, label in zip(column, ("epochs", "seconds of one core"), strict=True):
            axes.set(xscale="log", xlabel=label, ylim=(0.6 * top, 1.02 * top))
            axes.grid(alpha=0.3, which="both", linewidth=0.5)
            axes.spines[["top", "right"]].set_visible(False)
        column[0].set_title(f"{cell.name} on {cell.data}")
    for axes in grid[:, 0]:
        axes.set_ylabel("best validation accuracy so far, %")
    ordered = [name for name in METHODS if name in shown]
    figure.legend([shown[name] for name in ordered], ordered, frameon=False, loc="outside right upper")
    return figure


SHORT = {"GCN-3 on WordNet": 20, "GCNII-16 on Cora": 10}  # batches of an epoch


def draw_short(found: Found) -> Any:
    """Two cells over epochs, each method with the parts that it was run on: the best validation accuracy so far."""
    figure, panels = plt.subplots(1, len(SHORT), figsize=(14, 3.8), layout="constrained")
    for axes, (name, batches) in zip(panels, SHORT.items(), strict=True):
        for cell, runs in found:
            is_shown = f"{cell.name} on {cell.data}" == name and cell.batches == batches and cell.lr == 0.01
            for method, done in runs.items() if is_shown and cell.grouped == 1 else ():
                number = min(cell.epochs, *(run["last"][0] for run in done.values()))
                epochs = np.arange(1, number + 1)
                val = np.mean([_best_so_far(run, epochs) for run in done.values()], axis=0) / 100
                parts = METHODS[method].cell(cell).parts
                drawn = "" if METHODS[method].fixed else " (random parts)"  # samplers draw nodes from the whole graph
                label = f"{method}{' (METIS parts)' if parts == METIS else drawn}"
                is_base = parts != METIS or METHODS[method].fixed
                line = METHODS[method].line if is_base else ":"
                if label not in axes.get_legend_handles_labels()[1]:
                    axes.plot(epochs, val, color=METHODS[method].color, linestyle=line, label=label)
        axes.set(title=name, xlabel="epochs", ylabel="best validation accuracy so far, %", ylim=(40, None))
        axes.grid(alpha=0.3)
        axes.spines[["top", "right"]].set_visible(False)
        if axes.lines:
            axes.legend(frameon=False, fontsize=8, loc="upper left", bbox_to_anchor=(1, 1))
    return figure


def _best_so_far(run: Run, epochs: Any) -> Any:
    """The best validation accuracy of the first 1, 2, ... epochs."""
    records = np.array(run["records"])
    return records[np.searchsorted(records[:, 0], epochs, side="right") - 1, 1]


def draw_differences(found: Found) -> Any:
    """A line for each cell: mean test accuracy minus that of GAS, and its standard error, of each method."""
    core = [name for name, each in METHODS.items() if each.core and name != GAS]
    found = [(cell, runs) for cell, runs in found if GAS in runs and len(runs) > 1]
    figure, axes = plt.subplots(figsize=(9, 1.2 + 0.32 * len(found)), layout="constrained")
    for row, (cell, runs) in enumerate(found):
        for place, name in enumerate(core):
            pair = paired(tests(cell, runs.get(name, {})), tests(cell, runs.get(GAS, {})))
            if pair is not None:
                y, error = row + 0.6 * (place / len(core) - 0.5), pair[1] if pair[2] > 1 else 0
                axes.errorbar(pair[0], y, xerr=error, fmt="o", color=METHODS[name].color, markersize=4, capsize=2)
    axes.axvline(0, color="tab:blue", linewidth=0.8)
    axes.set_yticks(range(len(found)), [", ".join(map(str, title(cell).values())) for cell, _ in found], fontsize=8)
    axes.invert_yaxis()
    axes.set_xlabel("test accuracy minus that of GAS, points")
    for name in core:
        axes.plot([], [], "o", color=METHODS[name].color, label=name)
    axes.legend(frameon=False, fontsize=8, loc="upper left", bbox_to_anchor=(1, 1))
    axes.grid(alpha=0.3)
    axes.spines[["top", "right"]].set_visible(False)
    return figure


NOTE = (
    "Mean and standard deviation over seeds of test accuracy at the best validation epoch; full batch has as many epochs as the "
    "others, of one step each. Seeds draw parameters, random parts, the order of batches, dropout, and the split where a data "
    "set has several; they are the same for all methods. Evaluation is exact, on the whole graph, and changes no history. "
    "Histories are filled once."
)
PAIRED = (
    "Mean difference over seeds, and its standard error. Full batch has as many epochs as the others, of one step each."
)
BEST = (
    "The rate of the full batch is the best of those that were run, by mean test accuracy, apart for as many epochs and for as "
    "many steps. Differences are paired over seeds, with their standard error."
)
COST = (
    f"Epochs and seconds are medians over seeds until validation accuracy first is {GOAL:.0%} of the best that the full batch "
    "reaches with the same seed in all its epochs. Seconds are those of the process on one core, without evaluation. Memory: "
    "peak bytes of tensors in a step on the largest batch, without parameters, optimiser and tables."
)


def report(args: Any, recipes: list[Cell], cells: Cells, of: Of) -> None:
    """Tables and figures of all runs that are there."""
    found = collect(recipes, cells, of)
    check_found(args, found)
    bases = [(cell, runs) for cell, runs in found if cell.stage == 0]
    tables = [table("Accuracy of all cells", accuracy_rows(found), NOTE)]
    differences = difference_rows(found)
    if differences:
        words = "".join(verdict(found, name) for name in METHODS if name.startswith("compensation"))
        tables.append(table("Minus GAS", differences, PAIRED + words))
        save_picture(draw_differences(found), args.out, "gradients_differences")
    costs = cost_rows([(cell, runs) for cell, runs in found if cell.stage < 2])
    if costs:
        tables.append(table("Cost of each method", costs, COST))
    rates = best_rate_rows(found)
    if rates:
        tables.append(table("Beside the full batch at its best rate", rates, BEST))
    if bases:
        save_picture(draw(bases), args.out, "gradients")
        save_picture(draw_short(found), args.out, "gradients_short")
    save(args, "gradients", args.question, cells.machine(), tables)
