"""Rows of a batch with those of its halo behind them, whose gradients end at the batch's rows.

Halo rows come from histories and carry no gradient. A layer that knows the batch's rows by themselves need not compute
gradients of the others, which are three times as many in a typical batch.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, cast

import torch
import torch.nn.functional as F
from torch import Tensor

from torch_gas._util.version import version


def appended(rows: Tensor, number: int, fill: Callable[[Tensor], Any]) -> Tensor:
    """``rows`` [B, C] with S = ``number`` rows behind them, [B + S, C], without gradient, for :func:`join`.

    ``fill`` writes the rows behind where they are to be, so that none is copied.
    """
    full = rows.new_empty(rows.size(0) + number, rows.size(1), requires_grad=False)
    full[: rows.size(0)] = rows.detach()
    fill(full[rows.size(0) :])
    return full


def join(rows: Tensor, full: Tensor, backward: Callable[[Tensor], Tensor] | None = None) -> Tensor:
    """``full`` [B + S, C], which has no gradient, with that of its first rows, which equal ``rows`` [B, C].

    ``backward`` computes the gradient of ``rows`` from that of all rows, [B + S, C]; by default it is the first B rows.
    """
    if not (rows.requires_grad and torch.is_grad_enabled()):
        return full
    out: Any = _Join.apply(rows, [full], backward)
    if backward is None:
        out._batch_rows = (rows, version(rows), version(out))
    return cast(Tensor, out)


def batch_rows(x: Tensor) -> Tensor | None:
    """The rows that were given to :func:`join`, if gradients may go there at once.

    They may not where somebody looks at the gradient of ``x``, or where either tensor was written to since.
    """
    if torch.compiler.is_compiling():
        return None
    rows, *versions = getattr(x, "_batch_rows", (None,))
    if rows is None or [version(rows), version(x)] != versions or x._backward_hooks or x.retains_grad:
        return None
    return rows if torch.is_grad_enabled() else None


def linear(x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    """:func:`torch.nn.functional.linear`, which computes the gradient of the batch's rows of ``x`` only."""
    rows = batch_rows(x)
    if rows is None:
        return F.linear(x, weight, bias)
    kind = x.device.type
    if not torch.is_autocast_enabled(kind):
        return cast(Tensor, _Linear.apply(rows, x.detach(), weight, bias))
    dtype = torch.get_autocast_dtype(kind)
    low = [None if each is None else each.to(dtype) for each in (x.detach(), weight, bias)]
    with torch.autocast(kind, enabled=False):  # whose casts a function of one's own gets no gradient through
        return cast(Tensor, _Linear.apply(rows, *low))


class _Linear(torch.autograd.Function):
    """A linear layer over ``full``, whose first ``rows`` alone have a gradient; they may have a wider type."""

    @staticmethod
    def forward(ctx: Any, rows: Tensor, full: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        ctx.save_for_backward(rows, full, weight)
        return F.linear(full, weight, bias)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, None, Tensor | None, Tensor | None]:
        rows, full, weight = ctx.saved_tensors
        needs_rows, _, needs_weight, needs_bias = ctx.needs_input_grad
        grad_rows = (grads[0][: rows.size(0)] @ weight).to(rows.dtype) if needs_rows else None
        grad_weight = grads[0].t() @ join(rows.to(full.dtype), full) if needs_weight else None
        return grad_rows, None, grad_weight, grads[0].sum(0) if needs_bias else None


class _Join(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, rows: Tensor, full: list[Tensor], backward: Callable[[Tensor], Tensor] | None) -> Tensor:
        ctx.batch_size, ctx.gradient = rows.size(0), backward
        return full[0]

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, None, None]:
        return grads[0][: ctx.batch_size] if ctx.gradient is None else ctx.gradient(grads[0]), None, None
