"""Rows of a batch with those of its halo behind them, whose gradients end at the batch's rows.

Halo rows come from histories and carry no gradient. A layer that knows the batch's rows by themselves need not compute
gradients of the others, which are three times as many in a typical batch.
"""

from __future__ import annotations

import weakref
from collections.abc import Callable
from typing import Any, NamedTuple, cast

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.utils.weak import WeakIdKeyDictionary

from torch_gas._util.memory import has_memory
from torch_gas._util.version import version
from torch_gas.graph.attributes import first_rows


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


class _Split(NamedTuple):
    """All rows and the batch's as two tensors, whose gradients are put together where they meet.

    Args:
        own: a reference to the batch's rows, which keep all rows alive themselves.
        full: all rows, for functions whose gradient is a tensor of its own, which nobody else has.
        version: of the tensor that was split.
    """

    own: Callable[[], Tensor | None]
    full: Tensor
    version: int


_splits: Any = WeakIdKeyDictionary()


def _split(x: Tensor) -> _Split | None:
    """What :func:`own_rows` made of ``x``, unless it was written to since."""
    found = None if torch.compiler.is_compiling() else _splits.get(x)
    return found if found is not None and found.version == version(x) else None


def own_rows(x: Tensor, batch_size: int) -> Tensor:
    """The batch's rows of ``x`` [B + S, ...], whose gradient is not filled up to all rows.

    They are those that were given to :func:`join` or, where parameters reach halo rows as well, a view. Functions of this room
    add its gradient to theirs; the same view is given for as long as somebody has it.
    """
    if x.size(0) <= batch_size:
        return x
    rows = batch_rows(x)
    if rows is not None and rows.size(0) == batch_size:
        return rows
    # A leaf would be kept alive by its own gradient.
    if not _is_plain(x) or not x.requires_grad or not torch.is_grad_enabled() or x.is_leaf:
        return first_rows(x, batch_size)
    known = _split(x)
    own = None if known is None else known.own()
    if own is None or own.size(0) != batch_size:
        full, own = _Own.apply(x, batch_size)
        _splits[x] = _Split(weakref.ref(own), full, version(x))
    return own


def _is_plain(x: Tensor) -> bool:
    """Whether a function of autograd that knows nothing of transforms and compilers can take ``x``."""
    return not torch.compiler.is_compiling() and has_memory(x) and torch.autograd.forward_ad._current_level < 0


def whole(x: Tensor) -> Tensor:
    """``x``, for a function whose gradient is a tensor of its own, to which that of :func:`own_rows` may be added."""
    known = _split(x)
    return x if known is None else known.full


def linear(x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    """:func:`torch.nn.functional.linear`, which computes the gradient of the batch's rows of ``x`` only."""
    rows = batch_rows(x)
    if rows is None:
        return F.linear(whole(x), weight, bias)
    return _linear(rows, x.detach(), weight, bias, 0)[0]


def linear_of_pair(x: Tensor, batch_size: int, weight: Tensor, bias: Tensor | None) -> tuple[Tensor, Tensor]:
    """:func:`linear` of ``x`` and of the batch's rows of it, which are multiplied once."""
    rows = batch_rows(x)
    if rows is None:
        return _linear(whole(x), None, weight, bias, batch_size)
    return _linear(rows, x.detach(), weight, bias, batch_size)


def _linear(
    rows: Tensor, full: Tensor | None, weight: Tensor, bias: Tensor | None, num_own: int
) -> tuple[Tensor, Tensor]:
    """The function below, in the type of autocast, of whose casts a function of one's own sees nothing in its backward pass."""
    kind = rows.device.type
    if not torch.is_autocast_enabled(kind):
        return cast("tuple[Tensor, Tensor]", _Linear.apply(rows, full, weight, bias, num_own))
    dtype = torch.get_autocast_dtype(kind)
    weight, bias = weight.to(dtype), None if bias is None else bias.to(dtype)
    if full is None:
        rows = rows.to(dtype)
    else:
        full = full.to(dtype)
    with torch.autocast(kind, enabled=False):
        return cast("tuple[Tensor, Tensor]", _Linear.apply(rows, full, weight, bias, num_own))


class _Linear(torch.autograd.Function):
    """A dense layer on all rows, and the first of its results once more.

    Given ``full`` as well, that is what is multiplied, and ``rows`` are its first, which alone have a gradient; they may have a
    wider type.
    """

    @staticmethod
    def forward(
        ctx: Any, rows: Tensor, full: Tensor | None, weight: Tensor, bias: Tensor | None, num_own: int
    ) -> tuple[Tensor, Tensor]:
        ctx.save_for_backward(rows, full, weight)
        ctx.set_materialize_grads(False)
        out = F.linear(rows if full is None else full, weight, bias)
        return out, out[:num_own]

    @staticmethod
    def backward(ctx: Any, *grads: Tensor | None) -> tuple[Tensor | None, None, Tensor | None, Tensor | None, None]:
        rows, full, weight = ctx.saved_tensors
        needs_rows, _, needs_weight, needs_bias, _ = ctx.needs_input_grad
        parts = [grad for grad in grads if grad is not None]
        if not parts:
            return (None,) * 5
        if full is None and needs_rows:
            parts = [_total(parts)]
        grad_rows = grad_weight = grad_bias = None
        if needs_rows:
            own = _total([grad[: rows.size(0)] for grad in parts]) @ weight
            grad_rows = _filled_up(own.to(rows.dtype), rows.size(0))
        if needs_weight:
            multiplied = rows if full is None else join(rows.to(full.dtype), full)
            grad_weight = _total([grad.t() @ multiplied[: grad.size(0)] for grad in parts])
        if needs_bias:
            grad_bias = _total([grad.sum(0) for grad in parts])
        return grad_rows, None, grad_weight, grad_bias, None


def _filled_up(rows: Tensor, number: int) -> Tensor:
    """Rows with zeros behind them."""
    if rows.size(0) == number:
        return rows
    return F.pad(rows, (0, 0) * (rows.dim() - 1) + (0, number - rows.size(0)))


def _total(parts: list[Tensor]) -> Tensor:
    """The sum of tensors, each of as many rows as the one before or of the first of them."""
    total, *others = parts
    for part in others:
        size = part.size(0)
        total = total + part if size == total.size(0) else torch.cat([total[:size] + part, total[size:]])
    return total


class _Join(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, rows: Tensor, full: list[Tensor], backward: Callable[[Tensor], Tensor] | None) -> Tensor:
        ctx.batch_size, ctx.gradient = rows.size(0), backward
        return full[0]

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, None, None]:
        return grads[0][: ctx.batch_size] if ctx.gradient is None else ctx.gradient(grads[0]), None, None


class _Own(torch.autograd.Function):
    """All rows, and the first of them."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, batch_size: int) -> tuple[Tensor, Tensor]:
        ctx.set_materialize_grads(False)
        ctx.num_rows = x.size(0)
        return x.detach(), x[:batch_size]

    @staticmethod
    def backward(ctx: Any, *grads: Tensor | None) -> tuple[Tensor | None, None]:
        full, own = grads
        if own is None:
            return full, None
        if full is None:
            return _filled_up(own, ctx.num_rows), None
        if torch.is_grad_enabled():
            return _total([full, own]), None
        full[: own.size(0)] += own  # nobody else has it, see `whole`
        return full, None
