"""The bound of the error that histories cause (Lemma 1 and Theorem 2 of https://arxiv.org/abs/2106.05609), next to that error."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor

from torch_gas.batch.data import SubData
from torch_gas.batch.loader import SubgraphLoader
from torch_gas.extensions.monitor.gains import Gain, gains
from torch_gas.extensions.monitor.jacobian import jacobian_norm
from torch_gas.extensions.monitor.twin import Run, Twin, undisturbed
from torch_gas.graph.format import Matrix
from torch_gas.graph.formats import format_of
from torch_gas.graph.product import aggregate, edges_of
from torch_gas.session.model import HistoryModel

ROUNDING = 1e-12  # of a layer's largest row, allowed at each node: sums in float64 depend on their order
CHUNK = 2**16  # rows that are compared at a time


class LayerBound(NamedTuple):
    r"""The error of one layer and its bounds.

    Errors are root mean squares, over all nodes, of the norms :math:`\|\tilde h_v - h_v\|` in the scale of the rows.

    Args:
        layer: number of the layer, from 1; the output is the last.
        gain: how many times larger than the errors of its input the error of a row can be.
        staleness: the largest :math:`\|\bar h_v - h_v\|` of a row of its history; 0 for the output.
        measured: the error of what batches compute with these histories.
        bound: the bound of that error from the staleness of the rows that each node reads.
        theorem: the bound from the largest staleness and the largest gains; None where gains are estimated.
        worst: the largest ratio of a node's error to its bound; of a batch's where gains are estimated.
        estimated: whether gains are estimated, so that ``bound`` may fall short.
    """

    layer: int
    gain: float
    staleness: float
    measured: float
    bound: float
    theorem: float | None
    worst: float
    estimated: bool


def layer_bounds(model: HistoryModel, loader: SubgraphLoader, whole: bool) -> list[LayerBound]:
    """See :meth:`torch_gas.extensions.monitor.Monitor.bound`."""
    twin = Twin(model, loader, torch.float64)
    known = gains(twin.model)
    with undisturbed(loader, model.device):
        output = twin.exact(whole)
        staleness = [_staleness(twin, layer) for layer in range(len(twin.stale))]
        rounding = [ROUNDING * _largest(history.emb) for history in twin.fresh] + [ROUNDING * _largest(output)]
        if known is None:
            return _estimated(twin, output, staleness, rounding)
        return _known(twin, output, staleness, rounding, known)


def _known(
    twin: Twin, output: Tensor, staleness: list[Tensor], rounding: list[float], known: Sequence[Gain]
) -> list[LayerBound]:
    """Node by node, from constants that are known."""
    sums = _Sums(len(known))
    reach = [0.0] * len(known)  # the largest sum of the |a_vw| of a node
    with torch.no_grad():
        for run in twin.runs():
            batch_size, num_rows = run.batch.batch_size, run.batch.n_id.numel()
            influence = _Influence(twin, run.batch)
            error = torch.zeros(num_rows, 1, dtype=torch.float64)
            for layer, gain in enumerate(known):
                reach[layer] = max(reach[layer], _largest(influence(gain, torch.ones_like(error))))
                near = gain.own * error[:batch_size] + gain.message * gain.update * influence(gain, error)
                near += rounding[layer]
                sums.add(layer, _error(twin, output, run, layer), near.view(-1))
                if layer < len(staleness):
                    error = torch.cat([near, staleness[layer][run.batch.n_id[batch_size:], None]])
    factors = [gain.own + gain.message * gain.update * most for gain, most in zip(known, reach, strict=True)]
    theorem, found = 0.0, []
    for layer, factor in enumerate(factors):
        before = _largest(staleness[layer - 1]) if layer > 0 else 0.0
        theorem = factor * (theorem + before) + rounding[layer]
        found.append(sums.bound(layer, factor, staleness, theorem, False))
    return found


def _estimated(twin: Twin, output: Tensor, staleness: list[Tensor], rounding: list[float]) -> list[LayerBound]:
    """Batch by batch, from the largest singular values of the layers' Jacobians at the rows that the batch read."""
    num_layers = len(staleness) + 1
    sums, factors = _Sums(num_layers), [0.0] * num_layers
    with torch.enable_grad():
        for run in twin.runs(apart=True):
            halo, near = run.batch.n_id[run.batch.batch_size :], [0.0] * num_layers
            for layer, rows in sorted(run.rows.items()):
                near[layer] = rounding[layer] * math.sqrt(run.batch.batch_size)
                for before, read in run.read.items():
                    norm = jacobian_norm(rows, read) if before != layer else 0.0
                    factors[layer] = max(factors[layer], norm)
                    near[layer] += norm * math.hypot(near[before], float(staleness[before][halo].norm()))
                error = _error(twin, output, run, layer)
                sums.add(layer, error.norm().view(1), torch.tensor([near[layer]], dtype=torch.float64), error.numel())
    return [sums.bound(layer, factor, staleness, None, True) for layer, factor in enumerate(factors)]


