"""Memory that a training step frees stays with the process, so that the next step need not ask the system for it again.

By default, glibc gives memory of large tensors back as soon as they are freed. The system clears each page anew when the next
step takes it, which costs more than many operators do that then write to it.
"""

from __future__ import annotations

import ctypes
import os
import platform
from functools import cache

# Numbers of options in glibc's malloc.h.
_TRIM_THRESHOLD, _MMAP_THRESHOLD = -1, -3
_NEVER = -1
# Tensors of more bytes than this still come from the system and go back to it. glibc before 2.35 takes at most the second.
_LARGEST = (2**30, 2**25)
_ENVIRONMENT = ("MALLOC_TRIM_THRESHOLD_", "MALLOC_MMAP_THRESHOLD_", "MALLOC_MMAP_MAX_", "MALLOC_TOP_PAD_")


@cache
def keep_freed_memory() -> bool:
    """Has glibc's ``malloc`` keep what is freed, for the whole process and from now on.

    Memory of tensors below 1 GiB is no longer given back before the process ends, and pieces that lie idle add to its peak.

    Returns:
        Whether it does: False where the C library is another one, and where the user has set glibc's own variables for this
        (``MALLOC_TRIM_THRESHOLD_``, ``GLIBC_TUNABLES=glibc.malloc...``; see ``man mallopt``), which are then left as they are.
    """
    if any(name in os.environ for name in _ENVIRONMENT) or "glibc.malloc" in os.environ.get("GLIBC_TUNABLES", ""):
        return False
    if platform.libc_ver()[0] != "glibc":
        return False
    mallopt = ctypes.CDLL(None).mallopt
    return any(mallopt(_MMAP_THRESHOLD, size) for size in _LARGEST) and bool(mallopt(_TRIM_THRESHOLD, _NEVER))
