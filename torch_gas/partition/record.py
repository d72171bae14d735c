"""The record of a partition, and the checks that partitions and node orders share."""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch_geometric.data import Data

from torch_gas.graph.checks import INTEGERS
from torch_gas.graph.formats import format_of
from torch_gas.graph.key import digest, edges_of_key, graph_key, order_key

_ADVICE = "pass the perm that metis() returned for this graph"


class Partition(NamedTuple):
    """Parts of a graph, as the node order that makes each of them contiguous.

    Args:
        perm: original id of the node at each new position, [N].
        ptr: part p is positions ``ptr[p] .. ptr[p+1]``, [num_parts + 1].
    """

    perm: Tensor
    ptr: Tensor

    def __repr__(self) -> str:
        return f"Partition(num_nodes={self.perm.numel()}, num_parts={self.ptr.numel() - 1})"


# What this process has partitioned, by content, so that a loader, which is given `ptr` alone, can tell whether its data was
# permuted: by the digest of `ptr`, the keys of the orders that it is for, and of the edges of the graph before that.
_orders: dict[int, dict[str, str]] = {}
_last_steps: dict[str, str] = {}  # by the key of an order that several calls of permute() made: that of the last one


def note_step(perm: Tensor, step: Tensor) -> None:
    """Notes that the order ``perm`` came about by reordering another one by ``step``."""
    _last_steps[order_key(perm)] = order_key(step)


def is_in_order(data: Data, adj: Any, ptr: Tensor) -> bool:
    """Whether the nodes of a graph may be in the order that ``ptr`` is for.

    Parts of equal size say nothing of their order. Where ``ptr`` has no others, only a graph with the very edges that it was
    computed for, which was not permuted then, is found out. Any order will do where all nodes are in one part, or none has an
    edge.
    """
    known, num_nodes = _orders.get(digest(ptr)), int(ptr[-1])
    if known is None or int((ptr.diff() > 0).sum()) < 2 or format_of(adj).num_edges(adj) == 0:
        return True
    order = order_key(data.get("perm", torch.arange(num_nodes, device="cpu")))
    if _last_steps.get(order, order) in known:
        return True
    low, high = ptr.diff().aminmax()
    return int(high - low) < 2 and edges_of_key(graph_key(adj, num_nodes)) not in known.values()


def make_partition(perm: Any, ptr: Any, where: str, edges: str = "") -> Partition:
    """The checked partition on the CPU; ``edges`` is the key of the graph's edges, where it is known."""
    perm = check_perm(perm, None, where).cpu()
    ptr = check_ptr(ptr, perm.numel(), where)
    _orders.setdefault(digest(ptr), {})[order_key(perm)] = edges
    return Partition(perm, ptr)


def check_ptr(ptr: Tensor, num_nodes: int, where: str) -> Tensor:
    """``ptr`` on the CPU as int64, if it ascends from 0 to N."""
    if not isinstance(ptr, Tensor) or ptr.dtype not in INTEGERS:
        raise TypeError(f"{where}: ptr must be a one-dimensional integer tensor, as metis() returns it")
    ptr = ptr.to("cpu", torch.int64)
    ends = ptr.flatten()[[0, -1]].tolist() if ptr.numel() > 0 else []
    if ptr.dim() != 1 or ptr.numel() < 2 or ends != [0, num_nodes] or bool((ptr.diff() < 0).any()):
        goes = f" and goes from {ends[0]} to {ends[1]}" if ends else ""
        rule = f"must ascend from 0 to the number of nodes, {num_nodes}, but has {ptr.numel()} entries{goes}"
        raise ValueError(f"{where}: ptr {rule}; was it computed for another graph?")
    return ptr


def check_perm(perm: Tensor | Partition, num_nodes: int | None, where: str, advice: str = _ADVICE) -> Tensor:
    """``perm``, or that of a partition, as int64, if it holds each of 0 .. N-1 once; without N, its length is taken."""
    if isinstance(perm, Partition):
        perm = perm.perm
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
