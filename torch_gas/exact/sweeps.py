"""The sweeps over all batches by which a step gets the gradient of the whole graph."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, MutableMapping
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor
from torch.utils import _pytree as pytree
from torch.utils.weak import WeakIdKeyDictionary

from torch_gas._util.version import version
from torch_gas.batch.data import SubData
from torch_gas.batch.loader import EvalSubgraphLoader, SubgraphLoader
from torch_gas.checkpoint.rng import random_states, set_random_states
from torch_gas.exact.criterion import Criterion, check_is_sum, value_of
from torch_gas.exact.dropout import DropoutById
from torch_gas.exact.learned import Learned, leaves_of
from torch_gas.exact.segments import Segment, Segments
from torch_gas.exact.state import State
from torch_gas.history import History
from torch_gas.session.inference import Coverage, EndOfBatch
from torch_gas.wiring.draws import is_same_state, refuse_draws
from torch_gas.wiring.statistics import Moments
from torch_gas.wiring.trial.handlers import same

_SWITCHES = (bool, int, float, str)  # by whose values a forward pass may choose what it does
_DRAWS = 3  # passes with other random numbers, in which results that depend on these differ


class Sweeps:
    """One step: forward sweeps, then backward sweeps.

    Args:
        replay: what the model runs segments with.
        loader: batches that together hold each node once.
        tables: the gradient table of each history.
        criterion: the loss, a sum over rows.
        unchecked: whether that is still to be checked.

    Attributes:
        found_for: what segments depend on beside the model's code: what learns, modes and other switches of modules.
    """

    def __init__(
        self, replay: Segments, loader: SubgraphLoader, tables: Iterable[History], criterion: Criterion, unchecked: bool
    ) -> None:
        self.replay, self.model, self.loader = replay, replay.model, loader
        self.criterion, self.unchecked = criterion, unchecked
        self._tables = dict(zip(self.model.histories, tables, strict=True))
        self._learned = Learned(loader.data)
        self._state = State(replay.undo, self.model._plain)
        self._parameters: list[Tensor] = [p for p in self.model._plain.parameters() if p.requires_grad]
        self._versions = list(map(version, self._parameters))
        self._grads: dict[Tensor, Tensor] = {}
        # Of what is not the model's, such as parameters of the criterion. What a pass itself makes goes with its batch.
        self._grads_of_others: MutableMapping[Tensor, Tensor] = WeakIdKeyDictionary()
        self._loss: Tensor | None = None
        self._has_gradient = False  # whether the loss of any batch has one
        modules = [module for module in self.model._plain.modules() if not isinstance(module, History)]
        switches = [value for module in modules for value in vars(module).values() if isinstance(value, _SWITCHES)]
        self.found_for = ([*map(id, self._parameters)], switches, self._learned.names)

    def run(self) -> Tensor:
        """The loss; gradients wait for :meth:`commit`."""
        replay = self.replay
        if self.model.training:
            for history in self.model._history_tables:
                history.tick()
        self._clear()
        try:
            replay.enter(0)
            while self._forward():
                replay.enter(replay.number + 1)
            if not any(segment.learns for segment in replay.segments):
                raise RuntimeError(
                    f"ExactGradient: no parameter of {self.model._name} requires a gradient, and no attribute of the graph does"
                )
            for number in reversed(range(len(replay.segments))):
                if replay.segments[number].learns:
                    replay.enter(number)
                    self._backward()
        finally:
            replay.forget()
            self._clear()
        assert self._loss is not None
        return self._loss

    def commit(self) -> None:
        """Adds what was computed to ``.grad``, and moves running statistics and other state."""
        torch.autograd.backward(list(self.grads), list(self.grads.values()))
        self._state.step()
        self.replay.statistics.step(self.replay.moments)
        if self._masks is not None and self.model.training:
            self._masks.next_step()

    @property
    def grads(self) -> dict[Tensor, Tensor]:
        """What was computed, by parameter and attribute of the graph."""
        return {**self._grads, **self._grads_of_others, **self._learned.grads}

    def _clear(self) -> None:
        for table in self._tables.values():
            table.table.clear()

    def _batches(self) -> Iterator[SubData]:
        """The batches of one sweep, which hold each node once."""
        self._check_parameters()
        coverage = Coverage(self.model.num_nodes)
        state: Tensor | None = None
        for batch in self.loader:
            if state is not None and not torch.equal(state, torch.get_rng_state()):
                raise ValueError(
                    "ExactGradient: the loader draws random numbers for each batch, and would draw others when it makes the "
                    "batch again; draw them before each step, as an attribute of data"
                )
            coverage.count(batch)
            yield self._learned.leaves(batch.to(self.model.device))
            state = torch.get_rng_state()
        coverage.check()

    def _check_parameters(self) -> None:
        if list(map(version, self._parameters)) != self._versions:
            raise RuntimeError(
                "ExactGradient: parameters changed while their gradient was computed; call optimizer.step() after backward()"
            )

    def _run(self, batch: SubData) -> Any:
        """Runs the segment under way on a batch; what ``forward`` returns where it is the last one."""
        self.replay.forget()
        state = torch.get_rng_state()
        try:
            out: Any = self.model(batch)
        except EndOfBatch:
            out = None
        self._state.put_back()
        segment = self.replay.segment
        if segment.is_known and not segment.draws and not torch.equal(state, torch.get_rng_state()):
            raise ValueError(
                f"ExactGradient: {self.model._name} draws random numbers on some batches, and would draw others when these are "
                "computed again; let it draw none, or drop entries by torch.nn.functional.dropout"
            )
        return out if self.replay.rows is None else None

    # -- forward -------------------------------------------------------------------------------------------------------

    def _forward(self) -> bool:
        """Makes the history and the statistics of a segment exact; whether it was not the last."""
        replay, segment = self.replay, self.replay.segment
        if segment.is_known and segment.is_last:
            return False
        moments, dtype, is_new = Moments(), torch.float32, not segment.is_known
        watches = not (is_new or segment.learns)
        for batch in self._batches():
            if is_new and not (segment.is_known and self._is_as_known(batch)):
                self._explore(batch)
            if segment.is_last:
                continue
            replay.writes = True
            with torch.set_grad_enabled(watches):
                results = self._results(batch)
            replay.writes = False
            if watches and any(each.requires_grad for each in results):  # what was detached, say, is so no longer
                replay.segments[replay.number] = Segment()
                return self._forward()
            watches = False
            replay.check()
            if replay.counted is not None:
                moments.add(replay.counted)
                dtype = replay.counted.dtype
        if segment.norm is not None:
            if replay.statistics.is_mistaken(segment.norm):
                return self._forward()
            moments.complete(dtype)
            replay.moments[segment.norm] = moments
        return not segment.is_last

    def _is_as_known(self, batch: SubData) -> bool:
        """Whether a batch reads no more than those before it, such as rows of a type of nodes that these have none of."""
        try:
            results = self._results(batch)
        except Exception:  # of any type: rows of any value may have been read
            return False
        self.replay.segment.learns |= any(each.requires_grad for each in results)
        return not any(bool(each.isnan().any()) for each in results)

    def _explore(self, batch: SubData) -> None:
        """Finds out where the segment under way ends, what it reads, and whether it learns, beside what is known of that."""
        replay, segment = self.replay, self.replay.segment
        known = replace(segment)
        segment.reads, segment.compact, replay.explores = None, False, True
        first = self._repeatable(batch)
        segment.is_known = True
        leaves = {history: leaf for history, leaf in replay.leaves.items() if leaf.requires_grad}  # not under no_grad
        outputs = [each for each in first if each.requires_grad]
        learns = [*self._parameters, *self._learned.of(batch), *self._others(batch, outputs)]
        inputs = [*leaves.values(), *learns, *replay.statistics.leaves]
        found: list[Tensor | None] = [None] * len(inputs)
        if outputs:
            found = list(
                torch.autograd.grad(outputs, inputs, [torch.ones_like(each) for each in outputs], allow_unused=True)
            )
        reached = [grad is not None for grad in found]
        reads = frozenset(history for history, is_read in zip(leaves, reached, strict=False) if is_read)
        of_rest = reached[len(leaves) :]
        segment.learns = (
            (known.is_known and known.learns)
            or any(of_rest[: len(learns)])
            or any(each in replay.learning for each in reads)
            or any(
                is_read and replay.norm_learns(call)
                for call, is_read in zip(replay.statistics.known, of_rest[len(learns) :: 2], strict=True)
            )
        )
        replay.explores = False
        if not known.is_known:
            segment.reads = reads
        elif known.reads is not None:
            segment.reads = known.reads | reads
        if segment.reads is not None:
            self._settle(batch, first, (True, False) if known.compact or not known.is_known else (False,))
        if not known.is_known:
            self._check_rows(batch, first)

    def _repeatable(self, batch: SubData) -> list[Tensor]:
        """The results of a pass that draws no random numbers, but those of dropout by ids."""
        before = random_states()
        results = self._results(batch)
        if is_same_state(random_states(), before):
            return results
        set_random_states(before)
        if self._masks is None:
            self.model.add_extension(DropoutById())
            return self._repeatable(batch)
        others = [self._results(batch) for _ in range(_DRAWS)]
        if all(len(other) == len(results) and all(map(torch.equal, other, results)) for other in others):
            self.replay.segment.draws = True  # for what is read elsewhere, such as a loss of its own
            return results
        set_random_states(before)
        return refuse_draws(self.model._plain, lambda: self._results(batch))

    @property
    def _masks(self) -> DropoutById | None:
        """What draws masks of dropout."""
        return next((each for each in self.model.extensions if isinstance(each, DropoutById)), None)

    def _settle(self, batch: SubData, results: list[Tensor], ways: tuple[bool, ...]) -> None:
        """Finds out what the segment can do without: what gives it no gradient may change its ``results`` all the same."""
        replay, segment = self.replay, self.replay.segment
        norm = segment.norm
        segment.runs_on = norm is not None
        replay.spoils = True
        for segment.compact in ways:
            try:
                again = self._results(batch)
                if len(again) == len(results) and all(map(same, again, results)):
                    break
            except Exception:  # of any type: the user's code may not take such rows
                continue
        else:
            segment.reads, segment.runs_on = None, segment.history is None
            segment.norm = norm if segment.history is None else None
        replay.spoils = False

    def _check_rows(self, batch: SubData, results: list[Tensor]) -> None:
        """Raises ValueError if rows of the first nodes of a batch are others in a batch of these alone."""
        batch_size, n_id = batch.batch_size, batch.n_id
        in_turn = 1 + int((n_id[:batch_size].diff() == 1).cumprod(0).sum())
        count = min(in_turn, batch_size // 2)
        if (
            type(self.loader) not in (SubgraphLoader, EvalSubgraphLoader)
            or count < 2
            or batch_size == self.model.num_nodes
        ):
            return
        part = self.loader.builder.batch(n_id[:1].cpu(), torch.tensor([count], device="cpu"))
        with torch.no_grad():
            again = self._results(part.to(self.model.device))
        for left, right in zip(again, results, strict=True):
            if right.shape[:1] == (batch_size,) and left.shape[:1] == (count,) and not same(left, right[:count]):
                raise ValueError(
                    f"ExactGradient: {self.model._name} computes other rows for a node when other nodes are in its batch, or "
                    "each time that it is called, so that no batch tells what the whole graph has. It may not take means over "
                    "rows by hand or by torch.nn.functional.batch_norm (use torch.nn.BatchNorm1d), nor change itself in forward"
                )

    def _results(self, batch: SubData) -> list[Tensor]:
        out = self._run(batch)
        replay = self.replay
        found = [replay.rows, replay.counted, *pytree.tree_leaves(out)]
        return [each for each in found if isinstance(each, Tensor) and each.is_floating_point()]

    # -- backward ------------------------------------------------------------------------------------------------------

    def _backward(self) -> None:
        """Takes the gradient by what the segment under way computes to what it reads."""
        replay, segment = self.replay, self.replay.segment
        for batch in self._batches():
            out = self._run(batch)
            outputs: list[Tensor] = []
            seeds: list[Tensor] = []
            if segment.is_last:
                loss = self._loss_of(out, batch)
                outputs, seeds = [loss], [torch.ones_like(loss)]
            else:
                replay.check()
            if replay.rows is not None and segment.history is not None:
                seed = torch.empty_like(replay.rows, requires_grad=False)
                self._tables[segment.history].table.read(batch.n_id[: batch.batch_size], seed)
                outputs, seeds = [replay.rows], [seed]
            if replay.counted is not None and segment.norm is not None:
                outputs.append(replay.counted)
                seeds.append(replay.moments[segment.norm].gradient(replay.counted))
            self._take(batch, outputs, seeds)
        if segment.is_last and not self._has_gradient:
            raise RuntimeError(
                "ExactGradient: the loss has no gradient on any batch; compute it from what the model returns, without "
                "detach() or torch.no_grad()"
            )

    def _take(self, batch: SubData, outputs: list[Tensor], seeds: list[Tensor]) -> None:
        """Adds the gradients of ``outputs``, for these of their own, where they belong."""
        replay = self.replay
        learn = [number for number, each in enumerate(outputs) if each.requires_grad]
        leaves = {history: leaf for history, leaf in replay.leaves.items() if leaf.requires_grad}
        groups: list[list[Tensor]] = [
            list(leaves.values()),
            replay.statistics.leaves,
            self._learned.of(batch),
            self._parameters,
            self._others(batch, [outputs[number] for number in learn]),
        ]
        inputs = [each for group in groups for each in group]
        if not learn or not inputs:
            return
        found = torch.autograd.grad([outputs[i] for i in learn], inputs, [seeds[i] for i in learn], allow_unused=True)
        grads = iter(found)
        of_leaves, of_statistics, of_batch, of_parameters, of_others = (
            [next(grads) for _ in group] for group in groups
        )
        batch_size, n_id = batch.batch_size, batch.n_id
        for history, grad in zip(leaves, of_leaves, strict=True):
            if grad is not None:
                table = self._tables[history].table
                table.add(n_id[:batch_size], grad[:batch_size])
                table.add(n_id[batch_size:], grad[batch_size:])
        replay.statistics.add_gradients(of_statistics)
        self._learned.add(batch, of_batch)
        parameters, others = (
            (self._grads, self._parameters, of_parameters),
            (self._grads_of_others, groups[-1], of_others),
        )
        for sums, tensors, grads_of_batch in (parameters, others):
            for tensor, grad in zip(tensors, grads_of_batch, strict=True):
                if grad is not None:
                    known = sums.get(tensor)
                    sums[tensor] = grad if known is None else known + grad

    def _others(self, batch: SubData, outputs: list[Tensor]) -> list[Tensor]:
        """Leaves of ``outputs`` that nothing else tells of."""
        replay = self.replay
        known = [*self._parameters, *self._learned.of(batch), *replay.leaves.values(), *replay.statistics.leaves]
        ids = set(map(id, known))
        others = [leaf for leaf in leaves_of(outputs) if id(leaf) not in ids]
        for leaf in others:
            if leaf._backward_hooks:  # which are for the whole gradient
                replay.undo.add(setattr, leaf, "_backward_hooks", leaf._backward_hooks)
                leaf._backward_hooks = None
        return others

    def _loss_of(self, out: Any, batch: SubData) -> Tensor:
        self.replay.forbids = True
        loss = value_of(self.criterion, out, batch)
        self._check_parameters()  # which the criterion may have changed
        self._has_gradient |= loss.requires_grad
        if self.unchecked:
            self.unchecked = not check_is_sum(self.criterion, out, batch, loss)
        self.replay.forbids = False
        self._loss = loss.detach() if self._loss is None else self._loss + loss.detach()
        return loss
