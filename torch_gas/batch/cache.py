"""Batches that come again, so that they need not be made again."""

from __future__ import annotations

import copy
import threading
import zlib
from typing import Any

import torch
from torch import Tensor
from torch_geometric.data import Data

from torch_gas._util.version import version
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

    def __reduce__(self) -> tuple[type[BatchCache], tuple[int]]:
        return BatchCache, (self.capacity,)  # a copy starts empty

    def get(self, parts: tuple[int, ...]) -> SubData | None:
        batch, versions = self._entries.get(parts, (None, None))
        if batch is None or [tensor._version for tensor in _tensors(batch)] != versions:
            return None
        return _shallow_copy(batch)

    def put(self, parts: tuple[int, ...], batch: SubData) -> SubData:
        """Keeps ``batch`` where there is room, and returns it for use."""
        tensors = _tensors(batch)
        if any(tensor.is_inference() for tensor in tensors):  # they tell of no change, and cannot be trained on
            return batch
        size = sum(tensor.nbytes for tensor in tensors)
        with self._lock:
            if parts not in self._entries:
                if self.size + size > self.capacity:
                    return batch
                self.size += size
            self._entries[parts] = (batch, [tensor._version for tensor in tensors])
        return _shallow_copy(batch)


def _shallow_copy(batch: SubData) -> SubData:
    """A copy whose attributes may be set, and whose features may gather gradients of their own. It shares their memory."""
    out = copy.copy(batch)
    for key, value in batch.to_dict().items():
        if isinstance(value, Tensor) and value.layout == torch.strided and value.is_floating_point():
            out[key] = value.detach()
    return out


def contents_of(data: Data) -> list[tuple[Any, ...]]:
    """What may change between two epochs: each attribute, how often it was changed in place, and a checksum of labels and masks.

    These are written to through NumPy as well, which torch does not count. Wider rows are not looked at, which would take as long
    as to read them.
    """
    small = SMALL_ROW * (data.num_nodes or 0)
    values = data.to_dict().values()
    return [(v, version(v), _checksum(v, small)) if isinstance(v, Tensor) else (v,) for v in values]


def _checksum(value: Tensor, largest: int) -> int:
    if value.is_inference() or value.layout != torch.strided or value.device.type != "cpu" or value.nbytes > largest:
        return 0
    return zlib.crc32(value.detach().reshape(-1).view(torch.uint8).numpy().data)


def _tensors(batch: SubData) -> list[Tensor]:
    found = [batch.offset, batch.count]
    for value in batch.to_dict().values():
        found += tensors_of(value)
    return found
