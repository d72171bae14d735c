"""What scale() and scaled models refuse, and what the errors say."""

from __future__ import annotations

import copy
import re
from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as F
import torch_geometric.nn as nn
from graphs import random_graph, to_format
from nets import Net
from plain_models import OUT, C, DeeperGCN, H, Own, Stack, alone, layered
from torch import Tensor
from torch.nn import Linear, Module
from torch.utils.checkpoint import checkpoint
from torch_geometric.data import Data, HeteroData
from torch_geometric.datasets import FakeDataset

from torch_gas import EvalSubgraphLoader, ScaledGNN, SubgraphLoader, scale

N = 60
PTR = torch.tensor([0, 14, 37, N])


def graph() -> Data:
    data = random_graph(N, 240, seed=1)
    data.edge_attr = torch.rand(data.num_edges, 3)
    return data


def batch_of(data: Data, **kwargs: Any) -> Any:
    return next(iter(SubgraphLoader(data, PTR, **kwargs)))


def between(step: Callable[[Stack, Tensor, Any], Tensor], *more: Module) -> Callable[[], Module]:
    """Two layers, and ``step`` between them."""

    def body(self: Stack, x: Tensor, adj: Any) -> Tensor:
        return self.convs[1](step(self, self.convs[0](x, adj), adj), adj)

    return lambda: Stack(nn.SAGEConv(C, H), nn.SAGEConv(H, OUT), *more, body=body)


def behind(step: Callable[[Tensor], Any]) -> Callable[[], Module]:
    """A layer, and ``step`` behind it."""
    return lambda: Stack(nn.SAGEConv(C, OUT), body=lambda self, x, adj: step(self.convs[0](x, adj)))


class OnlyInTraining(Module):
    def __init__(self) -> None:
        super().__init__()
        self.first, self.second, self.last = nn.SAGEConv(C, H), nn.SAGEConv(H, H), nn.SAGEConv(H, OUT)

    def forward(self, x: Tensor, edge_index: Tensor) -> Tensor:
        x = self.first(x, edge_index)
        if self.training:
            x = x + self.second(x, edge_index)
        return self.last(x, edge_index)


NAMED: dict[str, tuple[Callable[[], Module], str]] = {
    "GPSConv": (alone(lambda: nn.GPSConv(C, nn.SAGEConv(C, C), attn_type="performer")), "attends to all nodes"),
    "PANConv": (alone(lambda: nn.PANConv(C, OUT, 2)), "multiplies the adjacency matrix with itself"),
    "HypergraphConv": (alone(lambda: nn.HypergraphConv(C, OUT)), "passes messages over hyperedges"),
    "PairNorm": (lambda: nn.GraphSAGE(C, H, 2, OUT, norm="PairNorm"), "takes its statistics over all nodes"),
    "GraphNorm": (lambda: nn.GraphSAGE(C, H, 2, OUT, norm="GraphNorm"), "takes its statistics over all nodes"),
    "LayerNorm": (lambda: nn.GraphSAGE(C, H, 2, OUT, norm="LayerNorm"), "takes its statistics over all nodes"),
}


@pytest.mark.parametrize("name", NAMED)
def test_layers_that_are_known(name: str) -> None:
    make, reason = NAMED[name]
    with pytest.raises(ValueError, match=rf"^{name}.* cannot be used on a batch: it {reason}.*; use "):
        scale(make(), graph())


