"""The comparison of gradients: its command, cells that commands share, samplers that are right on average, and its tables."""

from __future__ import annotations

import json
import os
import runpy
import subprocess
import sys
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from matplotlib import image

from torch_gas import gcn_norm, get_data, metis, permute
from torch_gas.models import GCN, GCN2

PAPER = Path(__file__).parents[2] / "benchmarks" / "paper"
FOLDERS = (PAPER.parent, PAPER)
TINY = """
[GCN-3."synthetic:300"]
kind = "GCN"
model = { hidden_channels = 8, num_layers = 3, dropout = 0.5, batch_norm = true }
batches = 3
epochs = 2
full_epochs = 4
seeds = 1
methods = ["all"]
variants = [{ lr = 0.03 }, { stage = 1, seeds = 2, parts = "metis", grouped = 2, methods = ["GAS"] }]

[GCNII-4."synthetic:300"]
kind = "GCN2"
model = { hidden_channels = 8, num_layers = 4, alpha = 0.1, theta = 0.5, dropout = 0.5 }
batches = 2
epochs = 1
full_epochs = 1
seeds = 1
methods = ["full batch", "LADIES", "VR-GCN"]

[SAGE-max."synthetic:300"]
kind = "SAGEMax"
model = { hidden_channels = 8, num_layers = 2 }
batches = 2
epochs = 1
full_epochs = 1
seeds = 1
stage = 2
"""

pytestmark = pytest.mark.filterwarnings("ignore:Sparse (CS|invariant):UserWarning")


