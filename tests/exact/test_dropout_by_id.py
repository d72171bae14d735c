"""Dropout by global id: masks of rows are the same on the whole graph, on any batch, and each time they are drawn."""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from conformance import CASES, formats, graph
from conformance.graph import PTR
from conformance.measure import _Explicit, _Net
from graphs import FORMATS, random_graph, to_format
from torch import Tensor
from torch.nn import Dropout, Linear, Module, Parameter
from torch.nn.modules.batchnorm import _BatchNorm
from torch.overrides import _len_torch_function_stack
from torch.utils.checkpoint import checkpoint as checkpointed
from torch_geometric.data import Data
from torch_geometric.nn import (
    GAT,
    GCN,
    MLP,
    DirGNNConv,
    EdgeConv,
    GATConv,
    GCNConv,
    GraphSAGE,
    MessagePassing,
    SAGEConv,
)  # fmt: skip

from torch_gas import SubgraphLoader, checkpoint, models, plan, scale
from torch_gas.exact.dropout import edge_ids
from torch_gas.extensions import DropoutById
from torch_gas.extensions.regularization import LocalPerturbation
from torch_gas.graph.adjacency import find_adjacency

P = 0.4


def double(data: Data) -> Data:
    data.x = data.x.double()
    return data


DATA = double(random_graph(60, 300, seed=1))
PARTS = torch.arange(0, 61, 15)


def with_masks(model: Any, seed: int = 0) -> Any:
    model.add_extension(DropoutById(seed=seed))
    return model.train()


def batches(data: Data, ptr: Tensor, **options: Any) -> list[Any]:
    """Single parts, pairs with edges of the halo's rows left out or empty ones there, and all parts."""
    sizes = ((1, True), (2, False), (ptr.numel() - 1, True))
    loaders = [
        SubgraphLoader(data, ptr, n, bipartite, prefetch=0, shuffle=True, seed=3, **options) for n, bipartite in sizes
    ]
    return [batch for loader in loaders for batch in loader]


@torch.no_grad()
def assert_same_rows(
    model: Any, data: Data, ptr: Tensor, call: Callable[[Data], Any] | None = None, **options: Any
) -> Tensor:
    """In one step, rows of batches are those of the whole graph; returns these."""
    full = model(data) if call is None else call(data)
    for batch in batches(data, ptr, **options):
        torch.testing.assert_close(model(batch), full[batch.n_id[: batch.batch_size]], rtol=1e-9, atol=1e-9)
    again = model(data) if call is None else call(data)
    assert torch.equal(full, again)
    model.eval()
    assert not torch.allclose(model(data) if call is None else call(data), full)  # something was dropped
    return full


# --- layers of PyG --------------------------------------------------------------------------------


def _set_dropout(layer: Module) -> bool:
    """Has what can drop in a layer do so; whether there is anything."""
    found = False
    for module in layer.modules():
        if isinstance(module, Dropout):
            module.p, found = P, True
        elif isinstance(getattr(module, "dropout", None), (int, float)):
            module.dropout, found = P, True
        elif isinstance(getattr(module, "dropout", None), list):  # of an MLP
            module.dropout, found = [P] * len(module.dropout), True
    return found


def _can_drop(name: str) -> bool:
    try:
        return _set_dropout(CASES[name].make()) and name != "GPSConv"  # which is refused
    except ImportError:
        return False


DROPPING = [name for name in CASES if _can_drop(name)]


def test_layers_with_dropout_are_found() -> None:
    names = {name.partition(" ")[0] for name in DROPPING}
    assert names >= {
        "GATConv",
        "GATv2Conv",
        "TransformerConv",
        "SuperGATConv",
        "RGATConv",
        "FAConv",
        "DNAConv",
        "APPNP",
        "ARMAConv",
    }


