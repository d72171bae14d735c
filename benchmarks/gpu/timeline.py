"""What ran on which stream, and when: the picture of the paper's Figure 2, from events of torch's profiler.

A library for step.py. The profiler tells of each kernel and copy when and on which stream it ran, and when the host
launched it. What it was for follows from where the host was at that moment: in a pull or a push, in forward, backward or
the optimiser.
"""

from __future__ import annotations

import functools
import json
import os
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple

import torch
from common import synchronize
from matplotlib import pyplot as plt
from matplotlib.patches import Patch
from torch.profiler import ProfilerActivity, profile, record_function
from workload import train_step

from torch_gas import ScalableGNN, SubgraphLoader, _core

# The profiler announces each start and stop on stderr otherwise.
os.environ.setdefault("KINETO_LOG_LEVEL", "6")

MOVES = {"gather_rows": "pull", "read_chunks": "pull", "scatter_rows": "push", "write_chunks": "push"}
PHASES = ("forward", "backward", "optimizer")
COLORS = {
    "forward": "tab:green",
    "backward": "tab:olive",
    "optimizer": "tab:brown",
    "pull": "tab:blue",
    "push": "tab:orange",
    "batch": "tab:purple",
}
LABELS = {**{kind: kind for kind in COLORS}, "batch": "copy of a batch or ids"}
LANES = {"pull": "pulls", "push": "pushes", "batch": "batches"}


class Bar(NamedTuple):
    """Something that ran on the device (or, without one, on the host).

    Args:
        stream: where it ran.
        start, end: when, in milliseconds.
        kind: what it was for, a key of ``COLORS``.
    """

    stream: str
    start: float
    end: float
    kind: str


def record_steps(
    model: ScalableGNN, optimizer: torch.optim.Optimizer, loader: SubgraphLoader, device: torch.device
) -> list[Bar]:
    """The bars of three steps in the middle of an epoch of at least four."""
    first = len(loader) // 2 - 1
    activities = [ProfilerActivity.CPU] + [ProfilerActivity.CUDA] * (device.type == "cuda")
    profiler = profile(activities=activities)
    for step, batch in enumerate(loader):
        if step == first:
            synchronize(device)
            profiler.start()
        with _moves_annotated():
            train_step(model, optimizer, batch)
        if step == first + 2:
            synchronize(device)
            profiler.stop()
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder, "trace.json")
        profiler.export_chrome_trace(str(path))
        events = json.loads(path.read_text())["traceEvents"]
    return bars_of(events)


@contextmanager
def _moves_annotated() -> Iterator[None]:
    """Lets the profiler see when the host asks the core to move rows."""
    plain = {name: getattr(_core, name) for name in MOVES}

    def annotated(name: str) -> Any:
        @functools.wraps(plain[name])
        def call(*args: Any, **kwargs: Any) -> Any:
            with record_function(MOVES[name]):
                return plain[name](*args, **kwargs)

        return call

    for name in MOVES:
        setattr(_core, name, annotated(name))
    try:
        yield
    finally:
        for name, function in plain.items():
            setattr(_core, name, function)


def bars_of(events: list[dict[str, Any]]) -> list[Bar]:
    """The bars of a trace in Chrome's format, from time 0 on; those of the host where nothing ran on a GPU."""
    spans = [e for e in events if e.get("ph") == "X"]
    marks = [e for e in spans if e.get("cat") == "user_annotation" and e["name"] in (*PHASES, "pull", "push")]
    launches = {
        e["args"]["correlation"]: e
        for e in spans
        if e.get("cat") in ("cuda_runtime", "cuda_driver") and "correlation" in e.get("args", {})
    }
    works = [e for e in spans if e.get("cat") in ("kernel", "gpu_memcpy", "gpu_memset")]
    bars = []
    for work in works:
        launch = launches.get(work["args"].get("correlation"))
        kind = None if launch is None else _kind(work, launch, marks)
        if kind is not None:
            bars.append(_bar(f"stream {work['args']['stream']}", work, kind))
    if not works:
        bars = [_bar("host", mark, mark["name"]) for mark in marks]
    zero = min((bar.start for bar in bars), default=0.0)
    return sorted(bar._replace(start=bar.start - zero, end=bar.end - zero) for bar in bars)


def _bar(stream: str, event: dict[str, Any], kind: str) -> Bar:
    return Bar(stream, event["ts"] / 1e3, (event["ts"] + event["dur"]) / 1e3, kind)


def _kind(work: dict[str, Any], launch: dict[str, Any], marks: list[dict[str, Any]]) -> str | None:
    """What a kernel or copy was for; None if it was launched outside of all steps."""
    around = [m for m in marks if m["ts"] <= launch["ts"] <= m["ts"] + m["dur"]]
    for mark in around:
        if mark["name"] not in PHASES and mark["tid"] == launch["tid"]:
            return str(mark["name"])
    if work["cat"] == "gpu_memcpy" and "HtoD" in work["name"]:
        return "batch"
    # The backward pass launches from a thread of its own, while the one that called it waits.
    return next((str(mark["name"]) for mark in around if mark["name"] in PHASES), None)


def draw_timeline(bars: dict[str, list[Bar]]) -> Any:
    """Streams as lanes over time, a panel for each way to run the steps, all on one scale."""
    lanes = {title: _lanes(each) for title, each in bars.items()}
    heights = [len(names) + 0.8 for names in lanes.values()]
    figure, panels = plt.subplots(
        len(bars), 1, figsize=(12, 1.3 + 0.55 * sum(heights)), sharex=True, layout="constrained", squeeze=False,
        gridspec_kw={"height_ratios": heights},
    )  # fmt: skip
    for axes, (title, each) in zip(panels[:, 0], bars.items(), strict=True):
        for row, stream in enumerate(lanes[title]):
            for kind, color in COLORS.items():
                spans = [(bar.start, bar.end - bar.start) for bar in each if (bar.stream, bar.kind) == (stream, kind)]
                axes.broken_barh(spans, (row - 0.4, 0.8), facecolors=color, linewidth=0)
        axes.set_yticks(range(len(lanes[title])), list(lanes[title].values()))
        axes.set_ylim(len(lanes[title]) - 0.4, -0.6)
        axes.set_title(f"{title}: {max(bar.end for bar in each):.1f} ms for three steps", loc="left")
        axes.grid(axis="x", alpha=0.3)
        axes.set_axisbelow(True)
        axes.spines[["top", "right"]].set_visible(False)
    panels[-1, 0].set_xlabel("ms")
    kinds = [kind for kind in COLORS if any(bar.kind == kind for each in bars.values() for bar in each)]
    handles = [Patch(color=COLORS[kind], label=LABELS[kind]) for kind in kinds]
    figure.legend(handles=handles, loc="outside lower center", ncols=len(kinds), frameon=False)
    return figure


def _lanes(bars: list[Bar]) -> dict[str, str]:
    """Streams and what to call them, by what they did most: the one that computes first, then pulls, pushes, batches."""
    names = {}
    for stream in {bar.stream for bar in bars}:
        busy = dict.fromkeys(COLORS, 0.0)
        for bar in bars:
            if bar.stream == stream:
                busy[bar.kind] += bar.end - bar.start
        names[stream] = "compute" if any(busy[phase] for phase in PHASES) else LANES[max(busy, key=busy.__getitem__)]
    order = ["compute", *LANES.values()]
    return {stream: names[stream] for stream in sorted(names, key=lambda s: (order.index(names[s]), s))}
