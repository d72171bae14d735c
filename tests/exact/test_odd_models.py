"""Models, criteria and loaders whose gradient could be wrong without a word: each is that of the full batch, or refused."""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from full_batch import PTR, N, assert_same, batches, compare, criterion, grads, graph, whole, wired
from plain_models import OUT, C
from torch import Tensor
from torch.nn import BatchNorm1d, Linear, Module, ReLU, Sequential
from torch_geometric.data import Data
from torch_geometric.nn import GATConv, GCNConv

from torch_gas import ScalableGNN, SubgraphLoader
from torch_gas.exact import ExactGradient


class Net(Module):
    """Three layers, with ``body`` as its forward."""

    def __init__(self, body: Callable[..., Tensor]) -> None:
        super().__init__()
        self.body = body
        self.a, self.b, self.c = GCNConv(C, 8), GCNConv(8, 8), GCNConv(8, OUT)
        self.norm = BatchNorm1d(8)
        self.switch, self.calls = True, 0
        self.mean = torch.zeros(8, dtype=torch.float64)
        self.register_buffer("moved", torch.zeros(8))

    def forward(self, x: Tensor, edge_index: Any) -> Tensor:
        return self.body(self, x, edge_index)


def three_layers(net: Any, x: Tensor, adj: Any) -> Tensor:
    return net.c(net.b(net.a(x, adj).relu(), adj).relu(), adj)


def model_of(body: Callable[..., Tensor], data: Data) -> Any:
    torch.manual_seed(0)
    return wired(Net(body), data, inputs=lambda data: (data.x, data.edge_index))


# -- what learns beside the model --------------------------------------------------------------------------------------


def test_parameters_of_the_criterion_have_their_gradient() -> None:
    data = graph()
    model = model_of(three_layers, data)
    head = Linear(OUT, 7).double()

    def loss_of(out: Tensor, batch: Any) -> Tensor:
        return F.cross_entropy(head(out), batch.y[: len(out)] % 7, reduction="sum") / N

    got = []
    head.weight.register_hook(got.append)
    compare(model, data, loss_of=loss_of)  # both ways give it a gradient
    assert len(got) == 2
    torch.testing.assert_close(got[0], got[1])
    torch.testing.assert_close(head.weight.grad, got[0] + got[1])


def test_tensors_that_are_no_parameters_of_the_model_have_their_gradient() -> None:
    data = graph()
    weight = torch.eye(8, dtype=torch.float64, requires_grad=True)

    def body(net: Any, x: Tensor, adj: Any) -> Tensor:
        return net.c(net.b(net.a(x, adj).relu() @ weight, adj).relu(), adj)

    compare(model_of(body, data), data)
    assert weight.grad is not None
    both, weight.grad = weight.grad, None
    ExactGradient(model_of(body, data), batches(data)).backward(criterion)
    assert both.norm() > 0
    torch.testing.assert_close(2 * weight.grad, both)


def test_leaves_that_a_pass_makes_are_let_go() -> None:
    data = graph()

    def body(net: Any, x: Tensor, adj: Any) -> Tensor:
        scale = torch.ones(8, dtype=x.dtype, requires_grad=True)
        return net.c(net.b(net.a(x, adj).relu() * scale, adj).relu(), adj)

    model = model_of(body, data)
    found = ExactGradient(model, batches(data)).compute(criterion)
    assert set(map(id, found)) <= set(map(id, model.parameters()))


# -- modes and switches ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("mode", [torch.enable_grad, lambda: torch.set_grad_enabled(True)])
def test_gradients_that_forward_switches_on(mode: Callable[[], Any]) -> None:
    """The forward sweeps fill histories all the same."""
    data = graph()

    def body(net: Any, x: Tensor, adj: Any) -> Tensor:
        with mode():
            x = net.a(x, adj).relu()
        return net.c(net.b(x, adj).relu(), adj)

    compare(model_of(body, data), data)


def test_switches_may_change_what_is_read() -> None:
    data = graph()

    def body(net: Any, x: Tensor, adj: Any) -> Tensor:
        x = net.a(x, adj).relu()
        y = net.b(x, adj).relu()
        return net.c(y if net.switch else x + y, adj)

    model = model_of(body, data)
    reference = copy.deepcopy(model)
    exact = ExactGradient(model, batches(data))
    for switch in (True, False, True):
        model.model.switch = reference.model.switch = switch
        exact.backward(criterion)
        criterion(whole(reference, data), data).backward()
        assert_same(grads(model), grads(reference))


