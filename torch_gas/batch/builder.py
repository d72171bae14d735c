"""Batches: unions of parts with their one-hop halo, and how they are made from a graph.

A batch holds every edge into its B nodes (Section 2 of https://arxiv.org/abs/2106.05609), so it needs the S
in-neighbours outside of it: rows B .. B+S-1 of every node tensor.
"""

from __future__ import annotations

import copy
import functools
from collections.abc import Callable, Sequence
from multiprocessing.reduction import ForkingPickler
from typing import Any

import torch
from torch import Tensor
from torch_geometric.data import Data

from torch_gas import _core
from torch_gas._util.version import version
from torch_gas.batch.cache import WHOLE_EDGES, glance
from torch_gas.batch.data import SubData
from torch_gas.batch.record import BatchRecord
from torch_gas.graph.adjacency import find_adjacency
from torch_gas.graph.attributes import take
from torch_gas.graph.edges import CSR, check_edges, to_csr
from torch_gas.graph.format import entries
from torch_gas.graph.formats import ADJACENCIES, format_of, is_matrix, tensors_of
from torch_gas.graph.key import digest, graph_key
from torch_gas.graph.levels import edge_attrs, is_node_attr
from torch_gas.graph.sample import Samples, constants, of_batch
from torch_gas.partition.record import check_ptr, is_in_order
from torch_gas.table import StoredFeatures


