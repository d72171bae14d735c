"""Waves: several forward passes of all batches before the parameters move."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from torch_gas._util.arguments import checked_fields
from torch_gas.extensions.refresh import Refresh, Refresher


@checked_fields
@dataclass(frozen=True)
class Waves(Refresh):
    r"""Forward passes of all batches in the mode of training, without gradient (WaveGAS, https://arxiv.org/abs/2502.19986).

    .. math::
        h_B^{(l, i)} = f^{(l)}\big(h_B^{(l-1, i)}, \, \bar{h}^{(l-1, i-1)}_{N(B) \setminus B}\big)
        \qquad \text{for all batches } B, \quad i = 1, \ldots, \text{passes}

    This is waveform relaxation: each part is computed of what the others were last, over and over, until what they exchange
    settles. Without dropout and batch norms, the history of layer l is exact after l passes. Passes over one batch alone would
    all give the same rows: these depend on its halo, which only other batches renew.

    It is a way to refresh, so a policy says when: ``EveryEpochs(1, Waves(2))`` between epochs, ``EverySteps(1, Waves(2))``
    between steps, each time two forward passes of each batch. The paper's gradients of histories are no part of it.

    A :class:`~torch_gas.extensions.refresh.Sweep` does the same in evaluation mode. Here dropout draws masks, and batch norms
    take the statistics of batches, as in the steps that read the rows; running statistics move with each pass. Random numbers
    are afterwards what they were before.

    Args:
        passes: how many; 0 for none.

    Raises:
        ValueError: if ``passes`` is negative.

    Example:
        >>> from torch_geometric.nn import GraphSAGE
        >>> from torch_gas import SubgraphLoader, metis, permute, scale
        >>> from torch_gas.datasets import synthetic
        >>> from torch_gas.extensions import Waves
        >>> from torch_gas.extensions.refresh import BeforeTraining, EveryEpochs
        >>> data = synthetic(1000)
        >>> perm, ptr = metis(data, num_parts=8, log=False)
        >>> data = permute(data, perm, log=False)
        >>> loader = SubgraphLoader(data, ptr, batch_size=2, shuffle=True)
        >>> model = scale(GraphSAGE(data.num_features, 16, num_layers=3, out_channels=10, dropout=0.5), data)
        >>> policy = BeforeTraining(Waves(2)) | EveryEpochs(1, Waves(2))
        >>> waves = policy.bind(model, SubgraphLoader(data, ptr, batch_size=2))
        >>> model.add_extension(waves)
        >>> for epoch in range(2):
        ...     for batch in loader:
        ...         model(batch).square().mean().backward()
        >>> waves.cost.batches  # two passes over four batches, twice
        16
    """

    passes: int = 1
    in_training: ClassVar[bool] = True

    def __post_init__(self) -> None:
        if self.passes < 0:
            raise ValueError(f"Waves: passes must not be negative, but is {self.passes}")

    def run(self, refresher: Refresher) -> None:
        for _ in range(self.passes):
            refresher.cost.sweeps += 1
            refresher.forward(refresher.loader)
