"""Rows of a table in a file: the calls of the core do to it what they do to a tensor."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from torch_gas import FileTable, FileTier, _core

TYPES = [torch.float32, torch.float64, torch.float16, torch.bfloat16, torch.int8]
ROWS = [torch.float32, torch.float16]
FAST = settings(max_examples=12, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])


def twins(folder: Path, num_rows: int, num_cols: int, dtype: torch.dtype) -> tuple[FileTable, torch.Tensor]:
    """A table in a file and one in memory, both zero."""
    width = _core.stored_width(num_cols, dtype)
    path = folder / f"{len(list(folder.iterdir()))}.table"
    return FileTable(FileTier(path), num_rows, width, dtype), torch.zeros(num_rows, width, dtype=dtype)


@pytest.mark.parametrize("dtype", TYPES)
@given(data=st.data())
@FAST
def test_calls_do_as_on_a_tensor(tmp_path: Path, dtype: torch.dtype, data: st.DataObject) -> None:
    num_rows = data.draw(st.integers(1, 500))
    num_cols = data.draw(st.sampled_from([1, 3, 16, 257, 2000]))
    seed = data.draw(st.integers(0, 2**16))
    generator = torch.Generator().manual_seed(seed)
    file, tensor = twins(tmp_path, num_rows, num_cols, dtype)
    try:
        for rows_type in ROWS:
            cuts = torch.randint(num_rows + 1, (4,), generator=generator).sort().values
            offset, count = cuts[::2], cuts.diff()[::2]
            rows = torch.randn(int(count.sum()), num_cols, generator=generator).to(rows_type)
            index = torch.randperm(num_rows, generator=generator)[: data.draw(st.integers(0, num_rows))].int()
            if data.draw(st.booleans()):
                index = index.sort().values
            others = torch.randn(index.numel(), num_cols, generator=generator).to(rows_type)
            for table in (file, tensor):
                _core.write_chunks(table, offset, count, rows)
                _core.scatter_rows(table, index, others)
            wanted = torch.randint(num_rows, (data.draw(st.integers(0, 400)),), generator=generator)
            if data.draw(st.booleans()):
                wanted = wanted.sort().values
            for out in (*ROWS, dtype):
                torch.testing.assert_close(
                    _core.gather_rows(file, wanted, out), _core.gather_rows(tensor, wanted, out), rtol=0, atol=0
                )
                torch.testing.assert_close(
                    _core.read_chunks(file, offset, count, out),
                    _core.read_chunks(tensor, offset, count, out),
                    rtol=0,
                    atol=0,
                )
        assert torch.equal(file.map(), tensor)
    finally:
        file.close()
        os.unlink(file.path)


@pytest.mark.parametrize("threads", [1, 4])
def test_large_moves_in_many_threads(tmp_path: Path, threads: int) -> None:
    file, tensor = twins(tmp_path, 20_000, 64, torch.float32)
    before = torch.get_num_threads()
    torch.set_num_threads(threads)
    try:
        rows = torch.randn(20_000, 64)
        for table in (file, tensor):
            _core.write_chunks(table, torch.tensor([10_000, 0]), torch.tensor([10_000, 10_000]), rows)
        index = torch.randint(20_000, (30_000,)).sort().values
        assert torch.equal(_core.gather_rows(file, index), tensor[index])
        assert torch.equal(_core.read_chunks(file, torch.tensor([5]), torch.tensor([19_990])), tensor[5:-5])
    finally:
        torch.set_num_threads(before)


def test_rows_that_were_never_written_take_no_disk(tmp_path: Path) -> None:
    file = FileTable(FileTier(tmp_path / "table"), 10**9, 256, torch.float32)  # a terabyte
    rows = torch.randn(3, 256)
    ids = torch.tensor([0, 5 * 10**8, 10**9 - 1])
    _core.scatter_rows(file, ids, rows)
    assert torch.equal(_core.gather_rows(file, ids.flip(0)), rows.flip(0))
    assert not _core.gather_rows(file, ids[1:] - 1).any()
    assert os.stat(file.path).st_size > 10**12 and os.stat(file.path).st_blocks * 512 < 10**6


def test_cleared_rows_are_zero_and_give_their_disk_back(tmp_path: Path) -> None:
    file, tensor = twins(tmp_path, 4000, 256, torch.float32)
    _core.write_chunks(file, torch.tensor([0]), torch.tensor([4000]), tensor.normal_())
    taken = os.stat(file.path).st_blocks
    _core.clear_rows(file, torch.tensor([3, 1000]), torch.tensor([5, 3000]))
    tensor[3:8] = tensor[1000:] = 0
    assert torch.equal(file.map(), tensor)
    assert os.stat(file.path).st_blocks < taken / 2


def test_arguments_are_checked_before_anything_is_written(tmp_path: Path) -> None:
    file, _ = twins(tmp_path, 10, 4, torch.float32)
    rows = torch.ones(2, 4)
    for error, message, call in [
        (IndexError, r"`index` must be in \[0, 10\)", lambda: _core.scatter_rows(file, torch.tensor([0, 10]), rows)),
        (ValueError, "must be distinct", lambda: _core.scatter_rows(file, torch.tensor([1, 1]), rows)),
        (
            ValueError,
            "must not overlap",
            lambda: _core.write_chunks(file, torch.tensor([1, 1]), torch.tensor([1, 1]), rows),
        ),
        (IndexError, "range 0", lambda: _core.write_chunks(file, torch.tensor([9]), torch.tensor([2]), rows)),
        (ValueError, r"\[2, 4\]", lambda: _core.scatter_rows(file, torch.tensor([1, 2]), rows[:, :3])),
        (
            TypeError,
            "must have the type of the table",
            lambda: _core.scatter_rows(file, torch.tensor([1, 2]), rows.int()),
        ),
        (IndexError, r"`index` must be in \[0, 10\)", lambda: _core.gather_rows(file, torch.tensor([-1]))),
        (IndexError, r"`index` must be in \[0, 10\)", lambda: _core.read_ahead(file, torch.tensor([10]))),
        (IndexError, "range 0", lambda: _core.clear_rows(file, torch.tensor([-1]), torch.tensor([2]))),
    ]:
        with pytest.raises(error, match=message):
            call()
        assert not file.map().any()


def test_reading_ahead_changes_nothing(tmp_path: Path) -> None:
    file, tensor = twins(tmp_path, 5000, 64, torch.float32)
    _core.write_chunks(file, torch.tensor([0]), torch.tensor([5000]), tensor.normal_())
    index = torch.randint(5000, (700,)).sort().values
    _core.read_ahead(file, index)
    file.read_ahead(index)
    assert torch.equal(_core.gather_rows(file, index), tensor[index])


def test_a_file_that_was_cut_is_an_error(tmp_path: Path) -> None:
    file, _ = twins(tmp_path, 1000, 64, torch.float32)
    os.truncate(file.path, 4096 + 500 * 256)
    assert not _core.gather_rows(file, torch.tensor([499])).any()
    with pytest.raises(OSError, match="the file ends at byte 132096"):
        _core.gather_rows(file, torch.tensor([500]))
