"""Whether a call is on the graph whose embeddings the histories hold: with its edges, in its order, with its features.

Only such calls read and write histories. A whole graph needs none, so that any other one leaves them alone; a batch that is not
what they were computed from is an error. In training, edges and features may change from step to step, but not within one.
"""

from __future__ import annotations

import warnings
from collections.abc import Hashable
from typing import TYPE_CHECKING, Any
from weakref import WeakKeyDictionary

import torch
from torch import Tensor
from torch.nn import Parameter
from torch_geometric.nn import MessagePassing

from torch_gas._util.version import version
from torch_gas.batch.record import BatchRecord
from torch_gas.graph.formats import ADJACENCIES, format_of
from torch_gas.graph.key import graph_key
from torch_gas.graph.origin import Origin, difference
from torch_gas.graph.sample import Samples, agree, constants, difference_of, of_batch
from torch_gas.history import History

if TYPE_CHECKING:
    from torch_gas.session.call import Call
    from torch_gas.session.model import HistoryModel

_OWN = (
    "use a model with histories of its own, which may share the parameters: other = copy.deepcopy(model, {id(p): p for p in "
    "model.parameters()}), and history.reset_parameters() for each of other.histories"
)


_EDGES = frozenset(
    {"sources of edges", "destinations of edges", "columns of edges", "rows of edges"}
)  # names of samples
_WORDS = {"x": "features"}


class Passes:
    """What batches were given in the step under way, so that a second pass over one of them is noticed."""

    def __init__(self) -> None:
        self._parameters: list[Parameter] = []
        self._stamp: tuple[Any, ...] = ()  # changes from step to step, and between training and evaluation
        self._seen: dict[Hashable, tuple[Samples, Any]] = {}

    def differ(self, model: HistoryModel, batch: Hashable, samples: Samples, edges: Any) -> bool:
        """Whether ``batch`` had other samples or edges before; these are noted, and so must stay what they are."""
        modes = model.training, torch.is_grad_enabled()
        self._parameters = self._parameters or list(model.parameters())
        stamp = (*modes, *map(version, self._parameters))
        known = self._seen.get(batch) if stamp == self._stamp else None
        if known is not None:
            if known[1] == edges and all(
                _same(rows, samples.get(name)) is not False for name, rows in known[0].items()
            ):
                return False
            parameters = list(model.parameters())
            if len(parameters) == len(self._parameters) and all(map(_is, parameters, self._parameters)):
                return True
            self._parameters = parameters  # others than before, which makes it another step
            stamp = (*modes, *map(version, parameters))
        if stamp != self._stamp or not all(modes):  # evaluation has no steps, and no end
            self._seen.clear()
        self._stamp, self._seen[batch] = stamp, (samples, edges)
        return False


def _is(one: object, other: object) -> bool:
    return one is other


# By the first history: models that share theirs, as shallow copies do, push to the same rows.
_passes: WeakKeyDictionary[History, Passes] = WeakKeyDictionary()


def passes_of(model: HistoryModel) -> Passes:
    """What batches the histories of a model were given in the step under way."""
    first = model.histories[0]
    found = _passes.get(first)
    if found is None:
        found = _passes[first] = Passes()
    return found


def forget_passes(model: HistoryModel) -> None:
    """Begins another step."""
    for history in model.histories[:1]:
        _passes.pop(history, None)


def compare_graph(call: Call, given: dict[str, Any], adj: Any) -> None:
    """Finds out whether a whole graph is the model's own, and what the histories are to note of it."""
    model, histories = call.model, list(call.model.histories)
    if adj is None or not call.on_own_graph or not histories:
        return
    if any(isinstance(module, MessagePassing) and module.explain for module in model.modules()):
        call.leave_alone()
        return
    origin, training, key = histories[0].origin, model.training, graph_key(adj, model.num_nodes)
    given = {origin.names.get(name, name): value for name, value in given.items()}
    given |= {name: format_of(adj).values(adj) for name in ADJACENCIES}
    known = [history.origin for history in histories if history.origin != Origin()]
    other_edges = any(difference(each.key, key) for each in known)
    of_batches = origin.as_given is not None
    is_unknown = model.check and any(history.origin.is_loaded and not history.origin.key for history in histories)
    other_features = not _varies(origin) and bool(difference_of(origin.features, given))
    if ((other_edges or is_unknown) and not training) or (other_features and (of_batches or not training)):
        call.leave_alone()
        return
    features = constants(given)
    if training and passes_of(model).differ(model, None, features, key):
        call.leave_alone()
        return
    if other_edges or not all(history.origin.key for history in histories):
        call.origin = Origin(key, features=features, is_tentative=not training)
    elif training:
        for history in histories:
            history.origin.features, history.origin.is_tentative = features, False


