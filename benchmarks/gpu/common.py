"""What the benchmarks share: arguments, the record of the machine, timing, memory, and one file of results for all.

Each benchmark adds its section to ``results.json`` in the folder ``--out`` and writes ``results.md`` anew from all sections, so
that several benchmarks can fill one folder and each can run alone.
"""

from __future__ import annotations

import argparse
import datetime
import gc
import json
import math
import platform
import shutil
import statistics
import subprocess
import time
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any

import matplotlib
import torch
import torch_geometric

import torch_gas

matplotlib.use("Agg")

NOT_ON_CPU = "not measured on the CPU"
HERE = Path(__file__).parent

# -- arguments and the machine -----------------------------------------------------------------------------------------


def parse_args(question: str) -> argparse.Namespace:
    """``--out``, ``--device`` and ``--quick``; an error where the device is not there."""
    parser = argparse.ArgumentParser(description=question, formatter_class=argparse.RawDescriptionHelpFormatter)
    out = HERE.parent / "results" / "gpu"
    parser.add_argument("--out", type=Path, default=out, help="folder of the results (default: benchmarks/results/gpu)")
    parser.add_argument("--device", default="cuda", choices=("cuda", "cpu"), help="cpu is a smoke run (default: cuda)")
    parser.add_argument("--quick", action="store_true", help="tiny sizes, whose figures say nothing")
    args = parser.parse_args()
    if args.device == "cuda" and not torch.cuda.is_available():
        raise SystemExit("this benchmark measures a CUDA device, and there is none; --device cpu makes a smoke run")
    args.device = torch.device("cuda", torch.cuda.current_device()) if args.device == "cuda" else torch.device("cpu")
    return args


def machine(device: torch.device) -> dict[str, str]:
    """The hardware and the versions that figures hold for."""
    record = {"date": datetime.date.today().isoformat(), "device": "CPU only: a smoke run"}
    if device.type == "cuda":
        record["device"] = torch.cuda.get_device_name(device)
        fields = ("driver_version", "pcie.link.gen.max", "pcie.link.width.max", "memory.total")
        record |= {name: value for name, value in zip(fields, _nvidia_smi(device, fields), strict=True) if value}
    return {
        **record,
        "cpu": _cpu_name(),
        "cpu_threads": str(torch.get_num_threads()),
        "python": platform.python_version(),
        "torch": torch.__version__,
        "cuda": str(torch.version.cuda),
        "torch_geometric": torch_geometric.__version__,
        "torch_gas": torch_gas.__version__,
    }


def _nvidia_smi(device: torch.device, fields: Sequence[str]) -> list[str]:
    """What nvidia-smi tells of each field; empty where it tells nothing."""
    if shutil.which("nvidia-smi") is None:
        return [""] * len(fields)
    uuid = f"GPU-{torch.cuda.get_device_properties(device).uuid}"
    command = ["nvidia-smi", f"--id={uuid}", f"--query-gpu={','.join(fields)}", "--format=csv,noheader"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=60)
    values = [value.strip() for value in done.stdout.strip().split(",")]
    return values if done.returncode == 0 and len(values) == len(fields) else [""] * len(fields)


def _cpu_name() -> str:
    info = Path("/proc/cpuinfo")
    lines = info.read_text().splitlines() if info.exists() else []
    return next((line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")), platform.machine())


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


def table(title: str, rows: Sequence[dict[str, Any]], note: str = "") -> dict[str, Any]:
    """A table of results: a dict for each row, all with the same keys, which name the columns and their units."""
    assert len(rows) > 0 and all(list(row) == list(rows[0]) for row in rows), title
    return {"title": title, "note": note, "rows": list(rows)}


def save(
    out: Path, name: str, question: str, device: torch.device, quick: bool, tables: Iterable[dict[str, Any]]
) -> None:
    """Writes the section ``name`` of ``results.json`` and all of ``results.md``, and prints the section."""
    out.mkdir(parents=True, exist_ok=True)
    path = out / "results.json"
    sections = json.loads(path.read_text()) if path.exists() else {}
    sections[name] = {
        "question": " ".join(question.strip().split("\n\n")[0].split()),
        "machine": machine(device),
        "quick": quick,
        "tables": list(tables),
    }
    path.write_text(json.dumps(sections, indent=1, allow_nan=False, ensure_ascii=False) + "\n")
    (out / "results.md").write_text(
        "# Results on a GPU\n\n" + "\n".join(markdown(n, s, out) for n, s in sections.items())
    )
    print(markdown(name, sections[name], out), flush=True)


def markdown(name: str, section: dict[str, Any], out: Path) -> str:
    """A section as Markdown."""
    lines = [f"## {name}", "", section["question"], ""]
    if section["quick"]:
        lines += ["**A quick run: tiny sizes, whose figures say nothing.**", ""]
    lines += ["; ".join(f"{key} {value}" for key, value in section["machine"].items()), ""]
    for each in section["tables"]:
        columns = list(each["rows"][0])
        lines += [f"### {each['title']}", "", f"| {' | '.join(columns)} |", f"|{'---|' * len(columns)}"]
        lines += [f"| {' | '.join(_cell(row[column]) for column in columns)} |" for row in each["rows"]]
        lines += ["", each["note"], ""] if each["note"] else [""]
    lines += [f"![{picture.stem}]({picture.name})\n" for picture in sorted(out.glob(f"{name}*.png"))]
    return "\n".join(lines)


def _cell(value: Any) -> str:
    if not isinstance(value, float):
        return f"{value:,}" if isinstance(value, int) else str(value)
    digits = 2 - math.floor(math.log10(abs(value))) if value else 0
    return f"{value:,.{min(max(digits, 0), 6)}f}"


def save_picture(figure: Any, out: Path, name: str) -> None:
    """Writes a picture beside the results."""
    out.mkdir(parents=True, exist_ok=True)
    figure.savefig(out / f"{name}.png", dpi=130)
    matplotlib.pyplot.close(figure)
