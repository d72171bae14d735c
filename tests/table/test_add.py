"""Rows that are added to those of a table: the same bits wherever it lives, and nothing lost in a file."""

from __future__ import annotations

import errno
import gc
import os
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
import twins
from torch import Tensor

from torch_gas import FileTable, FileTier, _core
from torch_gas.table import HotSet, Table, outbox
from torch_gas.table.codec import STORED, Codec
from torch_gas.table.hot import Hot
from torch_gas.table.memory import MemoryTable

N, C = 23, 5
HOT = torch.tensor([0, 3, 4, 11, 22])


def memory(folder: Path, dtype: torch.dtype = torch.float32) -> Table:
    return MemoryTable.zeros(N, C, dtype, torch.device("cpu"), huge_pages=False, pageable=False)


def file(folder: Path, dtype: torch.dtype = torch.float32, reuse: bool = False) -> FileTable:
    return FileTable(FileTier(folder / "x.table", reuse=reuse), N, Codec(dtype).stored_width(C), dtype)


KINDS: dict[str, Callable[[Path, torch.dtype], Table]] = {
    "memory": memory,
    "file": file,
    "hot memory": lambda folder, dtype: Hot(memory(folder, dtype), HotSet(HOT, N)),
    "hot file": lambda folder, dtype: Hot(file(folder, dtype), HotSet(HOT, N)),
}


@pytest.fixture(params=KINDS)
def kind(request: pytest.FixtureRequest) -> Callable[[Path, torch.dtype], Table]:
    return KINDS[request.param]


