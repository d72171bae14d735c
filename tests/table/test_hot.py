"""Hot rows: training with them is training without, whatever happens to tables, and the table is asked for the others only."""

from __future__ import annotations

import contextlib
import copy
import pickle
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import test_schedule as schedule
import torch
import torch_geometric.nn as nn
from hypothesis import given
from hypothesis import strategies as st
from lanes import fake_pool
from nets import Net
from torch import Tensor
from twins import seeds

from torch_gas import (
    EvalSubgraphLoader,
    FileTier,
    History,
    Monitor,
    ScalableGNN,
    SubgraphLoader,
    _core,
    hot_nodes,
    scale,
)
from torch_gas.extensions.monitor.report import percent
from torch_gas.session.session import Session
from torch_gas.table import HotSet

N, DATA, PTR = schedule.N, schedule.DATA, schedule.PTR
HOT = 30


def loader(batch_size: int = 3, **kwargs: Any) -> SubgraphLoader:
    return SubgraphLoader(DATA, PTR, batch_size, **{"shuffle": True, "seed": 1, **kwargs})


def warm(model: ScalableGNN, number: int = HOT) -> ScalableGNN:
    """``model`` with hot rows."""
    model.keep_hot(hot_nodes(loader(), number))
    return model


# -- which nodes --------------------------------------------------------------------------------------------------------


def counted(batches: list[list[int]]) -> Tensor:
    """In how many halos of batches of these parts each node is, counted edge by edge."""
    src, dst = DATA.edge_index
    part = torch.bucketize(torch.arange(N), PTR, right=True) - 1
    counts = torch.zeros(N, dtype=torch.int64)
    for parts in batches:
        inside = torch.isin(part, torch.tensor(parts))
        counts[src[inside[dst] & ~inside[src]].unique()] += 1
    return counts


@pytest.mark.parametrize(
    ("options", "batches"),
    [
        ({}, [[part] for part in range(10)]),  # parts meet at random
        ({"shuffle": False, "seed": None}, [[0, 1, 2], [3, 4, 5], [6, 7, 8], [9]]),
    ],
)
def test_hot_nodes_are_in_the_most_halos(options: dict[str, Any], batches: list[list[int]]) -> None:
    counts = counted(batches)
    found = hot_nodes(loader(**options))
    assert found.unique().numel() == found.numel() == int((counts > 0).sum())
    assert counts[found].tolist() == sorted(counts[counts > 0].tolist(), reverse=True)
    assert torch.equal(hot_nodes(loader(**options), 7), found[:7])
    assert hot_nodes(loader(), 0).numel() == 0


@pytest.mark.parametrize("number", [-1, 1.5, True])
def test_a_bad_number_is_an_error(number: Any) -> None:
    with pytest.raises((TypeError, ValueError), match="hot_nodes: number must"):
        hot_nodes(loader(), number)


@given(
    seed=seeds,
    num_hot=st.integers(0, 20),
    num_ids=st.integers(0, 40),
    dtype=st.sampled_from([torch.int32, torch.int64]),
)
def test_a_split_says_where_rows_are(seed: int, num_hot: int, num_ids: int, dtype: torch.dtype) -> None:
    generator = torch.Generator().manual_seed(seed)
    table = torch.randn(20, 3, generator=generator)
    hot = torch.randperm(20, generator=generator)[:num_hot]
    nodes = HotSet(hot.to(dtype), 20)
    ids = torch.randint(20, (num_ids,), generator=generator).to(dtype)
    split = nodes.split(ids)
    rows = torch.full((num_ids, 3), float("nan"))
    rows[split.hot] = table[hot.sort().values][split.slots.long()]
    rows[split.cold] = table[split.cold_ids.long()]
    assert torch.equal(rows, table[ids.long()])
    assert torch.equal(nodes.holds(ids), torch.isin(ids, hot))
    assert split.hot.numel() == int(nodes.holds(ids).sum())


