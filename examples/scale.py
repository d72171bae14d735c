"""Histories for a model that you have already: the lines of a PyG script that change.

The model is PyG's own GraphSAGE with jumping knowledge, and no line of it is touched. What the
library adds to the script is marked with "<--"; the graph needs no download.
"""

import torch
import torch.nn.functional as F
from common import Best, parse_args, scores
from torch_geometric.nn import GraphSAGE
from tqdm import tqdm

from torch_gas import EvalSubgraphLoader, SubgraphLoader, get_data, metis, permute, scale  # <--

args = parse_args(__doc__, epochs=20, seed=0, num_nodes=20_000)
torch.manual_seed(args.seed)

data, in_channels, out_channels = get_data(args.root, f"synthetic:{args.num_nodes}", layout="edge_index")
perm, ptr = metis(data, num_parts=20)  # <-- parts of nodes with few edges between them ...
data = permute(data, perm)  # <-- ... which become contiguous

plain = GraphSAGE(in_channels, 64, num_layers=3, out_channels=out_channels, dropout=0.5, norm="batch_norm", jk="cat")
model = scale(plain, data).to(args.device)  # <-- the one line for the model
optimizer = torch.optim.Adam(model.parameters(), lr=0.01)

train_loader = SubgraphLoader(data, ptr, batch_size=5, shuffle=True, device=args.device)  # <-- for training
eval_loader = EvalSubgraphLoader(data, ptr, batch_size=5, device=args.device)  # <-- and for exact inference

model.eval()(loader=eval_loader)  # <-- fills the histories, which are zeros at first
best = Best()
progress = tqdm(range(1, args.epochs + 1))
for epoch in progress:
    model.train()
    for batch, *ids in train_loader:
        out = model(batch.x, batch.edge_index, *ids)  # <-- the ids of the batch's nodes; gives a row for each of these
        mask, y = batch.train_mask[: len(out)], batch.y[: len(out)]
        loss = F.cross_entropy(out[mask], y[mask])
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    out = model.eval()(loader=eval_loader)  # <-- exact, layer by layer, in the memory of one batch
    best.update(epoch, *scores(out, data.y, data.val_mask, data.test_mask))
    progress.set_postfix_str(f"test {best}")

# What was trained is the plain model, which needs nothing of this library.
with torch.no_grad():
    out = model.unscale().cpu()(data.x, data.edge_index)
print(f"Plain model on the whole graph, last epoch: {100 * scores(out, data.y, data.test_mask)[0]:.2f} %")
print(f"Test accuracy: {best}")
