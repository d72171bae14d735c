"""Exact layer-wise inference by replaying ``forward``: one sweep a layer, in the memory of one batch.

In sweep l all histories before l are exact. The model's own ``forward`` runs on each batch; ``push_and_pull`` answers from these
histories instead of pushing to them, the push to history l ends the pass over the batch, and the last sweep runs to
the end and collects the outputs.

Convolutions whose result only feeds an answered history are not computed: rows of any value stand in for them, which the answer
overwrites in place, so that whoever kept a reference to the tensor (a jumping-knowledge list) sees the exact rows. Which these
are is found by a trial: of scale(), or of :mod:`torch_gas.session.rehearsal` for a model that calls ``push_and_pull`` itself.
"""

from __future__ import annotations

import math
import os
import sys
import warnings
from collections.abc import Iterable, Sequence
from contextlib import ExitStack, suppress
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
import torch
from torch import Tensor
from torch.nn import Module
from torch.utils import _pytree as pytree
from torch_geometric.data import Data
from tqdm import tqdm

from torch_gas._util.arguments import checked
from torch_gas._util.replace import replacing
from torch_gas._util.tracing import untraced
from torch_gas.batch.data import SubData
from torch_gas.history import History
from torch_gas.partition.record import check_perm
from torch_gas.session.call import close
from torch_gas.wiring.arguments import refuse_records
from torch_gas.wiring.compiled import eager
from torch_gas.wiring.places import Handler, Place
from torch_gas.wiring.undo import Undo

if TYPE_CHECKING:
    from torch_gas.batch.loader import SubgraphLoader
    from torch_gas.session.call import Call
    from torch_gas.session.model import HistoryModel
    from torch_gas.session.session import Session


OTHER_ORDER = (
    "forward uses its histories in another order on another batch, so that it cannot go layer by layer over a loader; give it "
    "one order"
)
BY_HAND = "inference over a loader calls it for each layer anew, and no row would be exact"


class EndOfBatch(BaseException):
    """The push that a sweep is about has been made. No ``Exception``, which a model may catch around a layer."""


def overwrite(x: Tensor, rows: Tensor) -> None:
    """Has rows of the batch, ``x`` [B, C], be the exact ones, the first of ``rows``, for whoever else holds them.

    An expanded tensor cannot be written to. Whoever holds it sees what was computed, and the trial whether that is the same.
    """
    if all(step != 0 or size <= 1 for size, step in zip(x.shape, x.stride(), strict=True)):
        x.copy_(rows[: x.size(0)])


class Replay:
    """The state of the sweeps: which histories are exact.

    Args:
        undo: holds what inference changes of the model.

    Attributes:
        exact: the exact histories, in the order of the sweeps.
        target: the history of this sweep, once it is known.
        handler: what stands in for layers that need not be computed, where the model is wired by hand.
        explores: whether this is a first pass, which looks at what others take for granted.
    """

    def __init__(self, undo: Undo) -> None:
        self.undo = undo
        self.explores = False
        self.exact: list[History] = []
        self.target: History | None = None
        self.handler: Skipping | None = None

    @property
    def any_rows(self) -> bool:
        """Whether one row may stand in for all."""
        return False

    def stand_in(self, rows: Tensor, number: int) -> Tensor:
        """Rows of any value like ``rows`` for a number of nodes."""
        return rows.new_zeros(number, *rows.shape[1:], requires_grad=False)

    @property
    def asked(self) -> Iterable[History]:
        """Those whose rows a pass reads."""
        return self.exact

    def begin(self, call: Call) -> None:
        """Told that layers have been wired to a batch."""

    def computes(self) -> None:
        """Told that a convolution is about to be computed."""

    def answer(self, history: History, x: Tensor, batch_size: int, n_id: Tensor) -> Tensor:
        """The rows of batch and halo, [B + S, C], of which the batch's also replace those of ``x``."""
        rows = x.new_empty(n_id.numel(), x.size(1))
        history.table.read(n_id, rows)
        overwrite(x[:batch_size], rows)
        return rows

    def push(self, history: History, rows: Tensor, n_id: Tensor, offset: Tensor | None, count: Tensor | None) -> Tensor:
        """Makes the push of this sweep and ends the pass over the batch."""
        if self.target is None:
            self.target = history
        if self.target is not history:
            raise RuntimeError(OTHER_ORDER)
        history.write(rows, n_id[: rows.size(0)], offset, count)
        raise EndOfBatch


class Layer(NamedTuple):
    """What is known of a call of a convolution.

    Args:
        before: number of the history that its result goes to next, which counts those used before.
        rows: no rows of its output, [0, ...], whose shape and type are those of the others.
    """

    before: int
    rows: Tensor


