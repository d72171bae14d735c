"""The benchmarks run on the CPU, at sizes whose figures say nothing: what they write is complete, and pictures are drawn."""

from __future__ import annotations

import json
import math
import os
import re
import runpy
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator, Sequence
from itertools import product
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import torch
from matplotlib import image

from torch_gas.partition import Partition

BENCHMARKS = Path(__file__).parents[2] / "benchmarks"
GPU, CPU = BENCHMARKS / "gpu", BENCHMARKS / "cpu"
NOT_ON_CPU = "not measured on the CPU"
WAYS = ("pinned", "registered", "small pages", "64 bytes behind", "staged", "torch")
PLACES = ("no histories", "on the GPU", "concurrent", "serial", "pageable", "PyGAS's way")
LIBRARIES = {"common", "host_gather", "predictions", "sampling", "sanitized", "summary", "timeline"}
SMALL = ("histories in host memory", "histories on the GPU", "full batch")

pytestmark = [
    pytest.mark.slow,
    # torch warns once per process that its sparse matrices are in beta and unchecked.
    pytest.mark.filterwarnings("ignore:Sparse (CS|invariant):UserWarning"),
]


@pytest.fixture(autouse=True)
def modules(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Lets benchmarks import what they share; the examples have a module of the same name. `step` is that of the GPU."""
    for folder in (BENCHMARKS, CPU, GPU):
        monkeypatch.syspath_prepend(str(folder))
    names = {path.stem for folder in (BENCHMARKS, CPU, GPU) for path in folder.glob("*.py")}
    before = {name: sys.modules.pop(name) for name in names & sys.modules.keys()}
    yield
    for name in names & sys.modules.keys():
        del sys.modules[name]
    sys.modules.update(before)


@pytest.fixture
def run(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Callable[..., list[list[dict[str, Any]]]]:
    """Runs a benchmark in this process and gives the rows of its tables, whose values were checked."""

    def run(name: str, folder: Path = GPU, options: Sequence[str] = ("--device", "cpu")) -> list[list[dict[str, Any]]]:
        monkeypatch.setattr(sys, "argv", [name, *options, "--quick", "--out", str(tmp_path)])
        num_threads = torch.get_num_threads()
        try:
            with torch.random.fork_rng(devices=[]):
                runpy.run_path(str(folder / f"{name}.py"), run_name="__main__")
        finally:
            torch.set_num_threads(num_threads)
        sections = json.loads((tmp_path / "results.json").read_text())
        assert list(sections) == [name]
        assert sections[name]["question"].endswith("?") and sections[name]["quick"] is True
        machine = sections[name]["machine"]
        assert folder == CPU or machine["device"] == "CPU only: a smoke run"
        assert machine["torch"] == torch.__version__
        assert {"date", "cpu", "cuda", "torch_geometric", "torch_gas"} <= machine.keys()
        markdown = (tmp_path / "results.md").read_text()
        tables = sections[name]["tables"]
        for table in tables:
            assert f"### {table['title']}" in markdown
            for row in table["rows"]:
                assert list(row) == list(table["rows"][0])
                for key, value in row.items():
                    least = (
                        0 if key.endswith(("MB", "GiB")) else sys.float_info.min
                    )  # tiny sizes may take no new memory
                    assert isinstance(value, str) or (math.isfinite(value) and value >= least), f"{key}: {value}"
        return [table["rows"] for table in tables]

    return run


def picture(path: Path) -> None:
    """Checks that a picture has a size that can be read, and is not of one colour."""
    pixels = image.imread(path)
    assert pixels.shape[0] > 300 and pixels.shape[1] > 900
    assert pixels.std() > 0.02


def load(name: str) -> ModuleType:
    return __import__(name)


def load_beside(name: str) -> ModuleType:
    """A library of the GPU's folder, which finds what all suites share by `common`."""
    load("common")
    return load(name)


def test_every_benchmark_is_tested_and_documented_and_opens_with_its_question() -> None:
    names = {path.stem for path in GPU.glob("*.py")} - LIBRARIES
    assert names == {"rows", "step", "memory", "beside", "small"} == set(load("run").SUITES["gpu"])
    names_on_cpu = {path.stem for path in CPU.glob("*.py")} - {"bench", "counts", "large", "release_side", "sides"}
    assert names_on_cpu == set(load("run").SUITES["cpu"])
    page = (GPU.parents[1] / "docs" / "benchmarks.md").read_text()
    script = (GPU / "run.sh").read_text()
    for name in names_on_cpu:
        assert (CPU / f"{name}.py").read_text().splitlines()[0].endswith("?") and f"`benchmarks/cpu/{name}.py`" in page
    for name in names:
        assert (GPU / f"{name}.py").read_text().splitlines()[0].endswith("?")
        assert f"`{name}.py`" in page and f"benchmarks/gpu/{name}.py" in script


def test_rows(run, tmp_path: Path) -> None:
    pulls, pushes = run("rows")
    for rows in (pulls, pushes):
        assert [(row["table"], row["bytes a row"]) for row in rows] == [
            (table, size) for table in ("float32", "float16") for size in (64, 4096)
        ]
        for row in rows:
            for way in WAYS:
                measured = way in ("pinned", "64 bytes behind", "torch")
                assert isinstance(row[f"{way}, GB/s"], float if measured else str)
                assert row[f"{way}, predicted GB/s"] > 0
                assert not measured or row[f"{way} / copy"] == pytest.approx(row[f"{way}, GB/s"] / row["copy, GB/s"])
    picture(tmp_path / "rows.png")


def test_step(run, tmp_path: Path) -> None:
    sweep, copies, layouts = run("step")
    assert [row["model"] for row in sweep] == [name for name in ("GCN", "GAT", "GCNII", "PNA") for _ in range(2)]
    for row in sweep:
        assert all(
            isinstance(row[f"{place}, {figure}"], float) for place in PLACES for figure in ("ms", "predicted ms")
        )
        assert row["serial / no histories"] == pytest.approx(row["serial, ms"] / row["no histories, ms"])
        assert row["link to the GPU, ms"] == row["link to the host, ms"] == NOT_ON_CPU
        assert row["MB pulled"] == pytest.approx(row["S / B"] * row["MB pushed"])
    for lower, upper in zip(sweep[::2], sweep[1::2], strict=True):  # neighbours in other parts of a batch are no halo
        assert 0.3 < lower["S / B"] < 0.5 and 0.6 < upper["S / B"] < 1
    assert [row["adjacency"] for row in layouts] == ["csr", "EdgeIndex", "edge_index"]
    assert list(copies[0]) == ["to the device, GB/s", "to the host, GB/s", "both at once, each, GB/s"]
    picture(tmp_path / "step.png")
    picture(tmp_path / "step_timeline.png")


def test_beside(run) -> None:
    rows, (made,) = run("beside")
    assert made["epoch of batches, ms"] > 0 and made["epoch of batches, predicted ms"] > 0
    ways = ["PyG, full batch", "sampled neighbourhoods", "host memory", "on the GPU", "PyGAS's way"]
    assert [row["way"] for row in rows] == ways and [row["steps an epoch"] for row in rows] == [1, 4, 4, 4, 4]
    assert all(
        row["epoch, ms"] > 0 and row["epoch, predicted ms"] > 0 and row["peak, MiB"] == NOT_ON_CPU for row in rows
    )


def test_sampled_batches_hold_edges_of_the_graph() -> None:
    workload, sampling = load("workload"), load_beside("sampling")
    data, _ = workload.block_graph(400, 4000, 4, 1.0, 3, 4)
    seeds = torch.arange(40, 80)
    batch = sampling.sampled_batch(data, seeds, (3, 2), torch.Generator().manual_seed(0))
    n_id, adj_t = batch.n_id, batch.data.adj_t
    assert torch.equal(n_id[:40], seeds) and n_id.unique().numel() == n_id.numel()
    assert torch.equal(batch.data.x, data.x[n_id])
    row, col = adj_t.to_sparse_coo().indices()
    dense = data.adj_t.to_dense() != 0
    assert dense[n_id[row], n_id[col]].all()
    degree = adj_t.crow_indices().diff()
    assert degree[:40].min() >= 1 and degree[:40].max() <= 3
    assert degree[40:].max() <= 2  # rows of the first hop, and none of the last
    sums = torch.zeros(len(n_id)).index_add_(0, row, adj_t.values())
    torch.testing.assert_close(sums, (degree > 0).float())


@pytest.mark.parametrize("parts", [1, 2])
def test_the_way_of_pygas_trains_what_histories_train(parts: int) -> None:
    from torch_gas import SubgraphLoader

    workload, host_gather = load("workload"), load("host_gather")
    data, ptr = workload.block_graph(400, 4000, 4, 1.0, 3, 4)
    found: list[list[torch.Tensor]] = []
    for other in (False, True):
        model = workload.make_model("GCN", data, 4, 8, 3, torch.device("cpu"))
        gather = host_gather.HostGather(model, torch.device("cpu")) if other else None
        optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
        for batch in [*SubgraphLoader(data, ptr, parts)] * 3:
            if gather is not None:
                gather.begin(batch)
            workload.train_step(model, optimizer, batch)
        if gather is not None:
            gather.finish()
        found.append([*model.parameters(), *(history.emb for history in model.histories)])
    for left, right in zip(*found, strict=True):
        torch.testing.assert_close(left, right)
    assert all(history.emb.any() for history in model.histories)


def test_the_script_for_sanitizers() -> None:
    command = [sys.executable, str(GPU / "sanitized.py"), "cpu"]
    assert subprocess.run(command, capture_output=True, text=True, check=True).stdout == "all rows are right\n"


def test_memory(run, tmp_path: Path) -> None:
    grown, layers = run("memory")
    assert [row["N"] // grown[0]["N"] for row in grown] == [1, 2, 4, 8, 16]
    assert all(row["histories in host memory, MiB"] == NOT_ON_CPU for row in grown)
    methods = ("full batch", "halo dropped", "histories in host memory")
    assert [(row["as large as"], row["layers"], row["method"]) for row in layers] == [
        (name, number, method) for name in ("ogbn-arxiv", "Yelp") for number in (2, 3, 4) for method in methods
    ]
    for row in layers:
        assert row["edges used"] == (pytest.approx(0.4, abs=0.05) if row["method"] == "halo dropped" else 1)
    picture(tmp_path / "memory.png")


def test_small(run) -> None:
    (rows,) = run("small")
    assert [row["as large as"] for row in rows] == ["Cora", "PubMed", "PPI", "Flickr"]
    assert all(isinstance(row[f"{way}, s"], float) and row[f"{way}, MB"] == NOT_ON_CPU for row in rows for way in SMALL)
    assert [row["paper: GTTF, s"] for row in rows] == [0.077, 0.071, 0.976, 1.178]


PREDECESSOR = """
from types import SimpleNamespace
from torch_gas import ScalableGNN, SubgraphLoader
from torch_gas.models import APPNP, GAT, GCN, GCN2, PNA
models = SimpleNamespace(APPNP=APPNP, GAT=GAT, GCN=GCN, GCN2=GCN2, PNA=PNA)
"""


@pytest.fixture
def pygas(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder with a package that offers what PyGAS does."""
    pytest.importorskip("torch_sparse")
    package = tmp_path / "pygas" / "torch_geometric_autoscale"
    package.mkdir(parents=True)
    (package / "__init__.py").write_text(PREDECESSOR)
    monkeypatch.delitem(sys.modules, package.name, raising=False)
    return package.parent


def test_step_on_the_cpu(run, tmp_path: Path, pygas: Path) -> None:
    by_side, beside, phases = run("step", CPU, ("--pygas", str(pygas)))
    names = ["GCN", "SAGE", "GAT", "APPNP", "GCNII", "GIN", "PNA"]
    sides = ("csr", "PyGAS", "EdgeIndex", "edge_index", "SparseTensor", "plain PyG", "NeighborLoader")
    sides += ("Cluster-GCN", "full batch")
    assert [row["model"] for row in by_side] == names
    assert all(list(row) == ["model", *(f"{side}, s" for side in sides)] for row in by_side)
    cases = [(name, dropout) for name in names for dropout in ("0.5", "0.0")]
    assert [(row["model"], row["dropout"]) for row in beside] == cases
    assert all(row["ours / PyGAS"] == pytest.approx(row["ours, s"] / row["PyGAS, s"]) for row in beside)
    assert [(row["model"], row["dropout"], row["by"]) for row in phases] == [
        (*case, library) for case in cases for library in ("ours", "PyGAS")
    ]
    for row in phases:
        shares = [row[f"{phase}, %"] for phase in ("loader", "forward", "push and pull", "backward", "optimiser")]
        assert sum(shares) == pytest.approx(100)
        assert row["arithmetic, %"] == pytest.approx(100 - shares[0] - shares[2])
        seconds = row["epoch, s"] * shares[2] / 100
        assert row["exchange, GB/s"] * seconds == pytest.approx(row["MB exchanged"] / 1e3)
    picture(tmp_path / "step.png")


@pytest.mark.parametrize("compiler", [True, False])
def test_kernels(run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, compiler: bool) -> None:
    if not compiler:
        monkeypatch.setattr("shutil.which", lambda name: None)
    elif not any(map(shutil.which, ("c++", "g++", "clang++"))):
        pytest.skip("needs a C++ compiler")
    moved, stored, pages, added, dropped, graphs = run("kernels", CPU, ())
    types = ("float32", "bfloat16")
    assert [(row["table"], row["bytes a row"]) for row in moved] == [(t, size) for t in types for size in (64, 256)]
    for row in moved:
        for call in ("gather_rows", "read_chunks", "scatter_rows", "write_chunks"):
            assert row[f"{call} / copy"] == pytest.approx(row[f"{call}, GB/s"] / row["copy, GB/s"])
    for row in added:
        for ids in ("ascending", "any order", "repeated"):
            assert row[f"{ids} / copy"] == pytest.approx(row[f"{ids}, GB/s"] / row["copy, GB/s"])
    storage = ["float32", "float16", "bfloat16", "int8"]
    assert [row["table"] for row in stored] == storage * 4
    assert [row["rows"] for row in stored] == (["float32"] * 4 + [*storage[:3], "bfloat16"]) * 2
    assert [row["numbers a row"] for row in stored] == [256] * 8 + [64] * 8
    for row, base in zip(stored, [stored[i - i % 4] for i in range(16)], strict=True):
        speed = row["gather_rows, M rows/s"] / base["gather_rows, M rows/s"]
        assert row["gather_rows / float32"] == pytest.approx(speed) and row["write_chunks / float32"] > 0
    assert [row["bytes a row"] for row in pages] == [64, 256] and [row["type"] for row in dropped] == [*types]
    assert [(row["graph"], row["ids"]) for row in graphs] == [
        (graph, ids) for graph in ("communities", "random") for ids in ("int64", "int32")
    ]
    for row in graphs:
        assert row["both, ns an edge"] == pytest.approx(row["subgraph, ns an edge"] + row["transpose, ns an edge"])
        expected = (
            row["hash map, ns an edge"] / row["subgraph, ns an edge"] if compiler else "not measured: no C++ compiler"
        )
        assert row["hash map / subgraph"] == (pytest.approx(expected) if compiler else expected)
    assert graphs[2]["edges of the batch"] == 5000
    picture(tmp_path / "kernels.png")


def test_host(run) -> None:
    (rows,) = run("host", CPU, ())
    assert [row["model"] for row in rows] == ["GCN", "GAT", "GCNII", "PNA"]
    assert all(row["more a history, µs"] == pytest.approx(1e3 * row["more, ms"] / 3) for row in rows)


def test_scaled(run, tmp_path: Path) -> None:
    (rows,) = run("scaled", CPU, ())
    ways = [("GCN", "scale(), normalised in the layers")]
    ways += product(("GCN", "SAGE", "GAT", "GIN", "GCNII", "APPNP"), ("scale()", 'scale(places="cheap")'))
    found = {(row["model"], row["wired by"], row["dropout"]) for row in rows}
    assert found == {(*way, dropout) for way in ways for dropout in ("0.0", "0.5")} and len(rows) == len(found)
    assert all(row["ratio"] > 0 and row["epoch, s"] > 0 and row["by hand, s"] > 0 for row in rows)
    picture(tmp_path / "scaled.png")


def test_releases(run, tmp_path: Path) -> None:
    """This release beside itself."""
    options = ("--other", str(BENCHMARKS.parent), "--models", "PNA", "--rounds", "2")
    (rows,) = run("releases", CPU, options)
    ways = ("by hand", "scale()", 'scale(places="cheap")')
    found = [(row["model"], row["dropout"], row["wired by"]) for row in rows]
    assert found == list(product(("PNA",), ("0.0", "0.5"), ways))
    for row in rows:
        assert row["other / this one"] == pytest.approx(row["other release, s"] / row["this one, s"])
        assert 0 < row["90 % from"] <= row["other / this one"] <= row["to"]
    picture(tmp_path / "releases.png")


def test_loader(run, tmp_path: Path) -> None:
    alone, waits = run("loader", CPU, ())
    ways = ["when asked for", "a thread ahead", "two processes", "kept"]
    formats = load("sides").FORMATS
    assert [(row["format"], row["batches are made"]) for row in alone] == [(f, way) for f in formats for way in ways]
    assert all(row["ns an edge"] == pytest.approx(1e3 / row["million edges/s"]) for row in alone)
    assert [(row["model"], row["batches are made"]) for row in waits] == [
        (m, way) for m in ("GCN", "GAT") for way in ways
    ]
    for row in waits:
        assert row["waiting, %"] == pytest.approx(row["waiting, ms"] / row["epoch, s"] / 10)
    picture(tmp_path / "loader.png")


def test_threads(run) -> None:
    (rows,) = run("threads", CPU, ("--threads", "2"))
    assert [row["adjacency"] for row in rows] == ["csr", "EdgeIndex", "edge_index"]
    for row in rows:
        ratio = row["one thread, ms a batch"] / row["threads: 2, ms a batch"]
        assert row["times as fast"] == pytest.approx(ratio)


def test_what_stands_in_for_a_courier_copies_all_but_the_rows_that_it_gave_memory_for() -> None:
    loader = load("threads").loader_of("edge_index", 640, 8)
    made = loader.builder([0, 1])
    sent, _ = loader._courier.send(made)
    same = {key for key, value in sent.to_dict().items() if value is made[key]}
    assert {"x", "y"} <= same and not {"edge_index", "edge_weight", "n_id"} & same
    assert all(torch.equal(sent[key], made[key]) for key in ("x", "y", "edge_index", "edge_weight", "n_id"))


def test_scaling(run, tmp_path: Path) -> None:
    (rows,) = run("scaling", CPU, ("--backend", "random"))
    assert [row["nodes"] for row in rows] == [2000, 8000] and [row["batches"] for row in rows] == [5, 20]
    for row in rows:
        assert row["ns an edge"] == pytest.approx(1e9 * row["epoch, s"] / row["edges"])
        assert row["histories' MB"] == 2 * 16 * 4 * row["nodes"] / 1e6
        assert row["graph's MB"] * 1e6 == row["nodes"] * (16 * 4 + 8) + 4 * (row["nodes"] + 1) + 8 * row["edges"]
    picture(tmp_path / "scaling.png")


def test_tiers(run, tmp_path: Path) -> None:
    limited, cost = run("tiers", CPU, ("--backend", "random"))
    assert [(row["histories"], row["outcome"]) for row in limited] == [("in memory", "trains"), ("in files", "trains")]
    assert all(row["histories, GiB"] == 3 * 2000 * 16 * 4 / 2**30 for row in limited)
    assert len(cost) == 3 and cost[0]["of memory's"] == 1
    for row in cost:
        assert row["of memory's"] == pytest.approx(row["epoch, s"] / cost[0]["epoch, s"])
        assert row["same bits"] == "True" and 0 < row["push and pull"] < 1
    picture(tmp_path / "tiers.png")


def test_memory_ends_where_histories_do_not_fit(tmp_path: Path) -> None:
    bench, tiers = load("bench"), load("tiers")
    size = tiers.TINY._replace(
        num_nodes=20_000, channels=1024, num_layers=26
    )  # 1.9 GiB of histories, which take no disk here
    row = bench.apart(tiers.under, size, 2 * tiers.GIB, None, "random")
    assert row["outcome"] == "out of memory" and row["histories, GiB"] == pytest.approx(1.9, abs=0.1)


def test_products(run, tmp_path: Path) -> None:
    epochs, stages, full = run("products", CPU, ("--backend", "random", "--histories", "bfloat16"))
    assert [row["nodes"] for row in epochs] == [1000, 4000]
    assert epochs[1]["times the small graph's"] == pytest.approx(epochs[1]["ns an edge"] / epochs[0]["ns an edge"])
    peaks = [row["peak so far, GiB"] for row in stages]
    assert len(peaks) == 5 and peaks == sorted(peaks)
    assert [(row["limit, GiB"], row["under the limit"]) for row in full] == [(12, "not tried"), (24, "not tried")]
    picture(tmp_path / "products.png")


def test_a_limit_makes_a_full_batch_fail() -> None:
    bench, products = load("bench"), load("products")
    size = products.TINY._replace(num_nodes=200_000)
    assert bench.apart(_full_batch_under_3_gib, size) == "trains"
    assert bench.apart(_full_batch_under_3_gib, size._replace(channels=4096)) == "out of memory"


def _full_batch_under_3_gib(size: Any) -> str:
    """In a process of its own."""
    sys.path[:0] = [str(BENCHMARKS), str(CPU)]
    products = load("products")
    products.FULL_BATCHES = {"": (products.full_batch, 1, 3)}
    return str(products.full_batch_under("", size, 1000))


def test_accuracy(run, tmp_path: Path) -> None:
    (rows,) = run("accuracy", CPU, ())
    assert [row["side"] for row in rows] == ["histories", "Cluster-GCN", "full batch"]
    for row in rows:
        assert row["best accuracy, %"] <= 100
        for goal in ("95 %", "99 %"):
            seconds, epochs = row[f"to {goal}, s"], row[f"to {goal}, epochs"]
            assert (seconds == epochs == "not reached") or epochs in (1, 2, 3)
    assert isinstance(rows[2]["to 99 %, s"], float)  # full batch reaches its own best
    picture(tmp_path / "accuracy.png")


def test_places(run, tmp_path: Path) -> None:
    reached, to_full, paired = run("places", CPU, ())
    places = load("places")
    assert [row["model"] for row in reached] == ["GCN", "APPNP"] == [row["model"] for row in to_full]
    assert [row["model"] for row in paired] == ["GCN", "APPNP", "all"] and [row["seeds"] for row in paired] == [2, 2, 4]
    lines = (tmp_path / "cells" / "places.jsonl").read_text().splitlines()
    tests = {
        (each["of"]["models"], each["of"]["side"], each["of"]["seed"]): each["result"]["test"]
        for each in map(json.loads, lines)
    }
    assert len(lines) == len(tests) == 2 * 2 * len(places.SIDES)
    for row, gaps, pairs in zip(reached, to_full, paired[:2], strict=True):
        mean = {side: (tests[row["model"], side, 0] + tests[row["model"], side, 1]) / 2 for side in places.SIDES}
        for side in places.SIDES[1:]:
            assert float(row[side].split(" ± ")[0]) == pytest.approx(mean[side], abs=0.006)
            assert float(gaps[side]) == pytest.approx(mean[side] - mean["full batch"], abs=0.006)
        for pair, (left, right) in places.PAIRS.items():
            assert float(pairs[pair].split(" ± ")[0]) == pytest.approx(mean[left] - mean[right], abs=0.006)
    picture(tmp_path / "places.png")
    run("places", CPU, ())
    assert (tmp_path / "cells" / "places.jsonl").read_text().splitlines() == lines  # nothing is run again


def test_an_interval_is_that_of_student() -> None:
    mean, half = load("places").interval([1.0, 2.0, 3.0, 6.0])
    assert (mean, half) == (3.0, pytest.approx(3.1824 * (14 / 3) ** 0.5 / 2, abs=1e-3))


def test_time_to_accuracy_is_that_of_the_first_epoch_that_reaches_it() -> None:
    accuracy = load("accuracy")
    curve = accuracy.Curve([0.2, 0.8, 0.7, 0.9], [1.0, 2.5, 4.0, 6.0])
    assert [accuracy._until(curve, goal, "epochs") for goal in (0.1, 0.8, 0.81)] == [1, 2, 4]
    assert [accuracy._until(curve, goal, "s") for goal in (0.8, 0.95)] == [2.5, math.inf]


def test_inference(run, tmp_path: Path) -> None:
    (rows,) = run("inference", CPU, ())
    sampler = ["BasicGNN.inference"] if load("sides").HAS_SAMPLER else []
    assert [row["side"] for row in rows] == [
        "layer by layer",
        "layer by layer, no batch kept",
        *sampler,
        "full batch",
        "full batch, PyG",
    ]
    assert all(float(row["largest difference"]) < 1e-5 for row in rows)
    assert [row["histories' MB"] for row in rows] == [*[2 * 600 * 16 * 4 / 1e6] * 2, *[0] * (len(rows) - 2)]
    picture(tmp_path / "inference.png")


def test_compensation(run) -> None:
    (rows,) = run("compensation", CPU, ())
    assert [row["model"] for row in rows] == ["GCN", "SAGE", "GIN", "GAT", "GCNII"]
    assert all(row["auto, MB"] > row["histories alone, MB"] and row["auto / histories alone"] > 0 for row in rows)
    assert all(row["MB of tables"] == 2 * 600 * 16 * 4 / 1e6 for row in rows)


def test_exact_gradients(run) -> None:
    steps, growth = run("exact", CPU, ())
    sides = ("full batch", "one batch", "epoch of batches", "exact")
    names = ["GCN", "SAGE", "GAT", "GIN, no norm inside", "GIN, norms inside", "GCNII, 64 layers"]
    assert [row["model"] for row in steps] == names
    for row in steps:
        assert all(row[f"exact / {side}"] == pytest.approx(row["exact, s"] / row[f"{side}, s"]) for side in sides[:3])
    assert [row["nodes"] for row in growth] == [2000, 8000, 32000]
    assert [row["batches"] for row in growth] == [5, 20, 80]
    assert [row["MB of tables"] for row in growth] == [4 * 16 * 4 * row["nodes"] / 1e6 for row in growth]


def test_errors_of_gradients(run) -> None:
    (rows,) = run("gradients", CPU, ())
    assert [(row["model"], row["histories"]) for row in rows] == [
        (name, state) for name in ("GCN", "GAT") for state in ("as training left them", "exact")
    ]
    for row in rows:
        assert (row["layer 3, %"] == "0.0 to 0.0") == (row["histories"] == "exact")
        assert row["layer 1, %"] != "0.0 to 0.0" and -1 < float(row["least cosine"]) < 1


def test_peak_memory_is_that_beyond_what_was_held() -> None:
    bench = load("bench")
    size = 50 * 2**20
    held = torch.ones(size // 4)
    with bench.Peak() as peak:
        torch.ones(size // 4) + held
    assert 1.9 * size < peak.bytes < 3 * size
    with bench.Peak() as again:
        pass
    assert again.bytes < size / 2 and bench.peak_memory() >= size


@pytest.mark.parametrize("name", ["GCN", "SAGE", "GAT", "APPNP", "GCNII", "GIN", "PNA"])
def test_sides_train_the_same_parameters(name: str, pygas: Path) -> None:
    sides = load("sides")
    setting = sides.Setting(num_nodes=300, avg_degree=6.0, channels=8, num_parts=6, parts_a_batch=2)
    graphs = sides.make_graphs(setting)
    trained = {}
    with torch.random.fork_rng(devices=[]):
        makes = sides.Sides(setting, graphs, name, 0.0, load("predecessor").load_pygas(pygas))
        for side in (*sides.FORMATS, sides.PYGAS, sides.PLAIN, sides.SAMPLING, sides.CLUSTER, sides.FULL):
            running = makes.make(side)
            start = torch.nn.utils.parameters_to_vector(running.model.parameters())
            running.optimizer = torch.optim.SGD(running.model.parameters(), lr=0.01)  # Adam enlarges rounding
            running.epoch()
            trained[side] = torch.nn.utils.parameters_to_vector(running.model.parameters())
            assert (trained[side] - start).abs().max() > 1e-4
    for side in (*sides.FORMATS[1:], sides.PYGAS):
        torch.testing.assert_close(trained[side], trained["csr"], rtol=1e-3, atol=1e-5)
    for side in (sides.PLAIN, sides.SAMPLING, sides.CLUSTER, sides.FULL):
        assert (trained[side] - trained["csr"]).abs().max() > 1e-4


def test_batches_without_halo_hold_the_edges_inside() -> None:
    sides = load("sides")
    setting = sides.Setting(num_nodes=300, avg_degree=6.0, channels=8, num_parts=6, parts_a_batch=2)
    graphs = sides.make_graphs(setting)
    from torch_gas import SubgraphLoader

    loader = SubgraphLoader(sides.in_format(graphs.weighted, "csr"), graphs.ptr, 2)
    for inside, batch in zip(sides.WithoutHalo(loader), loader, strict=True):
        size = batch.batch_size
        assert torch.equal(inside.adj_t.to_dense(), batch.data.adj_t.to_dense()[:, :size])
        assert torch.equal(inside.x, batch.data.x[:size]) and inside.y.numel() == size


def test_a_phase_is_timed_where_it_belongs(monkeypatch: pytest.MonkeyPatch) -> None:
    sides = load("sides")
    clock = iter(range(100))
    monkeypatch.setattr(sides.time, "perf_counter", lambda: float(next(clock)))
    model = torch.nn.Linear(2, 2)
    model.push_and_pull = lambda x: x
    side = sides.Side(model, [torch.ones(1, 2)] * 3, lambda x: (model.push_and_pull(model(x)), torch.zeros(1).long()))
    assert side.epoch() == {"loader": 4, "forward": 6, "push and pull": 3, "backward": 3, "optimiser": 3}
    assert side.epoch(steps=1) == {"loader": 2, "forward": 2, "push and pull": 1, "backward": 1, "optimiser": 1}


def test_a_folder_without_pygas_is_an_error(tmp_path: Path) -> None:
    pytest.importorskip("torch_sparse")
    with pytest.raises(SystemExit, match="has no folder torch_geometric_autoscale; give the root"):
        load("predecessor").load_pygas(tmp_path)


@pytest.mark.parametrize("suite", ["cpu", "gpu"])
def test_a_benchmark_that_fails_loses_no_other(
    suite: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    runner = load("run")
    (tmp_path / "results.json").write_text("{}")
    calls = []

    def fake(command: Sequence[Any], env: dict[str, str]) -> subprocess.CompletedProcess[str]:
        calls.append([str(part) for part in command])
        assert Path(command[1]).exists() and env["PYTHONPATH"].startswith(str(BENCHMARKS.parent))
        return subprocess.CompletedProcess(command, 3 if len(calls) == 1 else 0)

    monkeypatch.setattr(runner.subprocess, "run", fake)
    further = {"step": ["--pygas", str(tmp_path)], "releases": ["--other", str(tmp_path)]} if suite == "cpu" else {}
    given = [part for option in further.values() for part in option]
    monkeypatch.setattr(sys, "argv", ["run.py", "--suite", suite, "--quick", "--out", str(tmp_path), *given])
    with pytest.raises(SystemExit) as end:
        runner.main()
    assert end.value.code == 1
    assert not (tmp_path / "results.json").exists()
    device = ["--device", "cpu"] if suite == "gpu" else []
    options = ["--out", str(tmp_path), "--quick", *device]
    expected = [(name, [*options, *further.get(name, [])]) for name in runner.SUITES[suite]]
    assert [(Path(call[1]).stem, call[2:]) for call in calls] == expected
    assert f"{runner.SUITES[suite][0]}: exit status 3" in capsys.readouterr().out


def test_plan(run, tmp_path: Path) -> None:
    """Memory is counted, so figures of a quick run are near as well; halos and traffic follow from the same parts."""
    (rows,) = run("plan", CPU, ())
    limits = ("none", "1/2", "1/8")
    assert [(row["model"], row["limit"]) for row in rows] == [
        (model, limit) for model in ("GCN", "GAT", "PNA", "GCNII") for limit in limits
    ]
    for row in rows:
        assert row["peak, MB"] == pytest.approx(row["planned peak, MB"], rel=0.5)
        assert float(row["S / B"]) == pytest.approx(float(row["planned S / B"]), rel=0.1)
        assert row["exchange, MB"] == pytest.approx(row["planned exchange, MB"], rel=0.1)
        assert (row["steps"] == 1) == (row["limit"] == "none")
    picture(tmp_path / "plan.png")


def test_hot(run) -> None:
    served, steps = run("hot", CPU, ())
    assert [row["hot nodes, %"] for row in served] == ["0", "1", "5", "10", "20"] * 2
    for graph in (served[:5], served[5:]):
        for name in ("of halo rows, %", "chosen by degree, %"):
            shares = [float(row[name]) for row in graph]
            assert shares[0] == 0 and shares == sorted(shares) and shares[-1] < 100
        for row in graph:
            read = graph[0]["read from tables an epoch, MB"] * (1 - float(row["of halo rows, %"]) / 100)
            assert row["read from tables an epoch, MB"] == pytest.approx(read, rel=0.01)
    assert [(row["page cache"], row["hot nodes, %"]) for row in steps] == [
        (cache, share) for cache in ("holds the files", "dropped before each step") for share in ("0", "5", "10", "20")
    ]


def test_partition(run, tmp_path: Path) -> None:
    (rows,) = run("partition", CPU, ())
    *_, metis, kaminpar, threads, stream, random = rows
    assert [row["by"] for row in (metis, kaminpar, stream, random)] == ["METIS", "KaMinPar", "stream", "random"]
    assert re.fullmatch(r"KaMinPar, \d+ threads", threads["by"])
    for row in rows:
        assert row["edges cut, %"] <= 100 and row["S / B"] < 40 and row["largest / average part"] < 1.3
    assert len(rows) == (5 if "TORCH_GAS_DATA" not in os.environ else 10)
    picture(tmp_path / "partition.png")


def test_halos_of_a_partition() -> None:
    program = runpy.run_path(str(CPU / "partition.py"))
    edge_index = torch.tensor([[0, 1, 2, 3, 0, 3, 3], [1, 0, 1, 0, 2, 2, 0]])
    partition = Partition(torch.tensor([0, 2, 1, 3]), torch.tensor([0, 2, 4]))  # parts {0, 2} and {1, 3}
    # Between parts: 0 > 1, 1 > 0, 2 > 1, 3 > 0 (twice), 3 > 2; the halos are {1, 3} and {0, 2}.
    assert program["quality"](edge_index, partition) == (pytest.approx(6 / 7), 1.0)


def test_a_partitioner_that_dies_loses_no_other(tmp_path: Path) -> None:
    program = runpy.run_path(str(CPU / "partition.py"))
    rows = [
        {"graph": "community", "by": by, "edges": 10, "seconds": 1.0, "S / B": 2.0, "bytes an edge": 3.0}
        for by in program["PARTITIONERS"]
    ]
    rows[0] = {"graph": "community", "by": "METIS", "edges": 10, "seconds": "failed, exit status -9"}
    program["save_picture"](program["draw"](rows), tmp_path, "partition")
    picture(tmp_path / "partition.png")
    code = "import sys, os; sys.path.insert(0, sys.argv[1]); import partition; "
    code += "partition.measure = lambda *_: os._exit(3); print(partition.measure_graph('community'))"
    done = subprocess.run([sys.executable, "-c", code, str(CPU)], capture_output=True, text=True, check=True)
    assert done.stdout.count("'seconds': 'failed, exit status 3'") == len(rows)


def test_a_suite_leaves_out_what_has_no_other_release(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    calls = []
    runner = load("run")
    done: Any = subprocess.CompletedProcess([], 0)
    monkeypatch.setattr(runner.subprocess, "run", lambda command, **_: (calls.append(Path(command[1]).stem), done)[1])
    monkeypatch.setattr(sys, "argv", ["run.py", "--suite", "cpu", "--out", str(tmp_path)])
    with pytest.raises(SystemExit) as end:
        runner.main()
    assert end.value.code == 0 and calls == [name for name in runner.SUITES["cpu"] if name != "releases"]


def test_pygas_is_of_the_cpu_suite(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setattr(sys, "argv", ["run.py", "--suite", "gpu", "--pygas", "somewhere"])
    with pytest.raises(SystemExit):
        load("run").main()
    assert "PyGAS is measured by the CPU suite only" in capsys.readouterr().err


def test_sections_of_several_benchmarks_share_the_files(tmp_path: Path) -> None:
    common = load("common")
    for name, value in (("one", 1.5), ("two", 12_345.6), ("one", 0.00123)):
        table = common.table("Title", [{"GB/s": value}])
        common.save(tmp_path, name, "How fast?\n\nMore.", torch.device("cpu"), False, [table])
    sections = json.loads((tmp_path / "results.json").read_text())
    assert list(sections) == ["one", "two"] and sections["two"]["question"] == "How fast?"
    markdown = (tmp_path / "results.md").read_text()
    assert re.findall(r"^\| ([\d.,]+) \|$", markdown, re.MULTILINE) == ["0.00123", "12,346"]
    with pytest.raises(ValueError, match="not JSON compliant"):
        broken = common.table("Title", [{"GB/s": math.nan}])
        common.save(tmp_path, "three", "?", torch.device("cpu"), False, [broken])


@pytest.mark.parametrize("layout", ["csr", "EdgeIndex", "edge_index"])
def test_graphs_have_the_stated_edges_and_halos(layout: str) -> None:
    from torch_gas import SubgraphLoader

    data, ptr = load("workload").block_graph(1000, 12_000, 5, 0.5, 3, 4, layout)
    assert data.num_nodes == 1000 and data.num_edges == 12_000
    for batch in SubgraphLoader(data, ptr):
        assert batch.batch_size == 200 and 90 <= batch.halo_size <= 100
        assert batch.data.num_edges == 200 * 12
        if layout == "edge_index":
            source, destination = batch.data.edge_index
            inside = (source < 200).long().new_zeros(200).index_add_(0, destination, (source < 200).long())
            assert inside.unique().tolist() == [8]


def test_without_histories_no_table_changes() -> None:
    workload = load("workload")
    data, ptr = workload.block_graph(400, 4000, 4, 1.0, 3, 4)
    from torch_gas import SubgraphLoader

    for name in workload.MODELS:
        model = workload.without_histories(workload.make_model(name, data, 4, 8, 3, torch.device("cpu")))
        optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
        before = [parameter.clone() for parameter in model.parameters()]
        for batch in (*SubgraphLoader(data, ptr), data):
            workload.train_step(model, optimizer, batch)
        assert all(not history.emb.any() for history in model.histories)
        assert any(not torch.equal(*pair) for pair in zip(before, model.parameters(), strict=True))


def event(category: str, name: str, start: float, length: float, thread: int = 1, **args: int) -> dict[str, Any]:
    return {"ph": "X", "cat": category, "name": name, "ts": start, "dur": length, "tid": thread, "args": args}


def test_timeline_tells_kernels_by_where_the_host_launched_them(tmp_path: Path) -> None:
    timeline = load("timeline")
    events = [
        event("user_annotation", "forward", 1000, 500),
        event("user_annotation", "pull", 1100, 50),
        event("user_annotation", "backward", 1500, 400),
        event("user_annotation", "something else", 0, 9000),
        event("cuda_runtime", "cudaLaunchKernel", 1010, 5, correlation=1),
        event("cuda_runtime", "cudaLaunchKernel", 1120, 5, correlation=2),
        event("cuda_runtime", "cudaLaunchKernel", 1120, 5, thread=2, correlation=3),  # another thread is in no pull
        event("cuda_runtime", "cudaLaunchKernel", 1600, 5, thread=3, correlation=4),
        event("cuda_driver", "cuMemcpyAsync", 1125, 5, thread=2, correlation=5),
        event("cuda_runtime", "cudaLaunchKernel", 5000, 5, correlation=6),  # in no step
        event("kernel", "first", 2000, 100, correlation=1, stream=7),
        event("kernel", "second", 2100, 100, correlation=2, stream=20),
        event("kernel", "third", 2200, 100, correlation=3, stream=7),
        event("kernel", "fourth", 4000, 500, correlation=4, stream=7),
        event("gpu_memcpy", "Memcpy HtoD (Pinned -> Device)", 2500, 100, correlation=5, stream=24),
        event("kernel", "late", 6000, 100, correlation=6, stream=7),
        event("kernel", "launched before", 100, 100, correlation=99, stream=7),
    ]
    bars = timeline.bars_of(events)
    assert {(bar.stream, bar.kind) for bar in bars} == {
        ("stream 7", "forward"),
        ("stream 20", "pull"),
        ("stream 7", "backward"),
        ("stream 24", "batch"),
    }
    assert len(bars) == 5 and min(bar.start for bar in bars) == 0
    assert max(bar.end for bar in bars) == pytest.approx(2.5)
    assert list(timeline._lanes(bars).values()) == ["compute", "pulls", "batches"]
    load("common").save_picture(timeline.draw_timeline({"serial": bars, "concurrent": bars}), tmp_path, "timeline")
    picture(tmp_path / "timeline.png")


def test_pictures_of_a_gpu_run(tmp_path: Path) -> None:
    """What smoke runs have no figures for."""
    common, memory, step = load("common"), load("memory"), load("step")
    places = {f"{place}, ms": 10.0 + i for i, place in enumerate(PLACES)}
    link = {"link to the GPU, ms": 2.0, "link to the host, ms": 3.0}
    rows = [{"model": name, "S / B": ratio, **places, **link} for name in step.MODELS for ratio in (0.5, 1.0)]
    common.save_picture(step.draw(rows), tmp_path, "step")
    picture(tmp_path / "step.png")
    grown = [{"N": n, **{f"{way}, MiB": n / 10 for way in (memory.FULL, memory.GPU, memory.HOST)}} for n in (100, 200)]
    layers = [
        {"as large as": name, "layers": 2, "method": way, "MiB": peak, "edges used": 1.0}
        for name in memory.GRAPHS
        for way, peak in ((memory.FULL, "out of memory"), (memory.ALONE, 5.0), (memory.HOST, 9.0))
    ]
    common.save_picture(memory.draw(grown, layers), tmp_path, "memory")
    picture(tmp_path / "memory.png")


def test_a_gpu_that_is_not_there_is_an_error(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    monkeypatch.setattr(sys, "argv", ["rows", "--out", str(tmp_path)])
    with pytest.raises(SystemExit, match="--device cpu makes a smoke run"):
        load("common").parse_args("?")


FAKE_PYTHON = """#!/bin/bash
echo "called: $*"
echo "lane ${TORCH_GAS_GPU_LANE:-no}, plugins off ${PYTEST_DISABLE_PLUGIN_AUTOLOAD:-no}"
case "$*" in
  -c*) echo 90 ;;
  setup.py*) exit $BUILD ;;
  *rows.py*) exit 3 ;;
  *memory.py*) exit 124 ;;
