"""Whether a tensor or a table was written to since somebody looked."""

from __future__ import annotations

from typing import Any


def version(tensor: Any) -> int:
    """Changes whenever ``tensor``, or a table that counts its writes as one does, is written to; tensors of inference mode do
    not tell."""
    return 0 if tensor.is_inference() else int(tensor._version)
