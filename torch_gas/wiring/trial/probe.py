"""A trial run of a model on a graph of a few nodes: which places need what, and whether batches are then exact.

The model runs on the whole small graph, which gives the exact values of all places. It then runs on batches of it, with the halo
rows of each place taken from these. Its rows must equal the exact ones at each place, else the model is refused and the layer is
named. Last, the halo rows of one place at a time are spoiled: where a batch row changes, the place needs a table.
"""

from __future__ import annotations

import copy
import random
from collections.abc import Collection, Iterator
from contextlib import suppress
from itertools import product
from math import nan
from typing import Any

import torch
from torch import Tensor
from torch.nn import Module
from torch.utils import _pytree as pytree
from torch_geometric.data import Data
from torch_geometric.nn.models.linkx import SparseLinear

from torch_gas.batch.data import SubData
from torch_gas.graph.adjacency import find_adjacency
from torch_gas.wiring import arguments
from torch_gas.wiring.arguments import OTHER_EDGES, Arguments, Inputs, adjacencies, refuse_records
from torch_gas.wiring.batch import Checkpointed
from torch_gas.wiring.compiled import eager
from torch_gas.wiring.places import Handler, Layout, Place
from torch_gas.wiring.refusals import find_layers, instead_of_wrapper
from torch_gas.wiring.rowwise import Step, Steps, Watch, common
from torch_gas.wiring.trial.found import Action, Found, Need
from torch_gas.wiring.trial.handlers import Differs, Note, Record, Skipped, Trial, Values, same
from torch_gas.wiring.trial.small import NUM_NODES, batches_of, small_graph, with_more_halo, with_more_nodes
from torch_gas.wiring.trial.undisturbed import call, call_whole, materialize, restored, to_model, undisturbed, varied

_WATCHED = 6  # runs in training mode, in which code between layers may be chosen at random
_DRAWS = 64  # of random numbers, to meet a layer that is skipped nine times out of ten


def find(model: Module, data: Data, inputs: Inputs, places: str = "row-wise") -> Found:
    """What ``model`` needs on batches of a graph like ``data``.

    Args:
        model, data, inputs, places: as :func:`torch_gas.scale` has them.

    Raises:
        ValueError: if batches cannot be made exact; the error names the layer.
    """
    find_layers(model, automatic=True)  # which raises for those that are known
    small = small_graph(copy.copy(data).cpu())
    materialize(model, small, inputs)
    with undisturbed(model), varied(model), eager():
        whole = _record(model, small, inputs, data.num_nodes)
        structural = _structural(model, small, inputs, whole.values)
        failures: list[Differs] = []
        ways: list[dict[Place, tuple[Step, ...]]] = [{}]
        if places != "outputs" and any((steps := _row_wise(model, small, inputs, places)).values()):
            ways.insert(0, steps)
        # From the batches that take the least work to those that take the most.
        for edges, steps in product((("in", True), ("in", False), ("both", False)), ways):
            try:
                behind = _record(model, small, inputs, data.num_nodes, steps) if steps else whole
                found = _Runs(model, inputs, small, behind, edges, steps).find(structural, places != "outputs")
                _check_numbers(model, with_more_nodes(small, data.num_nodes), inputs, whole.out)
                failures.clear()  # whose frames hold this one, and so the model
                return found
            except Differs as failure:
                if not steps:  # else the same batches are tried without
                    failures.append(failure)
    # Code that fails on a batch (the cause) tells less than rows that differ.
    telling = next((each for each in failures if each.__cause__ is None), failures[0])
    raise ValueError(explain(model, telling, whole.values)) from telling


def _check_numbers(model: Module, wide: Data, inputs: Inputs, wanted: Any) -> None:
    try:
        out = call_whole(model, inputs(to_model(model, wide)), wide, Handler())
    except Exception:  # of the user's code, which may want an edge to each node
        return
    refuse_numbers(model, out, wanted)


