"""GCN on ogbn-arxiv (169,343 nodes).

The paper's Table 5: 71.68 % with histories.
"""

import torch
import torch.nn.functional as F
from common import Best, parse_args, scores
from tqdm import tqdm

from torch_gas import EvalSubgraphLoader, SubgraphLoader, gcn_norm, get_data, metis, permute
from torch_gas.models import GCN

args = parse_args(__doc__, epochs=300, seed=0)

data, in_channels, out_channels = get_data(args.root, "ogbn-arxiv", layout="csr")
data = gcn_norm(data)
perm, ptr = metis(data, num_parts=80)
data = permute(data, perm)
train_loader = SubgraphLoader(data, ptr, batch_size=40, shuffle=True, device=args.device)
eval_loader = EvalSubgraphLoader(data, ptr, batch_size=40, device=args.device)

torch.manual_seed(args.seed)
# Histories stay in host memory, so a GPU holds no more than a batch and its halo at a time.
model = GCN(
    data.num_nodes,
    in_channels,
    hidden_channels=256,
    out_channels=out_channels,
    num_layers=3,
    dropout=0.5,
    drop_input=False,
    batch_norm=True,
).to(args.device)
optimizer = torch.optim.Adam(model.parameters(), lr=0.01)


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