@pytest.mark.parametrize("fmt", formats())
@pytest.mark.parametrize("wiring", ["explicit", "automatic"])
@pytest.mark.parametrize("name", DROPPING)
def test_layers(name: str, wiring: str, fmt: str) -> None:
    data, case = graph(fmt, torch.float64), CASES[name]
    torch.manual_seed(0)
    net = _Net(case).double()
    try:
        net.train()(*net.inputs(data))
    except Exception:  # of any type: what a layer raises on a format that it does not take
        pytest.skip("PyG does not take the layer on this format")
    for layer in net.layers:
        _set_dropout(layer)
    try:
        model: Any = _Explicit(net).double() if wiring == "explicit" else scale(net, data, inputs=net.inputs)
        if wiring == "explicit":
            model.eval()(next(iter(SubgraphLoader(data, PTR))))
    except ValueError as error:
        assert "cannot be used on a batch" in str(error)
        pytest.skip("torch_gas refuses the layer in explicit wiring, as tests of conformance check")
    with_masks(model)
    for module in model.modules():
        if isinstance(module, _BatchNorm):  # whose statistics are those of a batch
            module.eval()
    args, kwargs = model.inputs(data) if wiring == "explicit" else (net.inputs(data), {})
    neighbors = "in" if wiring == "explicit" else model.found.neighbors
    assert_same_rows(model, data, PTR, lambda _: model(*args, **kwargs), neighbors=neighbors)
    met = model.extensions[0]._met
    assert len(met) >= 2 and all(scope for scope, _ in met)  # all calls were inside of layers


class Attention(MessagePassing):
    """Attention of several heads, [E, H, 1], whose second dimension is none of nodes, and dropout behind the sum."""

    def __init__(self) -> None:
        super().__init__(aggr="add")
        self.score, self.lin = Linear(8, 2), Linear(8, 8)

    def forward(self, x: Tensor, edge_index: Tensor) -> Tensor:
        return self.propagate(edge_index, x=x)

    def message(self, x_j: Tensor, x_i: Tensor) -> Tensor:
        alpha = (self.score(x_i) + self.score(x_j)).sigmoid()[:, :, None]
        return (F.dropout(alpha, P, self.training) * x_j[:, None]).mean(1)

    def update(self, out: Tensor) -> Tensor:
        return F.dropout(self.lin(out), P, self.training)


class Heads(MessagePassing):
    """Rows of nodes and edges in the second dimension."""

    def __init__(self) -> None:
        super().__init__(aggr="add", node_dim=-2)

    def forward(self, x: Tensor, edge_index: Tensor) -> Tensor:
        heads = F.dropout(x.view(-1, 2, 4).transpose(0, 1), P, self.training)
        return self.propagate(edge_index, x=heads).transpose(0, 1).reshape(-1, 8)

    def message(self, x_j: Tensor) -> Tensor:
        return F.dropout(x_j, P, self.training)


@pytest.mark.parametrize("fmt", FORMATS)
@pytest.mark.parametrize(
    "make",
    [Attention, Heads, lambda: EdgeConv(MLP([16, 8, 8], dropout=P, norm=None))],
    ids=["attention", "heads", "MLP"],
)
def test_layers_of_users(make: Callable[[], Module], fmt: str) -> None:
    class Net(Module):
        def __init__(self) -> None:
            super().__init__()
            self.convs = torch.nn.ModuleList([make(), make()])

        def forward(self, x: Tensor, adj: Any) -> Tensor:
            return self.convs[1](self.convs[0](x, adj).tanh(), adj)

    data = to_format(DATA, fmt)
    torch.manual_seed(0)
    model = scale(Net().double(), data, inputs=lambda batch: (batch.x, find_adjacency(batch)[1]))
    assert_same_rows(with_masks(model), data, PARTS)


# --- whole models ---------------------------------------------------------------------------------


class Own(Module):
    """All ways to call dropout on rows of nodes, and attention."""

    def __init__(self) -> None:
        super().__init__()
        self.convs = torch.nn.ModuleList(
            [GATConv(8, 8, heads=2, concat=False, dropout=0.3), SAGEConv(8, 8), GATConv(8, 3, dropout=0.3)]
        )
        self.drop, self.lin = Dropout(0.3), Linear(8, 8)
        self.weight = Parameter(torch.randn(15, 8))  # as many rows as a part has nodes

    def forward(self, x: Tensor, edge_index: Tensor) -> Tensor:
        x = torch.dropout(x, 0.2, self.training)
        x = self.convs[0](self.drop(x), edge_index)
        x = F.dropout(x + 1, 0.2, self.training, inplace=True)  # an addition, whose gradient does not read its result
        h = self.convs[1](x, edge_index) * 2
        torch.dropout_(h, p=0.2, train=self.training)
        scale = F.dropout(self.weight, 0.5, self.training).sum(0) * F.dropout(
            self.lin.bias[:1].sum() + 3, 0.1, self.training
        )
        rows = (
            self.drop(self.lin(h).view(-1, 2, 4)).flatten(1)
            + F.dropout(h[:, 0], 0.2, self.training)[:, None]
            + 0.1 * scale
        )
        return self.drop(self.convs[2](rows, edge_index))


