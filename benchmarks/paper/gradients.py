"""What does each way to the gradient of a batch reach, in accuracy, epochs and time, and what does a step of it take?

Full batch, GAS, compensation, exact mode and the samplers of the literature train the same models from the same parameters.
Around a few bases (a shallow and a deep model, a small and a large graph, ten random parts), one thing at a time is another.
"""

from __future__ import annotations

import os
import time
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Any

from cells import Cells, Job, Tasks
from command import RECIPES, parse, plain_arguments
from comparison import report
from grid import RANDOM, Cell, load_cells, prepare
from registry import METHODS, Method, named
from tqdm import tqdm
from training import Task


def run(method: Method, cell: Cell, seed: int, task: Task) -> dict[str, Any]:
    """One training run.

    Returns:
        ``records``: each epoch, from 1, whose validation accuracy is the best so far, with validation and test accuracy in
        hundredths of a per cent and milliseconds of the CPU until then; ``last``: that of the last epoch.
    """
    trainer = method.trainer(method.cell(cell), task, seed, **method.options)
    records: list[list[int]] = []
    now: list[int] = []
    spent = 0.0
    for epoch in tqdm(range(1, method.epochs(cell) + 1), leave=False, position=1, mininterval=1):
        start = time.process_time()
        trainer.epoch()
        spent += time.process_time() - start
        val, test = (round(1e4 * accuracy) for accuracy in trainer.evaluate())
        now = [epoch, val, test, round(1e3 * spent)]
        if not records or val > records[-1][1]:
            records.append(now)
    memory = {"step, bytes": trainer.step_bytes(), "tables, bytes": trainer.table_bytes()} if seed == 0 else {}
    return {"records": records, "last": now, **memory}


def of(method: str, cell: Cell, seed: int) -> dict[str, Any]:
    """What tells a run apart."""
    return {**METHODS[method].cell(cell).of, "method": method, "seed": seed}


def job(name: str, cell: Cell, seed: int) -> Job:
    """A run of a method."""
    method = METHODS[name]
    own = method.cell(cell)
    drawn_by = seed if own.parts == RANDOM else 0
    settings = (own.kind, tuple(own.synthetic.items()), own.batches * own.grouped, own.parts, drawn_by)
    return Job(of(name, cell, seed), method.settings(cell), partial(run, method, cell, seed), settings)


def jobs(cells: list[Cell]) -> Iterator[Job]:
    """All runs, each once: bases first, and of each stage the first seed of all its cells before the second."""
    seen = set()
    for stage in sorted({cell.stage for cell in cells}):
        of_stage = [cell for cell in cells if cell.stage == stage]
        for seed in range(max(cell.seeds for cell in of_stage)):
            for cell in of_stage:
                for name in named(cell.methods) if seed < cell.seeds else ():
                    each = job(name, cell, seed)
                    key = tuple(each.of.items())
                    if key not in seen:
                        seen.add(key)
                        yield each


def estimate(wanted: list[Job], cells: Cells, tasks: Tasks) -> None:
    """Prints how long the runs take that are not there yet, by an epoch of each cell and method after one that does not count."""
    measured: dict[str, float] = {}
    total = 0.0
    for each in wanted:
        name = ", ".join(str(value) for key, value in each.of.items() if key != "seed")
        if name not in measured:
            method, cell, seed = each.compute.args
            trainer = method.trainer(
                method.cell(cell), tasks.get(each.of["model"], each.of["data"], *each.settings), seed, **method.options
            )
            trainer.epoch()
            start = time.process_time()
            trainer.epoch()
            training = time.process_time() - start
            trainer.evaluate()
            measured[name] = method.epochs(cell) * (time.process_time() - start)
            print(f"{measured[name]:8.0f} s a run, {training:.3f} s an epoch: {name}", flush=True)
        total += 0 if cells.get(each.of, each.recipe) is not None else measured[name]
    print(f"{total / 3600:.1f} hours of one core")


def main() -> None:
    parser = plain_arguments(__doc__)
    root = os.environ.get("TORCH_GAS_DATA", "data")
    parser.add_argument("--root", default=root, help=f"folder of the data sets (default: {root})")
    parser.add_argument("--recipes", type=Path, default=RECIPES / "gradients.toml", help="the cells")
    parser.add_argument("--models", nargs="+", help="names of models (default: all)")
    parser.add_argument("--datasets", nargs="+", help="names of data sets (default: all)")
    parser.add_argument(
        "--methods", nargs="+", choices=METHODS, help="what to train with (default: what each cell says)"
    )
    parser.add_argument(
        "--stages", nargs="+", type=int, help="which cells: 0 bases, 1 what is to be accepted, 2 the rest"
    )
    parser.add_argument("--page", action="store_true", help="only write tables and figures of the runs that are there")
    parser.add_argument("--estimate", action="store_true", help="only tell how long the runs take that are not there")
    parser.set_defaults(threads=1, question=__doc__)
    args = parse(parser)
    recipes, cells = load_cells(args.recipes), Cells(args.out / "cells" / "gradients.jsonl")
    wanted = [
        cell
        for cell in recipes
        if (args.models is None or cell.name in args.models)
        and (args.datasets is None or cell.data in args.datasets)
        and (args.stages is None or cell.stage in args.stages)
    ]
    if not args.page:
        chosen = [each for each in jobs(wanted) if args.methods is None or each.of["method"] in args.methods]
        tasks = Tasks(partial(prepare, args.root))
        if args.estimate:
            estimate(chosen, cells, tasks)
            return
        cells.run(chosen, tasks)
    report(args, recipes, cells, of)


if __name__ == "__main__":
    main()