class _Sums:
    """Errors and their bounds, layer by layer."""

    def __init__(self, num_layers: int) -> None:
        self.squares = [[0.0, 0.0] for _ in range(num_layers)]
        self.worst = [0.0] * num_layers
        self.nodes = [0] * num_layers

    def add(self, layer: int, error: Tensor, bound: Tensor, nodes: int | None = None) -> None:
        """Adds errors of some nodes, or the norm of those of several."""
        for i, values in enumerate((error, bound)):
            self.squares[layer][i] += float(values.square().sum())
        self.worst[layer] = max(self.worst[layer], _largest(error / bound.clamp(min=torch.finfo(bound.dtype).tiny)))
        self.nodes[layer] += error.numel() if nodes is None else nodes

    def bound(
        self, layer: int, gain: float, staleness: list[Tensor], theorem: float | None, estimated: bool
    ) -> LayerBound:
        measured, bound = (math.sqrt(square / max(self.nodes[layer], 1)) for square in self.squares[layer])
        largest = _largest(staleness[layer]) if layer < len(staleness) else 0.0
        return LayerBound(layer + 1, gain, largest, measured, bound, theorem, self.worst[layer], estimated)


class _Influence:
    """Sums over the in-neighbours of a batch's nodes, of the errors of their rows times the absolute edge weights."""

    def __init__(self, twin: Twin, batch: SubData) -> None:
        args, kwargs = twin.model._arguments(batch.data.cpu())
        self.adj: Any = args[1]
        self.edge_weight: Tensor | None = kwargs.get("edge_weight")
        self.edges = edges_of(self.adj, batch.batch_size, batch.n_id.numel())

    def __call__(self, gain: Gain, error: Tensor) -> Tensor:
        assert self.edges is not None
        known = format_of(self.adj)
        weight = known.values(self.adj) if known.is_always_weighted or gain.weighted else None
        if gain.weighted and not isinstance(known, Matrix):
            weight = self.edge_weight
        return aggregate(error, self.edges, None if weight is None else weight.abs(), gain.mean)


def _staleness(twin: Twin, layer: int) -> Tensor:
    r""":math:`\|\bar h_v - h_v\|` of each node, [N]."""
    stale, fresh = twin.stale[layer], twin.fresh[layer]
    chunks = torch.arange(stale.num_embeddings).split(CHUNK)
    return torch.cat([(stale.pull(ids, torch.float64) - fresh.pull(ids)).norm(dim=1).cpu() for ids in chunks])


def _error(twin: Twin, output: Tensor, run: Run, layer: int) -> Tensor:
    r""":math:`\|\tilde h_v - h_v\|` of each node of the batch, [B]."""
    rows = run.rows[layer].detach()
    exact = output[run.ids].to(rows) if layer == len(twin.stale) else twin.fresh[layer].pull(run.ids, rows.dtype)
    return (rows - exact).norm(dim=1).cpu()


def _largest(values: Tensor) -> float:
    """The largest norm of a row, or the largest of several numbers."""
    norms = values.norm(dim=1) if values.dim() == 2 else values
    return float(norms.max()) if norms.numel() > 0 else 0.0
