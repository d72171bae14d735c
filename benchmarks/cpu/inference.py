"""What do exact embeddings of all nodes cost after training, in time and memory?

The same SAGE layer by layer over a loader, with PyG's ``BasicGNN.inference`` over a ``NeighborLoader``, and on the whole graph.
Sides take turns in one process for their time; each has a process of its own for its memory.
"""

from __future__ import annotations

import statistics
import time
import warnings
from collections.abc import Callable
from typing import Any, NamedTuple

import torch
from bench import Peak, apart, arguments, machine, parse, save
from matplotlib import pyplot as plt
from shared import save_picture, table
from sides import HAS_SAMPLER, Graphs, Setting, in_format, make_graphs
from torch import Tensor
from torch_geometric.data import Data
from torch_geometric.loader import NeighborLoader
from torch_geometric.nn import GraphSAGE

from torch_gas import EvalSubgraphLoader
from torch_gas.models import SAGE

FULL_SIZE = Setting(100_000, 21.5, 128, num_parts=80, parts_a_batch=10)
TINY = Setting(600, 8.0, 16, num_parts=8, parts_a_batch=4)
OURS, LEAN = "layer by layer", "layer by layer, no batch kept"
OURS_FULL, PYG, PYG_FULL = "full batch", "BasicGNN.inference", "full batch, PyG"
SIDES = (OURS, LEAN, *((PYG,) if HAS_SAMPLER else ()), OURS_FULL, PYG_FULL)
ROUNDS = 3


class Inference(NamedTuple):
    """A way to compute the output of all nodes, and the bytes of what it keeps from training."""

    run: Callable[[], Tensor]
    histories: int = 0


def make(side: str, setting: Setting, graphs: Graphs) -> Inference:
    """The side of that name; all have the same weights."""
    torch.manual_seed(0)
    shape = (setting.channels, setting.channels)
    num_layers, classes = setting.num_layers, setting.num_classes
    pyg = GraphSAGE(*shape, num_layers, classes).eval()
    if side in (PYG, PYG_FULL):
        data = Data(x=graphs.unweighted.x, edge_index=graphs.unweighted.edge_index)
        if side == PYG_FULL:
            return Inference(lambda: pyg(data.x, data.edge_index))
        size = setting.num_nodes * setting.parts_a_batch // setting.num_parts
        return Inference(lambda: pyg.inference(NeighborLoader(data, [-1], batch_size=size)))
    by_layer = side in (OURS, LEAN)
    model = SAGE(setting.num_nodes if by_layer else 1, *shape, classes, num_layers).eval()
    model.convs.load_state_dict(pyg.convs.state_dict())
    data = in_format(graphs.unweighted, "csr")
    if by_layer:
        kept = {"cache_size": 0} if side == LEAN else {}
        loader = EvalSubgraphLoader(data, graphs.ptr, setting.parts_a_batch, **kept)
        return Inference(lambda: model(loader=loader), sum(each.table.nbytes for each in model.histories))
    model.push_and_pull = lambda history, x, *_: x
    return Inference(lambda: model.forward(data.x, data.adj_t))


def memory(side: str, setting: Setting) -> tuple[int, int]:
    """Bytes beyond the graph and the model, the result among them, and bytes of histories."""
    _quietly()
    with torch.no_grad():
        make(side, TINY, make_graphs(TINY)).run()  # brings in the code that will run
        inference = make(side, setting, make_graphs(setting))
        with Peak() as peak:
            inference.run()
    return peak.bytes, inference.histories


def measure(setting: Setting, quick: bool) -> list[dict[str, Any]]:
    """Time and memory of each side, and the largest difference of its result from ours."""
    graphs = make_graphs(setting)
    running = {side: make(side, setting, graphs) for side in SIDES}
    outs: dict[str, Tensor] = {}
    seconds: dict[str, list[float]] = {side: [] for side in SIDES}
    with torch.no_grad():
        for lap in range(2 if quick else 1 + ROUNDS):
            for side, each in running.items():
                start = time.perf_counter()
                outs[side] = each.run()
                if lap > 0:
                    seconds[side].append(time.perf_counter() - start)
    rows = []
    for side in SIDES:
        peak, histories = memory(side, setting) if quick else apart(memory, side, setting)
        difference = (outs[side] - outs[OURS_FULL]).abs().max() / outs[OURS_FULL].abs().max()
        row = {"side": side, "seconds": statistics.median(seconds[side]), "MB": peak / 1e6}
        rows.append(row | {"histories' MB": histories / 1e6, "largest difference": f"{float(difference):.1e}"})
        print(rows[-1], flush=True)
    return rows


def draw(rows: list[dict[str, Any]]) -> Any:
    """Time and memory of each side."""
    figure, (left, right) = plt.subplots(1, 2, figsize=(11, 3.6), layout="constrained", sharey=True)
    names = [row["side"] for row in rows]
    left.barh(names, [row["seconds"] for row in rows], color="tab:blue")
    left.bar_label(left.containers[0], fmt="%.3g", padding=2)
    left.set(xlabel="seconds", title="Time of inference")
    own, kept = [row["MB"] for row in rows], [row["histories' MB"] for row in rows]
    right.barh(names, own, color="tab:blue", label="beyond graph and model")
    both = right.barh(names, kept, left=own, color="tab:gray", alpha=0.4, label="histories, there since training")
    right.bar_label(both, [f"{memory:,.0f}" for memory in own], padding=2)
    right.set(xlabel="MB", title="Memory of inference")
    figure.legend(frameon=False, loc="outside lower right", ncols=2)
    left.invert_yaxis()
    for axes in (left, right):
        axes.margins(x=0.12)
        axes.grid(alpha=0.3, axis="x")
        axes.set_axisbelow(True)
        axes.spines[["top", "right"]].set_visible(False)
    return figure


def _quietly() -> None:
    warnings.filterwarnings("ignore", "Using '.*' without a 'pyg-lib' installation", UserWarning)


def main() -> None:
    args = parse(arguments(__doc__))
    _quietly()
    record = machine()
    setting = TINY if args.quick else FULL_SIZE
    rows = measure(setting, args.quick)
    save_picture(draw(rows), args.out, "inference")
    size = setting.num_nodes * setting.parts_a_batch // setting.num_parts
    note = (
        f"SAGE, {setting.num_layers} layers, {setting.channels} features and channels; {setting.num_nodes:,} nodes in batches "
        f"of {size:,}. Median of {ROUNDS} runs after one that does not count. MB: physical memory at its highest beyond graph "
        "and model, the result among it; histories are there since training. The loader keeps its batches for the next layer, "
        "up to a number of bytes; with `cache_size=0` it makes them anew. Largest difference: from the first of the two "
        f"full batches, as a share of its largest output. {PYG} needs pyg-lib or torch-sparse, and makes its batches anew in "
        f"each layer. {PYG_FULL}: over an edge_index."
    )
    save(args, "inference", __doc__, record, [table("Outputs of all nodes", rows, note)])


if __name__ == "__main__":
    main()
