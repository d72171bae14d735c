"""Under autocast to bfloat16, sums over edges and linear layers read rows in that type; gradients of halo rows are left out."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from torch_gas import _core
from torch_gas.graph.halo import appended, batch_rows, join, linear
from torch_gas.graph.product import Edges, aggregate

B, S, C = 20, 30, 8
GENERATOR = torch.Generator().manual_seed(0)
ROWS, HALO = (torch.randn(size, C, generator=GENERATOR) for size in (B, S))
WEIGHT, BIAS, FACTORS = torch.randn(4, C, generator=GENERATOR), torch.randn(4), torch.rand(200, generator=GENERATOR)
EDGES = Edges(torch.stack([torch.randint(B + S, (200,)), torch.randint(B, (200,))]), B, B + S)
HALF = torch.bfloat16
CONSUMERS: dict[str, Callable[[Tensor, Tensor], Tensor]] = {
    "sum": lambda x, _: aggregate(x, EDGES),
    "mean": lambda x, _: aggregate(x, EDGES, mean=True),
    "weighted sum": lambda x, factors: aggregate(x, EDGES, factors),
    "linear": lambda x, factors: linear(x, factors[: 4 * C].view(4, C), factors[:4]),
}


def run(consume: Callable[[Tensor, Tensor], Tensor], is_joined: bool) -> list[Tensor]:
    """The result under autocast, and the gradients of rows and factors."""
    rows, factors = ROWS.clone().requires_grad_(), FACTORS.clone().requires_grad_()
    x = join(rows, appended(rows, S, lambda out: out.copy_(HALO))) if is_joined else torch.cat([rows, HALO])
    assert (batch_rows(x) is rows) == is_joined
    with torch.autocast("cpu", HALF):
        out = consume(x, factors)
    given = torch.linspace(-1, 1, out.numel()).view(out.shape).to(out.dtype)
    grads = torch.autograd.grad(out, (rows, factors), given, allow_unused=True)
    return [out.detach(), *(torch.zeros(0) if grad is None else grad for grad in grads)]


@pytest.mark.parametrize("name", CONSUMERS)
def test_batch_rows_alone_get_the_same_gradient(name: str) -> None:
    out, *grads = run(CONSUMERS[name], is_joined=True)
    expected, *others = run(CONSUMERS[name], is_joined=False)
    assert out.dtype == HALF and torch.equal(out, expected)
    for found, other in zip(grads, others, strict=True):
        assert found.dtype == other.dtype == torch.float32
        torch.testing.assert_close(found, other, rtol=2**-6, atol=2**-6)


@pytest.mark.parametrize("mean", [False, True])
@pytest.mark.parametrize("is_weighted", [False, True])
def test_sums_are_rounded_once(mean: bool, is_weighted: bool) -> None:
    x, weight = torch.cat([ROWS, HALO]), FACTORS if is_weighted else None
    with torch.autocast("cpu", HALF):
        out = aggregate(x, EDGES, weight, mean)
        same = aggregate(x.to(HALF), EDGES, weight, mean)
    assert torch.equal(out, aggregate(x.to(HALF).float(), EDGES, weight, mean).to(HALF)) and torch.equal(out, same)


def test_float64_and_float16_are_not_read_as_bfloat16() -> None:
    x = torch.cat([ROWS, HALO])
    with torch.autocast("cpu", HALF):
        assert aggregate(x.double(), EDGES).dtype == torch.float64
        assert aggregate(x.half(), EDGES).dtype == torch.float16
    with torch.autocast("cpu", torch.float16):  # which no kernel reads
        assert torch.equal(aggregate(x, EDGES), aggregate(x, EDGES)) and aggregate(x, EDGES).dtype == torch.float32


def test_no_copy_in_float32_is_made(monkeypatch: pytest.MonkeyPatch) -> None:
    """In either pass."""
    read = []
    product = _core.product

    def recorded(matrix: _core.Sparse, rows: Tensor, *args: Tensor | bool | None) -> Tensor:
        read.append(rows.dtype)
        return product(matrix, rows, *args)

    monkeypatch.setattr(_core, "product", recorded)
    run(CONSUMERS["sum"], is_joined=True)
    assert read == [HALF, HALF]


def test_linear_of_torch_gives_the_same() -> None:
    with torch.autocast("cpu", HALF):
        rows = ROWS.clone().requires_grad_()
        x = join(rows, appended(rows, S, lambda out: out.copy_(HALO)))
        assert torch.equal(linear(x, WEIGHT, BIAS), F.linear(torch.cat([ROWS, HALO]), WEIGHT, BIAS))
