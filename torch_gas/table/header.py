"""The first page of a table's file: what the table is, and whether its rows can be relied upon."""

from __future__ import annotations

import json
import os
import zlib
from dataclasses import asdict, dataclass
from typing import Any

import torch

from torch_gas._util.arguments import checked_fields
from torch_gas.table.codec import STORED

SIZE = 4096  # bytes, so that rows begin with a page
_MAGIC = b"torch-gas table\n"
_TYPES = {
    str(dtype).removeprefix("torch."): dtype
    for dtype in (*STORED, torch.uint8, torch.int16, torch.int32, torch.int64, torch.bool)
}


@checked_fields
@dataclass
class Header:
    """What a file says of its table.

    Args:
        num_rows: N.
        num_cols: elements of a row.
        dtype: their type, as in ``"float32"``.
        generation: number of commits so far.
        committed: whether nothing was written since the last of them.
        clock: optimiser steps at that commit.
        owner: process that has the file open, or had last.
        order: check sum of the order of nodes that the rows are in; 0 if it is not known.
        key: of the graph whose embeddings the rows are; empty if it is not known.
        behind: row-wise code that rows have been through since their convolution.
    """

    num_rows: int
    num_cols: int
    dtype: str
    generation: int = 0
    committed: bool = True
    clock: int = 0
    owner: int = 0
    order: int = 0
    key: str = ""
    behind: str = ""

    def __post_init__(self) -> None:
        if min(self.num_rows, self.num_cols) < 1 or min(self.generation, self.clock) < 0:
            raise ValueError("a number is too small")

    @property
    def is_untouched(self) -> bool:
        """Whether no row was ever written."""
        return self.committed and self.generation == 0

    @property
    def torch_dtype(self) -> torch.dtype:
        """The type of the elements."""
        return _TYPES[self.dtype]

    @property
    def rows_end(self) -> int:
        """Where the rows end, in bytes."""
        return SIZE + self.num_rows * self.num_cols * self.torch_dtype.itemsize

    @property
    def file_size(self) -> int:
        """Bytes of the file: header, rows, and when each row was pushed."""
        return self.rows_end + 8 * self.num_rows

    def check_same(self, wanted: Header, path: str) -> None:
        """Raises ValueError unless the table of the file ``path`` is as ``wanted``."""
        mine, other = ((each.num_rows, each.num_cols, each.dtype) for each in (self, wanted))
        if mine != other:
            raise ValueError(
                "{} holds a table of {} rows with {} elements of type {}, but {} rows with {} of type {} are asked for; choose "
                "another path, or delete the file".format(path, *mine, *other)
            )

    def write(self, file: int) -> None:
        """Writes the header in one call, to the first sectors of the file."""
        text = _MAGIC + json.dumps({**self._fields(), "check": self._check()}).encode()
        os.pwrite(file, text.ljust(512), 0)

    def _check(self) -> int:
        """The checksum of all fields."""
        return zlib.crc32(json.dumps(self._fields()).encode())

    def _fields(self) -> dict[str, Any]:
        """What the file says; nothing that it would not have said before there was a word for it."""
        fields = asdict(self)
        return fields if self.behind else {name: value for name, value in fields.items() if name != "behind"}

    @classmethod
    def read(cls, file: int, path: str) -> Header:
        """The header of a file.

        Raises:
            ValueError: if the file is no table, is damaged, or was cut.
        """
        text = os.pread(file, 512, 0)
        if not text.startswith(_MAGIC):
            raise ValueError(f"{path} is no table of torch-gas; choose another path")
        try:
            fields = json.loads(text[len(_MAGIC) :])
            check = fields.pop("check", None)
            header = cls(**fields)
            size = header.file_size
            if check not in (None, header._check()):  # release 0.1 wrote none
                raise ValueError("it was changed since it was written")
        except (ValueError, TypeError, KeyError, AttributeError, RecursionError) as error:
            raise ValueError(f"{path}: the header of the table cannot be read ({error}); delete the file") from error
        if header.committed and os.fstat(file).st_size != size:  # one that is torn is cleared, which gives it its size
            raise ValueError(f"{path} has {os.fstat(file).st_size} bytes instead of {size}: it was cut; delete it")
        return header


def type_name(dtype: torch.dtype) -> str:
    """The name of a type that a table may have.

    Raises:
        TypeError: if there is none.
    """
    name = str(dtype).removeprefix("torch.")
    if name not in _TYPES:
        raise TypeError(f"FileTable: dtype must be one of {', '.join(_TYPES)}, but is {name}")
    return name


def other_code(source: str, saved: str, own: str) -> str:
    """Why rows of ``source`` are not those of a model, if they have been through other row-wise code; else nothing."""
    if saved == own:
        return ""
    behind = [f"a convolution and {code}" if code else "a convolution" for code in (saved, own)]
    return (
        f"{source} holds rows behind {behind[0]}, but this model pushes those behind {behind[1]}; make it by scale(model, data, "
        'places=...) as it was then ("outputs" in release 0.1), or load the parameters alone'
    )
