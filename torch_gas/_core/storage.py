"""Types that numbers are stored in, and the widths of tables in them.

A row of C numbers takes C elements of a floating-point type. In an int8 table it takes C + 4: the numbers q in
-127 .. 127, and the bytes of a float32 scale, which stand for q * scale.
"""

from __future__ import annotations

import torch

from torch_gas._core.checks import FLOAT_TYPES
from torch_gas._core.file import Table

_SCALE_BYTES = 4


def stored_width(num_cols: int, dtype: torch.dtype) -> int:
    """Elements that a row of C numbers takes in a table of type `dtype`."""
    return num_cols + _SCALE_BYTES if dtype == torch.int8 else num_cols


def is_quantized(table: Table, dtype: torch.dtype) -> bool:
    """Tells whether rows of type `dtype` are the numbers that an int8 table stands for, not its elements."""
    return table.dtype == torch.int8 and dtype in FLOAT_TYPES and table.dim() == 2 and table.shape[1] > _SCALE_BYTES


def row_shape(table: Table, dtype: torch.dtype) -> torch.Size:
    """The shape of a table's rows when they are of type `dtype`."""
    return torch.Size([table.shape[1] - _SCALE_BYTES]) if is_quantized(table, dtype) else table.shape[1:]
