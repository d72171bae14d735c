"""The small graph on which a model is tried out, and its batches."""

from __future__ import annotations

import copy

import torch
from torch import Tensor
from torch_geometric.data import Data

from torch_gas.batch.data import SubData
from torch_gas.batch.loader import SubgraphLoader
from torch_gas.graph.adjacency import find_adjacency, one_adjacency
from torch_gas.graph.attributes import take
from torch_gas.graph.edges import coo, from_coo
from torch_gas.graph.formats import resize
from torch_gas.graph.levels import edge_attrs, is_node_attr

# Nodes on a ring, each with edges from some of the nodes up to REACH steps away, so that a batch and its halo are a part of
# it. Nodes, edges, and rows and edges of each batch differ in number, so that a size tells what it is of.
NUM_NODES, NUM_EDGES, REACH = 61, 200, 6
MOST = 2048  # nodes of a graph on which a model is tried for whether it goes by their number
# Under which name it tells which of the user's nodes each of its rows is.
NODES = "node_of_torch_gas"
PTR = torch.tensor([0, 19, 40, NUM_NODES], device="cpu")


def small_graph(data: Data) -> Data:
    """A random graph of NUM_NODES nodes with rows of ``data``, its edges sorted as matrices hold them."""
    generator = torch.Generator().manual_seed(12)
    data = one_adjacency(data)
    key, adj = find_adjacency(data)
    src, dst, value = coo(adj)
    if src.numel() == 0:
        raise ValueError("scale(): data has no edges to try the model on; a graph without edges needs no histories")
    steps = torch.arange(-REACH, REACH + 1, device="cpu")
    if not bool((src == dst).any()):
        steps = steps[steps != 0]
    pairs = torch.cartesian_prod(torch.arange(NUM_NODES, device="cpu"), steps)
    ends, step = pairs[torch.randperm(len(pairs), generator=generator, device="cpu")[:NUM_EDGES]].t()
    order = (ends * NUM_NODES + (ends + step) % NUM_NODES).sort().values
    starts, ends = order % NUM_NODES, order // NUM_NODES
    nodes = torch.randint(int(data.num_nodes), (NUM_NODES,), generator=generator, device="cpu")
    edges = torch.randint(src.numel(), (NUM_EDGES,), generator=generator, device="cpu")
    per_edge = edge_attrs(data)
    small = copy.copy(data)
    small[key], moved = from_coo(adj, starts, ends, None if value is None else value[edges], NUM_NODES)
    if moved is not None:
        edges = edges[moved]
    for name, held in data.to_dict().items():
        if name != key and (name in per_edge or is_node_attr(data, name)):
            small[name] = take(held, edges if name in per_edge else nodes, data.__cat_dim__(name, held))
    small[NODES] = nodes
    small.num_nodes = NUM_NODES
    for name in {"perm", "edge_perm"}.intersection(small.keys()):
        del small[name]
    return small


def batches_of(small: Data, neighbors: str, ptr: Tensor = PTR) -> list[SubData]:
    """Batches of one part each."""
    return list(SubgraphLoader(small, ptr, 1, bipartite=False, neighbors=neighbors, prefetch=0))


def with_more_halo(batch: SubData, small: Data) -> SubData:
    """``batch`` with two nodes more in its halo, which no edge leads from."""
    others = sorted(set(range(NUM_NODES)) - set(batch.n_id.tolist()))
    n_id = torch.cat([batch.n_id, batch.n_id.new_tensor(others[:2])])
    wide = copy.copy(batch)
    key, adj = find_adjacency(batch)
    for name, held in small.to_dict().items():
        if name != key and small.is_node_attr(name):
            wide[name] = take(held, n_id, small.__cat_dim__(name, held))
    wide.n_id, wide.num_nodes = n_id, n_id.numel()
    wide[key] = resize(adj, wide.num_nodes, wide.num_nodes)
    return wide


def with_more_nodes(small: Data, num_nodes: int) -> Data:
    """``small`` with up to ``num_nodes`` nodes, but MOST; no edge touches those that are new."""
    num_nodes = max(min(num_nodes, MOST), NUM_NODES)
    wide = copy.copy(small)
    key, adj = find_adjacency(small)
    rows = torch.arange(num_nodes, device="cpu") % NUM_NODES
    for name, held in small.to_dict().items():
        if name != key and small.is_node_attr(name):
            wide[name] = take(held, rows, small.__cat_dim__(name, held))
    wide[key], wide.num_nodes = resize(adj, num_nodes, num_nodes), num_nodes
    return wide
