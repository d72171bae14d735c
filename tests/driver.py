"""A driver in place of CUDA's, for page-locking on a machine without a GPU."""

from __future__ import annotations

from types import SimpleNamespace

import pytest
import torch

from torch_gas import AsyncIOPool
from torch_gas._core import memory


class Driver:
    """Page-locks ranges of addresses, and refuses what overlaps one, as CUDA does."""

    def __init__(self) -> None:
        self.ranges: list[tuple[int, int]] = []

    def is_locked(self, tensor: torch.Tensor) -> bool:
        """As torch asks: whether the first byte of the storage is."""
        first = tensor.untyped_storage().data_ptr()
        return any(start <= first < end for start, end in self.ranges)

    def covers(self, tensor: torch.Tensor) -> bool:
        """Whether a device can read all of it."""
        first, end = tensor.data_ptr(), tensor.data_ptr() + tensor.nbytes
        return any(start <= first and end <= stop for start, stop in self.ranges)

    def serve(self, patch: pytest.MonkeyPatch) -> None:
        """Takes the place of CUDA's."""
        driver = self

        class HostRegistration:
            def __init__(self, owner: object, address: int, num_bytes: int, device: int) -> None:
                self.owner, self.range = owner, (address, address + num_bytes)
                if any(address < end and start < address + num_bytes for start, end in driver.ranges):
                    raise RuntimeError("cudaErrorHostMemoryAlreadyRegistered")
                driver.ranges.append(self.range)

            def __del__(self) -> None:
                if self.range in driver.ranges:
                    driver.ranges.remove(self.range)

        patch.setattr(memory, "_C", SimpleNamespace(**{**vars(memory._C), "HostRegistration": HostRegistration}))
        patch.setattr(memory, "require_cuda", lambda *_: None)
        patch.setattr(torch.Tensor, "is_pinned", lambda tensor: driver.is_locked(tensor))


def gpu_pool() -> AsyncIOPool:
    """A pool that says it is for a GPU; it moves no rows."""
    pool = AsyncIOPool()
    pool.device = torch.device("cuda", 0)
    return pool
