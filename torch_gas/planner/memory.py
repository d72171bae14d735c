"""Memory that is free, and that of a training step as a linear function of the batch's size, fitted to measured steps."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import combinations
from typing import NamedTuple

import psutil
import torch


class Size(NamedTuple):
    """Size of a batch.

    Args:
        batch_size: B.
        halo_size: S.
        num_edges: E_B.
    """

    batch_size: int
    halo_size: int
    num_edges: int


class StepMemory(NamedTuple):
    """Bytes of device memory at the peak of a training step.

    Args:
        constant: whatever the batch is.
        batch_row: for each of the B rows.
        halo_row: for each of the S rows.
        edge: for each edge.
    """

    constant: float
    batch_row: float
    halo_row: float
    edge: float

    def __call__(self, size: Size) -> int:
        """Bytes of a step on a batch of that size."""
        terms = zip(self, (1, *size), strict=True)
        return round(sum(term * number for term, number in terms))


def fit(sizes: Sequence[Size], peaks: Sequence[int]) -> StepMemory:
    """The function with the least squared relative errors whose terms are not negative.

    The best of four terms or fewer without that condition, among those that keep it, is the best under it.
    """
    terms = torch.tensor([(1, *size) for size in sizes], dtype=torch.float64, device="cpu")
    terms /= torch.tensor(peaks, dtype=torch.float64, device="cpu").clamp(min=1).view(-1, 1)
    scale = terms.amax(dim=0).clamp(min=torch.finfo(terms.dtype).tiny)
    terms, target = terms / scale, torch.ones(len(sizes), 1, dtype=torch.float64, device="cpu")
    best, least = torch.zeros(4, dtype=torch.float64, device="cpu"), float("inf")
    for number in range(1, 5):
        for chosen in map(list, combinations(range(4), number)):
            solution = torch.linalg.lstsq(terms[:, chosen], target, driver="gelsd").solution
            error = float((terms[:, chosen] @ solution - target).square().sum())
            if bool((solution >= 0).all()) and error < least:
                best, least = torch.zeros(4, dtype=torch.float64, device="cpu"), error
                best[chosen] = solution.view(-1)
    return StepMemory(*(best / scale).tolist())


def free_memory(device: torch.device) -> int:
    """Bytes that tensors on ``device`` may still take; what torch's allocator keeps for itself is among them.

    Args:
        device: the CPU or a CUDA device.
    """
    if device.type == "cuda":
        kept = torch.cuda.memory_reserved(device) - torch.cuda.memory_allocated(device)
        return torch.cuda.mem_get_info(device)[0] + kept
    return psutil.virtual_memory().available
