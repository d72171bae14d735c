"""Degree normalisation, self-loops and degrees, computed once on the whole graph.

A convolution that normalises inside would see the degrees of the batch, which are too small for
halo nodes.
"""

from __future__ import annotations

import copy
from typing import Any, cast

import torch
from torch import Tensor
from torch_geometric.data import Data
from torch_geometric.nn.conv import gcn_conv
from torch_geometric.utils import add_remaining_self_loops

from torch_gas._util.arguments import checked
from torch_gas._util.fitting import fitting
from torch_gas.graph import matrix
from torch_gas.graph.adjacency import find_adjacency, one_adjacency
from torch_gas.graph.checks import check_ids, count_nodes
from torch_gas.graph.edges import check_edges, coo, degrees, from_coo, to_csr
from torch_gas.graph.format import Matrix
from torch_gas.graph.formats import check_adjacency, format_of, num_destinations
from torch_gas.graph.levels import edge_attrs


@checked
def gcn_norm(data: Data, add_self_loops: bool = True, improved: bool = False) -> Data:
    r"""Normalises edge weights as GCN, APPNP and GCNII do: :math:`D^{-1/2} (A + I) D^{-1/2}`.

    Use it with convolutions made with ``normalize=False``. In every adjacency format the result is
    that of PyG's ``gcn_norm`` on a weighted ``edge_index``: a node that has a self-loop keeps it,
    weight included.

    Args:
        data: the whole graph, which is left unchanged. Edge weights are ``data.edge_weight`` [E]
            beside an ``edge_index``, and the values of a sparse matrix.
        add_self_loops: whether nodes without self-loop get one.
        improved: whether new self-loops weigh 2 instead of 1.

    Returns:
        A new ``Data`` whose adjacency, in the same format, holds the self-loops. The weights are
        ``data.edge_weight`` or the values of the matrix.

    Raises:
        ValueError: if weights are not one finite number per edge, are given twice or sum to a
            negative degree, or if new self-loops would lack other edge attributes.

    Example:
        >>> data = Data(edge_index=torch.tensor([[0, 1], [1, 0]]), num_nodes=2)
        >>> gcn_norm(data).edge_weight
        tensor([0.5000, 0.5000, 0.5000, 0.5000])
    """
    fill = None if not add_self_loops else 2.0 if improved else 1.0
    out, weight = _transform(data, "gcn_norm()", fill, normalise=True)
    if not bool(torch.isfinite(cast(Tensor, weight)).all()):
        raise ValueError("gcn_norm(): edge weights must be finite and sum to a degree >= 0; normalise others yourself")
    return out


@checked
def add_self_loops(data: Data) -> Data:
    """Adds a self-loop to every node that has none, as GAT does (Section 7 of the paper).

    Args:
        data: the whole graph, which is left unchanged.

    Returns:
        A new ``Data``, its adjacency in the same format. New self-loops weigh 1 where there are
        weights.

    Raises:
        ValueError: if new self-loops would lack other edge attributes.

    Example:
        >>> data = Data(edge_index=torch.tensor([[0, 1], [1, 1]]), num_nodes=3)
        >>> add_self_loops(data).edge_index
        tensor([[0, 0, 1, 2],
                [1, 0, 1, 2]])
    """
    return _transform(data, "add_self_loops()", 1.0, normalise=False)[0]


@checked
def in_degree(adj: Any, num_nodes: int) -> Tensor:
    """The number of edges into each node, [num_nodes], int64; weights do not count.

    Args:
        adj: an adjacency of a graph [N, N] or of a batch [B, B+S], in any of the four formats.
        num_nodes: number of destinations: N of a graph, B of a batch.

    Raises:
        ValueError: if a matrix has another number of rows.
        IndexError: if an edge points to a node outside 0 .. num_nodes-1.

    Example:
        >>> in_degree(torch.tensor([[0, 1, 2], [1, 1, 0]]), num_nodes=3)
        tensor([1, 2, 0])
    """
    check_adjacency(adj, "in_degree(): adj")
    rows = num_destinations(adj)
    if rows is not None and rows != num_nodes:
        raise ValueError(f"in_degree(): num_nodes is {num_nodes}, but adj has {rows} destinations: pass that number")
    _, dst, _ = format_of(adj).stored_edges(adj)
    if dst is not None:
        check_ids(dst, num_nodes, "in_degree(): adj")
    with fitting(f"in_degree(): num_nodes={num_nodes}"):
        return degrees(adj, num_nodes)


