"""`torch_gas._core` on a CUDA device: rows of device and pinned tables against their slow twins."""

from __future__ import annotations

import itertools
import subprocess
import sys

import pytest
import torch
import twins
from torch import Tensor

from torch_gas import _core

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
        torch.cuda._sleep(100_000_000)
        rows.fill_(7)
        _core.scatter_rows(table, index, rows)
        before = table.sum()
        again = _core.gather_rows(table, index)
    assert before == 0, "the call must return before the stream gets to it"
    stream.synchronize()
    assert (table == 7).all()
    assert (again == 7).all()


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
    monkeypatch.setattr(_core, "has_cuda", lambda: False)
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
