"""One number in many rows of a table."""

from __future__ import annotations

import torch
from torch import Tensor

from torch_gas._core import checks
from torch_gas._core.build import _C
from torch_gas._core.memory import mark_written
from torch_gas._core.naming import at
from torch_gas._core.placement import move


def fill_chunks(table: Tensor, offset: Tensor, count: Tensor, value: int) -> None:
    """Writes one `value` to the rows of several ranges of a table.

    Equivalent to `table[o : o + c] = value` for each range. On the host no rows are made for that.

    Args:
        table: Contiguous table [N], int64, on the host or on a CUDA device.
        offset: First row of each range [P], int64, on the host. Ranges must not overlap.
        count: Number of rows of each range [P], int64, on the host.
        value: The number.

    Raises:
        TypeError: An argument has a wrong type.
        ValueError: A shape or a placement is wrong, the table is not contiguous, ranges overlap, or `value` takes more than 64
            bits.
        IndexError: A range lies outside the table.
        RuntimeError: The table is on a CUDA device, but the core was built without CUDA.

    Example:
        >>> import torch
        >>> times = torch.zeros(4, dtype=torch.int64)
        >>> fill_chunks(times, torch.tensor([3, 0]), torch.tensor([1, 2]), 7)
        >>> times.tolist()
        [7, 7, 0, 7]
    """
    call = "fill_chunks"
    if not (checks.is_packed(table) and table.dtype == torch.int64 and table.dim() == 1):  # as nearly always
        checks.tensor(call, "table", table)
        checks.element_type(call, "table", table, (torch.int64,))
        checks.vector(call, "table", table)
        checks.contiguous(call, "table", table)
    checks.kind(call, "value", value, int, "an int")
    if not -(2**63) <= value < 2**63:
        raise ValueError(f"{at(call, 'value')} must have 64 bits, but is {value}")
    offset, count = checks.ranges(call, "offset", offset, count)
    where = offset.data_ptr(), count.data_ptr(), offset.numel()
    if table.is_cuda:
        size = int(count.clamp(0, table.numel()).sum())  # the core refuses what is out of range
        move("write_chunks", table, torch.full((size,), value, dtype=torch.int64, device=table.device), *where)
        return
    checks.host(call, "table", table)
    _C.fill_chunks(table.data_ptr(), table.numel(), *where, value, torch.get_num_threads())
    mark_written(table)
