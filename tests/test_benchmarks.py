"""The GPU benchmarks run on the CPU, at sizes whose figures say nothing: what they write is complete, and pictures are drawn."""

from __future__ import annotations

import json
import math
import os
import re
import runpy
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import torch
from matplotlib import image

GPU = Path(__file__).parents[1] / "benchmarks" / "gpu"
NOT_ON_CPU = "not measured on the CPU"
WAYS = ("pinned", "staged", "torch")
PLACES = ("no histories", "on the GPU", "concurrent", "serial", "pageable")
SMALL = ("histories in host memory", "histories on the GPU", "full batch")

pytestmark = [
    # torch warns once per process that its sparse matrices are in beta and unchecked.
    pytest.mark.filterwarnings("ignore:Sparse (CS|invariant):UserWarning"),
]


@pytest.fixture(autouse=True)
def modules(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Lets benchmarks import what they share; the examples have a module of the same name."""
    monkeypatch.syspath_prepend(str(GPU))
    names = {path.stem for path in GPU.glob("*.py")}
    before = {name: sys.modules.pop(name) for name in names & sys.modules.keys()}
    yield
    for name in names & sys.modules.keys():
        del sys.modules[name]
    sys.modules.update(before)


@pytest.fixture
def run(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Callable[[str], list[list[dict[str, Any]]]]:
    """Runs a benchmark in this process and gives the rows of its tables, whose values were checked."""

    def run(name: str) -> list[list[dict[str, Any]]]:
        monkeypatch.setattr(sys, "argv", [name, "--device", "cpu", "--quick", "--out", str(tmp_path)])
        with torch.random.fork_rng(devices=[]):
            runpy.run_path(str(GPU / f"{name}.py"), run_name="__main__")
        sections = json.loads((tmp_path / "results.json").read_text())
        assert list(sections) == [name]
        assert sections[name]["question"].endswith("?") and sections[name]["quick"] is True
        machine = sections[name]["machine"]
        assert machine["device"] == "CPU only: a smoke run" and machine["torch"] == torch.__version__
        assert {"date", "cpu", "cuda", "torch_geometric", "torch_gas"} <= machine.keys()
        markdown = (tmp_path / "results.md").read_text()
        tables = sections[name]["tables"]
        for table in tables:
            assert f"### {table['title']}" in markdown
            for row in table["rows"]:
                assert list(row) == list(table["rows"][0])
                for key, value in row.items():
                    assert isinstance(value, str) or (math.isfinite(value) and value > 0), f"{key}: {value}"
        return [table["rows"] for table in tables]

    return run


def picture(path: Path) -> None:
    """Checks that a picture has a size that can be read, and is not of one colour."""
    pixels = image.imread(path)
    assert pixels.shape[0] > 300 and pixels.shape[1] > 900
    assert pixels.std() > 0.02


def load(name: str) -> ModuleType:
    return __import__(name)


def test_every_benchmark_is_tested_and_documented_and_opens_with_its_question() -> None:
    names = {path.stem for path in GPU.glob("*.py")} - {"common", "timeline", "workload"}
    assert names == {"rows", "step", "memory", "small"}
    page = (GPU.parents[1] / "docs" / "benchmarks.md").read_text()
    script = (GPU / "run.sh").read_text()
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
                measured = way != "staged"
                assert isinstance(row[f"{way}, GB/s"], float if measured else str)
                assert not measured or row[f"{way} / copy"] == pytest.approx(row[f"{way}, GB/s"] / row["copy, GB/s"])
    picture(tmp_path / "rows.png")


def test_step(run, tmp_path: Path) -> None:
    sweep, layouts, copies = run("step")
    assert [row["model"] for row in sweep] == [name for name in ("GCN", "GAT", "GCNII", "PNA") for _ in range(2)]
    for row in sweep:
        assert all(isinstance(row[f"{place}, ms"], float) for place in PLACES)
        assert row["serial / no histories"] == pytest.approx(row["serial, ms"] / row["no histories, ms"])
        assert row["link to the GPU, ms"] == row["link to the host, ms"] == NOT_ON_CPU
        assert row["MB pulled"] == pytest.approx(row["S / B"] * row["MB pushed"])
    assert [round(row["S / B"], 1) for row in sweep[:2]] == [0.5, 1.0]
    assert [row["adjacency"] for row in layouts] == ["csr", "EdgeIndex", "edge_index"]
    assert list(copies[0]) == ["to the device, GB/s", "to the host, GB/s", "both at once, each, GB/s"]
    picture(tmp_path / "step.png")
    picture(tmp_path / "step_timeline.png")


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
case "$*" in
  -c*) echo 90 ;;
  setup.py*) exit $BUILD ;;
  *rows.py*) exit 3 ;;
  *memory.py*) exit 124 ;;
esac
"""


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
    if build == 1:
        assert list(summary) == ["build"] and summary["build"].startswith("exit status 1")
        return
    assert list(summary) == ["build", "CUDA tests", "rows", "step", "memory", "small", "memcheck", "racecheck"]
    assert summary["rows"].startswith("exit status 3") and summary["memory"].startswith("not done after")
    assert f"step.py --out {out}" in done.stdout and "tests/test_cuda.py" in done.stdout


def test_huge_pages() -> None:
    program = Path(__file__).parents[1] / "benchmarks" / "huge_pages.py"
    command = [sys.executable, str(program), "--gigabytes", "0.004", "--rows", "50", "--repeats", "1"]
    done = subprocess.run(command, capture_output=True, text=True)
    if done.returncode != 0:
        assert "this system has no huge pages to give" in done.stderr
        pytest.skip("this system has no huge pages")
    assert re.findall(r"rows of +(\d+) B: \d+\.\d\d times", done.stdout) == ["64", "128", "256", "512", "1024"]
