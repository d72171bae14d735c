"""Courier: brings batches to the device while others are computed on."""

from __future__ import annotations

import copy
from collections import deque
from collections.abc import Callable

import torch
from torch import Tensor
from torch_geometric.data import Data

from torch_gas.graph.formats import all_tensors, map_tensors
from torch_gas.transfer.lanes import CurrentStream, Event, SideStream, with_index


def _map(data: Data, fn: Callable[[Tensor], Tensor]) -> Data:
    mapped = copy.copy(data)
    for key, value in data.to_dict().items():
        mapped[key] = map_tensors(value, fn)
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

    def send(self, data: Data) -> tuple[Data, Event]:
        """A copy of ``data`` that is on its way, and the event of its arrival.

        A thread of the loader calls it, and waits until the device has come close to the batch that was received last: else
        a host that is far ahead would fill the device with batches.
        """
        while len(self._received) > 1:
            self._received.popleft().synchronize()
        with torch.cuda.stream(self._lane.stream):
            sent = _map(data, self._copy)
        return sent, self._lane.record()

    def _copy(self, tensor: Tensor) -> Tensor:
        if tensor.device.type != "cpu":
            return tensor
        pinned = tensor if tensor.is_pinned() else tensor.pin_memory()
        return pinned.to(self.device, non_blocking=True)

    def pin(self, data: Data) -> Data:
        """A copy of ``data`` in pinned memory, for batches that are sent more than once."""
        return _map(data, Tensor.pin_memory)

    def receive(self, data: Data, arrived: Event) -> Data:
        """``data`` of :meth:`send`, ready for the current stream."""
        self._received.append(self._compute.record())
        self._compute.wait(arrived)
        for tensor in all_tensors(data.to_dict()):
            self._compute.hold(tensor)
        return data
