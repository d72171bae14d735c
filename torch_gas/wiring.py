"""What makes a convolution safe on a batch of B nodes and S halo nodes.

A batch holds every edge into its B nodes and no edge into its halo. So a layer is exact on the first B rows if it
reads, for each destination, nothing but that node, its incoming edges and their sources. The layers of PyG are brought
to that by their arguments, and never by copies of their code: a bipartite pair ``(x, x[:B])`` where they take one, a
square adjacency with empty halo rows where they do not, and a cut of the result to B rows.
"""

from __future__ import annotations

import functools
import inspect
from collections.abc import Callable, Iterator
from types import TracebackType
from typing import Any

from torch import Tensor
from torch.nn import Module
from torch.nn.modules.batchnorm import _BatchNorm
from torch_geometric.nn import MessagePassing

from torch_gas.adjacency import (
    is_edge_index,
    is_edge_index_object,
    is_matrix,
    num_destinations,
    square,
)

_WEIGHTS = (
    "normalises by degrees that it counts on the edges it is given, and a batch has no edges into its halo; "
    "create it with normalize=False and give it the weights of the whole graph: data = torch_gas.gcn_norm(data), "
    "then pass edge_weight=batch.edge_weight (or the weighted batch.adj_t)"
)
_HOPS = (
    "reads several hops at once, and a batch holds one; write it as one-hop layers with a history between them, as "
    "torch_gas.models.APPNP does"
)
_GLOBAL = "reads more than the incoming edges of a node, which a batch does not hold; use a message-passing layer"

_NORM = (
    "takes its statistics over all nodes of the graph, also in evaluation, and a batch holds some; use one with running "
    "statistics (BatchNorm1d) or over the channels of each node (torch.nn.LayerNorm, or mode='node')"
)

# By class name, along the bases, so that no layer needs to be imported to be known: (condition, reason).
_REFUSED: dict[str, tuple[Callable[[Any], bool], str]] = {
    **{
        name: (lambda conv: getattr(conv, "normalize", False) is True, _WEIGHTS)
        for name in ("GCNConv", "GCN2Conv", "DNAConv", "FAConv", "LGConv", "PDNConv")
    },
    "EGConv": (
        lambda conv: "symnorm" in conv.aggregators,
        "normalises by degrees that it counts on the edges it is given (aggregator 'symnorm'), and a batch has no "
        "edges into its halo; use other aggregators",
    ),
    **{
        name: (lambda conv: True, _HOPS)
        for name in (
            "APPNP", "ARMAConv", "ChebConv", "GatedGraphConv", "LabelPropagation", "MixHopConv", "PANConv", "SGConv", "SSGConv",
            "TAGConv",
        )
    },
    "AntiSymmetricConv": (lambda conv: True, "calls a convolution inside several times; " + _HOPS),
    "DirGNNConv": (
        lambda conv: True,
        "reads outgoing edges, and a batch holds the incoming ones; use two layers, one on each direction's graph",
    ),
    **{
        name: (lambda conv: True, _GLOBAL)
        for name in (
            "GPSConv", "DynamicEdgeConv", "GravNetConv", "XConv", "HypergraphConv", "WLConv", "MeshCNNConv",
            "HGTConv", "HANConv", "HeteroConv", "SparseLinear",
        )
    },
    **{
        name: (lambda norm: True, _NORM)
        for name in ("GraphNorm", "GraphSizeNorm", "MeanSubtractionNorm", "PairNorm")
    },
    "LayerNorm": (lambda norm: norm.mode == "graph", _NORM),
    "InstanceNorm": (lambda norm: not norm.track_running_stats, _NORM),
}  # fmt: skip


def refuse(module: Module) -> None:
    """Raises ValueError if ``module`` would compute something else on a batch than on the whole graph."""
    if isinstance(module, MessagePassing) and module.flow != "source_to_target":
        raise ValueError(
            f"{type(module).__name__} cannot be used on a batch: with flow={module.flow!r} it reads outgoing edges, and a batch "
            "holds the incoming ones; use the default flow on the graph with its edges reversed"
        )
    for cls in type(module).__mro__:
        condition, reason = _REFUSED.get(cls.__name__, (None, ""))
        if condition is not None and cls.__module__.startswith("torch_geometric.") and condition(module):
            raise ValueError(f"{type(module).__name__} cannot be used on a batch: it {reason}")


