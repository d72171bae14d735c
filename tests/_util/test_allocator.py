"""Memory that steps free stays mapped, unless the user has set malloc's own variables."""

from __future__ import annotations

import os
import platform
import subprocess
import sys

import pytest

IS_GLIBC = platform.libc_ver()[0] == "glibc"
# Tensors of 48 MiB, which glibc takes from the system each time, and the page faults of ten of them.
EPOCHS = """
import resource
import torch
from torch_gas import SubgraphLoader
from torch_gas._util.allocator import keep_freed_memory
from torch_gas.datasets import synthetic

loader = SubgraphLoader(synthetic(100, 2, 4), torch.tensor([0, 50, 100]), log=False)

def faults():
    before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    for _ in range(10):
        torch.ones(3 * 2**22)
    return resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before

first = faults()
for batch in loader:
    pass
torch.ones(3 * 2**22)
print(first, faults(), keep_freed_memory())
"""


def run(**variables: str) -> tuple[int, int, bool]:
    """Page faults before and after an epoch, and whether memory is kept."""
    kept = {key: value for key, value in os.environ.items() if not key.startswith(("MALLOC_", "GLIBC_"))}
    out = subprocess.run(
        [sys.executable, "-W", "ignore", "-c", EPOCHS], env={**kept, **variables}, capture_output=True, check=True
    )
    before, after, is_kept = out.stdout.split()
    return int(before), int(after), is_kept == b"True"


@pytest.mark.skipif(not IS_GLIBC, reason="other C libraries decide by themselves")
def test_a_step_takes_memory_that_the_last_one_freed() -> None:
    before, after, is_kept = run()
    assert is_kept
    assert after < before / 10


@pytest.mark.parametrize(
    "variables",
    [{"MALLOC_TRIM_THRESHOLD_": "131072"}, {"GLIBC_TUNABLES": "glibc.malloc.mmap_threshold=131072"}],
    ids=lambda variables: next(iter(variables)),
)
def test_what_the_user_has_set_stays(variables: dict[str, str]) -> None:
    before, after, is_kept = run(**variables)
    assert not is_kept
    assert after > before / 2
