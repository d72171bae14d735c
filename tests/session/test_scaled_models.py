"""scale() on models as their users write them: batches, inference and training equal those of the plain model."""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as F
import torch_geometric.nn as nn
from graphs import FORMATS, random_graph, to_format
from nets import batch_rows
from plain_models import MODELS, OUT, C, H, LoopsInForward, Normed, Own, layered
from torch import Tensor
from torch.nn import Module
from torch.utils import _pytree as pytree
from torch_geometric.data import Data

from torch_gas import EvalSubgraphLoader, ScaledGNN, SubgraphLoader, dropout, scale
from torch_gas.wiring.arguments import inputs_of

N = 60
PTR = torch.tensor([0, 14, 14, 37, N])


def graph(fmt: str = "edge_index", attributed: bool = True, dtype: torch.dtype = torch.float32) -> Data:
    """A graph with attributes of edges, sorted as matrices hold them."""
    data = random_graph(N, 240, seed=1)
    src, dst = data.edge_index
    data.edge_index = data.edge_index[:, (dst * N + src).argsort()]
    data.x = data.x.to(dtype)
    if attributed:
        generator = torch.Generator().manual_seed(3)
        data.edge_weight = 0.5 + torch.rand(data.num_edges, generator=generator, dtype=dtype)
        data.edge_attr = torch.rand(data.num_edges, 3, generator=generator, dtype=dtype)
    return to_format(data, fmt)


def plain(model: Module, data: Data) -> Any:
    """What the model gives on the whole graph by itself."""
    args, kwargs = inputs_of(model, data)
    return model(*args, **kwargs)


def assert_rows(out: Any, full: Any, rows: Tensor | slice = slice(None)) -> None:
    """Each tensor of ``out`` holds these rows of the one in ``full``."""
    assert pytree.tree_structure(out) == pytree.tree_structure(full)
    for left, right in zip(pytree.tree_leaves(out), pytree.tree_leaves(full), strict=True):
        torch.testing.assert_close(left, right[rows], rtol=1e-4, atol=1e-5)


@torch.no_grad()
def check_exact(model: Module, data: Data, neighbors: str = "in", places: Any = "row-wise") -> ScaledGNN:
    """Each batch's rows and layer-wise inference equal the plain model's."""
    scaled = scale(model.eval(), data, places=places)
    assert scaled.found.neighbors == neighbors
    full = plain(model, data)
    again = scaled(data)  # which refreshes the histories
    assert_rows(again, full)
    kwargs = {"neighbors": neighbors}
    loaders = [
        SubgraphLoader(data, PTR, **kwargs),
        SubgraphLoader(data, PTR, 2, shuffle=True, seed=0, bipartite=False, **kwargs),
        SubgraphLoader(data, PTR, neighbors="both"),
    ]
    for loader in loaders:
        for batch in loader:
            assert batch.halo_size > 0
            assert_rows(scaled(batch), full, batch_rows(batch))
    for history in scaled.histories:
        history.emb.fill_(float("nan"))
    assert_rows(scaled(loader=EvalSubgraphLoader(data, PTR, **kwargs)), full)
    return scaled


def train(model: Module, run: Callable[[], Any], y: Tensor) -> list[float]:
    """Losses of three steps of Adam."""
    model.train()
    optimizer = torch.optim.Adam(model.parameters(), lr=0.01)
    losses = []
    for seed in range(3):
        torch.manual_seed(seed)
        optimizer.zero_grad()
        loss = sum(F.cross_entropy(leaf, y) for leaf in pytree.tree_leaves(run()))
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    return losses


def check_same_training(
    model: Module, neighbors: str = "in", attributed: bool = True, places: Any = "row-wise"
) -> None:
    """With one batch that is the whole graph, losses, parameters and buffers follow those of the plain model.

    In double precision, because Adam makes a step of a gradient that is nothing but rounding.
    """
    data, model = graph(attributed=attributed, dtype=torch.float64), model.double()
    scaled = scale(copy.deepcopy(model), data, torch_dropout=True, places=places)
    (batch,) = SubgraphLoader(data, torch.tensor([0, N]), neighbors=neighbors)
    assert batch.halo_size == 0
    want = train(model, lambda: plain(model, data), data.y)
    got = train(scaled, lambda: scaled(batch), data.y)
    assert len(set(want)) == 3
    torch.testing.assert_close(got, want, rtol=1e-9, atol=1e-9)
    state = scaled.unscale().state_dict()
    for key, value in model.state_dict().items():
        torch.testing.assert_close(state[key], value, rtol=1e-6, atol=1e-6, msg=key)


