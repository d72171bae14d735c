"""What do a step and its memory cost on small graphs, where the paper compares GAS with GTTF?

A GCN of four layers on random graphs with the nodes, edges and features of Cora, PubMed, PPI and Flickr, in batches of about
512 nodes: histories in host memory, on the GPU, and the whole graph at once. Batches are random unions of four parts and made
anew in each epoch, by a thread while steps run. The paper's figures (its Table 4) stand beside as it gives them, from its
hardware and batches.
"""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any

import torch
from common import in_turn, parse_args, peak_memory, save, table
from predictions import Machine, Step, place_seconds
from workload import block_graph, make_model, train_step, without_histories

from torch_gas import SubgraphLoader

# Nodes, directed edges, features, classes or labels; then seconds and MB of GTTF and of GAS as the paper gives them.
GRAPHS = {
    "Cora": (2_708, 10_556, 1_433, 7, "class", (0.077, 18.01), (0.006, 2.13)),
    "PubMed": (19_717, 88_648, 500, 3, "class", (0.071, 28.79), (0.006, 2.19)),
    "PPI": (56_944, 1_587_264, 50, 121, "multi", (0.976, 134.86), (0.007, 12.37)),
    "Flickr": (89_250, 899_756, 500, 7, "class", (1.178, 325.97), (0.007, 16.32)),
}
NUM_LAYERS, HIDDEN, BATCH, PARTS_A_BATCH, EPOCH = 4, 64, 512, 4, 20
HOST, GPU, FULL = "histories in host memory", "histories on the GPU", "full batch"
WAYS = (HOST, GPU, FULL)


def measure(name: str, device: torch.device, quick: bool) -> dict[str, Any]:
    """Step time and peak memory in each way on a graph of the size of the given one."""
    num_nodes, num_edges, features, classes, labels, gttf, gas = GRAPHS[name]
    shrink = 20 if quick else 1
    num_nodes, num_edges, batch = num_nodes // shrink, num_edges // shrink, BATCH // shrink
    num_parts = PARTS_A_BATCH * max(round(num_nodes / batch), 2)
    data, ptr = block_graph(num_nodes, num_edges, num_parts, 1.0, features, classes, labels=labels)
    loader = SubgraphLoader(data, ptr, PARTS_A_BATCH, shuffle=True, seed=0, device=device)
    num_steps = min(len(loader), 2 if quick else EPOCH)

    def epoch(way: str) -> Callable[[], None]:
        """An epoch of training, of at most ``EPOCH`` steps."""
        options = {HOST: {}, GPU: {"device": device}, FULL: {"tier": "host"}}[way]
        model = make_model("GCN", data, classes, HIDDEN, NUM_LAYERS, device, **options)
        optimizer = torch.optim.Adam(model.parameters())
        batches: Any = loader
        if way == FULL:
            model, batches = without_histories(model), [copy.copy(data).to(device)] * num_steps

        def epoch() -> None:
            for _, batch in zip(range(num_steps), batches, strict=False):
                train_step(model, optimizer, batch)

        return epoch

    peaks = {way: peak_memory(lambda way=way: epoch(way)(), device) for way in WAYS}
    median = in_turn({way: epoch(way) for way in WAYS}, 1 if quick else 5, device)
    row: dict[str, Any] = {"as large as": name, "N": num_nodes, "E": num_edges}
    step = Step("GCN", batch, batch, num_edges * batch // num_nodes, features, (HIDDEN,) * (NUM_LAYERS - 1), classes)
    row[f"{HOST}, predicted s"] = place_seconds(step, Machine())["concurrent"]
    for way, peak in peaks.items():
        row[f"{way}, s"] = median[way] / num_steps
        row[f"{way}, MB"] = peak if isinstance(peak, str) else peak / 1e6
    return row | {
        "paper: GTTF, s": gttf[0],
        "paper: GTTF, MB": gttf[1],
        "paper: GAS, s": gas[0],
        "paper: GAS, MB": gas[1],
    }


def main() -> None:
    args = parse_args(__doc__)
    note = (
        f"GCN, {NUM_LAYERS} layers, {HIDDEN} wide, Adam; random graphs, batches of {PARTS_A_BATCH} random parts, together about "
        f"{BATCH} nodes with as large a halo. s: a step, medians of epochs of up to {EPOCH} steps, all ways in turn. MB: peak "
        "of torch's allocator, with parameters and the next batch. The prediction is of predictions.py. The paper's figures "
        "are quoted: other hardware, batches and widths, and GTTF is not run here."
    )
    rows: list[dict[str, Any]] = []
    for name in GRAPHS:
        rows.append(measure(name, args.device, args.quick))
        tables = [table("Step time and memory on small graphs", rows, note)]
        save(args.out, "small", __doc__, args.device, args.quick, tables, shows=len(rows) == len(GRAPHS))


if __name__ == "__main__":
    main()
