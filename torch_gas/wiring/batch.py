"""How single layers are called on a batch: by bipartite pairs, square adjacencies and a cut to B rows."""

from __future__ import annotations

import functools
import inspect
import sys
from collections.abc import Callable, Iterable, Iterator
from itertools import product
from types import FrameType
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.nn import Module
from torch.nn.modules.batchnorm import _BatchNorm
from torch_geometric import EdgeIndex
from torch_geometric.nn import GCN2Conv, GCNConv, LGConv, MessagePassing

from torch_gas._util.tracing import untraced
from torch_gas.graph.attributes import first_rows
from torch_gas.graph.formats import format_of, is_adjacency, is_matrix, resize
from torch_gas.graph.halo import batch_rows
from torch_gas.wiring.undo import Undo


@functools.cache
def _parameters(forward: Callable[..., Any]) -> tuple[str, ...]:
    return tuple(inspect.signature(forward).parameters)[1:]


@functools.cache
def takes_pair(forward: Callable[..., Any]) -> bool:
    """Whether a layer's ``forward`` declares that ``x`` may be a pair (sources, destinations).

    Layers with positions are not counted: they want these as a pair as well.
    """
    parameters = inspect.signature(forward).parameters
    parameter = parameters.get("x")
    if parameter is None or "pos" in parameters:
        return False
    annotation = str(parameter.annotation)
    return "Tuple[" in annotation or "tuple[" in annotation or "PairTensor" in annotation


class Batch:
    """Convolutions run on a batch and give B rows, and norms count the batch's rows only, once it is wired.

    Args:
        convs: the convolutions, none inside another.
        norms: modules that may hold batch norms.
        batch_size: B.
        num_rows: B + S.
        closed: whether no edge goes into the halo, so that destinations may be cut to the batch's rows.
    """

    def __init__(
        self,
        convs: Iterable[MessagePassing],
        norms: Iterable[Module],
        batch_size: int,
        num_rows: int,
        closed: bool = True,
    ) -> None:
        self.convs, self.norms = list(convs), list(norms)
        self.batch_size, self.num_rows, self.closed = batch_size, num_rows, closed
        # B and B+S as the shape of a tensor: torch.compile takes numbers that a module leads to for constants.
        self.shape = torch.empty(0, batch_size, num_rows)
        self.on_edges = 0  # calls under way of the part of a layer that works on edges
        self._resized: dict[tuple[int, int], tuple[Any, Any]] = {}

    def wire(self, undo: Undo) -> None:
        """Prepares the layers."""
        has_halo = self.num_rows > self.batch_size
        for conv in self.convs:
            for inner in conv.modules():
                _set_aside_cache(undo, inner)
            _attach(undo, conv, _Layer(conv, self) if has_halo else None)
        norms = set(_norms(self.norms))
        for norm in norms:
            _attach(undo, norm, _NormOfBatch(self) if has_halo else None)
        if norms and has_halo:
            layers = {module for conv in self.convs for module in conv.modules() if isinstance(module, MessagePassing)}
            for layer, name in product(layers, ("message", "edge_update")):
                undo.set(layer, name, _on_edges(self, getattr(layer, name)))

    def resize(self, value: Any, num_dst: int, num_rows: int) -> Any:
        """An argument with B or B+S destinations, if it is an adjacency."""
        if not is_adjacency(value):
            return value
        if torch.compiler.is_compiling():  # which sees by itself that it is the same each time
            return resize(value, num_dst, num_rows)
        key = (id(value), num_dst)
        if key not in self._resized:  # keeps `value` alive as well, so that its id stays its own
            self._resized[key] = (value, resize(value, num_dst, num_rows))
        return self._resized[key][1]


def wire_whole(undo: Undo, model: Module) -> None:
    """On a whole graph, layers get the hooks that they have on a batch, and these do nothing.

    Code that torch.compile made is not made anew where hooks come or go. So they are the same in all calls, and what they do
    is looked up in the module, which compiled code does check.
    """
    layers = [module for module in model.modules() if isinstance(module, MessagePassing)]
    for module in {*layers, *_norms(layers)}:
        _attach(undo, module, None)


WIRING = "_wiring_of_batch"
_OF_PROPAGATE = (GCNConv.forward, GCN2Conv.forward, LGConv.forward)  # have as many rows as its result