class Builder:
    """Makes the batch of some parts. It is the loader's ``collate_fn``, so it can be sent to worker processes."""

    def __init__(self, data: Data, ptr: Tensor, bipartite: bool, neighbors: str = "in") -> None:
        self.data, self.ptr, self.bipartite, self.neighbors = data, ptr, bipartite, neighbors
        self.num_nodes = check_data(data)
        self._start, self._count = ptr[:-1], ptr.diff()  # of each part
        self.key, self.adj = find_adjacency(data)
        self.other_keys = [key for key in ADJACENCIES if key != self.key and key in data]  # the same edges once more
        stated = format_of(self.adj).num_nodes(self.adj)
        if stated is not None and stated != self.num_nodes:
            raise ValueError(f"data.{self.key} is for {stated} nodes, but data has {self.num_nodes}")
        if not is_matrix(self.adj):
            check_edges(self.adj, self.num_nodes, f"data.{self.key}")
        self.csr: CSR = to_csr(self.adj, self.num_nodes)
        self.edge_keys = edge_attrs(data)  # permute() reorders the same ones
        held = (self.key, *self.other_keys, *self.edge_keys)
        keys = [key for key in data.keys() if key not in held]  # noqa: SIM118  # Data iterates over pairs
        self.node_keys = [key for key in keys if is_node_attr(data, key)]
        self.sampled_keys = list(dict.fromkeys(["x", *filter(self._holds_numbers, self.node_keys), *self.edge_keys]))
        self.signature = _signature(data)
        self.csc = _core.transpose(self.csr.rowptr, self.csr.col, self.num_nodes) if neighbors == "both" else None
        # What gives memory for rows of features, by shape and type; by default, that of any tensor.
        self.allocate: Callable[[tuple[int, ...], torch.dtype], Tensor] | None = None

    def _holds_numbers(self, key: str) -> bool:
        """Whether a model may take it: it holds no masks, nor labels, which PyG calls so."""
        value = self.data[key]
        return isinstance(value, (Tensor, StoredFeatures)) and value.dtype != torch.bool and key != "y"

    @functools.cached_property
    def graph_key(self) -> str:
        """Of the graph and the order of its nodes; found when the first batch is made."""
        return graph_key(self.adj, self.num_nodes, self.data.get("perm"))

    def features(self) -> Samples:
        """Samples of what a model may take from the graph beside its edges."""
        values = {self.key: format_of(self.adj).values(self.adj)}
        return constants({key: self.data.get(key) for key in self.sampled_keys} | values)

    def mask_sizes(self) -> dict[str, int]:
        """How many nodes of the graph are in each mask, by name."""
        return {key: int(torch.count_nonzero(self.data[key])) for key in self._masks()}

    def _masks(self) -> list[str]:
        """Names of the boolean attributes that have an entry for each node."""
        values = ((key, self.data[key]) for key in self.node_keys)
        return [
            key for key, value in values if isinstance(value, Tensor) and value.dtype == torch.bool and value.dim() == 1
        ]

    def __call__(self, parts: Sequence[int]) -> SubData:
        return self.batch(*self._ranges(parts))

    def batch(self, offset: Tensor, count: Tensor) -> SubData:
        """The batch of the nodes in some ranges."""
        sub = self.subgraph(offset, count)
        n_id, batch_size = sub.n_id, int(count.sum())
        num_dst = batch_size if self.bipartite and self.csc is None else n_id.numel()
        adj = format_of(self.adj).batch(self.adj, self.csr.value, sub, num_dst, n_id.numel())

        batch = copy.copy(self.data)  # with what it holds per graph
        batch[self.key] = adj
        for key in self.other_keys:
            del batch[key]
        halo, tables = n_id[batch_size:], {}
        for key in self.node_keys:
            value, dim = self.data[key], self.data.__cat_dim__(key, self.data[key])
            if isinstance(value, StoredFeatures):
                batch[key] = value.batch_rows(offset, count, halo)
            elif dim == 0 and _core.is_table(value):
                tables[key] = value
            else:
                batch[key] = take(value, n_id, dim)
        rows = list(tables.values())
        if self.allocate is None:
            found = _core.batch_rows_of(rows, offset, count, halo)
        else:
            out = [self.allocate((n_id.numel(), *each.shape[1:]), each.dtype) for each in rows]
            found = _core.batch_rows_into(rows, offset, count, halo, out)
        batch.update(dict(zip(tables, found, strict=True)))
        e_id = sub.e_id if self.csr.perm is None else entries(self.csr.perm, sub.e_id)
        for key in self.edge_keys:
            batch[key] = take(self.data[key], e_id, self.data.__cat_dim__(key, self.data[key]))
        batch.num_nodes = n_id.numel()
        num_edges = sub.col.numel()
        given = {key: batch[key] for key in self.sampled_keys if key in batch}
        samples = of_batch(given, adj, num_edges, batch_size, n_id.numel())
        record = BatchRecord(
            key=self.graph_key,
            num_nodes=self.num_nodes,
            offset=offset,
            count=count,
            batch_size=batch_size,
            halo_size=n_id.numel() - batch_size,
            num_edges=num_edges,
            digest=digest(n_id),
            neighbors=self.neighbors,
            samples={name: rows.clone() for name, rows in samples.items()},
            mask_rows={key: int(torch.count_nonzero(batch[key][:batch_size])) for key in self._masks()},
        )
        return SubData.of_record(batch, record, n_id)

    def halo(self, parts: Sequence[int]) -> Tensor:
        """Ids of the halo of the batch of some parts, [S]."""
        offset, count = self._ranges(parts)
        return self.subgraph(offset, count).n_id[int(count.sum()) :]

    def _ranges(self, parts: Sequence[int]) -> tuple[Tensor, Tensor]:
        """Start and length of some parts."""
        index = torch.tensor(parts, dtype=torch.int64, device="cpu")
        return self._start.index_select(0, index), self._count.index_select(0, index)

    def subgraph(self, offset: Tensor, count: Tensor) -> _core.Subgraph:
        """Edges and ids of the batch of the nodes in some ranges."""
        matrix = is_matrix(self.adj)
        sub = _core.subgraph(self.csr.rowptr, self.csr.col, offset, count, ascending=matrix, coo=not matrix)
        return sub if self.csc is None else self._with_outgoing(sub, offset, count)

    def _with_outgoing(self, sub: _core.Subgraph, offset: Tensor, count: Tensor) -> _core.Subgraph:
        """``sub`` with the edges from the batch to nodes outside of it, which then belong to the halo."""
        assert self.csc is not None
        colptr, row, perm = self.csc
        out = _core.subgraph(colptr, row, offset, count)
        batch_size = out.rowptr.numel() - 1
        outgoing = out.col >= batch_size
        src = torch.repeat_interleave(out.rowptr.diff(), output_size=out.col.numel()).to(out.col.dtype)[outgoing]
        halo = torch.cat([sub.halo, out.halo]).unique()
        dst = torch.searchsorted(halo, out.halo)[out.col[outgoing].long() - batch_size]
        order = dst.argsort(stable=True)
        counts = dst.bincount(minlength=halo.numel())
        rows = torch.cat([torch.arange(batch_size, device="cpu"), batch_size + torch.searchsorted(halo, sub.halo)]).to(
            sub.col.dtype
        )
        return _core.Subgraph(
            torch.cat([sub.rowptr, sub.rowptr[-1] + counts.cumsum(0).to(sub.rowptr.dtype)]),
            torch.cat([rows[sub.col.long()], src[order]]),
            torch.cat([sub.e_id, perm[out.e_id[outgoing]][order]]),
            torch.cat([sub.n_id[:batch_size], halo]),
        )

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__dict__.update(state)
        self.signature = _signature(self.data)  # which tells tensors apart by identity

    def check_unchanged(self) -> None:
        """Raises if ``data`` has another size, adjacency or other attributes than when the loader was made."""
        if _signature(self.data) != self.signature:
            advice = "make a new loader (and new parts for new edges), or move a copy: copy.copy(data).to(device)"
            raise RuntimeError(f"SubgraphLoader: data changed its size, adjacency, attributes or device; {advice}")

    def check_sendable(self, learned: str | None) -> None:
        """Raises if workers cannot send batches: torch would print why, and the next batch never come.

        Args:
            learned: the name of an attribute that gradients are wanted of, or None.
        """
        if learned is not None:
            raise ValueError(
                f"SubgraphLoader: gradients are wanted of data.{learned}, and cannot come back from worker processes; make the "
                f"loader with num_workers=0, or pass data.{learned}.detach() and have the model look its rows up by batch.n_id"
            )
        rest = copy.copy(self.data)
        for key, value in self.data.to_dict().items():
            if isinstance(value, Tensor) or key in (self.key, *self.node_keys, *self.edge_keys):
                del rest[key]
        try:
            ForkingPickler.dumps(rest)
        except Exception as error:  # of any type, as the objects are the user's
            advice = "leave out what cannot be pickled, or make the loader with num_workers=0"
            raise TypeError(f"SubgraphLoader: workers cannot send what data holds: {error}; {advice}") from error


