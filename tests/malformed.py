"""Rules that make malformed calls from a valid one, by the annotation and the value of each argument."""

from __future__ import annotations

import inspect
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
import torch
from surface import Call
from torch import Tensor
from torch_geometric.data import Data

from torch_gas import FileTier, History, Partition, SubData, SubgraphLoader, _core
from torch_gas.extensions.refresh import Policy, Refresh
from torch_gas.extensions.regularization import LocalPerturbation
from torch_gas.session.base import ScalableGNN
from torch_gas.session.extension import Extension
from torch_gas.session.model import HistoryModel


class Malformed(NamedTuple):
    """One argument of a call, replaced by what it must not be."""

    argument: str
    kind: str
    value: Any


# What an annotation admits, by the name of a type. Of the names "Any" and "Callable", rules further below know more.
ADMITTED: dict[str, tuple[type, ...]] = {
    "None": (type(None),),
    "bool": (bool,),
    "int": (int,),
    "float": (float, int),
    "str": (str,),
    "Places": (str,),
    "IO": (str,),
    "os.PathLike": (),
    "Tensor": (Tensor,),
    "torch.dtype": (torch.dtype,),
    "torch.device": (torch.device,),
    "Sequence": (Sequence,),
    "Mapping": (Mapping,),
    "Callable": (Callable,),  # type: ignore[arg-type]
    "Loss": (Callable,),  # type: ignore[arg-type]
    "Data": (Data,),
    "DataOrTensor": (Data, Tensor),
    "Partition": (Partition,),
    "Module": (torch.nn.Module,),
    "HistoryModel": (HistoryModel,),
    "Extension": (Extension,),
    "ScalableGNN": (ScalableGNN,),
    "_core.Table": (Tensor, _core.FileRows),
    "Table": (Tensor, _core.FileRows),
    "FileRows": (_core.FileRows,),
    "FileTier": (FileTier,),
    "Sync": (str,),
    "Unit": (str,),
    "Automatic": (str,),
    "Schedule": (str,),
    "GradScaler": (torch.amp.GradScaler,),
    "np.ndarray": (np.ndarray,),
    "History": (History,),
    "SubData": (SubData,),
    "SubgraphLoader": (SubgraphLoader,),
    "LocalPerturbation": (LocalPerturbation,),
    "Limits": (tuple,),
    "Policy": (Policy,),
    "Refresh": (Refresh,),
    "ReductionsGradient": (_core.ReductionsGradient,),
    "Sparse": (_core.Sparse,),
    "Staging": (_core.Staging,),
    "object": (object,),
    "Any": (object,),
}


class Alien:
    """Of no type that anybody asks for."""

    def __repr__(self) -> str:
        return "Alien()"


ALIENS = {
    "None": None, "an object": Alien(), "a string": "nonsense", "a fraction": 1.5, "a dictionary": {"a": Alien()},
    "bytes": b"nonsense", "a complex number": 1j, "a flag": True, "a list": [Alien()],
}  # fmt: skip

IDS = {"n_id", "index", "halo", "src", "dst", "col"}  # tensors of ids of nodes
DISTINCT = {"n_id", "perm"}
STARTS, LENGTHS, POINTERS = {"offset", "start"}, {"count"}, {"ptr", "rowptr"}


def admitted(annotation: Any) -> tuple[type, ...]:
    """The types that an annotation names.

    Raises:
        KeyError: if it names one that no rule knows; add it to ``ADMITTED``.
    """
    text = annotation if isinstance(annotation, str) else getattr(annotation, "__name__", str(annotation))
    names = re.sub(r"\[[^\[\]]*\]", "", re.sub(r"\[[^\[\]]*\]", "", re.sub(r"\[[^\[\]]*\]", "", text))).split("|")
    return tuple(kind for name in names for kind in ADMITTED[name.strip()])


