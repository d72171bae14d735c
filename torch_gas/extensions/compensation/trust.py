"""How much of a gradient table is added to the gradient that arrives."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

SAMPLE = 1024  # rows of a batch that are looked at, at most
LIMIT = 2.0  # of the norm of what is added, as a multiple of what arrives
PATIENCE = 1.25  # by how much gradients of the output may grow
SHARE = 0.1  # of those of the first steps, by which they must have grown as well
ENOUGH = 32  # labelled rows, over which they are averaged at least
SURE = 3.0  # standard errors
START = 0.25  # the level of trust
FALL, RISE = 0.5, 1.25  # its factors after epochs at whose end the loss rises, and after others
REACH = 2.0  # batches that a gradient has gone through, in the mean, at the highest level


class Trust(ABC):
    """Decides on :math:`\\beta` of each history in each step."""

    def __init__(self) -> None:
        self._betas: dict[int, float | Tensor] = {}  # of the last step

    def betas(self) -> list[float]:
        """Those of the last step, by history."""
        return [float(beta) for _, beta in sorted(self._betas.items())]

    def step(self, grads: Sequence[Tensor], num_batches: int | None, num_histories: int) -> None:
        """Begins a step, whose gradients by the batch's output are ``grads``, [B, ...], without the scale of a scaler.

        Args:
            grads: one for each output with a row for each node; none where the model returns its loss alone.
            num_batches: of the epoch, where that is known.
            num_histories: L - 1.
        """
        self._betas = {}

    def beta(self, layer: int, grad: Tensor, own: Tensor) -> float | Tensor:
        """For a batch's rows, from the gradient that has arrived and the rows of the table, both [B, C]."""
        self._betas[layer] = self._decide(layer, grad, own)
        return self._betas[layer]

    @abstractmethod
    def _decide(self, layer: int, grad: Tensor, own: Tensor) -> float | Tensor: ...

    def state_dict(self) -> dict[str, Any]:
        """What decides on the next steps."""
        return {}

    def load_state_dict(self, state: dict[str, Any]) -> None:  # noqa: B027  # what has no state needs none
        """Goes on from ``state``."""


def highest(num_histories: int) -> float:
    """The level of trust at which gradients have gone through :data:`REACH` batches, in the mean: sum of beta^k, k = 1 .. L-1."""
    low, high = 0.0, 1.0
    if num_histories <= REACH:
        return high
    for _ in range(30):
        middle = (low + high) / 2
        low, high = (middle, high) if sum(middle**k for k in range(1, num_histories + 1)) < REACH else (low, middle)
    return low


class Fixed(Trust):
    """The same in all steps."""

    def __init__(self, beta: float) -> None:
        super().__init__()
        self._beta = beta

    def _decide(self, layer: int, grad: Tensor, own: Tensor) -> float:
        return self._beta


