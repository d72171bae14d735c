"""A batch of a graph with all edges into it."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from torch_gas._core import checks
from torch_gas._core.build import _C
from torch_gas._core.checks import ID_BITS
from torch_gas._core.memory import addresses, empty


class Subgraph(NamedTuple):
    """The one-hop subgraph of a batch in CSR form.

    Rows 0 .. B-1 are the nodes of the batch in the order of its ranges; columns B .. B+S-1 are the
    halo.

    Attributes:
        rowptr: Row pointers [B+1], of the id type of the graph.
        col: Local column ids [E_B] in 0 .. B+S-1, of the id type of the graph.
        e_id: Positions [E_B] of the edges in the column array of the graph, of the id type of the graph.
        n_id: Global ids [B+S] of the nodes of the batch and of the in-neighbours outside of it, the halo, which
            ascends; int64.
        edge_index: `col` and the local ids of the destinations, [2, E_B]; None unless asked for.
    """

    rowptr: Tensor
    col: Tensor
    e_id: Tensor
    n_id: Tensor
    edge_index: Tensor | None = None

    @property
    def halo(self) -> Tensor:
        """Global ids [S] of the halo."""
        return self.n_id[self.rowptr.numel() - 1 :]


def subgraph(
    rowptr: Tensor, col: Tensor, start: Tensor, count: Tensor, *, ascending: bool = False, coo: bool = False
) -> Subgraph:
    """Extracts a batch with all edges into it (Section 2 of https://arxiv.org/abs/2106.05609).

    Equivalent to masking the edges whose destination lies in one of the ranges and renumbering
    their ends.

    Args:
        rowptr: Row pointers [N+1] of the graph; rows are destinations. int32 or int64.
        col: Column ids [E], sources. Same type as `rowptr`.
        start: First node of each part of the batch [P], int64, in the order wanted.
        count: Number of nodes of each part [P], int64.
        ascending: Whether the entries of each row are sorted by local column id; else they are in the order of `col`.
        coo: Whether to make `edge_index`, of which `col` is then the first row.

    Returns:
        The subgraph, the same for any number of threads.

    Raises:
        TypeError: An argument is no tensor or has a wrong type.
        ValueError: A shape is wrong, `rowptr` is no row pointer, or ranges overlap.
        IndexError: A range or a column lies outside the graph.

    Example:
        >>> import torch
        >>> rowptr, col = torch.tensor([0, 2, 3, 4]), torch.tensor([1, 2, 0, 0])
        >>> sub = subgraph(rowptr, col, start=torch.tensor([1]), count=torch.tensor([1]))
        >>> sub.col.tolist(), sub.e_id.tolist(), sub.n_id.tolist()
        ([1], [2], [1, 0])
    """
    call = "subgraph"
    rowptr, col, num_nodes = checks.csr(call, rowptr, col)
    start, count = checks.ranges(call, "start", start, count)
    checks.kind(call, "ascending", ascending, bool, "a bool")
    checks.kind(call, "coo", coo, bool, "a bool")
    threads = torch.get_num_threads()
    graph, ranges = addresses(rowptr, col), addresses(start, count)
    found = _C.Subgraph(ID_BITS[rowptr.dtype], *graph, num_nodes, col.numel(), *ranges, start.numel(), threads)
    num_rows, num_edges, halo_size = found.sizes
    edge_index = empty((2, num_edges), col.dtype) if coo else None
    if edge_index is None:
        local_col, local_row = empty(num_edges, col.dtype), None
    else:
        local_col, local_row = edge_index[0], edge_index[1]
    local_rowptr, e_id = empty(num_rows + 1, col.dtype), empty(num_edges, col.dtype)
    n_id = empty(num_rows + halo_size, torch.int64)
    found.write(*addresses(local_rowptr, local_col, local_row, e_id, n_id), ascending, threads)
    return Subgraph(local_rowptr, local_col, e_id, n_id, edge_index)
