"""What the runs of a trial note at the places of a model, and the rows that they go on with there."""

from __future__ import annotations

from collections.abc import Collection
from math import nan
from typing import Any

import torch
from torch import Tensor
from torch.nn import Module

from torch_gas.batch.data import SubData
from torch_gas.graph.formats import format_of, is_adjacency
from torch_gas.wiring.batch import pad
from torch_gas.wiring.places import Handler, Place
from torch_gas.wiring.trial.small import NUM_EDGES, NUM_NODES

Values = dict[Place, Tensor]


class Differs(Exception):
    """A batch's rows are not those of the whole graph."""

    OTHER_ROWS = "gives other rows than on the whole graph"
    COUNTS_HALO = (
        "has a value without a row for each node that counts the rows of the halo; compute such a value (a loss) from the rows "
        "that the scaled model returns"
    )

    def __init__(self, place: Place | None, how: str = OTHER_ROWS) -> None:
        self.place, self.how = place, how


class Record(Handler):
    """Notes the exact values of all places, and the hops that leave edges out."""

    def __init__(self) -> None:
        self.values: Values = {}
        self.entered: set[Place] = set()  # outputs of layers, whatever these return
        self.drop_edges: list[Place] = []
        self.out: Any = None  # of the model

    def enters(self, place: Place) -> None:
        self.entered.add(place)

    def passes(self, place: Place, adj: Any) -> None:
        if is_adjacency(adj) and format_of(adj).num_edges(adj) < NUM_EDGES:
            self.drop_edges.append(place)

    def at(self, place: Place, value: Tensor) -> None:
        self.values[place] = value.detach().clone()


class Trial(Handler):
    """Gives exact rows to the halo, but for one place that is spoiled. Layers before that one are not computed.

    Args:
        exact: the exact rows of all places, [N, ...].
        batch: what the model is called on.
        spoiled: the place whose halo rows are spoiled.
        by: see :func:`spoil`.
        known: places that are known to be not exact for the batch's rows, which a trial of a spoiled place may then meet.
    """

    def __init__(
        self, exact: Values, batch: SubData, spoiled: Place | None = None, by: float = 0, known: Collection[Place] = ()
    ) -> None:
        self.exact, self.batch, self.spoiled, self.by = exact, batch, spoiled, by
        self.may_be_partial = exact.keys() if spoiled is None else known  # else a place differs by what was spoiled
        places = list(exact)
        self.done = set() if spoiled is None else {p for p in places[: places.index(spoiled)] if p.kind == "output"}
        self.own: Values = {}  # what the batch alone gives for reductions
        self.partial: set[Place] = set()  # of these, what is not exact for the batch's rows either
        self.has_halo: set[Place] = set()

    def substitute(self, place: Place, module: Module) -> Tensor | None:
        """The exact rows."""
        return self.exact[place][self.batch.n_id.to(self.exact[place].device)] if place in self.done else None

    def at(self, place: Place, value: Tensor) -> Tensor | None:
        exact = self.exact.get(place)
        if exact is None:
            raise Differs(place, "is called on a batch and not on the whole graph")
        if place.kind == "maximum":
            self.own[place] = value.clone()
            if not same(value, exact):
                if place not in self.may_be_partial:
                    raise Differs(place)
                self.partial.add(place)
            return exact.clone()
        batch_size, num_rows = self.batch.batch_size, self.batch.n_id.numel()
        if exact.size(0) != NUM_NODES or value.size(0) not in (batch_size, num_rows):
            return None  # not a row for each node; whoever reads it is compared
        want = exact[self.batch.n_id.to(exact.device)].clone()
        if place in self.done:  # which was compared in another run
            return want
        rows = value[:batch_size]
        if not same(rows, want[:batch_size]):
            if place.kind != "reduction" or value.size(0) == batch_size or place not in self.may_be_partial:
                raise Differs(place)
            self.partial.add(place)
            rows = want[:batch_size]
        if place.kind not in ("input", "output") and value.size(0) == batch_size:
            return None  # inside of a layer that takes a pair
        if place.kind == "reduction":
            self.own[place] = value.clone()
        self.has_halo.add(place)
        halo = want[batch_size:]
        return torch.cat([rows, spoil(halo, self.by) if place == self.spoiled else halo])


class Skipped(Trial):
    """Computes no layer whose rows a history would give, as inference does: rows of NaN stand in until their place."""

    def __init__(self, exact: Values, batch: SubData, histories: Collection[Place]) -> None:
        super().__init__(exact, batch)
        self.done = {place for place in histories if place.kind == "output"}

    def substitute(self, place: Place, module: Module) -> Tensor | None:
        if place not in self.done:
            return None
        exact = self.exact[place]
        return exact.new_full((self.batch.batch_size, *exact.shape[1:]), nan)

    def at(self, place: Place, value: Tensor) -> Tensor | None:
        rows = super().at(place, value)
        if place in self.done and rows is not None:
            value.copy_(rows[: value.size(0)])
        return rows


class Note(Handler):
    """Notes the places that training meets, and gives exact rows to the halo of outputs, but for one place that is spoiled."""

    def __init__(self, exact: Values, batch: SubData, spoiled: Place | None, of_edges: Collection[str] = ()) -> None:
        self.exact, self.batch, self.spoiled, self.of_edges = exact, batch, spoiled, of_edges
        self.met: set[Place] = set()
        self.entered: set[Place] = set()

    def enters(self, place: Place) -> None:
        self.entered.add(place)

    def at(self, place: Place, value: Tensor) -> Tensor | None:
        self.met.add(place)
        batch_size, exact = self.batch.batch_size, self.exact.get(place)
        is_of_edges = place.scope.partition("#")[0] in self.of_edges
        if place.kind not in ("input", "output") or value.size(0) != batch_size or is_of_edges:
            return None
        if exact is None or exact.shape[1:] != value.shape[1:]:
            return pad(value, batch_size, self.batch.n_id.numel())
        halo = exact[self.batch.n_id[batch_size:].to(exact.device)].to(value.dtype)
        return torch.cat([value, spoil(halo, nan) if place == self.spoiled else halo])


def same(left: Tensor, right: Tensor) -> bool:
    """Whether both are equal but for rounding."""
    if left.shape != right.shape or left.dtype != right.dtype:
        return False
    if not left.is_floating_point() or left.numel() == 0:
        return torch.equal(left, right)
    tolerance = torch.finfo(left.dtype).eps ** 0.45  # a standard deviation takes the root of a difference that cancels
    left, right = left.double(), right.double()
    largest = right.nan_to_num(posinf=0, neginf=0).abs().amax(dim=0)  # of each column, as their units may differ
    scale = torch.maximum(largest, largest.median()) + 1e-30
    close = (left - right).abs() <= tolerance * (scale + right.abs())
    return bool((close | (left == right) | (left.isnan() & right.isnan())).all())


def spoil(halo: Tensor, by: float) -> Tensor:
    """Other rows than the exact ones."""
    if not halo.is_floating_point():  # integers take no NaN, for which `by == by` is false
        return halo + 1 + int(by == by and abs(by))
    generator = torch.Generator().manual_seed(0)  # which leaves the model's random numbers alone
    return halo + by * (1 + torch.rand(halo.shape, dtype=torch.float32, generator=generator, device="cpu").to(halo))