TRIED = {
    "pooling": (between(lambda self, x, adj: x + x.mean(0)), r"convs\.1.*\(SAGEConv\) gives other rows"),
    "pooling-last": (behind(lambda x: x + x.mean(0)), "the output of Stack gives other rows"),
    "softmax-over-nodes": (behind(lambda x: x.softmax(0)), "the output of Stack gives other rows"),
    "fixed-size": (
        behind(lambda x: x + torch.zeros(61, 1)),
        r"the output of Stack cannot be computed \(RuntimeError: ",
    ),
    "nodes": (between(lambda self, x, adj: x / x.size(0)), r"convs\.1.*\(SAGEConv\) gives other rows"),
    "edges": (between(lambda self, x, adj: x / adj.size(1)), r"convs\.1.*\(SAGEConv\) gives other rows"),
    "attention": (
        between(lambda self, x, adj: self.convs[2](x, x, x)[0], torch.nn.MultiheadAttention(H, 2)),
        r"convs\.1.*\(SAGEConv\) gives other rows",
    ),
    "nearest": (
        between(lambda self, x, adj: x[torch.cdist(x, x).topk(2).indices[:, 1]]),
        r"convs\.1.*\(SAGEConv\) gives other rows",
    ),
    "squared": (alone(lambda: Squared()), "gives other rows"),
    "dropout-in-evaluation": (between(lambda self, x, adj: F.dropout(x, 0.5)), r"convs\.1.*gives other rows"),
    "noise": (between(lambda self, x, adj: x + torch.randn_like(x)), r"convs\.1.*gives other rows"),
    "only-in-training": (OnlyInTraining, r"second \(SAGEConv\) is called in training and not in evaluation"),
    # They change their first argument in place, which autograd forbids where it keeps the result.
    "scatter_reduce_": (layered(lambda i, o: Own(i, o, "scatter_reduce_")), "gives other rows"),
    "index_put_": (layered(lambda i, o: Own(i, o, "index_put_")), "gives other rows"),
}


class Squared(Module):
    """Reads two hops at once."""

    def __init__(self) -> None:
        super().__init__()
        self.lin = Linear(C, OUT)

    def forward(self, x: Tensor, edge_index: Tensor) -> Tensor:
        adj = torch.zeros(x.size(0), x.size(0)).index_put_((edge_index[1], edge_index[0]), torch.ones(()))
        return adj @ adj @ self.lin(x)


@pytest.mark.parametrize("name", TRIED)
def test_what_the_trial_finds(name: str) -> None:
    make, reason = TRIED[name]
    model = make()
    with pytest.raises(
        ValueError, match=rf"^{type(model).__name__} cannot be trained with histories: .*({reason}).*may"
    ):
        scale(model, graph())
    assert all(module.training for module in model.modules())


def test_graph_level_models() -> None:
    for step in (lambda x: nn.global_add_pool(x, None), lambda x: x.sum()):
        with pytest.raises(ValueError, match=r"Stack returns nothing with a row for each node.*pool or compare these"):
            scale(behind(step)(), graph())


def test_numbers_that_count_rows_of_the_halo() -> None:
    for seed in (0, 23, 26):  # with two of these, the mean over a wider halo of the first batch is nearly the same
        torch.manual_seed(seed)
        model = behind(lambda x: (x, x.square().mean()))().eval()
        with pytest.raises(
            ValueError,
            match=r"the output of Stack has a value .* that counts the rows of the halo; compute such a value",
        ):
            scale(model, graph())


def test_numbers_that_count_no_rows() -> None:
    model, data = behind(lambda x: (x, torch.tensor(3.0)))().eval(), graph()
    out, number = scale(model, data)(batch_of(data))
    assert out.shape[0] == batch_of(data).batch_size and number == 3


def test_models_that_pool() -> None:
    for ratio, rows in ((0.5, 31), (0.2, 13)):
        match = (
            rf"GraphUNet cannot be trained with histories: on a small graph of 61 nodes, down_convs\.1 \(GCNConv\) returns "
            rf"{rows} rows. A step that changes the number of nodes, such as pooling, .*Use a model whose layers all return a row"
        )
        with pytest.raises(ValueError, match=match):
            scale(nn.GraphUNet(C, H, OUT, 2, ratio), graph())


def test_what_differs_before_a_pooling() -> None:
    class Net(nn.GraphUNet):
        def forward(self, x: Tensor, edge_index: Tensor) -> Tensor:
            return super().forward(x - x.mean(0), edge_index)

    with pytest.raises(ValueError, match=r"a small graph, hop 1 in down_convs\.0 \(GCNConv\) gives other rows"):
        scale(Net(C, H, OUT, 1), graph())


