"""Measures a few training steps of a model on small batches, and leaves the model as it was."""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from functools import partial
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.nn.parameter import is_lazy
from torch.utils import _pytree as pytree

from torch_gas.batch.data import SubData
from torch_gas.batch.loader import SubgraphLoader
from torch_gas.graph.formats import format_of
from torch_gas.planner.batches import single_node_ranges
from torch_gas.planner.memory import Size, StepMemory, fit
from torch_gas.planner.meter import metered
from torch_gas.session.model import HistoryModel
from torch_gas.wiring.arguments import square
from torch_gas.wiring.trial.undisturbed import restored

Loss = Callable[[Any, SubData], Tensor]

FIRST_SIZE, LEAST_SIZES, FITTED_SIZES = 64, 3, 4  # nodes of the first batch; sizes of batches
ENOUGH_BYTES = 2**28  # of a step, which then tells of larger ones


def default_loss(out: Any, batch: SubData) -> Tensor:
    """Cross entropy of [B, C] with class ids in ``data.y``; without them, the sum of all squares."""
    y = batch.get("y")
    is_class = isinstance(y, Tensor) and y.dim() == 1 and not y.is_floating_point() and y.dtype != torch.bool
    if is_class and isinstance(out, Tensor) and out.dim() == 2:
        return F.cross_entropy(out, y[: out.size(0)].long().clamp(0, out.size(1) - 1))
    squares = [leaf.square().sum() for leaf in pytree.tree_leaves(out) if getattr(leaf, "requires_grad", False)]
    if not squares:
        raise ValueError(
            "plan(): the model returns nothing that has a gradient; pass the training loss: loss=lambda out, batch: ..."
        )
    return torch.stack(squares).sum()


@torch.inference_mode(mode=False)
def measure(model: HistoryModel, loader: SubgraphLoader, loss: Loss | None = None) -> StepMemory:
    """The memory of training steps beyond what the model holds between them, with their batch and those made ahead.

    Batches of random nodes, of twice as many each time, are trained on twice: as they are, and with the halo's rows counted
    among the batch's, so that rows and edges can be told apart.

    Args:
        model: the model, on the device that it is to train on.
        loader: of the graph.
        loss: see :func:`torch_gas.plan`.
    """
    num_nodes, device = loader.num_nodes, model.device
    order = torch.randperm(num_nodes, generator=torch.Generator().manual_seed(0), device="cpu")
    sizes: list[Size] = []
    peaks: list[int] = []
    number = max(1, min(FIRST_SIZE, num_nodes // 8))
    with _training_mode(model):
        batch = _batch(loader, order[:number], device, has_halo=True)
        with _restored_rows(model, batch.n_id):
            _step(model, batch, loss)  # makes what is made once
        while not sizes or (number <= num_nodes // 2 and (max(peaks) <= ENOUGH_BYTES or len(sizes) < 2 * LEAST_SIZES)):
            for has_halo in (True, False):
                batch, _, held = metered(partial(_batch, loader, order[:number], device, has_halo), device)
                adj = batch[loader.builder.key]
                with _restored_rows(model, batch.n_id):
                    peak = metered(partial(_step, model, batch, loss), device).peak
                sizes.append(Size(batch.batch_size, batch.halo_size, format_of(adj).num_edges(adj)))
                peaks.append(peak + (1 + loader.prefetch) * held)
            number *= 2
    return fit(sizes[-2 * FITTED_SIZES :], peaks[-2 * FITTED_SIZES :])


def _batch(loader: SubgraphLoader, ids: Tensor, device: torch.device, has_halo: bool) -> SubData:
    """The batch of some nodes; without a halo, its rows count as those of nodes without edges into them."""
    batch = loader.builder.batch(*single_node_ranges(ids)).to(device)
    if has_halo or batch.record is None:
        return batch
    key, (offset, count) = loader.builder.key, single_node_ranges(batch.n_id)
    batch[key] = square(batch[key], offset.numel())
    return batch.with_record(replace(batch.record, offset=offset, count=count, batch_size=offset.numel(), halo_size=0))


def _step(model: HistoryModel, batch: SubData, loss: Loss | None) -> None:
    """A training step up to its gradients."""
    with torch.enable_grad():
        value = (loss or default_loss)(model(batch), batch)
        if loss is None and any(extension.loss() is not None for extension in model.extensions):
            value = value + model.regularization()
        value.backward()


@contextmanager
def _training_mode(model: HistoryModel) -> Iterator[None]:
    """While entered, the model is in training mode and without gradients; all but its histories is put back."""
    if any(map(is_lazy, [*model.parameters(), *model.buffers()])):
        raise ValueError("plan(): the model has parameters without a shape yet; call it on a batch first")
    rows = ("histories.", "tables.", "extension_tables.")
    small = [key for key, _ in model.named_buffers() if not key.startswith(rows)]
    grads = [(parameter, parameter.grad) for parameter in model.parameters()]
    states = [(each, copy.deepcopy(each.state_dict())) for each in model.extensions if each.takes_part]
    with restored(model, small):
        try:
            model.train()
            model._session.watching = False  # these steps are no training
            model.zero_grad()
            yield
        finally:
            model._session.watching = True
            for parameter, grad in grads:
                parameter.grad = grad
            for extension, state in states:
                extension.load_state_dict(state)


@contextmanager
def _restored_rows(model: HistoryModel, n_id: Tensor) -> Iterator[None]:
    """Puts back the rows ``n_id`` of all histories, and drops gradients and the buffers of transfers."""
    held = []
    for history in model._history_tables:
        ids = n_id.to(history.device)
        held.append((history, ids, history.emb[ids], history.pushed_at[ids], history.clock.clone()))
    model._session.drop_buffers()
    try:
        yield
    finally:
        for history, ids, rows, pushed_at, clock in held:
            history.emb[ids] = rows
            history.pushed_at[ids] = pushed_at
            history.clock.copy_(clock)
        model._session.drop_buffers()
        model.zero_grad()
