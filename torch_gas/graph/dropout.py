"""Dropout on entries, fast on the CPU, where torch's draws one number after the other; of edges: :func:`torch_gas.dropout`."""

from __future__ import annotations

import math
from collections.abc import Callable
from functools import partial
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.overrides import handle_torch_function, has_torch_function_unary

from torch_gas import _core
from torch_gas._util.memory import PLAIN, has_memory
from torch_gas.graph import philox
from torch_gas.graph.attributes import with_values
from torch_gas.graph.formats import is_csr
from torch_gas.graph.halo import batch_rows, join

_TYPES = (torch.float32, torch.float64, torch.float16, torch.bfloat16)


def dropout(x: Tensor, p: float, training: bool) -> Tensor:
    """Multiplies each entry by 0 with probability ``p``, else by ``1 / (1 - p)``, as :func:`torch.nn.functional.dropout` does.

    For dense floating-point tensors on the CPU, random numbers depend on a seed and the position alone, so that threads and
    vector instructions draw them side by side. The seed comes from torch's default generator of the CPU:
    :func:`torch.manual_seed` makes masks reproducible, for any number of threads; they are other ones than torch's. No mask is
    kept: the backward pass draws it again. The result is contiguous.

    Of a sparse matrix (``torch.sparse_csr``), the stored entries are dropped; all others are zero, whether dropped or not.

    Anything else goes to torch's own function: other devices and types, subclasses of tensors, code that is compiled or traced,
    and transforms of :mod:`torch.func`.

    Args:
        x: any tensor. NaN and infinity stay NaN where they are dropped, as in torch, so that no error hides behind a mask.
        p: probability of dropping an entry.
        training: whether to do anything.

    Returns:
        A tensor of the shape and type of ``x``; ``x`` itself if nothing can drop.

    Raises:
        ValueError: if ``p`` is not in [0, 1].

    Example:
        >>> x = torch.ones(1000, 8)
        >>> dropout(x, p=0.75, training=True).unique().tolist()
        [0.0, 4.0]
        >>> dropout(x, p=0.75, training=False) is x
        True
    """
    if has_torch_function_unary(x):  # a mode that draws the mask, or a subclass of tensors
        return handle_torch_function(dropout, (x,), x, p, training)
    if not 0 <= p <= 1:
        raise ValueError(f"dropout: p must lie in [0, 1], but is {p}")
    if not training or p == 0:
        return x
    if is_csr(x):
        return with_values(x, dropout(x.values(), p, training))
    if torch.compiler.is_compiling() or not _has_plain_memory(x):
        return F.dropout(x, p)
    seed = int(torch.randint(2**63 - 1, (), device="cpu"))
    return _apply(x, partial(_core.dropout, p=p, seed=seed))


def dropout_rows(x: Tensor, ids: Tensor, p: float, key: int) -> Tensor:
    """:func:`dropout` whose mask depends on the id of each row, the channel and a key, and on nothing else.

    Args:
        x: rows [R, ...], whose further dimensions count as channels one after the other, or a matrix ``torch.sparse_csr``.
        ids: of the rows, int64 [R], on the device of ``x``.
        p: probability of dropping an entry.
        key: number of 64 bits.

    Returns:
        As :func:`dropout`: entry c of row r is kept if word c % 4 of Philox4x32-10, for this key and the counter
        (``ids[r]``, c // 4), is at least p * 2**32.
    """
    if is_csr(x):
        rows = ids.repeat_interleave(x.crow_indices().diff(), output_size=x.values().size(0))
        return with_values(x, _times(x.values(), philox.entry_words(key, rows, x.col_indices().long()), p))
    if _has_plain_memory(x):
        return _apply(x, lambda rows: _core.dropout_rows(rows, ids[: rows.size(0)], p, key))
    return _times(x, philox.row_words(key, ids, math.prod(x.shape[1:])), p)


def _times(x: Tensor, drawn: Tensor, p: float) -> Tensor:
    """``x`` with the entries dropped for which these words were drawn; the backward pass keeps a mask."""
    threshold = math.floor(p * 2**32 + 0.5)
    scale = 0.0 if threshold >> 32 else 1 / (1 - p)
    return torch.where((drawn >= threshold).view(x.shape), x * scale, x * 0.0)


def _apply(x: Tensor, draw: Callable[[Tensor], Tensor]) -> Tensor:
    """``x`` times the mask that ``draw`` draws for its first rows, however many it is given."""
    rows = batch_rows(x)
    if rows is None or not _has_plain_memory(rows):
        return _Dropout.apply(x, draw)
    return join(_Dropout.apply(rows, draw), draw(_packed(x.detach())))


def _has_plain_memory(x: Tensor) -> bool:
    """Whether the entries of ``x`` can be read at its address, and reading them is all there is to it."""
    return (
        type(x) in PLAIN
        and x.device.type == "cpu"
        and x.layout == torch.strided
        and x.dtype in _TYPES
        and torch._C._get_tracing_state() is None  # of torch.jit.trace
        and has_memory(x)  # those of torch.func and of batched gradients have none
    )


def _packed(x: Tensor) -> Tensor:
    return x.resolve_neg().contiguous()


class _Dropout(torch.autograd.Function):
    """A product with a mask, which is its own derivative in every mode and of every order."""

    # Not split into `forward` and `setup_context`: binding arguments to these takes longer than a small mask.
    @staticmethod
    def forward(ctx: Any, x: Tensor, draw: Callable[[Tensor], Tensor]) -> Tensor:
        ctx.draw = draw
        return draw(_packed(x))

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None]:
        if _has_plain_memory(grad):
            return _Dropout.apply(grad, ctx.draw), None
        return grad * ctx.draw(torch.ones(grad.shape, dtype=grad.dtype, device="cpu")), None

    @staticmethod
    def jvp(ctx: Any, tangent: Tensor, *_: None) -> Tensor:
        return _Dropout.apply(tangent, ctx.draw)
