"""A table's file is incomplete until it is committed: what is left by those who were killed, and by those who took it away."""

from __future__ import annotations

import json
import os
import shutil
import signal
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from torch_gas import FileTable, FileTier, History, StoredFeatures, store_features
from torch_gas.table.header import Header


def killed(work: Callable[[], object]) -> None:
    """Does ``work`` in a copy of this process, which is killed in it."""
    child = os.fork()
    if child == 0:
        try:
            work()
        finally:
            os._exit(0)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == -signal.SIGKILL


def committed(path: Path, rows: int = 10) -> History:
    history = History(rows, 4, tier=FileTier(path))
    history.push(torch.ones(rows, 4))
    history.commit()
    return history


class Slow(np.ndarray):  # type: ignore[type-arg]
    """Features whose reader is killed after so many reads."""

    reads = 0

    def __getitem__(self, index: Any) -> Any:
        if self.reads == 0:
            os.kill(os.getpid(), signal.SIGKILL)
        self.reads -= 1
        return np.asarray(self)[index]


@pytest.mark.parametrize("reads", [0, 1, 2, 3])
def test_features_whose_writer_was_killed_are_not_there(
    tmp_path: Path, reads: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("torch_gas.table.features._BLOCK", 100)
    x = np.ones((100, 4), np.float32).view(Slow)
    x.reads = reads
    killed(lambda: store_features(x, tmp_path / "x"))
    with pytest.raises(FileNotFoundError):
        StoredFeatures(tmp_path / "x")
    assert store_features(torch.ones(100, 4), tmp_path / "x")[torch.arange(100)].all()
    # An empty part may be of somebody who has just begun.
    assert all(path.stat().st_size == 0 for path in tmp_path.glob("*.part"))


def test_rows_that_were_never_committed_are_no_features(tmp_path: Path) -> None:
    FileTable(FileTier(tmp_path / "x"), 3, 2, torch.float32).close()  # of zeros that nobody stored
    with pytest.raises(ValueError, match="ended before it was done; write them again"):
        StoredFeatures(tmp_path / "x")


def test_a_file_that_nobody_wrote_to_is_in_nobodys_way(tmp_path: Path) -> None:
    """A script that ended after it made its model can be started again."""
    path = tmp_path / "table"

    def work() -> None:
        History(10, 4, tier=FileTier(path))
        os.kill(os.getpid(), signal.SIGKILL)

    killed(work)
    history = History(10, 4, tier=FileTier(path))
    assert not history.pull().any() and (history.age == -1).all()
    history.push(torch.ones(1, 4), torch.tensor([0]))
    del history
    with pytest.raises(FileExistsError, match="exists already"):
        History(10, 4, tier=FileTier(path))


def test_nothing_is_there_before_it_is_a_table(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def fails(self: Header, file: int) -> None:
        assert not (tmp_path / "table").exists()
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(Header, "write", fails)
        with pytest.raises(OSError, match="No space left on device; make room on the disk"):
            FileTable(FileTier(tmp_path / "table"), 10, 4, torch.float32)
    assert os.listdir(tmp_path) == []


# -- commits -----------------------------------------------------------------------------------------------------------

TAKEN: dict[str, Callable[[Path], object]] = {
    "deleted": lambda path: path.unlink(),
    "deleted with its folder": lambda path: shutil.rmtree(path.parent),
    "moved": lambda path: path.rename(path.with_name("elsewhere")),
    "replaced": lambda path: shutil.copy(path, path.with_name("copy")) and path.with_name("copy").replace(path),
    "its folder is a file": lambda path: (shutil.rmtree(path.parent), path.parent.write_text("")),
}


@pytest.mark.parametrize("how", TAKEN)
def test_a_commit_to_a_file_that_is_gone_says_so(tmp_path: Path, how: str) -> None:
    history = committed(tmp_path / "folder" / "table")
    TAKEN[how](tmp_path / "folder" / "table")
    history.push(torch.zeros(10, 4))
    with pytest.raises(FileNotFoundError, match=r"was deleted, moved or replaced .* save a checkpoint") as error:
        history.commit()
    assert error.value.filename == str(tmp_path / "folder" / "table")
    assert not history.pull().any()  # which the process still has


def test_another_working_directory_changes_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "elsewhere").mkdir()
    monkeypatch.chdir(tmp_path)
    history = History(10, 4, tier=FileTier("table"))
    x = store_features(torch.ones(3, 2), "x")
    monkeypatch.chdir(tmp_path / "elsewhere")
    history.push(torch.ones(10, 4))
    history.commit()
    assert x[torch.arange(3)].all() and os.listdir(tmp_path / "elsewhere") == []


def test_a_commit_that_is_refused_changes_nothing(tmp_path: Path) -> None:
    table = committed(tmp_path / "table").table
    assert isinstance(table, FileTable)
    before = (tmp_path / "table").read_bytes()
    for times in (torch.zeros(11, dtype=torch.int64), torch.zeros(10, dtype=torch.int32)):
        with pytest.raises(ValueError, match=r"pushed_at must be \[10\] of int64"):
            table.commit(times)
    with pytest.raises(TypeError, match="clock must be int"):
        table.commit(torch.zeros(10, dtype=torch.int64), clock=torch.tensor(3))  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="a number is too small"):
        table.commit(clock=-1)
    assert (tmp_path / "table").read_bytes() == before and table.header.committed


