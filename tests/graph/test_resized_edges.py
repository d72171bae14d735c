"""Edges with more or fewer destinations: what is computed of them serves all sizes, and the loader computes it ahead."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch_geometric.nn as pyg
from graphs import FORMATS, random_graph, to_format
from torch import Tensor

from torch_gas import SubgraphLoader, _core, scale
from torch_gas.graph.product import aggregate, edges_of, resized

B, R = 5, 12
ADJ = torch.stack([torch.arange(30) % R, torch.arange(30) // 6])
X = torch.randn(R, 3, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
PTR = torch.tensor([0, 10, 20, 30, 40])


@pytest.fixture
def transposed(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """The number of edges that were put in the order of sources, each time."""
    seen: list[int] = []
    own: Callable[..., Any] = _core.transpose
    monkeypatch.setattr(
        _core, "transpose", lambda *args, **kwargs: (seen.append(args[1].numel()), own(*args, **kwargs))[1]
    )
    return seen


def gradient(adj: Any, num_dst: int) -> tuple[Tensor, Tensor]:
    x, edges = X.clone().requires_grad_(), edges_of(adj, num_dst, R)
    assert edges is not None and edges.num_dst == num_dst and edges.degrees.numel() == num_dst
    out = aggregate(x, edges)
    out.square().sum().backward()
    return out.detach(), x.grad


@pytest.mark.parametrize("sizes", [(B, R), (R, B)])
def test_products_of_both_sizes(sizes: tuple[int, int], transposed: list[int]) -> None:
    adj = ADJ.clone()
    expected = torch.zeros(R, 3, dtype=torch.float64).index_add_(0, ADJ[1], X[ADJ[0]])
    for size in sizes * 2:
        out, grad = gradient(adj, size)
        torch.testing.assert_close(out, expected[:size])
        torch.testing.assert_close(grad, torch.zeros_like(X).index_add_(0, ADJ[0], 2 * expected[ADJ[1]]))
    assert transposed == [30] and edges_of(adj, B, R) is edges_of(adj, B, R)
    with pytest.raises(IndexError, match="beyond the 4"):
        edges_of(adj, B - 1, R)
    adj[0, 0] = 3  # and nothing of before is kept
    assert not torch.equal(gradient(adj, B)[0], expected[:B]) and len(transposed) == 2


def test_matrices_of_both_sizes(transposed: list[int]) -> None:
    adj = torch.sparse_coo_tensor(ADJ.flip(0), torch.ones(30, dtype=torch.float64), (B, R)).coalesce().to_sparse_csr()
    wide = resized(adj, R, R)
    for size, each in ((B, adj), (R, wide)):
        torch.testing.assert_close(gradient(each, size)[0], (each.to_dense() != 0).to(X) @ X)
    assert transposed == [30]
    wide.col_indices().copy_(wide.col_indices().flip(0))  # those of the other one as well
    torch.testing.assert_close(gradient(wide, R)[0], (wide.to_dense() != 0).to(X) @ X)
    assert len(transposed) == 2


@pytest.mark.parametrize("fmt", FORMATS)
def test_a_loader_computes_them_ahead_for_layers_that_run_on_all_rows(fmt: str, transposed: list[int]) -> None:
    """APPNP is called on B + S destinations, and the batch has edges into B."""
    data = to_format(random_graph(40, 200), fmt)
    key = next(key for key in ("edge_index", "adj_t") if key in data)
    layers = [(torch.nn.Linear(8, 3), "x -> x"), (pyg.APPNP(3, 0.1, normalize=False), f"x, {key} -> x")]
    model = scale(pyg.Sequential(f"x, {key}", layers), data)
    loader = SubgraphLoader(data, PTR, 2, shuffle=True, prefetch=0)
    for epoch in range(2):
        for batch in loader:
            before = len(transposed)
            model(batch).square().sum().backward()
            assert epoch == 0 or len(transposed) == before
