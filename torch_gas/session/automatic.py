"""Fills the places of a model that runs on a batch."""

from __future__ import annotations

from functools import partial
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor
from torch.nn import Module
from torch_geometric.data import Data

from torch_gas.batch.data import SubData
from torch_gas.graph.halo import batch_rows, join
from torch_gas.wiring.arguments import Arguments
from torch_gas.wiring.batch import pad
from torch_gas.wiring.degrees import NormalizeByDegrees, can_normalize
from torch_gas.wiring.fused import is_product
from torch_gas.wiring.places import Handler, Place, missed
from torch_gas.wiring.trial.probe import never_met
from torch_gas.wiring.trial.structure import OF_TRAINING, OTHER_GRAPH, agrees, complete, read
from torch_gas.wiring.undo import Undo

if TYPE_CHECKING:
    from torch_gas.session.call import Call
    from torch_gas.session.scaled import ScaledGNN


class Automatic(Handler):
    """Exchanges rows with the histories and tables of ``model`` during ``call``.

    On its whole graph all rows are pushed, and nothing changes.
    """

    def __init__(self, model: ScaledGNN, call: Call) -> None:
        self.model, self.call, self.found = model, call, model.found
        self.layout = self.found.layout
        if call.neighbors != "in":
            self.layout = self.layout._replace(bipartite=False)
        self.met: set[Place] = set()
        self._normalized: set[str] = set()  # names of layers that look up degrees
        self._read: dict[int, Tensor] = {}  # by table: what this batch needs of it
        self.device = model.device
        self.ids = (call.batch_size, call.n_id, call.offset, call.count)

    def computes(self) -> None:
        if self.model._session.replay is not None:
            self.model._session.replay.computes()

    def enters(self, place: Place) -> None:
        if place not in self.found.known:
            raise RuntimeError(
                f"{place} was not called when the model was tried out by scale(), so it has no history; a model must "
                "call its layers in one order, with training or evaluation as the only switch. Scale it again after a change"
            )

    def substitute(self, place: Place, module: Module) -> Tensor | None:
        """Rows of any value where inference knows the exact ones, which :meth:`at` then gives."""
        replay = self.model._session.replay
        need = self.found.needs.get(place)
        if replay is None or self.call.batch_size is None:
            return None
        if need is None or need.action != "history" or self.model.histories[need.number] not in replay.exact:
            replay.computes()
            return None
        if place.kind == "output":  # nothing is computed inside of that layer, nor are rows read that lead into it
            self.met.update(inner for inner in self.found.needs if inner.scope == place.scope)
            exact = {number for number, history in enumerate(self.model.histories) if history in replay.exact}
            needs = self.found.needs.items()
            self.met.update(other for other, its in needs if its.action == "history" and its.number in exact)
        dtype = self.model.histories[need.number].model_dtype  # that of the trial, or what `float()` has made of it
        return replay.stand_in(torch.empty(0, *need.shape, dtype=dtype, device=self.device), self.call.batch_size)

    def at(self, place: Place, value: Tensor) -> Tensor | None:
        rows = self._rows(place, value)
        self.met.add(place)
        if place.scope.partition("#")[0] in self._normalized:
            self.met.update(inner for inner in self.found.needs if inner.scope == place.scope)
        return rows

    def normalize(self, undo: Undo) -> None:
        """Has layers that normalise by degrees look these up, in training; else the batch's are compared with the graph's."""
        in_training = self.model.training and self.model._session.replay is None
        # Where edges go into the halo, its rows have loops as well.
        if self.call.n_id is None or not in_training or not self.layout.bipartite:
            return
        assert self.call.batch_size is not None
        known: dict[Any, Any] = {}
        for name, conv in self.model.model.named_modules():
            if not (can_normalize(conv) and is_product(conv)):
                continue
            inner = [p for p in self.found.needs if p.scope.partition("#")[0] == name and p.kind != "output"]
            numbers = {self.found.needs[place].number for place in inner}
            if len(numbers) == 1 and all(self.found.needs[place].action == "rows" for place in inner):
                degrees = partial(self._degrees, numbers.pop())
                NormalizeByDegrees(conv, degrees, self.call.batch_size, known).set(undo)
                self._normalized.add(name)

    def _degrees(self, number: int) -> Tensor:
        table = self.model._structure_tables[number]
        return table.pull(self.call.n_id)

    def _rows(self, place: Place, value: Tensor) -> Tensor | None:
        need = self.found.needs.get(place)
        if need is None and place.kind in ("output", "hop"):
            self.enters(place)
        if self.call.n_id is None:
            if need is not None and need.action == "history":
                self.model.push_and_pull(self.model.histories[need.number], value.reshape(value.size(0), -1))
            return None
        assert self.call.batch_size is not None
        batch_size, num_rows = self.call.batch_size, self.call.n_id.numel()
        if need is None:
            return pad(value, batch_size, num_rows) if self.found.is_padded(place) else None
        if need.action != "history":
            table = self.model._structure_tables[need.number]
            replay = self.model._session.replay
            explores = replay is not None and replay.explores
            compares = explores or (not self.model.training and not value.is_cuda)  # no host waits for it
            if (
                compares
                and need.action == "rows"
                and not agrees(need, value, table.pull(self.call.n_id[:batch_size]), True)
            ):
                raise ValueError(OF_TRAINING if explores and self.model.training else OTHER_GRAPH)
            if need.number not in self._read:
                self._read[need.number] = read(need, table, self.call.n_id, batch_size)
            return complete(need, value, self._read[need.number], batch_size)
        if value.size(0) > batch_size and not self.call.keeps_halo():
            value = value[:batch_size]
        rows = value.reshape(value.size(0), -1) if value.dim() != 2 else value
        out = self.model.push_and_pull(self.model.histories[need.number], rows, *self.ids)
        if value.dim() == 2:
            return out
        own, out = batch_rows(out), out.view(-1, *need.shape)  # a view does not know the batch's rows
        return out if own is None else join(own.view(-1, *need.shape), out.detach())

    def check_met(self, given: Arguments) -> None:
        """Raises unless the call, which is over, met all places that it must; training may skip layers at random."""
        model, call, training = self.model, self.call, self.model.training
        missing = self.found.called[training] - self.met
        if training:
            missing -= model._at_random
        if call.n_id is None:  # needs no tables, whose values a layer may have cached; ages tell what training skipped
            missing = frozenset() if training else frozenset(each for each in missing if each.kind in ("output", "hop"))
        if not missing:
            return
        batch = SubData(Data(), *self.ids)  # type: ignore[arg-type]  # of a whole graph there are none
        if not training or never_met(model.model, lambda data: given, batch, missing, self.layout):
            raise RuntimeError(missed(model.model, missing, call.batch_size))
        model._at_random |= missing