# -- PyG's models ------------------------------------------------------------------------------------------------------

PNA = {"aggregators": ["mean", "max", "std"], "scalers": ["identity", "amplification"], "deg": torch.tensor([6, 9, 25])}
BASIC: dict[str, tuple[Any, dict[str, Any]]] = {
    "GCN": (nn.GCN, {}),
    "GraphSAGE": (nn.GraphSAGE, {}),
    "GIN": (nn.GIN, {}),
    "GAT": (nn.GAT, {"heads": 2}),
    "GATv2": (nn.GAT, {"v2": True}),
    "PNA": (nn.PNA, PNA),
    "PNA of sums": (nn.PNA, PNA | {"aggregators": ["mean", "sum"]}),
    "EdgeCNN": (nn.EdgeCNN, {}),
}
JK = [None, "last", "cat", "max", "lstm"]
NORM = [None, "batch_norm"]


def basic(name: str, jk: str | None = None, norm: str | None = None) -> Module:
    torch.manual_seed(0)
    cls, kwargs = BASIC[name]
    return cls(C, H, 3, OUT, dropout=0.3, jk=jk, norm=norm, **kwargs)


@pytest.mark.parametrize("norm", NORM)
@pytest.mark.parametrize("jk", JK)
@pytest.mark.parametrize("name", BASIC)
def test_basic_models(name: str, jk: str | None, norm: str | None) -> None:
    scaled = check_exact(basic(name, jk, norm), graph(attributed=False))
    assert len(scaled.histories) == 2


@pytest.mark.parametrize(
    ("name", "jk", "norm"),
    [(name, JK[(i + j) % 5], NORM[(i + j) % 2]) for i, name in enumerate(BASIC) for j in (0, 3)],
)
def test_basic_models_train_as_the_plain_ones(name: str, jk: str | None, norm: str | None) -> None:
    check_same_training(basic(name, jk, norm), attributed=False)


@pytest.mark.parametrize("jk", ["cat", None])
@pytest.mark.parametrize("norm", NORM)
@pytest.mark.parametrize("name", BASIC)
def test_basic_models_at_other_places(name: str, jk: str | None, norm: str | None) -> None:
    for places in ("cheap", "outputs"):
        check_exact(basic(name, jk, norm), graph(attributed=False), places=places)
        check_same_training(basic(name, jk, norm), attributed=False, places=places)


# -- other models ------------------------------------------------------------------------------------------------------

BOTH = {"DirGNN", "outgoing"}  # what reads edges in both directions


@pytest.mark.parametrize("name", MODELS)
def test_models(name: str) -> None:
    torch.manual_seed(0)
    check_exact(MODELS[name](), graph(), "both" if name in BOTH else "in")


@pytest.mark.parametrize("places", ["cheap", "outputs"])
@pytest.mark.parametrize("name", MODELS)
def test_models_at_other_places(name: str, places: str) -> None:
    torch.manual_seed(0)
    check_exact(MODELS[name](), graph(), "both" if name in BOTH else "in", places)
    torch.manual_seed(0)
    check_same_training(MODELS[name](), "both" if name in BOTH else "in", places=places)


@pytest.mark.parametrize("name", MODELS)
def test_models_train_as_the_plain_ones(name: str) -> None:
    torch.manual_seed(0)
    check_same_training(MODELS[name](), "both" if name in BOTH else "in")


@pytest.mark.parametrize("fmt", FORMATS)
@pytest.mark.parametrize("name", ["GCNII", "GCN", "GAT", "PNA", "shared", "MixHop"])
def test_formats(name: str, fmt: str) -> None:
    torch.manual_seed(0)
    model = basic(name, "cat", "batch_norm") if name in BASIC else MODELS[name]()
    check_exact(model, graph(fmt, attributed=False))


@pytest.mark.parametrize("fmt", ["csr", *FORMATS[3:]])
def test_products_with_a_matrix(fmt: str) -> None:
    check_exact(layered(lambda i, o: Own(i, o, "@"))(), graph(fmt, attributed=False))


def test_torch_scatter() -> None:
    pytest.importorskip("torch_scatter")
    check_exact(layered(lambda i, o: Own(i, o, "torch_scatter"))(), graph())


