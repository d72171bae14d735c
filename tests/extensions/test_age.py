"""Halo rows are weighted by the steps since they were pushed."""

from __future__ import annotations

import copy
import math
from typing import Any

import pytest
import torch
import torch_geometric.nn as nn
from graphs import adjacency, random_graph
from nets import Net, assert_same, refresh, tables
from plain_models import OUT, C, H
from torch import Tensor

from torch_gas import EvalSubgraphLoader, History, SubData, SubgraphLoader, scale
from torch_gas.extensions import AgeWeights, Extension
from torch_gas.extensions.refresh import BeforeTraining, EverySteps

N = 60
PTR = torch.tensor([0, 14, 37, 50, N])
DATA = random_graph(N, 4 * N, seed=1)
KINDS = ["explicit", "scaled"]


def loader_of(**options: Any) -> SubgraphLoader:
    return SubgraphLoader(DATA, PTR, **options)


def model_of(kind: str) -> Any:
    torch.manual_seed(0)
    return Net(N, H) if kind == "explicit" else scale(nn.GraphSAGE(C, H, 3, OUT), DATA)


class Halo(Extension):
    """Keeps the rows that batches read."""

    def __init__(self) -> None:
        self.rows: list[Tensor] = []

    def exchange(self, call: Any, history: History, rows: Tensor, pulled: Tensor) -> None:
        self.rows.append(pulled.clone())


def read(model: Any, batch: SubData) -> tuple[list[Tensor], list[Tensor]]:
    """Rows of the halo in the histories, and those that the batch read."""
    halo = Halo()
    model.add_extension(halo)
    held = [history.pull(batch.n_id[batch.batch_size :]) for history in model.histories]
    model(batch)
    model.remove_extension(halo)
    return held, halo.rows


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("falls", [True, False])
@pytest.mark.parametrize("unit", ["step", "epoch"])
def test_weights_are_the_formula(kind: str, falls: bool, unit: str) -> None:
    model = model_of(kind)
    refresh(model, DATA)
    model.add_extension(AgeWeights(0.4, unit, falls=falls))
    step, pushed = 0, torch.zeros(N)  # the step that renewed each row; at first all did
    for epoch in range(3):
        for batch in loader_of(shuffle=True, seed=epoch):
            step += 1
            own, halo = batch.n_id[: batch.batch_size], batch.n_id[batch.batch_size :]
            age = (step - pushed[halo] - 1) / (1 if unit == "step" else 4)
            want = torch.exp(-0.4 * age).view(-1, 1)  # each loader's epoch is its first
            for held, rows in zip(*read(model, batch), strict=True):
                torch.testing.assert_close(rows, want * held)
            pushed[own] = step
    assert want.min() < 0.9 and want.max() == 1


@pytest.mark.parametrize("falls", [True, False])
def test_the_rate_falls_with_the_epochs_of_a_loader(falls: bool) -> None:
    model, loader = model_of("explicit"), loader_of()
    refresh(model, DATA)
    model.add_extension(AgeWeights(0.4, falls=falls))
    for epoch in range(3):
        for index, batch in enumerate(loader):
            halo = batch.n_id[batch.batch_size :]
            held, rows = read(model, batch)
            oldest = (rows[0] / held[0]).nan_to_num(1.0).min()
            if epoch > 0 and index == 3:  # all parts but its own are 0, 1 or 2 steps old
                assert bool((halo < 14).any())
                rate = 0.4 / (1 + epoch) if falls else 0.4
                assert float(oldest) == pytest.approx(math.exp(-rate * 2 / 4), rel=1e-5)


@pytest.mark.parametrize("kind", KINDS)
def test_rows_without_age_are_read_as_they_are(kind: str) -> None:
    states = []
    for weighted in (False, True):
        model = model_of(kind)
        policy = BeforeTraining() | EverySteps(1)
        model.add_extension(policy.bind(model, EvalSubgraphLoader(DATA, PTR)))
        if weighted:
            model.add_extension(AgeWeights(10.0, "step", falls=False))
        optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
        for batch in [*loader_of(), *loader_of()]:
            optimizer.zero_grad()
            model(batch).square().mean().backward()
            optimizer.step()
        states.append(tables(model))
    assert_same(*states)


@pytest.mark.parametrize("kind", KINDS)
def test_histories_and_evaluation_are_as_they_were(kind: str) -> None:
    model = model_of(kind)
    refresh(model, DATA)
    twin = copy.deepcopy(model)
    model.add_extension(AgeWeights(1.0, "step"))
    (batch, *_) = loader_of()
    halo = batch.n_id[batch.batch_size :]
    outs = []
    for each in (model, twin):
        outs.append(each.eval()(batch))
        outs.append(each(DATA.x, adjacency(DATA)))
        with torch.no_grad():
            outs.append(each.train()(batch))
    assert all(map(torch.equal, outs[:3], outs[3:]))
    for history in (*model.histories, *twin.histories):
        history.tick()  # all rows are old
    before = [history.pull(halo) for history in model.histories]
    assert not torch.equal(model(batch), twin(batch))
    assert all(map(torch.equal, before, [history.pull(halo) for history in model.histories]))


def test_rows_in_16_bits() -> None:
    model = Net(N, H, history_dtype=torch.bfloat16)
    refresh(model, DATA)
    model.add_extension(AgeWeights(1.0, "step"))
    for batch in loader_of():
        held, rows = read(model, batch)
        assert all(bool((own.abs() <= other.float().abs()).all()) for own, other in zip(rows, held, strict=True))


# -- refused -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("rate", [-1.0, float("inf")])
def test_rates_are_not_negative(rate: float) -> None:
    with pytest.raises(ValueError, match="AgeWeights: rate must be at least 0, but is"):
        AgeWeights(rate)


def test_units_are_known() -> None:
    with pytest.raises(ValueError, match='AgeWeights: unit must be "step" or "epoch", but is \'hour\''):
        AgeWeights(unit="hour")  # type: ignore[arg-type]


def test_batches_of_no_epoch_have_ages_in_steps_only() -> None:
    model, (batch,) = model_of("explicit"), loader_of().only([[1]])
    model.add_extension(AgeWeights())
    with pytest.raises(ValueError, match=r'how many batches its epoch has; .*AgeWeights\(unit="step"\)'):
        model(batch)
    model.remove_extension(model.extensions[0])
    model.add_extension(AgeWeights(unit="step"))
    model(batch)
