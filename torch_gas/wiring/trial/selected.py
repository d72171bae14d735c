"""Whether what ``inputs`` takes from a batch is what it takes from the whole graph.

It is the user's code, and may pick by position (``data.edge_index[:, :1000]``), which is something else in a batch. The small
graph of a trial does not show that where the position lies beyond its end, so one batch of the graph itself is looked at.
"""

from __future__ import annotations

import copy
from typing import Any

import torch
from torch import Tensor
from torch.utils import _pytree as pytree
from torch_geometric.data import Data

from torch_gas.batch.loader import SubgraphLoader
from torch_gas.graph.edges import coo
from torch_gas.graph.formats import is_adjacency
from torch_gas.wiring.arguments import Arguments, Inputs
from torch_gas.wiring.trial.handlers import same

_NODES = 16  # of the batch, at the beginning, in the middle and at the end
_ADVICE = (
    "what it picks must come along with the nodes and edges of a batch. Store a mask with an entry for each in data and use "
    "that, inputs=lambda batch: (batch.x, batch.edge_index[:, batch.mask]), or change data before scale() and the loader get it"
)


def check_inputs(data: Data, inputs: Inputs, given: Arguments) -> None:
    """Raises ValueError if ``inputs`` takes something else from a batch than from ``data``, of which it took ``given``."""
    values = pytree.tree_leaves(given)
    held = [id(value) for value in data.to_dict().values()]
    if all(id(value) in held for value in values if isinstance(value, Tensor) or is_adjacency(value)):
        return
    num_nodes = int(data.num_nodes)
    middle, last = num_nodes // 2, num_nodes - _NODES
    starts = [0, _NODES, middle, middle + _NODES, last, num_nodes] if last > 3 * _NODES else [0, middle, num_nodes]
    ptr = torch.tensor(starts, device="cpu")
    loader = SubgraphLoader(copy.copy(data).cpu(), ptr, bipartite=False, prefetch=0)
    batch = next(iter(loader.only([range(0, ptr.numel() - 1, 2)])))
    try:
        others = pytree.tree_leaves(inputs(batch.data))
    except Exception as error:  # of any type, as it is the user's code
        raise ValueError(f"scale(): inputs fails on a batch ({type(error).__name__}: {error}); {_ADVICE}") from error
    ids, batch_size = batch.n_id, batch.batch_size
    for value, other in zip(values, others, strict=False):
        if is_adjacency(value) and is_adjacency(other):
            is_same = torch.equal(
                _into(value, torch.arange(num_nodes, device=ids.device))[ids[:batch_size]],
                _into(other, ids)[:batch_size],
            )
        elif isinstance(value, Tensor) and isinstance(other, Tensor) and value.shape[:1] == (num_nodes,):
            is_same = same(value.detach()[ids.to(value.device)].cpu(), other.detach().cpu())
        else:
            continue
        if not is_same:
            what = "edges" if is_adjacency(value) else "rows of nodes"
            raise ValueError(f"scale(): inputs takes other {what} from a batch than from the whole graph; {_ADVICE}")


def _into(adj: Any, ids: Tensor) -> Tensor:
    """For each node, a number that tells which edges go into it."""
    src, dst, _ = coo(adj)
    return torch.zeros_like(ids).index_add_(0, dst.cpu(), (ids + 1).square()[src.cpu()])
