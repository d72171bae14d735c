"""What does a step cost that walks the exact neighbourhood of its batch, beside one with histories? (The paper's table on GTTF.)

A GCN of four layers on the same batch nodes: with histories; over the neighbour tree, walked in each step, which is what GTTF
does and grows exponentially with depth; and, kinder, over the same neighbourhood with nodes merged at each depth.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from functools import partial
from typing import Any

import torch
import torch.nn.functional as F
from cells import Tasks
from command import arguments, check_found, host, pairs, parse, save, today, wanted
from matplotlib import pyplot as plt
from methods import LargeRecipe, make_large, prepare_large
from neighborhoods import forward, tree_size, walk
from shared import save_picture, table
from tqdm import tqdm
from training import HISTORIES, Task, load_recipes

from torch_gas import SubgraphLoader
from torch_gas.planner.meter import metered

TREE, MERGED = "neighbour tree", "merged neighbourhood"
WAYS = (HISTORIES, MERGED, TREE)
COLORS = dict(zip(WAYS, ("tab:blue", "tab:green", "tab:red"), strict=True))
MB = 1e6


def measure(name: str, task: Task, recipe: LargeRecipe, args: Any) -> dict[str, Any]:
    """Seconds and bytes of a step in each way, on the batch whose tree is the median of all."""
    hops, width = recipe.model["num_layers"], recipe.model["hidden_channels"]
    loader = SubgraphLoader(task.graph, task.ptr, recipe.batch_size, prefetch=0)
    groups = list(loader.batch_sampler)
    sizes = [
        tree_size(task.graph.adj_t, loader.collate_fn(parts).n_id[: _nodes(task, parts)], hops) for parts in groups
    ]
    rows, parts = sorted(zip(sizes, groups, strict=True))[len(groups) // 2]
    steps = {way: _step(way, name, task, recipe, loader, parts) for way in WAYS}
    needed = rows * (4 * width + 40)  # a number for each channel, and ids and weight of the edge
    if needed > 1e9 * args.memory:
        del steps[TREE]
    memory = {}
    for way, step in steps.items():
        step()  # makes the optimiser's state
        memory[way] = metered(step, torch.device("cpu")).peak / MB
    seconds = in_turn(steps, args.seconds)
    batch_size = _nodes(task, parts)
    return {"B": batch_size, "rows": rows, "needed": needed / MB, "seconds": seconds, "memory": memory}


def _nodes(task: Task, parts: list[int]) -> int:
    return int(task.ptr.diff()[parts].sum())


def _step(
    way: str, name: str, task: Task, recipe: LargeRecipe, loader: SubgraphLoader, parts: list[int]
) -> Callable[[], None]:
    """A step of the optimiser, which makes its batch or walks its neighbourhood first."""
    torch.manual_seed(0)
    model, graph = make_large(name, task, recipe, "cpu").train(), task.graph
    optimizer = torch.optim.Adam(model.parameters(), lr=recipe.lr)
    nodes = loader.collate_fn(parts).n_id[: _nodes(task, parts)]

    def output() -> torch.Tensor:
        if way == HISTORIES:
            return model(loader.collate_fn(parts))
        depths = walk(graph.adj_t, nodes, model.num_layers, merged=way == MERGED)
        return forward(model, graph.x, depths)

    def step() -> None:
        out, y = output(), graph.y[nodes]
        loss = F.cross_entropy(out, y) if y.dim() == 1 else F.binary_cross_entropy_with_logits(out, y)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()

    return step


def in_turn(steps: dict[str, Callable[[], None]], seconds: float) -> dict[str, float]:
    """The fastest of the steps that each way makes in so many seconds, three at least; ways take turns."""
    spent: dict[str, list[float]] = {way: [] for way in steps}
    while min(map(len, spent.values())) < 3 or max(map(sum, spent.values())) < seconds:
        for way, step in steps.items():
            start = time.perf_counter()
            step()
            spent[way].append(time.perf_counter() - start)
    return {way: min(each) for way, each in spent.items()}


def rows_of(found: dict[tuple[str, str], dict[str, Any]]) -> list[dict[str, Any]]:
    """A row for each data set."""
    rows = []
    for (_, dataset), each in found.items():
        row: dict[str, Any] = {"data set": dataset, "batch, nodes": each["B"], "rows of the tree": each["rows"]}
        for way in WAYS:
            fits = way in each["seconds"]
            row[f"{way}, s"] = each["seconds"][way] if fits else "not attempted"
            row[f"{way}, MB"] = each["memory"][way] if fits else f"at least {each['needed']:,.0f}"
        rows.append(row)
    return rows


def published_rows(recipes: Any) -> list[dict[str, Any]]:
    """The paper's figures."""
    rows = []
    for name, dataset in pairs(recipes):
        published = recipes[name][dataset].published
        if published:
            (histories, histories_mb), (tree, tree_mb) = published[HISTORIES], published[TREE]
            seconds = {"histories, s": histories, "GTTF, s": tree}
            rows.append({"data set": dataset, **seconds, "histories, MB": histories_mb, "GTTF, MB": tree_mb})
    return rows


