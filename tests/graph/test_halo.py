"""Rows with a halo behind them: gradients that end at the batch's rows are those that would be cut off there."""

from __future__ import annotations

import weakref
from collections.abc import Callable

import pytest
import torch
from graphs import random_graph
from nets import Net
from torch import Tensor
from torch_geometric.nn import GATConv

from torch_gas import SubgraphLoader, models
from torch_gas.graph.dropout import dropout
from torch_gas.graph.halo import appended, batch_rows, join, linear, linear_of_pair, own_rows, whole
from torch_gas.graph.product import Edges, aggregate

B, S, C = 5, 7, 3
HALO = torch.randn(S, C, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
WEIGHT, BIAS = (torch.randn(*shape, dtype=torch.float64, requires_grad=True) for shape in ((4, C), (4,)))
EDGES = Edges(torch.stack([torch.randint(B + S, (30,)), torch.randint(B, (30,))]), B, B + S)
EDGE_WEIGHT = torch.rand(30, dtype=torch.float64, requires_grad=True)
CONSUMERS: dict[str, Callable[[Tensor], Tensor]] = {
    "linear": lambda x: linear(x, WEIGHT, BIAS),
    "linear without bias": lambda x: linear(x, WEIGHT, None),
    "aggregate": lambda x: aggregate(x, EDGES, mean=True),
    "aggregate with weights": lambda x: aggregate(x, EDGES, EDGE_WEIGHT),
    "aggregate what is dropped": lambda x: aggregate(_dropped(x), EDGES),
    "row by row": lambda x: x.exp(),
}


def _dropped(x: Tensor) -> Tensor:
    torch.manual_seed(1)
    return dropout(x, 0.5, True)


def rows() -> Tensor:
    return torch.randn(B, C, dtype=torch.float64, generator=torch.Generator().manual_seed(2)).requires_grad_()


def joined(rows: Tensor) -> Tensor:
    return join(rows, appended(rows, S, lambda out: out.copy_(HALO)))


@pytest.mark.parametrize("name", CONSUMERS)
def test_gradients_are_those_of_rows_in_one_tensor(name: str) -> None:
    consume, inputs = CONSUMERS[name], (rows(), WEIGHT, BIAS, EDGE_WEIGHT)
    x = joined(inputs[0])
    assert torch.equal(x, torch.cat([inputs[0], HALO])) and batch_rows(x) is inputs[0]
    out, expected = consume(x), consume(torch.cat([inputs[0], HALO]))
    assert torch.equal(out, expected)
    found = torch.autograd.grad((out**2).sum(), inputs, allow_unused=True)
    for left, right in zip(found, torch.autograd.grad((expected**2).sum(), inputs, allow_unused=True), strict=True):
        assert (left is None) == (right is None)
        if left is not None:
            torch.testing.assert_close(left, right, rtol=1e-12, atol=1e-12)

    def run(rows: Tensor, *_: Tensor) -> Tensor:
        return consume(joined(rows)) ** 2

    assert torch.autograd.gradcheck(run, inputs)
    assert torch.autograd.gradgradcheck(run, inputs)


@pytest.mark.parametrize("name", CONSUMERS)
def test_a_gradient_that_somebody_looks_at_is_whole(name: str) -> None:
    inputs = rows()
    x, plain = joined(inputs), torch.cat([inputs, HALO])
    x.retain_grad()
    plain.retain_grad()
    for each in (x, plain):
        (CONSUMERS[name](each) ** 2).sum().backward()
    torch.testing.assert_close(x.grad, plain.grad, rtol=1e-12, atol=1e-12)
    seen: list[Tensor] = []
    x = joined(inputs)
    x.register_hook(seen.append)
    (CONSUMERS[name](x) ** 2).sum().backward()
    torch.testing.assert_close(seen[0], plain.grad, rtol=1e-12, atol=1e-12)


def test_rows_that_changed_since_are_not_the_batchs() -> None:
    inputs = rows()
    x, y = joined(inputs * 1), joined(inputs * 1)
    x.mul_(2)
    y[1] = 0.0
    assert batch_rows(x) is None and batch_rows(y) is None and batch_rows(HALO) is None
    before = inputs * 1
    x = joined(before)
    before.mul_(2)
    assert batch_rows(x) is None
    with torch.no_grad():
        assert batch_rows(joined(inputs)) is None and batch_rows(joined(before)) is None
    assert join(HALO, HALO) is HALO  # nothing to learn


FULL = torch.randn(B + S, C, dtype=torch.float64, generator=torch.Generator().manual_seed(3)).requires_grad_()


@pytest.mark.parametrize("both", [True, False])
@pytest.mark.parametrize("name", CONSUMERS)
def test_gradients_of_the_batchs_rows_join_those_of_all(name: str, both: bool) -> None:
    """Of rows that parameters reach as a whole."""
    inputs = (FULL, WEIGHT, BIAS, EDGE_WEIGHT)

    def run(full: Tensor, *_: Tensor, own: Callable[[Tensor, int], Tensor] = own_rows) -> list[Tensor]:
        x = full * 1
        parts = [own(x, B).sin(), own(x, B).square()]
        return [*parts, CONSUMERS[name](x), CONSUMERS[name](x).cos()] if both else parts

    found, expected = (run(*inputs, own=own) for own in (own_rows, lambda x, size: x[:size]))
    for left, right in zip(found, expected, strict=True):
        assert torch.equal(left, right)
    total, other = (sum((part**2).sum() for part in parts) for parts in (found, expected))
    grads = (torch.autograd.grad(each, inputs, allow_unused=True) for each in (total, other))
    for left, right in zip(*grads, strict=True):
        assert (left is None) == (right is None)
        if left is not None:
            torch.testing.assert_close(left, right, rtol=1e-12, atol=1e-12)
    assert torch.autograd.gradcheck(run, inputs)
    assert torch.autograd.gradgradcheck(run, inputs)


def test_gradients_of_the_batchs_rows_are_not_filled_up() -> None:
    """One tensor is made of two gradients, that of the product."""
    made: list[Tensor] = []
    x = FULL * 1
    own, out = own_rows(x, B), linear(x, WEIGHT, None)
    assert own_rows(x, B) is own and whole(x) is not x and whole(x).data_ptr() == x.data_ptr()
    x.register_hook(made.append)
    with torch.profiler.profile() as profile:
        (out.sum() + own.sum()).backward()
    assert len(made) == 1 and not any(event.name == "aten::slice_backward" for event in profile.events())
    node = whole(x).grad_fn
    assert node is not None and own.grad_fn is node


@pytest.mark.parametrize("bias", [BIAS, None])
@pytest.mark.parametrize("is_joined", [True, False])
@pytest.mark.parametrize("used", [(0,), (1,), (0, 1)])
def test_dense_layers_of_sources_and_of_the_batchs_rows(
    is_joined: bool, bias: Tensor | None, used: tuple[int, ...]
) -> None:
    inputs = (rows() if is_joined else FULL, WEIGHT, *([] if bias is None else [BIAS]))

    def run(given: Tensor, *_: Tensor) -> list[Tensor]:
        out = linear_of_pair(joined(given) if is_joined else given * 1, B, WEIGHT, bias)
        return [out[i].sin() for i in used]

    def twin(given: Tensor) -> list[Tensor]:
        x = torch.cat([given, HALO]) if is_joined else given * 1
        out = [torch.nn.functional.linear(each, WEIGHT, bias) for each in (x, x[:B])]
        return [out[i].sin() for i in used]

    found, expected = run(*inputs), twin(inputs[0])
    grads = (torch.autograd.grad(sum((each**2).sum() for each in parts), inputs) for parts in (found, expected))
    for left, right in ((found, expected), tuple(grads)):
        torch.testing.assert_close(list(left), list(right), rtol=1e-12, atol=1e-12)
    assert torch.autograd.gradcheck(run, inputs)
    assert torch.autograd.gradgradcheck(run, inputs)


def test_rows_that_are_written_to_are_split_anew() -> None:
    x = FULL * 1
    own = own_rows(x, B)
    assert own_rows(joined(rows()), B).size(0) == B and own_rows(x, B + S) is x
    with torch.no_grad():
        x.mul_(2)
    assert whole(x) is x and torch.equal(own_rows(x, B), x[:B])
    x.retain_grad()
    (linear(x, WEIGHT, None).sum() + own_rows(x, B).sum()).backward()
    plain = (2 * FULL).detach().requires_grad_()
    (plain @ WEIGHT.t()).sum().backward()
    assert plain.grad is not None and torch.equal(x.grad[B:], plain.grad[B:])
    torch.testing.assert_close(x.grad[:B], plain.grad[:B] + 1)
    with pytest.raises(RuntimeError, match="view and is being modified inplace"):
        own_rows(FULL * 1, B).mul_(2)  # of a function that gave two tensors
    assert own is not own_rows(x, B)


def test_nothing_is_split_without_need() -> None:
    """Leaves, rows without gradient, and those that transforms and forward derivatives look at."""
    for x in (FULL, FULL.detach(), FULL.detach().to_sparse_csr()):
        own_rows(x, B)
        assert whole(x) is x
    x = FULL * 1
    with torch.no_grad():
        assert own_rows(x, B).grad_fn is None and whole(x) is x
    sliced = torch.func.jacrev(lambda x: own_rows(x * 2, B).sum(0))(FULL.detach())
    assert sliced.shape == (C, B + S, C) and torch.equal(sliced[0, :, 0] != 0, torch.arange(B + S) < B)
    with torch.autograd.forward_ad.dual_level():
        dual = torch.autograd.forward_ad.make_dual(FULL.detach().requires_grad_() * 1, FULL.detach())
        tangent = torch.autograd.forward_ad.unpack_dual(own_rows(dual, B)).tangent
        assert tangent is not None and torch.equal(tangent, FULL[:B])


def test_what_is_split_lives_as_long_as_its_rows() -> None:
    x = FULL * 1
    own, seen = own_rows(x, B), weakref.ref(x)
    del x
    assert seen() is not None and torch.equal(own, FULL[:B])  # a view
    del own
    assert seen() is None


@pytest.mark.parametrize("name", ["GCN", "GAT", "SAGE", "GIN", "PNA"])
@pytest.mark.parametrize("p", [0.0, 0.5])
def test_training_is_the_same_as_with_gradients_of_all_rows(
    name: str, p: float, monkeypatch: pytest.MonkeyPatch
) -> None:
    data = random_graph(40, 200)
    ptr = torch.tensor([0, 10, 20, 30, 40])

    def gradients() -> list[Tensor]:
        torch.manual_seed(0)
        shape = (40, 8, 4, 2, 3, 1, 3) if name == "GAT" else (40, 8, 8, 3, 3)
        more = (["mean", "max"], ["identity", "attenuation"], torch.ones(40)) if name == "PNA" else ()
        model = getattr(models, name)(*shape, *more, dropout=p)
        for batch in SubgraphLoader(data, ptr, 2):
            model(batch).square().mean().backward()
        return [parameter.grad for parameter in model.parameters()]

    found = gradients()
    for module in ("graph.halo", "graph.product", "graph.dropout"):
        monkeypatch.setattr(f"torch_gas.{module}.batch_rows", lambda x: None)
        monkeypatch.setattr(f"torch_gas.{module}.whole", lambda x: x, raising=False)
    for left, right in zip(found, gradients(), strict=True):
        torch.testing.assert_close(left, right, rtol=1e-4, atol=1e-6)


def test_linear_layers_of_convolutions(monkeypatch: pytest.MonkeyPatch) -> None:
    """They are called by it in batches; hooks and the layers themselves stay as they were."""
    seen: list[int] = []
    monkeypatch.setattr("torch_gas.wiring.fused.linear", lambda x, *args: seen.append(len(x)) or linear(x, *args))
    model, data = Net(40, num_layers=2), random_graph(40, 200)
    batch = next(iter(SubgraphLoader(data, torch.tensor([0, 10, 40]), 1)))
    model(batch)
    number = len(seen)
    model.convs[-1].lin_l.forward = lambda x: x @ model.convs[-1].lin_l.weight.t()  # somebody's own
    model(batch)
    assert len(seen) == 2 * number - 1
    del model.convs[-1].lin_l.forward
    assert seen and all("forward" not in vars(module) for module in model.modules())


@pytest.mark.parametrize("residual", [True, False])
def test_gat_multiplies_by_its_weights_once(residual: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    """For sources, the first of which are the destinations; not where one or the other was written to in between."""
    seen: list[int] = []
    monkeypatch.setattr("torch_gas.wiring.fused.linear", lambda x, *args: (seen.append(x.size(0)), linear(x, *args))[1])
    data = random_graph(40, 200)
    net = models.GAT(40, 8, 4, 2, 3, 1, 3)
    net.convs[0] = GATConv(8, 4, 2, add_self_loops=False, residual=residual)
    batch = next(iter(SubgraphLoader(data, torch.tensor([0, 10, 40]), 1)))
    expected = net(data.x, data.edge_index)[batch.n_id[:10]]
    seen.clear()
    torch.testing.assert_close(net(batch), expected)
    assert seen == [10] * residual
    between = net.convs[1].lin.register_forward_hook(lambda *_: None)
    net(batch)
    between.remove()
    assert seen == [10] * 2 * residual
    seen.clear()
    between = net.convs[1].lin.register_forward_hook(lambda lin, args, out: out.mul_(1))
    torch.testing.assert_close(net(batch), expected)
    between.remove()
    assert 10 in seen[residual:]
