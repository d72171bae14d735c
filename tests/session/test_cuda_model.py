"""Models on a GPU, with histories there and in pinned host memory, against the CPU."""

from __future__ import annotations

import copy
import gc
import os
from collections.abc import Callable, Iterator
from typing import Any

import pytest
import torch
import torch_geometric.nn as nn
from graphs import FORMATS, adjacency, random_graph, to_format
from host_waits import refused_host_waits
from nets import Net, full_batch, refresh
from tiers import TIERS, where
from torch import Tensor

from torch_gas import EvalSubgraphLoader, SubData, SubgraphLoader, hot_nodes, scale
from torch_gas.graph.formats import all_tensors

pytestmark = pytest.mark.cuda

N = 400
PTR = torch.arange(0, N + 1, 40)


def on_device(batch: SubData) -> SubData:
    return batch.to("cuda")


def train(model: Net, steps: int = 3, on_device: bool = False) -> list[Tensor]:
    """The losses of a few epochs of three parts a batch, always in the same order."""
    device = "cuda" if on_device else None
    loader = SubgraphLoader(random_graph(N, 4000), PTR, 3, shuffle=True, seed=0, device=device)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    losses = []
    for _ in range(steps):
        for batch in loader:
            batch = batch.to(model.device)
            out = model(batch)
            loss = torch.nn.functional.cross_entropy(out, batch.data.y[: batch.batch_size])
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            losses.append(loss.detach().cpu())
    return losses


def make(tier: str, **kwargs: Any) -> Net:
    torch.manual_seed(0)
    model = Net(N, num_layers=4, **{**kwargs, **where(tier)}).to("cuda")
    assert {history.tier for history in model.histories} == {tier}
    return model


def tables(model: Net) -> list[Tensor]:
    return [history.emb.cpu() for history in model.histories]


@pytest.fixture
def deterministic() -> Iterator[None]:
    """index_add_ on a GPU sums in any order unless told otherwise."""
    torch.use_deterministic_algorithms(True, warn_only=True)
    yield
    torch.use_deterministic_algorithms(False)


@pytest.mark.filterwarnings("ignore:.*deterministic")
@pytest.mark.parametrize("on_device", [False, True])
@pytest.mark.parametrize(
    "options",
    [
        {},
        {"pool_size": 1},
        {"pool_size": 1, "buffer_size": 7},
        {"pool_bytes": 5000},
        {"io": "serial"},
        {"tier": "host"},
        {"tier": "host", "io": "serial"},
        {"tier": "file"},
        {"tier": "file", "io": "serial"},
        {"huge_pages": False},
    ],
)
@pytest.mark.usefixtures("deterministic")
def test_histories_in_host_memory_train_bit_for_bit_like_those_on_the_device(
    options: dict[str, Any], on_device: bool
) -> None:
    models = [make("device"), make(options.get("tier", "pinned"), **options)]
    losses = [train(model, on_device=on_device) for model in models]
    assert losses[0] == losses[1]
    for left, right in zip(tables(models[0]), tables(models[1]), strict=True):
        assert torch.equal(left, right)
    for left, right in zip(models[0].histories, models[1].histories, strict=True):
        assert torch.equal(left.age.cpu(), right.age.cpu())


@pytest.mark.filterwarnings("ignore:.*deterministic")
@pytest.mark.parametrize("dtype", [None, torch.float16, torch.int8])
@pytest.mark.parametrize("io", ["concurrent", "serial"])
@pytest.mark.parametrize("tier", ["pinned", "host", "file"])
@pytest.mark.usefixtures("deterministic")
def test_hot_rows_on_the_gpu_change_no_bit(tier: str, io: str, dtype: torch.dtype | None) -> None:
    models = [make(tier, io=io, history_dtype=dtype) for _ in range(2)]
    n_id = hot_nodes(SubgraphLoader(random_graph(N, 4000), PTR, 3, shuffle=True), 100)
    free = torch.cuda.memory_allocated()
    models[1].keep_hot(n_id)
    losses = [train(model) for model in models]
    assert losses[0] == losses[1]
    for left, right in zip(tables(models[0]), tables(models[1]), strict=True):
        assert torch.equal(left, right)
    for history in models[1].histories:
        assert torch.equal(history.pull(n_id.sort().values), history.pull()[n_id.sort().values.to("cuda")])
    assert torch.cuda.memory_allocated() >= free + sum(history.table.hot_bytes for history in models[1].histories)


