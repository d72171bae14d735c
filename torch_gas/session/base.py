"""ScalableGNN: a model whose author says where histories are."""

from __future__ import annotations

import os
import sys
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor
from torch_geometric.data import Data

from torch_gas._util.arguments import checked
from torch_gas._util.tracing import untraced, untraced_frame
from torch_gas.batch.data import SubData
from torch_gas.batch.loader import SubgraphLoader
from torch_gas.graph.adjacency import find_adjacency
from torch_gas.graph.formats import is_matrix
from torch_gas.session.call import Call, Ids
from torch_gas.session.inference import Skipping, layerwise_inference
from torch_gas.session.model import HistoryModel
from torch_gas.session.rehearsal import skipping
from torch_gas.table import FileTier, StoredFeatures
from torch_gas.transfer import IO
from torch_gas.wiring import Batch, Rows, compiled, find_layers, refuse_evaluation, wire_whole
from torch_gas.wiring.arguments import data_names, parameters
from torch_gas.wiring.batch import refuse_unregistered
from torch_gas.wiring.compiled import is_called_compiled, is_compiled
from torch_gas.wiring.fused import fuse
from torch_gas.wiring.places import Places
from torch_gas.wiring.trial.selected import check_inputs_of_batch
from torch_gas.wiring.undo import Undo

_NOT_STORED = ("x", "adj_t", "edge_index", "batch_size", "n_id", "offset", "count")  # which a batch gives by place


