"""Do histories need more epochs than full-batch training to reach the same validation accuracy? (The paper's Figure 3.)

The same model from the same initial parameters trains full batch, and with histories on METIS and on random parts. An epoch sees
each node once in all of them, but with histories it has a step of the optimiser for each batch.
"""

from __future__ import annotations

import itertools
import statistics
from functools import partial
from typing import Any, TypeAlias

import torch
from cells import Cells, Job, Tasks, cell_of
from command import TITLES, arguments, check_found, pairs, parse, save, spread, wanted
from matplotlib import pyplot as plt
from shared import save_picture, table
from torch import Tensor
from tqdm import tqdm
from training import FULL_BATCH, HISTORIES, Recipe, Task, best, load_recipes, make_model, prepare, train

METIS, RANDOM = "METIS parts", "random parts"
METHODS = (FULL_BATCH, METIS, RANDOM)
PARTITIONS = {FULL_BATCH: "metis", METIS: "metis", RANDOM: "random"}
COLORS = dict(zip(METHODS, ("tab:gray", "tab:blue", "tab:orange"), strict=True))
GOAL = 0.99  # of the best validation accuracy that the full batch reaches with the same seed

Found: TypeAlias = "dict[tuple[str, str], dict[str, list[dict[str, Any]]]]"  # runs by model and data set, and by method


def run(name: str, task: Task, recipe: Recipe, method: str, seed: int, device: str) -> dict[str, Any]:
    """One training run: validation accuracy after each epoch."""
    with tqdm(total=recipe.epochs, desc=f"{name}, {method}, seed {seed}", leave=False, position=1) as progress:
        model = make_model(name, task, recipe, device)
        sort = FULL_BATCH if method == FULL_BATCH else HISTORIES
        epochs = train(model, task, recipe, sort, seed, device, progress.update)
    return {"val": [round(epoch.val, 5) for epoch in epochs], "test": best(epochs)[1].test}


def steps_an_epoch(recipe: Recipe, method: str) -> int:
    """Batches, each of which is a step of the optimiser if it has training nodes."""
    return 1 if method == FULL_BATCH else -(-recipe.parts // recipe.batch_size)


def first_epoch(val: list[float], goal: float) -> int | None:
    """The first epoch, from 1, that reaches ``goal``."""
    return next((epoch for epoch, accuracy in enumerate(val, 1) if accuracy >= goal), None)


def rows_of(found: Found, recipes: dict[str, dict[str, Recipe]]) -> list[dict[str, Any]]:
    """A row for each model, data set and method."""
    rows = []
    for (name, dataset), runs in found.items():
        goals = [GOAL * max(run["val"]) for run in runs[FULL_BATCH]]
        for method in METHODS:
            epochs = [first_epoch(run["val"], goal) for run, goal in zip(runs[method], goals, strict=True)]
            reached = [epoch for epoch in epochs if epoch is not None]
            median = statistics.median(reached) if len(reached) == len(epochs) else None
            steps = steps_an_epoch(recipes[name][dataset], method)
            rows.append(
                {
                    "model": TITLES.get(name, name),
                    "data set": dataset,
                    "method": method,
                    "seeds": len(epochs),
                    "best validation, %": spread([100 * max(run["val"]) for run in runs[method]]),
                    "test, %": spread([100 * run["test"] for run in runs[method]]),
                    f"epochs to {GOAL:.0%} of full batch": "not all reach it" if median is None else f"{median:g}",
                    "runs that reach it": f"{len(reached)} of {len(epochs)}",
                    "steps an epoch": steps,
                    "steps to it": "-" if median is None else f"{median * steps:g}",
                }
            )
    return rows


def draw(found: Found, recipes: dict[str, dict[str, Recipe]]) -> Any:
    """A panel for each model and data set, over epochs above and over steps of the optimiser below: means and deviations."""
    figure, grid = plt.subplots(2, len(found), figsize=(4.6 * len(found), 6.6), layout="constrained", squeeze=False)
    for column, ((name, dataset), runs) in zip(grid.T, found.items(), strict=True):
        curves = {method: torch.tensor([run["val"] for run in runs[method]]).mul(100) for method in METHODS}
        top = float(curves[FULL_BATCH].mean(0).max())
        for axes, by_steps in zip(column, (False, True), strict=True):
            axes.axhline(GOAL * top, color="black", linewidth=0.8, linestyle=":")
            for method, values in curves.items():
                steps = steps_an_epoch(recipes[name][dataset], method) if by_steps else 1
                _band(axes, steps * torch.arange(1, values.size(1) + 1), values, COLORS[method])
            axes.set_xscale("log")
            axes.set_ylim(bottom=0.55 * top, top=1.03 * top)
            axes.set_xlabel("steps of the optimiser" if by_steps else "epochs")
            axes.grid(alpha=0.3, which="both", linewidth=0.5)
            axes.spines[["top", "right"]].set_visible(False)
        column[0].set_title(f"{TITLES.get(name, name)} on {dataset}")
    for axes in grid[:, 0]:
        axes.set_ylabel("validation accuracy, %")
    for method, color in COLORS.items():
        grid[0][0].plot([], [], color=color, label=method)
    grid[0][0].plot([], [], ":", color="black", linewidth=0.8, label=f"{GOAL:.0%} of the full batch's best mean")
    figure.legend(frameon=False, loc="outside lower center", ncols=4 if len(found) > 1 else 2)
    return figure


def _band(axes: Any, x: Tensor, values: Tensor, color: str) -> None:
    """The mean of several curves [seeds, epochs], and one deviation to each side."""
    mean = values.mean(0)
    axes.plot(x, mean, color=color, linewidth=1.4)
    if len(values) > 1:
        axes.fill_between(x, mean - values.std(0), mean + values.std(0), color=color, alpha=0.2, linewidth=0)


def main() -> None:
    args = parse(arguments(__doc__, "convergence.toml", seeds=5))
    recipes, cells = load_recipes(args.recipes), Cells(args.out / "cells" / "convergence.jsonl")
    jobs = []
    for (name, dataset), method, seed in itertools.product(wanted(args, recipes), METHODS, range(args.seeds)):
        recipe, of = recipes[name][dataset], cell_of(name, dataset, method, seed)
        compute = partial(run, name=name, recipe=recipe, method=method, seed=seed, device=args.device)
        jobs.append(Job(of, recipe.settings, compute, (recipe.parts, PARTITIONS[method])))
    cells.run(jobs, Tasks(partial(prepare, args.root)))
    report(args, recipes, cells)


def report(args: Any, recipes: dict[str, dict[str, Recipe]], cells: Cells) -> None:
    """Table and figure of all runs that are there."""
    found: Found = {}
    for name, dataset in pairs(recipes):
        runs = cells.complete(METHODS, partial(cell_of, name, dataset), recipes[name][dataset].settings)
        if runs:
            found[name, dataset] = runs
    check_found(args, found)
    save_picture(draw(found, recipes), args.out, "convergence")
    note = (
        "Mean and standard deviation over seeds: initial parameters, order of batches, dropout. Exact evaluation after each "
        "epoch refreshes the histories. Epochs and steps are medians over seeds until validation accuracy first is "
        f"{GOAL:.0%} of the best that the full batch reaches with the same seed; random parts are the same in all runs."
    )
    save(
        args,
        "convergence",
        __doc__,
        cells.machine(),
        [table("Epochs to full-batch accuracy", rows_of(found, recipes), note)],
    )


if __name__ == "__main__":
    main()
