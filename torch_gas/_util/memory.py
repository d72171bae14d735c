"""Sizes that no memory has: errors of allocations name the number that asked for it."""

from __future__ import annotations

import errno
import re
from collections.abc import Iterator
from contextlib import contextmanager

import torch


@contextmanager
def fitting(what: str) -> Iterator[None]:
    """Has errors say that ``what``, an argument and its value, takes more memory than there is on the host.

    Raises:
        ValueError: in place of the error of an allocation.
    """
    try:
        yield
    except (RuntimeError, OverflowError, MemoryError, OSError) as error:
        of_host = re.search("allocate|overflow", str(error)) and not isinstance(error, torch.OutOfMemoryError)
        if isinstance(error, RuntimeError) and not of_host:
            raise
        if isinstance(error, OSError) and error.errno != errno.EFBIG:
            raise
        raise ValueError(f"{what} takes more memory, or a larger file, than there can be: check it") from error
