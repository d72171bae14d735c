"""Exact layer-wise inference by replaying ``forward``: one sweep a layer, in the memory of one batch.

In sweep l all histories before l are exact. The model's own ``forward`` runs on each batch; ``push_and_pull`` answers from these
histories instead of pushing to them, the push to history l ends the pass over the batch, and the last sweep runs to
the end and collects the outputs.

Convolutions before an answered history need not be computed. They return NaN of the right shape, and the answer
overwrites it in place, so that whoever kept a reference to the tensor (a jumping-knowledge list) sees the exact rows.
If a NaN reaches a push, an output or a comparison all the same, because the model reads such a result in another way, the
sweep is repeated with all convolutions computed, and so are those that follow.
"""

from __future__ import annotations

import os
import sys
import warnings
from collections.abc import Callable, Iterable
from contextlib import nullcontext
from types import NoneType
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor
from torch.utils import _pytree as pytree
from torch.utils._python_dispatch import TorchDispatchMode
from tqdm import tqdm

from torch_gas._util.tracing import untraced
from torch_gas.batch.builder import SubData
from torch_gas.batch.loader import SubgraphLoader
from torch_gas.history import History
from torch_gas.wiring import outermost_convs
from torch_gas.wiring.compiled import eager
from torch_gas.wiring.undo import Undo

if TYPE_CHECKING:
    from torch_gas.session.base import ScalableGNN


class _EndOfBatch(Exception):
    """The push that a sweep is about has been made."""


class _Unanswered(Exception):
    """A result that was not computed has been read."""


class Replay:
    """The state of the sweeps: which histories are exact, and which convolutions need not be computed.

    From its beginning, the model's convolutions ask it before they compute.

    Args:
        model: in evaluation mode.
        undo: holds what inference changes of it.
    """

    def __init__(self, model: ScalableGNN, undo: Undo) -> None:
        self.model, self.undo = model, undo
        self.exact: list[History] = []  # in the order of the sweeps
        self.target: History | None = None  # the one of this sweep
        self.skip = model.skips_by_nan
        self._answered = self._conv_calls = 0
        # By position of the call: an empty tensor of the result's width and type.
        self._templates: dict[int, Tensor] = {}
        self._batch_size = self._num_rows = 0

    def begin_batch(self, batch: SubData) -> None:
        """Starts a forward pass."""
        self._answered = self._conv_calls = 0
        self._batch_size, self._num_rows = batch.batch_size, batch.n_id.numel()

    def answers(self, history: History) -> bool:
        """Whether ``history`` is exact already."""
        return any(history is known for known in self.exact)

    def answer(self, history: History, x: Tensor, batch_size: int, n_id: Tensor) -> Tensor:
        """The rows of batch and halo, which also replace those of ``x``."""
        self._answered += 1
        rows = history.pull(n_id, x.dtype)
        x[:batch_size].copy_(rows[:batch_size])
        return rows

    def push(self, history: History, rows: Tensor, n_id: Tensor, offset: Tensor | None, count: Tensor | None) -> None:
        """Makes the push of this sweep and ends the pass over the batch."""
        if self.target is None:
            self.target = history
        if self.target is not history:
            raise RuntimeError(
                f"{type(self.model).__name__}: forward uses its histories in another order on another batch, so that inference "
                "over a loader cannot go layer by layer; give it one order"
            )
        history.push(rows, n_id, offset, count)
        raise _EndOfBatch

    def check(self, rows: Tensor) -> None:
        """Raises if ``rows`` depend on a result that was not computed."""
        if self.skip and self.exact and rows.is_floating_point() and bool(rows.isnan().any()):
            raise _Unanswered

    def begin(self) -> None:
        """From here on, the model knows of it."""
        self.undo.set(self.model, "_replay", self)
        for conv in set(outermost_convs(self.model)) if self.skip else ():
            self.undo.set(conv, "forward", self._skippable(conv.forward))

    def _skippable(self, forward: Callable[..., Any]) -> Callable[..., Any]:
        def run(*args: Any, **kwargs: Any) -> Any:
            call = self._conv_calls
            self._conv_calls += 1
            template = self._templates.get(call)
            if self.skip and self._answered < len(self.exact) and template is not None:
                return template.new_full((self._batch_size, *template.shape[1:]), float("nan"))
            out = forward(*args, **kwargs)
            per_node = isinstance(out, Tensor) and out.dim() > 0 and out.size(0) in (self._batch_size, self._num_rows)
            if per_node and out.is_floating_point():
                self._templates[call] = out.new_empty((0, *out.shape[1:]))
            return out

        return run


