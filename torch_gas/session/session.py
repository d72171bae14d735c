"""Session: what goes on around the calls of a model, whichever way the model is wired."""

from __future__ import annotations

import math
import weakref
from collections.abc import Iterable
from dataclasses import replace
from multiprocessing.reduction import ForkingPickler
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor
from torch.nn.parameter import Parameter, is_lazy

from torch_gas._util.modules import first_parameter
from torch_gas._util.tracing import untraced
from torch_gas.batch.record import BatchRecord, record_of
from torch_gas.history import History
from torch_gas.session.call import Call, Ids, NextBatch
from torch_gas.session.extension import Extension
from torch_gas.session.identity import forget_passes
from torch_gas.session.met import MetLayers
from torch_gas.table.memory import MemoryTable
from torch_gas.transfer import AsyncIOPool, refuse_capture, with_index
from torch_gas.wiring.undo import Undo

if TYPE_CHECKING:
    from torch_gas.session.inference import Replay
    from torch_gas.session.model import HistoryModel

POOL_SIZE = 4  # pulls in flight by default: the layer that runs and those that come next


_owners: weakref.WeakKeyDictionary[Extension, weakref.ref[Session]] = weakref.WeakKeyDictionary()


def owner_of(extension: Extension) -> Session | None:
    """The session that an extension was added to."""
    owner = _owners.get(extension)
    return None if owner is None else owner()


def refuse_inference_tensors(name: str, parameters: Iterable[Parameter]) -> None:
    """Raises RuntimeError if torch cannot train ``parameters``."""
    if any(not is_lazy(parameter) and parameter.is_inference() for parameter in parameters):
        raise RuntimeError(
            f"{name} has parameters that were made, copied or loaded under torch.inference_mode(), and torch cannot train such "
            "tensors; do that outside of it, or under torch.no_grad()"
        )


