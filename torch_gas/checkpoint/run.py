"""A run of training in one file: model, histories, whatever else has a state, plain values, and all random numbers."""

from __future__ import annotations

import copy
import io
import pickle
from collections.abc import Callable, Mapping
from functools import partial
from typing import Any, NamedTuple, Protocol, TypeGuard, cast

import torch
from torch import Tensor
from torch.nn import Module
from torch.utils import _pytree as pytree

from torch_gas import _core
from torch_gas._util.moved import new_path
from torch_gas._util.replace import Path
from torch_gas.checkpoint.file import Saved, write
from torch_gas.checkpoint.header import Damaged
from torch_gas.checkpoint.histories import (
    all_or_nothing,
    check_histories,
    forget_histories,
    read_histories,
    tables_of,
    texts_of,
)
from torch_gas.checkpoint.rng import check_random_states, random_states, set_random_states

# What the names of a file's tensors begin with. All but those of the model hold the bytes of torch.save.
_MODEL, _OBJECT, _VALUE, _EXTENSION = "model.", "object.", "value.", "extension."
_EXTRA, _RANDOM = "extra_state", "random"


class Stateful(Protocol):
    """Whatever has a state: optimisers, schedulers, loaders ..."""

    def state_dict(self) -> Any:
        """The state."""

    def load_state_dict(self, state: Any, /) -> Any:
        """Goes on from ``state``."""


def save(path: Path, /, *, model: Module, **state: Any) -> None:
    """Writes one file from which a run goes on as if it had never stopped; docs/checkpoints.md tells when it does so bit for bit.

    The file holds parameters and buffers of the model, all its histories with their ages and the key of their graph, the states
    of its extensions and of each object in ``state`` that has ``state_dict`` and ``load_state_dict``, the plain values there, and
    the random states of torch (on each CUDA device as well), numpy and Python. It takes the
    place of ``path`` as a whole, once it is on the disk; after an error or a crash, what was there still is. Tables are written a
    few megabytes at a time.

    Args:
        path: of the file, in the safetensors format.
        model: the model, compiled or not.
        **state: optimiser, scheduler, scaler, loader; and values such as ``epoch=3``: numbers, texts,
            tensors, and lists and dictionaries of them.

    Raises:
        TypeError: if something in ``state`` cannot be read back by ``torch.load(weights_only=True)``.
        OSError: if the file cannot be written.

    Example:
        >>> import tempfile, torch
        >>> from torch_gas import checkpoint
        >>> from torch_gas.models import GCN
        >>> model = GCN(num_nodes=100, in_channels=8, hidden_channels=16, out_channels=3, num_layers=2)
        >>> optimizer = torch.optim.Adam(model.parameters())
        >>> folder = tempfile.TemporaryDirectory()
        >>> path = f"{folder.name}/run.safetensors"
        >>> checkpoint.save(path, model=model, optimizer=optimizer, epoch=3)
        >>> checkpoint.load(path, model=model, optimizer=optimizer)
        {'epoch': 3}
        >>> folder.cleanup()
    """
    model = _plain(model)
    own, extra = _own_state(model)
    tables: dict[str, _core.Table] = {f"{_MODEL}{name}": table for name, table in {**own, **tables_of(model)}.items()}
    tables[_EXTRA] = _pack(extra, "model")
    for name, value in state.items():
        if _is_stateful(value):
            tables[f"{_OBJECT}{name}"] = _pack({"class": _class_of(value), "state": value.state_dict()}, name)
        else:
            tables[f"{_VALUE}{name}"] = _pack(value, name)
    for name, extension in _extensions_of(model, state).items():
        own_state = extension.state_dict()
        if own_state:
            tables[f"{_EXTENSION}{name}"] = _pack({"class": _class_of(extension), "state": own_state}, name)
    tables[_RANDOM] = _pack(random_states(), "random")
    write(path, tables, texts_of(model, _MODEL))