def _norms(roots: Iterable[Module]) -> Iterator[_BatchNorm]:
    return (module for root in roots for module in root.modules() if isinstance(module, _BatchNorm))


def _attach(undo: Undo, module: Module, wiring: Any) -> None:
    before, after = (_cut_norm, _extend_norm) if isinstance(module, _BatchNorm) else (_prepare, _cut)
    undo.set(module, WIRING, wiring)
    undo.hook_before(module, before)
    undo.hook_after(module, after)


class _Layer:
    """How one convolution is called on a batch with a halo."""

    def __init__(self, conv: MessagePassing, batch: Batch) -> None:
        forward = type(conv).forward
        self.batch = batch
        self.names = _parameters(forward)
        self.takes_pair = batch.closed and takes_pair(forward)
        # To the rows that come out of `propagate`; normalisation of their own adds loops to all rows.
        self.cuts_itself = batch.closed and forward in _OF_PROPAGATE and not conv.normalize
        # Not every library adds self-loops to a matrix that is not square, and SimpleConv to no bipartite graph.
        self.adds_loops = bool(getattr(conv, "add_self_loops", False))
        self.is_square = getattr(conv, "combine_root", None) == "self_loop"
        # PyG's fused product over an EdgeIndex that is not square fails in the backward pass.
        self.is_fused = bool(getattr(conv, "SUPPORTS_FUSED_EDGE_INDEX", False))

    def prepare(
        self, conv: Module, args: tuple[Any, ...], kwargs: dict[str, Any]
    ) -> tuple[tuple[Any, ...], dict[str, Any]] | None:
        _, batch_size, num_rows = self.batch.shape.shape
        given = dict(zip(self.names, args, strict=False)) | kwargs
        x = given.get("x", args[0] if args else None)
        if not isinstance(x, Tensor):  # a pair: the caller wired it by hand
            return None
        if x.size(0) != num_rows:
            raise ValueError(
                f"{type(conv).__name__} was called with x of {x.size(0)} rows on a batch of {batch_size} nodes and "
                f"{num_rows - batch_size} halo nodes; x must have {num_rows} rows. In a "
                "ScalableGNN, call x = self.push_and_pull(history, x, *args) between two convolutions"
            )
        x_0 = given.get("x_0")
        if isinstance(x_0, Tensor) and x_0.size(0) == batch_size:  # cut by the caller, as PyGAS models do
            return None
        values = [value for value in given.values() if value is not x]
        square = self.is_square or (self.adds_loops and any([is_matrix(value) for value in values]))
        square = square or (self.is_fused and any([isinstance(value, EdgeIndex) for value in values]))
        if self.takes_pair and not square:
            targets = batch_rows(x)
            given_pair = (x, first_rows(x, batch_size) if targets is None else targets)
            if "x" in kwargs:
                kwargs = kwargs | {"x": given_pair}
            else:
                args = (given_pair, *args[1:])
            num_dst = batch_size
        elif self.cuts_itself and any([is_matrix(value) for value in values]):
            num_dst = batch_size
        else:
            num_dst = num_rows

        def resize(value: Any) -> Any:  # all adjacencies, and no features that are a matrix
            return value if value is x else self.batch.resize(value, num_dst, num_rows)

        return tuple([resize(value) for value in args]), {key: resize(value) for key, value in kwargs.items()}

    def cut(self, out: Any) -> Any:
        _, batch_size, num_rows = self.batch.shape.shape
        if isinstance(out, Tensor) and out.dim() > 0 and out.size(0) == num_rows:
            return out[:batch_size]
        if isinstance(out, tuple) and isinstance(out[0], Tensor) and out[0].size(0) == num_rows:
            return (out[0][:batch_size], *out[1:])
        return out


