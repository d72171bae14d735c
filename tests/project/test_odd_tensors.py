"""A sample of the attacks of ``odd_tensors.py``; `make fuzz` makes all of them."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest
import torch
from odd_tensors import Attack, complaint, resized
from surface import MAKERS, Call

from torch_gas import _core

SCRIPT = Path(__file__).parents[1] / "odd_tensors.py"


@pytest.mark.slow
def test_odd_tensors() -> None:
    """In a process of its own, because some of these tensors would end it."""
    command = [sys.executable, "-W", "ignore", str(SCRIPT), "50", "0", "1"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, "\n".join([*done.stdout.splitlines()[-3:], done.stderr[-2000:]])
    assert done.stdout.endswith("100 calls with odd tensors, 0 wrong answers\n")


def test_wrong_answers_are_noticed(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.chdir(tmp_path)  # some calls write files
    attack = Attack("_core.gather_rows", "with gaps", "table")
    call = MAKERS[attack.call]()
    assert complaint(attack) is None  # refused
    monkeypatch.setitem(
        MAKERS,
        attack.call,
        lambda: Call(lambda **given: given["index"] + given["table"].is_contiguous(), call.arguments),
    )
    assert complaint(attack) == "gave something else"
    monkeypatch.setitem(MAKERS, attack.call, lambda: Call(lambda **given: {}[0], call.arguments))
    assert complaint(attack) == "failed with KeyError: 0"
    with pytest.raises(ValueError, match="memory"):
        _core.gather_rows(resized(torch.ones(3, 2), 8), torch.tensor([2]))
