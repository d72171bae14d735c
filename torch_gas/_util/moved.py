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
    "adjacency": "graph.formats",
    "builder": "batch.builder",
    "features": "graph.attributes",
    "inference": "session.inference",
    "loader": "batch.loader",
    "monitor": "extensions.monitor",
    "normalize": "graph.normalize",
    "refresh": "extensions.refresh",
    "regularization": "extensions.regularization",
    "scalable": "session.base",
    "scaled": "session.scale",
    "storage": "table",
    "storage.hot": "batch.hot_nodes",
    "utils": "pygas",
}


class _Finder(MetaPathFinder, Loader):
    """Stands in for modules that have moved."""

    def find_spec(
        self, fullname: str, path: Sequence[str] | None, target: ModuleType | None = None
    ) -> ModuleSpec | None:
        package, _, name = fullname.partition(".")
        moved = package == "torch_gas" and name.partition(".")[0] in _MOVED
        return ModuleSpec(fullname, self, is_package=True) if moved else None

    def exec_module(self, module: ModuleType) -> None:
        name = module.__name__.partition(".")[2]
        parent, _, child = name.partition(".")
        new = f"torch_gas.{_MOVED[name] if name in _MOVED else f'{_MOVED[parent]}.{child}'}"
        moved = import_module(new)
        warnings.warn(
            f"{module.__name__} is {new} now; most of its names can be imported from torch_gas itself",
            DeprecationWarning,
            stacklevel=2,
        )
        vars(module).update(__doc__=moved.__doc__, __getattr__=partial(getattr, moved), __dir__=partial(dir, moved))


def keep_old_paths() -> None:
    """Has old paths found from now on, behind all that exists."""
    if not any(isinstance(finder, _Finder) for finder in sys.meta_path):
        sys.meta_path.append(_Finder())