class Skipping(Handler):
    """Stands in for convolutions whose result only goes to histories that are exact.

    Args:
        session: of the model.
        layers: the calls of convolutions that were met in the trial.
        sweeps: the most exact histories for which the trial has shown it.
        why: why not for all.
        per_node: for each output of the model, whether it had a row for each node in the trial; None without one.
    """

    def __init__(
        self, session: Session, layers: dict[Place, Layer], sweeps: int, why: str, per_node: Sequence[bool] | None
    ) -> None:
        self.session, self.layers, self.sweeps, self.why, self.per_node = session, layers, sweeps, why, per_node

    def substitute(self, place: Place, module: Module) -> Tensor | None:
        layer, replay, call = self.layers.get(place), self.session.replay, self.session.call
        assert replay is not None and call is not None and call.batch_size is not None
        if layer is None or not layer.before < len(replay.exact) <= self.sweeps:
            replay.computes()
            return None
        return replay.stand_in(layer.rows.to(replay.exact[layer.before].model_dtype), call.batch_size)


@untraced
@checked
def layerwise_inference(
    model: HistoryModel,
    loader: SubgraphLoader,
    progress: bool = False,
    device: torch.device | str | None = None,
    path: str | os.PathLike[str] | None = None,
    original_order: bool = False,
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
        original_order: whether row i is that of node i before :func:`torch_gas.permute`, and not that of node i of the loader's
            graph.

    Returns:
        The output of ``forward``: each tensor with B rows becomes one with N rows, in memory or mapped from its file. What
        else ``forward`` returns (a regularisation term, say) becomes a list with the value of each batch.

    Raises:
        RuntimeError: if ``model`` is in training mode.
        FileNotFoundError: if there is no folder for ``path``.
        OSError: if the disk has no room for the output.
        ValueError: if both ``device`` and ``path`` are given, the loader's batches do not hold each node of the model's graph
            once, or its graph was never permuted and the original order is asked for.
    """
    if not hasattr(loader, "num_nodes"):  # extensions pass wrappers of loaders
        raise TypeError(f"{model._name}: loader must be an EvalSubgraphLoader, but is {type(loader).__name__}")
    if model.training:
        raise RuntimeError(f"{type(model).__name__}: inference over a loader needs model.eval() first")
    model._check_size(loader.num_nodes, f"{type(model).__name__}: the loader's graph")
    if device is not None and path is not None:
        raise ValueError("inference over a loader: give device or path, not both")
    if path is not None and not os.fspath(path).endswith(".npy"):
        raise ValueError(f"inference over a loader: path must end in .npy, but is {os.fspath(path)!r}")
    if path is not None and not os.path.isdir(os.path.dirname(os.path.abspath(path))):
        raise FileNotFoundError(f"inference over a loader: there is no folder for {os.fspath(path)!r}; make it first")
    perm = _perm_of(loader.data) if original_order else None
    session = model._session
    session.clean_up()
    with ExitStack() as files, Undo(sys._getframe()) as undo:
        stance = eager()
        undo.add(stance.__exit__, None, None, None)
        stance.__enter__()
        undo.add(torch.set_grad_enabled, torch.is_grad_enabled())
        torch.set_grad_enabled(False)
        replay = Replay(undo)
        replay.handler = skipping = model._skipping(loader.data)
        undo.set(session, "replay", replay)  # by which the next call finds the log
        close(model, undo, BY_HAND)
        per_node = model._per_node if skipping is None else skipping.per_node
        while True:
            output = _Output(model.num_nodes, per_node, device, path, perm, files)
            batches = tqdm(loader, desc=f"sweep {len(replay.exact) + 1}", leave=False, disable=not progress)
            if _sweep(model, batches, output):
                break
            assert replay.target is not None
            replay.exact.append(replay.target)
            replay.target = None
    if skipping is not None and skipping.sweeps < len(replay.exact):
        warnings.warn(
            f"{model._name}: {skipping.why}, so inference computed all layers in each sweep from number {skipping.sweeps + 2} "
            "on; call push_and_pull before the result of a layer is used elsewhere to avoid it",
            stacklevel=3,
        )
    return output.value()


def _sweep(model: HistoryModel, batches: Iterable[SubData], output: _Output) -> bool:
    """One pass over the batches; whether it ran to the end of ``forward`` and the output is complete."""
    for batch in batches:
        output.coverage.count(batch)
        with suppress(EndOfBatch):
            output.add(model(batch.to(model.device)), batch)
    output.coverage.check()
    return output.spec is not None


def _perm_of(data: Data) -> Tensor:
    """The original id of each node."""
    if "perm" not in data:
        raise ValueError(
            "inference over a loader: original_order=True needs data.perm, which permute() stores, and the loader's graph has "
            "none; leave it out where the graph was never permuted, or bring rows back by unpermute(out, perm)"
        )
    return check_perm(data.perm, data.num_nodes, "inference over a loader: data.perm").cpu()


class Coverage:
    """Counts the nodes of batches, which are to hold each of N nodes once."""

    def __init__(self, num_nodes: int) -> None:
        self.num_nodes, self.rows = num_nodes, 0
        self.seen = torch.zeros(num_nodes, dtype=torch.bool, device="cpu")

    def count(self, batch: SubData) -> None:
        """Counts the nodes of ``batch`` as seen."""
        self.rows += batch.batch_size
        self.seen[batch.n_id[: batch.batch_size]] = True

    def check(self) -> None:
        """Raises ValueError unless each node was seen once."""
        distinct = int(self.seen.sum())
        if self.rows != self.num_nodes or distinct != self.num_nodes:
            raise ValueError(
                f"the batches of the loader hold {self.rows} nodes, {distinct} of them distinct, but the graph has "
                f"{self.num_nodes}; each node is needed once: use EvalSubgraphLoader, without drop_last"
            )


class _Output:
    """The outputs of all batches, put together."""

    def __init__(
        self,
        num_nodes: int,
        known: Sequence[bool]
        | None,  # which outputs have a row for each node; their sizes tell where that is not known
        device: torch.device | str | None,
        path: str | os.PathLike[str] | None,
        perm: Tensor | None,
        files: ExitStack,
    ) -> None:
        self.num_nodes, self.known, self.device, self.path, self.files = num_nodes, known, device, path, files
        self.perm = perm  # where the row of each node goes; by default to its own id
        self.coverage = Coverage(num_nodes)
        self.spec: Any = None  # how a batch's output is built of its leaves, from the first on that ran to its end
        self.leaves: list[Any] = []
        self.num_files = 0

    def add(self, out: Any, batch: SubData) -> None:
        leaves, spec = pytree.tree_flatten(out)
        if self.spec is None:
            refuse_records("inference over a loader: forward", leaves)
            self.spec = spec
            per_node = [isinstance(leaf, Tensor) and leaf.shape[:1] == (batch.batch_size,) for leaf in leaves]
            if self.known is not None and len(self.known) == len(leaves):
                per_node = [a and b for a, b in zip(per_node, self.known, strict=True)]
            pairs = zip(leaves, per_node, strict=True)
            self.leaves = [self._tensor(leaf, sum(per_node)) if is_rows else [] for leaf, is_rows in pairs]
        if spec != self.spec:
            raise ValueError(
                f"inference over a loader: forward returned another structure on a batch of {batch.batch_size} nodes than on the "
                "first batch; return the same for each batch"
            )
        ids = batch.n_id[: batch.batch_size]
        ids = ids if self.perm is None else self.perm[ids]
        for target, leaf in zip(self.leaves, leaves, strict=True):
            if isinstance(target, Tensor):
                if not isinstance(leaf, Tensor) or leaf.shape != (batch.batch_size, *target.shape[1:]):
                    what = list(leaf.shape) if isinstance(leaf, Tensor) else type(leaf).__name__
                    raise ValueError(
                        f"inference over a loader: forward returned {what} on a batch of {batch.batch_size} nodes, and "
                        f"a tensor of {list(target.shape[1:])} for each node on another; return rows of one shape for each batch"
                    )
                target[ids.to(target.device)] = leaf.to(target.device)
            else:
                target.append(leaf)

    def _tensor(self, leaf: Tensor, number: int) -> Tensor:
        shape = (self.num_nodes, *leaf.shape[1:])
        if self.path is None:
            return torch.empty(shape, dtype=leaf.dtype, device=self.device or "cpu")
        if leaf.dtype == torch.bfloat16:
            raise TypeError("inference over a loader: .npy files hold no bfloat16; let forward return out.float()")
        name = os.fspath(self.path)
        if number > 1:
            name = f"{name.removesuffix('.npy')}_{self.num_files}.npy"
        self.num_files += 1
        file = self.files.enter_context(replacing(name))
        rows = torch.empty(0, dtype=leaf.dtype, device="cpu").numpy()
        np.lib.format.write_array_header_1_0(
            file, {"descr": np.lib.format.dtype_to_descr(rows.dtype), "fortran_order": False, "shape": shape}
        )
        file.flush()
        begin, size = file.tell(), math.prod(shape) * leaf.dtype.itemsize
        os.ftruncate(file.fileno(), begin + size)
        if hasattr(os, "posix_fallocate"):  # or a full disk would be a signal that ends the process, later on
            os.posix_fallocate(file.fileno(), begin, max(size, 1))
        return torch.from_numpy(np.memmap(file, rows.dtype, "r+", begin, shape))

    def value(self) -> Any:
        return pytree.tree_unflatten(self.leaves, self.spec)
