"""Calls by which the host waits for a device, refused while the steps of a model are queued."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import pytest
import torch


@contextmanager
def refused_host_waits() -> Iterator[None]:
    """Raises AssertionError where this thread waits for a device, and torch's own error where a call of torch makes any wait.

    Other threads may wait for events and streams: that of a loader does, so that no host fills a device with batches.
    """
    this = threading.current_thread()

    def refusing(wait: Callable[..., Any]) -> Callable[..., Any]:
        def call(*args: Any, **kwargs: Any) -> Any:
            if threading.current_thread() is this:
                raise AssertionError("the host waits")
            return wait(*args, **kwargs)

        return call

    with pytest.MonkeyPatch.context() as patch:
        for owner in (torch.cuda.Event, torch.cuda.Stream, torch.cuda):
            patch.setattr(owner, "synchronize", refusing(owner.synchronize))
        try:
            torch.cuda.set_sync_debug_mode("error")  # which may set the mode and raise its warning then
            yield
        finally:
            torch.cuda.set_sync_debug_mode("default")
