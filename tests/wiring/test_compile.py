"""Compiled models train and evaluate as the same models do uncompiled, in few graphs."""

from __future__ import annotations

import copy
import shutil
from collections.abc import Callable
from typing import Any

import pytest
import torch
from dynamo import MARKS, Graphs, forgotten
from graphs import FORMATS, adjacency, random_graph, to_format
from nets import Net
from torch import Tensor
from torch.nn import Module
from torch.utils.checkpoint import checkpoint
from torch_geometric.data import Data
from torch_geometric.nn import MessagePassing, SAGEConv

from torch_gas import EvalSubgraphLoader, ScalableGNN, SubData, SubgraphLoader, gcn_norm, in_degree, scale
from torch_gas.models import GAT, GCN, GCN2, GIN, PNA

N = 120
PTR = torch.tensor([0, 10, 31, 43, 70, 78, N])  # batches of six sizes
HOW = ["torch.compile(model)", "model.compile()", "model.forward"]

pytestmark = MARKS
_no_compiled_code = pytest.fixture(autouse=True)(forgotten)


def compiled(model: Module, how: str = HOW[0], **kwargs: Any) -> Module:
    if how == "torch.compile(model)":
        return torch.compile(model, **kwargs)
    if how == "model.compile()":
        model.compile(**kwargs)
    else:
        model.forward = torch.compile(model.forward, **kwargs)  # type: ignore[method-assign]  # as users do
    return model


def graph() -> Data:
    return random_graph(N, 4 * N, directed=False)


def call(model: Module, batch: SubData, **kwargs: Any) -> Tensor:
    data, *ids = batch
    return model(data.x, adjacency(data), *ids, **kwargs)


def step(model: Module, batch: SubData, **kwargs: Any) -> Tensor:
    out = call(model, batch, **kwargs)
    out.square().mean().backward()
    return out.detach()


def assert_equal(model: Module, twin: Module, tolerance: float = 1e-6) -> None:
    """Parameters, gradients and histories agree."""
    for (name, left), right in zip(model.named_parameters(), twin.parameters(), strict=True):
        assert (left.grad is None) == (right.grad is None), name
        if left.grad is not None:
            torch.testing.assert_close(left.grad, right.grad, rtol=tolerance, atol=tolerance, msg=name)
    left, right = model.state_dict(), twin.state_dict()
    assert left.keys() == right.keys()
    for key, value in left.items():
        torch.testing.assert_close(value, right[key], rtol=tolerance, atol=tolerance, msg=key)


@pytest.mark.parametrize("how", HOW)
def test_training_and_inference_are_those_of_the_model(how: str) -> None:
    data, backend = graph(), Graphs()
    model = Net(N)
    twin = copy.deepcopy(model)
    fast = compiled(model, how, backend=backend)
    for batch in SubgraphLoader(data, PTR, 1):
        torch.testing.assert_close(step(fast, batch), step(twin, batch))
        assert_equal(model, twin)
    # A single graph: nothing breaks it, and the second batch makes sizes variable.
    assert backend.number == 2
    fast.eval()
    full = twin.eval()(data.x, data.edge_index)
    torch.testing.assert_close(fast(loader=EvalSubgraphLoader(data, PTR, 2)), full)
    assert backend.number == 2  # inference over a loader runs uncompiled


@pytest.mark.slow
@pytest.mark.parametrize("dtype", [torch.float16, torch.int8])
def test_histories_of_another_type(dtype: torch.dtype) -> None:
    data, backend = graph(), Graphs()
    model = Net(N, history_dtype=dtype)
    twin = copy.deepcopy(model)
    fast = compiled(model, backend=backend)
    for batch in SubgraphLoader(data, PTR, 1):
        torch.testing.assert_close(step(fast, batch), step(twin, batch))
        assert_equal(model, twin)
    assert backend.number == 2
    assert {history.emb.dtype for history in model.histories} == {dtype}


