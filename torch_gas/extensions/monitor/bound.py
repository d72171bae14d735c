"""The bound of the error that histories cause (Lemma 1 and Theorem 2 of https://arxiv.org/abs/2106.05609), next to that error."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from torch_gas.batch.data import SubData
from torch_gas.batch.loader import SubgraphLoader
from torch_gas.extensions.monitor.gains import Gain, gains, jacobian_norm
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


@torch.inference_mode(mode=False)
def layer_bounds(model: HistoryModel, loader: SubgraphLoader, whole: bool) -> list[LayerBound]:
    """See :meth:`torch_gas.extensions.monitor.Monitor.bound`."""
    twin = Twin(model, loader, torch.float64)
    known = gains(twin.model)
    with undisturbed(loader, model.device):
        output = twin.exact(whole)
        staleness = [*(_staleness(twin, layer) for layer in range(len(twin.stale))), output.new_zeros(0)]
        rounding = [ROUNDING * _largest(rows) for rows in (*(history.emb for history in twin.fresh), output)]
        if known is None:
            return _estimated(twin, output, staleness, rounding)
        return _known(twin, output, staleness, rounding, known)


def _known(
    twin: Twin, output: Tensor, staleness: list[Tensor], rounding: list[float], known: Sequence[Gain]
) -> list[LayerBound]:
    """Node by node, from constants that are known."""
    errors: list[list[Tensor]] = [[] for _ in known]
    reach = [0.0] * len(known)  # the largest sum of the |a_vw| of a node
    with torch.no_grad():
        for run in twin.runs():
            batch_size, num_rows = run.batch.batch_size, run.batch.n_id.numel()
            influence = _influence(twin, run.batch)
            error = torch.zeros(num_rows, 1, dtype=torch.float64, device="cpu")
            for layer, gain in enumerate(known):
                reach[layer] = max(reach[layer], _largest(influence(gain, torch.ones_like(error))))
                near = gain.own * error[:batch_size] + gain.message * gain.update * influence(gain, error)
                near += rounding[layer]
                errors[layer].append(torch.stack([_error(twin, output, run, layer), near.view(-1)]))
                if layer < len(twin.stale):
                    error = torch.cat([near, staleness[layer][run.batch.n_id[batch_size:], None]])
    theorem, before, found = 0.0, 0.0, []
    for layer, gain in enumerate(known):
        factor = gain.own + gain.message * gain.update * reach[layer]
        theorem = factor * (theorem + before) + rounding[layer]
        before = _largest(staleness[layer])
        found.append(_layer_bound(layer, factor, staleness[layer], errors[layer], theorem))
    return found


def _estimated(twin: Twin, output: Tensor, staleness: list[Tensor], rounding: list[float]) -> list[LayerBound]:
    """Batch by batch, from the largest singular values of the layers' Jacobians at the rows that the batch read."""
    factors = [0.0] * len(staleness)
    errors: list[list[Tensor]] = [[] for _ in staleness]
    with torch.enable_grad():
        for run in twin.runs(apart=True):
            batch_size, near = run.batch.batch_size, [0.0] * len(staleness)
            for layer, rows in sorted(run.rows.items()):
                near[layer] = rounding[layer] * math.sqrt(batch_size)
                for before, read in run.read.items():
                    norm = jacobian_norm(rows, read) if before != layer else 0.0
                    factors[layer] = max(factors[layer], norm)
                    halo = staleness[before][run.batch.n_id[batch_size:]]
                    near[layer] += norm * math.hypot(near[before], float(halo.norm()))
                # Only the norm over all rows of the batch is bounded, so that each counts as one of their root mean square.
                norms = torch.stack(
                    [_error(twin, output, run, layer).norm(), torch.tensor(near[layer], device="cpu").double()]
                )
                errors[layer].append((norms / math.sqrt(batch_size)).expand(batch_size, 2).t())
    return [_layer_bound(layer, factor, staleness[layer], errors[layer]) for layer, factor in enumerate(factors)]


def _layer_bound(
    layer: int, gain: float, staleness: Tensor, errors: list[Tensor], theorem: float | None = None
) -> LayerBound:
    """From the errors of the rows of each batch and their bounds, [2, B]."""
    error, bound = torch.cat(errors, dim=1)
    measured, bounded = (float(values.square().mean().sqrt()) for values in (error, bound))
    worst = _largest(error / bound.clamp(min=torch.finfo(bound.dtype).tiny))
    return LayerBound(layer + 1, gain, _largest(staleness), measured, bounded, theorem, worst, theorem is None)


def _influence(twin: Twin, batch: SubData) -> Callable[[Gain, Tensor], Tensor]:
    """Sums over the in-neighbours of a batch's nodes, of the errors of their rows times the absolute edge weights."""
    args, kwargs = twin.model._arguments(batch.data.cpu())
    adj, known = args[1], format_of(args[1])
    edges = edges_of(adj, batch.batch_size, batch.n_id.numel())
    weight = known.values(adj) if isinstance(known, Matrix) else kwargs.get("edge_weight")
    absolute = None if weight is None else weight.abs()

    def influence(gain: Gain, error: Tensor) -> Tensor:
        assert edges is not None
        is_weighted = known.is_always_weighted or gain.weighted
        return aggregate(error, edges, absolute if is_weighted else None, gain.mean)

    return influence


def _staleness(twin: Twin, layer: int) -> Tensor:
    r""":math:`\|\bar h_v - h_v\|` of each node, [N]."""
    stale, fresh = twin.stale[layer], twin.fresh[layer]
    chunks = torch.arange(stale.num_embeddings, device="cpu").split(CHUNK)
    return torch.cat([(stale.pull(ids, torch.float64) - fresh.pull(ids)).norm(dim=1).cpu() for ids in chunks])


def _error(twin: Twin, output: Tensor, run: Run, layer: int) -> Tensor:
    r""":math:`\|\tilde h_v - h_v\|` of each node of the batch, [B]."""
    return (run.rows[layer].detach() - twin.exact_rows(run, layer, output)).norm(dim=1).cpu()


def _largest(values: Tensor) -> float:
    """The largest norm of a row, or the largest of several numbers."""
    norms = values.norm(dim=1) if values.dim() == 2 else values
    return float(norms.max()) if norms.numel() > 0 else 0.0
