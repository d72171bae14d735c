"""`torch_gas._core` on a CUDA device: rows of device and pinned tables against their slow twins."""

from __future__ import annotations

import itertools
import subprocess
import sys
from pathlib import Path

import pytest
import torch
import twins
from torch import Tensor
from torch.multiprocessing.reductions import StorageWeakRef

from torch_gas import FileTable, FileTier, _core
from torch_gas._core import build

pytestmark = pytest.mark.cuda

NUM_ROWS = 1000
WIDTHS = [(), (1,), (3,), (4,), (8,), (33,), (1030,), (2, 6)]


@pytest.fixture
def generator() -> torch.Generator:
    return torch.Generator().manual_seed(0)


@pytest.fixture(params=["device", "pinned"])
def tier(request: pytest.FixtureRequest) -> str:
    return request.param


def on_tier(table: Tensor, tier: str) -> Tensor:
    return table.cuda() if tier == "device" else table.pin_memory()


def make_staging(num_bytes: int) -> _core.Staging:
    return _core.Staging(num_bytes, "cuda")


def keep_busy() -> None:
    """Some 50 ms of work for the current stream."""
    torch.cuda._sleep(100_000_000)


@pytest.mark.parametrize("types", twins.TYPE_PAIRS)
def test_gather_rows(generator: torch.Generator, tier: str, types: tuple[torch.dtype, torch.dtype]) -> None:
    for width, ids in itertools.product(WIDTHS, twins.IDS):
        table = twins.random_table(generator, NUM_ROWS, width, types[0])
        index = torch.randint(0, NUM_ROWS, (1500,), generator=generator)
        expected = twins.gather_rows(table, index, types[1])
        rows = _core.gather_rows(on_tier(table, tier), index.to("cuda", ids), types[1])
        assert rows.is_cuda
        twins.same_bits(rows.cpu(), expected)


@pytest.mark.parametrize("types", twins.TYPE_PAIRS)
def test_scatter_rows(generator: torch.Generator, tier: str, types: tuple[torch.dtype, torch.dtype]) -> None:
    for width, ids in itertools.product(WIDTHS, twins.IDS):
        expected = twins.random_table(generator, NUM_ROWS, width, types[0])
        table = on_tier(expected, tier)
        index = torch.randperm(NUM_ROWS, generator=generator)[:700]
        rows = twins.random_table(generator, index.numel(), width, types[1])
        twins.scatter_rows(expected, index, rows)
        _core.scatter_rows(table, index.to("cuda", ids), rows.cuda())
        torch.cuda.synchronize()
        twins.same_bits(table.cpu(), expected)


@pytest.mark.parametrize("types", [(a, b) for a in _core.SUM_TYPES for b in twins.FLOATS if b.itemsize <= a.itemsize])
def test_add_rows(generator: torch.Generator, tier: str, types: tuple[torch.dtype, torch.dtype]) -> None:
    """Sums have the bits of the host, in whatever order ids come and however often."""
    any_order = torch.randint(0, NUM_ROWS, (1500,), generator=generator)
    few = torch.randint(0, 3, (200,), generator=generator)
    for width, ids in itertools.product(WIDTHS, twins.IDS):
        for index in (any_order, any_order.sort().values, any_order.unique(), few, any_order[:0]):
            expected = twins.random_table(generator, NUM_ROWS, width, types[0])
            tables = on_tier(expected, tier), on_tier(expected.clone(), tier)
            rows = twins.random_table(generator, index.numel(), width, types[1])
            _core.add_rows(expected, index, rows)
            _core.add_rows(tables[0], index.to("cuda", ids), rows.cuda())
            if bool((index.diff() >= 0).all()):
                _core.add_rows(tables[1], index.to("cuda", ids), rows.cuda(), ascending=True)
            torch.cuda.synchronize()
            twins.same_bits(tables[0].cpu(), expected)
            if bool((index.diff() >= 0).all()):
                twins.same_bits(tables[1].cpu(), expected)


