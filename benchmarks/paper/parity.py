"""Does this package train what PyGAS, the paper's own code, trains? (Its Table 1, parameter by parameter.)

By each recipe of small.py a shipped model and PyGAS' model of that name start from the same parameters, see the same batches and
drop the same entries. After some epochs, parameters, histories and validation accuracy of the two are compared.
"""

from __future__ import annotations

import copy
import itertools
from contextlib import AbstractContextManager
from dataclasses import replace
from pathlib import Path
from typing import Any
from unittest import mock

import torch
from cells import Tasks
from command import TITLES, arguments, check_found, host, parse, save, today, wanted
from predecessor import PYGAS, as_sparse_tensor, load_pygas
from shared import table
from torch import Tensor
from tqdm import tqdm
from training import Recipe, Task, load_recipes, make_model, prepare, split_of, step

from torch_gas import SubgraphLoader, compute_micro_f1, models

OURS = "ours"
OWN_ORDER = ("GAT",)  # which draws masks for edges in another order than PyGAS


class AsOurs(torch.nn.Module):
    """A model of PyGAS that takes batches as ours do."""

    def __init__(self, model: Any) -> None:
        super().__init__()
        self.model = model

    def forward(self, x: Tensor, adj_t: Tensor, *ids: Any) -> Tensor:
        """Rows of the batch from those of batch and halo."""
        out: Tensor = self.model(x, as_sparse_tensor(adj_t), *ids[:2])
        return out


def compare(name: str, task: Task, recipe: Recipe, seed: int, library: Any, args: Any) -> dict[str, Any]:
    """The row of a recipe: both models after some epochs."""
    if name in OWN_ORDER:
        recipe = replace(recipe, model={**recipe.model, "dropout": 0.0})
    torch.manual_seed(seed)
    graph, ours = copy.copy(task.graph).to(args.device), make_model(name, task, recipe, args.device)
    shape = {"in_channels": task.in_channels, "out_channels": task.out_channels, **recipe.model, "device": args.device}
    theirs = getattr(library.models, name)(num_nodes=graph.num_nodes, **shape).to(args.device)
    found = dict(theirs.named_parameters())
    with torch.no_grad():
        for key, value in ours.named_parameters():
            found[key].copy_(value)
    pair = {OURS: ours, PYGAS: AsOurs(theirs)}
    optimizers = {}
    for side, model in ((OURS, ours), (PYGAS, theirs)):  # which name modules for weight decay alike
        groups = models.base.Model.parameter_groups(model, recipe.weight_decay, recipe.last_weight_decay)
        optimizers[side] = torch.optim.Adam(groups, lr=recipe.lr)
    options = {"prefetch": 0} if args.device == "cpu" else {"device": args.device}
    batches = SubgraphLoader(task.graph, task.ptr, recipe.batch_size, shuffle=True, seed=seed, **options)

    @torch.no_grad()
    def evaluate() -> list[Tensor]:
        """Outputs for the whole graph; refreshes the histories."""
        return [model.eval()(graph.x, graph.adj_t) for model in pair.values()]

    outputs, histories = evaluate(), []
    for epoch in range(args.epochs):
        for i, (batch, *ids) in enumerate(batches):
            for side, model in pair.items():
                torch.manual_seed(1000 * epoch + i)  # of dropout
                step(model.train(), optimizers[side], batch, ids, split_of(batch, seed)[0], recipe.max_norm)
        histories = [[history.emb.clone() for history in model.histories] for model in (ours, theirs)]
        outputs = evaluate()
    scores = [f"{100 * compute_micro_f1(out, graph.y, split_of(graph, seed)[1]):.2f}" for out in outputs]
    return {
        "model": TITLES.get(name, name),
        "dropout": str(recipe.model.get("dropout", 0.0)),
        "seed": seed,
        "steps": args.epochs * len(batches),
        "parameters differ by": _largest((value, found[key]) for key, value in ours.named_parameters()),
        "histories differ by": _largest(zip(*histories, strict=True)),
        "outputs differ by": _largest([outputs]),
        "validation, %": scores[0],
        "validation of PyGAS, %": scores[1],
    }


def _largest(pairs: Any) -> str:
    """The largest difference of two tensors, as a share of the largest entry of the second."""
    found = max(float((a - b).detach().abs().max() / b.detach().abs().max().clamp(min=1e-30)) for a, b in pairs)
    return "0" if found == 0 else f"{found:.1e}"


def torchs_dropout() -> AbstractContextManager[Any]:
    """While it is open, our models drop entries by torch's function, as PyGAS does, and so the same ones."""
    return mock.patch.object(models.base, "dropout", torch.nn.functional.dropout)


def _dense(root: str, name: str, dataset: str, recipe: Recipe) -> Task:
    """The task with features as a dense matrix, as PyGAS takes them."""
    task = prepare(root, name, dataset, recipe.parts)
    task.graph.x = task.graph.x.to_dense()
    return task


def main() -> None:
    parser = arguments(__doc__, "small.toml", seeds=1)
    parser.add_argument("--pygas", type=Path, required=True, help="root of PyGAS' repository, built in place")
    parser.add_argument("--epochs", type=int, default=5, help="for which both train (default: 5)")
    args = parse(parser)
    if args.epochs < 1:
        parser.error(f"--epochs: at least 1, but it is {args.epochs}")
    recipes, library = load_recipes(args.recipes), load_pygas(args.pygas)
    tasks, rows = Tasks(lambda name, dataset: _dense(args.root, name, dataset, recipes[name][dataset])), []
    with torchs_dropout():
        for (name, dataset), seed in tqdm(list(itertools.product(wanted(args, recipes), range(args.seeds)))):
            task = tasks.get(name, dataset)
            if task is not None:
                row = compare(name, task, recipes[name][dataset], seed, library, args)
                rows.append({"data set": dataset, **row})
    check_found(args, rows)
    note = (
        f"After {args.epochs} epochs by the recipe, with exact evaluation in between. Differences are the largest of all "
        "entries, as a share of the largest entry of that tensor; 0 means the same bits. GAT draws masks of edges in another "
        "order than PyGAS, and trains without dropout here."
    )
    save(args, "parity", __doc__, {"date": today(), **host()}, [table("Training beside PyGAS", rows, note)])


if __name__ == "__main__":
    main()
