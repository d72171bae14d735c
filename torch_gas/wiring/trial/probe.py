"""A trial run of a model on a graph of a few nodes: which places need what, and whether batches are then exact.

The model runs on the whole small graph, which gives the exact values of all places. It then runs on batches of it,
with the halo rows of each place taken from these. Its rows must equal the exact ones at each place, else the model is
refused and the layer is named. Last, the halo rows of one place at a time are spoiled: where a batch row changes, the
place needs a table.
"""

from __future__ import annotations

import copy
from collections.abc import Collection
from dataclasses import dataclass, field
from math import nan
from typing import Any, Literal

import torch
from torch import Tensor
from torch.nn import Module
from torch.utils import _pytree as pytree
from torch_geometric.data import Data

from torch_gas.batch.data import SubData
from torch_gas.graph.formats import find_adjacency
from torch_gas.wiring.arguments import Inputs
from torch_gas.wiring.places import Place, wire
from torch_gas.wiring.trial.handlers import Differs, Note, Record, Trial, same
from torch_gas.wiring.trial.small import NUM_NODES, batches_of, small_graph, widen
from torch_gas.wiring.trial.undisturbed import call, materialize, to_model, undisturbed, varied
from torch_gas.wiring.undo import Undo

Action = Literal["history", "rows", "sum", "maximum"]


@dataclass(frozen=True)
class Need:
    """What a place needs on a batch.

    Args:
        action: ``"history"`` for rows that are pushed and pulled. What depends on no parameter is computed once on the whole
            graph: ``"rows"`` whose halo part is looked up, a ``"sum"`` whose rows are all looked up, or a ``"maximum"``.
        number: of the history, or of the table.
        shape: of a row.
        dtype: of the values.
    """

    action: Action
    number: int
    shape: tuple[int, ...]
    dtype: torch.dtype


@dataclass(frozen=True)
class Found:
    """What the trial found.

    Args:
        needs: by place, in the order of the forward pass; those of histories, and of tables, are numbered in it.
        shapes: rows of the output of each convolution, also where it needs nothing.
        known: all places that were met.
        per_node: for each output of the model, whether it has a row for each node.
        neighbors: which edges a batch must hold, ``"in"`` or ``"both"``.
        closed: whether the model adds no edge into the halo, so that layers may be given a bipartite pair.
    """

    needs: dict[Place, Need]
    shapes: dict[Place, tuple[int, ...]]
    known: frozenset[Place]
    per_node: tuple[bool, ...]
    neighbors: str
    closed: bool

    def of(self, *actions: Action) -> list[Need]:
        """The histories or tables, each once, in the order of their numbers."""
        return sorted(
            {n.number: n for n in self.needs.values() if n.action in actions}.values(), key=lambda n: n.number
        )


def find(model: Module, data: Data, inputs: Inputs) -> Found:
    """What ``model`` needs on batches of a graph like ``data``.

    Raises:
        ValueError: if batches cannot be made exact; the error names the layer.
    """
    small = small_graph(copy.copy(data).cpu())
    materialize(model, small, inputs)
    with undisturbed(model), varied(model):
        exact, choosy, whole = _record(model, small, inputs)
        structural = _structural(model, small, inputs, exact)
        failures = []
        for neighbors, closed in (("in", True), ("in", False), ("both", False)):
            runs = _Runs(model, inputs, small, batches_of(small, neighbors), exact, choosy, whole, closed)
            try:
                needs = runs.needs(structural)
                known = runs.known_in_training(needs)
                break
            except Differs as failure:
                failures.append(failure)
        else:
            telling = next((each for each in failures if each.__cause__ is None), failures[0])
            raise ValueError(_explain(model, telling, exact)) from telling
    return Found(
        needs=needs,
        shapes={place: tuple(value.shape[1:]) for place, value in exact.items() if place.kind == "output"},
        known=frozenset(exact) | known,
        per_node=tuple(map(_per_node, pytree.tree_leaves(whole))),
        neighbors=neighbors,
        closed=closed,
    )


def _per_node(leaf: Any) -> bool:
    return isinstance(leaf, Tensor) and leaf.dim() > 0 and leaf.size(0) == NUM_NODES


