"""The soak of benchmarks/robustness, for some seconds, and that it can fail."""

from __future__ import annotations

import importlib.util
import json
import sys
from pathlib import Path
from types import ModuleType

import pytest
import torch

PATH = Path(__file__).parents[2] / "benchmarks" / "robustness" / "soak.py"


@pytest.fixture(scope="module")
def soak() -> ModuleType:
    spec = importlib.util.spec_from_file_location("soak", PATH)
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules["soak"] = module
    spec.loader.exec_module(module)
    return module


@pytest.mark.slow
def test_a_few_seconds(soak: ModuleType, tmp_path: Path) -> None:
    out = tmp_path / "results" / "soak.json"
    result = soak.main(["--minutes", "0.1", "--seed", "1", "--out", str(out)])
    assert json.loads(out.read_text()) == result
    assert sum(result["actions"].values()) > 0


@pytest.mark.parametrize("name", ["memory", "threads", "files"])
def test_growth_is_noticed(soak: ModuleType, name: str) -> None:
    steady = [soak.Sample(float(i), 10**9, 4, 8) for i in range(30)]
    assert soak.verdict(steady)[name]["peak"] == getattr(steady[0], name)
    growing = [s._replace(**{name: getattr(s, name) * (10 + i) // 10}) for i, s in enumerate(steady)]
    with pytest.raises(AssertionError, match=f"{name} grew"):
        soak.verdict(growing)


def test_wrong_rows_are_noticed(soak: ModuleType) -> None:
    machine = soak.Soak(0)
    machine.history.pull = lambda ids: torch.zeros(ids.numel(), machine.twin.size(1), dtype=machine.twin.dtype)
    with pytest.raises(AssertionError):
        for _ in range(5):
            machine.rows()
