"""Batches that come again, so that they need not be made again."""

from __future__ import annotations

import copy
import os
import threading
from collections.abc import Iterable
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch_geometric.data import Data

from torch_gas import _core
from torch_gas._util.version import version
from torch_gas.batch.data import SubData
from torch_gas.graph.formats import ADJACENCIES, in_memory, tensors_of

SAMPLE = 32  # lines of each tensor of a batch that are looked at before it comes again, which take some microseconds
COPIED = 2**16  # bytes of an attribute of a batch that whoever gets it has a copy of
# Before each epoch, a tensor of a graph is read where it has no more bytes than that, and so many lines of a larger one.
WHOLE, WHOLE_EDGES, SAMPLE_OF_DATA = (
    2**19,
    2**18,
    256,
)  # bytes of a tensor of a graph that is read before each epoch, and lines of a larger one


_SHARED = {*ADJACENCIES, "n_id"}


class BatchCache:
    """Batches that come again, up to a number of bytes; a batch that was changed in place is made anew.

    Changes that torch counts are all found. What NumPy or ``.data`` write does not reach attributes of at most COPIED bytes
    (labels, masks), and is found by a sample of larger ones and of edges.
    """

    def __init__(self, capacity: int, is_sent: bool) -> None:
        self.capacity, self._is_sent = capacity, is_sent
        self.size = 0
        self._entries: dict[tuple[int, ...], tuple[SubData, list[Any]]] = {}
        self._lock, self._process = threading.Lock(), os.getpid()

    def __reduce__(self) -> tuple[type[BatchCache], tuple[int, bool]]:
        return BatchCache, (self.capacity, self._is_sent)  # a copy starts empty

    def get(self, parts: tuple[int, ...]) -> SubData | None:
        batch, state = self._entries.get(parts, (None, None))
        return None if batch is None or _state(batch) != state else _shallow_copy(batch, self._is_sent)

    def put(self, parts: tuple[int, ...], batch: SubData) -> SubData:
        """Keeps ``batch`` where there is room, and returns it for use."""
        tensors = _tensors(batch)
        if any(tensor.is_inference() for tensor in tensors):  # they tell of no change, and cannot be trained on
            return batch
        size = sum(tensor.nbytes for tensor in tensors)
        if self._process != os.getpid():  # a thread that a fork did not take along may have held it
            self._lock, self._process = threading.Lock(), os.getpid()
        with self._lock:
            if parts not in self._entries:
                if self.size + size > self.capacity:
                    return batch
                self.size += size
            self._entries[parts] = (batch, _state(batch))
        return _shallow_copy(batch, self._is_sent)


def _shallow_copy(batch: SubData, is_sent: bool) -> SubData:
    """A copy whose attributes may be set, and whose features may gather gradients of their own.

    It shares the memory of edges, of ids, which calls compare by content, and of what is large.
    """
    out = copy.copy(batch)
    for key, value in batch.to_dict().items():
        if isinstance(value, Tensor) and value.layout == torch.strided and key not in _SHARED:
            out[key] = value.clone() if value.nbytes <= COPIED and not is_sent else value.detach()
    return out


def _state(batch: SubData) -> list[Any]:
    """What differs once a batch was changed in place, or has come to need a gradient: an adjacency is handed out as it is."""
    tensors = _tensors(batch)
    sample = _core.fingerprint(in_memory(tensors), SAMPLE)
    return [sample, *((tensor._version, tensor.requires_grad) for tensor in tensors)]


class Contents:
    """What a graph holds, to tell whether it holds the same later.

    Args:
        data: the graph.
        sample: whether to look at a part of each large tensor for what torch does not count.
        beside: an attribute that is looked at elsewhere.
    """

    def __init__(self, data: Data, sample: bool, beside: Any = None) -> None:
        values = [value for value in data.to_dict().values() if value is not beside]
        listed = [item for value in values if isinstance(value, (list, tuple)) for item in value]
        self._objects = [*values, *listed]
        tensors = [tensor for value in values for tensor in tensors_of(value)]
        self._facts = [
            glance(tensors) if sample else _core.fingerprint(in_memory(tensors)),
            *((version(tensor), tensor.requires_grad) for tensor in tensors),
            *(value.tobytes() for value in values if isinstance(value, np.ndarray)),
        ]

    def differ(self, other: Contents) -> bool:
        """Whether attributes are other objects, or hold other values."""
        same = len(self._objects) == len(other._objects) and self._facts == other._facts
        return not same or any(a is not b for a, b in zip(self._objects, other._objects, strict=True))


def glance(tensors: Iterable[Tensor], most: int = WHOLE) -> tuple[int, int]:
    """Fingerprints of what torch does not count: of tensors of at most so many bytes (labels, say), and of samples of others.

    All of features and edges would take a share of an epoch.
    """
    there = in_memory(tensors)
    whole = [tensor for tensor in there if tensor.nbytes <= most]
    return _core.fingerprint(whole), _core.fingerprint([each for each in there if each.nbytes > most], SAMPLE_OF_DATA)


def learned(data: Data) -> str | None:
    """The name of an attribute that gradients are wanted of, such as an embedding for each node."""
    for key, value in data.to_dict().items():
        if any(tensor.requires_grad for tensor in [*tensors_of(value), value] if isinstance(tensor, Tensor)):
            return key
    return None


def _tensors(batch: SubData) -> list[Tensor]:
    found = [batch.offset, batch.count]
    for value in batch.to_dict().values():
        found += tensors_of(value)
    return found
