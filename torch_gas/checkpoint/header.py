"""The header of a safetensors file (https://huggingface.co/docs/safetensors): where which tensor lies.

A file is the length of its header in 8 bytes, least significant first, the header as JSON, and the tensors' bytes without gaps.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from math import prod
from typing import Any, BinaryIO, NamedTuple

import torch

DTYPES = {
    "BOOL": torch.bool,
    "U8": torch.uint8,
    "I8": torch.int8,
    "F8_E4M3": torch.float8_e4m3fn,
    "F8_E5M2": torch.float8_e5m2,
    "U16": torch.uint16,
    "I16": torch.int16,
    "F16": torch.float16,
    "BF16": torch.bfloat16,
    "U32": torch.uint32,
    "I32": torch.int32,
    "F32": torch.float32,
    "U64": torch.uint64,
    "I64": torch.int64,
    "F64": torch.float64,
    "C64": torch.complex64,
}
NAMES = {dtype: name for name, dtype in DTYPES.items()}

_LENGTH = 8  # bytes of the header's length
_LONGEST = 100_000_000  # bytes of a header, as in the reference implementation
_METADATA = "__metadata__"


class Entry(NamedTuple):
    """A tensor in a file.

    Args:
        dtype: type of its elements.
        shape: its shape.
        begin: where its bytes begin, counted from the end of the header.
    """

    dtype: torch.dtype
    shape: tuple[int, ...]
    begin: int

    @property
    def num_rows(self) -> int:
        """Its length in the first dimension; a scalar is one row."""
        return self.shape[0] if self.shape else 1

    @property
    def row_bytes(self) -> int:
        """Bytes of a row."""
        return self.dtype.itemsize * prod(self.shape[1:])

    @property
    def end(self) -> int:
        """Where its bytes end."""
        return self.begin + self.num_rows * self.row_bytes

    def __str__(self) -> str:
        return f"{self.dtype} {list(self.shape)}"


class Damaged(ValueError):
    """A file that is not what was written."""

    def __init__(self, path: str, why: str) -> None:
        super().__init__(f"{path} is damaged or no safetensors file: {why}; take another copy of it")


def place(tables: Mapping[str, Any]) -> dict[str, Entry]:
    """Where the bytes of ``tables`` go, in their order in the file: large elements first, so that each is aligned."""
    entries, begin = {}, 0
    for name, table in sorted(tables.items(), key=lambda item: -item[1].dtype.itemsize):
        if table.dtype not in NAMES:
            raise TypeError(f"{name!r} is {table.dtype}, which safetensors files cannot hold; convert it")
        entry = entries[name] = Entry(table.dtype, tuple(table.shape), begin)
        begin = entry.end
    return entries


def encode(entries: Mapping[str, Entry], texts: Mapping[str, str]) -> bytes:
    """The bytes before the tensors."""
    header: dict[str, Any] = {_METADATA: dict(texts)}
    for name, entry in entries.items():
        offsets = [entry.begin, entry.end]
        header[name] = {"dtype": NAMES[entry.dtype], "shape": list(entry.shape), "data_offsets": offsets}
    text = json.dumps(header, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)
    return len(text).to_bytes(_LENGTH, "little") + text


def decode(file: BinaryIO, size: int, path: str) -> tuple[dict[str, Entry], dict[str, str], int]:
    """The tensors of a file of ``size`` bytes in their order, its texts, and where the tensors' bytes begin.

    Raises:
        Damaged: if anything in the header contradicts the format or the size.
    """
    length = int.from_bytes(file.read(_LENGTH), "little")
    start = _LENGTH + length
    if size < _LENGTH or start > size or length > _LONGEST:
        raise Damaged(path, f"it has {size} bytes, which its header of {length} does not fit")
    try:
        header = json.loads(file.read(length).decode(), object_pairs_hook=_once)
        texts = header.pop(_METADATA, {})
        if not all(isinstance(text, str) for text in texts.values()):
            raise ValueError("its metadata are no texts")
        entries = sorted(((name, _entry(name, value)) for name, value in header.items()), key=lambda item: item[1][2:])
    except (ValueError, TypeError, AttributeError, KeyError, RecursionError) as error:
        raise Damaged(path, f"its header cannot be read ({error})") from None
    end = 0
    for name, entry in entries:
        if entry.begin != end:
            raise Damaged(path, f"the bytes of {name!r} begin at {entry.begin}, but those before end at {end}")
        end = entry.end
    if start + end != size:
        raise Damaged(path, f"its tensors take {end} bytes, but {size - start} are there")
    return dict(entries), texts, start


def _once(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    if len(dict(pairs)) < len(pairs):
        raise ValueError("a name is there twice")
    return dict(pairs)


def _entry(name: str, value: dict[str, Any]) -> Entry:
    if value.keys() != {"dtype", "shape", "data_offsets"}:
        raise ValueError(f"{name!r} has the keys {sorted(value)}")
    shape, (begin, end) = value["shape"], value["data_offsets"]
    if not isinstance(shape, list) or not all(type(number) is int and number >= 0 for number in (*shape, begin, end)):
        raise ValueError(f"shape or offsets of {name!r} are no whole numbers")
    entry = Entry(DTYPES[value["dtype"]], tuple(shape), begin)
    if entry.end != end:
        raise ValueError(f"{name!r} is {entry}, but has {end - begin} bytes")
    return entry