_OVERWRITES = {
    f"aten::{name}_" for name in ("copy", "fill", "zero", "index_copy", "index_put", "scatter", "normal", "uniform")
}


class _Watch(TorchDispatchMode):
    """Raises where an operation reads NaN and its result holds none: a comparison, ``nansum``, ``sign`` ..."""

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        name = func._schema.name
        # These read no values, and what is overwritten is not read: memory that is new may hold NaN.
        reads = () if "_like" in name or "::new_" in name else args[1:] if name in _OVERWRITES else args
        has_read = any(map(_has_nan, pytree.tree_leaves((reads, kwargs))))
        out = func(*args, **(kwargs or {}))
        results = [leaf for leaf in pytree.tree_leaves(out) if not isinstance(leaf, Tensor) or leaf.numel() > 0]
        if has_read and results and not any(map(_has_nan, results)):
            raise _Unanswered
        return out


def _has_nan(value: Any) -> bool:
    if isinstance(value, float):
        return value != value
    is_dense = isinstance(value, Tensor) and value.layout == torch.strided and value.is_floating_point()
    return is_dense and bool(value.isnan().any())


@untraced
def layerwise_inference(
    model: ScalableGNN,
    loader: SubgraphLoader,
    progress: bool = False,
    device: torch.device | str | None = None,
    path: str | os.PathLike[str] | None = None,
) -> Any:
    """The exact output of ``model`` on the whole graph (Section 4 of https://arxiv.org/abs/2106.05609), batch by batch.

    Histories are made exact on the way, L-1 of them in L sweeps. Each layer's convolutions are computed once.

    Args:
        model: in evaluation mode.
        loader: batches that together hold each node once; best an :class:`EvalSubgraphLoader`.
        progress: whether to show a progress bar for each sweep.
        device: where the result is put together. Host memory by default.
        path: a file ``name.npy`` that the result is written to instead, as it comes, for :func:`numpy.load`. Several tensors go
            to ``name_0.npy``, ``name_1.npy`` ... The file appears when it is complete.

    Returns:
        The output of ``forward``: each tensor with B rows becomes one with N rows, in memory or mapped from its file. What
        else ``forward`` returns (a regularisation term, say) becomes a list with the value of each batch.

    Raises:
        RuntimeError: if ``model`` is in training mode.
        ValueError: if both ``device`` and ``path`` are given, or the loader's batches do not hold each node of the model's
            graph once.
    """
    if not hasattr(loader, "num_nodes"):
        raise TypeError(f"{model._name}: loader must be an EvalSubgraphLoader, but is {type(loader).__name__}")
    if not isinstance(progress, bool):
        raise TypeError(f"{model._name}: progress must be True or False, but is {progress!r}")
    if not isinstance(path, (str, os.PathLike, NoneType)):
        raise TypeError(f"{model._name}: path must be that of a file, but is {type(path).__name__}")
    if model.training:
        raise RuntimeError(f"{type(model).__name__}: inference over a loader needs model.eval() first")
    if loader.num_nodes != model.num_nodes:
        raise ValueError(
            f"{type(model).__name__}: the loader's graph has {loader.num_nodes} nodes, but the model was made for "
            f"{model.num_nodes}"
        )
    if device is not None and path is not None:
        raise ValueError("inference over a loader: give device or path, not both")
    if path is not None and not os.fspath(path).endswith(".npy"):
        raise ValueError(f"inference over a loader: path must end in .npy, but is {os.fspath(path)!r}")
    model._clean_up()
    with eager(), Undo(sys._getframe()) as undo:
        undo.add(torch.set_grad_enabled, torch.is_grad_enabled())
        torch.set_grad_enabled(False)
        replay = Replay(model, undo)
        replay.begin()
        while True:
            output = _Output(model.num_nodes, device, path)
            batches = tqdm(loader, desc=f"sweep {len(replay.exact) + 1}", leave=False, disable=not progress)
            try:
                complete = _sweep(model, batches, replay, output)
            except _Unanswered:
                warnings.warn(
                    f"{type(model).__name__}: a layer's result is used beside push_and_pull, so inference computes all "
                    "layers from this sweep on; call push_and_pull before the result is used elsewhere to avoid it",
                    stacklevel=3,
                )
                replay.skip = False
                output = _Output(model.num_nodes, device, path)
                complete = _sweep(model, batches, replay, output)
            if complete:
                return output.value()
            assert replay.target is not None
            replay.exact.append(replay.target)
            replay.target = None


