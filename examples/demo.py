"""Full batch against mini-batches with histories, on a graph that needs no download.

The same GCN starts twice from the same parameters and sees the same number of epochs: once with the
whole graph in each step, once with METIS clusters, whose missing neighbours come from histories.
Evaluation runs on a copy of the model, so that the histories stay as training left them.
"""

import copy
import time
from pathlib import Path
from statistics import median

import matplotlib
import torch
import torch.nn.functional as F
from common import parse_args, scores, step_memory
from rich.console import Console
from rich.table import Table
from tqdm import tqdm

from torch_gas import SubgraphLoader, gcn_norm, get_data, metis, permute
from torch_gas.models import GCN

matplotlib.use("Agg")
from matplotlib import pyplot as plt

NUM_LAYERS = 3

args = parse_args(__doc__, epochs=40, num_nodes=10_000, out="runs/demo")

data, in_channels, out_channels = get_data(args.root, f"synthetic:{args.num_nodes}", layout="csr")
data = gcn_norm(data)
# Many small parts, so that a batch of ten holds nodes of all classes.
perm, ptr = metis(data, num_parts=100)
data = permute(data, perm)
loader = SubgraphLoader(data, ptr, batch_size=10, shuffle=True, seed=0, device=args.device)
graph = copy.copy(data).to(args.device)


def train_step(model, optimizer, batch, ids):
    out = model(batch.x, batch.adj_t, *ids)
    mask = batch.train_mask[: out.size(0)]
    loss = F.cross_entropy(out[mask], batch.y[: out.size(0)][mask])
    optimizer.zero_grad()
    loss.backward()
    optimizer.step()


@torch.no_grad()
def forward_of_copy(model, training):
    """The output of a copy of ``model`` on the whole graph, and the embeddings on the way."""
    twin = copy.deepcopy(model).train(training)
    out = twin(graph.x, graph.adj_t)
    return out, [history.pull() for history in twin.histories]


def distance(tables, exact):
    """||H̄ - H|| / ||H|| of each layer in per cent."""
    return [100 * float((t - e).norm() / e.norm()) for t, e in zip(tables, exact, strict=True)]


def run(name, batches, history_device):
    torch.manual_seed(0)
    model = GCN(
        data.num_nodes,
        in_channels,
        hidden_channels=64,
        out_channels=out_channels,
        num_layers=NUM_LAYERS,
        dropout=0.5,
        drop_input=False,
        device=history_device,
    ).to(args.device)
    optimizer = torch.optim.Adam(model.parameters(), lr=0.01)
    with torch.no_grad():
        model.eval()(graph.x, graph.adj_t)  # fills the histories
    log = {"seconds": [], "val": [], "test": [], "error": [], "dropout_error": []}
    for _ in tqdm(range(args.epochs), desc=name):
        start = time.perf_counter()
        model.train()
        for batch, *ids in batches:
            train_step(model, optimizer, batch, ids)
        if graph.x.is_cuda:
            torch.cuda.synchronize()
        log["seconds"].append(time.perf_counter() - start)
        out, exact = forward_of_copy(model, training=False)
        val, test = scores(out, graph.y, graph.val_mask, graph.test_mask)
        log["val"].append(100 * val)
        log["test"].append(100 * test)
        if batches is loader:
            _, fresh = forward_of_copy(model, training=True)
            log["error"].append(distance([history.pull() for history in model.histories], exact))
            log["dropout_error"].append(distance(fresh, exact))
    batch, *ids = max(batches, key=lambda item: item[0].num_nodes)
    optimizer.zero_grad()
    log["memory"] = step_memory(lambda: train_step(model, optimizer, batch, ids), batch, args.device)
    log["best"] = max(range(args.epochs), key=log["val"].__getitem__)
    return log


full = run("full batch", [(graph,)], args.device)
gas = run("histories", loader, None)

batches = list(loader)
halo_ratio = sum(batch.halo_size for batch in batches) / data.num_nodes
edges = sum(batch.data.adj_t.values().numel() for batch in batches)
num_edges = data.adj_t.values().numel()

table = Table("", title=f"{NUM_LAYERS}-layer GCN, {data.num_nodes:,} nodes, {num_edges:,} edges")
table.add_column("full batch", justify="right")
table.add_column("histories", justify="right")
best = [(log["val"][log["best"]], log["test"][log["best"]]) for log in (full, gas)]
table.add_row("validation accuracy, best epoch", *(f"{val:.1f} %" for val, _ in best))
table.add_row("test accuracy at that epoch", *(f"{test:.1f} %" for _, test in best))
for epoch in sorted({1, max(args.epochs // 4, 1), max(args.epochs // 2, 1), args.epochs}):
    tests = [log["test"][epoch - 1] for log in (full, gas)]
    table.add_row(f"test accuracy after epoch {epoch}", *(f"{test:.1f} %" for test in tests))
table.add_row("optimiser steps in an epoch", "1", str(len(loader)))
times = [median(full["seconds"]), median(gas["seconds"]) / len(loader)]
table.add_row("median time of a step", *(f"{1000 * seconds:.0f} ms" for seconds in times))
table.add_row("peak memory of a step (1)", *(f"{log['memory'] / 2**20:.1f} MiB" for log in (full, gas)))
table.add_row("edges used in an epoch", "100 %", f"{100 * edges / num_edges:.0f} %")
table.add_row("halo ratio, S / B", "0", f"{halo_ratio:.2f}")
for layer, (error, noise) in enumerate(zip(gas["error"][-1], gas["dropout_error"][-1], strict=True), 1):
    table.add_row(f"error of history {layer} (2)", "", f"{error:.1f} %")
    table.add_row("  of fresh rows with dropout (3)", "", f"{noise:.1f} %")
console = Console()
console.print(table)
console.print("(1) tensors of the largest batch, and what its step adds to them")
console.print("(2) ||H̄ - H|| / ||H|| after training; H is exact, of the full batch")
console.print("(3) the same of rows computed anew, with dropout: not due to histories")

figure, (left, right) = plt.subplots(1, 2, figsize=(10, 4), layout="constrained")
epochs = range(1, args.epochs + 1)
left.plot(epochs, full["val"], label="full batch", color="tab:gray", linestyle="--")
left.plot(epochs, gas["val"], label="mini-batches with histories", color="tab:blue")
left.set(xlabel="epoch", ylabel="validation accuracy [%]", ylim=(0, 100))
left.set_title("Accuracy")
for layer, color in zip(range(NUM_LAYERS - 1), ("tab:blue", "tab:orange"), strict=True):
    for key, style, label in (
        ("error", "-", "history, as training left it"),
        ("dropout_error", ":", "computed anew, with dropout"),
    ):
        values = [error[layer] for error in gas[key]]
        if any(values):  # no dropout comes before the first layer
            right.plot(epochs, values, style, color=color, label=f"layer {layer + 1}: {label}")
right.set(xlabel="epoch", ylabel=r"$\|\bar{H} - H\| \; / \; \|H\|$ [%]")
right.set_ylim(bottom=0)
right.set_title("Distance to the exact embeddings")
for axes in (left, right):
    axes.grid(alpha=0.3)
    axes.legend(frameon=False)
    axes.spines[["top", "right"]].set_visible(False)
path = Path(args.out) / "demo.png"
path.parent.mkdir(parents=True, exist_ok=True)
figure.savefig(path, dpi=150)
print(f"Test accuracy with histories minus full batch: {best[1][1] - best[0][1]:+.1f} points")
print(f"Plot: {path.resolve()}")
