"""plan(): its predictions are what training then takes, and it leaves model, data and random numbers as they were."""

from __future__ import annotations

import copy
import gc
import os
import weakref
from collections.abc import Callable
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
import torch
from graphs import FORMATS, to_format
from nets import Net, assert_same, tables
from torch import Tensor
from torch_geometric.data import Data
from torch_geometric.nn import GAT as PlainGAT
from torch_geometric.nn import DirGNNConv, Linear, SAGEConv

from torch_gas import (
    ExactGradient,
    FileTier,
    Monitor,
    Plan,
    ScalableGNN,
    SubgraphLoader,
    add_self_loops,
    gcn_norm,
    in_degree,
    metis,
    permute,
    plan,
    scale,
)
from torch_gas._util.units import format_bytes, parse_bytes
from torch_gas.datasets import synthetic
from torch_gas.extensions import regularization
from torch_gas.graph.formats import all_tensors
from torch_gas.models import GAT, GCN, GCN2, PNA
from torch_gas.planner.batches import sample
from torch_gas.planner.choice import _rooms
from torch_gas.planner.memory import Size, StepMemory, fit, free_memory
from torch_gas.planner.meter import metered
from torch_gas.planner.tiers import storages

pytestmark = [pytest.mark.filterwarnings("ignore:Sparse (CS|invariant):UserWarning")]

NUM_NODES, NUM_FEATURES, NUM_CLASSES = 4000, 32, 10
CPU = torch.device("cpu")


@pytest.fixture(scope="module")
def graph() -> Data:
    data = synthetic(NUM_NODES, NUM_CLASSES, NUM_FEATURES, avg_degree=10)
    return Data(x=data.x, y=data.y, edge_index=data.edge_index)


def gcn(data: Data, **kwargs: Any) -> ScalableGNN:
    return GCN(NUM_NODES, NUM_FEATURES, 64, NUM_CLASSES, 3, dropout=0.5, batch_norm=True, **kwargs)


MODELS: dict[str, tuple[Callable[[Data], Data], Callable[[Data], ScalableGNN]]] = {
    "GCN": (gcn_norm, gcn),
    "GAT": (add_self_loops, lambda data: GAT(NUM_NODES, NUM_FEATURES, 8, 8, NUM_CLASSES, 1, 3, dropout=0.5)),
    "PNA": (
        copy.copy,
        lambda data: PNA(
            NUM_NODES,
            NUM_FEATURES,
            16,
            NUM_CLASSES,
            2,
            ["mean", "max"],
            ["identity", "amplification"],
            in_degree(data.edge_index, NUM_NODES),
        ),
    ),
    "GCNII": (gcn_norm, lambda data: GCN2(NUM_NODES, NUM_FEATURES, 32, NUM_CLASSES, 8, 0.1, 0.5)),
    "scaled GAT": (copy.copy, lambda data: scale(PlainGAT(NUM_FEATURES, 64, 3, NUM_CLASSES, heads=4), data)),
}


def epoch(data: Data, ptr: Tensor, batch_size: int, make: Callable[[Data], ScalableGNN]) -> dict[str, float]:
    """What an epoch of training takes: Adam, over random batches, none of them made ahead."""
    torch.manual_seed(0)
    model = make(data).train()
    optimizer = torch.optim.Adam(model.parameters())
    held = 3 * sum(parameter.nbytes for parameter in model.parameters())
    loader = SubgraphLoader(data, ptr, batch_size, shuffle=True, seed=0, prefetch=0, cache_size=0)
    for _ in range(2):  # the optimiser has no state in the first
        rows = halo = steps = peak = 0
        for batch in loader:

            def step() -> None:
                out = model(batch)  # noqa: B023
                torch.nn.functional.cross_entropy(out, batch.data.y[: out.size(0)]).backward()  # noqa: B023
                optimizer.step()

            optimizer.zero_grad()
            inputs = sum(tensor.nbytes for tensor in all_tensors(batch.data.to_dict()))
            peak = max(peak, inputs + metered(step, CPU).peak)
            steps, rows, halo = steps + 1, rows + batch.batch_size, halo + batch.halo_size
    return {"peak": held + peak, "steps": steps, "rows": rows / steps, "halo": halo / steps}


