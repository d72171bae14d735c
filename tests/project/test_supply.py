"""What the package is made of and opens: pinned versions, no code out of data, no connections."""

from __future__ import annotations

import ast
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
import tomllib

ROOT = Path(__file__).parents[2]
SOURCES = [
    path
    for folder in ("torch_gas", "benchmarks", "examples", "tests")
    for path in sorted(ROOT.glob(f"{folder}/**/*.py"))
]

# Tests of pickling unpickle what they pickled themselves; others run the examples of the documentation.
MAY_UNPICKLE = {
    f"test_{name}.py"
    for name in (
        "extension", "history", "history_machine", "hot", "labelled_mean", "loader", "loader_ahead", "loader_both",
        "loader_groups", "loader_state", "monitor", "origin", "record", "regularization", "scalable", "scaled", "storage",
        "tables",
    )
}  # fmt: skip
MAY_EXECUTE = {
    "test_docs.py",
    "test_monitor.py",
    "test_pygas.py",
    "test_scaled_refusals.py",
}  # code of pages and advice
UNPINNED = {"torch", "torch-sparse", "torch-scatter"}  # see the Makefile


def calls(path: Path) -> Iterator[tuple[str, ast.Call]]:
    """Names of what a file calls, such as ``torch.load``."""
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Call):
            yield ast.unparse(node.func), node


def forbidden(path: Path) -> list[str]:
    """Calls in a file that make code or objects out of data."""
    name = str(path.relative_to(ROOT)) if path.is_relative_to(ROOT) else path.name
    found = []
    for function, node in calls(path):
        options = {keyword.arg: ast.unparse(keyword.value) for keyword in node.keywords}
        executes = function in ("eval", "exec", "compile") and path.name not in MAY_EXECUTE
        unpickles = (
            re.fullmatch(r"(pickle|dill|marshal|shelve)\.(loads?|open|Unpickler)", function) is not None
            or (function == "torch.load" and options.get("weights_only") != "True")
            or (function.endswith("np.load") and options.get("allow_pickle", "False") != "False")
        )
        if executes or (unpickles and path.name not in MAY_UNPICKLE):
            found.append(f"{name}:{node.lineno}: {function}")
    return found


def test_no_code_out_of_data() -> None:
    assert len(SOURCES) > 150
    assert [each for path in SOURCES for each in forbidden(path)] == []


@pytest.mark.parametrize(
    "line",
    [
        "torch.load('a')",
        "torch.load('a', weights_only=False)",
        "pickle.loads(b'')",
        "eval('1')",
        "exec('1')",
        "np.load('a', allow_pickle=True)",
    ],
)
def test_such_calls_are_found(line: str, tmp_path: Path) -> None:
    path = tmp_path / "file.py"
    path.write_text(line)
    assert len(forbidden(path)) == 1


@pytest.mark.slow
def test_importing_opens_no_socket() -> None:
    program = """
import sys
seen = []
sys.addaudithook(lambda event, args: seen.append(event) if event.startswith(("socket.", "urllib.", "http.")) else None)
import torch, torch_geometric.data, torch_geometric.nn, torch_geometric.utils
seen.clear()
import torch_gas
print(seen)
"""
    done = subprocess.run([sys.executable, "-W", "ignore", "-c", program], capture_output=True, text=True)
    assert done.stdout == "[]\n", done.stderr


def test_all_dependencies_are_pinned() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    extras = project["optional-dependencies"]
    wanted = [*project["dependencies"], *extras["dev"], *extras["examples"]]
    names = {
        re.split(r"[<>=!~; \[]", need)[0].lower().replace("_", "-") for need in wanted if "python_version" not in need
    }
    lines = [line for line in (ROOT / "requirements" / "ci.txt").read_text().splitlines() if not line.startswith("#")]
    assert all(re.fullmatch(r"[\w.-]+==[\w.+]+", line) for line in lines)
    pinned = {line.split("==")[0].lower().replace("_", "-") for line in lines}
    assert names - pinned - UNPINNED - {"setuptools"} == set()
