"""Do GNNs with histories reach the accuracy of full-batch training on large graphs, in a small share of its memory?

Each model trains with the paper's recipe on the large graphs of the paper (its Table 5) that can be had, and on two stand-ins:
WordNet, and a synthetic graph of ogbn-arxiv's size. On these the same model trains full batch, with histories, on the edges
inside of batches (Cluster-GCN), and on sampled neighbours (GraphSAGE).
"""

from __future__ import annotations

import copy
import itertools
import statistics
import time
from functools import partial
from typing import Any, TypeAlias

import torch
from cells import Cells, Job, Tasks, cell_of
from command import TITLES, arguments, check_found, pairs, parse, save, spread, wanted
from matplotlib import pyplot as plt
from methods import (
    COLORS,
    METHODS,
    Batches,
    LargeRecipe,
    TrimmedNorms,
    history_bytes,
    make_large,
    prepare_large,
    step_bytes,
)
from shared import readable_log, save_picture, table
from tqdm import tqdm
from training import FULL_BATCH, HISTORIES, Task, arrange, load_recipes, step

from torch_gas import EvalSubgraphLoader, compute_micro_f1, get_data

OTHER_GRAPHS = ("PPI",)  # whose validation and test nodes are in graphs of their own
MIB = 2**20

Found: TypeAlias = "dict[tuple[str, str, str], list[dict[str, Any]]]"  # runs by model, data set and method


def run(name: str, dataset: str, task: Task, recipe: LargeRecipe, method: str, seed: int, args: Any) -> dict[str, Any]:
    """One training run. Evaluation is exact and refreshes the histories: layer by layer, or for full batch in one pass."""
    torch.manual_seed(seed)
    model = make_large(name, task, recipe, args.device)
    optimizer = torch.optim.Adam(model.parameter_groups(recipe.weight_decay, recipe.last_weight_decay), lr=recipe.lr)
    batches, norms = Batches(method, task, recipe, seed, args.device), TrimmedNorms(model)
    everything = EvalSubgraphLoader(task.graph, task.ptr, recipe.batch_size, device=args.device)
    held_out = _held_out(name, dataset, args)
    whole = copy.copy(task.graph).to(args.device) if method == FULL_BATCH else None

    @torch.no_grad()
    def evaluate() -> tuple[float, float]:
        model.eval()
        out = model(loader=everything) if whole is None else model(whole.x, whole.adj_t)
        if held_out:
            val, test = (compute_micro_f1(model(graph.x, graph.adj_t), graph.y) for graph in held_out)
            return val, test
        y, out = task.graph.y, out.cpu()
        return compute_micro_f1(out, y, task.graph.val_mask), compute_micro_f1(out, y, task.graph.test_mask)

    evaluate()  # fills the histories
    epochs, seconds = recipe.epochs_of(method), []
    best: tuple[float, float, int] = (-1.0, -1.0, 0)
    progress = tqdm(range(1, epochs + 1), desc=f"{name}, {method}, seed {seed}", leave=False, position=1)
    for epoch in progress:
        start = time.perf_counter()
        model.train()
        for batch, *ids in batches:
            norms.hops = batch.get("hops")
            step(model, optimizer, batch, ids, batch.train_mask, recipe.max_norm)
        if args.device != "cpu":
            torch.cuda.synchronize()
        seconds.append(time.perf_counter() - start)
        val, test = evaluate()
        if val > best[0]:
            best = (val, test, epoch)
        progress.set_postfix_str(f"test {100 * best[1]:.2f} %")
    survey = batches.survey()
    norms.hops = survey.largest[0].get("hops")
    return {
        "val": best[0],
        "test": best[1],
        "epoch": best[2],
        "epochs": epochs,
        "epoch, s": statistics.median(seconds),
        "steps an epoch": survey.steps,
        "step, bytes": step_bytes(model, optimizer, survey.largest, args.device),
        "histories, bytes": history_bytes(model) if method == HISTORIES else 0,
        "share of edges": survey.share_of_edges,
    }


def _held_out(name: str, dataset: str, args: Any) -> list[Any]:
    """Validation and test graphs, where they are others than the one trained on."""
    if dataset not in OTHER_GRAPHS:
        return []
    graphs = (get_data(args.root, dataset, split=split, layout="csr")[0] for split in ("val", "test"))
    return [arrange(graph, name, 1)[0].to(args.device) for graph in graphs]


def rows_of(found: Found) -> list[dict[str, Any]]:
    """A row for each model, data set and method that was run."""
    rows = []
    for (name, dataset, method), runs in found.items():
        full = found.get((name, dataset, FULL_BATCH))
        memory = runs[0]["step, bytes"]
        rows.append(
            {
                "model": TITLES.get(name, name),
                "data set": dataset,
                "method": method,
                "seeds": len(runs),
                "test, %": spread([100 * run["test"] for run in runs]),
                "minus full batch": f"{_gap(runs, full):+.2f}" if full and method != FULL_BATCH else "-",
                "memory of a step, MiB": memory / MIB,
                "of full batch's, %": 100 * memory / full[0]["step, bytes"] if full else "-",
                "histories, MiB": runs[0]["histories, bytes"] / MIB,
                "edges used, %": 100 * runs[0]["share of edges"],
                "steps an epoch": runs[0]["steps an epoch"],
                "epoch, s": statistics.median(run["epoch, s"] for run in runs),
                "epochs": runs[0]["epochs"],
                "best epoch": round(statistics.median(run["epoch"] for run in runs)),
            }
        )
    return rows


