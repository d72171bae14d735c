"""Waves are forward passes of all batches in training mode, which bring histories to the parameters as they are."""

from __future__ import annotations

from typing import Any

import pytest
import torch
import torch_geometric.nn as nn
from graphs import adjacency, random_graph
from nets import Net, assert_same, tables
from plain_models import OUT, C, H
from torch import Tensor

from torch_gas import EvalSubgraphLoader, SubgraphLoader, scale
from torch_gas.extensions import Waves
from torch_gas.extensions.refresh import EverySteps, Refresher, Sweep

N = 60
PTR = torch.tensor([0, 14, 37, 50, N])
DATA = random_graph(N, 4 * N, seed=1)
KINDS = ["explicit", "scaled"]


def model_of(kind: str, dropout: float = 0.0, norm: str | None = None) -> Any:
    torch.manual_seed(0)
    if kind == "explicit":
        return Net(N, H, dropout=dropout)
    return scale(nn.GraphSAGE(C, H, 3, OUT, dropout=dropout, norm=norm), DATA)


def bound(model: Any, passes: int = 1) -> Refresher:
    return EverySteps(1, Waves(passes)).bind(model, EvalSubgraphLoader(DATA, PTR))


def rows_of(model: Any) -> list[Tensor]:
    return [history.pull() for history in model.histories]


@pytest.mark.parametrize("kind", KINDS)
def test_one_history_after_the_other_is_that_of_the_parameters(kind: str) -> None:
    model, want = model_of(kind), model_of(kind)
    want.load_state_dict(model.state_dict())
    with torch.no_grad():
        want(DATA.x, adjacency(DATA))
    refresher = bound(model)
    for passes in (1, 2):
        assert refresher.after_step() is None
        close = [torch.allclose(*each, atol=1e-6) for each in zip(rows_of(model), rows_of(want), strict=True)]
        assert close == [True, passes == 2]
    assert (refresher.cost.sweeps, refresher.cost.batches) == (2, 8)
    other = model_of(kind)
    bound(other, passes=2).after_step()
    assert all(map(torch.equal, rows_of(model), rows_of(other)))


@pytest.mark.parametrize("kind", KINDS)
def test_passes_over_one_batch_alone_change_nothing(kind: str) -> None:
    """Why waves go over all batches."""
    model = model_of(kind)
    (batch, *_) = SubgraphLoader(DATA, PTR)
    with torch.no_grad():
        out = model(batch)
        before = rows_of(model)
        assert torch.equal(model(batch), out)
    assert all(map(torch.equal, before, rows_of(model)))


@pytest.mark.parametrize("kind", KINDS)
def test_they_run_in_training_mode_whatever_the_mode_is(kind: str) -> None:
    found = []
    for training in (True, False):
        model = model_of(kind, dropout=0.5)
        model.train(training)
        torch.manual_seed(1)
        bound(model).after_step()
        assert model.training is training and all(module.training is training for module in model.modules())
        assert all(int(history.clock) == 0 for history in model.histories)  # it is no step
        found.append(rows_of(model))
    assert all(map(torch.equal, *found))
    sweep = model_of(kind, dropout=0.5)
    EverySteps(1, Sweep()).bind(sweep, EvalSubgraphLoader(DATA, PTR)).after_step()
    assert not torch.equal(rows_of(sweep)[1], found[0][1])  # no masks


def test_modules_keep_the_modes_of_their_own() -> None:
    """A batch norm that is held in evaluation mode stays there, and others move."""
    model = model_of("scaled", norm="batch_norm")
    norms = [module for module in model.modules() if isinstance(module, torch.nn.BatchNorm1d)]
    norms[0].eval()
    before = [norm.running_mean.clone() for norm in norms]
    bound(model).after_step()
    assert [torch.equal(norm.running_mean, old) for norm, old in zip(norms, before, strict=True)] == [True, False]
    assert [norm.training for norm in norms] == [False, True]


@pytest.mark.parametrize("kind", KINDS)
def test_no_pass_is_training_without(kind: str) -> None:
    states = []
    for passes in (None, 0):
        model = model_of(kind, dropout=0.5)
        if passes is not None:
            model.add_extension(bound(model, passes))
        torch.manual_seed(2)
        optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
        for batch in SubgraphLoader(DATA, PTR, shuffle=True):
            optimizer.zero_grad()
            model(batch).square().mean().backward()
            optimizer.step()
        states.append(tables(model))
    assert_same(*states)


def test_random_numbers_go_on_as_they_were() -> None:
    model = model_of("explicit", dropout=0.5)
    before = torch.get_rng_state()
    bound(model, 2).after_step()
    assert torch.equal(torch.get_rng_state(), before)


def test_passes_are_not_negative() -> None:
    with pytest.raises(ValueError, match="Waves: passes must not be negative, but is -1"):
        Waves(-1)
