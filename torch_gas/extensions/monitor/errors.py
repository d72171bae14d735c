"""Measured errors: of histories, of what batches compute with them, and of the gradient that they give."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.nn import Module
from torch_geometric.data import Data
from torch_geometric.nn import MessagePassing

from torch_gas._util.text_table import text_table
from torch_gas.batch.loader import SubgraphLoader
from torch_gas.exact import ExactGradient
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
        layers: ``relative`` and ``cosine`` of each layer, by name: of all parameters of a convolution, or of another module.
    """

    relative: float
    cosine: float
    parameters: dict[str, float]
    layers: dict[str, tuple[float, float]]

    def __str__(self) -> str:
        lines = [(name, f"{100 * relative:.1f} %", f"{cosine:.3f}") for name, (relative, cosine) in self.layers.items()]
        head = f"gradient: relative error {self.relative:.2g}, cosine {self.cosine:.3f}"
        return "\n".join([head, text_table(("layer", "relative error", "cosine"), lines), _NORMAL])


_NORMAL = """Normal with exact histories: 0 % at the last layer and 7 to 57 % at others, because gradients end at rows of
histories (GCN and GAT, 3 layers, on Cora, batches of 10 of 40 METIS parts). ExactGradient has no such error."""


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
    with undisturbed(loader, model.device), torch.enable_grad():
        gradient = ExactGradient(twin.model, loader)
        exact = gradient.compute(lambda out, batch: loss(out, batch.data))
        gradient.remove()
        pairs = {
            value: (torch.zeros_like(value), exact.get(value, torch.zeros_like(value))) for value in named.values()
        }
        for run in twin.runs():
            parts = _gradient(loss(run.out, run.batch.data), list(pairs))
            for (total, _), part in zip(pairs.values(), parts, strict=True):
                total += part
    layers: dict[str, list[tuple[Tensor, Tensor]]] = {}
    plain = twin.model._plain
    for name, value in plain.named_parameters():
        if value in pairs:
            layers.setdefault(_layer_of(plain, name), []).append(pairs[value])
    parameters = {name: _compare([pairs[value]])[0] for name, value in named.items()}
    return GradientError(
        *_compare(list(pairs.values())), parameters, {layer: _compare(own) for layer, own in layers.items()}
    )


def _compare(pairs: list[tuple[Tensor, Tensor]]) -> tuple[float, float]:
    """Relative error and cosine of some gradients and exact ones."""
    found, exact = (torch.cat([part.double().flatten() for part in parts]) for parts in zip(*pairs, strict=True))
    cosine = float(torch.nn.functional.cosine_similarity(found, exact, dim=0))
    return _ratio(float((found - exact).norm()), float(exact.norm())), cosine


def _layer_of(model: Module, parameter: str) -> str:
    """The layer that a parameter is of: a convolution, else a numbered module, else the first on the way to it."""
    path, modules = parameter.split("."), dict(model.named_modules())
    names = [".".join(path[:end]) for end in range(1, max(len(path), 2))]
    convolutions = [name for name in names if isinstance(modules.get(name), MessagePassing)]
    numbered = [name for name in names if name.rpartition(".")[2].isdigit()]
    return [*convolutions, *numbered, *names][0]


def _gradient(loss: Tensor, values: list[Tensor]) -> list[Tensor]:
    """The gradient of ``loss``, which may not depend on all ``values``, or, in a batch without labels, on none."""
    if not loss.requires_grad:
        return [torch.zeros_like(value) for value in values]
    return list(torch.autograd.grad(loss, values, allow_unused=True, materialize_grads=True))


def _ratio(part: float, whole: float) -> float:
    if whole > 0:
        return part / whole
    return 0.0 if part == 0 else math.inf
