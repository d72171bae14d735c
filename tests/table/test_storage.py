"""Histories and features in files: what a process leaves behind, and what the next one makes of it."""

from __future__ import annotations

import copy
import io
import os
import pickle
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from graphs import random_graph
from nets import Net
from torch_geometric.data import Data
from torch_geometric.nn import GraphSAGE

from torch_gas import (
    EvalSubgraphLoader,
    FileTable,
    FileTier,
    History,
    StoredFeatures,
    SubgraphLoader,
    checkpoint,
    metis,
    permute,
    plan,
    scale,
    store_features,
)
from torch_gas.table.header import Header

N = 300
RAW = random_graph(N, 1800, directed=False)
PERM, PTR = metis(RAW, 8, log=False)
DATA = permute(RAW, PERM, log=False)


def train(model: Any, data: Data = DATA, epochs: int = 2, **options: Any) -> torch.Tensor:
    """Trains with dropout and shuffling, and returns the output on the whole graph."""
    torch.manual_seed(1)
    optimizer = torch.optim.Adam(model.parameters(), lr=0.01)
    model.train()
    for _ in range(epochs):
        for batch in SubgraphLoader(data, PTR, 2, shuffle=True, seed=3, **options):
            optimizer.zero_grad()
            F.cross_entropy(model(batch), batch.data.y[: batch.batch_size]).backward()
            optimizer.step()
    model.eval()
    return model(loader=EvalSubgraphLoader(data, PTR, 2))


def net(tier: Any = None, **kwargs: Any) -> Net:
    torch.manual_seed(0)
    return Net(N, 16, 3, dropout=0.5, tier=tier, **kwargs)


def assert_same_histories(model: Any, other: Any) -> None:
    for mine, wanted in zip(model.histories, other.histories, strict=True):
        assert torch.equal(mine.emb, wanted.emb) and torch.equal(mine.age, wanted.age)
        assert mine.clock == wanted.clock


# -- training --------------------------------------------------------------------------------------


@pytest.mark.parametrize("prefetch", [0, 2])
@pytest.mark.parametrize("dtype", [None, torch.bfloat16, torch.int8])
def test_training_is_the_same_to_the_bit(tmp_path: Path, dtype: torch.dtype | None, prefetch: int) -> None:
    memory, file = net(history_dtype=dtype), net(FileTier(tmp_path), history_dtype=dtype)
    assert torch.equal(train(memory), train(file, prefetch=prefetch))
    assert_same_histories(file, memory)
    assert {history.tier for history in file.histories} == {"file"}
    assert sorted(path.name for path in tmp_path.iterdir()) == ["history_0.table", "history_1.table"]


def test_a_scaled_model_has_its_histories_in_files(tmp_path: Path) -> None:
    outputs = []
    for tier in (None, FileTier(tmp_path)):
        torch.manual_seed(0)
        model = scale(GraphSAGE(8, 16, 3, 3, aggr="max"), DATA, tier=tier)
        outputs.append(train(model))
    assert torch.equal(*outputs) and {history.tier for history in model.histories} == {"file"}


def test_plan_leaves_histories_in_files_as_they_were(tmp_path: Path) -> None:
    model = net(FileTier(tmp_path))
    train(model)
    before = [history.emb.clone() for history in model.histories]
    assert plan(DATA, model, device_memory="1 MiB").history_bytes == 2 * N * (16 * 4 + 8)
    assert all(torch.equal(history.emb, rows) for history, rows in zip(model.histories, before, strict=True))


# -- copies and checkpoints ------------------------------------------------------------------------


def test_states_go_between_tiers(tmp_path: Path) -> None:
    file, memory = net(FileTier(tmp_path)), net()
    train(file)
    buffer = io.BytesIO()
    torch.save(file.state_dict(), buffer)
    memory.load_state_dict(torch.load(io.BytesIO(buffer.getvalue()), weights_only=True))
    assert_same_histories(file, memory)
    train(memory)
    file.load_state_dict(memory.state_dict())
    assert_same_histories(file, memory)
    lean = net(FileTier(tmp_path / "lean"), save_histories=False)
    assert not any("histories" in key for key in lean.state_dict())
    with pytest.raises(RuntimeError, match=r"Missing key.*histories\.0\.emb"):
        file.load_state_dict(lean.state_dict())


