"""How single layers are called on a batch: by bipartite pairs, square adjacencies and a cut to B rows."""

from __future__ import annotations

import functools
import inspect
import sys
import threading
from collections.abc import Callable, Collection, Iterable, Iterator
from itertools import product, zip_longest
from types import FrameType
from typing import Any, NamedTuple
from weakref import WeakKeyDictionary

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.nn import Module
from torch.nn.modules.batchnorm import _BatchNorm
from torch_geometric import EdgeIndex
from torch_geometric.nn import GCN2Conv, GCNConv, GraphSizeNorm, InstanceNorm, LGConv, MessagePassing
from torch_geometric.nn.models.linkx import SparseLinear

from torch_gas._util.modules import modules_of
from torch_gas._util.tracing import unseen, untraced
from torch_gas.graph.formats import format_of, is_adjacency, is_csr, is_matrix, resize
from torch_gas.graph.halo import own_rows
from torch_gas.graph.product import resized
from torch_gas.wiring.refusals import Layers, refuse
from torch_gas.wiring.undo import Undo


@functools.cache
def _parameters(forward: Callable[..., Any]) -> tuple[tuple[str, ...], bool]:
    """The names of a layer's arguments, and whether ``x`` may be a pair (sources, destinations).

    Layers with positions do not count as such: they want these as a pair as well.
    """
    _, *parameters = inspect.signature(forward).parameters.values()
    names = tuple(parameter.name for parameter in parameters)
    annotation = next((str(parameter.annotation) for parameter in parameters if parameter.name == "x"), "")
    is_pair = any(pair in annotation for pair in ("Tuple[", "tuple[", "PairTensor"))
    return names, is_pair and "pos" not in names


class Rows(NamedTuple):
    """Which rows of a graph a model is called on.

    Args:
        batch_size: B.
        n_id: ids of the batch's and then the halo's nodes, [B + S], by which layers find their parameters for a node.
        num_nodes: N.
        any_rows: whether layers that are not computed may be called with another number of rows.
        keeps_halo: whether a layer is to give what it computes for halo nodes as well, asked when it has run.
    """

    batch_size: int
    n_id: Tensor
    num_nodes: int
    any_rows: bool = False
    keeps_halo: Callable[[], bool] | None = None