class Outer(MessagePassing):
    """A layer with another inside, which normalises by degrees."""

    def __init__(self, inner: Module) -> None:
        super().__init__()
        self.inner = inner

    def forward(self, x: Tensor, edge_index: Tensor) -> Tensor:
        return self.inner(x, edge_index)


class Nested(Module):
    def __init__(self) -> None:
        super().__init__()
        self.convs = torch.nn.ModuleList([Outer(GCNConv(8, 8)), DirGNNConv(GATConv(8, 3, dropout=0.5))])

    def forward(self, x: Tensor, edge_index: Tensor) -> Tensor:
        for conv in self.convs:
            x = conv(F.dropout(x, 0.2, self.training), edge_index)
        return x


@pytest.mark.parametrize(
    "make",
    [
        Own,
        lambda: GraphSAGE(8, 16, 3, 3, dropout=0.5, jk="cat"),
        lambda: GCN(8, 16, 3, 3, dropout=0.5, act="elu"),
        lambda: GAT(8, 16, 3, 3, dropout=0.5, heads=4),
        Nested,
    ],
    ids=["own", "SAGE", "GCN", "GAT", "nested"],
)
def test_scaled_models(make: Callable[[], Module]) -> None:
    torch.manual_seed(0)
    model = with_masks(scale(make().double(), DATA))
    assert_same_rows(model, DATA, PARTS, neighbors=model.found.neighbors)


@pytest.mark.parametrize("fmt", FORMATS)
@pytest.mark.parametrize(
    "make",
    [
        lambda: models.SAGE(60, 8, 16, 3, num_layers=3, dropout=0.5, residual=True),
        lambda: models.GCN2(60, 8, 16, 3, num_layers=4, alpha=0.1, theta=0.5, dropout=0.5),
        lambda: models.GAT(60, 8, 8, 2, 3, 2, 2, dropout=0.5, add_self_loops=True),
    ],
    ids=["SAGE", "GCN2", "GAT"],
)
def test_shipped_models(make: Callable[[], Any], fmt: str) -> None:
    data = to_format(DATA, fmt)
    torch.manual_seed(0)
    model = with_masks(make().double())
    assert_same_rows(model, data, PARTS, lambda data: model(data.x, find_adjacency(data)[1]))


def test_sparse_features() -> None:
    data = copy.copy(DATA)
    data.x = data.x.relu().to_sparse_csr()
    model = with_masks(models.GCN2(60, 8, 16, 3, num_layers=2, alpha=0.1, theta=0.5, dropout=0.5).double())
    sparse = assert_same_rows(model, data, PARTS, lambda data: model(data.x, data.edge_index))
    model.train()
    torch.testing.assert_close(model(data.x.to_dense(), data.edge_index), sparse)


def test_a_batch_of_all_nodes_trains_like_the_whole_graph() -> None:
    """Masks are those of edges by their ends: the loader sorts them."""
    torch.manual_seed(0)
    full = with_masks(scale(Own().double(), DATA))
    batched = copy.deepcopy(full)
    (batch,) = SubgraphLoader(DATA, PARTS, batch_size=4)
    for _ in range(3):
        for model, given in ((full, DATA), (batched, batch)):
            optimizer = torch.optim.SGD(model.parameters(), lr=0.01)
            optimizer.zero_grad()
            (model(given) * torch.arange(180, dtype=torch.float64).view(60, 3).cos()).sum().backward()
            optimizer.step()
    for left, right in zip(full.parameters(), batched.parameters(), strict=True):
        torch.testing.assert_close(left, right, rtol=1e-9, atol=1e-10)
    assert full.extensions[0].step == batched.extensions[0].step == 3


