"""GCN on WordNet (107,525 nodes), full batch and with histories: accuracy, time and memory.

The graph of word meanings, with words of their glosses as features and 45 classes; it is not a
published benchmark. Both runs start from the same parameters and see the same number of epochs, of
which each has one optimiser step full batch and, with 20 of 40 parts in a batch, two with histories.
"""

import time
from copy import copy
from statistics import median

import torch
import torch.nn.functional as F
from common import Best, parse_args, scores, step_memory
from rich.console import Console
from rich.table import Table
from tqdm import tqdm

from torch_gas import EvalSubgraphLoader, SubgraphLoader, gcn_norm, get_data, metis, permute
from torch_gas.models import GCN

args = parse_args(__doc__, epochs=200, batch_size=20)

data, in_channels, out_channels = get_data(args.root, "WordNet", layout="csr")
data = gcn_norm(data)
perm, ptr = metis(data, num_parts=40)
data = permute(data, perm)
loader = SubgraphLoader(data, ptr, batch_size=args.batch_size, shuffle=True, seed=0, device=args.device)
eval_loader = EvalSubgraphLoader(data, ptr, batch_size=args.batch_size, device=args.device)
graph = copy(data).to(args.device)


def train_step(model, optimizer, batch, ids):
    out = model(batch.x, batch.adj_t, *ids)
    mask = batch.train_mask[: out.size(0)]
    if mask.any():
        loss = F.cross_entropy(out[mask], batch.y[: out.size(0)][mask])
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()


def run(name, batches, histories):
    torch.manual_seed(0)
    model = GCN(
        data.num_nodes,
        in_channels,
        hidden_channels=64,
        out_channels=out_channels,
        num_layers=2,
        dropout=0.5,
        batch_norm=True,
        drop_input=False,
        device=histories,
    ).to(args.device)
    optimizer = torch.optim.Adam(model.parameters(), lr=0.02)
    best, seconds = Best(), []
    model.eval()(loader=eval_loader)  # fills the histories
    progress = tqdm(range(1, args.epochs + 1), desc=name)
    for epoch in progress:
        start = time.perf_counter()
        model.train()
        for batch, *ids in batches:
            train_step(model, optimizer, batch, ids)
        if graph.x.is_cuda:
            torch.cuda.synchronize()
        seconds.append(time.perf_counter() - start)
        out = model.eval()(loader=eval_loader)  # exact, layer by layer; refreshes the histories
        best.update(epoch, *scores(out, data.y, data.val_mask, data.test_mask))
        progress.set_postfix_str(f"test {best}")
    model.train()
    batch, *ids = max(batches, key=lambda batch: batch[0].num_nodes)
    optimizer.zero_grad()
    memory = step_memory(lambda: train_step(model, optimizer, batch, ids), batch, args.device)
    return best, [
        f"{100 * best.val:.2f} %",
        f"{100 * best.test:.2f} %",
        f"{median(seconds):.2f} s",
        f"{memory / 2**20:.0f} MiB",
    ]


full, full_cells = run("full batch", [(graph,)], args.device)
gas, gas_cells = run("histories ", loader, None)
halo = sum(batch.halo_size for batch in loader) / data.num_nodes
table = Table("", "validation", "test", "epoch", "memory of a step", "halo ratio S/B")
table.add_row("full batch", *full_cells, "")
table.add_row("histories", *gas_cells, f"{halo:.2f}")
Console().print(table)
difference = 100 * (gas.test - full.test)
print(f"Test accuracy with histories minus full batch: {difference:+.2f} points")
