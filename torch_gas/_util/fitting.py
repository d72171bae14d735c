"""Sizes that no memory has: errors of allocations name the number that asked for it."""

from __future__ import annotations

import errno
import os
import re
from collections.abc import Iterator
from contextlib import contextmanager

# How torch says it.
_ALLOCATES = re.compile(r"allocate (\d+) bytes")
_OVERFLOWS = re.compile("(calculation|multiplication) overflow")


@contextmanager
def fitting(what: str) -> Iterator[None]:
    """Has errors say that ``what``, an argument and its value, takes more memory than the machine has.

    Where there is too little just now, errors stay as they are.

    Raises:
        ValueError: in place of the error of an allocation.
    """
    try:
        yield
    except (RuntimeError, OverflowError, OSError) as error:
        if isinstance(error, RuntimeError):
            found = _ALLOCATES.search(str(error))
            never = _OVERFLOWS.search(str(error)) or (found is not None and int(found[1]) > _memory())
        else:
            never = isinstance(error, OverflowError) or error.errno == errno.EFBIG
        if not never:
            raise
        raise ValueError(f"{what} takes more memory, or a larger file, than there can be: check it") from error


def _memory() -> int:
    """Bytes of physical memory."""
    return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