@pytest.mark.parametrize("copied", [copy.deepcopy, lambda model: pickle.loads(pickle.dumps(model))])
def test_a_copy_lies_in_memory(tmp_path: Path, copied: Any) -> None:
    file = net(FileTier(tmp_path))
    train(file)
    twin = copied(file)
    assert_same_histories(twin, file)
    assert {history.tier for history in twin.histories} == {"host"}
    before = [history.emb.clone() for history in file.histories]
    train(twin)
    assert all(torch.equal(history.emb, rows) for history, rows in zip(file.histories, before, strict=True))


def test_rows_through_the_map_and_by_calls_are_the_same_ones(tmp_path: Path) -> None:
    history = History(10, 4, tier=FileTier(tmp_path / "table"))
    history.emb[3] = torch.tensor([1.0, 2, 3, 4])
    assert history.pull(torch.tensor([3])).tolist() == [[1, 2, 3, 4]]
    history.push(torch.ones(10, 4))
    assert history.emb.all() and history.age.tolist() == [0] * 10
    assert torch.equal(history.pull(), torch.ones(10, 4))
    history.reset_parameters()
    assert not history.emb.any() and history.age.tolist() == [-1] * 10
    with pytest.raises(AttributeError, match="lies in a file"):
        history.emb = torch.zeros(10, 4)
    with pytest.raises(ValueError, match="belongs to one process"):
        history.share_memory()
    assert history.double().emb.dtype == torch.float32  # a file keeps its type


# -- what the next process finds -------------------------------------------------------------------


def test_committed_rows_are_found_again(tmp_path: Path) -> None:
    model = net(FileTier(tmp_path))
    train(model)
    model.commit_histories()
    kept = copy.deepcopy(model)
    del model
    again = net(FileTier(tmp_path, reuse=True))
    assert_same_histories(again, kept)
    assert [history.table.generation for history in again.histories] == [1, 1]


def test_torn_rows_are_forgotten(tmp_path: Path) -> None:
    model = net(FileTier(tmp_path))
    train(model)
    model.commit_histories()
    train(model)
    del model
    with pytest.warns(UserWarning, match=r"history_.\.table: .* before it committed them \(after generation 1\)"):
        again = net(FileTier(tmp_path, reuse=True))
    for history in again.histories:
        assert history.table.torn and not history.emb.any() and (history.age == -1).all()
    del history, again
    with pytest.warns(UserWarning, match="before it committed"):  # who opened it has not committed either
        net(FileTier(tmp_path, reuse=True))


def test_a_process_that_only_reads_leaves_nothing_torn(tmp_path: Path) -> None:
    model = net(FileTier(tmp_path))
    train(model)
    model.commit_histories()
    del model
    for _ in range(2):
        model = net(FileTier(tmp_path, reuse=True)).eval()  # a warning, as of a torn file, would be an error
        model.histories[0].pull(torch.arange(5))
        model.state_dict()
        assert all(history.table.header.committed for history in model.histories)
        del model


@pytest.mark.parametrize("sync", ["commit", "never"])
def test_when_rows_are_forced_to_the_disk(tmp_path: Path, sync: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    calls: list[int] = []
    monkeypatch.setattr(os, "fsync", calls.append)
    history = History(10, 4, tier=FileTier(tmp_path / "table", sync=sync))
    counts = []
    for step in (lambda: history.push(torch.ones(10, 4)), lambda: history.push(torch.ones(10, 4)), history.commit):
        calls.clear()
        step()
        counts.append(len(calls))
    assert counts == {"commit": [1, 0, 2], "never": [0, 0, 0]}[sync]


def test_rows_never_change_while_the_file_says_that_they_are_committed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    history = History(10, 4, tier=FileTier(tmp_path / "table"))
    history.push(torch.ones(10, 4))
    history.commit()
    file = history.table.file
    with monkeypatch.context() as broken:
        broken.setattr(os, "fsync", lambda file: (_ for _ in ()).throw(OSError(5, "Input/output error")))
        with pytest.raises(OSError, match="Input/output error"):
            history.push(torch.zeros(3, 4), torch.tensor([1, 2, 3]))
    with pytest.raises(OSError, match="rows could not be moved in an earlier step"):
        history.push(torch.zeros(3, 4), torch.tensor([1, 2, 3]))
    untouched = torch.frombuffer(bytearray(os.pread(file, 160, 4096)), dtype=torch.float32)
    assert bool((untouched == 1).all())  # nothing was written after the header could not be
    history.reset_parameters()
    history.push(torch.ones(10, 4))
    assert not Header.read(file, "").committed and not history.table.header.committed


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"num_embeddings": 9}, "holds a table of 10 rows with 4 elements of type float32, but 9 rows with 4"),
        ({"embedding_dim": 5}, "but 10 rows with 5 of type float32 are asked for"),
        ({"dtype": torch.float16}, "with 4 of type float16 are asked for; choose another path, or delete the file"),
    ],
)
def test_another_table_is_refused(tmp_path: Path, change: dict[str, Any], message: str) -> None:
    path = tmp_path / "table"
    arguments: dict[str, Any] = {"num_embeddings": 10, "embedding_dim": 4}
    history = History(**arguments, tier=FileTier(path))
    history.push(torch.ones(10, 4))
    history.commit()
    del history
    before = path.read_bytes()
    with pytest.raises(ValueError, match=message):
        History(**{**arguments, **change}, tier=FileTier(path, reuse=True))
    with pytest.raises(FileExistsError, match=r"pass FileTier\(\.\.\., reuse=True\) to go on with its rows"):
        History(**arguments, tier=FileTier(path))
    assert path.read_bytes() == before


