"""Groups: parts that stay together in a batch while the order of batches is shuffled."""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch.utils.data import BatchSampler, RandomSampler


class Groups(BatchSampler):
    """Draws groups of parts once, and their order in each epoch.

    Args:
        num_parts: how many parts there are.
        batch_size: parts in a group; the last one may have fewer.
        drop_last: whether to leave that one out, and its parts with it, in all epochs.
        generator: what groups and orders are drawn from; the global random state if it is None.

    Attributes:
        groups: indices of the parts of each group.
    """

    def __init__(self, num_parts: int, batch_size: int, drop_last: bool, generator: torch.Generator | None) -> None:
        order = torch.randperm(num_parts, generator=generator, device="cpu").tolist()
        self.groups: list[list[int]] = list(BatchSampler(order, batch_size, drop_last))
        if not self.groups:
            raise ValueError(
                f"SubgraphLoader: drop_last leaves out all of the {num_parts} parts, because batch_size is {batch_size}; make "
                "batch_size smaller, or leave out drop_last"
            )
        super().__init__(RandomSampler(range(len(self.groups)), generator=generator), batch_size, drop_last)

    def __len__(self) -> int:
        return len(self.groups)

    def __iter__(self) -> Iterator[list[int]]:
        return (self.groups[i] for i in self.sampler)
