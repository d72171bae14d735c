"""permute() and unpermute(): a graph in another node order, and back."""

from __future__ import annotations

import copy
import time
import warnings
from collections.abc import Sequence
from typing import Any, TypeVar

import numpy as np
import torch
from torch import Tensor
from torch_geometric.data import Batch, Data

from torch_gas._util.arguments import checked
from torch_gas.graph.attributes import take
from torch_gas.graph.checks import check_ids, count_nodes
from torch_gas.graph.edges import check_edges, coo, edge_pieces, from_coo, is_sorted, row_entries, row_pieces, to_csr
from torch_gas.graph.format import Matrix
from torch_gas.graph.formats import check_adjacency, format_of
from torch_gas.graph.levels import (
    count_edges,
    edge_attrs,
    holds_edges,
    holds_ids,
    holds_integers,
    level_of,
    primary_key,
)
from torch_gas.partition.record import Partition, check_perm, note_step
from torch_gas.table import StoredFeatures

_OF_OTHERS = (
    "where data is a subgraph of a permuted graph, it is a graph of its own, and its order begins anew: `del data.perm` (and "
    "data.edge_perm, if it is there), or keep it under another name, as original ids"
)

DataOrTensor = TypeVar("DataOrTensor", Data, Tensor)


@checked
def permute(data: Data, perm: Tensor | Partition, log: bool = True, *, ids: Sequence[str] | None = None) -> Data:
    """Reorders the nodes of a graph, so that the parts of :func:`metis` become contiguous.

    Node attributes (PyG's ``data.is_node_attr``) are reordered; adjacencies and attributes that
    hold node ids (PyG's ``data.__inc__``: ``edge_label_index``, ``train_index``, ...) are
    relabelled; graph-level attributes stay. A plain ``edge_index`` keeps the order of its edges. A
    sorted ``EdgeIndex`` and sparse matrices are sorted anew, and edge attributes follow.

    Args:
        data: the graph, which is left unchanged.
        perm: original id of the node at each new position, [N], or the partition itself.
        log: whether to print one line with the time.
        ids: names of the attributes that hold node ids and are relabelled, beside adjacencies. By default those for which
            PyG's ``data.__inc__`` says so, which goes by "index" in a name; a warning names what it may not be right about.

    Returns:
        A new ``Data`` with ``perm`` [N], the original node ids, as a node attribute. If edges were
        reordered and there are edge attributes, it also has ``edge_perm`` [E], the original
        positions of the edges. Permuting twice composes both.

    Raises:
        TypeError: if ``perm`` is no integer tensor or ``data`` no ``Data``.
        ValueError: if ``perm`` is no permutation of N nodes, the number of nodes is unknown, or ``ids`` names what is not there.
        IndexError: if ``data`` holds node ids outside 0 .. N-1.

    Example:
        >>> edge_index = torch.tensor([[0, 1], [1, 2]])
        >>> data = Data(x=torch.tensor([[0.0], [1.0], [2.0]]), edge_index=edge_index)
        >>> out = permute(data, torch.tensor([2, 0, 1]), log=False)
        >>> out.x.view(-1), out.edge_index
        (tensor([2., 0., 1.]), tensor([[1, 2],
                [2, 0]]))
    """
    start = time.perf_counter()
    num_nodes = _check_data(data, "permute()")
    perm = check_perm(perm, num_nodes, "permute()")
    first = "perm" not in data
    if first and "edge_perm" in data:
        raise ValueError("permute(): data.edge_perm is reserved for the order of permuted edges: rename the attribute")
    if not first:
        check_perm(data.perm, num_nodes, "permute(): data.perm comes from an earlier permute()", _OF_OTHERS)
    if log:
        print("Permuting data...", end=" ", flush=True)
    out, edge_order = _reorder(data, perm, _inverse(perm), None, ids, "permute()")
    if first:
        out.perm = perm
        # Where it is not stored, sorting by original ids restores the order of the edges.
        if edge_order is not None and (edge_attrs(data) or not is_sorted(data[primary_key(data)], num_nodes)):
            out.edge_perm = edge_order
    else:
        note_step(out.perm, perm)
    if log:
        print(f"Done! [{time.perf_counter() - start:.2f}s]")
    return out


