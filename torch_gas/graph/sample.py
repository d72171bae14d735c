"""Samples: a few rows of features or weights, which tell at next to no cost whether others are the same."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from torch_gas._util.memory import has_memory
from torch_gas.graph.formats import format_of

OF_BATCH, OF_EDGES, OF_GRAPH = 16, 64, 256  # rows in a sample, about

Samples = dict[str, Tensor]  # by the names of arguments and attributes


def sample(x: Any, number: int = OF_BATCH) -> Tensor | None:
    """Some rows of features, evenly spread, which share their memory; None where they are no tensor of rows that can be read.

    Of a sparse matrix these are some of its entries, [1, 2, ...], which are compared with no rows of a dense one.
    """
    if not isinstance(x, Tensor) or x.is_meta:
        return None
    if x.layout == torch.sparse_csr:
        step = max(x.values().size(0) // number, 1)
        return torch.stack([x.col_indices()[::step].to(x.dtype), x.values().detach()[::step]])[None]
    return x.detach()[:: max(x.size(0) // number, 1)] if has_memory(x) and x.dim() > 0 else None


def of_batch(given: Mapping[str, Any], adj: Any, num_edges: int, batch_size: int, num_rows: int) -> Samples:
    """Samples of the edges of a batch, of what it has for each, and of numbers and ``"x"`` of nodes. They share its memory.

    Edges go by their places: to reorder them makes others. Those of a matrix have other names than those of an ``edge_index``,
    with which they are not compared.
    """
    samples: dict[str, Any] = {}
    if adj is not None:
        rowptr, dst, src = format_of(adj).stored_edges(adj)
        if dst is None:
            samples["columns of edges"], samples["rows of edges"] = (
                sample(src, OF_EDGES),
                sample(rowptr[: batch_size + 1], OF_EDGES),
            )
            samples["values of edges"] = sample(format_of(adj).values(adj))
        else:
            samples["sources of edges"], samples["destinations of edges"] = sample(src, OF_EDGES), sample(dst, OF_EDGES)
    for name, value in given.items():
        if not isinstance(value, Tensor) or value.dim() == 0:
            continue
        size = value.size(0)
        if name == "x" or size == num_edges or (size == num_rows and value.dtype != torch.bool):
            samples[name] = sample(value, OF_EDGES if value.dim() == 1 else OF_BATCH)
    return {name: rows for name, rows in samples.items() if rows is not None}


def constants(given: Mapping[str, Any]) -> Samples:
    """Copies of samples, in host memory, of what a whole graph gives; without what learns, which its shape tells apart."""
    samples = {}
    for name, value in given.items():
        rows = None if isinstance(value, Tensor) and value.requires_grad else sample(value, OF_GRAPH)
        if rows is not None:
            samples[name] = rows.to("cpu", copy=True)
    return samples


def agree(known: Tensor, rows: Tensor) -> bool:
    """Whether two samples may be of the same rows, the second one after a cast, in another layout or on another device."""
    if known is rows or known.dim() != rows.dim():
        return True
    if known.shape != rows.shape:
        return False
    known = known.to(rows)
    return torch.equal(known, rows) or bool(((known == rows) | ((known != known) & (rows != rows))).all())


def difference_of(known: Samples, given: Mapping[str, Any]) -> str:
    """The first name under which ``given`` is not what ``known`` has samples of; empty where nothing tells."""
    for name, rows in known.items():
        other = sample(given.get(name), OF_GRAPH)
        if other is not None and not agree(rows, other):
            return name
    return ""
