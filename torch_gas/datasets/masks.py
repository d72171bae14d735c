"""Masks of nodes: random splits by class, and masks of ids."""

from __future__ import annotations

import torch
from torch import Tensor

from torch_gas._util.arguments import checked
from torch_gas._util.fitting import fitting
from torch_gas.graph.checks import INTEGERS


@checked
def gen_masks(
    y: Tensor, train_per_class: int = 20, val_per_class: int = 30, num_splits: int = 20, seed: int | None = None
) -> tuple[Tensor, Tensor, Tensor]:
    """Random splits with equally many training and validation nodes per class, the rest for test
    (section 5).

    Args:
        y: class ids, [N]. Nodes with a negative id are unlabeled and in no mask.
        train_per_class: training nodes per class.
        val_per_class: validation nodes per class.
        num_splits: number of independent splits.
        seed: seed of a private generator; None draws from torch's global one. A seed gives the
            splits that PyGAS draws after ``torch.manual_seed(seed)``.

    Returns:
        Training, validation and test masks, each bool [N, num_splits].

    Raises:
        ValueError: if ``y`` is not an integer vector, a count is negative, or a class has fewer
            than ``train_per_class + val_per_class`` nodes.

    Example:
        >>> train, val, test = gen_masks(torch.arange(30) % 3, 2, 3, num_splits=4, seed=0)
        >>> train.shape, train.sum(0).tolist(), test.sum(0).tolist()
        (torch.Size([30, 4]), [6, 6, 6, 6], [15, 15, 15, 15])
    """
    if y.dim() != 1 or y.dtype not in INTEGERS or y.numel() == 0:
        raise ValueError(f"gen_masks: y must be class ids [N], but is {y.dtype} {list(y.shape)}")
    if train_per_class < 0 or val_per_class < 0 or num_splits < 1:
        raise ValueError(
            "gen_masks: counts must not be negative and num_splits must be positive, but are "
            f"train_per_class={train_per_class}, val_per_class={val_per_class}, num_splits={num_splits}"
        )
    generator = None if seed is None else torch.Generator().manual_seed(seed)
    needed = train_per_class + val_per_class
    labels = y.cpu()
    with fitting(f"gen_masks: num_splits={num_splits}"):
        train_mask = torch.zeros(y.numel(), num_splits, dtype=torch.bool, device="cpu")
    val_mask = torch.zeros_like(train_mask)
    for label in range(int(labels.max()) + 1):
        nodes = (labels == label).nonzero().view(-1)
        if 0 < nodes.numel() < needed:
            raise ValueError(
                f"gen_masks: every class needs train_per_class + val_per_class = {needed} nodes, but class {label} has "
                f"{nodes.numel()}: lower the counts or mark the class as unlabeled (-1)"
            )
        order = [torch.randperm(nodes.numel(), generator=generator, device="cpu") for _ in range(num_splits)]
        drawn = nodes[torch.stack(order, dim=1)]
        train_mask.scatter_(0, drawn[:train_per_class], True)
        val_mask.scatter_(0, drawn[train_per_class:needed], True)
    test_mask = (labels >= 0).view(-1, 1) & ~(train_mask | val_mask)
    return train_mask.to(y.device), val_mask.to(y.device), test_mask.to(y.device)


@checked
def index_to_mask(index: Tensor, size: int) -> Tensor:
    """The mask, bool [size], that is true at ``index``.

    Args:
        index: ids in 0 .. size-1.
        size: length of the mask.

    Raises:
        IndexError: if an id is out of range; negative ids do not count from the end.

    Example:
        >>> index_to_mask(torch.tensor([0, 2]), 4)
        tensor([ True, False,  True, False])
    """
    if index.numel() and not (int(index.min()) >= 0 and int(index.max()) < size):
        raise IndexError(
            f"index_to_mask: index must lie in 0 .. {size - 1}, but spans {int(index.min())} .. {int(index.max())}"
        )
    with fitting(f"index_to_mask: size={size}"):
        mask = torch.zeros(size, dtype=torch.bool, device=index.device)
    mask[index] = True
    return mask
