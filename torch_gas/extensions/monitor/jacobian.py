"""The largest singular value of a Jacobian, without the Jacobian."""

from __future__ import annotations

import torch
from torch import Tensor

STEPS = 30


def jacobian_norm(out: Tensor, x: Tensor, steps: int = STEPS) -> float:
    """The largest singular value of the derivative of ``out`` with regard to ``x``, by power iteration.

    It approaches the value from below. Products with the Jacobian are derivatives of those with its transpose, which are linear.

    Args:
        out: a function of ``x`` in the graph of gradients, with second derivatives.
        x: a leaf of that graph.
        steps: number of iterations.
    """
    if not out.requires_grad:
        return 0.0
    left = torch.zeros_like(out, requires_grad=True)
    (product,) = torch.autograd.grad(out, x, left, create_graph=True, allow_unused=True)
    if product is None:
        return 0.0
    generator = torch.Generator(x.device).manual_seed(0)
    right, norm = torch.randn(x.shape, generator=generator, dtype=x.dtype, device=x.device), 0.0
    for _ in range(steps):
        if float(right.norm()) == 0:
            return 0.0
        (image,) = torch.autograd.grad(product, left, right / right.norm(), retain_graph=True)
        norm = float(image.norm())
        (right,) = torch.autograd.grad(out, x, image, retain_graph=True)
    return norm
