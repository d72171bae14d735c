"""Dropout by global id: masks that are the same on the whole graph, on a batch, and each time a batch is computed again."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from hashlib import blake2b
from typing import Any, NamedTuple, cast

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.nn.parameter import Parameter
from torch.overrides import handle_torch_function, has_torch_function_unary
from torch_geometric.nn import MessagePassing

from torch_gas._util.arguments import checked
from torch_gas._util.frames import callers
from torch_gas._util.tracing import unseen
from torch_gas.graph import philox
from torch_gas.graph.dropout import dropout, dropout_rows
from torch_gas.graph.edges import coo
from torch_gas.graph.formats import format_of, is_adjacency, is_matrix
from torch_gas.session.call import Call
from torch_gas.session.extension import Extension
from torch_gas.session.model import HistoryModel
from torch_gas.wiring.batch import under_checkpoint
from torch_gas.wiring.compiled import is_called_compiled, is_compiled
from torch_gas.wiring.mode import Mode
from torch_gas.wiring.undo import Undo


class DropoutById(Extension):
    r"""Has dropout in training draw its masks by the ids of nodes and edges, and not by their positions in a batch.

    The mask of an entry is a function of ``seed``, ``step``, the place of the dropout call in the forward pass, the id of its
    row in the whole graph and its channel, and of nothing else. So a row is dropped in the same way on the whole graph, on a
    batch, as a row of the halo, and when a batch is computed again in the same step. In particular, training on a batch that
    covers the graph follows full-batch training with dropout. Masks are drawn by Philox4x32-10
    (https://doi.org/10.1145/2063384.2063405): with

    .. math::
        (w_0, w_1, w_2, w_3) = \mathrm{Philox}_{k}(\mathrm{id}, \lfloor c / 4 \rfloor), \qquad
        k = \mathrm{hash}(\mathrm{seed}, \mathrm{step}, \mathrm{place})

    entry c of a row is kept if :math:`w_{c \bmod 4} \geq p \cdot 2^{32}`, and then multiplied by :math:`1 / (1 - p)`.

    * Rows of nodes have the id of their node. Outside of ``message`` and ``edge_update``, as many rows as nodes are theirs.
    * Rows of edges have that of the pair of its nodes in the adjacency over which a layer passes messages, self-loops that it
      adds included, and of the number of equal pairs before it.
    * The place of a call is its number among those in the same call of a convolution, or outside of all. So a convolution that
      is not computed again changes no other mask.

    It takes the place of :func:`torch.nn.functional.dropout`, and so of :class:`torch.nn.Dropout`, attention dropout of PyG's
    layers and the dropout of :mod:`torch_gas.models`. Whatever else draws random numbers is left as it is: other kinds of
    dropout, attention of torch itself, and samples of edges. Compiled models are refused.

    Args:
        seed: of the masks, not negative. By default it is drawn from torch's generator, so that :func:`torch.manual_seed`
            makes it reproducible. Models with the same seed and step draw the same masks.

    Attributes:
        seed: the seed.
        step: the number of training steps so far, in which masks differ: calls in training mode with gradients. It is saved in
            checkpoints, with the seed.

    Raises:
        ValueError: if ``seed`` is negative; in a call, if nothing tells which node or edge a row is of.

    Example:
        >>> import torch
        >>> from torch_geometric.nn import GraphSAGE
        >>> from torch_gas import SubgraphLoader, metis, permute, scale
        >>> from torch_gas.datasets import synthetic
        >>> from torch_gas.extensions import DropoutById
        >>> data = synthetic(1000)
        >>> perm, ptr = metis(data, num_parts=8, log=False)
        >>> data = permute(data, perm, log=False)
        >>> model = scale(GraphSAGE(data.num_features, 16, num_layers=2, out_channels=10, dropout=0.5), data)
        >>> model.add_extension(DropoutById(seed=0))
        >>> with torch.no_grad():  # in one step
        ...     full = model(data)
        ...     for batch in SubgraphLoader(data, ptr, batch_size=4):
        ...         assert torch.allclose(model(batch), full[batch.n_id[: batch.batch_size]], atol=1e-5)
    """

    takes_part = True

    @checked
    def __init__(self, seed: int | None = None) -> None:
        if seed is not None and seed < 0:
            raise ValueError(f"DropoutById: seed must not be negative, but is {seed}")
        self.seed = int(torch.randint(2**63 - 1, (), device="cpu")) if seed is None else seed
        self.step = 0
        self._met: dict[tuple[str, int], _Rows] = {}  # by scope and number

    def added(self, model: HistoryModel) -> None:
        if any(isinstance(other, DropoutById) for other in model.extensions):
            raise ValueError(f"add_extension: {model._name} has a DropoutById already; remove that one first")

    def begin(self, call: Call) -> None:
        """Draws the masks of ``call`` for as long as it runs."""
        model = call.model
        if not model.training:
            return
        if is_called_compiled() or any(map(is_compiled, model.modules())):
            raise RuntimeError(
                f"{model._name}: DropoutById sees calls of dropout while the model runs, which torch.compile cannot follow; call "
                "the model as it is, or remove the extension"
            )
        masks = _Masks(self, call)
        masks.wire(call.undo)
        call.undo.set(call, "rehearsals", [*call.rehearsals, masks.rehearsal])

    def end(self, call: Call) -> None:
        """Counts a step of training; in a replay, whoever replays counts it."""
        session = call.session
        if call.model.training and torch.is_grad_enabled() and session.watching and session.replay is None:
            self.next_step()

    def next_step(self) -> None:
        """Has the next call draw other masks."""
        self.step += 1

    def key(self, scope: str, number: int) -> int:
        """The key of the masks of a dropout call in this step, a number of 64 bits."""
        text = f"{self.seed} {self.step} {number} {scope}"
        return int.from_bytes(blake2b(text.encode(), digest_size=8).digest(), "little")

    def state_dict(self) -> dict[str, Any]:
        return {"seed": self.seed, "step": self.step}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        if state.keys() != {"seed", "step"}:
            raise ValueError(f"DropoutById: a state holds seed and step, but this one {', '.join(state) or 'nothing'}")
        self.seed, self.step = state["seed"], state["step"]


class _Rows(NamedTuple):
    """What a call of dropout is given, as far as it must be the same in all calls of the model.

    Args:
        kind: what rows are of: ``"nodes"``, ``"edges"``, or ``"positions"`` where they are the same in all calls.
        dim: their dimension.
        others: the sizes of the other dimensions, and of that of positions.
    """

    kind: str
    dim: int
    others: tuple[int, ...]


class _Scope(NamedTuple):
    """A part of the forward pass in which calls of dropout are counted.

    Args:
        name: calls of layers and of their parts that are under way, with their numbers; ``""`` outside of layers.
        layer: the layer, for errors.
        adjs: adjacencies whose edges rows may be of.
        dim: the dimension of rows, where that is not the first.
        on_edges: whether all rows are of edges.
    """

    name: str
    layer: str
    adjs: tuple[Any, ...]
    dim: int = 0
    on_edges: bool = False


_ADVICE = (
    "Drop rows of nodes outside of message(), rows of edges inside of message() or edge_update(), both as the first dimension, "
    "and other tensors as they are in the model, as a parameter"
)


def _functional(input: Tensor, p: float = 0.5, training: bool = True, inplace: bool = False) -> tuple[Any, ...]:
    return input, p, training, inplace


# Calls that are seen, by what their arguments mean: input, probability, whether to drop, whether in place.
_CALLS: dict[Any, Callable[..., tuple[Any, ...]]] = {
    F.dropout: _functional,
    dropout: lambda x, p, training: (x, p, training, False),
    torch.dropout: lambda input, p, train: (input, p, train, False),
    torch.dropout_: lambda input, p, train: (input, p, train, True),
}


def _drawn(x: Tensor, draw: Callable[[Tensor], Tensor]) -> Tensor:
    """What ``draw`` makes of rows; other modes see a function of torch, which may give it some of them."""
    if has_torch_function_unary(x):
        return handle_torch_function(_drawn, (x,), x, draw)
    return cast(Tensor, unseen(draw, x))


_drawn.__name__ = "dropout"  # as what it stands in for


class _Masks(Mode):
    """Stands in for dropout during ``call``, once it is wired."""

    def __init__(self, extension: DropoutById, call: Call) -> None:
        super().__init__()
        self.extension, self.model, self.session = extension, call.model, call.session
        ids, num_nodes = call.n_id, call.model.num_nodes
        # Numbers of rows that nodes may have. All are an embedding's, if not those of the whole graph.
        self.nodes: dict[int, Tensor | None] = {num_nodes: None}
        if ids is not None:
            batch_size = ids.numel() if call.batch_size is None else call.batch_size
            self.nodes |= {ids.numel(): ids, batch_size: ids[:batch_size]}
        self.ids = torch.arange(num_nodes, device=call.model.device) if ids is None else ids.long()
        self.scope = _Scope("", f"forward of {call.model._name}", () if call.adj is None else (call.adj,))
        self._counts: Counter[tuple[str, str]] = Counter()
        self._of_edges: dict[int, tuple[Any, Tensor]] = {}  # with the adjacency, so that its id stays its own

    def wire(self, undo: Undo) -> None:
        """Sees calls of layers and their parts, and functions of torch."""
        for name, module in self.model._plain.named_modules():
            if isinstance(module, MessagePassing):
                kind = type(module).__name__
                layer = partial(self._scoped, layer=f"{name} ({kind})".strip(), dim=module.node_dim)
                undo.set(module, "forward", layer(module.forward, name or kind))
                undo.set(module, "propagate", layer(module.propagate, "propagate()"))
                undo.set(module, "edge_updater", layer(module.edge_updater, "edge_updater()", on_edges=True))
                undo.set(module, "message", layer(module.message, "message()", on_edges=True))
        undo.add(self.__exit__)
        self.__enter__()

    @contextmanager
    def rehearsal(self) -> Iterator[None]:
        """While entered, layers drop as in their next calls."""
        counts, scope = self._counts.copy(), self.scope
        try:
            yield
        finally:
            self._counts, self.scope = counts, scope

    def _scoped(
        self, function: Callable[..., Any], name: str, layer: str, dim: int, on_edges: bool = False
    ) -> Callable[..., Any]:
        """``function`` of a layer, whose calls are scopes."""

        def run(*args: Any, **kwargs: Any) -> Any:
            before, number = self.scope, self._count(name)
            adjs = before.adjs
            if name != "message()":  # which works on the edges of `propagate`
                found = tuple(filter(_has_edges, (*args, *kwargs.values())))
                adjs = (found[:1] if name.endswith("()") else found) or adjs
            self.scope = _Scope(f"{before.name}/{name}#{number}", layer, adjs, dim, on_edges)
            try:
                return function(*args, **kwargs)
            finally:
                self.scope = before

        return run

    def _count(self, what: str) -> int:
        self._counts[self.scope.name, what] += 1
        return self._counts[self.scope.name, what]

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        arguments = _CALLS.get(func) if self._is_entered else None
        if arguments is None:
            return func(*args, **kwargs)
        x, p, training, in_place = arguments(*args, **kwargs)
        if not training or not 0 < p <= 1 or not x.is_floating_point():
            return func(*args, **kwargs)
        if under_checkpoint():
            raise ValueError(
                f"{self.scope.layer}: dropout is called under activation checkpointing, which would call it once more in the "
                "backward pass, where its rows are not known; switch it off and make batches smaller instead"
            )
        # Counted also where nothing is drawn, because nobody computes the rows.
        out = _drawn(x, partial(self._dropped, p=float(p), number=self._count("dropout")))
        return x.copy_(out) if in_place else out

    def _dropped(self, x: Tensor, p: float, number: int) -> Tensor:
        if self._is_stand_in(x, number):
            return x
        rows = x.view(1) if x.dim() == 0 else x
        dim, ids = self._ids(rows, number)
        key = self.extension.key(self.scope.name, number)
        if dim != 0:
            return dropout_rows(rows.movedim(dim, 0), ids.to(x.device), p, key).movedim(0, dim)
        out = dropout_rows(rows, ids.to(x.device), p, key)
        return out.view(()) if x.dim() == 0 else out

    def _is_stand_in(self, x: Tensor, number: int) -> bool:
        """Whether ``x`` is a row of any value for those of nodes that nobody reads, and not a row of its own."""
        replay, met = self.session.replay, self.extension._met.get((self.scope.name, number))
        is_of_nodes = met is None or met.kind == "nodes"
        return replay is not None and replay.any_rows and x.shape[:1] == (1,) and is_of_nodes and 1 not in self.nodes

    # -- ids -----------------------------------------------------------------------------------------------------------

    def _ids(self, x: Tensor, number: int) -> tuple[int, Tensor]:
        """The dimension of rows, and their ids, by where they are met, and then by their number.

        Raises:
            ValueError: where that tells too little.
        """
        scope, met = self.scope, self.extension._met
        fits = self._fits(x)
        adjs = scope.adjs
        if not fits and (held := _held(x.size(0))):
            fits, adjs = [_rows("edges", 0, x)], held
        elif (
            not fits and not scope.name and self.nodes.keys().isdisjoint(x.shape)
        ):  # nor are nodes in another dimension
            fits = [_rows("positions", 0, x)]
        if not fits:
            nodes = "" if scope.on_edges else f" {' or '.join(map(str, self.nodes))} nodes, or"
            edges = " or ".join(str(_num_edges(adj)) for adj in adjs) or "unknown"
            raise ValueError(
                f"{scope.layer}: dropout is given {list(x.shape)}, which are no rows of{nodes} {edges} edges. {_ADVICE}"
            )
        rows = met.get((scope.name, number), fits[0])
        if rows not in fits:
            now = " or ".join(fit.kind for fit in fits)
            raise ValueError(
                f"{scope.layer}: dropout is given {list(x.shape)}, of {now}, and was given rows of {rows.kind} "
                f"{list(rows.others)} here before, so that nothing tells what they are of. {_ADVICE}"
            )
        met[scope.name, number] = rows
        size = x.size(rows.dim)
        if rows.kind == "positions":
            return rows.dim, torch.arange(size, device="cpu")
        if rows.kind == "nodes":
            ids = self.nodes[size]
            return rows.dim, torch.arange(size, device="cpu") if ids is None else ids.long()
        ids, *others = [self._edge_ids(adj) for adj in adjs if _num_edges(adj) == size]
        if not all(torch.equal(ids, other) for other in others):
            raise ValueError(
                f"{scope.layer}: dropout is given {list(x.shape)}, and several adjacencies have {size} edges. {_ADVICE}"
            )
        return rows.dim, ids

    def _fits(self, x: Tensor) -> list[_Rows]:
        """What ``x`` may be, the most probable first."""
        scope, fits = self.scope, []
        dims = dict.fromkeys((0, scope.dim % x.dim() if -x.dim() <= scope.dim < x.dim() else 0))
        if not scope.on_edges:
            fits += [_rows("nodes", dim, x) for dim in dims if x.size(dim) in self.nodes]
        sizes = {_num_edges(adj) for adj in scope.adjs}
        fits += [_rows("edges", dim, x) for dim in dims if x.size(dim) in sizes]
        if x.size(0) == 1 or isinstance(x, Parameter) or isinstance(x._base, Parameter):
            fits.append(_rows("positions", 0, x))
        return fits

    def _edge_ids(self, adj: Any) -> Tensor:
        """The id of each edge, by its nodes and the number of equal pairs before it."""
        if id(adj) not in self._of_edges:
            src, dst = _pairs(adj)
            ids = self.ids.to(src.device)
            self._of_edges[id(adj)] = (adj, edge_ids(ids[src], ids[dst], self.model.num_nodes))
        return self._of_edges[id(adj)][1]


def _rows(kind: str, dim: int, x: Tensor) -> _Rows:
    return _Rows(kind, dim, tuple(x.shape if kind == "positions" else x.shape[:dim] + x.shape[dim + 1 :]))


def _held(size: int) -> tuple[Any, ...]:
    """Adjacencies with so many edges in the variables of the code that called torch or this package, best a matrix.

    A layer may add self-loops, and drop edge weights before it passes messages.
    """
    frame, _ = next(callers())
    found = tuple(value for value in frame.f_locals.values() if _has_edges(value) and _num_edges(value) == size)
    return tuple(filter(is_matrix, found)) or found


def _has_edges(value: Any) -> bool:
    return is_adjacency(value) or (isinstance(value, Tensor) and value.layout == torch.sparse_coo)


def _pairs(adj: Any) -> tuple[Tensor, Tensor]:
    """Sources and destinations, in the order in which PyG has their messages."""
    if isinstance(adj, Tensor) and adj.layout == torch.sparse_coo:  # what PyG's normalisation may make
        dst, src = adj._indices()
        return src, dst
    return coo(adj)[:2]


def _num_edges(adj: Any) -> int:
    is_coo = isinstance(adj, Tensor) and adj.layout == torch.sparse_coo
    return adj._nnz() if is_coo else format_of(adj).num_edges(adj)


def edge_ids(src: Tensor, dst: Tensor, num_nodes: int) -> Tensor:
    """Numbers of 64 bits for edges from ``src`` to ``dst``, [E], which depend on both and on how many equal pairs come before."""
    pairs = dst * num_nodes + src
    ids = philox.mix(pairs)
    if not bool((pairs[1:] > pairs[:-1]).all()):  # in the order of loaders, where none is there twice
        pairs, order = pairs.sort(stable=True)
        equal = pairs[1:] == pairs[:-1]
        number = torch.arange(1, pairs.numel(), device=src.device)
        first = torch.where(equal, 0, number).cummax(0).values  # of equal pairs
        ids[order[1:]] += number - first
    return philox.mix(ids)
