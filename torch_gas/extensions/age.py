"""Weights by age: the older a halo row, the less of it a batch reads."""

from __future__ import annotations

import math
from typing import Literal

import torch
from torch import Tensor

from torch_gas._util.arguments import checked
from torch_gas.history import History
from torch_gas.session.call import Call
from torch_gas.session.extension import Extension

Unit = Literal["step", "epoch"]


class AgeWeights(Extension):
    r"""In training, rows of the halo count less the older they are, after VISAGNN (https://arxiv.org/abs/2511.12434).

    .. math::
        h_w \leftarrow e^{-\gamma(t) \, a_w} \, \bar{h}_w \text{ for } w \in N(B) \setminus B,
        \qquad \gamma(t) = \frac{\text{rate}}{t}

    Here :math:`t = 1, 2, \ldots` is the epoch, and :math:`a_w` the age of a row: the steps between the one that pushed it and the
    one under way, or these in epochs. A row that the step before pushed, or that was refreshed since, has age 0 and stays as it
    is. Later epochs trust old rows more, because parameters then move less.

    The paper puts its measure of staleness, with a factor :math:`\beta / t`, into attention coefficients, and into the loss and
    the embeddings too. This is the form of the first that any layer takes: a row that is scaled is a message that is scaled,
    where messages are linear in rows. Layers that compare rows (attention, max) see smaller rows, and no smaller coefficients.
    Histories keep the rows as they were pushed, and evaluation reads them as they are.

    Args:
        rate: :math:`\gamma` of the first epoch, for one unit of age. At 0, training is without weights, to the bit. It may be
            changed during training.
        unit: of the age: ``"step"`` of the optimiser, or ``"epoch"`` (as many steps as an epoch of the loader has batches).
        falls: whether the rate is divided by the epoch; if not, it stays.

    Raises:
        ValueError: if ``rate`` is negative or not finite, or ``unit`` another one; in training, if ages are in epochs and a batch
            does not tell how many its epoch has.

    Example:
        >>> from torch_geometric.nn import GraphSAGE
        >>> from torch_gas import SubgraphLoader, metis, permute, scale
        >>> from torch_gas.datasets import synthetic
        >>> from torch_gas.extensions import AgeWeights
        >>> data = synthetic(1000)
        >>> perm, ptr = metis(data, num_parts=8, log=False)
        >>> data = permute(data, perm, log=False)
        >>> model = scale(GraphSAGE(data.num_features, 16, num_layers=3, out_channels=10), data)
        >>> model.add_extension(AgeWeights(rate=0.5))
        >>> for batch in SubgraphLoader(data, ptr, batch_size=2, shuffle=True):
        ...     model(batch).square().mean().backward()
    """

    takes_part = True

    @checked
    def __init__(self, rate: float = 0.5, unit: Unit = "epoch", falls: bool = True) -> None:
        if not (rate >= 0 and math.isfinite(rate)):
            raise ValueError(f"AgeWeights: rate must be at least 0, but is {rate}")
        if unit not in ("step", "epoch"):
            raise ValueError(f'AgeWeights: unit must be "step" or "epoch", but is {unit!r}')
        self.rate, self.unit, self.falls = rate, unit, falls

    def exchange(self, call: Call, history: History, rows: Tensor, pulled: Tensor) -> None:
        if not call.is_step or self.rate == 0 or len(pulled) == 0:
            return
        assert call.n_id is not None
        pushed_at = history.pushed_at
        halo = call.n_id[len(rows) :].to(pushed_at.device)
        # The step under way has been counted already. Rows that were never pushed are zeros, which no weight changes.
        age = (history.clock.to(pushed_at.device) - pushed_at[halo] - 1).clamp(min=0)
        weight = torch.exp(-self._rate(call) * age.double()).to(pulled)
        pulled.mul_(weight.view(-1, 1))

    def _rate(self, call: Call) -> float:
        """That of one step of age now."""
        epoch = None if call.record is None else call.record.epoch
        rate = self.rate / (1 + (epoch or 0)) if self.falls else self.rate
        if self.unit == "step":
            return rate
        if call.record is None or call.record.num_batches is None:
            raise ValueError(
                f"{call.model._name}: AgeWeights counts ages in epochs, but this batch does not tell how many batches its epoch "
                'has; pass batches as a loader gives them, or AgeWeights(unit="step")'
            )
        return rate / call.record.num_batches
