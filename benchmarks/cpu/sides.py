"""The sides of the comparison in ``step.py``: who trains a model, over which batches, and the stopwatch on each.

Sides make the same layers from the same random numbers (only PyGAS' PNA draws in another order) and visit the same parts in the
same order: ours over every format and PyGAS train the same parameters. PyGAS is used where a local build of it is given.
"""

from __future__ import annotations

import copy
import importlib.util
import time
import warnings
from collections.abc import Callable, Iterable, Iterator
from itertools import islice
from types import ModuleType
from typing import Any, NamedTuple

import torch
from baselines import without_halo
from predecessor import PYGAS, SparseTensor
from torch import Tensor
from torch.nn import Module, ModuleList
from torch.utils.data import RandomSampler
from torch_geometric import EdgeIndex
from torch_geometric.data import Data
from torch_geometric.loader import NeighborLoader

from torch_gas import ScalableGNN, SubgraphLoader, add_self_loops, gcn_norm, in_degree, metis, models, permute
from torch_gas.datasets import synthetic

FORMATS = ("csr", "EdgeIndex", "edge_index") + (() if SparseTensor is None else ("SparseTensor",))
MODELS = ("GCN", "SAGE", "GAT", "APPNP", "GCNII", "GIN", "PNA")
WEIGHTED = ("GCN", "APPNP", "GCNII")
PLAIN, CLUSTER, FULL = "plain PyG", "Cluster-GCN", "full batch"
SAMPLING = "NeighborLoader"
HAS_SAMPLER = any(importlib.util.find_spec(name) for name in ("pyg_lib", "torch_sparse"))
NUM_SAMPLED = 10
PHASES = ("loader", "forward", "push and pull", "backward", "optimiser")


class Setting(NamedTuple):
    """Sizes of graph, batches and models."""

    num_nodes: int
    avg_degree: float
    channels: int
    num_parts: int
    parts_a_batch: int
    num_layers: int = 3
    num_classes: int = 10


class Graphs(NamedTuple):
    """One graph with and without weights, as lists of edges sorted by destination, and its parts."""

    weighted: Data
    unweighted: Data
    ptr: Tensor


def make_graphs(setting: Setting) -> Graphs:
    """A community graph cut by METIS. All models see the same edges, self-loops among them."""
    data = synthetic(
        setting.num_nodes, setting.num_classes, setting.channels, avg_degree=setting.avg_degree, homophily=0.15
    )
    data = Data(x=data.x, y=data.y, edge_index=data.edge_index)
    perm, ptr = metis(data, setting.num_parts, log=False)
    data = permute(data, perm, log=False)
    del data.edge_perm
    return Graphs(_sorted(gcn_norm(data)), _sorted(add_self_loops(data)), ptr)


def _sorted(data: Data) -> Data:
    src, dst = data.edge_index
    order = (dst * data.num_nodes + src).argsort()
    data.edge_index = data.edge_index[:, order]
    if "edge_weight" in data:
        data.edge_weight = data.edge_weight[order]
    return data


def in_format(data: Data, name: str) -> Data:
    """The graph in one of the four adjacency formats; a CSR matrix without weights has ones."""
    size, weight = (data.num_nodes, data.num_nodes), data.get("edge_weight")
    src, dst = data.edge_index
    data = copy.copy(data)
    if name == "EdgeIndex":
        data.edge_index = EdgeIndex(data.edge_index, sparse_size=size, sort_order="col")
    if name in ("edge_index", "EdgeIndex"):
        return data
    del data.edge_index, data.edge_weight
    if name == "csr":
        rowptr = torch.searchsorted(dst, torch.arange(data.num_nodes + 1))
        value = torch.ones(src.numel()) if weight is None else weight
        data.adj_t = torch.sparse_csr_tensor(rowptr, src, value, size, check_invariants=False)
    else:
        data.adj_t = SparseTensor(row=dst, col=src, value=weight, sparse_sizes=size)
    return data


class Side:
    """A model that trains for epochs, with a stopwatch on their phases."""

    def __init__(self, model: Module, batches: Iterable[Any], run: Callable[[Any], tuple[Tensor, Tensor]]) -> None:
        self.model, self.batches, self.run = model.train(), batches, run
        self.optimizer = torch.optim.Adam(model.parameters())
        self._spent, self._mark = dict.fromkeys(PHASES, 0.0), 0.0
        self._exchange = model.push_and_pull
        model.push_and_pull = self._timed_exchange

    def _lap(self, phase: str) -> None:
        now = time.perf_counter()
        self._spent[phase] += now - self._mark
        self._mark = now

    def _timed_exchange(self, *args: Any) -> Tensor:
        self._lap("forward")
        out = self._exchange(*args)
        self._lap("push and pull")
        return out

    def epoch(self, steps: int | None = None) -> dict[str, float]:
        """Trains on all batches once, or on the first few, and gives the seconds of each phase."""
        self._spent, self._mark = dict.fromkeys(PHASES, 0.0), time.perf_counter()
        for batch in islice(self.batches, steps):
            self._lap("loader")
            out, y = self.run(batch)
            loss = torch.nn.functional.cross_entropy(out, y)
            self._lap("forward")
            self.optimizer.zero_grad()
            loss.backward()
            self._lap("backward")
            self.optimizer.step()
            self._lap("optimiser")
        self._lap("loader")
        return self._spent


