"""Histories and their ages in a safetensors file of their own, under their names in ``state_dict``."""

from __future__ import annotations

from torch.nn import Module

from torch_gas import _core
from torch_gas.checkpoint.file import Path, Saved, write
from torch_gas.history import History


def histories_of(model: Module) -> dict[str, History]:
    """All histories of a model by name, also those that ``state_dict`` leaves out; no transfer of theirs is under way."""
    found = {name: module for name, module in model.named_modules() if isinstance(module, History)}
    for history in found.values():
        history.settle()
    return found


def tables_of(model: Module) -> dict[str, _core.Table]:
    """The tables, ages and clocks of all histories of a model, by name."""
    tables: dict[str, _core.Table] = {}
    for name, history in histories_of(model).items():
        tables[f"{name}.emb"] = history.table.storage
        tables[f"{name}.pushed_at"] = history.pushed_at
        tables[f"{name}.clock"] = history.clock
    return tables


def save_histories(model: Module, path: Path) -> None:
    """See :meth:`torch_gas.ScalableGNN.save_histories`."""
    write(path, tables_of(model))


def load_histories(model: Module, path: Path) -> None:
    """See :meth:`torch_gas.ScalableGNN.load_histories`."""
    with Saved(path) as saved:
        check_histories(saved, set(saved.entries), model)
        saved.verify()
        read_histories(saved, model)


def check_histories(saved: Saved, names: set[str], model: Module, prefix: str = "") -> None:
    """Raises ValueError unless ``names`` of a file are the histories of ``model``, behind ``prefix``, and fit them."""
    histories = histories_of(model)
    tables = {f"{prefix}{name}": table for name, table in tables_of(model).items()}
    missing, unknown = sorted(tables.keys() - names), sorted(names - tables.keys())
    if missing:
        raise ValueError(
            f"{saved.path} does not hold {missing[0]!r}, which this model with {len(histories)} histories has; make the model "
            "as it was when the file was written, or load the file that belongs to it"
        )
    if unknown:
        raise ValueError(
            f"{saved.path} holds {unknown[0]!r}, which this model with {len(histories)} histories has not; make the model as it "
            "was when the file was written (one of scale() has its histories once it was given data, or called on a batch)"
        )
    for name, table in tables.items():
        _check_fit(saved, name, table)


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


def read_histories(saved: Saved, model: Module, prefix: str = "") -> None:
    """Fills the histories of ``model``, which :func:`check_histories` has found to fit."""
    for name, table in tables_of(model).items():
        saved.read_into(f"{prefix}{name}", table)