def test_parameters_for_each_node() -> None:
    class Embedding(Module):
        def __init__(self) -> None:
            super().__init__()
            self.x, self.conv = torch.nn.Parameter(torch.rand(N, C)), nn.SAGEConv(C, OUT)

        def forward(self, edge_index: Tensor) -> Tensor:
            return self.conv(self.x, edge_index)

    with pytest.raises(
        ValueError, match=r"Embedding .*holds a parameter with 60 rows, one for each node \(x\).*node_id"
    ):
        scale(Embedding(), graph())


class ById(Module):
    """What the error about parameters for each node advises."""

    def __init__(self) -> None:
        super().__init__()
        self.embedding, self.gnn = torch.nn.Embedding(N, C), nn.GraphSAGE(C, H, 2, OUT)

    def forward(self, node_id: Tensor, edge_index: Tensor) -> Tensor:
        return self.gnn(self.embedding(node_id), edge_index)


def test_the_advice_about_parameters_for_each_node() -> None:
    data = graph()
    data.node_id = torch.arange(N)
    scaled = scale(ById(), data).eval()
    full = scaled(data)
    for batch in SubgraphLoader(data, PTR):
        torch.testing.assert_close(scaled(batch), full[batch.n_id[: batch.batch_size]])


def test_other_failures_are_not_blamed_on_parameters_for_each_node() -> None:
    class Fails(ById):
        def forward(self, node_id: Tensor, edge_index: Tensor) -> Tensor:
            return super().forward(node_id, edge_index) @ torch.zeros(7)

    data = graph()
    data.node_id = torch.arange(N)
    with pytest.raises(ValueError, match=r"Fails fails on the small graph .*\(RuntimeError") as caught:
        scale(Fails(), data)
    assert "parameter" not in str(caught.value)


class OwnEdges(Module):
    def __init__(self, edge_index: Tensor) -> None:
        super().__init__()
        self.conv, self.edge_index = nn.SAGEConv(C, OUT), edge_index

    def forward(self, x: Tensor) -> Tensor:
        return self.conv(x, self.edge_index)


class NoArguments(OwnEdges):
    def forward(self) -> Tensor:  # type: ignore[override]
        return self.conv(torch.rand(N, C), self.edge_index)


def test_graphs_from_elsewhere() -> None:
    large = random_graph(100, 400)
    with pytest.raises(ValueError, match=r"OwnEdges fails .*forward is given no adjacency.*let it take edge_index"):
        scale(OwnEdges(large.edge_index), large)
    for inputs in (None, lambda batch: ()):
        with pytest.raises(ValueError, match=r"NoArguments\.forward takes no arguments.*let it take x and edge_index"):
            scale(NoArguments(large.edge_index), large, inputs=inputs)


def test_wrappers_of_an_encoder() -> None:
    data = graph()
    with pytest.raises(
        ValueError, match=r"GAE\.forward does not name .*model\.encoder = scale\(model\.encoder, data\)"
    ):
        scale(nn.GAE(nn.GraphSAGE(C, H, 2)), data)
    model = nn.GAE(nn.GraphSAGE(C, H, 2))
    model.encoder = scale(model.encoder, data)
    batch, *ids = batch_of(data)
    assert model.encode(batch.x, batch.edge_index, *ids).shape == (14, H)

    class Compared(Module):
        def __init__(self) -> None:
            super().__init__()
            self.gnn = nn.GraphSAGE(C, H, 2)

        def forward(self, x: Tensor, edge_index: Tensor) -> Tensor:
            z = self.gnn(x, edge_index)
            return (z[edge_index[0]] * z[edge_index[1]]).sum(1)

    with pytest.raises(ValueError, match=r"nothing with a row for each node, .*model\.gnn = scale\(model\.gnn, data\)"):
        scale(Compared(), data)


