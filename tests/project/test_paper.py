"""The commands of the paper's tables run on tiny recipes: they finish, go on where they were, and write tables and pictures."""

from __future__ import annotations

import copy
import importlib.util
import itertools
import json
import re
import runpy
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from matplotlib import image
from test_datasets import write

from torch_gas import SubgraphLoader, gcn_norm, get_data, metis, permute
from torch_gas.models import GCN

PAPER = Path(__file__).parents[2] / "benchmarks" / "paper"
RESULTS = PAPER.parent / "results" / "paper"
FOLDERS = (PAPER.parent, PAPER, PAPER.parents[1] / "examples")
TINY = """
[GCN."synthetic:300"]
published = { full_batch = [80.0, 1.0], histories = [81.0, 2.0] }
model = { hidden_channels = 8, num_layers = 2, dropout = 0.5 }
parts = 6
batch_size = 3
lr = 0.01
weight_decay = 5e-4
max_norm = 1.0
epochs = 3

[GAT."synthetic:300"]
model = { hidden_channels = 4, hidden_heads = 2, out_heads = 1, num_layers = 2 }
parts = 6
batch_size = 3
lr = 0.01
epochs = 2
"""

MADE = """
[GCN."made graph"]
synthetic = { num_nodes = 400, num_classes = 4, num_features = 16, avg_degree = 8.0 }
model = { hidden_channels = 8 }
parts = 12
batch_size = 1
"""
STAND_IN = (
    MADE.replace("channels = 8", "channels = 8, num_layers = 2")
    + """
methods = ["full batch", "GraphSAGE sampling", "Cluster-GCN", "histories"]
lr = 0.01
epochs = 2
epochs_by_method = { "full batch" = 3 }
"""
)

needs_sampler = pytest.mark.skipif(
    not any(importlib.util.find_spec(name) for name in ("pyg_lib", "torch_sparse")),
    reason="sampling neighbours needs pyg-lib or torch-sparse",
)
pytestmark = [
    pytest.mark.filterwarnings("ignore:Sparse (CS|invariant):UserWarning"),
    pytest.mark.filterwarnings("ignore:Using '.*' without a 'pyg-lib' installation:UserWarning"),
]


