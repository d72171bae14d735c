"""Rows between a table and a batch."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from torch_gas._core import checks
from torch_gas._core.checks import FLOAT_TYPES, ID_BITS
from torch_gas._core.file import FileRows, Table
from torch_gas._core.memory import addresses, empty
from torch_gas._core.naming import arg, at, called, naming
from torch_gas._core.placement import Staging, check_placement, device_of_rows, move, shares_memory
from torch_gas._core.storage import SCALED_TYPES, is_scaled, row_shape

SUM_TYPES = (torch.float32, torch.float64)  # in which rows are added
_TABLE_TYPES = (*FLOAT_TYPES, *SCALED_TYPES, torch.int64, torch.int32, torch.uint8, torch.bool)


def gather_rows(
    table: Table,
    index: Tensor,
    dtype: torch.dtype | None = None,
    *,
    out: Tensor | None = None,
    staging: Staging | None = None,
) -> Tensor:
    """Reads rows of a table, converted to `dtype`.

    Equivalent to `table[index].to(dtype)`; ids may repeat but not be negative.

    Args:
        table: Contiguous table [N, C], or [N] or [N, ...]: float32, float64, float16 and bfloat16,
            which convert into each other, or int64, int32, int8, uint8 and bool, which are only copied.
            An int8 table [N, C + 4] also holds rows [M, C] of the floating-point types: C numbers q and the
            bytes of a float32 scale, for q * scale.
        index: Ids of the rows [M], int32 or int64. The rows are returned on its device.
        dtype: Type of the result; that of `out` or of the table by default.
        out: Contiguous tensor [M, C] to write to instead of a new one.
        staging: Brings rows of a table in host memory to the device of its stream; `index` is on the host then.

    Returns:
        The rows [M, C].

    Raises:
        TypeError: An argument is no tensor or has a wrong type, or types do not convert.
        ValueError: A shape or a placement is wrong, or the table or `out` is not contiguous.
        IndexError: An id lies outside 0 .. N-1.
        RuntimeError: Tensors are on a CUDA device, but the core was built without CUDA.

    Example:
        >>> import torch
        >>> gather_rows(torch.tensor([[1.0], [2.0], [3.0]]), torch.tensor([2, 0]), torch.float16)
        tensor([[3.],
                [1.]], dtype=torch.float16)
    """
    call = "gather_rows"
    index = _index(call, index)
    _table(call, table, index)
    device = device_of_rows(call, table, staging, index.device)
    rows = _output(call, table, index.numel(), dtype, out, device)
    if out is not None and out.dtype == index.dtype:
        index = _apart(out, index)
    if staging is None:
        _same_device(call, index, "out", rows)
    else:
        checks.host(call, "index", index)
    check_placement(call, table, "index" if staging is None else "out", rows.device, staging)
    move(call, table, rows, ID_BITS[index.dtype], index.data_ptr(), staging=staging)
    return rows


def scatter_rows(table: Table, index: Tensor, rows: Tensor) -> None:
    """Writes rows of a table, converted to its type.

    Equivalent to `table[index] = rows`.

    Args:
        table: Contiguous table [N, C], as in `gather_rows`.
        index: Distinct ids of the rows [M], int32 or int64. On a CUDA device it is for the caller
            to see that they are.
        rows: The rows [M, C], on the device of `index`.

    Raises:
        TypeError: An argument is no tensor or has a wrong type, or types do not convert.
        ValueError: A shape or a placement is wrong, the table is not contiguous, or an id repeats.
        IndexError: An id lies outside 0 .. N-1.
        RuntimeError: Tensors are on a CUDA device, but the core was built without CUDA.

    Example:
        >>> import torch
        >>> table = torch.zeros(3, 1)
        >>> scatter_rows(table, torch.tensor([2, 0]), torch.tensor([[3.0], [1.0]]))
        >>> table.flatten().tolist()
        [1.0, 0.0, 3.0]
    """
    call = "scatter_rows"
    index = _index(call, index)
    _table(call, table, index)
    _check_rows(call, "rows", rows, table, index.numel())
    rows, index = _apart(table, checks.packed(call, "rows", rows)), _apart(table, index)
    _same_device(call, index, "rows", rows)
    check_placement(call, table, "rows", rows.device)
    move(call, table, rows, ID_BITS[index.dtype], index.data_ptr())


def add_rows(table: Tensor, index: Tensor, rows: Tensor, *, ascending: bool = False) -> None:
    """Adds rows to those of a table, in its type.

    Equivalent to `for i, row in zip(index, rows): table[i] += row`: where an id repeats, its rows are added in their order, so
    that the sums have the same bits for any number of threads and on each device.

    Args:
        table: Contiguous table [N, C], or [N] or [N, ...], of float32 or float64.
        index: Ids of the rows [M], int32 or int64.
        rows: The rows [M, C], on the device of `index`, of a floating-point type that is not wider than that of the table.
        ascending: Whether ids do not descend, which spares sorting them on a CUDA device; on the host that is found out.

    Raises:
        TypeError: An argument is no tensor or has a wrong type.
        ValueError: A shape or a placement is wrong, or the table is not contiguous.
        IndexError: An id lies outside 0 .. N-1.
        RuntimeError: Tensors are on a CUDA device, but the core was built without CUDA.

    Example:
        >>> import torch
        >>> table = torch.ones(3, 1)
        >>> add_rows(table, torch.tensor([2, 0, 2]), torch.tensor([[3.0], [1.0], [4.0]]))
        >>> table.flatten().tolist()
        [2.0, 1.0, 8.0]
    """
    call = "add_rows"
    checks.kind(call, "ascending", ascending, bool, "a bool")
    checks.tensor(call, "table", table)
    checks.element_type(call, "table", table, SUM_TYPES)
    index = _index(call, index)
    _table(call, table, index)
    checks.tensor(call, "rows", rows)
    if rows.dtype not in FLOAT_TYPES or rows.dtype.itemsize > table.dtype.itemsize:
        raise TypeError(
            f"{at(call, 'rows')} must be of a floating-point type that is not wider than that of `{arg('table')}` "
            f"({table.dtype}), but is {rows.dtype}; convert one of them with `.to()`"
        )
    _check_rows(call, "rows", rows, table, index.numel())
    rows, index = _apart(table, checks.packed(call, "rows", rows)), _apart(table, index)
    _same_device(call, index, "rows", rows)
    check_placement(call, table, "rows", rows.device)
    where = [ID_BITS[index.dtype], index.data_ptr()]
    if rows.is_cuda:  # where the host cannot see what ids are, and does not wait to learn it
        order = None
        if not ascending:
            index, order = index.sort(stable=True)
        where = [ID_BITS[index.dtype], *addresses(index, order)]
    move(call, table, rows, *where)


def read_chunks(
    table: Table,
    offset: Tensor,
    count: Tensor,
    dtype: torch.dtype | None = None,
    *,
    out: Tensor | None = None,
    staging: Staging | None = None,
) -> Tensor:
    """Reads the rows of several ranges of a table, one after the other, converted to `dtype`.

    Equivalent to `torch.cat([table[o : o + c] for o, c in zip(offset, count)]).to(dtype)`.

    Args:
        table: Contiguous table [N, C], as in `gather_rows`.
        offset: First row of each range [P], int64, on the host.
        count: Number of rows of each range [P], int64, on the host.
        dtype: Type of the result; that of `out` or of the table by default.
        out: Contiguous tensor [M, C] to write to instead of a new one on the device of the table;
            `M` is the sum of `count`. With a table in pinned host memory, `out` may be on a CUDA
            device.
        staging: Brings rows of a table in host memory to the device of its stream, on which `out` must be.

    Returns:
        The rows [M, C].

    Raises:
        TypeError: An argument is no tensor or has a wrong type, or types do not convert.
        ValueError: A shape or a placement is wrong, or the table or `out` is not contiguous.
        IndexError: A range lies outside the table.
        RuntimeError: Tensors are on a CUDA device, but the core was built without CUDA.

    Example:
        >>> import torch
        >>> table = torch.arange(5.0).view(5, 1)
        >>> read_chunks(table, torch.tensor([3, 0]), torch.tensor([2, 1])).flatten().tolist()
        [3.0, 4.0, 0.0]
    """
    call = "read_chunks"
    offset, count = checks.ranges(call, "offset", offset, count)
    _table(call, table, offset, count)
    # Counts that are out of range must reach the check of the core, and no allocation.
    num_moved = int(count.clamp(0, table.shape[0]).sum())
    rows = _output(call, table, num_moved, dtype, out, device_of_rows(call, table, staging, table.device))
    check_placement(call, table, "out", rows.device, staging)
    move(call, table, rows, offset.data_ptr(), count.data_ptr(), offset.numel(), staging=staging)
    return rows


def write_chunks(table: Table, offset: Tensor, count: Tensor, rows: Tensor, *, staging: Staging | None = None) -> None:
    """Writes rows to several ranges of a table, one after the other, converted to its type.

    Equivalent to `table[o : o + c] = part` for the parts of `rows.split(count)`.

    Args:
        table: Contiguous table [N, C], as in `gather_rows`.
        offset: First row of each range [P], int64, on the host. Ranges must not overlap.
        count: Number of rows of each range [P], int64, on the host.
        rows: The rows [M, C]; `M` is the sum of `count`. With a table in pinned host memory they
            may be on a CUDA device.
        staging: Brings rows from the device of its stream to a table in host memory.

    Raises:
        TypeError: An argument is no tensor or has a wrong type, or types do not convert.
        ValueError: A shape or a placement is wrong, the table is not contiguous, ranges overlap, or
            `count` does not sum to the number of rows.
        IndexError: A range lies outside the table.
        RuntimeError: Tensors are on a CUDA device, but the core was built without CUDA.

    Example:
        >>> import torch
        >>> table, rows = torch.zeros(4, 1), torch.tensor([[9.0], [7.0], [8.0]])
        >>> write_chunks(table, torch.tensor([3, 0]), torch.tensor([1, 2]), rows)
        >>> table.flatten().tolist()
        [7.0, 8.0, 0.0, 9.0]
    """
    call = "write_chunks"
    offset, count = checks.ranges(call, "offset", offset, count)
    _table(call, table, offset, count)
    if not _are_rows_of(table, rows):
        _check_rows(call, "rows", rows, table, None)
        rows = checks.packed(call, "rows", rows)
    rows = _apart(table, rows)
    device_of_rows(call, table, staging, rows.device)
    check_placement(call, table, "rows", rows.device, staging)
    move(call, table, rows, offset.data_ptr(), count.data_ptr(), offset.numel(), staging=staging)


def stored_copy(table: Table, rows: Tensor) -> Tensor:
    """A copy of rows as a table stores them, for `write_chunks`, which then moves bytes, and checks both.

    Args:
        table: Table [N, C'], as in `gather_rows`.
        rows: The rows [M, C]; the copy is [M, C'] of the type of the table, and on their device.

    Example:
        >>> import torch
        >>> stored_copy(torch.empty(9, 2 + 4, dtype=torch.int8), torch.tensor([[1.0, -0.5]]))[:, :2]
        tensor([[127, -64]], dtype=torch.int8)
    """
    if not is_scaled(table, rows.dtype):
        return rows.detach().to(table.dtype, copy=True)
    num_rows = rows.shape[:1].numel()
    copied = empty((num_rows, *table.shape[1:]), table.dtype, rows.device)
    write_chunks(copied, torch.tensor([0], device="cpu"), torch.tensor([num_rows], device="cpu"), rows)
    return copied


def batch_rows(table: Table, offset: Tensor, count: Tensor, halo: Tensor, dtype: torch.dtype | None = None) -> Tensor:
    """Reads the rows of a batch and of its halo, converted to `dtype`.

    Equivalent to `torch.cat([read_chunks(table, offset, count), gather_rows(table, halo)])`.

    Args:
        table: Contiguous table [N, C] on the host, as in `gather_rows`.
        offset: First row of each part of the batch [P], int64.
        count: Number of rows of each part [P], int64.
        halo: Ids of the further rows [S], int32 or int64.
        dtype: Type of the result; that of the table by default.

    Returns:
        The rows [B+S, C].

    Raises:
        TypeError, ValueError, IndexError: As in `read_chunks` and `gather_rows`.

    Example:
        >>> import torch
        >>> batch_rows(torch.arange(5.0), torch.tensor([3]), torch.tensor([2]), halo=torch.tensor([0]))
        tensor([3., 4., 0.])
    """
    return batch_rows_of([table], offset, count, halo, dtype)[0]


@naming("batch_rows", index="halo")
def batch_rows_of(
    tables: Sequence[Table], offset: Tensor, count: Tensor, halo: Tensor, dtype: torch.dtype | None = None
) -> list[Tensor]:
    """:func:`batch_rows` of several tables, for which the ids of a batch are checked once."""
    return _batch_rows(tables, offset, count, halo, dtype)


@naming("batch_rows", index="halo")
def batch_rows_into(
    tables: Sequence[Table], offset: Tensor, count: Tensor, halo: Tensor, out: Sequence[Tensor]
) -> list[Tensor]:
    """:func:`batch_rows_of` in memory of the caller, [B+S, C] on the host for each table; an error may leave rows there."""
    return _batch_rows(tables, offset, count, halo, out=out)


def _batch_rows(
    tables: Sequence[Table], offset: Tensor, count: Tensor, halo: Tensor, dtype: Any = None, out: Any = None
) -> list[Tensor]:
    call = "batch_rows"
    checks.kind(call, "tables", tables, Sequence, "a sequence of tables")
    halo = checks.ids(call, "halo", halo)
    offset, count = checks.ranges(call, "offset", offset, count)
    found, device = [], torch.device("cpu")
    given: Sequence[Tensor | None] = [None] * len(tables) if out is None else out
    for table, wanted in zip(tables, given, strict=True):
        _table(call, table, offset, count)
        if isinstance(table, FileRows):
            table.before_use(halo)
        batch_size = int(count.clamp(0, table.shape[0]).sum())
        rows = _output(call, table, batch_size + halo.numel(), dtype, wanted, device)
        checks.host(call, "out", rows)
        check_placement(call, table, "halo", device)
        move("read_chunks", table, rows[:batch_size], offset.data_ptr(), count.data_ptr(), offset.numel())
        move("gather_rows", table, rows[batch_size:], ID_BITS[halo.dtype], halo.data_ptr())
        found.append(rows)
    return found


def is_table(value: object) -> bool:
    """Tells whether `value` is a tensor on the host whose rows the functions here move, and no gradient is lost by that."""
    if type(value) is not Tensor or value.layout != torch.strided or value.device.type != "cpu":
        return False
    return (
        value.dtype in _TABLE_TYPES
        and value.dim() > 0
        and value.is_contiguous()
        and not (value.requires_grad or value.is_neg())
    )


def _table(call: str, table: Table, *where: Tensor) -> None:
    if isinstance(table, FileRows):
        return table.before_use(*where)
    if checks.is_packed(table) and table.dtype in _TABLE_TYPES and table.dim() > 0:
        return
    checks.tensor(call, "table", table)
    checks.element_type(call, "table", table, _TABLE_TYPES)
    if table.dim() == 0:
        raise ValueError(f"{at(call, 'table')} must have rows, but is a single number")
    checks.contiguous(call, "table", table)


def _index(call: str, index: Tensor) -> Tensor:
    if checks.is_packed(index) and index.dtype in ID_BITS and index.dim() == 1:
        return index
    checks.tensor(call, "index", index)
    checks.element_type(call, "index", index, ID_BITS)
    checks.vector(call, "index", index)
    return checks.packed(call, "index", index)


def _apart(table: Table, value: Tensor) -> Tensor:
    """What is read while a table is written: a copy, if that would change it."""
    return value.clone() if shares_memory(table, value) else value


def _same_device(call: str, index: Tensor, name: str, rows: Tensor) -> None:
    if rows.device != index.device:
        raise ValueError(
            f"{at(call, 'index')} and `{arg(name)}` must be on one device, but are on {index.device} and {rows.device}; "
            f"move `{arg('index')}`"
        )


def _output(
    call: str, table: Table, num_rows: int, dtype: torch.dtype | None, out: Tensor | None, device: torch.device
) -> Tensor:
    """Returns the tensor to write rows to."""
    if out is None:
        dtype = dtype or table.dtype
        _convertible(call, table, "dtype", dtype)
        return empty((num_rows, *row_shape(table, dtype)), dtype, device)
    if not _are_rows_of(table, out) or out.shape[0] != num_rows:
        _check_rows(call, "out", out, table, num_rows)
        checks.contiguous(call, "out", out)
    if isinstance(table, Tensor) and shares_memory(table, out):
        raise ValueError(
            f"{at(call, 'out')} must not share memory with `{arg('table')}`, whose rows would change; leave it out"
        )
    if dtype is not None and dtype != out.dtype:
        raise TypeError(
            f"{called(call)}: `out` must be of the type asked for ({dtype}), but is {out.dtype}; leave `dtype` out"
        )
    return out


def _are_rows_of(table: Table, rows: Tensor) -> bool:
    """Whether rows pass :func:`_check_rows`, but for their number, and are packed: one look, for those of the table's type."""
    return checks.is_packed(rows) and (rows.dtype, rows.shape[1:]) == (table.dtype, table.shape[1:]) and rows.dim() > 0


def _check_rows(call: str, name: str, rows: Tensor, table: Table, num_rows: int | None) -> None:
    checks.tensor(call, name, rows)
    _convertible(call, table, name, rows.dtype)
    if num_rows is None and rows.dim() > 0:
        num_rows = rows.shape[0]
    shape = row_shape(table, rows.dtype)
    if rows.dim() != len(table.shape) or rows.shape != (num_rows, *shape):
        wanted = ["M" if num_rows is None else num_rows, *shape]
        raise ValueError(
            f"{at(call, name)} must have one row of the table's shape for each row moved, "
            f"[{', '.join(map(str, wanted))}], but has shape {list(rows.shape)}; rows are never broadcast"
        )


def _convertible(call: str, table: Table, name: str, dtype: torch.dtype) -> None:
    if dtype == table.dtype:
        return
    checks.kind(call, name, dtype, torch.dtype, "a torch.dtype")
    if is_scaled(table, dtype) or (dtype in FLOAT_TYPES and table.dtype in FLOAT_TYPES):
        return
    if table.dtype in SCALED_TYPES and dtype in FLOAT_TYPES:
        raise TypeError(
            f"{called(call)}: an {checks.names([table.dtype])} table holds floating-point rows [M, C] if it is [N, C + 4], but "
            f"`{arg('table')}` is {list(table.shape)} and `{arg(name)}` {dtype}; make a table of that shape, or move rows of "
            "that type"
        )
    raise TypeError(
        f"{at(call, name)} must have the type of the table, or both must be one of {checks.names(FLOAT_TYPES)}, but "
        f"`{arg('table')}` is {table.dtype} and `{arg(name)}` {dtype}; convert one of them with `.to()`"
    )