def _varies(origin: Origin) -> bool:
    """Whether training was on other features than the loader's."""
    return origin.as_given is not None and origin.as_given.get("x") is False


def meet_graph(model: HistoryModel, record: BatchRecord) -> None:
    """Forgets what the model was evaluated on before its first batch, where that was another graph."""
    histories = list(model.histories)
    origin = histories[0].origin
    if difference(origin.key, record.key) or _other(origin.features, record.features):
        for history in histories:
            history.reset_parameters()
    for history in histories:
        history.origin.is_tentative = False


def _other(known: Samples, samples: Samples) -> list[str]:
    """The names under which two graphs have other features or weights."""
    return [name for name in known.keys() & samples.keys() if not agree(known[name], samples[name])]


def _same(known: Tensor | None, rows: Tensor | None) -> bool | None:
    """Whether two samples may be of the same rows; None for another shape, which layers refuse themselves."""
    return None if known is None or rows is None or known.shape != rows.shape else agree(known, rows)


def check_batch(call: Call, record: BatchRecord, origin: Origin, given: dict[str, Any], adj: Any) -> None:
    """Raises where a batch is not what the histories were computed from; ``origin`` is that of the first."""
    model = call.model
    if record.features is not origin.features:
        _compare_features(model, origin, record)
    num_edges = record.num_edges if adj is None else format_of(adj).num_edges(adj)
    as_given, constant = {"edges": num_edges == record.num_edges}, {}  # constant: what a second pass must have as well
    for name, rows in of_batch(given, adj, num_edges, record.batch_size, record.num_rows).items():
        learns, same, known = name in given and given[name].requires_grad, None, None
        if not rows.is_cuda or (learns and not model.training):  # else the host would wait, and for next to nothing
            known = record.samples.get(name)
            if known is None:
                known = _under_another_name(name, rows, record, origin)
            same = _same(known, rows)
            key = "edges" if name in _EDGES else name
            if same is not None:
                as_given[key] = as_given.get(key, True) and same
        if not learns and (name == "x" or not rows.is_cuda):
            constant[name] = known if same and known is not None else rows.clone()
    if origin.as_given is None or not as_given.items() <= origin.as_given.items():
        _compare_given(model, origin, as_given)
    if passes_of(model).differ(
        model, (record.digest, record.batch_size, record.epoch, record.index), constant, num_edges
    ):
        raise ValueError(
            f"{model._name}: this batch had other features or edges in an earlier call of this step, whose embeddings this one "
            f"would read and overwrite. For a second view or a corrupted pass, {_OWN}"
        )


def _under_another_name(name: str, rows: Tensor, record: BatchRecord, origin: Origin) -> Tensor | None:
    """The sample of what the argument ``name`` took when it was given, which ``inputs`` may take from any attribute."""
    if name not in origin.names:
        found = next((own for own, known in record.samples.items() if _same(known, rows)), None)
        if found is None:
            return None
        origin.names = {**origin.names, name: found}
    return record.samples.get(origin.names[name])


def _compare_features(model: HistoryModel, origin: Origin, record: BatchRecord) -> None:
    taken = {"x", *ADJACENCIES, *(origin.as_given or ()), *origin.names.values()}  # others are labels, say
    names = ", ".join(f"data.{name}" for name in sorted(_other(origin.features, record.features)) if name in taken)
    if names and model.training:
        warnings.warn(
            f"{model._name}: the loader's {names} changed since the histories were computed; halo rows are of before until they "
            "are pushed again. Begin anew after such a change, history.reset_parameters() for each of model.histories and "
            "model.eval()(loader=...), or make it before training",
            stacklevel=2,
        )
    elif names and not _varies(origin):
        raise ValueError(
            f"{model._name}: the histories hold embeddings of another {names} than the loader's; evaluate with that of training, "
            f"or {_OWN}"
        )
    origin.features = record.features


def _compare_given(model: HistoryModel, origin: Origin, as_given: dict[str, bool]) -> None:
    known = origin.as_given or {}
    for name, now in as_given.items():
        if known.get(name) and not now and not model.training:
            what, where = _WORDS.get(name, name), " in its adjacency" if name == "edges" else ""
            raise ValueError(
                f"{model._name}: the {what} of this batch are not those that the loader gave{where}, of which the histories hold "
                f"embeddings; batches in evaluation need the same, in their order. For other {what} evaluate the whole graph, "
                f"which leaves histories alone, or {_OWN}"
            )
    origin.as_given = known | {name: now and known.get(name, True) for name, now in as_given.items()}
