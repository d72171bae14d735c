"""Three models that know nothing of histories, trained full batch and through scale().

--model gcnii: GCNII with 64 layers, which normalise by degrees inside (Cora).
--model jumping: PyG's GraphSAGE with jumping knowledge (Coauthor-CS).
--model edges: a layer of your own with edge features, which counts degrees (Amazon-Computers).
"""

from copy import copy
from statistics import median
from time import perf_counter

import torch
import torch.nn.functional as F
from common import Best, mean_std, parse_args, scores, split_of
from torch.nn import Dropout, Linear, ReLU
from torch_geometric.nn import GCN2Conv, GraphSAGE, MessagePassing, Sequential
from torch_geometric.utils import degree
from tqdm import tqdm

from torch_gas import SubgraphLoader, get_data, metis, permute, scale


class GCNII(torch.nn.Module):
    def __init__(self, in_channels, out_channels):
        super().__init__()
        self.first, self.last = Linear(in_channels, 64), Linear(64, out_channels)
        self.convs = torch.nn.ModuleList(GCN2Conv(64, 0.1, 0.5, i + 1) for i in range(args.num_layers))

    def forward(self, x, edge_index):
        x = x_0 = self.first(F.dropout(x, 0.6, self.training)).relu()
        for conv in self.convs:
            x = conv(F.dropout(x, 0.6, self.training), x_0, edge_index).relu()
        return self.last(F.dropout(x, 0.6, self.training))


class GatedConv(MessagePassing):
    def __init__(self, in_channels, out_channels, edge_channels=2):
        super().__init__(aggr="sum")
        self.own, self.neighbor = Linear(in_channels, out_channels), Linear(in_channels, out_channels)
        self.gate = Linear(edge_channels, out_channels)

    def forward(self, x, edge_index, edge_attr):
        src, dst = edge_index
        norm = degree(dst, x.size(0)).clamp(min=1).rsqrt()  # of both ends, which only the whole graph tells
        gate = self.gate(edge_attr).sigmoid() * (norm[src] * norm[dst]).view(-1, 1)
        return self.own(x) + self.propagate(edge_index, x=self.neighbor(x), gate=gate)

    def message(self, x_j, gate):
        return gate * x_j


def jumping(in_channels, out_channels):
    return GraphSAGE(in_channels, 64, 3, out_channels, dropout=0.5, jk="cat")


def edges(in_channels, out_channels):
    args, step = "x, edge_index, edge_attr", "x, edge_index, edge_attr -> x"
    layers = [(GatedConv(in_channels, 64), step), ReLU(), Dropout(0.5), (GatedConv(64, out_channels), step)]
    return Sequential(args, layers)


args = parse_args(__doc__, epochs=200, seeds=1, model="edges", num_layers=64)
name, layout, num_parts, batch_size, make = {
    "gcnii": ("Cora", "csr", 40, 10, GCNII),
    "jumping": ("Coauthor-CS", "csr", 16, 8, jumping),
    "edges": ("Amazon-Computers", "edge_index", 20, 5, edges),
}[args.model]
data, in_channels, out_channels = get_data(args.root, name, layout=layout)
if args.model == "edges":
    same = F.cosine_similarity(data.x[data.edge_index[0]], data.x[data.edge_index[1]])
    data.edge_attr = torch.stack([same, same**2], dim=1)
perm, ptr = metis(data, num_parts)
data = permute(data, perm)
loader = SubgraphLoader(data, ptr, batch_size, shuffle=True, seed=0, device=args.device)
graph = copy(data).to(args.device)


@torch.no_grad()
def evaluate(model):
    return model.eval()(graph)  # the whole graph, which refreshes the histories


def run(seed, title, with_histories):
    torch.manual_seed(seed)
    model = scale(make(in_channels, out_channels), data).to(args.device)
    optimizer = torch.optim.Adam(model.parameters(), lr=0.01, weight_decay=5e-4)
    best, seconds = Best(), []
    evaluate(model)  # fills the histories
    for epoch in tqdm(range(1, args.epochs + 1), desc=title):
        start = perf_counter()
        model.train()
        for batch, *ids in loader if with_histories else [(graph,)]:
            out = model(batch, *ids)  # a row for each node of the batch, or of the whole graph
            mask = split_of(batch, seed)[0][: len(out)]
            if mask.any():
                optimizer.zero_grad()
                F.cross_entropy(out[mask], batch.y[: len(out)][mask]).backward()
                torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
                optimizer.step()
        seconds.append(perf_counter() - start)
        best.update(epoch, *scores(evaluate(model), graph.y, *split_of(graph, seed)[1:]))
    print(f"{title}: {best}, {median(seconds):.2f} s an epoch", flush=True)
    return best.test


full = [run(seed, "full batch", False) for seed in range(args.seeds)]
gas = [run(seed, "histories ", True) for seed in range(args.seeds)]
difference = 100 * (sum(gas) - sum(full)) / args.seeds
print(f"{args.model} on {name}, full batch: {mean_std(full)}, histories: {mean_std(gas)} ({difference:+.2f} points)")
