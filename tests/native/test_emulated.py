"""csrc/cuda and torch_gas/transfer on the emulated device, in some schedules, under sanitizers."""

from __future__ import annotations

from pathlib import Path

import pytest
from compiling import ADDRESS, ROOT, THREAD, missing
from native import emulated, faults

SEEDS = 4  # one of each eagerness of the device


@pytest.mark.parametrize("fault", faults.load(), ids=lambda fault: fault.name)
def test_a_fault_can_be_planted(fault: faults.Fault) -> None:
    assert fault.text() != (ROOT / fault.file).read_text()
    assert all((ROOT / test).exists() for test in fault.tests)


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
