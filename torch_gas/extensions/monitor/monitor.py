"""Monitor: how old and how wrong the histories of a model are."""

from __future__ import annotations

import copy
import math
import random
import textwrap
import warnings
from dataclasses import asdict
from functools import partial
from typing import TYPE_CHECKING, Any, NamedTuple

from torch import Tensor
from torch.nn import Module

from torch_gas._util.arguments import checked
from torch_gas.batch.loader import SubgraphLoader
from torch_gas.extensions.monitor import report
from torch_gas.extensions.monitor.bound import LayerBound, layer_bounds
from torch_gas.extensions.monitor.counts import Counts, LayerStatistics, Sums, count_exchange, evenly_spread
from torch_gas.extensions.monitor.errors import GradientError, LayerError, Loss, gradient_error, layer_errors
from torch_gas.history import History
from torch_gas.session.call import Call
from torch_gas.session.extension import Extension
from torch_gas.session.model import HistoryModel

if TYPE_CHECKING:
    from matplotlib.figure import Figure

CHECK_EVERY = 32  # steps that were looked at, after which limits are


class Limits(NamedTuple):
    """Beyond which a monitor warns.

    Args:
        drift: change of a history's rows from one push to the next, relative to their norm. Rows of equal norm that have
            nothing to do with each other differ by 1.41.
        age: median age of pulled rows, in passes over all nodes.
        never: share of pulled rows that had never been written.
    """

    drift: float = 1.4
    age: float = 2.0
    never: float = 0.25


DEFAULT_LIMITS = Limits()


