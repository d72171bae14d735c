"""The tiers of histories, and the options by which histories live in each."""

from __future__ import annotations

import tempfile
from typing import Any

from torch_gas import FileTier

TIERS = ("device", "pinned", "host", "file")
FOLDER = tempfile.TemporaryDirectory()  # of histories in files


def where(tier: str) -> dict[str, Any]:
    """The options by which histories of a model on a GPU live in ``tier``."""
    if tier == "device":
        return {"device": "cuda"}
    return {"tier": FileTier(tempfile.mkdtemp(dir=FOLDER.name)) if tier == "file" else tier}
