"""One side of ``releases.py``: trains a model with the torch_gas at PYTHONPATH, an epoch for each line that it reads.

A line of standard input names the wiring, and the answer is the seconds of an epoch.
"""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import torch
import torch_geometric.nn as pyg
from scaled import plain
from sides import WEIGHTED, Graphs, Setting, Side, Sides, in_format
from torch.nn import Module
from torch_geometric.data import Data

from torch_gas import SubgraphLoader, in_degree, scale

BY_HAND, SCALED, CHEAP = "by hand", "scale()", 'scale(places="cheap")'


def of_pyg(name: str, setting: Setting, graphs: Graphs, dropout: float) -> Module:
    """PyG's model."""
    if name != "PNA":
        return plain(name, setting, dropout, normalize=False)
    deg = torch.bincount(in_degree(graphs.unweighted.edge_index, setting.num_nodes))
    kinds = {"aggregators": ["mean", "min", "max", "std"], "scalers": ["identity", "amplification", "attenuation"]}
    sizes = (setting.channels, setting.channels, setting.num_layers, setting.num_classes)
    model: Module = pyg.PNA(*sizes, dropout=dropout, deg=deg, **kinds)
    return model


def make(wiring: str, name: str, setting: Setting, graphs: Graphs, dropout: float) -> Side:
    """A model that trains, after an epoch."""
    if wiring == BY_HAND:
        side = Sides(setting, graphs, name, dropout, None).make("csr")
    else:
        data = in_format(graphs.weighted if name in WEIGHTED else graphs.unweighted, "edge_index")
        torch.manual_seed(0)
        options: dict[str, Any] = {"places": "cheap"} if wiring == CHEAP else {}  # which release 0.1 lacks
        model = scale(of_pyg(name, setting, graphs, dropout), data, **options)
        loader = SubgraphLoader(data, graphs.ptr, setting.parts_a_batch, shuffle=True, seed=0)
        side = Side(model, loader, lambda batch: (model(batch), batch.data.y[: batch.batch_size]))
    side.epoch()
    return side


def main() -> None:
    path, name, dropout, threads = sys.argv[1:]
    torch.set_num_threads(int(threads))
    saved = torch.load(Path(path), weights_only=True)
    weighted, unweighted = (Data(**saved[key]) for key in ("weighted", "unweighted"))
    setting, graphs = Setting(*saved["setting"]), Graphs(weighted, unweighted, saved["ptr"])
    sides: dict[str, Side] = {}
    for line in sys.stdin:
        wiring = line.strip()
        if wiring not in sides:
            sides[wiring] = make(wiring, name, setting, graphs, float(dropout))
        print("seconds", sum(sides[wiring].epoch().values()), flush=True)


if __name__ == "__main__":
    main()
