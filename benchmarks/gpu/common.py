"""What the GPU benchmarks share: arguments, the record of the machine, timing and memory; and what all benchmarks do."""

from __future__ import annotations

import argparse
import functools
import gc
import shutil
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any

import torch

sys.path.insert(0, str(Path(__file__).parents[1]))

from shared import RESULTS, host, save_picture, save_section, table, today

__all__ = ["NOT_ON_CPU", "copy_rates", "in_turn", "parse_args", "peak_memory", "save", "save_picture", "table"]

NOT_ON_CPU = "not measured on the CPU"

# -- arguments and the machine -----------------------------------------------------------------------------------------


def parse_args(question: str, models: Sequence[str] = ()) -> argparse.Namespace:
    """``--out``, ``--device`` and ``--quick``, and ``--models`` of those given; an error where the device is not there."""
    parser = argparse.ArgumentParser(description=question, formatter_class=argparse.RawDescriptionHelpFormatter)
    out = RESULTS / "gpu"
    parser.add_argument("--out", type=Path, default=out, help="folder of the results (default: benchmarks/results/gpu)")
    parser.add_argument("--device", default="cuda", choices=("cuda", "cpu"), help="cpu is a smoke run (default: cuda)")
    parser.add_argument("--quick", action="store_true", help="tiny sizes, whose figures say nothing")
    if models:
        parser.add_argument("--models", nargs="+", choices=models, default=models, help="default: all")
    args = parser.parse_args()
    if args.device == "cuda" and not torch.cuda.is_available():
        raise SystemExit("this benchmark measures a CUDA device, and there is none; --device cpu makes a smoke run")
    args.device = torch.device("cuda", torch.cuda.current_device()) if args.device == "cuda" else torch.device("cpu")
    return args


@functools.cache
def machine(device: torch.device) -> dict[str, str]:
    """The hardware and the versions that figures hold for."""
    record = {"date": today(), "device": "CPU only: a smoke run"}
    if device.type == "cuda":
        record["device"] = torch.cuda.get_device_name(device)
        fields = ("driver_version", "pcie.link.gen.max", "pcie.link.width.max", "memory.total")
        record |= {name: value for name, value in zip(fields, _nvidia_smi(device, fields), strict=True) if value}
    huge_pages = Path("/sys/kernel/mm/transparent_hugepage/enabled")
    record |= {"huge_pages": huge_pages.read_text().strip()} if huge_pages.exists() else {}
    return record | host()


def _nvidia_smi(device: torch.device, fields: Sequence[str]) -> list[str]:
    """What nvidia-smi tells of each field; empty where it tells nothing."""
    if shutil.which("nvidia-smi") is None:
        return [""] * len(fields)
    uuid = f"GPU-{torch.cuda.get_device_properties(device).uuid}"
    command = ["nvidia-smi", f"--id={uuid}", f"--query-gpu={','.join(fields)}", "--format=csv,noheader"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=60)
    values = [value.strip() for value in done.stdout.strip().split(",")]
    return values if done.returncode == 0 and len(values) == len(fields) else [""] * len(fields)


# -- timing ------------------------------------------------------------------------------------------------------------


def synchronize(device: torch.device) -> None:
    """Waits for all work on the device."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def seconds(step: Callable[[], object], device: torch.device) -> float:
    """Wall-clock time of one call, with nothing under way before it and everything done after it."""
    synchronize(device)
    start = time.perf_counter()
    step()
    synchronize(device)
    return time.perf_counter() - start


def in_turn(steps: dict[str, Callable[[], object]], repeats: int, device: torch.device) -> dict[str, float]:
    """Median seconds of each step, after two rounds of warm-up. They take turns: what slows the machine slows all."""
    times: dict[str, list[float]] = {name: [] for name in steps}
    for repeat in range(repeats + 2):
        for name, step in steps.items():
            elapsed = seconds(step, device)
            if repeat >= 2:
                times[name].append(elapsed)
    return {name: statistics.median(each) for name, each in times.items()}


def copy_rates(num_bytes: int, device: torch.device, repeats: int = 10) -> dict[str, float]:
    """Bytes a second of a plain copy between pinned host memory and the device, each way alone and both at once."""
    hosts = [torch.empty(num_bytes, dtype=torch.uint8, pin_memory=device.type == "cuda").fill_(1) for _ in range(2)]
    there = [torch.empty(num_bytes, dtype=torch.uint8, device=device).fill_(1) for _ in range(2)]
    side = torch.cuda.Stream(device) if device.type == "cuda" else None

    def both() -> None:
        with torch.cuda.stream(side):
            there[0].copy_(hosts[0], non_blocking=True)
        hosts[1].copy_(there[1], non_blocking=True)

    median = in_turn(
        {
            "to the device": lambda: there[0].copy_(hosts[0], non_blocking=True),
            "to the host": lambda: hosts[1].copy_(there[1], non_blocking=True),
            "both at once, each": both,
        },
        repeats,
        device,
    )
    return {name: num_bytes / each for name, each in median.items()}


# -- memory ------------------------------------------------------------------------------------------------------------


def peak_memory(run: Callable[[], Any], device: torch.device) -> int | str:
    """Peak bytes that torch's allocator holds while ``run`` makes its tensors and steps; what held before does not count.

    A run that does not fit the device is a result as well: ``"out of memory"``.
    """
    if device.type != "cuda":
        run()
        return NOT_ON_CPU
    torch.ones(16, 16, device=device) @ torch.ones(
        16, 16, device=device
    )  # the workspace of cuBLAS belongs to neither side
    gc.collect()
    torch.cuda.empty_cache()
    torch.cuda.reset_peak_memory_stats(device)
    before = torch.cuda.memory_allocated(device)
    try:
        run()
        torch.cuda.synchronize(device)
    except torch.cuda.OutOfMemoryError:
        return "out of memory"
    return torch.cuda.max_memory_allocated(device) - before


# -- results -----------------------------------------------------------------------------------------------------------


def save(
    out: Path,
    name: str,
    question: str,
    device: torch.device,
    quick: bool,
    tables: Iterable[dict[str, Any]],
    shows: bool = True,
) -> None:
    """Adds the section ``name``, or what there is of it, to the results in ``out``, and prints it unless more will come."""
    save_section(out, "Results on a GPU", name, question, machine(device), quick, tables, shows)
