"""Training with transfers that take any time they like, against serial ones: the same bits, no race, no wait of the host."""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator
from dataclasses import replace
from itertools import pairwise
from types import SimpleNamespace
from typing import Any

import pytest
import torch
import torch_geometric.nn as nn
from graphs import random_graph
from lanes import FakeLanes, fake_pool
from nets import Net, refresh
from torch import Tensor

from torch_gas import EvalSubgraphLoader, ScalableGNN, SubData, SubgraphLoader, scale
from torch_gas.session.session import Session

N = 120
DATA = random_graph(N, 1200)
PTR = torch.arange(0, N + 1, 12)


def epoch(seed: int) -> Iterator[SubData]:
    """Batches of a shuffled loader, each of which knows the next one, as it does where the loader is faster than the steps."""
    batches = list(SubgraphLoader(DATA, PTR, 3, shuffle=True, seed=seed))
    for batch, coming in pairwise([*batches, None]):
        ahead: Any = SimpleNamespace(next=coming, largest_halo=N)
        yield batch.with_record(replace(batch.record, lookahead=ahead))


def step(model: ScalableGNN, optimizer: torch.optim.Optimizer, batch: SubData) -> Tensor:
    loss = torch.nn.functional.cross_entropy(model(batch), batch.data.y[: batch.batch_size])
    optimizer.zero_grad()
    loss.backward()
    optimizer.step()
    return loss.detach()


def train(model: ScalableGNN, between: Callable[[ScalableGNN, int], None] = lambda model, i: None) -> list[Tensor]:
    """Losses of some steps, with something done between any two, and what the model holds in the end."""
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    torch.manual_seed(5)
    found = []
    for seed in range(3):
        for i, batch in enumerate(epoch(seed)):
            found.append(step(model, optimizer, batch))
            between(model, i)
    return found + [value.clone() for value in model.state_dict().values()]


def make(**kwargs: object) -> Net:
    torch.manual_seed(0)
    return Net(N, num_layers=4, dropout=0.3, **kwargs)


def concurrent(
    model: ScalableGNN, seed: int | None, pool_size: int = 3, **kwargs: object
) -> tuple[ScalableGNN, FakeLanes]:
    """``model`` with transfers on lanes that take their time."""
    pool, lanes = fake_pool(pool_size, seed, **kwargs)
    model._session.use_pool(pool)
    return model, lanes


def assert_same(left: list[Tensor], right: list[Tensor]) -> None:
    assert len(left) == len(right) and all(map(torch.equal, left, right))


@pytest.mark.parametrize("seed", [None, 0, 1, 2])
@pytest.mark.parametrize("pool_size", [1, 2, 3])
def test_concurrent_training_is_serial_training(pool_size: int, seed: int | None) -> None:
    model, lanes = concurrent(make(), seed, pool_size)
    steps: list[int] = []

    def note(model: ScalableGNN, i: int) -> None:
        assert lanes.host_waits == 0
        steps.append(len(lanes.operations))

    assert_same(train(model, note), train(make()))
    assert lanes.races() == []
    assert model.pool is not None and len(model.pool._buffers) == pool_size
    # A step of 4 layers moves 3 tables; one in the middle of an epoch leaves the pulls of the next one behind.
    names = [operation.name for operation in lanes.operations]
    assert names[: steps[0]].count("pull") == 3 + pool_size
    assert names.count("pull") == names.count("push") == 3 * len(steps)  # none in vain


@pytest.mark.parametrize("dtype", [torch.float16, torch.int8])
def test_half_and_int8_tables_and_widths(dtype: torch.dtype) -> None:
    options = {"widths": [8, 16, 4], "history_dtype": dtype}
    model, lanes = concurrent(make(**options), 0)
    assert_same(train(model), train(make(**options)))
    assert lanes.races() == []
    arrived = {operation.writes[0].dtype for operation in lanes.operations[6:] if operation.name == "pull"}
    assert arrived == {torch.float32}  # converted on the way, once the type of the layers is known


def evaluate(model: ScalableGNN, i: int) -> None:
    """Exact inference, which makes all histories anew."""
    model.eval()
    model(loader=EvalSubgraphLoader(DATA, PTR, 4))
    model.train()


def forget(model: ScalableGNN, i: int) -> None:
    model.histories[i % 3].reset_parameters()


def write(model: ScalableGNN, i: int) -> None:
    model.histories[1].emb[7:30] += 0.5


def push(model: ScalableGNN, i: int) -> None:
    model.histories[i % 3].push(torch.full((2, 16), float(i)), n_id=torch.tensor([3, 60]))


def reload(model: ScalableGNN, i: int) -> None:
    state = copy.deepcopy(model.state_dict())
    state["histories.0.emb"] *= 0.5
    model.load_state_dict(state)


def whole_graph(model: ScalableGNN, i: int) -> None:
    refresh(model.eval(), DATA)
    model.train()


def another_batch(model: ScalableGNN, i: int) -> None:
    """A batch that nobody has announced, twice."""
    batch = next(epoch(9))
    model(batch)
    model(batch)