def _explain(model: Module, failure: Differs, exact: dict[Place, Tensor]) -> str:
    layers, places = dict(model.named_modules()), list(exact)

    def named(place: Place) -> str:
        layer = layers.get(place.scope.partition("#")[0])
        return f"{place} ({type(layer).__name__})" if layer is not None else str(place)

    refused = f"{type(model).__name__} cannot be trained with histories: "
    pooled = next((place for place in places if place.kind == "output" and exact[place].size(0) != NUM_NODES), None)
    if pooled is not None and failure.place not in places[: places.index(pooled)]:
        return (
            f"{refused}on a small graph of {NUM_NODES} nodes, {named(pooled)} returns {exact[pooled].size(0)} rows. A step that "
            "changes the number of nodes, such as pooling, goes by all nodes of the graph, and a batch holds a part of them. Use "
            "a model whose layers all return a row for each node (such as torch_geometric.nn.GCN or GraphSAGE), or scale the "
            "layers before that step as a model of their own, and pool what it returns for the whole graph"
        )
    where = f"the output of {type(model).__name__}" if failure.place is None else named(failure.place)
    return (
        f"{refused}tried on a batch of a small graph, {where} {failure.how}. A layer must read, for each node, its "
        "neighbours and their edges only; it may not pool, attend to or count over all nodes, and must give the same in each "
        "call in evaluation mode. Change the layer, or compute what it needs of the whole graph beforehand and store it in data"
    )


def _record(model: Module, data: Data, inputs: Inputs) -> tuple[dict[Place, Tensor], list[Place], Any]:
    record = Record()
    args, kwargs = inputs(to_model(model, data))
    with Undo() as undo:
        wire(undo, model, record, NUM_NODES, NUM_NODES, True)
        try:
            out = model(*args, **kwargs)
        except Exception as error:  # of any type, as the model is the user's code
            raise ValueError(
                f"{type(model).__name__} fails on the small graph of {NUM_NODES} nodes that scale() tries it on "
                f"({type(error).__name__}: {error}). It must run on any graph: check that data holds what forward takes, and "
                "give it parameters for each node (an embedding) as features, data.x"
            ) from error
    leaves = [leaf for leaf in pytree.tree_leaves(out) if isinstance(leaf, Tensor) and leaf.is_floating_point()]
    if not all(bool(leaf.isfinite().all()) for leaf in leaves):
        raise ValueError(
            f"{type(model).__name__} gives NaN or infinity on a small graph with rows of data; check that data and the model's "
            "parameters hold finite values, and that they are in the range that the model is for"
        )
    if not any(map(_per_node, pytree.tree_leaves(out))):
        raise ValueError(
            f"{type(model).__name__} returns nothing with a row for each node, so it has no rows of a batch. Scale the part of "
            "it that computes embeddings of nodes, and pool or compare these outside"
        )
    return record.values, record.choosy, out


def _structural(model: Module, data: Data, inputs: Inputs, exact: dict[Place, Tensor]) -> set[Place]:
    """The reductions that depend on the graph, but on no parameter and no node."""
    if not any(place.kind in ("reduction", "maximum") for place in exact):
        return set()
    changed = copy.copy(data)
    key, _ = find_adjacency(data)
    for name, value in data.to_dict().items():
        if name != key and isinstance(value, Tensor) and data.is_node_attr(name):
            dim = data.__cat_dim__(name, value)
            changed[name] = value.index_select(dim, torch.randperm(value.size(dim)))
            if value.is_floating_point():
                changed[name] += 0.5 * torch.randn_like(value)
    try:
        with varied(model):
            other, _, _ = _record(model, changed, inputs)
    except ValueError:  # the model takes no such values
        return set()
    return {
        place
        for place, value in exact.items()
        if place.kind in ("reduction", "maximum") and place in other and torch.equal(other[place], value)
    }


