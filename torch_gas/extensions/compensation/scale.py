"""Gradients of a loss that a GradScaler has scaled."""

from __future__ import annotations

from collections.abc import Iterable

import torch
from torch import Tensor
from torch.amp import GradScaler


class Scale:
    """The scale of the loss in a backward pass; tables hold gradients without it.

    Args:
        scaler: what scales it, if anything does.
        device: of the gradients.
    """

    def __init__(self, scaler: GradScaler | None, device: torch.device) -> None:
        is_scaled = scaler is not None and scaler.is_enabled()
        self.factor = scaler.scale(torch.ones((), device=device)) if is_scaled and scaler is not None else None

    def apply(self, rows: Tensor, dtype: torch.dtype) -> Tensor:
        """Rows of a table as the gradient has them, in its type."""
        return (rows if self.factor is None else rows * self.factor).to(dtype)

    def remove(self, grad: Tensor) -> Tensor:
        """A gradient as the table has it."""
        return grad if self.factor is None else grad.to(torch.promote_types(grad.dtype, torch.float32)) / self.factor

    def is_finite(self, grads: Iterable[Tensor], parameters: Iterable[Tensor]) -> bool:
        """Whether a step will be made of these gradients, as far as that is known.

        A scaler skips it where the gradient of a parameter is not finite. Without one, nothing of a GPU is waited for.
        """
        looked_at = [grad for grad in grads if self.factor is not None or not grad.is_cuda]
        if self.factor is not None:
            looked_at += [each.grad for each in parameters if each.grad is not None]
        return all(bool(_values(grad).sum(dtype=torch.float32).isfinite()) for grad in looked_at)


def _values(grad: Tensor) -> Tensor:
    return grad.coalesce().values() if grad.is_sparse else grad


def unknown_scaler() -> GradScaler | None:
    """A GradScaler that has scaled something in this process."""
    import gc

    found = (each for each in gc.get_objects() if issubclass(type(each), GradScaler))
    return next((each for each in found if each.is_enabled() and each._scale is not None), None)
