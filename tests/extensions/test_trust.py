"""Trust "auto": full where nothing speaks against it, and none in a table that is wrong or while the loss rises."""

from __future__ import annotations

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


def run(wrong: bool, epochs: int = 4, seed: int = 0) -> list[float]:
    """The mean beta of each epoch; gradients are added to the tables with the wrong sign if they are to be."""
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
    for history in model.extension_tables["gradient"] if wrong else ():
        add = history.table.add
        history.table.add = lambda ids, rows, add=add: add(ids, -rows)
    optimizer = torch.optim.Adam(model.parameters(), lr=0.01)
    betas = []
    for _ in range(epochs):
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
def test_a_table_of_wrong_signs_is_turned_off_within_an_epoch(seed: int) -> None:
    right, wrong = run(False, seed=seed), run(True, seed=seed)
    assert all(beta > 0.15 for beta in right)
    assert all(beta < 0.05 for beta in wrong[2:])  # the first epoch has half-empty tables


def test_no_more_is_added_than_twice_what_has_arrived() -> None:
    trust, rows = Auto(), torch.randn(50, 8)
    trust.step([torch.randn(50, 3)], 10, 2)
    assert float(trust.beta(0, rows, 4 * rows)) == pytest.approx(0.5 * START)
    assert float(trust.beta(1, rows, 0.5 * rows)) == START
    assert float(trust.beta(2, rows, torch.zeros_like(rows))) == START
    assert float(trust.beta(3, torch.zeros_like(rows), rows)) == 0
    assert trust.betas() == pytest.approx([0.5 * START, START, START, 0])


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
    return bool(trust.beta(0, rows, rows))


def test_nothing_is_added_while_the_loss_rises() -> None:
    torch.manual_seed(0)
    trust = Auto()
    assert all(decided(trust, 1.0 - 0.01 * step) for step in range(60))
    assert all(decided(trust, 0.4 * (1 + 0.1 * (-1) ** step)) for step in range(30))  # noise is no rise
    rising = [decided(trust, 1.0) for _ in range(20)]
    assert not any(rising)
    falling = [decided(trust, 0.4) for _ in range(40)]
    assert not falling[0] and all(falling[15:])


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
    assert trust.beta(0, torch.zeros(2, 2), torch.ones(2, 2)) == 0.3 and trust.betas() == [0.3]


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
