"""``python -m conformance``: measures all cases and prints a page about them."""

from __future__ import annotations

import argparse
import sys
import warnings
from collections.abc import Sequence
from itertools import product
from pathlib import Path

from tqdm import tqdm

from conformance.graph import FORMATS, formats
from conformance.layers import CASES, class_of
from conformance.measure import WIRINGS, measure
from conformance.page import DTYPES, Key, Results, counts, page


def main(args: Sequence[str] | None = None) -> int:
    """Runs the command; returns its exit status, 1 if anything is WRONG."""
    parser = argparse.ArgumentParser("python -m conformance", description=__doc__)
    parser.add_argument("--layers", help="classes, separated by commas; all by default")
    parser.add_argument("--formats", help=f"of {','.join(FORMATS)}; all that are installed by default")
    parser.add_argument("--output", type=Path, help="file for the page, instead of printing it")
    given = parser.parse_args(args)

    layers = _chosen(parser, "--layers", given.layers, list(dict.fromkeys(map(class_of, CASES))))
    columns = _chosen(parser, "--formats", given.formats, list(formats()))
    names = [name for name in CASES if class_of(name) in layers]

    keys = [Key(*key) for key in product(WIRINGS, names, columns, DTYPES)]
    results: Results = {}
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "Sparse (CSR tensor support|invariant checks)")
        warnings.filterwarnings("ignore", ".*inference computes all layers")  # which is exact as well
        for key in tqdm(keys, "measurements", leave=False):
            results[key] = measure(CASES[key.name], key.wiring, key.fmt, key.dtype)

    text = page(results, columns, [fmt for fmt in FORMATS if fmt not in formats() and given.formats is None])
    if given.output is None:
        print(text)
    else:
        given.output.write_text(text, encoding="utf-8")
    wrong = [(key, result) for key, result in results.items() if result.outcome == "WRONG"]
    for key, result in wrong:
        print(f"WRONG: {key.name}, {key.wiring}, {key.fmt}, {key.dtype}: {result.message or result.errors}")
    print(counts(results))
    return 1 if wrong else 0


def _chosen(parser: argparse.ArgumentParser, option: str, value: str | None, known: list[str]) -> list[str]:
    if value is None:
        return known
    chosen = value.split(",")
    unknown = [name for name in chosen if name not in known]
    if unknown:
        parser.error(f"{option}: {', '.join(unknown)} is not one of {', '.join(known)}")
    return chosen


if __name__ == "__main__":
    sys.exit(main())
