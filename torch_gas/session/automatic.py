"""Fills the places of a model that runs on a batch."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from torch import Tensor
from torch.nn import Module
from torch_geometric.data import Data

from torch_gas.batch.data import SubData
from torch_gas.wiring.arguments import Arguments
from torch_gas.wiring.batch import pad
from torch_gas.wiring.places import Handler, Place, missed
from torch_gas.wiring.trial.probe import never_met
from torch_gas.wiring.trial.structure import OF_TRAINING, OTHER_GRAPH, agrees, complete, read

if TYPE_CHECKING:
    from torch_gas.session.call import Call
    from torch_gas.session.scale import ScaledGNN


class Automatic(Handler):
    """Exchanges rows with the histories and tables of ``model`` during ``call``.

    On its whole graph all rows are pushed, and nothing changes.
    """

    def __init__(self, model: ScaledGNN, call: Call) -> None:
        self.model, self.call, self.found = model, call, model.found
        self.bipartite = self.found.bipartite and call.neighbors == "in"
        self.met: set[Place] = set()
        self._read: dict[int, Tensor] = {}  # by table: what this batch needs of it
        self.device = model.device
        self.ids = (call.batch_size, call.n_id, call.offset, call.count)

    def substitute(self, place: Place, module: Module) -> Tensor | None:
        """Rows of any value where inference knows the exact ones, which :meth:`at` then gives."""
        replay = self.model._session.replay
        need = self.found.needs.get(place)
        if replay is None or self.call.batch_size is None:
            return None
        if need is None or need.action != "history" or self.model.histories[need.number] not in replay.exact:
            replay.computes()
            return None
        if place.kind == "output":  # nothing is computed inside of that layer
            self.met.update(inner for inner in self.found.needs if inner.scope == place.scope)
        dtype = self.model.histories[need.number].model_dtype  # that of the trial, or what `float()` has made of it
        return replay.stand_in(torch.empty(0, *need.shape, dtype=dtype, device=self.device), self.call.batch_size)

    def at(self, place: Place, value: Tensor) -> Tensor | None:
        rows = self._rows(place, value)
        self.met.add(place)
        return rows

    def _rows(self, place: Place, value: Tensor) -> Tensor | None:
        need = self.found.needs.get(place)
        if need is None and place.kind in ("output", "hop") and place not in self.found.known:
            raise RuntimeError(
                f"{place} was not called when the model was tried out by scale(), so it has no history; a model must "
                "call its layers in one order, with training or evaluation as the only switch. Scale it again after a change"
            )
        if self.call.n_id is None:
            if need is not None and need.action == "history":
                self.model.push_and_pull(self.model.histories[need.number], value.reshape(value.size(0), -1))
            return None
        assert self.call.batch_size is not None
        batch_size, num_rows = self.call.batch_size, self.call.n_id.numel()
        if need is None:
            return pad(value, batch_size, num_rows) if place in self.found.shapes else None
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
        value = value if self.call.keeps_halo() else value[:batch_size]
        rows = value.flatten(1) if value.dim() > 1 else value.view(-1, 1)
        out = self.model.push_and_pull(self.model.histories[need.number], rows, *self.ids)
        return out.view(-1, *need.shape)

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
        if not training or never_met(
            model.model, lambda data: given, batch, missing, self.bipartite, self.found.of_edges
        ):
            raise RuntimeError(missed(model.model, missing, call.batch_size))
        model._at_random |= missing
