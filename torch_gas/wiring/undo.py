"""What a call changes for as long as it runs, and how it is put back whenever the call ends."""

from __future__ import annotations

import sys
import threading
from collections import OrderedDict
from collections.abc import Callable
from traceback import walk_stack
from types import FrameType
from typing import Any, cast

import torch
from torch.nn import Module
from torch.utils.hooks import RemovableHandle

from torch_gas._util.tracing import untraced


class Undo:
    """A log of steps that undo changes, which are run in reverse order when it is left.

    A step is noted before the change that it undoes is made, and forgotten after it has run; it does nothing where there is
    nothing to undo. Ctrl-C that comes while the log is left is raised after the rest has been undone. What is left even so,
    because it came again, stays in the log, and the next call of the model finishes it.

    Args:
        frame: of the call whose changes it holds.
    """

    @untraced
    def __init__(self, frame: FrameType | None = None) -> None:
        self._frame, self._thread = frame, threading.get_ident()
        self._steps: list[tuple[Callable[..., Any], tuple[Any, ...]]] = []

    @untraced
    def __enter__(self) -> Undo:
        return self

    @untraced
    def __exit__(self, *error: object) -> None:
        try:
            self._run()
        finally:
            self._run()  # the rest, where Ctrl-C came in between

    def _run(self) -> None:
        while self._steps:
            step, args = self._steps[-1]
            step(*args)
            self._steps.pop()
        self._frame = None  # which holds the log

    @property
    def is_elsewhere(self) -> bool:
        """Whether the call is under way in another thread."""
        return bool(self._steps) and self._thread != threading.get_ident()

    def finish(self) -> None:
        """Undoes what a call that is over has left; gradients are computed afterwards where they were before."""
        if not self._steps or self.is_elsewhere:  # Ctrl-C ends no call in another thread
            return
        if all(frame is not self._frame for frame, _ in walk_stack(sys._getframe())):  # else it is still under way
            with torch.set_grad_enabled(torch.is_grad_enabled()):
                self._run()

    def add(self, step: Callable[..., Any], *args: Any) -> None:
        """Notes ``step(*args)``, which may run more than once."""
        self._steps.append((step, args))

    def set(self, owner: object, name: str, value: Any) -> None:
        """Sets an attribute of one instance."""
        own = vars(owner)
        if name in own:
            self.add(own.update, {name: own[name]})
        else:
            self.add(own.pop, name, None)
        own[name] = value

    # Hooks are registered by hand: torch returns the handle, which is to be noted, after the hook is there.

    def hook_before(self, module: Module, hook: Callable[..., Any]) -> None:
        """Registers a forward pre-hook with keyword arguments."""
        with_kwargs = module._forward_pre_hooks_with_kwargs
        handle = RemovableHandle(module._forward_pre_hooks, extra_dict=with_kwargs)
        self.add(handle.remove)
        with_kwargs[handle.id] = True
        module._forward_pre_hooks[handle.id] = hook

    def hook_before_all(self, hook: Callable[[Module, tuple[Any, ...]], None]) -> None:
        """Registers a forward pre-hook of all modules there are, those in other threads included."""
        hooks = torch.nn.modules.module._global_forward_pre_hooks
        handle = RemovableHandle(hooks)
        self.add(handle.remove)
        hooks[handle.id] = hook

    def hook_after(self, module: Module, hook: Callable[..., Any], prepend: bool = False) -> None:
        """Registers a forward hook."""
        handle = RemovableHandle(module._forward_hooks)
        self.add(handle.remove)
        module._forward_hooks[handle.id] = hook
        if prepend:
            cast("OrderedDict[int, Any]", module._forward_hooks).move_to_end(handle.id, last=False)