@torch.inference_mode(mode=False)  # what objects hold of their states is trained on
def load(path: Path, /, *, model: Module, graph: Any = None, **state: Stateful | None) -> dict[str, Any]:
    """Goes on from a file that :func:`save` wrote.

    All is checked first: that the file is whole, that it is of this model, and that each object is there on both sides. An object
    that refuses its state, such as a loader of another partition, stops it as well. Then nothing has changed. Ctrl-C changes
    nothing before that, and waits for the end of loading after it. Extensions of the model that were added since the file was
    written begin anew.

    Args:
        path: of the file.
        model: the model, made as it was when the file was written, with its extensions.
        graph: the ``Data``, or the adjacency, whose embeddings the histories are, where the file does not tell because release
            0.1 wrote it, or no batch was pushed to them.
        **state: the objects that were given to :func:`save`, by the same names. One that is None counts as not given.

    Returns:
        The plain values that were given to :func:`save`, tensors in host memory.

    Raises:
        FileNotFoundError: if there is no file.
        TypeError: if something in ``state`` has no ``load_state_dict``, or is of another class than what was saved.
        ValueError: if the file is damaged or of something else, or of another graph than ``graph``.
        OSError: if a disk fails. Where that is while histories are replaced, all their rows are forgotten; all else is as it was.
    """
    model = _plain(model)
    objects: dict[str, Stateful] = {}
    for name, value in state.items():
        if _is_stateful(value):
            objects[f"{_OBJECT}{name}"] = value
        elif value is not None:
            raise TypeError(f"checkpoint.load: {name} has no state_dict; leave it out, plain values are returned")
    with Saved(path) as saved:
        _check_objects(saved, objects)
        objects |= _check_extensions(saved, _extensions_of(model, state))
        own, own_extra = _own_state(model)
        _check_model(saved, own)
        others = {f"{_MODEL}{name}" for name in _names(saved, _MODEL) if name not in own}
        origins = check_histories(saved, others, model, _MODEL, graph)
        saved.verify()
        loads = [
            _Load(name.partition(".")[2], value.load_state_dict, _state_for(saved, name, value), value.state_dict())
            for name, value in objects.items()
        ]
        extra, random = _unpack(saved, _EXTRA), _unpack(saved, _RANDOM)
        if not isinstance(extra, dict) or not extra.keys() <= own_extra.keys():
            raise ValueError(f"checkpoint.load: {saved.path} is of another model: its extra state is not of this one")
        own_there = {name: saved.read(f"{_MODEL}{name}") for name in own} | extra
        loads.append(_Load("model", partial(model.load_state_dict, strict=False), own_there, own | own_extra))
        loads = [each._replace(before=_copy(each.before)) for each in loads]
        check_random_states(random, saved.path)
        values = {name: _unpack(saved, f"{_VALUE}{name}") for name in _names(saved, _VALUE)}
        is_filling = False

        def change() -> None:
            nonlocal is_filling
            for each in loads:
                each.do()
            is_filling = True
            read_histories(saved, model, origins, _MODEL)
            set_random_states(random)

        def undo() -> None:
            for each in loads:
                each.function(each.before)
            if is_filling:
                forget_histories(model)

        all_or_nothing(change, undo)
    return values


class _Load(NamedTuple):
    """Gives an object its state.

    Args:
        name: of the object.
        function: its ``load_state_dict``.
        state: that of the file.
        before: that which it has.
    """

    name: str
    function: Callable[[Any], Any]
    state: Any
    before: Any

    def do(self) -> None:
        try:
            self.function(self.state)
        except Exception as error:  # of any type, as the objects are the user's
            raise ValueError(
                f"checkpoint.load: {self.name} refuses its state, and nothing was changed: {error}"
            ) from error


def _copy(state: Any) -> Any:
    """A copy of a state in host memory."""
    kept = pytree.tree_map_only(Tensor, lambda tensor: tensor.detach().to("cpu", copy=True), state)
    return copy.deepcopy(kept)


def _plain(model: Module) -> Module:
    return cast(Module, getattr(model, "_orig_mod", model))  # what torch.compile wraps


def _is_stateful(value: Any) -> TypeGuard[Stateful]:
    return hasattr(value, "state_dict") and hasattr(value, "load_state_dict")


def _extensions_of(model: Module, given: Mapping[str, Any]) -> dict[str, Stateful]:
    """The extensions of a model but those that are given by name: by class, and place among those of their class."""
    found: dict[str, Stateful] = {}
    for extension in getattr(model, "extensions", []):
        if not any(extension is value for value in given.values()):
            kind = type(extension).__qualname__
            found[f"{kind}.{sum(name.startswith(f'{kind}.') for name in found)}"] = extension
    return found


def _class_of(value: Any) -> str:
    return f"{type(value).__module__}.{type(value).__qualname__}"


