"""The code in README and docs runs, and so do the examples in docstrings."""

import copy
import doctest
import functools
import gc
import importlib
import importlib.util
import operator
import os
import pkgutil
import re
import runpy
import shutil
import sys
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from test_datasets import write_planetoid
from test_map import ROOMS

import torch_gas
from torch_gas.datasets import synthetic
from torch_gas.wiring.compiled import OLDEST

ROOT = Path(__file__).parents[2]
PAGES = [
    *(ROOT / name for name in ("README.md", "CONTRIBUTING.md", "csrc/README.md", "examples/README.md")),
    *sorted((ROOT / "docs").glob("*.md")),
]
# Pages whose code has a test of its own.
OWN = [
    *("README.md", "CONTRIBUTING.md", "docs/accuracy.md", "docs/checkpoints.md", "docs/choosing.md", "docs/recipes.md"),
    "docs/staleness.md",
]
MODULES = sorted(
    module.name for module in pkgutil.walk_packages(torch_gas.__path__, "torch_gas.") if module.name != "torch_gas._C"
)


def python_blocks(path: Path) -> list[str]:
    return re.findall(r"^```python\n(.*?)^```", path.read_text(), flags=re.DOTALL | re.MULTILINE)


def anchors(page: Path) -> set[str]:
    """Names of the headings as GitHub makes them: the second of two equal ones ends with -1."""
    found: Counter[str] = Counter()
    for title in re.findall(r"^#+ (.+)$", page.read_text(), flags=re.MULTILINE):
        found[re.sub(r"[^\w -]", "", title.lower()).replace(" ", "-")] += 1
    return {f"{name}-{i}" if i else name for name, count in found.items() for i in range(count)}


OTHERS = [page for page in PAGES if str(page.relative_to(ROOT)) not in OWN and python_blocks(page)]


