"""How much memory does a training step take as layers are added, and which share of the edges does it use? (The paper's Table 3.)

A GCN with two, three and four layers: full batch, with histories, on the edges inside of batches (Cluster-GCN), and on sampled
neighbours (GraphSAGE). Bytes of tensors are counted, so that the figures depend on no timing.
"""

from __future__ import annotations

import itertools
from dataclasses import replace
from functools import partial
from typing import Any, TypeAlias

import torch
from cells import Cells, Job, Tasks
from command import arguments, check_found, pairs, parse, save, wanted
from matplotlib import pyplot as plt
from methods import COLORS, METHODS, Batches, LargeRecipe, history_bytes, make_large, prepare_large, step_bytes
from shared import readable_log, save_picture, table
from training import HISTORIES, Task, load_recipes, step

LAYERS = (2, 3, 4)
GB = 1e9

Found: TypeAlias = (
    "dict[tuple[str, str], dict[tuple[int, str], dict[str, Any]]]"  # by model and data set, layers and method
)


def measure(name: str, task: Task, recipe: LargeRecipe, method: str, device: str) -> dict[str, Any]:
    """Bytes and edges of a step, after one that does not count."""
    torch.manual_seed(0)
    model = make_large(name, task, recipe, device)
    optimizer = torch.optim.Adam(model.parameters())
    survey = Batches(method, task, recipe, 0, device, of_all_nodes=True).survey()
    data, *ids = survey.largest
    step(model.train(), optimizer, data.clone(), ids, data.train_mask)
    used = {
        "step, bytes": step_bytes(model, optimizer, survey.largest, device),
        "share of edges": survey.share_of_edges,
    }
    if method == HISTORIES:
        used["histories, bytes"] = history_bytes(model)
        used["reached"] = _reached(task.graph.adj_t, ids[1][: ids[0]], recipe.model["num_layers"])
    return used


def _reached(adj_t: Any, nodes: Any, hops: int) -> float:
    """The share of all nodes that lie within so many hops against the edges."""
    degree, col = adj_t.crow_indices().diff(), adj_t.col_indices()
    reached = torch.zeros(degree.numel(), dtype=torch.bool)
    reached[nodes] = True
    for _ in range(hops):
        reached[col[reached.repeat_interleave(degree)]] = True
    return float(reached.float().mean())


def rows_of(found: Found) -> list[dict[str, Any]]:
    """A row for each depth and method."""
    rows = []
    for (_, dataset), measured in found.items():
        for (layers, method), each in measured.items():
            histories = measured[layers, HISTORIES]
            rows.append(
                {
                    "data set": dataset,
                    "layers": layers,
                    "method": method,
                    "memory, GB": each["step, bytes"] / GB,
                    "of full batch's, %": 100 * each["step, bytes"] / measured[layers, METHODS[0]]["step, bytes"],
                    "edges used, %": 100 * each["share of edges"],
                    "nodes within so many hops of a batch, %": 100 * histories["reached"],
                    "histories, GB": each.get("histories, bytes", 0) / GB,
                }
            )
    return rows


def published_rows(recipes: Any) -> list[dict[str, Any]]:
    """The paper's figures, by data set and depth."""
    rows = []
    for name, dataset in pairs(recipes):
        published = recipes[name][dataset].published
        for i, layers in enumerate(LAYERS if published else ()):
            figures = {method: "{:.2f} GB, {} %".format(*published[method][i]) for method in METHODS}
            rows.append({"data set": dataset, "layers": layers, **figures})
    return rows


def draw(found: Found, recipes: Any) -> Any:
    """Memory over layers, a line for each method, the paper's dotted."""
    figure, grid = plt.subplots(1, len(found), figsize=(4.6 * len(found), 3.8), layout="constrained", squeeze=False)
    for axes, ((name, dataset), measured) in zip(grid[0], found.items(), strict=True):
        for method in METHODS:
            gigabytes = [measured[layers, method]["step, bytes"] / GB for layers in LAYERS]
            axes.plot(LAYERS, gigabytes, "o-", color=COLORS[method], label=method)
            paper = recipes[name][dataset].published.get(method)
            if paper is not None:
                axes.plot(LAYERS, [each[0] for each in paper], ":", color=COLORS[method], label=f"{method}, the paper")
        axes.set(title=dataset, xlabel="layers", xticks=LAYERS, yscale="log")
        readable_log(axes.yaxis)
        axes.grid(alpha=0.3)
        axes.spines[["top", "right"]].set_visible(False)
    grid[0][0].set_ylabel("memory of a training step, GB")
    grid[0][-1].legend(frameon=False, loc="center left", bbox_to_anchor=(1, 0.5))
    return figure


def main() -> None:
    args = parse(arguments(__doc__, "memory.toml", seeds=1))
    recipes = load_recipes(args.recipes, partial(LargeRecipe, lr=0.01, epochs=1))
    cells = Cells(args.out / "cells" / "memory.jsonl")
    jobs = []
    for (name, dataset), layers, method in itertools.product(wanted(args, recipes), LAYERS, METHODS):
        recipe, of = _of_depth(recipes[name][dataset], layers), _cell(name, dataset, layers, method)
        jobs.append(
            Job(of, recipe.settings, partial(measure, name=name, recipe=recipe, method=method, device=args.device))
        )
    cells.run(jobs, Tasks(lambda name, dataset: prepare_large(args.root, name, dataset, recipes[name][dataset])))
    report(args, recipes, cells)


def report(args: Any, recipes: dict[str, dict[str, LargeRecipe]], cells: Cells) -> None:
    """Table and figure of all that was measured."""
    found: Found = {}
    for name, dataset in pairs(recipes):
        measured = {}
        for layers, method in ((layers, method) for layers in LAYERS for method in METHODS):
            settings = _of_depth(recipes[name][dataset], layers).settings
            measured[layers, method] = cells.get(_cell(name, dataset, layers, method), settings)
        if None not in measured.values():
            found[name, dataset] = measured
    check_found(args, found)
    save_picture(draw(found, recipes), args.out, "memory")
    used = {dataset: recipes[name][dataset] for name, dataset in found}
    batches = (
        f"{dataset}: {r.batch_size} of {r.parts} parts, {r.model['hidden_channels']} wide"
        for dataset, r in used.items()
    )
    note = (
        "Peak bytes of tensors in a step on the largest batch of an epoch: batch, activations, gradients and buffers, counted by "
        "torch's profiler on the CPU and by the allocator on a GPU. Parameters, the optimiser's state, the graph and histories, "
        "which stay in host memory, come on top. Edges used: of all edges into nodes whose neighbours a step looks at. GraphSAGE "
        "sampling: as many random nodes as a batch has, up to ten neighbours of each and five of each further node, all layers "
        f"on all sampled nodes. In a batch, {'; '.join(batches)}."
    )
    tables = [table("Memory and edges of a step", rows_of(found), note)]
    published = published_rows(recipes)
    if published:
        note = "Memory and share of edges. The paper states neither its batches nor how it counts edges: compare the shape."
        tables.append(table("In the paper", published, note))
    save(args, "memory", __doc__, cells.machine(), tables)


def _of_depth(recipe: LargeRecipe, layers: int) -> LargeRecipe:
    return replace(recipe, model={**recipe.model, "num_layers": layers})


def _cell(name: str, dataset: str, layers: int, method: str) -> dict[str, Any]:
    return {"model": name, "data": dataset, "layers": layers, "method": method}


if __name__ == "__main__":
    main()
