"""Compensation: what other batches found to be the gradient of a batch's rows, added to its own."""

from __future__ import annotations

import warnings
import weakref
from functools import partial
from typing import Any, Literal

import torch
from torch import Tensor

from torch_gas._util.arguments import checked
from torch_gas.extensions.compensation.passes import Log, Pass
from torch_gas.extensions.compensation.trust import Auto, Fixed, Trust
from torch_gas.history import History
from torch_gas.session.call import Call
from torch_gas.session.extension import Extension
from torch_gas.session.model import HistoryModel
from torch_gas.table import Table
from torch_gas.wiring.compiled import is_called_compiled, is_compiled

Schedule = Literal["consumed", "swapped"]
_TABLES = {"consumed": ("gradient",), "swapped": ("gradient", "next_gradient")}


class Compensation(Extension):
    sums = True
    takes_part = True

    @checked
    def __init__(
        self,
        trust: float | Literal["auto"] = "auto",
        *,
        schedule: Schedule = "consumed",
        scaler: torch.amp.GradScaler | None = None,
    ) -> None:
        if trust != "auto" and not 0 <= trust <= 1:
            raise ValueError(f'Compensation: trust must be "auto" or in 0 .. 1, but is {trust}')
        self.trust, self.schedule, self.scaler = trust, schedule, scaler
        self.tables = _TABLES[schedule]
        self._trust: Trust = Auto() if trust == "auto" else Fixed(float(trust))
        self._passes: weakref.WeakKeyDictionary[Call, Pass] = weakref.WeakKeyDictionary()
        self._last: Pass | None = None
        self._log = Log()

    def before(self, model: HistoryModel) -> None:
        self._log.finish()

    def begin(self, call: Call) -> None:
        if not call.is_step:
            return
        model = call.model
        if self._last is not None and not self._last.is_used:
            warnings.warn(
                f"{model._name}: backward() was not called on the loss of the batch before, so that it passed no gradient on to "
                "other batches. Call it on each batch, also on one without labelled rows, on a *sum* over out[mask], which is 0 "
                "there: F.cross_entropy(out[mask], y[mask], reduction='sum') / num_labelled; or use torch.no_grad() for a "
                "forward pass that trains nothing",
                stacklevel=2,
            )
        tables: Any = model.extension_tables[self.tables[0]]
        self._last = self._passes[call] = Pass(self, call, [each.table for each in tables])

    def exchange(self, call: Call, history: History, rows: Tensor, pulled: Tensor) -> Tensor | None:
        passed = self._passes.get(call)
        if passed is not None and rows.requires_grad:
            passed.watch(list(call.model.histories).index(history), rows)
        return None

    def output(self, call: Call, out: Any) -> Any:
        passed = self._passes.get(call)
        return out if passed is None else passed.hang(out)

    def backward(self, call: Call, history: History, grad: Tensor) -> Tensor | None:
        passed = self._passes.get(call)
        if passed is not None:
            passed.halo_grad(list(call.model.histories).index(history), grad[-passed.halo.numel() :] if passed.halo.numel() else grad[:0])
        return None

    def arrives(self, grads) -> None:
        pass

    def injected(self, layer, grad, own):
        return self._trust.add(layer, grad, own)

    def finish(self, passed: Pass) -> None:
        changes = []
        for layer in passed.taken:
            table = passed.read[layer]
            def clear(table=table):
                zeros = torch.zeros(passed.ids.numel(), table.width, dtype=table.dtype, device=table.device)
                if passed.ranges: table.write_ranges(*passed.ranges, zeros)
                else: table.write(passed.ids, zeros)
            changes.append((table, clear))
        for layer, grad in passed.added.items():
            table = passed.read[layer]
            changes.append((table, partial(table.add, passed.halo, grad)))
        self._log.add(changes)
        self._log.finish()
