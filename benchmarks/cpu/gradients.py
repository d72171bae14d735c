"""How far is the gradient of batches from that of the full batch, and at which layers?

GCN and GAT of PyG train with histories on Cora, on METIS parts. After some epochs, the gradient summed over an epoch's batches is
measured against the exact one: with histories as training left them, and with exact ones.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from bench import arguments, machine, parse, save
from shared import table
from torch import Tensor
from torch.nn import Module
from torch_geometric.data import Data
from torch_geometric.nn import GAT, GCN

from torch_gas import EvalSubgraphLoader, Monitor, SubgraphLoader, get_data, metis, permute, scale

MODELS: dict[str, Callable[..., Module]] = {"GCN": GCN, "GAT": GAT}
NUM_LAYERS, NUM_PARTS, PARTS_A_BATCH = 3, 40, 10
LEFT, EXACT = "as training left them", "exact"


def summed(out: Tensor, graph: Data) -> Tensor:
    """The loss of labelled nodes, a sum over rows."""
    mask = graph.train_mask[: len(out)]
    return F.cross_entropy(out[mask], graph.y[: len(out)][mask], reduction="sum")


def errors(
    name: str, data: Data, ptr: Tensor, seed: int, epochs: tuple[int, ...]
) -> list[tuple[str, list[float], float]]:
    """For each number of epochs and state of the histories: the relative error at each layer, and the least cosine."""
    torch.manual_seed(seed)
    classes = int(data.y.max()) + 1
    model = scale(MODELS[name](data.num_features, 64, num_layers=NUM_LAYERS, out_channels=classes, dropout=0.5), data)
    loader = SubgraphLoader(data, ptr, PARTS_A_BATCH, shuffle=True, seed=seed)
    eval_loader = EvalSubgraphLoader(data, ptr, PARTS_A_BATCH)
    optimizer, monitor, found = torch.optim.Adam(model.parameters(), lr=0.01, weight_decay=5e-4), Monitor(model), []
    model.eval()(loader=eval_loader)
    for epoch in range(1, max(epochs) + 1):
        model.train()
        for batch in loader:
            optimizer.zero_grad()
            (summed(model(batch), batch) / max(int(batch.train_mask[: batch.batch_size].sum()), 1)).backward()
            optimizer.step()
        if epoch in epochs:
            for state in (LEFT, EXACT):
                if state == EXACT:
                    model.eval()(loader=eval_loader)
                layers = monitor.gradient_error(loader, summed).layers.values()
                found.append((state, [relative for relative, _ in layers], min(cosine for _, cosine in layers)))
    return found


def main() -> None:
    parser = arguments(__doc__)
    root = os.environ.get("TORCH_GAS_DATA", "data")
    parser.add_argument("--root", default=root, help=f"folder of the data sets (default: {root})")
    args = parse(parser)
    record = machine()
    data, *_ = get_data(args.root, "synthetic:600" if args.quick else "Cora", layout="edge_index")
    perm, ptr = metis(data, NUM_PARTS, log=False)
    data = permute(data, perm, log=False)
    seeds, epochs = (range(1), (1, 2)) if args.quick else (range(3), (1, 10, 30, 100))
    rows: list[dict[str, Any]] = []
    for name in MODELS:
        found = [each for seed in seeds for each in errors(name, data, ptr, seed, epochs)]
        for state in (LEFT, EXACT):
            layers = list(zip(*(relative for own, relative, _ in found if own == state), strict=True))
            row: dict[str, Any] = {"model": name, "histories": state}
            for number, values in enumerate(layers, 1):
                row[f"layer {number}, %"] = f"{100 * min(values):.1f} to {100 * max(values):.1f}"
            row["least cosine"] = f"{min(cosine for own, _, cosine in found if own == state):.2f}"
            rows.append(row)
            print(rows[-1], flush=True)
    note = (
        f"{NUM_LAYERS} layers, 64 channels, {PARTS_A_BATCH} of {NUM_PARTS} METIS parts in a batch, dropout 0.5, Adam at 0.01; "
        f"after {', '.join(map(str, epochs))} epochs, {len(seeds)} seeds. Relative error of the gradient of each layer's "
        "parameters, in evaluation mode: the least and the largest of all of these. Exact: after an exact pass over all batches."
    )
    save(args, "gradients", __doc__, record, [table("Errors of the gradient", rows, note)])


if __name__ == "__main__":
    main()