def _gap(runs: list[dict[str, Any]], full: list[dict[str, Any]]) -> float:
    return 100 * (statistics.fmean(run["test"] for run in runs) - statistics.fmean(run["test"] for run in full))


def published_rows(found: Found, recipes: Any) -> list[dict[str, Any]]:
    """The paper's figure for each of its data sets, and ours where it was run."""
    rows = []
    for name, dataset in pairs(recipes):
        runs, paper = found.get((name, dataset, HISTORIES)), recipes[name][dataset].published.get("histories")
        if paper is not None:
            ours = "not run here" if runs is None else spread([100 * run["test"] for run in runs])
            title = TITLES.get(name, name)
            rows.append({"model": title, "data set": dataset, "histories, %": ours, "in the paper, %": paper[0]})
    return rows


def draw(found: Found) -> Any:
    """Accuracy of each method over its memory."""
    shown = list(dict.fromkeys(key[:2] for key in found))
    figure, grid = plt.subplots(1, len(shown), figsize=(4.6 * len(shown), 3.8), layout="constrained", squeeze=False)
    for axes, pair in zip(grid[0], shown, strict=True):
        sizes = [runs[0]["step, bytes"] / MIB for key, runs in found.items() if key[:2] == pair]
        middle = statistics.geometric_mean([min(sizes), max(sizes)])
        for method in METHODS:
            runs = found.get((*pair, method), [])
            if runs:
                values = [100 * run["test"] for run in runs]
                deviation = statistics.stdev(values) if len(values) > 1 else 0
                mean, memory = statistics.fmean(values), runs[0]["step, bytes"] / MIB
                axes.errorbar(memory, mean, deviation, fmt="o", color=COLORS[method], capsize=3, markersize=8)
                side, shift = ("right", -9) if memory > middle else ("left", 9)
                axes.annotate(method, (memory, mean), (shift, -3), textcoords="offset points", fontsize=9, ha=side)
        axes.set_xscale("log")
        readable_log(axes.xaxis)
        axes.margins(x=0.35, y=0.15)
        axes.set(title=f"{TITLES.get(pair[0], pair[0])}, {pair[1]}", xlabel="memory of a training step, MiB")
        axes.grid(alpha=0.3)
        axes.spines[["top", "right"]].set_visible(False)
    grid[0][0].set_ylabel("test accuracy (micro-F1), %")
    return figure


def main() -> None:
    parser = arguments(__doc__, "large.toml", seeds=3)
    parser.add_argument("--methods", nargs="+", choices=METHODS, help="what to train with (default: the recipe's)")
    args = parse(parser)
    recipes, cells = load_recipes(args.recipes, LargeRecipe), Cells(args.out / "cells" / "large.jsonl")
    jobs = []
    for (name, dataset), seed in itertools.product(wanted(args, recipes), range(args.seeds)):
        recipe = recipes[name][dataset]
        for method in args.methods or recipe.methods:
            of, settings = cell_of(name, dataset, method, seed), recipe.settings_of(method)
            compute = partial(run, name=name, dataset=dataset, recipe=recipe, method=method, seed=seed, args=args)
            jobs.append(Job(of, settings, compute))
    cells.run(jobs, Tasks(lambda name, dataset: prepare_large(args.root, name, dataset, recipes[name][dataset])))
    report(args, recipes, cells)


def report(args: Any, recipes: dict[str, dict[str, LargeRecipe]], cells: Cells) -> None:
    """Tables and figure of all runs that are there."""
    found: Found = {}
    for name, dataset in pairs(recipes):
        for method in METHODS:
            settings = recipes[name][dataset].settings_of(method)
            runs = [cells.get(cell_of(name, dataset, method, seed), settings) for seed in range(20)]
            if any(runs):
                found[name, dataset, method] = [run for run in runs if run is not None]
    check_found(args, found)
    save_picture(draw(found), args.out, "large")
    note = (
        "Mean and standard deviation over seeds: initial parameters, order of batches, dropout. Test score of the epoch with the "
        "best validation score; evaluation is exact for all methods, after each epoch, and not in its time. Memory: peak bytes "
        "of tensors in a step on the largest batch (batch, activations, gradients, buffers), without parameters and optimiser; "
        "histories come on top, in host memory. Edges used: of all edges into nodes whose neighbours a step looks at. GraphSAGE "
        "sampling: training nodes as seeds, up to ten neighbours of each and five of each further node, all layers on all "
        "sampled nodes. Full batch makes one step an epoch, so it has more epochs."
    )
    tables = [table("Large graphs", rows_of(found), note)]
    published = published_rows(found, recipes)
    if published:
        note = "Data sets that were not at hand are not run; the same command runs them where they are, or can be downloaded."
        tables.append(table("The paper's data sets", published, note))
    save(args, "large", __doc__, cells.machine(), tables)


if __name__ == "__main__":
    main()
