"""Whatever ends a step in the middle, the next one works: Ctrl-C, errors in layers, memory that ends, workers that die."""

from __future__ import annotations

import copy
import os
import random
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from graphs import random_graph
from interrupts import interrupt_after
from nets import Net
from torch_geometric.nn import GraphSAGE

from torch_gas import EvalSubgraphLoader, FileTier, SubgraphLoader, checkpoint, scale

N, ROUNDS = 300, int(os.environ.get("TORCH_GAS_INTERRUPTS", 40))
DATA, PTR = random_graph(N, 1800), torch.arange(0, N + 1, 30)


def make(kind: str, folder: Path) -> Any:
    torch.manual_seed(0)
    if kind == "scaled":
        return scale(GraphSAGE(8, 16, 3, 3), DATA)
    return Net(N, 16, 3, tier=FileTier(folder / "tables") if kind == "file" else None)


def train(model: Any, loader: Any) -> None:
    model.train()
    for batch in loader:
        model.zero_grad()
        F.cross_entropy(model(batch), batch.data.y[: batch.batch_size]).backward()
        with torch.no_grad():
            for parameter in model.parameters():
                parameter -= 0.01 * parameter.grad


def assert_sound(model: Any) -> None:
    """Batches train, and batches and inference are exact after a refresh."""
    train(model, SubgraphLoader(DATA, PTR, 3))
    model.eval()
    with torch.no_grad():
        wanted = model(DATA) if hasattr(model, "found") else model(DATA.x, DATA.edge_index)
        for batch in SubgraphLoader(DATA, PTR, 3):
            torch.testing.assert_close(model(batch), wanted[batch.n_id[: batch.batch_size]])
        torch.testing.assert_close(model(loader=EvalSubgraphLoader(DATA, PTR, 3)), wanted)
    assert all(history.emb.isfinite().all() for history in model.histories)


@pytest.mark.filterwarnings("ignore:unclosed file:ResourceWarning")  # where open() itself is interrupted
@pytest.mark.filterwarnings("ignore:unclosed scandir iterator:ResourceWarning")  # and where a folder is looked through
@pytest.mark.parametrize("kind", ["explicit", "scaled", "file"])
@pytest.mark.parametrize("phase", ["training", "inference", "checkpoint"])
def test_interrupts_at_any_moment(kind: str, phase: str, tmp_path: Path) -> None:
    model, rng = make(kind, tmp_path), random.Random(f"{kind} {phase}")
    loader = SubgraphLoader(DATA, PTR, 2, shuffle=True, prefetch=2)
    path = tmp_path / "run.safetensors"

    def work() -> None:
        if phase == "training":
            train(model, loader)
        elif phase == "inference":
            model.eval()
            model(loader=EvalSubgraphLoader(DATA, PTR, 2))
        else:
            checkpoint.save(path, model=model, loader=loader)

    work()
    interrupted, usual = 0, 0.02
    for round in range(ROUNDS):
        start = time.perf_counter()
        if interrupt_after(rng.uniform(1e-4, usual), work, times=1 + round % 2):
            interrupted += 1
        else:  # it came too late
            usual = time.perf_counter() - start
    assert interrupted > ROUNDS // 8
    if phase == "checkpoint":
        checkpoint.load(path, model=model, loader=loader)
    assert_sound(model)


class Fails(torch.nn.Module):
    """A layer that raises an error when it is told to."""

    error: BaseException | None = None

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        if self.error is not None:
            raise self.error
        return x


@pytest.mark.parametrize(
    "error", [ValueError("mine"), torch.OutOfMemoryError("memory"), KeyboardInterrupt(), SystemExit(3)]
)
@pytest.mark.parametrize("layer", [0, 1, 2])
@pytest.mark.parametrize("tier", ["host", "file"])
def test_errors_in_layers_leave_later_histories_alone(
    tmp_path: Path, tier: str, layer: int, error: BaseException
) -> None:
    model = make("file" if tier == "file" else "explicit", tmp_path)
    fails = Fails()
    conv = model.convs[layer]
    model.convs[layer] = torch.nn.Module()
    model.convs[layer].forward = lambda x, adj: fails(conv(x, adj))  # type: ignore[method-assign]
    model.convs[layer].conv = conv
    train(model, SubgraphLoader(DATA, PTR, 2))
    before = copy.deepcopy(model.histories)
    fails.error = error
    with pytest.raises(type(error)):
        train(model, SubgraphLoader(DATA, PTR, 5))
    for number, (history, was) in enumerate(zip(model.histories, before, strict=True)):
        assert torch.equal(history.emb, was.emb) == (number >= layer)
        assert torch.equal(history.pushed_at, was.pushed_at) == (number >= layer)
    fails.error = None
    train(model, SubgraphLoader(DATA, PTR, 1))
    assert all((history.age < len(PTR)).all() for history in model.histories)


