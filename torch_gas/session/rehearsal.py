"""Which convolutions of a model that calls ``push_and_pull`` itself need not be computed where histories are exact.

It is tried out on a batch of a small graph with rows of the user's data, as scale() tries models out, and no table is read or
written. A first pass records what is pushed. In further passes, one for each sweep of inference, convolutions before the
exact histories give rows of any value: what is pushed next, and what comes out in the end, must be the same.
"""

from __future__ import annotations

import sys
from math import nan
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor
from torch.nn import Module
from torch.utils import _pytree as pytree
from torch_geometric.data import Data

from torch_gas.batch.data import SubData
from torch_gas.graph.formats import map_tensors
from torch_gas.history import History
from torch_gas.session.call import Call, Ids, close
from torch_gas.session.inference import BY_HAND, EndOfBatch, Layer, Replay, Skipping, overwrite
from torch_gas.wiring.fused import fuse
from torch_gas.wiring.places import Handler, Place
from torch_gas.wiring.trial.handlers import same
from torch_gas.wiring.trial.small import NUM_NODES, PTR, batches_of, small_graph, with_more_nodes
from torch_gas.wiring.undo import Undo

if TYPE_CHECKING:
    from torch_gas.session.base import ScalableGNN


def skipping(model: ScalableGNN, data: Data) -> Skipping:
    """What stands in for convolutions of ``model`` in sweeps over batches of a graph like ``data``."""
    layers: dict[Place, Layer] = {}
    sweeps, per_node = 0, None
    try:
        batch = small_batches(model, data)[0]
        with torch.random.fork_rng([model.device] if model.device.type == "cuda" else []):
            first = Recorded(batch)
            out = rehearse(model, batch, first)
            layers, leaves = first.layers, pytree.tree_leaves(out)
            per_node = [isinstance(leaf, Tensor) and leaf.shape[:1] == (batch.batch_size,) for leaf in leaves]
            while sweeps < len(first.order) and _Spoiled(first, sweeps + 1).is_the_same(model, out):
                sweeps += 1
        why = "a layer's result is used beside push_and_pull"
    except Exception as error:  # of any type: forward is the user's code, and may not run on so small a graph
        why = f"the model cannot be tried out on a small graph ({type(error).__name__}: {error})"
    return Skipping(model._session, layers, sweeps, why, per_node)


def small_batches(
    model: ScalableGNN, data: Data, ptr: Tensor | None = PTR, num_nodes: int = NUM_NODES
) -> list[SubData]:
    """Batches of a small graph, or it as one batch, where the model is and in its type."""
    small = with_more_nodes(small_graph(data), num_nodes)
    ptr = torch.tensor([0, small.num_nodes], device="cpu") if ptr is None else ptr
    dtype = next((p.dtype for p in model.parameters() if p.is_floating_point()), None)
    for key, value in small.to_dict().items():
        if dtype is not None:
            small[key] = map_tensors(value, lambda held: held.to(dtype) if held.is_floating_point() else held)
    return [batch.to(model.device) for batch in batches_of(small, "in", ptr)]


def rehearse(model: ScalableGNN, batch: SubData, replay: Replay) -> Any:
    """What ``forward`` returns, called beside all checks and transfers."""
    args, kwargs = model.inputs(batch.data)
    return call_beside(model, (*args, *batch[1:]), kwargs, batch[1:], replay)


def call_beside(model: ScalableGNN, args: tuple[Any, ...], kwargs: dict[str, Any], ids: Ids, replay: Replay) -> Any:
    """As :func:`rehearse`, with what ``forward`` is given: ``ids``, and what else."""
    with Undo(sys._getframe()) as undo:
        replay.undo = undo  # which the next call of the model finishes, should Ctrl-C come while it is left
        undo.set(model._session, "replay", replay)
        close(model, undo, BY_HAND)
        undo.set(replay, "handler", replay)  # for now: a cycle would keep the model alive
        call = Call(model._session, undo, None, ids)
        model._session.enter(call)
        fuse(undo, model)
        model._wire(call)
        return Module.__call__(model, *args, **kwargs)


class Recorded(Replay, Handler):
    """A pass that answers all exchanges with rows of its own, and records what was pushed and which convolutions were called."""

    def __init__(self, batch: SubData) -> None:
        super().__init__(Undo())
        self.batch, self.batch_size, self.halo_size = batch, batch.batch_size, batch.halo_size
        self.order: list[History] = []
        self.rows: list[Tensor] = []  # of batch and halo, by exchange
        self.layers: dict[Place, Layer] = {}

    def at(self, place: Place, value: Tensor) -> Tensor | None:
        if place.kind == "output" and place.number == 0 and value.size(0) == self.batch_size:
            self.layers[place] = Layer(len(self.order), value.new_empty(0, *value.shape[1:]))
        return None

    def push(self, history: History, rows: Tensor, n_id: Tensor, offset: Tensor | None, count: Tensor | None) -> Tensor:
        generator = torch.Generator().manual_seed(len(self.order))
        halo = torch.rand(self.halo_size, rows.size(1), generator=generator, device="cpu").to(rows)
        self.order.append(history)
        self.rows.append(torch.cat([rows.detach(), halo]))
        return self.rows[-1].clone()


class _Spoiled(Recorded):
    """The same pass with the first histories exact, and convolutions before them spoiled."""

    def __init__(self, first: Recorded, number: int) -> None:
        Replay.__init__(self, Undo())
        self.first, self.batch_size = first, first.batch_size
        self.exact, self.layers = first.order[:number], first.layers
        self.is_same = True

    def is_the_same(self, model: ScalableGNN, out: Any) -> bool:
        """Whether what is pushed next, or ``out`` in the end, is as it was."""
        try:
            again = rehearse(model, self.first.batch, self)
        except EndOfBatch:
            return self.is_same
        left, right = (pytree.tree_leaves(each) for each in (again, out))
        tensors = [(a, b) for a, b in zip(left, right, strict=True) if isinstance(a, Tensor)]
        return all(same(a, b) for a, b in tensors)

    def at(self, place: Place, value: Tensor) -> Tensor | None:
        return None

    def substitute(self, place: Place, module: Module) -> Tensor | None:
        layer = self.layers.get(place)
        if layer is None or layer.before >= len(self.exact):
            return None
        rows = layer.rows.new_zeros(self.batch_size, *layer.rows.shape[1:])
        for first, value in enumerate((nan, 1e3, -1e3)):  # whoever reads them sees one of these, whatever it looks at
            rows[first::3] = value
        return rows

    def answer(self, history: History, x: Tensor, batch_size: int, n_id: Tensor) -> Tensor:
        rows = self.first.rows[self.exact.index(history)].clone()
        overwrite(x[:batch_size], rows)
        return rows

    def push(self, history: History, rows: Tensor, n_id: Tensor, offset: Tensor | None, count: Tensor | None) -> Tensor:
        number = len(self.exact)
        self.is_same = history is self.first.order[number] and same(rows, self.first.rows[number][: self.batch_size])
        raise EndOfBatch
