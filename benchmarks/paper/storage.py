"""Do histories need float32? Test accuracy with histories of 16 and 8 bits a number.

The same model from the same initial parameters trains on the same batches, its histories in each storage type. Layers, parameters
and the exact evaluation after each epoch are float32 in all runs, so that only what batches read from histories differs.
"""

from __future__ import annotations

import itertools
import math
import statistics
from functools import partial
from typing import Any, TypeAlias

import torch
from cells import Cells, Job, Tasks, cell_of
from command import TITLES, arguments, check_found, pairs, parse, save, spread, wanted
from matplotlib import pyplot as plt
from shared import save_picture, table
from tqdm import tqdm
from training import HISTORIES, Recipe, Task, best, load_recipes, make_model, prepare, train

BASE = "float32"
TYPES = {BASE: torch.float32, "float16": torch.float16, "bfloat16": torch.bfloat16, "int8": torch.int8}
COLORS = dict(zip(TYPES, ("tab:gray", "tab:blue", "tab:green", "tab:orange"), strict=True))
CLOSE = 0.3  # points

Found: TypeAlias = "dict[tuple[str, str], dict[str, list[dict[str, Any]]]]"  # runs by model and data set, and by type


def run(name: str, task: Task, recipe: Recipe, kind: str, seed: int, device: str) -> dict[str, Any]:
    """One training run."""
    with tqdm(total=recipe.epochs, desc=f"{name}, {kind}, seed {seed}", leave=False, position=1) as progress:
        model = make_model(name, task, recipe, device, history_dtype=TYPES[kind])
        epochs = train(model, task, recipe, HISTORIES, seed, device, progress.update)
    epoch, scores = best(epochs)
    row_bytes = sum(history.emb[0].nbytes for history in model.histories)
    return {"epoch": epoch, "val": scores.val, "test": scores.test, "bytes": row_bytes}


def differences(runs: dict[str, list[dict[str, Any]]], kind: str) -> list[float]:
    """Points of test accuracy above float32, seed by seed."""
    return [100 * (run["test"] - base["test"]) for run, base in zip(runs[kind], runs[BASE], strict=True)]


def standard_error(points: list[float]) -> float:
    """Of the mean."""
    return statistics.stdev(points) / math.sqrt(len(points))


def rows_of(found: Found) -> list[dict[str, Any]]:
    """A row for each model, data set and storage type."""
    rows = []
    for (name, dataset), runs in found.items():
        for kind in TYPES:
            points = differences(runs, kind)
            rows.append(
                {
                    "model": TITLES.get(name, name),
                    "data set": dataset,
                    "histories": kind,
                    "bytes a node": runs[kind][0]["bytes"],
                    "seeds": len(points),
                    "test, %": spread([100 * run["test"] for run in runs[kind]]),
                    "minus float32, points": "-" if kind == BASE else f"{statistics.fmean(points):+.2f}",
                    "standard error": "-" if kind == BASE or len(points) < 2 else f"{standard_error(points):.2f}",
                }
            )
    return rows


def draw(found: Found) -> Any:
    """Differences to float32: each seed a point, means as bars with their standard errors."""
    figure, grid = plt.subplots(1, len(found), figsize=(3.4 * len(found), 3.6), layout="constrained", squeeze=False)
    kinds = [kind for kind in TYPES if kind != BASE]
    for axes, ((name, dataset), runs) in zip(grid[0], found.items(), strict=True):
        axes.axhspan(-CLOSE, CLOSE, color="tab:gray", alpha=0.15, linewidth=0)
        axes.axhline(0, color="black", linewidth=0.8)
        for i, kind in enumerate(kinds):
            points = differences(runs, kind)
            axes.plot([i] * len(points), points, ".", color=COLORS[kind], alpha=0.5, markeredgewidth=0)
            error = standard_error(points) if len(points) > 1 else 0
            axes.errorbar(
                i, statistics.fmean(points), error, fmt="_", color=COLORS[kind], markersize=22, elinewidth=1.5
            )
        axes.set_xticks(range(len(kinds)), kinds)
        axes.set_xlim(-0.5, len(kinds) - 0.5)
        axes.set_title(f"{TITLES.get(name, name)} on {dataset}")
        axes.grid(alpha=0.3, axis="y")
        axes.spines[["top", "right"]].set_visible(False)
    grid[0][0].set_ylabel("test accuracy minus float32, points")
    return figure


def main() -> None:
    args = parse(arguments(__doc__, "storage.toml", seeds=10))
    recipes, cells = load_recipes(args.recipes), Cells(args.out / "cells" / "storage.jsonl")
    jobs = []
    for (name, dataset), seed, kind in itertools.product(wanted(args, recipes), range(args.seeds), TYPES):
        recipe, of = recipes[name][dataset], cell_of(name, dataset, kind, seed)
        compute = partial(run, name=name, recipe=recipe, kind=kind, seed=seed, device=args.device)
        jobs.append(Job(of, recipe.settings, compute, (recipe.parts,)))
    cells.run(jobs, Tasks(partial(prepare, args.root)))
    report(args, recipes, cells)


def report(args: Any, recipes: dict[str, dict[str, Recipe]], cells: Cells) -> None:
    """Table and figure of all runs that are there."""
    found: Found = {}
    for name, dataset in pairs(recipes):
        runs = cells.complete(list(TYPES), partial(cell_of, name, dataset), recipes[name][dataset].settings)
        if runs:
            found[name, dataset] = runs
    check_found(args, found)
    save_picture(draw(found), args.out, "storage")
    note = (
        "Mean and standard deviation over seeds: initial parameters, order of batches, dropout, and the split where a data set "
        "has random ones. Differences are means of those of runs with the same seed, which part soon, as rounding of any kind "
        "grows with the steps; the standard error of the mean says how much that is worth. Test accuracy is that of the epoch "
        "with the best validation accuracy. int8 has a float32 scale for each row. In the figure, points are seeds, and the band "
        f"is ±{CLOSE} points."
    )
    save(args, "storage", __doc__, cells.machine(), [table("Accuracy by storage type", rows_of(found), note)])


if __name__ == "__main__":
    main()