@pytest.mark.parametrize(
    ("spoil", "message"),
    [
        (lambda raw: b"some text", "is no table of torch-gas; choose another path"),
        (lambda raw: b"", "is no table of torch-gas"),
        (lambda raw: raw[:-1], "it was cut; delete it"),
        (lambda raw: raw[:20] + b"!" + raw[21:], "the header of the table cannot be read"),
        (lambda raw: raw.replace(b"float32", b"float31"), "the header of the table cannot be read"),
    ],
)
def test_a_spoilt_file_is_refused_and_left_alone(tmp_path: Path, spoil: Any, message: str) -> None:
    path = tmp_path / "table"
    FileTable(FileTier(path), 10, 4, torch.float32).close()
    path.write_bytes(spoil(path.read_bytes()))
    before = path.read_bytes()
    with pytest.raises(ValueError, match=message):
        FileTable(FileTier(path, reuse=True), 10, 4, torch.float32)
    assert path.read_bytes() == before


def test_bad_tiers(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="sync must be one of"):
        FileTier(tmp_path, sync="always")  # type: ignore[arg-type]
    with pytest.raises(TypeError, match=r"path must be str \| os.PathLike\[str\], but is 3"):
        FileTier(3)  # type: ignore[arg-type]
    with pytest.raises(ValueError, match=r"does not lie on a GPU, but device is meta"):
        History(4, 2, "meta", tier=FileTier(tmp_path / "a"))
    with pytest.raises(TypeError, match="dtype must be one of"):
        FileTable(FileTier(tmp_path / "a"), 4, 2, torch.complex64)
    assert not list(tmp_path.iterdir())


# -- processes -------------------------------------------------------------------------------------

HOLD = """
import sys, torch
from torch_gas import FileTable, FileTier
table = FileTable(FileTier(sys.argv[1]), 10, 4, torch.float32)
print("open", flush=True)
sys.stdin.read()
"""


@pytest.mark.slow
def test_two_processes_cannot_open_one_table(tmp_path: Path) -> None:
    path = tmp_path / "table"
    command = [sys.executable, "-W", "ignore", "-c", HOLD, str(path)]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as other:
        assert other.stdout is not None and other.stdout.readline() == "open\n"
        with pytest.raises(RuntimeError, match=f"is in use by process {other.pid}, and only one may write"):
            FileTable(FileTier(path, reuse=True), 10, 4, torch.float32)
        with pytest.raises(RuntimeError, match=f"is in use by process {other.pid}"):
            FileTable.read_only(path)
        other.communicate()
    FileTable(FileTier(path, reuse=True), 10, 4, torch.float32).close()


def test_a_table_is_open_once_in_a_process(tmp_path: Path) -> None:
    table = FileTable(FileTier(tmp_path / "table"), 10, 4, torch.float32)
    with pytest.raises(RuntimeError, match=r"by another table of this process.*delete the model that has it"):
        FileTable(FileTier(tmp_path / "table", reuse=True), 10, 4, torch.float32)
    table.close()
    with pytest.raises(ValueError, match="the table was closed"):
        table.check_usable()


def test_a_forked_process_cannot_write(tmp_path: Path) -> None:
    history = History(10, 4, tier=FileTier(tmp_path / "table"))
    history.push(torch.ones(10, 4))
    child = os.fork()
    if child == 0:
        try:
            history.push(torch.zeros(10, 4))
        except RuntimeError as error:
            os._exit(0 if f"belongs to process {os.getppid()}, of which this one is a copy" in str(error) else 2)
        os._exit(1)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0
    assert history.emb.all()