@dataclass
class _Runs:
    """Runs of a model on batches of the small graph, compared with that on the whole of it."""

    model: Module
    inputs: Inputs
    small: Data
    batches: list[SubData]
    exact: dict[Place, Tensor]
    choosy: list[Place]
    whole: Any
    closed: bool
    alone: dict[int, list[Any]] = field(default_factory=dict)  # by batch: the outputs of the run with exact halo rows

    def run(self, trial: Trial) -> list[Any]:
        """The outputs on a batch; raises Differs where rows are not those of the whole graph."""
        batch = trial.batch
        try:
            out = call(self.model, self.inputs, batch, trial, self.closed)
        except Differs:
            raise
        except Exception as error:  # of any type: code that fails on other sizes than the whole graph's
            raise Differs(None, f"cannot be computed ({type(error).__name__}: {error})") from error
        leaves, spec = pytree.tree_flatten(out)
        wanted, spec_of_whole = pytree.tree_flatten(self.whole)
        if spec != spec_of_whole:
            raise Differs(None, "has another structure than on the whole graph")
        ids, num_rows = batch.n_id[: batch.batch_size], batch.n_id.numel()
        for leaf, want in zip(leaves, wanted, strict=True):
            if _per_node(want) and (
                leaf.size(0) != num_rows or not same(leaf[: batch.batch_size], want[ids.to(want.device)])
            ):
                raise Differs(None)
        for leaf, want, before in zip(leaves, wanted, self.alone.get(id(batch), ()), strict=False):
            if isinstance(leaf, Tensor) and not _per_node(want) and not same(leaf, before):
                raise Differs(None)
        return leaves

    def needs(self, structural: set[Place]) -> dict[Place, Need]:
        """What each place needs, in the order of the forward pass."""
        partial, opened = self.check()
        needs: dict[Place, Need] = {}
        tables: list[tuple[Action, Tensor]] = []
        histories = 0
        for place, value in self.exact.items():
            if place in partial:
                if place not in structural:
                    raise Differs(place, "depends on parameters and on more than the edges into a node")
                action = partial[place]
            elif place not in opened:
                continue
            elif place in structural and any(same(table, value) for _, table in tables):
                action = "rows"  # there is a table of it already
            elif self.is_read(place, partial):
                action = "rows" if place in structural else "history"
            else:
                continue
            if action == "history":
                number, histories = histories, histories + 1
                if not value.is_floating_point():
                    raise Differs(
                        place, "gives no floating-point numbers, which is what a history holds, and is read on"
                    )
            else:
                number = next((i for i, (a, t) in enumerate(tables) if a == action and same(t, value)), len(tables))
                if number == len(tables):
                    tables.append((action, value))
            needs[place] = Need(action, number, tuple(value.shape[1:]), value.dtype)
        return needs

    def check(self) -> tuple[dict[Place, Action], set[Place]]:
        """How to get what needs the whole graph, and the places with halo rows; raises Differs if a batch is not exact."""
        trials = [Trial(self.exact, batch) for batch in self.batches]
        for trial in trials:
            self.alone[id(trial.batch)] = self.run(trial)
        partial: dict[Place, Action] = {}
        for place in set().union(*(trial.partial for trial in trials)):
            values = [trial.own[place] for trial in trials]
            if place.kind == "maximum":
                partial[place], total = "maximum", torch.stack(values).amax()
            else:
                partial[place], total = "sum", torch.zeros_like(self.exact[place])
                for trial, value in zip(trials, values, strict=True):
                    total.index_add_(0, trial.batch.n_id.to(total.device), value)
            if not same(total, self.exact[place]):
                raise Differs(place)
        for batch in self.batches:  # in one of them alone, a mean may be the same by chance
            wide = self.run(Trial(self.exact, widen(batch, self.small)))
            for leaf, other, want in zip(self.alone[id(batch)], wide, pytree.tree_leaves(self.whole), strict=True):
                if isinstance(leaf, Tensor) and not _per_node(want) and not same(leaf, other):
                    raise Differs(
                        None,
                        "has a value without a row for each node that counts the rows of the halo; compute such a value (a "
                        "loss) from the rows that the scaled model returns",
                    )
        return partial, set().union(*(trial.open for trial in trials))

    def is_read(self, place: Place, partial: Collection[Place]) -> bool:
        """Whether what a batch gives depends on the halo rows of ``place``."""
        places = list(self.exact)
        later = places[places.index(place) + 1 :]
        if place.kind == "output" and any(hop in later for hop in self.choosy):
            return True  # by other values, that hop may choose edges which read it
        # The rows of a layer's last hop are replaced by those of its output, unless the layer keeps them elsewhere.
        last = place.kind == "hop" and later[:1] == [Place(place.scope, "output", 0)]
        for batch in self.batches[:1] if last else self.batches:
            for by in (nan,) if last else (nan, 1e3, -1e3):
                try:
                    self.run(Trial(self.exact, batch, place, by, partial))
                except Differs:
                    return True
        return False

    def known_in_training(self, needs: dict[Place, Need]) -> frozenset[Place]:
        """The places that are met in training; raises Differs where training reads what evaluation does not."""
        batch = self.batches[0]
        met, rows = self._train(batch, None)
        for place in met - set(self.exact):
            if place.kind in ("output", "hop"):
                raise Differs(place, "is called in training and not in evaluation, so that it cannot be tried out")
        for place in met & set(self.exact) - set(needs):
            if place.kind == "output" and not all(map(same, rows, self._train(batch, place)[1])):
                raise Differs(place, "is read by further layers in training and not in evaluation; read it in both")
        return frozenset(met)

    def _train(self, batch: SubData, spoiled: Place | None) -> tuple[set[Place], list[Tensor]]:
        """The places that are met, and the batch's rows of the output."""
        note = Note(self.exact, batch, spoiled)
        with undisturbed(self.model):  # the same random numbers and buffers in each run
            self.model.train()
            try:
                out = call(self.model, self.inputs, batch, note, self.closed)
            except Exception:  # which training itself will show
                return note.met, []
        leaves = [leaf for leaf in pytree.tree_leaves(out) if isinstance(leaf, Tensor) and leaf.dim() > 0]
        return note.met, [leaf[: batch.batch_size] for leaf in leaves if leaf.size(0) == batch.n_id.numel()]
