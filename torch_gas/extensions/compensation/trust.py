"""How much of a gradient table is added to the gradient that arrives."""

from __future__ import annotations

from typing import Any

from torch import Tensor

from torch_gas.extensions.compensation.passes import Pass


class Fixed:
    """The same part in each step."""

    def __init__(self, beta: float) -> None:
        self._beta = beta
        self._layers = 0

    def beta(self, passed: Pass, layer: int, grad: Tensor, own: Tensor) -> float | Tensor:
        return self._beta

    def betas(self) -> list[float]:
        return []

    def state_dict(self) -> dict[str, Any]:
        return {}

    def load_state_dict(self, state: dict[str, Any]) -> None: ...


class Auto(Fixed):
    def __init__(self) -> None:
        super().__init__(1.0)