class ScalableGNN(HistoryModel):
    r"""Base class of models that train with historical embeddings (Algorithm 1 of https://arxiv.org/abs/2106.05609).

    Derive from it, and call ``x = self.push_and_pull(self.histories[i], x, *args)`` between two convolutions. The model is
    then called in three ways, all of which run the same ``forward``:

    * ``model(batch.x, batch.edge_index, *args)`` (or ``model(sub_data)``) on a batch of a loader;
    * ``model(data.x, data.edge_index)`` on the whole graph, which also refreshes the histories, or, in evaluation
      mode, on any other graph, edges or features, which leaves them alone;
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
        check: whether a call on a batch needs the batch, or its ids as the loader gave them, whose ``batch_size`` says which
            batch they are of. With ``False``, ids may be made by hand; what they say of themselves is checked all the same. Edges
            and features of a batch are then compared with none.

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
        check: bool = True,
    ) -> None:
        super().__init__(
            num_nodes,
            pool_size=pool_size,
            buffer_size=buffer_size,
            device=device,
            history_dtype=history_dtype,
            save_histories=save_histories,
            io=io,
            pool_bytes=pool_bytes,
            tier=tier,
            huge_pages=huge_pages,
            check_finite=check_finite,
            check=check,
        )
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
        self.hidden_channels = hidden_channels
        self.num_layers = num_layers
        # Names of what the last training call was given beside x and adj_t, or before there was one, the first evaluation.
        self._given: tuple[str, set[str]] | None = None
        self._inputs_checked = ""  # the key of a graph on whose batches inputs() was looked at
        self._add_histories(widths)

    def _skipping(self, data: Data) -> Skipping:
        return skipping(self, data)

    def _arguments(self, data: Data) -> tuple[tuple[Any, ...], dict[str, Any]]:
        return self.inputs(data)

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
        original_order: bool = False,
        **kwargs: Any,
    ) -> Any:
        """Runs ``forward`` on a batch, on a whole graph, or layer by layer over a loader.

        Args:
            x: node features, [B + S, C] or [N, C]; or a :class:`SubData` instead of all further arguments.
            adj_t: adjacency of the batch or the graph, in any of the four formats; ``edge_index`` is another name for it.
            batch_size: B, as the loader gave it.
            n_id: global ids of the batch's and then the halo's nodes, [B + S].
            offset: starts of the contiguous parts of the batch, [P].
            count: lengths of these parts, [P].
            loader: gives exact inference over its batches instead; see :func:`layerwise_inference`.
            progress, device, path, original_order: whether inference over a loader shows a progress bar, where its result goes,
                and whether its rows are in the order that nodes had before :func:`torch_gas.permute`.
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
            return layerwise_inference(self, loader, progress, device, path, original_order)
        self._refuse_target(x, device, path, original_order)
        if isinstance(x, SubData):
            args, kwargs = self._arguments_of(x, kwargs)
            return self(*args, **kwargs)
        if adj_t is None:
            adj_t = kwargs.pop("edge_index", None)
        num_rows = self._rows_of(x)
        with Undo(sys._getframe()) as undo:
            call = self._prepare(undo, num_rows, {"x": x, **kwargs}, adj_t, (batch_size, n_id, offset, count))
            if is_called_compiled() or is_compiled(self):
                batch_size = call.batch_size  # a plain int, for which code is not made anew each time
            out = super().__call__(x, adj_t, batch_size, n_id, offset, count, **kwargs)
            call.check_used()
            out = self._session.end(call, out)
        if call.met is not None:
            self._session.met.check(self, call, (x, adj_t, batch_size, n_id, offset, count), kwargs)
        return out

    @untraced
    def _rows_of(self, x: Any) -> int | None:
        """How many rows there are; None where ``forward`` takes something else than ``x``."""
        if x is None or (is_matrix(x) and not isinstance(x, Tensor)):
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
    def _prepare(self, undo: Undo, num_rows: int | None, given: dict[str, Any], adj: Any, ids: Ids) -> Call:
        compiles = is_called_compiled() or is_compiled(self)
        if compiles:
            compiled.prepare(self._name)
        call = self._session.begin(undo, num_rows, given, adj, ids)
        if call.n_id is not None or call.on_own_graph:
            self._check_further(given, call.n_id is not None)
        compiled.run_in_thread(undo, self)
        if not compiles:
            fuse(undo, self)
            compiled.hide_compiled(undo, self, lambda given: None)
        self._wire(call)
        if compiles:
            call.met = None
        elif call.met is not None and self.training not in self._session.met.registered:
            refuse_unregistered(call.undo, self)
        self._session.wired(call)
        return call

    def _check_further(self, given: dict[str, Any], on_batch: bool) -> None:
        """Raises in evaluation unless ``forward`` is given what it was given in training, as far as that is of a graph.

        Before any training, the first call on a batch says it.
        """
        names = data_names(given) - {"x"}
        if self.training or (self._given is None and on_batch):
            self._given = ("trained" if self.training else "first called", names)
        when, before = self._given or ("", names)
        if (before ^ names) - {name for name, value in given.items() if value is None}:
            had, has = (", ".join(sorted(each)) or "no further arguments" for each in (before, names))
            raise ValueError(
                f"{self._name} was {when} with {had}, but is evaluated with {has}, which is another function. Pass the same to "
                "both: model(batch) and model(loader=...) take what data holds under the names of forward's arguments. Override "
                "inputs() to have them take others; to leave one out on purpose, pass None for it"
            )

    def _wire(self, call: Call) -> None:
        """Makes the layers safe on the batch of ``call``."""
        if call.n_id is None or call.batch_size is None:
            wire_whole(call.undo, self)
        else:
            layers = find_layers(self)
            refuse_evaluation(self, call.batch_size, self.num_nodes)
            session, replay = self._session, self._session.replay
            rows = Rows(call.batch_size, call.n_id, self.num_nodes, session.any_rows, call.keeps_halo)
            batch = Batch(layers, layers.convs, rows, call.neighbors == "in")
            batch.wire(call.undo)
            call.met = batch.met
            if replay is not None and replay.handler is not None:
                Places(self, replay.handler, call.n_id.numel(), frozenset({"output"})).wire(call.undo)

    @untraced
    def _arguments_of(self, batch: SubData, kwargs: dict[str, Any]) -> tuple[tuple[Any, ...], dict[str, Any]]:
        data, *ids = batch
        args, kwargs = self.inputs(data, **kwargs)
        record = batch.record
        if self.check and not self.training and type(self).inputs is not ScalableGNN.inputs and record is not None:
            builder = None if record.lookahead is None else record.lookahead.builder
            if record.key != self._inputs_checked and builder is not None:
                check_inputs_of_batch(self._name, batch, builder, self.device, self.inputs, (args, kwargs))
                self._inputs_checked = record.key
        return (*args, *ids), kwargs

    def inputs(self, data: Data, **kwargs: Any) -> tuple[tuple[Any, ...], dict[str, Any]]:
        """What ``forward`` takes from a graph or batch: ``x``, the adjacency, and attributes named like its arguments.

        Inference and ``model(sub_data)`` call the model with it. Override it where ``forward`` takes something else.
        """
        key, adj = find_adjacency(data)
        for name in [parameter.name for parameter in parameters(self)]:
            if name not in (*kwargs, *_NOT_STORED, key) and data.get(name) is not None:
                kwargs[name] = data[name]
        return (data.x, adj), kwargs