def outermost_convs(module: Module) -> Iterator[MessagePassing]:
    """The message-passing layers below ``module`` that are not inside another one."""
    for child in module.children():
        refuse(child)
        if isinstance(child, MessagePassing):
            for inner in child.modules():
                refuse(inner)
            yield child
        else:
            yield from outermost_convs(child)


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
    """While entered, the convolutions below ``model`` run on a batch and give B rows.

    Args:
        model: the model whose layers are wired.
        batch_size: B.
        num_rows: B + S.
    """

    def __init__(self, model: Module, batch_size: int, num_rows: int) -> None:
        self.batch_size, self.num_rows = batch_size, num_rows
        self.convs = list(dict.fromkeys(outermost_convs(model)))
        self._squares: dict[int, tuple[Any, Any]] = {}
        self._handles: list[Any] = []

    def __enter__(self) -> Batch:
        if self.num_rows > self.batch_size:
            for conv in self.convs:
                self._handles.append(conv.register_forward_pre_hook(self._prepare, with_kwargs=True))
                self._handles.append(conv.register_forward_hook(self._cut))
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        for handle in self._handles:
            handle.remove()
        self._handles.clear()
        self._squares.clear()

    def _prepare(
        self, conv: Module, args: tuple[Any, ...], kwargs: dict[str, Any]
    ) -> tuple[tuple[Any, ...], dict[str, Any]] | None:
        names = _parameters(type(conv).forward)
        given = dict(zip(names, args, strict=False)) | kwargs
        x = given.get("x", args[0] if args else None)
        if not isinstance(x, Tensor):  # a pair: the caller wired it by hand
            return None
        if x.size(0) != self.num_rows:
            raise ValueError(
                f"{type(conv).__name__} was called with x of {x.size(0)} rows on a batch of {self.batch_size} nodes and "
                f"{self.num_rows - self.batch_size} halo nodes; x must have {self.num_rows} rows. Call "
                "x = self.push_and_pull(history, x, *args) between two convolutions"
            )
        x_0 = given.get("x_0")
        if isinstance(x_0, Tensor) and x_0.size(0) == self.batch_size:  # cut by the caller, as PyGAS models do
            return None
        # Not every library adds self-loops to a matrix that is not square, and SimpleConv to no bipartite graph.
        loops = getattr(conv, "add_self_loops", False) and any(map(is_matrix, given.values()))
        loops = loops or getattr(conv, "combine_root", None) == "self_loop"
        # PyG's fused product over an EdgeIndex that is not square fails in the backward pass.
        fused = getattr(conv, "SUPPORTS_FUSED_EDGE_INDEX", False) and any(map(is_edge_index_object, given.values()))
        is_square = any(map(self._is_square, given.values()))
        if takes_pair(type(conv).forward) and not (loops or fused or is_square):
            pair = (x, x[: self.batch_size])
            if "x" in kwargs:
                return args, kwargs | {"x": pair}
            return (pair, *args[1:]), kwargs
        if conv.training and any(isinstance(inner, _BatchNorm) for inner in conv.modules()):
            raise ValueError(
                f"{type(conv).__name__} has batch norm inside and is run on batch and halo together, so that its statistics "
                "would count halo rows, which have no neighbours here. Put the norm behind the convolution, or let forward "
                "take a pair (declare x: Tensor | tuple[Tensor, Tensor])"
            )
        return tuple(map(self._square, args)), {key: self._square(value) for key, value in kwargs.items()}

    def _is_square(self, value: Any) -> bool:
        stated = is_matrix(value) or is_edge_index_object(value)
        return stated and num_destinations(value) == self.num_rows

    def _square(self, value: Any) -> Any:
        if not (is_matrix(value) or is_edge_index_object(value)):
            return value
        if id(value) not in self._squares:  # keeps `value` alive as well, so that its id stays its own
            self._squares[id(value)] = (value, square(value, self.num_rows))
        return self._squares[id(value)][1]

    def _cut(self, conv: Module, args: tuple[Any, ...], out: Any) -> Any:
        if isinstance(out, Tensor) and out.dim() > 0 and out.size(0) == self.num_rows:
            return out[: self.batch_size]
        if isinstance(out, tuple) and isinstance(out[0], Tensor) and out[0].size(0) == self.num_rows:
            return (out[0][: self.batch_size], *out[1:])
        return out


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
