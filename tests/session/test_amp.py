"""Mixed precision: batches under autocast equal the whole graph under autocast, whatever type histories have."""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any

import pytest
import torch
from graphs import adjacency, random_graph, requires_sparse, to_format
from nets import Net, batch_rows
from torch import Tensor
from torch_geometric.data import Data

from torch_gas import EvalSubgraphLoader, ScalableGNN, SubgraphLoader, gcn_norm, in_degree, scale
from torch_gas.models import GAT, GCN, GCN2, GIN, PNA

N = 120
PTR = torch.tensor([0, 10, 31, 43, 70, 78, N])
HALVES = [torch.bfloat16, torch.float16]
MODELS: dict[str, Callable[..., ScalableGNN]] = {
    "Net": lambda deg, **kwargs: Net(N, **kwargs),
    "GCN": lambda deg, **kwargs: GCN(N, 8, 16, 3, 3, batch_norm=True, residual=True, **kwargs),
    "GAT": lambda deg, **kwargs: GAT(N, 8, 8, 2, 3, 1, 3, **kwargs),
    "GCN2": lambda deg, **kwargs: GCN2(N, 8, 16, 3, 3, alpha=0.1, theta=0.5, **kwargs),
    "GIN": lambda deg, **kwargs: GIN(N, 8, 16, 3, 3, **kwargs),
    "PNA": lambda deg, **kwargs: PNA(N, 8, 16, 3, 3, ["mean", "max"], ["identity", "amplification"], deg, **kwargs),
}


def graph(fmt: str = "edge_index") -> Data:
    return to_format(gcn_norm(random_graph(N, 4 * N, directed=False)), fmt)


def make(name: str, **kwargs: Any) -> ScalableGNN:
    torch.manual_seed(0)
    return MODELS[name](in_degree(graph().edge_index, N), **kwargs)


def weights(name: str, data: Data) -> dict[str, Tensor]:
    return {"edge_weight": data.edge_weight} if name in ("GCN", "GCN2") and "edge_weight" in data else {}


# torch has no products of its CSR matrices with rows of half precision on a CPU.
@pytest.mark.parametrize("fmt", ["edge_index", "EdgeIndex", pytest.param("SparseTensor", marks=requires_sparse)])
@pytest.mark.parametrize("history_dtype", [None, *HALVES, torch.int8])
@pytest.mark.parametrize("dtype", HALVES)
@pytest.mark.parametrize("name", MODELS)
def test_batches_equal_the_whole_graph(
    name: str, dtype: torch.dtype, history_dtype: torch.dtype | None, fmt: str
) -> None:
    if name == "PNA" and dtype == torch.float16 and fmt == "EdgeIndex" and torch.__version__ < "2.6":
        pytest.skip("this torch takes no maximum over rows of float16")
    data, model = graph(fmt), make(name, history_dtype=history_dtype).eval()
    coarse = {torch.bfloat16, torch.int8} & {
        dtype,
        history_dtype,
    }  # a number of int8 is off by 2^-8 of its row's largest
    tolerance = 4 * torch.finfo(torch.bfloat16 if coarse else dtype).eps
    with torch.autocast("cpu", dtype):
        full = model(data.x, adjacency(data), **weights(name, data))
    assert {history.emb.dtype for history in model.histories} == {history_dtype or torch.float32}
    for batch in SubgraphLoader(data, PTR, 1):
        with torch.autocast("cpu", dtype):
            out = model(batch.data.x, adjacency(batch.data), *batch[1:], **weights(name, batch.data))
        assert out.dtype == full.dtype
        torch.testing.assert_close(out, full[batch_rows(batch)], rtol=tolerance, atol=tolerance)
    with torch.autocast("cpu", dtype):
        exact = model(loader=EvalSubgraphLoader(data, PTR, 2))
    assert exact.dtype == full.dtype
    torch.testing.assert_close(exact, full.detach(), rtol=tolerance, atol=tolerance)


@pytest.mark.parametrize("dtype", HALVES)
@pytest.mark.parametrize("name", MODELS)
def test_gradients_are_close_to_those_of_full_precision(name: str, dtype: torch.dtype) -> None:
    data, model = graph(), make(name)
    twin = copy.deepcopy(model)
    for batch in SubgraphLoader(data, PTR, 2):
        kwargs = weights(name, batch.data)
        with torch.autocast("cpu", dtype):
            out = model(batch.data.x, batch.data.edge_index, *batch[1:], **kwargs)
        out.float().square().mean().backward()
        twin(batch.data.x, batch.data.edge_index, *batch[1:], **kwargs).square().mean().backward()
    for (key, p), q in zip(model.named_parameters(), twin.parameters(), strict=True):
        assert p.grad is not None and q.grad is not None, key
        assert p.grad.dtype == torch.float32, key
        error = (p.grad - q.grad).norm()
        assert error > 0 or q.grad.norm() == 0, key  # half precision was used
        assert error <= 0.1 * q.grad.norm() + 1e-3, key