def test_a_split_is_found_once_until_ids_change() -> None:
    nodes, ids = HotSet(torch.tensor([4, 2]), 6), torch.tensor([0, 2, 3, 4, 5, 1])
    first = nodes.split(ids[1:])
    assert nodes.split(ids[1:]).cold_ids is first.cold_ids  # of another tensor in the same memory
    assert nodes.split(ids[1:4]).cold_ids.tolist() == [3]
    assert nodes.split(ids[1::2]).cold_ids.tolist() == [1]  # which begins there too
    ids[1] = 5
    assert nodes.split(ids[1:]).cold_ids.tolist() == [5, 3, 5, 1]


# -- the same training --------------------------------------------------------------------------------------------------

MODELS: dict[str, Callable[..., ScalableGNN]] = {
    "Net": partial(Net, N, num_layers=4, dropout=0.3),
    "widths": partial(Net, N, [8, 16, 4], num_layers=4),
    "half": partial(Net, N, history_dtype=torch.float16),
    "bfloat16": partial(Net, N, history_dtype=torch.bfloat16),
    "int8": partial(Net, N, history_dtype=torch.int8),
    "double": lambda **kwargs: Net(N, history_dtype=torch.float64, **kwargs).double(),
    "one layer": partial(Net, N, [], num_layers=1),
    "scaled": lambda **kwargs: scale(nn.GCN(8, 16, 3, 3, dropout=0.3), DATA, **kwargs),
    "scaled GAT": lambda **kwargs: scale(nn.GAT(8, 16, 3, 3, heads=2), DATA, **kwargs),
}


def epochs(model: ScalableGNN, autocast: bool = False, **kwargs: Any) -> list[Tensor]:
    """Losses of three epochs, the output by layer-wise inference, and what the model holds in the end."""
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    dtype = next(model.parameters()).dtype
    torch.manual_seed(5)
    found = []
    for _ in range(3):
        for batch in loader(**kwargs):
            batch.data.x = batch.data.x.to(dtype)
            with torch.autocast("cpu", torch.bfloat16, enabled=autocast):
                out = model(batch)
            loss = torch.nn.functional.cross_entropy(out.float(), batch.data.y[: batch.batch_size])
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            found.append(loss.detach())
    data = copy.copy(DATA)
    data.x = data.x.to(dtype)
    found.append(model.eval()(loader=EvalSubgraphLoader(data, PTR, 4)))
    return [*found, *(value.clone() for value in model.state_dict().values())]


def make(name: str, **kwargs: Any) -> ScalableGNN:
    torch.manual_seed(0)
    return MODELS[name](**kwargs)


@pytest.mark.parametrize(
    ("name", "options"),
    [
        *((name, {"prefetch": 0}) for name in MODELS),
        ("Net", {"prefetch": 2, "batch_size": 2}),
        ("Net", {"autocast": True}),
        ("half", {"autocast": True}),
        ("scaled", {"autocast": True, "prefetch": 2}),
    ],
    ids=str,
)
def test_training_is_the_same(name: str, options: dict[str, Any], tmp_path: Path) -> None:
    expected = epochs(make(name), **options)
    schedule.assert_same(epochs(warm(make(name)), **options), expected)
    schedule.assert_same(epochs(warm(make(name, tier=FileTier(tmp_path))), **options), expected)


@pytest.mark.parametrize("number", [0, 1, N])
def test_none_and_all(number: int) -> None:
    schedule.assert_same(epochs(warm(make("Net"), number)), epochs(make("Net")))


def recopy(model: ScalableGNN, i: int) -> None:
    model.histories = pickle.loads(pickle.dumps(model.histories))


def other_nodes(model: ScalableGNN, i: int) -> None:
    model.keep_hot(None if i % 2 else torch.arange(i, N, 4))


def read(model: ScalableGNN, i: int) -> None:
    """Rows that are both hot and not, of which nothing may change."""
    history = model.histories[i % 3]
    assert torch.equal(history.pull(torch.arange(N)), history.emb)


