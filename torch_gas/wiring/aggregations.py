"""PyG's aggregations that are reductions by name, and what they make of them."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.nn import Module
from torch_geometric.nn import aggr as pyg

from torch_gas._util.modules import modules_of

_NAMES: dict[type, str] = {
    pyg.SumAggregation: "sum",
    pyg.MeanAggregation: "mean",
    pyg.MinAggregation: "min",
    pyg.MaxAggregation: "max",
    pyg.VarAggregation: "var",
    pyg.StdAggregation: "std",
}
# Of PNA: by what the reductions of a node are multiplied, given its degree, which is 1 at least where it divides.
_SCALERS: dict[str, Callable[[Any, Tensor], Tensor | float]] = {
    "identity": lambda aggr, degree: 1.0,
    "amplification": lambda aggr, degree: torch.log(degree + 1) / aggr.avg_deg_log,
    "attenuation": lambda aggr, degree: aggr.avg_deg_log / torch.log(degree.clamp(min=1) + 1),
    "linear": lambda aggr, degree: degree / aggr.avg_deg_lin,
    "inverse_linear": lambda aggr, degree: aggr.avg_deg_lin / degree.clamp(min=1),
}


def names_of(aggr: Any) -> tuple[str, ...]:
    """The reductions that an aggregation consists of; none where it is something else, or somebody looks at its parts."""
    if type(aggr) in _NAMES:
        return () if _is_watched([aggr]) else _name(aggr)
    if not isinstance(aggr, (pyg.MultiAggregation, pyg.DegreeScalerAggregation)) or _is_watched(modules_of(aggr)):
        return ()
    if type(aggr) is pyg.DegreeScalerAggregation:
        return names_of(aggr.aggr) if all(scaler in list(_SCALERS) for scaler in aggr.scaler) else ()
    if type(aggr) is not pyg.MultiAggregation:
        return ()
    names = [_name(part) for part in aggr.aggrs]
    return tuple(name for (name,) in names) if all(names) else ()


def _name(aggr: Any) -> tuple[str, ...]:
    name = _NAMES.get(type(aggr))
    has_half_gradient = getattr(getattr(aggr, "var_aggr", aggr), "semi_grad", False)
    return () if name is None or has_half_gradient or "forward" in vars(aggr) else (name,)


def _is_watched(modules: Sequence[Module]) -> bool:
    return any(module._forward_hooks or module._forward_pre_hooks for module in modules)


def combine(aggr: Any, parts: Sequence[Tensor], degrees: Tensor) -> Tensor:
    """What an aggregation makes of its reductions.

    Args:
        aggr: an aggregation.
        parts: its reductions, in the order of :func:`names_of`, [B, ..., C] each.
        degrees: the number of edges into each destination, [B].
    """
    if isinstance(aggr, pyg.MultiAggregation):
        return aggr.combine(list(parts))
    if not isinstance(aggr, pyg.DegreeScalerAggregation):
        return parts[0]
    out = combine(aggr.aggr, parts, degrees)
    degree = degrees.to(out.dtype).view(-1, *[1] * (out.dim() - 1))
    scaled = [out if name == "identity" else out * _SCALERS[name](aggr, degree) for name in aggr.scaler]
    return torch.cat(scaled, dim=-1) if len(scaled) > 1 else scaled[0]
