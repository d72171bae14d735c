"""csrc/cuda and torch_gas/transfer on the emulated device, in some schedules, under sanitizers."""

from __future__ import annotations

from pathlib import Path

import pytest
from compiling import ADDRESS, THREAD, missing
from native import emulated

SEEDS = 4  # one of each eagerness of the device


@pytest.mark.slow
@pytest.mark.parametrize("sanitizer", [ADDRESS, THREAD])
def test_device_and_host_agree(sanitizer: str, tmp_path: Path) -> None:
    if reason := missing(sanitizer, tmp_path):
        pytest.skip(reason)
    found = emulated.failure(emulated.program(tmp_path / "program", sanitizer), SEEDS)
    assert found is None, found


@pytest.mark.slow
def test_models_train_alike(tmp_path: Path) -> None:
    if reason := missing(THREAD, tmp_path):
        pytest.skip(reason)
    found = emulated.engine_failure(emulated.module(tmp_path / "core.so", THREAD), THREAD, 3)
    assert found is None, found
