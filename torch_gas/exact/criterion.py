"""A criterion that a loader's batches can be summed up by: a sum over rows of the batch."""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch.utils import _pytree as pytree

from torch_gas.batch.data import SubData

Criterion = Callable[[Any, SubData], Tensor]

_HOW = (
    "Return a sum over the batch's rows, F.cross_entropy(out[mask], y[mask], reduction='sum'); for a mean, divide it by a number "
    "of the whole graph, int(data.train_mask.sum())"
)


def value_of(criterion: Criterion, out: Any, batch: SubData) -> Tensor:
    """The loss of a batch, a scalar."""
    loss: Any = criterion(out, batch)
    if not isinstance(loss, Tensor) or loss.numel() != 1 or not loss.is_floating_point():
        what = f"a tensor of {list(loss.shape)}, {loss.dtype}" if isinstance(loss, Tensor) else type(loss).__name__
        raise TypeError(f"ExactGradient: the criterion must return a scalar tensor, but returned {what}. {_HOW}")
    return loss.view(())


@torch.no_grad()
def check_is_sum(criterion: Criterion, out: Any, batch: SubData, loss: Tensor) -> bool:
    """Raises ValueError if ``loss`` is not the sum of the losses of two halves; whether both told something."""
    middle = batch.batch_size // 2
    rows = [leaf for leaf in pytree.tree_leaves(out) if isinstance(leaf, Tensor)]
    if middle == 0 or not all(bool(each.isfinite().all()) for each in rows):
        return False
    values = []
    for half in (slice(0, middle), slice(middle, batch.batch_size)):
        try:
            values.append(value_of(criterion, _rows_of(out, half, batch.batch_size), _part(batch, half)))
        except Exception as error:  # of any type, as the code is the user's
            raise ValueError(
                f"ExactGradient: the criterion fails on half of a batch ({type(error).__name__}: {error}), so that nothing "
                "tells whether it is a sum over rows. It is called once on each half, with a batch of its rows alone and without "
                f"edges. {_HOW}. If it is such a sum and needs more than these, pass ExactGradient(..., check=False)"
            ) from error
    total = values[0] + values[1]
    whole, left, right = (f"{float(value):.6g}" for value in (loss, *values))
    scale = max(_size_of_terms(out, loss), *(float(value.abs()) for value in (*values, loss)))
    tolerance = torch.finfo(loss.dtype).eps ** 0.5
    if not bool((total - loss).abs() <= tolerance * scale):  # not so for NaN
        raise ValueError(
            f"ExactGradient: the criterion is no sum over rows: a batch has {whole} and its halves {left} and {right}, so that "
            f"batches do not add up to the loss of the whole graph. {_HOW}. Weigh classes by "
            "their numbers in the whole graph. Where a loss compares rows of different batches, compute its gradient by the "
            "embeddings of all nodes first, and return (out * gradient[batch.n_id[:len(out)]]).sum()"
        )
    return all(float(value) != 0 for value in values)


def _size_of_terms(out: Any, loss: Tensor) -> float:
    """How large the numbers are that a loss adds up, which may cancel."""
    leaves = [leaf for leaf in pytree.tree_leaves(out) if isinstance(leaf, Tensor) and leaf.requires_grad]
    if not leaves or not loss.requires_grad:
        return 0.0
    grads = torch.autograd.grad(loss, leaves, retain_graph=True, allow_unused=True)
    return sum(float((leaf * grad).abs().sum()) for leaf, grad in zip(leaves, grads, strict=True) if grad is not None)


def _rows_of(out: Any, rows: slice, batch_size: int) -> Any:
    def cut(leaf: Any) -> Any:
        return leaf[rows] if isinstance(leaf, Tensor) and leaf.shape[:1] == (batch_size,) else leaf

    return pytree.tree_map(cut, out)


def _narrow(value: Tensor, dim: int, rows: slice) -> Tensor:
    if value.layout == torch.strided:
        return value.narrow(dim, rows.start, rows.stop - rows.start)
    ids = torch.arange(rows.start, rows.stop, device=value.device)
    return value.to_sparse_coo().index_select(dim, ids).to_sparse(layout=value.layout)  # rows of CSR cannot be selected


def _part(batch: SubData, rows: slice) -> SubData:
    """Some of the batch's rows as a batch without edges and halo."""
    data, of_nodes = copy.copy(batch.data), {}
    for name, value in data.to_dict().items():
        if isinstance(value, Tensor) and data.is_node_attr(name):
            dim = data.__cat_dim__(name, value)
            of_nodes[name] = _narrow(value, dim, rows)
        elif data.is_edge_attr(name):
            del data[name]
    n_id = of_nodes.pop("n_id", batch.n_id[rows])
    data.update(of_nodes)
    return SubData(data, rows.stop - rows.start, n_id)
