"""HistoryModel: what both kinds of models with histories have: those that derive from ScalableGNN, and what scale() makes."""

from __future__ import annotations

import os
from abc import abstractmethod
from collections.abc import Callable, Iterator, Sequence
from typing import Any, cast

import torch
from torch import Tensor
from torch.nn import Module, ModuleDict, ModuleList
from torch.nn.parallel import DistributedDataParallel
from torch_geometric.data import Data

from torch_gas._util.arguments import checked
from torch_gas._util.modules import first_parameter
from torch_gas._util.tracing import untraced
from torch_gas.batch.loader import SubgraphLoader
from torch_gas.checkpoint import histories as files
from torch_gas.history import History
from torch_gas.session.extension import Extension
from torch_gas.session.inference import Skipping
from torch_gas.session.session import Session, owner_of
from torch_gas.table import FileTable, FileTier, HotSet
from torch_gas.transfer import IO, AsyncIOPool
from torch_gas.wiring import compiled


class HistoryModel(Module):
    """A model that owns histories and exchanges rows with them while its ``forward`` runs.

    Args:
        num_nodes: number of nodes of the graph that is trained on, N.
        pool_size, buffer_size, device, history_dtype, save_histories, io, pool_bytes, tier, huge_pages, check_finite, check: see
            :class:`ScalableGNN`.

    Attributes:
        histories: one for each exchange of a forward pass.
        extension_tables: tables of extensions by name, one for each history.
    """

    histories: Sequence[History]

    @checked
    def __init__(
        self,
        num_nodes: int,
        *,
        pool_size: int | None = None,
        buffer_size: int | None = None,
        device: torch.device | str | int | None = None,
        history_dtype: torch.dtype | None = None,
        save_histories: bool = True,
        io: IO = "concurrent",
        pool_bytes: int | None = None,
        tier: str | FileTier | None = None,
        huge_pages: bool = True,
        check_finite: bool | None = None,
        check: bool = True,
    ) -> None:
        super().__init__()
        if num_nodes < 1:
            raise ValueError(f"{type(self).__name__}: num_nodes must be at least 1, but is {num_nodes}")
        AsyncIOPool(1 if pool_size is None else pool_size, buffer_size, io=io, pool_bytes=pool_bytes)  # checks them now
        self.num_nodes = num_nodes
        self.pool_size = pool_size
        self.buffer_size = buffer_size
        self.io = io
        self.pool_bytes = pool_bytes
        self.check_finite = check_finite
        self.check = check
        self._history_options: dict[str, Any] = {
            "device": device,
            "dtype": history_dtype,
            "persistent": save_histories,
            "tier": tier,
            "huge_pages": huge_pages,
        }
        self.histories = ModuleList()  # type: ignore[assignment]
        self.extension_tables = ModuleDict()
        self._written = torch.zeros((), device="cpu")  # see wiring/compiled.py
        self._session = Session(self)

    # -- what a model that scale() made does in its own way -------------------------------------------------------------

    _neighbors = "in"  # which edges a batch must hold: those into its rows, or "both"

    @property
    def _plain(self) -> Module:
        """The model as it was written, whose modules have the names that its user knows."""
        return self

    @property
    def _name(self) -> str:
        """What errors call the model."""
        return type(self._plain).__name__

    @property
    def _structure_tables(self) -> list[History]:
        """Tables of what depends on the whole graph and on no parameter."""
        return []

    def _check_size(self, num_nodes: int | None, graph: str) -> None:
        """Raises ValueError if the graph that errors call ``graph`` has another number of nodes than the model's."""
        if num_nodes != self.num_nodes:
            raise ValueError(
                f"{graph} has {num_nodes} nodes, but the model was made for {self.num_nodes}; make it for this graph"
            )

    def _check_ready(self, data: Data | None = None) -> None:
        """Raises RuntimeError if it is not known which histories the model needs, and ``data``, a graph, cannot tell."""

    @abstractmethod
    def _skipping(self, data: Data) -> Skipping | None:
        """What stands in for layers that inference need not compute over a graph like ``data``; None where places know."""

    @property
    def _per_node(self) -> Sequence[bool] | None:
        """For each output, whether it has a row for each node, where that is known of the model."""
        return None

    @abstractmethod
    def _arguments(self, data: Data) -> tuple[tuple[Any, ...], dict[str, Any]]:
        """What ``forward`` takes from a graph."""

    # -- histories -----------------------------------------------------------------------------------------------------

    def _add_histories(self, widths: Sequence[int], dtypes: Sequence[torch.dtype] | None = None) -> None:
        """Makes histories of these widths and, where they are given, for rows of these types on the device of the model."""
        made = []
        for number, width in enumerate(widths):
            history = self._new_table(width, f"history_{number}")
            made.append(history if dtypes is None else history.to(self.device, dtypes[number]))
        tables = [self._tables_for(extension, made) for extension in self.extensions]  # before anything changes
        self.histories = ModuleList(made)  # type: ignore[assignment]
        for each in tables:
            self.extension_tables.update(each)

    def _new_table(self, width: int, name: str, beside: History | None = None, of: Extension | None = None) -> History:
        options, tier = dict(self._history_options), self._history_options["tier"]
        if isinstance(tier, FileTier):  # in a copy of a model, tables are in memory
            options["tier"] = tier.part(name) if beside is None or beside.tier == "file" else None
        if beside is not None and of is not None and of.sums:
            options["dtype"] = torch.promote_types(beside.model_dtype, torch.float32)
        is_scratch = of is not None and of.scratch
        table = History(self.num_nodes, width, **options | ({"persistent": False} if is_scratch else {}))
        table.is_scratch = is_scratch
        if is_scratch and isinstance(table.table, FileTable):
            table.table.unlink()  # no process goes on with it
        return table

    def _tables_for(self, extension: Extension, histories: Sequence[History]) -> dict[str, ModuleList]:
        """The tables that an extension names."""
        return {
            name: ModuleList(
                self._new_table(history.embedding_dim, f"{name}_{number}", history, extension).to(self.device)
                for number, history in enumerate(histories)
            )
            for name in extension.tables
        }

    @property
    def _history_tables(self) -> list[History]:
        """Histories, and with them the tables that extensions named."""
        more = cast("list[ModuleList]", list(self.extension_tables.values()))
        return [*self.histories, *(cast(History, table) for tables in more for table in tables)]

    @property
    def _stores(self) -> list[History]:
        """All tables of the model, whose rows its pool moves."""
        return [*self._history_tables, *self._structure_tables]

    @property
    def device(self) -> torch.device:
        """The device of the model's parameters, where batches must be."""
        parameter = first_parameter(self)
        if parameter is not None:
            return parameter.device
        return self.histories[0].compute_device if len(self.histories) > 0 else torch.device("cpu")

    @property
    def emb_device(self) -> torch.device:
        """The device of the histories."""
        return self.histories[0].device if len(self.histories) > 0 else self.device

    def reset_parameters(self) -> None:
        """Forgets all histories; models extend this by their own parameters."""
        for history in self._history_tables:
            history.reset_parameters()

    @checked
    def keep_hot(self, n_id: Tensor | None, max_bytes: int | None = None) -> int:
        """Keeps the rows of some nodes on the device of the model, in front of histories in host memory or in files.

        Batches read these rows there, and only the others from the tables. What is pushed is written to both, so that training is
        bit for bit the same with and without. Rows come there when they are first needed, and once more when a table was
        written to by others; a reference to ``emb`` of a table in a file must therefore not be kept over a step.

        Args:
            n_id: their ids, [H], best those that :func:`torch_gas.hot_nodes` finds; None to keep none any more.
            max_bytes: memory of the device that the rows of all histories may take. The first of ``n_id`` are kept then, as many
                as fit.

        Returns:
            The number of nodes whose rows are kept.

        Raises:
            TypeError: if ``n_id`` is no vector of integers.
            ValueError: if an id is there twice, ``max_bytes`` is negative, or histories lie on a GPU or in shared memory.
            IndexError: if an id is negative or not below N.
        """
        if max_bytes is not None and max_bytes < 0:
            raise ValueError(f"keep_hot: max_bytes must not be negative, but is {max_bytes}")
        self._check_ready()
        if n_id is not None and max_bytes is not None and n_id.dim() == 1:  # or HotSet refuses it
            n_id = n_id[: max_bytes // max(sum(history.table.row_bytes for history in self.histories), 1)]
        nodes = None if n_id is None else HotSet(n_id, self.num_nodes)
        for history in self.histories:
            history.keep_hot(nodes)
        return 0 if nodes is None else nodes.n_id.numel()

    def commit_histories(self) -> None:
        """Makes histories that lie in files survive a crash from now on; see :class:`~torch_gas.FileTier`. Others are left."""
        for history in self._history_tables:
            if not history.is_scratch:
                history.commit()

    def save_histories(self, path: str | os.PathLike[str]) -> None:
        """Writes all histories and their ages to a safetensors file, under their names in ``state_dict``.

        A few megabytes are in memory at a time, wherever the tables live. The file takes the place of ``path`` as a whole, once
        it is on the disk; after an error or a crash, what was there still is. :mod:`torch_gas.checkpoint` saves whole runs.

        Raises:
            OSError: if the file cannot be written.
        """
        files.save_histories(self, path)

    def load_histories(self, path: str | os.PathLike[str], graph: Any = None) -> None:
        """Reads what :meth:`save_histories` wrote. The file is checked first: after an error, no history has changed.

        Args:
            path: of the file.
            graph: the ``Data``, or the adjacency, whose embeddings they are. A file tells it, unless release 0.1 wrote it or no
                batch was pushed to what it holds; such histories need it before the model can be called on batches.

        Raises:
            ValueError: if the file is damaged, or its histories are of another number, size or type than the model's, or of
                another graph than ``graph``.
        """
        files.load_histories(self, path, graph)

    # -- exchanges -----------------------------------------------------------------------------------------------------

    def push_and_pull(
        self,
        history: History,
        x: Tensor,
        batch_size: int | None = None,
        n_id: Tensor | None = None,
        offset: Tensor | None = None,
        count: Tensor | None = None,
    ) -> Tensor:
        r"""Writes the batch's rows to ``history`` and appends the halo's rows from it.

        .. math::
            \bar{h}_v \leftarrow h_v \text{ for } v \in B, \qquad
            h_w \leftarrow \bar{h}_w \text{ for } w \in N(B) \setminus B

        Args:
            history: one of ``self.histories``, each used once in a forward pass.
            x: embeddings, of which the first B rows are used, [B, C] or [B + S, C].
            batch_size, n_id, offset, count: as ``forward`` got them.

        Returns:
            [B + S, C]: the first B rows are those of ``x``, with gradient; the others carry none. Without a
            batch, ``x`` itself. Layers may pass gradients to ``x`` at once: to look at the gradient of the result, call its
            ``retain_grad()`` before it is used.

        Raises:
            ValueError: if ``x`` has another number of rows, another width or, where checked, values that are not finite.
        """
        if torch.compiler.is_compiling():
            layer = [own is history for own in self.histories].index(True)
            return compiled.push_and_pull(self, layer, x, batch_size, n_id)
        return self._session.push_and_pull(history, x, batch_size, n_id, offset, count)

    @property
    def pool(self) -> AsyncIOPool:
        """What moves rows between tables and the device of the model."""
        return self._session.pool

    @property
    def buffer_bytes(self) -> int:
        """Device memory that the buffers of transfers take now, in bytes."""
        return self.pool.nbytes

    @untraced
    def _refuse_target(self, first: Any, device: Any, path: Any, original_order: bool) -> None:
        if isinstance(first, SubgraphLoader):
            raise TypeError(f"{self._name}: pass the loader by name, model(loader=loader)")
        if device is not None or path is not None or original_order:
            raise ValueError(
                f"{self._name}: device and path say where inference over a loader puts its result, and original_order in which "
                "order; pass loader=..."
            )

    # -- extensions ----------------------------------------------------------------------------------------------------

    def add_extension(self, extension: Extension, *, keep: bool = True) -> None:
        """Has an extension told of the model's calls from now on; see :class:`torch_gas.extensions.Extension`.

        Args:
            extension: a monitor, a penalty, or one of your own.
            keep: whether the model, and copies of it, keep the extension; else it is forgotten when nobody else holds it.

        Raises:
            TypeError: if it is no extension.
            ValueError: if it was added already, here or to another model, or another one has tables of the same names.
        """
        if not isinstance(extension, Extension):
            raise TypeError(
                f"add_extension: extension must be a torch_gas.extensions.Extension, but is {type(extension).__name__}"
            )
        owner = owner_of(extension)
        if owner is not None:
            whose = "the model" if owner is self._session else "another model"
            raise ValueError(
                f"add_extension: this {type(extension).__name__} was added to {whose} already; make one for each model"
            )
        for name in extension.tables:
            if name in self.extension_tables:
                raise ValueError(
                    f"add_extension: another extension has tables named {name!r}; remove that one, or give these another name"
                )
        tables = self._tables_for(extension, self.histories)
        extension.added(self)
        self.extension_tables.update(tables)
        self._session.add(extension, keep)

    def remove_extension(self, extension: Extension) -> None:
        """Has an extension told of nothing any more; its tables go.

        Raises:
            ValueError: if the model does not have it.
        """
        if extension not in self.extensions:
            raise ValueError(f"remove_extension: the model does not have this {type(extension).__name__}")
        self._session.remove(extension)
        for name in extension.tables:
            del self.extension_tables[name]
        extension.removed(self)

    @property
    def extensions(self) -> list[Extension]:
        """The extensions of the model, in the order in which they are told."""
        return self._session.extensions

    def regularization(self) -> Tensor:
        """What extensions add to the loss of the last call, a scalar; 0 where it was not in training.

        Raises:
            RuntimeError: if the model has no extension that does, such as
                :class:`torch_gas.extensions.regularization.LocalPerturbation`.
        """
        terms = [term for extension in self.extensions if (term := extension.loss()) is not None]
        if not terms:
            raise RuntimeError(
                f"{self._name} has no regularisation; attach one: torch_gas.regularization.LocalPerturbation().attach(model), or "
                "scale(model, data, regularization=...)"
            )
        return torch.stack(terms).sum() if len(terms) > 1 else terms[0]

    # -- whole graphs --------------------------------------------------------------------------------------------------

    def _on_graph(self, data: Data) -> Any:
        """What ``forward`` returns for a whole graph, on the device of the model."""
        args, kwargs = self._arguments(data)
        return self(*args, **kwargs)

    # -- several processes ---------------------------------------------------------------------------------------------

    @property
    def _ddp_params_and_buffers_to_ignore(self) -> list[str]:
        """Buffers that DistributedDataParallel leaves alone: rows that each process has pushed for itself."""
        tables = {id(buffer): buffer for table in self._stores for buffer in table.buffers()}
        for buffer in tables.values():
            buffer._ddp_ignored = True  # type: ignore[attr-defined]  # which keeps mixed_precision from casting it
        return [name for name, buffer in self.named_buffers() if id(buffer) in tables] + [*self._ddp_ignores_too]

    @_ddp_params_and_buffers_to_ignore.setter
    def _ddp_params_and_buffers_to_ignore(self, names: Sequence[str]) -> None:
        self._ddp_ignores_too = list(names)

    _ddp_ignores_too: Sequence[str] = []

    def _check_processes(self) -> None:
        """Raises RuntimeError inside of a DistributedDataParallel that gives tables of one process to all others."""
        parallel = DistributedDataParallel._active_ddp_module
        if parallel is None:
            return
        if any(history.pushed_at.is_floating_point() for history in self._stores):
            raise RuntimeError(
                f"{self._name} is in a DistributedDataParallel whose mixed_precision has cast the histories and their ages; wrap "
                "the model itself, as scale(model, data) returns it, or leave buffer_dtype out"
            )
        if not parallel.broadcast_buffers:
            return
        sent = {id(buffer) for buffer in parallel.modules_buffers}
        if any(id(history.pushed_at) in sent for history in self._history_tables):
            raise RuntimeError(
                f"{self._name} is in a DistributedDataParallel that sends the buffers of one process to all others before each "
                "step, and would overwrite the histories of these; pass broadcast_buffers=False to it (in Lightning, to the "
                "strategy), or wrap the model itself, as scale(model, data) returns it"
            )

    def _replicate_for_data_parallel(self) -> HistoryModel:
        """Refused: see the error."""
        raise RuntimeError(
            f"{self._name}: torch.nn.DataParallel runs copies of a model, and what these push would be lost; use one process for "
            "each device and torch.nn.parallel.DistributedDataParallel"
        )

    # -- state ---------------------------------------------------------------------------------------------------------

    @torch.inference_mode(mode=False)  # parameters that are made there could not be trained
    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> HistoryModel:
        super()._apply(fn, recurse)
        self._session.forget_pool()
        return self

    def named_buffers(self, *args: Any, **kwargs: Any) -> Iterator[tuple[str, Tensor]]:
        """As any module's; transfers of all tables are finished first, because tables are among the buffers."""
        for history in self._stores:
            history.settle()
        return super().named_buffers(*args, **kwargs)

    def __getstate__(self) -> dict[str, Any]:
        self._session.clean_up()
        return {**self.__dict__, "_session": self._session.kept}

    def __setstate__(self, state: dict[str, Any]) -> None:
        super().__setstate__(state)
        kept = self._session
        self._session = Session(self)
        for extension in cast("list[Extension]", kept):
            self._session.add(extension, keep=True)
