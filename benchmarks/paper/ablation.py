"""What do METIS parts and Lipschitz regularisation contribute where many layers or sums make histories matter?

A deep GCNII, and GIN on graphs like CLUSTER's, train with histories on METIS and on random parts, with and without the penalty,
and full batch. Histories are exact before the first epoch; after that, either nobody refreshes them, or exact evaluation does
after each epoch, as in the paper. Before it does, their errors are measured, and the errors of what batches compute
with them are held against the paper's bound.
"""

from __future__ import annotations

import itertools
import statistics
from dataclasses import dataclass, replace
from functools import partial
from typing import Any, NamedTuple, TypeAlias

from cells import Cells, Job, Tasks
from command import TITLES, arguments, check_found, pairs, parse, save, spread, wanted
from matplotlib import pyplot as plt
from matplotlib.ticker import MaxNLocator
from shared import save_picture, table
from tqdm import tqdm
from training import FULL_BATCH, HISTORIES, Recipe, Task, best, load_recipes, make_model, prepare, train

from torch_gas import Monitor, ScalableGNN, SubgraphLoader
from torch_gas.extensions.regularization import LocalPerturbation

MEASUREMENTS = 8  # of errors, in a run
PARTS = {"metis": "METIS parts", "random": "random parts"}


@dataclass(frozen=True)
class Regularised(Recipe):
    """A recipe with the weight of the Lipschitz regularisation, and the standard deviation of its noise."""

    penalty: float = 1.0
    noise: float = 0.1


class Variant(NamedTuple):
    """How a model trains."""

    partition: str = ""  # full batch
    regularised: bool = False
    refresh: bool = True

    @property
    def title(self) -> str:
        """How tables call it."""
        if not self.partition:
            return FULL_BATCH
        return PARTS[self.partition] + (", regularised" if self.regularised else "")


FULL = Variant()
REFRESHED = {False: "histories are never refreshed", True: "histories are refreshed after each epoch"}
WITH_HISTORIES = {
    refresh: [Variant(*each, refresh) for each in itertools.product(("random", "metis"), (False, True))]
    for refresh in REFRESHED
}
COLORS = {
    ("random", False): "tab:red",
    ("random", True): "tab:orange",
    ("metis", False): "tab:blue",
    ("metis", True): "tab:green",
}
Key: TypeAlias = "tuple[str, str, bool]"  # model, data set, and whether histories are refreshed
Found: TypeAlias = "dict[Key, dict[Variant, list[dict[str, Any]]]]"  # runs by variant


class Errors:
    """Measures errors of a model's histories while it trains.

    Attributes:
        curve: epoch, mean relative error of the histories, and relative error of the output of batches, for each measurement.
        bounds: measured error, bound and theorem of each layer, the output last, in the last measurement.
        worst: the largest ratio of a node's error to its bound, in any layer and measurement.
    """

    def __init__(self, model: ScalableGNN, loader: SubgraphLoader, every: int) -> None:
        self.model, self.loader, self.every = model, loader, every
        self.curve: list[tuple[int, float, float]] = []
        self.bounds: list[tuple[float, float, float | None]] = []
        self.worst = 0.0

    def __call__(self, epoch: int) -> None:
        """Measures, if it is time, after ``epoch``."""
        if epoch % self.every != 0:
            return
        with Monitor(self.model, limits=None) as monitor:
            *hidden, output = monitor.errors(self.loader, whole=True)
            layers = monitor.bound(self.loader)
        self.curve.append((epoch, statistics.fmean(layer.history for layer in hidden), output.computed))
        self.bounds = [(layer.measured, layer.bound, layer.theorem) for layer in layers]
        self.worst = max(self.worst, *(layer.worst for layer in layers))
        assert self.worst <= 1, f"epoch {epoch}: an error is {self.worst} times its bound"