@pytest.fixture(autouse=True)
def modules(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Lets commands import what they share; other folders have modules of the same names."""
    for folder in (PAPER.parent, PAPER):
        monkeypatch.syspath_prepend(str(folder))
    names = {path.stem for folder in FOLDERS for path in folder.glob("*.py")}
    before = {name: sys.modules.pop(name) for name in names & sys.modules.keys()}
    yield
    for name in names & sys.modules.keys():
        del sys.modules[name]
    sys.modules.update(before)


@pytest.fixture
def run(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Callable[..., dict[str, Any]]:
    """Runs a command in this process with results in ``tmp_path``, and gives its section of them."""

    def run(name: str, *options: str, recipes: str | None = TINY, picture: bool = True) -> dict[str, Any]:
        if recipes is not None:
            (tmp_path / "recipes.toml").write_text(recipes)
            options = ("--recipes", str(tmp_path / "recipes.toml"), "--device", "cpu", *options)
        monkeypatch.setattr(sys, "argv", [name, "--out", str(tmp_path), *options])
        with torch.random.fork_rng(devices=[]):
            runpy.run_path(str(PAPER / f"{name}.py"), run_name="__main__")
        section: dict[str, Any] = json.loads((tmp_path / "results.json").read_text())[name]
        assert section["question"].endswith((".", "?", ")"))
        assert not picture or image.imread(tmp_path / f"{name}.png").std() > 0
        return section

    return run


def test_small_writes_every_cell_once(run: Callable[..., dict[str, Any]], tmp_path: Path) -> None:
    section = run("small", "--seeds", "2")
    gcn, gat = section["tables"][0]["rows"]
    assert (gcn["model"], gcn["data set"], gcn["seeds"]) == ("GCN", "synthetic:300", 2)
    assert gcn["histories in the paper, %"] == "81.00 ± 2.00" and gat["histories in the paper, %"] == "-"
    cells = tmp_path / "cells" / "small.jsonl"
    finished = cells.read_text()
    assert len(finished.splitlines()) == 2 * 2 * 2

    assert run("small", "--seeds", "2")["tables"] == section["tables"]
    assert cells.read_text() == finished

    run("small", "--seeds", "3", "--models", "GAT")
    assert len(cells.read_text().splitlines()) == 2 * 2 * 2 + 2


def test_small_runs_a_cell_again_when_its_recipe_changed(run: Callable[..., dict[str, Any]], tmp_path: Path) -> None:
    run("small", "--seeds", "1", "--models", "GCN")
    before = (tmp_path / "cells" / "small.jsonl").read_text().splitlines()
    run("small", "--seeds", "1", "--models", "GCN", recipes=TINY.replace("lr = 0.01", "lr = 0.02"))
    after = (tmp_path / "cells" / "small.jsonl").read_text().splitlines()
    assert after[:2] == before and len(after) == 4


def test_small_leaves_out_data_that_is_not_there(
    run: Callable[..., dict[str, Any]], tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: Any
) -> None:
    monkeypatch.setenv("http_proxy", "http://127.0.0.1:9")
    monkeypatch.setenv("https_proxy", "http://127.0.0.1:9")
    both = TINY + TINY.replace("synthetic:300", "Cora").replace("[GAT", "[APPNP").split("[APPNP")[0]
    section = run("small", "--seeds", "1", "--models", "GCN", "--root", str(tmp_path / "none"), recipes=both)
    assert [row["data set"] for row in section["tables"][0]["rows"]] == ["synthetic:300"]
    assert "Cora is left out" in capsys.readouterr().out


def test_convergence_tells_epochs_and_steps(run: Callable[..., dict[str, Any]], tmp_path: Path) -> None:
    (section,) = run("convergence", "--seeds", "2", "--models", "GCN")["tables"]
    full, metis, random = section["rows"]
    assert [row["method"] for row in section["rows"]] == ["full batch", "METIS parts", "random parts"]
    assert [row["steps an epoch"] for row in section["rows"]] == [1, 2, 2]
    assert full["runs that reach it"] == "2 of 2" and full["steps to it"] == full["epochs to 99% of full batch"]
    runs = [json.loads(line) for line in (tmp_path / "cells" / "convergence.jsonl").read_text().splitlines()]
    assert [len(cell["result"]["val"]) for cell in runs] == [3] * 6
    assert metis["best validation, %"] != random["best validation, %"]

    assert run("convergence", "--seeds", "2", "--models", "GCN")["tables"] == [section]
    assert len((tmp_path / "cells" / "convergence.jsonl").read_text().splitlines()) == 6


def test_convergence_finds_the_first_epoch(modules: None) -> None:
    from convergence import first_epoch

    assert first_epoch([0.1, 0.5, 0.4, 0.6], 0.5) == 2
    assert first_epoch([0.1, 0.5], 0.6) is None


def test_storage_changes_nothing_but_the_type_of_histories(run: Callable[..., dict[str, Any]], tmp_path: Path) -> None:
    (section,) = run("storage", "--seeds", "2")["tables"]
    gcn, gat = section["rows"][:4], section["rows"][4:]
    assert [row["histories"] for row in gcn] == ["float32", "float16", "bfloat16", "int8"]
    assert [row["bytes a node"] for row in gcn] == [32, 16, 16, 12]
    assert [row["bytes a node"] for row in gat] == [32, 16, 16, 12]
    assert {row["seeds"] for row in section["rows"]} == {2} and gcn[0]["minus float32, points"] == "-"
    cells = tmp_path / "cells" / "storage.jsonl"
    runs = [json.loads(line) for line in cells.read_text().splitlines()]
    assert len(runs) == 2 * 2 * 4
    tests = {(run["of"]["model"], run["of"]["method"], run["of"]["seed"]): run["result"]["test"] for run in runs}
    gaps = [100 * (tests["GCN", "int8", seed] - tests["GCN", "float32", seed]) for seed in (0, 1)]
    assert gcn[3]["minus float32, points"] == f"{sum(gaps) / 2:+.2f}"
    assert gcn[3]["standard error"] == f"{abs(gaps[0] - gaps[1]) / 2:.2f}"  # the deviation over the root of two

    assert run("storage", "--seeds", "2")["tables"] == [section]
    assert len(cells.read_text().splitlines()) == len(runs)


ABLATION = """
[GCN2."synthetic:300"]
model = { hidden_channels = 8, num_layers = 4, alpha = 0.1, theta = 0.5, dropout = 0.5 }
parts = 6
batch_size = 3
lr = 0.01
epochs = 3

[GIN."synthetic-cluster:4"]
model = { hidden_channels = 8, num_layers = 3 }
parts = 6
batch_size = 2
lr = 0.01
epochs = 2
noise = 0.2
"""


@pytest.mark.slow
def test_ablation_compares_all_variants(run: Callable[..., dict[str, Any]], tmp_path: Path) -> None:
    accuracy, bounds = run("ablation", "--seeds", "1", recipes=ABLATION)["tables"]
    assert [row["data set"] for row in accuracy["rows"]] == ["synthetic:300"] * 10 + ["synthetic-cluster:4"] * 10
    assert [row["refreshed after each epoch"] for row in accuracy["rows"][:10]] == ["-", *["no"] * 4, "-", *["yes"] * 4]
    parts = ["random parts", "random parts, regularised", "METIS parts", "METIS parts, regularised"]
    assert [row["variant"] for row in accuracy["rows"][:5]] == ["full batch", *parts]
    gcn2 = [row for row in accuracy["rows"][:10] if row["variant"] != "full batch"]
    assert len({row["error of outputs, %"] for row in gcn2}) > 1 and all(
        float(row["error of histories, %"]) > 0 for row in gcn2
    )
    assert len(bounds["rows"]) == 16
    for row in bounds["rows"]:
        assert 0 < float(row["error"]) <= float(row["bound, node by node"]) <= float(row["bound of the theorem"])
        assert float(row["largest error / bound of a node"]) <= 1

    cells = [json.loads(line) for line in (tmp_path / "cells" / "ablation.jsonl").read_text().splitlines()]
    assert len(cells) == 2 * 9
    tests = {
        (cell["of"]["regularised"], cell["of"]["refresh"]): cell["result"]["bounds"]
        for cell in cells
        if cell["of"]["model"] == "GCN2" and cell["of"]["partition"] == "metis"
    }
    assert len(set(map(str, tests.values()))) == 4  # the penalty and refreshes change what is trained


def test_sets_of_graphs_are_joined_with_a_mask_for_each_split() -> None:
    from training import prepare

    from torch_gas import get_data

    graph = prepare("", "GIN", "synthetic-cluster:10", 4).graph
    sizes = [get_data("", "synthetic-cluster:10", split=split)[0].num_nodes for split in ("train", "val", "test")]
    masks = torch.stack([graph.train_mask, graph.val_mask, graph.test_mask])
    assert masks.sum(1).tolist() == sizes and (masks.sum(0) == 1).all()
    destination = torch.arange(graph.num_nodes).repeat_interleave(graph.adj_t.crow_indices().diff())
    assert torch.equal(masks[:, graph.adj_t.col_indices()], masks[:, destination])


def test_an_error_above_its_bound_ends_the_run(
    run: Callable[..., dict[str, Any]], monkeypatch: pytest.MonkeyPatch
) -> None:
    from torch_gas import Monitor

    bound = Monitor.bound
    monkeypatch.setattr(
        Monitor, "bound", lambda *args, **kwargs: [each._replace(worst=1.01) for each in bound(*args, **kwargs)]
    )
    with pytest.raises(AssertionError, match=r"epoch 1: an error is 1\.01 times its bound"):
        run("ablation", "--seeds", "1", "--models", "GCN2", recipes=ABLATION)


@pytest.mark.slow
def test_access_sweeps_connections_for_each_model(run: Callable[..., dict[str, Any]]) -> None:
    section = run("access", "--quick", recipes=None)
    (table,) = section["tables"]
    assert section["quick"] and "made before; Adam" in table["note"]
    assert [row["inter / intra"] for row in table["rows"]] == [0.25, 0.5, 1.0, 2.0, 3.0] * 4
    for row in table["rows"]:
        assert 0.8 * row["inter / intra"] <= row["S / B"] <= row["inter / intra"]
        assert min(row["with histories, ms"], row["without, ms"], row["a plain copy of it, ms"]) > 0
    gcn = table["rows"][2]
    assert gcn["pushed and pulled, MB"] == pytest.approx((1 + gcn["S / B"]) * 60 * 3 * 16 * 4 / 1e6)


def test_models_without_a_recipe_are_refused(run: Callable[..., dict[str, Any]]) -> None:
    with pytest.raises(SystemExit, match=r"no recipe for PNA; recipes\.toml has GCN, GAT"):
        run("small", "--models", "PNA")


def test_every_recipe_of_the_paper_is_complete() -> None:
    from training import RECIPES, load_recipes

    recipes = load_recipes(RECIPES / "small.toml")
    assert list(recipes) == ["GCN", "GAT", "APPNP", "GCN2"]
    assert [len(found) for found in recipes.values()] == [8, 6, 8, 8]
    for found in recipes.values():
        for recipe in found.values():
            assert 0 < recipe.batch_size < recipe.parts and recipe.published.keys() == {"full_batch", "histories"}


def test_recipes_of_cora_are_those_of_table_1() -> None:
    from dataclasses import replace

    from ablation import Regularised
    from training import RECIPES, load_recipes

    small, convergence, storage = (
        load_recipes(RECIPES / f"{name}.toml") for name in ("small", "convergence", "storage")
    )
    ablation = load_recipes(RECIPES / "ablation.toml", Regularised)
    for name, recipe in (
        ("GCN", convergence["GCN"]["Cora"]),
        ("GCN", storage["GCN"]["Cora"]),
        ("GCN2", convergence["GCN2"]["Cora"]),
        ("GCN2", ablation["GCN2"]["Cora"]),
    ):
        published = small[name]["Cora"].settings
        assert {key: recipe.settings[key] for key in published} == replace(
            small[name]["Cora"], epochs=recipe.epochs
        ).settings


def test_recipes_of_storage_types_are_those_of_other_tables() -> None:
    from training import RECIPES, load_recipes

    small, convergence, storage = (
        load_recipes(RECIPES / f"{name}.toml")["GCN"] for name in ("small", "convergence", "storage")
    )
    assert list(storage) == ["Cora", "Coauthor-CS", "WordNet"]
    assert storage["Coauthor-CS"].settings == small["Coauthor-CS"].settings
    assert storage["WordNet"].settings == convergence["WordNet"].settings


@pytest.mark.parametrize("name", ["README.md", "docs/results.md", "docs/comparison.md"])
def test_pages_have_the_tables_that_are_committed(name: str) -> None:
    from page import PAGES, ROOT, filled

    assert ROOT / name in PAGES
    page, sections = (ROOT / name).read_text(), json.loads((RESULTS / "results.json").read_text())
    assert filled(page, sections) == page, "python benchmarks/paper/page.py"
    changed = page.replace("<!-- end -->", "| an old row |\n<!-- end -->")
    assert changed != page and filled(changed, sections) == page


# -- large graphs ------------------------------------------------------------------------------------------------------


@pytest.mark.slow
@needs_sampler
def test_large_compares_methods_and_goes_on_where_it_was(run: Callable[..., dict[str, Any]], tmp_path: Path) -> None:
    run("large", "--seeds", "1", "--methods", "histories", recipes=STAND_IN)
    section = run("large", "--seeds", "2", recipes=STAND_IN)
    (table,) = section["tables"]  # and none of published figures
    rows = {row["method"]: row for row in table["rows"]}
    assert list(rows) == ["full batch", "GraphSAGE sampling", "Cluster-GCN", "histories"]
    assert [row["epochs"] for row in rows.values()] == [3, 2, 2, 2]
    assert [row["steps an epoch"] for row in rows.values()] == [1, 12, 12, 12]
    assert rows["full batch"]["edges used, %"] == rows["histories"]["edges used, %"] == 100
    assert 0 < rows["Cluster-GCN"]["edges used, %"] < 100 and 0 < rows["GraphSAGE sampling"]["edges used, %"] < 100
    assert rows["Cluster-GCN"]["memory of a step, MiB"] < rows["histories"]["memory of a step, MiB"]
    assert rows["histories"]["of full batch's, %"] < 70
    assert rows["histories"]["histories, MiB"] == 400 * 8 * 4 / 2**20

    cells = tmp_path / "cells" / "large.jsonl"
    finished = cells.read_text()
    assert len(finished.splitlines()) == 2 * 4
    assert run("large", "--seeds", "2", recipes=STAND_IN)["tables"] == section["tables"]
    assert cells.read_text() == finished


@pytest.mark.slow
@pytest.mark.parametrize("dataset", ["Reddit", "PPI", "Flickr", "Yelp", "ogbn-arxiv", "ogbn-products"])
def test_published_recipes_run_on_small_files_in_the_raw_layout(
    dataset: str, run: Callable[..., dict[str, Any]], tmp_path: Path
) -> None:
    published = (PAPER / "recipes" / "large.toml").read_text()
    for key, small in {"hidden_channels": 8, "parts": 4, "batch_size": 2, "epochs": 2}.items():
        published = re.sub(rf"\b{key} = \d+", f"{key} = {small}", published)
    options = ("--seeds", "1", "--datasets", dataset, "--root", str(write(tmp_path / "raw", dataset)))
    ours, paper = (table["rows"] for table in run("large", *options, recipes=published)["tables"])
    assert len(ours) == published.count(f".{dataset}]")
    assert all(row["method"] == "histories" and row["epochs"] == row["steps an epoch"] == 2 for row in ours)
    with_figures = [row for row in paper if row["data set"] == dataset]
    assert with_figures == [row for row in paper if row["histories, %"] != "not run here"]
    assert len(with_figures) > 0


def test_every_recipe_for_large_graphs_is_complete() -> None:
    from methods import METHODS, LargeRecipe
    from training import RECIPES, load_recipes

    recipes = load_recipes(RECIPES / "large.toml", LargeRecipe)
    of_paper = {
        name: [data for data in found if data[0].isupper() or "ogbn" in data] for name, found in recipes.items()
    }
    assert [len(found) for found in of_paper.values()] == [8, 6, 5, 1]
    for found in recipes.values():
        for recipe in found.values():
            assert 0 < recipe.batch_size < recipe.parts and set(recipe.methods) <= set(METHODS)
            assert recipe.methods == METHODS or set(recipe.published) <= {"histories"}


# -- memory and neighbourhoods -----------------------------------------------------------------------------------------


@needs_sampler
def test_memory_counts_the_same_again(run: Callable[..., dict[str, Any]], tmp_path: Path) -> None:
    recipes = (PAPER / "recipes" / "memory.toml").read_text() + MADE
    section = run("memory", "--datasets", "made graph", recipes=recipes)
    rows = {(row["layers"], row["method"]): row for row in section["tables"][0]["rows"]}
    assert len(rows) == 3 * 4
    paper = section["tables"][1]["rows"]
    assert len(paper) == 3 * 3 and paper[-1]["histories"] == "0.82 GB, 100 %"
    for method in ("full batch", "Cluster-GCN", "histories"):
        memory = [rows[layers, method]["memory, GB"] for layers in (2, 3, 4)]
        # On so small a graph, the edges of a full batch may be its peak, whatever the layers.
        assert all(more >= less for less, more in itertools.pairwise(memory)) and memory[2] > memory[0]
    for layers in (2, 3, 4):
        memory = [rows[layers, method]["memory, GB"] for method in ("Cluster-GCN", "histories", "full batch")]
        assert memory == sorted(memory)
    assert rows[4, "histories"]["histories, GB"] == 3 * rows[2, "histories"]["histories, GB"]

    (tmp_path / "cells" / "memory.jsonl").unlink()
    again = run("memory", "--datasets", "made graph", recipes=recipes)["tables"][0]["rows"]
    first = section["tables"][0]["rows"]
    for before, after in zip(first, again, strict=True):
        if before["method"] == "GraphSAGE sampling":
            continue
        assert after == before


PREDECESSOR = """
import torch
from types import SimpleNamespace
from torch_gas.models import GAT, GCN as Same

class Other(Same):
    def push_and_pull(self, history, x, *ids):
        out = super().push_and_pull(history, x, *ids)
        return torch.cat([out[: len(x)], 0.9 * out[len(x) :]])  # what comes from histories

models = SimpleNamespace(GAT=GAT, GCN={gcn})
"""


@pytest.mark.parametrize("gcn", ["Same", "Other"])
def test_parity_tells_whether_two_libraries_train_the_same(
    gcn: str, run: Callable[..., dict[str, Any]], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pytest.importorskip("torch_sparse")
    package = tmp_path / "pygas" / "torch_geometric_autoscale"
    package.mkdir(parents=True)
    (package / "__init__.py").write_text(PREDECESSOR.replace("{gcn}", gcn))
    monkeypatch.delitem(sys.modules, package.name, raising=False)
    monkeypatch.setattr(sys, "path", [*sys.path])  # to which the package's folder is added
    section = run("parity", "--pygas", str(package.parent), "--epochs", "2", "--seeds", "2", picture=False)
    (table,) = section["tables"]
    rows = [(row["model"], row["dropout"], row["seed"], row["steps"]) for row in table["rows"]]
    assert rows == [("GCN", "0.5", 0, 4), ("GCN", "0.5", 1, 4), ("GAT", "0.0", 0, 4), ("GAT", "0.0", 1, 4)]
    for row in table["rows"]:
        differences = [float(row[f"{what} differ by"]) for what in ("parameters", "histories", "outputs")]
        if (row["model"], gcn) == ("GCN", "Other"):
            assert min(differences) > 1e-4
        else:
            assert max(differences) < 1e-5
            assert row["validation, %"] == row["validation of PyGAS, %"]


@pytest.fixture
def small() -> tuple[Any, torch.Tensor]:
    """A normalised graph in twelve parts."""
    data = gcn_norm(get_data("", "synthetic:300", layout="csr")[0])
    perm, ptr = metis(data, 12, log=False)
    return permute(data, perm, log=False), ptr


@pytest.mark.parametrize("merged", [True, False])
def test_neighbourhoods_give_the_rows_and_gradients_of_the_whole_graph(small: Any, merged: bool) -> None:
    from neighborhoods import forward, tree_size, walk

    data, ptr = small
    nodes = torch.arange(int(ptr[2]), int(ptr[3]))
    model = GCN(data.num_nodes, data.num_features, 16, 5, num_layers=3)
    depths = walk(data.adj_t, nodes, 3, merged)
    expected, out = model(data.x, data.adj_t)[nodes], forward(model, data.x, depths)
    torch.testing.assert_close(out, expected)
    grads = [torch.autograd.grad(each.square().sum(), list(model.parameters())) for each in (out, expected)]
    torch.testing.assert_close(*grads, rtol=1e-4, atol=1e-4)
    rows = sum(depth.nodes.numel() for depth in depths)
    size = tree_size(data.adj_t, nodes, 3)
    assert rows < size if merged else rows == size


def test_tree_leaves_out_what_does_not_fit(run: Callable[..., dict[str, Any]]) -> None:
    recipes = MADE.replace("channels = 8", "channels = 8, num_layers = 3")
    published = (PAPER / "recipes" / "tree.toml").read_text()
    options = ("--datasets", "made graph", "--seconds", "0")
    ((row,), paper) = (table["rows"] for table in run("tree", *options, recipes=recipes + published)["tables"])
    assert [row["data set"] for row in paper] == ["Cora", "PubMed", "PPI", "Flickr"]
    assert row["histories, MB"] < row["merged neighbourhood, MB"] < row["neighbour tree, MB"]
    assert row["neighbour tree, MB"] * 1e6 > row["rows of the tree"] * 4 * 8
    (row,) = run("tree", *options, "--memory", "1e-6", recipes=recipes)["tables"][0]["rows"]
    assert row["neighbour tree, s"] == "not attempted" and row["neighbour tree, MB"].startswith("at least ")
    assert row["histories, s"] > 0


@needs_sampler
def test_sampling_all_neighbours_is_exact_and_weights_make_up_for_others(small: Any, monkeypatch: Any) -> None:
    import baselines

    data, _ = small
    model = GCN(data.num_nodes, data.num_features, 16, 5, num_layers=2)
    expected = model(data.x, data.adj_t).detach()

    @torch.no_grad()
    def error() -> float:
        """The largest error of a seed's row, over an epoch."""
        found = baselines.NeighborSampling(data, torch.arange(data.num_nodes), 50, 2)
        errors = []
        for batch, *ids in found:
            seeds = ids[1][batch.train_mask]
            errors.append((model(batch.x, batch.adj_t, *ids)[: seeds.numel()] - expected[seeds]).abs().max())
        return float(torch.stack(errors).max())

    monkeypatch.setattr(baselines, "NUM_SAMPLED", (1000, 1000))
    assert error() < 1e-5
    monkeypatch.setattr(baselines, "NUM_SAMPLED", (3, 3))
    assert error() > 1e-2

    for batch, _, n_id, *_ in baselines.NeighborSampling(data, torch.arange(20), 20, 1):
        weights, exact = batch.adj_t.to_dense()[:20], data.adj_t.to_dense()[n_id[:20]]
        share = (weights > 0).sum(1) / (exact > 0).sum(1)
        assert 0 < float(share.min()) < 1
        torch.testing.assert_close(weights * share.view(-1, 1), exact[:, n_id] * (weights > 0))


@needs_sampler
@pytest.mark.parametrize("num_seeds", [40, 61, 79, 101])
def test_sampling_leaves_no_batch_of_a_few_seeds(small: Any, num_seeds: int) -> None:
    """A step on two seeds that a division left over undoes much of what the others of its epoch reach."""
    from methods import SAMPLING, Batches, LargeRecipe
    from training import Task

    data = copy.copy(small[0])
    data.train_mask = torch.arange(data.num_nodes) < num_seeds
    recipe = LargeRecipe(model={"num_layers": 2}, parts=12, batch_size=3, lr=0.01, epochs=1)
    batches = Batches(SAMPLING, Task(data, small[1], data.num_features, 5), recipe, 0, "cpu")
    sizes = [int(batch.train_mask.sum()) for batch, *_ in batches]
    assert len(sizes) == recipe.parts // recipe.batch_size and sum(sizes) == num_seeds
    assert min(sizes) > max(sizes) - len(sizes)


@needs_sampler
def test_norms_see_the_rows_that_seeds_depend_on(small: Any) -> None:
    import baselines

    data, _ = small
    num_layers, seeds = 3, torch.arange(5)
    model = GCN(data.num_nodes, data.num_features, 16, 5, num_layers=num_layers, batch_norm=True).train()
    found: list[torch.Tensor] = []
    for norm in model.bns:
        norm.register_forward_hook(lambda _, args, out: found.append(args[0].detach()))
    norms = baselines.TrimmedNorms(model)
    for batch, *ids in baselines.NeighborSampling(data, seeds, 2, num_layers):
        hops, (source, destination) = batch.hops, batch.adj_t.to_sparse_coo().indices().flip(0)
        assert len(hops) == num_layers + 1 and hops[0] == int(batch.train_mask.sum()) and hops[-1] == batch.num_nodes
        for near, far in itertools.pairwise(hops):  # those near read all that are a hop further, and nothing beyond
            read = set(source[destination < near].tolist())
            assert set(range(near, far)) <= read and max(read) < far
        norms.hops = hops
        found.clear()
        out = model(batch.x, batch.adj_t, *ids)
        assert [rows.size(0) for rows in found] == [hops[2], hops[1]]
        assert out.size(0) == batch.num_nodes
        norms.hops = None
        model(batch.x, batch.adj_t, *ids)
        assert found[-1].size(0) == batch.num_nodes


def test_batches_of_cluster_gcn_are_induced_subgraphs(small: Any) -> None:
    from baselines import without_halo

    data, ptr = small
    dense = data.adj_t.to_dense()
    for batch in SubgraphLoader(data, ptr, 3, shuffle=True, seed=0):
        inside = without_halo(batch)
        nodes = batch.n_id[: batch.batch_size]
        torch.testing.assert_close(inside.data.adj_t.to_dense(), dense[nodes][:, nodes])
        assert torch.equal(inside.data.x, data.x[nodes]) and torch.equal(inside.n_id, nodes)
        assert torch.equal(inside.data.train_mask, data.train_mask[nodes])
