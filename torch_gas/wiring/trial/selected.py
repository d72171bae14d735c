"""Whether what ``inputs`` takes from a batch is what it takes from the whole graph, or from a larger batch.

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

from torch_gas.batch.builder import Builder
from torch_gas.batch.data import SubData
from torch_gas.batch.loader import SubgraphLoader
from torch_gas.graph.edges import coo
from torch_gas.graph.formats import is_adjacency
from torch_gas.wiring.arguments import Arguments, Inputs
from torch_gas.wiring.trial.handlers import same

_NODES = 16  # of the batch, at the beginning, in the middle and at the end
_ADVICE = (
    "what it picks must come along with the nodes and edges of a batch. Store a mask with an entry for each in data and use "
    "that, (batch.x, batch.edge_index[:, batch.mask]), or change data before scale() and the loader get it"
)


def check_inputs(data: Data, inputs: Inputs, given: Arguments) -> None:
    """Raises ValueError if ``inputs`` takes something else from a batch than from ``data``, of which it took ``given``."""
    if _is_held(data, given):
        return
    num_nodes = int(data.num_nodes)
    middle, last = num_nodes // 2, num_nodes - _NODES
    starts = [0, _NODES, middle, middle + _NODES, last, num_nodes] if last > 3 * _NODES else [0, middle, num_nodes]
    ptr = torch.tensor(starts, device="cpu")
    loader = SubgraphLoader(copy.copy(data).cpu(), ptr, bipartite=False, prefetch=0)
    batch = next(iter(loader.only([range(0, ptr.numel() - 1, 2)])))
    _compare("scale(): inputs", "the whole graph", batch, inputs, given, torch.arange(num_nodes, device="cpu"))


def check_inputs_of_batch(
    name: str, batch: SubData, builder: Builder, device: torch.device, inputs: Inputs, given: Arguments
) -> None:
    """The same of ``batch``, of which it took ``given``, and a batch of a few of its nodes, on ``device``.

    So the whole graph, which may be larger than memory, need not be given to ``inputs``.
    """
    if _is_held(batch, given):
        return
    first, size = int(batch.offset[-1]), int(batch.count[-1])  # of the last part
    starts = torch.tensor([first + size // 3, first + size // 2, first + size - size // 9], device="cpu")
    if size >= 9:
        few = builder.batch(starts, torch.full((3,), size // 9, device="cpu").clamp(max=_NODES))
        _compare(f"{name}: inputs()", "a larger one", few.to(device), inputs, given, batch.n_id)


def _is_held(data: Data, given: Arguments) -> bool:
    """Whether all that was given are attributes of ``data``."""
    held = [id(value) for value in data.to_dict().values()]
    values = pytree.tree_leaves(given)
    return all(id(value) in held for value in values if isinstance(value, Tensor) or is_adjacency(value))


def _compare(where: str, other: str, batch: SubData, inputs: Inputs, given: Arguments, n_id: Tensor) -> None:
    """Compares ``given``, of a graph of the nodes ``n_id``, with what ``inputs`` takes from ``batch``, of some of them."""
    try:
        values = pytree.tree_leaves(inputs(batch.data))
    except Exception as error:  # of any type, as it is the user's code
        raise ValueError(f"{where} fails on a batch ({type(error).__name__}: {error}); {_ADVICE}") from error
    order = n_id.argsort()  # where each id of the batch stands in n_id
    ids, batch_size = order[torch.searchsorted(n_id[order], batch.n_id)], batch.batch_size
    for whole, value in zip(pytree.tree_leaves(given), values, strict=False):
        if is_adjacency(whole) and is_adjacency(value):
            is_same = torch.equal(_into(whole, n_id)[ids[:batch_size]], _into(value, batch.n_id)[:batch_size])
        elif isinstance(whole, Tensor) and isinstance(value, Tensor) and whole.shape[:1] == n_id.shape:
            is_same = same(whole.detach()[ids.to(whole.device)].cpu(), value.detach().cpu())
        else:
            continue
        if not is_same:
            what = "edges" if is_adjacency(whole) else "rows of nodes"
            raise ValueError(f"{where} takes other {what} from a batch than from {other}; {_ADVICE}")


def _into(adj: Any, ids: Tensor) -> Tensor:
    """For each node, a number that tells which edges go into it."""
    src, dst, _ = coo(adj)
    return torch.zeros_like(ids).index_add_(0, dst.cpu(), (ids + 1).square()[src.cpu()])
