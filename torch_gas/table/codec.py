"""Codecs: how rows of C numbers become elements of a table, and which types of numbers they are made from."""

from __future__ import annotations

from abc import ABC, abstractmethod

import torch

from torch_gas import _core


class Codec(ABC):
    """How a table stores rows of numbers.

    The core converts rows while it moves them; a codec tells what it needs to know of the result.

    Args:
        dtype: type of the stored elements.
    """

    def __init__(self, dtype: torch.dtype) -> None:
        self.dtype = dtype

    @property
    def name(self) -> str:
        """The storage type as in ``"float32"``."""
        return str(self.dtype).removeprefix("torch.")

    def stored_width(self, width: int) -> int:
        """Elements that a row of ``width`` numbers takes, C' of a table [N, C']."""
        return _core.stored_width(width, self.dtype)

    def row_bytes(self, width: int) -> int:
        """Bytes that a row of ``width`` numbers takes."""
        return self.stored_width(width) * self.dtype.itemsize

    @property
    @abstractmethod
    def tolerance(self) -> float:
        """The largest error of a finite number, relative to the largest of its row."""

    @abstractmethod
    def row_dtype(self, model: torch.dtype) -> torch.dtype:
        """Type of the rows that a pull gives by default, in a model of type ``model``."""

    @property
    @abstractmethod
    def range_dtype(self) -> torch.dtype:
        """The type that has the range of what can be stored: larger numbers become infinite."""

    @abstractmethod
    def rounds(self, dtype: torch.dtype) -> bool:
        """Whether rows of type ``dtype`` are not always given back as they were."""

    def __repr__(self) -> str:
        return f"{type(self).__name__}({self.dtype})"


class Plain(Codec):
    """Elements are the numbers themselves, converted to the storage type."""

    @property
    def tolerance(self) -> float:
        return torch.finfo(self.dtype).eps / 2 if self.dtype.is_floating_point else 0.0

    def row_dtype(self, model: torch.dtype) -> torch.dtype:
        return self.dtype

    @property
    def range_dtype(self) -> torch.dtype:
        return self.dtype

    def rounds(self, dtype: torch.dtype) -> bool:
        return torch.promote_types(dtype, self.dtype) != self.dtype


class Scaled(Codec):
    """Elements of one byte and a float32 scale behind each row, whose product is a number; see csrc/dtype.h.

    A row is divided by its largest absolute value, so that this becomes the largest number of the type.

    Args:
        dtype: type of the stored elements.
        tolerance: see :attr:`Codec.tolerance`.
    """

    def __init__(self, dtype: torch.dtype, tolerance: float) -> None:
        super().__init__(dtype)
        self._tolerance = tolerance

    @property
    def tolerance(self) -> float:
        return self._tolerance

    def row_dtype(self, model: torch.dtype) -> torch.dtype:
        return model

    @property
    def range_dtype(self) -> torch.dtype:
        return torch.float32

    def rounds(self, dtype: torch.dtype) -> bool:
        return True


# What histories may be stored in, the widest first.
CODECS: dict[torch.dtype, Codec] = {
    codec.dtype: codec
    for codec in (
        Plain(torch.float64),
        Plain(torch.float32),
        Plain(torch.float16),
        Plain(torch.bfloat16),
        Scaled(torch.int8, 0.5 / 127),
        # Half a step between numbers as large as the largest, which have the widest steps.
        Scaled(torch.float8_e4m3fn, 16 / 448),
        Scaled(torch.float8_e5m2, 4096 / 57344),
    )
}
FLOATS = tuple(dtype for dtype, codec in CODECS.items() if isinstance(codec, Plain))


def codec_of(dtype: torch.dtype) -> Codec:
    """The codec of a storage type; other types than those of histories (of features, say) are stored as they are."""
    return CODECS.get(dtype) or Plain(dtype)