def _transform(data: Data, where: str, fill: float | None, normalise: bool) -> tuple[Data, Tensor | None]:
    """A copy of ``data`` with self-loops of weight ``fill`` where nodes have none, and normalised; and the weights."""
    with fitting(f"{where}: num_nodes of data"):
        return _normalised(data, *_check(data, where, fill is not None), fill, normalise)


def _normalised(
    data: Data, key: str, adj: Any, num_nodes: int, fill: float | None, normalise: bool
) -> tuple[Data, Tensor | None]:
    out, known = copy.copy(one_adjacency(data)), format_of(adj)
    if isinstance(known, Matrix):
        csr = to_csr(adj, num_nodes)
        if normalise:
            csr = csr._replace(value=_numbers(csr.value, csr.col, data))
        csr = matrix.transform(csr, fill, normalise)
        out[key] = known.make(adj, *csr[:3], num_src=adj.size(1))
        return out, csr.value
    src, dst, _ = coo(adj)
    edge_index, weight = torch.stack([src, dst]), data.get("edge_weight")
    if normalise:
        weight = _numbers(weight, src, data)
        edge_index, weight = gcn_conv.gcn_norm(edge_index, weight, num_nodes, fill == 2, fill is not None)
    else:
        edge_index, weight = add_remaining_self_loops(edge_index, weight, fill, num_nodes)
    if fill is not None:
        out[key], order = from_coo(adj, edge_index[0], edge_index[1], None, num_nodes)
        weight = weight if weight is None or order is None else weight[order]
    if weight is not None:
        out.edge_weight = weight
    return out, weight


def _check(data: Data, where: str, grows: bool) -> tuple[str, Any, int]:
    """Name and value of the adjacency, and N."""
    num_nodes = count_nodes(data, where)
    key, adj = find_adjacency(data)
    weight = data.get("edge_weight")
    check_edges(adj, num_nodes, f"{where}: data.{key}")
    known = format_of(adj)
    if isinstance(known, Matrix) and weight is not None:
        advice = f"`del data.edge_weight`, or make it the values of data.{key}"
        raise ValueError(f"{where}: data.{key} is a matrix, whose values are the weights, not edge_weight: {advice}")
    if weight is not None and weight.size(0) != known.num_edges(adj):
        rule = f"must hold one weight per edge, {known.num_edges(adj)}, but has shape {list(weight.shape)}"
        raise ValueError(f"{where}: data.edge_weight {rule}")
    others = [name for name in edge_attrs(data) if name != "edge_weight"] if grows else []
    if others:
        raise ValueError(
            f"{where}: new self-loops would have no {', '.join(others)}: add self-loops with the attributes you want "
            "them to have yourself (torch_geometric.utils.add_remaining_self_loops) and pass add_self_loops=False, or "
            "remove the attributes; edge_perm comes from permute(), which is to be called afterwards"
        )
    return key, adj, num_nodes


def _numbers(weight: Tensor | None, ids: Tensor, data: Data) -> Tensor:
    """One floating-point weight for each of ``ids``: ones of the features' type where there are none."""
    x = data.get("x")
    dtype = x.dtype if isinstance(x, Tensor) and x.is_floating_point() else torch.get_default_dtype()
    if weight is None:  # Explicit, because PyG drops `improved` where there are no weights.
        return torch.ones(ids.numel(), dtype=dtype, device=ids.device)
    if weight.dim() != 1:
        raise ValueError(f"gcn_norm(): edge weights must have shape [{ids.numel()}], but have {list(weight.shape)}")
    return weight if weight.is_floating_point() else weight.to(dtype)
