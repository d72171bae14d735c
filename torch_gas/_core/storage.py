"""Types that numbers are stored in, and the widths of tables in them.

A row of C numbers takes C elements of a floating-point type. In a table of a scaled type it takes C + 4 bytes: C elements, and
the bytes of a float32 scale, whose products with the elements are the numbers.
"""

from __future__ import annotations

import torch

from torch_gas._core.build import _C
from torch_gas._core.checks import FLOAT_TYPES
from torch_gas._core.file import Table

SCALED_TYPES = {torch.int8: _C.DType.i8, torch.float8_e4m3fn: _C.DType.f8_e4m3, torch.float8_e5m2: _C.DType.f8_e5m2}
_SCALE_BYTES = 4


def stored_width(num_cols: int, dtype: torch.dtype) -> int:
    """Elements that a row of C numbers takes in a table of type `dtype`."""
    return num_cols + _SCALE_BYTES if dtype in SCALED_TYPES else num_cols


def is_scaled(table: Table, dtype: torch.dtype) -> bool:
    """Tells whether rows of type `dtype` are the numbers that a table of a scaled type stands for, not its elements."""
    types_match = table.dtype in SCALED_TYPES and dtype in FLOAT_TYPES
    return types_match and len(table.shape) == 2 and table.shape[1] > _SCALE_BYTES


def row_shape(table: Table, dtype: torch.dtype) -> torch.Size:
    """The shape of a table's rows when they are of type `dtype`."""
    return torch.Size([table.shape[1] - _SCALE_BYTES]) if is_scaled(table, dtype) else table.shape[1:]
