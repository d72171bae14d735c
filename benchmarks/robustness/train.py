"""Trains a small model with a checkpoint every few steps, so that it can be killed at any moment; see kill_loop.py.

All that a state must survive takes part: dropout and an order of batches from the global random state, batches made ahead, batch
norm, Adam, a schedule of learning rates, histories that are refreshed by age, and a monitor.
"""

from __future__ import annotations

import argparse
import os

import torch
import torch.nn.functional as F
from torch_geometric import seed_everything

from torch_gas import EvalSubgraphLoader, FileTier, Monitor, SubgraphLoader, checkpoint, gcn_norm, metis, permute
from torch_gas.datasets import synthetic
from torch_gas.extensions.refresh import BeforeTraining, EveryEpochs, EverySteps, Stalest
from torch_gas.models import GCN

parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
parser.add_argument("--folder", required=True, help="where checkpoint.safetensors and final.safetensors go")
parser.add_argument("--epochs", type=int, default=30)
parser.add_argument("--every", type=int, default=3, help="steps between two checkpoints")
parser.add_argument("--num_nodes", type=int, default=4000)
parser.add_argument("--tier", default="host", choices=["host", "file"], help="where histories live")
args = parser.parse_args()
torch.use_deterministic_algorithms(True)

data = gcn_norm(synthetic(args.num_nodes))
perm, ptr = metis(data, num_parts=20, log=False)
data = permute(data, perm, log=False)
loader = SubgraphLoader(data, ptr, batch_size=4, shuffle=True, prefetch=2)
model = GCN(
    data.num_nodes,
    data.num_features,
    hidden_channels=64,
    out_channels=int(data.y.max()) + 1,
    num_layers=3,
    dropout=0.5,
    batch_norm=True,
    tier=FileTier(os.path.join(args.folder, "tables"), reuse=True) if args.tier == "file" else args.tier,
)
optimizer = torch.optim.Adam(model.parameters(), lr=0.01)
policy = BeforeTraining() | EverySteps(4, Stalest(batches=1)) | EveryEpochs(5)
state = {
    "optimizer": optimizer,
    "scheduler": torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, args.epochs),
    "loader": loader,
    "refresher": policy.bind(model, EvalSubgraphLoader(data, ptr, batch_size=4)),
    "monitor": Monitor(model, every=2, limits=None),
}

path = os.path.join(args.folder, "checkpoint.safetensors")
first, steps = 0, 0
if os.path.exists(path):
    values = checkpoint.load(path, model=model, **state)
    first, steps = values["epoch"], values["steps"]
else:
    seed_everything(12)
    model.reset_parameters()
    state["refresher"].before_training()
print(f"training from step {steps}", flush=True)
for epoch in range(first, args.epochs):
    model.train()
    for batch in loader:
        out = model(batch)
        mask = batch.data.train_mask[: batch.batch_size]
        loss = F.cross_entropy(out[mask], batch.data.y[: batch.batch_size][mask])
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        state["refresher"].after_step()
        steps += 1
        if steps % args.every == 0:
            checkpoint.save(path, model=model, **state, epoch=epoch, steps=steps)
    state["scheduler"].step()
    state["refresher"].after_epoch()
checkpoint.save(os.path.join(args.folder, "final.safetensors"), model=model, **state, epoch=epoch, steps=steps)
