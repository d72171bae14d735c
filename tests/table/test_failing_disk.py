"""Histories in files when the disk is full or fails: a clear error, no row that is half written, and training goes on."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

COMPILER = shutil.which(os.environ.get("CC", "cc"))
pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(
        COMPILER is None or sys.platform != "linux", reason="needs a C compiler, and a loader that preloads libraries"
    ),
]

SCRIPT = """
import os, sys, torch
import torch.nn.functional as F
sys.path.insert(0, os.environ["TESTS"])
from graphs import random_graph, random_parts
from nets import Net
from torch_gas import FileTier, SubgraphLoader

data, ptr = random_graph(300, 1800), random_parts(300, 6)
torch.manual_seed(0)
model = Net(300, 64, 3, tier=FileTier(os.environ["FOLDER"]))
optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
loader = SubgraphLoader(data, ptr, 2)

def disk(state):
    with open(os.environ["FAIL"], "w") as file:
        file.write(state)

def step(batch):
    optimizer.zero_grad()
    F.cross_entropy(model(batch), batch.data.y[: batch.batch_size]).backward()
    optimizer.step()

def error_of(call, kind=OSError):
    try:
        call()
    except kind as error:
        return error
    raise AssertionError("no error")

def rows(history):
    return history.pull(torch.arange(300)).clone()

for batch in loader:
    step(batch)
first, *others = loader
mine = first.n_id[: first.batch_size]
rest = torch.ones(300, dtype=torch.bool)
rest[mine] = False
"""


# Imports once, and runs what it is given in forks.
SERVER = """
import json, os, sys, torch, torch_gas
for line in sys.stdin:
    environment, code = json.loads(line)
    if os.fork() == 0:
        os.environ.update(environment)
        exec(code)
        os._exit(0)
    print(os.wait()[1], flush=True)
"""


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Callable[[Path, str], None]]:
    """Runs code after SCRIPT in a process whose disk fails while it says so."""
    folder = tmp_path_factory.mktemp("failing_disk")
    shim, errors = folder / "shim.so", folder / "errors"
    source = Path(__file__).parents[1] / "_core" / "native" / "failing_disk.c"
    assert COMPILER is not None
    subprocess.run([COMPILER, "-shared", "-fPIC", "-o", shim, source, "-ldl"], check=True)
    command, environment = [sys.executable, "-W", "ignore", "-c", SERVER], {**os.environ, "LD_PRELOAD": str(shim)}
    with errors.open("w") as stderr:
        pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "stderr": stderr}
        server = subprocess.Popen(command, env=environment, text=True, **pipes)

    def run(tmp_path: Path, code: str) -> None:
        where = {"FAIL": tmp_path / "fail", "FOLDER": tmp_path / "tables", "TESTS": Path(__file__).parents[1]}
        request = json.dumps([{key: str(path) for key, path in where.items()}, SCRIPT + code])
        assert server.stdin is not None and server.stdout is not None
        print(request, file=server.stdin, flush=True)
        assert server.stdout.readline() == "0\n", errors.read_text()

    with server:  # closes its stdin, upon which it ends
        yield run


def test_a_full_disk(run: Callable[[Path, str], None], tmp_path: Path) -> None:
    run(
        tmp_path,
        """
before = [rows(history) for history in model.histories]
disk("write")
error = error_of(lambda: step(first))
assert error.errno == 28 and "No space left on device; make room" in str(error), error
assert error.filename.endswith("history_0.table")
disk("")
history = model.histories[0]
assert torch.equal(rows(history)[rest], before[0][rest]) and (history.age[rest] >= 0).all()
assert not rows(history)[mine].any() and (history.age[mine] == -1).all()  # none is half written
assert torch.equal(rows(model.histories[1]), before[1])
for batch in loader:
    step(batch)
assert (history.age >= 0).all() and (rows(history) != before[0]).any()
model.commit_histories()
""",
    )


def test_a_full_disk_in_pushes_by_id_and_of_all_rows(run: Callable[[Path, str], None], tmp_path: Path) -> None:
    run(
        tmp_path,
        """
history = model.histories[0]
before = rows(history)
disk("write")
error_of(lambda: history.push(torch.ones(3, 64), torch.tensor([5, 2, 200])))
assert (history.age == -1).nonzero().view(-1).tolist() == [2, 5, 200]
kept = (history.age >= 0)
disk("")
assert torch.equal(rows(history)[kept], before[kept]) and not rows(history)[~kept].any()
disk("write")
error_of(lambda: history.push(torch.ones(300, 64)))
disk("")
assert (history.age == -1).all() and not rows(history).any()
history.push(torch.ones(300, 64))
assert rows(history).all()
""",
    )


def test_a_disk_that_cannot_be_read(run: Callable[[Path, str], None], tmp_path: Path) -> None:
    run(
        tmp_path,
        """
before = [rows(history) for history in model.histories]
disk("read")
error = error_of(lambda: step(first))
assert error.errno == 5 and "Input/output error" in str(error), error
disk("")
assert torch.equal(rows(model.histories[0])[rest], before[0][rest])
assert torch.equal(rows(model.histories[1]), before[1])
for batch in loader:
    step(batch)
""",
    )


def test_a_full_disk_while_committing(run: Callable[[Path, str], None], tmp_path: Path) -> None:
    run(
        tmp_path,
        """
model.commit_histories()
step(first)
disk("write")
error_of(model.commit_histories)
assert not model.histories[0].table.header.committed and model.histories[0].table.generation == 1
disk("")
model.commit_histories()
assert [history.table.generation for history in model.histories] == [2, 2]
""",
    )


def test_a_full_disk_while_features_are_stored(run: Callable[[Path, str], None], tmp_path: Path) -> None:
    run(
        tmp_path,
        """
from torch_gas import store_features
path = os.environ["FOLDER"] + "/x.table"
disk("write")
error_of(lambda: store_features(data.x, path))
disk("")
assert not os.path.exists(path)
store_features(data.x, path)
""",
    )
