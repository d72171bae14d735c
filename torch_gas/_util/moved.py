"""Import paths of earlier versions: they work, and say where their names are now."""

from __future__ import annotations

import sys
import warnings
from collections.abc import Sequence
from functools import partial
from importlib import import_module
from importlib.abc import Loader, MetaPathFinder
from importlib.machinery import ModuleSpec
from types import ModuleType

# Modules of 0.1, and where what they hold is now; one below them is found there under its own name.
_MOVED = {
    "adjacency": "graph.adjacency",
    "builder": "batch.builder",
    "features": "graph.attributes",
    "inference": "session.inference",
    "loader": "batch.loader",
    "models.dropout": "graph.dropout",
    "monitor": "extensions.monitor",
    "monitor.jacobian": "extensions.monitor.gains",
    "normalize": "graph.normalize",
    "refresh": "extensions.refresh",
    "regularization": "extensions.regularization",
    "regularization.groups": "extensions.weights",
    "regularization.perturbation": "extensions.perturbation",
    "regularization.spectral": "extensions.weights",
    "scalable": "session.base",
    "scaled": "session.scale",
    "storage": "table",
    "storage.hot": "batch.hot_nodes",
    "utils": "pygas",
}
# Where the other names of a module are that is two modules now.
_ALSO = {"graph.adjacency": "graph.formats"}


class _Finder(MetaPathFinder, Loader):
    """Stands in for modules that have moved."""

    def find_spec(
        self, fullname: str, path: Sequence[str] | None, target: ModuleType | None = None
    ) -> ModuleSpec | None:
        return None if new_path(fullname) == fullname else ModuleSpec(fullname, self, is_package=True)

    def exec_module(self, module: ModuleType) -> None:
        new = new_path(module.__name__)
        moved = import_module(new)
        warnings.warn(
            f"{module.__name__} is {new} now; most of its names can be imported from torch_gas itself",
            DeprecationWarning,
            stacklevel=2,
        )
        vars(module).update(__doc__=moved.__doc__, __getattr__=partial(_find, moved), __dir__=partial(dir, moved))


def _find(moved: ModuleType, name: str) -> object:
    """What a moved module holds under ``name``, or the package itself, where names of several rooms are."""
    other = _ALSO.get(moved.__name__.removeprefix("torch_gas."))
    modules = [moved, *([] if other is None else [import_module(f"torch_gas.{other}")]), import_module("torch_gas")]
    return getattr(next((module for module in modules if hasattr(module, name)), modules[-1]), name)


def new_path(path: str) -> str:
    """Where a module of this package is now; the path of any other as it is."""
    package, _, name = path.partition(".")
    parent, _, child = name.partition(".")
    if package != "torch_gas" or _MOVED.keys().isdisjoint((name, parent)):
        return path
    return f"torch_gas.{_MOVED[name] if name in _MOVED else f'{_MOVED[parent]}.{child}'}"


def keep_old_paths() -> None:
    """Has old paths found from now on, behind all that exists."""
    if not any(isinstance(finder, _Finder) for finder in sys.meta_path):
        sys.meta_path.append(_Finder())
