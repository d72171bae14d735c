"""Batches are refreshed first whose rows are old and important."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from graphs import random_graph
from nets import Net, assert_same, tables
from plain_models import H
from torch import Tensor
from torch_geometric.data import Data

from torch_gas import EvalSubgraphLoader, SubgraphLoader
from torch_gas.extensions import Important
from torch_gas.extensions.refresh import BeforeTraining, EverySteps, Ranked, Stalest

N = 60
PTR = torch.tensor([0, 14, 14, 37, 50, N])  # the second part is empty
PARTS = (0, 2, 3, 4)
DATA = random_graph(N, 4 * N, seed=1)


def aged(ages: list[int]) -> Net:
    """A model with parts of these ages; -1 for never."""
    model = Net(N, H)
    for history in model.histories:
        history.clock += 100
        for part, age in zip(PARTS, ages, strict=True):
            history.pushed_at[PTR[part] : PTR[part + 1]] = -1 if age < 0 else 100 - age
    return model


def refreshed(ages: list[int], refresh: Ranked, data: Data = DATA) -> list[bool]:
    """Which parts are renewed."""
    model = aged(ages)
    refresher = EverySteps(1, refresh).bind(model, EvalSubgraphLoader(data, PTR))
    refresher.after_step()
    (fresh,) = {tuple(bool((h.age[PTR[p] : PTR[p + 1]] == 0).all()) for p in PARTS) for h in model.histories}
    assert refresher.cost.batches == sum(fresh)
    return list(fresh)


def of_parts(values: list[float]) -> Tensor:
    importance = torch.zeros(N)
    for part, value in zip(PARTS, values, strict=True):
        importance[PTR[part] : PTR[part + 1]] = value
    return importance


@pytest.mark.parametrize(
    ("ages", "importance", "budget", "want"),
    [
        ([3, 2, 7, 5], [1, 1, 1, 1], {"batches": 1}, [False, False, True, False]),
        ([3, 2, 7, 5], [3, 1, 1, 1], {"batches": 1}, [True, False, False, False]),
        ([3, 2, 7, 5], [0, 4, 1, 0], {"batches": 2}, [False, True, True, False]),
        ([3, 2, 7, -1], [1, 1, 1, 0.01], {"batches": 1}, [False, False, True, False]),
        ([3, 2, 7, -1], [1, 1, 1, 0.1], {"batches": 1}, [False, False, False, True]),
        ([3, 2, 7, 5], [4, 1, 1, 1], {"nodes": 27}, [True, False, True, False]),  # of 14 and 13 nodes
    ],
)
def test_age_times_importance_decides(ages: list[int], importance: list[float], budget: Any, want: list[bool]) -> None:
    assert refreshed(ages, Important(**budget, importance=of_parts(importance))) == want


def test_rows_that_batches_read_come_first() -> None:
    """All edges lead from the nodes of one part to others."""
    for part in PARTS:
        own = torch.arange(PTR[part], PTR[part + 1])
        others = torch.arange(N)[~torch.isin(torch.arange(N), own)]
        data = Data(x=DATA.x, edge_index=torch.cartesian_prod(own, others).t().contiguous())
        assert refreshed([1, 1, 1, 1], Important(batches=1), data) == [each == part for each in PARTS]


@pytest.mark.parametrize("budget", [{"batches": 2}, {"nodes": 40}])
def test_equal_importance_is_the_stalest(budget: dict[str, int]) -> None:
    states = []
    for refresh in (Stalest(**budget), Important(**budget, importance=torch.ones(N))):
        torch.manual_seed(0)
        model = Net(N, H, dropout=0.5)
        policy = BeforeTraining() | EverySteps(1, refresh)
        model.add_extension(policy.bind(model, EvalSubgraphLoader(DATA, PTR)))
        optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
        for _ in range(3):
            for batch in SubgraphLoader(DATA, PTR, shuffle=True):
                optimizer.zero_grad()
                model(batch).square().mean().backward()
                optimizer.step()
        states.append(tables(model))
    assert_same(*states)


def test_importance_of_any_numbers_and_budgets_of_merged_parts() -> None:
    importance = of_parts([0, 0, 1, 2]).to(torch.int32)
    model = aged([1, 1, 1, 1])
    refresher = EverySteps(1, Important(batches=1, importance=importance)).bind(model, SubgraphLoader(DATA, PTR, 2))
    refresher.after_step()
    assert bool((model.histories[0].age[37:] == 0).all()) and bool((model.histories[0].age[:37] == 1).all())


def test_joined_with_others() -> None:
    model = aged([1, 1, 1, 1])
    policy = EverySteps(1, Important(batches=1, importance=torch.ones(N))) | EverySteps(1, Important(batches=1))
    refresher = policy.bind(model, EvalSubgraphLoader(DATA, PTR))
    refresher.after_step()
    assert refresher.cost.refreshes == 2


# -- refused -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("given", [{}, {"batches": 1, "nodes": 100}])
def test_a_budget_is_one_number(given: dict[str, int]) -> None:
    with pytest.raises(ValueError, match="Important: give a budget, either batches or nodes"):
        Important(**given)


def test_a_budget_holds_the_largest_batch() -> None:
    with pytest.raises(ValueError, match="Important: batches must be a whole number of at least 1, but is 0"):
        Important(batches=0)
    with pytest.raises(
        ValueError, match="Important: nodes is 22, but the largest batch of the loader has 23; raise it"
    ):
        refreshed([1, 1, 1, 1], Important(nodes=22))


@pytest.mark.parametrize(
    "importance",
    [torch.zeros(N), -torch.ones(N), torch.full((N,), float("inf")), torch.full((N,), float("nan"))],
)
def test_importance_is_a_share(importance: Tensor) -> None:
    with pytest.raises(
        ValueError, match="Important: importance must be finite, at least 0, and more than 0 for one node"
    ):
        Important(batches=1, importance=importance)


def test_importance_is_of_each_node() -> None:
    with pytest.raises(ValueError, match=r"importance must be numbers, \[N\], but is torch.float32 \[60, 1\]"):
        Important(batches=1, importance=torch.ones(N, 1))
    with pytest.raises(ValueError, match="importance has 59 entries, but the graph has 60 nodes"):
        refreshed([1, 1, 1, 1], Important(batches=1, importance=torch.ones(N - 1)))
