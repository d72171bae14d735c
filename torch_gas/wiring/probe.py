"""A trial run of a model on a graph of a few nodes: which places need what, and whether batches are then exact.

The model runs on the whole small graph, which gives the exact values of all places. It then runs on batches of it,
with the halo rows of each place taken from these. Its rows must equal the exact ones at each place, else the model is
refused and the layer is named. Last, the halo rows of one place at a time are spoiled: where a batch row changes, the
place needs a table.
"""

from __future__ import annotations

import copy
from collections.abc import Collection, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor
from torch.nn import Module
from torch.nn.parameter import is_lazy
from torch.utils import _pytree as pytree
from torch_geometric.data import Data

from torch_gas.adjacency import find_adjacency
from torch_gas.loader import SubData
from torch_gas.wiring.arguments import Inputs, is_adjacency, num_edges, square
from torch_gas.wiring.batch import pad
from torch_gas.wiring.places import Handler, Place, wired
from torch_gas.wiring.small import NUM_EDGES, NUM_NODES, batches_of, small_graph, widen

_NAN = float("nan")

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


class _Differs(Exception):
    """A batch's rows are not those of the whole graph."""

    def __init__(self, place: Place | None, how: str = "gives other rows than on the whole graph") -> None:
        self.place, self.how = place, how


class _Record(Handler):
    """Notes the exact values of all places, and the hops that leave edges out."""

    def __init__(self) -> None:
        self.values: dict[Place, Tensor] = {}
        self.choosy: list[Place] = []

    def passes(self, place: Place, adj: Any) -> None:
        if is_adjacency(adj) and num_edges(adj) < NUM_EDGES:
            self.choosy.append(place)

    def at(self, place: Place, value: Tensor) -> None:
        self.values[place] = value.detach().clone()


class _Trial(Handler):
    """Gives exact rows to the halo, but for one place that is spoiled. Layers before that one are not computed."""

    def __init__(
        self,
        exact: dict[Place, Tensor],
        batch: SubData,
        spoiled: Place | None = None,
        by: float = 0.0,
        known: Collection[Place] = (),
    ) -> None:
        self.exact, self.batch, self.spoiled, self.by, self.known = exact, batch, spoiled, by, known
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
                if self.spoiled is not None and place not in self.known:
                    raise _Differs(place)
                self.partial.add(place)
            return exact.clone()
        batch_size, num_rows = self.batch.batch_size, self.batch.n_id.numel()
        if exact.size(0) != NUM_NODES or value.size(0) not in (batch_size, num_rows):
            return None  # not a row for each node; whoever reads it is compared
        want = exact[self.batch.n_id.to(exact.device)].clone()
        rows = value[:batch_size]
        if not same(rows, want[:batch_size]):
            tried = self.spoiled is None or place in self.known  # else it differs by what was spoiled
            if place.kind != "reduction" or value.size(0) == batch_size or not tried:
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
    tolerance = torch.finfo(left.dtype).eps ** 0.45  # a standard deviation takes the root of a difference that cancels
    left, right = left.double(), right.double()
    largest = right.nan_to_num(posinf=0, neginf=0).abs()
    largest = largest.amax(dim=0) if right.dim() > 1 else largest.max()  # of each column, as their units may differ
    scale = torch.maximum(largest, largest.median()) + 1e-30
    close = (left - right).abs() <= tolerance * (scale + right.abs())
    return bool((close | (left == right) | (left.isnan() & right.isnan())).all())


def spoil(halo: Tensor, by: float) -> Tensor:
    """Other rows than the exact ones."""
    if not halo.is_floating_point():
        return halo + 1 + int(by == by and abs(by))
    generator = torch.Generator().manual_seed(0)  # which leaves the model's random numbers alone
    return halo + by * (1 + torch.rand(halo.shape, dtype=torch.float32, generator=generator).to(halo))


def find(model: Module, data: Data, inputs: Inputs) -> Found:
    """What ``model`` needs on batches of a graph like ``data``.

    Raises:
        ValueError: if batches cannot be made exact; the error names the layer.
    """
    small = small_graph(copy.copy(data).cpu())
    _materialize(model, small, inputs)
    with undisturbed(model), _varied(model):
        exact, choosy, whole = _record(model, small, inputs)
        structural = _structural(model, small, inputs, exact)
        failures = []
        for neighbors, closed in (("in", True), ("in", False), ("both", False)):
            runs = _Runs(model, inputs, small, batches_of(small, neighbors), exact, choosy, whole, closed)
            try:
                needs = runs.needs(structural)
                known = runs.known_in_training(needs)
                break
            except _Differs as failure:
                failures.append(failure)
        else:
            telling = next((each for each in failures if each.__cause__ is None), failures[0])
            raise ValueError(_explain(model, telling)) from telling
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


