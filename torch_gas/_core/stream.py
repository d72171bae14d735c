"""A partition in O(N) memory."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from torch_gas._core import checks
from torch_gas._core.build import _C
from torch_gas._core.checks import ID_BITS
from torch_gas._core.memory import addresses, empty

STREAM_PASSES: int = _C.stream_passes
"""How many passes over the edges `stream_parts` makes at most."""


def stream_parts(
    rowptr: Tensor,
    col: Tensor,
    num_parts: int,
    seed: int,
    report: Callable[[float], object],
    edge_weight: Tensor | None = None,
    node_weight: Tensor | None = None,
) -> Tensor:
    """Parts by label propagation over the edges as they are stored; takes about 90 bytes a node and no copy of an edge.

    Args:
        rowptr: Row pointers [N+1] of the graph, int32 or int64.
        col: Column ids [E], same type.
        num_parts: Number of parts.
        seed: Decides the result together with the graph.
        report: Called after each pass with the share of edges that it saw between clusters or parts.
        edge_weight: Non-negative weights [E], float64.
        node_weight: Non-negative weights [N], int64.

    Returns:
        The part of each node [N], int64. None weighs more than 1.05 times the average, or than the average and the
        heaviest node where this is more (without node weights: than the average, rounded up).

    Raises:
        TypeError: An argument is no tensor or has a wrong type.
        ValueError: A shape is wrong, `rowptr` is no row pointer, or N or `num_parts` is too large.
        IndexError: A column lies outside 0 .. N-1.

    Example:
        >>> import torch
        >>> rowptr, col = torch.tensor([0, 1, 2, 3, 4]), torch.tensor([2, 3, 0, 1])
        >>> part = stream_parts(rowptr, col, num_parts=2, seed=0, report=lambda share: None)
        >>> bool(part[0] == part[2]), bool(part[1] == part[3]), bool(part[0] == part[1])
        (True, True, False)
    """
    call = "stream_parts"
    rowptr, col, num_nodes = checks.csr(call, rowptr, col)
    checks.size(call, "num_parts", num_parts)
    checks.size(call, "seed", seed)
    if not callable(report):
        raise TypeError(f"{call}: `report` must be a function, but is {type(report).__name__}")
    if edge_weight is not None:
        edge_weight = checks.numbers(call, "edge_weight", edge_weight, torch.float64, size=col.numel())
    if node_weight is not None:
        node_weight = checks.numbers(call, "node_weight", node_weight, torch.int64, size=num_nodes)
    part = empty(num_nodes, torch.int64)
    graph = addresses(rowptr, col, edge_weight, node_weight)
    _C.stream_parts(ID_BITS[rowptr.dtype], *graph, num_nodes, col.numel(), num_parts, seed, report, part.data_ptr())
    return part
