"""Bytes in words, and tables of text."""

from __future__ import annotations

import pytest

from torch_gas._util.text_table import text_table
from torch_gas._util.units import format_bytes, parse_bytes


@pytest.mark.parametrize(
    ("text", "number"),
    [("8 GiB", 2**33), ("1.5GiB", 3 * 2**29), ("500 MB", 500_000_000), ("2 kB", 2000), (" 7 b ", 7), (12, 12)],
)
def test_bytes_are_read(text: int | str, number: int) -> None:
    assert parse_bytes(text, "size") == number


@pytest.mark.parametrize(
    ("size", "text"),
    [(0, "0 B"), (999, "999 B"), (1000, "0.98 KiB"), (1536, "1.50 KiB"), (2**30, "1.00 GiB"), (300 * 2**20, "300 MiB")],
)
def test_bytes_are_written(size: int, text: str) -> None:
    assert format_bytes(size) == text


def test_columns_are_flush_right() -> None:
    assert text_table(("a", "long", ""), [("12", "3", "x"), ("1", "2", "")]) == " a  long\n12     3  x\n 1     2"
