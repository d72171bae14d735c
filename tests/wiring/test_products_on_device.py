"""Products as a GPU computes them, by a matrix and its transpose and kernels of torch, which the CPU has as well."""

from __future__ import annotations

import copy
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import pytest
import torch
import torch_geometric.nn as nn
from graphs import adjacency, random_graph, to_format
from nets import Net
from test_fused import DATA, LAYERS, N, fused, weights
from torch import Tensor
from torch.profiler import ProfilerActivity, profile
from torch.utils._python_dispatch import TorchDispatchMode

from torch_gas import SubData, SubgraphLoader, wiring
from torch_gas.batch import loader as loaders
from torch_gas.graph import product
from torch_gas.graph.device import DeviceEdges, tell_order
from torch_gas.graph.formats import format_of, map_tensors
from torch_gas.graph.product import aggregate, edges_of
from torch_gas.models import APPNP, GCN, GCN2

FORMATS = ["edge_index", "EdgeIndex", "csr"]
PTR = torch.tensor([0, 9, 17, 30, N])
PRODUCTS = sorted(name for name in LAYERS if not name.startswith("GAT"))  # attention has no kernel there
TIGHT = {"rtol": 1e-10, "atol": 1e-10}


@contextmanager
def as_on_a_gpu() -> Iterator[list[Any]]:
    """Tensors on the CPU count as such on a GPU; yields the products."""
    found = []

    def note(rows: Tensor, edges: Any, *args: Any) -> Tensor:
        found.append(edges)
        return aggregate(rows, edges, *args)

    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(product._CLASSES, "cpu", DeviceEdges)
        patch.setattr(wiring.fused, "aggregate", note)
        yield found


class Courier:
    """Copies, on the host."""

    def __init__(self, device: torch.device) -> None:
        pass

    def allocate(self, shape: tuple[int, ...], dtype: torch.dtype) -> Tensor:
        return torch.empty(shape, dtype=dtype)

    def pin(self, batch: SubData) -> SubData:
        return batch

    def receive(self, batch: SubData, arrived: object) -> None:
        raise AssertionError("nothing is under way")

    def send(self, batch: SubData) -> tuple[SubData, None]:
        sent = copy.copy(batch)
        for key, value in batch.to_dict().items():
            sent[key] = map_tensors(value, torch.clone)
        return sent, None


@pytest.fixture
def courier(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(loaders, "Courier", Courier)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)


def graph(fmt: str) -> Any:
    """The adjacency of ``DATA``, in order, of which that is told as a loader does."""
    data = copy.copy(DATA)
    data.x, order = DATA.x.double(), DATA.edge_index[1].argsort(stable=True)
    data.edge_index, data.edge_weight = DATA.edge_index[:, order], weights().double()[order]
    adj = adjacency(to_format(data, fmt))
    tell_order(adj, adj, N, N, N)
    return adj


def run(conv: torch.nn.Module, adj: Any, **kwargs: Any) -> list[Tensor]:
    """Rows of a layer, and the gradients of its input and its parameters."""
    x = torch.randn(N, 8, dtype=torch.float64, generator=torch.Generator().manual_seed(1)).requires_grad_()
    out = conv(x, x, adj, **kwargs) if isinstance(conv, nn.GCN2Conv) else conv(x, adj, **kwargs)
    loss = (out * torch.linspace(-1, 1, N, dtype=torch.float64).view(-1, 1)).sum()
    return [out.detach(), *torch.autograd.grad(loss, [x, *conv.parameters()], allow_unused=True)]


def assert_close(found: list[Any], expected: list[Any]) -> None:
    for left, right in zip(found, expected, strict=True):
        assert (left is None) == (right is None)
        if left is not None:
            torch.testing.assert_close(left, right, **TIGHT)


@pytest.mark.parametrize("fmt", FORMATS)
@pytest.mark.parametrize("name", PRODUCTS)
def test_layers(name: str, fmt: str) -> None:
    if fmt == "csr" and name in ("MF", "WL"):
        pytest.skip("PyG's own layer fails over this format")
    torch.manual_seed(0)
    adj, conv = graph(fmt), LAYERS[name]().double()
    with fused(conv):
        expected = run(conv, adj)
        product.forget_edges(adj)
        with as_on_a_gpu() as products:
            found = run(conv, adj)
    makes_its_own = name in ("APPNP", "ClusterGCN", "GCN", "GCN2", "SG", "SSG", "LG", "MixHop", "TAG", "WL")  # edges
    assert len(products) > 0 or (fmt != "csr" and makes_its_own)
    assert_close(found, expected)


@pytest.mark.parametrize("aggr", ["sum", "mean"])
@pytest.mark.parametrize("learned", [False, True])
def test_weights(aggr: str, learned: bool) -> None:
    """Beside an ``edge_index``; :func:`graph` has them as the values of a matrix."""
    torch.manual_seed(0)
    adj, conv = graph("edge_index"), nn.GraphConv(8, 8, aggr=aggr).double()

    def both() -> list[Tensor]:
        weight = weights().double().requires_grad_(learned)
        out = run(conv, adj, edge_weight=weight)
        again = conv(DATA.x.double(), adj, weight).square().sum()
        return [*out, *(torch.autograd.grad(again, weight) if learned else ())]

    with fused(conv):
        expected = both()
        product.forget_edges(adj)
        with as_on_a_gpu() as products:
            found = both()
    assert len(products) == 2
    assert_close(found, expected)


