"""The places of a forward pass at which rows per node appear whose halo part a batch cannot know.

These are the outputs of the convolutions, the results of the hops inside of them, and reductions from edges to nodes
elsewhere, such as the degrees that a layer normalises by. :class:`Places` meets them in any model, without a change to
it, and asks a :class:`Handler` what to go on with.
"""

from __future__ import annotations

import os
import sys
from collections import Counter
from collections.abc import Collection, Iterator
from contextlib import contextmanager
from functools import partial
from traceback import walk_stack
from types import MappingProxyType
from typing import Any, Literal, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.nn import Module
from torch.utils._pytree import tree_leaves
from torch_geometric.nn import MessagePassing

from torch_gas.graph.dropout import dropout as draw
from torch_gas.wiring import batch
from torch_gas.wiring.batch import Batch, Rows
from torch_gas.wiring.compiled import hide_compiled
from torch_gas.wiring.mode import Mode
from torch_gas.wiring.refusals import find_layers
from torch_gas.wiring.rowwise import NOT_READ, RowWise, Steps, Watch
from torch_gas.wiring.undo import Undo

Kind = Literal["input", "output", "hop", "reduction", "maximum"]


class Place(NamedTuple):
    """A place, by where it is met in the forward pass.

    Args:
        scope: the call of a convolution, ``"convs.0"`` or, from its second call on, ``"convs.0#2"``; ``""`` outside.
        kind: ``"input"`` of the model, ``"output"`` of a convolution, ``"hop"`` inside of it (the result of ``propagate``),
            ``"reduction"`` from edges to nodes, or ``"maximum"`` over all edges.
        number: counts the places of this kind in this scope, and of the same line of code. For an output, 0 if it is a tensor
            and 1 if it is the first one of a tuple.
        line: the line of code and its callers, for those that are met by functions of torch.
    """

    scope: str
    kind: Kind
    number: int
    line: str = ""

    def __str__(self) -> str:
        where = self.scope or "the model's forward"
        if self.kind == "input":
            return "the model's input"
        if self.kind == "output":
            return where
        if self.kind == "hop":
            return f"hop {self.number + 1} in {where}"
        return f"a {self.kind} over edges in {where} (at {self.line.split()[-1]})"


def missed(model: Module, places: Collection[Place], batch_size: int | None) -> str:
    """What an error says where a call met no ``places``, without which rows of its nodes are missing."""
    nodes = "the whole graph" if batch_size is None else f"a batch of {batch_size} nodes"
    which = " and ".join(sorted(map(str, places)))
    return (
        f"{type(model).__name__}: on {nodes}, forward returned without {which}, which it called when scale() tried it out, so "
        "that rows of these nodes are missing. Call each layer in each call, whatever a batch holds: also where it has no edges, "
        "or none of a kind, or an exception is caught. Only training may skip layers, at random"
    )


class Handler:
    """Decides what a forward pass goes on with at its places."""

    def enters(self, place: Place) -> None:
        """Told of a convolution that is about to be called."""

    def substitute(self, place: Place, module: Module) -> Tensor | None:
        """Rows [B, ...] or [B + S, ...] that stand in for what would be computed at ``place``; None to compute it."""
        return None

    def computes(self) -> None:
        """Told that a layer under way goes on with rows of a place."""

    def passes(self, place: Place, adj: Any) -> None:
        """Told the adjacency over which a hop passes messages."""

    def at(self, place: Place, value: Tensor) -> Tensor | None:
        """What replaces ``value``, whose first dimension is that of nodes; None to leave it."""
        return None


# Functions that reduce edges to nodes, by name. Those inside `propagate` are part of a hop.
_REDUCTIONS = {
    "bincount", "segment_reduce", "_segment_reduce", "spmm_sum", "spmm_mean", "spmm_min", "spmm_max",
    *(name + end for name in ("scatter_add", "scatter_reduce", "index_add", "index_reduce") for end in ("", "_")),
    *(f"{how}_{reduce}{form}" for how in ("segment", "scatter") for reduce in ("sum", "mean", "min", "max", "mul")
      for form in ("", "_csr", "_coo")),
}  # fmt: skip
_PRODUCTS = {"mm", "matmul", "__matmul__", "_sparse_mm", "addmm"}
# Their gradients read the result, which must stay what it is.
_SAVED = {"scatter_reduce_", "index_reduce_"}


class Layout(NamedTuple):
    """How a model is called on a batch.

    Args:
        bipartite: whether no edge goes into the halo, so that destinations may be cut to the batch's rows.
        of_edges: names of layers that return something else than rows of nodes.
        steps: row-wise code between outputs and their places.
    """

    bipartite: bool = False
    of_edges: Collection[str] = ()
    steps: Steps = MappingProxyType({})


ALL: frozenset[Kind] = frozenset({"output", "hop", "reduction", "maximum"})


