"""What histories are compared with: batches as Cluster-GCN and GraphSAGE have them, of the same nodes and for the same models.

Each is a batch without a halo, so that a model takes it as it takes any other, and neither pulls rows nor leaves out a layer.
"""

from __future__ import annotations

import warnings
from collections.abc import Iterator
from functools import partial

import torch
import torch.nn.functional as F
from torch import Tensor
from torch_geometric.data import Data
from torch_geometric.loader import NeighborLoader
from torch_geometric.utils import to_torch_csr_tensor

from torch_gas import SubData, in_degree
from torch_gas.batch.record import BatchRecord, BatchSize
from torch_gas.graph.attributes import take
from torch_gas.graph.key import digest

NUM_SAMPLED = (10, 5)  # neighbours of a seed, and of any further node


def without_halo(batch: SubData) -> SubData:
    """The batch of Cluster-GCN (https://arxiv.org/abs/1905.07953): nodes and edges inside, which keep their weights."""
    data, batch_size, n_id, offset, count = batch
    rowptr, col, value = data.adj_t.crow_indices(), data.adj_t.col_indices(), data.adj_t.values()
    inside = col < batch_size
    rowptr = torch.cat([rowptr.new_zeros(1), inside.cumsum(0, dtype=rowptr.dtype)])[rowptr.long()]
    size = (batch_size, batch_size)
    adj_t = torch.sparse_csr_tensor(rowptr, col[inside], value[inside], size, check_invariants=False)
    rows = torch.arange(batch_size)
    names = [name for name in data.keys() if name not in ("adj_t", "n_id") and data.is_node_attr(name)]  # noqa: SIM118  # Data iterates over pairs
    attributes = {name: take(data[name], rows) for name in names}
    return batch_of(Data(**attributes, adj_t=adj_t), n_id[:batch_size], batch.record.num_nodes, offset, count)


def batch_of(data: Data, n_id: Tensor, num_nodes: int, offset: Tensor | None, count: Tensor | None) -> SubData:
    """A batch of a graph of ``num_nodes`` nodes, which models take as they take a loader's."""
    number, num_edges = n_id.numel(), data.adj_t.values().size(0)
    record = BatchRecord("", num_nodes, offset, count, number, 0, num_edges, digest(n_id), "in")
    return SubData(data, BatchSize(record), n_id, offset, count)


class NeighborSampling:
    """Batches of GraphSAGE (https://arxiv.org/abs/1706.02216): seed nodes, some in-neighbours of each, some of each of these ...

    All sampled nodes are rows of a batch, seeds first; only seeds are in its ``train_mask``. Weights of sampled edges are divided
    by the share of their destination's edges that was sampled, so that sums are right on average. ``hops`` says how many rows are
    at most 0, 1, ... hops from the seeds; see :class:`TrimmedNorms`. Needs pyg-lib or torch-sparse.

    Args:
        graph: with ``adj_t`` as a CSR matrix [N, N], ``x``, ``y`` and ``train_mask``.
        seeds: nodes that outputs are wanted of, visited in random order, [M].
        batch_size: seeds in a batch.
        num_layers: hops, with at most ``NUM_SAMPLED`` neighbours of a node.
        seed: of the order of seeds; which neighbours are drawn depends on the global random state.
    """

    def __init__(self, graph: Data, seeds: Tensor, batch_size: int, num_layers: int, seed: int = 0) -> None:
        self.graph, self.num_layers = graph, num_layers
        rowptr, col = graph.adj_t.crow_indices(), graph.adj_t.col_indices()
        self.degree = rowptr.diff()
        destination = torch.repeat_interleave(self.degree, output_size=col.numel())
        structure = Data(edge_index=torch.stack([col.long(), destination]), num_nodes=graph.num_nodes)
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", "Using '.*' without a 'pyg-lib' installation", UserWarning)
            self.loader = NeighborLoader(
                structure,
                [NUM_SAMPLED[0], *[NUM_SAMPLED[1]] * (num_layers - 1)],
                input_nodes=seeds,
                batch_size=batch_size,
                shuffle=True,
                generator=torch.Generator().manual_seed(seed),
            )

    def __len__(self) -> int:
        return len(self.loader)

    def __iter__(self) -> Iterator[SubData]:
        for found in self.loader:
            n_id, (source, destination) = found.n_id, found.edge_index
            num_sampled = in_degree(found.edge_index, n_id.numel())
            share = num_sampled[destination] / self.degree[n_id[destination]]
            weight = self.graph.adj_t.values()[found.e_id] / share
            adj_t = to_torch_csr_tensor(torch.stack([destination, source]), weight, (n_id.numel(), n_id.numel()))
            train_mask = torch.arange(n_id.numel()) < found.batch_size
            hops = [found.batch_size]
            for _ in range(self.num_layers):  # rows are in the order in which nodes were found
                hops.append(max(hops[-1], 1 + _largest(source[destination < hops[-1]])))
            data = Data(x=take(self.graph.x, n_id), y=self.graph.y[n_id], train_mask=train_mask, adj_t=adj_t, hops=hops)
            yield batch_of(data, n_id, self.graph.num_nodes, None, None)


def _largest(ids: Tensor) -> int:
    return int(ids.max()) if ids.numel() > 0 else -1


class TrimmedNorms:
    """Keeps the batch norms of a model, one behind each layer, to the rows that seeds depend on.

    Of the nodes of the last hop no neighbours were sampled. Behind layer l, those at most L - l hops away have all they need; PyG
    leaves the others out by ``trim_to_layer``. Here they are zeros, which no seed reads.
    """

    def __init__(self, model: torch.nn.Module) -> None:
        self.hops: list[int] | None = None  # of the batch that comes, or None where all rows count
        norms = [module for module in model.modules() if isinstance(module, torch.nn.BatchNorm1d)]
        for layer, norm in enumerate(norms, 1):
            norm.register_forward_pre_hook(partial(self._trim, layer))
            norm.register_forward_hook(self._pad)

    def _trim(self, layer: int, norm: torch.nn.Module, args: tuple[Tensor]) -> tuple[Tensor]:
        return (args[0][: self.hops[-1 - layer]],) if self.hops is not None and norm.training else args

    def _pad(self, norm: torch.nn.Module, args: tuple[Tensor], out: Tensor) -> Tensor:
        return F.pad(out, (0, 0, 0, self.hops[-1] - out.size(0))) if self.hops is not None and norm.training else out
