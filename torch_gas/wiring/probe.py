"""A trial run of a model on a graph of a few nodes: which places need what, and whether batches are then exact.

The model runs on the whole small graph, which gives the exact values of all places. It then runs on batches of it,
with the halo rows of each place taken from these. Its rows must equal the exact ones at each place, else the model is
refused and the layer is named. Last, the halo rows of one place at a time are spoiled: where a batch row changes, the
place needs a table.
"""

from __future__ import annotations

import copy
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from typing import Any, Literal, cast

import torch
from torch import Tensor
from torch.nn import Module
from torch.utils import _pytree as pytree
from torch_geometric.data import Data

from torch_gas.adjacency import coo, find_adjacency
from torch_gas.loader import SubData, SubgraphLoader, select
from torch_gas.partition.reorder import edge_attrs, from_coo
from torch_gas.wiring.arguments import Inputs, square
from torch_gas.wiring.batch import Batch, pad
from torch_gas.wiring.places import Handler, Place, Places
from torch_gas.wiring.refusals import outermost_convs

# The small graph: nodes on a ring, each with edges from some of the nodes up to REACH steps away, so that a batch and its
# halo are a part of it. Nodes, edges, and rows and edges of each batch differ in number, so that a size tells what it is of.
NUM_NODES, NUM_EDGES, REACH = 61, 200, 6
PTR = torch.tensor([0, 19, 40, NUM_NODES])

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
        shapes: rows of each convolution's output and each hop, also where they need nothing.
        known: all places that were met.
        per_node: for each output of the model, whether it has a row for each node.
        neighbors: which edges a batch must hold, ``"in"`` or ``"both"``.
    """

    needs: dict[Place, Need]
    shapes: dict[Place, tuple[int, ...]]
    known: frozenset[Place]
    per_node: tuple[bool, ...]
    neighbors: str

    def of(self, *actions: Action) -> list[Need]:
        """The histories or tables, each once, in the order of their numbers."""
        return sorted(
            {n.number: n for n in self.needs.values() if n.action in actions}.values(), key=lambda n: n.number
        )


class _Differs(Exception):
    """A batch's rows are not those of the whole graph."""

    def __init__(self, place: Place | None, how: str = "gives other rows than on the whole graph") -> None:
        self.place, self.how = place, how


class _Record(Handler):
    """Notes the exact values of all places."""

    def __init__(self) -> None:
        self.values: dict[Place, Tensor] = {}

    def at(self, place: Place, value: Tensor) -> None:
        self.values[place] = value.detach().clone()


class _Trial(Handler):
    """Gives exact rows to the halo, but for one place that is spoiled. Layers before that one are not computed."""

    def __init__(
        self, exact: dict[Place, Tensor], batch: SubData, spoiled: Place | None = None, by: float = 0.0
    ) -> None:
        self.exact, self.batch, self.spoiled, self.by = exact, batch, spoiled, by
        places = list(exact)
        before = places[: places.index(spoiled)] if spoiled is not None else []
        self.done = {place for place in before if place.kind == "output"}
        self.own: dict[Place, Tensor] = {}  # what the batch alone gives for reductions
        self.partial: set[Place] = set()  # of these, what is not exact for the batch's rows either
        self.open: set[Place] = set()  # places that have halo rows

    def substitute(self, place: Place, module: Module) -> Tensor | None:
        """The exact rows."""
        return self.exact[place][self.batch.n_id.to(self.exact[place].device)] if place in self.done else None

    def at(self, place: Place, value: Tensor) -> Tensor | None:
        exact = self.exact.get(place)
        if exact is None:
            raise _Differs(place, "is called on a batch and not on the whole graph")
        if place.kind == "maximum":
            self.own[place] = value.clone()
            if not same(value, exact):
                self.partial.add(place)
            return exact.clone()
        batch_size, num_rows = self.batch.batch_size, self.batch.n_id.numel()
        if exact.size(0) != NUM_NODES or value.size(0) not in (batch_size, num_rows):
            return None  # not a row for each node; whoever reads it is compared
        want = exact[self.batch.n_id.to(exact.device)].clone()
        rows = value[:batch_size]
        if not same(rows, want[:batch_size]):
            if place.kind != "reduction" or value.size(0) == batch_size:
                raise _Differs(place)
            self.partial.add(place)
            rows = want[:batch_size]
        if place.kind != "output" and value.size(0) == batch_size:
            return None  # inside of a layer that takes a pair
        if place.kind == "reduction":
            self.own[place] = value.clone()
        self.open.add(place)
        halo = want[batch_size:]
        if place == self.spoiled:
            halo = spoil(halo, self.by)
        return torch.cat([rows, halo])


