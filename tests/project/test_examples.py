"""Every example runs to its result, on tiny files in the layout of its data set."""

from __future__ import annotations

import re
import runpy
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from matplotlib import image
from test_datasets import write

from torch_gas import checkpoint

EXAMPLES = Path(__file__).parents[2] / "examples"
DATA_SETS = {
    "amazon_computers_gcn": "Amazon-Computers",
    "amazon_photo_appnp": "Amazon-Photo",
    "arxiv_gcn": "ogbn-arxiv",
    "citeseer_gat": "CiteSeer",
    "cluster_gin": "CLUSTER",
    "coauthor_cs_gcn2": "Coauthor-CS",
    "coauthor_physics_gcn": "Coauthor-Physics",
    "cora_gcn": "Cora",
    "flickr_pna": "Flickr",
    "ppi_gcn2": "PPI",
    "products_pna": "ogbn-products",
    "pubmed_appnp": "PubMed",
    "reddit_gcn": "Reddit",
    "wikics_gat": "WikiCS",
    "wordnet_gcn": "WordNet",
    "yelp_gcn": "Yelp",
}

pytestmark = [
    pytest.mark.slow,
    # torch warns once per process that its sparse matrices are in beta and unchecked.
    pytest.mark.filterwarnings("ignore:Sparse (CS|invariant):UserWarning"),
    # The tiny graphs have fewer nodes than the real ones have parts.
    pytest.mark.filterwarnings("ignore:metis\\(\\). num_parts is:UserWarning"),
]


@pytest.fixture
def run(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]):
    """Runs a script in this process, which spares the imports, and gives the lines it prints."""

    def run(name: str, *args: object) -> list[str]:
        monkeypatch.syspath_prepend(str(EXAMPLES))
        monkeypatch.setattr(sys, "argv", [name, *map(str, args), "--device", "cpu"])
        with torch.random.fork_rng(devices=[]):
            runpy.run_path(str(EXAMPLES / f"{name}.py"), run_name="__main__")
        return capsys.readouterr().out.strip().splitlines()

    return run


def test_every_script_is_tested() -> None:
    scripts = {path.stem for path in EXAMPLES.glob("*.py")}
    assert scripts == {
        *DATA_SETS,
        "common",
        "custom_layer",
        "demo",
        "exact_gradient",
        "resume",
        "scale",
        "scale_models",
    }


def test_every_script_is_in_the_readme_and_short() -> None:
    readme = (EXAMPLES / "README.md").read_text()
    for name in (*DATA_SETS, "custom_layer", "exact_gradient", "resume", "scale"):
        assert f"[{name}.py]({name}.py)" in readme
        assert len((EXAMPLES / f"{name}.py").read_text().splitlines()) < 100
    assert "[demo.py](demo.py)" in readme and "[scale_models.py](scale_models.py)" in readme


@pytest.mark.parametrize("name", list(DATA_SETS))
def test_example(name: str, run, tmp_path: Path) -> None:
    root = write(tmp_path, DATA_SETS[name])
    epochs = 1 if name == "ppi_gcn2" else 2  # its 75 million parameters take their time
    lines = run(name, "--root", root, "--epochs", epochs)
    if name in ("cora_gcn", "wordnet_gcn"):
        result = r"Test accuracy with histories minus full batch: [+-]\d+\.\d\d points"
    elif "seeds" in (EXAMPLES / f"{name}.py").read_text():
        result = r"Test accuracy: \d+\.\d\d %"
    else:
        result = r"Test (accuracy|micro-F1): \d+\.\d\d % \(validation \d+\.\d\d %, epoch [12]\)"
    assert re.fullmatch(result, lines[-1])


def test_custom_layer(run) -> None:
    lines = run("custom_layer", "--epochs", 2, "--num_nodes", 500)
    assert re.fullmatch(r"Test accuracy: \d+\.\d\d % \(.*, epoch [12]\)", lines[-1])


