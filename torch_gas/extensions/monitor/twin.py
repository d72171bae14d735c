"""Runs of a copy of a model: on exact rows, and on batches with the histories that the model has."""

from __future__ import annotations

import copy
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, NamedTuple, TypeVar

import torch
from torch import Tensor
from torch.utils import _pytree as pytree
from torch_geometric.data import Data

from torch_gas.batch.data import SubData
from torch_gas.batch.loader import SubgraphLoader
from torch_gas.history import History
from torch_gas.session.call import Call, close
from torch_gas.session.extension import Extension
from torch_gas.session.model import HistoryModel
from torch_gas.wiring.compiled import eager

_Data = TypeVar("_Data", bound=Data)


class Run(NamedTuple):
    """What a batch computes with histories as they are.

    Args:
        batch: the batch, where the model is.
        out: what ``forward`` returned.
        rows: the batch's rows of each layer, [B, C_l]; those of the output under L - 1.
        read: what the model read from each history, rows of batch and halo, [B + S, C_l]; where layers run apart.
    """

    batch: SubData
    out: Any
    rows: dict[int, Tensor]
    read: dict[int, Tensor]

    @property
    def ids(self) -> Tensor:
        """Global ids of the batch's rows, [B]."""
        return self.batch.n_id[: self.batch.batch_size]


class Twin:
    """A copy of a model in evaluation mode, with histories of its own, which are exact once :meth:`exact` has run.

    The model itself and its histories stay as they are.

    Args:
        model: the model.
        loader: batches of its graph.
        dtype: type to compute in; that of the model by default.

    Attributes:
        stale: histories of the original.
        fresh: those of the copy.
    """

    def __init__(self, model: HistoryModel, loader: SubgraphLoader, dtype: torch.dtype | None = None) -> None:
        model._check_size(loader.num_nodes, "Monitor: the loader's graph")
        model._check_ready()
        self.loader, self.device = loader, model.device
        self.batches: Any = Batches(loader, model.device, dtype)  # which inference takes for a loader
        # Tables are made anew and not copied: they may lie in files, or in narrower types.
        own = {
            id(old): History(model.num_nodes, old.embedding_dim).to(model.device, old.model_dtype)
            for old in model._history_tables
        }
        with undisturbed(loader, model.device):  # PyG 2.6 draws parameters for copies of linear layers
            self.model = copy.deepcopy(model, own).eval()
        for extension in self.model.extensions:
            self.model.remove_extension(extension)
        self.model._history_options["device"] = None  # of tables that it is given yet
        if dtype is not None:
            self.model.to(dtype)
        self.stale, self.fresh = list(model.histories), list(self.model.histories)

    def exact(self, whole: bool) -> Tensor:
        """The exact output, [N, C].

        Args:
            whole: whether to run on the whole graph at once, and not layer by layer in the memory of one batch.
        """
        with undisturbed(self.loader, self.device), torch.no_grad():
            out = self.on_graph()[1] if whole else self.model(loader=self.batches)
        return rows_of(out, self.model.num_nodes)

    def on_graph(self) -> tuple[Data, Any]:
        """The whole graph, where the model is, and what ``forward`` returns for it."""
        data = self.batches.convert(self.loader.data)
        return data, self.model._on_graph(data)

    def runs(self, apart: bool = False) -> Iterator[Run]:
        """All batches of the loader, each with halo rows from the histories of the original.

        Args:
            apart: whether each layer is a function of its own, whose gradients end at the rows that it read.
        """
        reading = _Reading(self, apart)
        self.model.add_extension(reading)
        for batch in self.batches:
            out = self.model(batch)
            rows = {**reading.rows, len(self.stale): rows_of(out, batch.batch_size)}
            yield Run(batch, out, rows, reading.read)
        self.model.remove_extension(reading)

    def exact_rows(self, run: Run, layer: int, output: Tensor) -> Tensor:
        """The exact rows of a batch, [B, C_l], where ``output`` is what :meth:`exact` returned."""
        rows = run.rows[layer]
        return output[run.ids].to(rows) if layer == len(self.fresh) else self.fresh[layer].pull(run.ids, rows.dtype)


class _Reading(Extension):
    """Has a twin read the histories of the original, and write to none."""

    takes_part = True

    def __init__(self, twin: Twin, apart: bool) -> None:
        self.twin, self.apart = twin, apart

    def begin(self, call: Call) -> None:
        call.pushes = False
        close(call.model, call.undo, "the monitor compares what batches compute, and no row may change meanwhile")
        self.rows: dict[int, Tensor] = {}
        self.read: dict[int, Tensor] = {}

    def exchange(self, call: Call, history: History, rows: Tensor, pulled: Tensor) -> Tensor | None:
        assert call.n_id is not None
        layer = self.twin.fresh.index(history)
        self.rows[layer] = rows
        self.twin.stale[layer].pull(call.n_id[rows.size(0) :], out=pulled)
        if not self.apart:
            return None
        self.read[layer] = torch.cat([rows.detach(), pulled]).requires_grad_()
        return self.read[layer].clone()  # which forward may write to


class Batches:
    """The batches of a loader on the device of a model, in the type that it computes in."""

    def __init__(self, loader: SubgraphLoader, device: torch.device, dtype: torch.dtype | None) -> None:
        self.loader, self.device, self.dtype = loader, device, dtype
        self.num_nodes, self.data = loader.num_nodes, loader.data

    def __iter__(self) -> Iterator[SubData]:
        return map(self.convert, self.loader)

    def convert(self, data: _Data) -> _Data:
        """A copy of ``data`` there, in that type."""
        return copy.copy(data).apply(
            lambda held: held.to(self.device, self.dtype if held.is_floating_point() else None)
        )


@contextmanager
def undisturbed(loader: SubgraphLoader, device: torch.device) -> Iterator[None]:
    """Leaves all random numbers as they were, those of the loader's order included. Compiled code runs as it was written."""
    generators = [loader.generator, getattr(loader.sampler, "generator", None)]
    states = [(generator, generator.get_state()) for generator in generators if generator is not None]
    with torch.random.fork_rng(devices=[device] if device.type == "cuda" else []), eager():
        try:
            yield
        finally:
            for generator, state in states:
                generator.set_state(state)


def rows_of(out: Any, num_rows: int) -> Tensor:
    """The first tensor in ``out`` that has a row for each node, [num_rows, C]."""
    for leaf in pytree.tree_leaves(out):
        if isinstance(leaf, Tensor) and leaf.is_floating_point() and leaf.dim() > 0 and leaf.size(0) == num_rows:
            return leaf.view(num_rows, -1) if leaf.dim() == 1 else leaf.flatten(1)
    raise ValueError(f"Monitor: forward returns no tensor with a row for each of its {num_rows} nodes")