@pytest.fixture
def cora(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> bool:
    """Raw files of Cora where README looks for them: the real ones (then True), or tiny ones of the same layout."""
    monkeypatch.chdir(tmp_path)
    real = Path(os.environ.get("TORCH_GAS_DATA", "/nowhere"), "planetoid", "Cora", "raw")
    if not real.exists():
        write_planetoid(tmp_path / "data", "Cora")
        return False
    shutil.copytree(real, tmp_path / "data" / "Cora" / "raw")
    return True


@pytest.mark.slow
def test_readme_code_runs(cora: bool, capsys: pytest.CaptureFixture[str]) -> None:
    """A newcomer's first run learns, says so, and gives predictions in the order of the graph that was loaded."""
    first, *blocks = python_blocks(ROOT / "README.md")
    assert len(blocks) >= 2
    namespace: dict[str, Any] = {}
    with torch.random.fork_rng(devices=[]):
        exec(compile(first, "README.md", "exec"), namespace)
    accuracy = float(capsys.readouterr().out.split("test accuracy ")[1])
    assert accuracy > (0.78 if cora else 0.0)
    original, pred, out = namespace["dataset"][0], namespace["pred"], namespace["out"]
    assert out.shape == (original.num_nodes, namespace["dataset"].num_classes)
    right = (pred == original.y)[original.test_mask].float().mean()
    assert float(right) == pytest.approx(accuracy, abs=6e-4)  # in the other order it is chance
    again = namespace["model"](loader=namespace["eval_loader"], original_order=True)
    assert torch.equal(again.argmax(dim=1), pred)
    for block in blocks:
        exec(compile(block, "README.md", "exec"), namespace)
    printed = capsys.readouterr().out
    assert "never written" in printed and "Histories are exact" not in printed


@pytest.mark.slow
def test_code_about_choices_runs() -> None:
    data = synthetic(500)
    loader = torch_gas.SubgraphLoader(data, torch.arange(0, 501, 50), batch_size=2)
    for block in python_blocks(ROOT / "docs" / "choosing.md"):
        exec(compile(block, "choosing.md", "exec"), {"loader": loader})


class Lightning:
    """Does what Lightning does for the hooks in docs/recipes.md, where it is not installed."""

    class LightningModule(torch.nn.Module):
        def log(self, name: str, value: Any, **options: Any) -> None:
            self.logged = {**vars(self).get("logged", {}), name: value}

    class Trainer:
        def __init__(self, max_epochs: int, **options: Any) -> None:
            self.max_epochs = max_epochs

        def fit(self, module: Any, loader: Any) -> None:
            optimizer = module.configure_optimizers()
            module.train()
            module.on_train_start()
            for _ in range(self.max_epochs):
                for index, batch in enumerate(loader):
                    loss = module.training_step(batch.to("cpu"), index)
                    optimizer.zero_grad()
                    loss.backward()
                    optimizer.step()
                module.on_train_epoch_end()
            self.callback_metrics = module.logged


@pytest.mark.slow
def test_recipes_run(monkeypatch: pytest.MonkeyPatch) -> None:
    if importlib.util.find_spec("lightning") is None:
        monkeypatch.setitem(sys.modules, "lightning", Lightning)
    namespace: dict[str, Any] = {}
    outputs = []
    with torch.random.fork_rng(devices=[]):
        for block in python_blocks(ROOT / "docs" / "recipes.md"):
            exec(compile(block, "recipes.md", "exec"), namespace)
            outputs.append(namespace.get("out"))
    original, perm = namespace["original"], namespace["perm"]
    assert torch.equal(namespace["pred"], namespace["same"])
    assert namespace["accuracy"] > 0.4  # chance is 0.1, as in the other order
    split, labelled = namespace["split"], namespace["labelled"]
    assert torch.equal(perm[labelled.train_mask].sort().values, split["train"])
    assert torch.equal(original.x[split["train"]], namespace["data"].x[namespace["train_ids"]])
    assert namespace["auc"] > 0.58 and namespace["val_acc"] > 0.2
    *_, bare, typed = outputs
    assert bare.shape == (2000, 10) and typed.shape == (1000, 3) and namespace["papers"].shape == (600, 3)
    hetero, model = namespace["hetero"], namespace["model"].unscale().eval()
    graph = namespace["homogeneous"]
    full = model(graph.x, graph.edge_index, graph.edge_type)[graph.node_type == hetero.node_types.index("paper")]
    torch.testing.assert_close(namespace["papers"], full.detach(), rtol=1e-4, atol=1e-5)


def test_code_about_staleness_runs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    namespace: dict[str, object] = {}
    for block in python_blocks(ROOT / "docs" / "staleness.md"):
        exec(compile(block, "staleness.md", "exec"), namespace)
    assert namespace["refresher"].cost.refreshes == 2  # type: ignore[attr-defined]


def test_code_about_checkpoints_runs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """And goes on from what it wrote."""
    monkeypatch.chdir(tmp_path)
    ends = []
    with torch.random.fork_rng(devices=[]):
        for _ in range(2):
            namespace: dict[str, object] = {}
            for block in python_blocks(ROOT / "docs" / "checkpoints.md"):
                exec(compile(block, "checkpoints.md", "exec"), namespace)
            assert namespace["first"] == (4 if ends else 0)
            ends.append([parameter.detach().clone() for parameter in namespace["model"].parameters()])  # type: ignore[attr-defined]
    assert all(map(torch.equal, *ends))


def test_code_about_contributing_runs() -> None:
    """A model on the shared base, and an extension with tables beside a monitor."""
    namespace: dict[str, object] = {}
    for block in python_blocks(ROOT / "CONTRIBUTING.md"):
        exec(compile(block, "CONTRIBUTING.md", "exec"), namespace)
    assert isinstance(namespace["model"], torch_gas.ScalableGNN)
    assert len(namespace["model"].extensions) == 2


@pytest.mark.slow
@pytest.mark.parametrize("page", OTHERS, ids=lambda page: page.name)
def test_code_of_other_pages_runs(page: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Block by block, after the loop that a page takes as known."""
    if page.name == "compile.md" and torch.__version__ < OLDEST:
        pytest.skip("compiling takes torch 2.11")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(torch, "compile", functools.partial(torch.compile, backend="eager"))  # compiling takes long
    data, ptr = synthetic(500), torch.arange(0, 501, 50)
    data.num_nodes = 500
    np.save("node_feat.npy", data.x.numpy())
    model = torch_gas.models.SAGE(500, data.num_features, 16, 10, num_layers=3)
    namespace: dict[str, Any] = {
        "torch": torch,
        "copy": copy,
        "SubgraphLoader": torch_gas.SubgraphLoader,
        "data": data,
        "ptr": ptr,
        "loader": torch_gas.SubgraphLoader(data, ptr, batch_size=2, shuffle=True, seed=0),
        "model": model,
        "optimizer": torch.optim.Adam(model.parameters()),
        "criterion": F.cross_entropy,
        "loss": lambda out, batch: F.cross_entropy(out, batch.y[: len(out)], reduction="sum"),
        "num_nodes": 500,
        "num_features": data.num_features,
        "num_classes": 10,
    }
    with torch.random.fork_rng(devices=[]):
        for block in python_blocks(page):
            if "reuse=True" in block:  # in another process, so that the files are closed
                del namespace["model"]
                gc.collect()
            exec(compile(block, page.name, "exec"), namespace)


def test_the_page_of_the_api_is_that_of_the_docstrings() -> None:
    script = runpy.run_path(str(ROOT / "docs" / "api.py"))
    assert (ROOT / "docs" / "api.md").read_text() == script["page"](), "docstrings changed: run `make api`"
    names = " ".join(script["GROUPS"].values()).split()
    assert set(torch_gas.__all__) <= set(names) and len(names) == len(set(names))


def test_the_index_has_all_pages() -> None:
    index = (ROOT / "docs" / "README.md").read_text()
    pages = {page.name for page in (ROOT / "docs").glob("*.md")} - {"README.md"}
    assert pages == set(re.findall(r"\]\((\w+\.md)\)", index))


@pytest.mark.slow
def test_code_about_accuracy_runs(capsys: pytest.CaptureFixture[str]) -> None:
    """One batch trains as full batch does; an error that was measured in time is none of an evaluation."""
    namespace: dict[str, Any] = {}
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        for block in python_blocks(ROOT / "docs" / "accuracy.md"):
            exec(compile(block, "accuracy.md", "exec"), namespace)
    for full, histories in namespace["losses"]:
        assert histories == pytest.approx(full, rel=1e-3)
    assert namespace["output"].computed > 0.01
    stale, exact = (float(error) for error in re.findall(r"gradient: relative error (\S+),", capsys.readouterr().out))
    assert 0 < exact < stale


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_imports_in_docs_exist_and_do_not_warn(page: Path) -> None:
    """Also in pages whose code does not run as it stands."""
    text = page.read_text()
    lines = re.findall(r"^(?:from torch_gas\S* import .+|import torch_gas.*)$", text, flags=re.MULTILINE)
    for line in lines:
        exec(compile(line, page.name, "exec"), {})  # a moved path warns, which is an error in tests
    for name in re.findall(r"`torch_gas\.([a-z_]\w*(?:\.\w+)*)", text):
        operator.attrgetter(name)(torch_gas)  # rooms are there as attributes once the package was imported


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_paths_in_docs_exist(page: Path) -> None:
    for path in re.findall(
        r"`((?:torch_gas|csrc|tests|benchmarks|examples|docs)/[\w/]+(?:\.\w+|/))`", page.read_text()
    ):
        assert (ROOT / path).exists() or "NAME" in path, path


def test_the_map_in_docs_is_that_of_the_rooms() -> None:
    """docs/design.md lists the rooms in the order that tests/project/test_map.py holds imports to."""
    block = (ROOT / "docs" / "design.md").read_text().partition("## Rooms")[2].split("```")[1]
    names = [
        line.split()[0].removesuffix("/").removesuffix(".py").replace("/", ".") for line in block.strip().splitlines()
    ]
    assert ["" if name == "__init__" else name for name in names] == list(ROOMS)


@pytest.mark.parametrize("name", MODULES)
def test_docstring_examples_run(name: str) -> None:
    result = doctest.testmod(importlib.import_module(name), optionflags=doctest.NORMALIZE_WHITESPACE)
    assert result.failed == 0


def test_docstrings_have_examples() -> None:
    """The names that users meet first show how they are used."""
    for name in (
        "ScalableGNN",
        "SubgraphLoader",
        "History",
        "metis",
        "permute",
        "plan",
        "gcn_norm",
        "get_data",
        "check",
    ):
        assert ">>>" in (getattr(torch_gas, name).__doc__ or ""), name


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_links_in_docs_lead_somewhere(page: Path) -> None:
    for link in re.findall(r"\]\(([^)]+)\)", page.read_text()):
        target, _, heading = link.partition("#")
        if "://" not in link:
            other = page.parent / target if target else page
            assert other.exists(), f"{page.name}: {link}"
            if heading:
                assert heading in anchors(other), link
