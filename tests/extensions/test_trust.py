"""Trust "auto": full where a table says something, and none in a table that is wrong or noise, or while the loss rises."""

from __future__ import annotations

from collections.abc import Callable
from statistics import mean
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor
from torch_geometric.nn import GCN

from torch_gas import Monitor, SubgraphLoader, labelled_mean, metis, permute, scale
from torch_gas.datasets import synthetic
from torch_gas.extensions import Compensation
from torch_gas.extensions.compensation.trust import START, Auto, Fixed, highest

Planted = Callable[[Tensor], Tensor]


def run(planted: Planted | None = None, first: int = 0, epochs: int = 7, seed: int = 0) -> list[float]:
    """The mean beta of each epoch; from epoch ``first`` on, gradients are something else when they come to the tables."""
    torch.manual_seed(seed)
    data = synthetic(1000)
    perm, ptr = metis(data, num_parts=10, backend="random", log=False)
    data = permute(data, perm, log=False)
    compensation = Compensation()
    model: Any = scale(
        GCN(data.num_features, 16, num_layers=3, out_channels=10, dropout=0.3), data, compensation=compensation
    )
    with torch.no_grad():
        model.train()(data)
    optimizer = torch.optim.Adam(model.parameters(), lr=0.01)
    betas = []
    for epoch in range(epochs):
        if planted is not None and epoch == first:
            for history in model.extension_tables["gradient"]:
                add = history.table.add
                history.table.add = lambda ids, rows, add=add: add(ids, planted(rows))
        of_epoch = []
        for batch in SubgraphLoader(data, ptr, shuffle=True, seed=0):
            optimizer.zero_grad()
            out, mask = model(batch), batch.train_mask[: batch.batch_size]
            losses = F.cross_entropy(out[mask], batch.y[: batch.batch_size][mask], reduction="none")
            labelled_mean(losses, batch).backward()
            optimizer.step()
            assert len(compensation.betas) == 2 and all(0 <= beta <= 1 for beta in compensation.betas)
            of_epoch.append(mean(compensation.betas))
        betas.append(mean(of_epoch))
    return betas


@pytest.mark.parametrize("seed", range(3))
def test_tables_are_trusted_after_some_epochs(seed: int) -> None:
    betas = run(seed=seed)
    assert betas[0] < 0.1 and all(beta > 0.15 for beta in betas[1:]) and betas[-1] > 0.6


@pytest.mark.parametrize("seed", range(3))
def test_a_table_of_wrong_signs_is_never_trusted(seed: int) -> None:
    assert max(run(torch.neg, seed=seed)) < 0.01


@pytest.mark.parametrize("seed", range(3))
def test_a_table_whose_signs_turn_wrong_is_turned_off_within_an_epoch(seed: int) -> None:
    betas = run(torch.neg, first=4, epochs=8, seed=seed)
    # In epoch 4 rows of both signs are read, in epoch 5 it is turned off.
    assert betas[3] > 0.4 and betas[5] < 0.3 and max(betas[6:]) < 0.06


@pytest.mark.parametrize("seed", range(3))
def test_a_table_of_noise_is_not_trusted(seed: int) -> None:
    betas = run(lambda rows: torch.randn_like(rows) * rows.norm() / rows.numel() ** 0.5, seed=seed)
    assert mean(betas) < 0.1


def test_no_more_is_added_than_twice_what_has_arrived() -> None:
    torch.manual_seed(0)
    trust, rows = Auto(), torch.randn(50, 8)
    sizes = {0: 4.0, 1: 0.5, 2: 1.0}  # of what is in the table
    for step in range(200):
        trust.step([(1 - 0.001 * step) * torch.ones(50, 3)], 10, 2)
        betas = [float(trust.beta(layer, rows, rows, size * rows)) for layer, size in sizes.items()]
    assert betas == pytest.approx([0.5, 1.0, 1.0])
    assert float(trust.beta(1, rows, rows, torch.zeros_like(rows))) > 0.9  # there was nothing to be added
    assert float(trust.beta(0, rows, torch.zeros_like(rows), rows)) == 0


def test_no_table_is_trusted_at_first() -> None:
    trust, rows = Auto(), torch.randn(50, 8)
    trust.step([torch.ones(50, 3)], 10, 2)
    assert float(trust.beta(0, rows, rows, rows)) < 0.3 * START


def with_cosine(rows: Tensor, other: Tensor, cosine: float) -> Tensor:
    """``rows`` without their part along ``other``, and so much of that as to have this cosine."""
    rows = rows - (rows * other).sum() / other.square().sum() * other
    return rows + cosine / (1 - cosine**2) ** 0.5 * rows.norm() / other.norm() * other


def decide(trust: Auto, values: Tensor, relation: float, cosine: float) -> float:
    """The last decision on gradients with this cosine by rows, whose sums over ``values`` are related by ``relation``."""
    direction = torch.randn(8, 8)
    for _ in range(100):
        trust.step([torch.ones(500, 3)], 10, 2)
        signal = 0.3 * values @ direction / 8**0.5
        ours = torch.randn(500, 8) + signal
        beta = float(trust.beta(0, values, ours, with_cosine(torch.randn(500, 8) + relation * signal, ours, cosine)))
    return beta


