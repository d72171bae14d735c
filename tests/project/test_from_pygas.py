"""Scripts in the style of PyGAS run with nothing but their imports changed (see docs/from_pygas.md)."""

import torch
from graphs import requires_sparse
from torch.nn import ModuleList
from torch_geometric.nn import SAGEConv
from torch_geometric.nn.conv.gcn_conv import gcn_norm

from torch_gas import EvalSubgraphLoader, ScalableGNN, SubgraphLoader, compute_micro_f1, get_data, metis, permute
from torch_gas.models import GCN

pytestmark = requires_sparse


class GNN(ScalableGNN):
    def __init__(self, num_nodes, in_channels, hidden_channels, out_channels, num_layers):
        super().__init__(num_nodes, hidden_channels, num_layers, pool_size=2, buffer_size=5000)
        sizes = [in_channels] + [hidden_channels] * (num_layers - 1) + [out_channels]
        self.convs = ModuleList()
        for i in range(num_layers):
            self.convs.append(SAGEConv(sizes[i], sizes[i + 1]))

    def forward(self, x, adj_t, *args):
        for conv, history in zip(self.convs[:-1], self.histories):  # noqa: B905
            x = conv(x, adj_t).relu_()
            x = self.push_and_pull(history, x, *args)
        return self.convs[-1](x, adj_t)


def test_subclass_over_sparse_tensor() -> None:
    data, in_channels, out_channels = get_data("data", "synthetic:600", layout="SparseTensor")
    perm, ptr = metis(data.adj_t, num_parts=8, log=True)
    data = permute(data, perm, log=True)
    loader = SubgraphLoader(data, ptr, batch_size=2, shuffle=True)
    model = GNN(data.num_nodes, in_channels, 16, out_channels, num_layers=3)
    model.eval()
    expected = model(data.x, data.adj_t)
    for batch, *args in loader:
        out = model(batch.x, batch.adj_t, *args)
        batch_size, n_id = args[:2]
        torch.testing.assert_close(out, expected[n_id[:batch_size]], rtol=1e-5, atol=1e-5)


def test_training_script() -> None:
    torch.manual_seed(12345)
    data, in_channels, out_channels = get_data("data", name="synthetic:2000")
    data.adj_t = gcn_norm(data.adj_t, add_self_loops=True)
    perm, ptr = metis(data.adj_t, num_parts=40, log=True)
    data = permute(data, perm, log=True)
    loader = SubgraphLoader(data, ptr, batch_size=10, shuffle=True)
    model = GCN(
        num_nodes=data.num_nodes,
        in_channels=in_channels,
        hidden_channels=16,
        out_channels=out_channels,
        num_layers=2,
        dropout=0.5,
        drop_input=True,
        pool_size=1,
        buffer_size=500,
    ).to("cpu")
    optimizer = torch.optim.Adam(
        [
            dict(params=model.reg_modules.parameters(), weight_decay=5e-4),
            dict(params=model.nonreg_modules.parameters(), weight_decay=0),
        ],
        lr=0.01,
    )
    criterion = torch.nn.CrossEntropyLoss()

    @torch.no_grad()
    def test():
        model.eval()
        out = model(data.x.to(model.device), data.adj_t.to(model.device)).cpu()
        return compute_micro_f1(out, data.y, data.test_mask)

    before = test()
    for _ in range(10):
        model.train()
        for batch, *args in loader:
            batch = batch.to(model.device)
            optimizer.zero_grad()
            out = model(batch.x, batch.adj_t, *args)
            mask = batch.train_mask[: out.size(0)]
            criterion(out[mask], batch.y[: out.size(0)][mask]).backward()
            torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
            optimizer.step()
    assert test() > before + 0.2
    model.eval()
    out = model(loader=EvalSubgraphLoader(data, ptr, batch_size=10))
    torch.testing.assert_close(out, model(data.x, data.adj_t), rtol=1e-4, atol=1e-5)