BETWEEN: list[Callable[[ScalableGNN, int], None]] = [
    schedule.evaluate, schedule.forget, schedule.write, schedule.push, schedule.reload, schedule.whole_graph,
    schedule.another_batch, schedule.fail, schedule.cast_histories, schedule.write_unseen, recopy, other_nodes, read,
]  # fmt: skip
IN_MEMORY = (schedule.cast_histories, schedule.replace_a_history, schedule.assign, recopy)


@pytest.mark.parametrize("between", [*BETWEEN, schedule.replace_a_history, schedule.assign])
def test_whatever_happens_between_steps(between: Callable[[ScalableGNN, int], None], tmp_path: Path) -> None:
    def run(tier: FileTier | None, hot: bool) -> list[Tensor]:
        model = schedule.make(tier=tier)
        return schedule.train(warm(model) if hot else model, between)

    expected = run(None, hot=False)
    schedule.assert_same(run(None, hot=True), expected)
    if between not in IN_MEMORY:
        schedule.assert_same(run(FileTier(tmp_path), hot=True), expected)


@contextlib.contextmanager
def asked(model: ScalableGNN) -> Iterator[list[Tensor]]:
    """Ids of the rows that tables are asked for by pulls."""
    found: list[Tensor] = []
    for history in model.histories:

        def note(ids: Tensor, out: Tensor, read: Callable[..., None] = history.table.base.read) -> None:
            found.append(ids)
            read(ids, out)

        history.table.base.read = note
    yield found
    for history in model.histories:
        del history.table.base.read


@pytest.mark.parametrize("tier", ["host", "file"])
def test_tables_are_asked_for_cold_rows_only(tier: str, tmp_path: Path) -> None:
    model = warm(schedule.make(tier=FileTier(tmp_path) if tier == "file" else tier))
    hot = hot_nodes(loader(), HOT)
    with asked(model) as found:
        optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
        batches = list(schedule.epoch(0))
        for batch in batches:
            schedule.step(model, optimizer, batch)
            for history in model.histories:
                history.commit()  # which changes no row
    halos = [batch.n_id[batch.batch_size :] for batch in batches for _ in model.histories]
    loads = [ids for ids in found if torch.equal(ids, hot.sort().values)]
    assert len(loads) == len(model.histories)  # once, in spite of pushes and commits
    pulls = [ids for ids in found if not torch.equal(ids, hot.sort().values)]
    assert [ids.tolist() for ids in pulls] == [halo[~torch.isin(halo, hot)].tolist() for halo in halos]
    assert [history.table.hot_bytes for history in model.histories] == [HOT * 16 * 4] * 3


