"""Whether the loss of a batch is a mean over its own labelled rows, though batches have very different numbers of these."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

ENOUGH = 2  # epochs that are looked at
RATIO = 2.0  # of the largest to the smallest number of labelled rows


class LabelledRows:
    """Counts the rows of each batch that the loss gives a gradient, and how large these gradients are.

    Those of a sum over rows do not depend on the number of rows; those of a mean are the smaller the more there are.
    """

    def __init__(self) -> None:
        self._batches: list[Tensor] = []  # number of rows and mean norm of their gradients, [2]
        self._epochs = 0

    def add(self, grads: Sequence[Tensor]) -> None:
        """Counts the rows of a batch, from the gradients by what the model returned, [B, ...]."""
        if self._epochs >= ENOUGH or not grads:  # a model may return its loss alone
            return
        norms = torch.stack([grad.detach().flatten(1).float().norm(dim=1) for grad in grads]).sum(0)
        number = (norms > 0).sum()
        self._batches.append(torch.stack([number.float(), norms.sum() / number.clamp(min=1)]))

    def epoch(self) -> str | None:
        """What is wrong with the loss in the epoch that has ended, if anything is."""
        if self._epochs >= ENOUGH or not self._batches:
            return None
        number, norm = torch.stack(self._batches).double().cpu().unbind(1)
        self._batches, self._epochs = [], self._epochs + 1
        number, norm = number[norm > 0], norm[norm > 0]
        if number.numel() < 3 or float(number.max() / number.min()) <= RATIO:
            return None
        x, y = (each.log() - each.log().mean() for each in (number, norm))
        slope = float((x * y).sum() / x.square().sum())  # 0 of a sum, -1 of a mean
        if slope > -0.5:
            return None
        self._epochs = ENOUGH  # once is enough
        return (
            f"the loss looks like a mean over the labelled rows of each batch, of which batches have {int(number.min())} to "
            f"{int(number.max())}: a node counts the more the fewer there are beside it, and gradients of different weights are "
            "added up. Give all batches one scale: labelled_mean(F.cross_entropy(out[mask], y[mask], reduction='none'), batch)"
        )