@pytest.mark.slow
def test_graphs_and_batches_in_turn() -> None:
    data, backend = graph(), Graphs("aot_eager")
    model = Net(N, num_layers=2)
    twin = copy.deepcopy(model)
    fast = torch.compile(model, backend=backend)
    other = random_graph(50, 200, seed=1)
    first, second, *_ = SubgraphLoader(data, PTR, 2)
    with torch.no_grad():
        torch.testing.assert_close(fast(data.x, data.edge_index), twin(data.x, data.edge_index))
    assert_equal(model, twin)
    torch.testing.assert_close(step(fast, first), step(twin, first))
    fast.eval(), twin.eval()
    torch.testing.assert_close(fast(second), twin(second))  # a SubData
    torch.testing.assert_close(fast(other.x, other.edge_index), twin(other.x, other.edge_index))
    assert_equal(model, twin)
    fast.train(), twin.train()
    torch.testing.assert_close(step(fast, second), step(twin, second))
    assert_equal(model, twin)
    assert backend.number <= 6


class OneLayer(ScalableGNN):
    """Its forward does not read the ids of the batch."""

    def __init__(self) -> None:
        super().__init__(N, [], 1)
        self.conv = SAGEConv(8, 3)

    def forward(self, x: Tensor, adj: Any, *args: Any) -> Tensor:
        return self.conv(x, adj)


@pytest.mark.slow
@pytest.mark.parametrize("dynamic", [None, True])
def test_code_of_the_whole_graph_is_not_taken_for_a_batch(dynamic: bool | None) -> None:
    """torch.compile does not look whether hooks came or went."""

    data, model = graph(), OneLayer()
    twin = copy.deepcopy(model)
    fast = torch.compile(model, backend="eager", dynamic=dynamic)
    torch.testing.assert_close(fast(data.x, data.edge_index), twin(data.x, data.edge_index))
    for batch in SubgraphLoader(data, PTR, 1):
        torch.testing.assert_close(call(fast, batch), call(twin, batch))
    torch.testing.assert_close(fast(data.x, data.edge_index), twin(data.x, data.edge_index))


SHIPPED: dict[str, Callable[[Tensor], ScalableGNN]] = {
    "GCN": lambda deg: GCN(N, 8, 8, 3, 2, batch_norm=True, residual=True),
    "GAT": lambda deg: GAT(N, 8, 8, 2, 3, 1, 2),
    "GCN2": lambda deg: GCN2(N, 8, 8, 3, 2, alpha=0.1, theta=0.5),
    "PNA": lambda deg: PNA(N, 8, 8, 3, 2, ["mean", "max"], ["amplification"], deg),
    "GIN": lambda deg: GIN(N, 8, 8, 3, 2),
}


@pytest.mark.slow
@pytest.mark.parametrize("name", SHIPPED)
def test_shipped_models(name: str) -> None:
    data, backend = gcn_norm(graph()), Graphs()
    model = SHIPPED[name](in_degree(data.edge_index, N))
    twin = copy.deepcopy(model)
    fast = torch.compile(model, backend=backend)
    for batch in SubgraphLoader(data, PTR, 1):
        kwargs = {"edge_weight": batch.data.edge_weight} if name in ("GCN", "GCN2") else {}
        torch.testing.assert_close(step(fast, batch, **kwargs), step(twin, batch, **kwargs))
        assert_equal(model, twin)
    assert backend.number == 2


class Norms(MessagePassing):
    """A layer with norms over nodes before and after, and over edges, that takes no pair."""

    def __init__(self, in_channels: int, out_channels: int) -> None:
        super().__init__()
        self.before, self.edges = torch.nn.BatchNorm1d(in_channels), torch.nn.BatchNorm1d(in_channels)
        self.lin, self.after = torch.nn.Linear(in_channels, out_channels), torch.nn.BatchNorm1d(out_channels)

    def forward(self, x: Tensor, edge_index: Tensor) -> Tensor:
        return self.after(self.lin(self.propagate(edge_index, x=self.before(x))))

    def message(self, x_j: Tensor) -> Tensor:
        return self.edges(x_j)


@pytest.mark.slow
def test_batch_norms_inside_layers() -> None:
    data, backend = graph(), Graphs()
    model = Net(N, num_layers=2, conv=Norms)
    twin = copy.deepcopy(model)
    fast = torch.compile(model, backend=backend)
    for batch in SubgraphLoader(data, PTR, 1):
        torch.testing.assert_close(step(fast, batch), step(twin, batch))
        assert_equal(model, twin)
    assert backend.number == 2