@pytest.mark.parametrize("name", MODELS)
def test_predictions_are_what_training_takes(graph: Data, name: str) -> None:
    prepare, make = MODELS[name]
    data = prepare(graph)
    model = make(data)
    chosen = plan(data, model, device_memory="5 MiB", prefetch=0)
    assert chosen.fits and chosen.steps > 1 and chosen.peak_memory <= 0.9 * chosen.device_memory

    perm, ptr = metis(data, chosen.num_parts, log=False)
    took = epoch(permute(data, perm, log=False), ptr, chosen.batch_size, make)
    assert took["steps"] == chosen.steps
    assert took["peak"] == pytest.approx(chosen.peak_memory, rel=0.25) and took["peak"] <= chosen.device_memory
    assert took["rows"] == pytest.approx(chosen.batch_nodes, rel=0.01)
    assert took["halo"] / took["rows"] == pytest.approx(chosen.halo_ratio, rel=0.05)
    row_bytes = sum(history.emb[0].nbytes for history in model.histories)
    assert chosen.pushed_bytes == pytest.approx(row_bytes * took["rows"], rel=0.01)
    assert chosen.pulled_bytes == pytest.approx(row_bytes * took["halo"], rel=0.05)


def test_histories_and_tables_are_counted_wherever_they_are(graph: Data) -> None:
    """A history is a row of numbers and an age for each node."""
    chosen = plan(gcn_norm(graph), gcn(graph), device_memory="1 GiB")
    assert chosen.history_bytes == 2 * NUM_NODES * (64 * 4 + 8)
    half = plan(gcn_norm(graph), gcn(graph, history_dtype=torch.bfloat16), device_memory="1 GiB")
    assert half.history_bytes == 2 * NUM_NODES * (64 * 2 + 8)
    assert half.pushed_bytes == chosen.pushed_bytes / 2
    int8 = plan(gcn_norm(graph), gcn(graph, history_dtype=torch.int8), device_memory="1 GiB")
    assert int8.history_bytes == 2 * NUM_NODES * (64 + 4 + 8)
    assert int8.pushed_bytes == pytest.approx(chosen.pushed_bytes * 68 / 256)


def test_gradient_tables_are_counted(graph: Data) -> None:
    """They have an age for each row as well, and their type does not follow that of the histories."""
    data, ptr = gcn_norm(graph), torch.tensor([0, NUM_NODES])
    histories, gradients = 2 * NUM_NODES * (64 + 4 + 8), 2 * NUM_NODES * (64 * 4 + 8)
    model = gcn(data, history_dtype=torch.int8)
    assert plan(data, model, device_memory="5 MiB").history_bytes == histories
    exact = ExactGradient(model, SubgraphLoader(data, ptr))
    before = tables(model)
    room = f"{(histories + gradients) / 0.9 + 10} B"
    chosen = plan(data, model, device_memory="5 MiB", host_memory=room)
    assert [storage.nbytes for storage in chosen.storages] == [histories + gradients] and chosen.tier == "host"
    assert plan(data, model, device_memory="5 MiB", host_memory=f"{histories + gradients} B").tier == "file"
    assert_same(before, tables(model))
    exact.remove()
    assert plan(data, model, device_memory="5 MiB").history_bytes == histories
    wide = gcn(data).double()
    ExactGradient(wide, SubgraphLoader(data, ptr))
    row_bytes = (64 * 8, 64 * 2, 64 + 4)  # of a history
    assert [storage.nbytes for storage in storages(wide, {})] == [
        2 * NUM_NODES * (size + 64 * 8 + 16) for size in row_bytes
    ]