@pytest.mark.parametrize("make", [LoopsInForward, lambda: Normed(True)])
def test_self_loops_added_in_forward(make: Callable[[], Module]) -> None:
    check_exact(make(), graph(), "in")


@pytest.mark.parametrize("name", ["GCN", "GraphSAGE", "GAT", "PNA"])
def test_graphs_with_double_edges_and_without_self_loops(name: str) -> None:
    data = graph(attributed=False)
    loops = data.edge_index[0] == data.edge_index[1]
    assert loops.any()
    data.edge_index = data.edge_index[:, ~loops]
    data.edge_index = torch.cat([data.edge_index, data.edge_index[:, ::3]], dim=1)
    check_exact(basic(name), data)
    check_exact(basic(name), to_format(data, "EdgeIndex"))


def test_workers() -> None:
    data = graph(attributed=False)
    scaled = scale(basic("GCN").eval(), data)
    with torch.no_grad():
        full = scaled(data)
        for batch in SubgraphLoader(data, PTR, num_workers=2):
            assert_rows(scaled(batch), full, batch_rows(batch))


def test_autocast() -> None:
    data = graph(attributed=False)
    for name in ("GraphSAGE", "GCN"):
        model = basic(name).eval()
        with torch.autocast("cpu", torch.bfloat16), torch.no_grad():
            full = model(data.x, data.edge_index)
            scaled = scale(model, data)
            scaled(data)
            for batch in SubgraphLoader(data, PTR):
                out = scaled(batch)
                assert out.dtype == full.dtype
                torch.testing.assert_close(out, full[batch_rows(batch)], rtol=0.05, atol=0.02)


# -- what batches are to training, and to caches ------------------------------------------------------------------------


def test_gradients_are_those_of_fixed_halo_rows() -> None:
    data = graph(attributed=False)
    scaled = scale(nn.GraphSAGE(C, H, 2, OUT), data)
    scaled(data)
    batch = next(iter(SubgraphLoader(data, PTR)))
    old = scaled.histories[0].emb.clone()
    got = torch.autograd.grad(scaled(batch).sum(), list(scaled.parameters()))
    first, second = scaled.unscale().convs
    x = first(data.x, data.edge_index).relu()
    rows = torch.zeros(N, 1).index_fill(0, batch_rows(batch), 1.0)
    x = rows * x + (1 - rows) * old.relu()
    want = torch.autograd.grad(second(x, data.edge_index)[batch_rows(batch)].sum(), list(scaled.parameters()))
    for left, right in zip(got, want, strict=True):
        torch.testing.assert_close(left, right)


def test_batch_norm_counts_rows_of_the_batch() -> None:
    data = graph(attributed=False)
    scaled = scale(nn.GraphSAGE(C, H, 2, OUT, norm="batch_norm"), data)
    batch = next(iter(SubgraphLoader(data, PTR)))
    model = copy.deepcopy(scaled.unscale())
    scaled(batch)
    rows = model.convs[0](data.x, data.edge_index)[batch_rows(batch)]
    model.norms[0](rows)
    torch.testing.assert_close(scaled.norms[0].module.running_mean, model.norms[0].module.running_mean)
    torch.testing.assert_close(scaled.norms[0].module.running_var, model.norms[0].module.running_var)
    assert scaled.norms[0].module.num_batches_tracked == 1


def test_cached_layers_keep_their_own_cache() -> None:
    data = graph(attributed=False)
    model = layered(lambda i, o: nn.GCNConv(i, o, cached=True))().eval()
    full = model(data.x, data.edge_index)
    kept = [conv._cached_edge_index for conv in model.convs]
    assert all(cached is not None for cached in kept)
    scaled = scale(model, data)
    scaled(data)
    for batch in SubgraphLoader(data, PTR):
        assert_rows(scaled(batch), full, batch_rows(batch))
    scaled.train()(batch)
    for conv, cached in zip(model.convs, kept, strict=True):
        assert conv.cached
        for left, right in zip(conv._cached_edge_index, cached, strict=True):
            assert torch.equal(left, right)


def test_edges_that_are_dropped_before_the_call() -> None:
    data = graph(attributed=False)
    scaled = scale(basic("GCN"), data)
    for batch, *ids in SubgraphLoader(data, PTR):
        out = scaled(batch.x, dropout(batch.edge_index, p=0.5, training=True), *ids)
        assert out.shape == (ids[0], OUT)