@pytest.mark.parametrize("types", twins.TYPE_PAIRS)
def test_chunks(generator: torch.Generator, tier: str, types: tuple[torch.dtype, torch.dtype]) -> None:
    offset = torch.tensor([NUM_ROWS // 2, 0, NUM_ROWS // 3, NUM_ROWS - 1])
    count = torch.tensor([NUM_ROWS // 4, NUM_ROWS // 5, 0, 1])
    index = twins.chunk_index(offset, count)
    for width in WIDTHS:
        expected = twins.random_table(generator, NUM_ROWS, width, types[0])
        table = on_tier(expected, tier)
        out = torch.empty((index.numel(), *width), dtype=types[1], device="cuda")
        _core.read_chunks(table, offset, count, out=out)
        twins.same_bits(out.cpu(), twins.gather_rows(expected, index, types[1]))

        rows = twins.random_table(generator, index.numel(), width, types[1])
        _core.write_chunks(table, offset, count, rows.cuda())
        torch.cuda.synchronize()
        twins.scatter_rows(expected, index, rows)
        twins.same_bits(table.cpu(), expected)


@pytest.mark.parametrize("shift", [1, 2, 4, 8])
@pytest.mark.parametrize("types", [(torch.float32, torch.float32), (torch.bfloat16, torch.float32)])
def test_tables_that_start_anywhere(
    generator: torch.Generator, types: tuple[torch.dtype, torch.dtype], shift: int
) -> None:
    """A view may start at any element, also where wide loads are not allowed."""
    flat = twins.random_table(generator, 16 * NUM_ROWS + shift, (), types[0])
    index = torch.randperm(NUM_ROWS, generator=generator)
    table = flat.cuda()[shift:].view(NUM_ROWS, 16)
    rows = _core.gather_rows(table, index.cuda(), types[1])
    expected = flat[shift:].view(NUM_ROWS, 16)
    twins.same_bits(rows.cpu(), twins.gather_rows(expected, index, types[1]))


@pytest.mark.parametrize("stored", list(twins.LARGEST))
@pytest.mark.parametrize("dtype", twins.FLOATS)
def test_rows_of_scaled_types(generator: torch.Generator, tier: str, dtype: torch.dtype, stored: torch.dtype) -> None:
    """Bytes are those of the host, but for the payload of scales that are NaN."""
    offset, count = torch.tensor([NUM_ROWS // 2, 0]), torch.tensor([NUM_ROWS // 4, NUM_ROWS // 5])
    index = torch.randperm(NUM_ROWS, generator=generator)[:700]
    for width, start in itertools.product([1, 3, 4, 33, 64, 130, 257, 1032], [0, 1, 4]):
        rows = twins.random_table(generator, NUM_ROWS, (width,), dtype)
        flat = on_tier(torch.zeros(start + NUM_ROWS * (width + 4), dtype=torch.int8), tier)
        table = flat[start:].view(NUM_ROWS, width + 4).view(stored)
        _core.scatter_rows(table, index.cuda(), rows[index].cuda())
        expected = torch.zeros(NUM_ROWS, width + 4, dtype=torch.int8).view(stored)
        _core.scatter_rows(expected, index, rows[index])
        _same_scaled(table, expected)
        read = _core.gather_rows(table, index.cuda(), dtype)
        twins.same_bits(read.cpu(), twins.gather_rows(expected, index, dtype))

        chunks = twins.chunk_index(offset, count)
        _core.write_chunks(table, offset, count, rows[chunks].cuda())
        _core.write_chunks(expected, offset, count, rows[chunks])
        _same_scaled(table, expected)
        out = torch.empty(len(chunks), width, dtype=dtype, device="cuda")
        _core.read_chunks(table, offset, count, out=out)
        twins.same_bits(out.cpu(), twins.gather_rows(expected, chunks, dtype))


def _same_scaled(table: Tensor, expected: Tensor) -> None:
    torch.cuda.synchronize()
    twins.same_bits(twins.scales(table.cpu()), twins.scales(expected))
    assert torch.equal(table.cpu().view(torch.uint8)[:, :-4], expected.view(torch.uint8)[:, :-4])


@pytest.mark.parametrize("types", [(torch.float32, torch.float32), (torch.float16, torch.float32)])
def test_any_number_of_rows(generator: torch.Generator, tier: str, types: tuple[torch.dtype, torch.dtype]) -> None:
    """Several rows are in flight at a time: counts that this divides or not, on both sides of one step of the grid."""
    for width in [(1,), (8,), (2048,)]:
        table = twins.random_table(generator, NUM_ROWS, width, types[0])
        on_device = on_tier(table, tier)
        for num_rows in [*range(10), 31, 32, 33, 63, 64, 65, 127, 128, 129, 257]:
            index = torch.randperm(NUM_ROWS, generator=generator)[:num_rows]
            rows = _core.gather_rows(on_device, index.cuda(), types[1])
            twins.same_bits(rows.cpu(), twins.gather_rows(table, index, types[1]))
            written = on_tier(torch.zeros_like(table), tier)
            _core.scatter_rows(written, index.cuda(), rows)
            torch.cuda.synchronize()
            expected = torch.zeros_like(table)
            twins.scatter_rows(expected, index, rows.cpu())
            twins.same_bits(written.cpu(), expected)


@pytest.mark.parametrize("side", [False, True], ids=["default stream", "side stream"])
@pytest.mark.parametrize("types", [(torch.float32, torch.float32), (torch.float16, torch.float32)])
def test_many_ranges(generator: torch.Generator, tier: str, types: tuple[torch.dtype, torch.dtype], side: bool) -> None:
    """Adjacent ones, which move as one, empty ones, and many that are neither."""
    offset = torch.cat([torch.arange(0, 900, 9), torch.tensor([900, 910, 999, 920])])
    count = torch.cat([torch.arange(100) % 10, torch.tensor([10, 10, 0, 5])])
    index = twins.chunk_index(offset, count)
    expected = twins.random_table(generator, NUM_ROWS, (6,), types[0])
    table = on_tier(expected, tier)
    rows = twins.random_table(generator, index.numel(), (6,), types[1])
    new_rows, out = rows.cuda(), torch.empty_like(rows, device="cuda")
    torch.cuda.synchronize()
    with torch.cuda.stream(torch.cuda.Stream() if side else torch.cuda.default_stream()):
        _core.read_chunks(table, offset, count, out=out)
        _core.write_chunks(table, offset, count, new_rows)
        torch.cuda.current_stream().synchronize()
    twins.same_bits(out.cpu(), twins.gather_rows(expected, index, types[1]))
    twins.scatter_rows(expected, index, rows)
    twins.same_bits(table.cpu(), expected)


def test_nothing_to_move(tier: str) -> None:
    none = torch.empty(0, dtype=torch.int64)
    # Only memory can be pinned: a table without elements has none.
    shapes = [(5, 4)] if tier == "pinned" else [(0, 4), (5, 0), (5, 4)]
    for shape in shapes:
        table = on_tier(torch.zeros(shape), tier)
        rows = _core.gather_rows(table, none.cuda(), torch.float16)
        assert rows.shape == (0, table.shape[1])
        _core.scatter_rows(table, none.cuda(), rows)
        _core.read_chunks(table, none, none, out=rows)
        _core.write_chunks(table, none, none, rows)
    torch.cuda.synchronize()


def test_more_rows_than_the_grid(generator: torch.Generator) -> None:
    table = torch.randn(3_000_000, 2, generator=generator).cuda()
    index = torch.randperm(3_000_000, generator=generator).cuda()
    twins.same_bits(_core.gather_rows(table, index), table[index])


def test_runs_on_the_current_stream() -> None:
    """Work waits for what its stream did before, and the default stream waits for nothing."""
    table = torch.zeros(1000, 64).pin_memory()
    index, rows = torch.arange(1000, device="cuda"), torch.zeros(1000, 64, device="cuda")
    _core.scatter_rows(table, index, rows)  # loading a kernel may wait for the device
    torch.cuda.synchronize()
    stream = torch.cuda.Stream()
    with torch.cuda.stream(stream):
        keep_busy()
        rows.fill_(7)
        _core.scatter_rows(table, index, rows)
        before = table.sum()
        again = _core.gather_rows(table, index)
    assert before == 0, "the call must return before the stream gets to it"
    stream.synchronize()
    assert (table == 7).all()
    assert (again == 7).all()


# --- page-locked in place -------------------------------------------------------------------------


def test_register(generator: torch.Generator) -> None:
    """A table that starts anywhere is pinned while the registration lives, and keeps its content."""
    table = torch.randn(100_001, 33, generator=generator)[1:]
    expected, index = table.clone(), torch.randint(0, 100_000, (5000,), generator=generator)
    assert not table.is_pinned()
    registration = _core.register(table, "cuda")
    assert table.is_pinned()
    assert table[50_000:].is_pinned()
    twins.same_bits(_core.gather_rows(table, index.cuda()).cpu(), expected[index])
    chunk = torch.tensor([99_000]), torch.tensor([1000])
    _core.write_chunks(table, *chunk, torch.ones(1000, 33, device="cuda"))
    torch.cuda.synchronize()
    expected[99_000:] = 1
    twins.same_bits(table, expected)
    del registration
    assert not table.is_pinned()
    twins.same_bits(table, expected)
    again = _core.register(table, torch.device("cuda", 0))
    assert table.is_pinned()
    del again


def test_registration_keeps_the_memory() -> None:
    table = torch.zeros(100_000, 8)
    memory = StorageWeakRef(table.untyped_storage())
    registration = _core.register(table, "cuda")
    del table
    assert not memory.expired()
    del registration
    assert memory.expired()


def test_registration_goes_after_the_kernels() -> None:
    table, index = torch.ones(100_000, 64), torch.arange(100_000, device="cuda")
    registration = _core.register(table, "cuda")
    _core.gather_rows(table, index)  # loading a kernel may wait for the device
    torch.cuda.synchronize()
    keep_busy()
    rows = _core.gather_rows(table, index)
    done = torch.cuda.current_stream().record_event()
    assert not done.query(), "the call must return before the stream gets to it"
    del registration
    assert done.query()
    assert (rows == 1).all()


def test_register_says_what_failed() -> None:
    table = torch.ones(100_000, 8)
    inside = table.untyped_storage(), table.data_ptr() + 4096, 4096, 0
    registration = build._C.HostRegistration(*inside)  # by somebody else, of a part
    failed = r"^register: cudaHostRegister failed: cudaErrorHostMemoryAlreadyRegistered: .*`ulimit -l`.*`tier=\"host\"`"
    with pytest.raises(RuntimeError, match=failed):
        _core.register(table, "cuda")
    del registration
    registration = _core.register(table, "cuda")
    rows = _core.gather_rows(table, torch.arange(3, device="cuda"))  # the error does not come back here
    assert (rows == 1).all()
    del registration


def test_views_share_a_registration() -> None:
    whole = torch.ones(100_000, 8)
    first = _core.register(whole[:100], "cuda")
    second = _core.register(whole[50_000:], "cuda")
    assert first is second
    del first
    rows = _core.gather_rows(whole[50_000:], torch.arange(3, device="cuda"))
    assert (rows == 1).all()
    del second
    assert not whole.is_pinned()


# --- by way of a pinned buffer --------------------------------------------------------------------


@pytest.mark.parametrize("rows_in_half", [1, 7, 64, 1000])
@pytest.mark.parametrize("types", twins.TYPE_PAIRS)
def test_staged(generator: torch.Generator, types: tuple[torch.dtype, torch.dtype], rows_in_half: int) -> None:
    offset, count = torch.tensor([150, 0, 50, 199]), torch.tensor([40, 50, 30, 1])
    chunks = twins.chunk_index(offset, count)
    for width, ids in itertools.product([(), (3,), (16,), (2, 6)], twins.IDS):
        table = twins.random_table(generator, 200, width, types[0])
        staging = make_staging(2 * rows_in_half * torch.Size(width).numel() * types[1].itemsize)
        index = torch.randint(0, 200, (130,), generator=generator)
        rows = _core.gather_rows(table, index.to(ids), types[1], staging=staging)
        assert rows.is_cuda
        twins.same_bits(rows.cpu(), twins.gather_rows(table, index, types[1]))

        expected = twins.gather_rows(table, chunks, types[1])
        twins.same_bits(_core.read_chunks(table, offset, count, types[1], staging=staging).cpu(), expected)
        out = torch.empty_like(expected, device="cuda")
        assert _core.read_chunks(table, offset, count, out=out, staging=staging) is out
        twins.same_bits(out.cpu(), expected)

        rows = twins.random_table(generator, chunks.numel(), width, types[1])
        expected = table.clone()
        twins.scatter_rows(expected, chunks, rows)
        _core.write_chunks(table, offset, count, rows.cuda(), staging=staging)
        torch.cuda.current_stream().synchronize()
        twins.same_bits(table, expected)


def test_staged_int8_rows(generator: torch.Generator) -> None:
    rows = twins.random_table(generator, 200, (33,), torch.float32)
    table, staging = torch.zeros(200, 37, dtype=torch.int8), make_staging(2 * 7 * 33 * 4)
    everything = torch.tensor([0]), torch.tensor([200])
    _core.write_chunks(table, *everything, rows.cuda(), staging=staging)
    _same_scaled(table, twins.quantize(rows))
    expected = twins.dequantize(table, torch.float32)
    twins.same_bits(_core.read_chunks(table, *everything, torch.float32, staging=staging).cpu(), expected)
    index = torch.randint(0, 200, (130,), generator=generator)
    twins.same_bits(_core.gather_rows(table, index, torch.float32, staging=staging).cpu(), expected[index])


@pytest.mark.parametrize("types", [(torch.float32, torch.float32), (torch.float16, torch.float32)])
def test_staged_files(tmp_path: Path, generator: torch.Generator, types: tuple[torch.dtype, torch.dtype]) -> None:
    table, rows = torch.zeros(200, 33, dtype=types[0]), torch.randn(120, 33, generator=generator).to(types[1])
    file = FileTable(FileTier(tmp_path / "table"), *table.shape, types[0])
    staging = make_staging(2 * 7 * 33 * 4)
    offset, count = torch.tensor([150, 0, 50]), torch.tensor([40, 50, 30])
    twins.scatter_rows(table, twins.chunk_index(offset, count), rows)
    _core.write_chunks(file, offset, count, rows.cuda(), staging=staging)
    torch.cuda.current_stream().synchronize()
    twins.same_bits(file.map(), table)
    index = torch.randint(0, 200, (130,), generator=generator)
    twins.same_bits(_core.gather_rows(file, index, types[1], staging=staging).cpu(), table[index].to(types[1]))
    twins.same_bits(
        _core.read_chunks(file, offset, count, types[1], staging=staging).cpu(), rows.to(types[0]).to(types[1])
    )


def test_staged_number_of_rows(generator: torch.Generator) -> None:
    """No row, a part of one half, both halves, and more."""
    table, staging = torch.randn(100, 5, generator=generator), make_staging(2 * 4 * 20 + 7)
    for num_rows in range(14):
        index = torch.randint(0, 100, (num_rows,), generator=generator)
        out = torch.full((num_rows, 5), -1.0, device="cuda")
        assert _core.gather_rows(table, index, out=out, staging=staging) is out
        twins.same_bits(out.cpu(), table[index])
        written, chunk = torch.zeros(100, 5), (torch.tensor([80]), torch.tensor([num_rows]))
        _core.write_chunks(written, *chunk, out, staging=staging)
        torch.cuda.current_stream().synchronize()
        twins.same_bits(written[80 : 80 + num_rows], table[index])
        assert written.count_nonzero() == table[index].count_nonzero()
    for shape in [(5, 0), (0, 4)]:
        none = torch.empty(0, dtype=torch.int64)
        rows = _core.gather_rows(torch.zeros(shape), none, staging=staging)
        assert rows.shape == (0, shape[1])
        _core.write_chunks(torch.zeros(shape), none, none, rows, staging=staging)
        assert _core.read_chunks(torch.zeros(shape), none, none, staging=staging).shape == (0, shape[1])
    without_columns = _core.gather_rows(torch.zeros(5, 0), torch.tensor([4, 1]), staging=staging)
    assert without_columns.shape == (2, 0)


def test_staged_runs_on_the_current_stream() -> None:
    """It returns at once, sees what its stream did before, and needs ids and ranges no more."""
    table, staging = torch.zeros(1000, 8), make_staging(2 * 32 * 100)
    index, offset, count = torch.arange(1000), torch.tensor([0]), torch.tensor([1000])
    # Loading a kernel and new memory may wait for the device.
    rows, first, second = (torch.empty(1000, 8, device="cuda").fill_(3) for _ in range(3))
    stream = torch.cuda.Stream()
    torch.cuda.synchronize()
    with torch.cuda.stream(stream):
        keep_busy()
        rows.fill_(7)
        _core.write_chunks(table, offset, count, rows, staging=staging)
        _core.gather_rows(table, index, out=first, staging=staging)
        _core.read_chunks(table, offset, count, out=second, staging=staging)
        rows.fill_(8)
        done = stream.record_event()
    assert not done.query(), "calls must return before the stream gets to them"
    assert not table.any()
    index.fill_(-1)
    offset.fill_(-1)
    count.fill_(-1)
    done.synchronize()
    assert (table == 7).all()
    assert (first == 7).all()
    assert (second == 7).all()


@pytest.mark.parametrize("delayed", [0, 1, 2, 3])
def test_staging_shared_by_streams(delayed: int) -> None:
    """The halves stay in use until the call is done, on whatever stream: four calls, one of which is late."""
    staging = make_staging(2 * 64 * 10)
    tables = [torch.full((200, 16), 1.0 + i) for i in range(4)]
    pushed = [torch.full((200, 16), 10.0 + i, device="cuda") for i in range(4)]
    pulled = [torch.zeros(200, 16, device="cuda") for _ in range(4)]
    chunk, index = (torch.tensor([0]), torch.tensor([200])), torch.arange(200)
    streams = [torch.cuda.Stream() for _ in range(4)]
    torch.cuda.synchronize()
    for i, stream in enumerate(streams):
        with torch.cuda.stream(stream):
            if i == delayed:
                keep_busy()
            if i in (0, 3):
                _core.gather_rows(tables[i], index, out=pulled[i], staging=staging)
            else:
                _core.write_chunks(tables[i], *chunk, pushed[i], staging=staging)
    torch.cuda.synchronize()
    for i in (0, 3):
        assert (pulled[i] == 1 + i).all()
        assert (tables[i] == 1 + i).all()
    for i in (1, 2):
        assert (tables[i] == 10 + i).all()


def test_staged_push_before_pull_of_another_stream() -> None:
    """One event orders them, as it does with pinned tables, also between two buffers."""
    table, index = torch.zeros(500, 16), torch.arange(500)
    chunk, rows = (torch.tensor([0]), torch.tensor([500])), torch.ones(500, 16, device="cuda")
    pulled = torch.zeros_like(rows)
    push, pull = torch.cuda.Stream(), torch.cuda.Stream()
    of_push, of_pull = make_staging(2 * 64 * 30), make_staging(2 * 64 * 40)
    torch.cuda.synchronize()
    with torch.cuda.stream(push):
        keep_busy()
        _core.write_chunks(table, *chunk, rows, staging=of_push)
        pushed = push.record_event()
    with torch.cuda.stream(pull):
        pull.wait_event(pushed)
        _core.gather_rows(table, index, out=pulled, staging=of_pull)
    assert not pushed.query(), "calls must return before the stream gets to them"
    pull.synchronize()
    assert (pulled == 1).all()


def test_staged_refusals() -> None:
    table, index, chunk = torch.zeros(4, 2), torch.tensor([0, 1]), (torch.tensor([1]), torch.tensor([2]))
    rows, staging = torch.ones(2, 2, device="cuda"), make_staging(64)
    with pytest.raises(ValueError, match=r"`table` is on cuda:0; leave it out"):
        _core.gather_rows(table.cuda(), index, staging=staging)
    with pytest.raises(ValueError, match="`index` must be on the host"):
        _core.gather_rows(table, index.cuda(), staging=staging)
    with pytest.raises(ValueError, match=r"`out` must be on the device of `staging.stream`.* on cpu and cuda:0"):
        _core.gather_rows(table, index, out=rows.cpu(), staging=staging)
    with pytest.raises(ValueError, match=r"`out` must be on the device of `staging.stream`.* on cpu and cuda:0"):
        _core.read_chunks(table, *chunk, out=rows.cpu(), staging=staging)
    with pytest.raises(ValueError, match=r"`rows` must be on the device of `staging.stream`.* on cpu and cuda:0"):
        _core.write_chunks(table, *chunk, rows.cpu(), staging=staging)
    with pytest.raises(ValueError, match="must hold a row of 8 bytes, but the buffer has 15; it needs at least 16"):
        _core.gather_rows(table, index, staging=make_staging(15))
    with pytest.raises(IndexError, match=r"`index` must be in \[0, 4\), but index\[1\] is 4"):
        _core.gather_rows(table, torch.tensor([0, 4]), staging=staging)
    with pytest.raises(IndexError, match="range 0 has `offset` 3 and `count` 2"):
        _core.write_chunks(table, torch.tensor([3]), chunk[1], rows, staging=staging)
    with pytest.raises(ValueError, match="ranges 0 and 1 do"):
        overlap = torch.tensor([0, 1]), torch.tensor([2, 2])
        _core.write_chunks(table, *overlap, torch.ones(4, 2, device="cuda"), staging=staging)
    torch.cuda.synchronize()
    assert not table.any(), "nothing may be written before an error"


# --- refusals -------------------------------------------------------------------------------------


def test_refusals() -> None:
    table, index = torch.zeros(4, 2), torch.tensor([0, 1])
    rows, ranges = torch.ones(2, 2), (torch.tensor([0]), torch.tensor([2]))
    with pytest.raises(ValueError, match=r"`table` is on cpu .*; pin the table"):
        _core.gather_rows(table, index.cuda())
    with pytest.raises(ValueError, match=r"on cuda:0 and `index` on cpu; move `index` to cuda:0"):
        _core.gather_rows(table.cuda(), index)
    with pytest.raises(ValueError, match=r"`index` and `rows` must be on one device"):
        _core.scatter_rows(table.cuda(), index, rows.cuda())
    with pytest.raises(ValueError, match=r"on cuda:0 and `rows` on cpu; move `rows` to cuda:0"):
        _core.write_chunks(table.cuda(), *ranges, rows)
    with pytest.raises(ValueError, match=r"`table` is on cpu .*; pin the table"):
        _core.read_chunks(table, *ranges, out=rows.cuda())
    with pytest.raises(ValueError, match="`offset` must be on the host"):
        _core.read_chunks(table.cuda(), ranges[0].cuda(), ranges[1])
    with pytest.raises(IndexError, match="range 0 has `offset` 3 and `count` 2"):
        _core.write_chunks(table.cuda(), torch.tensor([3]), ranges[1], rows.cuda())
    with pytest.raises(ValueError, match="ranges 0 and 1 do"):
        overlap = torch.tensor([0, 1]), torch.tensor([2, 2])
        _core.write_chunks(table.cuda(), *overlap, torch.ones(4, 2).cuda())


def test_a_core_without_cuda_says_so(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(build, "has_cuda", lambda: False)
    with pytest.raises(RuntimeError, match=r"built without CUDA; .*TORCH_GAS_CUDA=1 pip install"):
        _core.gather_rows(torch.zeros(4, 2).cuda(), torch.tensor([0]).cuda())


@pytest.mark.parametrize("bad", [4, -1])
def test_bad_id_is_an_assertion(bad: int) -> None:
    """In a process of its own, because the device is of no use to it afterwards."""
    program = f"""
import torch
from torch_gas import _core
_core.gather_rows(torch.zeros(4, 2).cuda(), torch.tensor([0, {bad}]).cuda())
torch.cuda.synchronize()
"""
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True)
    assert done.returncode != 0
    assert "an id in `index` is out of range" in done.stdout + done.stderr
    assert "device-side assert" in done.stderr
