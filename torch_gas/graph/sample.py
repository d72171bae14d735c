"""Samples: a few rows of features, which tell at next to no cost whether others are the same."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

OF_BATCH, OF_GRAPH = 16, 256  # rows in a sample, about


def sample(x: Any, number: int = OF_BATCH) -> Tensor | None:
    """Some rows of features, evenly spread, which share their memory; None where they are no dense tensor."""
    if not isinstance(x, Tensor) or x.dim() == 0 or x.layout != torch.strided or x.is_meta:
        return None
    return x.detach()[:: max(x.size(0) // number, 1)]


def constant(x: Any, number: int = OF_BATCH) -> Tensor | None:
    """A copy of a sample; None as well where features learn, so that others of their shape are the same."""
    rows = None if isinstance(x, Tensor) and x.requires_grad else sample(x, number)
    return None if rows is None else rows.clone()


def agree(known: Tensor | None, rows: Tensor | None) -> bool:
    """Whether two samples may be of the same features, the second one after a cast or on another device."""
    if known is None or rows is None or known is rows:
        return True
    if known.shape != rows.shape:
        return False
    known = known.to(rows)
    return torch.equal(known, rows) or bool(((known == rows) | ((known != known) & (rows != rows))).all())
