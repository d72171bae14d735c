"""Sums, means, variances, minima and maxima of each destination's sources, in one pass over the edges, and their gradients."""

from __future__ import annotations

import math
from collections.abc import Collection, Sequence
from typing import Any, cast

import torch
from torch import Tensor

from torch_gas import _core
from torch_gas.graph.halo import batch_rows, join
from torch_gas.graph.product import Edges, aggregate

SUMS = {"sum", "mean"}  # those that a product gives
_LEAST_VARIANCE = 1e-5  # in PyG: a smaller one counts as 0, where a root has no gradient


def reduce(rows: Tensor, edges: Edges, names: Sequence[str]) -> list[Tensor]:
    """Each destination's sources, reduced in several ways, [num_dst, C] each; of no sources all are 0.

    The gradient of a minimum or maximum is shared by all edges that have it, as that of PyG's ``scatter`` is. Types of less than
    32 bits are computed with in float32.

    Args:
        rows: [num_src, C], on the CPU.
        edges: the edges.
        names: any of ``"sum"``, ``"mean"``, ``"min"``, ``"max"``, ``"var"`` (of the population) and ``"std"``, whose root has no
            gradient near 0, as in PyG.
    """
    if SUMS.issuperset(names):
        return _sums(aggregate(rows, edges), edges, names)
    dtype = rows.dtype if rows.dtype == torch.float64 else torch.float32
    x = rows.to(dtype)
    own = batch_rows(x)  # the only ones that need a gradient, where they are known
    least, most, variance = "min" in names, "max" in names, not {"var", "std"}.isdisjoint(names)
    asked = {"mean": variance or not SUMS.isdisjoint(names), "variance": variance, "least": least, "most": most}
    full = None if own is None else x.detach()
    mean, var, lowest, highest = _Reduce.apply(x if own is None else own, edges, asked, full)
    found = {"mean": mean, "var": var, "min": lowest, "max": highest}
    if "sum" in names:
        found["sum"] = mean * edges.degrees.to(dtype).view(-1, 1)
    if "std" in names:
        root = cast(Tensor, var).clamp(min=_LEAST_VARIANCE).sqrt()
        found["std"] = root.masked_fill(root <= math.sqrt(_LEAST_VARIANCE), 0.0)
    return [found[name].to(rows.dtype) for name in names]


def _sums(total: Tensor, edges: Edges, names: Collection[str]) -> list[Tensor]:
    mean = total / _count(edges, total) if "mean" in names else total
    return [mean if name == "mean" else total for name in names]


def _count(edges: Edges, like: Tensor) -> Tensor:
    """The number of edges into each destination, 1 where there are none, [num_dst, 1]."""
    return edges.degrees.clamp(min=1).to(like.dtype).view(-1, 1)


class _Reduce(torch.autograd.Function):
    """Reductions by name, None where nobody asked.

    Given ``full`` as well, that is what is reduced, and ``rows`` are its first, which alone have a gradient.
    """

    @staticmethod
    def forward(ctx: Any, rows: Tensor, edges: Edges, asked: dict[str, bool], full: Tensor | None = None) -> Any:
        found = _core.reductions(edges.by_destination, rows if full is None else full, **asked)
        ctx.edges = edges
        ctx.set_materialize_grads(False)
        ctx.save_for_backward(rows, full, *found, *edges.stated)
        return found.mean, found.variance, found.least, found.most

    @staticmethod
    def backward(ctx: Any, *grads: Tensor | None) -> tuple[Tensor, None, None, None]:
        rows, full, *more = ctx.saved_tensors
        found, edges = _core.Reductions(*more[: len(_core.Reductions._fields)]), ctx.edges
        if torch.is_grad_enabled():
            x = rows if full is None else join(rows, full)
            return _by_edges(x, edges, found, grads)[: rows.size(0)], None, None, None
        grad_mean, grad_variance, grad_least, grad_most = grads
        count = _count(edges, rows)
        constant = None if grad_mean is None else grad_mean / count
        slope = None
        if grad_variance is not None:
            slope = grad_variance * (2 / count)
            shift = slope * cast(Tensor, found.mean)
            constant = -shift if constant is None else constant - shift
        extremes: list[Tensor | None] = []
        for best, ties, grad in ((found.least, found.least_ties, grad_least), (found.most, found.most_ties, grad_most)):
            extremes += (None, None) if grad is None else (best, grad / _sharers(best, ties))
        parts = _core.ReductionsGradient(constant, slope, *extremes)
        return _core.reductions_backward(edges.first_by_source(rows.size(0), None), rows, parts), None, None, None


def _sharers(best: Any, ties: Any) -> Tensor:
    """Among how many a gradient is shared: torch's ``scatter_reduce`` also counts the zero that it begins with."""
    return cast(Tensor, ties + (best == 0))


def _by_edges(x: Tensor, edges: Edges, found: _core.Reductions, grads: Sequence[Tensor | None]) -> Tensor:
    """The gradient of ``x`` by functions that have gradients themselves, with a row for each edge."""
    grad_mean, grad_variance, grad_least, grad_most = grads
    rowptr, src, *_ = edges.by_destination
    dst = torch.repeat_interleave(rowptr.diff(), output_size=src.numel())
    count, messages = _count(edges, x), x[src]
    out = torch.zeros_like(messages)
    if grad_mean is not None:
        out = out + (grad_mean / count)[dst]
    if grad_variance is not None:
        mean = aggregate(x, edges, mean=True)
        out = out + (grad_variance * (2 / count))[dst] * (messages - mean[dst])
    for best, ties, grad in ((found.least, found.least_ties, grad_least), (found.most, found.most_ties, grad_most)):
        if grad is not None:
            out = out + (messages == cast(Tensor, best)[dst]) * (grad / _sharers(best, ties))[dst]
    return torch.zeros_like(x).index_add(0, src, out)
