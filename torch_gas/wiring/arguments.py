"""The arguments of a model's ``forward``: taken from a graph by name, and fitted to a batch."""

from __future__ import annotations

import copy
import functools
import inspect
from collections.abc import Callable, Collection, Iterable, Sequence
from dataclasses import is_dataclass
from types import MethodType
from typing import Any

from torch import Tensor
from torch.nn import Module
from torch_geometric.data import Data
from torch_geometric.data.data import BaseData
from torch_geometric.nn import Sequential

from torch_gas.graph.adjacency import find_adjacency
from torch_gas.graph.formats import ADJACENCIES, format_of, is_adjacency, is_matrix
from torch_gas.graph.product import resized
from torch_gas.wiring.refusals import instead_of_wrapper

Arguments = tuple[tuple[Any, ...], dict[str, Any]]
Inputs = Callable[[Data], Arguments]

OTHER_EDGES = "batch.edge_index is None where data holds adj_t, which get_data() gives by default"
NO_EDGES = f"was called without edges. {OTHER_EDGES}: pass batch.adj_t then, or the whole batch, model(batch)"


def parameters(model: Module) -> list[inspect.Parameter]:
    """Those of ``forward``, without ``*args`` and ``**kwargs``."""
    if isinstance(model, Sequential):
        names = list(model.signature.param_dict)
        return [inspect.Parameter(name, inspect.Parameter.POSITIONAL_OR_KEYWORD) for name in names]
    kinds = (inspect.Parameter.VAR_POSITIONAL, inspect.Parameter.VAR_KEYWORD)
    return [p for p in _signature(model) if p.kind not in kinds]


def _signature(model: Module) -> Sequence[inspect.Parameter]:
    """All parameters of ``forward``."""
    method = getattr(model.forward, "__func__", None)  # one for all models of the class
    return tuple(inspect.signature(model.forward).parameters.values()) if method is None else _of_method(method)


@functools.lru_cache(maxsize=64)  # they are asked for several times a call
def _of_method(method: Callable[..., Any]) -> Sequence[inspect.Parameter]:
    return tuple(inspect.signature(MethodType(method, object())).parameters.values())


def takes_data(model: Module) -> bool:
    """Whether ``forward`` takes a graph, as in ``forward(data)``, and not its attributes."""
    given = parameters(model)
    required = [p for p in given if p.default is p.empty]
    if not given or len(required) > 1:
        return False
    annotation = str(given[0].annotation)
    return "Data" in annotation or (len(required) == 1 and given[0].name in ("data", "batch", "graph"))


def inputs_of(model: Module, data: Data) -> Arguments:
    """What ``forward`` takes from ``data``, by the names of its parameters.

    Raises:
        ValueError: if ``data`` lacks one.
    """
    if takes_data(model):
        return (data,), {}
    key, adj = find_adjacency(data)
    say = "scale(model, data, inputs=lambda batch: (batch.x, batch.edge_index, ...))"
    if not _signature(model):
        return (), {}
    if not parameters(model):
        more = instead_of_wrapper(model)
        raise ValueError(f"{type(model).__name__}.forward does not name what it takes; say it: {say}{more}")
    args: list[Any] = []
    kwargs: dict[str, Any] = {}
    first = {parameter.name for parameter in parameters(model)[:2]}  # of other names, they are what these are not
    usual = [] if "x" in first else [data.get("x")]
    usual += [] if first.intersection(ADJACENCIES) else [adj]
    for i, parameter in enumerate(parameters(model)):
        name, value = parameter.name, data.get(parameter.name)
        if name in ADJACENCIES or (name == "adj" and value is None):
            value = adj
        elif is_adjacency(value):
            raise ValueError(
                f"{type(model).__name__}.forward takes data.{name} beside data.{key}, and a batch is made of one adjacency; put "
                "the edges of both into one, told apart by an edge attribute"
            )
        elif value is None and parameter.default is not parameter.empty:
            continue
        elif value is None and i < 2 and usual:
            value = usual.pop(0)
        if value is None:
            raise ValueError(
                f"{type(model).__name__}.forward takes {name!r}, which data does not have; store it as data.{name}, or say what "
                f"forward takes: {say}"
                + (
                    "; where it pools each graph by it, scale the layers before that step alone"
                    if name == "batch"
                    else ""
                )
            )
        if len(args) == i and parameter.kind is not parameter.KEYWORD_ONLY:
            args.append(value)
        else:
            kwargs[name] = value
    return tuple(args), kwargs


def to_data(model: Module, args: tuple[Any, ...], kwargs: dict[str, Any], num_nodes: int) -> tuple[Data, Inputs]:
    """A graph that holds the arguments of a call of ``forward``, and how to get them from it."""
    if args and isinstance(args[0], Data):
        return args[0], lambda data: ((data,), {})
    given = names_of(model, args, kwargs)
    adjacent = [value for value in given.values() if is_adjacency(value)]
    found = {id(value): "adj_t" if is_matrix(value) else "edge_index" for value in adjacent}
    if not found:
        raise ValueError(f"{type(model).__name__} {NO_EDGES}")
    if len(found) > 1:
        raise ValueError(
            f"{type(model).__name__} was called with {len(found)} adjacencies, but a batch is made of one: pass that of the batch"
        )
    keys = {name: found.get(id(value), name.replace(" ", "_")) for name, value in given.items()}
    data = Data(num_nodes=num_nodes, **{key: given[name] for name, key in keys.items()})

    def inputs(batch: Data) -> Arguments:
        def fitted(value: Any) -> Any:
            name = next((name for name, own in given.items() if own is value), None)
            return None if name is None else batch[keys[name]]

        return tuple(map(fitted, args)), {name: fitted(value) for name, value in kwargs.items()}

    return data, inputs


