"""Tables, figures and TensorBoard."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from torch_gas._util.text_table import text_table
from torch_gas.extensions.monitor.bound import LayerBound
from torch_gas.extensions.monitor.counts import LayerStatistics
from torch_gas.extensions.monitor.errors import LayerError

if TYPE_CHECKING:
    from matplotlib.figure import Figure

BARS = " ▁▂▃▄▅▆▇█"
MOST_LINES = 6  # of layers, in one picture


_ROUNDING = 1e-4
_EXACT = """Histories are exact, as they are right after an evaluation over a loader or the whole graph: this says
nothing about training. Measure after training steps, and before an evaluation."""


def statistics_table(layers: Sequence[LayerStatistics]) -> str:
    """A line for each history: ages of rows pulled from it, the hot ones, drift of those pushed to it and their rounding."""
    most = max((layer.age(1.0) for layer in layers), default=0)
    columns = {
        "history": [str(layer.layer) for layer in layers],
        "rows seen": [f"{layer.pulled:,}" for layer in layers],
        "never written": [percent(layer.never) for layer in layers],
        "age: median": [str(layer.age()) for layer in layers],
        "90 %": [str(layer.age(0.9)) for layer in layers],
        "oldest": [str(layer.age(1.0)) for layer in layers],
        f"ages 1 .. {most}": [_spark(layer.ages[1 : most + 1]) for layer in layers],
        "drift": [percent(layer.drift) for layer in layers],
    }
    if _are_rounded(layers):
        columns["storage error"] = [f"{100 * layer.storage:.2g} %" for layer in layers]
    if any(layer.hot > 0 for layer in layers):
        columns["hot"] = [percent(layer.hot) for layer in layers]
    return text_table(list(columns), zip(*columns.values(), strict=True))


def _are_rounded(layers: Sequence[LayerStatistics]) -> bool:
    """Whether a storage type cannot hold the rows as they are."""
    return not all(math.isnan(layer.storage) for layer in layers)


def errors_table(layers: Sequence[LayerError]) -> str:
    """A line for each layer; the last one says so where there is nothing to measure, as histories are exact."""
    lines = [(str(layer.layer), percent(layer.history), percent(layer.computed)) for layer in layers]
    lines[-1] = ("output", "", lines[-1][2])
    table = text_table(("layer", "error of history", "of batches"), lines)
    if len(layers) > 1 and all(layer.history < _ROUNDING for layer in layers):
        table += "\n" + _EXACT
    return table


def bound_table(layers: Sequence[LayerBound]) -> str:
    """A line for each layer."""
    header = ("layer", "gain", "staleness", "error", "bound", "theorem", "worst ratio", "gains are")
    return text_table(header, map(_bound_line, layers))


def _bound_line(layer: LayerBound) -> tuple[str, ...]:
    values = (layer.gain, layer.staleness, layer.measured, layer.bound, layer.theorem)
    numbers = ["" if value is None else f"{value:.3g}" for value in values]
    return (str(layer.layer), *numbers, percent(layer.worst), "estimated" if layer.estimated else "known")


def percent(share: float) -> str:
    """Such as ``12.5 %``."""
    return "-" if math.isnan(share) else f"{100 * share:.1f} %"


def _spark(values: Tensor, width: int = 16) -> str:
    """``values`` as small bars, several together where they are many."""
    if values.numel() == 0:
        return ""
    bars = [int(part.sum()) for part in values.tensor_split(min(width, values.numel()))]
    highest = max(max(bars), 1)
    return "".join(BARS[-(-value * (len(BARS) - 1) // highest)] for value in bars)


def figure(
    statistics: Sequence[LayerStatistics], errors: Sequence[LayerError] | None, bound: Sequence[LayerBound] | None
) -> Figure:
    """See :meth:`torch_gas.extensions.monitor.Monitor.figure`."""
    try:
        from matplotlib.figure import Figure
    except ImportError as error:
        raise ImportError("Monitor.figure needs matplotlib: pip install matplotlib") from error
    plots: list[Any] = [(_plot_ages, statistics), (_plot_changes, statistics, "drift")]
    plots += [(_plot_changes, statistics, "storage")] if _are_rounded(statistics) else []
    plots += [(plot, values) for plot, values in ((_plot_errors, errors), (_plot_bound, bound)) if values is not None]
    columns = 2 if len(plots) in (2, 4) else 3
    rows = -(-len(plots) // columns)
    drawn = Figure(figsize=(4.5 * columns, 3.3 * rows), layout="constrained")
    for i, (plot, *args) in enumerate(plots, 1):
        axes = drawn.add_subplot(rows, columns, i)
        plot(axes, *args)
        axes.grid(alpha=0.3)
        axes.spines[["top", "right"]].set_visible(False)
        axes.xaxis.get_major_locator().set_params(integer=True)  # type: ignore[call-arg]  # of matplotlib's default locator
        if axes.get_legend_handles_labels()[0]:
            axes.legend(frameon=False)
    return drawn


def _plot_ages(axes: Any, layers: Sequence[LayerStatistics]) -> None:
    step = -(-len(layers) // MOST_LINES) or 1
    for layer in layers[::step]:
        most, total = layer.age(1.0), max(int(layer.ages.sum()), 1)
        shares = 100 * layer.ages[: most + 1] / total
        axes.stairs(shares, torch.arange(most + 2, device="cpu") - 0.5, label=f"history {layer.layer}")
    axes.set(title="Ages of pulled rows", xlabel="optimiser steps", ylabel="share of rows [%]", ylim=(0, None))


def _plot_changes(axes: Any, layers: Sequence[LayerStatistics], name: str) -> None:
    title, label, color = {
        "drift": ("Drift of pushed rows", "change since the last push [%]", "tab:green"),
        "storage": ("Storage error of pushed rows", "change by rounding [%]", "tab:purple"),
    }[name]
    shares = [100 * getattr(layer, name) for layer in layers]
    axes.plot([layer.layer for layer in layers], shares, "o-", color=color)
    axes.set(title=title, xlabel="history", ylabel=label, ylim=(0, None))


def _plot_errors(axes: Any, layers: Sequence[LayerError]) -> None:
    numbers = [layer.layer for layer in layers]
    axes.plot(numbers[:-1], [100 * layer.history for layer in layers[:-1]], "s--", color="tab:gray", label="histories")
    axes.plot(numbers, [100 * layer.computed for layer in layers], "o-", color="tab:blue", label="rows of batches")
    axes.set(title="Distance to exact rows", xlabel="layer", ylabel="relative error [%]", ylim=(0, None))


def _plot_bound(axes: Any, layers: Sequence[LayerBound]) -> None:
    layers = layers[1:]  # the first reads exact features, and has no error
    numbers = [layer.layer for layer in layers]
    label = "bound, estimated" if any(layer.estimated for layer in layers) else "bound by node"
    axes.semilogy(numbers, [layer.bound for layer in layers], "v-", color="tab:orange", label=label)
    if all(layer.theorem is not None for layer in layers):
        axes.semilogy(numbers, [layer.theorem for layer in layers], "^:", color="tab:red", label="theorem")
    axes.semilogy(numbers, [layer.measured for layer in layers], "o-", color="tab:blue", label="measured")
    axes.set(title="Error and its bounds", xlabel="layer", ylabel="root mean square error of a row")


def summary_writer() -> Any:
    """A writer of TensorBoard's."""
    try:
        from torch.utils.tensorboard import SummaryWriter
    except ImportError as error:
        raise ImportError("Monitor.log needs TensorBoard: pip install tensorboard, or pass a writer") from error
    return SummaryWriter()
