"""Sums over edges of what a dense layer and a ReLU make of each source, whose gradient is computed in fewer passes."""

from __future__ import annotations

from typing import Any, cast

import torch
import torch.nn.functional as F
from torch import Tensor

from torch_gas import _core
from torch_gas.graph.formats import is_csr
from torch_gas.graph.halo import batch_rows, join, linear
from torch_gas.graph.product import Edges, aggregate

_TYPES = (torch.float32, torch.float64)


def relu_sums(x: Tensor, weight: Tensor, bias: Tensor, edges: Edges, factors: Tensor) -> Tensor:
    """The sum of ``relu(linear(x, weight, bias))`` over each destination's sources, [num_dst, K * C].

    Args:
        x: rows, [num_src, C_in], on the CPU.
        weight: [K * C, C_in].
        bias: [K * C].
        edges: the edges.
        factors: by which the C columns of each of K parts are multiplied on their way, [num_dst, K].
    """
    by_edge = _by_edge(factors, edges)
    if x.dtype not in _TYPES or is_csr(x) or torch.is_autocast_enabled(x.device.type):
        return _plain(x, weight, bias, edges, by_edge)
    own = batch_rows(x)
    return cast(Tensor, _ReluSums.apply(x if own is None else own, weight, bias, edges, by_edge, x.detach()))


def _plain(x: Tensor, weight: Tensor, bias: Tensor, edges: Edges, by_edge: Tensor) -> Tensor:
    """The same by functions that have gradients of gradients."""
    h = linear(x, weight, bias).relu()
    return aggregate(h.view(h.size(0), by_edge.size(1), -1), edges, by_edge).flatten(1)


def _by_edge(factors: Tensor, edges: Edges) -> Tensor:
    """A number for each edge, in the user's order, and each part, [E, K]."""
    rowptr, col, _, order, *_ = edges.by_destination
    found = torch.repeat_interleave(factors, rowptr.diff(), dim=0, output_size=col.numel())
    return found if order is None else torch.empty_like(found).index_copy_(0, order, found)


class _ReluSums(torch.autograd.Function):
    """``rows`` are the first of ``full``, and have a gradient alone."""

    @staticmethod
    def forward(
        ctx: Any, rows: Tensor, weight: Tensor, bias: Tensor, edges: Edges, by_edge: Tensor, full: Tensor
    ) -> Tensor:
        h = F.linear(full, weight, bias).relu_().view(full.size(0), by_edge.size(1), -1)
        ctx.edges = edges
        ctx.save_for_backward(rows, weight, bias, by_edge, full, h, *edges.stated)
        return edges.multiply(h, by_edge, transposed=False).flatten(1)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        rows, weight, bias, by_edge, full, h, *_ = ctx.saved_tensors
        needs_rows, needs_weight, needs_bias, *_ = ctx.needs_input_grad
        if torch.is_grad_enabled():
            out = _plain(join(rows, full), weight, bias, ctx.edges, by_edge)
            inputs = [each for each, needed in zip((rows, weight, bias), ctx.needs_input_grad, strict=False) if needed]
            found = iter(torch.autograd.grad(out, inputs, grads[0], create_graph=True))
            return *[next(found) if needed else None for needed in ctx.needs_input_grad[:3]], None, None, None
        grad = _core.product(ctx.edges.by_source, grads[0].view(-1, *h.shape[1:]), by_edge, gate=h).flatten(1)
        grad_rows = grad[: rows.size(0)] @ weight if needs_rows else None
        # MKL takes a sixth less for these than for grad.t() @ full, and half as long as torch for a sum.
        grad_weight = (full.t() @ grad).t() if needs_weight else None
        grad_bias = grad.t() @ grad.new_ones(grad.size(0)) if needs_bias else None
        return grad_rows, grad_weight, grad_bias, None, None, None