def adjacencies(args: tuple[Any, ...], kwargs: dict[str, Any]) -> list[Any]:
    """The adjacencies among the arguments, those of a graph included."""
    return [value for value in _unpacked((*args, *kwargs.values())) if is_adjacency(value)]


def _unpacked(values: Iterable[Any]) -> list[Any]:
    """``values``, with what it holds in place of a graph."""
    return [held for value in values for held in (value.to_dict().values() if isinstance(value, Data) else [value])]


def names_of(model: Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> dict[str, Any]:
    """The arguments of a call of ``forward`` that are given, by name."""
    names = [p.name for p in parameters(model)]
    names += [f"argument {i}" for i in range(len(names), len(args))]
    given = dict(zip(names, args, strict=False)) | kwargs
    return {name: value for name, value in given.items() if value is not None}


def data_names(given: dict[str, Any]) -> set[str]:
    """Names of what was given of a graph, and not to choose among what ``forward`` may do."""
    return {
        name for name, value in given.items() if value is not None and not isinstance(value, (bool, int, float, str))
    }


def optional(model: Module) -> set[str]:
    """Names of the parameters of ``forward`` that have a default."""
    return {p.name for p in parameters(model) if p.default is not p.empty}


def without(model: Module, name: str, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Arguments:
    """The arguments of a call of ``forward``, without the optional one of this name."""
    known = parameters(model)
    args = (
        tuple(p.default if p.name == name else value for p, value in zip(known, args, strict=False))
        + args[len(known) :]
    )
    return args, {key: value for key, value in kwargs.items() if key != name}


def count_rows(given: dict[str, Any], adj: Any = None) -> int | None:
    """The number of nodes that the arguments are for; None where they do not tell.

    That is the number of rows of ``x``, or of the first tensor that has not an entry for each edge of ``adj``.
    """
    for value in given.values():
        if isinstance(value, Data):
            return value.num_nodes
    x = features_of(given, adj)
    return None if x is None else x.size(0)


def features_of(given: dict[str, Any], adj: Any) -> Tensor | None:
    """The features among the arguments, or in the graph that they are; None where there are none."""
    held = _held(given)
    sized = [held["x"]] if "x" in held else given.values()
    found = [x for x in sized if isinstance(x, Tensor) and x.dim() > 0 and not is_adjacency(x)]
    num_edges = None if adj is None else format_of(adj).num_edges(adj)
    return next((x for x in found if x.size(0) != num_edges), next(iter(found), None))


def by_attribute(given: dict[str, Any], adj: Any, known: Collection[str]) -> dict[str, Any]:
    """What is given beside adjacencies, by the names that it has in a graph with ``known`` attributes.

    An argument that is not named after one of them takes the features, ``"x"``.
    """
    held = {name: value for name, value in _held(given).items() if not is_adjacency(value)}
    x = features_of(given, adj)
    own = next((name for name, value in held.items() if value is x), "x")
    return held if own in known else held | {"x": x}


def _held(given: dict[str, Any]) -> dict[str, Any]:
    """The arguments, or what the graph among them holds."""
    return next((value.to_dict() for value in given.values() if isinstance(value, Data)), given)


def edge_tensors(given: dict[str, Any], adj: Any) -> list[Tensor]:
    """What is given for each edge, the values of a matrix included."""
    number, rows = format_of(adj).num_edges(adj), count_rows(given, adj)
    held = [
        each
        for name, value in given.items()
        for each in (value.to_dict() if isinstance(value, Data) else {name: value}).items()
    ]
    sized = [(name, value) for name, value in held if isinstance(value, Tensor) and value.dim() > 0]
    # Names tell where there are as many edges as nodes.
    return [x for name, x in sized if x is adj or (x.size(0) == number and (number != rows or "edge" in name))]


def square(value: Any, size: int) -> Any:
    """An argument with its adjacencies made [B+S, B+S], as the code of a model expects them."""
    if isinstance(value, Data):
        value = copy.copy(value)
        for key, held in value.to_dict().items():
            if is_adjacency(held):
                value[key] = resized(held, size, size)
        return value
    return resized(value, size, size)


def refuse_records(forward: str, leaves: Sequence[Any]) -> None:
    """Raises ValueError if what ``forward`` returns hides rows of nodes in objects, in which nobody looks for them."""
    for leaf in leaves:
        if is_dataclass(leaf) or isinstance(leaf, BaseData):
            raise ValueError(
                f"{forward} returns {type(leaf).__name__}, whose rows of nodes are not found; return tensors, alone or in a "
                "tuple, list, dict or NamedTuple, and make it of them outside"
            )
