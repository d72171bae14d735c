"""Models as their users write them, which know nothing of histories."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
import torch_geometric.nn as nn
from torch import Tensor
from torch.nn import Linear, Module, ModuleList
from torch_geometric.data import Data
from torch_geometric.nn import MessagePassing
from torch_geometric.nn.conv.gcn_conv import gcn_norm
from torch_geometric.utils import add_self_loops, degree, remove_self_loops, scatter, softmax

C, H, OUT = 8, 6, 3  # channels of the input, between layers, and of the output


class Stack(Module):
    """Layers one after the other, which take ``names`` of the edges' attributes; or in another ``body``."""

    def __init__(self, *convs: Module, names: tuple[str, ...] = (), body: Callable[..., Any] | None = None) -> None:
        super().__init__()
        self.convs, self.names, self.body = ModuleList(convs), names, body
        self.norm = torch.nn.LayerNorm(H)

    def forward(self, x: Tensor, edge_index: Any, edge_weight: Any = None, edge_attr: Any = None) -> Any:
        if self.body is not None:
            return self.body(self, x, edge_index)
        given = {"edge_weight": edge_weight, "edge_attr": edge_attr}
        for conv in self.convs:
            x = conv(x, edge_index, *(given[name] for name in self.names)).tanh()
            x = F.dropout(x, 0.2, self.training)
        return x


class DeeperGCN(Module):
    def __init__(self, block: str, norm: Callable[[int], Module] = torch.nn.LayerNorm, ckpt_grad: bool = False) -> None:
        super().__init__()
        self.encode = Linear(C, H)
        width, self.layers = H, ModuleList()
        for _ in range(3):
            conv = nn.GENConv(width, H, aggr="softmax", learn_t=True, edge_dim=3)
            between = norm(width if block == "res+" else H)
            self.layers.append(nn.DeepGCNLayer(conv, between, torch.nn.ReLU(), block, 0.1, ckpt_grad))
            width += H if block == "dense" else 0
        self.decode = Linear(width, OUT)

    def forward(self, x: Tensor, edge_index: Any, edge_attr: Tensor) -> Tensor:
        x = self.encode(x)
        for layer in self.layers:
            x = layer(x, edge_index, edge_attr)
        return self.decode(F.dropout(x, 0.1, self.training))


class GCNII(Module):
    def __init__(self) -> None:
        super().__init__()
        self.lins = ModuleList([Linear(C, H), Linear(H, OUT)])
        self.convs = ModuleList([nn.GCN2Conv(H, 0.1, 0.5, i + 1) for i in range(4)])

    def forward(self, x: Tensor, adj_t: Any) -> Tensor:
        x = x_0 = self.lins[0](x).relu()
        for conv in self.convs:
            x = conv(F.dropout(x, 0.3, self.training), x_0, adj_t).relu()
        return self.lins[1](x).log_softmax(-1)


class Shared(Module):
    """One layer that is called three times."""

    def __init__(self, conv: Module) -> None:
        super().__init__()
        self.lin, self.conv = Linear(C, H), conv

    def forward(self, x: Tensor, edge_index: Any) -> Tensor:
        x = self.lin(x)
        for _ in range(3):
            x = x + self.conv(x, edge_index).tanh()
        return x


class TakesData(Module):
    """Takes a graph, and has its layers somewhere deep."""

    def __init__(self) -> None:
        super().__init__()
        self.body = torch.nn.ModuleDict({"deep": ModuleList([nn.GCNConv(C, H), nn.GCNConv(H, OUT)])})

    def forward(self, data: Data) -> Tensor:
        first, second = self.body["deep"]
        x = first(data.x, data.edge_index, data.edge_weight).relu()
        return second(x, data.edge_index, data.edge_weight)


class Several(Module):
    """Returns a dictionary that holds a tuple and a list."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.second = nn.SAGEConv(C, H), nn.SAGEConv(H, OUT)

    def forward(self, x: Tensor, edge_index: Any) -> Any:
        h = self.first(x, edge_index).relu()
        out = self.second(h, edge_index)
        return {"out": out, "more": (h, [out.softmax(-1)])}


class Gru(Module):
    def __init__(self) -> None:
        super().__init__()
        self.lin, self.conv, self.gru = Linear(C, H), nn.GraphConv(H, H), torch.nn.GRU(H, H)

    def forward(self, x: Tensor, edge_index: Any) -> Tensor:
        x = self.lin(x)
        h = x.unsqueeze(0)
        for _ in range(3):
            m = self.conv(x, edge_index).relu()
            x, h = self.gru(m.unsqueeze(0), h)
            x = x.squeeze(0)
        return x


class OverLayers(Module):
    """An LSTM reads each node's rows of all layers, and attention weighs them."""

    def __init__(self) -> None:
        super().__init__()
        self.convs = ModuleList([nn.GATConv(C, H), nn.GATConv(H, H), nn.GATConv(H, H)])
        self.lstm, self.attend = torch.nn.LSTM(H, H, bidirectional=True, batch_first=True), Linear(2 * H, 1)

    def forward(self, x: Tensor, edge_index: Any) -> Tensor:
        xs = []
        for conv in self.convs:
            x = F.elu(conv(x, edge_index))
            xs.append(x)
        stacked = torch.stack(xs, dim=1)
        weights = self.attend(self.lstm(stacked)[0]).softmax(1)
        return (stacked * weights).sum(1)


