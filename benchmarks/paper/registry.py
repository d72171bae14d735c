"""The methods of the comparison, a line each."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass, field, replace
from typing import Any

from grid import METIS, RANDOM, Cell
from samplers import Sampling
from trainers import Compensated, Exact, Histories, Moved, Refreshed, Trainer


@dataclass(frozen=True)
class Method:
    """A method of the comparison.

    Args:
        trainer: makes what trains.
        color, line: in figures.
        options: of the trainer.
        fixed: entries of the cell on which its results do not depend, or that it has its own of.
        core: whether it is run in all cells.
        full: whether it makes a step an epoch and is given more epochs.
    """

    trainer: Callable[..., Trainer]
    color: str
    line: str = "-"
    options: dict[str, Any] = field(default_factory=dict)
    fixed: dict[str, Any] = field(default_factory=dict)
    core: bool = False
    full: bool = False

    def cell(self, cell: Cell) -> Cell:
        """The cell as the method runs it."""
        return replace(cell, **self.fixed)

    def settings(self, cell: Cell) -> dict[str, Any]:
        """What decides on its results."""
        settings = {**self.cell(cell).settings, "epochs": self.epochs(cell), "options": self.options}
        del settings["full_epochs"]
        return settings

    def epochs(self, cell: Cell) -> int:
        """How long it trains."""
        return cell.full_epochs if self.full else cell.epochs


FULL, GAS = "full batch", "GAS"
_ALONE = {"batches": 1, "grouped": 1, "parts": RANDOM}
_NO_PARTS = {"grouped": 1, "parts": RANDOM}
_FOUR_CLUSTERS = {"grouped": 4, "parts": METIS}
_BY_TEN = {"batches": 10, "grouped": 1, "parts": RANDOM}  # its gradient depends on no batches

METHODS: dict[str, Method] = {
    FULL: Method(Trainer, "black", fixed=_ALONE, core=True, full=True),
    GAS: Method(Histories, "tab:blue", core=True),
    "GAS, refreshed": Method(Refreshed, "tab:cyan", core=True),
    "compensation, auto": Method(Compensated, "tab:red", options={"trust": "auto"}, core=True),
    "compensation": Method(Compensated, "tab:orange", options={"trust": 1.0}, core=True),
    "compensation, swapped": Method(Compensated, "goldenrod", options={"trust": 1.0, "schedule": "swapped"}),
    "WaveGAS": Method(Refreshed, "tab:cyan", "--", {"waves": 2}),
    "momentum": Method(Moved, "tab:gray", "--", {"beta": 0.1}),
    "exact mode": Method(Exact, "tab:gray", fixed=_BY_TEN, core=True),
    "Cluster-GCN": Method(Sampling, "tab:green", "--", {"by": "clusters"}, fixed=_FOUR_CLUSTERS),
    "GraphSAGE sampling": Method(Sampling, "tab:purple", "--", {"by": "neighbors"}, fixed=_NO_PARTS),
    "GraphSAINT": Method(Sampling, "tab:brown", "--", {"by": "walks"}, fixed=_NO_PARTS),
    "FastGCN": Method(Sampling, "tab:pink", "--", {"by": "layers"}, fixed=_NO_PARTS),
    "LADIES": Method(Sampling, "tab:olive", "--", {"by": "dependent layers"}, fixed=_NO_PARTS),
    "VR-GCN": Method(Sampling, "tab:blue", "--", {"by": "control variate"}, fixed=_NO_PARTS),
}


def named(methods: Iterable[str]) -> list[str]:
    """Those of ``methods`` that there are, in the order of ``METHODS``; "core" and "all" stand for several."""
    methods = set(methods)
    return [name for name, each in METHODS.items() if {name, "all"} & methods or (each.core and "core" in methods)]
