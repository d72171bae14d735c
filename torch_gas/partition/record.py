"""The record of a partition, and the checks that partitions and node orders share."""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
from torch import Tensor

from torch_gas.graph.checks import INTEGERS


class Partition(NamedTuple):
    """Parts of a graph, as the node order that makes each of them contiguous.

    Args:
        perm: original id of the node at each new position, [N].
        ptr: part p is positions ``ptr[p] .. ptr[p+1]``, [num_parts + 1]. ``ptr.perm`` is ``perm``,
            so that a loader, which is given ``ptr`` alone, can tell whether its data was permuted.
    """

    perm: Tensor
    ptr: Tensor

    def __repr__(self) -> str:
        return f"Partition(num_nodes={self.perm.numel()}, num_parts={self.ptr.numel() - 1})"


def make_partition(perm: Any, ptr: Any, where: str) -> Partition:
    """The checked partition on the CPU."""
    perm = check_perm(perm, None, where).cpu()
    valid = isinstance(ptr, Tensor) and ptr.dtype in INTEGERS and ptr.dim() == 1 and ptr.numel() >= 2
    if valid:
        ptr = ptr.to("cpu", torch.int64)
        valid = int(ptr[0]) == 0 and int(ptr[-1]) == perm.numel() and bool((ptr.diff() >= 0).all())
    if not valid:
        raise ValueError(
            f"{where}: ptr must ascend from 0 to the number of nodes, {perm.numel()}, but is"
            f" {ptr}: compute the partition anew with metis()"
        )
    ptr.perm = perm
    return Partition(perm, ptr)


def check_perm(perm: Tensor, num_nodes: int | None, where: str) -> Tensor:
    """``perm`` as int64, if it holds each of 0 .. N-1 once; without N, its length is taken."""
    advice = "pass the perm that metis() returned for this graph"
    if not isinstance(perm, Tensor) or perm.dtype not in INTEGERS:
        came = perm.dtype if isinstance(perm, Tensor) else type(perm).__name__
        raise TypeError(f"{where}: perm must be an integer tensor, but is {came}: {advice}")
    if perm.dim() != 1 or num_nodes not in (None, perm.numel()):
        length = "N" if num_nodes is None else num_nodes
        raise ValueError(f"{where}: perm must have shape [{length}], but has {list(perm.shape)}: {advice}")
    perm = perm.to(torch.int64)
    bad = perm[(perm < 0) | (perm >= perm.numel())]
    if bad.numel() > 0:
        raise ValueError(f"{where}: perm holds {int(bad[0])}, outside 0 .. {perm.numel() - 1}: {advice}")
    count = torch.bincount(perm, minlength=perm.numel())
    if bool((count > 1).any()):
        raise ValueError(f"{where}: perm holds {int(count.argmax())} more than once: {advice}")
    return perm
