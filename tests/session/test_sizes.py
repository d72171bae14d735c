"""Layers that go by the nodes of the whole graph and are exact on batches all the same: by statistics, sizes and ids."""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch_geometric.nn as nn
from graphs import FORMATS, adjacency, random_graph, to_format
from torch import Tensor
from torch.nn import BatchNorm1d, Module
from torch_geometric.data import Data

from torch_gas import EvalSubgraphLoader, ScalableGNN, SubgraphLoader, scale

N, C, H, OUT = 90, 8, 6, 3
PTR = torch.tensor([0, 20, 20, 47, N])


def graph(fmt: str = "edge_index") -> Data:
    return to_format(random_graph(N, 360, num_features=C), fmt)


class Plain(Module):
    """Two layers with a norm behind each."""

    def __init__(self, norm: Callable[[int], Module]) -> None:
        super().__init__()
        self.convs = torch.nn.ModuleList([nn.SAGEConv(C, H), nn.SAGEConv(H, OUT)])
        self.norms = torch.nn.ModuleList([norm(H), norm(OUT)])

    def forward(self, x: Tensor, adj: Any) -> Any:
        x = 5 * self.norms[0](self.convs[0](x, adj))
        return self.norms[1](self.convs[1](x, adj))


class Explicit(ScalableGNN):
    """The same layers, and norms of both kinds of rows: the batch's, and those with the halo."""

    def __init__(self, plain: Module) -> None:
        super().__init__(N, H, 2)
        self.convs, self.norms = plain.convs, plain.norms

    def forward(self, x: Tensor, adj: Any, *args: Any) -> Tensor:
        x = 5 * self.norms[0](self.convs[0](x, adj))
        x = self.push_and_pull(self.histories[0], x, *args)
        return self.norms[1](self.convs[1](x, adj))


class SizeOfAll(Explicit):
    def forward(self, x: Tensor, adj: Any, *args: Any) -> Tensor:
        x = self.push_and_pull(self.histories[0], self.convs[0](x, adj), *args)
        return self.norms[1](self.convs[1](5 * self.norms[0](x), adj))


def untracked(width: int) -> Module:
    return BatchNorm1d(width, track_running_stats=False)


def instance(width: int) -> Module:
    return nn.InstanceNorm(width, affine=True, track_running_stats=True)


def of_pyg(width: int) -> Module:
    return nn.BatchNorm(width, track_running_stats=False)


WIRED: dict[str, Callable[[Module, Data], Any]] = {
    "explicit": lambda plain, data: Explicit(plain),
    "automatic": scale,
}


# -- batch norms without running statistics ----------------------------------------------------------------------------


@pytest.mark.parametrize("wired", WIRED.values(), ids=WIRED)
@pytest.mark.parametrize("norm", [untracked, of_pyg])
def test_training_takes_statistics_of_the_batch(norm: Callable[[int], Module], wired: Any) -> None:
    data = graph()
    plain = Plain(norm)
    tracked = copy.deepcopy(plain)
    for module in tracked.modules():
        if isinstance(module, BatchNorm1d):
            module.track_running_stats = True
            module.running_mean, module.running_var = torch.zeros(module.num_features), torch.ones(module.num_features)
    models = wired(plain, data), wired(tracked, data)
    for batch in SubgraphLoader(data, PTR):
        assert batch.halo_size > 0
        left, right = (model(batch) for model in models)
        torch.testing.assert_close(left, right)
    assert all(module.running_mean is None for module in plain.modules() if isinstance(module, BatchNorm1d))


@pytest.mark.parametrize("wired", WIRED.values(), ids=WIRED)
def test_whole_graphs_in_evaluation_mode(wired: Any) -> None:
    data = graph()
    model = wired(Plain(untracked), data)
    full = model.train()(data.x, data.edge_index)
    model.eval()
    torch.testing.assert_close(model(data.x, data.edge_index), full)
    whole = EvalSubgraphLoader(data, PTR, batch_size=4)  # one batch, which has all nodes
    torch.testing.assert_close(model(next(iter(whole))), full)
    if isinstance(model, ScalableGNN):
        with pytest.warns(UserWarning, match=r"cannot be tried out on a small graph \(ValueError: BatchNorm1d"):
            out = model(loader=whole)
    else:
        out = model(loader=whole)
    torch.testing.assert_close(out, full.detach())


@pytest.mark.parametrize("wired", WIRED.values(), ids=WIRED)
def test_batches_in_evaluation_mode(wired: Any) -> None:
    data = graph()
    model = wired(Plain(untracked), data).eval()
    for call in (
        lambda: model(next(iter(SubgraphLoader(data, PTR)))),
        lambda: model(loader=EvalSubgraphLoader(data, PTR)),
    ):
        with pytest.raises(
            ValueError, match=r"^BatchNorm1d with track_running_stats=False .*evaluation mode.*model\(data\.x"
        ):
            call()
    assert not any((history.pushed_at >= 0).any() for history in model.histories)
    model.train()(next(iter(SubgraphLoader(data, PTR))))