def fail(model: ScalableGNN, i: int) -> None:
    """A step that ends in the middle."""
    hook = model.convs[1 + i % 3].register_forward_pre_hook(
        lambda *_: (_ for _ in ()).throw(MemoryError("device is full"))
    )
    with pytest.raises(MemoryError, match="device is full"):
        model(next(epoch(9)))
    hook.remove()


@pytest.mark.parametrize("between", [evaluate, forget, write, push, reload, whole_graph, another_batch, fail])
def test_whatever_happens_between_steps(between: Callable[[ScalableGNN, int], None]) -> None:
    expected = train(make(), between)
    for seed in (None, 0):
        model, lanes = concurrent(make(), seed)
        assert_same(train(model, between), expected)
        assert lanes.races() == []


def test_an_epoch_that_is_left_early() -> None:
    found = []
    for model in (make(), concurrent(make(), None)[0]):
        optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
        torch.manual_seed(5)
        losses = []
        for seed in range(3):
            for i, batch in enumerate(epoch(seed)):
                losses.append(step(model, optimizer, batch))
                if i == seed:
                    break
        found.append(losses + [history.emb for history in model.histories])
    assert_same(*found)


def test_the_host_reads_what_was_pushed() -> None:
    expected, model = make(), concurrent(make(), None)[0]
    for net in (expected, model):
        torch.manual_seed(0)
        net(next(epoch(0)))
    read = {
        "emb": lambda net: net.histories[0].emb,
        "pull": lambda net: net.histories[1].pull(),
        "state_dict": lambda net: net.state_dict()["histories.2.emb"],
        "copy": lambda net: copy.deepcopy(net).histories[2].emb,
    }
    for name, look in read.items():
        assert torch.equal(look(model), look(expected)), name
        torch.manual_seed(1)
        batch = next(epoch(1))
        model(batch)
        torch.manual_seed(1)
        expected(batch)


def test_buffers_are_sized_by_the_loader() -> None:
    model, lanes = concurrent(make(), None, embedding_dim=16)
    assert model.buffer_bytes == 0
    train(model)
    assert model.buffer_bytes == 3 * N * 16 * 4
    assert len(lanes.pull.made) == 3  # once and for all
    model, lanes = concurrent(make(), None, pool_bytes=2 * N * 16 * 4)
    assert_same(train(model), train(make()))
    assert 0 < model.buffer_bytes <= 2 * N * 16 * 4
    assert lanes.races() == []


def test_scaled_models() -> None:
    def scaled() -> ScalableGNN:
        torch.manual_seed(0)
        return scale(nn.GCN(8, 16, 4, 3, dropout=0.3), DATA)

    expected = train(scaled())
    for seed in (None, 0):
        model, lanes = concurrent(scaled(), seed)
        waits = lanes.host_waits
        assert_same(train(model), expected)
        assert lanes.races() == []
        # The first batch is compared with the tables; the rest is reading the state in the end.
        assert lanes.host_waits <= waits + 2 * 4


@pytest.mark.parametrize("option", [{"io": "parallel"}, {"pool_bytes": -1}, {"pool_size": -1}, {"tier": "disk"}])
def test_bad_options_are_errors_at_once(option: dict[str, object]) -> None:
    with pytest.raises(ValueError, match=r"io must be|pool_bytes must not|pool_size must be|tier must be"):
        make(**option)


def cast_histories(model: ScalableGNN, i: int) -> None:
    """Past the model, which does not learn of it."""
    model.histories.half().float()


def replace_a_history(model: ScalableGNN, i: int) -> None:
    model.histories[i % 3] = copy.deepcopy(model.histories[i % 3])


def write_unseen(model: ScalableGNN, i: int) -> None:
    """In ways that count no version."""
    model.histories[0].emb.data[:50] += 0.25
    model.histories[2].emb.numpy()[20:] -= 0.25


def assign(model: ScalableGNN, i: int) -> None:
    state = {key: value.clone() for key, value in model.state_dict().items() if key.startswith("histories")}
    state["histories.1.emb"] *= 0.5
    model.load_state_dict(state, assign=True, strict=False)


@pytest.mark.parametrize("between", [cast_histories, replace_a_history, write_unseen, assign])
def test_tables_that_change_behind_the_models_back(
    between: Callable[[ScalableGNN, int], None], monkeypatch: pytest.MonkeyPatch
) -> None:
    expected = train(make(), between)
    follow = Session.follow_parameters
    for seed in (None, 0):
        model, _ = concurrent(make(), seed)

        # On the CPU a model makes no pool by itself when a table has lost its own.
        def follow_and_use(net: Session, seed: int | None = seed) -> None:
            follow(net)
            if net._pool is None:
                net.use_pool(fake_pool(3, seed)[0])

        with monkeypatch.context() as patch:
            patch.setattr(Session, "follow_parameters", follow_and_use)
            found = train(model, between)
        assert_same(found, expected)


def test_buffers_hold_what_was_pushed() -> None:
    expected, model = make(), concurrent(make(), None)[0]
    for net in (expected, model):
        torch.manual_seed(0)
        net(next(epoch(0)))
    assert torch.equal(dict(model.named_buffers())["histories.2.emb"], expected.histories[2].emb)
