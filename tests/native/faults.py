"""Plants faults in csrc/cuda, one at a time, and tells which of them the emulated runtime finds.

Each is a change of the text that leaves it compiling: an event, a check or an offset is missing or another one. All must be
found, by a wrong result, an error or a report of a sanitizer: `python tests/native/faults.py`. Names of faults run these alone.
"""

from __future__ import annotations

import argparse
import shutil
import sys
import tempfile
from pathlib import Path
from typing import NamedTuple

import emulated
from compiling import ADDRESS, ROOT, THREAD

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib

SEEDS = 4  # one of each eagerness of the device


class Fault(NamedTuple):
    """A change of a file of csrc/cuda.

    Args:
        name: what is wrong.
        file: of csrc/cuda.
        old: text that occurs in it.
        new: what stands there instead.
        occurrence: which of several places, from 0.
    """

    name: str
    file: str
    old: str
    new: str = ""
    occurrence: int = 0


def load() -> list[Fault]:
    """All faults of faults.toml."""
    return [Fault(**entry) for entry in tomllib.loads((emulated.HERE / "faults.toml").read_text())["fault"]]


def plant(fault: Fault, tree: Path) -> None:
    """Makes ``tree`` a copy of csrc with the fault in it."""
    shutil.rmtree(tree, ignore_errors=True)
    shutil.copytree(ROOT / "csrc", tree)
    path = tree / "cuda" / fault.file
    pieces = path.read_text().split(fault.old)
    if len(pieces) < fault.occurrence + 2:
        raise SystemExit(f"{fault.name}: {fault.file} has no such text any more; change the fault with it")
    at = fault.occurrence + 1
    path.write_text(fault.old.join(pieces[:at]) + fault.new + fault.old.join(pieces[at:]))


def finder(fault: Fault, folder: Path) -> str | None:
    """The sanitizer with which the fault is found, if it is."""
    plant(fault, folder / "csrc")
    for sanitizer in (THREAD, ADDRESS):
        cache = ROOT / "build" / "faults"
        program = emulated.program(folder / "program", sanitizer, folder / "csrc", cache)
        if emulated.failure(program, SEEDS) is not None:
            return sanitizer
    return None


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("names", nargs="*", help="parts of names of faults (default: all)")
    args = parser.parse_args()
    chosen = [fault for fault in load() if not args.names or any(name in fault.name for name in args.names)]
    found = 0
    with tempfile.TemporaryDirectory() as folder:
        for fault in chosen:
            sanitizer = finder(fault, Path(folder))
            found += sanitizer is not None
            print(f"{f'found ({sanitizer})' if sanitizer else 'NOT FOUND':26} {fault.file:10} {fault.name}", flush=True)
    print(f"{found} of {len(chosen)} faults found")
    if found < len(chosen):
        raise SystemExit(1)


if __name__ == "__main__":
    main()
