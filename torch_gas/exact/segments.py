"""A forward pass cut into segments, each of which ends where rows of all nodes are needed.

That is where a history takes rows for other batches, where a norm takes statistics of all rows, and the output. A segment
is computed on one batch from rows of the whole graph that earlier segments gave: `forward` runs from its beginning, histories
before the segment answer with exact rows, which are leaves of the autograd graph, and convolutions before it are not computed.

A norm that follows a history without a convolution in between needs no segment of its own: when the rows of the history have
been pushed, the batch's rows run on to the norm, with rows of any value for the halo.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from math import nan
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from torch_gas.history import History
from torch_gas.session.inference import OTHER_ORDER, EndOfBatch, Replay
from torch_gas.wiring.batch import pad
from torch_gas.wiring.statistics import Moments, NormCall, Statistics
from torch_gas.wiring.undo import Undo

if TYPE_CHECKING:
    from torch_gas.session.call import Call
    from torch_gas.session.model import HistoryModel


@dataclass
class Segment:
    """One segment of a forward pass; the last one has neither history nor norm.

    Attributes:
        history: takes the rows that it computes.
        norm: takes statistics of them.
        reads: the earlier histories that it reads; None for all.
        runs_on: whether a history's rows run on to a norm.
        compact: whether one row of any value can stand in for all rows that it does not read; else there are as many as in a
            batch, and those of exact histories are written over what is pushed, for whoever kept that.
        learns: whether its gradient is wanted: something that learns, or rows that depend on it, are read.
        draws: whether random numbers are drawn that change nothing it computes.
        is_known: whether a batch has shown where it ends.
    """

    history: History | None = None
    norm: NormCall | None = None
    reads: frozenset[History] | None = None
    runs_on: bool = True
    compact: bool = False
    learns: bool = True
    draws: bool = False
    is_known: bool = False

    @property
    def is_last(self) -> bool:
        """Whether it ends with the output."""
        return self.history is None and self.norm is None


class _Copy(torch.autograd.Function):
    """Rows that a model may write to in place, as it may not to a leaf, which has the same memory."""

    @staticmethod
    def forward(ctx: Any, leaf: Tensor, rows: list[Tensor]) -> Tensor:
        return rows[0]

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, None]:
        return grads[0], None


class Segments(Replay):
    """Runs one segment of ``model`` on one batch after the other.

    Attributes:
        segments: those that are known, in the order of the forward pass.
        number: of the segment under way.
        leaves: rows of batch and halo, [B + S, C], by the history that gave them to the last pass.
        rows: what the last pass computed for the history of the segment, [B, C].
        counted: what it gave to the norm, [B, C, ...].
    """

    def __init__(self, undo: Undo, model: HistoryModel) -> None:
        super().__init__(undo)
        self.model = model
        self.statistics = Statistics(model._plain, self._reach)
        self.segments: list[Segment] = []
        self.moments: dict[NormCall, Moments] = {}
        self.number = 0
        self.writes = False  # whether histories take the rows of the segment, whatever mode its code is in
        self.spoils = False  # whether rows of the halo with which rows run on to a norm are NaN
        self.forbids = False  # whether the model may not be called now
        self.forget()

    def forget(self) -> None:
        """Lets go of the last pass."""
        self.leaves: dict[History, Tensor] = {}
        self.rows: Tensor | None = None
        self.counted: Tensor | None = None

    def enter(self, number: int) -> None:
        """Makes a segment the one under way: earlier ones are complete."""
        self.number = number
        before = self.segments[:number]
        self.exact = [each.history for each in before if each.history is not None]
        self.statistics.known = {each.norm: self.moments[each.norm] for each in before if each.norm is not None}
        if number == len(self.segments):
            self.segments.append(Segment())

    def norm_learns(self, call: NormCall) -> bool:
        """Whether the statistics of a norm depend on something that learns."""
        return any(each.norm == call and each.learns for each in self.segments)

    @property
    def segment(self) -> Segment:
        """The one under way."""
        return self.segments[self.number]

    @property
    def asked(self) -> Iterable[History]:
        reads = self.segment.reads
        return self.exact if reads is None else [history for history in self.exact if history in reads]

    # -- what the pass meets -------------------------------------------------------------------------------------------

    def begin(self, call: Call) -> None:
        """Prepares the layers of a call that has been wired."""
        if self.forbids:
            raise RuntimeError(
                "ExactGradient: the criterion calls the model, and would lose the gradient of that call; let forward return all "
                "that the criterion needs"
            )
        if call.batch_size is not None and call.n_id is not None:
            self.statistics.wire(call.undo, call.batch_size, call.n_id.numel(), call.neighbors == "in")

    def computes(self) -> None:
        """Told that a convolution is about to be computed, which reads rows of the halo."""
        if self.rows is not None:
            raise EndOfBatch

    @property
    def any_rows(self) -> bool:
        return self.segment.compact

    def stand_in(self, rows: Tensor, number: int) -> Tensor:
        size = (1 if self.segment.compact else number, *rows.shape[1:])
        return rows.new_full(size, nan, requires_grad=False)  # so that whoever reads them all the same is found out

    def answer(self, history: History, x: Tensor, batch_size: int, n_id: Tensor) -> Tensor:
        segment = self.segment
        if segment.reads is None or history in segment.reads:
            rows = x.new_empty(n_id.numel(), x.size(1), requires_grad=False)
            history.table.read(n_id, rows)
            leaf = self.leaves[history] = rows.detach()
            if torch.is_grad_enabled() and (self.explores or history in self.learning):
                rows = _Copy.apply(leaf.requires_grad_(), [rows])
        else:
            rows = self.stand_in(x, n_id.numel())
        if self.handler is not None and not segment.compact and len(self.exact) <= self.handler.sweeps:
            target = x.detach_() if x.requires_grad and not x._is_view() else x
            target[:batch_size].copy_(rows[:batch_size])
        return rows

    @property
    def learning(self) -> set[History | None]:
        """The histories whose rows depend on something that learns."""
        return {each.history for each in self.segments[: self.number] if each.learns}

    def push(self, history: History, rows: Tensor, n_id: Tensor, offset: Tensor | None, count: Tensor | None) -> Tensor:
        segment = self.segment
        if self.rows is not None:
            raise EndOfBatch
        if not segment.is_known:
            segment.history = history
        if segment.history is not history:
            raise RuntimeError(OTHER_ORDER)
        if self.writes:
            history.write(rows, n_id[: rows.size(0)], offset, count)
        self.rows = rows
        if not segment.runs_on:
            raise EndOfBatch
        self.rows = rows.clone()  # the layer may go on in place
        padded = pad(rows, rows.size(0), n_id.numel())
        if padded is not None and self.spoils:
            with torch.no_grad():
                padded[rows.size(0) :] = nan
        return rows if padded is None else padded

    def check(self) -> None:
        """Raises unless the last pass met where its segment ends."""
        segment = self.segment
        if (self.rows is None, self.counted is None) != (segment.history is None, segment.norm is None):
            raise RuntimeError(OTHER_ORDER)

    def _reach(self, call: NormCall, x: Tensor) -> None:
        segment = self.segment
        if not segment.is_known:
            segment.norm = call
        if segment.norm != call:
            raise RuntimeError(OTHER_ORDER)
        self.counted = x
        raise EndOfBatch
