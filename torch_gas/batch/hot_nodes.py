"""The nodes whose rows batches ask for most often."""

from __future__ import annotations

import torch
from torch import Tensor

from torch_gas._util.arguments import checked
from torch_gas.batch.loader import SubgraphLoader


@checked
def hot_nodes(loader: SubgraphLoader, number: int | None = None) -> Tensor:
    """The nodes that are in the most halos, which are those whose rows histories are asked for most often.

    Args:
        loader: the batches to train on. Where parts meet at random, a node counts once for each part that reads it.
        number: the most nodes to return; by default all that are in any halo.

    Returns:
        Their ids, the most frequent first, [H], int64; for :meth:`ScalableGNN.keep_hot`.

    Raises:
        ValueError: if ``number`` is negative.

    Example:
        >>> from torch_gas import SubgraphLoader, hot_nodes, metis, permute
        >>> from torch_gas.datasets import synthetic
        >>> data = synthetic(1000)
        >>> perm, ptr = metis(data, num_parts=8, log=False)
        >>> loader = SubgraphLoader(permute(data, perm, log=False), ptr, batch_size=2, shuffle=True)
        >>> hot_nodes(loader, number=50).shape
        torch.Size([50])
    """
    if number is not None and number < 0:
        raise ValueError(f"hot_nodes: number must not be negative, but is {number}")
    counts = num_reads(loader)
    order = counts.argsort(descending=True, stable=True)
    return order[: int((counts > 0).sum())][:number]


def num_reads(loader: SubgraphLoader) -> Tensor:
    """How many halos each node is in, [N], int64, on the CPU. Where parts meet at random, each part counts as a batch."""
    counts = torch.zeros(loader.num_nodes, dtype=torch.int64, device="cpu")
    for halo in loader.halos():
        counts[halo] += 1
    return counts