def test_resume(run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def options(out: str) -> list[object]:
        return ["--epochs", 4, "--num_nodes", 500, "--out", tmp_path / out]

    whole = run("resume", *options("whole"))
    save, saved = checkpoint.save, []

    def stop(*args: Any, **kwargs: Any) -> None:
        save(*args, **kwargs)
        saved.append(kwargs["epochs"])
        if len(saved) == 2:
            raise KeyboardInterrupt

    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(checkpoint, "save", stop)
        run("resume", *options("killed"))
    lines = run("resume", *options("killed"))
    assert saved == [1, 2] and "Going on after epoch 2" in lines
    assert lines[-1] == whole[-1]
    assert re.fullmatch(r"Test accuracy: \d+\.\d\d % \(.*, epoch [1-4]\)", lines[-1])


def test_exact_gradient(run) -> None:
    *_, before, after = run("exact_gradient", "--epochs", 1, "--exact_epochs", 3, "--num_nodes", 300)
    assert before.startswith("1 epochs with histories: test accuracy ")
    assert after.startswith("3 steps with exact gradients: test accuracy ")


def test_scale(run) -> None:
    lines = run("scale", "--epochs", 2, "--num_nodes", 500)
    assert re.fullmatch(r"Plain model on the whole graph, last epoch: \d+\.\d\d %", lines[-2])
    assert re.fullmatch(r"Test accuracy: \d+\.\d\d % \(.*, epoch [12]\)", lines[-1])


@pytest.mark.parametrize(
    ("model", "name"), [("gcnii", "Cora"), ("jumping", "Coauthor-CS"), ("edges", "Amazon-Computers")]
)
def test_scale_models(model: str, name: str, run, tmp_path: Path) -> None:
    lines = run("scale_models", "--root", write(tmp_path, name), "--epochs", 1, "--model", model, "--num_layers", 4)
    result = rf"{model} on {name}, full batch: \d+\.\d\d %, histories: \d+\.\d\d % \([+-]\d+\.\d\d points\)"
    assert re.fullmatch(result, lines[-1])


def test_several_seeds_give_mean_and_deviation(run, tmp_path: Path) -> None:
    root = write(tmp_path, "WikiCS")
    lines = run("wikics_gat", "--root", root, "--epochs", 1, "--seeds", 3)
    assert re.fullmatch(r"Test accuracy: \d+\.\d\d ± \d+\.\d\d %", lines[-1])


def test_demo_prints_a_table_and_draws_a_plot(tmp_path: Path) -> None:
    warnings = ["-W", "error", "-W", "ignore::DeprecationWarning"]
    script = [str(EXAMPLES / "demo.py"), "--num_nodes", "600", "--epochs", "3"]
    done = subprocess.run(
        [sys.executable, *warnings, *script, "--device", "cpu", "--out", str(tmp_path / "out")],
        cwd=tmp_path,
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert done.returncode == 0, done.stderr
    rows = dict(re.findall(r"│ (\S.*?) +│.*│ +(\S+)(?: MiB| %| ms)? │", done.stdout))
    assert rows["edges used in an epoch"] == "100"
    assert float(rows["halo ratio, S / B"]) > 0
    assert float(rows["error of history 2 (2)"]) > 0
    memory = re.search(r"peak memory of a step \(1\) +│ +(\S+) MiB │ +(\S+) MiB", done.stdout)
    assert memory is not None and 0 < float(memory[2]) < float(memory[1])
    *_, plot = done.stdout.strip().splitlines()
    path = Path(plot.removeprefix("Plot: "))
    assert path == (tmp_path / "out" / "demo.png").resolve()
    height, width, _ = image.imread(path).shape
    assert width > height > 300


def test_step_memory_counts_inputs_and_the_peak(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(str(EXAMPLES))
    from common import step_memory
    from torch_geometric.data import Data

    def step() -> None:
        torch.empty(3000, dtype=torch.uint8)
        first = torch.empty(1000, dtype=torch.uint8)
        second = torch.empty(1500, dtype=torch.uint8)
        del first, second

    assert step_memory(step, Data(x=torch.zeros(10, 2)), "cpu") == 3000 + 80
