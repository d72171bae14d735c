"""Sizes that no memory has: errors of allocations name the number that asked for it."""

from __future__ import annotations

import errno
import re
from collections.abc import Iterator
from contextlib import contextmanager

import torch

# How torch says it, beside its error for CUDA.
_ALLOCATES = re.compile("(can't|tried to) allocate|not enough memory|(calculation|multiplication) overflow")


@contextmanager
def fitting(what: str) -> Iterator[None]:
    """Has errors say that ``what``, an argument and its value, takes more memory than there is on the host.

    Raises:
        ValueError: in place of the error of an allocation.
    """
    try:
        yield
    except (RuntimeError, OverflowError, MemoryError, OSError) as error:
        of_others = isinstance(error, torch.OutOfMemoryError) or not _ALLOCATES.search(str(error))
        if isinstance(error, RuntimeError) and of_others:
            raise
        if isinstance(error, OSError) and error.errno != errno.EFBIG:
            raise
        raise ValueError(f"{what} takes more memory, or a larger file, than there can be: check it") from error