@pytest.mark.parametrize(
    ("host_memory", "tier", "better"),
    [
        ("10 MB", "host", None),
        ("2.35 MB", "host", None),  # 2,112,000 bytes are nine tenths of 2,346,667
        ("2.34 MB", "file", (torch.bfloat16, "host")),
        ("1.2 MB", "file", (torch.int8, "host")),  # 1,088,000 of bfloat16 are nine tenths of 1,208,889
        ("0.6 MB", "file", None),
    ],
)
def test_tiers_have_room(graph: Data, host_memory: str, tier: str, better: tuple[torch.dtype, str] | None) -> None:
    chosen = plan(gcn_norm(graph), gcn(graph), device_memory="5 MiB", host_memory=host_memory)
    numbers = 2 * NUM_NODES * 64
    ages = 2 * NUM_NODES * 8
    sizes = [4 * numbers + ages, 2 * numbers + ages, numbers + 2 * NUM_NODES * 4 + ages]
    assert [storage.nbytes for storage in chosen.storages] == sizes and chosen.history_bytes == sizes[0]
    assert [storage.dtype for storage in chosen.storages] == [None, torch.bfloat16, torch.int8]
    assert chosen.tier == tier and chosen.rooms == {"host": int(0.9 * parse_bytes(host_memory, ""))}
    faster = [(storage.dtype, storage.tier) for storage in chosen.storages if storage.tier != tier]
    assert (faster[0] if faster else None) == better
    text = str(chosen)
    assert ("in host memory: " if tier == "host" else "in files (tier=FileTier(folder)): ") in text
    assert f"{format_bytes(0.9 * parse_bytes(host_memory, ''))} in host memory are free" in text
    assert ("would fit" in text) == (better is not None)
    if better is not None:
        nbytes = next(storage.nbytes for storage in chosen.storages if storage.dtype == better[0])
        assert f"With history_dtype={better[0]} ({format_bytes(nbytes)}) they would fit in host memory." in text


def test_storage_types_that_take_no_less_are_left_out(graph: Data) -> None:
    half = plan(gcn_norm(graph), gcn(graph, history_dtype=torch.float16), device_memory="1 GiB")
    assert [storage.dtype for storage in half.storages] == [None, torch.int8]
    least = plan(gcn_norm(graph), gcn(graph, history_dtype=torch.int8), device_memory="1 GiB")
    assert [storage.dtype for storage in least.storages] == [None] and least.history_bytes == half.storages[1].nbytes