@pytest.fixture(autouse=True)
def small_blocks(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(outbox, "_BLOCK", 4 * C * 4)  # four rows of float32


def read(table: Table, ids: Tensor) -> Tensor:
    out = torch.empty(ids.numel(), C, dtype=table.dtype)
    table.read(ids, out)
    return out


def waiting(table: FileTable) -> list[int]:
    """The blocks of which rows wait."""
    return [] if table._outbox is None else sorted(table._outbox._waiting)


def on_disk(table: FileTable) -> Tensor:
    """The rows as they lie in the file."""
    return torch.frombuffer(bytearray(os.pread(table.file, table.nbytes, table.offset)), dtype=table.dtype).view(N, C)


@pytest.mark.parametrize("dtype", _core.SUM_TYPES)
@pytest.mark.parametrize("seed", range(3))
def test_sums_are_those_of_single_rows(
    kind: Callable[[Path, torch.dtype], Table], dtype: torch.dtype, seed: int, tmp_path: Path
) -> None:
    table, wanted = kind(tmp_path, dtype), torch.zeros(N, C, dtype=dtype)
    random = torch.Generator().manual_seed(seed)

    def below(bound: int, *size: int) -> Tensor:
        return torch.randint(0, bound, size, generator=random)

    read(table, torch.arange(N))
    for step in range(80):
        ids = below(N, int(below(2 * N)))
        ids = [ids, ids.sort().values, ids.unique(), ids.unique().int()][step % 4]
        rows = torch.randn(ids.numel(), C, generator=random).to([dtype, torch.float32, torch.bfloat16][step % 3])
        before = table.version
        table.add(ids, rows)
        twins.add_rows(wanted, ids, rows)
        assert ids.numel() == 0 or table.version != before
        what = int(below(12))
        if what == 0:
            table.clear()
            wanted.zero_()
        elif what == 1:
            some = ids.unique()
            table.write(some, rows[: some.numel()])
            wanted[some] = rows[: some.numel()].to(dtype)
        elif what == 2:
            table.write_ranges(torch.tensor([9, 2]), torch.tensor([3, 1]), torch.ones(4, C))
            wanted[[2, 9, 10, 11]] = 1
        elif what == 3:
            table.commit()
        elif what == 4:
            twins.same_bits(table.numbers(dtype), wanted)
        elif what == 5:
            table.settle()
            twins.same_bits(table.tensor().clone(), wanted)
        elif what < 9:
            asked = below(N, 4)
            table.request(asked, dtype)
            twins.same_bits(read(table, asked), wanted[asked])
    twins.same_bits(read(table, torch.arange(N)), wanted)


@pytest.mark.parametrize("dtype", [dtype for dtype in STORED if dtype not in _core.SUM_TYPES])
def test_types_that_would_round_each_sum_are_refused(
    kind: Callable[[Path, torch.dtype], Table], dtype: torch.dtype, tmp_path: Path
) -> None:
    table = kind(tmp_path, dtype)
    with pytest.raises(TypeError, match=r"^Table.add: .* tables only store complete rows.*float32 or float64"):
        table.add(torch.tensor([1]), torch.ones(1, C))
    assert not table.numbers(torch.float32).any()


@pytest.mark.parametrize(
    ("ids", "rows", "error", "message"),
    [
        (torch.tensor([2, N]), torch.ones(2, C), IndexError, rf"every id in `ids` must be in .* ids\[1\] is {N}"),
        (torch.tensor([-1, 2]), torch.ones(2, C), IndexError, r"ids\[0\] is -1"),
        (torch.tensor([2, 3]), torch.ones(2, C + 1), ValueError, rf"`rows` must .* has shape \[2, {C + 1}\]"),
        (torch.tensor([2, 3]), torch.ones(1, C), ValueError, r"`rows` must .*shape"),
        (torch.tensor([2, 3]), torch.ones(2, C).double(), TypeError, "`rows` must be of a floating-point type"),
        (torch.tensor([2, 3]), torch.ones(2, C).long(), TypeError, "`rows` must be of a floating-point type"),
        (torch.tensor([2.0]), torch.ones(1, C), TypeError, "`ids` must be one of int32, int64"),
    ],
)
def test_errors_change_nothing(
    kind: Callable[[Path, torch.dtype], Table], tmp_path: Path, ids: Tensor, rows: Tensor, error: type, message: str
) -> None:
    table = kind(tmp_path, torch.float32)
    table.add(torch.arange(N), torch.ones(N, C))
    with pytest.raises(error, match=f"^Table.add: .*{message}"):
        table.add(ids, rows)
    assert torch.equal(read(table, torch.arange(N)), torch.ones(N, C))


# -- files -------------------------------------------------------------------------------------------------------------


def test_only_blocks_that_are_asked_for_are_read_and_written(tmp_path: Path) -> None:
    table = file(tmp_path)
    table.fill(torch.ones(N, C))
    table.add(torch.tensor([0, 3, 4, 9, 22]), torch.ones(5, C))
    assert bool((on_disk(table) == 1).all()), "rows of the table must wait until they are asked for"
    assert waiting(table) == [0, 1, 2, 5]
    assert read(table, torch.tensor([11, 5]))[:, 0].tolist() == [1, 1]
    assert waiting(table) == [0, 5]
    assert on_disk(table)[[0, 4, 9, 22], 0].tolist() == [1, 2, 2, 1]
    assert _core.read_chunks(table, torch.tensor([19, 7]), torch.tensor([4, 0]))[:, 0].tolist() == [1, 1, 1, 2]
    assert waiting(table) == [0]
    table.write(torch.tensor([2]), torch.zeros(1, C))
    assert on_disk(table)[:5, 0].tolist() == [2, 1, 0, 2, 2]
    batch = torch.tensor([8]), torch.tensor([4]), torch.tensor([22])  # a range, and a halo
    for look in (table.map, table.tensor, lambda: _core.batch_rows(table, *batch)):
        table.add(torch.tensor([9, 22]), torch.ones(2, C))
        look()
        assert waiting(table) == []


def test_files_that_rows_wait_in_stay_small(tmp_path: Path) -> None:
    table, ids = file(tmp_path), torch.arange(0, N, 2)
    for _ in range(40):
        table.add(ids, torch.ones(ids.numel(), C))
        assert table._outbox is not None
        sizes = [os.fstat(each.fileno()).st_size for each in (table._outbox._ids, table._outbox._rows)]
        assert sum(sizes) <= (N + ids.numel()) * (4 + 4 * C)
    assert read(table, ids).unique().tolist() == [40]
    sizes = [os.fstat(each.fileno()).st_size for each in (table._outbox._ids, table._outbox._rows)]
    assert sizes == [0, 0]
    table.add(torch.arange(N).repeat(5), torch.ones(5 * N, C))  # more than the table has
    assert read(table, torch.tensor([0, 1]))[:, 0].tolist() == [45, 5]


def says_committed(table: FileTable) -> bool:
    """What the header in the file says."""
    return b'"committed": true' in os.pread(table.file, 512, 0)


def test_sums_are_committed(tmp_path: Path) -> None:
    table = file(tmp_path)
    table.add(torch.tensor([3, 20]), torch.ones(2, C))
    assert not says_committed(table)
    table.commit()
    assert says_committed(table)
    assert os.listdir(tmp_path) == ["x.table"]
    table.close()
    again = file(tmp_path, reuse=True)
    assert again.numbers(torch.float32)[:, 0].nonzero().flatten().tolist() == [3, 20]


def test_sums_that_were_not_committed_are_forgotten(tmp_path: Path) -> None:
    table = file(tmp_path)
    table.fill(torch.ones(N, C))
    table.commit()
    table.add(torch.tensor([3]), torch.ones(1, C))
    table.close()
    with pytest.warns(UserWarning, match="ended before it committed them"):
        again = file(tmp_path, reuse=True)
    assert not again.numbers(torch.float32).any()
    assert os.listdir(tmp_path) == ["x.table"]


def test_a_table_that_is_only_read_is_not_added_to(tmp_path: Path) -> None:
    table = file(tmp_path)
    table.commit()
    table.close()
    with pytest.raises(ValueError, match="opened to be read"):
        FileTable.read_only(tmp_path / "x.table").add(torch.tensor([3]), torch.ones(1, C))


def full_disk(*_: object) -> None:
    raise OSError(errno.ENOSPC, "No space left on device")


def stopped(*_: object) -> None:
    raise KeyboardInterrupt


def test_rows_that_find_no_room_are_not_added(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    table = file(tmp_path)
    table.add(torch.tensor([3, 20]), torch.ones(2, C))
    with monkeypatch.context() as patch:
        patch.setattr(outbox._core, "write_chunks", full_disk)
        with pytest.raises(OSError, match=r"make room on the disk.*x\.table"):
            table.add(torch.tensor([3, 4]), torch.ones(2, C))
    table.add(torch.tensor([3]), torch.ones(1, C))
    assert read(table, torch.tensor([3, 4, 20]))[:, 0].tolist() == [2, 0, 1]


@pytest.mark.parametrize("failure", [full_disk, stopped])
def test_a_table_whose_sums_were_cut_short_is_not_used(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, failure: Callable[..., None]
) -> None:
    """Nobody knows whether the rows were added."""
    table = file(tmp_path)
    table.add(torch.tensor([3, 20]), torch.ones(2, C))
    with monkeypatch.context() as patch:
        patch.setattr(_core, "write_chunks", failure)
        with pytest.raises((OSError, KeyboardInterrupt)):
            read(table, torch.tensor([3]))
    for use in (
        lambda: read(table, torch.tensor([0])),
        lambda: table.add(torch.tensor([0]), torch.ones(1, C)),
        table.commit,
    ):
        with pytest.raises(OSError, match=r"rows were not added.*reset_parameters"):
            use()
    table.settle()  # as those who clear it do
    table.clear()
    table.add(torch.tensor([3]), torch.ones(1, C))
    assert read(table, torch.arange(N)).sum() == C


def test_no_file_stays_open(tmp_path: Path) -> None:
    before = set(os.listdir("/proc/self/fd"))
    table = file(tmp_path)
    table.add(torch.tensor([3]), torch.ones(1, C))
    del table
    gc.collect()
    assert len(set(os.listdir("/proc/self/fd")) - before) <= 1  # that of the folder itself