def check_data(data: Data) -> int:
    if data.num_nodes is None or data.num_nodes < 1:
        raise ValueError("data has no nodes: set data.x or data.num_nodes")
    if "n_id" in data:
        raise ValueError("data.n_id: under this name a batch holds the ids of its nodes: rename the attribute")
    for key, value in data.to_dict().items():
        if isinstance(value, Tensor) and value.device.type != "cpu":
            advice = "make the loader of data.cpu() and move each batch, batch.to(device)"
            raise ValueError(f"data.{key} is on {value.device}, but batches are made on the CPU: {advice}")
        if isinstance(value, Tensor) and value.layout not in (torch.strided, torch.sparse_csr):
            advice = f"data.{key}.to_dense(), or .to_sparse_csr() where few numbers are not zero"
            raise ValueError(f"data.{key} is {value.layout}, of which no rows can be taken: make it {advice}")
        if isinstance(value, StoredFeatures):
            if len(value) != data.num_nodes:
                raise ValueError(f"data.{key} has {len(value)} rows, but data has {data.num_nodes} nodes")
            if data.get("perm") is not None:
                value.check_order(data.perm, f"data.{key}")
    return int(data.num_nodes)


def check_partition(ptr: Tensor, data: Data) -> Tensor:
    """``ptr`` as int64, if it may be that of ``data``."""
    ptr = check_ptr(ptr, check_data(data), "SubgraphLoader").clone()  # which nobody writes to
    if not is_in_order(data, find_adjacency(data)[1], ptr):
        advice = "call data = permute(data, perm) with the perm that metis() returned together with this ptr"
        raise ValueError(f"data is not in the order that ptr belongs to: {advice}")
    return ptr


def _signature(data: Data) -> list[tuple[str, Any]]:
    """What must not change while a loader lives: names, shapes and devices, and all of the adjacency."""
    key, adj = find_adjacency(data)
    tensors = tensors_of(adj)
    versions = [(version(tensor), tensor.requires_grad) for tensor in tensors]
    edges = (id(adj), versions, glance(tensors, WHOLE_EDGES))
    shapes = [(k, _shape(v)) for k, v in data.to_dict().items() if k != key]
    return [("num_nodes", data.num_nodes), ("num_edges", data.num_edges), (key, edges), *sorted(shapes)]


def _shape(value: Any) -> tuple[Any, ...]:
    if isinstance(value, (list, tuple)):
        return (len(value),)
    return (*getattr(value, "shape", ()), getattr(value, "device", None))
