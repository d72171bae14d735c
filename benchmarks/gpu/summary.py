"""One table of what a run of run.sh measured, beside what predictions.py expects: to be pasted as it is.

    python benchmarks/gpu/summary.py benchmarks/results/gpu

Stages that were cut have the figures that they saved, and the others none.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from predictions import Machine, link_rate

SIZES = (64, 128, 256, 1024)  # bytes of a row
PREDICTED = ", predicted "


def pairs(row: dict[str, Any]) -> Iterator[tuple[str, str, Any, Any]]:
    """Name, unit, prediction and measurement of each figure of a row that has both."""
    for key, predicted in row.items():
        name, found, unit = key.partition(PREDICTED)
        measured = row.get(f"{name}, {unit}")
        if found and measured is not None:
            yield name, unit, predicted, measured


def figures(sections: dict[str, Any]) -> Iterator[tuple[str, str, str, Any, Any]]:
    """Section, figure, unit, prediction and measurement."""

    def tables(name: str) -> list[list[dict[str, Any]]]:
        return [each["rows"] for each in sections[name]["tables"]] if name in sections else []

    for direction, rows in zip(("pull", "push"), tables("rows"), strict=False):
        for row in rows:
            if row["bytes a row"] in SIZES and row["table"] == "float32":
                for way, *rest in pairs(row):
                    yield "rows", f"{direction}, rows of {row['bytes a row']} bytes, {way}", *rest
    for name in ("step", "step_others"):
        for rows in tables(name):
            for row in rows:
                what = ""
                if "model" in row:
                    what = f"{row['model']}, S / B = {row['S / B']:.2f}"
                elif "adjacency" in row:
                    what = f"GCN over {row['adjacency']}"
                elif name == "step":
                    link = link_rate(Machine()) / 1e9
                    yield name, "copy to the device", "GB/s", link, row["to the device, GB/s"]
                    yield name, "copy to the host", "GB/s", link, row["to the host, GB/s"]
                for place, *rest in pairs(row):
                    yield name, f"{what}, {place}", *rest
    for rows in tables("memory")[:1]:
        least, most = rows[0], rows[-1]
        for figure, *rest in pairs(most):
            yield "memory", f"N = {most['N']:,}, {figure}", *rest
        host, predicted = "histories in host memory, MiB", most["histories in host memory, predicted growth"]
        if not any(isinstance(row[host], str) for row in (least, most)):
            figure = f"memory with histories in host memory, by that of N = {least['N']:,}"
            yield "memory", f"N = {most['N']:,}, {figure}", "times", predicted, most[host] / least[host]
    for rows in tables("beside"):
        for row in rows:
            for figure, *rest in pairs(row):
                yield "beside", f"{row.get('way', 'made anew')}, {figure}", *rest
    for rows in tables("small"):
        for row in rows:
            for figure, *rest in pairs(row):
                yield "small", f"{row['as large as']}, {figure}", *rest


def lines(sections: dict[str, Any]) -> Iterator[str]:
    """The table in Markdown, below the machine that it holds for."""
    machine = next((section["machine"] for section in sections.values()), {})
    yield "; ".join(f"{key} {value}" for key, value in machine.items()) or "nothing was measured"
    if any(section["quick"] for section in sections.values()):
        yield "\n**A quick run: tiny sizes, whose figures say nothing.**"
    yield "\n| stage | figure | unit | predicted | measured | measured / predicted |\n|---|---|---|---|---|---|"
    for stage, figure, unit, predicted, measured in figures(sections):
        known = isinstance(measured, int | float)
        shown, ratio = (f"{measured:.4g}", f"{measured / predicted:.2f}") if known else (measured, "")
        yield f"| {stage} | {figure} | {unit} | {predicted:.4g} | {shown} | {ratio} |"


def main() -> None:
    path = Path(sys.argv[1], "results.json")
    print("\n".join(lines(json.loads(path.read_text()) if path.exists() else {})))


if __name__ == "__main__":
    main()
