"""Gradients of a loss that a GradScaler has scaled."""

from __future__ import annotations

import gc
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

        A scaler skips it where the gradient of a parameter is not finite. Numbers of 16 bits may also overflow in single rows.
        Without a scaler, nothing of a GPU is waited for.
        """
        of_parameters = [each.grad for each in parameters if each.grad is not None]
        of_rows = list(grads)
        if self.factor is None:
            of_parameters, of_rows = ([each for each in both if not each.is_cuda] for both in (of_parameters, of_rows))
        if self.factor is None and of_parameters:  # which are not finite where those of float32 rows are not
            of_rows = [each for each in of_rows if each.dtype.itemsize < torch.float32.itemsize]
        return all(bool(_values(grad).sum(dtype=torch.float32).isfinite()) for grad in (*of_parameters, *of_rows))


def _values(grad: Tensor) -> Tensor:
    return grad.coalesce().values() if grad.is_sparse else grad


def unknown_scaler() -> GradScaler | None:
    """A GradScaler that has scaled something in this process."""
    gc.collect()  # those of earlier runs that nobody has any more
    found = (each for each in gc.get_objects() if issubclass(type(each), GradScaler))
    return next((each for each in found if each.is_enabled() and each._scale is not None), None)
