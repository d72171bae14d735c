"""The tier in which histories belong: the fastest one that has room for them, in this storage type and in narrower ones."""

from __future__ import annotations

from typing import NamedTuple

import torch

from torch_gas.history import History
from torch_gas.session.model import HistoryModel
from torch_gas.table.codec import Codec

_NARROW = (torch.bfloat16, torch.int8)  # of float16 and bfloat16, only the latter has the range of float32


class Storage(NamedTuple):
    """Histories and tables of a model in one storage type.

    Args:
        dtype: the type of histories; None for those that they have now.
        nbytes: bytes of all tables, with the ages of their rows.
        tier: where they belong: ``"device"``, ``"pinned"``, ``"host"`` or ``"file"``.
    """

    dtype: torch.dtype | None
    nbytes: int
    tier: str


def storages(model: HistoryModel, rooms: dict[str, int]) -> tuple[Storage, ...]:
    """Histories as they are, and in narrower types.

    Args:
        model: the model.
        rooms: bytes that they may take in each tier, the fastest first; a file has room for all.
    """
    found: list[Storage] = []
    for dtype in (None, *_NARROW):
        nbytes = sum(_nbytes(store, dtype if store in model.histories else None) for store in model._stores)
        if not found or nbytes < found[-1].nbytes:
            found.append(Storage(dtype, nbytes, next((tier for tier, room in rooms.items() if nbytes <= room), "file")))
    return tuple(found)


def _nbytes(store: History, dtype: torch.dtype | None) -> int:
    """Bytes of a table in this type, with the ages of its rows."""
    row_bytes = store.table.row_bytes if dtype is None else Codec(dtype).row_bytes(store.embedding_dim)
    return store.num_embeddings * row_bytes + store.pushed_at.nbytes
