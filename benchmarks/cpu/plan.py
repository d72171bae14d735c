"""How near are the predictions of plan() to what training then takes?

Memory of a step, halos, traffic with histories and steps an epoch, predicted from a few small steps and measured over an epoch
of training: four models on a community graph and on real graphs (from the folder that TORCH_GAS_DATA names), for a memory limit
that the whole graph fits in, a half and an eighth of what it takes.
"""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Iterator
from functools import partial
from typing import Any, NamedTuple

import torch
from bench import arguments, machine, parse, save
from matplotlib import pyplot as plt
from shared import save_picture, table
from torch import Tensor
from torch_geometric.data import Data

from torch_gas import (
    ScalableGNN,
    SubData,
    SubgraphLoader,
    add_self_loops,
    gcn_norm,
    get_data,
    in_degree,
    metis,
    permute,
    plan,
)
from torch_gas.datasets import synthetic
from torch_gas.graph.formats import all_tensors
from torch_gas.models import GAT, GCN, GCN2, PNA
from torch_gas.planner.meter import metered

REAL = ("Cora", "Coauthor-CS", "WordNet")
MODELS = ("GCN", "GAT", "PNA", "GCNII")
SHARES = (2, 8)  # of the memory of the whole graph: a half and an eighth
CPU = torch.device("cpu")
COLORS = dict(zip(MODELS, ("tab:blue", "tab:orange", "tab:green", "tab:red"), strict=True))
MARKERS = "osD^"


class Setting(NamedTuple):
    """Sizes of the community graph and of the models."""

    num_nodes: int
    avg_degree: float
    channels: int
    num_layers: int
    deep_layers: int  # of GCNII


FULL_SIZE = Setting(50_000, 21.5, 64, num_layers=3, deep_layers=16)
TINY = Setting(2000, 8.0, 16, num_layers=2, deep_layers=3)


class Took(NamedTuple):
    """What an epoch took: device memory at its peak and rows exchanged with histories in bytes, and the number of steps."""

    peak: int
    exchanged: int
    steps: int


def graphs(setting: Setting, quick: bool) -> Iterator[tuple[str, Data]]:
    """The graphs that there are, with class ids."""
    root = os.environ.get("TORCH_GAS_DATA")
    if root is None or quick:
        print("real graphs are left out: a quick run, or TORCH_GAS_DATA names no folder of data sets", flush=True)
    else:
        for name in REAL:
            try:
                data, *_ = get_data(root, name, layout="edge_index")
            except FileNotFoundError as error:
                print(f"{name} is left out: {error}", flush=True)
            else:
                yield name, Data(x=data.x, y=data.y, edge_index=data.edge_index)
    data = synthetic(setting.num_nodes, avg_degree=setting.avg_degree)
    yield "community", Data(x=data.x, y=data.y, edge_index=data.edge_index)


def prepared(name: str, data: Data) -> Data:
    """The graph as the model takes it."""
    if name in ("GCN", "GCNII"):
        return gcn_norm(data)
    return add_self_loops(data) if name == "GAT" else data