def test_graph_numbers_that_data_lacks() -> None:
    class Pools(Module):
        def __init__(self) -> None:
            super().__init__()
            self.conv = nn.SAGEConv(C, OUT)

        def forward(self, x: Tensor, edge_index: Tensor, batch: Tensor) -> Tensor:
            return nn.global_mean_pool(self.conv(x, edge_index), batch)

    with pytest.raises(ValueError, match=r"takes 'batch'.*scale the layers before that step alone"):
        scale(Pools(), graph())


@pytest.mark.filterwarnings("ignore:.*torch.jit.*:DeprecationWarning", "ignore::torch.jit.TracerWarning")
def test_torch_script() -> None:
    data = graph()
    args = (data.x, data.edge_index)
    whole, inner = torch.jit.script(nn.GraphSAGE(C, H, 2, OUT)), nn.GraphSAGE(C, H, 2, OUT)
    inner.convs[1] = torch.jit.script(inner.convs[1])
    for model in (whole, inner, torch.jit.trace(nn.GraphSAGE(C, H, 2, OUT).eval(), args)):
        with pytest.raises(
            ValueError, match=r"SAGEConv cannot be used on a batch: it is TorchScript.*use the plain layer"
        ):
            scale(model, data)
    explicit = Net(N)
    explicit.convs[0] = torch.jit.script(explicit.convs[0])
    with pytest.raises(ValueError, match=r"SAGEConv cannot be used on a batch: it is TorchScript"):
        explicit(batch_of(data))
    headed = between(lambda self, x, adj: self.convs[2](x), torch.jit.script(Linear(H, H)))()
    assert scale(headed, data)(batch_of(data)).shape == (14, OUT)


@pytest.mark.parametrize("norm", ["layer_norm", "instance_norm"])
def test_the_advice_about_norms(norm: str) -> None:
    data = graph()
    with pytest.raises(ValueError, match=r"cannot be used on a batch: it takes its statistics") as caught:
        scale(nn.GraphSAGE(C, H, 2, OUT, norm=norm), data)
    advised = re.search(r"norm_kwargs=(dict\(.*?\)) beside norm=\"(\w+)\"", str(caught.value))
    assert advised is not None and advised[2] == norm
    scaled = scale(nn.GraphSAGE(C, H, 2, OUT, norm=norm, norm_kwargs=eval(advised[1])), data).eval()
    full = scaled(data)
    batch = batch_of(data)
    torch.testing.assert_close(scaled(batch), full[batch.n_id[: batch.batch_size]])


class Checkpoints(Module):
    def __init__(self, use_reentrant: bool) -> None:
        super().__init__()
        self.first, self.second, self.use_reentrant = nn.SAGEConv(C, H), nn.SAGEConv(H, OUT), use_reentrant

    def forward(self, x: Tensor, edge_index: Tensor) -> Tensor:
        x = self.first(x, edge_index)
        if self.training and torch.is_grad_enabled():
            return checkpoint(self.second, x, edge_index, use_reentrant=self.use_reentrant)
        return self.second(x, edge_index)


def test_activation_checkpointing() -> None:
    data = graph()
    for model, conv in (
        (DeeperGCN("res+", ckpt_grad=True), "GEN"),
        (Checkpoints(True), "SAGE"),
        (Checkpoints(False), "SAGE"),
    ):
        state = copy.deepcopy(model.state_dict())
        with pytest.raises(ValueError, match=rf"{conv}Conv is called under activation checkpointing.*ckpt_grad=False"):
            scale(model, data)
        assert model.training and all(map(torch.equal, state.values(), model.state_dict().values()))
        assert all(p.grad is None for p in model.parameters())
    scale(DeeperGCN("res+"), data)(batch_of(data)).sum().backward()