def refuse_numbers(model: Module, out: Any, wanted: Any) -> None:
    """Raises ValueError unless ``out`` of a graph with more nodes begins with the rows ``wanted``."""
    for leaf, want in zip(pytree.tree_leaves(out), pytree.tree_leaves(wanted), strict=False):
        if _per_node(want) and not same(leaf[:NUM_NODES], want):
            raise ValueError(
                f"{type(model).__name__} gives a node other rows where the graph has more nodes, although no edge touches "
                f"these: on {NUM_NODES} and on {len(leaf)} nodes. So forward goes by the number of rows (such as `if x.size(0) > "
                "1000`), of which a batch has others than the graph; let it do the same for any number, or go by an argument"
            )


def _per_node(leaf: Any) -> bool:
    return isinstance(leaf, Tensor) and leaf.dim() > 0 and leaf.size(0) == NUM_NODES


def explain(model: Module, failure: Differs, exact: Values) -> str:
    """What an error says of a model that differs on batches, where ``exact`` are its rows on the whole graph."""
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
        + instead_of_wrapper(model)
    )


def _own_graph(model: Module, given: Arguments, num_nodes: int) -> str:
    """What of ``model`` is of the user's graph, whatever graph it is given; empty where nothing is."""
    inputs = [value for value in (*given[0], *given[1].values()) if isinstance(value, Tensor)]
    takes_ids = any(value.dim() == 1 and not value.is_floating_point() for value in inputs)
    own = [
        name
        for name, parameter in model.named_parameters()
        if parameter.shape[:1] == (num_nodes,)
        and not isinstance(model.get_submodule(name.rpartition(".")[0]), SparseLinear)
    ]
    if own and not takes_ids:
        return (
            f"it holds a parameter with {num_nodes} rows, one for each node ({', '.join(own)}), and a batch needs those of its "
            "nodes. Take rows by id: store data.node_id = torch.arange(data.num_nodes) after permute(), let forward take "
            "node_id, and use self.embedding(node_id) instead of self.embedding.weight"
        )
    if not adjacencies(*given) and find_layers(model, automatic=True).convs:
        return (
            f"forward is given no adjacency. Either inputs= takes the wrong one ({OTHER_EDGES}), or layers read one from "
            "elsewhere (an attribute, a global name), the same for each batch; let it take edge_index, or adj_t"
        )
    return ""


def _row_wise(model: Module, small: Data, inputs: Inputs, places: str) -> dict[Place, tuple[Step, ...]]:
    """The row-wise code behind each output that evaluation and training have in common, whatever numbers training draws."""
    found: dict[Place, tuple[Step, ...]] = {}
    for seed in range(-1, _WATCHED):
        watch = Watch(learned=places == "cheap")
        with (
            undisturbed(model),
            torch.enable_grad(),
            suppress(Exception),
        ):  # of the user's code, which training will show
            model.train(seed >= 0)
            torch.manual_seed(seed)
            random.seed(seed)
            watch.use(call_whole(model, inputs(to_model(model, small)), small, Handler(), watch=watch))
            found = common(found, watch.found)
    return found


def _record(model: Module, data: Data, inputs: Inputs, num_nodes: int, steps: Steps | None = None) -> Record:
    record, given = Record(), inputs(to_model(model, data))
    if not any(given):
        raise ValueError(
            f"{type(model).__name__}.forward takes no arguments, so that it reads the same graph whatever batch it is called on; "
            "let it take x and edge_index"
        )
    try:
        record.out = call_whole(model, given, data, record, steps)
    except Exception as error:  # of any type, as the model is the user's code
        raise ValueError(
            f"{type(model).__name__} fails on the small graph of {NUM_NODES} nodes that scale() tries it on "
            f"({type(error).__name__}: {error}). It must run on any graph: "
            + (_own_graph(model, given, num_nodes) or "check that data holds what forward takes")
        ) from error
    leaves = pytree.tree_leaves(record.out)
    refuse_records(f"{type(model).__name__}.forward", leaves)
    if not all(bool(leaf.isfinite().all()) for leaf in leaves if isinstance(leaf, Tensor)):
        raise ValueError(
            f"{type(model).__name__} gives NaN or infinity on a small graph with rows of data; check that data and the model's "
            "parameters hold finite values, and that they are in the range that the model is for"
        )
    if not any(map(_per_node, leaves)):
        own = _own_graph(model, given, num_nodes)
        raise ValueError(
            f"{type(model).__name__} returns nothing with a row for each node"
            + (
                f" of the small graph that scale() tries it on: {own}"
                if own
                else ", so it has no rows of a batch. Scale the "
            )
            + ("" if own else "part of it that computes embeddings of nodes, and pool or compare these outside")
            + ("" if own else instead_of_wrapper(model))
        )
    return record


