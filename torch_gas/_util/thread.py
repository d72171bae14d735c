"""A thread that makes calls beside the main one, and is never waited for in vain.

Locks that are written in Python, as those of `threading.Condition` and so of `concurrent.futures`, stay taken where Ctrl-C comes
while they are being taken. A thread that asks for one then waits forever, and whoever waits for the thread does, too. Queues of
the interpreter itself, of which this is made, cannot be interrupted in the middle.
"""

from __future__ import annotations

import os
import weakref
from _thread import get_ident, start_new_thread
from collections.abc import Callable
from contextlib import suppress
from queue import Empty, SimpleQueue
from typing import Any, Generic, TypeVar

T = TypeVar("T")


def check_process(process: int) -> None:
    """Raises RuntimeError in another process than that which has the threads, and the worker processes, that work is left to."""
    if os.getpid() != process:
        raise RuntimeError(
            f"this is under way in process {process}, of which this one ({os.getpid()}) is a fork, and forks have none of its "
            "threads and workers: begin anew in this process (iter(loader) for batches, a model that was made here)"
        )


class Task(Generic[T]):
    """A call that a worker makes. A fork of its process can take its result only if it is there."""

    def __init__(self, call: Callable[[], T]) -> None:
        self._call: Callable[[], T] | None = call
        self._value: T | None = None
        self._error: BaseException | None = None
        self._ended: SimpleQueue[None] = SimpleQueue()
        self._process = os.getpid()

    def run(self) -> None:
        """Makes the call."""
        assert self._call is not None
        try:
            self._value = self._call()
        except BaseException as error:
            self._error = error
        self._call = None
        self._ended.put(None)

    @property
    def is_done(self) -> bool:
        """Whether the call has ended."""
        return self._call is None

    @property
    def value(self) -> T | None:
        """What the call returned; None as long as it has not, or if it failed."""
        return self._value if self.is_done else None

    def result(self) -> T:
        """Waits for the call, and returns what it returned or raises what it raised."""
        while not self.is_done:
            check_process(self._process)
            self._ended.get()
        if self._error is not None:
            raise self._error
        return self._value  # type: ignore[return-value]  # which is a T now


class Worker:
    """Makes calls in their order, in a thread of its own.

    It is closed when nobody holds it any more, and when the process ends.
    """

    def __init__(self) -> None:
        self._tasks: SimpleQueue[Task[Any] | None] = SimpleQueue()
        ended: SimpleQueue[None] = SimpleQueue()
        thread = start_new_thread(_run, (self._tasks, ended))
        self.close = weakref.finalize(self, _close, self._tasks, ended, thread, os.getpid())
        """Waits for the call under way; those that have not begun are not made, and nobody may wait for them."""

    def submit(self, call: Callable[[], T]) -> Task[T]:
        """Has ``call`` made after those before."""
        task = Task(call)
        self._tasks.put(task)
        return task


def _run(tasks: SimpleQueue[Task[Any] | None], ended: SimpleQueue[None]) -> None:
    while (task := tasks.get()) is not None:
        task.run()
        del task  # nobody else may hold what it returned
    ended.put(None)


def _close(tasks: SimpleQueue[Task[Any] | None], ended: SimpleQueue[None], thread: int, process: int) -> None:
    if os.getpid() != process:  # a fork has no threads
        return
    with suppress(Empty):
        while True:
            tasks.get_nowait()
    tasks.put(None)
    if get_ident() != thread:  # where the worker is forgotten by chance
        ended.get()