@pytest.mark.parametrize("make", [lambda: Net(N), lambda: scale(nn.GCN(C, H, 2), graph()), lambda: Holder()])
def test_models_with_histories_of_their_own(make: Callable[[], Module]) -> None:
    with pytest.raises(ValueError, match=r"is a ScalableGNN, which has histories already; use it as it is"):
        scale(make(), graph())


class Holder(Module):
    def __init__(self) -> None:
        super().__init__()
        self.inner = torch.nn.Sequential(scale(nn.GCN(C, H, 2), graph()))


def test_attributes_that_a_scaled_model_has() -> None:
    model = nn.GCN(C, H, 2)
    model.histories = []
    with pytest.raises(ValueError, match=r"GCN has an attribute `histories` or `tables`.*rename it"):
        scale(model, graph())


SAGE = nn.GraphSAGE(C, H, 2, OUT)


@pytest.mark.parametrize(
    ("args", "kwargs", "error", "match"),
    [
        (("model", graph()), {}, TypeError, "scale: model must be Module, but is 'model'"),
        ((SAGE, "data"), {}, TypeError, r"scale: data must be Data \| None, but is 'data'"),
        ((SAGE, graph().x), {}, TypeError, r"scale: data must be Data \| None, but is Tensor"),
        (
            (SAGE, HeteroData()),
            {},
            TypeError,
            r"data must be Data \| None, but is HeteroData.*pass data\.to_homogeneous\(\)",
        ),
        (
            (SAGE, FakeDataset(1)),
            {},
            TypeError,
            r"data must be Data \| None, but is FakeDataset; pass its graph, dataset\[0\]",
        ),
        ((SAGE, graph().update({"x": graph().x.to_sparse()})), {}, ValueError, r"data\.x = data\.x\.to_dense\(\)"),
        ((SAGE, graph().update({"x": graph().x.numpy()})), {}, TypeError, r"data\.x = torch\.from_numpy\(data\.x\)"),
        ((SAGE,), {}, ValueError, r"scale\(\) needs the graph: pass data.*or num_nodes"),
        ((SAGE, graph()), {"num_nodes": 3}, ValueError, r"data has 60 nodes, but num_nodes is 3; drop one"),
        ((SAGE, Data(x=torch.rand(9, C))), {}, ValueError, "data has no adjacency: set data.edge_index or data.adj_t"),
        (
            (SAGE, Data(x=torch.rand(9, C), edge_index=torch.empty(2, 0, dtype=torch.int64))),
            {},
            ValueError,
            "data has no edges",
        ),
        (
            (nn.Sequential("x, edge_index, z", [(nn.SAGEConv(C, H), "x, edge_index -> x")]), graph()),
            {},
            ValueError,
            r"Sequential.*forward takes 'z', which data does not have; store it as data\.z, or say what.*inputs=lambda",
        ),
    ],
)
def test_arguments_of_scale(args: Any, kwargs: Any, error: type[Exception], match: str) -> None:
    with pytest.raises(error, match=match):
        scale(*args, **kwargs)


@pytest.mark.parametrize("num_nodes", [0, -1, 6.5, "60"])
def test_number_of_nodes(num_nodes: Any) -> None:
    with pytest.raises((ValueError, TypeError), match="num_nodes"):
        scale(SAGE, num_nodes=num_nodes)


def test_models_without_layers_of_a_graph() -> None:
    data, model = graph(), nn.MLP([C, H, OUT], norm=None).eval()
    scaled = scale(model, data)
    batch = batch_of(data)
    torch.testing.assert_close(scaled(batch), model(data.x)[batch.n_id[: batch.batch_size]])


# -- calls -------------------------------------------------------------------------------------------------------------


def sage() -> tuple[ScaledGNN, Data]:
    data = graph()
    return scale(nn.GraphSAGE(C, H, 2, OUT), data), data


def test_batches_of_another_graph() -> None:
    scaled, _ = sage()
    other = random_graph(40, 100)
    batch = next(iter(SubgraphLoader(other, torch.tensor([0, 20, 40]))))
    for call in (lambda: scaled(batch), lambda: scaled(batch.data.x, batch.data.edge_index, *batch[1:])):
        with pytest.raises(ValueError, match="the batch was made for a graph of 40 nodes, but the model for 60"):
            call()


