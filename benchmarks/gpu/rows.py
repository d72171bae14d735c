"""How fast do pull and push move rows between pinned host memory and a GPU, beside a plain pinned copy of as many bytes?

Each figure is the median of repeated runs between CUDA events, after a warm-up; the copy is measured in the same process, in turn
with what is compared to it. Writes JSON with the hardware and versions, and prints a table.
"""

import argparse
import json
import platform
import statistics
from collections.abc import Callable
from pathlib import Path

import torch

import torch_gas
from torch_gas import _core

ROW_BYTES = (64, 256, 512, 1024, 4096)
TABLE_BYTES = 2**31
MOVED_BYTES = 2**28
REPEATS = 20


def seconds(step: Callable[[], object]) -> float:
    """Time of one call on the current stream."""
    start, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
    start.record()
    step()
    end.record()
    end.synchronize()
    return start.elapsed_time(end) / 1e3


def compare(steps: dict[str, Callable[[], object]]) -> dict[str, float]:
    """Median seconds of each step, all of them in turn."""
    times: dict[str, list[float]] = {name: [] for name in steps}
    for repeat in range(REPEATS + 3):
        for name, step in steps.items():
            elapsed = seconds(step)
            if repeat >= 3:
                times[name].append(elapsed)
    return {name: statistics.median(each) for name, each in times.items()}


def measure(row_bytes: int) -> dict[str, float]:
    """Bandwidths in GB/s for rows of one size."""
    width, moved = row_bytes // 4, MOVED_BYTES // row_bytes
    table = torch.zeros(TABLE_BYTES // row_bytes, width, pin_memory=True)
    rows = torch.empty(moved, width, device="cuda")
    index = torch.randperm(table.size(0))[:moved].sort().values.cuda()
    offset = torch.arange(0, table.size(0), table.size(0) // 16)[:16]
    count = torch.full((16,), moved // 16)
    pushed = rows[: int(count.sum())]
    median = compare(
        {
            "copy to device": lambda: rows.copy_(table[:moved], non_blocking=True),
            "pull": lambda: _core.gather_rows(table, index, out=rows),
            "copy to host": lambda: table[:moved].copy_(rows, non_blocking=True),
            "push": lambda: _core.write_chunks(table, offset, count, pushed),
        }
    )
    return {name: MOVED_BYTES / median[name] / 1e9 for name in median}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--out", type=Path, default=Path("benchmarks/results/gpu/rows.json"))
    args = parser.parse_args()
    if not torch.cuda.is_available():
        raise SystemExit("this benchmark needs a CUDA device")
    result = {
        "gpu": torch.cuda.get_device_name(),
        "machine": platform.platform(),
        "torch": torch.__version__,
        "cuda": torch.version.cuda,
        "torch_gas": torch_gas.__version__,
        "bandwidth in GB/s by bytes a row": {},
    }
    for row_bytes in ROW_BYTES:
        rates = measure(row_bytes)
        result["bandwidth in GB/s by bytes a row"][row_bytes] = rates
        pull = rates["pull"] / rates["copy to device"]
        push = rates["push"] / rates["copy to host"]
        print(
            f"{row_bytes:5d} B/row: pull {rates['pull']:6.1f} GB/s ({pull:.0%} of a copy), "
            f"push {rates['push']:6.1f} GB/s ({push:.0%} of a copy)"
        )
    args.out.parent.mkdir(parents=True, exist_ok=True)
    args.out.write_text(json.dumps(result, indent=2) + "\n")


if __name__ == "__main__":
    main()