@contextmanager
def undisturbed(model: Module) -> Iterator[None]:
    """Leaves buffers, modes, other attributes and random numbers as they were."""
    held = {key: value.clone() for key, value in model.named_buffers() if not is_lazy(value)}
    attributes = [(vars(module), _plain(module)) for module in model.modules()]
    devices = {value.device for value in _tensors(model).values() if value.is_cuda}
    with torch.random.fork_rng(devices=list(devices)), torch.no_grad():
        torch.manual_seed(0)
        try:
            model.eval()
            yield
        finally:
            for key, value in model.named_buffers():
                if key in held:
                    value.data.copy_(held[key])  # a backward pass may be waiting for the buffer
            for now, before in attributes:
                for key in now.keys() - before.keys() - _OF_MODULES:
                    del now[key]
                for key, (value, content) in before.items():
                    if content is not None:
                        value.clear()
                        value.extend(content) if isinstance(value, list) else value.update(content)
                    now[key] = value


_OF_MODULES = vars(torch.nn.Module()).keys() - {"training"}


def _plain(module: Module) -> dict[str, tuple[Any, Any]]:
    """What a module holds beside its registered parts, such as a cache or a counter, and the content of its containers."""
    return {
        key: (value, copy.copy(value) if isinstance(value, (list, dict, set)) else None)
        for key, value in vars(module).items()
        if key not in _OF_MODULES
    }


@contextmanager
def _varied(model: Module) -> Iterator[None]:
    """Gives parameters and buffers other values, so that nothing is hidden by a gate that is zero at first."""
    held = [(value, value.data) for value in _tensors(model).values() if value.is_floating_point()]
    parameters = {id(value) for value in model.parameters()}
    try:
        for value, before in held:  # not in place, because a backward pass may be waiting for them
            noise = torch.randn_like(before)
            value.data = before + 0.1 * noise if id(value) in parameters else before * (1 + 0.2 * noise.abs())
        yield
    finally:
        for value, before in held:
            value.data = before


def _materialize(model: Module, data: Data, inputs: Inputs) -> None:
    """Gives lazy parameters their shapes, with the user's random numbers."""
    if any(map(is_lazy, [*model.parameters(), *model.buffers()])):
        args, kwargs = inputs(_to_model(model, data))
        with torch.no_grad():
            model(*args, **kwargs)


def _tensors(model: Module) -> dict[str, Tensor]:
    named = {**dict(model.named_parameters()), **dict(model.named_buffers())}
    return {key: value for key, value in named.items() if not is_lazy(value)}


def _to_model(model: Module, data: Data) -> Data:
    parameter = next(iter(_tensors(model).values()), None)
    return data if parameter is None else copy.copy(data).to(parameter.device)


def _record(model: Module, data: Data, inputs: Inputs) -> tuple[dict[Place, Tensor], list[Place], Any]:
    record = _Record()
    args, kwargs = inputs(_to_model(model, data))
    with wired(model, record, NUM_NODES, NUM_NODES, True):
        try:
            out = model(*args, **kwargs)
        except Exception as error:
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
    varied = copy.copy(data)
    key, _ = find_adjacency(data)
    for name, value in data.to_dict().items():
        if name != key and isinstance(value, Tensor) and data.is_node_attr(name):
            dim = data.__cat_dim__(name, value)
            varied[name] = value.index_select(dim, torch.randperm(value.size(dim)))
            if value.is_floating_point():
                varied[name] += 0.5 * torch.randn_like(value)
    try:
        with _varied(model):
            other, _, _ = _record(model, varied, inputs)
    except ValueError:  # the model takes no such values
        return set()
    return {
        place
        for place, value in exact.items()
        if place.kind in ("reduction", "maximum") and place in other and torch.equal(other[place], value)
    }


