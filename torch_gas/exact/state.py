"""Buffers that each forward pass in training moves, such as the vectors of a spectral norm: a step moves them once."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import Module

from torch_gas._util.version import version
from torch_gas.history import History
from torch_gas.wiring.undo import Undo

_SMALL = 2**12  # values of a buffer that are compared after each pass


class State:
    """The buffers of ``model`` but for tables. All passes of a step begin with the same, as the one of the full batch does.

    The full batch moves those of a convolution between its calls, if it has several; here each call begins with the same.

    Args:
        undo: puts the model's own buffers back, which passes work on copies of.
        model: any module.
    """

    def __init__(self, undo: Undo, model: Module) -> None:
        self._given: dict[tuple[Module, str], Tensor] = {}
        self._copies: dict[tuple[Module, str], tuple[Tensor, int]] = {}
        self._moved: dict[tuple[Module, str], Tensor] = {}
        for module in model.modules():
            if isinstance(module, History):
                continue
            for name, value in module._buffers.items():
                if value is not None:
                    self._given[module, name] = value
                    undo.add(module._buffers.update, {name: value})
        for place in self._given:
            self._copy(place)

    def _copy(self, place: tuple[Module, str]) -> None:
        module, name = place
        copy = module._buffers[name] = self._given[place].clone()
        self._copies[place] = copy, version(copy)

    def put_back(self) -> None:
        """Takes back what a pass has moved.

        Raises:
            ValueError: if passes do not move it in the same way.
        """
        for place, (copy, number) in self._copies.items():
            module, name = place
            now = module._buffers[name]
            if now is copy and version(copy) == number and not self._has_moved(place, now):
                continue
            self._copy(place)
            if now is None or not torch.equal(self._moved.setdefault(place, now), now):
                raise ValueError(
                    f"ExactGradient: the buffer {name} of {type(module).__name__} moves with each forward pass in training, by "
                    "rows of a batch, so that a step of the full batch would move it elsewhere; move it after the step, outside "
                    "of forward, or train with histories, batch by batch"
                )

    def _has_moved(self, place: tuple[Module, str], now: Tensor) -> bool:
        """Whether values tell, as ``.data`` and :func:`torch.nn.functional.batch_norm` count no version; not for large ones."""
        given = self._given[place]
        return now.numel() <= _SMALL and not torch.equal(now, given) and not bool((now != now).any())

    @torch.no_grad()
    def step(self) -> None:
        """Moves the model's own buffers as one pass does."""
        for place, value in self._moved.items():
            self._given[place].copy_(value)
