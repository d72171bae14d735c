"""What does a model cost that scale() wires, beside the same model wired by hand?

Epochs of PyG's models by scale(), and of this package's, which call ``push_and_pull`` where rows are cheapest: the same layers,
widths and batches. All sides of a model take turns in one process.
"""

from __future__ import annotations

import statistics
from collections.abc import Callable
from itertools import pairwise
from typing import Any

import torch
import torch.nn.functional as F
import torch_geometric.nn as pyg
from bench import arguments, machine, parse, save
from matplotlib import pyplot as plt
from shared import save_picture, table
from sides import Graphs, Setting, Side, in_format, make_graphs
from torch import Tensor
from torch.nn import Linear, Module, ModuleList

from torch_gas import SubgraphLoader, models, scale

FULL_SIZE = Setting(50_000, 8.6, 128, num_parts=40, parts_a_batch=10)
TINY = Setting(600, 8.0, 16, num_parts=8, parts_a_batch=4)
HEADS = 8
BY_HAND, SCALED, NORMALIZING, CHEAP = "by hand", "scale()", "scale(), normalised in the layers", 'scale(places="cheap")'


class PlainGIN(Module):
    """GIN as this package's, by somebody who knows nothing of histories."""

    def __init__(self, setting: Setting, dropout: float) -> None:
        super().__init__()
        by_hand = models.GIN(1, setting.channels, setting.channels, setting.num_classes, setting.num_layers)
        self.convs, self.lins, self.dropout = by_hand.convs, by_hand.lins, dropout

    def forward(self, x: Tensor, edge_index: Any) -> Tensor:
        x = self.lins[0](x).relu()
        for conv in self.convs:
            x = conv(x, edge_index) + x
            x = F.dropout(x, self.dropout, self.training)
        return self.lins[1](x)


class PlainAPPNP(Module):
    """APPNP with its two dense layers."""

    def __init__(self, setting: Setting, dropout: float) -> None:
        super().__init__()
        sizes = (setting.channels, setting.channels, setting.num_classes)
        self.lins, self.dropout = ModuleList(Linear(*pair) for pair in pairwise(sizes)), dropout
        self.conv = pyg.APPNP(setting.num_layers, 0.1, normalize=False)

    def forward(self, x: Tensor, edge_index: Any, edge_weight: Tensor | None = None) -> Tensor:
        x = F.dropout(x, self.dropout, self.training)
        x = F.dropout(self.lins[0](x).relu(), self.dropout, self.training)
        return self.conv(self.lins[1](x), edge_index, edge_weight)


class PlainGCN2(Module):
    """GCNII as PyG's example has it."""

    def __init__(self, setting: Setting, dropout: float) -> None:
        super().__init__()
        self.dropout = dropout
        self.lins = ModuleList(
            [Linear(setting.channels, setting.channels), Linear(setting.channels, setting.num_classes)]
        )
        numbers = range(1, setting.num_layers + 1)
        self.convs = ModuleList(pyg.GCN2Conv(setting.channels, 0.1, 0.5, i, normalize=False) for i in numbers)

    def forward(self, x: Tensor, edge_index: Any, edge_weight: Tensor | None = None) -> Tensor:
        x = x_0 = self.lins[0](x).relu()
        for conv in self.convs:
            x = F.dropout(x, self.dropout, self.training)
            x = conv(x, x_0, edge_index, edge_weight).relu()
        x = F.dropout(x, self.dropout, self.training)
        return self.lins[1](x)