def call(model: Module, inputs: Inputs, batch: SubData, handler: Handler, closed: bool) -> Any:
    """Runs a batch with ``handler`` at its places; the result has B + S rows."""
    num_rows = batch.n_id.numel()
    args, kwargs = inputs(_to_model(model, batch.data))
    args = tuple(square(value, num_rows) for value in args)
    kwargs = {key: square(value, num_rows) for key, value in kwargs.items()}
    with wired(model, handler, batch.batch_size, num_rows, closed):
        return model(*args, **kwargs)


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

    def __post_init__(self) -> None:
        self.alone: dict[int, list[Any]] = {}  # by batch: the outputs of the run with exact halo rows

    def run(self, trial: _Trial) -> list[Any]:
        """The outputs on a batch; raises _Differs where rows are not those of the whole graph."""
        batch = trial.batch
        try:
            out = call(self.model, self.inputs, batch, trial, self.closed)
        except _Differs:
            raise
        except Exception as error:
            raise _Differs(None, f"fails ({type(error).__name__}: {error})") from error
        leaves, spec = pytree.tree_flatten(out)
        wanted, spec_of_whole = pytree.tree_flatten(self.whole)
        if spec != spec_of_whole:
            raise _Differs(None, "has another structure than on the whole graph")
        ids, num_rows = batch.n_id[: batch.batch_size], batch.n_id.numel()
        for leaf, want in zip(leaves, wanted, strict=True):
            if _per_node(want) and (
                leaf.size(0) != num_rows or not same(leaf[: batch.batch_size], want[ids.to(want.device)])
            ):
                raise _Differs(None)
        for leaf, want, before in zip(leaves, wanted, self.alone.get(id(batch), ()), strict=False):
            if isinstance(leaf, Tensor) and not _per_node(want) and not same(leaf, before):
                raise _Differs(None)
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
                    raise _Differs(place, "depends on parameters and on more than the edges into a node")
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
                    raise _Differs(
                        place, "gives no floating-point numbers, which is what a history holds, and is read on"
                    )
            else:
                number = next((i for i, (a, t) in enumerate(tables) if a == action and same(t, value)), len(tables))
                if number == len(tables):
                    tables.append((action, value))
            needs[place] = Need(action, number, tuple(value.shape[1:]), value.dtype)
        return needs

    def check(self) -> tuple[dict[Place, Action], set[Place]]:
        """How to get what needs the whole graph, and the places with halo rows; raises _Differs if a batch is not exact."""
        trials = [_Trial(self.exact, batch) for batch in self.batches]
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
                raise _Differs(place)
        first = self.batches[0]
        wide = self.run(_Trial(self.exact, widen(first, self.small)))
        for leaf, other, want in zip(self.alone[id(first)], wide, pytree.tree_leaves(self.whole), strict=True):
            if isinstance(leaf, Tensor) and not _per_node(want) and not same(leaf, other):
                raise _Differs(
                    None,
                    "has a value without a row for each node that counts the rows of the halo; compute such a value (a loss) "
                    "from the rows that the scaled model returns",
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
            for by in (_NAN,) if last else (_NAN, 1e3, -1e3):
                try:
                    self.run(_Trial(self.exact, batch, place, by, partial))
                except _Differs:
                    return True
        return False

    def known_in_training(self, needs: dict[Place, Need]) -> frozenset[Place]:
        """The places that are met in training; raises _Differs where training reads what evaluation does not."""
        batch = self.batches[0]
        met, rows = self._train(batch, None)
        for place in met - set(self.exact):
            if place.kind in ("output", "hop"):
                raise _Differs(place, "is called in training and not in evaluation, so that it cannot be tried out")
        for place in met & set(self.exact) - set(needs):
            if place.kind == "output" and not all(map(same, rows, self._train(batch, place)[1])):
                raise _Differs(place, "is read by further layers in training and not in evaluation; read it in both")
        return frozenset(met)

    def _train(self, batch: SubData, spoiled: Place | None) -> tuple[set[Place], list[Tensor]]:
        """The places that are met, and the batch's rows of the output."""
        note = _Note(self.exact, batch, spoiled)
        with undisturbed(self.model):  # the same random numbers and buffers in each run
            self.model.train()
            try:
                out = call(self.model, self.inputs, batch, note, self.closed)
            except Exception:  # which training itself will show
                return note.met, []
        leaves = [leaf for leaf in pytree.tree_leaves(out) if isinstance(leaf, Tensor) and leaf.dim() > 0]
        return note.met, [leaf[: batch.batch_size] for leaf in leaves if leaf.size(0) == batch.n_id.numel()]


class _Note(Handler):
    """Notes places, and gives exact rows to the halo of outputs, but for one place that is spoiled."""

    def __init__(self, exact: dict[Place, Tensor], batch: SubData, spoiled: Place | None) -> None:
        self.exact, self.batch, self.spoiled = exact, batch, spoiled
        self.met: set[Place] = set()

    def at(self, place: Place, value: Tensor) -> Tensor | None:
        self.met.add(place)
        batch_size, exact = self.batch.batch_size, self.exact.get(place)
        if place.kind != "output" or value.size(0) != batch_size:
            return None
        if exact is None or exact.shape[1:] != value.shape[1:]:
            return pad(value, batch_size, self.batch.n_id.numel())
        halo = exact[self.batch.n_id[batch_size:].to(exact.device)].to(value.dtype)
        return torch.cat([value, spoil(halo, _NAN) if place == self.spoiled else halo])
