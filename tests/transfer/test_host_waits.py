"""What refuses that the host waits, with stubs in place of CUDA."""

from __future__ import annotations

import threading
import warnings

import pytest
import torch
from host_waits import refused_host_waits


class Waiting:
    def __init__(self) -> None:
        self.waits = 0

    def synchronize(self) -> None:
        self.waits += 1


class Stream(Waiting):
    def synchronize(self) -> None:
        self.waits += 1


@pytest.fixture
def modes(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The modes that were set, by a call that warns as torch's does: behind the change."""
    modes: list[str] = []

    def set_mode(mode: str) -> None:
        modes.append(mode)
        if len(modes) == 1:
            warnings.warn("Synchronization debug mode is a prototype feature", stacklevel=1)

    monkeypatch.setattr(torch.cuda, "set_sync_debug_mode", set_mode)
    monkeypatch.setattr(torch.cuda, "synchronize", lambda: None)
    monkeypatch.setattr(torch.cuda, "Event", Waiting)
    monkeypatch.setattr(torch.cuda, "Stream", Stream)
    return modes


def test_a_warning_leaves_no_mode_behind(modes: list[str]) -> None:
    with pytest.raises(UserWarning, match="Synchronization debug mode"), refused_host_waits():
        pass
    assert modes == ["error", "default"]
    torch.cuda.Event().synchronize()


@pytest.mark.filterwarnings("ignore:Synchronization debug mode:UserWarning")
def test_this_thread_may_not_wait_and_others_may(modes: list[str]) -> None:
    event = torch.cuda.Event()
    with refused_host_waits():
        for wait in (event.synchronize, torch.cuda.Stream().synchronize, torch.cuda.synchronize):
            with pytest.raises(AssertionError, match="the host waits"):
                wait()
        other = threading.Thread(target=event.synchronize)
        other.start()
        other.join()
    assert event.waits == 1 and modes == ["error", "default"]
    event.synchronize()
    assert event.waits == 2
