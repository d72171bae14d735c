"""ScaledGNN: a model that knows nothing of histories, with histories."""

from __future__ import annotations

import os
import sys
from collections.abc import Collection
from math import prod
from typing import Any, cast

import torch
from torch import Tensor
from torch.nn import Module
from torch.utils import _pytree as pytree
from torch_geometric.data import Data
from torch_geometric.nn import MessagePassing
from torch_geometric.nn.models.basic_gnn import BasicGNN

from torch_gas._util.tracing import untraced
from torch_gas.batch.data import SubData, is_of_batch
from torch_gas.batch.loader import SubgraphLoader
from torch_gas.batch.record import record_of
from torch_gas.graph.formats import format_of
from torch_gas.graph.key import order_of_key
from torch_gas.graph.origin import Origin, difference, key_of
from torch_gas.history import History
from torch_gas.session.automatic import Automatic
from torch_gas.session.call import Call
from torch_gas.session.inference import layerwise_inference
from torch_gas.session.model import HistoryModel
from torch_gas.session.prefix import PREFIX, with_prefix, without_prefix
from torch_gas.table import FileTable, FileTier
from torch_gas.wiring import Rows, arguments, find_layers, refuse_evaluation
from torch_gas.wiring.arguments import Arguments, Inputs
from torch_gas.wiring.compiled import is_called_compiled, is_compiled
from torch_gas.wiring.fused import fuse
from torch_gas.wiring.places import Kind, Place, Places
from torch_gas.wiring.trial import structure
from torch_gas.wiring.trial.found import Found
from torch_gas.wiring.trial.probe import find
from torch_gas.wiring.trial.selected import check_inputs
from torch_gas.wiring.undo import Undo