def test_a_fork_that_outlives_a_killed_run_keeps_no_lock(tmp_path: Path) -> None:
    path = tmp_path / "table"
    ends, begins = os.pipe()
    run = os.fork()
    if run == 0:
        history = History(10, 4, tier=FileTier(path))
        history.commit()
        worker = os.fork()
        if worker == 0:
            os.close(begins)
            signal.pause()  # until the test ends it
        os.write(begins, str(worker).encode())
        os.kill(os.getpid(), signal.SIGKILL)
    os.close(begins)
    os.waitpid(run, 0)
    with os.fdopen(ends) as file:
        worker = int(file.read())
    try:
        assert History(10, 4, tier=FileTier(path, reuse=True)).table.header.generation == 1
    finally:
        os.kill(worker, signal.SIGKILL)


# -- features --------------------------------------------------------------------------------------


def stored(tmp_path: Path, **options: Any) -> Data:
    """``DATA`` with features in a file, stored from an array on the disk."""
    np.save(tmp_path / "x.npy", RAW.x.numpy())
    data = copy.copy(DATA)
    data.x = store_features(np.load(tmp_path / "x.npy", mmap_mode="r"), tmp_path / "x.table", perm=PERM, **options)
    data.num_nodes = N
    return data


@pytest.mark.parametrize("prefetch", [0, 2])
def test_features_in_a_file_train_the_same_model(tmp_path: Path, prefetch: int) -> None:
    assert torch.equal(train(net(), stored(tmp_path), prefetch=prefetch), train(net()))


@pytest.mark.slow
@pytest.mark.parametrize("context", ["fork", "spawn"])
def test_workers_read_features(tmp_path: Path, context: str) -> None:
    loader = SubgraphLoader(stored(tmp_path), PTR, 4, num_workers=1, multiprocessing_context=context)
    assert [torch.equal(batch.data.x, DATA.x[batch.n_id]) for batch in loader] == [True, True]


@pytest.mark.parametrize(("dtype", "error"), [(torch.float16, 1e-3), (torch.bfloat16, 8e-3), (torch.int8, 5e-3)])
def test_features_of_other_types(tmp_path: Path, dtype: torch.dtype, error: float) -> None:
    data = stored(tmp_path, dtype=dtype)
    rows = StoredFeatures(tmp_path / "x.table", torch.float32)[torch.arange(N)]
    largest = DATA.x.abs().amax(dim=1, keepdim=True)
    assert 0 < float(((rows - DATA.x).abs() / largest).max()) < error
    assert data.x.nbytes == N * (8 + 4 if dtype == torch.int8 else 16)
    batch = next(iter(SubgraphLoader(data, PTR, 2)))
    wanted = torch.float32 if dtype == torch.int8 else dtype
    assert batch.data.x.dtype == wanted and torch.equal(batch.data.x, rows[batch.n_id].to(wanted))


@pytest.mark.parametrize(
    "dtype", [torch.int8, torch.float8_e4m3fn, torch.float8_e5m2, torch.uint8, torch.int16, torch.bool]
)
def test_features_come_back_as_they_were(tmp_path: Path, dtype: torch.dtype) -> None:
    """Eight-bit numbers are rounded, with a scale for each row, only where that is asked for."""
    every = torch.arange(256, dtype=torch.uint8).view(16, 16)
    x = every.to(dtype) if dtype in (torch.int16, torch.bool) else every.view(dtype)
    numbers = x.to(torch.float64)
    given = x.numpy() if not x.is_floating_point() else x
    rows = store_features(given, tmp_path / "x.table")[torch.arange(16)]
    assert torch.equal(rows.to(torch.float64).nan_to_num(1.5), numbers.nan_to_num(1.5))
    small = store_features(x[:, :5], tmp_path / "small.table", dtype=torch.int8)
    assert small.nbytes == 16 * 9 and small.dtype == torch.float32