def test_one_batch_is_full_batch_training() -> None:
    data, model = graph(), make("Net")
    twin = copy.deepcopy(model)
    (batch,) = SubgraphLoader(data, torch.tensor([0, N]), 1)
    for net, args in ((model, (batch.data.x, batch.data.edge_index, *batch[1:])), (twin, (data.x, data.edge_index))):
        optimizer, scaler = torch.optim.SGD(net.parameters(), 0.1), torch.amp.GradScaler("cpu", init_scale=2.0**8)
        for _ in range(3):
            optimizer.zero_grad()
            with torch.autocast("cpu", torch.float16):
                loss = torch.nn.functional.cross_entropy(net(*args), data.y)
            scaler.scale(loss).backward()
            scaler.step(optimizer)
            scaler.update()
    for p, q in zip(model.parameters(), twin.parameters(), strict=True):
        torch.testing.assert_close(p, q, rtol=1e-3, atol=1e-3)


def test_a_step_that_the_scaler_skips() -> None:
    """Parameters stay; histories are pushed and age as in any other training call."""
    data, model = graph(), make("Net")
    optimizer, scaler = torch.optim.SGD(model.parameters(), 0.1), torch.amp.GradScaler("cpu", init_scale=2.0**8)
    batch = next(iter(SubgraphLoader(data, PTR, 2)))
    before = [p.detach().clone() for p in model.parameters()]
    with torch.autocast("cpu", torch.float16):
        loss = model(batch).float().square().mean()
    scaler.scale(loss).backward()
    next(model.parameters()).grad[0] = float("inf")
    scaler.step(optimizer)
    scaler.update()
    assert scaler.get_scale() == 2.0**7
    for p, old in zip(model.parameters(), before, strict=True):
        assert torch.equal(p, old)
    for history in model.histories:
        assert int(history.clock) == 1
        assert (history.age[batch_rows(batch)] == 0).all()
        assert history.emb.isfinite().all()


def test_overflow_of_float16_is_an_error_that_says_so() -> None:
    data = graph()
    batch = next(iter(SubgraphLoader(data, PTR, 2)))
    told = "layer 1 hold NaN or infinity; the histories were not changed. float16 ends at 65504, .* use torch.bfloat16"
    model = make("Net")
    with torch.no_grad():
        model.convs[0].lin_l.bias.fill_(1e5)
    with pytest.raises(ValueError, match=told), torch.autocast("cpu", torch.float16):
        model(batch)
    assert not model.histories[0].emb.any()
    with torch.autocast("cpu", torch.bfloat16):
        assert model(batch).isfinite().all()
    # Rows of double precision that no scale of int8 can hold.
    model = make("Net", history_dtype=torch.int8).double()
    with torch.no_grad():
        model.convs[0].lin_l.bias.fill_(1e50)
    double = copy.copy(data)
    double.x = data.x.double()
    with pytest.raises(ValueError, match="hold NaN or infinity; the histories were not"):
        model(double.x, double.edge_index)
    assert not model.histories[0].emb.any()
    # Rows of full precision that a table of float16 cannot hold.
    model = make("Net", history_dtype=torch.float16)
    with torch.no_grad():
        model.convs[0].lin_l.bias.fill_(1e5)
    for call in (lambda: model(batch), lambda: model(data.x, data.edge_index)):
        with pytest.raises(ValueError, match=told):
            call()
    assert not model.histories[0].emb.any()


@pytest.mark.parametrize("dtype", HALVES)
def test_scaled_models(dtype: torch.dtype) -> None:
    from torch_geometric.nn import GCN as PlainGCN

    data = random_graph(N, 4 * N, directed=False)
    model = scale(PlainGCN(8, 16, 3, 3), data).eval()
    with torch.autocast("cpu", dtype):
        full = model(data)
        for batch in SubgraphLoader(data, PTR, 1):
            out = model(batch)
            assert out.dtype == full.dtype
            tolerance = 8 * torch.finfo(dtype).eps
            torch.testing.assert_close(out, full[batch_rows(batch)], rtol=tolerance, atol=tolerance)
            out.float().square().mean().backward()
    assert all(p.grad is not None and p.grad.isfinite().all() for p in model.parameters())