class Auto(Trust):
    r"""As much as what is measured speaks for.

    .. math::
        \beta^{(l)} = c \cdot \min\!\Big(1, \frac{2 \|g^{(l)}\|}{\|G^{(l)}\|}\Big)

    with the gradient g that arrives at a batch's rows and the rows G of the table. Both come from neighbours of the same nodes,
    some of them in the batch and some of them not. But g is fresh, and G is the older the more batches its paths went through.
    While a model learns fast its gradients get smaller from step to step, and old ones, which are too large, would decide alone:
    so what is old may be twice as large as what is new, and no more. In a batch without labelled rows, the average of the last
    epoch stands for the norm of g.

    :math:`c` is a level that begins with a quarter, because parameters move fastest at first. After each epoch it rises by a
    quarter, or is halved if the loss is rising. A path through k batches is weighed by :math:`\beta^k` and has waited k times,
    so the level ends where :math:`\sum_{k=1}^{L-1} \beta^k = 2`: at 1 for three layers, at 0.67 for sixteen. And nothing is
    added in steps in which

    * the loss is rising: gradients by the batch's output, which the loss decides on alone, are larger than they were in the best
      steps so far, by a quarter and by a tenth of those of the first steps. Parameters then move faster than the gradients of a
      table can follow;
    * g and G point away from each other, over all histories in the mean of some steps and beyond three standard errors. Rows
      of the same nodes should not: so the table is wrong.

    All is measured on a sample of a batch's rows, and stays on their device.
    """

    def __init__(self) -> None:
        super().__init__()
        self._state: dict[str, Tensor] = {}
        self._steps = 0
        self._window = 10.0  # steps of an epoch
        self._factor = torch.zeros((), device="cpu")  # c of this step
        self._labelled: Tensor | None = None  # the number of rows of this step that have a gradient by the loss
        self._cosines: list[Tensor] = []  # of this step's histories

    def step(self, grads: Sequence[Tensor], num_batches: int | None, num_histories: int) -> None:
        super().step(grads, num_batches, num_histories)
        self._steps += 1
        self._window = float(max(num_batches or 10, 4))
        window = self._window / 2  # steps that averages are over
        rising, wrong = self._rising(grads, window), self._wrong(window)
        if self._steps % int(self._window) == 0:
            self._learn(rising, highest(num_histories))
        self._factor = self._level(rising.device) * (1.0 - torch.maximum(rising, wrong.to(rising.device)).float())

    def _decide(self, layer: int, grad: Tensor, own: Tensor) -> float | Tensor:
        stride = -(-len(grad) // SAMPLE)
        new, old = (each[self._steps % stride :: stride].float() for each in (grad, own))
        inner, of_new, of_old = (
            left.flatten().dot(right.flatten()) for left, right in ((new, old), (new, new), (old, old))
        )
        self._cosines.append(inner / (of_new * of_old).sqrt().clamp(min=torch.finfo(inner.dtype).tiny))
        size, arrives = (norm.sqrt() / max(len(new), 1) ** 0.5 for norm in (of_old, of_new))
        average = self._average(f"arrives {layer}", arrives, self._window)
        if self._labelled is not None:  # a batch without labels has next to nothing of its own
            arrives = torch.where(self._labelled.to(arrives.device) > 0, arrives, average)
        limit = (LIMIT * arrives / size.clamp(min=torch.finfo(inner.dtype).tiny)).clamp(max=1.0)
        return limit * self._factor.to(limit.device)

    def _rising(self, grads: Sequence[Tensor], window: float) -> Tensor:
        """Whether gradients by the output are larger than they were; not where there are none."""
        self._labelled = None
        rows = [each.detach().flatten(1).float().norm(dim=1) for each in grads]
        if not rows:
            return torch.zeros((), dtype=torch.bool, device="cpu")
        norms = torch.stack([each.sum() for each in rows]).sum()
        number = torch.stack([(each > 0).sum() for each in rows]).sum()
        self._labelled = number
        # Averages over so many steps as have enough labelled rows, each row with the same weight.
        seen = self._average("rows", number, window)
        longer = window * (ENOUGH / (seen * window).clamp(min=1.0)).clamp(min=1.0)
        total, count = self._average("norms", norms, longer), self._average("counts", number, longer)
        now = torch.where(count > 0, total / count, torch.inf)  # no batch had labelled rows yet
        first = self._state.get("first", now)
        self._state["first"] = torch.where(first.isfinite(), first, now)
        best = self._state.get("best", now)
        # The best of long ago does not count for ever.
        self._state["best"] = torch.minimum(best * (1 + 0.03 / window), now)
        return (now > PATIENCE * best) & (now > best + SHARE * first) & now.isfinite()

    def _learn(self, rising: Tensor, most: float) -> None:
        """Moves the level of trust, once an epoch."""
        level = self._level(rising.device)
        self._state["level"] = torch.where(rising, level * FALL, (level * RISE).clamp(max=most))

    def _level(self, device: torch.device) -> Tensor:
        return self._state.setdefault("level", torch.full((), START, device=device)).to(device)

    def _wrong(self, window: float) -> Tensor:
        """Whether tables pointed away from what arrived, in the steps before this one."""
        if not self._cosines:
            return torch.zeros((), dtype=torch.bool, device="cpu")
        cosine = torch.stack(self._cosines).mean()
        self._cosines = []
        mean = self._average("cosine", cosine, window)
        square = self._average("square", cosine * cosine, window)
        error = ((square - mean * mean).clamp(min=0) / min(self._steps, window)).sqrt()
        return (mean < -SURE * error) & (mean < 0)

    def _average(self, name: str, value: Tensor, window: float | Tensor) -> Tensor:
        """The average of ``value`` over the last ``window`` steps, or over all as long as there are fewer."""
        value = value.float()
        before = self._state.get(name, value).to(value.device)
        share = torch.as_tensor(1.0 / window, device=value.device).clamp(min=1.0 / max(self._steps, 1))
        self._state[name] = before + share * (value - before)
        return self._state[name]

    def state_dict(self) -> dict[str, Any]:
        return {**self._state, "steps": self._steps, "cosines": self._cosines}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        state = dict(state)
        self._steps, self._cosines = state.pop("steps"), list(state.pop("cosines"))
        self._state = state
