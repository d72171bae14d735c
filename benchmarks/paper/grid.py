"""The cells of a comparison: a model on a graph in batches, and bases from which each cell differs in one thing."""

from __future__ import annotations

import copy
from collections.abc import Iterator
from dataclasses import asdict, dataclass, field, replace
from functools import lru_cache
from pathlib import Path
from typing import Any

import torch
from methods import made_graph
from torch_geometric.nn import SAGEConv
from training import Task, arrange, tomllib

from torch_gas import get_data, in_degree, models
from torch_gas.models.base import Model

METIS, RANDOM = "metis", "random"
SUM_FEATURES = ("SAGEMax",)  # over neighbours, as they are, for which they must not be a sparse matrix


@dataclass(frozen=True)
class Cell:
    """A cell; recipes/gradients.toml says what each entry is."""

    name: str
    data: str
    kind: str
    model: dict[str, Any]
    epochs: int
    full_epochs: int
    batches: int = 10
    grouped: int = 1
    parts: str = RANDOM
    lr: float = 0.01
    weight_decay: float = 0.0
    last_weight_decay: float = 0.0
    seeds: int = 5
    stage: int = 0
    methods: tuple[str, ...] = ("core",)
    synthetic: dict[str, Any] = field(default_factory=dict)

    @property
    def of(self) -> dict[str, Any]:
        """What tells the cell apart from others."""
        different = {"batches": self.batches, "grouped": self.grouped, "parts": self.parts, "lr": self.lr}
        return {"model": self.name, "data": self.data, **different}

    @property
    def settings(self) -> dict[str, Any]:
        """What decides on results."""
        return {key: value for key, value in asdict(self).items() if key not in ("seeds", "stage", "methods")}


def load_cells(path: Path) -> list[Cell]:
    """All cells of a file of recipes, each base before its variants."""
    tables = tomllib.loads(path.read_text())
    return [
        cell for name, found in tables.items() for data, entry in found.items() for cell in _cells(name, data, entry)
    ]


def _cells(name: str, data: str, entry: dict[str, Any]) -> Iterator[Cell]:
    variants = entry.pop("variants", [])
    base = Cell(name, data, **entry)
    yield base
    for variant in variants:
        yield replace(base, **{"stage": max(base.stage, 2), "methods": _plain(base.methods), **variant})


def _plain(methods: Any) -> tuple[str, ...]:
    """What a variant runs: not what the base alone is compared with."""
    return ("core",) if "all" in methods or "core" in methods else tuple(methods)


@lru_cache(maxsize=2)
def load(root: str, dataset: str, synthetic: tuple[tuple[str, Any], ...]) -> tuple[Any, int, int]:
    """The graph of a cell, its width of features and number of classes."""
    if synthetic:
        data = made_graph(dict(synthetic))
        return data, data.num_features, int(data.y.max()) + 1
    return get_data(root, dataset, layout="csr")


def prepare(
    root: str,
    model: str,
    dataset: str,
    kind: str,
    synthetic: tuple[tuple[str, Any], ...],
    num_parts: int,
    parts: str,
    seed: int,
) -> Task:
    """The graph of a cell in so many parts; random ones are drawn by the seed."""
    data, *widths = load(root, dataset, synthetic)
    graph, ptr = arrange(copy.copy(data), kind, num_parts, parts, seed)
    if kind in SUM_FEATURES:
        graph.x = graph.x.to_dense()
    return Task(graph, ptr, *widths)


def make(cell: Cell, task: Task) -> Model:
    """The model of a cell, on the CPU."""
    nodes = task.graph.num_nodes
    options = {"in_channels": task.in_channels, "out_channels": task.out_channels, **cell.model}
    if cell.kind == "SAGEMax":
        return SAGEMax(nodes, **options)
    if cell.kind == "PNA":
        options["deg"] = in_degree(task.graph.adj_t, nodes)
    model: Model = getattr(models, cell.kind)(nodes, **options)
    return model


class SAGEMax(models.SAGE):
    """GraphSAGE with the maximum over neighbours, entry by entry."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.convs = torch.nn.ModuleList(SAGEConv(*width, aggr="max") for width in self.widths)