def test_a_gpu_has_room_beside_the_step(graph: Data) -> None:
    """Histories that lie there now are part of its peak, and would not be."""
    model = gcn(graph)
    there = sum(history.table.nbytes + history.pushed_at.nbytes for history in model.histories)

    class OnGpu:
        device = torch.device("cuda")
        histories = _stores = model.histories

    on_gpu: Any = OnGpu()
    assert _rooms(on_gpu, 100_000, 50_000, 0.1, 60_000) == {"device": 30_000, "pinned": 45_000}
    assert _rooms(on_gpu, 100_000, 50_000, 0.1, 95_000)["device"] == 0
    assert _rooms(on_gpu, 100_000, None, 0.1, 0)["pinned"] > 0.9 * there
    tiers = [storage.tier for storage in storages(on_gpu, {"device": there // 3, "pinned": there - 1})]
    assert tiers == ["file", "pinned", "device"]
    assert storages(on_gpu, {"device": there, "pinned": there})[0].tier == "device"


def test_by_default_histories_may_take_what_is_free(graph: Data) -> None:
    chosen = plan(gcn_norm(graph), gcn(graph), device_memory="5 MiB")
    assert chosen.tier == "host" and 0.5 * free_memory(CPU) < chosen.rooms["host"] < 1.5 * free_memory(CPU)


def test_histories_may_be_in_files_while_it_is_made(graph: Data, tmp_path: Path) -> None:
    options = {"device_memory": "5 MiB", "host_memory": "2 MB"}
    in_files = plan(gcn_norm(graph), gcn(graph, tier=FileTier(tmp_path)), **options)
    assert in_files.storages == plan(gcn_norm(graph), gcn(graph), **options).storages


def test_hot_rows_are_on_the_device(graph: Data) -> None:
    model = gcn(graph)
    without = plan(gcn_norm(graph), model, device_memory="1 GiB").step_memory.constant
    model.keep_hot(torch.arange(500))
    hot = plan(gcn_norm(graph), model, device_memory="1 GiB").step_memory.constant
    rows = 2 * 500 * 64 * 4
    assert 0.9 * rows < hot - without < 2 * rows  # with what puts them and the others together


def test_full_batch_where_it_fits(graph: Data) -> None:
    data, model = gcn_norm(graph), gcn(graph)
    chosen = plan(data, model, device_memory="1 GiB", prefetch=0)
    assert (chosen.num_parts, chosen.batch_size, chosen.steps, chosen.halo_ratio) == (1, 1, 1, 0)
    assert chosen.is_full_batch and "one batch" in str(chosen) and len(chosen.candidates) == 1
    took = epoch(data, torch.tensor([0, NUM_NODES]), 1, gcn)
    assert took["peak"] == pytest.approx(chosen.peak_memory, rel=0.25)
    perm, ptr = metis(data, 20, log=False)
    assert plan(permute(data, perm, log=False), model, ptr=ptr, device_memory="1 GiB").batch_size == 20


def test_more_memory_means_larger_batches(graph: Data) -> None:
    data, model = gcn_norm(graph), gcn(graph)
    plans = [plan(data, model, device_memory=f"{size} MiB") for size in (2, 4, 8, 16)]
    assert all(fewer.steps > more.steps for fewer, more in pairwise(plans))
    for each in plans:
        *others, last = each.candidates
        assert last.fits and not any(other.fits for other in others)
        assert (each.num_parts, each.batch_size, each.peak_memory) == (
            last.num_parts,
            last.batch_size,
            last.peak_memory,
        )


def test_parts_that_there_are(graph: Data) -> None:
    """The largest batches of them that fit are chosen, empty parts aside."""
    data = gcn_norm(graph)
    perm, ptr = metis(data, 24, log=False)
    data = permute(data, perm, log=False)
    ptr = torch.cat([ptr[:5], ptr[4:]])
    model = gcn(data)
    chosen = plan(data, model, ptr=ptr, device_memory="5 MiB")
    assert chosen.num_parts == 25 and 1 < chosen.batch_size < 24
    assert chosen.steps == -(-24 // chosen.batch_size) == len(SubgraphLoader(data, ptr, chosen.batch_size))
    limit = 0.9 * chosen.device_memory
    sizes = sample(SubgraphLoader(data, ptr), chosen.batch_size, ptr)
    assert max(map(chosen.step_memory, sizes)) == chosen.peak_memory <= limit
    more = sample(SubgraphLoader(data, ptr), chosen.batch_size + 1, ptr)
    assert max(map(chosen.step_memory, more)) > limit


@pytest.mark.parametrize("name", ["GCN", "scaled GAT"])
def test_nothing_is_changed(graph: Data, name: str) -> None:
    prepare, make = MODELS[name]
    data = prepare(graph)
    model = make(data)
    generator = torch.Generator().manual_seed(1)
    for history in model.histories:
        ids = torch.randperm(NUM_NODES, generator=generator)[:3000]
        history.push(torch.randn(3000, history.embedding_dim, generator=generator), ids)
        history.tick()
    model.train()
    next(model.children()).eval()
    modes = [module.training for module in model.modules()]
    weight = next(model.parameters())
    weight.grad = torch.ones_like(weight)
    before, gradient, random = tables(model), weight.grad, torch.get_rng_state()
    ages = [history.age.clone() for history in model.histories]
    held, environment = {key: value.clone() for key, value in data.to_dict().items()}, dict(os.environ)
    attributes = {key: value for key, value in vars(model).items() if key != "training"}

    first = plan(data, model, device_memory="8 MiB", host_memory="1 GiB")
    assert_same(before, tables(model))
    assert_same(dict(enumerate(ages)), dict(enumerate(history.age for history in model.histories)))
    assert_same(held, data.to_dict())
    assert weight.grad is gradient and bool((gradient == 1).all())
    assert all(parameter.grad is None for parameter in model.parameters() if parameter is not weight)
    assert torch.equal(random, torch.get_rng_state()) and environment == dict(os.environ)
    assert modes == [module.training for module in model.modules()]
    assert {key: value for key, value in vars(model).items() if key != "training"} == attributes
    assert plan(data, model, device_memory="8 MiB", host_memory="1 GiB") == first


def test_monitors_and_regularisation(graph: Data) -> None:
    """A monitor does not hear of the steps, and the penalty that a model computes takes part in them."""
    data, model = gcn_norm(graph), gcn(graph)
    monitor = Monitor(model)
    plain = plan(data, model, device_memory="1 GiB")
    assert monitor.steps == 0
    model.train()(next(iter(SubgraphLoader(data, torch.tensor([0, NUM_NODES])))))
    assert monitor.steps == 1
    regularization.LocalPerturbation().attach(model)
    penalised = plan(data, model, device_memory="1 GiB").step_memory
    assert penalised.batch_row > 1.1 * plain.step_memory.batch_row


def test_nothing_is_changed_by_an_error(graph: Data) -> None:
    model = gcn(graph).eval()
    before = tables(model)

    def broken(out: Tensor, batch: Any) -> Tensor:
        raise RuntimeError("mine")

    with pytest.raises(RuntimeError, match="mine"):
        plan(gcn_norm(graph), model, loss=broken)
    assert_same(before, tables(model))
    assert not model.training


@pytest.mark.parametrize("fmt", FORMATS)
def test_every_format(graph: Data, fmt: str) -> None:
    model = Net(NUM_NODES, 32, conv=SAGEConv)
    data = graph.clone()
    data.x = data.x[:, :8]
    data.y = data.y % 3
    chosen = plan(to_format(data, fmt), model, device_memory="3 MiB")
    like = plan(data, model, device_memory="3 MiB")
    assert not chosen.is_full_batch and chosen.peak_memory == pytest.approx(like.peak_memory, rel=0.3)
    if chosen.num_parts == like.num_parts:
        assert chosen.halo_ratio == like.halo_ratio


@pytest.mark.parametrize("mode", ["classes", "labels", "none", "own"])
def test_losses(graph: Data, mode: str) -> None:
    """Class ids, also where some are missing; several labels for each node; no labels; a loss of the user's."""
    data, model = gcn_norm(graph), gcn(graph)
    seen = []

    def loss(out: Tensor, batch: Any) -> Tensor:
        seen.append((out.shape, batch.batch_size, batch.data.y.size(0) - batch.batch_size))
        return out.sum()

    if mode == "classes":
        data.y = torch.where(torch.arange(NUM_NODES) % 2 == 0, data.y, -1)
    elif mode == "labels":
        data.y = torch.rand(NUM_NODES, NUM_CLASSES).round()
    elif mode == "none":
        del data.y
    chosen = plan(data, model, device_memory="8 MiB", loss=loss if mode == "own" else None)
    assert chosen.fits and (len(seen) > 0) == (mode == "own")
    assert all(shape == (batch_size, NUM_CLASSES) and halo >= 0 for shape, batch_size, halo in seen)


def test_both_directions(graph: Data) -> None:
    """A model that reads edges out of the batch is measured and counted with them."""

    class Directed(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.convs = torch.nn.ModuleList(DirGNNConv(SAGEConv(NUM_FEATURES, NUM_FEATURES)) for _ in range(2))

        def forward(self, x: Tensor, edge_index: Tensor) -> Tensor:
            return self.convs[1](self.convs[0](x, edge_index).relu(), edge_index)

    data = graph.clone()
    data.edge_index = data.edge_index[:, data.edge_index[0] < data.edge_index[1]]
    chosen = plan(data, scale(Directed(), data), device_memory="4 MiB", prefetch=0)
    perm, ptr = metis(data, chosen.num_parts, log=False)
    data = permute(data, perm, log=False)
    halos = {}
    for neighbors in ("in", "both"):
        loader = SubgraphLoader(data, ptr, chosen.batch_size, neighbors=neighbors, shuffle=True, seed=0)
        halos[neighbors] = sum(batch.halo_size for batch in loader) / NUM_NODES
    assert chosen.halo_ratio == pytest.approx(halos["both"], rel=0.05) and chosen.halo_ratio > 1.2 * halos["in"]


def test_optimiser_and_batches_made_ahead_are_counted(graph: Data) -> None:
    data, model = gcn_norm(graph), gcn(graph)
    parameters = sum(parameter.nbytes for parameter in model.parameters())

    def peak(**kwargs: Any) -> int:
        return plan(data, model, device_memory="1 GiB", **kwargs).peak_memory

    assert peak(prefetch=0) - peak(prefetch=0, optimizer_states=0) == pytest.approx(2 * parameters, abs=2)
    batch = sum(value.nbytes for value in data.to_dict().values())
    assert peak(prefetch=2) - peak(prefetch=0) == pytest.approx(2 * batch, rel=0.25)


def test_what_is_printed(graph: Data) -> None:
    chosen = plan(gcn_norm(graph), gcn(graph), device_memory="8 MiB")
    text = str(chosen)
    lines = text.splitlines()
    head = next(i for i, line in enumerate(lines) if line.split()[:1] == ["parts"])
    rows = lines[head + 1 : head + 1 + len(chosen.candidates)]
    assert all(row.endswith("does not fit") for row in rows[:-1]) and rows[-1].endswith("chosen")
    assert rows[-1].split()[:3] == [str(chosen.num_parts), str(chosen.batch_size), str(chosen.steps)]
    assert f"num_parts={chosen.num_parts}" in text and f"batch_size={chosen.batch_size}" in text
    assert "7.20 MiB, 90% of 8.00 MiB" in text and isinstance(chosen, Plan)
    with pytest.raises(AttributeError):
        chosen.num_parts = 3  # type: ignore[misc]


# -- what it is made of ------------------------------------------------------------------------------------------------


def test_batches_are_those_of_a_loader(graph: Data) -> None:
    """Counted in the user's order of nodes, they are what a loader makes of the permuted graph."""
    perm, ptr = metis(graph, 12, log=False)
    permuted = SubgraphLoader(permute(graph, perm, log=False), ptr)
    made = [(batch.batch_size, batch.halo_size, batch.data.num_edges) for batch in permuted]
    ours = sample(SubgraphLoader(graph, torch.tensor([0, NUM_NODES])), 1, ptr, perm)
    assert sorted(ours[:12]) == sorted(ours[12:24]) == sorted(made)
    assert set(sample(permuted, 12, ptr)) == {(NUM_NODES, 0, graph.num_edges)}


def test_meter() -> None:
    def run() -> list[Tensor]:
        kept = torch.empty(1000, dtype=torch.float32)
        torch.empty(5000, dtype=torch.float32)
        return [kept, torch.empty(500, dtype=torch.float64)]

    used = metered(run, CPU)
    assert (used.peak, used.held, len(used.result)) == (24_000, 8000, 2)
    assert metered(lambda: None, CPU) == (None, 0, 0)


def test_meter_does_not_count_what_is_left_of_earlier_calls() -> None:
    """Neither garbage, nor what is freed: torch's profiler tells the frees of what it saw in an earlier profile."""

    def leave() -> weakref.ref[Tensor]:
        cycle: list[Any] = [torch.empty(1000)]
        cycle.append(cycle)
        return weakref.ref(cycle[0])

    def make_objects() -> Tensor:
        kept = [[] for _ in range(100_000)]  # enough of them for a collection
        return torch.empty(len(kept) // 1000)

    gc.collect()
    garbage = metered(leave, CPU).result
    used = metered(make_objects, CPU)
    assert (used.peak, used.held) == (400, 400) and gc.isenabled()
    assert garbage() is not None
    assert metered(gc.collect, CPU)[1:] == (0, 0)
    assert garbage() is None


def test_fit() -> None:
    truth = StepMemory(1000, 40, 20, 8)
    sizes = [Size(64, 200, 500), Size(264, 0, 500), Size(128, 350, 1100), Size(478, 0, 1100), Size(256, 500, 1900)]
    found = fit(sizes, list(map(truth, sizes)))
    assert found == pytest.approx(truth, rel=1e-6)
    assert found(Size(1000, 3000, 9000)) == pytest.approx(173_000, rel=1e-6)
    # No term is negative, though less memory for more edges would fit better.
    found = fit([Size(10, 0, 0), Size(20, 0, 10), Size(20, 0, 30)], [100, 190, 180])
    assert min(found) == 0 and found.batch_row > 0 and found.edge == 0
    # Terms that go together leave open which is which, and nothing else.
    found = fit([Size(10, 10, 30), Size(20, 20, 60), Size(40, 40, 120)], [100, 200, 400])
    assert found(Size(100, 100, 300)) == pytest.approx(1000)


def test_free_memory() -> None:
    assert 2**20 < free_memory(CPU) < 2**50
    assert plan(gcn_norm(synthetic(200)), GCN(200, 64, 8, 10, 2)).is_full_batch  # of what is free by default


# -- errors ------------------------------------------------------------------------------------------------------------


def test_too_little_memory(graph: Data) -> None:
    data, model = gcn_norm(graph), gcn(graph)
    with pytest.raises(ValueError, match=r"parameters, their gradients and the optimiser .* take .* narrower"):
        plan(data, model, device_memory="50 kB")
    constant = plan(data, model, device_memory="1 GiB").step_memory.constant
    least = round(constant / 0.9) + 2000
    with pytest.raises(ValueError, match=r"even batches of 16 nodes with .* give more device_memory"):
        plan(data, model, device_memory=least)
    perm, ptr = metis(data, 4, log=False)
    with pytest.raises(ValueError, match=r"even batches of 1000 nodes .* partition into more parts"):
        plan(permute(data, perm, log=False), model, ptr=ptr, device_memory="3 MiB")


@pytest.mark.parametrize(
    ("kwargs", "error", "match"),
    [
        ({"device_memory": "8 apples"}, ValueError, r'device_memory must be .*"8 GiB"'),
        ({"device_memory": "8 iB"}, ValueError, r"device_memory must be"),
        ({"device_memory": 0}, ValueError, r"device_memory must be positive"),
        ({"device_memory": 1.5}, TypeError, r"device_memory must be"),
        ({"device_memory": True}, TypeError, r"device_memory must be"),
        ({"host_memory": "much"}, ValueError, r'host_memory must be .*"8 GiB"'),
        ({"host_memory": 0}, ValueError, r"host_memory must be positive"),
        ({"host_memory": 1.5}, TypeError, r"host_memory must be"),
        ({"backend": "scotch"}, ValueError, r"backend must be one of"),
        ({"parts_a_batch": 0}, ValueError, r"parts_a_batch must be a whole number, at least 1"),
        ({"optimizer_states": -1}, ValueError, r"optimizer_states must be a whole number"),
        ({"margin": 1.0}, ValueError, r"margin must be a share"),
        ({"ptr": torch.tensor([0, NUM_NODES]), "backend": "stream"}, ValueError, r"drop one or the other"),
        ({"ptr": torch.tensor([0, 7])}, ValueError, r"ptr must ascend from 0 to the number of nodes"),
        ({"neighbors": "out"}, ValueError, r"neighbors must be"),
        ({"prefetch": -1}, ValueError, r"prefetch"),
    ],
)
def test_bad_arguments(graph: Data, kwargs: dict[str, Any], error: type[Exception], match: str) -> None:
    with pytest.raises(error, match=match):
        plan(gcn_norm(graph), gcn(graph), **kwargs)


def test_bad_models(graph: Data) -> None:
    with pytest.raises(TypeError, match=r"must be a ScalableGNN, but is GAT; wire it with scale\(model, data\)"):
        plan(graph, PlainGAT(NUM_FEATURES, 8, 2))
    with pytest.raises(TypeError, match=r"data must be Data, but is list"):
        plan([graph], gcn(graph))
    with pytest.raises(ValueError, match=r"data has 4000 nodes, but the model was made for 10"):
        plan(graph, GCN(10, NUM_FEATURES, 8, 3, 2))
    with pytest.raises(ValueError, match=r"has not been tried out yet"):
        plan(graph, scale(PlainGAT(NUM_FEATURES, 8, 2), num_nodes=NUM_NODES))
    lazy = Net(NUM_NODES, 16)
    lazy.lin = Linear(-1, 3)
    with pytest.raises(ValueError, match=r"parameters without a shape"):
        plan(graph, lazy)
    silent = gcn(graph)
    with pytest.raises(ValueError, match=r"nothing that has a gradient"):
        plan(Data(x=graph.x, edge_index=graph.edge_index), silent.requires_grad_(False))
