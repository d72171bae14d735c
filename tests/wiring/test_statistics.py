"""Statistics of rows that come batch by batch are those of torch over all rows, and so is the gradient by them."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.nn import BatchNorm1d, Module, Sequential
from torch_geometric.nn import BatchNorm, InstanceNorm

from torch_gas.wiring.statistics import Moments, NormCall, Statistics
from torch_gas.wiring.undo import Undo

SPLITS = [[60], [1, 59], [20, 0, 3, 37], [1] * 60]


def merged(x: Tensor, sizes: list[int]) -> Moments:
    moments = Moments()
    for rows in x.split(sizes):
        moments.add(rows)
    moments.complete(x.dtype)
    return moments


@pytest.mark.parametrize("sizes", SPLITS, ids=len)
@pytest.mark.parametrize("shape", [(60, 5), (60, 5, 3)], ids=str)
def test_merged_moments_are_those_of_all_rows(shape: tuple[int, ...], sizes: list[int]) -> None:
    x = torch.randn(shape, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    moments = merged(x, sizes)
    dims = [dim for dim in range(x.dim()) if dim != 1]
    assert moments.count == x.numel() // 5
    torch.testing.assert_close(moments.mean, x.mean(dims))
    torch.testing.assert_close(moments.var, x.var(dims, correction=0))


def test_variance_beside_a_large_mean() -> None:
    """Where the difference of a sum of squares and the square of a sum has no correct digit, in float64 either."""
    noise = torch.randn(60, 4, generator=torch.Generator().manual_seed(0))
    x = (noise / 2**6 + 2**17).float()  # all of whose differences are exact
    squares = x.double().square().mean(0) - x.double().mean(0).square()
    wanted = (x.double() - 2**17).var(0, correction=0)
    for sizes in SPLITS:
        torch.testing.assert_close(merged(x, sizes).var, wanted, rtol=1e-9, atol=0)
    assert float((squares / wanted - 1).abs().max()) > 1e-7  # which is what this test would find
    far = x.double() * 2**20
    torch.testing.assert_close(merged(far, SPLITS[2]).var, wanted * 2**40, rtol=1e-9, atol=0)


def test_leaves_are_wide() -> None:
    for dtype, wide in ((torch.float16, torch.float32), (torch.float32, torch.float32), (torch.float64, torch.float64)):
        assert [leaf.dtype for leaf in merged(torch.ones(4, 2, dtype=dtype), [1, 3]).leaves or ()] == [wide] * 2


# -- norms ---------------------------------------------------------------------------------------------------------------

NORMS: dict[str, Any] = {
    "BatchNorm1d": lambda: BatchNorm1d(5),
    "momentum=None": lambda: BatchNorm1d(5, momentum=None),
    "momentum=0": lambda: BatchNorm1d(5, momentum=0.0),
    "affine=False": lambda: BatchNorm1d(5, eps=0.1, momentum=0.3, affine=False),
    "track_running_stats=False": lambda: BatchNorm1d(5, track_running_stats=False),
    "PyG's BatchNorm": lambda: BatchNorm(5, momentum=None),
    "InstanceNorm": lambda: InstanceNorm(5, momentum=0.2, affine=True, track_running_stats=True),
}


class Reached(Exception):
    pass


def by_batches(net: Module, x: Tensor, sizes: list[int], seeds: list[Tensor]) -> list[tuple[Tensor, Tensor]]:
    """Outputs and gradients by rows of norms one after the other, in the way of exact mode, for each call of ``net``."""
    found: list[tuple[NormCall, Tensor]] = []

    def reached(call: NormCall, rows: Tensor) -> None:
        found.append((call, rows))
        raise Reached

    statistics, moments, results = Statistics(net, reached), {}, []
    for seed in seeds:
        with Undo() as undo:
            of_call = Moments()
            rows = [each.clone().requires_grad_() for each in x.split(sizes)]
            statistics.known = dict(moments)
            for each in rows:
                statistics.wire(undo, each.size(0), each.size(0), True)
                for _ in moments:
                    net(each.detach())
                with pytest.raises(Reached):
                    net(each)
                call, counted = found[-1]
                of_call.add(counted)
            of_call.complete(x.dtype)
            moments[call] = of_call
            statistics.known = {call: of_call}
            statistics._calls.clear()
            outs = []
            for each, part in zip(rows, seed.split(sizes), strict=True):
                statistics.wire(undo, each.size(0), each.size(0), True)
                statistics._calls[call.name] = call.number
                outs.append(net(each))
                outs[-1].backward(part, inputs=[each, *(of_call.leaves or ())])
            of_call.grad_mean, of_call.grad_var = (leaf.grad for leaf in of_call.leaves or ())
            grads = torch.cat([each.grad + of_call.gradient(each) for each in rows])
            results.append((torch.cat(outs).detach(), grads))
    statistics.step(moments)
    return results


@pytest.mark.parametrize("sizes", SPLITS[:3], ids=len)
@pytest.mark.parametrize("name", NORMS)
def test_norms_are_those_of_torch(name: str, sizes: list[int]) -> None:
    """Also where one is called twice in a step: its running statistics move twice, as in the full batch."""
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(60, 5, generator=generator, dtype=torch.float64) * 3 + 1
    seeds = [torch.randn(60, 5, generator=generator, dtype=torch.float64) for _ in range(2)]
    net = Sequential(NORMS[name]()).double()
    with torch.no_grad():
        for parameter in net.parameters():
            parameter.uniform_(0.5, 2)
    reference = copy.deepcopy(net)
    for _ in range(2):  # steps
        found = by_batches(net, x, sizes, seeds)
        for (out, grad), seed in zip(found, seeds, strict=True):
            rows = x.clone().requires_grad_()
            wanted = reference(rows)
            wanted.backward(seed)
            torch.testing.assert_close(out, wanted.detach())
            torch.testing.assert_close(grad, rows.grad)
    wanted_buffers = dict(reference.named_buffers())
    for key, value in net.named_buffers():
        torch.testing.assert_close(value, wanted_buffers[key])
