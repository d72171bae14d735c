"""labelled_mean: the loss of a batch, on a scale that is the same for all batches."""

from __future__ import annotations

import torch
from torch import Tensor
from torch_geometric.data import Data

from torch_gas._util.arguments import checked
from torch_gas.batch.data import record_in
from torch_gas.batch.record import BatchRecord


@checked
def labelled_mean(
    losses: Tensor,
    batch: Data,
    mask: str = "train_mask",
    *,
    num_labelled: int | None = None,
    num_batches: int | None = None,
) -> Tensor:
    r"""The loss of a batch, whose mean over the batches of an epoch is the mean over all labelled nodes of the graph.

    .. math::
        \frac{K}{n} \sum_{i \in \mathcal{B}, \, i \text{ labelled}} \ell_i

    with n labelled nodes in the graph and K batches in an epoch. A mean over the batch's own labelled rows divides by their
    number instead: a node counts the more the fewer labelled nodes its batch has, so that an epoch minimises another loss than
    the full batch, and a batch without labels has NaN. This one is 0 there, and ``backward()`` can be called on it.

    n was counted when the epoch began, so that no step waits for a GPU. In the criterion of :class:`~torch_gas.ExactGradient`,
    which sums over batches, pass ``num_batches=1`` and ``num_labelled``.

    Args:
        losses: a loss for each labelled row of the batch, in a loss function of torch ``reduction="none"``: [n_B], or
            [n_B, ...], of which each row counts with its mean. Weights of classes weigh rows; n stays their number.
        batch: a loader's batch, or its ``batch.data``; or the whole graph, a ``Data`` without ids, whose loss is the plain mean.
        mask: name of the boolean attribute of the graph, [N], that has the labelled nodes.
        num_labelled: n, where the rows are not those of ``mask``: labels drawn anew in each step, say, or a batch made by hand.
        num_batches: K, where the loader does not know it (a batch made by hand or by :meth:`SubgraphLoader.only`, a sampler that
            decides on the way), or the loss is to be scaled otherwise.

    Returns:
        A scalar, in float32 or wider.

    Raises:
        ValueError: if ``losses`` is a scalar, or has another number of rows than there are labelled nodes in the batch; if the
            graph has no such mask, or no labelled node; if n or K is not known and not given.

    Example:
        >>> import torch.nn.functional as F
        >>> from torch_geometric.nn import GCN
        >>> from torch_gas import SubgraphLoader, labelled_mean, metis, permute, scale
        >>> from torch_gas.datasets import synthetic
        >>> data = synthetic(1000)
        >>> perm, ptr = metis(data, num_parts=8, log=False)
        >>> data = permute(data, perm, log=False)
        >>> model = scale(GCN(data.num_features, 16, num_layers=3, out_channels=10), data)
        >>> for batch in SubgraphLoader(data, ptr, batch_size=2, shuffle=True):
        ...     mask, y = batch.train_mask[: batch.batch_size], batch.y[: batch.batch_size]
        ...     out = model(batch)
        ...     loss = labelled_mean(F.cross_entropy(out[mask], y[mask], reduction="none"), batch)
        ...     loss.backward()
        >>> loss.shape
        torch.Size([])
    """
    _check_losses(losses)
    for name, number in (("num_labelled", num_labelled), ("num_batches", num_batches)):
        if number is not None and number < 1:
            raise ValueError(f"labelled_mean: {name} must be at least 1, but is {number}")
    record, is_whole = record_in(batch), "n_id" not in batch
    if num_labelled is None:
        rows, num_labelled = _of_graph(batch, mask) if is_whole else _of_batch(record, mask)
        if losses.size(0) != rows:
            where = "nodes of the graph" if is_whole else "of the batch's own nodes"
            head = "" if is_whole else "[: batch.batch_size]"
            raise ValueError(
                f"labelled_mean: losses has {losses.size(0)} rows, but {rows} {where} are in {mask}; take the rows of these, "
                f"mask = batch.{mask}{head} and out[mask], or give num_labelled, the number in the graph of nodes like "
                "those of losses"
            )
        if num_labelled == 0:
            raise ValueError(
                f"labelled_mean: no node of the graph is in {mask}, so that there is nothing to learn from"
            )
    elif losses.size(0) > num_labelled:
        raise ValueError(
            f"labelled_mean: losses has {losses.size(0)} rows, which is more than num_labelled={num_labelled}"
        )
    if num_batches is None:
        num_batches = 1 if is_whole else None if record is None else record.num_batches
        if num_batches is None:
            raise ValueError(
                "labelled_mean: the batch does not tell how many batches its epoch has, because no epoch of a loader made it, "
                "or a sampler decides on the way; give num_batches"
            )
    total = losses.sum(dtype=torch.promote_types(losses.dtype, torch.float32))
    return total * (num_batches / (num_labelled * losses.shape[1:].numel()))


def _check_losses(losses: Tensor) -> None:
    if not losses.is_floating_point():
        raise ValueError(f"labelled_mean: losses must be floating-point numbers, but are {losses.dtype}")
    if losses.dim() == 0:
        raise ValueError(
            "labelled_mean: losses is a scalar, which does not tell whether it is a mean or a sum; pass a loss for each labelled "
            'row, F.cross_entropy(out[mask], y[mask], reduction="none")'
        )
    if 0 in losses.shape[1:]:
        raise ValueError(
            f"labelled_mean: losses must have a number in each row, but has the shape {list(losses.shape)}"
        )


def _of_batch(record: BatchRecord | None, mask: str) -> tuple[int, int]:
    """How many nodes of the batch are in ``mask``, and how many of the graph."""
    if record is None:
        raise ValueError(
            "labelled_mean: batch was not made by a SubgraphLoader, or lost its ids, so that it does not know the graph; give "
            "num_labelled, the number of labelled nodes in the graph, and num_batches"
        )
    if mask not in record.mask_rows or mask not in record.mask_sizes:
        raise ValueError(_no_mask(mask, list(record.mask_sizes)))
    return record.mask_rows[mask], record.mask_sizes[mask]


def _of_graph(data: Data, mask: str) -> tuple[int, int]:
    """How many nodes of the graph are in ``mask``, twice."""
    shape = (data.num_nodes,)
    masks = {
        key: value
        for key, value in data.to_dict().items()
        if isinstance(value, Tensor) and value.dtype == torch.bool and value.shape == shape
    }
    if mask not in masks:
        raise ValueError(_no_mask(mask, list(masks)))
    number = int(torch.count_nonzero(masks[mask]))
    return number, number


def _no_mask(mask: str, masks: list[str]) -> str:
    named = f"name one of {', '.join(sorted(masks))}" if masks else "set one before the loader is made"
    return (
        f"labelled_mean: the graph has no mask {mask!r}, a boolean attribute with an entry for each node; {named}, or give "
        "num_labelled"
    )