def _own_state(model: Module) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """The model's state without histories: its tensors, and what modules give as their extra state."""
    histories = tables_of(model).keys()
    state = {name: value for name, value in model.state_dict().items() if name not in histories}
    tensors = {name: value for name, value in state.items() if isinstance(value, Tensor)}
    return tensors, {name: value for name, value in state.items() if name not in tensors}


def _pack(value: Any, name: str) -> Tensor:
    """What torch.save writes, which its strict reader reads, as a tensor of bytes."""
    file = io.BytesIO()
    try:
        torch.save(value, file)
        file.seek(0)
        torch.load(file, map_location="cpu", weights_only=True)
    except (pickle.PickleError, AttributeError, TypeError, RuntimeError) as error:
        raise TypeError(
            f"checkpoint.save: {name} holds something that torch.load(weights_only=True) cannot read back; let it be made of "
            "numbers, texts, tensors, lists, tuples and dictionaries (float(...) and .tolist() help with numpy's types)"
        ) from error
    return torch.frombuffer(file.getbuffer(), dtype=torch.uint8)


def _unpack(saved: Saved, name: str) -> Any:
    content = io.BytesIO(saved.read(name).numpy().tobytes())
    try:
        return torch.load(content, map_location="cpu", weights_only=True)
    except Exception as error:  # of any type: pickle, zip files and torch each have their own
        raise Damaged(saved.path, f"{name!r} cannot be read by torch.load(weights_only=True): {error}") from error


def _names(saved: Saved, kind: str) -> list[str]:
    return [name.removeprefix(kind) for name in saved.entries if name.startswith(kind)]


def _check_objects(saved: Saved, objects: Mapping[str, Stateful]) -> None:
    """Raises ValueError unless the file is of a run with these objects."""
    if not {_EXTRA, _RANDOM} <= saved.entries.keys():
        raise ValueError(
            f"{saved.path} was not written by checkpoint.save; if it holds histories alone, call model.load_histories(path)"
        )
    there, here = set(_names(saved, _OBJECT)), {name.removeprefix(_OBJECT) for name in objects}
    for name in sorted(there - here):
        raise ValueError(
            f"checkpoint.load: {saved.path} holds the state of {name!r}, which was not given; pass {name}=..., or the run "
            "does not go on as it would have"
        )
    for name in sorted(here - there):
        raise ValueError(
            f"checkpoint.load: {saved.path} holds no state of {name!r}, but of {sorted(there)}; leave it out, or give it to "
            "checkpoint.save as well"
        )


def _check_extensions(saved: Saved, extensions: Mapping[str, Stateful]) -> dict[str, Stateful]:
    """Those whose state is in the file. Raises ValueError if the file holds that of others."""
    there = _names(saved, _EXTENSION)
    for name in there:
        if name not in extensions:
            raise ValueError(
                f"checkpoint.load: {saved.path} holds the state of the extension {name!r}, which the model does not have; call "
                "model.add_extension() first, or give it by the name that checkpoint.save gets it by, there as well"
            )
    return {f"{_EXTENSION}{name}": extensions[name] for name in there}


def _check_model(saved: Saved, own: Mapping[str, Tensor]) -> None:
    """Raises ValueError unless the file holds parameters and buffers of these names, types and shapes."""
    for name, value in own.items():
        entry = saved.entries.get(f"{_MODEL}{name}")
        if entry is None:
            raise ValueError(
                f"checkpoint.load: {saved.path} is of another model: it holds no {name!r}, which this one has"
            )
        if entry.dtype != value.dtype or entry.shape != tuple(value.shape):
            raise ValueError(
                f"checkpoint.load: {saved.path} is of another model: {name!r} is {entry} there, but {value.dtype} "
                f"{list(value.shape)} in this one; make the model with the same arguments"
            )


def _state_for(saved: Saved, name: str, value: Stateful) -> Any:
    held = _unpack(saved, name)
    if not (isinstance(held, dict) and held.keys() == {"class", "state"} and isinstance(held["class"], str)):
        raise Damaged(saved.path, f"{name!r} is no state of an object")
    module, _, name_of_class = held["class"].rpartition(".")
    if f"{new_path(module)}.{name_of_class}" != _class_of(value):  # release 0.1 had other modules
        raise TypeError(
            f"checkpoint.load: {saved.path} holds the state of a {held['class']} for {name.partition('.')[2]!r}, but got a "
            f"{_class_of(value)}; make it as it was when the file was written"
        )
    return held["state"]
