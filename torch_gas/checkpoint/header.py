"""The header of a safetensors file (https://huggingface.co/docs/safetensors): where which tensor lies.

A file is the length of its header in 8 bytes, least significant first, the header as JSON, and the tensors' bytes without gaps.
The library reads and checks it. It writes whole files only, from memory, so the header is also written here.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from math import prod
from typing import Any, NamedTuple

import torch
from safetensors import SafetensorError, safe_open

# Types of elements by their names in a file: most are a letter and the number of bits.
DTYPES: dict[str, torch.dtype] = {f"I{bits}": getattr(torch, f"int{bits}") for bits in (8, 16, 32, 64)}
DTYPES |= {f"U{bits}": getattr(torch, f"uint{bits}") for bits in (8, 16, 32, 64)}
DTYPES |= {f"F{bits}": getattr(torch, f"float{bits}") for bits in (16, 32, 64)}
DTYPES |= {"F8_E4M3": torch.float8_e4m3fn, "F8_E5M2": torch.float8_e5m2, "BF16": torch.bfloat16}
DTYPES |= {"BOOL": torch.bool, "C64": torch.complex64}
NAMES = {dtype: name for name, dtype in DTYPES.items()}

LENGTH = 8  # bytes of the header's length


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


def place(tables: Iterable[tuple[str, torch.dtype, Iterable[int]]]) -> dict[str, Entry]:
    """Where the bytes of tables of these names, types and shapes lie, one after the other."""
    entries, begin = {}, 0
    for name, dtype, shape in tables:
        entry = entries[name] = Entry(dtype, tuple(shape), begin)
        begin = entry.end
    return entries


def encode(entries: Mapping[str, Entry], texts: Mapping[str, str]) -> bytes:
    """The bytes before the tensors."""
    header: dict[str, Any] = {"__metadata__": dict(texts)}
    for name, entry in entries.items():
        offsets = [entry.begin, entry.end]
        header[name] = {"dtype": NAMES[entry.dtype], "shape": list(entry.shape), "data_offsets": offsets}
    text = json.dumps(header, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)
    return len(text).to_bytes(LENGTH, "little") + text


def decode(path: str) -> tuple[dict[str, Entry], dict[str, str]]:
    """The tensors of a file in their order, and its texts.

    Raises:
        Damaged: if the header contradicts the format or the size of the file.
    """
    try:
        with safe_open(path, framework="numpy") as file:  # maps the file, and reads its header only
            slices = {name: file.get_slice(name) for name in file.offset_keys()}
            described = [(name, DTYPES[each.get_dtype()], each.get_shape()) for name, each in slices.items()]
            return place(described), file.metadata() or {}
    except SafetensorError as error:
        raise Damaged(path, str(error)) from None
    except KeyError as error:
        raise ValueError(f"{path} holds a tensor of type {error}, which torch lacks; convert it") from None