class Places(Mode):
    """Meets the places of ``model`` in the order of its forward pass, once it is wired.

    Args:
        model: any module.
        handler: what to do there.
        num_rows: B + S, or N.
        kinds: the kinds of places that are of interest.
        own_dropout: whether dropout is drawn by this package, which is faster on a CPU.
    """

    def __init__(
        self,
        model: Module,
        handler: Handler,
        num_rows: int,
        kinds: frozenset[Kind] = ALL,
        own_dropout: bool = False,
    ) -> None:
        super().__init__()
        self.own_dropout = own_dropout
        self.model, self.handler, self.num_rows, self.kinds = model, handler, num_rows, kinds
        self.layers = find_layers(model, automatic=True)
        self.convs = set(self.layers.convs)
        self.scope, self._inside = "", 0
        self._calls: Counter[MessagePassing] = Counter()
        self._met: Counter[tuple[str, str, str]] = Counter()
        self._row_wise: RowWise | None = None
        self._watch: Watch | None = None
        self._stands_in = False  # whether rows stand in for those of the layer under way

    def wire(
        self, undo: Undo, rows: Rows | None = None, layout: Layout | None = None, watch: Watch | None = None
    ) -> None:
        """Stands in for methods of the layers, and sees functions of torch.

        Args:
            undo: puts that back.
            rows: of a batch, to have the layers called as it needs; see :class:`~torch_gas.wiring.batch.Batch`.
            layout: how; by default no layer is cut to the batch's rows, and places are right behind the layers.
            watch: told of outputs and of functions outside of layers.
        """
        bipartite, of_edges, steps = layout or Layout()
        self._watch = watch
        if any(names != () for names in steps.values()):
            self._row_wise = RowWise(steps, self.num_rows, partial(_rows_of_input, rows))
        undo.hook_before(self.model, self._begin)
        names = {module: name for name, module in self.model.named_modules()}
        for conv in self.convs:
            undo.hook_before(conv, partial(self._enter, names[conv] or type(conv).__name__))
        if rows is not None:
            others = [conv for conv in self.convs if names[conv] in of_edges]
            batch_of_rows = Batch(self.layers, [self.model], rows, bipartite, others)
            if self._row_wise is not None:
                batch_of_rows.is_under_way = self._row_wise.is_under_way
            batch_of_rows.wire(undo)
        hide_compiled(undo, self.model, self._use)
        for conv in self.convs:
            undo.set(conv, "forward", self._forward(conv, names[conv] or type(conv).__name__))
            undo.hook_after(conv, self._leave)
        if self.kinds - {"output"}:
            for module in self.model.modules():
                if isinstance(module, MessagePassing):
                    undo.set(module, "propagate", self._propagate(module))
        if self.kinds & {"reduction", "maximum"} or self._row_wise is not None or self.own_dropout or watch is not None:
            undo.add(self.__exit__)  # which may run more than once, and before the mode is entered
            self.__enter__()

    def _use(self, given: Any) -> None:
        if self._watch is not None:
            self._watch.use(given)

    @contextmanager
    def rehearsal(self) -> Iterator[None]:
        """While entered, layers meet the places of their next calls, which later meet them as if for the first time."""
        calls, met, scope = self._calls.copy(), self._met.copy(), self.scope
        try:
            yield
        finally:
            self._calls, self._met, self.scope = calls, met, scope

    def _next(self, kind: Kind, line: str = "") -> Place:
        number = self._met[self.scope, kind, line]
        self._met[self.scope, kind, line] += 1
        return Place(self.scope, kind, number, line)

    def _unseen(self, function: Any, *args: Any, **kwargs: Any) -> Any:
        """Calls a function in which no places are met: one of the handler's, or what is a part of a hop."""
        self._inside += 1
        try:
            return function(*args, **kwargs)
        finally:
            self._inside -= 1

    # -- convolutions --------------------------------------------------------------------------------------------------

    def _begin(self, model: Module, args: Any, kwargs: Any) -> None:
        """Told of the model's inputs."""
        if self._row_wise is None and (self._watch is None or not self._watch.learned):
            return
        for number, value in enumerate(tree_leaves((args, kwargs))):
            has_rows = (
                isinstance(value, Tensor) and value.layout == torch.strided and value.shape[:-1] == (self.num_rows,)
            )
            if not has_rows or not value.is_floating_point() or value.requires_grad:
                continue
            if self._watch is not None:
                self._watch.leave(Place("", "input", number), value)
            if self._row_wise is not None:
                self._row_wise.begin(Place("", "input", number), value)

    def _enter(self, name: str, conv: Module, args: Any, kwargs: Any) -> None:
        self.handler.enters(Place(_scope(name, self._calls[conv] + 1), "output", 0))

    def _forward(self, conv: MessagePassing, name: str) -> Any:
        forward = conv.forward

        def run(*args: Any, **kwargs: Any) -> Any:
            self._calls[conv] += 1
            self.scope = _scope(name, self._calls[conv])
            if self._watch is not None:
                self._watch.enter((args, kwargs))
            instead = self.handler.substitute(Place(self.scope, "output", 0), conv)
            self._stands_in = instead is not None
            return forward(*args, **kwargs) if instead is None else instead

        return run

    def _leave(self, conv: Module, args: tuple[Any, ...], out: Any) -> Any:
        is_tuple = isinstance(out, tuple) and len(out) > 0
        place, self.scope = Place(self.scope, "output", int(is_tuple)), ""
        rows = out[0] if is_tuple else out
        has_rows = isinstance(rows, Tensor) and rows.dim() > 0
        if self._watch is not None and has_rows and not is_tuple:
            self._watch.leave(place, rows)
        if self._row_wise is not None and has_rows:
            value = self._row_wise.leave(place, rows, self._exchange, self._stands_in)
        else:
            value = self._exchange(place, rows) if has_rows else None
        if value is None:
            return out
        return batch.with_first(out, value) if is_tuple else value

    def _exchange(self, place: Place, rows: Tensor) -> Tensor | None:
        value = self._unseen(self.handler.at, place, rows)
        if self.scope:  # of a layer into which code led that goes row by row
            self.handler.computes()
        return value

    def _propagate(self, conv: MessagePassing) -> Any:
        propagate = conv.propagate

        def run(*args: Any, **kwargs: Any) -> Any:
            self._use((args, kwargs))
            if self._inside > 0 or "hop" not in self.kinds:
                return self._unseen(propagate, *args, **kwargs)
            place = self._next("hop")
            self.handler.passes(place, args[0] if args else kwargs.get("edge_index"))
            instead = self.handler.substitute(place, conv)
            out = self._unseen(propagate, *args, **kwargs) if instead is None else instead
            if not isinstance(out, Tensor) or out.dim() == 0:
                return out
            dim = conv.node_dim if -out.dim() <= conv.node_dim < out.dim() else 0
            rows = out.movedim(dim, 0) if instead is None else instead
            value = self._unseen(self.handler.at, place, rows)
            return (rows if value is None else value).movedim(0, dim)

        return run

    # -- functions of torch --------------------------------------------------------------------------------------------

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        if func is F.dropout and self.own_dropout and self._is_entered:
            func = dropout
        is_outside = self._is_entered and self._inside == 0
        if is_outside and self._row_wise is not None:
            out = self._row_wise.function(func, args, kwargs, self._exchange, in_layer=bool(self.scope))
            if out is not NOT_READ:
                return out
        out = func(*args, **kwargs)
        if not is_outside:
            return out
        if self._watch is not None and (not self.scope or self._watch.learned):
            self._watch.function(func, args, kwargs, out)
        name = getattr(func, "__name__", "")
        if name in _REDUCTIONS or (name in _PRODUCTS and any(map(_is_sparse, args))):
            rows = out[0] if isinstance(out, tuple) else out
            if not isinstance(rows, Tensor) or rows.layout != torch.strided or rows.shape[:1] != (self.num_rows,):
                return out
            value = self._unseen(self.handler.at, self._next("reduction", _line()), rows)
            if value is None:
                return out
            if name.endswith("_") and name not in _SAVED:
                return rows.copy_(value)
            return (value, *out[1:]) if isinstance(out, tuple) else value
        if name in ("max", "amax") and len(args) == 1 and not kwargs and out.dim() == 0 and out.is_floating_point():
            value = self._unseen(self.handler.at, self._next("maximum", _line()), out)
            return out if value is None else value
        return out


