"""Where a table and its rows may lie, and the call that moves them between there."""

from __future__ import annotations

from contextlib import nullcontext

import torch
from torch import Tensor

from torch_gas._core import checks
from torch_gas._core.build import _C, require_cuda
from torch_gas._core.checks import FLOAT_TYPES
from torch_gas._core.file import FileRows, Table, in_use
from torch_gas._core.memory import mark_written
from torch_gas._core.naming import arg, at, called
from torch_gas._core.storage import SCALED_TYPES, is_scaled

_NOTHING = nullcontext()


class Staging:
    """What pulls and pushes of pageable tables go through.

    Calls that share it run one after the other, from whatever streams they are made.

    Args:
        num_bytes: Size of the buffer, which is used in two halves; a half must hold a row. Some MB keep the bus busy.
        device: The CUDA device that rows come from or go to.

    Attributes:
        buffer: Pinned memory [num_bytes], uint8.
        stream: Fills or empties a half by functions on the host, while the other half is on the bus. Nothing else
            should run on it.
    """

    def __init__(self, num_bytes: int, device: torch.device | str) -> None:
        self.buffer = torch.empty(num_bytes, dtype=torch.uint8, device="cpu", pin_memory=True)
        self.stream = torch.cuda.Stream(device)


def device_of_rows(call: str, table: Table, staging: Staging | None, default: torch.device) -> torch.device:
    """Where rows of the table are when they are not in it: on the device of `staging`, if it is given."""
    if staging is None:
        return default
    checks.kind(call, "staging", staging, Staging, "a Staging")
    if table.device.type != "cpu":
        raise ValueError(
            f"{called(call)}: `staging` is for tables on the host, but `{arg('table')}` is on {table.device}; leave it out"
        )
    return staging.stream.device


def check_placement(call: str, table: Table, name: str, device: torch.device, staging: Staging | None = None) -> None:
    """Refuses placements in which rows on `device` cannot reach the table."""
    if staging is None and device.type == "cpu" and table.device == device:
        return
    if staging is not None:
        if device != staging.stream.device:
            raise ValueError(
                f"{at(call, name)} must be on the device of `staging.stream`, but they are on {device} and "
                f"{staging.stream.device}; move `{arg(name)}`"
            )
        require_cuda(call, name, device)
        return
    pinned = device.type == "cuda" and table.device.type == "cpu" and table.is_pinned()
    if table.device != device and not pinned:
        fix = f"move `{arg(name)}` to {table.device}"
        if device.type == "cuda" and table.device.type == "cpu":
            fix = "pin the table with `pin_memory()`" + (
                " or pass `staging`" if call not in ("scatter_rows", "add_rows") else ""
            )
        raise ValueError(
            f"{called(call)}: the table must be on the device of `{arg(name)}` or, if that is a CUDA device, in "
            f"pinned host memory, but `{arg('table')}` is on {table.device} and `{arg(name)}` on {device}; {fix}"
        )
    if device.type not in ("cpu", "cuda"):
        raise ValueError(
            f"{called(call)}: rows move in host memory and on CUDA devices, but `{arg(name)}` is on {device}; "
            "keep the table on the host"
        )
    if device.type == "cuda":
        require_cuda(call, name, device)


def shares_memory(table: Table, rows: Tensor) -> bool:
    """Whether writing to one may change the other."""
    if isinstance(table, FileRows):  # which may be mapped to memory; that is none of torch's own
        return not rows.untyped_storage().resizable()
    start, other = table.data_ptr(), rows.data_ptr()
    return start < other + rows.nbytes and other < start + table.nbytes


def move(call: str, table: Table, rows: Tensor, *where: int, staging: Staging | None = None) -> None:
    """Calls the core function on the host or on the current stream of the device of `rows`."""
    width = rows.shape[1:].numel()
    if table.dtype == rows.dtype and call != "add_rows":
        width *= table.dtype.itemsize
        table_type = rows_type = _C.DType.bytes
    else:
        table_type = SCALED_TYPES[table.dtype] if is_scaled(table, rows.dtype) else FLOAT_TYPES[table.dtype]
        rows_type = FLOAT_TYPES[rows.dtype]
    arguments = (_table_at(table, table_type, width), *where, _C.Rows(rows.data_ptr(), rows_type, rows.shape[0]))
    writes = call in ("scatter_rows", "add_rows", "write_chunks")
    threads = torch.get_num_threads()
    stream = _C.Stream(rows.device.index, torch.cuda.current_stream(rows.device).cuda_stream) if rows.is_cuda else None
    with in_use(table, writes) if isinstance(table, FileRows) else _NOTHING:
        if staging is not None:
            # By a thread of the driver's, beside the main one: with a full team of its own it would take the cores from that.
            half = max(1, threads // 2)
            getattr(_C, f"staged_{call}")(*arguments, stream, _staging_at(call, staging, rows), half)
        elif rows.is_cuda:
            getattr(_C, f"cuda_{call}")(*arguments, stream, not table.is_cuda)
        else:
            getattr(_C, call)(*arguments, threads)
    written = table if writes else rows
    if isinstance(written, Tensor):
        mark_written(written)


def _table_at(table: Table, dtype: object, width: int) -> object:
    if isinstance(table, FileRows):
        return _C.FileTable(table.file, table.offset, dtype, table.shape[0], width)
    return _C.Table(table.data_ptr(), dtype, table.shape[0], width)


def _staging_at(call: str, staging: Staging, rows: Tensor) -> object:
    buffer, row_bytes = staging.buffer, rows.shape[1:].numel() * rows.element_size()
    if buffer.nbytes < 2 * row_bytes:
        raise ValueError(
            f"{called(call)}: each half of `staging.buffer` must hold a row of {row_bytes} bytes, but the buffer has "
            f"{buffer.nbytes}; it needs at least {2 * row_bytes}"
        )
    return _C.Staging(buffer.data_ptr(), buffer.nbytes, staging.stream.cuda_stream)
