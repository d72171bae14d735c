"""Names that scripts of PyGAS import: scores, random splits, masks, edge dropout; and its modules, for ``from ... import``."""

from __future__ import annotations

import sys
from collections.abc import Callable
from functools import partial
from types import ModuleType
from typing import Any

import torch
from torch import Tensor

from torch_gas._util.arguments import checked
from torch_gas.datasets import get_data
from torch_gas.datasets.masks import gen_masks, index_to_mask
from torch_gas.graph.checks import INTEGERS
from torch_gas.graph.formats import check_adjacency, format_of
from torch_gas.partition import metis, permute
from torch_gas.transfer import AsyncIOPool

__all__ = ["compute_micro_f1", "dropout", "gen_masks", "index2mask", "index_to_mask"]

index2mask = index_to_mask


@checked
def compute_micro_f1(logits: Tensor, y: Tensor, mask: Tensor | None = None) -> float:
    """Micro-averaged F1 score: accuracy for one label per node, F1 at logit > 0 for several (paper,
    section 5).

    Args:
        logits: scores, [N, C].
        y: class ids [N], or 0/1 labels [N, C].
        mask: the rows to score, bool [N]; all by default.

    Returns:
        The score in [0, 1]. Several labels without a single true positive give 0.

    Raises:
        ValueError: if shapes do not fit or no row is selected.

    Example:
        >>> compute_micro_f1(torch.tensor([[2.0, 1.0], [0.0, 3.0]]), torch.tensor([0, 0]))
        0.5
    """
    if logits.is_complex() or y.is_complex() or (y.dim() == 1 and y.dtype not in INTEGERS):
        raise TypeError(
            f"compute_micro_f1: logits must be real and class ids y integers, but logits is {logits.dtype} and y is {y.dtype}"
        )
    if logits.dim() != 2 or y.shape not in (logits.shape, logits.shape[:1]):
        raise ValueError(
            "compute_micro_f1: logits must be [N, C] and y class ids [N] or labels [N, C], but "
            f"logits is {list(logits.shape)} and y is {list(y.shape)}"
            + ("; pass y.view(-1)" if y.dim() == 2 and y.size(1) == 1 else "")
        )
    if mask is not None:
        if mask.dtype != torch.bool or mask.shape != logits.shape[:1]:
            raise ValueError(
                f"compute_micro_f1: mask must be bool [{logits.size(0)}], but is {mask.dtype} "
                f"{list(mask.shape)}" + ("; pass one split, mask[:, i]" if mask.dim() == 2 else "")
            )
        logits, y = logits[mask], y[mask]
    if logits.size(0) == 0:
        raise ValueError("compute_micro_f1: no row is selected, and nothing has no score: check mask")
    if y.dim() == 1:
        if int(y.max()) >= logits.size(1):
            raise ValueError(
                f"compute_micro_f1: y holds class {int(y.max())}, but logits has scores of {logits.size(1)} classes"
            )
        return int((logits.argmax(dim=-1) == y).sum()) / y.size(0)
    predicted, true = logits > 0, y > 0.5
    both, either = int((predicted & true).sum()), int(predicted.sum() + true.sum())
    return 2 * both / either if either else 0.0


@checked
def dropout(adj: Any, p: float, training: bool = True) -> Any:
    """Drops edges at random; returns the same format and leaves ``adj`` unchanged.

    Weights that remain are divided by ``1 - p``, so that their sum is the same on average. Edges without weights, which
    includes a matrix whose values are all 1, are not rescaled.

    Args:
        adj: ``edge_index`` [2, E], ``EdgeIndex``, ``torch.sparse_csr`` or
            ``torch_sparse.SparseTensor``.
        p: probability for an edge to be dropped.
        training: False returns ``adj`` itself.

    Raises:
        TypeError: if ``adj`` is in none of the four formats.
        ValueError: if ``p`` is not in [0, 1].

    Example:
        >>> edge_index = torch.tensor([[0, 1, 2], [1, 2, 0]])
        >>> dropout(edge_index, p=1.0).shape, dropout(edge_index, p=0.5, training=False).shape
        (torch.Size([2, 0]), torch.Size([2, 3]))
    """
    check_adjacency(adj, "dropout: adj")
    if not 0 <= p <= 1:
        raise ValueError(f"dropout: p must lie in [0, 1], but is {p}")
    if not training or p == 0:
        return adj
    known = format_of(adj)
    values, src = known.values(adj), known.stored_edges(adj).src
    if values is not None and not bool((values == 1).all()):
        values = values / (1 - p)
    return known.keep_edges(adj, torch.rand(src.numel(), device=src.device) >= p, values)


def _family(prefix: str) -> Callable[..., Any]:
    return lambda root, name: get_data(root, prefix + name)


def _set_of_graphs(dataset: str) -> Callable[..., Any]:
    return lambda root, split="train": get_data(root, dataset, split=split)


_ONE_GRAPH = {
    "wikics": "WikiCS", "arxiv": "ogbn-arxiv", "products": "ogbn-products", "yelp": "Yelp", "flickr": "Flickr",
    "reddit": "Reddit",
}  # fmt: skip
_MODULES: dict[str, dict[str, Any]] = {
    "data": {
        "get_data": get_data,
        "get_planetoid": _family(""),
        "get_coauthor": _family("Coauthor-"),
        "get_amazon": _family("Amazon-"),
        "get_ppi": _set_of_graphs("PPI"),
        "get_sbm": _set_of_graphs("CLUSTER"),
        **{f"get_{key}": partial(get_data, name=name) for key, name in _ONE_GRAPH.items()},
    },
    "metis": {"metis": metis, "permute": permute},
    "pool": {"AsyncIOPool": AsyncIOPool},
}
for _name, _held in _MODULES.items():  # found by import statements only: `torch_gas.metis` stays the function
    _module = ModuleType(f"torch_gas.{_name}", f"PyGAS's module of this name: {', '.join(_held)}.")
    vars(_module).update(_held)
    sys.modules[_module.__name__] = _module
