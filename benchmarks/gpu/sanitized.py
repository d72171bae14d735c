"""Each kind of kernel a few times, for compute-sanitizer: few launches, and nothing beside torch and the core.

    compute-sanitizer --tool memcheck python benchmarks/gpu/sanitized.py

Exits with an error where a row is wrong. ``cpu`` as argument tries the script on the host.
"""

from __future__ import annotations

import sys
from collections.abc import Iterator

import torch
from torch import Tensor

from torch_gas import _core

NUM_ROWS, MOVED = 200, 60


def tables(rows: Tensor, device: torch.device) -> Iterator[Tensor]:
    """The same rows on the device, pinned by torch, and page-locked in place."""
    yield rows.to(device)
    if device.type == "cuda":
        yield rows.pin_memory()
        held = _core.register(rows, device)
        yield rows
        torch.cuda.synchronize()
        del held


def finish(device: torch.device) -> None:
    """Waits for the device."""
    if device.type == "cuda":
        torch.cuda.synchronize()


def check(table: Tensor, device: torch.device) -> None:
    """Pulls, pushes and adds float32 rows, and compares them with torch's."""
    expected, index, width = table.cpu().clone(), torch.randperm(NUM_ROWS)[:MOVED], table.size(1)
    offset, count = torch.tensor([120, 7]), torch.tensor([20, 40])
    chunks = torch.cat([torch.arange(120, 140), torch.arange(7, 47)])
    assert torch.equal(_core.gather_rows(table, index.to(device), torch.float32).cpu(), expected[index].float())
    out = torch.empty(MOVED, width, device=device)
    assert torch.equal(_core.read_chunks(table, offset, count, out=out).cpu(), expected[chunks].float())
    rows = torch.randn(MOVED, width)
    _core.scatter_rows(table, index.to(device), rows.to(device))
    _core.write_chunks(table, offset, count, rows.to(device))
    expected[index] = rows.to(table.dtype)
    expected[chunks] = rows.to(table.dtype)
    finish(device)
    assert torch.equal(table.cpu(), expected)
    if table.dtype == torch.float32:
        ids, more = index.repeat(2), rows.repeat(2, 1)
        _core.add_rows(table, ids.to(device), more.to(device))
        expected.index_add_(0, ids, more)
        finish(device)
        torch.testing.assert_close(table.cpu(), expected)


def check_scaled(width: int, device: torch.device) -> None:
    """Pushes and pulls rows of one byte a number."""
    rows, ids = torch.randn(NUM_ROWS, width), torch.arange(NUM_ROWS)
    expected = torch.zeros(NUM_ROWS, width + 4, dtype=torch.int8)
    _core.scatter_rows(expected, ids, rows)
    for table in tables(torch.zeros_like(expected), device):
        _core.scatter_rows(table, ids.to(device), rows.to(device))
        finish(device)
        assert torch.equal(table.cpu(), expected)
        read = _core.gather_rows(table, ids.to(device), torch.float32)
        assert torch.equal(read.cpu(), _core.gather_rows(expected, ids, torch.float32))


def check_staged(width: int, device: torch.device) -> None:
    """Pushes to pageable memory and pulls from there, piece by piece."""
    staging = _core.Staging(2 * 7 * 4 * width, device)
    table, rows = torch.zeros(NUM_ROWS, width), torch.randn(NUM_ROWS, width)
    _core.write_chunks(table, torch.tensor([0]), torch.tensor([NUM_ROWS]), rows.to(device), staging=staging)
    read = _core.gather_rows(table, torch.arange(NUM_ROWS), staging=staging)
    assert torch.equal(read.cpu(), rows) and torch.equal(table, rows)


def main() -> None:
    torch.manual_seed(0)
    device = torch.device(sys.argv[1] if len(sys.argv) > 1 else "cuda")
    streams = (None, torch.cuda.Stream(device)) if device.type == "cuda" else (None,)
    for stream in streams:  # ranges take another way on the default stream
        with torch.cuda.stream(stream):
            for width in (1, 33, 64):
                for stored in (torch.float32, torch.float16):
                    for table in tables(torch.randn(NUM_ROWS, width).to(stored), device):
                        check(table, device)
                check_scaled(width, device)
                if device.type == "cuda":
                    check_staged(width, device)
    finish(device)
    print("all rows are right")


if __name__ == "__main__":
    main()
