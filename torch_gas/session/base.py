"""ScalableGNN: a model that owns histories and exchanges rows with them between its layers."""

from __future__ import annotations

import inspect
import os
import sys
from collections.abc import Callable, Iterator, Sequence
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor
from torch_geometric.data import Data

from torch_gas._util.arguments import checked
from torch_gas._util.tracing import untraced, untraced_frame
from torch_gas.batch.builder import SubData
from torch_gas.batch.loader import SubgraphLoader
from torch_gas.checkpoint import histories as files
from torch_gas.graph.formats import find_adjacency, is_sparse_tensor
from torch_gas.history import History
from torch_gas.session.call import Call, Coming, Observer
from torch_gas.session.inference import Replay, layerwise_inference
from torch_gas.table import FileTier, HotSet, StoredFeatures
from torch_gas.transfer import IO, AsyncIOPool, refuse_capture
from torch_gas.wiring import Batch, compiled, outermost_convs, wire_whole
from torch_gas.wiring.compiled import is_called_compiled, is_compiled
from torch_gas.wiring.fused import fuse
from torch_gas.wiring.undo import Undo

if TYPE_CHECKING:
    from torch_gas.extensions.regularization import LocalPerturbation
    from torch_gas.wiring.places import Places

POOL_SIZE = 4  # pulls in flight by default: the layer that runs and those that come next