def _structural(model: Module, data: Data, inputs: Inputs, exact: Values) -> set[Place]:
    """The reductions that depend on the graph, but on no parameter and no node."""
    reductions = {place: value for place, value in exact.items() if place.kind in ("reduction", "maximum")}
    if not reductions:
        return set()
    changed = copy.copy(data)
    key, _ = find_adjacency(data)
    for name, value in data.to_dict().items():
        if name != key and isinstance(value, Tensor) and data.is_node_attr(name):
            dim = data.__cat_dim__(name, value)
            changed[name] = value.index_select(dim, torch.randperm(value.size(dim), device="cpu").to(value.device))
            if value.is_floating_point():
                changed[name] += 0.5 * torch.randn_like(value)
    try:
        with varied(model):
            other = _record(model, changed, inputs, NUM_NODES).values
    except ValueError:  # the model takes no such values
        return set()
    return {place for place, value in reductions.items() if place in other and torch.equal(other[place], value)}


def never_met(
    model: Module,
    inputs: Inputs,
    batch: SubData,
    places: Collection[Place],
    layout: Layout,
) -> set[Place]:
    """Those of ``places`` that no call on ``batch`` meets, whatever random numbers it draws."""
    left = set(places)
    with restored(model, dict(model.named_buffers())), torch.no_grad():
        for seed in range(_DRAWS if places else 0):
            torch.manual_seed(seed)
            note = Note({}, batch, None, layout.of_edges)
            with suppress(Exception):  # of the user's code
                call(model, inputs, batch, note, layout)
            left -= note.met
            if not left:
                break
    return left


def _ignored(model: Module, small: Data, inputs: Inputs, whole: Record) -> frozenset[str]:
    def inputs_without(name: str) -> Inputs:
        return lambda data: arguments.without(model, name, *inputs(data))

    names, wanted = set(), whole.out
    for name in arguments.names_of(model, *inputs(small)).keys() & arguments.optional(model):
        with suppress(ValueError):  # the model takes no call without it
            out = _record(model, small, inputs_without(name), NUM_NODES).out
            if pytree.tree_structure(out) == pytree.tree_structure(wanted) and all(_equal(out, wanted)):
                names.add(name)
    return frozenset(names)


def _equal(left: Any, right: Any) -> Iterator[bool]:
    for a, b in zip(pytree.tree_leaves(left), pytree.tree_leaves(right), strict=True):
        yield same(a, b) if isinstance(a, Tensor) and isinstance(b, Tensor) else a is b