def test_files_are_read_ahead_for_cold_rows(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    model, found = warm(schedule.make(tier=FileTier(tmp_path))), []
    for history in model.histories:
        monkeypatch.setattr(history.table.base, "read_ahead", found.append)
    for batch in schedule.epoch(0):
        model(batch)
    assert len(found) > 0 and not torch.isin(torch.cat(found), hot_nodes(loader(), HOT)).any()


def test_rows_that_a_full_disk_lost_are_not_hot(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    history = History(6, 2, tier=FileTier(tmp_path / "rows"))
    history.keep_hot(HotSet(torch.tensor([1, 4]), 6))
    history.push(torch.ones(6, 2), torch.arange(6))
    assert torch.equal(history.pull(torch.arange(6)), torch.ones(6, 2))

    def fail(*args: Any) -> None:
        scatter_rows(*args)
        raise OSError("no space left on device")

    scatter_rows = _core.scatter_rows
    with monkeypatch.context() as patch:
        patch.setattr(_core, "scatter_rows", fail)
        with pytest.raises(OSError, match="no space left"):
            history.push(torch.full((2, 2), 2.0), torch.tensor([0, 1]))
    assert history.pull(torch.arange(6))[:, 0].tolist() == [0, 0, 1, 1, 1, 1]


# -- transfers of a GPU -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("between", "seed"), [(schedule.forget, None), *((between, 0) for between in BETWEEN)])
def test_transfers_may_take_any_time(
    between: Callable[[ScalableGNN, int], None], seed: int | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    expected = schedule.train(schedule.make(), between)
    follow = Session.follow_parameters
    pools = []

    def follow_and_use(net: Session) -> None:  # on the CPU a model makes no pool by itself
        follow(net)
        if net._pool is None:
            pools.append(fake_pool(3, seed))
            net.use_pool(pools[-1][0])

    monkeypatch.setattr(Session, "follow_parameters", follow_and_use)
    schedule.assert_same(schedule.train(warm(schedule.make()), between), expected)
    assert all(lanes.races() == [] for _, lanes in pools)


def test_the_host_waits_for_no_hot_row() -> None:
    model, lanes = schedule.concurrent(warm(schedule.make()), None)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    batches = list(schedule.epoch(0))
    schedule.step(model, optimizer, batches[0])  # brings them there
    waits, first = lanes.host_waits, len(lanes.operations)
    for batch in batches[1:]:
        schedule.step(model, optimizer, batch)
    assert lanes.host_waits == waits
    moved = [operation.writes[0].size(0) for operation in lanes.operations[first:] if operation.name == "pull"]
    cold = hot_nodes(loader(), HOT)
    halos = [batch.n_id[batch.batch_size :] for batch in batches]
    assert sum(moved) <= 3 * sum(int((~torch.isin(halo, cold)).sum()) for halo in halos)
    assert len(moved) > 0


def test_scaled_models_with_transfers() -> None:
    def scaled() -> ScalableGNN:
        torch.manual_seed(0)
        return scale(nn.GCN(8, 16, 4, 3, dropout=0.3), DATA)

    model, lanes = schedule.concurrent(warm(scaled()), 0)
    schedule.assert_same(schedule.train(model), schedule.train(scaled()))
    assert lanes.races() == []


def test_a_monitor_sees_how_many_rows_are_hot() -> None:
    model = warm(schedule.make())
    batches = list(schedule.epoch(0))
    with Monitor(model, sample=N, every=1, limits=None) as monitor:
        for batch in batches:
            model(batch)
    halo = torch.cat([batch.n_id[batch.batch_size :] for batch in batches])
    share = float(torch.isin(halo, hot_nodes(loader(), HOT)).float().mean())
    assert [layer.hot for layer in monitor.statistics()] == pytest.approx([share] * 3)
    head, line, *_ = monitor.table().splitlines()[1:]
    assert head.endswith("hot") and line.endswith(percent(share))
    monitor.reset()
    model.keep_hot(None)
    model(batches[0])
    assert [layer.hot for layer in monitor.statistics()] == []
    with monitor:
        model(batches[0])
    assert [layer.hot for layer in monitor.statistics()] == [0.0] * 3
    assert "hot" not in monitor.table()


# -- which are kept -----------------------------------------------------------------------------------------------------


def test_as_many_are_kept_as_fit() -> None:
    model = Net(N, [8, 16, 4], num_layers=4, history_dtype=torch.float16)
    n_id = hot_nodes(loader())
    assert model.keep_hot(n_id, max_bytes=10 * (8 + 16 + 4) * 2 + 5) == 10
    assert [history.num_hot(torch.arange(N)) for history in model.histories] == [10] * 3
    assert model.histories[0].num_hot(n_id[:10]) == 10
    assert model.keep_hot(n_id) == n_id.numel()
    assert model.keep_hot(None) == 0
    assert model.histories[0].num_hot(n_id) == 0
    assert Net(N, [], num_layers=1).keep_hot(n_id, max_bytes=0) == 0


@pytest.mark.parametrize(
    ("n_id", "max_bytes", "error", "message"),
    [
        (torch.tensor([0.0]), None, TypeError, "keep_hot: n_id must be a one-dimensional integer tensor"),
        (torch.tensor([[0]]), None, TypeError, "keep_hot: n_id must be a one-dimensional integer tensor"),
        ([0, 1], None, TypeError, r"keep_hot: n_id must be Tensor \| None, but is list"),
        (torch.tensor([0, N]), None, IndexError, rf"keep_hot: n_id goes from 0 to {N}, but must be in 0 .. {N - 1}"),
        (torch.tensor([5, -1]), None, IndexError, "keep_hot: n_id goes from -1 to 5"),
        (torch.tensor([5, 3, 5]), None, ValueError, "keep_hot: n_id holds an id twice"),
        (torch.tensor([5]), -1, ValueError, "keep_hot: max_bytes must not be negative, but is -1"),
    ],
)
def test_bad_ids_are_errors_and_change_nothing(n_id: Any, max_bytes: Any, error: type[Exception], message: str) -> None:
    model = warm(Net(N))
    with pytest.raises(error, match=message):
        model.keep_hot(n_id, max_bytes)
    assert model.histories[0].num_hot(torch.arange(N)) == HOT


def test_tables_that_other_processes_write_to_are_refused() -> None:
    model = warm(Net(N))
    with pytest.raises(ValueError, match=r"keep_hot: hot rows cannot follow .*; call keep_hot\(None\)"):
        model.share_memory()
    model.keep_hot(None)
    model.share_memory()
    with pytest.raises(ValueError, match="keep_hot: hot rows cannot follow what other processes write"):
        warm(model)


def test_a_scaled_model_that_was_not_tried_out_is_refused() -> None:
    model = scale(nn.GraphSAGE(8, 16, 3, 3), num_nodes=N)
    with pytest.raises(RuntimeError, match="has not been called on a batch yet"):
        model.keep_hot(torch.arange(5))


def test_ids_out_of_range_are_errors_with_hot_rows_too() -> None:
    history = History(6, 2)
    history.keep_hot(HotSet(torch.tensor([1]), 6))
    for ids in ([6], [-1], [1, 6]):
        with pytest.raises(IndexError):
            history.pull(torch.tensor(ids))


# -- ids that are written to --------------------------------------------------------------------------------------------


def warm_history() -> History:
    history = History(10, 2)
    history.push(torch.arange(20.0).view(10, 2))
    history.keep_hot(HotSet(torch.arange(0, 10, 2), 10))
    return history


@pytest.mark.parametrize("write", ["numpy", "data", "inference mode"])
def test_ids_that_are_written_to(write: str) -> None:
    history = warm_history()
    with torch.inference_mode(write == "inference mode"):
        ids = torch.tensor([0, 1, 2])
        assert history.pull(ids)[:, 0].tolist() == [0, 2, 4]
        if write == "numpy":
            ids.numpy()[:] += 5
        else:
            (ids.data if write == "data" else ids).add_(5)
        assert history.pull(ids)[:, 0].tolist() == [10, 12, 14]
        ids.sub_(4)
        history.push(torch.full((3, 2), -1.0), ids)
    assert history.pull()[:, 0].tolist() == [0, -1, -1, -1, 8, 10, 12, 14, 16, 18]
    assert history.pull(torch.arange(10))[:, 0].tolist() == history.pull()[:, 0].tolist()


def test_ranges_that_are_written_to() -> None:
    history, offset = warm_history(), torch.tensor([0])
    history.push(torch.full((2, 2), -1.0), offset=offset, count=torch.tensor([2]))
    history.push(
        torch.full((4, 2), -2.0), offset=offset, count=torch.tensor([4])
    )  # the same tensor, and another length
    offset.numpy()[:] = 5
    history.push(torch.full((4, 2), -3.0), offset=offset, count=torch.tensor([4]))
    expected = [-2, -2, -2, -2, 8, -3, -3, -3, -3, 18]
    assert history.pull(torch.arange(10))[:, 0].tolist() == expected
