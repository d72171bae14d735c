"""What all extensions against stale rows have in common: training without them where they do nothing, copies, checkpoints."""

from __future__ import annotations

import copy
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import torch_geometric.nn as nn
from graphs import random_graph
from nets import Net, assert_same, tables
from plain_models import OUT, C, H

from torch_gas import EvalSubgraphLoader, FileTier, Monitor, SubgraphLoader, checkpoint, scale
from torch_gas.extensions import AgeWeights, Extension, Important, Momentum, Waves
from torch_gas.extensions.refresh import BeforeTraining, EverySteps

N = 60
PTR = torch.tensor([0, 14, 37, 50, N])
DATA = random_graph(N, 4 * N, seed=1)
KINDS = ["explicit", pytest.param("scaled", marks=pytest.mark.slow)]
Make = Callable[[Any], Extension]


def refresher(refresh: Any) -> Make:
    def bind(model: Any) -> Extension:
        policy = BeforeTraining(refresh) | EverySteps(1, refresh)
        return policy.bind(model, EvalSubgraphLoader(DATA, PTR))

    return bind


ACTIVE: dict[str, Make] = {
    "momentum": lambda model: Momentum(0.4),
    "age": lambda model: AgeWeights(0.7),
    "waves": refresher(Waves(2)),
    "importance": refresher(Important(batches=1)),
}
NEUTRAL: dict[str, Make] = {
    "momentum": lambda model: Momentum(0.0),
    "age": lambda model: AgeWeights(0.0),
    "waves": refresher(Waves(0)),
}


def model_of(kind: str, **options: Any) -> Any:
    torch.manual_seed(0)
    if kind == "explicit":
        return Net(N, H, dropout=0.5, **options)
    return scale(nn.GCN(C, H, 3, OUT, dropout=0.5, norm="batch_norm"), DATA, **options)


def loader_of(kind: str = "") -> SubgraphLoader:
    return SubgraphLoader(DATA, PTR, shuffle=True, seed=3, neighbors="both")


class Run:
    """A model, its optimiser and its loader."""

    def __init__(self, kind: str, make: Make | None, **options: Any) -> None:
        self.model, self.loader = model_of(kind, **options), loader_of()
        if make is not None:
            self.model.add_extension(make(self.model))
        self.optimizer = torch.optim.Adam(self.model.parameters(), lr=0.05)
        torch.manual_seed(1)

    def step(self, batch: Any) -> None:
        self.optimizer.zero_grad()
        self.model(batch).square().mean().backward()
        self.optimizer.step()

    def epochs(self, number: int) -> Run:
        for _ in range(number):
            for batch in self.loader:
                self.step(batch)
        return self

    @property
    def parts(self) -> dict[str, Any]:
        return {"model": self.model, "optimizer": self.optimizer, "loader": self.loader}


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("name", NEUTRAL)
def test_neutral_ones_are_training_without(kind: str, name: str) -> None:
    assert_same(tables(Run(kind, None).epochs(2).model), tables(Run(kind, NEUTRAL[name]).epochs(2).model))


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("name", ACTIVE)
def test_others_change_training(kind: str, name: str) -> None:
    plain, active = (tables(Run(kind, make).epochs(2).model) for make in (None, ACTIVE[name]))
    name = next(name for name in plain if name.endswith("weight") and plain[name].dim() == 2)
    assert not torch.equal(plain[name], active[name])
    assert all(bool(value.isfinite().all()) for value in active.values())


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("name", ACTIVE)
def test_a_run_goes_on_from_a_checkpoint(kind: str, name: str, tmp_path: Path) -> None:
    """In the middle of an epoch."""
    run = Run(kind, ACTIVE[name]).epochs(1)
    for index, batch in enumerate(run.loader):
        run.step(batch)
        if index == 1:
            checkpoint.save(tmp_path / "run", **run.parts)
    run.epochs(1)
    again = Run(kind, ACTIVE[name])
    checkpoint.load(tmp_path / "run", **again.parts)
    again.epochs(2)
    assert_same(tables(run.model), tables(again.model))


@pytest.mark.parametrize("name", ["momentum", "age"])
def test_rows_in_files_are_the_same(name: str, tmp_path: Path) -> None:
    runs = [Run("explicit", ACTIVE[name], tier=tier).epochs(2).model for tier in (None, FileTier(tmp_path))]
    assert_same(*map(tables, runs))


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("name", ACTIVE)
def test_a_copy_takes_it_along(kind: str, name: str) -> None:
    run = Run(kind, ACTIVE[name]).epochs(1)
    twin = copy.deepcopy(run)
    assert [type(each) for each in twin.model.extensions] == [type(each) for each in run.model.extensions]
    states = []
    for each in (run, twin):
        torch.manual_seed(4)
        states.append(tables(each.epochs(1).model))
    assert_same(*states)


def test_all_of_them_at_once() -> None:
    run = Run("scaled", None)
    for make in ACTIVE.values():
        run.model.add_extension(make(run.model))
    monitor = Monitor(run.model, every=1)
    run.epochs(2)
    assert monitor.steps == 8  # what refreshes call are no steps
    assert all(int(history.clock) == 8 for history in run.model.histories)