class Batch:
    """Convolutions run on a batch and give B rows, and norms count the batch's rows only, once it is wired.

    Args:
        layers: the convolutions, none inside another, and norms by the size of the graph.
        norms: modules that may hold batch norms.
        rows: of the batch.
        bipartite: whether no edge goes into the halo, so that destinations may be cut to the batch's rows.
        of_edges: those of the convolutions that return something else than rows of nodes; None where that is not known.

    Attributes:
        met: convolutions that have been called, in their order.
    """

    def __init__(
        self,
        layers: Layers,
        norms: Iterable[Module],
        rows: Rows,
        bipartite: bool,
        of_edges: Collection[Module] | None = None,
    ) -> None:
        self.convs, self.sizes, self.norms, self.rows = set(layers.convs), set(layers.sizes), set(_norms(norms)), rows
        self.batch_size, self.num_rows, self.bipartite = rows.batch_size, rows.n_id.numel(), bipartite
        self.of_edges = of_edges
        # B and B+S as the shape of a tensor: torch.compile takes numbers that a module leads to for constants.
        self.shape = torch.empty(0, self.batch_size, self.num_rows, device="cpu")
        self.is_under_way: Callable[[Tensor], bool] = lambda rows: False  # to a place inside of a layer
        self.on_edges = 0  # calls under way of the part of a layer that works on edges
        self.met: list[Module] = []
        self._resized: dict[tuple[int, int], tuple[Any, Any]] = {}

    def wire(self, undo: Undo) -> None:
        """Prepares the layers."""
        has_halo = self.num_rows > self.batch_size
        for conv in self.convs:
            if conv.explain:
                raise ValueError(
                    f"{type(conv).__name__} has masks of an explainer on its messages, and a batch would mix them with the rows "
                    "of histories, which have none; explain the model on the whole graph, or the plain model on a subgraph"
                )
            for inner in modules_of(conv):
                if getattr(inner, "cached", False):  # what it stored is of one graph, and a batch is another each time
                    for name in [name for name in vars(inner) if name.startswith("_cached")]:
                        undo.set(inner, name, None)
                    undo.set(inner, "cached", False)
                if isinstance(inner, SparseLinear):  # whose input is the adjacency matrix, with a column for each node
                    undo.set(inner, "weight", inner.weight[self.rows.n_id.to(inner.weight.device)])
            _attach(undo, conv, (_Layer if has_halo and conv not in (self.of_edges or ()) else _Met)(conv, self))
        for norm in self.norms:
            _attach(undo, norm, _NormOfBatch(self) if has_halo else None)
        for size in self.sizes:
            _attach(undo, size, _SizeOfGraph(self.rows.num_nodes))
        if self.norms and has_halo:
            layers = {
                module for conv in self.convs for module in modules_of(conv) if isinstance(module, MessagePassing)
            }
            for layer, name in product(layers, ("message", "edge_update")):
                undo.set(layer, name, self._on_edges(getattr(layer, name)))

    def _on_edges(self, function: Callable[..., Any]) -> Callable[..., Any]:
        """``function`` of a layer, whose rows are edges."""

        def run(*args: Any, **kwargs: Any) -> Any:
            self.on_edges += 1
            try:
                return function(*args, **kwargs)
            finally:
                self.on_edges -= 1

        return run

    def resize(self, value: Any, num_dst: int, num_rows: int) -> Any:
        """An argument with B or B+S destinations, if it is an adjacency."""
        if not is_adjacency(value):
            return value
        if torch.compiler.is_compiling():  # which sees by itself that it is the same each time
            return resize(value, num_dst, num_rows)
        key = (id(value), num_dst)
        if key not in self._resized:  # keeps `value` alive as well, so that its id stays its own
            self._resized[key] = (value, resized(value, num_dst, num_rows))
        return self._resized[key][1]


def wire_whole(undo: Undo, model: Module) -> None:
    """On a whole graph, layers get the hooks that they have on a batch, and these do nothing.

    Code that torch.compile made is not made anew where hooks come or go. So they are the same in all calls, and what they do
    is looked up in the module, which compiled code does check.
    """
    layers = [module for module in modules_of(model) if isinstance(module, (MessagePassing, GraphSizeNorm))]
    for module in {*layers, *_norms(layers)}:
        _attach(undo, module, None)


WIRING = "_wiring_of_batch"
_OF_PROPAGATE = (GCNConv.forward, GCN2Conv.forward, LGConv.forward)  # have as many rows as its result


def _norms(roots: Iterable[Module]) -> Iterator[_BatchNorm | InstanceNorm]:
    return (module for root in roots for module in modules_of(root) if isinstance(module, (_BatchNorm, InstanceNorm)))


def _attach(undo: Undo, module: Module, wiring: _Met | _NormOfBatch | _SizeOfGraph | None) -> None:
    undo.set(module, WIRING, wiring)
    undo.hook_before(module, _before)
    undo.hook_after(module, _after)