@pytest.fixture(autouse=True)
def modules(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Lets commands import what they share; other folders have modules of the same names."""
    for folder in FOLDERS:
        monkeypatch.syspath_prepend(str(folder))
    names = {path.stem for folder in FOLDERS for path in folder.glob("*.py")}
    before = {name: sys.modules.pop(name) for name in names & sys.modules.keys()}
    yield
    for name in names & sys.modules.keys():
        del sys.modules[name]
    sys.modules.update(before)


@pytest.fixture
def run(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Callable[..., list[dict[str, Any]]]:
    """Runs the command in this process with results in ``tmp_path``, and gives its tables."""
    (tmp_path / "recipes.toml").write_text(TINY)

    def run(*options: str) -> list[dict[str, Any]]:
        given = ["gradients", "--out", str(tmp_path), "--recipes", str(tmp_path / "recipes.toml"), *options]
        monkeypatch.setattr(sys, "argv", given)
        with torch.random.fork_rng(devices=[]):
            runpy.run_path(str(PAPER / "gradients.py"), run_name="__main__")
        tables: list[dict[str, Any]] = json.loads((tmp_path / "results.json").read_text())["gradients"]["tables"]
        return tables

    return run


def runs_in(folder: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (folder / "cells" / "gradients.jsonl").read_text().splitlines()]


@pytest.mark.slow
def test_every_method_runs_once_in_each_cell(run: Callable[..., list[dict[str, Any]]], tmp_path: Path) -> None:
    from registry import METHODS

    core = [name for name, each in METHODS.items() if each.core]
    tables = run()
    runs = runs_in(tmp_path)
    # A base with all methods and another with three, a rate with the core, METIS parts with GAS alone, a model with the core.
    assert len(runs) == len(METHODS) + 3 + len(core) + 2 + len(core)
    assert len({json.dumps(each["of"]) for each in runs}) == len(runs)
    for each in runs:
        records, last = each["result"]["records"], each["result"]["last"]
        assert records[0][0] == 1 and [record[1] for record in records] == sorted({record[1] for record in records})
        assert 0 <= last[2] <= 10_000 and last[0] >= records[-1][0]
        assert ("step, bytes" in each["result"]) is (each["of"]["seed"] == 0)
    accuracy = tables[0]["rows"]
    assert [row["parts"] for row in accuracy] == ["random", "random", "metis", "random", "random"]
    assert all(row["full batch"] != "-" for row in accuracy)
    assert [table["title"] for table in tables][3:] == ["Beside the full batch at its best rate"]
    for name in ("gradients", "gradients_differences"):
        assert image.imread(tmp_path / f"{name}.png").std() > 0

    assert run() == tables and run("--page") == tables
    assert runs_in(tmp_path) == runs


def test_methods_and_models_can_be_chosen(run: Callable[..., list[dict[str, Any]]], tmp_path: Path) -> None:
    run("--models", "GCN-3", "--stages", "1", "--methods", "GAS")
    assert [(each["of"]["parts"], each["of"]["method"]) for each in runs_in(tmp_path)] == [("metis", "GAS")] * 2


HOLD = """
import sys
from pathlib import Path
from cells import Cells
with Cells(Path(sys.argv[1]))._claim({"model": "a", "data": "b"}) as claimed:
    print(claimed, flush=True)
    sys.stdin.read()
"""


def test_commands_leave_out_what_another_one_is_at(tmp_path: Path) -> None:
    """A command that was killed is at nothing."""
    from cells import Cells, Job, Tasks

    path = tmp_path / "cells.jsonl"
    jobs = [Job({"model": model, "data": "b"}, {}, lambda task: {"task": task}) for model in ("a", "c")]
    tasks = Tasks(lambda model, data: model + data)
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(map(str, [*FOLDERS, PAPER.parents[1]]))}
    options: Any = {"env": environment, "stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "text": True}
    with subprocess.Popen([sys.executable, "-c", HOLD, str(path)], **options) as other:
        assert other.stdout is not None and other.stdout.readline() == "True\n"
        Cells(path).run(jobs, tasks)
        assert [json.loads(line)["of"]["model"] for line in path.read_text().splitlines()] == ["c"]
        other.kill()
    Cells(path).run(jobs, tasks)
    assert [json.loads(line)["result"]["task"] for line in path.read_text().splitlines()] == ["cb", "ab"]


def test_a_cell_that_another_command_has_finished_meanwhile_is_not_run_again(tmp_path: Path) -> None:
    from cells import Cells, Job, Tasks

    path, tasks = tmp_path / "cells.jsonl", Tasks(lambda model, data: model)
    job = Job({"model": "a", "data": "b"}, {}, lambda task: {"task": task})
    early = Cells(path)
    Cells(path).run([job], tasks)
    early.run([job], tasks)
    assert len(path.read_text().splitlines()) == 1


# -- samplers ----------------------------------------------------------------------------------------------------------

NODES, WIDTH, CLASSES = 60, 64, 10


@pytest.fixture(scope="module")
def graph() -> Any:
    """A small normalised graph with its matrix, labels of half of the nodes, and parts."""
    data = gcn_norm(get_data("", f"synthetic:{NODES}", layout="csr")[0])
    perm, ptr = metis(data, 8, log=False)
    return permute(data, perm, log=False), ptr


def sampler(name: str, data: Any, ptr: Any, num_layers: int = 1, batches: int = 3) -> Any:
    from sampling import Clusters, Layers, Neighbors, RandomWalks

    generator = torch.Generator().manual_seed(0)
    common = {"adj_t": data.adj_t, "labelled": data.train_mask, "batches": batches, "generator": generator}
    return {
        "clusters": partial(Clusters, ptr=ptr, num_layers=num_layers),
        "neighbors": partial(Neighbors, sizes=[2] * num_layers),
        "layers": partial(Layers, draws=10, num_layers=num_layers, dependent=False),
        "dependent layers": partial(Layers, draws=10, num_layers=num_layers, dependent=True),
        "walks": partial(RandomWalks, roots=8, length=2, num_layers=num_layers, counted=2000),
    }[name](**common)


ON_AVERAGE = ("neighbors", "layers", "dependent layers", "walks")


@pytest.mark.parametrize("name", ON_AVERAGE)
def test_sums_over_samples_are_right_on_average(graph: Any, name: str) -> None:
    data, ptr = graph
    dense, x = data.adj_t.to_dense().double(), data.x.double()
    sums, times = torch.zeros(NODES, WIDTH, dtype=torch.float64), torch.zeros(NODES, dtype=torch.float64)
    squares = torch.zeros(NODES, WIDTH, dtype=torch.float64)
    samples = sampler(name, data, ptr)
    for _ in range(1500):
        for sample in samples:
            (matrix,) = sample.matrices
            dst = sample.n_id[: matrix.size(0)]
            rows = matrix.to_dense().double() @ x[sample.n_id]
            sums[dst] += rows
            squares[dst] += rows.square()
            times[dst] += 1
    seen = times > 200
    assert seen.sum() >= data.train_mask.sum()
    mean = sums[seen] / times[seen, None]
    error = ((squares[seen] / times[seen, None] - mean.square()).clamp(min=0) / times[seen, None]).sqrt()
    gap = (mean - (dense @ x)[seen]).abs()
    assert float(error.max()) > 0  # rows do depend on what was drawn
    assert float((gap / (error + 1e-3)).square().mean().sqrt()) < 2.5


@pytest.mark.parametrize("name", [*ON_AVERAGE, "clusters"])
def test_losses_of_an_epoch_weigh_all_labelled_nodes_alike(graph: Any, name: str) -> None:
    data, ptr = graph
    weight, epochs, batches = torch.zeros(NODES), 500 if name == "walks" else 1, 3
    samples = sampler(name, data, ptr, batches=batches)
    for _ in range(epochs):
        for sample in samples:
            weight[sample.n_id[: len(sample.weight)]] += sample.weight / (batches * epochs)
    expected = data.train_mask / data.train_mask.sum()
    torch.testing.assert_close(weight, expected, rtol=0, atol=0.005 if name == "walks" else 1e-6)


def test_batches_of_clusters_have_the_edges_inside_and_the_sums_of_the_graph(graph: Any) -> None:
    data, ptr = graph
    dense = data.adj_t.to_dense()
    nodes = []
    for sample in sampler("clusters", data, ptr):
        matrix, inside = sample.matrices[0].to_dense(), dense[sample.n_id][:, sample.n_id]
        torch.testing.assert_close(matrix.sum(1), dense[sample.n_id].sum(1))
        scale = matrix.sum(1) / inside.sum(1)
        torch.testing.assert_close(matrix, inside * scale[:, None])
        nodes.append(sample.n_id)
    assert torch.cat(nodes).sort().values.tolist() == list(range(NODES))


MODELS = {
    "GCN": lambda: GCN(NODES, WIDTH, 8, CLASSES, num_layers=3, batch_norm=True),
    "GCNII": lambda: GCN2(NODES, WIDTH, 8, CLASSES, num_layers=3, alpha=0.1, theta=0.5),
}


@pytest.mark.parametrize("sparse", [False, True], ids=["dense", "sparse"])
@pytest.mark.parametrize("name", MODELS)
def test_models_on_samples_are_those_on_the_graph(graph: Any, name: str, sparse: bool) -> None:
    """On a sample of everything, in outputs and gradients; with fewer rows in each layer as well."""
    from sampling import Neighbors, Sample, forward

    from torch_gas.graph.attributes import take

    data, _ = graph
    x = data.x.to_sparse_csr() if sparse else data.x
    torch.manual_seed(0)
    model = MODELS[name]().eval()
    expected = model(data.x, data.adj_t)
    grads = torch.autograd.grad(expected.square().sum(), list(model.parameters()))
    out = forward(model, x, Sample(torch.arange(NODES), [data.adj_t] * 3, torch.ones(NODES)))
    torch.testing.assert_close(out, expected, rtol=1e-4, atol=1e-5)
    found = torch.autograd.grad(out.square().sum(), list(model.parameters()))
    for ours, theirs in zip(found, grads, strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-3, atol=1e-4)

    everyone = Neighbors(data.adj_t, data.train_mask, 4, [None] * 3, torch.Generator().manual_seed(0))
    for sample in everyone:
        out = forward(model, take(x, sample.n_id), sample)
        torch.testing.assert_close(out, expected[sample.n_id[: len(out)]], rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("name", MODELS)
def test_control_variates_are_exact_where_nothing_has_changed(graph: Any, name: str) -> None:
    """Whatever the samples are; and once parameters have moved, histories of sampled nodes become what these have now."""
    from sampling import ControlVariate, forward

    data, _ = graph
    torch.manual_seed(0)
    model = MODELS[name]().eval()
    samples = ControlVariate(model, data.x, data.adj_t, data.train_mask, 4, 2, torch.Generator().manual_seed(0))
    model.eval()
    expected = model(data.x, data.adj_t).detach()
    for sample in samples:
        out = forward(model, data.x[sample.n_id], sample, partial(samples.product, sample))
        torch.testing.assert_close(out, expected[sample.n_id[: len(out)]], rtol=1e-4, atol=1e-5)
        assert sample.matrices[-1].values().numel() < sample.more["full"][-1][1].values().numel()
    before = [table.clone() for table in samples.tables]
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.mul_(1.5)
    sample = next(iter(samples))
    out = forward(model, data.x[sample.n_id], sample, partial(samples.product, sample))
    assert (out - model(data.x, data.adj_t)[sample.n_id[: len(out)]]).abs().max() > 1e-3
    for layer in range(1, 3):
        changed = (samples.tables[layer] != before[layer]).any(1).nonzero().view(-1)
        assert set(changed.tolist()) <= set(sample.n_id[: sample.matrices[layer].size(1)].tolist()) and len(changed) > 0
        assert not samples.tables[layer].requires_grad


# -- trainers ----------------------------------------------------------------------------------------------------------


def test_losses_have_one_scale(tmp_path: Path) -> None:
    """The mean over an epoch's batches with exact histories is the loss of the whole graph, for histories and exact mode."""
    from grid import Cell, prepare
    from registry import METHODS

    model = {"hidden_channels": 8, "num_layers": 3}
    cell = Cell("GCN", "synthetic:300", "GCN", model, epochs=1, full_epochs=1, batches=5)
    losses = {}
    for name in ("full batch", "GAS", "exact mode"):
        method = METHODS[name]
        own = method.cell(cell)
        task = prepare("", "GCN", cell.data, "GCN", (), own.batches, own.parts, 0)
        trainer = method.trainer(own, task, 0, **method.options)
        trainer.model.train()
        if name == "exact mode":
            losses[name] = trainer.exact.backward(lambda out, batch, of=trainer: of.mean_loss(out, batch, 1))
            continue
        found = [trainer.loss(batch).detach() for batch in trainer.batches()]
        losses[name] = torch.stack(found).mean()
    torch.testing.assert_close(losses["GAS"], losses["full batch"])
    torch.testing.assert_close(losses["exact mode"], losses["full batch"])


def test_evaluation_is_that_of_the_whole_graph_and_changes_no_history() -> None:
    from grid import Cell, prepare
    from trainers import Histories

    cell = Cell("PNA", "synthetic:300", "SAGEMax", {"hidden_channels": 8, "num_layers": 3}, epochs=1, full_epochs=1)
    trainer = Histories(cell, prepare("", "PNA", cell.data, "SAGEMax", (), 10, "random", 0), 0)
    trainer.epoch()
    before = [history.emb.clone() for history in trainer.model.histories]
    found = trainer.evaluate()
    assert all(torch.equal(history.emb, table) for history, table in zip(trainer.model.histories, before, strict=True))
    graph = trainer.graph
    right = trainer.model.eval()(graph.x, graph.adj_t).argmax(1) == graph.y
    assert found == [float(right[mask].float().mean()) for mask in (graph.val_mask, graph.test_mask)]


# -- tables ------------------------------------------------------------------------------------------------------------


def made(*records: tuple[int, int, int, int], epochs: int = 10) -> dict[str, Any]:
    return {"records": list(records), "last": [epochs, 5000, 5000, 100 * epochs]}


def test_tables_say_what_runs_left() -> None:
    """Full batch has more epochs, of which the first count beside others; differences are of seeds that both have."""
    from comparison import cost_rows, difference_rows, reached, test_of, verdict
    from grid import Cell

    full = made((1, 3000, 3100, 10), (4, 8000, 7900, 40), (9, 10_000, 9000, 90), epochs=20)
    assert [test_of(full, epochs) for epochs in (3, 5, None)] == [31, 79, 90]
    assert reached(made((1, 9000, 0, 10), (2, 9900, 0, 25)), full) == (2, 0.025)
    assert reached(made((1, 9899, 0, 10)), full) is None

    cell = Cell("m", "d", "GCN", {}, epochs=5, full_epochs=20)
    runs = {
        "full batch": {0: full, 1: full},
        "GAS": {0: made((1, 9000, 8000, 10)), 1: made((1, 9900, 8200, 30)), 2: made((1, 9900, 1000, 30))},
        "compensation": {0: made((1, 9900, 8100, 10)), 1: made((1, 9900, 8500, 20))},
    }
    (row,) = difference_rows([(cell, runs)])
    assert row["compensation"] == "+2.00 ± 1.00" and row["full batch"] == "-2.00 ± 1.00" and row["exact mode"] == "-"
    by_method = {row["method"]: row for row in cost_rows([(cell, runs)])}
    assert list(by_method) == ["full batch", "full batch, 20 epochs", "GAS", "compensation"]
    assert by_method["full batch, 20 epochs"]["test, %"] == "90.00 ± 0.00"
    assert by_method["GAS"]["runs that reach it"] == "1 of 2" and by_method["GAS"]["seconds to it"] == "-"
    assert by_method["compensation"]["seconds to it"] == "0.015"
    assert "mean of 1 cells +2.00" in verdict([(cell, runs)], "compensation")
    worse = {"GAS": runs["compensation"], "compensation": {0: made((1, 1, 7000, 1)), 1: made((1, 1, 7400, 1))}}
    assert "two standard errors in m d random 10 0.01 (-11.00 ± 0.00); below it by less in none" in verdict(
        [(cell, worse)], "compensation"
    )


def test_methods_are_compared_with_the_full_batch_at_its_best_rate() -> None:
    from dataclasses import replace

    from comparison import best_rate_rows
    from grid import Cell

    cell = Cell("m", "d", "GCN", {}, epochs=5, full_epochs=20)
    quick = made((1, 8000, 8000, 1), epochs=20)
    slow = made((1, 7000, 7000, 1), (15, 9000, 9000, 15), epochs=20)
    found = [
        (cell, {"full batch": {0: quick}, "GAS": {0: made((1, 1, 8500, 1))}}),
        (replace(cell, lr=0.003, stage=1), {"full batch": {0: slow}}),
    ]
    rows = best_rate_rows(found)
    assert [(row["method"], row["rate"], row["test, %"]) for row in rows] == [
        ("full batch, 5 steps", "0.01", "80.00"),
        ("full batch, 20 steps", "0.003", "90.00"),
        ("GAS", "0.01", "85.00"),
    ]
    assert list(rows[2].values())[-2:] == ["+5.00", "-5.00"]


@pytest.mark.slow
def test_ways_to_labels_of_many_hops(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Each way trains on a small mesh, and the table has them all; what is there is not run again."""
    side = torch.arange(400).view(20, 20)
    pairs = [(side[:, :-1], side[:, 1:]), (side[:-1], side[1:])]
    edges = torch.cat([torch.stack([left.flatten(), right.flatten()]) for left, right in pairs], dim=1)
    (tmp_path / "plain").mkdir()
    np.savez(tmp_path / "plain" / "wing.npz", edge_index=edges.numpy(), num_nodes=400)
    module = runpy.run_path(str(PAPER / "longrange.py"))
    data = module["mesh"](str(tmp_path), 300)
    assert data.num_nodes == 300 and data.x.shape == (300, 6) and data.y.bincount().tolist() == [30] * 10
    assert (data.train_mask.int() + data.val_mask.int() + data.test_mask.int() == 1).all()
    arguments = ["--root", str(tmp_path), "--nodes", "300", "--steps", "4", "--seeds", "1", "--out", str(tmp_path)]
    monkeypatch.setattr(sys, "argv", ["longrange", *arguments])
    with torch.random.fork_rng(devices=[]):
        runpy.run_path(str(PAPER / "longrange.py"), run_name="__main__")
    (table,) = json.loads((tmp_path / "results.json").read_text())["longrange"]["tables"]
    assert [row["way"] for row in table["rows"]] == list(module["WAYS"])
    lines = (tmp_path / "cells" / "longrange.jsonl").read_text()
    runpy.run_path(str(PAPER / "longrange.py"), run_name="__main__")
    assert (tmp_path / "cells" / "longrange.jsonl").read_text() == lines