def test_rows_are_torn_again_after_a_commit_that_failed_half_way(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The file may say that its rows are committed then, though nobody knows."""
    history = committed(tmp_path / "table")
    history.push(torch.ones(10, 4))
    with monkeypatch.context() as patch:
        patch.setattr(FileTable, "_flush", lambda self: (_ for _ in ()).throw(KeyboardInterrupt))
        patch.setattr("torch_gas.table.file._write", lambda *args: None)
        for _ in range(2):  # before the header is written, and after that
            with pytest.raises(KeyboardInterrupt):
                history.commit()
            patch.setattr(FileTable, "_flush", flush_twice(KeyboardInterrupt))
    assert Header.read(history.table.file, "").committed
    history.push(torch.zeros(10, 4))
    assert not Header.read(history.table.file, "").committed


def flush_twice(error: type[BaseException]) -> Callable[[FileTable], None]:
    calls = []

    def flush(table: FileTable) -> None:
        calls.append(table)
        if len(calls) == 2:
            raise error

    return flush


def test_a_torn_file_that_was_cut_is_cleared(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """As one is whose process was killed while it forgot its rows, which is done by cutting it."""
    path = tmp_path / "table"
    committed(path)  # and closed

    def kill(file: int, size: int) -> None:
        real(file, size)
        os.kill(os.getpid(), signal.SIGKILL)

    real = os.ftruncate
    monkeypatch.setattr(os, "ftruncate", kill)
    killed(lambda: History(10, 4, tier=FileTier(path, reuse=True)).reset_parameters())
    monkeypatch.undo()
    assert path.stat().st_size == 4096
    with pytest.warns(UserWarning, match="before it committed them"):
        again = History(10, 4, tier=FileTier(path, reuse=True))
    assert not again.pull().any()


def test_a_warning_that_is_an_error_leaves_torn_rows(tmp_path: Path) -> None:
    history = committed(tmp_path / "table")
    history.push(torch.ones(10, 4))
    del history
    before = (tmp_path / "table").read_bytes()[4096:]
    for _ in range(2):  # nor does it keep the file open
        with pytest.raises(UserWarning, match="before it committed them"):
            History(10, 4, tier=FileTier(tmp_path / "table", reuse=True))
    assert (tmp_path / "table").read_bytes()[4096:] == before


# -- headers -----------------------------------------------------------------------------------------------------------

GOOD = {"num_rows": 10, "num_cols": 4, "dtype": "float32", "generation": 1, "committed": True, "clock": 0, "owner": 0}
OTHER_VALUES = [None, "x", "1", -1, 1.5, 2**63, 2**80, True, "true", [], [1], {}, float("nan"), "\udc80"]


def write_header(path: Path, text: bytes) -> None:
    with path.open("wb") as file:
        file.write((b"torch-gas table\n" + text).ljust(512))
        file.truncate(4096 + 160 + 80)


@pytest.mark.parametrize("field", [*GOOD, "order", "key", "check"])
def test_fields_of_other_types_are_refused(tmp_path: Path, field: str) -> None:
    path, accepted = tmp_path / "table", []
    for value in OTHER_VALUES:
        write_header(path, json.dumps({**GOOD, field: value}).encode())
        try:
            History(10, 4, tier=FileTier(path, reuse=True)).commit()
            accepted.append(value)
        except ValueError as error:
            assert str(path) in str(error)
    right = {"committed": [True], "key": ["x", "1", "true", "\udc80"], "order": [-1], "owner": [-1], "check": [None]}
    assert [value for value in accepted if value not in right.get(field, [])] == []


@pytest.mark.parametrize("text", [b"[]", b"1", b"null", b'"x"', b"[" * 490, b"{}", b"\xff", b'{"a": 1}', b""])
def test_headers_of_something_else_are_refused(tmp_path: Path, text: bytes) -> None:
    write_header(tmp_path / "table", text)
    for use in (StoredFeatures, lambda path: History(10, 4, tier=FileTier(path, reuse=True))):
        with pytest.raises(ValueError, match="table: the header of the table cannot be read"):
            use(tmp_path / "table")


def test_headers_of_release_0_1_have_no_checksum(tmp_path: Path) -> None:
    write_header(tmp_path / "table", json.dumps(GOOD).encode())
    History(10, 4, tier=FileTier(tmp_path / "table", reuse=True)).commit()
    assert b'"check": ' in (tmp_path / "table").read_bytes()[:512]


def test_a_changed_header_is_noticed(tmp_path: Path) -> None:
    path = tmp_path / "table"
    committed(path).table.close()
    whole = path.read_bytes()
    for old, new in (
        (b'"generation": 1', b'"generation": 3'),
        (b'"key": ""', b'"key":"x"'),
        (b'"check": ', b'"chuck": '),
    ):
        assert old in whole[:512]
        path.write_bytes(whole.replace(old, new, 1))
        with pytest.raises(ValueError, match="the header of the table cannot be read"):
            History(10, 4, tier=FileTier(path, reuse=True))


def test_rows_of_no_time_are_damage(tmp_path: Path) -> None:
    path = tmp_path / "table"
    committed(path).table.close()
    whole = path.read_bytes()
    for time in (-1, 2, 2**40):  # 0 says never, and 1 says at the first step
        path.write_bytes(whole[:-8] + time.to_bytes(8, "little", signed=True))
        with pytest.raises(ValueError, match="is damaged: it holds rows that were pushed at no time"):
            History(10, 4, tier=FileTier(path, reuse=True))


def test_pipes_are_not_waited_for(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe")
    for use in (StoredFeatures, lambda path: FileTable(FileTier(path, reuse=True), 10, 4, torch.float32)):
        with pytest.raises(ValueError, match="is a pipe or a device"):
            use(tmp_path / "pipe")


def test_what_is_closed_writes_to_no_other_file(tmp_path: Path) -> None:
    """The number of its descriptor is soon that of another file."""
    history = committed(tmp_path / "table")
    table = history.table
    assert isinstance(table, FileTable)
    calls = [history.reset_parameters, lambda: history.emb, lambda: table.name_graph("x"), table.clear, history.commit]

    def check(message: str) -> None:
        with open(tmp_path / f"{os.getpid()}", "w+b") as other:
            if other.fileno() != table.file:
                os.dup2(other.fileno(), table.file)
            other.write(b"untouched")
            other.flush()
            for call in calls:
                with pytest.raises((RuntimeError, ValueError), match=message):
                    call()
            assert (tmp_path / f"{os.getpid()}").read_bytes() == b"untouched"

    child = os.fork()
    if child == 0:
        try:
            check("one process only can use a table in a file")
        except BaseException:
            os._exit(1)
        os._exit(0)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0
    assert history.pull().sum() == 40
    table.close()
    check("the table was closed; open it again")
