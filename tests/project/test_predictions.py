"""Predictions of the GPU benchmarks: each formula against a count, a bound or a limit; and the table beside measurements."""

from __future__ import annotations

import json
import subprocess
import sys
from collections import Counter
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode

BENCHMARKS = Path(__file__).parents[2] / "benchmarks"
GPU = BENCHMARKS / "gpu"


@pytest.fixture
def predictions(monkeypatch: pytest.MonkeyPatch) -> Iterator[Any]:
    for folder in (BENCHMARKS, GPU):
        monkeypatch.syspath_prepend(str(folder))
    names = ("predictions", "summary", "workload", "shared")
    before = {name: sys.modules.pop(name) for name in names if name in sys.modules}
    yield __import__("predictions")
    for name in names:
        sys.modules.pop(name, None)
    sys.modules.update(before)


def step(predictions: Any, ratio: float = 1.0, **changes: Any) -> Any:
    batch = 32_768
    base = predictions.Step("GCN", batch, int(ratio * batch), int(20 * batch * (1 + ratio)), 64, (256,) * 3, 32)
    return replace(base, **changes)


def test_the_link_is_a_little_slower_than_its_lanes(predictions: Any) -> None:
    lanes = 16 * 32e9 / 8 * 128 / 130
    assert 0.85 * lanes < predictions.link_rate(predictions.Machine()) < 0.9 * lanes


