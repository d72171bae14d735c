"""The commands of the paper's tables run on tiny recipes: they finish, go on where they were, and write tables and pictures."""

from __future__ import annotations

import importlib.util
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

PAPER = Path(__file__).parents[1] / "benchmarks" / "paper"
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

    def run(name: str, *options: str, recipes: str = TINY) -> dict[str, Any]:
        (tmp_path / "recipes.toml").write_text(recipes)
        given = ("--recipes", str(tmp_path / "recipes.toml"), "--out", str(tmp_path), "--device", "cpu", *options)
        monkeypatch.setattr(sys, "argv", [name, *given])
        with torch.random.fork_rng(devices=[]):
            runpy.run_path(str(PAPER / f"{name}.py"), run_name="__main__")
        section: dict[str, Any] = json.loads((tmp_path / "results.json").read_text())[name]
        assert section["question"].endswith((".", "?", ")"))
        assert image.imread(tmp_path / f"{name}.png").std() > 0
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


# -- large graphs ------------------------------------------------------------------------------------------------------


@needs_sampler
def test_large_compares_methods_and_goes_on_where_it_was(run: Callable[..., dict[str, Any]], tmp_path: Path) -> None:
    run("large", "--seeds", "1", "--methods", "histories", recipes=STAND_IN)
    section = run("large", "--seeds", "2", recipes=STAND_IN)
    (table,) = section["tables"]  # and none of published figures
    rows = {row["method"]: row for row in table["rows"]}
    assert list(rows) == ["full batch", "GraphSAGE sampling", "Cluster-GCN", "histories"]
    assert [row["epochs"] for row in rows.values()] == [3, 2, 2, 2]
    assert [row["steps an epoch"] for row in rows.values()] == [
        1,
        13,
        12,
        12,
    ]  # 200 training nodes, 16 in a batch of sampling
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
    recipes = MADE + '\n[GCN."made graph".published]\nhistories = [[0.2, 100], [0.3, 100], [0.4, 100]]\n'
    section = run("memory", recipes=recipes)
    rows = {(row["layers"], row["method"]): row for row in section["tables"][0]["rows"]}
    assert len(rows) == 3 * 4
    assert rows[3, "histories"]["in the paper: GB"] == 0.3 and rows[3, "full batch"]["in the paper: GB"] == "-"
    for method in ("full batch", "Cluster-GCN", "histories"):
        memory = [rows[layers, method]["memory, GB"] for layers in (2, 3, 4)]
        assert memory == sorted(memory)
    for layers in (2, 3, 4):
        memory = [rows[layers, method]["memory, GB"] for method in ("Cluster-GCN", "histories", "full batch")]
        assert memory == sorted(memory)
    assert rows[4, "histories"]["histories, GB"] == 3 * rows[2, "histories"]["histories, GB"]

    (tmp_path / "cells" / "memory.jsonl").unlink()
    again = run("memory", "--threads", "1", recipes=recipes)["tables"][0]["rows"]
    exact = [row for row in again if row["method"] != "GraphSAGE sampling"]
    assert exact == [row for row in section["tables"][0]["rows"] if row["method"] != "GraphSAGE sampling"]


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
    (row,) = run("tree", "--seconds", "0", recipes=recipes)["tables"][0]["rows"]
    assert row["histories, MB"] < row["merged neighbourhood, MB"] < row["neighbour tree, MB"]
    assert row["neighbour tree, MB"] * 1e6 > row["rows of the tree"] * 4 * 8
    (row,) = run("tree", "--seconds", "0", "--memory", "1e-6", recipes=recipes)["tables"][0]["rows"]
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
