"""Do GNNs with histories reach the accuracy of full-batch training on small graphs? (The paper's Table 1.)

Each shipped model trains with the paper's recipe on each small transductive graph, full batch and with histories, from the same
initial parameters; test accuracy is that of the epoch with the best validation accuracy.
"""

from __future__ import annotations

import itertools
import statistics
from functools import partial
from typing import Any, TypeAlias

from cells import Cells, Job, Tasks, cell_of
from command import TITLES, arguments, check_found, pairs, parse, save, spread, wanted
from matplotlib import pyplot as plt
from shared import save_picture, table
from tqdm import tqdm
from training import FULL_BATCH, HISTORIES, Recipe, Task, best, load_recipes, make_model, prepare, train

METHODS = (FULL_BATCH, HISTORIES)
COLORS = {FULL_BATCH: "tab:gray", HISTORIES: "tab:blue"}

Found: TypeAlias = "dict[tuple[str, str], dict[str, list[dict[str, Any]]]]"  # runs by model and data set, and by method


def run(name: str, task: Task, recipe: Recipe, method: str, seed: int, device: str) -> dict[str, Any]:
    """One training run."""
    with tqdm(total=recipe.epochs, desc=f"{name}, {method}, seed {seed}", leave=False, position=1) as progress:
        model = make_model(name, task, recipe, device)
        epochs = train(model, task, recipe, method, seed, device, progress.update)
    epoch, scores = best(epochs)
    seconds = {"training, s": epochs[-1].training_seconds, "evaluation, s": epochs[-1].evaluation_seconds}
    return {"epoch": epoch, "val": scores.val, "test": scores.test, **seconds}


def rows_of(found: Found, recipes: Any) -> list[dict[str, Any]]:
    """A row for each model and data set."""
    rows = []
    for (name, dataset), runs in found.items():
        published = recipes[name][dataset].published
        tests = {method: [100 * run["test"] for run in runs[method]] for method in METHODS}
        gaps = [b - a for a, b in zip(tests[FULL_BATCH], tests[HISTORIES], strict=True)]
        row = {"model": TITLES.get(name, name), "data set": dataset, "seeds": len(gaps)}
        for method in METHODS:
            row[f"{method}, %"] = spread(tests[method])
            paper = published.get(method.replace(" ", "_"))
            row[f"{method} in the paper, %"] = "-" if paper is None else f"{paper[0]:.2f} ± {paper[1]:.2f}"
        row["histories minus full batch"] = f"{statistics.fmean(gaps):+.2f}"
        runs_with_histories = runs[HISTORIES]
        refresh = sum(run["evaluation, s"] for run in runs_with_histories)
        row["time for refreshes, %"] = round(
            100 * refresh / (refresh + sum(r["training, s"] for r in runs_with_histories))
        )
        rows.append(row)
    return rows


def draw(found: Found, recipes: Any) -> Any:
    """Accuracy of each model and data set, ours beside the paper's: each run a point, means and deviations as bars."""
    names, datasets = (list(dict.fromkeys(key[i] for key in found)) for i in (0, 1))
    figure, grid = plt.subplots(1, len(datasets), figsize=(3.4 * len(datasets), 4), layout="constrained", squeeze=False)
    for axes, dataset in zip(grid[0], datasets, strict=True):
        shown = [name for name in names if (name, dataset) in found]
        for (i, name), (j, method) in itertools.product(enumerate(shown), enumerate(METHODS)):
            x, color = i + 0.4 * (j - 0.5), COLORS[method]
            values = [100 * run["test"] for run in found[name, dataset][method]]
            axes.plot([x] * len(values), values, ".", color=color, alpha=0.35, markeredgewidth=0)
            spread = statistics.stdev(values) if len(values) > 1 else 0
            axes.errorbar(x - 0.05, statistics.fmean(values), spread, fmt="o", color=color, capsize=3)
            paper = recipes[name][dataset].published.get(method.replace(" ", "_"))
            if paper is not None:
                axes.errorbar(x + 0.07, *paper, fmt="_", color=color, alpha=0.6, elinewidth=1, markersize=9)
        axes.set_xticks(range(len(shown)), [TITLES.get(name, name) for name in shown])
        axes.set_title(dataset)
        axes.grid(alpha=0.3, axis="y")
        axes.spines[["top", "right"]].set_visible(False)
    grid[0][0].set_ylabel("test accuracy, %")
    for method in METHODS:
        grid[0][0].errorbar([], [], [], fmt="o", color=COLORS[method], capsize=3, label=method)
    grid[0][0].errorbar([], [], [], fmt="_", color="black", alpha=0.6, elinewidth=1, markersize=9, label="the paper")
    figure.legend(frameon=False, loc="outside lower center", ncols=3)
    return figure


def main() -> None:
    args = parse(arguments(__doc__, "small.toml", seeds=10))
    recipes, cells = load_recipes(args.recipes), Cells(args.out / "cells" / "small.jsonl")
    jobs = []
    for (name, dataset), seed, method in itertools.product(wanted(args, recipes), range(args.seeds), METHODS):
        recipe, of = recipes[name][dataset], cell_of(name, dataset, method, seed)
        compute = partial(run, name=name, recipe=recipe, method=method, seed=seed, device=args.device)
        jobs.append(Job(of, recipe.settings, compute, (recipe.parts,)))
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
    save_picture(draw(found, recipes), args.out, "small")
    rows = rows_of(found, recipes)
    gaps = [row["histories minus full batch"] for row in rows]
    note = (
        "Mean and standard deviation over seeds: initial parameters, order of batches, dropout, and the split where a data "
        "set has random ones. Histories minus full batch: mean over seeds; over all rows "
        f"{statistics.fmean(map(float, gaps)):+.2f}. Exact evaluation refreshes all histories after each epoch, as in the "
        "paper; its share of the time of training with histories is in the last column."
    )
    save(args, "small", __doc__, cells.machine(), [table("Accuracy on small graphs", rows, note)])


if __name__ == "__main__":
    main()