def malformed(call: Call) -> Iterator[Malformed]:
    """All malformed variants of ``call`` with one argument replaced."""
    parameters = inspect.signature(call.function).parameters
    for name, value in call.arguments.items():
        types = admitted(parameters[name].annotation)
        for kind, alien in ALIENS.items():
            if not _fits(alien, types):
                yield Malformed(name, kind, alien)
        for kind, wrong in _variants(name, value, types):
            yield Malformed(name, kind, wrong)


def _fits(value: Any, types: tuple[type, ...]) -> bool:
    if isinstance(value, bool):
        return bool in types or object in types
    return isinstance(value, types)


def _variants(name: str, value: Any, types: tuple[type, ...]) -> Iterator[tuple[str, Any]]:
    """What has the right type, or nearly so, and a value that means nothing."""
    if int in types and float not in types:
        yield from (("negative", -1), ("beyond 64 bits", 2**70))
    if float in types:
        yield from (("not a number", float("nan")), ("negative", -0.5))
    if str in types or torch.device in types:
        yield "an unknown name", "nonsense"
    if isinstance(value, Tensor):
        yield from _tensors(name, value)
    if isinstance(value, Data):
        yield from _graphs(value)
    if name in ("adj", "adj_t"):
        yield from _adjacencies(value)


def _tensors(name: str, value: Tensor) -> Iterator[tuple[str, Any]]:
    yield "a list of its numbers", value.tolist()
    yield "an array", value.detach().numpy()
    yield "complex", value.to(torch.complex64)
    yield "sparse", value.to_sparse()
    yield "without memory", value.to("meta")
    yield "a number", value.new_zeros(())
    yield "one dimension more", value.unsqueeze(0).clone()
    yield "one row less", value[:-1].clone()
    yield "one row more", torch.cat([value, value[-1:]])
    if value.dim() == 2:
        yield "one column less", value[:, :-1].clone()
        yield "flat", value.flatten().clone()
    if value.is_floating_point():
        yield "integers", value.to(torch.int64)
    else:
        yield "fractions", value.to(torch.float32)
        yield (
            "flags" if value.dtype != torch.bool else "numbers",
            value.to(torch.bool if value.dtype != torch.bool else torch.int64),
        )

    def with_last(number: int) -> Tensor:
        changed = value.clone()
        changed[-1] = number
        return changed

    if value.is_floating_point():
        return
    if name in IDS | STARTS | {"perm"}:
        yield from (("a negative id", with_last(-1)), ("an id past the end", with_last(10**6)))
        yield "an id beyond 32 bits", with_last(2**40)
    if name in LENGTHS:
        yield from (("a negative length", with_last(-1)), ("a huge length", with_last(2**62)))
    if name in DISTINCT:
        yield "an id twice", with_last(int(value[0]))
    if name in POINTERS:
        yield from (("descending", value.flip(0)), ("from 1", value + 1), ("too far", with_last(10**6)))


def _graphs(data: Data) -> Iterator[tuple[str, Any]]:
    edges = data.edge_index

    def changed(**values: Any) -> Data:
        copy = data.clone()
        for key, value in values.items():
            setattr(copy, key, value)
        return copy

    yield "no edges", changed(edge_index=None)
    yield "two adjacencies", changed(adj_t=edges[:, 1:])
    yield "no nodes", Data(edge_index=edges[:, :0], num_nodes=0)
    for kind, adj in _adjacencies(edges):
        if kind != "None":
            yield f"edge_index: {kind}", changed(edge_index=adj)


def _adjacencies(edges: Tensor) -> Iterator[tuple[str, Any]]:
    def with_id(number: int) -> Tensor:
        copy = edges.clone()
        copy[0, -1] = number
        return copy

    yield from (("None", None), ("a list", edges.tolist()), ("fractions", edges.float()), ("flags", edges > 2))
    yield from (
        ("three rows", torch.cat([edges, edges[:1]])),
        ("one row", edges[0]),
        ("a COO matrix", torch.eye(4).to_sparse()),
    )
    yield from (("a negative id", with_id(-1)), ("an id past the end", with_id(10**6)))
    yield "an id beyond 32 bits", with_id(2**40)
