"""Exact gradients: the gradient of the whole graph, computed in batches, after training with histories.

A GCNII trains on random parts, the worst case for histories: most neighbours are outside of the batch, and gradients end
there. Some steps with exact gradients follow; each is a step of full-batch training, in the memory of a batch.
"""

import torch
import torch.nn.functional as F
from common import parse_args, scores
from tqdm import tqdm

from torch_gas import EvalSubgraphLoader, ExactGradient, SubgraphLoader, gcn_norm, get_data, permute
from torch_gas.models import GCN2

args = parse_args(__doc__, epochs=20, exact_epochs=20, seed=0, num_nodes=5_000)
torch.manual_seed(args.seed)

data, in_channels, out_channels = get_data(args.root, f"synthetic:{args.num_nodes}", layout="edge_index")
data = permute(gcn_norm(data), torch.randperm(data.num_nodes))
ptr = torch.linspace(0, data.num_nodes, 11).long()
train_loader = SubgraphLoader(data, ptr, shuffle=True, device=args.device)
eval_loader = EvalSubgraphLoader(data, ptr, device=args.device)

model = GCN2(data.num_nodes, in_channels, 64, out_channels, num_layers=4, alpha=0.1, theta=0.5, dropout=0.3).to(
    args.device
)
optimizer = torch.optim.Adam(model.parameters(), lr=0.01)
num_labels = int(data.train_mask.sum())


def criterion(out, batch):
    """The batch's share of the mean over all labelled nodes."""
    mask = batch.train_mask[: len(out)]
    return F.cross_entropy(out[mask], batch.y[: len(out)][mask], reduction="sum") / num_labels


def report(title):
    """Prints the accuracy on the test nodes."""
    out = model.eval()(loader=eval_loader)
    print(f"{title}: test accuracy {100 * scores(out, data.y, data.test_mask)[0]:.2f} %")


model.eval()(loader=eval_loader)  # fills the histories
for _ in tqdm(range(args.epochs)):
    model.train()
    for batch in train_loader:
        optimizer.zero_grad()
        criterion(model(batch), batch).backward()
        optimizer.step()
report(f"{args.epochs} epochs with histories")

exact = ExactGradient(model, eval_loader)
for _ in tqdm(range(args.exact_epochs)):
    model.train()
    optimizer.zero_grad()
    exact.backward(criterion)  # adds the gradient of the whole graph to .grad
    optimizer.step()
report(f"{args.exact_epochs} steps with exact gradients")
