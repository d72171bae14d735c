"""A model of your own: a new message-passing layer with edge features, in ten lines of wiring.

What the library asks of a model is to derive from ScalableGNN and to call push_and_pull between two
layers. The graph needs no download; each edge gets the logarithms of the degrees of its ends.
"""

from itertools import pairwise

import torch
import torch.nn.functional as F
from common import Best, parse_args, scores
from torch_geometric.nn import MessagePassing
from tqdm import tqdm

from torch_gas import (
    EvalSubgraphLoader,
    ScalableGNN,
    SubgraphLoader,
    check,
    get_data,
    in_degree,
    metis,
    permute,
)

args = parse_args(__doc__, epochs=20, seed=0, num_nodes=20_000)


class GatedConv(MessagePassing):
    """Mean of the neighbours' features, gated by the edge's features, plus the node's own."""

    def __init__(self, in_channels, out_channels, edge_channels):
        super().__init__(aggr="mean")
        self.neighbor = torch.nn.Linear(in_channels, out_channels)
        self.own = torch.nn.Linear(in_channels, out_channels)
        self.gate = torch.nn.Linear(edge_channels, out_channels)

    def forward(self, x, edge_index, edge_attr):
        # On a batch, x has B + S rows and edges lead to the first B only; the result is cut to B.
        out = self.propagate(edge_index, x=self.neighbor(x), gate=self.gate(edge_attr).sigmoid())
        return out + self.own(x)

    def message(self, x_j, gate):
        return gate * x_j


class GatedGNN(ScalableGNN):
    def __init__(self, num_nodes, in_channels, edge_channels, hidden_channels, out_channels):
        super().__init__(num_nodes, hidden_channels, num_layers=3)  # two histories between them
        widths = [in_channels, hidden_channels, hidden_channels, out_channels]
        self.convs = torch.nn.ModuleList(GatedConv(*width, edge_channels) for width in pairwise(widths))

    def forward(self, x, edge_index, *ids, edge_attr):
        for conv, history in zip(self.convs[:-1], self.histories, strict=True):
            x = conv(x, edge_index, edge_attr).relu()
            x = self.push_and_pull(history, x, *ids)
        return self.convs[-1](x, edge_index, edge_attr)


data, in_channels, out_channels = get_data(args.root, f"synthetic:{args.num_nodes}", layout="edge_index")
degree = in_degree(data.edge_index, data.num_nodes).float().log1p()
data.edge_attr = degree[data.edge_index].t().contiguous()  # [E, 2]
perm, ptr = metis(data, num_parts=20)
data = permute(data, perm)
train_loader = SubgraphLoader(data, ptr, batch_size=4, shuffle=True, device=args.device)
eval_loader = EvalSubgraphLoader(data, ptr, batch_size=4, device=args.device)

torch.manual_seed(args.seed)
model = GatedGNN(data.num_nodes, in_channels, 2, 32, out_channels).to(args.device)
check(model, data)  # that the layer reads what a batch has, and no more
optimizer = torch.optim.Adam(model.parameters(), lr=0.01)

model.eval()(loader=eval_loader)  # fills the histories
best = Best()
progress = tqdm(range(1, args.epochs + 1))
for epoch in progress:
    model.train()
    for batch, batch_size, *ids in train_loader:
        out = model(batch.x, batch.edge_index, batch_size, *ids, edge_attr=batch.edge_attr)
        train_mask = batch.train_mask[:batch_size]
        loss = F.cross_entropy(out[train_mask], batch.y[:batch_size][train_mask])
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    out = model.eval()(loader=eval_loader)  # exact; edge_attr is taken from each batch by its name
    best.update(epoch, *scores(out, data.y, data.val_mask, data.test_mask))
    progress.set_postfix_str(f"test {best}")
print(f"Test accuracy: {best}")
