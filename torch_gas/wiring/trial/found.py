"""What a trial finds out about a model."""

from __future__ import annotations

from dataclasses import dataclass, field
from functools import cached_property
from typing import Any, Literal

import torch

from torch_gas._util.text_table import text_table
from torch_gas.wiring.places import Layout, Place
from torch_gas.wiring.rowwise import Steps

Action = Literal["history", "rows", "sum", "maximum"]


@dataclass(frozen=True)
class Need:
    """What a place needs on a batch.

    Args:
        action: ``"history"`` for rows that are pushed and pulled. What depends on no parameter is computed once on the whole
            graph: ``"rows"`` whose halo part is looked up, a ``"sum"`` whose rows are all looked up, or a ``"maximum"``.
        number: of the history, or of the table.
        shape: of a row.
        dtype: of the values.
    """

    action: Action
    number: int
    shape: tuple[int, ...]
    dtype: torch.dtype


@dataclass(frozen=True)
class Found:
    """What the trial found.

    Args:
        needs: by place, in the order of the forward pass; those of histories, and of tables, are numbered in it.
        shapes: rows of the output of each convolution that returns rows of nodes, also where it needs nothing.
        known: all places that were met, and the outputs of all layers.
        called: those that each call on a batch must meet, in evaluation and in training.
        ignored: names of optional arguments without which the output is the same.
        per_node: for each output of the model, whether it has a row for each node.
        neighbors: which edges a batch must hold, ``"in"`` or ``"both"``.
        bipartite: whether the model adds no edge into the halo, so that layers may be given a bipartite pair.
        steps: by output, the row-wise code that lies between a convolution and its place; see
            :mod:`torch_gas.wiring.rowwise`.
    """

    needs: dict[Place, Need]
    shapes: dict[Place, tuple[int, ...]]
    known: frozenset[Place]
    called: tuple[frozenset[Place], frozenset[Place]]
    ignored: frozenset[str]
    per_node: tuple[bool, ...]
    neighbors: str
    bipartite: bool
    steps: Steps = field(default_factory=dict)

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__dict__.update({"steps": {}, **state})  # which release 0.1 lacked

    @property
    def layout(self) -> Layout:
        """How the model is called on a batch."""
        return Layout(self.bipartite, self.of_edges, self.steps)

    def code_behind(self, place: Place) -> str:
        """Names of the functions between an output and its place."""
        return ", ".join(step.name for step in self.steps.get(place) or ())

    def is_padded(self, place: Place) -> bool:
        """Whether a place that is given nothing has rows for the halo all the same, as code behind it takes all rows."""
        return place.kind == "input" or (place in self.shapes and self.steps.get(place, ()) is not None)

    @cached_property
    def of_edges(self) -> frozenset[str]:
        """Names of the convolutions that return something else than rows of nodes."""
        outputs = (place for place in self.called[0] if place.kind == "output" and place not in self.shapes)
        return frozenset(place.scope.partition("#")[0] for place in outputs)

    def of(self, *actions: Action) -> list[Need]:
        """The histories or tables, each once, in the order of their numbers."""
        return list({need.number: need for need in self.needs.values() if need.action in actions}.values())

    def __str__(self) -> str:
        rows = [
            (
                f"{n.action} {n.number}",
                "x".join(map(str, n.shape)),
                ", ".join((str(place), self.code_behind(place))).strip(", "),
            )
            for place, n in self.needs.items()
        ]
        return f"neighbors={self.neighbors!r}\n" + text_table(("what", "width", "behind"), rows)