@pytest.mark.slow
@pytest.mark.parametrize("fmt", FORMATS)
def test_formats(fmt: str) -> None:
    """torch.compile takes no sparse tensors, so that other formats than edge_index break the graph."""
    data, backend = to_format(graph(), fmt), Graphs()
    model = Net(N, num_layers=2)
    twin = copy.deepcopy(model)
    fast = torch.compile(model, backend=backend)
    for batch in SubgraphLoader(data, PTR, 3):
        torch.testing.assert_close(step(fast, batch), step(twin, batch))
        assert_equal(model, twin)
    assert backend.number > 0


@pytest.mark.slow
def test_batches_without_halo_and_many_batches() -> None:
    """Code is compiled anew a few times at most, whatever sizes come."""
    generator, backend = torch.Generator().manual_seed(0), Graphs()
    data = graph()
    model = Net(N, num_layers=2)
    twin = copy.deepcopy(model)
    fast = torch.compile(model, backend=backend)
    for batch in SubgraphLoader(data, torch.tensor([0, N]), 1):
        assert batch.halo_size == 0
        torch.testing.assert_close(step(fast, batch), step(twin, batch))
    for _ in range(10):
        cut = torch.randint(5, N - 5, (1,), generator=generator)
        for batch in SubgraphLoader(data, torch.cat([torch.tensor([0]), cut, torch.tensor([N])]), 1):
            torch.testing.assert_close(step(fast, batch), step(twin, batch))
    assert_equal(model, twin)
    assert backend.number <= 3


@pytest.mark.slow
def test_the_whole_of_forward_is_one_graph() -> None:
    model = Net(N)
    batch = next(iter(SubgraphLoader(graph(), PTR, 1)))
    want = call(copy.deepcopy(model), batch)
    model.forward = torch.compile(model.forward, backend="eager", fullgraph=True)  # type: ignore[method-assign]  # as users do
    torch.testing.assert_close(call(model, batch), want)


@pytest.mark.slow
def test_autocast() -> None:
    model = Net(N, num_layers=2)
    twin = copy.deepcopy(model)
    fast = torch.compile(model, backend="aot_eager")
    for batch in SubgraphLoader(graph(), PTR, 3):
        with torch.autocast("cpu", torch.bfloat16):
            out, want = call(fast, batch), call(twin, batch)
        assert out.dtype == want.dtype == torch.bfloat16
        torch.testing.assert_close(out, want, rtol=2e-2, atol=2e-3)  # uncompiled layers sum up in float32
        out.float().square().mean().backward()
        want.float().square().mean().backward()
        assert_equal(model, twin, 1e-2)


@pytest.mark.slow
def test_checkpoints() -> None:
    """A graph is computed again with the sizes of its batch; layers that run uncompiled are refused."""

    class Checkpointed(OneLayer):
        def forward(self, x: Tensor, adj: Any, *args: Any) -> Tensor:
            return checkpoint(self.conv, x, adj, use_reentrant=False)

    data = graph()
    model, twin = Checkpointed(), OneLayer()
    twin.load_state_dict(model.state_dict())
    fast = torch.compile(model, backend="aot_eager")
    batches = list(SubgraphLoader(data, PTR, 1))
    outs = [(call(fast, batch), call(twin, batch)) for batch in batches]
    for left, right in outs:  # each after all others
        left.square().mean().backward()
        right.square().mean().backward()
    assert_equal(model, twin)
    with pytest.raises(RuntimeError, match="SAGEConv is called under activation checkpointing"):
        call(model, batches[0])
    csr = next(iter(SubgraphLoader(to_format(data, "csr"), PTR, 1)))
    with pytest.raises(RuntimeError, match="SAGEConv is called under activation checkpointing"):
        call(fast, csr)


