"""What the commands of the paper's tables share: arguments, data sets that are not there, and the section of results."""

from __future__ import annotations

import argparse
import os
import statistics
import sys
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import torch

sys.path.insert(0, str(Path(__file__).parents[1]))

from shared import RESULTS, host, save_section, today

__all__ = [
    "RECIPES",
    "TITLES",
    "arguments",
    "check_found",
    "host",
    "pairs",
    "parse",
    "plain_arguments",
    "save",
    "spread",
    "today",
    "wanted",
]

RECIPES = Path(__file__).parent / "recipes"
TITLES = {"GCN2": "GCNII", "PNA_JK": "PNA with jumping knowledge"}  # what the paper calls models


def arguments(question: str, recipes: str, seeds: int) -> argparse.ArgumentParser:
    """Where data and results are, what is run, and on what."""
    parser = plain_arguments(question)
    root = os.environ.get("TORCH_GAS_DATA", "data")
    device = "cuda" if torch.cuda.is_available() else "cpu"
    parser.add_argument("--root", default=root, help=f"folder of the data sets (default: {root})")
    parser.add_argument("--datasets", nargs="+", help="names of data sets (default: all that have a recipe)")
    parser.add_argument("--models", nargs="+", help="names of models (default: all that have a recipe)")
    parser.add_argument("--seeds", type=int, default=seeds, help=f"runs with seeds 0, 1, ... (default: {seeds})")
    parser.add_argument("--device", default=device, help=f"where models run (default: {device})")
    parser.add_argument("--recipes", type=Path, default=RECIPES / recipes, help=f"the recipes (default: {recipes})")
    return parser


def plain_arguments(question: str) -> argparse.ArgumentParser:
    """Threads, and where results are."""
    parser = argparse.ArgumentParser(description=question, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--threads", type=int, help="threads of torch (default: its own choice)")
    out = RESULTS / "paper"
    parser.add_argument("--out", type=Path, default=out, help="folder of results, and of runs that are not run again")
    return parser


def parse(parser: argparse.ArgumentParser) -> argparse.Namespace:
    """The arguments; torch takes the number of threads."""
    args = parser.parse_args()
    if args.threads:
        torch.set_num_threads(args.threads)
    return args


def wanted(args: argparse.Namespace, recipes: dict[str, dict[str, Any]]) -> list[tuple[str, str]]:
    """The models and data sets to run, as far as they have a recipe."""
    for name, given, known in (
        ("models", args.models, list(recipes)),
        ("datasets", args.datasets, list({data: None for found in recipes.values() for data in found})),
    ):
        unknown = set(given or ()) - set(known)
        if unknown:
            raise SystemExit(
                f"--{name}: no recipe for {', '.join(sorted(unknown))}; {args.recipes.name} has {', '.join(known)}"
            )
    return [
        (name, data)
        for name, data in pairs(recipes)
        if (args.models is None or name in args.models) and (args.datasets is None or data in args.datasets)
    ]


def pairs(recipes: dict[str, dict[str, Any]]) -> list[tuple[str, str]]:
    """All models and data sets with a recipe."""
    return [(name, data) for name, found in recipes.items() for data in found]


def check_found(args: argparse.Namespace, found: Any) -> None:
    """Ends the command where there is nothing to report."""
    if not found:
        wanted_data = ", ".join(args.datasets or ["a data set"])
        raise SystemExit(f"no run is complete: --root names no folder with {wanted_data}, or --seeds is 0")


def spread(values: Sequence[float]) -> str:
    """Mean and standard deviation, if there are several values."""
    return f"{statistics.fmean(values):.2f}" + (f" ± {statistics.stdev(values):.2f}" if len(values) > 1 else "")


def save(
    args: argparse.Namespace,
    name: str,
    question: str,
    machine: dict[str, str],
    tables: Iterable[dict[str, Any]],
    quick: bool = False,
) -> None:
    """Adds the section ``name`` to the results in ``args.out``, and prints it."""
    save_section(args.out, "The paper's results", name, question, machine, quick, tables)