def test_rows_of_edges_outside_of_layers_and_copies_of_pairs() -> None:
    """Equal pairs are told apart by their order, which loaders keep."""

    class Net(Module):
        def __init__(self) -> None:
            super().__init__()
            self.convs = torch.nn.ModuleList([GATConv(8, 8, edge_dim=3, add_self_loops=False) for _ in range(2)])

        def forward(self, x: Tensor, edge_index: Tensor, edge_attr: Tensor) -> Tensor:
            for conv in self.convs:
                x = conv(x, edge_index, F.dropout(edge_attr, 0.5, self.training))
            return x

    data = copy.copy(DATA)
    data.edge_index = torch.cat([DATA.edge_index, DATA.edge_index[:, ::3], DATA.edge_index[:, ::6]], dim=1)
    data.edge_attr = torch.randn(data.num_edges, 3, dtype=torch.float64)
    torch.manual_seed(0)
    assert_same_rows(with_masks(scale(Net().double(), data)), data, PARTS)


def test_ids_of_edges() -> None:
    src, dst = torch.tensor([[5, 5, 7, 5, 9, 5], [2, 2, 5, 3, 9, 2]])
    ids = edge_ids(src, dst, 300)
    assert ids.unique().numel() == 6
    other = torch.tensor([0, 4, 1, 5])  # copies in their order
    assert torch.equal(edge_ids(src[other], dst[other], 300), ids[other])
    assert torch.equal(edge_ids(src[1:2], dst[1:2], 300), ids[:1])
    assert edge_ids(src[:0], dst[:0], 300).shape == (0,)
    dst, src = torch.cartesian_prod(torch.arange(300), torch.arange(300)).t()
    ascending = edge_ids(src, dst, 300)
    assert ascending.unique().numel() == 90_000
    assert torch.equal(edge_ids(src.flip(0), dst.flip(0), 300), ascending.flip(0))
    bits = (ascending[:, None] >> torch.arange(64)) & 1
    assert (bits.double().mean(0) - 0.5).abs().max() < 5 * 0.5 / 300


# --- what masks depend on -------------------------------------------------------------------------


class Ones(Module):
    """Its output is a mask."""

    def __init__(self, p: float = P, times: int = 1) -> None:
        super().__init__()
        self.conv, self.p, self.times = SAGEConv(8, 50, bias=False), p, times

    def forward(self, x: Tensor, edge_index: Tensor) -> Tensor:
        ones = torch.ones_like(self.conv(x, edge_index))
        for _ in range(self.times - 1):
            F.dropout(ones, self.p)
        return F.dropout(ones, self.p, self.training)


def mask(seed: int = 0, step: int = 0, **options: Any) -> Tensor:
    model = with_masks(scale(Ones(**options), Data(DATA.x.float(), DATA.edge_index)), seed)
    model.extensions[0].step = step
    return model(Data(DATA.x.float(), DATA.edge_index))


def test_masks_depend_on_seed_step_and_number() -> None:
    masks = [mask(), mask(seed=1), mask(step=1), mask(times=2), mask(seed=2**63 - 1)]
    assert torch.equal(masks[0], mask())
    kept = torch.stack(masks).flatten(1) > 0
    equal = (kept[:, None] == kept).double().mean(2) - torch.eye(5) * (1 - (1 - P) ** 2 - P**2)
    assert (equal - (1 - P) ** 2 - P**2).abs().max() < 0.05


@pytest.mark.parametrize("p", [0.1, 0.5, 0.9])
def test_rates(p: float) -> None:
    found = mask(p=p)
    assert found.unique().tolist() == [0, torch.tensor(1 / (1 - p)).item()]
    for dim in (0, 1):
        assert (found.mean(dim) - 1).abs().max() < 6 * (p / (1 - p) / found.size(dim)) ** 0.5


def test_what_is_not_called_in_a_layer_changes_no_mask_outside() -> None:
    class Net(Ones):
        def __init__(self) -> None:
            super().__init__()
            self.conv = GATConv(8, 50, dropout=0.5)

    model, data = with_masks(scale(Net(), Data(DATA.x.float(), DATA.edge_index))), Data(DATA.x.float(), DATA.edge_index)
    with torch.no_grad():
        first = model(data)
        model.model.conv.dropout = 0.0
        assert torch.equal(model(data), first)
    assert torch.equal(first, mask())