class _Runs:
    """Runs of a model on batches of the small graph, compared with ``whole``, that on the whole of it."""

    def __init__(
        self, model: Module, inputs: Inputs, small: Data, whole: Record, edges: tuple[str, bool], steps: Steps
    ) -> None:
        self.model, self.inputs, self.small = model, inputs, small
        self.whole, self.exact = whole, whole.values
        self.neighbors = edges[0]
        self.layout = Layout(bipartite=edges[1], steps=steps)
        self.batches = batches_of(small, self.neighbors)
        self.entered = set(whole.entered)
        self.outputs: list[list[Any]] = []  # of each batch with exact halo rows

    def find(self, structural: set[Place], row_wise: bool) -> Found:
        """What the model needs on such batches; raises Differs if they cannot be made exact."""
        needs = self.needs(structural)
        if any(self.layout.steps.values()):
            histories = [place for place, need in needs.items() if need.action == "history"]
            for batch, out in zip(self.batches, self.outputs, strict=True):
                self.run(Skipped(self.exact, batch, histories), out)
            self.check_training()
        called = frozenset(place for place in self.exact if place.kind == "output" or place in needs)
        others = {place for place in called if place.kind != "output" or self.exact[place].size(0) != NUM_NODES}
        trained = self.met_in_training(needs)
        with undisturbed(self.model):
            self.model.train()
            trained |= called - never_met(self.model, self.inputs, self.batches[0], called - trained, self.layout)
        shapes = {place: tuple(self.exact[place].shape[1:]) for place in called - others}
        if row_wise:
            self.leave_halo_out(shapes.keys() - needs.keys())
        return Found(
            needs=needs,
            shapes=shapes,
            known=trained.union(self.exact, self.entered),
            called=(called, called & trained),
            ignored=_ignored(self.model, self.small, self.inputs, self.whole),
            per_node=tuple(map(_per_node, pytree.tree_leaves(self.whole.out))),
            neighbors=self.neighbors,
            bipartite=self.layout.bipartite,
            steps=self.layout.steps,
        )

    def check_training(self) -> None:
        """Raises Differs where training needs halo rows earlier than evaluation: in code that is not seen."""
        layout, rows = self.layout, self._train(self.batches[0], None)[1]
        self.layout = layout._replace(steps={})
        wanted = self._train(self.batches[0], None)[1]
        self.layout = layout
        if len(rows) != len(wanted):
            raise Differs(None)

    def run(self, trial: Trial, before: list[Any] | None = None, how: str = Differs.OTHER_ROWS) -> list[Any]:
        """The outputs on a batch; raises Differs where rows are not those of the whole graph.

        Args:
            trial: what is done at the places.
            before: outputs of an earlier run, whose values without a row for each node must be the same.
            how: what the error says where they are not.
        """
        batch = trial.batch
        try:
            out = call(self.model, self.inputs, batch, trial, self.layout)
        except Differs:
            raise
        except Exception as error:  # of any type: code that fails on other sizes than the whole graph's
            raise Differs(None, f"cannot be computed ({type(error).__name__}: {error})") from error
        leaves, spec = pytree.tree_flatten(out)
        wanted, spec_of_whole = pytree.tree_flatten(self.whole.out)
        if spec != spec_of_whole:
            raise Differs(None, "has another structure than on the whole graph")
        ids, num_rows = batch.n_id[: batch.batch_size], batch.n_id.numel()
        for leaf, want, other in zip(leaves, wanted, before or leaves, strict=True):
            if _per_node(want):
                if leaf.size(0) not in (num_rows, len(ids)) or not same(leaf[: len(ids)], want[ids.to(want.device)]):
                    raise Differs(None)
            elif isinstance(leaf, Tensor) and not same(leaf, other):
                raise Differs(None, how)
        return leaves

    def needs(self, structural: set[Place]) -> dict[Place, Need]:
        """What each place needs, in the order of the forward pass."""
        partial, has_halo = self.check()
        needs: dict[Place, Need] = {}
        tables: list[tuple[Action, Tensor]] = []
        for place, value in self.exact.items():
            has_table = place in structural and any(same(table, value) for _, table in tables)
            if place in partial:
                if place not in structural:
                    raise Differs(place, "depends on parameters and on more than the edges into a node")
                action = partial[place]
            elif place in has_halo and (has_table or self.is_read(place, partial)):
                action = "rows" if place in structural else "history"
            else:
                continue
            if action == "history":
                number = [need.action for need in needs.values()].count("history")
                if not value.is_floating_point():
                    raise Differs(place, "gives no floating-point numbers, which a history holds, and is read on")
            else:
                number = next((i for i, (a, t) in enumerate(tables) if a == action and same(t, value)), len(tables))
                if number == len(tables):
                    tables.append((action, value))
            needs[place] = Need(action, number, tuple(value.shape[1:]), value.dtype)
        return needs

    def check(self) -> tuple[dict[Place, Action], set[Place]]:
        """How to get what needs the whole graph, and the places with halo rows; raises Differs if a batch is not exact."""
        trials = [Trial(self.exact, batch) for batch in self.batches]
        self.outputs = [self.run(trial) for trial in trials]
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
        for batch, out in zip(self.batches, self.outputs, strict=True):  # in one alone, a mean may agree by chance
            self.run(Trial(self.exact, with_more_halo(batch, self.small)), out, Differs.COUNTS_HALO)
        return partial, set().union(*(trial.has_halo for trial in trials))

    def is_read(self, place: Place, partial: Collection[Place]) -> bool:
        """Whether what a batch gives depends on the halo rows of ``place``."""
        places = list(self.exact)
        later = places[places.index(place) + 1 :]
        if place.kind == "output" and any(hop in later for hop in self.whole.drop_edges):
            return True  # by other values, that hop may choose edges which read it
        # The rows of a layer's last hop are replaced by those of its output, unless the layer keeps them elsewhere.
        last = place.kind == "hop" and later[:1] == [Place(place.scope, "output", 0)]
        batches = list(zip(self.batches, self.outputs, strict=True))
        for (batch, out), by in product(batches[:1] if last else batches, (nan,) if last else (nan, 1e3, -1e3)):
            try:
                self.run(Trial(self.exact, batch, place, by, partial), out)
            except Differs:
                return True
        return False

    def met_in_training(self, needs: dict[Place, Need]) -> frozenset[Place]:
        """The places that are met in training; raises Differs where training reads what evaluation does not."""
        batch = self.batches[0]
        met, rows = self._train(batch, None)
        for place in met - self.exact.keys():
            if place.kind in ("output", "hop"):
                raise Differs(place, "is called in training and not in evaluation, so that it cannot be tried out")
        for place in met & self.exact.keys() - needs.keys():
            if place.kind == "output" and not all(map(same, rows, self._train(batch, place)[1])):
                raise Differs(place, "is read by further layers in training and not in evaluation; read it in both")
        return frozenset(met)

    def _train(self, batch: SubData, spoiled: Place | None) -> tuple[set[Place], list[Tensor]]:
        """The places that are met, and the batch's rows of the output."""
        note = Note(self.exact, batch, spoiled)
        with undisturbed(self.model), torch.enable_grad():  # the same random numbers and buffers in each run
            self.model.train()
            try:
                out = call(self.model, self.inputs, batch, note, self.layout)
            except Checkpointed as error:
                raise ValueError(str(error)) from error
            except Exception:  # which training itself will show
                return note.met, []
        self.entered |= note.entered
        leaves = [leaf for leaf in pytree.tree_leaves(out) if isinstance(leaf, Tensor) and leaf.dim() > 0]
        sizes = (batch.batch_size, batch.n_id.numel())
        return note.met, [leaf[: batch.batch_size] for leaf in leaves if leaf.size(0) in sizes]

    def leave_halo_out(self, places: Collection[Place]) -> None:
        """Has outputs whose halo rows nobody needs keep the batch's rows alone, if the code behind them can do with these."""
        before = self.layout
        met, rows = self._train(self.batches[0], None)
        self.layout = before._replace(steps={**before.steps, **dict.fromkeys(places)})
        exact = _record(self.model, self.small, self.inputs, NUM_NODES, self.layout.steps).values
        try:
            for batch, out in zip(self.batches, self.outputs, strict=True):
                self.run(Trial(exact, batch), out)
            met_now, rows_now = self._train(self.batches[0], None)
            fits = len(rows) > 0 and (met_now, len(rows_now)) == (met, len(rows))
        except Differs:
            fits = False
        if not fits:
            self.layout = before
