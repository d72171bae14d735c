"""Batches of parts of a graph that need not be permuted: a part is then many ranges of one node each."""

from __future__ import annotations

import torch
from torch import Tensor

from torch_gas.batch.loader import SubgraphLoader
from torch_gas.planner.memory import Size

EPOCHS = 4  # whose batches are looked at


def single_node_ranges(ids: Tensor) -> tuple[Tensor, Tensor]:
    """``offset`` and ``count`` of the batch of any nodes, [B] each."""
    return ids, torch.ones_like(ids)


def sample(loader: SubgraphLoader, batch_size: int, ptr: Tensor, perm: Tensor | None = None) -> list[Size]:
    """Sizes of the batches of four epochs over random parts.

    Args:
        loader: of the graph.
        batch_size: parts in a batch.
        ptr: start of each part and N, [num_parts + 1].
        perm: id of the node at each position, [N]; None for a graph in the order of its parts.
    """
    generator = torch.Generator().manual_seed(0)
    parts = (ptr.diff() > 0).nonzero().view(-1)
    orders = (parts[torch.randperm(parts.numel(), generator=generator, device="cpu")] for _ in range(EPOCHS))
    sizes = []
    for batch in (batch for order in orders for batch in order.split(batch_size)):
        ranges = ptr[batch], ptr[batch + 1] - ptr[batch]
        if perm is not None:
            pieces = zip(*map(Tensor.tolist, ranges), strict=True)
            ranges = single_node_ranges(torch.cat([perm[start : start + count] for start, count in pieces]))
        sub, num_rows = loader.builder.subgraph(*ranges), int(ranges[1].sum())
        sizes.append(Size(num_rows, sub.n_id.numel() - num_rows, sub.col.numel()))
    return sizes
