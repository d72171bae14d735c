"""Puts tables and pictures of benchmarks/results/paper into README.md and pages of docs, each behind the comment that names it.

``<!-- table SECTION NUMBER: COLUMN; COLUMN -->`` names a section, which of its tables, and the columns to show (all if none is
named); ``<!-- picture NAME: WHAT IT SHOWS -->`` names a picture. Each goes from there to ``<!-- end -->``. What has not been
measured yet stays empty.
"""

from __future__ import annotations

import argparse
import json
import re
from pathlib import Path
from typing import Any

from command import RESULTS
from shared import table_lines

ROOT = Path(__file__).parents[2]
PAGES = (ROOT / "README.md", ROOT / "docs" / "results.md", ROOT / "docs" / "comparison.md")
PLACE = re.compile(r"(<!-- table (\w+) (\d+)(?:: (.*?))? -->\n).*?(<!-- end -->)", re.DOTALL)
PICTURE = re.compile(r"(<!-- picture (\w+): (.*?) -->\n).*?(<!-- end -->)", re.DOTALL)


def filled(page: str, sections: dict[str, Any]) -> str:
    """The page with the tables as they are in ``sections``."""

    def fill(place: re.Match[str]) -> str:
        start, name, number, columns, end = place.groups()
        tables = sections[name]["tables"] if name in sections else []
        if int(number) >= len(tables):
            return start + end
        rows = tables[int(number)]["rows"]
        shown = columns.split("; ") if columns else list(rows[0])
        return "\n".join([start, *table_lines(rows, shown), "", end])

    def show(place: re.Match[str]) -> str:
        start, name, shows, end = place.groups()
        there = (RESULTS / "paper" / f"{name}.png").exists()
        link = f"\n![{shows}](../benchmarks/results/paper/{name}.png)\n\n" if there else ""
        return start + link + end

    return PICTURE.sub(show, PLACE.sub(fill, page))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--results", type=Path, default=RESULTS / "paper", help="folder of results")
    parser.add_argument(
        "--pages", type=Path, nargs="+", default=PAGES, help="default: README.md, results.md, comparison.md"
    )
    args = parser.parse_args()
    sections = json.loads((args.results / "results.json").read_text())
    for page in args.pages:
        page.write_text(filled(page.read_text(), sections))


if __name__ == "__main__":
    main()
