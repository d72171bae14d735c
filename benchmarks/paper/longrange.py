"""What keeps mini-batches below full batch where labels depend on 16 hops?

The graph is a piece of a mesh (`wing`). Each node has a random cost, an edge the mean of those of its ends, and a node's label is
the decile of its eccentricity: of its largest distance to a node within 16 hops, as in City-Networks
(https://arxiv.org/abs/2503.09008). GraphSAGE of 16 layers is trained in the whole graph and in four batches, and one thing after the
other that batches do differently is taken away: old histories, cut gradients, batches of one place.
"""

from __future__ import annotations

import os
import statistics
from collections.abc import Iterable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from cells import Cells, Job, Tasks
from command import check_found, parse, plain_arguments, save, spread
from grid import METIS, RANDOM, Cell
from scipy.sparse import csr_matrix
from scipy.sparse.csgraph import breadth_first_order, dijkstra
from torch import Tensor
from torch_geometric.data import Data
from torch_geometric.utils import degree, to_torch_csr_tensor
from tqdm import tqdm
from trainers import Compensated, Histories, Refreshed, Trainer
from training import Task, arrange

HOPS, CLASSES, NODES = 16, 10, 12_000
SMOOTH, SPREAD = 10, 0.5  # steps of averaging over neighbours, and standard deviation of the logarithm of costs
BATCHES, STEPS = 4, 400  # of an epoch, and of a run


def mesh(root: str, nodes: int = NODES) -> Data:
    """A piece of the mesh with features [N, 6], the cost and the number of neighbours, and labels [N]."""
    stored = np.load(Path(root) / "plain" / "wing.npz")
    row, col = stored["edge_index"]
    whole = csr_matrix((np.ones(len(row)), (row, col)), shape=(int(stored["num_nodes"]),) * 2)
    piece = np.sort(breadth_first_order(whole + whole.T, 0)[0][:nodes])
    links = (whole + whole.T)[piece][:, piece].tocoo()
    rng = np.random.default_rng(0)
    cost = rng.standard_normal(len(piece))
    for _ in range(SMOOTH):  # as the lengths of streets: alike among neighbours, another in the next quarter
        cost = links @ cost / np.asarray(links.sum(axis=1)).ravel()
    cost = np.exp(SPREAD * (cost - cost.mean()) / cost.std())
    lengths = csr_matrix(((cost[links.row] + cost[links.col]) / 2, (links.row, links.col)), shape=links.shape)
    reach = np.concatenate([_reach(lengths, part) for part in np.array_split(np.arange(len(piece)), 100)])
    edge_index = torch.from_numpy(np.stack([links.row, links.col])).long()
    neighbours = degree(edge_index[0], len(piece)).long().clamp(max=4)
    x = torch.cat([torch.from_numpy(np.log(cost)).float()[:, None], torch.nn.functional.one_hot(neighbours, 5)], dim=1)
    y = torch.from_numpy(np.searchsorted(np.quantile(reach, np.arange(1, CLASSES) / CLASSES), reach))
    drawn = torch.from_numpy(rng.random(len(piece)))
    masks = {"train_mask": drawn < 0.5, "val_mask": (drawn >= 0.5) & (drawn < 0.75), "test_mask": drawn >= 0.75}
    adj_t = to_torch_csr_tensor(edge_index, size=links.shape)
    return Data(x=x, y=y, adj_t=adj_t, num_nodes=len(piece), **masks)


def _reach(lengths: Any, nodes: Any) -> Any:
    """The largest distance of each of ``nodes`` to a node that is at most 16 hops away."""
    near = np.isfinite(dijkstra(lengths, indices=nodes, unweighted=True, limit=HOPS))
    return np.where(near, dijkstra(lengths, indices=nodes), 0.0).max(axis=1)