class Session:
    """The calls of one model: the one under way, the transfers of its histories, its extensions.

    The model owns it; a copy of a model has one of its own.

    Args:
        model: the model.

    Attributes:
        call: the call under way.
        replay: layer-wise inference under way.
        next_batch: the batch whose pulls are under way already.
        watching: whether extensions that only watch are told of calls.
        met: which layers batches of the epoch under way met, where the model is wired by hand.
        kept: the extensions that copies of the model have as well.
    """

    def __init__(self, model: HistoryModel) -> None:
        self._model = weakref.ref(model)  # which can then be freed as soon as nobody holds it
        self.call: Call | None = None
        self.replay: Replay | None = None
        self.next_batch: NextBatch | None = None
        self.watching = True
        self.met = MetLayers()
        self._pool: AsyncIOPool | None = None
        self.kept: list[Extension] = []
        self._extensions: list[weakref.ref[Extension]] = []
        self._epoch: BatchRecord | None = None  # of the last training call
        self._seen: set[int | None] = set()  # places of batches in its epoch
        self._last: BatchRecord | None = None  # the batch that ended an epoch

    @property
    def model(self) -> HistoryModel:
        """The model."""
        model = self._model()
        assert model is not None
        return model

    # -- calls ---------------------------------------------------------------------------------------------------------

    def begin(self, undo: Undo, num_rows: int | None, given: dict[str, Any], adj: Any, ids: Ids) -> Call:
        """A call of the model with checked arguments, whose transfers are under way."""
        self.clean_up()
        model = self.model
        is_step = model.training and torch.is_grad_enabled() and ids[1] is not None and self.replay is None
        if self.call is None and is_step:
            self._end_left_epoch(record_of(ids[0]))
            for extension in self.told():
                extension.before(model)
        self.follow_parameters()
        model._check_processes()
        if len(model.histories) > 0 and self.pool.device.type == "cuda":
            refuse_capture(model._name)
        call = Call(self, undo, num_rows, ids)
        call.check(num_rows, given, adj)
        if call.is_step:
            parameter = first_parameter(model)
            refuse_inference_tensors(model._name, [] if parameter is None else [parameter])
        self.enter(call)
        call.begin()
        self._note_epoch(call)
        return call

    def enter(self, call: Call) -> None:
        """Makes ``call`` the one under way."""
        if self.call is not None:
            raise RuntimeError(f"{self.model._name} was called inside its own forward")
        call.undo.add(torch.set_grad_enabled, torch.is_grad_enabled())
        call.undo.set(self, "call", call)

    def clean_up(self) -> None:
        """Undoes what a call left that Ctrl-C ended while it was cleaning up itself; an error while another thread calls."""
        for left in (self.call, self.replay):
            if left is None:
                continue
            if left.undo.is_elsewhere:
                raise RuntimeError(
                    f"{self.model._name} is in use by another thread, and its layers and histories serve one call at a time; "
                    "hold a threading.Lock in each call, or give each thread a copy.deepcopy(model)"
                )
            left.undo.finish()

    @property
    def any_rows(self) -> bool:
        """Whether layers that are not computed may be given one row for all."""
        return self.replay is not None and self.replay.any_rows

    # -- extensions ----------------------------------------------------------------------------------------------------

    def add(self, extension: Extension, keep: bool) -> None:
        """Adds an extension; it is forgotten when nobody else holds it, unless it is kept."""
        _owners[extension] = weakref.ref(self)
        self._extensions.append(weakref.ref(extension))
        if keep:
            self.kept.append(extension)

    def remove(self, extension: Extension) -> None:
        """Removes an extension that is there."""
        _owners.pop(extension, None)
        self._extensions = [each for each in self._extensions if each() not in (None, extension)]
        self.kept = [each for each in self.kept if each is not extension]

    @property
    def extensions(self) -> list[Extension]:
        """All extensions, in the order in which they were added."""
        return [found for each in self._extensions if (found := each()) is not None]

    def told(self) -> list[Extension]:
        """Those that are told of calls."""
        return [each for each in self.extensions if self.watching or each.takes_part] if self._extensions else []

    def wired(self, call: Call) -> None:
        """Tells extensions of a call whose layers have been wired."""
        if self.replay is not None:
            self.replay.begin(call)
        for extension in self.told():
            extension.begin(call)

    def _end_left_epoch(self, record: BatchRecord | None) -> None:
        """Tells extensions of an epoch that was left early, where ``record`` is of another one."""
        before = self._epoch
        if before is not None and record is not None and record.epoch not in (None, before.epoch):
            self._end_epoch(complete=False)

    def _note_epoch(self, call: Call) -> None:
        record = call.record
        if call.is_step and record is not None and record.epoch is not None and record is not self._last:
            self._epoch = record
            self._seen.add(record.index)  # a batch counts once, however often the model is called on it

    def _end_epoch(self, complete: bool) -> None:
        assert self._epoch is not None and self._epoch.epoch is not None
        number, self._epoch, self._seen = self._epoch.epoch, None, set()
        for extension in self.told():
            extension.epoch(number, complete)

    @untraced
    def end(self, call: Call, out: Any) -> Any:
        """Ends a call whose forward pass has met no error and returned ``out``; returns what the call returns."""
        for extension in self.told():
            out = extension.output(call, out)
            extension.end(call)
        self.next_batch = call.next_batch  # whose pulls are under way
        record = self._epoch
        if call.is_step and record is not None and call.record is record and record.completes_epoch:
            self._last = record
            self._end_epoch(complete=len(self._seen) == record.num_batches)
        return out

    # -- transfers -----------------------------------------------------------------------------------------------------

    @property
    def pool(self) -> AsyncIOPool:
        """What moves rows between tables and the device of the model."""
        if self._pool is not None:
            return self._pool
        model = self.model
        size = model.pool_size or min(max(len(model.histories), 1), POOL_SIZE)
        width = max((history.embedding_dim for history in model._stores), default=0)
        pool = AsyncIOPool(size, model.buffer_size, width, model.device, io=model.io, pool_bytes=model.pool_bytes)
        self.use_pool(pool)
        return pool

    def use_pool(self, pool: AsyncIOPool) -> None:
        """Has all tables of the model moved by ``pool``."""
        self._pool = pool
        for history in self.model._stores:
            history.use(pool)

    def drop_buffers(self) -> None:
        """Gives the buffers of transfers back; the next call makes them anew."""
        self.next_batch = None
        self.use_pool(AsyncIOPool(device=self.model.device, io="serial"))
        self.forget_pool()

    def forget_pool(self) -> None:
        """Has the next call make a pool anew, for the device that the model and its parameters are on then."""
        self._pool = None
        forget_passes(self.model)

    def follow_parameters(self) -> None:
        """Serves the device on which the parameters are, however they came there (``torch.load`` with a map, say)."""
        pool = self._pool
        if pool is not None and (
            pool.device != with_index(self.model.device) or any(each.pool is not pool for each in self.model._stores)
        ):
            self.forget_pool()

    # -- exchanges -----------------------------------------------------------------------------------------------------

    def push_and_pull(self, history: History, x: Tensor, *ids: Any) -> Tensor:
        """See :meth:`HistoryModel.push_and_pull`."""
        call = self.call
        if call is None:
            raise RuntimeError("push_and_pull can only be called inside forward, by calling the model itself")
        call.use(history)
        out = self._exchange(call, history, x, *ids)
        call.used.add(history)
        return out

    def _exchange(self, call: Call, history: History, x: Tensor, *ids: Any) -> Tensor:
        batch_size, n_id, *ranges = ids
        replay = self.replay
        if n_id is None:
            if call.n_id is not None:
                raise ValueError(
                    "push_and_pull: forward runs on a batch and did not pass its ids on; call "
                    "self.push_and_pull(history, x, *args) with all four that forward got"
                )
            if call.on_own_graph:
                num_nodes = self.model.num_nodes
                if x.size(0) != num_nodes:
                    raise ValueError(
                        f"push_and_pull: x has {x.size(0)} rows, but must have one for each of the {num_nodes} nodes"
                    )
                history.check_rows(x)
                self._check_finite(history, x)
                history.push(x)
                if call.origin is not None:
                    history.origin = replace(call.origin)
            return x
        if batch_size is None:
            batch_size = n_id.numel()
        if replay is not None and history in replay.exact:
            history.check_rows(x)
            return replay.answer(history, x, batch_size, n_id)
        if x.size(0) not in (batch_size, n_id.numel()):
            raise ValueError(
                f"push_and_pull: x has {x.size(0)} rows, but must have those of the batch ({batch_size}) or of batch "
                f"and halo ({n_id.numel()})"
            )
        history.check_rows(x)
        rows = x if x.size(0) == batch_size else x[:batch_size]  # the gradient of a slice is copied
        call.of_halo = x[batch_size:].detach() if call.asks_for_halo and x.size(0) > batch_size else None
        self._check_finite(history, rows)
        return (call.exchange if replay is None else replay.push)(history, rows, n_id, *ranges)

    def _check_finite(self, history: History, rows: Tensor) -> None:
        model = self.model
        if not (model.check_finite if model.check_finite is not None else not rows.is_cuda):
            return
        rows = rows.detach()
        held = history.table.codec.range_dtype
        if held != rows.dtype and torch.finfo(held).max < torch.finfo(rows.dtype).max:
            rows = rows.to(held)  # what the table would hold
        # One pass: a sum is finite unless a term is not (or the rows are beyond any use).
        if not math.isfinite(rows.sum(dtype=torch.promote_types(rows.dtype, torch.float32))):
            layer = list(model.histories).index(history)
            half = " float16 ends at 65504, and GradScaler scales gradients only: use torch.bfloat16."
            hint = half if rows.dtype == torch.float16 else ""
            raise ValueError(
                f"push_and_pull: the embeddings of layer {layer + 1} hold NaN or infinity; the histories were not "
                f"changed.{hint} Lower the learning rate or clip gradients, or pass check_finite=False to the model"
            )


def _reduce_for_process(history: History) -> Any:
    memory = history.table.base
    if isinstance(memory, MemoryTable) and memory.is_registered and not memory.is_shared:
        advice = "call model.share_memory() before, best before .to('cuda')"
        raise RuntimeError(f"History: torch.multiprocessing would move a table from memory that a GPU reads; {advice}")
    return history.__reduce_ex__(2)


ForkingPickler.register(History, _reduce_for_process)
