"""`torch_gas._core` as a whole: threads and processes that call it, and what is said where it was not built."""

from __future__ import annotations

import os
import re
import subprocess
import sys
import threading
from types import SimpleNamespace

import pytest
import torch
from twins import int64

from torch_gas import _core
from torch_gas._core import naming
from torch_gas._core.build import _C


def test_concurrent_callers() -> None:
    """More callers than threads, all splitting their loops."""
    generator = torch.Generator().manual_seed(0)
    num_nodes = 20_000
    src = torch.randint(0, num_nodes, (200_000,), generator=generator)
    dst = torch.randint(0, num_nodes, (200_000,), generator=generator)
    rowptr, col, _ = _core.to_csr(src, dst, num_nodes)
    starts = [torch.tensor([n, 10_000 + n]) for n in range(0, 4000, 500)]
    count = torch.tensor([5000, 5000])
    torch.set_num_threads(1)
    expected = [_core.subgraph(rowptr, col, s, count, coo=True) for s in starts]
    wrong: list[int] = []

    def caller(which: int) -> None:
        torch.set_num_threads(3)
        for _ in range(20):
            sub = _core.subgraph(rowptr, col, starts[which], count, coo=True)
            if not all(torch.equal(a, b) for a, b in zip(sub, expected[which], strict=True)):
                wrong.append(which)

    callers = [threading.Thread(target=caller, args=(which,)) for which in range(len(starts))]
    for thread in callers:
        thread.start()
    for thread in callers:
        thread.join()
    assert not wrong


@pytest.mark.slow
@pytest.mark.skipif(not hasattr(os, "fork"), reason="needs fork")
def test_fork() -> None:
    """A child gets a pool of its own, whatever the threads of its parent were doing."""
    program = """
import os, sys, threading, torch
from torch_gas import _core
torch.set_num_threads(4)
table, index = torch.randn(50_000, 16), torch.randperm(50_000)
expected = table[index].numpy().tobytes()
stop = threading.Event()

def keep_the_pool_busy():
    while not stop.is_set():
        _core.gather_rows(table, index)

busy = threading.Thread(target=keep_the_pool_busy)
busy.start()
for _ in range(10):
    child = os.fork()
    if child == 0:
        same = _core.gather_rows(table, index).numpy().tobytes() == expected
        threads = len(os.listdir("/proc/self/task")) if sys.platform == "linux" else 4
        os._exit(0 if same and threads == 4 else 1)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0
stop.set()
busy.join()
print("done")
"""
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, timeout=120)
    assert done.stdout == "done\n", done.stderr


@pytest.mark.parametrize("threads", [1, 4])
def test_errors_name_the_first_bad_id(threads: int) -> None:
    torch.set_num_threads(threads)
    col = torch.zeros(100_000, dtype=torch.int64)
    col[[30_000, 70_000, 99_999]] = int64(5, 6, 7)
    with pytest.raises(IndexError, match=r"col\[30000\] is 5"):
        _core.subgraph(int64(0, 100_000), col, int64(0), int64(1))
    with pytest.raises(IndexError, match=r"index\[30000\] is 5"):
        _core.gather_rows(torch.zeros(5), col)
    repeated = torch.arange(100_000)
    repeated[[40_000, 90_000]] = 7
    with pytest.raises(ValueError, match=r"index\[7\] and index\[40000\] are both 7"):
        _core.scatter_rows(torch.zeros(100_000), repeated, torch.zeros(100_000))


@pytest.mark.slow
def test_missing_build_is_explained() -> None:
    program = "import sys; sys.modules['torch_gas._C'] = None; import torch_gas._core"
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True)
    assert done.returncode != 0
    assert re.search(r"ImportError: the compiled core .*pip install -e \.", done.stderr)


def test_ctrl_c_while_a_call_is_named_leaves_no_name_behind(monkeypatch: pytest.MonkeyPatch) -> None:
    """It may end the line that enters a name as soon as that is done."""

    class Interrupted:
        def __init__(self, call: str, names: dict[str, str]) -> None:
            self.naming = _C.Naming(call, names)
            self.leave = self.naming.leave

        def enter(self) -> None:
            self.naming.enter()
            raise KeyboardInterrupt

    monkeypatch.setattr(naming, "_C", SimpleNamespace(Naming=Interrupted))
    with pytest.raises(KeyboardInterrupt):
        naming.naming("read", index="ids")(lambda: None)()
    assert naming.at("write", "index") == "write: `index`"
