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
WORSE = 1.05  # of those of the first steps, above which a model is worse than an untrained one
ENOUGH = 32  # labelled rows, over which they are averaged at least
START = 0.25  # the level of trust
FALL, RISE = 0.5, 1.25  # its factors after epochs at whose end the loss rises, and after others
WIDTH = 64  # columns of a history's rows by which gradients of parameters are estimated, at most
MEMORY = 4.0  # epochs that agreement is averaged over
AGREE = (0.02, 0.05)  # cosine of g and G at which a table is trusted not at all, and fully
RELATED = (0.1, 0.2)  # the same of |cosine| of the gradients of parameters
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

    def beta(self, layer: int, rows: Tensor, grad: Tensor, own: Tensor) -> float | Tensor:
        """For ``rows`` of a batch, from the gradient that has arrived and the rows of the table, [B, C] each."""
        self._betas[layer] = self._decide(layer, rows, grad, own)
        return self._betas[layer]

    @abstractmethod
    def _decide(self, layer: int, rows: Tensor, grad: Tensor, own: Tensor) -> float | Tensor: ...

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

    def _decide(self, layer: int, rows: Tensor, grad: Tensor, own: Tensor) -> float:
        return self._beta


class Auto(Trust):
    r"""As much as what is measured speaks for.

    .. math::
        \beta^{(l)} = c \cdot a^{(l)} \cdot \min\!\Big(1, \frac{2 \|g^{(l)}\|}{\|G^{(l)}\|}\Big)

    with the gradient g that arrives at a batch's rows and the rows G of the table. Both come from neighbours of the same nodes,
    some of them in the batch and some of them not. But g is fresh, and G is the older the more batches its paths went through.
    While a model learns fast its gradients get smaller from step to step, and old ones, which are too large, would decide alone:
    so what is old may be twice as large as what is new, and no more. In a batch without labelled rows, the average of the last
    epoch stands for the norm of g.

    :math:`c` is a level that begins with a quarter, because parameters move fastest at first. After each epoch it rises by a
    quarter, or is halved if the loss is rising. A path through k batches is weighed by :math:`\beta^k` and has waited k times,
    so the level ends where :math:`\sum_{k=1}^{L-1} \beta^k = 2`: at 1 for three layers, at 0.67 for sixteen.

    Nothing is added in steps in which the loss is rising: gradients by the batch's output, which the loss decides on alone, are
    larger than they were in the best steps so far, by a quarter and by a tenth of those of the first; or larger than those of the
    first steps, by a twentieth. Parameters then move faster than the gradients of a table can follow.

    :math:`a` tells tables that say something, 1, from tables of noise, 0, by the larger of two measures, both of the last epochs:

    * the cosine of g and G, from 0.02 to 0.05. Neighbours of one node mostly ask the same of it. Where it is negative in the
      mean of the last steps, the table is wrong, and :math:`a` is 0 whatever else;
    * the cosine of the sums of :math:`H^\top g` and of :math:`H^\top G` over an epoch, with the rows H of the history, of either
      sign, from 0.1 to 0.2. They stand for the gradients of parameters. These agree while a model learns, and cancel each other
      where the loss is smallest; those of noise do neither.

    Both begin with 0, so that it takes some epochs until a table is trusted.

    All is measured on a sample of a batch's rows, and stays on their device.
    """

    def __init__(self) -> None:
        super().__init__()
        self._state: dict[str, Tensor] = {}
        self._steps = 0
        self._window = 10.0  # steps of an epoch
        self._factor = torch.zeros((), device="cpu")  # c of this step
        self._labelled: Tensor | None = None  # the number of rows of this step that have a gradient by the loss

    def step(self, grads: Sequence[Tensor], num_batches: int | None, num_histories: int) -> None:
        super().step(grads, num_batches, num_histories)
        self._steps += 1
        self._window = float(max(num_batches or 10, 4))
        rising = self._rising(grads, self._window / 2)
        if self._steps % int(self._window) == 0:
            self._learn(rising, highest(num_histories))
        self._factor = self._level(rising.device) * (1.0 - rising.float())

    def _decide(self, layer: int, rows: Tensor, grad: Tensor, own: Tensor) -> float | Tensor:
        stride = -(-len(grad) // SAMPLE)
        first = self._steps % stride  # other rows in each step
        values, new, old = (each[first::stride].flatten(1).contiguous().float() for each in (rows, grad, own))
        of_new, of_old = new.norm(), old.norm()
        tiny = torch.finfo(new.dtype).tiny
        cosine = new.flatten().dot(old.flatten()) / (of_new * of_old).clamp(min=tiny)
        average = self._average(f"arrives {layer}", of_new / max(len(new), 1) ** 0.5, self._window)
        if self._labelled is not None:  # a batch without labels has next to nothing of its own
            of_new = torch.where(self._labelled.to(of_new.device) > 0, of_new, average * len(new) ** 0.5)
        limit = (LIMIT * of_new / of_old.clamp(min=tiny)).clamp(max=1.0)
        values = values[:, :WIDTH].T
        agreement = self._agreement(layer, cosine, values @ new, limit * (values @ old))
        return limit * agreement * self._factor.to(limit.device)

    def _agreement(self, layer: int, cosine: Tensor, ours: Tensor, theirs: Tensor) -> Tensor:
        """How much a table says, in 0 .. 1, after another step: its cosine by rows, and what both mean for parameters, [K, C]."""
        ours = self._average(f"ours {layer}", ours, self._window)
        theirs = self._average(f"theirs {layer}", theirs, self._window)
        recent, rows = (
            self._average(f"recent {layer}", cosine, self._window / 2),
            self._lasting(f"rows {layer}", cosine),
        )
        parameters = self._lasting(f"parameters {layer}", _cosine(ours, theirs))
        return torch.where(recent < 0, 0.0, torch.maximum(_part(rows, *AGREE), _part(parameters.abs(), *RELATED)))

    def _lasting(self, name: str, value: Tensor) -> Tensor:
        """The average of ``value`` over some epochs, which begins with 0."""
        before = self._state.get(name, torch.zeros_like(value)).to(value.device)
        self._state[name] = before + (value - before) / (MEMORY * self._window)
        return self._state[name]

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
        is_larger = (now > PATIENCE * best) & (now > best + SHARE * first)
        return (is_larger | (now > WORSE * first)) & now.isfinite()

    def _learn(self, rising: Tensor, most: float) -> None:
        """Moves the level of trust, once an epoch."""
        level = self._level(rising.device)
        self._state["level"] = torch.where(rising, level * FALL, (level * RISE).clamp(max=most))

    def _level(self, device: torch.device) -> Tensor:
        return self._state.setdefault("level", torch.full((), START, device=device)).to(device)

    def _average(self, name: str, value: Tensor, window: float | Tensor) -> Tensor:
        """The average of ``value`` over the last ``window`` steps, or over all as long as there are fewer."""
        value = value.float()
        before = self._state.get(name, value).to(value.device)
        if isinstance(window, Tensor):
            share: Any = (1.0 / window).clamp(min=1.0 / max(self._steps, 1)).to(value.device)
        else:
            share = max(1.0 / window, 1.0 / max(self._steps, 1))
        self._state[name] = torch.lerp(before, value, share)
        return self._state[name]

    def state_dict(self) -> dict[str, Any]:
        return {**self._state, "steps": self._steps}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        state = dict(state)
        self._steps = state.pop("steps")
        self._state = state


def _cosine(left: Tensor, right: Tensor) -> Tensor:
    """Of all entries; 0 where one has none."""
    product = left.flatten().dot(right.flatten())
    return product / (left.norm() * right.norm()).clamp(min=torch.finfo(product.dtype).tiny)


def _part(value: Tensor, none: float, full: float) -> Tensor:
    """Where ``value`` lies between two limits, in 0 .. 1."""
    return ((value - none) / (full - none)).clamp(0.0, 1.0)