@pytest.mark.parametrize("relation", [1.0, -1.0])
def test_gradients_of_parameters_that_agree_or_cancel_are_no_noise(relation: float) -> None:
    """Rows that say next to nothing of each other, and whose sums over the rows of a history do, with either sign."""
    torch.manual_seed(0)
    assert decide(Auto(), torch.randn(500, 8), relation, cosine=0.01) > 0.9
    assert decide(Auto(), torch.randn(500, 8), relation, cosine=-0.01) == 0


def test_rows_that_agree_are_no_noise() -> None:
    torch.manual_seed(0)
    nothing = torch.zeros(500, 8)  # of which there are no sums
    assert decide(Auto(), nothing, 0.0, cosine=0.06) > 0.9
    assert decide(Auto(), nothing, 0.0, cosine=0.01) == 0


@pytest.mark.parametrize(("num_histories", "expected"), [(0, 1), (1, 1), (2, 1), (3, 0.811), (15, 0.667), (63, 0.667)])
def test_the_highest_level_is_the_lower_the_deeper_a_model_is(num_histories: int, expected: float) -> None:
    assert highest(num_histories) == pytest.approx(expected, abs=1e-3)


def test_the_level_rises_and_is_halved_where_the_loss_rises() -> None:
    torch.manual_seed(0)
    trust = Auto()
    for step in range(100):
        decided(trust, 0.99**step)
    assert trust.betas() == [1.0]
    for _ in range(50):
        decided(trust, 1.0)
    for _ in range(200):
        decided(trust, 0.2)
    assert float(trust._state["level"]) == 1.0
    before = float(trust._state["level"])
    for _ in range(12):
        decided(trust, 1.0)
    assert float(trust._state["level"]) < before


def gradients(size: float, labelled: int = 20) -> list[Tensor]:
    """By the output of a batch, some of whose rows have labels."""
    grads = torch.zeros(100, 4)
    grads[:labelled] = size * F.normalize(torch.randn(labelled, 4), dim=1)
    return [grads]


def decided(trust: Auto, size: float, labelled: int = 20) -> bool:
    """Whether a step adds something."""
    trust.step(gradients(size, labelled), 10, 2)
    rows = torch.ones(100, 8)
    return bool(trust.beta(0, rows, rows, rows) > 0.01)


def test_nothing_is_added_while_the_loss_rises() -> None:
    torch.manual_seed(0)
    trust = Auto()
    assert all(decided(trust, 1.0 - 0.01 * step) for step in range(60))
    assert all(decided(trust, 0.4 * (1 + 0.1 * (-1) ** step)) for step in range(30))  # noise is no rise
    rising = [decided(trust, 1.0) for _ in range(20)]
    assert not any(rising)
    falling = [decided(trust, 0.4) for _ in range(40)]
    assert not falling[0] and all(falling[15:])


def test_nothing_is_added_while_the_loss_is_above_that_of_the_first_steps() -> None:
    torch.manual_seed(0)
    trust = Auto()
    assert all([decided(trust, 1.0) for _ in range(30)][5:])
    assert not any([decided(trust, 1.1) for _ in range(30)][10:])  # less than a quarter above the best steps
    assert all([decided(trust, 1.0) for _ in range(30)][10:])


def test_batches_without_labels_and_small_rises_decide_nothing() -> None:
    torch.manual_seed(0)
    trust = Auto()
    for step in range(100):
        assert decided(trust, 1.0, labelled=20 if step % 3 else 0)
    trust = Auto()
    assert all(decided(trust, size) for size in [1.0] * 20 + [0.01] * 60 + [0.05] * 20)  # small beside the first ones


def test_the_scale_of_the_loss_decides_nothing() -> None:
    torch.manual_seed(0)
    found = []
    for scale_of_loss in (1.0, 1e-6):
        torch.manual_seed(0)
        trust = Auto()
        found.append([decided(trust, scale_of_loss * size) for size in (1.0, 0.9, 0.5, 0.5, 0.5, 2.0, 2.0, 2.0, 0.4)])
    assert found[0] == found[1]


def test_a_fixed_part_is_fixed() -> None:
    trust = Fixed(0.3)
    trust.step(gradients(1.0), 10, 2)
    assert trust.beta(0, torch.ones(2, 2), torch.zeros(2, 2), torch.ones(2, 2)) == 0.3 and trust.betas() == [0.3]


def test_the_monitor_and_the_extension_show_beta() -> None:
    torch.manual_seed(0)
    data = synthetic(300)
    perm, ptr = metis(data, num_parts=4, log=False)
    data = permute(data, perm, log=False)
    model: Any = scale(GCN(data.num_features, 8, 3, 10), data, compensation=Compensation(0.5))
    monitor = Monitor(model, every=1)
    assert "beta" not in monitor.table() and repr(model.extensions[0]).endswith("betas=[])")
    for batch in SubgraphLoader(data, ptr):
        model.train()(batch).square().mean().backward()
    assert "compensation/1/beta: 0.5\ncompensation/2/beta: 0.5" in str(monitor)
    assert repr(model.extensions[0]) == "Compensation(trust=0.5, schedule='consumed', betas=[0.50, 0.50])"

    class Writer:
        def __init__(self) -> None:
            self.scalars: dict[str, float] = {}

        def add_scalar(self, name: str, value: float, step: int) -> None:
            self.scalars[name] = value

    writer = Writer()
    monitor.log(1, writer)
    assert writer.scalars["compensation/2/beta"] == 0.5
