"""One forward pass of training, until its backward pass has gone by: what is read from gradient tables, and what is added."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from functools import partial
from typing import Any, Protocol

import torch
from torch import Tensor
from torch.autograd.graph import get_gradient_edge
from torch.utils import _pytree as pytree

from torch_gas.session.call import Call
from torch_gas.table import Table


class Watcher(Protocol):
    """What decides on a pass."""

    def arrives(self, passed: Pass, grads: Sequence[Tensor]) -> None:
        """Told of the gradients by what the model returned, when they arrive."""

    def inject(self, passed: Pass, layer: int, rows: Tensor, grad: Tensor, own: Tensor) -> Tensor:
        """What the gradient of ``rows`` of a batch becomes, from what arrived and the rows of the table, all [B, C]."""

    def finish(self, passed: Pass) -> None:
        """Told that the backward pass is over, without an error."""


class Pass:
    """What a forward pass and its backward pass have to do with gradient tables.

    All that a backward pass changes waits until it is over: one that ends with an error leaves tables as they are.

    Args:
        watcher: what decides.
        call: the forward pass.
        read: the table of each layer from which the rows of the batch are read.
        add: the table of each layer to which those of the halo are added.

    Attributes:
        batch_size: B.
        num_batches: of the epoch, where that is known.
        is_used: whether a backward pass has come.
        taken: layers whose rows were read.
        added: for layers, the gradient of the rows of the halo, [S, C].
    """

    def __init__(self, watcher: Watcher, call: Call, read: Sequence[Table], add: Sequence[Table]) -> None:
        assert call.n_id is not None
        self.watcher, self.read, self.add = watcher, read, add
        self.batch_size = call.n_id.numel() if call.batch_size is None else call.batch_size
        self.ids, self.halo = call.n_id[: self.batch_size], call.n_id[self.batch_size :]
        self.ranges = None if call.offset is None or call.count is None else (call.offset, call.count)
        self.parameters = [each for each in call.model.parameters() if each.requires_grad]
        self.name = call.model._name
        self.num_batches = None if call.record is None else call.record.num_batches
        self.is_used = False
        self.taken: list[int] = []
        self.added: dict[int, Tensor] = {}
        self._outside: list[Any] = []  # nodes that accumulate gradients, where nothing of the model learns
        self._task: int | None = None  # the backward pass that counts

    def watch(self, layer: int, rows: Tensor) -> None:
        """Has the rows of a batch that were pushed, [B, C], get what the table holds for them."""
        rows.register_hook(partial(self._inject, layer, rows.detach()))

    def hang(self, out: Any, joined: Sequence[Tensor]) -> Any:
        """``out`` of the model, from which a backward pass reaches all exchanges, also those that no loss reads."""
        exchanges = [each for each in joined if each.requires_grad]
        leaves, spec = pytree.tree_flatten(out)
        learned = [i for i, leaf in enumerate(leaves) if isinstance(leaf, Tensor) and leaf.requires_grad]
        if not exchanges:
            self.is_used = True  # there is nothing to wait for
            return out
        if not learned:
            raise RuntimeError(
                f"{self.name} returned nothing that has a gradient, so that Compensation cannot see its backward pass; return "
                "tensors with gradient, alone or in tuples, lists and dictionaries"
            )
        if not self.parameters:
            self._outside = _leaves(exchanges)
        hung = _Hung.apply(self, [leaves[i] for i in learned], *(leaves[i] for i in learned), *exchanges)
        for i, leaf in zip(learned, hung, strict=True):
            leaves[i] = leaf
        return pytree.tree_unflatten(leaves, spec)

    def arrives(self, grads: Sequence[Tensor | None]) -> None:
        """Told that a backward pass has reached what the model returned."""
        if not self._accumulates():
            return  # a gradient for somebody who looks at it, such as a penalty
        if self.is_used:
            raise RuntimeError(
                f"{self.name}: a second backward pass of one forward pass would add to gradient tables twice. Add up the losses "
                "and call backward() once; for gradients that no optimiser gets, call torch.autograd.grad()"
            )
        self.is_used, self._task = True, torch._C._current_graph_task_id()
        self.watcher.arrives(self, [grad for grad in grads if grad is not None])
        engine: Any = torch.autograd.Variable._execution_engine
        engine.queue_callback(self._finish)

    @property
    def is_under_way(self) -> bool:
        """Whether the backward pass that runs is the one that counts."""
        return self._task is not None and self._task == torch._C._current_graph_task_id()

    def receive(self, layer: int, grad: Tensor) -> None:
        """Notes the gradient by what came of an exchange, [B + S, C]."""
        if self.is_under_way:
            self.added[layer] = grad[self.batch_size :].detach()
        elif self._accumulates():
            raise RuntimeError(
                f"{self.name}: a backward pass came to histories beside what the model returned, and Compensation cannot tell "
                "how often it does; add that loss to the one of the model's output, and call backward() once"
            )

    def _inject(self, layer: int, rows: Tensor, grad: Tensor) -> Tensor | None:
        if not self.is_under_way:
            return None
        table = self.read[layer]
        own = torch.empty(grad.shape, dtype=table.dtype, device=grad.device)
        table.read(self.ids, own)
        self.taken.append(layer)
        return self.watcher.inject(self, layer, rows, grad, own)

    def _finish(self) -> None:
        self._task = None
        self.watcher.finish(self)
        self.added.clear()

    def _accumulates(self) -> bool:
        """Whether the backward pass that runs is that of backward(), which adds to ``.grad``."""
        for leaf in self._outside or (get_gradient_edge(each).node for each in self.parameters):
            try:
                if torch._C._will_engine_execute_node(leaf):
                    return True
            except RuntimeError:  # torch.autograd.grad() by this leaf
                return False
        return False


def _leaves(tensors: Sequence[Tensor]) -> list[Any]:
    """The nodes that accumulate gradients of what ``tensors`` were computed from; they keep nothing else of the graph alive."""
    waiting: list[Any] = [get_gradient_edge(each).node for each in tensors]
    met = set(waiting)
    while waiting:
        new = {node for node, _ in waiting.pop().next_functions if node is not None} - met
        met |= new
        waiting.extend(new)
    return [node for node in met if node.name().endswith("AccumulateGrad")]


class _Hung(torch.autograd.Function):
    """What the model returned, with an edge to all exchanges."""

    @staticmethod
    def forward(ctx: Any, passed: Pass, out: list[Tensor], *tensors: Tensor) -> tuple[Tensor, ...]:
        ctx.set_materialize_grads(False)
        ctx.passed, ctx.num_exchanges = passed, len(tensors) - len(out)
        return tuple(each.detach() for each in out)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor | None) -> tuple[Tensor | None, ...]:
        ctx.passed.arrives(grads)
        # No gradient, which costs nothing where another one arrives, and is zeros for an exchange that nothing else reaches.
        return None, None, *grads, *(None for _ in range(ctx.num_exchanges))


Change = Callable[[], None]


class Log:
    """Changes of tables that are made in their order, each once, also where Ctrl-C comes in between."""

    def __init__(self) -> None:
        self._changes: list[tuple[Table, Change]] = []
        self._version: int | None = None  # of the first one's table when it began

    def add(self, changes: Iterable[tuple[Table, Change]]) -> None:
        """Adds changes, each with the one table that it writes to once."""
        self._changes = [*self._changes, *changes]

    def finish(self) -> None:
        """Makes those that have not been made."""
        while self._changes:
            table, change = self._changes[0]
            if self._version is None:
                self._version = table.version
            if self._version == table.version:
                change()
            self._changes, self._version = self._changes[1:], None