def _prepare(conv: Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
    layer: _Layer | None = getattr(conv, WIRING)
    if layer is None:
        return None
    if not torch.compiler.is_compiling():  # a graph runs again with the sizes that it had
        _refuse_checkpoint(conv)
    return layer.prepare(conv, args, kwargs)


def _cut(conv: Module, args: tuple[Any, ...], out: Any) -> Any:
    layer: _Layer | None = getattr(conv, WIRING)
    return out if layer is None else layer.cut(out)


def pad(value: Tensor, batch_size: int, num_rows: int) -> Tensor | None:
    """B rows with S more, which nobody reads: copies of a row, as zeros may have no finite gradient."""
    if value.size(0) != batch_size or batch_size == num_rows:
        return None
    return torch.cat([value, value[:1].detach().expand(num_rows - batch_size, *value.shape[1:])])


class _NormOfBatch:
    """In training, a batch norm takes its statistics of the batch's rows, and applies them to the halo's as well."""

    def __init__(self, batch: Batch) -> None:
        self.batch = batch
        self.halo: Tensor | None = None

    def cut(self, norm: Module, x: Tensor) -> Tensor | None:
        _, batch_size, num_rows = self.batch.shape.shape
        self.halo = None
        if x.dim() != 2 or x.size(0) != num_rows or not norm.training or self.batch.on_edges > 0:
            return None
        self.halo = x[batch_size:]
        return x[:batch_size]

    def extend(self, norm: Any, rows: Tensor, out: Tensor) -> Tensor | None:
        halo, self.halo = self.halo, None
        if halo is None:
            return None
        rows = rows.detach()
        mean, var = rows.mean(dim=0), rows.var(dim=0, unbiased=False)
        return torch.cat([out, F.batch_norm(halo, mean, var, norm.weight, norm.bias, False, 0.0, norm.eps)])


def _cut_norm(norm: Module, args: tuple[Tensor, ...], kwargs: dict[str, Tensor]) -> Any:
    of_batch: _NormOfBatch | None = getattr(norm, WIRING)
    rows = None if of_batch is None else of_batch.cut(norm, args[0] if args else kwargs["input"])
    return None if rows is None else ((rows,), {})


def _extend_norm(norm: Module, args: tuple[Tensor, ...], out: Tensor) -> Any:
    of_batch: _NormOfBatch | None = getattr(norm, WIRING)
    return None if of_batch is None else of_batch.extend(norm, args[0] if args else out, out)


def _on_edges(batch: Batch, function: Callable[..., Any]) -> Callable[..., Any]:
    """``function`` of a layer, whose rows are edges."""

    def run(*args: Any, **kwargs: Any) -> Any:
        batch.on_edges += 1
        try:
            return function(*args, **kwargs)
        finally:
            batch.on_edges -= 1

    return run


@untraced
def _refuse_checkpoint(conv: Module) -> None:
    frame: FrameType | None = sys._getframe(1) if conv.training else None
    while frame is not None:
        if frame.f_code.co_filename.endswith("torch/utils/checkpoint.py"):
            raise RuntimeError(
                f"{type(conv).__name__} is called under activation checkpointing, which would run it once more in the backward "
                "pass, outside of the batch; switch it off (for DeepGCNLayer, ckpt_grad=False) and make batches smaller instead"
            )
        frame = frame.f_back


def _set_aside_cache(undo: Undo, conv: Module) -> None:
    """What a layer with ``cached=True`` stored belongs to one graph, and a batch is another each time."""
    if not getattr(conv, "cached", False):
        return
    for name in [name for name in vars(conv) if name.startswith("_cached")]:
        undo.set(conv, name, None)
    undo.set(conv, "cached", False)


def check_adjacency_of_batch(adj: Any, batch_size: int, num_rows: int, num_dst: int | None) -> None:
    """Raises ValueError if ``adj`` is not the adjacency of a batch of ``batch_size`` nodes."""
    if num_dst is not None and num_dst not in (batch_size, num_rows):
        raise ValueError(
            f"the adjacency has {num_dst} destinations, but batch_size is {batch_size}; pass the arguments of one batch "
            "together: `for batch, *args in loader: model(batch.x, batch.adj_t, *args)`"
        )
    dst = format_of(adj).stored_edges(adj).dst
    if dst is not None and dst.device.type == "cpu" and dst.numel() > 0:
        last = int(dst.max())
        if last >= batch_size:
            raise ValueError(
                f"edge_index has an edge into row {last}, but the batch has {batch_size} nodes; pass the arguments of one "
                "batch together: `for batch, *args in loader: model(batch.x, batch.edge_index, *args)`"
            )