def same(left: Tensor, right: Tensor) -> bool:
    """Whether both are equal but for rounding."""
    if left.shape != right.shape or left.dtype != right.dtype:
        return False
    if not left.is_floating_point() or left.numel() == 0:
        return torch.equal(left, right)
    tolerance = max(torch.finfo(left.dtype).eps ** 0.75, 1e-10)
    left, right = left.double(), right.double()
    scale = float(right.nan_to_num(posinf=0, neginf=0).abs().max()) + 1e-30
    return torch.allclose(left, right, rtol=tolerance, atol=tolerance * scale, equal_nan=True)


def spoil(halo: Tensor, by: float) -> Tensor:
    """Other rows than the exact ones."""
    if not halo.is_floating_point():
        return halo + 1 + int(by == by and abs(by))
    return halo + by * (1 + torch.rand(halo.shape, dtype=torch.float32).to(halo))


def find(model: Module, data: Data, inputs: Inputs) -> Found:
    """What ``model`` needs on batches of a graph like ``data``.

    Raises:
        ValueError: if batches cannot be made exact; the error names the layer.
    """
    small = _small_graph(data)
    with undisturbed(model):
        exact, whole = _record(model, small, inputs)
        structural = _structural(model, small, inputs, exact)
        failures = []
        for neighbors in ("in", "both"):
            batches = list(SubgraphLoader(small, PTR, 1, bipartite=False, neighbors=neighbors, prefetch=0))
            try:
                needs = _needs(model, inputs, batches, exact, whole, structural)
                model.train()
                known = _known_in_training(model, batches[0], inputs, exact)
                break
            except _Differs as failure:
                failures.append(failure)
                model.eval()
        else:
            raise ValueError(_explain(model, failures[0])) from failures[0]
    leaves = pytree.tree_leaves(whole)
    return Found(
        needs=needs,
        shapes={place: tuple(value.shape[1:]) for place, value in exact.items() if place.kind in ("output", "hop")},
        known=frozenset(exact) | known,
        per_node=tuple(isinstance(leaf, Tensor) and leaf.dim() > 0 and leaf.size(0) == NUM_NODES for leaf in leaves),
        neighbors=neighbors,
    )


def _explain(model: Module, failure: _Differs) -> str:
    where = "its output"
    if failure.place is not None:
        name = failure.place.scope.partition("#")[0]
        layer = dict(model.named_modules()).get(name)
        where = f"{failure.place} ({type(layer).__name__})" if layer is not None else str(failure.place)
    return (
        f"{type(model).__name__} cannot be trained with histories: tried on a batch of a small graph, {where} {failure.how}. A "
        "layer must read, for each node, its neighbours and their edges only; it may not pool, attend to or count over all "
        "nodes, and must give the same in each call in evaluation mode. Change the layer, or compute what it needs of the "
        "whole graph beforehand and store it in data"
    )


def _small_graph(data: Data) -> Data:
    """A random graph of NUM_NODES nodes with rows of ``data``, its edges sorted as matrices hold them."""
    generator = torch.Generator().manual_seed(12)
    key, adj = find_adjacency(data)
    src, dst, value = coo(adj)
    steps = torch.arange(-REACH, REACH + 1)
    if not bool((src == dst).any()):
        steps = steps[steps != 0]
    pairs = torch.cartesian_prod(torch.arange(NUM_NODES), steps)
    ends, step = pairs[torch.randperm(len(pairs), generator=generator)[:NUM_EDGES]].t()
    starts = (ends + step) % NUM_NODES
    order = (ends * NUM_NODES + starts).argsort()
    starts, ends = starts[order], ends[order]
    nodes = torch.randint(int(data.num_nodes), (NUM_NODES,), generator=generator)
    edges = torch.randint(max(src.numel(), 1), (NUM_EDGES,), generator=generator)
    if src.numel() == 0:
        raise ValueError("data has no edges")
    per_edge = edge_attrs(data)
    small = copy.copy(data)
    for name, held in data.to_dict().items():
        if name == key:
            continue
        dim = data.__cat_dim__(name, held)
        if name in per_edge:
            small[name] = select(held, edges, dim)
        elif data.is_node_attr(name):
            small[name] = select(held, nodes, dim)
    small[key], moved = from_coo(adj, starts, ends, None if value is None else value[edges], NUM_NODES)
    for name in per_edge if moved is not None else ():
        small[name] = select(small[name], cast(Tensor, moved), data.__cat_dim__(name, small[name]))
    small.num_nodes = NUM_NODES
    for name in ("perm", "edge_perm"):
        if name in small:
            del small[name]
    return small