@pytest.mark.parametrize("in_file", [False, True])
def test_rows_of_a_history_are_pushed_to_it(tmp_path: Path, in_file: bool) -> None:
    """As ``emb[ids] = rows`` does, though rows lie in the table, or in a map of its file."""
    history = History(3000, 40, tier=FileTier(tmp_path / "x.table") if in_file else None)
    start = torch.randn(3000, 40)
    for ids, taken in ((torch.arange(1, 3000), slice(0, 2999)), (torch.arange(2999), slice(1, 3000))):
        for ranges in (False, True):
            history.push(start)
            wanted = start.clone()
            wanted[ids] = start[taken]
            rows = history.emb[taken]
            if ranges:
                history.push(rows, offset=ids[:1], count=torch.tensor([2999]))
            else:
                history.push(rows, ids)
            assert torch.equal(history.emb, wanted)


def test_a_model_can_be_scaled_on_features_in_a_file(tmp_path: Path) -> None:
    outputs = []
    for data in (DATA, stored(tmp_path)):
        torch.manual_seed(0)
        outputs.append(train(scale(GraphSAGE(8, 16, 3, 3), data), data))
    assert torch.equal(*outputs)


def test_features_are_found_from_other_folders(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    x = torch.rand(N, 2)
    saved = pickle.dumps(store_features(x, "x.table"))
    (tmp_path / "other").mkdir()
    monkeypatch.chdir(tmp_path / "other")
    store_features(x + 1, "x.table")
    assert pickle.loads(saved)[torch.arange(N)].equal(x)


def test_features_of_another_order_are_refused(tmp_path: Path) -> None:
    data = stored(tmp_path)
    with pytest.raises(ValueError, match=r"data.x lies in a file.*store_features\(..., perm=perm\)"):
        permute(data, PERM, log=False)
    data.perm = PERM.flip(0)
    with pytest.raises(ValueError, match="stored for another partition than that"):
        SubgraphLoader(data, PTR)
    data.perm, data.x = PERM, store_features(torch.ones(N - 1, 8), tmp_path / "short.table")
    with pytest.raises(ValueError, match=f"data.x has {N - 1} rows, but data has {N} nodes"):
        SubgraphLoader(data, PTR)
    with pytest.raises(TypeError, match="features in a file are read for batches only"):
        net()(data.x, data.edge_index)


def test_what_cannot_be_stored(tmp_path: Path) -> None:
    path = tmp_path / "x.table"
    with pytest.raises(ValueError, match=r"x must be \[N, C\] with at least one element, but has shape \[3\]"):
        store_features(torch.ones(3), path)
    with pytest.raises(ValueError, match=r"perm must be \[3\], one id of int64 for each row of x, but is \[2\]"):
        store_features(torch.ones(3, 2), path, perm=torch.tensor([0, 1]))
    with pytest.raises(ValueError, match=r"perm must hold each id of 0 .. 2 once"):
        store_features(torch.ones(3, 2), path, perm=torch.tensor([0, 1, 3]))
    assert not path.exists()
    store_features(torch.ones(3, 2), path)
    with pytest.raises(FileExistsError, match="exists already"):
        store_features(torch.ones(3, 2), path)
    with pytest.raises(FileNotFoundError):
        StoredFeatures(tmp_path / "other")


def test_features_that_were_not_completed_are_refused(tmp_path: Path) -> None:
    table = FileTable(FileTier(tmp_path / "x.table"), 3, 2, torch.float32)
    table.before_write()
    table.close()
    with pytest.raises(ValueError, match="ended before it was done; write them again"):
        StoredFeatures(tmp_path / "x.table")
    with pytest.raises(ValueError, match="was opened to be read"):
        store_features(torch.ones(3, 2), tmp_path / "y.table")._table.before_write()


def test_headers_are_one_sector(tmp_path: Path) -> None:
    header = Header(2**62, 2**31, "bfloat16", 2**62, True, 2**62, 2**31, 2**32)
    file = os.open(tmp_path / "a", os.O_RDWR | os.O_CREAT)
    header.write(file)
    assert os.fstat(file).st_size == 512
    os.close(file)


# -- checkpoints -----------------------------------------------------------------------------------


def test_checkpoints_go_between_tiers(tmp_path: Path) -> None:
    file, memory = net(FileTier(tmp_path / "tables"), history_dtype=torch.int8), net(history_dtype=torch.int8)
    train(file)
    file.save_histories(tmp_path / "histories.safetensors")
    memory.load_histories(tmp_path / "histories.safetensors")
    assert_same_histories(file, memory)
    train(memory)
    checkpoint.save(tmp_path / "run.safetensors", model=memory, epoch=2)
    assert checkpoint.load(tmp_path / "run.safetensors", model=file) == {"epoch": 2}
    assert_same_histories(file, memory)
