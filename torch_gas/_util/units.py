"""Bytes as people write and read them."""

from __future__ import annotations

import re
from typing import Any

_PREFIXES = ("", "k", "M", "G", "T")


def parse_bytes(size: Any, name: str) -> int:
    """A number of bytes, or one like ``"8 GiB"`` (2**30 bytes each) or ``"500 MB"`` (10**6 bytes each).

    Raises:
        TypeError: if it is neither an int nor a string.
        ValueError: if it is not positive, or no such string.
    """
    if isinstance(size, bool) or not isinstance(size, (int, str)):
        raise TypeError(f'{name} must be a number of bytes or a string such as "8 GiB", but is {size!r}')
    if isinstance(size, str):
        match = re.fullmatch(r"\s*(\d+(?:\.\d*)?|\.\d+)\s*([kmgt]?)(i?)b\s*", size, re.IGNORECASE)
        if match is None or (match[3] and not match[2]):
            raise ValueError(
                f'{name} must be a number of bytes or a string such as "8 GiB" or "500 MB", but is {size!r}'
            )
        power = [prefix.lower() for prefix in _PREFIXES].index(match[2].lower())
        number = int(float(match[1]) * (1024 if match[3] else 1000) ** power)
    else:
        number = size
    if number < 1:
        raise ValueError(f"{name} must be positive, but is {size!r}")
    return number


def format_bytes(size: float) -> str:
    """Bytes as people read them, with three digits: ``1.50 GiB``."""
    power = 0
    while size >= 999.5 and power + 1 < len(_PREFIXES):
        size, power = size / 1024, power + 1
    unit = f"{_PREFIXES[power].upper()}iB" if power else "B"
    digits = 0 if power == 0 or size >= 99.95 else 1 if size >= 9.995 else 2
    return f"{size:.{digits}f} {unit}"