def by_hand(name: str, setting: Setting, dropout: float) -> Module:
    """The model that calls ``push_and_pull`` itself."""
    sizes = (setting.num_nodes, setting.channels)
    widths: tuple[Any, ...] = (setting.channels, setting.num_classes)
    if name == "GAT":
        widths = (setting.channels // HEADS, HEADS, setting.num_classes, HEADS)
    further: tuple[float, ...] = {"GCNII": (0.1, 0.5), "APPNP": (0.1,)}.get(name, ())
    make: Any = getattr(models, {"GCNII": "GCN2"}.get(name, name))
    model: Any = make(*sizes, *widths, setting.num_layers, *further, dropout=dropout)
    model.drop_input = False  # which APPNP does not ask
    return model


def plain(name: str, setting: Setting, dropout: float, normalize: bool) -> Module:
    """The same model without histories."""
    if name in PLAIN:
        return PLAIN[name](setting, dropout)
    sizes = (setting.channels, setting.channels, setting.num_layers, setting.num_classes)
    further: dict[str, Any] = {
        "GCN": {"normalize": normalize},
        "GAT": {"heads": HEADS, "add_self_loops": False, "act": "elu"},
    }
    make: Any = getattr(pyg, {"SAGE": "GraphSAGE"}.get(name, name))
    return make(*sizes, dropout=dropout, **further.get(name, {}))


PLAIN: dict[str, Callable[[Setting, float], Module]] = {"GIN": PlainGIN, "GCNII": PlainGCN2, "APPNP": PlainAPPNP}
MODELS = ("GCN", "SAGE", "GAT", "GIN", "GCNII", "APPNP")
WEIGHTED = ("GCN", "GCNII", "APPNP")


def sides_of(name: str, setting: Setting, graphs: Graphs, dropout: float) -> dict[str, Side]:
    """Who trains the model, each with a loader of its own over the same batches."""
    made: dict[str, Side] = {}
    for side in (BY_HAND, SCALED, *((NORMALIZING,) if name == "GCN" else ()), CHEAP):
        data = in_format(
            graphs.weighted if name in WEIGHTED and side != NORMALIZING else graphs.unweighted, "edge_index"
        )
        torch.manual_seed(0)
        if side == BY_HAND:
            model = by_hand(name, setting, dropout)
        else:
            places = "cheap" if side == CHEAP else "row-wise"
            model = scale(plain(name, setting, dropout, normalize=side == NORMALIZING), data, places=places)
        loader = SubgraphLoader(data, graphs.ptr, setting.parts_a_batch, shuffle=True, seed=0)
        made[side] = Side(model, loader, lambda batch, model=model: (model(batch), batch.y[: batch.batch_size]))
        made[side].epoch()
    return made


def compare(setting: Setting, graphs: Graphs, rounds: int) -> list[dict[str, Any]]:
    """Median epochs of all models."""
    rows = []
    for name in MODELS:
        for dropout in (0.0, 0.5):
            sides = sides_of(name, setting, graphs, dropout)
            seconds: dict[str, list[float]] = {side: [] for side in sides}
            for _ in range(rounds):
                for side, each in sides.items():
                    seconds[side].append(sum(each.epoch().values()))
            middle = {side: statistics.median(each) for side, each in seconds.items()}
            for side in list(sides)[1:]:
                ratio = statistics.median(a / b for a, b in zip(seconds[side], seconds[BY_HAND], strict=True))
                rows.append(
                    {
                        "model": name,
                        "dropout": str(dropout),
                        "wired by": side,
                        "epoch, s": middle[side],
                        "by hand, s": middle[BY_HAND],
                        "ratio": ratio,
                    }
                )
                print(rows[-1], flush=True)
    return rows


def draw(rows: list[dict[str, Any]]) -> Any:
    """The ratio of each model, wired in each way."""
    figure, axes = plt.subplots(figsize=(10, 4.5), layout="constrained")
    groups = list(dict.fromkeys((row["model"], row["dropout"]) for row in rows))
    sides = (SCALED, NORMALIZING, CHEAP)
    for i, side in enumerate(sides):
        of_side = [row for row in rows if row["wired by"] == side]
        places = [groups.index((row["model"], row["dropout"])) + 0.27 * (i - 1) for row in of_side]
        axes.bar(places, [row["ratio"] for row in of_side], 0.25, label=side)
    axes.axhline(1, color="black", linewidth=1)
    axes.set(ylabel="times the epoch of a model wired by hand", title="scale() beside explicit wiring")
    axes.set_xticks(range(len(groups)), [f"{name}, {dropout}" for name, dropout in groups], rotation=45)
    axes.set_xlabel("model, dropout")
    axes.legend(frameon=False, loc="upper center", bbox_to_anchor=(0.5, -0.3), ncols=3)
    axes.grid(alpha=0.3, axis="y")
    axes.set_axisbelow(True)
    axes.spines[["top", "right"]].set_visible(False)
    return figure


def main() -> None:
    args = parse(arguments(__doc__))
    record = machine()
    setting = TINY if args.quick else FULL_SIZE
    graphs = make_graphs(setting)
    rows = compare(setting, graphs, rounds=2 if args.quick else 15)
    save_picture(draw(rows), args.out, "scaled")
    note = (
        f"{setting.num_nodes:,} nodes, {graphs.unweighted.num_edges:,} directed edges (self-loops among them), "
        f"{setting.channels} features and hidden channels, {setting.num_layers} layers, over an edge_index; {setting.num_parts} "
        f"parts by METIS, {setting.parts_a_batch} at random in a batch; Adam. Medians of 15 epochs of each side in turn, and of "
        "their ratios in a turn, after an epoch that does not count."
    )
    save(args, "scaled", __doc__, record, [table("scale() beside explicit wiring", rows, note)])


if __name__ == "__main__":
    main()