def test_batches_without_ids() -> None:
    scaled, data = sage()
    batch = batch_of(data)
    x, edge_index = batch.data.x, batch.data.edge_index
    for training in (True, False):
        scaled.train(training)
        for plain in (
            batch.data,
            copy.deepcopy(batch.data),
            batch.clone().data.to("cpu"),
            batch.edge_subgraph(torch.arange(9)),
        ):
            with pytest.raises(ValueError, match=r"rows of a batch and without its ids.*model\(batch, \*ids\)"):
                scaled(plain)
    scaled.train()
    for call in (
        lambda: scaled(x, edge_index),
        lambda: scaled(x.clone(), edge_index),
        lambda: scaled(x, edge_index, batch_size=batch.batch_size),
    ):
        with pytest.raises(ValueError, match=rf"x has {x.size(0)} rows, but the graph of this model has 60.*\*args"):
            call()
    with pytest.raises(ValueError, match=r"n_id needs batch_size; pass `\*args`"):
        scaled(x, edge_index, n_id=batch.n_id)


def test_parts_of_two_batches() -> None:
    scaled, data = sage()
    first, second = list(SubgraphLoader(data, PTR))[:2]
    with pytest.raises(ValueError, match=r"x has \d+ rows, but n_id has \d+"):
        scaled(first.data.x, first.data.edge_index, *second[1:])
    with pytest.raises(ValueError, match=r"batch_size is 3 and does not say which batch"):
        scaled(first.data.x, first.data.edge_index, 3, *first[2:])
    scaled.check = False
    with pytest.raises(ValueError, match=r"count sums to 14, but batch_size is 3"):
        scaled(first.data.x, first.data.edge_index, 3, *first[2:])


def test_edges_that_the_loader_left_out() -> None:
    data = graph()
    scaled = scale(alone(lambda: nn.DirGNNConv(nn.SAGEConv(C, OUT)))(), data)
    batch = batch_of(data)
    for call in (lambda: scaled(batch), lambda: scaled(batch.data.x, batch.data.edge_index, *batch[1:])):
        with pytest.raises(ValueError, match=r'Stack reads edges in both directions.*neighbors="both"'):
            call()
    with pytest.raises(ValueError, match=r'neighbors="both"'):
        scaled.eval()(loader=EvalSubgraphLoader(data, PTR))
    assert scaled(batch_of(data, neighbors="both")).shape == (14, OUT)


def test_degrees_without_a_graph() -> None:
    scaled = scale(nn.GCN(C, H, 2, OUT), num_nodes=N)
    with pytest.raises(RuntimeError, match="GCN has not been called on a batch yet"):
        _ = scaled.found
    with pytest.raises(
        ValueError, match=r"GCN normalises by what it counts .*convs\.0.*pass it to scale\(model, data\)"
    ):
        scaled(batch_of(graph()))


def test_edges_under_the_name_that_data_does_not_have() -> None:
    """PyG gives None for ``edge_index`` where there is ``adj_t``, and what layers say of that is no help."""
    data, net = to_format(random_graph(N, 240, seed=1), "csr"), nn.GraphSAGE(C, C, 2)
    batch, *ids = batch_of(data)
    for model in (scale(net, data), scale(net, num_nodes=N), Net(N)):
        why = rf"{type(getattr(model, 'model', model)).__name__} was called without edges\. batch\.edge_index is None where"
        with pytest.raises(ValueError, match=why):
            model(batch.x, batch.edge_index, *ids)
        model(batch_of(data))  # sees the edges by itself, and is as it was
        for mode in (True, False):
            with pytest.raises(ValueError, match=why):
                model.train(mode)(data.x, data.edge_index)
    with pytest.raises(ValueError, match=r"inputs= takes the wrong one \(batch\.edge_index is None where"):
        scale(net, data, inputs=lambda batch: (batch.x, batch.edge_index))


