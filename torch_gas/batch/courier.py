"""Courier: brings batches to the device while others are computed on."""

from __future__ import annotations

import copy
from collections import deque
from collections.abc import Callable

import torch
from torch import Tensor

from torch_gas.batch.data import SubData
from torch_gas.graph.formats import all_tensors, map_tensors
from torch_gas.transfer.lanes import CurrentStream, Event, SideStream, with_index


def _map(batch: SubData, fn: Callable[[Tensor], Tensor]) -> SubData:
    mapped = copy.copy(batch)
    for key, value in batch.to_dict().items():
        if key != "n_id":
            mapped[key] = map_tensors(value, fn)
        elif value.is_cpu:  # where the ids stay; a step sends those of the halo from there, and copies nothing before
            mapped[key] = value.pin_memory()
    return mapped


class Courier:
    """Copies batches from pinned memory to ``device`` on a lane of its own.

    Args:
        device: a CUDA device.
    """

    def __init__(self, device: torch.device) -> None:
        self.device = with_index(device)
        self._lane, self._compute = SideStream(self.device), CurrentStream(self.device)
        self._received: deque[Event] = deque()  # when all before a batch had been computed

    def send(self, batch: SubData) -> tuple[SubData, Event]:
        """A copy of ``batch`` that is on its way, and the event of its arrival.

        A thread of the loader calls it, and waits until the device has come close to the batch that was received last: else
        a host that is far ahead would fill the device with batches.
        """
        while len(self._received) > 1:
            self._received.popleft().synchronize()
        with torch.cuda.stream(self._lane.stream):
            sent = _map(batch, self._copy)
        return sent, self._lane.record()

    def _copy(self, tensor: Tensor) -> Tensor:
        if tensor.device.type != "cpu":
            return tensor
        if tensor.requires_grad:  # a copy in pinned memory would lose it
            return tensor.to(self.device)
        return tensor.pin_memory().to(self.device, non_blocking=True)  # itself where it is pinned

    @staticmethod
    def allocate(shape: tuple[int, ...], dtype: torch.dtype) -> Tensor:
        """Pinned memory for rows of a batch, which are then sent without another copy."""
        return torch.empty(shape, dtype=dtype, device="cpu", pin_memory=True)

    def pin(self, batch: SubData) -> SubData:
        """A copy of ``batch`` in pinned memory, for batches that are sent more than once."""
        return _map(batch, Tensor.pin_memory)

    def receive(self, batch: SubData, arrived: Event) -> SubData:
        """``batch`` of :meth:`send`, ready for the current stream."""
        self._received.append(self._compute.record(blocking=True))
        self._compute.wait(arrived)
        for tensor in all_tensors(batch.to_dict()):
            if tensor.device == self.device:
                self._compute.hold(tensor)
        return batch
