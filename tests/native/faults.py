"""Plants faults in csrc/cuda and torch_gas/transfer, one at a time, and tells which of them tests find.

Each is a change of the text that leaves it compiling: an event, a check or an offset is missing or another one. All must be
found: those of csrc/cuda on the emulated device, by a wrong result, an error or a report of a sanitizer, those of
torch_gas/transfer by its tests on lanes of their own or by models on the emulated device.
"""

from __future__ import annotations

import argparse
import shutil
import sys
import tempfile
from pathlib import Path
from typing import NamedTuple

import emulated
from compiling import ADDRESS, ROOT, THREAD, run

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib

SEEDS = 4  # one of each eagerness of the device


class Fault(NamedTuple):
    """A change of a file.

    Args:
        name: what is wrong.
        file: of csrc/cuda, or of torch_gas/transfer.
        old: text that occurs in it.
        new: what stands there instead.
        occurrence: which of several places, from 0.
    """

    name: str
    file: str
    old: str
    new: str = ""
    occurrence: int = 0

    @property
    def in_python(self) -> bool:
        """Whether it is one of the transfer engine."""
        return self.file.endswith(".py")


def load() -> list[Fault]:
    """All faults of faults.toml."""
    return [Fault(**entry) for entry in tomllib.loads((emulated.HERE / "faults.toml").read_text())["fault"]]


def plant(fault: Fault, folder: Path) -> None:
    """Makes ``folder`` a copy of the source with the fault in it."""
    source = ROOT / ("torch_gas" if fault.in_python else "csrc")
    tree = folder / source.name
    shutil.rmtree(tree, ignore_errors=True)
    shutil.copytree(source, tree)
    path = tree / ("transfer" if fault.in_python else "cuda") / fault.file
    pieces = path.read_text().split(fault.old)
    if len(pieces) < fault.occurrence + 2:
        raise SystemExit(f"{fault.name}: {fault.file} has no such text any more; change the fault with it")
    at = fault.occurrence + 1
    path.write_text(fault.old.join(pieces[:at]) + fault.new + fault.old.join(pieces[at:]))


def finder(fault: Fault, folder: Path) -> str | None:
    """What finds the fault, if anything does."""
    plant(fault, folder)
    cache = ROOT / "build" / "faults"
    if fault.in_python:
        pytest = Path(sys.executable).with_name("pytest")  # unlike `python -m pytest`, it does not look in this folder
        tests = (pytest, "-qx", "-n0", "-p", "no:cacheprovider", ROOT / "tests" / "transfer")
        if run(*tests, PYTHONPATH=str(folder), OMP_NUM_THREADS="1").returncode:
            return "lanes"
        library = emulated.module(folder / "core.so", THREAD, cache=cache)
        return "engine" if emulated.engine_failure(library, THREAD, SEEDS, "--package", str(folder)) else None
    for sanitizer in (THREAD, ADDRESS):
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
            by = finder(fault, Path(folder))
            found += by is not None
            print(f"{f'found ({by})' if by else 'NOT FOUND':26} {fault.file:10} {fault.name}", flush=True)
    print(f"{found} of {len(chosen)} faults found")
    if found < len(chosen):
        raise SystemExit(1)


if __name__ == "__main__":
    main()