def dropout(input: Tensor, p: float = 0.5, training: bool = True, inplace: bool = False) -> Tensor:
    """What stands in for the function of torch, with names of its arguments."""
    if inplace or not 0 <= p <= 1:
        return F.dropout(input, p, training, inplace)
    return draw(input, p, training)


# Folders of what stands in for parts of layers.
_ROOM, _ = os.path.split(batch.__file__)
_WRAPPERS = tuple(os.path.join(os.path.dirname(_ROOM), room, "") for room in ("wiring", "exact", "extensions"))


def _rows_of_input(rows: Rows | None) -> int | None:
    """How many rows of the model's input are needed before a history gives the others; None for all."""
    if rows is None or (rows.keeps_halo is not None and rows.keeps_halo()):
        return None
    return rows.batch_size


def _scope(name: str, number: int) -> str:
    """The name of a call of a convolution."""
    return name if number == 1 else f"{name}#{number}"


def _line() -> str:
    """The line of code that called a function of torch, and those that called it, up to the layer or model."""
    lines: list[str] = []
    for frame, number in walk_stack(sys._getframe(2)):
        file = frame.f_code.co_filename
        if file in (__file__, torch.nn.modules.module.__file__):
            break
        if frame.f_code.co_name == "__torch_function__":  # of another mode, which is there at times
            lines.clear()  # of what it called
        elif not file.startswith(_WRAPPERS):  # which stand between at times as well
            lines.append(f"{os.path.basename(file)}:{number}")
    return " ".join(lines)


def _is_sparse(value: Any) -> bool:
    return isinstance(value, Tensor) and value.layout in (torch.sparse_csr, torch.sparse_coo, torch.sparse_csc)