@pytest.mark.slow
def test_errors_are_those_of_the_model() -> None:
    data = graph()
    batch = next(iter(SubgraphLoader(data, PTR, 1)))

    class Wrong(Net):
        def forward(self, x: Tensor, adj: Any, *args: Any) -> Tensor:
            return self.push_and_pull(self.histories[0], self.convs[0](x, adj)[:-1], *args)

    with pytest.raises(ValueError, match=r"push_and_pull: x has 9 rows, but must have those of the batch \(10\)"):
        call(torch.compile(Wrong(N), backend="eager"), batch)
    fast = torch.compile(Net(N), backend="eager")
    with pytest.raises(ValueError, match="x has 120 rows, but n_id has"):
        fast(data.x, batch.data.edge_index, *batch[1:])
    batch.data.x[0] = float("nan")
    with pytest.raises(
        ValueError, match="the embeddings of layer 1 hold NaN or infinity; the histories were not changed"
    ):
        call(fast, batch)
    assert not fast.histories[0].emb.any()
    with pytest.raises(RuntimeError, match="push_and_pull can only be called inside forward"):
        torch.compile(fast.push_and_pull, backend="eager")(fast.histories[0], data.x)


class Forgets(Net):
    def forward(self, x: Tensor, adj: Any, *ids: Any) -> Tensor:
        rows = self.push_and_pull(self.histories[0], self.convs[0](x, adj))
        return self.convs[1](torch.cat([rows, rows.new_zeros(x.size(0) - rows.size(0), 16)]), adj)


def test_ids_that_forward_does_not_pass_on() -> None:
    model = Forgets(N, num_layers=2)
    with pytest.raises(ValueError, match="did not pass its ids on"):
        call(compiled(model, backend="eager"), next(iter(SubgraphLoader(graph(), PTR))))
    assert bool((model.histories[0].pushed_at == -1).all())


def test_state_dict_has_the_usual_prefix() -> None:
    model = Net(N)
    keys = torch.compile(model, backend="eager").state_dict().keys()
    assert keys == {f"_orig_mod.{key}" for key in model.state_dict()}


def test_scaled_models_refuse() -> None:
    data = graph()
    batch = next(iter(SubgraphLoader(data, PTR, 1)))

    class Rowwise(torch.nn.Linear):
        def forward(self, x: Tensor) -> Tensor:
            return super().forward(x).relu()

    class Plain(Module):
        def __init__(self) -> None:
            super().__init__()
            self.lin, self.conv, self.last = Rowwise(8, 8), SAGEConv(8, 8), SAGEConv(8, 3)

        def forward(self, x: Tensor, edge_index: Tensor) -> Tensor:
            return self.last(self.conv(self.lin(x), edge_index), edge_index)

    refused = "Plain: {} was compiled, but a model made by scale.* derive it from ScalableGNN"
    with pytest.raises(RuntimeError, match=refused.format("it")):
        torch.compile(scale(Plain(), data), backend="eager")(batch)
    with pytest.raises(RuntimeError, match=refused.format("it")):
        scale(Plain(), data).compile()
    model = scale(Plain(), data)
    model.model.conv.compile(backend="eager")
    with pytest.raises(RuntimeError, match=refused.format("conv")):
        model(batch)
    with pytest.raises(RuntimeError, match=refused.format("conv")):
        scale(model.unscale(), data)
    model, twin, backend = scale(Plain(), data), scale(Plain(), data), Graphs()
    twin.load_state_dict(model.state_dict())
    model.model.lin.compile(backend=backend)
    torch.testing.assert_close(model(batch), twin(batch))
    assert backend.number == 1


@pytest.mark.parametrize("how", HOW)
def test_older_versions_of_torch_are_refused(how: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("torch_gas.wiring.compiled.OLDEST", "99.0")
    data, model = graph(), Net(N)
    twin = copy.deepcopy(model)
    fast, batch = compiled(model, how, backend="eager"), next(iter(SubgraphLoader(data, PTR, 1)))
    for call in (lambda: fast(batch), lambda: fast.eval()(loader=EvalSubgraphLoader(data, PTR, 2))):
        with pytest.raises(RuntimeError, match=r"Net: to compile a model with histories takes torch 99\.0 or later"):
            call()
    assert_equal(model, twin)


@pytest.mark.slow
@pytest.mark.skipif(shutil.which("g++") is None, reason="inductor needs a C++ compiler")
def test_inductor() -> None:
    data, model = graph(), Net(N, num_layers=2)
    twin = copy.deepcopy(model)
    fast = torch.compile(model, dynamic=True)
    for batch in SubgraphLoader(data, PTR, 1):
        torch.testing.assert_close(step(fast, batch), step(twin, batch), rtol=1e-4, atol=1e-5)
        assert_equal(model, twin, 1e-4)
