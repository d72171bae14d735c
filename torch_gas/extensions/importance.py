"""Refresh by importance: the batches first whose rows are old and matter to others."""

from __future__ import annotations

from dataclasses import dataclass, field
from weakref import WeakKeyDictionary

import torch
from torch import Tensor

from torch_gas._util.arguments import checked_fields
from torch_gas.batch.hot_nodes import num_reads
from torch_gas.batch.loader import SubgraphLoader
from torch_gas.extensions.refresh import Ranked, Refresher, ages

_reads: WeakKeyDictionary[SubgraphLoader, Tensor] = WeakKeyDictionary()  # how many batches read each row


@checked_fields
@dataclass(frozen=True, eq=False)
class Important(Ranked):
    r"""Forward passes of the batches whose rows are old and important, until a budget is spent (after REST,
    https://arxiv.org/abs/2410.05416, ICML 2025).

    .. math::
        \text{score}(B) = \frac{1}{|B|} \sum_{v \in B} c_v \, a_v

    with the importance :math:`c_v` of a node and the age :math:`a_v` of its rows in steps, summed over histories; a row that was
    never pushed is older than any other. REST runs more forward passes than backward ones, and in its second form spends them
    by importance: ``EverySteps(1, Important(batches=2))`` is two forward passes for each step. The batches of the highest
    scores come, without a draw; their ages are 0 then, so that others follow.

    The default importance is how many batches of the loader read a row, so that a refresh is spent where most of it is read. With
    the same importance for all nodes, it is a :class:`~torch_gas.extensions.refresh.Stalest`.

    Args:
        batches: how many batches of the loader.
        nodes: instead, how many rows B these may have together.
        importance: of each node, [N], at least 0, in the order of the loader's graph: degrees, say, or a PageRank.

    Raises:
        ValueError: if both budgets are given or none, one is not positive, or importance is negative, not finite or 0 for all
            nodes; at a refresh, if it has another length than N.

    Example:
        >>> from torch_geometric.nn import GraphSAGE
        >>> from torch_gas import EvalSubgraphLoader, SubgraphLoader, metis, permute, scale
        >>> from torch_gas.datasets import synthetic
        >>> from torch_gas.extensions import Important
        >>> from torch_gas.extensions.refresh import BeforeTraining, EverySteps
        >>> data = synthetic(1000)
        >>> perm, ptr = metis(data, num_parts=8, log=False)
        >>> data = permute(data, perm, log=False)
        >>> model = scale(GraphSAGE(data.num_features, 16, num_layers=3, out_channels=10), data)
        >>> policy = BeforeTraining() | EverySteps(1, Important(batches=2))
        >>> refresher = policy.bind(model, EvalSubgraphLoader(data, ptr), data)
        >>> model.add_extension(refresher)
        >>> for batch in SubgraphLoader(data, ptr, shuffle=True):
        ...     model(batch).square().mean().backward()
        >>> refresher.cost.batches  # the whole graph once, then two batches before each step but the first
        15
    """

    importance: Tensor | None = field(default=None, repr=False)

    # A policy keeps one of equal refreshes, and tensors do not say whether they are equal.
    __eq__ = object.__eq__
    __hash__ = object.__hash__

    def __post_init__(self) -> None:
        super().__post_init__()
        given = self.importance
        if given is None:
            return
        if given.dim() != 1 or given.is_complex() or given.dtype == torch.bool:
            raise ValueError(f"Important: importance must be numbers, [N], but is {given.dtype} {list(given.shape)}")
        if not bool((given.isfinite() & (given >= 0)).all()) or not bool((given > 0).any()):
            raise ValueError("Important: importance must be finite, at least 0, and more than 0 for one node")

    def scores(self, refresher: Refresher) -> Tensor:
        loader, importance = refresher.loader, self.importance
        if importance is None:
            if loader not in _reads:
                _reads[loader] = num_reads(loader)
            importance = _reads[loader]
        if len(importance) != loader.num_nodes:
            raise ValueError(
                f"Important: importance has {len(importance)} entries, but the graph has {loader.num_nodes} nodes"
            )
        return importance.cpu().double() * ages(refresher)
