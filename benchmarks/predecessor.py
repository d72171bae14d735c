"""PyGAS (https://github.com/rusty1s/pyg_autoscale), the library that came with the paper, where there is a local build of it."""

from __future__ import annotations

import importlib
import sys
from pathlib import Path
from types import ModuleType
from typing import Any

try:
    from torch_sparse import SparseTensor
except ImportError:
    SparseTensor = None

PYGAS = "PyGAS"


def load_pygas(path: Path) -> ModuleType:
    """The package in a local build of PyGAS."""
    if SparseTensor is None:
        raise SystemExit("--pygas needs torch-sparse, which PyGAS is built on: pip install torch-sparse torch-scatter")
    if not (path / "torch_geometric_autoscale").is_dir():
        raise SystemExit(f"--pygas: {path} has no folder torch_geometric_autoscale; give the root of PyGAS' repository")
    sys.path.append(str(path))
    return importlib.import_module("torch_geometric_autoscale")


def as_sparse_tensor(adj_t: Any) -> Any:
    """A CSR matrix as what PyGAS takes."""
    rowptr, col = adj_t.crow_indices().long(), adj_t.col_indices().long()
    return SparseTensor(rowptr=rowptr, col=col, value=adj_t.values(), sparse_sizes=tuple(adj_t.shape), is_sorted=True)