class Sides:
    """Makes the sides of one model with one dropout."""

    def __init__(self, setting: Setting, graphs: Graphs, name: str, dropout: float, pygas: ModuleType | None) -> None:
        self.setting, self.ptr, self.pygas = setting, graphs.ptr, pygas
        self.name, self.dropout = name, dropout
        self.data = graphs.weighted if name in WEIGHTED else graphs.unweighted

    def make(self, side: str) -> Side:
        """The side of that name: a format for our own, or one of the others."""
        torch.manual_seed(0)
        if side == PYGAS:
            return self._pygas()
        layouts = {PLAIN: "edge_index", SAMPLING: "edge_index", CLUSTER: "csr", FULL: "csr"}
        data = in_format(self.data, layouts.get(side, side))
        model = self._model(models)
        if side in FORMATS:
            loader = self._loader(data)
            return Side(model, loader, lambda batch: (model(batch), batch.data.y[: batch.batch_size]))

        model.push_and_pull = lambda history, x, *_: x  # and forward is called directly: layers are those of PyG

        def run(graph: Data) -> tuple[Tensor, Tensor]:
            args, kwargs = model.inputs(graph)
            return model.forward(*args, **kwargs), graph.y

        if side in (PLAIN, SAMPLING):

            def run_rows(batch: Any) -> tuple[Tensor, Tensor]:
                out, y = run(batch if side == SAMPLING else batch.data)
                return out[: batch.batch_size], y[: batch.batch_size]

            return Side(model, self._sampled(data) if side == SAMPLING else self._loader(data), run_rows)
        return Side(model, [data] if side == FULL else WithoutHalo(self._loader(data)), run)

    def _loader(self, data: Data) -> SubgraphLoader:
        return SubgraphLoader(data, self.ptr, self.setting.parts_a_batch, shuffle=True, seed=0)

    def _sampled(self, data: Data) -> NeighborLoader:
        """As many nodes in a batch as ours has, ten neighbours of each, ten of each of these, and so on."""
        size = self.setting.num_nodes * self.setting.parts_a_batch // self.setting.num_parts
        neighbors = [NUM_SAMPLED] * self.setting.num_layers
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", "Using '.*' without a 'pyg-lib' installation", UserWarning)
            return NeighborLoader(data, neighbors, batch_size=size, shuffle=True)

    def _model(self, library: Any) -> Any:
        """The model of ours or, by the same arguments, that of PyGAS."""
        setting = self.setting
        shape = (setting.num_nodes, setting.channels)
        if self.name == "GAT":
            heads = 8
            widths: tuple[Any, ...] = (setting.channels // heads, heads, setting.num_classes, 1)
        else:
            widths = (setting.channels, setting.num_classes)
        further: dict[str, tuple[Any, ...]] = {"APPNP": (0.1,), "GCNII": (0.1, 0.5)}
        if self.name == "PNA":
            deg = in_degree(self.data.edge_index, setting.num_nodes)
            further["PNA"] = (["mean"], ["identity", "amplification"], deg)
        make = getattr(library, {"GCNII": "GCN2"}.get(self.name, self.name))
        return make(*shape, *widths, setting.num_layers, *further.get(self.name, ()), dropout=self.dropout)

    def _pygas(self) -> Side:
        assert self.pygas is not None
        library = self.pygas
        has_model = hasattr(library.models, self.name) or self.name == "GCNII"
        model = self._model(library.models) if has_model else on_pygas(library, self._model(models))
        sampler = RandomSampler(range(self.setting.num_parts), generator=torch.Generator().manual_seed(0))
        loader = library.SubgraphLoader(
            in_format(self.data, "SparseTensor"), self.ptr, self.setting.parts_a_batch, log=False, sampler=sampler
        )

        def run(batch: Any) -> tuple[Tensor, Tensor]:
            data, *args = batch
            out = model(data.x, data.adj_t, *args)
            return out, data.y[: out.size(0)]

        return Side(model, loader, run)


class WithoutHalo:
    """Batches as Cluster-GCN has them: the edges inside of the batch."""

    def __init__(self, loader: SubgraphLoader) -> None:
        self.loader = loader

    def __iter__(self) -> Iterator[Data]:
        for batch in self.loader:
            yield without_halo(batch).data


# -- PyGAS -------------------------------------------------------------------------------------------------------------


def on_pygas(library: ModuleType, ours: ScalableGNN) -> Module:
    """A model that PyGAS lacks: our layers and forward on its histories, its layers called by pairs as its examples do."""

    class OfPair(Module):
        def __init__(self, conv: Module) -> None:
            super().__init__()
            self.conv = conv

        def forward(self, x: Tensor, adj_t: Any) -> Tensor:
            return self.conv((x, x[: adj_t.size(0)]), adj_t)

    class Model(library.ScalableGNN):
        def __init__(self) -> None:
            super().__init__(ours.num_nodes, ours.hidden_channels, ours.num_layers)
            for name, value in vars(ours).items():
                if not name.startswith("_") and not hasattr(self, name):
                    setattr(self, name, value)
            for name, module in ours.named_children():
                if name != "histories":
                    setattr(self, name, module)
            self.convs = ModuleList(OfPair(conv) for conv in ours.convs)

    # What our class and its base for shipped models define: forward, and what it calls but for exchanges.
    for kind in reversed(type(ours).__mro__):
        for name, value in vars(kind).items() if issubclass(kind, models.base.Model) else ():
            if not name.startswith("__"):
                setattr(Model, name, value)
    return Model()