def _before(module: Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
    wiring = getattr(module, WIRING)
    return None if wiring is None else unseen(wiring.before, module, args, kwargs)


def _after(module: Module, args: tuple[Any, ...], out: Any) -> Any:
    wiring = getattr(module, WIRING)
    return None if wiring is None else unseen(wiring.after, module, args, out)


def refuse_unregistered(undo: Undo, model: Module) -> None:
    """Makes it an error that ``forward`` calls a layer that is none of the modules of ``model``, which nothing has wired."""
    known, thread = set(modules_of(model)), threading.get_ident()

    def check(module: Module, args: tuple[Any, ...]) -> None:
        if torch.compiler.is_compiling() or module in known or threading.get_ident() != thread:
            return
        if isinstance(module, (MessagePassing, GraphSizeNorm)):
            raise ValueError(
                f"{type(model).__name__}: forward calls a {type(module).__name__} that is none of the model's modules, so that "
                "it would run on a batch as it is, with no edges into the halo; make it in __init__ and keep it as an attribute "
                "(self.conv = ...) or in a torch.nn.ModuleList"
            )
        refuse(module)

    undo.hook_before_all(check)


class _Met:
    """One convolution that is called as it is."""

    cuts_itself = False
    # Sources and destinations that it was called with; the latter may be wanted again behind it, without another gradient.
    pair: tuple[Tensor | None, Tensor | None] = (None, None)

    def __init__(self, conv: MessagePassing, batch: Batch) -> None:
        self.batch = batch

    def before(self, conv: Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        if not torch.compiler.is_compiling():
            self.batch.met.append(conv)

    def after(self, conv: Module, args: tuple[Any, ...], out: Any) -> Any:
        return None


_OF_EDGES: WeakKeyDictionary[Module, bool] = WeakKeyDictionary()  # which layers of users return rows of edges


class _Layer(_Met):
    """How one convolution is called on a batch with a halo."""

    def __init__(self, conv: MessagePassing, batch: Batch) -> None:
        super().__init__(conv, batch)
        forward = type(conv).forward
        # Whether it is known that it returns rows of nodes, as all of PyG's do.
        self.is_of_nodes = batch.of_edges is not None or forward.__module__.startswith("torch_geometric.")
        self.num_edges: set[int] = set()  # of the adjacencies of a call, where it is not
        self.propagates = "propagate" in getattr(getattr(forward, "__code__", None), "co_names", ())  # to nodes
        self.names, takes_pair = _parameters(forward)
        self.takes_pair = batch.bipartite and takes_pair
        # To the rows that come out of `propagate`; normalisation of their own adds loops to all rows.
        self.cuts_itself = batch.bipartite and forward in _OF_PROPAGATE and not conv.normalize
        # So does what stands in for the `forward` of a layer that takes no pair.
        self.stands_in = batch.bipartite and getattr(vars(conv).get("forward"), "cuts_itself", False)
        self.cuts_itself = self.cuts_itself or self.stands_in
        # Not every library adds self-loops to a matrix that is not square, and SimpleConv to no bipartite graph.
        self.adds_loops = bool(getattr(conv, "add_self_loops", False))
        self.is_square = getattr(conv, "combine_root", None) == "self_loop"
        # PyG's fused product over an EdgeIndex that is not square fails in the backward pass.
        self.is_fused = bool(getattr(conv, "SUPPORTS_FUSED_EDGE_INDEX", False))

    def before(self, conv: Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        if not torch.compiler.is_compiling():  # a graph runs again with the sizes that it had
            _refuse_checkpoint(conv)
            self.batch.met.append(conv)
        _, batch_size, num_rows = self.batch.shape.shape
        given = dict(zip(self.names, args, strict=False)) | kwargs
        key = self._rows_in(given, num_rows)
        x = given.get(key)
        if not isinstance(x, Tensor):  # a pair: the caller wired it by hand
            return None
        under_way = self.batch.is_under_way(x)
        if not under_way and x.size(0) != num_rows:
            if self.batch.rows.any_rows or ("x" not in self.names and is_adjacency(x)):  # the latter has no features
                return None
            raise ValueError(
                f"{type(conv).__name__} was called with x of {x.size(0)} rows on a batch of {batch_size} nodes and "
                f"{num_rows - batch_size} halo nodes; x must have {num_rows} rows. In a "
                "ScalableGNN, call x = self.push_and_pull(history, x, *args) between two convolutions"
            )
        x_0 = given.get("x_0")
        if isinstance(x_0, Tensor) and x_0.size(0) == batch_size:  # cut by the caller, as PyGAS models do
            return None
        values = [value for value in given.values() if value is not x]
        has_matrix = any([is_matrix(value) for value in values])  # lists, as torch.compile traces no generators here
        square = self.is_square or (self.adds_loops and has_matrix)
        square = square or (self.is_fused and any([isinstance(value, EdgeIndex) for value in values]))
        num_dst = batch_size if self.cuts_itself and (has_matrix or self.stands_in) else num_rows
        rows: Any = x
        if under_way and not has_matrix and not self.adds_loops:  # to all rows, as which x will be there
            self.cuts_itself = self.batch.bipartite
        if not self.is_of_nodes and not torch.compiler.is_compiling():
            self.num_edges = {format_of(value).num_edges(value) for value in values if is_adjacency(value)}
        if self.takes_pair and not square and not under_way:
            rows, num_dst = (x, own_rows(x, batch_size)), batch_size
            if not torch.compiler.is_compiling():
                self.pair = rows

        def fitted(name: str, value: Any) -> Any:  # all adjacencies, and no features that are a matrix
            if name == key:
                return rows
            return value if value is x else self.batch.resize(value, num_dst, num_rows)

        named = zip_longest(self.names[: len(args)], args, fillvalue="")
        return tuple([fitted(*each) for each in named]), {name: fitted(name, value) for name, value in kwargs.items()}

    def _rows_in(self, given: dict[str, Any], num_rows: int) -> str:
        """The name of the argument that holds rows of nodes: ``x``, or the first that is no adjacency, best of B + S rows."""
        if "x" in given:
            return "x"
        others = [k for k, v in given.items() if not is_adjacency(v) or (is_csr(v) and v.size(1) != num_rows)]
        fits = [k for k in others if isinstance(given[k], Tensor) and given[k].shape[:1] == (num_rows,)]
        return (fits + others + [""])[0]

    def after(self, conv: Module, args: tuple[Any, ...], out: Any) -> Any:
        _, batch_size, num_rows = self.batch.shape.shape
        rows = out[0] if isinstance(out, tuple) else out
        if not isinstance(rows, Tensor) or rows.dim() == 0:
            return None
        if (self.num_edges and self._is_of_edges(conv, rows.size(0))) or rows.size(0) != num_rows:
            return None
        keeps_halo = self.batch.rows.keeps_halo
        if keeps_halo is not None and not torch.compiler.is_compiling() and keeps_halo():
            return None
        return with_first(out, rows[:batch_size]) if isinstance(out, tuple) else rows[:batch_size]

    def _is_of_edges(self, conv: Module, size: int) -> bool:
        """Whether a layer of the user's returns rows of edges, by this call or, where sizes do not tell, by others."""
        _, batch_size, num_rows = self.batch.shape.shape
        if num_rows not in self.num_edges:
            if batch_size not in self.num_edges:
                _OF_EDGES[conv] = size in self.num_edges
        elif size == num_rows and conv not in _OF_EDGES and not self.propagates:
            raise ValueError(
                f"{type(conv).__name__} returned {size} rows on a batch of {num_rows} nodes and as many edges, so that nothing "
                "tells whether they are rows of nodes, of which the halo's are cut off, or of edges, which are left; call "
                "torch_gas.check(model, data) first, which sees what it returns on another graph"
            )
        return _OF_EDGES.get(conv, False)


def with_first(out: Any, first: Tensor) -> Any:
    """A tuple with another first entry."""
    return out._replace(**{out._fields[0]: first}) if hasattr(out, "_fields") else (first, *out[1:])


def pad(value: Tensor, batch_size: int, num_rows: int) -> Tensor | None:
    """B rows with S more, which nobody reads: copies of a row, as zeros may have no finite gradient."""
    if value.size(0) != batch_size or batch_size == num_rows:
        return None
    return torch.cat([value, value[:1].detach().expand(num_rows - batch_size, *value.shape[1:])])


class _NormOfBatch:
    """In training, a norm over nodes takes its statistics of the batch's rows, and applies them to the halo's as well."""

    def __init__(self, batch: Batch) -> None:
        self.batch = batch
        self.halo: Tensor | None = None

    def before(self, norm: Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        x, *more = (*args, *kwargs.values())
        _, batch_size, num_rows = self.batch.shape.shape
        self.halo = None
        takes_statistics = norm.training or norm.running_mean is None
        if x.dim() != 2 or x.size(0) != num_rows or not takes_statistics or self.batch.on_edges > 0:
            return None
        if any([value is not None for value in more]):
            raise ValueError(
                f"{type(norm).__name__} cannot be used on a batch with numbers of graphs (batch), because a batch holds a part "
                "of each graph; leave batch out, to take statistics of all nodes of a batch"
            )
        self.halo = x[batch_size:]
        return (x[:batch_size],), {}

    def after(self, norm: Any, args: tuple[Any, ...], out: Tensor) -> Tensor | None:
        halo, self.halo = self.halo, None
        if halo is None:
            return None
        rows = args[0].detach()
        mean, var = rows.mean(dim=0), rows.var(dim=0, unbiased=False)
        return torch.cat([out, F.batch_norm(halo, mean, var, norm.weight, norm.bias, False, 0.0, norm.eps)])


class _SizeOfGraph:
    """A norm that divides by the root of the number of its rows divides by that of the number of nodes, N."""

    def __init__(self, num_nodes: int) -> None:
        self.num_nodes = num_nodes

    def before(self, norm: Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        if any(given is not None for given in (*args[1:], kwargs.get("batch"))):
            raise ValueError(
                "GraphSizeNorm cannot be used on a batch with numbers of graphs (batch), because a batch holds a part of each "
                "graph; divide by the root of the sizes before: data.x = data.x / sizes[data.batch].sqrt().view(-1, 1)"
            )

    def after(self, norm: Module, args: tuple[Any, ...], out: Tensor) -> Tensor:
        return out * (out.size(0) / self.num_nodes) ** 0.5


class Checkpointed(RuntimeError):
    """A layer is called under activation checkpointing."""


@untraced
def _refuse_checkpoint(conv: Module) -> None:
    if conv.training and under_checkpoint():
        raise Checkpointed(
            f"{type(conv).__name__} is called under activation checkpointing, which would run it once more in the backward "
            "pass, outside of the batch; switch it off (for DeepGCNLayer, ckpt_grad=False) and make batches smaller instead"
        )


def under_checkpoint() -> bool:
    """Whether this runs under activation checkpointing."""
    frame: FrameType | None = sys._getframe(1)
    while frame is not None:
        if frame.f_code.co_filename.endswith("torch/utils/checkpoint.py"):
            return True
        frame = frame.f_back
    return False


def check_adjacency_of_batch(adj: Any, batch_size: int, num_rows: int, num_dst: int | None) -> None:
    """Raises ValueError if ``adj`` is not the adjacency of a batch of ``batch_size`` nodes."""
    together = "pass the arguments of one batch together: `for batch, *args in loader: model(batch.x, batch.{}, *args)`"
    if num_dst is not None and num_dst not in (batch_size, num_rows):
        problem = f"the adjacency has {num_dst} destinations, but batch_size is {batch_size}"
        raise ValueError(f"{problem}; {together.format('adj_t')}")
    dst = format_of(adj).stored_edges(adj).dst
    if dst is not None and dst.device.type == "cpu" and dst.numel() > 0 and int(dst.max()) >= batch_size:
        problem = f"edge_index has an edge into row {int(dst.max())}, but the batch has {batch_size} nodes"
        raise ValueError(f"{problem}; {together.format('edge_index')}")