@contextmanager
def undisturbed(model: Module) -> Iterator[None]:
    """Leaves parameters, buffers, modes and random numbers as they were."""
    modes = {module: module.training for module in model.modules()}
    held = {key: value.clone() for key, value in _tensors(model).items()}
    devices = {value.device for value in held.values() if value.is_cuda}
    with torch.random.fork_rng(devices=list(devices)), torch.no_grad():
        torch.manual_seed(0)
        try:
            model.eval()
            yield
        finally:
            for key, value in _tensors(model).items():
                if key in held:
                    value.copy_(held[key])
            for module, mode in modes.items():
                module.training = mode


def _tensors(model: Module) -> dict[str, Tensor]:
    named = {**dict(model.named_parameters()), **dict(model.named_buffers())}
    return {key: value for key, value in named.items() if not torch.nn.parameter.is_lazy(value)}


def _to_model(model: Module, data: Data) -> Data:
    parameter = next(iter(_tensors(model).values()), None)
    return data if parameter is None else copy.copy(data).to(parameter.device)


def _record(model: Module, data: Data, inputs: Inputs) -> tuple[dict[Place, Tensor], Any]:
    record = _Record()
    args, kwargs = inputs(_to_model(model, data))
    convs = list(outermost_convs(model, automatic=True))
    with Batch(convs, [], NUM_NODES, NUM_NODES), Places(model, record, NUM_NODES):
        out = model(*args, **kwargs)
    leaves = [leaf for leaf in pytree.tree_leaves(out) if isinstance(leaf, Tensor)]
    if not any(leaf.dim() > 0 and leaf.size(0) == NUM_NODES for leaf in leaves):
        raise ValueError(
            f"{type(model).__name__} returns nothing with a row for each node, so it has no rows of a batch. Scale the part of "
            "it that computes embeddings of nodes, and pool or compare these outside"
        )
    return record.values, out


def _structural(model: Module, data: Data, inputs: Inputs, exact: dict[Place, Tensor]) -> set[Place]:
    """The reductions that depend on the graph, but on no parameter and no node."""
    if not any(place.kind in ("reduction", "maximum") for place in exact):
        return set()
    held = {key: value.clone() for key, value in _tensors(model).items()}
    varied = copy.copy(data)
    for name, value in data.to_dict().items():
        if (
            isinstance(value, Tensor)
            and value.layout == torch.strided
            and value.is_floating_point()
            and data.is_node_attr(name)
        ):
            varied[name] = value + 0.5 * torch.rand_like(value)
    try:
        for value in model.parameters():
            value.add_(0.1 * torch.randn_like(value))
        other, _ = _record(model, varied, inputs)
    except Exception:  # the layer takes no such values
        other = {}
    finally:
        for key, value in _tensors(model).items():
            value.copy_(held[key])
    return {
        place
        for place, value in exact.items()
        if place.kind in ("reduction", "maximum") and place in other and torch.equal(other[place], value)
    }


def call(model: Module, inputs: Inputs, batch: SubData, handler: Handler) -> Any:
    """Runs a batch with ``handler`` at its places; the result has B + S rows."""
    num_rows = batch.n_id.numel()
    args, kwargs = inputs(_to_model(model, batch.data))
    args = tuple(square(value, num_rows) for value in args)
    kwargs = {key: square(value, num_rows) for key, value in kwargs.items()}
    closed = getattr(batch.n_id, "neighbors", "in") == "in"
    convs = list(outermost_convs(model, automatic=True))
    with Batch(convs, [model], batch.batch_size, num_rows, closed), Places(model, handler, num_rows):
        return model(*args, **kwargs)