def test_the_seed_comes_from_torch() -> None:
    torch.manual_seed(4)
    first = DropoutById()
    torch.manual_seed(4)
    assert DropoutById().seed == first.seed != DropoutById().seed


def test_steps_are_training_calls_with_gradients() -> None:
    model = with_masks(scale(GraphSAGE(8, 16, 2, 3, dropout=0.5).double(), DATA))
    extension, batch = model.extensions[0], next(iter(SubgraphLoader(DATA, PARTS)))
    first = model(batch)
    assert extension.step == 1
    with torch.no_grad():
        same = model(batch)
        assert torch.equal(same, model(batch)) and not torch.equal(same, first)
    assert extension.step == 1
    assert torch.equal(model(batch), same)
    model(DATA)
    assert extension.step == 3
    model.eval()
    model(batch)
    model(loader=SubgraphLoader(DATA, PARTS))
    assert extension.step == 3
    with pytest.raises(ValueError, match="x has 59 rows"):
        model.train()(
            batch.data.subgraph(torch.arange(59)) if batch.data.num_nodes > 59 else DATA.subgraph(torch.arange(59))
        )
    assert extension.step == 3


def test_torch_is_left_as_it_was() -> None:
    model = with_masks(scale(GraphSAGE(8, 16, 2, 3, dropout=0.5).double(), DATA))
    state = torch.get_rng_state()
    model(DATA)
    assert torch.equal(torch.get_rng_state(), state)
    torch.manual_seed(0)
    expected = F.dropout(torch.ones(100))
    torch.manual_seed(0)
    assert torch.equal(F.dropout(torch.ones(100)), expected)
    model.remove_extension(model.extensions[0])
    model(DATA)
    assert not torch.equal(torch.get_rng_state(), state)


def test_an_error_leaves_nothing() -> None:
    def fail(x: Tensor, edge_index: Tensor) -> Tensor:
        raise RuntimeError("on purpose")

    model = with_masks(scale(Between(fail).double(), DATA))
    for given in (DATA, next(iter(SubgraphLoader(DATA, PARTS)))):
        before = [dict(vars(module)) for module in model.modules()]
        with pytest.raises(RuntimeError, match="on purpose"):
            model(given)
        assert _len_torch_function_stack() == 0
        assert [vars(module).keys() for module in model.modules()] == [each.keys() for each in before]
    assert model.extensions[0].step == 0


def test_it_goes_on_from_a_checkpoint(tmp_path: Any) -> None:
    def make() -> tuple[Any, Any]:
        torch.manual_seed(0)
        model = with_masks(scale(GAT(8, 16, 2, 3, dropout=0.5).double(), DATA), seed=5)
        return model, torch.optim.Adam(model.parameters())

    def train(model: Any, optimizer: Any, steps: int) -> Tensor:
        for _ in range(steps):
            optimizer.zero_grad()
            loss = model(DATA).square().sum()
            loss.backward()
            optimizer.step()
        return loss

    model, optimizer = make()
    train(model, optimizer, 3)
    checkpoint.save(tmp_path / "run", model=model, optimizer=optimizer)
    expected = train(model, optimizer, 3)
    model, optimizer = make()
    model.extensions[0].seed = 6
    checkpoint.load(tmp_path / "run", model=model, optimizer=optimizer)
    assert torch.equal(train(model, optimizer, 3), expected)
    with pytest.raises(ValueError, match="a state holds seed and step, but this one seed"):
        model.extensions[0].load_state_dict({"seed": 3})


def test_gradients_are_those_of_the_mask() -> None:
    """The backward pass draws it again."""
    model = with_masks(scale(GraphSAGE(8, 16, 2, 3, dropout=0.5).double(), DATA))
    with torch.no_grad():
        out = model(DATA)
    x = DATA.x.clone().requires_grad_()
    direction = torch.randn_like(x)
    model.extensions[0].step = 0
    (grad,) = torch.autograd.grad(model(Data(x, DATA.edge_index)).sum(), x)
    model.extensions[0].step = 0
    moved = model(Data(DATA.x + 1e-6 * direction, DATA.edge_index))
    torch.testing.assert_close((moved - out).sum() / 1e-6, (grad * direction).sum(), rtol=1e-4, atol=1e-4)


