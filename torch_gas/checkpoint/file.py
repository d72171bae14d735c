"""Safetensors files of tables, written and read a block of rows at a time, replaced as a whole or not at all."""

from __future__ import annotations

import os
import zlib
from collections.abc import Iterator, Mapping

import torch
from torch import Tensor

from torch_gas import _core
from torch_gas._util.replace import Path, existing, replacing
from torch_gas.checkpoint.header import LENGTH, NAMES, Damaged, Entry, decode, encode, place
from torch_gas.checkpoint.rows import read_rows, write_rows

BLOCK = 2**23  # bytes of a table that are in memory at a time, or one row


def write(path: Path, tables: Mapping[str, _core.Table], texts: Mapping[str, str] | None = None) -> None:
    """Writes ``tables``, with ``texts`` and a checksum of each in the header's metadata.

    The file is written beside ``path``, reaches the disk, and then takes the place of what was there. After an error, what was
    there still is.

    Raises:
        TypeError: if the format has no such type of elements.
        OSError: if the file cannot be written.
    """
    for name, table in tables.items():
        if table.dtype not in NAMES:
            raise TypeError(f"{name!r} is {table.dtype}, which safetensors files cannot hold; convert it")
    # Large elements first, so that each is aligned.
    in_order = sorted(tables.items(), key=lambda item: -item[1].dtype.itemsize)
    entries = place((name, table.dtype, table.shape) for name, table in in_order)
    sums = dict.fromkeys(entries, 0)
    with replacing(path) as file:
        file.write(_encode(entries, sums, texts or {}))
        for name, entry in entries.items():
            for start, stop in _blocks(entry):
                rows = _memory(read_rows(tables[name], start, stop))
                sums[name] = zlib.crc32(rows, sums[name])
                file.write(rows)
        file.seek(0)
        file.write(_encode(entries, sums, texts or {}))  # which has the same length


def _encode(entries: Mapping[str, Entry], sums: Mapping[str, int], texts: Mapping[str, str]) -> bytes:
    return encode(entries, {**texts, **{_key(name): f"{value:08x}" for name, value in sums.items()}})


def _memory(rows: Tensor) -> memoryview:
    return rows.numpy().data.cast("B")


def _key(name: str) -> str:
    return f"crc32 {name}"


def _blocks(entry: Entry) -> Iterator[tuple[int, int]]:
    """Ranges of rows of about ``BLOCK`` bytes; none where there are no bytes."""
    if entry.row_bytes > 0:
        step = max(BLOCK // entry.row_bytes, 1)
        for start in range(0, entry.num_rows, step):
            yield start, min(start + step, entry.num_rows)


class Saved:
    """A file of tables, open for reading.

    Attributes:
        path: of the file.
        entries: what it holds, by name.
        texts: the header's metadata.

    Raises:
        FileNotFoundError: if there is no such file.
        Damaged: if its header is not what it must be, or its size not what the header says.
    """

    def __init__(self, path: Path) -> None:
        self.path = os.fspath(path)
        # Rows are not read from the library's mapping, which would hold all of them in memory, and where a failing disk is a
        # signal that ends the process.
        self._file = existing(path)  # closed by `__exit__`
        try:
            self.entries, self.texts = decode(self.path)
            if not os.path.samestat(os.fstat(self._file.fileno()), os.stat(path)):
                raise OSError(f"{self.path} was replaced while it was opened; open it again")
            self._start = LENGTH + int.from_bytes(self._file.read(LENGTH), "little")
            # Those of all tables, or, in a file that somebody else wrote, of none.
            self._sums = {name: self.texts[_key(name)] for name in self.entries if _key(name) in self.texts}
            if self._sums and self._sums.keys() != self.entries.keys():
                raise Damaged(self.path, "a checksum is missing")
        except BaseException:
            self._file.close()
            raise

    def __enter__(self) -> Saved:
        return self

    def __exit__(self, *error: object) -> None:
        self._file.close()

    def verify(self) -> None:
        """Reads the whole file once.

        Raises:
            Damaged: if the bytes of a table are not those that were written.
        """
        for name, expected in self._sums.items():
            value = 0
            for _, rows in self._rows(name):
                value = zlib.crc32(_memory(rows), value)
            if f"{value:08x}" != expected:
                raise Damaged(self.path, f"the bytes of {name!r} have changed since they were written")

    def read(self, name: str) -> Tensor:
        """A table, in new memory on the host."""
        entry = self.entries[name]
        table = torch.empty(entry.shape, dtype=entry.dtype, device="cpu")
        self.read_into(name, table)
        return table

    def read_into(self, name: str, table: _core.Table) -> None:
        """Fills ``table``, whose type and shape must be those of the entry."""
        for start, rows in self._rows(name):
            write_rows(table, start, rows)

    def _rows(self, name: str) -> Iterator[tuple[int, Tensor]]:
        """Blocks of rows as bytes, each with the number of its first row; the memory is that of the block before."""
        entry = self.entries[name]
        self._file.seek(self._start + entry.begin)
        block = torch.empty(0, device="cpu")
        for start, stop in _blocks(entry):
            if start == 0:  # no block is larger than the first
                block = torch.empty(stop, entry.row_bytes, dtype=torch.uint8, device="cpu")
            rows = block[: stop - start]
            if self._file.readinto(_memory(rows)) < rows.numel():
                raise Damaged(self.path, f"it ends within {name!r}")
            yield start, rows
