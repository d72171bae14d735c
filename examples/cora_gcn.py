"""GCN on Cora (2,708 nodes), full batch and with histories, over several seeds.

The paper's Table 1: 82.29 ± 0.76 % with histories, 81.88 ± 0.75 % full batch (--seeds 20).
"""

from copy import copy

import torch
import torch.nn.functional as F
from common import Best, mean_std, parse_args, scores
from tqdm import tqdm

from torch_gas import SubgraphLoader, gcn_norm, get_data, metis, permute
from torch_gas.models import GCN

args = parse_args(__doc__, epochs=200, seeds=10)

# Parts are groups of nodes with few edges between them; a batch is the union of ten of them.
data, in_channels, out_channels = get_data(args.root, "Cora", layout="csr")
data = gcn_norm(data)
perm, ptr = metis(data, num_parts=40)
data = permute(data, perm)
loader = SubgraphLoader(data, ptr, batch_size=10, shuffle=True, device=args.device)
graph = copy(data).to(args.device)

model = GCN(
    data.num_nodes,
    in_channels,
    hidden_channels=16,
    out_channels=out_channels,
    num_layers=2,
    dropout=0.5,
    device=args.device,  # of the histories, which are small here
).to(args.device)


@torch.no_grad()
def evaluate():
    model.eval()
    return model(graph.x, graph.adj_t)  # the whole graph, which refreshes the histories


# Full batch is the same loop over one batch without halo, so without ids.
methods = {"full batch": [(graph,)], "histories": loader}
tests = {method: [] for method in methods}
progress = tqdm(total=len(methods) * args.seeds * args.epochs)
for seed in range(args.seeds):
    for method, batches in methods.items():
        torch.manual_seed(seed)
        model.reset_parameters()
        optimizer = torch.optim.Adam(model.parameter_groups(5e-4), lr=0.01)
        best = Best()
        evaluate()  # fills the histories
        for epoch in range(1, args.epochs + 1):
            model.train()
            for batch, *ids in batches:
                out = model(batch.x, batch.adj_t, *ids)
                train_mask = batch.train_mask[: out.size(0)]
                if train_mask.any():
                    loss = F.cross_entropy(out[train_mask], batch.y[: out.size(0)][train_mask])
                    optimizer.zero_grad()
                    loss.backward()
                    torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
                    optimizer.step()
            best.update(epoch, *scores(evaluate(), graph.y, graph.val_mask, graph.test_mask))
            progress.update()
        tests[method].append(best.test)
        progress.set_postfix_str(f"{method}: {best}")
progress.close()
for method, values in tests.items():
    print(f"{method:>10}: {mean_std(values)}")
difference = torch.tensor(tests["histories"]) - torch.tensor(tests["full batch"])
print(f"Test accuracy with histories minus full batch: {100 * difference.mean():+.2f} points")