def test_layers_that_are_called_twice_by_a_penalty_drop_the_same_entries() -> None:
    net = GAT(8, 16, 3, 3, dropout=0.5).double()
    model = with_masks(scale(net, DATA, regularization=LocalPerturbation(noise=1e-9)))
    without = with_masks(scale(net, DATA))
    out = model(DATA)
    assert 0 < model.regularization().item() < 1e-6
    assert torch.equal(out, without(DATA))


def test_steps_that_plan_tries_are_not_counted() -> None:
    model = with_masks(scale(GraphSAGE(8, 16, 2, 3, dropout=0.5).double(), DATA))
    plan(DATA, model, host_memory="1GB")
    assert model.extensions[0].step == 0


# --- what is refused ------------------------------------------------------------------------------


class Between(Module):
    """A function between two layers."""

    def __init__(self, function: Callable[[Tensor, Tensor], Tensor]) -> None:
        super().__init__()
        self.convs, self.function = torch.nn.ModuleList([SAGEConv(8, 8), SAGEConv(8, 3)]), function

    def forward(self, x: Tensor, edge_index: Tensor) -> Tensor:
        x = self.convs[0](x, edge_index)
        if self.training:
            x = self.function(x, edge_index)
        return self.convs[1](x, edge_index)


def _last(x: Tensor, edge_index: Tensor) -> Tensor:
    return F.dropout(x.t().reshape(4, 2, -1), P).view(8, -1).t()


def _flat(x: Tensor, edge_index: Tensor) -> Tensor:
    return F.dropout(x.flatten(), P).view(x.shape)


def _some(x: Tensor, edge_index: Tensor) -> Tensor:
    return torch.cat([F.dropout(x[3:], P), x[:3]])


@pytest.mark.parametrize(
    ("function", "message"),
    [
        (_last, r"\[4, 2, \d+\], which are no rows of"),
        (_flat, r"\[\d+\], of positions, and was given rows of positions \[\d+\] here before"),
        (_some, "nothing tells what they are of"),
    ],
)
def test_rows_that_nothing_tells(function: Callable[[Tensor, Tensor], Tensor], message: str) -> None:
    model = with_masks(scale(Between(function).double(), DATA))
    with pytest.raises(ValueError, match=rf"forward of Between: dropout is given .*{message}.* Drop rows"):
        for batch in SubgraphLoader(DATA, PARTS):
            model(batch)


class Odd(MessagePassing):
    def forward(self, x: Tensor, edge_index: Tensor) -> Tensor:
        return self.propagate(edge_index, x=x)

    def message(self, x_j: Tensor) -> Tensor:
        return x_j * F.dropout(torch.ones(7, 1), P, self.training).mean()


def test_rows_that_nothing_tells_in_a_layer() -> None:
    model = Between(lambda x, edge_index: x)
    model.convs[0] = Odd()
    model = with_masks(scale(model.double(), DATA))
    with pytest.raises(
        ValueError, match=r"convs.0 \(Odd\): dropout is given \[7, 1\], which are no rows of \d+ edges. Drop"
    ):
        model(DATA)


def test_activation_checkpointing() -> None:
    net = Between(lambda x, _: checkpointed(lambda x: F.dropout(x, P), x, use_reentrant=False))
    model = with_masks(scale(net.double(), DATA))
    with pytest.raises(ValueError, match="called under activation checkpointing"):
        model(DATA)


def test_bad_arguments() -> None:
    with pytest.raises(ValueError, match="DropoutById: seed must not be negative, but is -1"):
        DropoutById(seed=-1)
    model = with_masks(models.SAGE(60, 8, 16, 3, num_layers=2))
    with pytest.raises(ValueError, match="SAGE has a DropoutById already"):
        model.add_extension(DropoutById(seed=0))
    compiled = torch.compile(model, backend="eager")
    with pytest.raises(RuntimeError, match=r"which torch\.compile cannot follow"):
        compiled(DATA.x.float(), DATA.edge_index)


def test_other_probabilities_are_those_of_torch() -> None:
    model = with_masks(scale(Between(lambda x, _: F.dropout(x, 1.5)).double(), DATA))
    with pytest.raises(ValueError, match="between 0 and 1"):
        model(DATA)
    model.model.function = lambda x, _: F.dropout(x, 1.0)
    assert torch.equal(model(DATA), model(DATA))  # all is dropped
