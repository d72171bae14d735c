"""What all tests share: where tests that need a GPU run, that none leaves the number of threads changed, and the fast lane.

`make test` runs everything. The fast lane, `pytest --fast`, answers whether a change is probably right. It leaves out

* tests that are marked `slow`: they take more than about a second, mostly in processes of their own or compilers;
* tests that are marked `cuda`;
* of a parametrised test all but `SAMPLE` cases. They are chosen so that they show as many values of its parameters as they can,
  and else by a digest of their names: every run and every process chooses the same, and a new test needs no entry anywhere.
"""

from __future__ import annotations

import gc
import hashlib
import os
from collections import defaultdict
from collections.abc import Iterator

import pytest
import torch
from driver import Driver
from hypothesis import settings

from torch_gas.partition import record

# A time limit per example only measures how busy the machine is.
settings.register_profile("torch_gas", deadline=None)
settings.load_profile("torch_gas")


SAMPLE = 3


def sample(cases: list[pytest.Item]) -> list[pytest.Item]:
    """At most ``SAMPLE`` cases of one test, each with as many values of parameters as possible that those before it lack."""
    if len(cases) <= SAMPLE:
        return cases
    waiting = sorted(cases, key=lambda item: hashlib.sha256(item.nodeid.encode()).digest())
    chosen: list[pytest.Item] = []
    seen: set[tuple[str, int]] = set()

    def values(item: pytest.Item) -> set[tuple[str, int]]:
        # By identity: values need not be hashable, and the cases of a grid share theirs.
        return {(name, id(value)) for name, value in item.callspec.params.items()}

    while len(chosen) < SAMPLE:
        case = max(waiting, key=lambda item: len(values(item) - seen))
        waiting.remove(case)
        chosen.append(case)
        seen |= values(case)
    return chosen


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--fast", action="store_true", help="leave out slow tests and most cases of parametrised ones")


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    if not config.getoption("--fast"):
        return
    tests: defaultdict[str, list[pytest.Item]] = defaultdict(list)
    for item in items:
        if item.get_closest_marker("slow") is None and item.get_closest_marker("cuda") is None:
            tests[item.nodeid.partition("[")[0]].append(item)
    kept = {item for cases in tests.values() for item in sample(cases)}
    config.hook.pytest_deselected(items=[item for item in items if item not in kept])
    items[:] = [item for item in items if item in kept]


@pytest.fixture(autouse=True)
def forget_partitions() -> Iterator[None]:
    """What another test has partitioned says nothing of the order of this one's graphs."""
    yield
    record._orders.clear()


@pytest.fixture(autouse=True)
def restore_threads() -> Iterator[None]:
    before = torch.get_num_threads()
    yield
    torch.set_num_threads(before)


@pytest.fixture
def driver(monkeypatch: pytest.MonkeyPatch) -> Iterator[Driver]:
    """A driver in place of CUDA's; all that it has page-locked must be unlocked in the end."""
    driver = Driver()
    driver.serve(monkeypatch)
    yield driver
    gc.collect()
    assert driver.ranges == []


def pytest_configure(config: pytest.Config) -> None:
    config.addinivalue_line("markers", "slow: takes more than about a second; left out with --fast")
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