@checked
def unpermute(
    value: DataOrTensor, perm: Tensor | Partition | None = None, *, ids: Sequence[str] | None = None
) -> DataOrTensor:
    """Brings a permuted graph, or rows in its order (a model's output), back to the original order.

    Args:
        value: a ``Data`` from :func:`permute`, or rows in its node order, [N, ...].
        perm: for rows: original id of each row, ``data.perm`` [N], or the partition.
        ids: for a ``Data``: what was given to :func:`permute`.

    Returns:
        The ``Data`` as it was before (any number of) :func:`permute`, or the rows by original id.

    Raises:
        ValueError: if ``data`` was not permuted, or ``perm`` does not fit.
        TypeError: if ``value`` is neither a ``Data`` nor a tensor, or ``perm`` no integer tensor.

    Example:
        >>> unpermute(torch.tensor([2.0, 0.0, 1.0]), torch.tensor([2, 0, 1]))
        tensor([0., 1., 2.])
    """
    if isinstance(value, Tensor):
        if perm is None:
            raise ValueError("unpermute(): perm is needed to bring rows back: pass data.perm")
        if value.dim() == 0:
            raise ValueError("unpermute(): value must have one row per node, [N, ...], but is a scalar")
        perm = check_perm(perm, value.size(0), "unpermute(), one id per row of value")
        return value.index_select(0, _inverse(perm).to(value.device))
    num_nodes = _check_data(value, "unpermute()")
    if perm is not None:
        raise ValueError("unpermute(): data carries its own perm: drop the argument")
    if "perm" not in value:
        raise ValueError("unpermute(): data has no perm, so it was not reordered: pass what permute() returned")
    perm = check_perm(value.perm, num_nodes, "unpermute(): data.perm", _OF_OTHERS)
    data = copy.copy(value)
    del data.perm
    edge_order = None
    if "edge_perm" in data:
        edge_perm = check_perm(
            data.edge_perm, count_edges(data), "unpermute(): data.edge_perm, one per edge", _OF_OTHERS
        )
        edge_order = _inverse(edge_perm)
        del data.edge_perm
    return _reorder(data, _inverse(perm), perm, edge_order, ids, "unpermute()")[0]


def _reorder(
    data: Data, index: Tensor, new_id: Tensor, order: Tensor | None, ids: Sequence[str] | None, where: str
) -> tuple[Data, Tensor | None]:
    """``data`` with node ``index[i]`` at i; ``new_id`` is the inverse of ``index``."""
    num_nodes, num_edges, primary = index.numel(), count_edges(data), primary_key(data)
    for name in ids or ():
        if not holds_integers(data.get(name)):
            raise ValueError(f"{where}: ids names {name!r}, but data has no integers of that name; leave it out")
    out = copy.copy(data)
    if primary is not None:
        out[primary], order = _relabel_edges(data, primary, new_id, order, where)
    for key, value in data.to_dict().items():
        if holds_edges(data, key, value):
            if key != primary:
                out[key], _ = _relabel_edges(data, key, new_id, None, where)
            continue
        if isinstance(value, StoredFeatures):
            advice = f"leave it out, and then set data.{key} = store_features(..., perm=perm)"
            raise ValueError(f"{where}: data.{key} lies in a file, whose rows are not moved; {advice}")
        level = level_of(data, key, value, num_nodes, num_edges)
        named = holds_ids(data, key, value, num_nodes)
        if ids is None:
            _ask(data, key, value, level, named, num_nodes, where)
        if named if ids is None else key in ids:
            value = _relabel(value, new_id, f"{where}: data.{key}")
        moved = index if level == "node" else order if level == "edge" else None
        out[key] = value if moved is None else take(value, moved, data.__cat_dim__(key, value))
    return out, order


def _ask(data: Data, key: str, value: Any, level: str | None, named: bool, num_nodes: int, where: str) -> None:
    """Warns where nothing but a name tells whether integers are node ids, and a guess may be wrong."""
    if named and level == "node" and type(data).__inc__ is Data.__inc__:
        # One for each node: the id of another one, or a category.
        doubt, other = (
            "one integer for each node, and is relabelled as ids of nodes",
            "leave it out of ids if it holds none",
        )
    elif not named and level is None and _may_be_ids(key, value, num_nodes):
        doubt, other = "what may be ids of nodes, and is not relabelled", "pass ids=() if it holds none"
    else:
        return
    warnings.warn(
        f'{where}: data.{key} holds {doubt}, by its name; say which attributes hold ids, ids=("{key}",), or {other}',
        stacklevel=5,
    )


