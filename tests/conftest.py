"""What all tests share: where tests that need a GPU run, and that none leaves the number of threads changed."""

from __future__ import annotations

import os
from collections.abc import Iterator

import pytest
import torch
from hypothesis import settings

# A time limit per example only measures how busy the machine is.
settings.register_profile("torch_gas", deadline=None)
settings.load_profile("torch_gas")


@pytest.fixture(autouse=True)
def restore_threads() -> Iterator[None]:
    before = torch.get_num_threads()
    yield
    torch.set_num_threads(before)


def pytest_configure(config: pytest.Config) -> None:
    config.addinivalue_line("markers", "cuda: needs a CUDA device and a core built with CUDA; skipped without them")


def pytest_runtest_setup(item: pytest.Item) -> None:
    """Skips `@pytest.mark.cuda` tests without a GPU, but fails them if a GPU was declared."""
    if item.get_closest_marker("cuda") is None:
        return
    from torch_gas import _core

    if not torch.cuda.is_available():
        missing = "needs a CUDA device"
    elif not _core.has_cuda():
        missing = "needs a core built with CUDA: reinstall with TORCH_GAS_CUDA=1"
    else:
        return
    if os.environ.get("TORCH_GAS_GPU_LANE") == "1":
        pytest.fail(f"{missing}, and TORCH_GAS_GPU_LANE=1 declares one", pytrace=False)
    pytest.skip(missing)
