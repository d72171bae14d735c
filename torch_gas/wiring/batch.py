"""How single layers are called on a batch: by bipartite pairs, square adjacencies and a cut to B rows."""

from __future__ import annotations

import functools
import inspect
import sys
from collections.abc import Callable, Iterable, Iterator
from contextlib import ExitStack
from types import FrameType, TracebackType
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.nn import Module
from torch.nn.modules.batchnorm import _BatchNorm
from torch_geometric.nn import MessagePassing

from torch_gas.adjacency import is_edge_index, is_edge_index_object, is_matrix, resize


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
    """While entered, convolutions run on a batch and give B rows, and norms count the batch's rows only.

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
        self.batch_size, self.num_rows, self.closed = batch_size, num_rows, closed
        self.convs, self.norms = list(convs), list(norms)
        self._resized: dict[tuple[int, int], tuple[Any, Any]] = {}
        self._stack = ExitStack()

    def __enter__(self) -> Batch:
        for conv in self.convs:
            for inner in conv.modules():
                _set_aside_cache(inner, self._stack)
        if self.num_rows == self.batch_size:
            return self
        for conv in self.convs:
            self._stack.callback(conv.register_forward_pre_hook(self._prepare, with_kwargs=True).remove)
            self._stack.callback(conv.register_forward_hook(self._cut).remove)
        for norm in {module for root in self.norms for module in root.modules() if isinstance(module, _BatchNorm)}:
            self._stack.enter_context(_NormOfBatch(norm, self.batch_size, self.num_rows))
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._stack.close()
        self._resized.clear()

    def _prepare(
        self, conv: Module, args: tuple[Any, ...], kwargs: dict[str, Any]
    ) -> tuple[tuple[Any, ...], dict[str, Any]] | None:
        _refuse_checkpoint(conv)
        names = _parameters(type(conv).forward)
        given = dict(zip(names, args, strict=False)) | kwargs
        x = given.get("x", args[0] if args else None)
        if not isinstance(x, Tensor):  # a pair: the caller wired it by hand
            return None
        if x.size(0) != self.num_rows:
            raise ValueError(
                f"{type(conv).__name__} was called with x of {x.size(0)} rows on a batch of {self.batch_size} nodes and "
                f"{self.num_rows - self.batch_size} halo nodes; x must have {self.num_rows} rows. In a "
                "ScalableGNN, call x = self.push_and_pull(history, x, *args) between two convolutions"
            )
        x_0 = given.get("x_0")
        if isinstance(x_0, Tensor) and x_0.size(0) == self.batch_size:  # cut by the caller, as PyGAS models do
            return None
        # Not every library adds self-loops to a matrix that is not square, and SimpleConv to no bipartite graph.
        loops = getattr(conv, "add_self_loops", False) and any(map(is_matrix, given.values()))
        loops = loops or getattr(conv, "combine_root", None) == "self_loop"
        # PyG's fused product over an EdgeIndex that is not square fails in the backward pass.
        fused = getattr(conv, "SUPPORTS_FUSED_EDGE_INDEX", False) and any(map(is_edge_index_object, given.values()))
        if takes_pair(type(conv).forward) and self.closed and not (loops or fused):
            given_pair = (x, x[: self.batch_size])
            if "x" in kwargs:
                kwargs = kwargs | {"x": given_pair}
            else:
                args = (given_pair, *args[1:])
            num_dst = self.batch_size
        else:
            num_dst = self.num_rows
        args = tuple(self._resize(value, num_dst) for value in args)
        return args, {key: self._resize(value, num_dst) for key, value in kwargs.items()}

    def _resize(self, value: Any, num_dst: int) -> Any:
        if not (is_matrix(value) or is_edge_index_object(value)):
            return value
        key = (id(value), num_dst)
        if key not in self._resized:  # keeps `value` alive as well, so that its id stays its own
            self._resized[key] = (value, resize(value, num_dst, self.num_rows))
        return self._resized[key][1]

    def _cut(self, conv: Module, args: tuple[Any, ...], out: Any) -> Any:
        if isinstance(out, Tensor) and out.dim() > 0 and out.size(0) == self.num_rows:
            return out[: self.batch_size]
        if isinstance(out, tuple) and isinstance(out[0], Tensor) and out[0].size(0) == self.num_rows:
            return (out[0][: self.batch_size], *out[1:])
        return out


def pad(value: Tensor, batch_size: int, num_rows: int) -> Tensor | None:
    """B rows with S more, which nobody reads: copies of a row, as zeros may have no finite gradient."""
    if value.size(0) != batch_size or batch_size == num_rows:
        return None
    return torch.cat([value, value[:1].detach().expand(num_rows - batch_size, *value.shape[1:])])


class _NormOfBatch:
    """In training, a batch norm takes its statistics of the batch's rows, and applies them to the halo's as well."""

    def __init__(self, norm: _BatchNorm, batch_size: int, num_rows: int) -> None:
        self.norm, self.batch_size, self.num_rows = norm, batch_size, num_rows
        self.halo: Tensor | None = None

    def __enter__(self) -> None:
        self.handles = [
            self.norm.register_forward_pre_hook(self._cut, with_kwargs=True),
            self.norm.register_forward_hook(self._extend),
        ]

    def __exit__(self, *error: object) -> None:
        for handle in self.handles:
            handle.remove()

    def _cut(self, norm: Module, args: tuple[Tensor, ...], kwargs: dict[str, Tensor]) -> Any:
        x = args[0] if args else kwargs["input"]
        self.halo = None
        per_node = x.dim() == 2 and x.size(0) == self.num_rows
        if not per_node or not norm.training or _rows_are_edges():
            return None
        self.halo = x[self.batch_size :]
        return (x[: self.batch_size],), {}

    def _extend(self, norm: Module, args: tuple[Tensor], out: Tensor) -> Tensor | None:
        halo, self.halo = self.halo, None
        if halo is None:
            return None
        rows = args[0].detach()
        mean, var = rows.mean(dim=0), rows.var(dim=0, unbiased=False)
        return torch.cat(
            [out, F.batch_norm(halo, mean, var, self.norm.weight, self.norm.bias, False, 0.0, self.norm.eps)]
        )


def _callers() -> Iterator[FrameType]:
    frame = sys._getframe(2).f_back
    while frame is not None:
        yield frame
        frame = frame.f_back


def _rows_are_edges() -> bool:
    """Whether this call comes from the part of a message-passing layer that works on edges."""
    names = ("message", "edge_update")
    return any(f.f_code.co_name in names and isinstance(f.f_locals.get("self"), MessagePassing) for f in _callers())


def _refuse_checkpoint(conv: Module) -> None:
    if conv.training and any(f.f_code.co_filename.endswith("torch/utils/checkpoint.py") for f in _callers()):
        raise RuntimeError(
            f"{type(conv).__name__} is called under activation checkpointing, which would run it once more in the backward "
            "pass, outside of the batch; switch it off (for DeepGCNLayer, ckpt_grad=False) and make batches smaller instead"
        )


def _set_aside_cache(conv: Module, stack: ExitStack) -> None:
    """What a layer with ``cached=True`` stored belongs to one graph, and a batch is another each time."""
    if not getattr(conv, "cached", False):
        return
    own = {key: value for key, value in vars(conv).items() if key.startswith("_cached")} | {"cached": True}
    for key in own:
        setattr(conv, key, False if key == "cached" else None)
    stack.callback(vars(conv).update, own)


def check_adjacency_of_batch(adj: Any, batch_size: int, num_rows: int, num_dst: int | None) -> None:
    """Raises ValueError if ``adj`` is not the adjacency of a batch of ``batch_size`` nodes."""
    if num_dst is not None and num_dst not in (batch_size, num_rows):
        raise ValueError(
            f"the adjacency has {num_dst} destinations, but batch_size is {batch_size}; pass the arguments of one batch "
            "together: `for batch, *args in loader: model(batch.x, batch.adj_t, *args)`"
        )
    if is_edge_index(adj) and adj.device.type == "cpu" and adj.numel() > 0:
        last = int(adj[1].max())
        if last >= batch_size:
            raise ValueError(
                f"edge_index has an edge into row {last}, but the batch has {batch_size} nodes; pass the arguments of one "
                "batch together: `for batch, *args in loader: model(batch.x, batch.edge_index, *args)`"
            )