class ScalableGNN(torch.nn.Module):
    r"""Base class of models that train with historical embeddings (Algorithm 1 of https://arxiv.org/abs/2106.05609).

    Derive from it, and call ``x = self.push_and_pull(self.histories[i], x, *args)`` between two convolutions. The model is
    then called in three ways, all of which run the same ``forward``:

    * ``model(batch.x, batch.edge_index, *args)`` (or ``model(sub_data)``) on a batch of a loader;
    * ``model(data.x, data.edge_index)`` on the whole graph, which also refreshes the histories, or, in evaluation
      mode, on any other graph, which leaves them alone;
    * ``model(loader=eval_loader)`` for exact layer-wise inference in the memory of one batch.

    Args:
        num_nodes: number of nodes of the graph that is trained on, N.
        hidden_channels: width of the histories: one number, or a list with one for each of the L-1 histories.
        num_layers: number of layers, L, at least 1.
        pool_size: pulls in flight when histories are in host memory and the model on a GPU; by default one for each history, but
            four at most.
        buffer_size: halo rows that each of their buffers reserves; by default the largest halo of the loader's batches.
        device: where histories live: a CUDA device, or host memory by default.
        history_dtype: storage type of the histories, as in :class:`History`; by default that of the model.
        save_histories: whether ``state_dict`` carries histories and their ages.
        io: ``"concurrent"`` moves rows between host and GPU while layers run, and those of the next batch during the backward
            pass; ``"serial"`` when a layer needs them, for comparison. Both train bit for bit the same.
        pool_bytes: device memory that pulls in flight may take, in bytes; one at a time is always allowed.
        tier, huge_pages: how histories live in host memory; see :class:`History`.
        check_finite: whether pushing NaN or infinity is an error. By default it is where the model runs on the CPU; on a GPU
            the check makes the host wait in each layer.

    Example:
        >>> import torch
        >>> from torch_geometric.nn import SAGEConv
        >>> from torch_gas import ScalableGNN, SubgraphLoader, metis, permute
        >>> from torch_gas.datasets import synthetic
        >>> class GNN(ScalableGNN):
        ...     def __init__(self, num_nodes, in_channels, hidden_channels, out_channels):
        ...         super().__init__(num_nodes, hidden_channels, num_layers=2)
        ...         self.conv1 = SAGEConv(in_channels, hidden_channels)
        ...         self.conv2 = SAGEConv(hidden_channels, out_channels)
        ...
        ...     def forward(self, x, edge_index, *args):
        ...         x = self.conv1(x, edge_index).relu()
        ...         x = self.push_and_pull(self.histories[0], x, *args)
        ...         return self.conv2(x, edge_index)
        >>> data = synthetic(1000)
        >>> perm, ptr = metis(data, num_parts=8, log=False)
        >>> data = permute(data, perm, log=False)
        >>> model = GNN(data.num_nodes, data.num_features, 16, 10)
        >>> for batch, batch_size, *args in SubgraphLoader(data, ptr, batch_size=4):
        ...     out = model(batch.x, batch.edge_index, batch_size, *args)
        ...     assert out.shape == (batch_size, 10)
    """

    histories: Sequence[History]
    skips_by_nan = True  # how inference skips convolutions whose result is known; see torch_gas.session.inference
    _observer: Callable[[], Observer | None] | None = None  # a weak reference

    @checked
    def __init__(
        self,
        num_nodes: int,
        hidden_channels: int | Sequence[int],
        num_layers: int,
        pool_size: int | None = None,
        buffer_size: int | None = None,
        device: torch.device | str | int | None = None,
        *,
        history_dtype: torch.dtype | None = None,
        save_histories: bool = True,
        io: IO = "concurrent",
        pool_bytes: int | None = None,
        tier: str | FileTier | None = None,
        huge_pages: bool = True,
        check_finite: bool | None = None,
    ) -> None:
        super().__init__()
        if num_nodes < 1:
            raise ValueError(f"{type(self).__name__}: num_nodes must be at least 1, but is {num_nodes}")
        if num_layers < 1:
            raise ValueError(f"{type(self).__name__}: num_layers must be at least 1, but is {num_layers}")
        widths = [hidden_channels] * (num_layers - 1) if isinstance(hidden_channels, int) else list(hidden_channels)
        if len(widths) != num_layers - 1:
            raise ValueError(
                f"{type(self).__name__}: hidden_channels must be one number or {num_layers - 1} (one for each history "
                f"between {num_layers} layers), but has {len(widths)}"
            )
        if any(width < 1 for width in widths):
            raise ValueError(f"{type(self).__name__}: hidden_channels must be at least 1, but is {hidden_channels}")
        self.num_nodes = num_nodes
        self.hidden_channels = hidden_channels
        self.num_layers = num_layers
        self.pool_size = pool_size
        self.buffer_size = buffer_size
        self.io = io
        self.pool_bytes = pool_bytes
        AsyncIOPool(1 if pool_size is None else pool_size, buffer_size, io=io, pool_bytes=pool_bytes)  # checks them now
        self.check_finite = check_finite
        self._history_options: dict[str, Any] = {
            "device": device,
            "dtype": history_dtype,
            "persistent": save_histories,
            "tier": tier,
            "huge_pages": huge_pages,
        }
        self.histories = torch.nn.ModuleList(  # type: ignore[assignment]
            self._new_history(width, number) for number, width in enumerate(widths)
        )
        self._pool: AsyncIOPool | None = None
        self._coming: Coming | None = None  # the batch whose pulls are under way already
        self._call: Call | None = None
        self._replay: Replay | None = None
        self._written = torch.zeros(())  # see compiled.py
        self._regularizer: LocalPerturbation | None = None
        self._penalty: Tensor | None = None  # of the last call

    def _new_history(self, width: int, number: int) -> History:
        options = self._history_options
        if isinstance(options["tier"], FileTier):
            options = {**options, "tier": options["tier"].part(f"history_{number}")}
        return History(self.num_nodes, width, **options)

    @property
    def _name(self) -> str:
        """What errors call the model."""
        return type(self).__name__

    @property
    def device(self) -> torch.device:
        """The device of the model's parameters, where batches must be."""
        parameter = next(self.parameters(), None)
        if parameter is not None:
            return parameter.device
        return self.histories[0].device if len(self.histories) > 0 else torch.device("cpu")

    @property
    def emb_device(self) -> torch.device:
        """The device of the histories."""
        return self.histories[0].table.device if len(self.histories) > 0 else self.device

    def reset_parameters(self) -> None:
        """Forgets all histories; models extend this by their own parameters."""
        for history in self.histories:
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
        if n_id is not None and max_bytes is not None and n_id.dim() == 1:  # or HotSet refuses it
            n_id = n_id[: max_bytes // max(sum(history.row_bytes for history in self.histories), 1)]
        nodes = None if n_id is None else HotSet(n_id, self.num_nodes)
        for history in self.histories:
            history.keep_hot(nodes)
        return 0 if nodes is None else nodes.n_id.numel()

    def commit_histories(self) -> None:
        """Makes histories that lie in files survive a crash from now on; see :class:`~torch_gas.FileTier`. Others are left."""
        for history in self.histories:
            history.commit()

    # -- calling the model ---------------------------------------------------------------------------------------------

    @untraced_frame
    def __call__(
        self,
        x: Tensor | SubData | None = None,
        adj_t: Any = None,
        batch_size: int | None = None,
        n_id: Tensor | None = None,
        offset: Tensor | None = None,
        count: Tensor | None = None,
        *,
        loader: SubgraphLoader | None = None,
        progress: bool = False,
        device: torch.device | str | None = None,
        path: str | os.PathLike[str] | None = None,
        **kwargs: Any,
    ) -> Any:
        """Runs ``forward`` on a batch, on a whole graph, or layer by layer over a loader.

        Args:
            x: node features, [B + S, C] or [N, C]; or a :class:`SubData` instead of all further arguments.
            adj_t: adjacency of the batch or the graph, in any of the four formats; ``edge_index`` is another name for it.
            batch_size: B.
            n_id: global ids of the batch's and then the halo's nodes, [B + S].
            offset: starts of the contiguous parts of the batch, [P].
            count: lengths of these parts, [P].
            loader: gives exact inference over its batches instead; see :func:`layerwise_inference`.
            progress, device, path: whether inference over a loader shows a progress bar, and where its result goes.
            **kwargs: further arguments of ``forward``, such as ``edge_weight``.

        Returns:
            What ``forward`` returns: B rows on a batch, N rows on a graph or a loader.

        Raises:
            ValueError: if the arguments are not those of one batch of this model's graph.
        """
        if loader is not None:
            if x is not None or adj_t is not None or kwargs:
                raise ValueError(
                    f"{type(self).__name__}: loader takes no further arguments, because what forward takes comes from its "
                    "batches; store it in data under the name of forward's argument, or override inputs()"
                )
            return layerwise_inference(self, loader, progress, device, path)
        self._check_no_target(device, path)
        if isinstance(x, SubData):
            args, kwargs = self._arguments_of(x, kwargs)
            return self(*args, **kwargs)
        if adj_t is None:
            adj_t = kwargs.pop("edge_index", None)
        num_rows = self._rows_of(x)
        if all(given is None for given in (batch_size, n_id, offset, count)):
            self._check_whole([x])
        with Undo(sys._getframe()) as undo:
            call = self._prepare(undo, num_rows, adj_t, batch_size, n_id, offset, count)
            out = super().__call__(x, adj_t, batch_size, n_id, offset, count, **kwargs)
            call.end()
            return out

    @untraced
    def _rows_of(self, x: Any) -> int | None:
        """How many rows there are; None where ``forward`` takes something else than ``x``."""
        if x is None or is_sparse_tensor(x):
            return None
        if isinstance(x, StoredFeatures):
            raise TypeError(
                f"{self._name}: features in a file are read for batches only; call model(loader=EvalSubgraphLoader(data, ptr)) "
                "for the whole graph"
            )
        if not isinstance(x, Tensor):
            raise TypeError(f"{self._name}: x must be a tensor of rows or a SubData, but is {type(x).__name__}")
        if x.dim() == 0 or x.is_meta:
            raise ValueError(
                f"{self._name}: x must be rows of nodes, [B + S, C] or [N, C], but is {list(x.shape)} on {x.device}"
            )
        return x.size(0)

    @untraced
    def _prepare(self, undo: Undo, num_rows: int | None, adj: Any, *ids: Any) -> Call:
        compiles = is_called_compiled() or is_compiled(self)
        if compiles:
            compiled.check_version(self._name)
        call = self._begin(undo, num_rows, adj, *ids)
        compiled.run_in_thread(undo, self)
        if not compiles:
            fuse(undo, self)
        self._wire(undo, call)
        return call

    def _begin(self, undo: Undo, num_rows: int | None, adj: Any, *ids: Any) -> Call:
        """A call of the model with checked arguments, whose transfers are under way."""
        self._clean_up()
        self._follow_parameters()
        if len(self.histories) > 0 and self.device.type == "cuda":
            refuse_capture(self._name)
        call = Call(self, undo, num_rows, adj, *ids)
        if self._call is not None:
            raise RuntimeError(f"{type(self).__name__} was called inside its own forward")
        undo.add(torch.set_grad_enabled, torch.is_grad_enabled())
        undo.set(self, "_call", call)
        call.begin()
        return call

    def _clean_up(self) -> None:
        """Undoes what a call left that Ctrl-C ended while it was cleaning up itself."""
        for left in (self._call, self._replay):
            if left is not None:
                left.undo.finish()

    def _wire(self, undo: Undo, call: Call) -> None:
        """Makes the layers safe on the batch of ``call``."""
        if call.n_id is None or call.batch_size is None:
            wire_whole(undo, self)
        else:
            convs = set(outermost_convs(self))
            Batch(convs, convs, call.batch_size, call.n_id.numel(), call.neighbors == "in").wire(undo)
        self._regularize(undo, call, None)

    def _regularize(self, undo: Undo, call: Call, places: Places | None) -> None:
        """Has the penalty of ``call`` computed."""
        if self._regularizer is not None:
            self._regularizer.watch(undo, self, call, places)

    def regularization(self) -> Tensor:
        """The penalty of the last call, a scalar to be added to the loss; 0 where it was not in training.

        Raises:
            RuntimeError: if no :class:`torch_gas.extensions.regularization.LocalPerturbation` is attached to the model.
        """
        if self._regularizer is None:
            raise RuntimeError(
                f"{self._name} has no regularisation; attach one: torch_gas.regularization.LocalPerturbation().attach(model), or "
                "scale(model, data, regularization=...)"
            )
        return torch.zeros((), device=self.device) if self._penalty is None else self._penalty

    @untraced
    def _check_no_target(self, device: Any, path: Any) -> None:
        if device is not None or path is not None:
            raise ValueError(
                f"{self._name}: device and path say where inference over a loader puts its result; pass loader=..."
            )

    @untraced
    def _arguments_of(self, batch: SubData, kwargs: dict[str, Any]) -> tuple[tuple[Any, ...], dict[str, Any]]:
        data, *ids = batch
        args, kwargs = self.inputs(data, **kwargs)
        return (*args, *ids), kwargs

    @untraced
    def _check_whole(self, values: Sequence[Any]) -> None:
        if any(getattr(value, "of_batch", False) for value in values):
            raise ValueError(
                f"{self._name} was called with rows of a batch and without its ids, and would take them for another graph; pass "
                "them: `for batch, *ids in loader: model(batch.x, batch.edge_index, *ids)`"
            )

    def inputs(self, data: Data, **kwargs: Any) -> tuple[tuple[Any, ...], dict[str, Any]]:
        """What ``forward`` takes from a graph or batch: ``x``, the adjacency, and attributes named like its arguments.

        Inference and ``model(sub_data)`` call the model with it. Override it where ``forward`` takes something else.
        """
        key, adj = find_adjacency(data)
        for name in self._names_of_forward():
            if name not in kwargs and data.get(name) is not None and name not in ("x", key):
                kwargs[name] = data[name]
        return (data.x, adj), kwargs

    def _names_of_forward(self) -> list[str]:
        parameters = inspect.signature(self.forward).parameters.values()
        reserved = {"adj_t", "edge_index", "batch_size", "n_id", "offset", "count"}
        kinds = (inspect.Parameter.KEYWORD_ONLY, inspect.Parameter.POSITIONAL_OR_KEYWORD)
        return [p.name for p in parameters if p.kind in kinds and p.name not in reserved]

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
        call = self._call
        if call is None:
            raise RuntimeError("push_and_pull can only be called inside forward, by calling the model itself")
        call.use(history)
        if n_id is None:
            if call.on_own_graph:
                if x.size(0) != self.num_nodes:
                    raise ValueError(
                        f"push_and_pull: x has {x.size(0)} rows, but must have one for each of the {self.num_nodes} nodes"
                    )
                history.check_rows(x)
                self._check_finite(history, x)
                history.push(x)
            return x
        if batch_size is None:
            batch_size = n_id.numel()
        if x.size(0) not in (batch_size, n_id.numel()):
            raise ValueError(
                f"push_and_pull: x has {x.size(0)} rows, but must have those of the batch ({batch_size}) or of batch "
                f"and halo ({n_id.numel()})"
            )
        history.check_rows(x)
        if self._replay is not None and self._replay.answers(history):
            return self._replay.answer(history, x, batch_size, n_id)
        rows = x[:batch_size]
        if self._replay is not None:
            self._replay.check(rows)
        self._check_finite(history, rows)
        if self._replay is not None:
            self._replay.push(history, rows, n_id[:batch_size], offset, count)
        return call.exchange(history, rows, n_id, offset, count)

    def _check_finite(self, history: History, rows: Tensor) -> None:
        check = self.check_finite if self.check_finite is not None else not rows.is_cuda
        if not check:
            return
        rows = rows.detach()
        held = torch.float32 if history.table.dtype == torch.int8 else history.table.dtype  # int8 has scales of float32
        if torch.finfo(held).max < torch.finfo(rows.dtype).max:
            rows = rows.to(held)  # what the table would hold
        # One pass: a sum is finite unless a term is not (or the rows are beyond any use).
        if not bool(rows.sum(dtype=torch.promote_types(rows.dtype, torch.float32)).isfinite()):
            layer = [h is history for h in self.histories].index(True)
            half = " float16 ends at 65504, and GradScaler scales gradients only: use torch.bfloat16."
            hint = half if rows.dtype == torch.float16 else ""
            raise ValueError(
                f"push_and_pull: the embeddings of layer {layer + 1} hold NaN or infinity; the histories were not "
                f"changed.{hint} Lower the learning rate or clip gradients, or pass check_finite=False to the model"
            )

    # -- state ---------------------------------------------------------------------------------------------------------

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> ScalableGNN:
        super()._apply(fn, recurse)
        self._pool = None
        self._follow_parameters()
        return self

    def _follow_parameters(self) -> None:
        """Serves the device on which the parameters are, however they came there (``torch.load`` with a map, say)."""
        device = self.device
        if any(history.device != device or history.transfers is not self._pool for history in self._stores):
            self._pool = None
            for history in self._stores:
                history.device = device

    @property
    def _stores(self) -> list[History]:
        """All tables of the model."""
        return list(self.histories)

    @property
    def pool(self) -> AsyncIOPool | None:
        """The transfers between host and device; None where histories and model are on the same one."""
        if self._pool is None and any(history.is_remote for history in self._stores):
            size = self.pool_size or min(max(len(self.histories), 1), POOL_SIZE)
            width = max(history.embedding_dim for history in self._stores)
            self._use_pool(
                AsyncIOPool(size, self.buffer_size, width, self.device, io=self.io, pool_bytes=self.pool_bytes)
            )
        return self._pool

    def _use_pool(self, pool: AsyncIOPool) -> None:
        self._pool = pool
        for history in self._stores:
            history.pin()
            history.transfers = pool

    def save_histories(self, path: str | os.PathLike[str]) -> None:
        """Writes all histories and their ages to a safetensors file, under their names in ``state_dict``.

        A few megabytes are in memory at a time, wherever the tables live. The file takes the place of ``path`` as a whole, once
        it is on the disk; after an error or a crash, what was there still is. :mod:`torch_gas.checkpoint` saves whole runs.

        Raises:
            OSError: if the file cannot be written.
        """
        files.save_histories(self, path)

    def load_histories(self, path: str | os.PathLike[str]) -> None:
        """Reads what :meth:`save_histories` wrote. The file is checked first: after an error, no history has changed.

        Raises:
            ValueError: if the file is damaged, or its histories are of another number, size or type than the model's.
        """
        files.load_histories(self, path)

    def named_buffers(self, *args: Any, **kwargs: Any) -> Iterator[tuple[str, Tensor]]:
        """As any module's; transfers of all tables are finished first, because tables are among the buffers."""
        for history in self._stores:
            history.settle()
        return super().named_buffers(*args, **kwargs)

    @property
    def buffer_bytes(self) -> int:
        """Device memory that the buffers of transfers take now, in bytes."""
        return 0 if self._pool is None else self._pool.nbytes

    def __getstate__(self) -> dict[str, Any]:
        self._clean_up()
        passing = ("_pool", "_call", "_replay", "_coming", "_penalty", "_observer")
        return {**self.__dict__, **dict.fromkeys(passing)}
