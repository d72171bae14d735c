"""A run that is killed at random moments ends bit for bit as the one that never was; benchmarks/robustness/ kills more often."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

SMALL = ["--epochs", "6", "--num_nodes", "500", "--every", "2"]
ROBUSTNESS = Path(__file__).parents[2] / "benchmarks" / "robustness"


@pytest.mark.slow
@pytest.mark.parametrize("tier", ["host", "file"])
def test_a_run_survives_being_killed(tmp_path: Path, tier: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(str(ROBUSTNESS))
    from kill_loop import kill_loop

    result = kill_loop(tmp_path, kills=2, seed=2, options=[*SMALL, "--tier", tier])
    assert (result.kills, result.different) == (2, 0)
    assert result.runs >= 1


def test_differences_are_found(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(str(ROBUSTNESS))
    from kill_loop import differences

    a = {"model.x": torch.tensor([0.0, 1.0]), "value.epoch": 1, "random": {"torch": torch.ones(2), "python": (3, None)}}
    assert differences(a, {**a}) == []
    assert differences(a, {**a, "model.x": torch.tensor([-0.0, 1.0])}) == ["model.x"]
    assert differences(a, {**a, "value.epoch": 1.0}) == ["value.epoch"]
    assert differences(a, {**a, "random": {"torch": torch.zeros(2), "python": (3, None)}}) == ["random"]
    assert differences(a, {"model.x": a["model.x"], "value.epoch": 1}) == ["random"]
