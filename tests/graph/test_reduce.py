"""Reductions of each destination's sources: the numbers and gradients of PyG's aggregations of messages."""

from __future__ import annotations

from itertools import combinations

import pytest
import torch
from torch import Tensor
from torch_geometric.nn import MultiAggregation

from torch_gas.graph.activated import relu_sums
from torch_gas.graph.halo import join
from torch_gas.graph.product import Edges
from torch_gas.graph.reductions import reduce

N, C = 40, 19
NAMES = ("sum", "mean", "min", "max", "var", "std")
GENERATOR = torch.Generator().manual_seed(0)
EDGE_INDEX = torch.randint(N, (2, 300), generator=GENERATOR)
EDGE_INDEX[1] = EDGE_INDEX[1] * 2 % N  # so that half of the nodes have no edges
EDGES = Edges(EDGE_INDEX, N, N)


def rows(ties: bool = False, dtype: torch.dtype = torch.float64) -> Tensor:
    x = torch.randn(N, C, dtype=torch.float64, generator=torch.Generator().manual_seed(1))
    return (x.round() if ties else x).to(dtype).requires_grad_()


def by_messages(x: Tensor, names: tuple[str, ...]) -> list[Tensor]:
    messages = x[EDGE_INDEX[0]]
    return list(MultiAggregation([*names])(messages, EDGE_INDEX[1], dim_size=N).chunk(len(names), dim=1))


@pytest.mark.parametrize("ties", [False, True])
@pytest.mark.parametrize("names", [*((name,) for name in NAMES), *combinations(NAMES, 2), NAMES])
def test_reductions_are_those_of_messages(names: tuple[str, ...], ties: bool) -> None:
    """Ties, of numbers and of zeros, share gradients as torch has them do."""
    x = rows(ties)
    weight = torch.linspace(-1, 2, N * C, dtype=torch.float64).view(N, C)
    results = []
    for found in (reduce(x, EDGES, names), by_messages(x, names)):
        total = sum((i + 1) * (each * weight).sum() for i, each in enumerate(found))
        results.append([*found, *torch.autograd.grad(total, x)])
    for left, right in zip(*results, strict=True):
        torch.testing.assert_close(left, right, rtol=1e-10, atol=1e-10)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_types(dtype: torch.dtype) -> None:
    x = rows(dtype=dtype).detach()
    for left, right in zip(reduce(x, EDGES, NAMES), by_messages(x.double(), NAMES), strict=True):
        assert left.dtype == dtype
        slack = 1e-5 if dtype == torch.float32 else 2e-2
        torch.testing.assert_close(left.double(), right, rtol=slack, atol=slack)


def test_gradients_of_gradients() -> None:
    x = rows()[:, :2].detach().requires_grad_()
    names = ("mean", "min", "max", "var")
    assert torch.autograd.gradcheck(lambda x: tuple(reduce(x, EDGES, names)), x)
    assert torch.autograd.gradgradcheck(lambda x: tuple(each**2 for each in reduce(x, EDGES, names)), x)
    for ties in (False, True):
        x = rows(ties)
        total = sum((each * x).sum() for each in reduce(x, EDGES, NAMES))
        plain, differentiable = (
            torch.autograd.grad(total, x, create_graph=create, retain_graph=True)[0] for create in (False, True)
        )
        torch.testing.assert_close(differentiable, plain)  # two ways to the same gradients


def test_rows_of_histories_have_no_gradient() -> None:
    full, own = rows().detach(), rows().detach()[:15].clone().requires_grad_()
    plain = rows()
    weight = torch.linspace(-1, 1, N, dtype=torch.float64).view(-1, 1)
    for create in (False, True):
        results = []
        for x, at in ((join(own, full.clone()), own), (plain, plain)):
            total = sum((each * weight).sum() for each in reduce(x, EDGES, NAMES))
            results.append(torch.autograd.grad(total, at, create_graph=create)[0])
        torch.testing.assert_close(results[0], results[1][:15])


def test_edges_that_change_before_the_backward_pass_are_an_error() -> None:
    edge_index = EDGE_INDEX.clone()
    x = rows()
    (most,) = reduce(x, Edges(edge_index, N, N), ["max"])
    edge_index[0, 0] = 0
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        most.sum().backward()


@pytest.mark.parametrize("sorts", [False, True])
@pytest.mark.parametrize("owns", [False, True])
def test_sums_behind_a_relu(sorts: bool, owns: bool) -> None:
    order = EDGE_INDEX[1].argsort(stable=True) if sorts else slice(None)
    edge_index = EDGE_INDEX[:, order]
    edges = Edges(edge_index, N, N)
    lin = torch.nn.Linear(C, 6).double()
    factors = torch.rand(N, 3, dtype=torch.float64)
    full = rows().detach()
    own = full[:15].clone().requires_grad_() if owns else full.requires_grad_()
    x = join(own, full.clone()) if owns else own
    messages = lin(x).relu()[edge_index[0]].view(-1, 3, 2) * factors[edge_index[1]].unsqueeze(-1)
    expected = torch.zeros(N, 3, 2, dtype=torch.float64).index_add(0, edge_index[1], messages).flatten(1)
    found = relu_sums(x, lin.weight, lin.bias, edges, factors)
    torch.testing.assert_close(found, expected)
    inputs = (own, lin.weight, lin.bias)
    wanted = torch.autograd.grad((expected**2).sum(), inputs, retain_graph=True)
    for create in (False, True):
        grads = torch.autograd.grad((found**2).sum(), inputs, create_graph=create, retain_graph=True)
        for left, right in zip(grads, wanted, strict=True):
            torch.testing.assert_close(left, right)
    if not owns:
        assert torch.autograd.gradgradcheck(lambda *given: relu_sums(*given, edges, factors) ** 2, inputs)