@pytest.mark.parametrize("fmt", ["edge_index", "csr"])
def test_gradients_of_gradients(fmt: str) -> None:
    data = random_graph(6, 12)
    data.edge_index = data.edge_index[:, data.edge_index[1].argsort()]
    adj = adjacency(to_format(data, fmt))
    tell_order(adj, adj, 6, 6, 6)
    made = DeviceEdges.of(adj, 6, 6)
    assert made is not None
    generator = torch.Generator().manual_seed(0)
    rows, weight = (torch.rand(*s, dtype=torch.float64, generator=generator) for s in ((6, 2), (data.num_edges,)))
    inputs = rows.requires_grad_(), weight.requires_grad_()
    for mean in (False, True):
        assert torch.autograd.gradcheck(lambda x, w, mean=mean: aggregate(x, made, w, mean), inputs)
    assert torch.autograd.gradgradcheck(lambda x, w: aggregate(x, made, w) ** 2, inputs)


CONVS = {
    "GCN": lambda *sizes: nn.GCNConv(*sizes, normalize=False),
    "GIN": lambda *sizes: nn.GINConv(torch.nn.Linear(*sizes)),
    "Graph": nn.GraphConv,
    "SAGE": nn.SAGEConv,
}


def steps(model: Any, loader: SubgraphLoader) -> list[Tensor]:
    """Outputs and gradients of two epochs."""
    found = []
    for batch in [*loader, *loader]:
        out = model(batch)
        model.zero_grad()
        (out * torch.linspace(-1, 1, out.numel(), dtype=out.dtype).view_as(out)).sum().backward()
        found += [out.detach(), *(parameter.grad.clone() for parameter in model.parameters())]
    return found


def data_in(fmt: str) -> Any:
    data = to_format(random_graph(N, 400), fmt)
    data.x = data.x.double()
    if fmt == "csr":
        data.adj_t = data.adj_t.double()
    return data


def model_of(kind: str) -> Any:
    torch.manual_seed(0)
    if kind == "APPNP":
        return APPNP(N, 8, 8, 3, num_layers=3, alpha=0.1).double()
    if kind == "GCN2":
        return GCN2(N, 8, 8, 3, num_layers=3, alpha=0.1, theta=0.5).double()
    return Net(N, 8, num_layers=4, conv=CONVS[kind], dropout=0.0).double()


@pytest.mark.usefixtures("courier")
@pytest.mark.parametrize("fmt", FORMATS)
@pytest.mark.parametrize("kind", [*CONVS, "APPNP", "GCN2"])
def test_models_on_batches(kind: str, fmt: str) -> None:
    data = data_in(fmt)
    expected = steps(model_of(kind), SubgraphLoader(data, PTR, 2))
    loader = SubgraphLoader(data, PTR, 2, device="cuda")
    with as_on_a_gpu() as products:
        found = steps(model_of(kind), loader)
    assert len(products) >= 3 * 4  # layers, batches
    assert_close(found, expected)


@pytest.mark.usefixtures("courier")
@pytest.mark.parametrize("fmt", FORMATS)
def test_edges_are_sorted_once_a_batch(fmt: str) -> None:
    data, model = data_in(fmt), model_of("GCN")
    with as_on_a_gpu():
        for batch in SubgraphLoader(data, PTR, 2, device="cuda"):
            with profile(activities=[ProfilerActivity.CPU]) as profiled:
                model(batch).sum().backward()
            counts = {event.key: event.count for event in profiled.key_averages()}
            assert counts["aten::sort"] == 1 and counts["aten::_sparse_mm"] == 4 + 3  # features need no gradient
            assert "aten::index_add_" not in counts and "aten::scatter_add_" not in counts


@pytest.mark.usefixtures("courier")
@pytest.mark.parametrize("fmt", FORMATS)
def test_gradients_of_halo_rows_are_not_computed(fmt: str, monkeypatch: pytest.MonkeyPatch) -> None:
    data, model, sizes = data_in(fmt), model_of("Graph"), []
    multiply = torch.sparse.mm
    monkeypatch.setattr(torch.sparse, "mm", lambda a, b: sizes.append((*a.shape, a._nnz())) or multiply(a, b))
    with as_on_a_gpu():
        for batch in SubgraphLoader(data, PTR, 2, device="cuda"):
            sizes.clear()
            model(batch).sum().backward()
            num_dst, num_rows, num_edges = sizes[0]
            inner = int((format_of(adjacency(batch)).stored_edges(adjacency(batch)).src < batch.batch_size).sum())
            assert 0 < inner < num_edges
            assert sizes == [(num_dst, num_rows, num_edges)] * 4 + [(batch.batch_size, num_dst, inner)] * 3


