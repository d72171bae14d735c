"""PNA on Flickr (89,250 nodes).

The paper's Table 5: 56.67 % with histories.
"""

import torch
import torch.nn.functional as F
from common import Best, parse_args, scores
from tqdm import tqdm

from torch_gas import EvalSubgraphLoader, SubgraphLoader, get_data, in_degree, metis, permute
from torch_gas.models import PNA

args = parse_args(__doc__, epochs=500, seed=0)

data, in_channels, out_channels = get_data(args.root, "Flickr", layout="csr")
perm, ptr = metis(data, num_parts=24)
data = permute(data, perm)
train_loader = SubgraphLoader(data, ptr, batch_size=12, shuffle=True, device=args.device)
eval_loader = EvalSubgraphLoader(data, ptr, batch_size=12, device=args.device)

torch.manual_seed(args.seed)
# Histories stay in host memory, so a GPU holds no more than a batch and its halo at a time.
model = PNA(
    data.num_nodes,
    in_channels,
    hidden_channels=64,
    out_channels=out_channels,
    num_layers=4,
    aggregators=["mean", "max"],
    scalers=["identity", "amplification"],
    deg=in_degree(data.adj_t, data.num_nodes),
    dropout=0.5,
    batch_norm=True,
).to(args.device)
optimizer = torch.optim.Adam(model.parameters(), lr=0.005)


def evaluate():
    model.eval()
    return model(loader=eval_loader)  # exact, layer by layer; refreshes the histories


best = Best()
evaluate()  # fills the histories
progress = tqdm(range(1, args.epochs + 1))
for epoch in progress:
    model.train()
    for batch, batch_size, *ids in train_loader:
        out = model(batch.x, batch.adj_t, batch_size, *ids)
        train_mask = batch.train_mask[:batch_size]
        if train_mask.any():
            loss = F.cross_entropy(out[train_mask], batch.y[:batch_size][train_mask])
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
    best.update(epoch, *scores(evaluate(), data.y, data.val_mask, data.test_mask))
    progress.set_postfix_str(f"test {best}")
print(f"Test accuracy: {best}")
