"""What the benchmarks of all suites share: tables, the record of versions, and one file of results for a folder.

Each benchmark adds its section to ``results.json`` in the folder ``--out`` and writes ``results.md`` anew from all sections, so
that several benchmarks can fill one folder and each can run alone.
"""

from __future__ import annotations

import datetime
import json
import math
import platform
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import matplotlib
import matplotlib.ticker
import torch
import torch_geometric

import torch_gas

matplotlib.use("Agg")

RESULTS = Path(__file__).parent / "results"


def host() -> dict[str, str]:
    """The host and the versions that figures hold for."""
    return {
        "cpu": _cpu_name(),
        "cpu_threads": str(torch.get_num_threads()),
        "python": platform.python_version(),
        "torch": torch.__version__,
        "cuda": str(torch.version.cuda),
        "torch_geometric": torch_geometric.__version__,
        "torch_gas": torch_gas.__version__,
    }


def today() -> str:
    """The date, as results are marked with."""
    return datetime.date.today().isoformat()


def _cpu_name() -> str:
    info = Path("/proc/cpuinfo")
    lines = info.read_text().splitlines() if info.exists() else []
    return next((line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")), platform.machine())


def table(title: str, rows: Sequence[dict[str, Any]], note: str = "") -> dict[str, Any]:
    """A table of results: a dict for each row, all with the same keys, which name the columns and their units."""
    assert len(rows) > 0 and all(list(row) == list(rows[0]) for row in rows), title
    return {"title": title, "note": note, "rows": list(rows)}


def save_section(
    out: Path,
    heading: str,
    name: str,
    question: str,
    machine: dict[str, str],
    quick: bool,
    tables: Iterable[dict[str, Any]],
    shows: bool = True,
) -> None:
    """Writes the section ``name`` of ``results.json`` and all of ``results.md``, and prints the section unless more will come."""
    out.mkdir(parents=True, exist_ok=True)
    path = out / "results.json"
    sections = json.loads(path.read_text()) if path.exists() else {}
    sections[name] = {
        "question": " ".join(question.strip().split("\n\n")[0].split()),
        "machine": machine,
        "quick": quick,
        "tables": list(tables),
    }
    path.write_text(json.dumps(sections, indent=1, allow_nan=False, ensure_ascii=False) + "\n")
    (out / "results.md").write_text(f"# {heading}\n\n" + "\n".join(markdown(n, s, out) for n, s in sections.items()))
    if shows:
        print(markdown(name, sections[name], out), flush=True)


def markdown(name: str, section: dict[str, Any], out: Path) -> str:
    """A section as Markdown."""
    lines = [f"## {name}", "", section["question"], ""]
    if section["quick"]:
        lines += ["**A quick run: tiny sizes, whose figures say nothing.**", ""]
    lines += ["; ".join(f"{key} {value}" for key, value in section["machine"].items()), ""]
    for each in section["tables"]:
        lines += [f"### {each['title']}", "", *table_lines(each["rows"], list(each["rows"][0]))]
        lines += ["", each["note"], ""] if each["note"] else [""]
    lines += [f"![{picture.stem}]({picture.name})\n" for picture in sorted(out.glob(f"{name}*.png"))]
    return "\n".join(lines)


def table_lines(rows: Sequence[dict[str, Any]], columns: Sequence[str]) -> list[str]:
    """Columns of rows as the lines of a table in Markdown."""
    head = [f"| {' | '.join(columns)} |", f"|{'---|' * len(columns)}"]
    return head + [f"| {' | '.join(_cell(row[column]) for column in columns)} |" for row in rows]


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


def readable_log(axis: Any) -> None:
    """Labels 1, 2 and 5 of each decade on a logarithmic axis, as plain numbers."""
    axis.set_major_locator(matplotlib.ticker.LogLocator(subs=(1, 2, 5)))
    axis.set_major_formatter("{x:g}")
    axis.set_minor_formatter(matplotlib.ticker.NullFormatter())