class WarmUp(ScalableGNN):
    """Its first layer learns from the second step on."""

    def __init__(self) -> None:
        super().__init__(N, 8, 2)
        self.a, self.b = GCNConv(C, 8, normalize=False), GCNConv(8, OUT, normalize=False)
        self.options = {"warm": True}

    def forward(self, x: Tensor, edge_index: Any, *args: Any) -> Tensor:
        x = self.a(x, edge_index)
        x = self.push_and_pull(self.histories[0], x.detach() if self.options["warm"] else x, *args)
        return self.b(x, edge_index)


def test_layers_that_are_detached_for_some_steps() -> None:
    data = graph()
    torch.manual_seed(0)
    model = wired(WarmUp(), data)
    reference = copy.deepcopy(model)
    exact = ExactGradient(model, batches(data))
    for warm in (True, False, True, False):
        model.options["warm"] = reference.options["warm"] = warm
        exact.backward(criterion)
        criterion(whole(reference, data), data).backward()
        assert_same(grads(model), grads(reference))


# -- rows that are few, or as many as others ---------------------------------------------------------------------------


def without(node: int) -> Data:
    """The graph in which a node has no neighbours."""
    data = graph()
    keep = (data.edge_index != node).all(dim=0)
    for name in ("edge_index", "edge_weight", "edge_attr"):
        data[name] = data[name][..., keep] if name == "edge_index" else data[name][keep]
    return data


@pytest.mark.parametrize(("node", "ptr"), [(0, [0, 1, 20, N]), (N - 1, [0, 20, N - 1, N])])
def test_dropout_of_a_node_that_is_alone(node: int, ptr: list[int]) -> None:
    def body(net: Any, x: Tensor, adj: Any) -> Tensor:
        x = F.dropout(net.a(x, adj).relu(), 0.5, net.training)
        y = F.dropout(net.b(x, adj).relu(), 0.5, net.training)
        return net.c(x + y, adj)

    data = without(node)
    compare(model_of(body, data), data, SubgraphLoader(data, torch.tensor(ptr), 1))


class Attention(Module):
    def __init__(self) -> None:
        super().__init__()
        options: Any = {"dropout": 0.5, "add_self_loops": False}
        self.a, self.b, self.c = GATConv(C, 8, **options), GATConv(8, 8, **options), GATConv(8, OUT, **options)

    forward = three_layers


def test_attention_dropout_of_a_single_edge() -> None:
    data = graph()
    edges = torch.tensor([[0, 0, 1, 2, 3], [1, 2, 2, 1, 3]])
    data = Data(x=data.x[:4], y=data.y[:4], edge_index=edges, num_nodes=4)
    torch.manual_seed(0)
    model = wired(Attention(), data, inputs=lambda data: (data.x, data.edge_index))
    compare(model, data, SubgraphLoader(data, torch.arange(5), 1))


class NormOfEdges(Module):
    def __init__(self) -> None:
        super().__init__()
        self.mlp = Sequential(Linear(3, 4), BatchNorm1d(4), ReLU(), Linear(4, 1))
        self.a, self.b = GCNConv(C, 8), GCNConv(8, OUT)

    def forward(self, x: Tensor, edge_index: Any, edge_attr: Tensor) -> Tensor:
        weight = self.mlp(edge_attr).sigmoid().view(-1)
        return self.b(self.a(x, edge_index, weight).relu(), edge_index, weight)