def _run(model: Module, inputs: Inputs, batch: SubData, trial: _Trial, whole: Any) -> None:
    """Runs a batch; raises _Differs where rows are not those of the whole graph."""
    try:
        out = call(model, inputs, batch, trial)
    except _Differs:
        raise
    except Exception as error:
        raise _Differs(None, f"fails ({error})") from error
    leaves, spec = pytree.tree_flatten(out)
    wanted, spec_of_whole = pytree.tree_flatten(whole)
    if spec != spec_of_whole:
        raise _Differs(None, "has another structure than on the whole graph")
    ids = batch.n_id[: batch.batch_size]
    num_rows = batch.n_id.numel()
    for leaf, want in zip(leaves, wanted, strict=True):
        if not isinstance(want, Tensor) or want.dim() == 0 or want.size(0) != NUM_NODES:
            continue
        if leaf.size(0) != num_rows or not same(leaf[: batch.batch_size], want[ids.to(want.device)]):
            raise _Differs(None)


def _check(
    model: Module, inputs: Inputs, batches: list[SubData], exact: dict[Place, Tensor], whole: Any
) -> tuple[dict[Place, Action], set[Place]]:
    """How to get what needs the whole graph, and the places with halo rows; raises _Differs if a batch is not exact."""
    trials = [_Trial(exact, batch) for batch in batches]
    for trial in trials:
        _run(model, inputs, trial.batch, trial, whole)
    partial: dict[Place, Action] = {}
    for place in set().union(*(trial.partial for trial in trials)):
        values = [trial.own[place] for trial in trials]
        if place.kind == "maximum":
            partial[place], total = "maximum", torch.stack(values).amax()
        else:
            partial[place], total = "sum", torch.zeros_like(exact[place])
            for trial, value in zip(trials, values, strict=True):
                total.index_add_(0, trial.batch.n_id.to(total.device), value)
        if not same(total, exact[place]):
            raise _Differs(place)
    return partial, set().union(*(trial.open for trial in trials))


def _needs(
    model: Module,
    inputs: Inputs,
    batches: list[SubData],
    exact: dict[Place, Tensor],
    whole: Any,
    structural: set[Place],
) -> dict[Place, Need]:
    partial, opened = _check(model, inputs, batches, exact, whole)
    needs: dict[Place, Need] = {}
    tables: list[tuple[Action, Tensor]] = []
    histories = 0
    places = list(exact)
    for place, following in zip(places, [*places[1:], None], strict=True):
        value = exact[place]
        # The rows of a layer's last hop are replaced by those of its output.
        last = place.kind == "hop" and following is not None and following[:2] == (place.scope, "output")
        if place in partial:
            if place not in structural:
                raise _Differs(place, "depends on parameters and on more than the edges into a node")
            action = partial[place]
        elif place not in opened or last:
            continue
        elif place in structural and any(same(table, value) for _, table in tables):
            action = "rows"  # there is a table of it already
        elif _is_read(model, inputs, batches, exact, whole, place):
            action = "rows" if place in structural else "history"
        else:
            continue
        if action == "history":
            number, histories = histories, histories + 1
            if not value.is_floating_point():
                raise _Differs(place, "gives no floating-point numbers, which is what a history holds, and is read on")
        else:
            number = next((i for i, (a, t) in enumerate(tables) if a == action and same(t, value)), len(tables))
            if number == len(tables):
                tables.append((action, value))
        needs[place] = Need(action, number, tuple(value.shape[1:]), value.dtype)
    return needs


def _is_read(
    model: Module, inputs: Inputs, batches: list[SubData], exact: dict[Place, Tensor], whole: Any, place: Place
) -> bool:
    """Whether a batch's rows depend on the halo rows of ``place``."""
    for batch in batches:
        for by in (float("nan"), 1e3, -1e3):
            try:
                _run(model, inputs, batch, _Trial(exact, batch, place, by), whole)
            except _Differs:
                return True
    return False


class _Note(Handler):
    """Notes places, and gives their halo rows some rows."""

    def __init__(self, batch: SubData) -> None:
        self.batch = batch
        self.met: set[Place] = set()

    def at(self, place: Place, value: Tensor) -> Tensor | None:
        self.met.add(place)
        return pad(value, self.batch.batch_size, self.batch.n_id.numel()) if place.kind == "output" else None


def _known_in_training(model: Module, batch: SubData, inputs: Inputs, exact: dict[Place, Tensor]) -> frozenset[Place]:
    """The places that are met in training."""
    note = _Note(batch)
    with suppress(Exception):  # which training itself will show
        call(model, inputs, batch, note)
    for place in note.met - set(exact):
        if place.kind in ("output", "hop"):
            raise _Differs(place, "is called in training and not in evaluation, so that it cannot be tried out")
    return frozenset(note.met)
