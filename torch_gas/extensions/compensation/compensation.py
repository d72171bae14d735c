"""Compensation: what other batches found to be the gradient of a batch's rows, added to its own."""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from functools import partial
from typing import Any, Literal
from weakref import WeakKeyDictionary

import torch
from torch import Tensor
from torch.amp import GradScaler

from torch_gas._util.arguments import checked
from torch_gas.extensions.compensation.labels import LabelledRows
from torch_gas.extensions.compensation.passes import Log, Pass
from torch_gas.extensions.compensation.scale import Scale, unknown_scaler
from torch_gas.extensions.compensation.schedules import SCHEDULES
from torch_gas.extensions.compensation.trust import Auto, Fixed
from torch_gas.history import History
from torch_gas.session.call import Call
from torch_gas.session.extension import Extension
from torch_gas.session.model import HistoryModel
from torch_gas.wiring.compiled import is_called_compiled, is_compiled

Automatic = Literal["auto"]
Schedule = Literal["consumed", "swapped"]


class Compensation(Extension):
    r"""Has the gradients of batches not end at the rows that they take from histories.

    With histories, the forward pass is that of the whole graph, and the gradient of a batch is not: by the rows of the halo it
    is computed and dropped. Here it is added to a *gradient table* :math:`G^{(l)}`, one for each history, and the batch that
    computes these rows goes on from there:

    .. math::
        G^{(l)}_w &\leftarrow G^{(l)}_w + \frac{\partial \mathcal{L}_B}{\partial \bar h^{(l)}_w}
            && \text{for } w \in N(B) \setminus B \\
        \frac{\partial \mathcal{L}}{\partial h^{(l)}_v} &\approx \frac{\partial \mathcal{L}_B}{\partial h^{(l)}_v}
            + \beta^{(l)} G^{(l)}_v, \qquad G^{(l)}_v \leftarrow 0 && \text{for } v \in B

    By the chain rule, with exact histories, frozen parameters and :math:`\beta = 1`, gradients summed over epochs are those of
    the full batch, for any layer. While parameters move, rows of a table are as old as those of a history, and a path through k
    batches has waited k times; :math:`\beta` weighs them. https://arxiv.org/abs/2302.00924 compensates GCN and GCNII by
    computing rows of the halo as well; this needs no other layers and no further rows, and costs one table for each history, of
    its size in float32 or wider.

    Call ``backward()`` once for each batch, on the sum of its losses, also for a batch without labelled rows, whose sum over
    ``out[mask]`` is 0: it carries the gradient of others. All losses need one scale: :func:`torch_gas.labelled_mean`, or a sum
    over a constant. A mean over the batch's own labelled rows works where their numbers are alike, and minimises the sum of these
    means; there is a warning where numbers differ by more than 2. What ``torch.autograd.grad`` computes, for a
    penalty say, neither reads tables nor adds to them.

    Tables change when a backward pass is over, and not where it ends with an error or with numbers that are not finite. They
    are saved in checkpoints, and forgotten with the histories by ``model.reset_parameters()``.

    Args:
        trust: :math:`\beta`, in 0 .. 1, or ``"auto"``, by which it is decided for each history and step: see
            :class:`torch_gas.extensions.compensation.trust.Auto`.
        schedule: ``"consumed"`` for a table whose rows are cleared when they are read. ``"swapped"`` for two tables for each
            history, one of which is read while the other is added to, and which change places after each complete epoch; groups
            of parts should then stay the same, :class:`~torch_gas.SubgraphLoader` ``(regroup=False)``.
        scaler: what scales the loss, for float16. Tables hold gradients without its scale, and stay as they are where it skips a
            step.

    Attributes:
        trust, schedule, scaler: the same.

    Raises:
        ValueError: if ``trust`` is neither ``"auto"`` nor in 0 .. 1.
        RuntimeError: in a step, if the model is compiled or in one of several processes, if it returned nothing that has a
            gradient, or if a second backward pass comes.

    Example:
        >>> import torch.nn.functional as F
        >>> from torch_geometric.nn import GCN
        >>> from torch_gas import SubgraphLoader, labelled_mean, metis, permute, scale
        >>> from torch_gas.datasets import synthetic
        >>> from torch_gas.extensions import Compensation
        >>> data = synthetic(1000)
        >>> perm, ptr = metis(data, num_parts=8, backend="random", log=False)
        >>> data = permute(data, perm, log=False)
        >>> model = scale(GCN(data.num_features, 16, num_layers=3, out_channels=10), data)
        >>> model.add_extension(Compensation())
        >>> for batch in SubgraphLoader(data, ptr, shuffle=True):
        ...     mask, y = batch.train_mask[: batch.batch_size], batch.y[: batch.batch_size]
        ...     out = model(batch)
        ...     labelled_mean(F.cross_entropy(out[mask], y[mask], reduction="none"), batch).backward()
        >>> len(model.extensions[0].betas)  # of each history
        2
    """

    sums = True
    takes_part = True
    of_batches = True

    @checked
    def __init__(
        self,
        trust: float | Automatic = "auto",
        *,
        schedule: Schedule = "consumed",
        scaler: GradScaler | None = None,
    ) -> None:
        if (isinstance(trust, str) and trust != "auto") or (not isinstance(trust, str) and not 0 <= trust <= 1):
            raise ValueError(f'Compensation: trust must be "auto" or in 0 .. 1, but is {trust!r}')
        if schedule not in SCHEDULES:
            raise ValueError(f"Compensation: schedule must be one of {', '.join(SCHEDULES)}, but is {schedule!r}")
        self.trust, self.schedule, self.scaler = trust, schedule, scaler
        self._schedule = SCHEDULES[schedule]()
        self.tables = self._schedule.names
        self._trust = Auto() if trust == "auto" else Fixed(float(trust))
        self._checks_scaler = scaler is None
        self._begin()

    def _begin(self) -> None:
        self._passes: WeakKeyDictionary[Call, Pass] = WeakKeyDictionary()
        self._last: Pass | None = None
        self._log = Log()
        self._scale: Scale | None = None
        self._arrived: list[Pass] = []  # in the backward pass under way
        self._labelled = LabelledRows()

    @property
    def betas(self) -> list[float]:
        """:math:`\\beta` of each history in the last step, [L - 1]; empty before the first."""
        return self._trust.betas()

    # -- what the model tells ------------------------------------------------------------------------------------------

    def before(self, model: HistoryModel) -> None:
        self._log.finish()

    def begin(self, call: Call) -> None:
        """Begins a pass, where ``call`` is a training step on a batch."""
        if not call.is_step:
            return
        model = call.model
        _refuse(model)
        if self._last is not None and not self._last.is_used:
            warnings.warn(
                f"{model._name}: backward() was not called after the forward pass before this one, so that what other batches "
                "found has not gone through its batch. Call it for each batch, also for one without labelled rows, on a *sum* "
                "over out[mask], which is 0 there: labelled_mean(F.cross_entropy(out[mask], y[mask], reduction='none'), batch). "
                "Where nothing is to be learned, call the model under torch.no_grad()",
                stacklevel=2,
            )
        tables: Any = [model.extension_tables[name] for name in self.tables]
        read, add = self._schedule.begin([[each.table for each in layers] for layers in tables], call.record)
        self._passes[call] = Pass(self, call, read, add)

    def exchange(self, call: Call, history: History, rows: Tensor, pulled: Tensor) -> None:
        """Has the batch's rows get what the table holds for them."""
        passed = self._passes.get(call)
        if passed is not None and rows.requires_grad:
            passed.watch(_layer(call, history), rows)

    def output(self, call: Call, out: Any) -> Any:
        """Sees the backward pass begin."""
        passed = self._passes.get(call)
        if passed is None:
            return out
        out = passed.hang(out, call.joined)
        self._last = passed  # whose backward pass is to come
        return out

    def backward(self, call: Call, history: History, grad: Tensor) -> None:
        """Keeps the gradient of the halo's rows until the backward pass is over."""
        passed = self._passes.get(call)
        if passed is not None:
            passed.receive(_layer(call, history), grad)

    def epoch(self, number: int, complete: bool) -> None:
        """Swaps tables, where there are two; warns where losses have no common scale."""
        self._schedule.epoch()
        found = self._labelled.epoch()
        if found is not None:
            warnings.warn(f"Compensation: {found}", stacklevel=2)

    # -- what a pass tells ---------------------------------------------------------------------------------------------

    def arrives(self, passed: Pass, grads: Sequence[Tensor]) -> None:
        """Told that the backward pass of a step has begun."""
        self._check_scaler()
        self._scale = Scale(self.scaler, grads[0].device)
        # Without those of a backward pass that an error has ended.
        self._arrived = [*(each for each in self._arrived if each.is_under_way), passed]
        rows = [self._scale.remove(grad) for grad in grads if grad.shape[:1] == (passed.batch_size,)]
        self._labelled.add(rows)
        self._trust.step(rows, passed.num_batches, len(passed.read))

    def inject(self, passed: Pass, layer: int, rows: Tensor, grad: Tensor, own: Tensor) -> Tensor:
        """Adds rows of a table to the gradient that has arrived."""
        assert self._scale is not None
        own = self._scale.apply(own, grad.dtype)
        beta = self._trust.beta(layer, rows, grad, own)
        # In the memory of ``own``: new memory takes the time of another pass over it. Not with create_graph=True.
        out = None if torch.is_grad_enabled() else own
        if isinstance(beta, Tensor):
            return torch.addcmul(grad, own, beta.to(own.dtype), out=out)
        return torch.add(grad, own, alpha=beta, out=out)

    def finish(self, passed: Pass) -> None:
        """Changes the tables, now that the backward pass is over, for all forward passes that it went through at once.

        What one of them adds to rows of another is read by the step after, and so comes after these rows are cleared.
        """
        scale, self._scale = self._scale, None
        arrived, self._arrived = self._arrived, []
        if scale is None:
            return  # this was done with another one
        added = [(each, layer, grad) for each in arrived for layer, grad in each.added.items()]
        if not scale.is_finite([grad for *_, grad in added], passed.parameters):
            return
        changes = [change for each in arrived for change in self._schedule.changes(each)]
        for each, layer, grad in added:
            changes.append((each.add[layer], partial(each.add[layer].add, each.halo, scale.remove(grad))))
        self._log.add(changes)
        self._log.finish()

    def _check_scaler(self) -> None:
        """Warns, once, where losses may be scaled by something that nobody has told of."""
        if self._checks_scaler and unknown_scaler() is not None:
            warnings.warn(
                "Compensation: there is a GradScaler in this process. If it scales this loss, tell of it, "
                "Compensation(scaler=scaler): else tables hold gradients of different scales",
                stacklevel=2,
            )
        self._checks_scaler = False

    def scalars(self) -> dict[str, float]:
        return {f"compensation/{layer}/beta": beta for layer, beta in enumerate(self.betas, 1)}

    # -- state ---------------------------------------------------------------------------------------------------------

    def state_dict(self) -> dict[str, Any]:
        return {"trust": self._trust.state_dict(), "schedule": self._schedule.state_dict()}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        own = self.state_dict()
        if state.keys() != own.keys() or state["schedule"].keys() != own["schedule"].keys():
            raise ValueError(
                "Compensation.load_state_dict: this is not the state of a Compensation of the same schedule; make it as it was"
            )
        if bool(state["trust"]) != bool(own["trust"]):
            raise ValueError(
                f"Compensation.load_state_dict: trust is {self.trust!r} here, and the state is of one that decides in another "
                "way; make it as it was"
            )
        self._trust.load_state_dict(state["trust"])
        self._schedule.load_state_dict(state["schedule"])
        self._begin()

    def __getstate__(self) -> dict[str, Any]:
        passing = ("_passes", "_last", "_log", "_scale", "_arrived", "_labelled")  # a copy belongs to no call
        return {name: value for name, value in vars(self).items() if name not in passing}

    def __setstate__(self, state: dict[str, Any]) -> None:
        vars(self).update(state)
        self._begin()

    def __repr__(self) -> str:
        betas = ", ".join(f"{beta:.2f}" for beta in self.betas)
        return f"Compensation(trust={self.trust!r}, schedule={self.schedule!r}, betas=[{betas}])"


def _layer(call: Call, history: History) -> int:
    return [each is history for each in call.model.histories].index(True)


def _refuse(model: HistoryModel) -> None:
    """Raises RuntimeError where gradients of the halo would be lost."""
    if is_called_compiled() or any(map(is_compiled, model.modules())):
        raise RuntimeError(
            f"{model._name}: torch.compile computes no gradients of rows that come from histories; call the model as it is, or "
            "remove the Compensation"
        )
    if (
        torch.distributed.is_available()
        and torch.distributed.is_initialized()
        and torch.distributed.get_world_size() > 1
    ):
        raise RuntimeError(
            f"{model._name}: Compensation keeps gradients in the tables of one process, where those of other processes' rows "
            "would stay; train in one process, or remove the Compensation"
        )