def test_norm_of_edges_that_are_as_many_as_nodes() -> None:
    """Some batches have B + S edges, as others have not."""
    edges = []
    for begin, end in zip(PTR.tolist(), PTR[1:].tolist(), strict=False):
        halo = [node for node in range(N) if not begin <= node < end][:3]
        edges += [(begin + i, begin + (i + 1) % (end - begin)) for i in range(end - begin)]
        edges += [(node, begin + i) for i, node in enumerate(halo) if end > begin]
    edge_index = torch.tensor(edges[1:]).t()
    edge_index = edge_index[:, (edge_index[1] * N + edge_index[0]).argsort()]
    attr = torch.rand(edge_index.size(1), 3, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    data = Data(x=graph().x, y=graph().y, edge_index=edge_index, edge_attr=attr)
    sizes = [batch.edge_index.size(1) == batch.n_id.numel() > batch.batch_size for batch in batches(data)]
    assert any(sizes) and not all(sizes)
    torch.manual_seed(0)
    compare(wired(NormOfEdges(), data), data)


# -- refused -----------------------------------------------------------------------------------------------------------


def mean_by_hand(net: Any, x: Tensor, adj: Any) -> Tensor:
    x = net.b(net.a(x, adj).relu(), adj)
    return net.c((x - x.mean(dim=0) if net.training else x).relu(), adj)


def norm_as_a_function(net: Any, x: Tensor, adj: Any) -> Tensor:
    x = net.b(net.a(x, adj).relu(), adj)
    norm = net.norm
    return net.c(F.batch_norm(x, norm.running_mean, norm.running_var, norm.weight, norm.bias, net.training).relu(), adj)


def mean_as_an_attribute(net: Any, x: Tensor, adj: Any) -> Tensor:
    x = net.b(net.a(x, adj).relu(), adj)
    if net.training:
        net.mean = 0.9 * net.mean + 0.1 * x.detach().mean(dim=0)
    return net.c((x - net.mean).relu(), adj)


def counter(net: Any, x: Tensor, adj: Any) -> Tensor:
    net.calls += net.training
    return net.c(net.b(net.a(x, adj).relu() * (1 + net.calls), adj).relu(), adj)


@pytest.mark.parametrize(
    ("body", "match"),
    [
        (mean_by_hand, "other rows for a node when other nodes are in its batch"),
        (norm_as_a_function, "the buffer running_mean of BatchNorm1d moves"),
        (mean_as_an_attribute, "other rows for a node when other nodes are in its batch"),
        (counter, "or each time that it is called"),
    ],
)
def test_rows_that_depend_on_the_batch_are_refused(body: Callable[..., Tensor], match: str) -> None:
    data = graph()
    model = model_of(body, data)
    with pytest.raises(ValueError, match=match):
        ExactGradient(model, batches(data)).backward(criterion)
    assert not grads(model)


def test_buffers_that_move_by_their_data() -> None:
    """A version does not tell of it."""
    data = graph()

    def body(net: Any, x: Tensor, adj: Any) -> Tensor:
        if net.training:
            net.moved.data.mul_(0.9).add_(0.1)
        return net.c((net.b(net.a(x, adj).relu(), adj) - net.moved).relu(), adj)

    model = model_of(body, data)
    reference = copy.deepcopy(model)
    exact = ExactGradient(model, batches(data))
    for _ in range(2):
        exact.backward(criterion)
        criterion(whole(reference, data), data).backward()
        assert_same(grads(model), grads(reference))
        torch.testing.assert_close(model.model.moved, reference.model.moved)


class DroppedWeights(Module):
    def __init__(self) -> None:
        super().__init__()
        self.a, self.b = GCNConv(C, 8), GCNConv(8, OUT)

    def forward(self, x: Tensor, edge_index: Any, edge_weight: Tensor) -> Tensor:
        weight = F.dropout(edge_weight, 0.5, self.training)
        return self.b(self.a(x, edge_index, weight).relu(), edge_index, weight)


def test_degrees_of_edges_that_training_drops_are_refused() -> None:
    data = graph()
    torch.manual_seed(0)
    model = wired(DroppedWeights(), data)
    with pytest.raises(ValueError, match="sums up other weights of edges than scale"):
        ExactGradient(model, batches(data)).backward(criterion)


class Noise(SubgraphLoader):
    def __iter__(self) -> Iterator[Any]:  # type: ignore[override]
        for batch in super().__iter__():
            batch.x = batch.x * torch.rand_like(batch.x)
            yield batch


def test_loader_that_draws_random_numbers_is_refused() -> None:
    data = graph()
    model = model_of(three_layers, data)
    with pytest.raises(ValueError, match="the loader draws random numbers for each batch"):
        ExactGradient(model, Noise(data, PTR, 1)).backward(criterion)
