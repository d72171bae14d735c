"""Models of PyG and of this package, with norms and dropout, whose gradients are held against those of the full batch."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch_geometric.nn as nn
from full_batch import N, graph
from plain_models import OUT, C
from torch.nn import Module

from torch_gas import in_degree
from torch_gas.models import APPNP, GAT, GCN, GCN2, GIN, PNA, PNA_JK, SAGE


def plain(data: Any) -> tuple[Any, ...]:
    """Inputs without attributes of edges, which models of PyG take."""
    return data.x, data.edge_index


_EDGES = graph().edge_index
PYG: dict[str, dict[str, Any]] = {
    "GCN": {},
    "GraphSAGE": {},
    "GAT": {"heads": 2},
    "GIN": {},
    "PNA": {
        "aggregators": ["mean", "max", "std"],
        "scalers": ["identity", "amplification"],
        "deg": _EDGES[1].bincount(minlength=N).bincount(),
    },
    "EdgeCNN": {},
}
JK = [None, "cat", "max", "lstm"]
_NORMS: list[dict[str, Any]] = [
    {},
    {"norm": "batch_norm"},
    {"norm": "layer_norm", "norm_kwargs": {"mode": "node"}},
    {"norm": "instance_norm", "norm_kwargs": {"affine": True, "track_running_stats": True}},
]


def of_pyg(name: str, jk: str | None) -> Module:
    """One of ``PYG`` with one of ``JK``. Norms take turns: each kind of model and of jumping knowledge meets each of them."""
    norm = _NORMS[(list(PYG).index(name) + JK.index(jk)) % len(_NORMS)]
    return getattr(nn, name)(C, 8, 3, OUT, dropout=0.3, jk=jk, **PYG[name], **norm)


_DEGREES = in_degree(_EDGES, N)
SHIPPED: dict[str, Callable[[], Module]] = {
    "GCN": lambda: GCN(N, C, 8, OUT, 3, dropout=0.3, batch_norm=True, residual=True),
    "GAT": lambda: GAT(N, C, 4, 2, OUT, 2, 3, dropout=0.3),
    "SAGE": lambda: SAGE(N, C, 8, OUT, 3, dropout=0.3, batch_norm=True),
    "GIN": lambda: GIN(N, C, 8, OUT, 3, dropout=0.3),
    "PNA": lambda: PNA(N, C, 8, OUT, 3, ["mean", "max"], ["identity", "attenuation"], _DEGREES),
    "PNA_JK": lambda: PNA_JK(N, C, 8, OUT, 3, ["mean", "min"], ["identity"], _DEGREES, dropout=0.3, batch_norm=True),
    "APPNP": lambda: APPNP(N, C, 8, OUT, 4, 0.1, dropout=0.3),
    "GCN2": lambda: GCN2(N, C, 8, OUT, 4, 0.1, 0.5, dropout=0.3, batch_norm=True),
}
