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
from torch_gas.graph.formats import format_of
from torch_gas.graph.key import graph_key
from torch_gas.graph.origin import Origin, difference
from torch_gas.graph.sample import Samples, agree, constants, difference_of, sample
from torch_gas.history import History

if TYPE_CHECKING:
    from torch_gas.session.call import Call
    from torch_gas.session.model import HistoryModel

_OWN = (
    "use a model with histories of its own, which may share the parameters: other = copy.deepcopy(model, {id(p): p for p in "
    "model.parameters()}), and history.reset_parameters() for each of other.histories"
)


class Passes:
    """What batches were given in the step under way, so that a second pass over one of them is noticed."""

    def __init__(self) -> None:
        self._parameters: list[Parameter] = []
        self._stamp: tuple[Any, ...] = ()  # changes from step to step, and between training and evaluation
        self._seen: dict[Hashable, tuple[Tensor | None, Any]] = {}

    def differ(self, model: HistoryModel, batch: Hashable, rows: Tensor | None, edges: Any) -> bool:
        """Whether ``batch`` had other features or edges before; these are noted, and so must stay what they are."""
        modes = model.training, torch.is_grad_enabled()
        self._parameters = self._parameters or list(model.parameters())
        stamp = (*modes, *map(version, self._parameters))
        known = self._seen.get(batch) if stamp == self._stamp else None
        if known is not None:
            before, edges_before = known
            # Layers refuse another shape themselves.
            same = before is None or rows is None or before.shape != rows.shape or agree(before, rows)
            if same and edges_before == edges:
                return False
            parameters = list(model.parameters())
            if len(parameters) == len(self._parameters) and all(map(_is, parameters, self._parameters)):
                return True
            self._parameters = parameters  # others than before, which makes it another step
            stamp = (*modes, *map(version, parameters))
        if stamp != self._stamp or not all(modes):  # evaluation has no steps, and no end
            self._seen.clear()
        self._stamp, self._seen[batch] = stamp, (rows, edges)
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
    given = {key: format_of(adj).values(adj) for key in ("edge_index", "adj_t")} | given
    origin, training, key = histories[0].origin, model.training, graph_key(adj, model.num_nodes)
    known = [history.origin for history in histories if history.origin != Origin()]
    other_edges = any(difference(each.key, key) for each in known)
    of_batches = origin.as_given is not None
    is_unknown = model.check and any(not each.origin.key and bool((each.pushed_at >= 0).any()) for each in histories)
    other_features = not _varies(origin) and bool(difference_of(origin.features, given))
    if ((other_edges or is_unknown) and not training) or (other_features and (of_batches or not training)):
        call.leave_alone()
        return
    features = constants(given)
    if training and passes_of(model).differ(model, None, features.get("x"), key):
        call.leave_alone()
        return
    if other_edges or not all(history.origin.key for history in histories):
        call.origin = Origin(key, features=features, is_tentative=not training)
    elif training:
        for history in histories:
            history.origin.features, history.origin.is_tentative = features, False


def _varies(origin: Origin) -> bool:
    """Whether training was on other features than the loader's."""
    return origin.as_given is not None and origin.as_given[1] is False


def meet_graph(model: HistoryModel, record: BatchRecord) -> None:
    """Forgets what the model was evaluated on before its first batch, where that was another graph."""
    histories = list(model.histories)
    origin = histories[0].origin
    if difference(origin.key, record.key) or _other(origin.features, record.features):
        for history in histories:
            history.reset_parameters()
    for history in histories:
        history.origin.is_tentative = False


def _other(known: Samples, features: Samples) -> list[str]:
    """The names under which two graphs have other features or weights."""
    return [name for name in known.keys() & features.keys() if not agree(known[name], features[name])]


def check_batch(call: Call, record: BatchRecord, origin: Origin, x: Any, adj: Any) -> None:
    """Raises where a batch is not what the histories were computed from; ``origin`` is that of the first."""
    model, rows = call.model, sample(x)
    learns = rows is not None and x.requires_grad
    same_rows = None
    waits = rows is not None and rows.is_cuda and (model.training or not learns)  # the host, and for next to nothing
    if rows is not None and record.rows is not None and rows.shape == record.rows.shape and not waits:
        same_rows = agree(record.rows, rows)
    num_edges = record.num_edges if adj is None else format_of(adj).num_edges(adj)
    if record.features is not origin.features:
        _compare_features(model, origin, record)
    given = (num_edges == record.num_edges, same_rows)
    if given != origin.as_given:
        _compare_given(model, origin, given)
    if rows is not None:
        rows = None if learns else record.rows if same_rows else rows.clone()
    if passes_of(model).differ(model, (record.digest, record.batch_size, record.epoch, record.index), rows, num_edges):
        raise ValueError(
            f"{model._name}: this batch had other features or edges in an earlier call of this step, whose embeddings this one "
            f"would read and overwrite. For a second view or a corrupted pass, {_OWN}"
        )


def _compare_features(model: HistoryModel, origin: Origin, record: BatchRecord) -> None:
    names = ", ".join(f"data.{name}" for name in sorted(_other(origin.features, record.features)))
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


def _compare_given(model: HistoryModel, origin: Origin, given: tuple[bool, bool | None]) -> None:
    known = origin.as_given or (None, None)
    merged = []
    for what, before, now in zip(("edges", "features"), known, given, strict=True):
        if before and now is False and not model.training:
            raise ValueError(
                f"{model._name}: the {what} of this batch are not those that the loader gave, of which the histories hold "
                f"embeddings; batches in evaluation need the same. For other {what} evaluate the whole graph, which leaves "
                f"histories alone, or {_OWN}"
            )
        merged.append(before if now is None or before is False or (before and not model.training) else now)
    origin.as_given = (merged[0], merged[1])