class LayerDrop(Module):
    """Skips its second layer at random while it is trained."""

    def __init__(self) -> None:
        super().__init__()
        self.convs = ModuleList([nn.SAGEConv(C, H), nn.SAGEConv(H, H), nn.SAGEConv(H, OUT)])

    def forward(self, x: Tensor, edge_index: Any) -> Tensor:
        x = self.convs[0](x, edge_index).relu()
        if not self.training or torch.rand(()) < 0.5:
            x = x + self.convs[1](x, edge_index).relu()
        return self.convs[2](x, edge_index)


class Dna(Module):
    def __init__(self) -> None:
        super().__init__()
        self.convs = ModuleList([nn.DNAConv(C, heads=2) for _ in range(3)])

    def forward(self, x: Tensor, edge_index: Any) -> Tensor:
        xs = x.view(-1, 1, C)
        for conv in self.convs:
            xs = torch.cat([xs, conv(xs, edge_index).relu().view(-1, 1, C)], dim=1)
        return xs[:, -1]


class Normed(Module):
    """Calls gcn_norm itself and passes the weights on."""

    def __init__(self, self_loops: bool) -> None:
        super().__init__()
        self.self_loops = self_loops
        self.convs = ModuleList([nn.GCNConv(C, H, normalize=False), nn.GraphConv(H, OUT)])

    def forward(self, x: Tensor, edge_index: Tensor) -> Tensor:
        edge_index, weight = gcn_norm(edge_index, None, x.size(0), add_self_loops=self.self_loops, dtype=x.dtype)
        x = self.convs[0](x, edge_index, weight).relu()
        return self.convs[1](x, edge_index, weight)


class TutorialConv(MessagePassing):
    """The layer of PyG's tutorial, which counts degrees of sources."""

    def __init__(self, in_channels, out_channels):
        super().__init__(aggr="add")
        self.lin = Linear(in_channels, out_channels, bias=False)
        self.bias = torch.nn.Parameter(torch.zeros(out_channels))

    def forward(self, x, edge_index):
        edge_index, _ = add_self_loops(edge_index, num_nodes=x.size(0))
        x = self.lin(x)
        row, col = edge_index
        deg = degree(col, x.size(0), dtype=x.dtype)
        deg_inv_sqrt = deg.pow(-0.5)
        deg_inv_sqrt[deg_inv_sqrt == float("inf")] = 0
        norm = deg_inv_sqrt[row] * deg_inv_sqrt[col]
        return self.propagate(edge_index, x=x, norm=norm) + self.bias

    def message(self, x_j, norm):
        return norm.view(-1, 1) * x_j


class Own(Module):
    """A layer in plain torch, which adds up rows in one of the many ways."""

    def __init__(self, in_channels: int, out_channels: int, how: str) -> None:
        super().__init__()
        self.lin, self.own, self.how = Linear(in_channels, out_channels), Linear(in_channels, out_channels), how

    def forward(self, x: Tensor, edge_index: Any) -> Tensor:
        return self.neighbors(self.lin(x), edge_index) + self.own(x)

    def neighbors(self, rows: Tensor, adj: Any) -> Tensor:
        if self.how == "@":
            return adj @ rows
        (src, dst), out, size = adj, torch.zeros_like(rows), rows.size(0)
        index, values = dst.view(-1, 1).expand(-1, rows.size(1)), rows[src]
        if self.how == "index_add_":
            out.index_add_(0, dst, values)
        elif self.how == "index_add":
            out = out.index_add(0, dst, values)
        elif self.how == "scatter_add_":
            out.scatter_add_(0, index, values)
        elif self.how == "scatter_reduce":
            out = out.scatter_reduce(0, index, values, "amax", include_self=False)
        elif self.how == "scatter_reduce_":
            out.scatter_reduce_(0, index, values, "amax", include_self=False)
        elif self.how == "scatter":
            out = scatter(values, dst, dim=0, dim_size=size, reduce="mean")
        elif self.how == "torch_scatter":
            import torch_scatter

            out = torch_scatter.scatter(values, dst, dim=0, dim_size=size, reduce="max")
        elif self.how == "index_put_":
            out.index_put_((dst,), values, accumulate=True)
        else:
            raise ValueError(self.how)
        return out


class Attention(Module):
    """Attention over neighbours in plain torch, with PyG's softmax and one of its aggregations."""

    def __init__(self, in_channels: int, out_channels: int, aggr: Module | None = None) -> None:
        super().__init__()
        self.lin, self.att = Linear(in_channels, out_channels), Linear(2 * out_channels, 1)
        self.aggr = aggr or nn.aggr.SumAggregation()

    def forward(self, x: Tensor, edge_index: Tensor) -> Tensor:
        x = self.lin(x)
        edge_index, _ = remove_self_loops(edge_index)
        src, dst = edge_index
        alpha = softmax(self.att(torch.cat([x[src], x[dst]], -1)), dst, num_nodes=x.size(0))
        return x + self.aggr(alpha * x[src], dst, dim_size=x.size(0))