def run(name: str, task: Task, recipe: Regularised, variant: Variant, seed: int, device: str) -> dict[str, Any]:
    """One training run."""
    model = make_model(name, task, recipe, device)
    loader = SubgraphLoader(task.graph, task.ptr, recipe.batch_size, prefetch=0)
    errors = Errors(model, loader, max(recipe.epochs // MEASUREMENTS, 1))
    method, options = FULL_BATCH, {}
    if variant.partition:
        penalty = LocalPerturbation(recipe.penalty, recipe.noise) if variant.regularised else None
        method, options = HISTORIES, {"refresh": variant.refresh, "penalty": penalty, "trained": errors}
    else:
        recipe = replace(recipe, epochs=recipe.epochs * len(loader))
    with tqdm(total=recipe.epochs, desc=f"{name}, {variant.title}, seed {seed}", leave=False, position=1) as progress:
        epochs = train(model, task, recipe, method, seed, device, progress.update, **options)
    epoch, scores = best(epochs)
    found = {"epoch": epoch, "val": scores.val, "test": scores.test}
    return found | {"curve": errors.curve, "bounds": errors.bounds, "worst": errors.worst}


def accuracy_rows(found: Found) -> list[dict[str, Any]]:
    """A row for each model and variant."""
    rows = []
    for (name, dataset, refresh), runs in found.items():
        full = statistics.fmean(100 * run["test"] for run in runs[FULL])
        for variant, each in runs.items():
            tests = [100 * run["test"] for run in each]
            has = bool(variant.partition)
            rows.append(
                {
                    "model": TITLES.get(name, name),
                    "data set": dataset,
                    "variant": variant.title,
                    "refreshed after each epoch": "-" if not has else "yes" if refresh else "no",
                    "seeds": len(each),
                    "test, %": spread(tests),
                    "minus full batch": f"{statistics.fmean(tests) - full:+.2f}" if has else "-",
                    "error of histories, %": _percent(run["curve"][-1][1] for run in each) if has else "-",
                    "error of outputs, %": _percent(run["curve"][-1][2] for run in each) if has else "-",
                }
            )
    return rows


def bound_rows(found: Found) -> list[dict[str, Any]]:
    """A row for each model and variant with histories: the outputs of batches."""
    rows = []
    for (name, dataset, refresh), runs in found.items():
        for variant in WITH_HISTORIES[refresh]:
            each = runs[variant]
            measured, bound, theorem = (statistics.median(run["bounds"][-1][i] for run in each) for i in range(3))
            rows.append(
                {
                    "model": TITLES.get(name, name),
                    "data set": dataset,
                    "variant": variant.title,
                    "refreshed after each epoch": "yes" if refresh else "no",
                    "runs": len(each),
                    "error": f"{measured:.2e}",
                    "bound, node by node": f"{bound:.2e}",
                    "bound of the theorem": f"{theorem:.2e}",
                    "largest error / bound of a node": f"{max(run['worst'] for run in each):.3f}",
                }
            )
    return rows


def _percent(values: Any) -> str:
    return f"{100 * statistics.fmean(values):.1f}"


def draw(found: Found) -> Any:
    """For each model and way of refreshing: test accuracy, errors over epochs, and the bound over layers."""
    figure, grid = plt.subplots(len(found), 3, figsize=(13.5, 3.4 * len(found)), layout="constrained", squeeze=False)
    for line, ((name, dataset, refresh), runs) in zip(grid, found.items(), strict=True):
        _draw_accuracy(line[0], runs, WITH_HISTORIES[refresh])
        for variant in WITH_HISTORIES[refresh]:
            color = COLORS[variant.partition, variant.regularised]
            curves = list(zip(*(run["curve"] for run in runs[variant]), strict=True))
            mean = [statistics.fmean(point[2] for point in points) for points in curves]
            line[1].plot([points[0][0] for points in curves], [100 * each for each in mean], ".-", color=color)
            measured, bound = (
                [
                    statistics.fmean(layer[i] for layer in layers)
                    for layers in zip(*(r["bounds"] for r in runs[variant]), strict=True)
                ]
                for i in (0, 1)
            )
            layers = range(2, len(measured) + 1)  # the first reads no history
            line[2].plot(layers, measured[1:], color=color, label=variant.title)
            line[2].plot(layers, bound[1:], ":", color=color)
        line[0].set_title(f"{TITLES.get(name, name)} on {dataset}: {REFRESHED[refresh]}", loc="left")
        line[1].set(xlabel="epoch", ylabel="error of outputs, %", yscale="log")
        line[2].set(xlabel="layer", ylabel="error and its bound", yscale="log")
        line[2].xaxis.set_major_locator(MaxNLocator(integer=True))
        for axes in line:
            axes.grid(alpha=0.3)
            axes.spines[["top", "right"]].set_visible(False)
    handles, labels = grid[0][2].get_legend_handles_labels()
    handles += [plt.Line2D([], [], linestyle=style, color="black") for style in ("-", ":")]
    figure.legend(handles, [*labels, "measured", "bound"], loc="outside lower center", ncols=6, frameon=False)
    return figure


def _draw_accuracy(axes: Any, runs: dict[Variant, list[dict[str, Any]]], shown: list[Variant]) -> None:
    """Runs as points, their means and deviations as bars, and the full batch as a line."""
    full = [100 * run["test"] for run in runs[FULL]]
    axes.axhline(statistics.fmean(full), color="tab:gray", linestyle="--", linewidth=1)
    axes.annotate(FULL_BATCH, (len(shown) - 0.5, statistics.fmean(full)), ha="right", va="bottom", color="tab:gray")
    for x, variant in enumerate(shown):
        values, color = [100 * run["test"] for run in runs[variant]], COLORS[variant.partition, variant.regularised]
        axes.plot([x] * len(values), values, ".", color=color, alpha=0.4, markeredgewidth=0)
        spread = statistics.stdev(values) if len(values) > 1 else 0
        axes.errorbar(x + 0.12, statistics.fmean(values), spread, fmt="o", color=color, capsize=3)
    axes.set_xticks(range(len(shown)), [variant.title.replace(", ", ",\n") for variant in shown], fontsize=8)
    axes.set(ylabel="test accuracy, %", xlim=(-0.5, len(shown) - 0.5))


def main() -> None:
    args = parse(arguments(__doc__, "ablation.toml", seeds=3))
    recipes, cells = load_recipes(args.recipes, Regularised), Cells(args.out / "cells" / "ablation.jsonl")
    variants = (*WITH_HISTORIES[False], FULL, *WITH_HISTORIES[True])
    jobs = []
    # A seed at a time, so that a command that is stopped has told something of all variants.
    for (name, dataset), seed, variant in itertools.product(wanted(args, recipes), range(args.seeds), variants):
        recipe, of = recipes[name][dataset], _cell(name, dataset, variant, seed)
        compute = partial(run, name=name, recipe=recipe, variant=variant, seed=seed, device=args.device)
        jobs.append(Job(of, recipe.settings, compute, (recipe.parts, variant.partition or "metis")))
    cells.run(jobs, Tasks(partial(prepare, args.root)))
    report(args, recipes, cells)


def report(args: Any, recipes: dict[str, dict[str, Regularised]], cells: Cells) -> None:
    """Tables and figure of all runs that are there."""
    found: Found = {}
    for (name, dataset), refresh in itertools.product(pairs(recipes), REFRESHED):
        variants = (FULL, *WITH_HISTORIES[refresh])
        runs = cells.complete(variants, partial(_cell, name, dataset), recipes[name][dataset].settings)
        if runs:
            found[name, dataset, refresh] = runs
    check_found(args, found)
    save_picture(draw(found), args.out, "ablation")
    accuracy_note = (
        "Mean and standard deviation over seeds: initial parameters, order of batches, dropout. Full batch takes as many steps "
        "of the optimiser. Errors are relative norms in the last epoch that they are measured in, before its refresh, against "
        "the exact rows in evaluation mode; that of histories is the mean over layers and holds the dropout of the steps that "
        "wrote them, that of outputs is of what batches compute with them. Random parts are the same in all runs."
    )
    bound_note = (
        "Of the outputs of batches: root mean square over nodes, medians over runs, in the last measurement. The first bound "
        "follows from the measured staleness of the rows that each node reads, the theorem's from the largest staleness and the "
        "largest degree. The last column is over all nodes, layers, runs and measurements; a run in which it exceeds 1 ends with "
        "an error."
    )
    tables = [
        table("Accuracy by what tightens the bound", accuracy_rows(found), accuracy_note),
        table("Measured errors and their bounds", bound_rows(found), bound_note),
    ]
    save(args, "ablation", __doc__, cells.machine(), tables)


def _cell(name: str, dataset: str, variant: Variant, seed: int) -> dict[str, Any]:
    return {"model": name, "data": dataset, **variant._asdict(), "seed": seed}


if __name__ == "__main__":
    main()
