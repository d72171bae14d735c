"""GIN with Lipschitz regularisation on CLUSTER (10,000 training graphs of 117 nodes on average).

Section 3 of the paper: the smoother a layer is, the less stale histories matter. So each hidden
layer's MLP is asked to change little under noise on its input. The training graphs are joined and
partitioned, and METIS does not know where a graph ends.
"""

import torch
import torch.nn.functional as F
from common import Best, parse_args
from tqdm import tqdm

from torch_gas import (
    EvalSubgraphLoader,
    SubgraphLoader,
    compute_micro_f1,
    get_data,
    metis,
    permute,
)
from torch_gas.extensions.refresh import PUBLISHED
from torch_gas.extensions.regularization import LocalPerturbation
from torch_gas.models import GIN

args = parse_args(__doc__, epochs=150, seed=0)

data, in_channels, out_channels = get_data(args.root, "CLUSTER", layout="csr")
perm, ptr = metis(data, num_parts=10_000)
data = permute(data, perm)
train_loader = SubgraphLoader(data, ptr, batch_size=256, shuffle=True, device=args.device)
eval_loader = EvalSubgraphLoader(data, ptr, batch_size=256, device=args.device)
val_graph, test_graph = (
    get_data(args.root, "CLUSTER", split=split, layout="csr")[0].to(args.device) for split in ("val", "test")
)

torch.manual_seed(args.seed)
model = GIN(
    data.num_nodes,
    in_channels,
    hidden_channels=128,
    out_channels=out_channels,
    num_layers=4,
).to(args.device)
optimizer = torch.optim.Adam(model.parameters(), lr=0.001)
scheduler = torch.optim.lr_scheduler.ReduceLROnPlateau(optimizer, "max", factor=0.5, patience=20, min_lr=1e-5)

LocalPerturbation(weight=1.0, noise=0.1).attach(model)
refresher = PUBLISHED.bind(model, eval_loader)


@torch.no_grad()
def score(graph):
    """Accuracy on another graph, full batch, which leaves the histories alone."""
    return compute_micro_f1(model(graph.x, graph.adj_t), graph.y)


best = Best()
refresher.before_training()
progress = tqdm(range(1, args.epochs + 1))
for epoch in progress:
    model.train()
    for batch, batch_size, *ids in train_loader:
        out = model(batch.x, batch.adj_t, batch_size, *ids)
        loss = F.cross_entropy(out, batch.y[:batch_size]) + model.regularization()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    refresher.after_epoch()
    model.eval()
    val, test = score(val_graph), score(test_graph)
    scheduler.step(val)
    best.update(epoch, val, test)
    progress.set_postfix_str(f"test {best}")
print(f"{refresher.cost.refreshes} refreshes: {refresher.cost.seconds:.0f} s")
print(f"Test accuracy: {best}")
