"""ExactGradient: the gradient of the whole graph, computed batch by batch and segment by segment."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from functools import cached_property
from typing import Any, cast

import torch
from torch import Tensor
from torch.nn import Module

from torch_gas._util.arguments import checked
from torch_gas._util.tracing import untraced
from torch_gas.batch.loader import EvalSubgraphLoader, SubgraphLoader
from torch_gas.exact.criterion import Criterion
from torch_gas.exact.dropout import DropoutById
from torch_gas.exact.segments import Segment, Segments
from torch_gas.exact.sweeps import Sweeps
from torch_gas.history import History
from torch_gas.session.call import close
from torch_gas.session.extension import Extension
from torch_gas.session.inference import BY_HAND, Skipping
from torch_gas.session.model import HistoryModel
from torch_gas.wiring.compiled import eager
from torch_gas.wiring.trial.undisturbed import undisturbed
from torch_gas.wiring.undo import Undo

_TABLES = "exact_gradient"


class ExactGradient:
    r"""Computes the gradient of the whole graph, in the memory of a batch.

    With histories, the forward pass becomes exact and the gradient does not: it ends at the rows that batches pull. Here
    the gradient by these rows is added up in a table for each history, and goes on from there. By the chain rule it is that of
    the full batch, for each layer, to rounding:

    1. *Forward*, history by history: all batches compute the rows of one history from exact rows of those before it.
    2. *Backward*, from the last segment of the forward pass to the first: each batch computes one segment once more, from exact
       rows as leaves. It begins with the loss or with the gradient table of the history that the segment computes, [B, C],
       and adds the gradients of its leaves, [B + S, C], to the tables of theirs.

    In training mode, batch norms take the statistics of all nodes, and running statistics move once a call. Dropout has the mask
    of the full batch where the model has :class:`~torch_gas.extensions.DropoutById`, which is added where it has none. Other
    random numbers are refused, and buffers that move with the rows of a batch; those that move by themselves, such as the vectors
    of a spectral norm, move once a call.

    Tables take the memory of the histories once more, in float32 or wider, and lie where these do. Afterwards histories hold the
    rows of this forward pass.

    Args:
        model: a :class:`~torch_gas.ScalableGNN` or what :func:`~torch_gas.scale` returned. Compiled code runs as it was written.
        loader: of the model's graph. Its batches are made of as many parts as the loader's, in their order and without
            shuffling; features may need a gradient (``data.x.requires_grad``), as may edge weights.
        check: whether the criterion is compared, once, with the sum of its values on two halves of a batch.

    Example:
        >>> import torch
        >>> import torch.nn.functional as F
        >>> from torch_geometric.nn import GCN
        >>> from torch_gas import ExactGradient, SubgraphLoader, metis, permute, scale
        >>> from torch_gas.datasets import synthetic
        >>> data = synthetic(1000)
        >>> perm, ptr = metis(data, num_parts=8, log=False)
        >>> data = permute(data, perm, log=False)
        >>> model = scale(GCN(data.num_features, 16, num_layers=3, out_channels=10), data)
        >>> optimizer = torch.optim.Adam(model.parameters())
        >>> exact = ExactGradient(model, SubgraphLoader(data, ptr, batch_size=2))
        >>> for epoch in range(3):
        ...     optimizer.zero_grad()
        ...     loss = exact.backward(lambda out, batch: F.cross_entropy(out, batch.y[: len(out)], reduction="sum"))
        ...     optimizer.step()
    """

    @checked
    def __init__(self, model: Module, loader: SubgraphLoader, *, check: bool = True) -> None:
        model = getattr(model, "_orig_mod", model)  # what torch.compile wraps
        if not isinstance(model, HistoryModel):
            raise TypeError(
                f"ExactGradient: model must be a ScalableGNN, but is {type(model).__name__}; wire it with scale(model, data), "
                "and of a DistributedDataParallel pass the module: each process then computes the gradient of its own graph"
            )
        model._check_size(loader.num_nodes, "ExactGradient: the loader's graph")
        self.model, self.loader = model, _fixed(loader)
        self._segments: list[Segment] = []
        self._found_for: Any = None  # what the segments were found for
        self._unchecked = check  # whether the criterion is still to be looked at
        model._check_ready(self.loader.data)
        self._fit_tables()

    def __getstate__(self) -> dict[str, Any]:
        found = ("_skipping", "_segments", "_found_for")  # which a copy finds for its own model
        state = {name: value for name, value in vars(self).items() if name not in found}
        return {**state, "_segments": [], "_found_for": None}

    def remove(self) -> None:
        """Gives the memory of the gradient tables back. The next step makes them anew."""
        for extension in self.model.extensions:
            if isinstance(extension, _Tables):
                self.model.remove_extension(extension)

    @property
    def _gradients(self) -> Sequence[History]:
        """The gradient table of each history."""
        return cast("Sequence[History]", self.model.extension_tables[_TABLES])

    def _fit_tables(self) -> None:
        """Makes gradient tables where there are none, types of histories have changed, or other processes add to them."""
        wide = [torch.promote_types(history.model_dtype, torch.float32) for history in self.model.histories]
        tables = self._gradients if _TABLES in self.model.extension_tables else None
        if (
            tables is None
            or [each.table.dtype for each in tables] != wide
            or any(each.clock.is_shared() for each in tables)
        ):
            self.remove()
            self.model.add_extension(_Tables())

    @cached_property
    def _skipping(self) -> Skipping | None:
        """What stands in for layers that need not be computed, of a model that calls ``push_and_pull`` itself."""
        with undisturbed(self.model):  # in evaluation, where runs can be compared
            return self.model._skipping(self.loader.data)

    @untraced
    def backward(self, criterion: Criterion) -> Tensor:
        """Adds the gradient of the loss of the whole graph to ``.grad`` of all that learns, as ``loss.backward()`` does.

        Args:
            criterion: called with what the model returns for a batch, B rows, and the batch, a :class:`~torch_gas.SubData`
                whose first B rows these are of. It returns a sum over the rows, a scalar: divide by a number of the whole graph
                (``int(data.train_mask.sum())``), and not by one of the batch.

        Returns:
            The loss of the whole graph, a scalar without gradient.

        Raises:
            RuntimeError: under ``torch.no_grad()``, or if parameters change meanwhile.
            ValueError: if the criterion is no sum over rows, the loader's batches do not hold each node once, or the model draws
                random numbers that are not those of dropout, or moves buffers by rows of a batch. No ``.grad`` has changed then.
        """
        loss, sweeps = self._sweep(criterion)
        sweeps.commit()
        return loss

    def compute(self, criterion: Criterion) -> dict[Tensor, Tensor]:
        """The gradient that :meth:`backward` adds, by parameter and attribute of the graph; those that it misses have none.

        Neither ``.grad`` nor running statistics change; masks of dropout are those of the next step.
        """
        return self._sweep(criterion)[1].grads

    def _sweep(self, criterion: Criterion) -> tuple[Tensor, Sweeps]:
        """The loss, and the sweeps, whose gradients are not committed."""
        model = self.model
        if not torch.is_grad_enabled() or torch.is_inference_mode_enabled():
            raise RuntimeError("ExactGradient.backward computes gradients; call it outside of torch.no_grad()")
        for extension in model.extensions:
            if extension.takes_part and not (extension.of_batches or isinstance(extension, DropoutById)):
                raise ValueError(
                    f"ExactGradient: {type(extension).__name__} changes what batches compute in training, which the "
                    "whole graph does not; remove it by model.remove_extension()"
                )
        session = model._session
        session.clean_up()
        self._fit_tables()
        with Undo(sys._getframe()) as undo:
            stance = eager()
            undo.add(stance.__exit__, None, None, None)
            stance.__enter__()
            undo.add(torch.set_grad_enabled, True)
            for parameter in model._plain.parameters():  # whose hooks are for the whole gradient
                undo.add(setattr, parameter, "_backward_hooks", parameter._backward_hooks)
                parameter._backward_hooks = None
            replay = Segments(undo, model)
            undo.set(session, "replay", replay)
            for module in model.modules():  # though Ctrl-C may end what the next line does before it puts them back
                undo.add(setattr, module, "training", module.training)
            replay.handler = self._skipping
            close(model, undo, BY_HAND)
            sweeps = Sweeps(replay, self.loader, self._gradients, criterion, self._unchecked)
            if sweeps.found_for == self._found_for:
                replay.segments = self._segments
            loss = sweeps.run()
            self._segments, self._found_for, self._unchecked = replay.segments, sweeps.found_for, sweeps.unchecked
        return loss, sweeps


class _Tables(Extension):
    """The gradient tables, which are zero between two steps."""

    tables = (_TABLES,)
    sums = True
    scratch = True


def _fixed(loader: SubgraphLoader) -> SubgraphLoader:
    """A loader of batches like those of ``loader``, in a fixed order, which leaves its epochs and random numbers alone."""
    size = loader.batch_size or getattr(loader.batch_sampler, "batch_size", None)
    if type(loader) is not SubgraphLoader or size is None:  # of the user's own making
        return loader
    builder = loader.builder
    return EvalSubgraphLoader(
        loader.data,
        loader.ptr,
        min(size, loader.ptr.numel() - 1),
        builder.bipartite,
        neighbors=builder.neighbors,
        prefetch=loader._prefetch,
        device=loader.device,
    )