def make(name: str, data: Data, setting: Setting) -> ScalableGNN:
    """The model of that name."""
    torch.manual_seed(0)
    sizes = (data.num_nodes, data.num_features)
    hidden, classes, num_layers = setting.channels, int(data.y.max()) + 1, setting.num_layers
    if name == "GAT":
        return GAT(*sizes, hidden // 8, 8, classes, 1, num_layers, dropout=0.5)
    if name == "PNA":
        deg = in_degree(data.edge_index, data.num_nodes)
        return PNA(*sizes, hidden, classes, num_layers, ["mean", "max"], ["identity"], deg, batch_norm=True)
    if name == "GCNII":
        return GCN2(*sizes, hidden, classes, setting.deep_layers, 0.1, 0.5, dropout=0.5)
    return GCN(*sizes, hidden, classes, num_layers, dropout=0.5, batch_norm=True)


def train(model: ScalableGNN, data: Data, ptr: Tensor, batch_size: int) -> Took:
    """Two epochs, of which the second is measured, because the optimiser has its state by then."""
    loader = SubgraphLoader(data, ptr, batch_size, shuffle=True, seed=0, prefetch=0, cache_size=0)
    optimizer = torch.optim.Adam(model.parameters())
    exchanged = _count_exchange(model)
    for _ in range(2):
        exchanged["bytes"], peaks = 0, []
        for batch in loader:
            optimizer.zero_grad()
            inputs = sum(tensor.nbytes for tensor in all_tensors(batch.data.to_dict()))
            peaks.append(inputs + metered(partial(_step, model, optimizer, batch), CPU).peak)
    held = 3 * sum(parameter.nbytes for parameter in model.parameters())  # with the optimiser's state
    return Took(held + max(peaks), exchanged["bytes"], len(peaks))


def halo_ratio(data: Data, ptr: Tensor, batch_size: int, epochs: int = 8) -> float:
    """S / B of the batches of some epochs."""
    graph = Data(edge_index=data.edge_index, perm=data.perm, num_nodes=data.num_nodes)
    loader = SubgraphLoader(graph, ptr, batch_size, shuffle=True, seed=0)
    return sum(batch.halo_size for _ in range(epochs) for batch in loader) / (epochs * data.num_nodes)


def _step(model: ScalableGNN, optimizer: torch.optim.Optimizer, batch: SubData) -> None:
    out = model(batch)
    torch.nn.functional.cross_entropy(out, batch.data.y[: batch.batch_size]).backward()
    optimizer.step()


def _count_exchange(model: ScalableGNN) -> dict[str, int]:
    """Counts bytes of table rows that are pushed and pulled, under ``"bytes"``."""
    exchanged = {"bytes": 0}

    def counted(function: Callable[..., Any], row_bytes: int) -> Callable[..., Any]:
        def call(rows_or_ids: Tensor, *args: Any, **kwargs: Any) -> Any:
            exchanged["bytes"] += rows_or_ids.size(0) * row_bytes
            return function(rows_or_ids, *args, **kwargs)

        return call

    for history in model.histories:
        history.write = counted(history.write, history.table.row_bytes)
        history.table.read = counted(history.table.read, history.table.row_bytes)
    return exchanged


def compare(graph: str, name: str, data: Data, setting: Setting, share: int, limit: int | str) -> dict[str, Any]:
    """A plan for a memory limit beside an epoch of it; ``share`` of the whole graph's memory, 1 for no limit."""
    start = time.perf_counter()
    chosen = plan(data, make(name, data, setting), device_memory=limit, prefetch=0)
    seconds = time.perf_counter() - start
    perm, ptr = metis(data, chosen.num_parts, log=False)
    data = permute(data, perm, log=False)
    took = train(make(name, data, setting), data, ptr, chosen.batch_size)
    assert took.steps == chosen.steps
    exchange = chosen.steps * (chosen.pushed_bytes + chosen.pulled_bytes)
    return {
        "graph": graph,
        "model": name,
        "limit": "none" if share == 1 else f"1/{share}",
        "parts": chosen.num_parts,
        "in a batch": chosen.batch_size,
        "steps": chosen.steps,
        "planned S / B": f"{chosen.halo_ratio:.3f}",
        "S / B": f"{halo_ratio(data, ptr, chosen.batch_size):.3f}",
        "planned exchange, MB": exchange / 1e6,
        "exchange, MB": took.exchanged / 1e6,
        "limit, MB": "none" if share == 1 else f"{chosen.device_memory / 1e6:.3g}",
        "planned peak, MB": chosen.peak_memory / 1e6,
        "peak, MB": took.peak / 1e6,
        "planned - peak, %": f"{100 * (chosen.peak_memory / took.peak - 1):+.1f}",
        "plan(), s": seconds,
    }


def draw(rows: list[dict[str, Any]]) -> Any:
    """Predicted over measured memory and halos: good predictions lie on the diagonal."""
    figure, both = plt.subplots(1, 2, figsize=(11, 5), layout="constrained")
    names = list(dict.fromkeys(row["graph"] for row in rows))
    columns = (("peak, MB", "Peak memory of a step, MB"), ("S / B", "Halo ratio S / B"))
    for axes, (column, title) in zip(both, columns, strict=True):
        shown = [row for row in rows if float(row[column]) > 0]
        for row in shown:
            marker, color = MARKERS[names.index(row["graph"])], COLORS[row["model"]]
            axes.plot(float(row[column]), float(row[f"planned {column}"]), marker, color=color, alpha=0.8)
        values = [float(row[key]) for row in shown for key in (column, f"planned {column}")] or [1.0]
        ends = torch.tensor([0.8 * min(values), 1.25 * max(values)])
        axes.plot(ends, ends, color="black", linewidth=0.8)
        axes.fill_between(ends, 0.9 * ends, 1.1 * ends, color="tab:gray", alpha=0.2, linewidth=0)
        axes.set(xscale="log", yscale="log", xlabel="measured", ylabel="predicted (grey: within 10 %)", title=title)
        axes.set(xlim=ends.tolist(), ylim=ends.tolist())
        ticks = [
            tick * 10**power for power in range(-3, 6) for tick in (1, 2, 5) if ends[0] <= tick * 10**power <= ends[1]
        ]
        for set_ticks in (axes.set_xticks, axes.set_yticks):
            set_ticks(ticks, [f"{tick:,g}" for tick in ticks])
        axes.minorticks_off()
        axes.grid(alpha=0.3)
        axes.spines[["top", "right"]].set_visible(False)
    handles = [plt.Line2D([], [], color=color, label=name, linewidth=4) for name, color in COLORS.items()]
    handles += [
        plt.Line2D([], [], color="black", marker=marker, linestyle="", label=name)
        for name, marker in zip(names, MARKERS, strict=False)
    ]
    figure.legend(handles=handles, frameon=False, loc="outside lower center", ncols=len(handles))
    return figure


def main() -> None:
    args = parse(arguments(__doc__))
    record = machine()
    setting = TINY if args.quick else FULL_SIZE
    rows = []
    for graph, plain in graphs(setting, args.quick):
        for name in MODELS:
            data = prepared(name, plain)
            rows.append(compare(graph, name, data, setting, 1, "1 TiB"))
            whole = 1e6 * rows[-1]["planned peak, MB"]
            rows += [compare(graph, name, data, setting, share, round(whole / share)) for share in SHARES]
            print(*rows[-1 - len(SHARES) :], sep="\n", flush=True)
    save_picture(draw(rows), args.out, "plan")
    errors = [abs(float(row["planned - peak, %"])) for row in rows]
    note = (
        f"{setting.channels} hidden channels, {setting.num_layers} layers ({setting.deep_layers} in GCNII), Adam; METIS parts. "
        "Limit: a share of the planned peak of the whole graph, of which a tenth is left free. Peak, measured: the largest of an "
        "epoch over shuffled batches, none made ahead: parameters, the optimiser's state, the batch, and what a step allocates, "
        "as torch's profiler counts tensors; graph and histories are no part of it. Planned: that of the largest of four epochs' "
        "batches. S / B: of eight epochs. Exchange: rows pushed to histories and pulled from them in the epoch. Planned peaks "
        f"are off by {sum(errors) / len(errors):.1f} % on average, {max(errors):.1f} % at most. plan(), s: beside other work."
    )
    save(args, "plan", __doc__, record, [table("Predicted and measured", rows, note)])


if __name__ == "__main__":
    main()