def test_histories_on_the_gpu_need_no_hot_rows() -> None:
    with pytest.raises(ValueError, match="keep_hot: the history lies on a GPU, where all its rows are"):
        make("device").keep_hot(torch.arange(5))


def test_a_file_that_fails_is_an_error_of_the_next_use() -> None:
    model = make("file")
    train(model)
    history = model.histories[0]
    os.truncate(history.table.path, 4096)  # rows end too early, which a host function meets
    with pytest.raises(
        OSError, match=r"rows could not be moved in an earlier step \(pread: the file ends.*reset_parameters"
    ):
        train(model)
        history.pull()
    history.reset_parameters()
    train(model)
    assert (history.age >= 0).all()


@pytest.mark.parametrize("tier", TIERS)
def test_training_follows_the_cpu(tier: str) -> None:
    torch.manual_seed(0)
    expected = train(Net(N, num_layers=4))
    torch.testing.assert_close(train(make(tier)), expected, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("fmt", FORMATS)
@pytest.mark.parametrize("tier", TIERS)
def test_batches_and_inference_equal_full_batch(tier: str, fmt: str) -> None:
    data = to_format(random_graph(N, 4000), fmt)
    model = make(tier).eval()
    graph = copy.copy(data).to("cuda")
    expected = full_batch(model, graph)
    out = model(loader=EvalSubgraphLoader(data, PTR, 3))
    torch.testing.assert_close(out, expected.cpu(), rtol=1e-4, atol=1e-5)
    refresh(model, graph)
    for batch in SubgraphLoader(data, PTR, 3, shuffle=True):
        rows = batch.n_id[: batch.batch_size]
        torch.testing.assert_close(model(on_device(batch)).detach().cpu(), expected.cpu()[rows], rtol=1e-4, atol=1e-5)


def test_ids_on_the_device_without_offsets() -> None:
    """As PyGAS calls a model whose histories are on the device: (batch_size, n_id) alone."""
    data = random_graph(N, 4000)
    model = make("device").eval()
    expected = refresh(model, copy.copy(data).to("cuda"))
    for batch, batch_size, n_id, _, _ in SubgraphLoader(data, PTR, 3):
        batch = batch.to("cuda")
        out = model(batch.x, adjacency(batch), batch_size, n_id.to("cuda"))
        torch.testing.assert_close(out, expected[n_id[:batch_size].to("cuda")], rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_tables_in_pinned_memory(dtype: torch.dtype) -> None:
    model = make("pinned", history_dtype=dtype)
    losses = torch.stack(train(model))
    assert {table.dtype for table in tables(model)} == {dtype}
    torch.testing.assert_close(losses, torch.stack(train(make("pinned"))), rtol=2e-2, atol=2e-2)


@pytest.mark.parametrize("tier", ["device", "pinned", "host"])
def test_int8_tables(tier: str) -> None:
    model = make(tier, history_dtype=torch.int8)
    losses = torch.stack(train(model))
    assert {table.dtype for table in tables(model)} == {torch.int8}
    torch.testing.assert_close(losses, torch.stack(train(make(tier))), rtol=2e-2, atol=2e-2)


def test_state_moves_between_tiers_and_devices() -> None:
    model = make("pinned")
    train(model)
    other = make("device")
    other.load_state_dict(model.state_dict())
    twin = copy.deepcopy(model)
    assert train(twin, 1)  # pinned again by the call itself
    twin.load_state_dict(model.state_dict())
    assert {history.tier for history in twin.to("cuda").histories} == {"pinned"}
    back = copy.deepcopy(model).cpu()
    assert {history.tier for history in back.histories} == {"host"}
    for table in (tables(other), tables(twin), tables(back)):
        for left, right in zip(table, tables(model), strict=True):
            assert torch.equal(left, right)
    assert train(twin, 1) != train(make("pinned"), 1)


def test_an_exception_in_a_step_leaves_the_next_one_usable() -> None:
    model = make("pinned")
    data = random_graph(N, 4000)
    batch = on_device(next(iter(SubgraphLoader(data, PTR, 3))))
    hook = model.convs[2].register_forward_pre_hook(lambda *_: (_ for _ in ()).throw(RuntimeError("out of memory")))
    with pytest.raises(RuntimeError, match="out of memory"):
        model(batch)
    hook.remove()
    assert model(batch).isfinite().all()


@pytest.mark.parametrize("tier", TIERS)
@pytest.mark.parametrize("scaled_first", [True, False])
@pytest.mark.parametrize(
    "make_plain",
    [
        lambda: nn.GCN(8, 16, 3, 3, norm="batch_norm", jk="cat"),
        lambda: nn.GAT(8, 16, 2, 3, heads=2),
        lambda: nn.Sequential("x, edge_index", [(nn.ChebConv(8, 3, K=3, normalization=None), "x, edge_index -> x")]),
        lambda: nn.Sequential("x, edge_index", [(nn.TAGConv(8, 3), "x, edge_index -> x")]),
    ],
)
def test_scaled_models(make_plain: Callable[[], torch.nn.Module], scaled_first: bool, tier: str) -> None:
    torch.manual_seed(0)
    data, plain = random_graph(N, 4000), make_plain()
    graph = copy.copy(data).to("cuda")
    model = scale(plain if scaled_first else plain.to("cuda"), data, **where(tier)).to("cuda").eval()
    assert {history.tier for history in model.histories} == {tier}
    expected = plain(graph.x, graph.edge_index).detach()
    out = model(loader=EvalSubgraphLoader(data, PTR, 3), device="cuda")
    torch.testing.assert_close(out, expected, rtol=1e-4, atol=1e-5)
    model.train()
    for batch in SubgraphLoader(data, PTR, 3, shuffle=True):
        model(on_device(batch)).square().sum().backward()
    expected = model.eval()(graph).detach()  # batch norm has moved on
    for batch in SubgraphLoader(data, PTR, 3, shuffle=True):
        rows = batch.n_id[: batch.batch_size].to("cuda")
        torch.testing.assert_close(model(on_device(batch)), expected[rows], rtol=1e-4, atol=1e-5)


def test_device_memory_does_not_follow_the_graph() -> None:
    """Peak memory of a step on batches of one size, for a graph of n and of 16 n nodes."""
    peaks = []
    for copies in (1, 16):
        small = random_graph(N, 4000)
        offsets = torch.arange(copies).repeat_interleave(small.num_edges) * N
        data = copy.copy(small)
        data.edge_index = small.edge_index.repeat(1, copies) + offsets
        data.x, data.y = small.x.repeat(copies, 1), small.y.repeat(copies)
        model = Net(N * copies, num_layers=3).to("cuda")
        batches = SubgraphLoader(data, torch.arange(0, N * copies + 1, 40), 3)
        torch.cuda.synchronize()
        torch.cuda.reset_peak_memory_stats()
        before = torch.cuda.memory_allocated()
        for batch, _ in zip(batches, range(5), strict=False):
            model(on_device(batch)).sum().backward()
        peaks.append(torch.cuda.max_memory_allocated() - before)
        del model
    assert peaks[1] <= 1.1 * peaks[0]


def step(model: torch.nn.Module, batch: SubData, optimizer: torch.optim.Optimizer) -> None:
    loss = torch.nn.functional.cross_entropy(model(batch), batch.data.y[: batch.batch_size])
    optimizer.zero_grad()
    loss.backward()
    optimizer.step()


@pytest.mark.filterwarnings("ignore:Synchronization debug mode:UserWarning")
@pytest.mark.parametrize("tier", TIERS)
def test_the_host_waits_for_nothing_inside_a_step(tier: str) -> None:
    data = random_graph(N, 4000)
    models = [make(tier), scale(nn.GCN(8, 16, 3, 3, add_self_loops=False), data, **where(tier)).to("cuda")]
    loader = SubgraphLoader(data, PTR, 3, shuffle=True, seed=0, device="cuda")
    for model in models:
        assert {history.tier for history in model.histories} == {tier}
        optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
        for batch in loader:  # streams and buffers are made
            step(model, batch, optimizer)
        with refused_host_waits():
            for batch in loader:
                step(model, batch, optimizer)


@pytest.mark.parametrize("fmt", FORMATS)
def test_a_loader_brings_batches_to_the_device(fmt: str) -> None:
    data = to_format(random_graph(N, 4000), fmt)
    here = list(SubgraphLoader(data, PTR, 3))
    for workers in (0, 1):
        there = list(SubgraphLoader(data, PTR, 3, device="cuda", num_workers=workers))
        assert len(there) == len(here) == 4
        for left, right in zip(here, there, strict=True):
            assert right.data.x.is_cuda and adjacency(right.data).device.type == "cuda"
            assert right.n_id.device.type == right.offset.device.type == "cpu"
            torch.testing.assert_close(right.data.x.cpu(), left.data.x, rtol=0, atol=0)
            for a, b in zip(all_tensors(adjacency(left.data)), all_tensors(adjacency(right.data)), strict=True):
                assert b.is_cuda and torch.equal(a, b.cpu())
            assert right.record.num_nodes == N and right.record.digest == left.record.digest


@pytest.mark.usefixtures("deterministic")
@pytest.mark.filterwarnings("ignore:.*deterministic")
def test_two_models_at_a_time_do_not_disturb_each_other() -> None:
    expected = train(make("pinned"))
    models = [make("pinned"), make("host")]
    optimizers = [torch.optim.SGD(model.parameters(), lr=0.1) for model in models]
    losses: list[list[Tensor]] = [[], []]
    loader = SubgraphLoader(random_graph(N, 4000), PTR, 3, shuffle=True, seed=0, device="cuda")
    for _ in range(3):
        for batch in loader:
            for model, optimizer, found in zip(models, optimizers, losses, strict=True):
                loss = torch.nn.functional.cross_entropy(model(batch), batch.data.y[: batch.batch_size])
                optimizer.zero_grad()
                loss.backward()
                optimizer.step()
                found.append(loss.detach().cpu())
    assert losses == [expected, expected]


def test_steps_on_another_stream() -> None:
    """Which is entered around the loop: batches are then brought for it, and their memory is used anew only behind it."""
    model = make("pinned").eval()
    loader = SubgraphLoader(random_graph(N, 4000), PTR, 3, device="cuda")
    expected = [model(batch) for batch in loader]
    stream = torch.cuda.Stream()
    stream.wait_stream(torch.cuda.default_stream())
    with torch.cuda.stream(stream):
        out = []
        for batch in loader:
            torch.cuda._sleep(10_000_000)  # batches go before they are read
            out.append(model(batch))
    torch.cuda.synchronize()
    for left, right in zip(out, expected, strict=True):
        torch.testing.assert_close(left, right, rtol=1e-5, atol=1e-6)


def test_pinned_tables_take_a_page_more_and_are_freed() -> None:
    model = make("pinned")
    table = model.histories[0].table.storage
    assert table.is_pinned() and table.untyped_storage().nbytes() == N * 16 * 4 + 4096
    train(model, 1)
    del model
    gc.collect()
    assert not table.is_pinned()


def test_a_capture_is_refused() -> None:
    model = make("pinned")
    batch = next(iter(SubgraphLoader(random_graph(N, 4000), PTR, 3, device="cuda")))
    model(batch)
    torch.cuda.synchronize()
    graph, x = torch.cuda.CUDAGraph(), torch.zeros(4, device="cuda")
    with torch.cuda.graph(graph):
        x += 1
        with pytest.raises(RuntimeError, match="a step cannot be captured as a whole"):
            model(batch)
    assert model(batch).isfinite().all()


def test_buffers_are_reported_and_bounded() -> None:
    model, bounded = make("pinned"), make("pinned", pool_bytes=2 * N * 16 * 4)
    assert model.buffer_bytes == 0
    for net in (model, bounded):
        train(net, 1, on_device=True)
    assert 0 < bounded.buffer_bytes <= 2 * N * 16 * 4 < model.buffer_bytes <= 3 * N * 16 * 4


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_mixed_precision(dtype: torch.dtype) -> None:
    model = make("pinned")
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    scaler = torch.amp.GradScaler("cuda", enabled=dtype == torch.float16)
    losses = []
    for batch in SubgraphLoader(random_graph(N, 4000), PTR, 3, shuffle=True, seed=0, device="cuda"):
        with torch.autocast("cuda", dtype):
            loss = torch.nn.functional.cross_entropy(model(batch), batch.data.y[: batch.batch_size])
        optimizer.zero_grad()
        scaler.scale(loss).backward()
        scaler.step(optimizer)
        scaler.update()
        losses.append(loss.detach().cpu())
    torch.testing.assert_close(losses, train(make("pinned"), 1), rtol=5e-2, atol=5e-2)
