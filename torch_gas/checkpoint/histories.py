"""Histories and their ages in a safetensors file of their own, under their names in ``state_dict``."""

from __future__ import annotations

import warnings
from collections.abc import Callable
from functools import partial
from typing import Any

from torch.nn import Module

from torch_gas import _core
from torch_gas._util.replace import Path
from torch_gas.checkpoint.file import Saved, write
from torch_gas.graph.origin import Origin, key_of, known_key
from torch_gas.history import History
from torch_gas.table.header import other_code

_OF_EXTENSIONS = "extension_tables."


def histories_of(model: Module) -> dict[str, History]:
    """All histories of a model by name, also those that ``state_dict`` leaves out; no transfer of theirs is under way.

    Tables of sums are left out, as they are zero between two steps.
    """
    found = {name: each for name, each in model.named_modules() if isinstance(each, History) and not each.is_scratch}
    for history in found.values():
        history.settle()
    return found


def tables_of(model: Module) -> dict[str, _core.Table]:
    """The tables, ages and clocks of all histories of a model, by name."""
    return {name: table for prefix, history in histories_of(model).items() for name, table in _parts(prefix, history)}


def _parts(name: str, history: History) -> list[tuple[str, _core.Table]]:
    tables = {"emb": history.table.storage, "pushed_at": history.pushed_at, "clock": history.clock}
    return [(f"{name}.{part}", table) for part, table in tables.items()]


def texts_of(model: Module, prefix: str = "") -> dict[str, str]:
    """Of which graphs histories are, and which code their rows have been through, as a file's texts."""
    texts = {}
    for name, history in histories_of(model).items():
        texts[_text("graph", prefix, name)] = history.origin.key
        if history.behind:
            texts[_text("behind", prefix, name)] = history.behind
    return texts


def _text(what: str, prefix: str, name: str) -> str:
    return f"{what} {prefix}{name}"


def save_histories(model: Module, path: Path) -> None:
    """See :meth:`torch_gas.ScalableGNN.save_histories`."""
    write(path, tables_of(model), texts_of(model))


def load_histories(model: Module, path: Path, graph: Any = None) -> None:
    """See :meth:`torch_gas.ScalableGNN.load_histories`."""
    with Saved(path) as saved:
        origins = check_histories(saved, set(saved.entries), model, graph=graph)
        saved.verify()
        all_or_nothing(partial(read_histories, saved, model, origins), partial(forget_histories, model))


def check_histories(
    saved: Saved, names: set[str], model: Module, prefix: str = "", graph: Any = None
) -> dict[str, Origin | None]:
    """Where the histories of ``model`` come from when they are read; None for tables of extensions that the file does not know.

    Raises:
        ValueError: unless ``names`` of the file are those of ``model``, behind ``prefix``, and fit them and ``graph``.
    """
    histories = histories_of(model)
    num_nodes = max((history.num_embeddings for history in histories.values()), default=0)
    given, origins = key_of(graph, num_nodes), dict[str, Origin | None]()
    unknown = set(names)
    for name, history in histories.items():
        tables = {f"{prefix}{part}": table for part, table in _parts(name, history)}
        missing = sorted(tables.keys() - names)
        if missing and not (name.startswith(_OF_EXTENSIONS) and tables.keys().isdisjoint(names)):
            raise ValueError(
                f"{saved.path} does not hold {missing[0]!r}, which this model with {len(histories)} histories has; make the "
                "model as it was when the file was written, or load the file that belongs to it"
            )
        unknown -= tables.keys()
        key = known_key(saved.path, saved.texts.get(_text("graph", prefix, name), ""), given)
        code = saved.texts.get(_text("behind", prefix, name), "")
        if not missing and (differ := other_code(saved.path, code, history.behind)):
            raise ValueError(differ)
        origins[name] = None if missing else Origin(key, saved.path)
        if missing and bool((history.pushed_at >= 0).any()):
            warnings.warn(
                f"{saved.path} has no rows of {name}, of an extension that was added since it was written; its rows are "
                "forgotten, and it begins anew",
                stacklevel=3,
            )
        for part, table in tables.items() if not missing else ():
            _check_fit(saved, part, table)
    if unknown:
        advice = "make the model as it was when the file was written"
        if min(unknown).startswith(f"{prefix}{_OF_EXTENSIONS}"):
            advice = "add the extension that has these tables"
        raise ValueError(
            f"{saved.path} holds {min(unknown)!r}, which this model with {len(histories)} histories has not; {advice} "
            "(one of scale() has its histories once it was given data, or called on a batch)"
        )
    return origins


def _check_fit(saved: Saved, name: str, table: _core.Table) -> None:
    entry = saved.entries[name]
    if entry.shape == tuple(table.shape) and entry.dtype == table.dtype:
        return
    if entry.dtype != table.dtype:
        advice = "make the model with the same history_dtype, and in the same type"
    elif entry.shape[:1] != tuple(table.shape[:1]):
        advice = "a history belongs to one graph: make the model with its num_nodes"
    else:
        advice = "make the model with the same hidden_channels"
    raise ValueError(
        f"{name!r} in {saved.path} is {entry}, but {table.dtype} {list(table.shape)} in this model; {advice}"
    )


def read_histories(saved: Saved, model: Module, origins: dict[str, Origin | None], prefix: str = "") -> None:
    """Fills the histories of ``model``, which :func:`check_histories` has found to fit and to be from ``origins``."""
    for name, history in histories_of(model).items():
        origin = origins[name]
        if origin is None:
            history.reset_parameters()
            continue
        for part, table in _parts(name, history):
            saved.read_into(f"{prefix}{part}", table)
        history.origin = origin


def all_or_nothing(change: Callable[[], None], undo: Callable[[], None]) -> None:
    """Calls ``change``, which may be called again after it was interrupted, and ``undo`` where it cannot come to its end.

    Rows that are replaced are nowhere else, so that Ctrl-C does not turn back: the change is made to its end first. A second one
    is obeyed.
    """
    try:
        change()
    except Exception:
        undo()
        raise
    except BaseException:
        try:
            change()
        except BaseException:
            undo()
            raise
        raise


def forget_histories(model: Module) -> None:
    """Forgets all rows, of which some may have been replaced."""
    for history in histories_of(model).values():
        history.reset_parameters()
