"""What the benchmarks on the CPU share: arguments, the record of the machine, and processes whose memory is measured."""

from __future__ import annotations

import argparse
import ctypes
import gc
import multiprocessing
import os
import re
import sys
from collections.abc import Callable, Iterable
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path
from typing import Any, ParamSpec, TypeVar

import torch

sys.path.insert(0, str(Path(__file__).parents[1]))

from shared import RESULTS, host, save_section, today

P, T = ParamSpec("P"), TypeVar("T")


# -- arguments and results ---------------------------------------------------------------------------------------------


def arguments(question: str) -> argparse.ArgumentParser:
    """``--out``, ``--quick`` and ``--threads``."""
    parser = argparse.ArgumentParser(description=question, formatter_class=argparse.RawDescriptionHelpFormatter)
    out = RESULTS / "cpu"
    parser.add_argument("--out", type=Path, default=out, help="folder of the results (default: benchmarks/results/cpu)")
    parser.add_argument("--quick", action="store_true", help="tiny sizes, whose figures say nothing")
    parser.add_argument("--threads", type=int, help="threads of torch (default: 2, or 1 in a quick run)")
    return parser


def parse(parser: argparse.ArgumentParser) -> argparse.Namespace:
    """The arguments; torch takes the number of threads."""
    args = parser.parse_args()
    args.threads = args.threads or (1 if args.quick else 2)
    torch.set_num_threads(args.threads)
    return args


def machine() -> dict[str, str]:
    """Date, load, hardware and versions; to be asked for before anything is measured."""
    return {"date": today(), "load": f"{os.getloadavg()[0]:.2f}", **host()}


def save(
    args: argparse.Namespace, name: str, question: str, record: dict[str, str], tables: Iterable[dict[str, Any]]
) -> None:
    """Adds the section ``name`` to the results in ``args.out``, and prints it."""
    save_section(args.out, "Results on a CPU", name, question, record, args.quick, tables)


# -- memory ------------------------------------------------------------------------------------------------------------


def apart(function: Callable[P, T], *args: P.args, **kwargs: P.kwargs) -> T:
    """The result of a call in a new process with as many threads, in which no earlier call left memory behind.

    It is forked from one that has done nothing but import the library.
    """
    context, threads = multiprocessing.get_context("forkserver"), torch.get_num_threads()
    context.set_forkserver_preload(["torch_gas"])
    with ProcessPoolExecutor(1, context, torch.set_num_threads, (threads,)) as pool:
        return pool.submit(function, *args, **kwargs).result()


def peak_memory() -> int:
    """The most bytes of physical memory that this process has held since it started, or since ``Peak`` was entered."""
    return _status("VmHWM")


class Peak:
    """While entered, finds the most bytes of physical memory that this process holds, beyond those that it held before.

    Linux keeps the highest resident size of a process, whoever allocates, and sets it back when asked to.
    """

    bytes: int

    def __enter__(self) -> Peak:
        gc.collect()
        ctypes.CDLL(None).malloc_trim(0)  # what was freed and not given back would hide as much
        Path("/proc/self/clear_refs").write_text("5")
        self._before = _status("VmRSS")
        return self

    def __exit__(self, *_: object) -> None:
        self.bytes = max(peak_memory() - self._before, 0)


def _status(field: str) -> int:
    status = Path("/proc/self/status")
    if not status.exists():
        raise SystemExit("this benchmark measures memory, which it can do on Linux only")
    (kilobytes,) = re.findall(rf"^{field}:\s+(\d+) kB$", status.read_text(), re.MULTILINE)
    return 1024 * int(kilobytes)
