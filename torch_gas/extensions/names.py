"""The modules of a model by the names under which its user knows them."""

from __future__ import annotations

from torch.nn import Module

from torch_gas.session.model import HistoryModel


def plain(model: Module) -> Module:
    """The model as it was written, whose names its user knows."""
    return model._plain if isinstance(model, HistoryModel) else model


def named(model: Module, name: str, caller: str) -> Module:
    """The module ``name`` of ``model``.

    Raises:
        ValueError: if there is none.
    """
    modules = dict(model.named_modules())
    if name not in modules or name == "":
        children = ", ".join(repr(key) for key in modules if key.count(".") < 2 and key != "")
        raise ValueError(f"{caller}: {type(model).__name__} has no module {name!r}; it has {children}")
    return modules[name]
