"""Batches that come again, so that they need not be made again."""

from __future__ import annotations

import copy
import threading
import zlib
from typing import Any

import torch
from torch import Tensor
from torch_geometric.data import Data

from torch_gas.batch.data import SubData
from torch_gas.graph.formats import tensors_of

SMALL_ROW = 16  # bytes of a node's label or mask, at most


class BatchCache:
    """Batches that come again, up to a number of bytes; a batch that was changed in place is made anew."""

    def __init__(self, capacity: int) -> None:
        self.capacity = capacity
        self.size = 0
        self._entries: dict[tuple[int, ...], tuple[SubData, list[int]]] = {}
        self._lock = threading.Lock()

    def __getstate__(self) -> int:
        return self.capacity  # a copy starts empty

    def __setstate__(self, capacity: int) -> None:
        self.__init__(capacity)  # type: ignore[misc]

    def clear(self) -> None:
        """Forgets all batches."""
        self._entries.clear()
        self.size = 0

    def get(self, parts: tuple[int, ...]) -> SubData | None:
        entry = self._entries.get(parts)
        if entry is None:
            return None
        batch, versions = entry
        if [tensor._version for tensor in _tensors(batch)] != versions:
            return None
        return _handed_out(batch)

    def put(self, parts: tuple[int, ...], batch: SubData) -> SubData:
        """Keeps ``batch`` where there is room, and returns it for use."""
        tensors = _tensors(batch)
        if any(tensor.is_inference() for tensor in tensors):  # they tell of no change, and cannot be trained on
            return batch
        size = sum(tensor.nbytes for tensor in tensors)
        with self._lock:
            if parts not in self._entries and self.size + size > self.capacity:
                return batch
            if parts not in self._entries:
                self.size += size
            self._entries[parts] = (batch, [tensor._version for tensor in tensors])
        return _handed_out(batch)


def _handed_out(batch: SubData) -> SubData:
    """A copy whose attributes may be set, and whose features may gather gradients of their own. It shares their memory."""
    out = copy.copy(batch)
    for key, value in batch.to_dict().items():
        if isinstance(value, Tensor) and value.layout == torch.strided and value.is_floating_point():
            out[key] = value.detach()
    return out


def contents_of(data: Data) -> list[tuple[Any, tuple[int, int]]]:
    """What may change between two epochs: each attribute, how often it was changed in place, and a checksum of labels and masks.

    These are written to through NumPy as well, which torch does not count. Wider rows are not looked at, which would take as long
    as to read them.
    """
    return [(value, _state(value, SMALL_ROW * (data.num_nodes or 0))) for value in data.to_dict().values()]


def _state(value: Any, small: int) -> tuple[int, int]:
    if not isinstance(value, Tensor) or value.is_inference():
        return 0, 0
    is_small = value.layout == torch.strided and value.device.type == "cpu" and value.nbytes <= small
    return value._version, zlib.crc32(value.detach().reshape(-1).view(torch.uint8).numpy().data) if is_small else 0


def _tensors(batch: SubData) -> list[Tensor]:
    found = [batch.offset, batch.count]
    for value in batch.to_dict().values():
        found += tensors_of(value)
    return found
