"""The code in README and docs runs, and so do the examples in docstrings."""

import doctest
import importlib
import pkgutil
import re
from pathlib import Path

import pytest
import torch

import torch_gas

ROOT = Path(__file__).parents[2]
MODULES = sorted(
    module.name for module in pkgutil.walk_packages(torch_gas.__path__, "torch_gas.") if module.name != "torch_gas._C"
)


def python_blocks(path: Path) -> list[str]:
    return re.findall(r"^```python\n(.*?)^```", path.read_text(), flags=re.DOTALL | re.MULTILINE)


@pytest.mark.slow
def test_readme_code_runs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    blocks = python_blocks(ROOT / "README.md")
    assert len(blocks) >= 2
    namespace: dict[str, object] = {}
    for block in blocks:
        exec(compile(block, "README.md", "exec"), namespace)
    out, data = namespace["out"], namespace["data"]
    assert isinstance(out, torch.Tensor) and isinstance(data, torch_gas.get_data("", "synthetic:100")[0].__class__)
    assert out.shape == (data.num_nodes, namespace["out_channels"])

    loader = torch_gas.SubgraphLoader(data, namespace["ptr"], batch_size=10)
    for block in python_blocks(ROOT / "docs" / "choosing.md"):
        exec(compile(block, "choosing.md", "exec"), {"loader": loader})


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


@pytest.mark.parametrize("name", MODULES)
def test_docstring_examples_run(name: str) -> None:
    result = doctest.testmod(importlib.import_module(name), optionflags=doctest.NORMALIZE_WHITESPACE)
    assert result.failed == 0


def test_docstrings_have_examples() -> None:
    """The names that users meet first show how they are used."""
    for name in ("ScalableGNN", "SubgraphLoader", "History", "metis", "permute", "plan", "gcn_norm", "get_data"):
        assert ">>>" in (getattr(torch_gas, name).__doc__ or ""), name


def test_links_in_docs_lead_somewhere() -> None:
    for page in (ROOT / "README.md", *(ROOT / "docs").glob("*.md")):
        for target in re.findall(r"\]\(([^)#]+)\)", page.read_text()):
            if "://" not in target:
                assert (page.parent / target).exists(), f"{page.name}: {target}"