@pytest.mark.parametrize("norm", [untracked, of_pyg, instance])
def test_statistics_count_no_rows_of_the_halo(norm: Callable[[int], Module]) -> None:
    """Behind the last layer, halo rows are copies of one row that nobody reads."""
    data = graph()
    plain = Plain(norm)
    batch = next(iter(SubgraphLoader(data, PTR)))
    seen = []
    plain.convs[1].register_forward_hook(lambda conv, args, out: seen.append(out))
    own = copy.deepcopy(plain.norms[1])
    out = scale(plain, data)(batch)
    torch.testing.assert_close(out, own(seen[-1][: batch.batch_size]))
    for left, right in zip(plain.norms[1].buffers(), own.buffers(), strict=True):
        torch.testing.assert_close(left, right)


def test_statistics_by_graph() -> None:
    class Several(Plain):
        def forward(self, x: Tensor, adj: Any) -> Tensor:
            return self.norms[0](self.convs[0](x, adj), torch.zeros(x.size(0), dtype=torch.int64))

    data = graph()
    scaled = scale(Several(instance), data)
    with pytest.raises(ValueError, match="InstanceNorm cannot be used on a batch with numbers of graphs"):
        scaled(next(iter(SubgraphLoader(data, PTR))))


def test_frozen_norms_take_no_statistics_of_the_halo() -> None:
    data = graph()
    model = scale(Plain(untracked), data)
    batch = next(iter(SubgraphLoader(data, PTR)))
    want = model(batch)
    for norm in model.norms:
        norm.eval()  # which changes nothing where there are no running statistics
    torch.testing.assert_close(model(batch), want)


def test_norms_of_more_than_the_batch_are_still_found_out() -> None:
    class Centred(Plain):
        def forward(self, x: Tensor, adj: Any) -> Tensor:
            return super().forward(x, adj) - x.mean()

    with pytest.raises(ValueError, match="Centred cannot be trained with histories"):
        scale(Centred(untracked), graph())


# -- norms by the size of the graph ------------------------------------------------------------------------------------


def check_exact(model: Any, data: Data) -> None:
    model.eval()
    full = model(data.x, adjacency(data)).detach()
    for loader in (SubgraphLoader(data, PTR), SubgraphLoader(data, PTR, 3, bipartite=False)):
        for batch in loader:
            torch.testing.assert_close(model(batch), full[batch.n_id[: batch.batch_size]])
    torch.testing.assert_close(model(loader=EvalSubgraphLoader(data, PTR)), full)


@pytest.mark.parametrize("fmt", FORMATS)
@pytest.mark.parametrize("wired", [*WIRED.values(), lambda plain, data: SizeOfAll(plain)], ids=[*WIRED, "with halo"])
def test_graph_size_norm(wired: Any, fmt: str) -> None:
    data = graph(fmt)
    model = wired(Plain(lambda width: nn.GraphSizeNorm()), data)
    check_exact(model, data)


def test_graph_size_norm_on_a_batch_without_halo() -> None:
    data = Data(x=torch.rand(N, C), edge_index=torch.arange(N).expand(2, N).clone())
    check_exact(Explicit(Plain(lambda width: nn.GraphSizeNorm())), data)


def test_graph_size_norm_of_several_graphs() -> None:
    class Several(Plain):
        def forward(self, x: Tensor, adj: Any) -> Tensor:
            return self.norms[0](self.convs[0](x, adj), torch.zeros(x.size(0), dtype=torch.int64))

    with pytest.raises(ValueError, match=r"GraphSizeNorm cannot be used on a batch with .*data\.x = data\.x / sizes"):
        scale(Several(lambda width: nn.GraphSizeNorm()), graph())


# -- parameters for each node ------------------------------------------------------------------------------------------


@pytest.mark.parametrize("fmt", FORMATS)
@pytest.mark.parametrize("lazy", [False, True])
def test_linkx(fmt: str, lazy: bool) -> None:
    data = graph(fmt)
    model = nn.LINKX(N, -1 if lazy else C, H, OUT, 2, num_edge_layers=2)
    scaled = scale(model, data)
    assert len(scaled.histories) == 0
    check_exact(scaled, data)


def test_gradients_of_linkx() -> None:
    data = graph()
    model = nn.LINKX(N, C, H, OUT, 1).eval()
    model(data.x, data.edge_index).square().sum().backward()
    want = {name: parameter.grad for name, parameter in model.named_parameters()}
    model.zero_grad()
    scaled = scale(model, data)
    for batch in SubgraphLoader(data, PTR):
        scaled(batch).square().sum().backward()
    for name, parameter in model.named_parameters():
        torch.testing.assert_close(parameter.grad, want[name], rtol=1e-4, atol=1e-4)


def test_linkx_of_a_small_graph() -> None:  # smaller than the one that models are tried on
    data = random_graph(30, 90, num_features=C)
    scaled = scale(nn.LINKX(30, C, H, OUT, 1), data).eval()
    full = scaled(data)
    for batch in SubgraphLoader(data, torch.tensor([0, 11, 30])):
        torch.testing.assert_close(scaled(batch), full[batch.n_id[: batch.batch_size]])


class Explicitly(ScalableGNN):
    def __init__(self) -> None:
        super().__init__(N, H, 1)
        self.lin = nn.models.linkx.SparseLinear(N, OUT)

    def forward(self, x: Tensor, adj: Any, *args: Any) -> Tensor:
        return self.lin(adj)


@pytest.mark.parametrize("fmt", FORMATS)
def test_sparse_linear_in_explicit_wiring(fmt: str) -> None:
    check_exact(Explicitly(), graph(fmt))