def _may_be_ids(key: str, value: Any, num_nodes: int) -> bool:
    """Whether it is like a split: a vector of nodes, each once, or a dictionary of such."""
    if isinstance(value, dict):
        return any(_may_be_ids(key, each, num_nodes) for each in value.values())
    if not holds_integers(value) or (
        isinstance(value, (list, tuple)) and not {"idx", "ids"} & set(key.lower().split("_"))
    ):
        return False
    ids = value if isinstance(value, Tensor) else torch.as_tensor(value, device="cpu")
    if ids.dim() != 1 or ids.numel() < 2 or int(ids.min()) < 0 or int(ids.max()) >= num_nodes:
        return False
    return ids.unique().numel() == ids.numel()


def _relabel_edges(data: Data, key: str, new_id: Tensor, order: Tensor | None, where: str) -> tuple[Any, Tensor | None]:
    adj, num_nodes = data[key], new_id.numel()
    known = format_of(adj, f"{where}: data.{key}")
    if isinstance(known, Matrix) and (adj.size(0) != num_nodes or adj.size(1) != num_nodes):
        size = [adj.size(0), adj.size(1)]
        raise ValueError(f"{where}: data.{key} must be [{num_nodes}, {num_nodes}], but is {size}: check data.num_nodes")
    check_edges(adj, num_nodes, f"{where}: data.{key}")
    src = known.stored_edges(adj).src
    new_id = new_id.to(src.device)
    if order is None and isinstance(known, Matrix):
        return _permute_matrix(known, adj, new_id)
    if order is None and known.sort_order(adj) is None:
        edge_index = torch.empty(2, src.numel(), dtype=src.dtype, device=src.device)
        for piece, src, dst in edge_pieces(adj):
            edge_index[0, piece], edge_index[1, piece] = new_id[src], new_id[dst]
        return known.from_edges(adj, edge_index, None, num_nodes), None
    src, dst, value = coo(adj)
    return from_coo(adj, new_id[src], new_id[dst], value, num_nodes, order)


def _permute_matrix(known: Matrix, adj: Any, new_id: Tensor) -> tuple[Any, Tensor]:
    """As :func:`from_coo` of the relabelled edges, a few rows at a time."""
    rowptr, col, value, _ = to_csr(adj, new_id.numel())
    index = _inverse(new_id)
    count = rowptr.diff()[index]
    new_rowptr = torch.cat([count.new_zeros(1), count.cumsum(0)])
    new_col, order = torch.empty_like(col), torch.empty(col.numel(), dtype=torch.int64, device=col.device)
    for begin, stop in row_pieces(new_rowptr):
        _, edge = row_entries(rowptr, index[begin:stop])
        local = torch.repeat_interleave(count[begin:stop], output_size=edge.numel())
        key, by_column = (local * new_id.numel() + new_id[col[edge].to(torch.int64)]).sort(stable=True)
        piece = slice(int(new_rowptr[begin]), int(new_rowptr[stop]))
        new_col[piece] = key % new_id.numel()
        order[piece] = edge[by_column]
    value = None if value is None else value[order]
    return known.make(adj, new_rowptr, new_col, value, new_id.numel()), order


def _relabel(value: Any, new_id: Tensor, where: str) -> Any:
    if isinstance(value, dict):
        return {name: _relabel(each, new_id, f"{where}[{name!r}]") for name, each in value.items()}
    ids = (value if isinstance(value, Tensor) else torch.as_tensor(value, device="cpu")).to(torch.int64)
    check_ids(ids, new_id.numel(), where)
    new = new_id.to(ids.device)[ids]
    if isinstance(value, Tensor):
        return new.to(value.dtype)
    if isinstance(value, np.ndarray):
        return new.numpy().astype(value.dtype)
    return type(value)(new.tolist())


def _inverse(perm: Tensor) -> Tensor:
    inverse = torch.empty_like(perm)
    inverse[perm] = torch.arange(perm.numel(), device=perm.device)
    return inverse


def _check_data(data: Data, where: str) -> int:
    if isinstance(data, Batch):
        advice = "pass a Data without its `batch` and `ptr`"
        raise ValueError(f"{where}: data is a Batch, whose graphs would no longer be contiguous: {advice}")
    for key in ("edge_index", "adj_t"):
        if data.get(key) is not None:
            check_adjacency(data[key], f"{where}: data.{key}")
    return count_nodes(data, where)