class LoopsInForward(Module):
    """Adds self-loops to the graph before its layers."""

    def __init__(self) -> None:
        super().__init__()
        self.convs = ModuleList([nn.SAGEConv(C, H), nn.SAGEConv(H, OUT)])

    def forward(self, x: Tensor, edge_index: Tensor) -> Tensor:
        edge_index, _ = add_self_loops(edge_index, num_nodes=x.size(0))
        return self.convs[1](self.convs[0](x, edge_index).relu(), edge_index)


def layered(make: Callable[[int, int], Module], *names: str) -> Callable[[], Module]:
    """Three layers one after the other."""
    return lambda: Stack(make(C, H), make(H, H), make(H, H), names=names)


def alone(conv: Callable[[], Module]) -> Callable[[], Module]:
    """A model of one layer, behind a linear one."""
    return lambda: Stack(Linear(C, C), conv(), body=lambda self, x, adj: self.convs[1](self.convs[0](x), adj))


def _parallel(self: Stack, x: Tensor, adj: Any) -> Tensor:
    x = self.convs[0](x, adj).relu() + self.convs[1](x, adj)
    return self.convs[2](self.norm(x), adj) + self.convs[3](x, adj)


def _concatenated(self: Stack, x: Tensor, adj: Any) -> Tensor:
    for conv in self.convs:
        x = torch.cat([x, conv(x, adj).relu()], dim=-1)
    return x


def _sequential() -> Module:
    layers = [
        (torch.nn.Dropout(0.2), "x -> x"),
        (nn.GCNConv(C, H), "x, edge_index, edge_weight -> x1"),
        torch.nn.ReLU(),
        (nn.GraphConv(H, H), "x1, edge_index, edge_weight -> x2"),
        (lambda x1, x2: [x1, x2], "x1, x2 -> xs"),
        (nn.JumpingKnowledge("cat"), "xs -> x"),
        (nn.SAGEConv(2 * H, OUT), "x, edge_index -> x"),
    ]
    return nn.Sequential("x, edge_index, edge_weight", layers)


PLAIN = ["index_add_", "index_add", "scatter_add_", "scatter_reduce", "scatter"]
MODELS: dict[str, Callable[[], Module]] = {
    **{f"DeeperGCN-{block}": lambda block=block: DeeperGCN(block) for block in ("res+", "res", "dense", "plain")},
    "DeeperGCN-batch-norm": lambda: DeeperGCN("res+", torch.nn.BatchNorm1d),
    "Sequential": _sequential,
    "forward(data)": TakesData,
    "GCNII": GCNII,
    "shared": lambda: Shared(nn.GCNConv(H, H)),
    "shared-GIN": lambda: Shared(nn.GINConv(Linear(H, H))),
    "several-outputs": Several,
    "GRU": Gru,
    "LSTM-over-layers": OverLayers,
    "LayerDrop": LayerDrop,
    "DNA": Dna,
    "gcn_norm-in-forward": lambda: Normed(False),
    "tutorial": layered(TutorialConv),
    "GINE": layered(lambda i, o: nn.GINEConv(Linear(i, o), edge_dim=3), "edge_attr"),
    "NNConv": layered(lambda i, o: nn.NNConv(i, o, Linear(3, i * o), aggr="mean"), "edge_attr"),
    "TransformerConv": layered(lambda i, o: nn.TransformerConv(i, o, edge_dim=3, beta=True), "edge_attr"),
    "GATConv-edge": layered(lambda i, o: nn.GATConv(i, o, edge_dim=3), "edge_attr"),
    "GCN-weight": layered(nn.GCNConv, "edge_weight"),
    "parallel": lambda: Stack(
        nn.GCNConv(C, H), nn.SAGEConv(C, H), nn.GATConv(H, H), nn.GraphConv(H, H), body=_parallel
    ),
    "concatenated": lambda: Stack(*(nn.SAGEConv(C + i * H, H) for i in range(4)), body=_concatenated),
    "APPNP": alone(lambda: nn.APPNP(3, 0.1)),
    "SGConv": alone(lambda: nn.SGConv(C, OUT, K=3)),
    "TAGConv": alone(lambda: nn.TAGConv(C, OUT, K=3)),
    "GatedGraph": alone(lambda: nn.GatedGraphConv(C, 3)),
    "MixHop": layered(lambda i, o: nn.MixHopConv(i, o // 3)),
    "ARMA": layered(lambda i, o: nn.ARMAConv(i, o, 2, 2)),
    "Cheb": layered(lambda i, o: nn.ChebConv(i, o, 3)),
    "DirGNN": layered(lambda i, o: nn.DirGNNConv(nn.SAGEConv(i, o))),
    "outgoing": layered(lambda i, o: nn.GraphConv(i, o, flow="target_to_source")),
    "cached": layered(lambda i, o: nn.GCNConv(i, o, cached=True)),
    "attention": layered(Attention),
    **{f"own-{how}": layered(lambda i, o, how=how: Own(i, o, how)) for how in PLAIN},
}