class Monitor(Extension):
    r"""Watches the histories of a model while it trains, and measures their errors on request.

    It counts, at each exchange of a training step and for a sample of the rows: how old the rows are that are pulled, how many
    of them were never written, how far the rows that are pushed are from those that they replace (drift), and what the storage
    type takes from them. Training goes on bit for bit as it would, and no device is waited for. A model that is pickled or copied
    leaves its monitor behind.

    Args:
        model: the model. Training is counted from now on, until :meth:`detach`, the end of a
            ``with`` block, or the end of the monitor itself: keep a reference to it.
        sample: the most rows of batch and halo that are looked at in each exchange.
        every: one step in so many is looked at, chosen at random; 1 for each.
        limits: beyond which the monitor warns, once for each of them; None to never warn.

    Raises:
        TypeError: if ``model`` is no :class:`~torch_gas.ScalableGNN`.
        ValueError: if ``sample`` or ``every`` is below 1.

    Example:
        >>> from torch_gas import Monitor, SubgraphLoader, gcn_norm, metis, permute
        >>> from torch_gas.datasets import synthetic
        >>> from torch_gas.models import GCN
        >>> data = gcn_norm(synthetic(1000))
        >>> perm, ptr = metis(data, num_parts=8, log=False)
        >>> data = permute(data, perm, log=False)
        >>> model = GCN(data.num_nodes, data.num_features, 16, 10, num_layers=3)
        >>> loader = SubgraphLoader(data, ptr, batch_size=2, shuffle=True)
        >>> with Monitor(model, every=1) as monitor:
        ...     for batch in loader:
        ...         loss = model(batch).square().mean()
        >>> monitor.steps
        4
        >>> [layer.layer for layer in monitor.statistics()]
        [1, 2]
        >>> all(0 <= error.computed <= 1 for error in monitor.errors(loader))
        True
        >>> all(layer.measured <= layer.bound for layer in monitor.bound(loader))
        True
    """

    @checked
    def __init__(
        self, model: Module, *, sample: int = 256, every: int = 8, limits: Limits | None = DEFAULT_LIMITS
    ) -> None:
        model = getattr(model, "_orig_mod", model)  # what torch.compile wraps
        if not isinstance(model, HistoryModel):
            raise TypeError(
                f"Monitor takes a model with histories (a ScalableGNN or what scale() returned), but got {type(model).__name__}"
            )
        for name, value in (("sample", sample), ("every", every)):
            if value < 1:
                raise ValueError(f"Monitor: {name} must be at least 1, but is {value}")
        self.model, self.limits = model, limits
        self._sample, self._every = sample, every
        self._warned: set[str] = set()
        self._writer: Any = None
        self._is_sampled = False  # whether the exchanges of this step are looked at
        self.reset()
        self.attach()

    # -- watching ------------------------------------------------------------------------------------------------------

    def attach(self) -> None:
        """Goes on counting after :meth:`detach`."""
        if self not in self.model.extensions:
            self.model.add_extension(self, keep=False)

    def detach(self) -> None:
        """Stops counting; what was counted stays."""
        if self in self.model.extensions:
            self.model.remove_extension(self)

    def __enter__(self) -> Monitor:
        self.attach()
        return self

    def __exit__(self, *error: object) -> None:
        self.detach()

    def reset(self) -> None:
        """Forgets what was counted."""
        self._counts, self._logged, self._checked = Counts(), Counts(), Counts()
        self._random = random.Random(0)  # its own, so that those of the user go on as they would

    def state_dict(self) -> dict[str, Any]:
        """What was counted, and from which steps and rows the next are chosen."""
        counts = {"all": self._counts, "logged": self._logged, "checked": self._checked}
        return {
            "counts": {name: asdict(each) for name, each in counts.items()},
            "random": self._random.getstate(),
            "warned": sorted(self._warned),
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Goes on counting from ``state``, which belongs to a model with the same histories."""
        histories = list(self.model.histories)
        if state.keys() != {"counts", "random", "warned"}:
            raise ValueError("Monitor.load_state_dict: this is not what state_dict() of a monitor returned")
        if not all(number < len(histories) for counts in state["counts"].values() for number in counts["sums"]):
            raise ValueError(
                f"Monitor.load_state_dict: the state counts other histories than the {len(histories)} of this model; make it "
                "as it was"
            )
        counts = {name: Counts.from_state(each, histories) for name, each in state["counts"].items()}
        warned, chance = set(state["warned"]), random.Random()
        chance.setstate(state["random"])  # the last that may be refused, and then has changed a part
        self._counts, self._logged, self._checked = counts["all"], counts["logged"], counts["checked"]
        self._warned, self._random = warned, chance

    def begin(self, call: Call) -> None:
        """Counts a training step."""
        self._is_sampled = False
        if not call.is_step or call.n_id is None:
            return
        counts = self._counts
        if self.limits is not None and counts.observed - self._checked.observed >= CHECK_EVERY:
            self._warn()
            self._checked = copy.deepcopy(counts)
        num_rows = call.n_id.numel()
        batch_size = num_rows if call.batch_size is None else call.batch_size
        counts.steps += 1
        counts.batch_rows += batch_size
        counts.halo_rows += num_rows - batch_size
        self._is_sampled = self._every == 1 or self._random.randrange(self._every) == 0
        counts.observed += self._is_sampled

    def exchange(self, call: Call, history: History, rows: Tensor, pulled: Tensor) -> None:
        """Counts what the rows of an exchange tell."""
        if self._is_sampled and call.n_id is not None:
            number, sums = list(self.model.histories).index(history), self._counts.sums
            if number not in sums:
                sums[number] = Sums.zeros(history)
            choose = partial(evenly_spread, most=self._sample, generator=self._random)
            count_exchange(sums[number], history, rows, call.n_id, choose)

    # -- what was counted ----------------------------------------------------------------------------------------------

    @property
    def steps(self) -> int:
        """Training steps on batches."""
        return self._counts.steps

    @property
    def halo_ratio(self) -> float:
        """Halo rows for each row of a batch, S / B; nan before the first step."""
        return self._counts.halo_ratio

    def statistics(self) -> list[LayerStatistics]:
        """What was counted of each history that was used."""
        return self._counts.statistics()

    def advice(self) -> list[str]:
        """What is beyond the limits, and what to do about it."""
        return list(self._advice(self._counts).values())

    def _advice(self, counts: Counts) -> dict[str, str]:
        limits, layers = self.limits or DEFAULT_LIMITS, counts.statistics()
        if counts.steps == 0 or not layers:
            return {}
        sweep = self.model.num_nodes * counts.steps / max(counts.batch_rows, 1)
        never, age = max(layers, key=lambda layer: layer.never), max(layers, key=lambda layer: layer.age())
        drift = max(layers, key=lambda layer: 0.0 if math.isnan(layer.drift) else layer.drift)
        found = {}
        if never.never > limits.never:
            found["never"] = (
                f"{100 * never.never:.0f} % of the rows pulled from history {never.layer} had never been written: fill the "
                "histories by an exact pass before training, and let batches of each epoch hold all nodes"
            )
        if age.age() > limits.age * sweep:
            found["age"] = (
                f"rows pulled from history {age.layer} are {age.age()} steps old in the median, though {sweep:.0f} steps see "
                "all nodes: let batches of each epoch hold all nodes, or refresh the histories"
            )
        if drift.drift > limits.drift:
            found["drift"] = (
                f"rows of history {drift.layer} change by {100 * drift.drift:.0f} % of their norm from one push to the next: "
                "refresh the histories, put more parts into a batch, lower the learning rate, or regularise"
            )
        return found

    def _warn(self) -> None:
        for limit, text in self._advice(self._counts.since(self._checked)).items():
            if limit not in self._warned:
                self._warned.add(limit)
                warnings.warn(f"Monitor of {self.model._name}, step {self.steps}: {text}", UserWarning, stacklevel=2)

    # -- what is measured ----------------------------------------------------------------------------------------------

    def errors(self, loader: SubgraphLoader, *, whole: bool = False) -> list[LayerError]:
        """Errors of the histories, and of what batches compute with them, against the exact rows.

        In evaluation mode. Model, histories and random numbers stay as they are. Takes the memory of another set of histories, on
        the host. Call it after training steps and before an evaluation of the whole graph, which makes histories exact: right
        after it, all errors are 0.

        Args:
            loader: batches of the model's graph; those of its next epoch are measured.
            whole: whether the exact rows come from one pass over the whole graph, which is faster for deep models but takes the
                memory of full-batch inference, and not from layer-wise inference over ``loader``.

        Returns:
            One entry for each layer, the output last.
        """
        return layer_errors(self.model, loader, whole)

    def gradient_error(self, loader: SubgraphLoader, loss: Loss) -> GradientError:
        """The gradient that batches give with the histories as they are, summed up, against the full-batch gradient.

        In evaluation mode: dropout does nothing, and batch norm uses its running statistics. Model, histories, gradients and
        random numbers stay as they are. The full-batch gradient is computed by :class:`~torch_gas.ExactGradient`, in the memory
        of a batch; histories and their gradients lie in host memory meanwhile.

        Args:
            loader: batches of the model's graph, which together hold each node once.
            loss: ``loss(out, data)``, a *sum* over nodes, of what ``forward`` returned for a batch. Rows of ``data`` begin with
                those of ``out``.

        Returns:
            The errors, which are printed with a line for each layer.

        Raises:
            ValueError: if ``loss`` is no sum over nodes, or as :meth:`~torch_gas.ExactGradient.backward` does.

        Example:
            >>> import torch.nn.functional as F
            >>> def loss(out, data):
            ...     mask = data.train_mask[: out.size(0)]
            ...     return F.cross_entropy(out[mask], data.y[: out.size(0)][mask], reduction="sum")
        """
        return gradient_error(self.model, loader, loss)

    def bound(self, loader: SubgraphLoader, *, whole: bool = True) -> list[LayerBound]:
        r"""The theoretical bound of the error that histories cause, next to that error.

        A layer enlarges errors by its Lipschitz constants. With :math:`k_1` of messages, :math:`k_2` of the update with regard to
        aggregated messages and :math:`k_0` with regard to the node's own row (see ``extensions.monitor.gains``), a batch's row
        differs from the exact one by at most

        .. math::
            \delta_v^{(l)} = k_0 \delta_v^{(l-1)} + k_1 k_2 \Big( \sum_{w \in N(v) \cap B} |a_{vw}| \, \delta_w^{(l-1)}
            + \sum_{w \in N(v) \setminus B} |a_{vw}| \, \|\bar h_w^{(l-1)} - h_w^{(l-1)}\| \Big), \qquad \delta^{(0)} = 0.

        That is Lemma 1 of https://arxiv.org/abs/2106.05609, node by node and with the staleness that was measured. Its Theorem 2
        follows with the largest values of all nodes: :math:`\sum_j \epsilon^{(j)} \prod_{l > j} G^{(l)}`, where
        :math:`G = k_0 + k_1 k_2 \max_v \sum_w |a_{vw}|`; that sum is the number of neighbours for sums, and 1 for means.

        The constants of the shipped GCN, SAGE, GIN, GCN2 and APPNP are known. For other models, the largest singular value
        of each layer's Jacobian is estimated at the rows that a batch read, and bounds are those of whole batches; they are
        labelled as estimated. All is computed in float64, so that rounding is no part of the error.

        Args:
            loader: batches of the model's graph.
            whole: as in :meth:`errors`.

        Returns:
            One entry for each layer, the output last.
        """
        return layer_bounds(self.model, loader, whole)

    # -- reports -------------------------------------------------------------------------------------------------------

    def table(self) -> str:
        """What was counted, as text."""
        head = f"Monitor of {self.model._name}: {self.steps:,} training steps, halo ratio S / B {self.halo_ratio:.2f}"
        others = [f"{name}: {value:.3g}" for name, value in self._of_others().items()]
        return "\n".join([head, report.statistics_table(self.statistics()), *others, *map(_remedy, self.advice())])

    __str__ = table

    def _of_others(self) -> dict[str, float]:
        """Numbers of other extensions of the model."""
        return {name: value for extension in self.model.extensions for name, value in extension.scalars().items()}

    def figure(self, errors: list[LayerError] | None = None, bound: list[LayerBound] | None = None) -> Figure:
        """What was counted, and what :meth:`errors` and :meth:`bound` returned, as a figure of matplotlib's.

        Raises:
            ImportError: if matplotlib is not installed.
        """
        return report.figure(self.statistics(), errors, bound)

    def log(self, step: int, writer: Any = None) -> None:
        """Writes what was counted since the last call to TensorBoard.

        Args:
            step: the step that numbers are shown at.
            writer: a ``torch.utils.tensorboard.SummaryWriter``; by default a new one, which writes to ``runs/``.

        Raises:
            ImportError: if no writer is given, and TensorBoard is not installed.
        """
        if writer is None:
            self._writer = writer = self._writer or report.summary_writer()
        new = self._counts.since(self._logged)
        if new.steps > 0:
            writer.add_scalar("histories/halo_ratio", new.halo_ratio, step)
        for layer in new.statistics():
            for name, value in (("median_age", layer.age()), ("never_written", layer.never), ("drift", layer.drift)):
                writer.add_scalar(f"histories/{layer.layer}/{name}", value, step)
            if not math.isnan(layer.storage):
                writer.add_scalar(f"histories/{layer.layer}/storage_error", layer.storage, step)
        for name, value in self._of_others().items():
            writer.add_scalar(name, value, step)
        self._logged = copy.deepcopy(self._counts)


def _remedy(advice: str) -> str:
    return textwrap.fill(advice, 100, initial_indent="! ", subsequent_indent="  ")
