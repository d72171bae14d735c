"""Extension: what watches the calls of a model, or takes part in them, without the model knowing more of it than this."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, ClassVar

from torch import Tensor

from torch_gas.history import History

if TYPE_CHECKING:
    from torch_gas.session.call import Call
    from torch_gas.session.model import HistoryModel


class Extension:
    """Is told of the calls of a model once it was added by ``model.add_extension(extension)``. Override what you need.

    A model may have several, which are told in the order in which they were added. They are told of calls on batches and
    on the whole graph, in training and in evaluation; ``call`` says which.

    Attributes:
        tables: names of tables that each history gets for the extension, ``model.extension_tables[name][layer]``: a
            :class:`~torch_gas.History` of the same size, device, tier and storage type, which is saved, committed, moved and
            planned for with the history.
        sums: whether rows are added to these tables, which then hold numbers of at least float32 whatever the histories do.
        scratch: whether these tables are zero between two steps, and so no part of a ``state_dict`` or of a checkpoint.
        takes_part: whether it changes what training computes. Steps that are no training, such as those by which
            :func:`torch_gas.plan` measures memory, leave out those that only watch.
        of_batches: whether that is about what batches lack beside the whole graph, so that
            :class:`~torch_gas.ExactGradient`, which lacks nothing, goes without.

    Example:
        >>> from torch_gas import SubgraphLoader, metis, permute
        >>> from torch_gas.datasets import synthetic
        >>> from torch_gas.models import SAGE
        >>> from torch_gas.extensions import Extension
        >>> class Norms(Extension):
        ...     def __init__(self):
        ...         self.pushed = 0
        ...
        ...     def exchange(self, call, history, rows, pulled):
        ...         self.pushed += len(rows)
        >>> data = synthetic(1000)
        >>> perm, ptr = metis(data, num_parts=8, log=False)
        >>> model = SAGE(1000, data.num_features, 16, out_channels=10, num_layers=3)
        >>> norms = Norms()
        >>> model.add_extension(norms)
        >>> for batch in SubgraphLoader(permute(data, perm, log=False), ptr, batch_size=2):
        ...     out = model(batch)
        >>> norms.pushed  # each node once for each of two histories
        2000
    """

    tables: tuple[str, ...] = ()
    sums: ClassVar[bool] = False
    scratch: ClassVar[bool] = False
    takes_part: ClassVar[bool] = False
    of_batches: ClassVar[bool] = False

    def added(self, model: HistoryModel) -> None:
        """Told that it is being added to ``model``; an error keeps it from that."""

    def removed(self, model: HistoryModel) -> None:
        """Told that it was removed from ``model``."""

    def before(self, model: HistoryModel) -> None:
        """Told that a training call on a batch is about to begin, so that the step before is over. It may call the model."""

    def begin(self, call: Call) -> None:
        """Told that a call begins, whose layers have been wired: ``call.undo`` holds what is changed of them until it ends."""

    def exchange(self, call: Call, history: History, rows: Tensor, pulled: Tensor) -> Tensor | None:
        """Told of an exchange with ``history`` on a batch, when the halo's rows have come and before the batch's are pushed.

        Args:
            call: the call under way.
            history: one of the model's histories.
            rows: rows of the batch, [B, C], with gradient.
            pulled: rows of the halo, [S, C], which may be changed in place; no gradient goes through such a change.

        Returns:
            What forward goes on with, [B + S, C]; None for ``rows`` and ``pulled``, one behind the other. Where several
            extensions return rows, those of the last one are taken; :meth:`backward` is not called for such an exchange, whose
            gradients are the business of whoever returned the rows.
        """
        return None

    def backward(self, call: Call, history: History, grad: Tensor) -> Tensor | None:
        """Told of the gradient of an exchange when it arrives in a backward pass. Overriding it has halo rows get gradients.

        Args:
            call: the call whose forward pass made the exchange; it has ended.
            history: the history.
            grad: gradient of the loss by the rows of batch and halo, [B + S, C].

        Returns:
            What is added to the gradient of the batch's rows, [B, C]; None for nothing.
        """
        return None

    def output(self, call: Call, out: Any) -> Any:
        """Told of what ``forward`` returned, of a batch its own rows; returns what the call returns."""
        return out

    def end(self, call: Call) -> None:
        """Told that the forward pass of a call has ended without an error."""

    def epoch(self, number: int, complete: bool) -> None:
        """Told that an epoch of training on a loader's batches has ended.

        Args:
            number: of the epoch, counted from 0 by the loader.
            complete: whether the model was called on all of its batches; one that was left early is noticed when the next begins.
        """

    def loss(self) -> Tensor | None:
        """What the last call adds to the loss of training, a scalar; None where that is not its business."""
        return None

    def state_dict(self) -> dict[str, Any]:
        """What a checkpoint keeps beside the tables."""
        return {}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Goes on from ``state``."""
