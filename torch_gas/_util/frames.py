"""The code of a user that is under way."""

from __future__ import annotations

import os
import sys
from collections.abc import Iterator
from traceback import walk_stack
from types import FrameType

import torch

_FOLDERS = tuple(os.path.join(folder, "") for folder in (*torch.__path__, os.path.dirname(os.path.dirname(__file__))))


def callers() -> Iterator[tuple[FrameType, int]]:
    """The calls under way that are neither of torch nor of this package, from the innermost, each with its line."""
    for frame, line in walk_stack(sys._getframe(1)):
        if not frame.f_code.co_filename.startswith(_FOLDERS):
            yield frame, line