class NoWait(TorchDispatchMode):
    """Refuses what would have the host wait for a GPU."""

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        name = func.overloadpacket._qualified_op_name
        waits = ("_local_scalar_dense", "nonzero", "masked_select", "unique", "equal", "_unique2", "bincount")
        assert name.removeprefix("aten::") not in waits, name
        if name == "aten::repeat_interleave":
            assert (kwargs or {}).get("output_size") is not None
        if name == "aten::index":
            assert not any(index is not None and index.dtype == torch.bool for index in args[1])
        return func(*args, **(kwargs or {}))


@pytest.mark.parametrize("fmt", FORMATS)
def test_the_host_waits_for_nothing(fmt: str) -> None:
    adj, rows, weight = graph(fmt), DATA.x.double().requires_grad_(), weights().double().requires_grad_()
    with as_on_a_gpu(), NoWait():
        made = edges_of(adj, N, N)
        assert isinstance(made, DeviceEdges)
        aggregate(rows, made, weight, mean=True).sum().backward()
        aggregate(rows, made).sum().backward()
    with pytest.raises(AssertionError, match="_local_scalar_dense"), NoWait():
        rows.sum().item()


def test_edges_of_which_nothing_is_known_are_left_to_pyg() -> None:
    with as_on_a_gpu() as products:
        conv, adj = nn.GraphConv(8, 8).double(), DATA.edge_index.clone()
        with fused(conv):
            expected = run(conv, adj)
            told = graph("edge_index")
            run(conv, told)
            assert len(products) == 1
            told[:] = adj  # which are not in order
            assert_close(run(conv, told), expected)
            run(conv, graph("edge_index")[:, 1:])  # nor is known what was made of them
        assert len(products) == 1
        assert DeviceEdges.of(graph("edge_index"), N, N + 1) is None is DeviceEdges.of(graph("csr"), N + 1, N)
        assert DeviceEdges.of(graph("edge_index"), N - 1, N) is None


def test_sums_that_must_have_the_same_bits_are_left_to_pyg() -> None:
    adj = graph("edge_index")
    torch.use_deterministic_algorithms(True)
    try:
        assert DeviceEdges.of(adj, N, N) is None
    finally:
        torch.use_deterministic_algorithms(False)
    assert DeviceEdges.of(adj, N, N) is not None


def test_attention_is_left_to_pyg() -> None:
    torch.manual_seed(0)
    conv, adj = nn.GATConv(8, 4, heads=2, add_self_loops=False).double(), graph("edge_index")
    expected = run(conv, adj)
    with as_on_a_gpu() as products, fused(conv):
        found = run(conv, adj)
    assert not products
    assert_close(found, expected)


def test_a_write_before_the_backward_pass_is_an_error() -> None:
    adj, rows = graph("edge_index"), DATA.x.double().requires_grad_()
    made = DeviceEdges.of(adj, N, N)
    assert made is not None
    out = aggregate(rows, made)
    adj[0, 0] = 1
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        out.sum().backward()


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_types_and_autocast(dtype: torch.dtype) -> None:
    made, rows = DeviceEdges.of(graph("edge_index"), N, N), DATA.x.to(dtype)
    assert made is not None
    expected = aggregate(rows.double(), made, weights().double())
    with torch.autocast("cpu", torch.bfloat16):  # of all sums only the result is rounded, as on the CPU
        out = aggregate(rows, made, weights())
    assert out.dtype == dtype
    torch.testing.assert_close(out.double(), expected, rtol=1e-2 if dtype == torch.bfloat16 else 1e-5, atol=1e-5)


def test_an_adjacency_on_another_device_is_left_to_pyg() -> None:
    conv = nn.SAGEConv(8, 8)
    with as_on_a_gpu() as products, fused(conv):
        conv(DATA.x, graph("edge_index").to("meta"))
        assert not products
        conv(DATA.x, graph("edge_index"))
    assert len(products) == 1


def test_a_graph_without_edges() -> None:
    adj, rows = torch.empty(2, 0, dtype=torch.int64), torch.ones(3, 2, requires_grad=True)
    tell_order(adj, adj, 3, 3, 3)
    made = DeviceEdges.of(adj, 3, 3)
    assert made is not None
    out = aggregate(rows, made, mean=True)
    out.sum().backward()
    assert out.count_nonzero() == 0 == rows.grad.count_nonzero()


def test_gcn_of_weights_over_a_loader(courier: None) -> None:
    """Weights beside an ``edge_index``, some of whose edges come from the halo."""
    data = data_in("edge_index")
    data.edge_weight = torch.rand(data.num_edges, dtype=torch.float64)
    found = []
    for device in (None, "cuda"):
        torch.manual_seed(0)
        model = GCN(N, 8, 8, 3, num_layers=3).double()
        loader = SubgraphLoader(data, PTR, 2, device=device)
        if device is None:
            found.append(steps(model, loader))
        else:
            with as_on_a_gpu() as products:
                found.append(steps(model, loader))
            assert len(products) == 3 * 4
    assert_close(*found)