class ScaledGNN(HistoryModel):
    """A model with histories, made by :func:`scale`. It is called as

    * ``model(batch)``, or ``model(batch.x, batch.edge_index, *further, *ids)`` with the four ids of the loader's batch last:
      the batch's B rows;
    * ``model(data)``, or with the model's own arguments: the plain model on a whole graph. On its own graph this refreshes the
      histories; in evaluation mode any other graph, edges or features will do, which leave them alone;
    * ``model(loader=loader)``: exact layer-wise inference in the memory of one batch.

    Parameters are those of the plain model, which attributes lead to as well. ``state_dict`` holds its entries under their own
    names, and the histories. :meth:`unscale` gives the plain model back.
    """

    def __init__(
        self,
        model: Module,
        num_nodes: Any,
        inputs: Any,
        places: str = "row-wise",
        torch_dropout: bool = False,
        **options: Any,
    ) -> None:
        super().__init__(num_nodes, **options)
        self._places, self._torch_dropout = places, torch_dropout
        self.hidden_channels: list[int] = []
        self.num_layers = 1
        self.model = model
        self.tables = torch.nn.ModuleList()
        self._inputs = inputs
        self._found: Found | None = None
        self._at_random: frozenset[Place] = frozenset()  # of layers that training skips at random
        self._given: set[str] = set()  # names of the arguments that it was tried out with
        self._attributes: Collection[str] = ()  # of the graph that it was tried out with
        self._order = ""  # of the graph's nodes, where it is known
        self._unverified = False  # whether no batch has shown yet that tables are of the loader's graph
        if hasattr(model, "histories") or hasattr(model, "tables"):
            raise ValueError(
                f"{type(model).__name__} has an attribute `histories` or `tables`, as a scaled model has; rename it"
            )
        self._register_state_dict_hook(without_prefix)
        self._register_load_state_dict_pre_hook(with_prefix, with_module=True)

    @property
    def training(self) -> bool:
        """The mode of the plain model, which may be switched there as well."""
        model = vars(self)["_modules"].get("model")
        return model is None or model.training

    @training.setter
    def training(self, mode: bool) -> None:
        model = vars(self)["_modules"].get("model") if "_modules" in vars(self) else None
        if model is not None:
            model.training = mode

    @property
    def found(self) -> Found:
        """What the model was found to need on batches."""
        if self._found is None:
            raise RuntimeError(f"{self._name} has not been called on a batch yet, nor was scale() given data")
        return self._found

    @property
    def _structure_tables(self) -> list[History]:
        return cast("list[History]", list(self.tables))

    @property
    def _plain(self) -> Module:
        return self.model

    @property
    def _neighbors(self) -> str:  # type: ignore[override]  # other models read edges in one direction
        return self.found.neighbors

    @property
    def _per_node(self) -> tuple[bool, ...]:
        return self.found.per_node

    def _skipping(self, data: Data) -> None:
        return None  # its places know which rows are exact

    def _check_ready(self, data: Data | None = None) -> None:
        if self._found is None and data is not None:
            self._try_out(data, self._arguments, data)
        self.found  # noqa: B018  # an error as long as it has none

    def unscale(self) -> Module:
        """The plain model, which was never changed."""
        self._session.clean_up()
        return self.model

    def reset_parameters(self) -> None:
        """Resets the plain model, and forgets all histories."""
        super().reset_parameters()
        reset = getattr(self.model, "reset_parameters", None)
        if reset is not None:
            reset()

    # -- what the model needs ------------------------------------------------------------------------------------------

    def _try_out(self, data: Data, inputs: Inputs, whole: Data | None) -> None:
        """Finds what the model needs, on a small graph like ``data``, and makes histories and tables."""
        self._refuse_compiled()
        find_layers(self.model, automatic=True)  # which raises for those that are known, before anything is called
        args, kwargs = inputs(data)
        if whole is not None and self._inputs is not None:
            check_inputs(whole, inputs, (args, kwargs))
        found = find(self.model, data, inputs, self._places)
        tier, huge_pages = (self._history_options[key] for key in ("tier", "huge_pages"))
        tier = None if isinstance(tier, FileTier) else tier  # they are narrow, and filled once
        tables = structure.tables(found, self.num_nodes, tier=tier, huge_pages=huge_pages)
        if tables and whole is None:
            structure.refuse_missing_graph(self._name, found)
        given = arguments.names_of(self.model, args, kwargs)
        self._given, self._attributes = arguments.data_names(given), data.keys()
        if whole is not None and tables:
            structure.refuse_learned(self._name, given, arguments.adjacencies(args, kwargs)[0])
            structure.fill(self.model, found, whole, inputs, tables)
            for table in tables:
                table.origin = Origin(key_of(whole, self.num_nodes))
        needs = found.of("history")
        self.hidden_channels = [prod(need.shape) for need in needs]
        self._add_histories(self.hidden_channels, [need.dtype for need in needs])
        places = [place for place, need in found.needs.items() if need.action == "history"]
        for history, place in zip(self.histories, places, strict=True):
            history.behind = found.code_behind(place)
        files = [(each.table.base, each.behind) for each in self.histories if isinstance(each.table.base, FileTable)]
        try:
            for file, behind in files:
                file.take_code(behind)
        except ValueError:
            for file, _ in files:
                file.close()  # for the model that is made as the error says
            raise
        self.tables = torch.nn.ModuleList(tables).to(self.device)
        self.num_layers, self._found, self._unverified = len(needs) + 1, found, len(tables) > 0

    def _arguments(self, data: Data) -> Arguments:
        if self._inputs is None:
            return arguments.inputs_of(self.model, data)
        args = self._inputs(data)
        if isinstance(args, dict):
            return (), args
        return (tuple(args), {}) if isinstance(args, (tuple, list)) else ((args,), {})

    # -- calling the model ---------------------------------------------------------------------------------------------

    def compile(self, *args: Any, **kwargs: Any) -> None:
        """Refused: see the error."""
        raise RuntimeError(self._no_compiling("it"))

    def _refuse_compiled(self) -> None:
        if is_called_compiled():
            raise RuntimeError(self._no_compiling("it"))
        for name, module in self.named_modules():
            if is_compiled(module) and any(isinstance(inner, MessagePassing) for inner in module.modules()):
                raise RuntimeError(self._no_compiling(name.removeprefix(PREFIX) or "it"))

    def _no_compiling(self, what: str) -> str:
        return (
            f"{self._name}: {what} was compiled, but a model made by scale() is wired while it runs, which torch.compile cannot "
            "follow; call it as it is, or derive it from ScalableGNN, which can be compiled. Modules without message passing "
            "may be compiled in any model"
        )

    @untraced
    def __call__(
        self,
        *args: Any,
        loader: SubgraphLoader | None = None,
        progress: bool = False,
        device: torch.device | str | None = None,
        path: str | os.PathLike[str] | None = None,
        original_order: bool = False,
        **kwargs: Any,
    ) -> Any:
        """Runs the model on a batch, on a whole graph, or layer by layer over a loader.

        Args:
            *args, **kwargs: a batch of a loader, a graph, or the arguments of the plain model, the ids of a batch last.
            loader: gives exact inference over its batches instead; see :func:`layerwise_inference`.
            progress, device, path, original_order: whether inference over a loader shows a progress bar, where its result goes,
                and whether its rows are in the order that nodes had before :func:`torch_gas.permute`.

        Raises:
            ValueError: if the arguments are not those of one batch of this model's graph.
        """
        self._session.clean_up()
        self._refuse_compiled()
        if loader is not None:
            if args or kwargs:
                raise ValueError(f"{self._name}: loader takes no further arguments; see scale(inputs=...)")
            self._check_ready(loader.data)
            return layerwise_inference(self, loader, progress, device, path, original_order)
        self._refuse_target(next(iter(args), None), device, path, original_order)
        args, kwargs, ids = self._split(args, kwargs)
        if ids[1] is not None and self._found is None:
            data, inputs = arguments.to_data(self.model, args, kwargs, ids[1].numel())
            self._try_out(data, inputs, None)
        given = arguments.names_of(self.model, args, kwargs)
        found = arguments.adjacencies(args, kwargs)
        adj = found[0] if found else None
        rows = arguments.count_rows(given, adj)
        self._check_same_graph(ids[0])
        if ids[1] is not None or rows == self.num_nodes:
            self._check_given(given, adj)
            if len(self.tables) > 0:
                structure.refuse_learned(self._name, given, adj)
        with Undo(sys._getframe()) as undo:
            call = self._session.begin(undo, rows, arguments.by_attribute(given, adj, self._attributes), adj, ids)
            if call.n_id is not None:
                args = tuple(arguments.square(value, call.n_id.numel()) for value in args)
                kwargs = {key: arguments.square(value, call.n_id.numel()) for key, value in kwargs.items()}
                if self._unverified:
                    self._verify(call, adj, (args, kwargs), SubData(Data(), *ids))
                fuse(undo, self.model)
            handler = self._wire(call)
            self._session.wired(call)
            out = Module.__call__(self, *args, **kwargs)
            out = self._session.end(call, out if call.n_id is None else self._cut(out, call))
        if handler is not None:
            handler.check_met((args, kwargs))
        return out

    def _verify(self, call: Call, adj: Any, given: Arguments, batch: SubData) -> None:
        """Raises unless tables are of the graph that the batch is of."""
        num_edges = None if adj is None else format_of(adj).num_edges(adj)
        all_edges = call.record is not None and num_edges == call.record.num_edges
        structure.verify(self.model, self.found, given, batch, self._structure_tables, all_edges)
        self._unverified = False

    def _check_same_graph(self, batch_size: Any) -> None:
        """Raises where the batch tells that it is of another graph than the one that scale() was given."""
        record = record_of(batch_size)
        order = "" if record is None else order_of_key(record.key)
        if order and self._order and order != self._order:
            raise ValueError(
                f"{self._name}: the loader's graph is in another order than the one that scale() was given (data.perm differs); "
                "pass scale() the data that the loader has"
            )
        self._order = self._order or order
        if self._unverified and record is not None and difference(self._structure_tables[0].origin.key, record.key):
            raise ValueError(f"{self._name}: {structure.OTHER_GRAPH}")

    def _check_given(self, given: dict[str, Any], adj: Any) -> None:
        """Raises unless the arguments are those of the function that was tried out."""
        if (self._given ^ arguments.data_names(given)) - self.found.ignored:
            if adj is None:
                raise ValueError(f"{self._name} {arguments.NO_EDGES}")
            raise ValueError(
                f"{self._name} was tried out by scale() with {', '.join(sorted(self._given))}, but is called with "
                f"{', '.join(sorted(given))}, which is another function than model(batch) and model(loader=...) compute; pass "
                "the same arguments, or say which: scale(model, data, inputs=lambda batch: (batch.x, batch.edge_index, ...))"
            )

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        """The plain model."""
        return self.model(*args, **kwargs)

    def _inference(self, loader: Any, *args: Any, **kwargs: Any) -> Tensor:
        """PyG's ``BasicGNN.inference``, which takes PyG's loader and asserts it without a text."""
        if isinstance(loader, SubgraphLoader):
            raise TypeError(
                f"{self._name}.inference() is PyG's and takes a NeighborLoader; for exact inference over a loader of torch_gas, "
                "call model.eval()(loader=loader)"
            )
        return cast(Any, self.model).inference(loader, *args, **kwargs)

    def _split(self, args: tuple[Any, ...], kwargs: dict[str, Any]) -> tuple[Any, Any, Any]:
        """The arguments of the plain model, and the ids of the batch, or four times None."""
        ids: Any = (None,) * 4
        if args and isinstance(args[0], SubData):
            data, *ids = args[0]
            args = (data, *args[1:])
        elif len(args) > 4 and _are_ids(args[-4:]):
            ids, args = args[-4:], args[:-4]
        elif "n_id" in kwargs:
            ids = tuple(kwargs.pop(name, None) for name in ("batch_size", "n_id", "offset", "count"))
            if ids[0] is None:
                raise ValueError(f"{self._name}: n_id needs batch_size; pass `*args` of the loader's batch")
        elif any(map(is_of_batch, (*args, *kwargs.values()))):
            raise ValueError(
                f"{self._name} was called with rows of a batch and without its ids, and would take them for another graph; pass "
                "them: model(batch), or `for batch, *ids in loader: model(batch, *ids)`"
            )
        is_graph = len(args) == 1 and isinstance(args[0], Data)
        if is_graph and (self._inputs is not None or not arguments.takes_data(self.model)):
            args, more = self._arguments(args[0])
            kwargs = more | kwargs
        return args, kwargs, ids

    def _wire(self, call: Call) -> Automatic | None:
        """Has the places of the plain model filled; on another graph than its own it runs as it is."""
        if call.n_id is None and not (call.on_own_graph and self._found is not None):
            return None
        found, handler = self.found, Automatic(self, call)
        if call.n_id is not None and call.neighbors != found.neighbors and found.neighbors == "both":
            raise ValueError(
                f"{self._name} reads edges in both directions, and the batch holds those into its nodes; make the loader with "
                'SubgraphLoader(..., neighbors="both")'
            )
        rows = None
        if call.n_id is not None and call.batch_size is not None:
            refuse_evaluation(self.model, call.batch_size, self.num_nodes)
            rows = Rows(call.batch_size, call.n_id, self.num_nodes, self._session.any_rows, call.keeps_halo)
        kinds: frozenset[Kind] = frozenset({"output", *(place.kind for place in found.needs)})
        num_rows = self.num_nodes if call.n_id is None else call.n_id.numel()
        places = Places(self.model, handler, num_rows, kinds, self.training and not self._torch_dropout)
        handler.normalize(call.undo)
        places.wire(call.undo, rows, handler.layout)
        # Until it ends: places hold their handler, which holds the call.
        call.undo.set(call, "rehearsals", [*call.rehearsals, places.rehearsal])
        return handler

    def _cut(self, out: Any, call: Call) -> Any:
        leaves, spec = pytree.tree_flatten(out)
        per_node = self.found.per_node
        if len(leaves) != len(per_node):
            raise RuntimeError(
                f"{self._name} returned {len(leaves)} values, but {len(per_node)} when it was tried out by scale()"
            )
        rows = zip(leaves, per_node, strict=True)
        return pytree.tree_unflatten([leaf[: call.batch_size] if cut else leaf for leaf, cut in rows], spec)

    def __setattr__(self, name: str, value: Any) -> None:
        model = vars(self).get("_modules", {}).get("model")
        own = name in vars(self) or name in vars(self).get("_modules", {}) or hasattr(type(self), name)
        if model is not None and not own and hasattr(model, name):
            setattr(model, name, value)  # where it is read as well
        else:
            super().__setattr__(name, value)

    def __getattr__(self, name: str) -> Any:
        try:
            return super().__getattr__(name)
        except AttributeError:
            if name == "model":
                raise
            if name == "inference" and isinstance(self.model, BasicGNN):
                return self._inference
            return getattr(self.model, name)


def _are_ids(values: tuple[Any, ...]) -> bool:
    size, *tensors = values
    are_vectors = all(isinstance(t, Tensor) and t.dim() == 1 and not t.is_floating_point() for t in tensors)
    return are_vectors and isinstance(size, int) and not isinstance(size, bool)
