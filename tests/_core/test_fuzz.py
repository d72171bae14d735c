"""The fuzzing target over its committed corpus and random bytes; `make fuzz` looks for more."""

from __future__ import annotations

import random
import sys
from pathlib import Path
from types import ModuleType

import pytest
import torch

HERE = Path(__file__).parent / "fuzz"
CORPUS = sorted((HERE / "corpus").iterdir())


@pytest.fixture(scope="module")
def target() -> ModuleType:
    sys.path.insert(0, str(HERE))
    try:
        import target
    finally:
        sys.path.remove(str(HERE))
    return target


def test_corpus(target: ModuleType) -> None:
    called = {target.MAKERS[path.read_bytes()[0] % len(target.MAKERS)] for path in CORPUS}
    assert called == set(target.MAKERS)
    accepted = [target.one_input(path.read_bytes()) for path in CORPUS]
    assert any(accepted) and not all(accepted)


def test_random_bytes(target: ModuleType) -> None:
    generator = random.Random(0)
    for _ in range(2000):
        target.one_input(generator.randbytes(generator.randrange(200)))


def test_wrong_results_and_changes_are_noticed(target: ModuleType, monkeypatch: pytest.MonkeyPatch) -> None:
    call = bytes([0, 5, 0, 1, 0, 3, 0, 1, 0, 2, 0, 3, 0, 0])  # gather_rows
    assert target.one_input(call)
    monkeypatch.setattr(target._core, "gather_rows", lambda table, index, dtype: torch.zeros(1))
    with pytest.raises(AssertionError):
        target.one_input(call)
    monkeypatch.setattr(target._core, "gather_rows", lambda table, index, dtype: table.fill_(9))
    with pytest.raises(AssertionError, match="changed"):
        target.one_input(call)
