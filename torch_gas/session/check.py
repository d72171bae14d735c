"""check(): whether batches of a model give the rows of the whole graph, tried out on a small one."""

from __future__ import annotations

from functools import partial
from typing import Any

import torch
from torch import Tensor
from torch.nn import Module
from torch.nn.parameter import is_lazy
from torch.utils import _pytree as pytree
from torch_geometric.data import Data

from torch_gas._util.arguments import checked
from torch_gas.batch.data import SubData
from torch_gas.history import History
from torch_gas.session.base import ScalableGNN
from torch_gas.session.inference import Replay
from torch_gas.session.rehearsal import rehearse, small_batches
from torch_gas.session.scaled import ScaledGNN
from torch_gas.wiring import find_layers
from torch_gas.wiring.arguments import inputs_of
from torch_gas.wiring.compiled import eager
from torch_gas.wiring.places import Handler, Place
from torch_gas.wiring.trial.handlers import Differs, Values, same
from torch_gas.wiring.trial.probe import explain, find, refuse_numbers
from torch_gas.wiring.trial.small import NUM_NODES, PTR
from torch_gas.wiring.trial.undisturbed import undisturbed, varied
from torch_gas.wiring.undo import Undo


@checked
def check(model: Module, data: Data) -> None:
    """Tries a model out on a graph of a few nodes, and raises an error if batches give other rows than the whole graph.

    Histories are exact in this trial, so that what differs is the model: a layer that reads more than the edges into a node,
    or a ``push_and_pull`` that is missing. :func:`scale` does this by itself; a model that derives from :class:`ScalableGNN` is
    taken as it is, unless it is checked. It is called in evaluation mode, and left as it was, histories and random numbers
    included. What depends on the number of nodes (``if x.size(0) > 1000``), the trial sees up to 2048.

    Args:
        model: a :class:`ScalableGNN`, what :func:`scale` returned, or a model that is to be scaled.
        data: the graph, whose features and edge attributes the small one gets.

    Raises:
        ValueError: if rows differ, or the model fails on a batch; the error names the first layer, or the first exchange with
            a history, at which they do.

    Example:
        >>> from torch_gas import check
        >>> from torch_gas.datasets import synthetic
        >>> from torch_gas.models import SAGE
        >>> data = synthetic(1000)
        >>> check(SAGE(data.num_nodes, data.num_features, 16, out_channels=10, num_layers=3), data)
    """
    if isinstance(model, ScalableGNN):
        _check_explicit(model, data)
    elif isinstance(model, ScaledGNN):
        find(model.model, data, model._arguments)
    else:
        find(model, data, partial(inputs_of, model))


def _check_explicit(model: ScalableGNN, data: Data) -> None:
    name = type(model).__name__
    if any(map(is_lazy, model.parameters())):
        raise ValueError(
            f"check(): {name} has layers without a size (in_channels=-1); give it, or call the model on a batch"
        )
    find_layers(model)  # raises where one is refused by name
    (everything,), batches = (small_batches(model, data, ptr) for ptr in (None, PTR))
    with undisturbed(model), varied(model), eager():
        whole = _Run(everything)
        try:
            out = rehearse(model, everything, whole)
        except Exception as error:  # of any type: forward is the user's code
            raise ValueError(
                f"check(): {name} fails on a graph of {NUM_NODES} nodes with rows of data ({type(error).__name__}: {error}); it "
                "must run on any graph: check that data holds what forward takes"
            ) from error
        try:
            for batch in batches:
                _compare(batch, _run(model, batch, _Run(batch, whole)), out)
        except Differs as failure:
            raise ValueError(explain(model, failure, whole.values)) from failure
        wide = small_batches(model, data, None, model.num_nodes)[0]
        try:
            more = rehearse(model, wide, _Run(wide))
        except Exception:  # of any type, as above
            return
        refuse_numbers(model, more, out)


def _run(model: ScalableGNN, batch: SubData, run: _Run) -> Any:
    try:
        return rehearse(model, batch, run)
    except Differs:
        raise
    except Exception as error:  # of any type, as above
        raise Differs(run.running, f"cannot be computed ({type(error).__name__}: {error})") from error


def _compare(batch: SubData, out: Any, whole: Any) -> None:
    """Raises Differs unless the outputs of a batch are rows of those of the whole graph."""
    leaves, wanted = pytree.tree_leaves(out), pytree.tree_leaves(whole)
    if len(leaves) != len(wanted):
        raise Differs(None, "has another structure than on the whole graph")
    for leaf, want in zip(leaves, wanted, strict=True):
        if isinstance(want, Tensor) and want.shape[:1] == (NUM_NODES,) and not _agree(batch, leaf, want):
            raise Differs(None)


def _agree(batch: SubData, rows: Tensor, whole: Tensor) -> bool:
    return same(rows[: batch.batch_size], whole[batch.n_id[: batch.batch_size].to(whole.device)])


class _Run(Replay, Handler):
    """A run on a batch, which keeps the rows of its layers and exchanges or, with ``whole``, compares them with those there.

    Attributes:
        running: the layer under way.
    """

    def __init__(self, batch: SubData, whole: _Run | None = None) -> None:
        super().__init__(Undo())
        self.batch, self.whole = batch, whole
        self.values: Values = {}
        self.pushed: dict[History, Tensor] = {}
        self.running: Place | None = None

    def substitute(self, place: Place, module: Module) -> None:
        self.running = place

    def at(self, place: Place, value: Tensor) -> None:
        self.running = None
        if self.whole is None:
            self.values[place] = value.clone()
        elif place not in self.whole.values:
            raise Differs(place, "is called on a batch and not on the whole graph")
        elif len(exact := self.whole.values[place]) == NUM_NODES and not _agree(
            self.batch, value, exact
        ):  # not of edges
            raise Differs(place)

    def push(self, history: History, rows: Tensor, n_id: Tensor, offset: Tensor | None, count: Tensor | None) -> Tensor:
        if self.whole is None:
            self.pushed[history] = rows.clone()
            return rows
        exact = self.whole.pushed.get(history)
        if exact is None or not _agree(self.batch, rows, exact):
            place = Place(f"push_and_pull number {len(self.pushed) + 1}", "output", 0)
            raise Differs(place, "is given other rows than on the whole graph")
        self.pushed[history] = rows
        return torch.cat([rows, exact[n_id[rows.size(0) :].to(exact.device)]])
