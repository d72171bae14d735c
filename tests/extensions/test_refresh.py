"""Histories are renewed when a policy says so, to what the whole graph has, and the cost is counted."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
import torch_geometric.nn as nn
from graphs import adjacency, random_graph
from nets import Net, assert_same, full_batch, tables
from plain_models import OUT, C, H
from torch import Tensor
from torch_geometric.data import Data

from torch_gas import EvalSubgraphLoader, ScalableGNN, SubgraphLoader, metis, permute, scale
from torch_gas.extensions.refresh import (
    PUBLISHED,
    BeforeTraining,
    EveryEpochs,
    EverySteps,
    Exact,
    Never,
    Policy,
    Refresh,
    Refresher,
    Stalest,
    Sweep,
)

N = 60
PTR = torch.tensor([0, 14, 14, 37, 50, N])  # the second part is empty


def graph() -> Data:
    return random_graph(N, 4 * N, seed=1)


def model_of(kind: str, data: Data) -> ScalableGNN:
    return scale(nn.GCN(C, H, 3, OUT, dropout=0.5), data) if kind == "scaled" else Net(N, H, dropout=0.5)


def train(model: ScalableGNN, data: Data, refresher: Refresher, epochs: int = 1) -> list[Any]:
    """What the refresher returned, call by call."""
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    told = [refresher.before_training()]
    for _ in range(epochs):
        for batch in SubgraphLoader(data, PTR, shuffle=True):
            optimizer.zero_grad()
            model(batch).square().mean().backward()
            optimizer.step()
            told.append(refresher.after_step())
        told.append(refresher.after_epoch())
    return told


def exact_tables(model: ScalableGNN, data: Data) -> list[Tensor]:
    twin = copy.deepcopy(model).eval()
    with torch.no_grad():
        twin(data.x, adjacency(data))
    return [history.emb for history in twin.histories]


class Recorder(Refresh):
    """Notes when it was called."""

    def __init__(self) -> None:
        self.at: list[tuple[int, int]] = []

    def run(self, refresher: Refresher) -> None:
        self.at.append((refresher.epochs, refresher.steps))


# -- when --------------------------------------------------------------------------------------------------------------


def test_policies_are_due_when_they_say() -> None:
    data, model = graph(), Net(N, H)
    for make, want in (
        (lambda r: Never(), []),
        (lambda r: BeforeTraining(r), [(0, 0)]),
        (lambda r: EveryEpochs(1, r), [(1, 4), (2, 8), (3, 12), (4, 16)]),
        (lambda r: EveryEpochs(3, r), [(3, 12)]),
        (lambda r: EverySteps(5, r), [(1, 5), (2, 10), (3, 15)]),
        (
            lambda r: BeforeTraining(r) | EveryEpochs(2, r) | EverySteps(8, r),
            [(0, 0), (1, 8), (2, 8), (3, 16), (4, 16)],
        ),
    ):
        recorder = Recorder()
        refresher = make(recorder).bind(model, EvalSubgraphLoader(data, PTR))
        assert train(model, data, refresher, epochs=4) == [None] * 21
        assert recorder.at == want
        assert refresher.cost.refreshes == len(want)


def test_a_run_goes_on_where_it_was_interrupted() -> None:
    recorder = Recorder()
    refresher = EveryEpochs(3, recorder).bind(Net(N, H), EvalSubgraphLoader(graph(), PTR))
    refresher.epochs = 2
    refresher.after_epoch()
    assert recorder.at == [(3, 0)]


def test_a_run_goes_on_from_the_state_of_another_process() -> None:
    data = graph()
    loader = EvalSubgraphLoader(data, PTR, 2)
    policy = EverySteps(3, Sweep())
    first, second = (policy.bind(Net(N, H), loader) for _ in range(2))
    for _ in range(4):
        first.after_step()
    first.after_epoch()
    second.load_state_dict(first.state_dict())
    assert (second.steps, second.epochs, second.cost) == (4, 1, first.cost)
    second.after_step()
    batches = second.cost.batches
    second.after_step()
    assert second.cost.batches == batches + len(loader)
    assert first.cost.batches == batches
    with pytest.raises(ValueError, match=r"not what state_dict\(\) of a refresher returned"):
        second.load_state_dict({"steps": 1})


def test_of_refreshes_due_at_once_an_exact_one_is_enough() -> None:
    data, recorder = graph(), Recorder()
    policy = EveryEpochs(1, recorder) | EveryEpochs(2) | EveryEpochs(4, Exact()) | EveryEpochs(2, recorder)
    refresher = policy.bind(Net(N, H), EvalSubgraphLoader(data, PTR))
    for _ in range(4):
        refresher.after_epoch()
    assert recorder.at == [(1, 0), (3, 0)]  # once, not for each that says so
    assert refresher.cost.refreshes == 4 and refresher.cost.sweeps == 6


# -- how ---------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", ["explicit", "scaled"])
@pytest.mark.parametrize("whole", [True, False])
def test_the_published_recipe_is_exact(kind: str, whole: bool) -> None:
    data = graph()
    model = model_of(kind, data)
    refresher = PUBLISHED.bind(model, EvalSubgraphLoader(data, PTR, batch_size=2), data if whole else None)
    before, *steps, after = train(model, data, refresher)
    assert before.shape == (N, 3) and steps == [None] * 4
    want = exact_tables(model, data)
    for history, emb in zip(model.histories, want, strict=True):
        torch.testing.assert_close(history.emb, emb)
        assert history.age.eq(0).all()
    torch.testing.assert_close(after, full_batch(model.eval(), data))
    assert not after.requires_grad
    cost = refresher.cost
    assert (cost.refreshes, cost.sweeps, cost.batches) == ((2, 2, 2) if whole else (2, 6, 18))
    assert cost.seconds > 0


def test_sweeps_make_one_history_after_the_other_exact() -> None:
    data, model = graph(), Net(N, H, num_layers=4)
    want = exact_tables(model, data)
    refresher = EveryEpochs(1, Sweep()).bind(model, EvalSubgraphLoader(data, PTR))
    for sweep in range(3):
        assert refresher.after_epoch() is None
        exact = [torch.allclose(h.emb, emb, atol=1e-6) for h, emb in zip(model.histories, want, strict=True)]
        assert exact == [layer <= sweep for layer in range(3)]
    assert (refresher.cost.sweeps, refresher.cost.batches) == (3, 12)
    other = Net(N, H, num_layers=4)
    other.load_state_dict({**other.state_dict(), **dict(model.named_parameters())})
    EveryEpochs(1, Sweep(times=3)).bind(other, EvalSubgraphLoader(data, PTR)).after_epoch()
    for history, emb in zip(other.histories, want, strict=True):
        torch.testing.assert_close(history.emb, emb)


def aged(data: Data, ages: list[int]) -> Net:
    """A model with parts of these ages; -1 for never."""
    model = Net(N, H)
    for history in model.histories:
        history.clock += 100
        for part, age in enumerate(ages):
            history.pushed_at[PTR[part] : PTR[part + 1]] = -1 if age < 0 else 100 - age
    return model


def refreshed(model: Net) -> list[bool]:
    """Which parts are of age 0, in all histories."""
    return [
        all(bool((h.age[PTR[p] : PTR[p + 1]] == 0).all()) for h in model.histories)
        for p in range(len(PTR) - 1)
        if p != 1
    ]


@pytest.mark.parametrize(
    ("ages", "refresh", "want"),
    [
        ([3, 0, 1, 7, 5], Stalest(batches=1), [False, False, True, False]),
        ([3, 0, 1, 7, 5], Stalest(batches=3), [True, False, True, True]),
        ([3, 0, 1, 7, 5], Stalest(batches=99), [True, True, True, True]),
        ([100, 0, 1, 7, -1], Stalest(batches=1), [False, False, False, True]),
        ([3, 0, 1, 7, 5], Stalest(nodes=23), [False, False, True, True]),  # of 13 and 10 nodes
        ([3, 0, 1, 7, 5], Stalest(nodes=36), [False, False, True, True]),
        ([3, 0, 1, 7, 5], Stalest(nodes=37), [True, False, True, True]),
    ],
)
def test_the_stalest_batches_come_first(ages: list[int], refresh: Stalest, want: list[bool]) -> None:
    data, model = graph(), aged(graph(), ages)
    refresher = EverySteps(1, refresh).bind(model, EvalSubgraphLoader(data, PTR))
    before = tables(model.histories)
    assert refresher.after_step() is None
    assert refreshed(model) == want
    assert refresher.cost.batches == sum(want) and refresher.cost.sweeps == 0
    for p, done in zip((0, 2, 3, 4), want, strict=True):  # the first history is exact where it was renewed
        rows = slice(PTR[p], PTR[p + 1])
        emb = exact_tables(model, data)[0][rows] if done else before["0.emb"][rows]
        torch.testing.assert_close(model.histories[0].emb[rows], emb)


def test_the_age_of_a_batch_is_the_mean_of_its_rows() -> None:
    """Of merged parts, 14 rows of age 8 and 23 of age 2 (4.3) are younger than 13 of age 4 and 10 of age 5 (4.4)."""
    data, model = graph(), aged(graph(), [8, 0, 2, 4, 5])
    ptr = torch.tensor([0, 37, N])
    EverySteps(1, Stalest(batches=1)).bind(model, EvalSubgraphLoader(data, ptr)).after_step()
    assert refreshed(model) == [False, False, True, True]


def test_batches_of_several_parts() -> None:
    """Of a plain loader as well, those are told apart that it has without shuffling."""
    data, model = graph(), aged(graph(), [8, 0, 2, 4, 5])
    for loader in (SubgraphLoader(data, PTR, 2), SubgraphLoader(data, PTR, 2, shuffle=True)):
        EverySteps(1, Stalest(batches=1)).bind(model, loader).after_step()
    assert refreshed(model) == [True, True, True, True]


def test_stalest_first_keeps_histories_younger_than_no_refresh() -> None:
    data = graph()
    ages = []
    for policy in (Never(), EverySteps(1, Stalest(batches=1))):
        torch.manual_seed(0)
        model = Net(N, H)
        train(model, data, (BeforeTraining() | policy).bind(model, EvalSubgraphLoader(data, PTR)), epochs=5)
        ages.append(model.histories[0].age.float().mean())
    assert ages[1] < ages[0]


# -- what stays as it was ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", ["explicit", "scaled"])
@pytest.mark.parametrize("refresh", [Exact(), Sweep(), Stalest(batches=2)])
def test_modes_and_random_numbers_stay(kind: str, refresh: Refresh) -> None:
    data = graph()
    model = model_of(kind, data)
    modules = list(model.modules())
    modules[-1].eval()
    modes = [module.training for module in modules]
    parameters = {key: value.clone() for key, value in model.named_parameters()}
    state = torch.get_rng_state()
    for loader in (EvalSubgraphLoader(data, PTR), SubgraphLoader(data, PTR, shuffle=True)):
        (EverySteps(1, refresh)).bind(model, loader).after_step()
        assert [module.training for module in modules] == modes
        assert torch.equal(torch.get_rng_state(), state)
    assert_same(parameters, dict(model.named_parameters()))
    assert all(int(history.clock) == 0 for history in model.histories)  # it is no step


def test_modes_come_back_after_an_error() -> None:
    data, model = graph(), Net(N, H)
    refresher = PUBLISHED.bind(model, EvalSubgraphLoader(data, PTR))
    with torch.no_grad():
        model.convs[0].lin_l.weight.fill_(float("nan"))
    with pytest.raises(ValueError, match="hold NaN or infinity"):
        refresher.before_training()
    assert model.training and refresher.cost.refreshes == 0


def test_training_with_no_refresh_is_plain_training() -> None:
    data, states = graph(), []
    for policy in (None, Never()):
        torch.manual_seed(0)
        model = Net(N, H, dropout=0.5)
        refresher = (policy or Never()).bind(model, EvalSubgraphLoader(data, PTR))
        if policy is None:
            optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
            for batch in SubgraphLoader(data, PTR, shuffle=True):
                optimizer.zero_grad()
                model(batch).square().mean().backward()
                optimizer.step()
        else:
            assert train(model, data, refresher) == [None] * 6
            assert (refresher.cost.seconds, refresher.cost.batches) == (0, 0)
        states.append(tables(model))
    assert_same(*states)


# -- misuse ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("value", "error", "match"),
    [
        (0, ValueError, "must be a whole number of at least 1, but is 0"),
        (-1, ValueError, "must be a whole number of at least 1, but is -1"),
        (1.5, TypeError, "must be int.*, but is 1.5"),
        (True, TypeError, "must be int.*, but is True"),
    ],
)
def test_numbers_must_be_positive(value: Any, error: type[Exception], match: str) -> None:
    for make in (EveryEpochs, EverySteps, Sweep, lambda k: Stalest(batches=k), lambda k: Stalest(nodes=k)):
        with pytest.raises(error, match=match):
            make(value)


def test_a_budget_is_one_number() -> None:
    for given in ({}, {"batches": 1, "nodes": 100}):
        with pytest.raises(ValueError, match="Stalest: give a budget, either batches or nodes"):
            Stalest(**given)


def test_a_budget_holds_the_largest_batch() -> None:
    refresher = EverySteps(1, Stalest(nodes=22)).bind(Net(N, H), EvalSubgraphLoader(graph(), PTR))
    with pytest.raises(ValueError, match="nodes is 22, but the largest batch of the loader has 23; raise it"):
        refresher.after_step()


def test_bound_to_the_same_graph() -> None:
    data, policy = graph(), PUBLISHED
    loader = EvalSubgraphLoader(data, PTR)
    assert isinstance(policy, Policy)
    with pytest.raises(TypeError, match="model must be HistoryModel, but is"):
        policy.bind(nn.GCN(C, H, 3), loader)  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="loader has 60 nodes, but the model was made for 61"):
        policy.bind(Net(N + 1, H), loader)
    with pytest.raises(ValueError, match="data has 50 nodes, but the model was made for 60"):
        policy.bind(Net(N, H), loader, random_graph(50, 100))
    perm, ptr = metis(data, 4, log=False)
    permuted = permute(data, perm, log=False)
    PUBLISHED.bind(Net(N, H), EvalSubgraphLoader(permuted, ptr), copy.copy(permuted))
    turned = permute(data, perm.flip(0), log=False)
    same_edges = copy.copy(permuted)
    same_edges.perm = turned.perm
    for other, what in (
        (data, "edges"),
        (turned, "the order of their nodes"),
        (same_edges, "the order of their nodes"),
    ):
        with pytest.raises(ValueError, match=rf"data is another graph than the loader's: they differ in {what}"):
            policy.bind(Net(N, H), EvalSubgraphLoader(permuted, ptr), other)


def test_only_some_batches_of_a_loader() -> None:
    data, loader = graph(), EvalSubgraphLoader(graph(), PTR)
    whole = {int(batch.n_id[0]): batch for batch in loader}
    for batch, start in zip(loader.only([[4], [0], [4]]), (50, 0, 50), strict=True):
        assert int(batch.n_id[0]) == start and torch.equal(batch.n_id, whole[start].n_id)
        assert torch.equal(batch.data.x, data.x[batch.n_id]) and batch.record.num_nodes == N
    (merged,) = loader.only([[3, 0]])
    assert torch.equal(merged.n_id[: merged.batch_size], torch.cat([torch.arange(37, 50), torch.arange(14)]))
    assert list(loader.only([])) == [] and len(list(loader)) == 4
    for part in (-1, 5):
        with pytest.raises(IndexError, match=rf"SubgraphLoader.only: part {part} must be in 0 .. 4"):
            loader.only([[0], [part]])