def draw(found: dict[tuple[str, str], dict[str, Any]]) -> Any:
    """Time and memory of a step; a tree that does not fit is an open bar of what it needs at least."""
    figure, grid = plt.subplots(1, 2, figsize=(10, 3.8), layout="constrained")
    for axes, (key, title) in zip(
        grid, (("seconds", "time of a step, s"), ("memory", "memory of a step, MB")), strict=True
    ):
        for (i, each), (j, way) in ((a, b) for a in enumerate(found.values()) for b in enumerate(WAYS)):
            x = i + 0.27 * (j - 1)
            if way in each[key]:
                axes.bar(x, each[key][way], 0.25, color=COLORS[way])
            elif key == "memory":
                axes.bar(x, each["needed"], 0.25, fill=False, edgecolor=COLORS[way], linestyle="--")
            else:
                axes.plot(x, 0.03, "x", color=COLORS[way], transform=axes.get_xaxis_transform())
        axes.set_xticks(range(len(found)), [dataset.replace("-", "-\n") for _, dataset in found])
        axes.set(yscale="log", ylabel=title)
        axes.grid(alpha=0.3, axis="y")
        axes.spines[["top", "right"]].set_visible(False)
    handles = [plt.Rectangle((0, 0), 1, 1, color=COLORS[way]) for way in WAYS]
    figure.legend(handles, WAYS, frameon=False, loc="outside lower center", ncols=len(WAYS))
    return figure


def main() -> None:
    parser = arguments(__doc__, "tree.toml", seeds=1)
    parser.add_argument("--memory", type=float, default=4.0, help="GB that a tree may need at least (default: 4)")
    parser.add_argument("--seconds", type=float, default=10.0, help="for which the slowest way is timed (default: 10)")
    args = parse(parser)
    recipes = load_recipes(args.recipes, partial(LargeRecipe, lr=0.01, epochs=1))
    machine = {"date": today(), **host()}
    found = {}
    tasks = Tasks(lambda name, dataset: prepare_large(args.root, name, dataset, recipes[name][dataset]))
    for name, dataset in tqdm(wanted(args, recipes)):
        task = tasks.get(name, dataset)
        if task is not None:
            found[name, dataset] = measure(name, task, recipes[name][dataset], args)
    check_found(args, found)
    save_picture(draw(found), args.out, "tree")
    note = (
        "A step makes its batch or walks its neighbourhood, and computes, differentiates and updates. The batch is the one "
        "whose tree has the median size of all. s: the fastest of many steps, ways in turn. "
        "MB: peak bytes of tensors that a step allocates, beside graph, parameters, optimiser and histories. "
        "Features are multiplied with the first weights once for each node, also in a tree. A tree that needs "
        f"more than {args.memory:g} GB, counted before it is made, is not attempted."
    )
    tables = [table("A step with histories and over neighbourhoods", rows_of(found), note)]
    published = published_rows(recipes)
    if published:
        note = "From a GPU, and batches that it does not state. GTTF may sample neighbours, where all are walked above."
        tables.append(table("In the paper", published, note))
    save(args, "tree", __doc__, machine, tables)


if __name__ == "__main__":
    main()
