"""The map of docs/design.md is true: each room knows only rooms that stand before it."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from pathlib import Path

import torch_gas

PACKAGE = Path(torch_gas.__file__).parent
ROOMS = (
    "_util", "_core", "transfer", "table", "graph", "partition", "batch", "history", "checkpoint", "datasets",
    "wiring", "wiring.trial", "session", "models", "exact", "planner", "extensions.compensation",
    "extensions", "extensions.monitor", "pygas", "",
)  # fmt: skip
# What the root of the package says for all rooms.
ALL = {"_C"}


def room_of(module: str) -> str:
    """The room that a module, named from within the package, belongs to."""
    parts = module.split(".")
    return next(".".join(parts[:n]) for n in range(len(parts), -1, -1) if ".".join(parts[:n]) in ROOMS)


def imports(path: Path) -> Iterator[tuple[str, int]]:
    """What a file imports from the package, those for type checkers and inside of functions included."""
    for node in ast.walk(ast.parse(path.read_text())):
        names = []
        if isinstance(node, ast.ImportFrom) and node.level == 0 and node.module is not None:
            # `from torch_gas import table` imports a room; `from torch_gas.table import file` may import a module.
            names = [f"{node.module}.{alias.name}" for alias in node.names]
        elif isinstance(node, ast.Import):
            names = [alias.name for alias in node.names]
        for name in names:
            package, _, module = name.partition(".")
            if package == "torch_gas" and module and module not in ALL:
                yield module, node.lineno


def wrong(path: Path, module: str) -> list[str]:
    room = room_of(module)
    found = []
    for target, line in imports(path):
        other = room_of(target)
        if ROOMS.index(other) > ROOMS.index(room):
            found.append(f"{module}:{line} imports {target}, and {other or 'the root'} stands after {room}")
    return found


def modules() -> dict[str, Path]:
    found = {}
    for path in sorted(PACKAGE.rglob("*.py")):
        found[".".join(path.relative_to(PACKAGE).with_suffix("").parts).removesuffix("__init__").rstrip(".")] = path
    return found


def test_rooms_know_only_those_before_them() -> None:
    assert [each for module, path in modules().items() for each in wrong(path, module)] == []


def test_every_room_is_there() -> None:
    assert len(ROOMS) <= 22
    found = {room_of(module) for module in modules()}
    assert found == set(ROOMS)
    assert {path.name for path in PACKAGE.glob("*.py")} == {"__init__.py", "history.py", "pygas.py"}
    folders = {".".join(path.parent.relative_to(PACKAGE).parts) for path in PACKAGE.rglob("*.py")}
    assert folders <= set(ROOMS)


def test_files_are_short_and_names_few() -> None:
    lengths = {module: len(path.read_text().splitlines()) for module, path in modules().items()}
    assert {module: length for module, length in lengths.items() if length > 450} == {}
    assert len(torch_gas.__all__) <= 40


def test_a_wrong_import_is_found(tmp_path: Path) -> None:
    path = tmp_path / "pool.py"
    path.write_text(
        "from typing import TYPE_CHECKING\n"
        "if TYPE_CHECKING:\n    from torch_gas.session import base\n"
        "def f():\n    import torch_gas.models.gcn\n"
        "from torch_gas._core import checks\n"
    )
    assert len(wrong(path, "transfer.pool")) == 2
    assert wrong(path, "extensions.refresh") == []