def test_layers_that_are_given_their_edges_under_another_name() -> None:
    class Other(Net):
        def forward(self, x: Tensor, adj: Any, *ids: Any, edges: Any = None) -> Tensor:
            return super().forward(x, edges, *ids)

    data, model = random_graph(N, 240, seed=1), Other(N)
    batch, *ids = batch_of(data)
    assert model(batch.x, None, *ids, edges=batch.edge_index).shape == (ids[0], 3)


def test_inference_by_the_name_that_pyg_gives_it() -> None:
    """Its own loader is still taken; a model that is not PyG's keeps a method of this name."""
    data = graph()
    model = scale(nn.GraphSAGE(C, C, 2), data).eval()
    for loader in (SubgraphLoader(data, PTR), EvalSubgraphLoader(data, PTR)):
        with pytest.raises(
            TypeError, match=r"GraphSAGE\.inference\(\) .*NeighborLoader; .*model\.eval\(\)\(loader=loader\)"
        ):
            model.inference(loader)
    for each in (model, Net(N).eval()):
        with pytest.raises(TypeError, match=r"pass the loader by name, model\(loader=loader\)"):
            each(EvalSubgraphLoader(data, PTR))
    with pytest.raises(AssertionError):  # PyG's own
        model.inference([])

    class Own(nn.Sequential):
        def inference(self, loader: Any) -> str:
            return type(loader).__name__

    own = Own("x, edge_index", [(nn.SAGEConv(C, C), "x, edge_index -> x")])
    assert scale(own, data).inference(SubgraphLoader(data, PTR)) == "SubgraphLoader"


def test_inference() -> None:
    scaled, data = sage()
    loader = EvalSubgraphLoader(data, PTR)
    with pytest.raises(RuntimeError, match=r"inference over a loader needs model\.eval\(\) first"):
        scaled(loader=loader)
    scaled.eval()
    with pytest.raises(ValueError, match=r"loader takes no further arguments; see scale\(inputs=...\)"):
        scaled(data.x, loader=loader)
    with pytest.raises(ValueError, match=r"device and path say where inference over a loader"):
        scaled(data, device="cpu")


def test_models_that_change_after_scale() -> None:
    data = graph()
    scaled = scale(layered(nn.SAGEConv)(), data)
    scaled.convs.append(nn.SAGEConv(H, H))
    with pytest.raises(
        RuntimeError, match=r"(hop 1 in )?convs\.3 was not called when the model was tried out.*[Ss]cale it again"
    ):
        scaled(batch_of(data))


def test_nothing_is_left_behind_by_an_error() -> None:
    scaled, data = sage()
    model, batch = scaled.unscale(), batch_of(data)
    want = scaled.eval()(batch)
    with pytest.raises(RuntimeError):
        scaled(batch.clone().update({"x": batch.x[:, :3]}))
    assert all("forward" not in vars(m) and "propagate" not in vars(m) for m in model.modules())
    assert not any(m._forward_hooks or m._forward_pre_hooks for m in model.modules())
    torch.testing.assert_close(scaled(batch), want)


def test_batches_of_another_order_or_without_weights() -> None:
    data = random_graph(N, 240, seed=1)
    data.edge_weight = torch.rand(data.num_edges)
    batch = batch_of(data)
    other = data.clone()
    other.edge_index = (other.edge_index + 1) % N
    calls = {
        r"GCN was tried out by scale\(\) with edge_index, edge_weight, x, but is called with edge_index, x": (
            lambda scaled: scaled(batch.data.x, batch.data.edge_index, *batch[1:])
        ),
        r"the batch counts other edges or weights than the graph that scale\(\)": lambda scaled: scaled(
            batch_of(other)
        ),
    }
    for message, call in calls.items():
        with pytest.raises(ValueError, match=message):
            call(scale(nn.GCN(C, H, 2, OUT), data))
