"""Plants faults in the code that moves rows to and from a GPU, one at a time, and tells which of them tests find.

Each is a change of the text that leaves it compiling: an event, a check or an offset is missing or another one. All must be
found: those of csrc on the emulated device, by a wrong result, an error or a report of a sanitizer; those of the package by
tests/transfer, on lanes of their own, or by models on the emulated device; others by the tests that they name.
"""

from __future__ import annotations

import argparse
import shutil
import sys
import tempfile
from functools import cache
from pathlib import Path
from typing import NamedTuple

sys.path.insert(0, str(Path(__file__).parents[1]))

from compiling import ADDRESS, ROOT, THREAD, run
from native import emulated

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib

SEEDS = 4  # one of each eagerness of the device
CACHE = ROOT / "build" / "faults"
TRANSFER = ("tests/transfer",)  # what is to find faults that name no tests


class Fault(NamedTuple):
    """A change of a file.

    Args:
        name: what is wrong.
        file: its path from the root of the project, in csrc, torch_gas or tests.
        old: text that occurs in it.
        new: what stands there instead.
        occurrence: which of several places, from 0.
        tests: paths of the tests that are to find it, where it is none of a kernel or of the transfer engine.
    """

    name: str
    file: str
    old: str
    new: str = ""
    occurrence: int = 0
    tests: tuple[str, ...] = ()

    @property
    def in_kernels(self) -> bool:
        """Whether it is one of C++ and CUDA."""
        return self.file.startswith("csrc/")

    def text(self) -> str:
        """The file with the fault in it."""
        pieces = (ROOT / self.file).read_text().split(self.old)
        if len(pieces) < self.occurrence + 2:
            raise SystemExit(f"{self.name}: {self.file} has no such text any more; change the fault with it")
        at = self.occurrence + 1
        return self.old.join(pieces[:at]) + self.new + self.old.join(pieces[at:])


def load() -> list[Fault]:
    """All faults of faults.toml."""
    entries = tomllib.loads((emulated.HERE / "faults.toml").read_text())["fault"]
    return [Fault(**{**entry, "tests": tuple(entry.get("tests", ()))}) for entry in entries]


def copy(folder: Path, *names: str) -> None:
    """Makes ``folder`` hold these files and folders of the project as they are."""
    for name in names:
        shutil.rmtree(folder / name, ignore_errors=True)
        if (ROOT / name).is_dir():
            shutil.copytree(ROOT / name, folder / name, ignore=shutil.ignore_patterns("__pycache__"))
        else:
            shutil.copy(ROOT / name, folder / name)


def fails(tests: tuple[str, ...], folder: Path) -> bool:
    """Whether one of the tests fails in the tree of ``folder``."""
    pytest = Path(sys.executable).with_name("pytest")  # unlike `python -m pytest`, it does not look in this folder
    paths = [folder / test for test in tests]
    done = run(pytest, "-qx", "-n0", "-p", "no:cacheprovider", *paths, PYTHONPATH=str(folder), OMP_NUM_THREADS="1")
    return done.returncode != 0


@cache
def require_sound(tests: tuple[str, ...]) -> None:
    """Ends the process where tests fail without any fault, so that they would seem to find them all."""
    with tempfile.TemporaryDirectory() as folder:
        copy(Path(folder), "torch_gas", "tests", "pyproject.toml")
        if fails(tests, Path(folder)):
            raise SystemExit(f"{' '.join(tests)}: fails without a fault; make it pass first")


def finder(fault: Fault, folder: Path) -> str | None:
    """What finds the fault, if anything does."""
    copy(folder, *(["csrc"] if fault.in_kernels else ["torch_gas", "tests", "pyproject.toml"]))
    (folder / fault.file).write_text(fault.text())
    if fault.in_kernels:
        for sanitizer in (THREAD, ADDRESS):
            program = emulated.program(folder / "program", sanitizer, folder / "csrc", CACHE)
            if emulated.failure(program, SEEDS) is not None:
                return sanitizer
        return None
    tests = fault.tests or TRANSFER
    require_sound(tests)
    if fails(tests, folder):
        return "tests" if fault.tests else "lanes"
    if fault.tests:
        return None
    library = emulated.module(folder / "core.so", THREAD, cache=CACHE)
    return "engine" if emulated.engine_failure(library, THREAD, SEEDS, "--package", str(folder)) else None


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
            print(f"{f'found ({by})' if by else 'NOT FOUND':26} {fault.file:27} {fault.name}", flush=True)
    print(f"{found} of {len(chosen)} faults found")
    if found < len(chosen):
        raise SystemExit(1)


if __name__ == "__main__":
    main()
