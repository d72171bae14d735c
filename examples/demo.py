"""Full batch against mini-batches with histories, on a graph that needs no download.

The same GCN starts twice from the same parameters and sees the same number of epochs: once on the whole
graph in each step, once on METIS clusters, whose missing neighbours come from histories. Evaluation runs
on a copy of the model, so that the histories stay as training left them.
"""

import copy
import time
from pathlib import Path
from statistics import median

import matplotlib

matplotlib.use("Agg")
import matplotlib.pyplot as plt
import torch
import torch.nn.functional as F
from common import parse_args, scores, step_memory
from rich.console import Console
from rich.table import Table
from tqdm import tqdm

from torch_gas import SubgraphLoader, gcn_norm, get_data, metis, permute
from torch_gas.models import GCN

NUM_PARTS, PARTS_PER_BATCH, NUM_LAYERS, HIDDEN = 40, 2, 3, 64

args = parse_args(__doc__, epochs=40, num_nodes=20_000, out="runs/demo")

data, in_channels, out_channels = get_data(args.root, f"synthetic:{args.num_nodes}", layout="csr")
data = gcn_norm(data)
perm, ptr = metis(data, NUM_PARTS)
data = permute(data, perm)
loader = SubgraphLoader(data, ptr, batch_size=PARTS_PER_BATCH, shuffle=True, seed=0)
graph = copy.copy(data).to(args.device)


def train_step(model, optimizer, batch, ids):
    out = model(batch.x, batch.adj_t, *ids)
    mask = batch.train_mask[: out.size(0)]
    loss = F.cross_entropy(out[mask], batch.y[: out.size(0)][mask])
    optimizer.zero_grad()
    loss.backward()
    optimizer.step()


@torch.no_grad()
def embeddings(model, training):
    """The embeddings of all layers on the whole graph, and the output, by a copy of ``model``."""
    twin = copy.deepcopy(model).train(training)
    out = twin(graph.x, graph.adj_t)
    return [history.emb for history in twin.histories], out


def errors(tables, exact):
    """||H - H_exact|| / ||H_exact|| of each layer."""
    return [float((t - e).norm() / e.norm()) for t, e in zip(tables, exact, strict=True)]


def run(name, batches, histories):
    torch.manual_seed(0)
    model = GCN(
        data.num_nodes, in_channels, HIDDEN, out_channels, NUM_LAYERS,
        dropout=0.5, drop_input=False, device=histories,
    ).to(args.device)  # fmt: skip
    optimizer = torch.optim.Adam(model.parameters(), lr=0.01)
    with torch.no_grad():
        model.eval()(graph.x, graph.adj_t)  # fills the histories
    log = {"seconds": [], "val": [], "test": [], "error": [], "dropout": []}
    for _ in tqdm(range(args.epochs), desc=name):
        start = time.perf_counter()
        model.train()
        for batch, *ids in batches:
            train_step(model, optimizer, batch.to(args.device), ids)
        if graph.x.is_cuda:
            torch.cuda.synchronize()
        log["seconds"].append(time.perf_counter() - start)
        exact, out = embeddings(model, training=False)
        val, test = scores(out, graph.y, graph.val_mask, graph.test_mask)
        log["val"].append(val)
        log["test"].append(test)
        log["error"].append(errors([history.emb for history in model.histories], exact))
        log["dropout"].append(errors(embeddings(model, training=True)[0], exact))
    batch, *ids = max(batches, key=lambda batch: batch[0].num_nodes)
    batch = batch.to(args.device)
    log["memory"] = step_memory(
        lambda: train_step(model, optimizer, batch, ids), batch, args.device
    )
    return log


full = run("full batch", [(graph,)], args.device)
gas = run("histories ", loader, None)
batches = list(loader)
halo_ratio = sum(b.halo_size for b in batches) / data.num_nodes
edges_used = sum(b.data.adj_t.values().numel() for b in batches) / data.adj_t.values().numel()

best = {id(log): max(range(args.epochs), key=log["val"].__getitem__) for log in (full, gas)}
table = Table(title=f"{data.num_nodes:,} nodes, {data.num_edges:,} edges, {NUM_LAYERS}-layer GCN")
table.add_column("")
table.add_column("full batch", justify="right")
table.add_column("histories", justify="right")


def row(title, cell):
    table.add_row(title, cell(full), cell(gas))


row("validation accuracy, best epoch", lambda log: f"{100 * log['val'][best[id(log)]]:.1f} %")
row("test accuracy at that epoch", lambda log: f"{100 * log['test'][best[id(log)]]:.1f} %")
for epoch in sorted({1, args.epochs // 4, args.epochs // 2, args.epochs} - {0}):
    row(f"test accuracy after epoch {epoch}", lambda log: f"{100 * log['test'][epoch - 1]:.1f} %")
row("optimiser steps in an epoch", lambda log: str(len(loader) if log is gas else 1))
row("median time of an epoch", lambda log: f"{1000 * median(log['seconds']):.0f} ms")
row("peak memory of a step *", lambda log: f"{log['memory'] / 2**20:.1f} MiB")
table.add_row("edges into the batch that are used", "100 %", f"{100 * edges_used:.0f} %")
table.add_row("halo ratio, S / B", "", f"{halo_ratio:.2f}")
for layer, (left, fresh) in enumerate(zip(gas["error"][-1], gas["dropout"][-1], strict=True), 1):
    table.add_row(f"error of history {layer} †", "", f"{100 * left:.1f} %")
    table.add_row("   of which dropout alone makes ‡", "", f"{100 * fresh:.1f} %")
console = Console()
console.print(table)
counted = (
    "torch.cuda.max_memory_allocated" if graph.x.is_cuda else "allocations seen by the profiler"
)
console.print(
    f"* tensors: inputs and what the step adds ({counted}); largest batch of an epoch", style="dim"
)
console.print(
    "† ||H̄ - H|| / ||H|| after the last epoch; H by full-batch evaluation, H̄ as training left it",
    style="dim",
)
console.print("‡ the same for rows computed just now, but with dropout as in training", style="dim")

figure, (left, right) = plt.subplots(1, 2, figsize=(10, 4), layout="constrained")
epochs = range(1, args.epochs + 1)
left.plot(epochs, [100 * v for v in full["val"]], label="full batch", color="tab:gray")
left.plot(
    epochs, [100 * v for v in gas["val"]], label="mini-batches with histories", color="tab:blue"
)
left.set(xlabel="epoch", ylabel="validation accuracy [%]", title="Accuracy")
for layer, color in zip(range(NUM_LAYERS - 1), ("tab:blue", "tab:orange"), strict=True):
    values = [100 * error[layer] for error in gas["error"]]
    right.plot(epochs, values, label=f"history {layer + 1}, as training left it", color=color)
    values = [100 * error[layer] for error in gas["dropout"]]
    right.plot(
        epochs, values, label=f"layer {layer + 1}, fresh with dropout", color=color, linestyle=":"
    )
right.set(
    xlabel="epoch",
    ylabel=r"$\|\bar{H} - H\| \,/\, \|H\|$ [%]",
    title="Distance to exact embeddings",
)
for axes in (left, right):
    axes.set_ylim(bottom=0)
    axes.grid(alpha=0.3)
    axes.legend(frameon=False)
    axes.spines[["top", "right"]].set_visible(False)
path = Path(args.out) / "demo.png"
path.parent.mkdir(parents=True, exist_ok=True)
figure.savefig(path, dpi=150)
print(f"Plot: {path.resolve()}")
