"""Codecs: how rows of C numbers become elements of a table, and which types of numbers they are made from."""

from __future__ import annotations

from dataclasses import dataclass

import torch

from torch_gas import _core

# What histories may be stored in, the widest first.
FLOATS = (torch.float64, torch.float32, torch.float16, torch.bfloat16)
STORED = (*FLOATS, *_core.SCALED_TYPES)


@dataclass(frozen=True)
class Codec:
    """How a table stores rows of numbers.

    Elements are the numbers themselves, converted to the storage type; or, of a scaled type, one byte for each number and a
    float32 scale behind each row, whose product is the number, see csrc/dtype.h. Such a row is divided by its largest absolute
    value, so that this becomes the largest number of the type. The core converts rows while it moves them; a codec tells what
    others need to know of the result.

    Args:
        dtype: type of the stored elements.
    """

    dtype: torch.dtype

    @property
    def is_scaled(self) -> bool:
        """Whether rows have a scale."""
        return self.dtype in _core.SCALED_TYPES

    def stored_width(self, width: int) -> int:
        """Elements that a row of ``width`` numbers takes, C' of a table [N, C']."""
        return _core.stored_width(width, self.dtype)

    def row_bytes(self, width: int) -> int:
        """Bytes that a row of ``width`` numbers takes."""
        return self.stored_width(width) * self.dtype.itemsize

    def row_dtype(self, model: torch.dtype) -> torch.dtype:
        """Type of the rows that a pull gives by default, in a model of type ``model``."""
        return model if self.is_scaled else self.dtype

    @property
    def range_dtype(self) -> torch.dtype:
        """The type that has the range of what can be stored: larger numbers become infinite."""
        return self.row_dtype(torch.float32)  # that of a scale

    def rounds(self, dtype: torch.dtype) -> bool:
        """Whether rows of type ``dtype`` are not always given back as they were."""
        return self.is_scaled or torch.promote_types(dtype, self.dtype) != self.dtype

    def check_sums(self) -> None:
        """Raises TypeError where rows that are added to others would be rounded each time."""
        if self.dtype not in _core.SUM_TYPES:
            raise TypeError(
                f"Table.add: {str(self.dtype).removeprefix('torch.')} tables only store complete rows, because each sum would be "
                "rounded again; add to a table of float32 or float64, and store its rows when they are complete"
            )
