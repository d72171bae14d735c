"""Calls that a thread makes, and how it ends."""

from __future__ import annotations

import gc
import os
import subprocess
import sys
import threading
import time
from queue import SimpleQueue

import pytest

from torch_gas._util.thread import Worker


def test_calls_are_made_in_their_order_in_one_other_thread() -> None:
    worker, made = Worker(), []
    tasks = [worker.submit(lambda number=number: (made.append(number), threading.get_ident())) for number in range(50)]
    threads = {task.result()[1] for task in tasks}
    assert made == list(range(50)) and len(threads) == 1 and threading.get_ident() not in threads
    worker.close()


def test_errors_arrive() -> None:
    worker = Worker()
    task = worker.submit(lambda: {}["no such key"])
    for _ in range(2):
        with pytest.raises(KeyError, match="no such key"):
            task.result()
    assert task.is_done and task.value is None
    assert worker.submit(lambda: 3).result() == 3


def test_closing_waits_for_the_call_under_way_only() -> None:
    worker, go, begun = Worker(), SimpleQueue(), SimpleQueue()
    first = worker.submit(lambda: (begun.put(None), go.get()))
    second = worker.submit(lambda: 2)
    assert not first.is_done and first.value is None
    begun.get()
    threading.Timer(0.05, go.put, [1]).start()
    worker.close()
    worker.close()
    assert first.is_done and not second.is_done


def test_a_worker_that_is_forgotten_is_closed() -> None:
    worker, begun, made = Worker(), SimpleQueue(), []
    worker.submit(lambda: (begun.put(None), time.sleep(0.05), made.append(1)))
    worker.submit(lambda: made.append(2))
    begun.get()
    close = worker.close
    del worker
    gc.collect()
    assert made == [1] and not close.alive


def test_a_worker_may_be_forgotten_by_its_own_call() -> None:
    workers = [Worker()]
    task = workers[0].submit(workers.clear)
    task.result()
    assert task.is_done and not workers


CODE = """
import os, sys, time
from queue import SimpleQueue
from torch_gas._util.thread import Worker
worker, begun = Worker(), SimpleQueue()
task = worker.submit(lambda: (begun.put(None), time.sleep(0.1), print("made", flush=True)))
begun.get()
if sys.argv[1] == "fork":
    task.result()
if sys.argv[1] == "fork" and os.fork() > 0:
    assert os.wait()[1] == 0
    os._exit(0)
elif sys.argv[1] == "fork":
    worker.close()
"""


@pytest.mark.slow
@pytest.mark.parametrize("how", ["exit", "fork"])
@pytest.mark.skipif(not hasattr(os, "fork"), reason="needs fork")
def test_processes_end(how: str) -> None:
    done = subprocess.run([sys.executable, "-c", CODE, how], capture_output=True, text=True, timeout=60)
    assert (done.returncode, done.stdout) == (0, "made\n"), done.stderr