esac
"""
STAGES = ["build", "kernel tests", "rows", "step", "memory", "model tests", "beside", "memcheck", "racecheck", "small"]


@pytest.mark.parametrize("build", [0, 1])
def test_a_stage_that_fails_loses_no_other(build: int, tmp_path: Path) -> None:
    python = tmp_path / "python"
    python.write_text(FAKE_PYTHON)
    python.chmod(0o755)
    out = tmp_path / "out"
    environment = {**os.environ, "PYTHON": str(python), "OUT": str(out), "BUILD": str(build)}
    done = subprocess.run(["bash", str(GPU / "run.sh")], env=environment, capture_output=True, text=True, timeout=60)
    assert done.returncode == 1
    assert (out / "run.log").read_text() == done.stdout
    summary = dict(re.findall(r"^(?:\w+) +([\w ]+): (.*)$", done.stdout.split("=== summary")[1], re.MULTILINE))
    assert f"called: benchmarks/gpu/summary.py {out}" in done.stdout
    if build == 1:
        assert list(summary) == ["build"] and summary["build"].startswith("exit status 1")
        return
    assert list(summary) == [*STAGES, "step of other models"]
    assert summary["rows"].startswith("exit status 3") and summary["memory"].startswith("not done after")
    assert f"step.py --models GCN --out {out}" in done.stdout
    kernels, models = re.findall(r"called: -m pytest .*faulthandler_timeout=60 (tests/.*)", done.stdout)
    assert kernels == "tests/_core/test_cuda.py" and "tests/session/test_cuda_model.py" in models
    assert kernels not in models.split() and done.stdout.count("lane 1, plugins off 1") == 2


def test_a_stage_that_is_cut_is_interrupted_and_ends() -> None:
    """So that pytest says what has failed until then, and a benchmark has saved what it has."""
    script = (GPU / "run.sh").read_text()
    stage = script[script.index("deadline=") : script.index("build() {")]
    waits = "import time\ntry: time.sleep(60)\nexcept KeyboardInterrupt: print('interrupted')"
    program = f'{stage}\ndeadline=5\nstage slow 60 {sys.executable} -c "{waits}"\necho ${{summary[0]}}'
    done = subprocess.run(["bash", "-c", program], capture_output=True, text=True, timeout=50)
    assert "interrupted" in done.stdout and "FAILED slow: not done after 5 s" in done.stdout


def test_a_benchmark_that_is_cut_keeps_what_it_has(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(sys, "argv", ["rows", "--device", "cpu", "--quick", "--out", str(tmp_path)])
    rows, seen = load("rows"), []
    measure = rows.Bench.measure

    def measure_once(*args: Any) -> Any:
        seen.append(args)
        if len(seen) == 2:
            raise KeyboardInterrupt
        return measure(*args)

    monkeypatch.setattr(rows.Bench, "measure", measure_once)
    with pytest.raises(KeyboardInterrupt):
        rows.main()
    sections = json.loads((tmp_path / "results.json").read_text())
    assert [len(table["rows"]) for table in sections["rows"]["tables"]] == [1, 1]
