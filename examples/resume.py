"""A run that can be stopped at any moment: start the script again, and it goes on from its last checkpoint.

The result is that of a run that was never stopped, bit for bit. The graph needs no download; its partition is kept beside the
checkpoint, because histories and the order of batches belong to it.
"""

from pathlib import Path

import torch
import torch.nn.functional as F
from common import Best, parse_args, scores
from tqdm import tqdm

from torch_gas import (
    EvalSubgraphLoader,
    SubgraphLoader,
    checkpoint,
    gcn_norm,
    get_data,
    load_partition,
    metis,
    permute,
    save_partition,
)
from torch_gas.models import GCN

args = parse_args(__doc__, epochs=20, seed=0, num_nodes=20_000, out="resume")
folder = Path(args.out)
folder.mkdir(exist_ok=True)
path = folder / "run.safetensors"  # delete the folder to begin again

data, in_channels, out_channels = get_data(args.root, f"synthetic:{args.num_nodes}", layout="csr")
if not path.exists():
    save_partition(folder / "parts.npz", metis(data, num_parts=20))
perm, ptr = load_partition(folder / "parts.npz")
data = permute(gcn_norm(data), perm)
train_loader = SubgraphLoader(data, ptr, batch_size=4, shuffle=True, device=args.device)
eval_loader = EvalSubgraphLoader(data, ptr, batch_size=4, device=args.device)

torch.manual_seed(args.seed)
model = GCN(data.num_nodes, in_channels, 64, out_channels, num_layers=3, dropout=0.5, drop_input=False)
model = model.to(args.device)
optimizer = torch.optim.Adam(model.parameters(), lr=0.01)
scheduler = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, args.epochs)
state = {
    "optimizer": optimizer,
    "scheduler": scheduler,
    "loader": train_loader,
}  # what a checkpoint holds beside the model

best, done = Best(), 0
if path.exists():
    values = checkpoint.load(path, model=model, **state)
    done = values["epochs"]
    vars(best).update(values["best"])
    print(f"Going on after epoch {done}")
else:
    model.eval()(loader=eval_loader)  # fills the histories

progress = tqdm(range(done + 1, args.epochs + 1))
for epoch in progress:
    model.train()
    for batch, *ids in train_loader:
        out = model(batch.x, batch.adj_t, *ids)
        mask = batch.train_mask[: out.size(0)]
        loss = F.cross_entropy(out[mask], batch.y[: out.size(0)][mask])
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    scheduler.step()
    out = model.eval()(loader=eval_loader)  # exact, and refreshes the histories
    best.update(epoch, *scores(out, data.y, data.val_mask, data.test_mask))
    checkpoint.save(path, model=model, **state, epochs=epoch, best=vars(best))
    progress.set_postfix_str(f"test {best}")
print(f"Test accuracy: {best}")