def _sweep(model: ScalableGNN, batches: Iterable[SubData], replay: Replay, output: _Output) -> bool:
    """One pass over the batches; whether it ran to the end of ``forward`` and the output is complete."""
    for i, batch in enumerate(batches):
        replay.begin_batch(batch)
        # What reads a result that was not computed does so in each batch: watching one is enough.
        watch = _Watch() if i == 0 and replay.skip and replay.exact else nullcontext()
        try:
            with watch:
                out = model(batch.to(model.device))
        except _EndOfBatch:
            output.note(batch)
            continue
        pytree.tree_map_only(Tensor, replay.check, out)
        output.add(out, batch)
    output.check_complete()
    return output.batches > 0


class _Output:
    """The outputs of all batches, put together."""

    def __init__(self, num_nodes: int, device: torch.device | str | None, path: str | os.PathLike[str] | None) -> None:
        self.num_nodes, self.device, self.path = num_nodes, device, path
        self.batches = self.rows = 0
        self.seen = torch.zeros(num_nodes, dtype=torch.bool)
        self.leaves: list[Any] = []
        self.files: list[tuple[str, str]] = []  # under its name while it is written, and its own

    def add(self, out: Any, batch: SubData) -> None:
        leaves, self.spec = pytree.tree_flatten(out)
        if self.batches == 0:
            self._allocate(leaves, batch.batch_size)
        for target, leaf in zip(self.leaves, leaves, strict=True):
            if isinstance(target, Tensor):
                target[batch.n_id[: batch.batch_size].to(target.device)] = leaf.to(target.device)
            else:
                target.append(leaf)
        self.batches += 1
        self.note(batch)

    def _allocate(self, leaves: list[Any], batch_size: int) -> None:
        per_node = [isinstance(leaf, Tensor) and leaf.dim() > 0 and leaf.size(0) == batch_size for leaf in leaves]
        self.leaves = [
            self._tensor(leaf, sum(per_node)) if is_rows else [] for leaf, is_rows in zip(leaves, per_node, strict=True)
        ]

    def _tensor(self, leaf: Tensor, number: int) -> Tensor:
        shape = (self.num_nodes, *leaf.shape[1:])
        if self.path is None:
            return torch.empty(shape, dtype=leaf.dtype, device=self.device or "cpu")
        if leaf.dtype == torch.bfloat16:
            raise TypeError("inference over a loader: .npy files hold no bfloat16; let forward return out.float()")
        name = os.fspath(self.path)
        if number > 1:
            name = f"{name.removesuffix('.npy')}_{len(self.files)}.npy"
        self.files.append((f"{name}.part", name))
        dtype = torch.empty(0, dtype=leaf.dtype).numpy().dtype
        return torch.from_numpy(np.lib.format.open_memmap(f"{name}.part", mode="w+", dtype=dtype, shape=shape))

    def note(self, batch: SubData) -> None:
        """Notes whose turn it was."""
        self.rows += batch.batch_size
        self.seen[batch.n_id[: batch.batch_size]] = True

    def check_complete(self) -> None:
        distinct = int(self.seen.sum())
        if self.rows != self.num_nodes or distinct != self.num_nodes:
            raise ValueError(
                f"the batches of the loader hold {self.rows} nodes, {distinct} of them distinct, but the graph has "
                f"{self.num_nodes}; inference needs each node once: use EvalSubgraphLoader, without drop_last"
            )

    def value(self) -> Any:
        for unfinished, name in self.files:
            os.replace(unfinished, name)
        return pytree.tree_unflatten(self.leaves, self.spec)