MEMORY_ENDS = """
import os, resource, sys, torch
import torch.nn.functional as F
sys.path.insert(0, os.environ["TESTS"])
from graphs import random_graph
from interrupts import interrupt_after
from nets import Net
from torch_gas import SubgraphLoader

data, ptr = random_graph(20_000, 100_000), torch.arange(0, 20_001, 500)
model = Net(20_000, 128, 3)
def step(parts):
    batch = next(iter(SubgraphLoader(data, ptr, parts, prefetch=0)))
    F.cross_entropy(model(batch), batch.data.y[: batch.batch_size]).backward()
    return batch
step(1)
size = int(open("/proc/self/statm").read().split()[0]) * resource.getpagesize()
resource.setrlimit(resource.RLIMIT_AS, (size + 2**24, -1))
before = [history.emb.clone() for history in model.histories[1:]]
try:
    step(40)
except (RuntimeError, MemoryError) as error:
    assert "allocate" in str(error) or isinstance(error, MemoryError), error
else:
    raise AssertionError("there was memory enough")
assert torch.equal(model.histories[1].emb, before[0])
for parameter in model.parameters():
    parameter.data.mul_(2)  # so that other rows are pushed
batch = step(1)
rows = batch.n_id[: batch.batch_size]
assert (model.histories[1].age[rows] == 0).all() and (model.histories[1].emb[rows] != before[0][rows]).any()
"""


def run(code: str, **kwargs: Any) -> subprocess.CompletedProcess[str]:
    environment = {**os.environ, "TESTS": str(Path(__file__).parents[1])}
    return subprocess.run(
        [sys.executable, "-W", "ignore", "-c", code], env=environment, capture_output=True, text=True, **kwargs
    )


@pytest.mark.slow
@pytest.mark.skipif(sys.platform != "linux", reason="limits the address space of a process")
def test_a_smaller_batch_after_memory_has_ended() -> None:
    done = run(MEMORY_ENDS)
    assert done.returncode == 0, done.stderr


@pytest.mark.slow
@pytest.mark.parametrize("context", ["fork", "spawn"])
def test_killed_workers_are_an_error_and_training_goes_on(context: str, tmp_path: Path) -> None:
    model = make("file", tmp_path)
    loader = SubgraphLoader(DATA, PTR, 1, num_workers=1, multiprocessing_context=context, persistent_workers=True)
    batches: Any = iter(loader)
    next(batches)
    (worker,) = loader._iterator._workers
    with pytest.raises(RuntimeError, match=r"worker .* is killed by signal"):
        os.kill(worker.pid, signal.SIGKILL)
        time.sleep(60)  # torch raises the error where the main thread is when it hears of it
    assert_sound(model)


@pytest.mark.slow
def test_a_killed_process_leaves_files_for_the_next(tmp_path: Path) -> None:
    code = """
import os, sys, torch
sys.path[:0] = [os.environ["TESTS"], os.environ["TESTS"] + "/session"]
from test_interrupts import *
model = make("file", Path(sys.argv[1]))
train(model, SubgraphLoader(DATA, PTR, 2))
model.commit_histories()
before = [history.pull() for history in model.histories]
torch.save(before, sys.argv[1] + "/before.pt")
if sys.argv[2] == "torn":
    train(model, SubgraphLoader(DATA, PTR, 2))
os.kill(os.getpid(), signal.SIGKILL)
"""
    for end in ("committed", "torn"):
        folder = tmp_path / end
        folder.mkdir()
        environment = {**os.environ, "TESTS": str(Path(__file__).parents[1])}
        done = subprocess.run([sys.executable, "-W", "ignore", "-c", code, str(folder), end], env=environment)
        assert done.returncode == -signal.SIGKILL
        wanted = torch.load(folder / "before.pt", weights_only=True)
        reopen: Callable[[], Net] = lambda: Net(N, 16, 3, tier=FileTier(folder / "tables", reuse=True))  # noqa: B023, E731
        if end == "torn":
            with pytest.warns(UserWarning, match="before it committed"):
                model = reopen()
            assert not any(history.pull().any() for history in model.histories)
        else:
            model = reopen()
            assert all(torch.equal(history.pull(), rows) for history, rows in zip(model.histories, wanted, strict=True))
        assert_sound(model)