@pytest.mark.parametrize("row_bytes", [4, 36, 64, 128, 132, 256, 1024])
@pytest.mark.parametrize("start", [0, 4, 64])
def test_lines_of_rows_are_counted(predictions: Any, row_bytes: int, start: int) -> None:
    rows = [range(start + row * row_bytes, start + (row + 1) * row_bytes) for row in range(128)]
    counted = sum(len({byte // 128 for byte in row}) for row in rows) / len(rows)
    assert predictions.lines_of_row(row_bytes, start, 128) == pytest.approx(counted)


def test_tables_that_begin_behind_a_page_lose_most_where_rows_are_lines(predictions: Any) -> None:
    machine = predictions.Machine()
    kept = {w: predictions.pull_rate(w, machine, 64) / predictions.pull_rate(w, machine) for w in (64, 128, 256, 4096)}
    assert kept[64] == 1 and kept[128] < 0.6 < kept[256] < 0.8 and kept[4096] > 0.98


@pytest.mark.parametrize("row_bytes", [64, 256, 4096])
@pytest.mark.parametrize("pull", [True, False])
def test_no_way_is_faster_than_a_copy(predictions: Any, row_bytes: int, pull: bool) -> None:
    machine, ways = predictions.Machine(), ("pinned", "registered", "staged", "torch")
    copy, *rates = (predictions.rows_rate(way, row_bytes, pull, 2**27, machine) for way in ("copy", *ways))
    assert copy > rates[0] == rates[1] > rates[2] > rates[3] > 0
    assert predictions.rows_rate("copy", row_bytes, pull, 2**40, machine) == pytest.approx(
        predictions.link_rate(machine)
    )


class Operators(TorchDispatchMode):
    """Counts operators."""

    def __init__(self) -> None:
        super().__init__()
        self.found: Counter[str] = Counter()

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        self.found[str(func)] += 1
        return func(*args, **(kwargs or {}))


@pytest.mark.filterwarnings("ignore:Sparse (CS|invariant):UserWarning")
@pytest.mark.parametrize("name", ["GCN", "GAT", "GCNII", "PNA"])
def test_operators_of_a_step_are_those_that_are_counted(
    predictions: Any, name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    from torch_gas import SubgraphLoader
    from torch_gas.models import pna_conv

    monkeypatch.setattr(pna_conv, "edges_of", lambda *_: None)  # whose kernels are the CPU's
    workload = __import__("workload")
    data, ptr = workload.block_graph(400, 4000, 4, 1.0, 3, 4)
    batches, counts = list(SubgraphLoader(data, ptr)), []
    for with_histories in (False, True):
        model = workload.make_model(name, data, 4, 8, 4, torch.device("cpu"))
        model = model if with_histories else workload.without_histories(model)
        optimizer = torch.optim.Adam(model.parameters(), foreach=True)
        for batch in batches:
            workload.train_step(model, optimizer, batch)
        with Operators() as mode:
            workload.train_step(model, optimizer, batches[0])
        counts.append(mode.found.total())
    assert len(model.histories) == 3
    assert counts[0] == pytest.approx(predictions.OPERATORS[name], rel=0.1)
    assert counts[1] - counts[0] == pytest.approx(3 * predictions.OF_A_HISTORY, abs=3)


def test_bytes_of_a_step_are_those_of_its_tensors(predictions: Any) -> None:
    from torch_gas import SubgraphLoader
    from torch_gas.graph.formats import all_tensors

    workload = __import__("workload")
    data, ptr = workload.block_graph(4000, 80_000, 4, 1.0, 64, 32)
    batch = next(iter(SubgraphLoader(data, ptr)))
    model = workload.make_model("GCN", data, 32, 256, 4, torch.device("cpu"))
    found = step(predictions, batch=batch.batch_size, halo=batch.halo_size, edges=batch.data.num_edges)
    tensors = sum(tensor.nbytes for tensor in all_tensors(batch.data.to_dict()))
    assert found.batch_bytes == pytest.approx(tensors, rel=0.05)
    assert found.pushed == sum(batch.batch_size * history.table.row_bytes for history in model.histories)
    assert found.pulled == sum(batch.halo_size * history.table.row_bytes for history in model.histories)


@pytest.mark.parametrize("name", ["GCN", "GAT", "GCNII", "PNA"])
@pytest.mark.parametrize("ratio", [0.25, 1.0, 2.0])
def test_no_place_is_faster_than_its_parts(predictions: Any, name: str, ratio: float) -> None:
    machine, found = predictions.Machine(), step(predictions, ratio, model=name)
    places = predictions.place_seconds(found, machine)
    layers = sum(predictions.layer_seconds(found, machine))
    link = predictions.link_rate(machine)
    assert all(seconds >= layers for seconds in places.values())
    assert places["no histories"] <= places["on the GPU"] <= places["serial"]
    assert found.pulled / link <= places["concurrent"] <= places["serial"]
    assert places["serial"] >= layers + (found.pulled + found.pushed) / link
    assert places["concurrent"] <= places["PyGAS's way"]


@pytest.mark.parametrize(("name", "least"), [("GCN", 1.0), ("GCNII", 1.0), ("GAT", 1.3), ("PNA", 1.3)])
def test_messages_cost_more_where_they_are_tensors(predictions: Any, name: str, least: float) -> None:
    machine = predictions.Machine()
    csr, edge_index = (
        sum(predictions.layer_seconds(step(predictions, model=name, csr=csr), machine)) for csr in (True, False)
    )
    assert edge_index == csr if least == 1.0 else edge_index > least * csr


@pytest.mark.parametrize("ratio", [0.25, 1.0, 2.0])
def test_halos_of_batches_of_several_parts(predictions: Any, ratio: float) -> None:
    from torch_gas import SubgraphLoader

    data, ptr = __import__("workload").block_graph(32_000, 640_000, 32, ratio, 3, 4)
    batch = next(iter(SubgraphLoader(data, ptr, 4, shuffle=True, seed=0)))
    expected = predictions.halo_ratio(ratio, num_parts=32, parts_a_batch=4)
    assert batch.halo_size / batch.batch_size == pytest.approx(expected, rel=0.02)


def test_the_page_has_the_figures_that_are_computed() -> None:
    """And says that nobody measured them."""
    command = [sys.executable, str(GPU / "predictions.py")]
    out = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    page = (GPU.parents[1] / "docs" / "gpu.md").read_text()
    found = out.strip().split("\n\n")
    assert len(found) == 8 and all(each in page or each in " ".join(page.split()) for each in found)
    assert "Nothing in this section was measured" in page


SECTION = {"question": "?", "machine": {"device": "none"}, "quick": False}


def test_the_table_of_a_run_that_was_cut(predictions: Any, tmp_path: Path) -> None:
    """Figures that were saved beside their predictions; none that was not measured has a ratio."""
    rows = [{"bytes a row": 64, "table": "float32", "pinned, predicted GB/s": 28.0, "pinned, GB/s": 14.0}]
    steps = [{"model": "GCN", "S / B": 0.5, "serial, ms": "not measured on the CPU", "serial, predicted ms": 8.0}]
    copies = [{"to the device, GB/s": 50.0, "to the host, GB/s": 40.0}]
    way = "histories in host memory"
    grown = [{"N": n, f"{way}, MiB": mib, f"{way}, predicted growth": 1.0} for n, mib in ((10, 5.0), (160, 5.5))]
    sections = {
        "rows": {**SECTION, "tables": [{"rows": rows}]},
        "step": {**SECTION, "tables": [{"rows": steps}, {"rows": copies}]},
        "memory": {**SECTION, "tables": [{"rows": grown}]},
    }
    (tmp_path / "results.json").write_text(json.dumps(sections))
    command = [sys.executable, str(GPU / "summary.py"), str(tmp_path)]
    out = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    assert out.startswith("device none\n\n| stage | figure |")
    assert "| rows | pull, rows of 64 bytes, pinned | GB/s | 28 | 14 | 0.50 |" in out
    assert "| step | GCN, S / B = 0.50, serial | ms | 8 | not measured on the CPU |  |" in out
    assert "| step | copy to the host | GB/s | 55.31 | 40 | 0.72 |" in out
    assert "by that of N = 10 | times | 1 | 1.1 | 1.10 |" in out
    nothing = subprocess.run([*command[:2], str(tmp_path / "no")], capture_output=True, text=True, check=True).stdout
    assert nothing.startswith("nothing was measured") and nothing.count("\n") == 4
