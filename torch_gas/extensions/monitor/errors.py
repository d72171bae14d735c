"""Measured errors: of histories, of what batches compute with them, and of the gradient that they give."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch_geometric.data import Data

from torch_gas.batch.loader import SubgraphLoader
from torch_gas.extensions.monitor.twin import Twin, undisturbed
from torch_gas.session.model import HistoryModel

Loss = Callable[[Any, Data], Tensor]


class LayerError(NamedTuple):
    r"""Distances of one layer to its exact rows, relative to their norm.

    Args:
        layer: number of the layer, from 1; the output is the last.
        history: :math:`\|\bar H - H\| / \|H\|` of its history; 0 for the output, which has none.
        computed: :math:`\|\tilde H - H\| / \|H\|` of the rows :math:`\tilde H` that batches compute with these histories.
    """

    layer: int
    history: float
    computed: float


class GradientError(NamedTuple):
    r"""How far the gradient :math:`\tilde g` of all batches is from the full-batch gradient :math:`g`.

    Args:
        relative: :math:`\|\tilde g - g\| / \|g\|`.
        cosine: cosine of the angle between both.
        parameters: ``relative`` of each parameter, by name.
    """

    relative: float
    cosine: float
    parameters: dict[str, float]

    def __str__(self) -> str:
        largest = sorted(self.parameters.items(), key=lambda item: -item[1])[:3]
        named = ", ".join(f"{name} {error:.2g}" for name, error in largest)
        return f"gradient: relative error {self.relative:.2g}, cosine {self.cosine:.3f}; largest errors: {named}"


def layer_errors(model: HistoryModel, loader: SubgraphLoader, whole: bool) -> list[LayerError]:
    """See :meth:`torch_gas.extensions.monitor.Monitor.errors`."""
    twin = Twin(model, loader)
    last = len(twin.stale)
    squares = torch.zeros(last + 1, 3, dtype=torch.float64, device="cpu")  # of history, computed and exact rows
    with undisturbed(loader, model.device), torch.no_grad():
        output = twin.exact(whole)
        for run in twin.runs():
            for layer, rows in run.rows.items():
                exact = twin.exact_rows(run, layer, output)
                stale = exact if layer == last else twin.stale[layer].pull(run.ids, rows.dtype)
                for i, value in enumerate((stale - exact, rows - exact, exact)):
                    squares[layer, i] += value.double().square().sum().cpu()
    return [
        LayerError(layer, _ratio(history, exact), _ratio(computed, exact))
        for layer, (history, computed, exact) in enumerate(squares.sqrt().tolist(), 1)
    ]


@torch.inference_mode(mode=False)
def gradient_error(model: HistoryModel, loader: SubgraphLoader, loss: Loss) -> GradientError:
    """See :meth:`torch_gas.extensions.monitor.Monitor.gradient_error`."""
    twin = Twin(model, loader)
    named: dict[str, Tensor] = {name: value for name, value in twin.model.named_parameters() if value.requires_grad}
    values = list(named.values())
    with undisturbed(loader, model.device), torch.enable_grad():
        data, out = twin.on_graph()
        exact = _gradient(loss(out, data), values)
        summed = [torch.zeros_like(value) for value in values]
        for run in twin.runs():
            for total, part in zip(summed, _gradient(loss(run.out, run.batch.data), values), strict=True):
                total += part
    parameters = {
        name: _ratio(float((a - b).norm()), float(b.norm())) for name, a, b in zip(named, summed, exact, strict=True)
    }
    left, right = (torch.cat([part.double().flatten() for part in parts]) for parts in (summed, exact))
    cosine = float(torch.nn.functional.cosine_similarity(left, right, dim=0))
    return GradientError(_ratio(float((left - right).norm()), float(right.norm())), cosine, parameters)


def _gradient(loss: Tensor, values: list[Tensor]) -> list[Tensor]:
    """The gradient of ``loss``, which may not depend on all ``values``, or, in a batch without labels, on none."""
    if not loss.requires_grad:
        return [torch.zeros_like(value) for value in values]
    return list(torch.autograd.grad(loss, values, allow_unused=True, materialize_grads=True))


def _ratio(part: float, whole: float) -> float:
    if whole > 0:
        return part / whole
    return 0.0 if part == 0 else math.inf
