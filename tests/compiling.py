"""Builds programs of C++ with a sanitizer. Objects are kept in `build/sanitizers`, under a digest of all that went into them."""

from __future__ import annotations

import hashlib
import os
import shutil
import subprocess
from collections.abc import Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import NamedTuple

ROOT = Path(__file__).parents[1]
COMPILER = shutil.which(os.environ.get("CXX", "c++"))
CACHE = ROOT / "build" / "sanitizers"
ADDRESS, THREAD = "address,undefined", "thread"
# What takes less time in all: ThreadSanitizer is slow to run, AddressSanitizer to compile.
OPTIMISED = {ADDRESS: "-O0", THREAD: "-O1"}
FLAGS = ["-std=c++17", "-g1", "-fno-trapping-math", "-pthread", f"-I{ROOT / 'csrc'}"]


class CompileError(Exception):
    """The compiler or the linker refused; its words."""


class Unit(NamedTuple):
    """A file of C++.

    Args:
        path: of the file.
        flags: for it alone.
        sanitized: whether it is instrumented.
    """

    path: Path
    flags: tuple[str, ...] = ()
    sanitized: bool = True


def run(*command: str | Path, **environment: str) -> subprocess.CompletedProcess[str]:
    """Runs a program, with these variables besides those of the environment."""
    return subprocess.run(command, capture_output=True, text=True, env=os.environ | environment)


def build(
    binary: Path,
    sanitizer: str,
    units: Sequence[Unit],
    headers: Iterable[Path] = (),
    cache: Path = CACHE,
    link: Sequence[str] = (),
) -> Path:
    """Compiles and links ``units`` to ``binary``.

    Args:
        headers: which units include, beside those of csrc.
        cache: where objects are kept, one for each file and sanitizer.
        link: further options of the linker.

    Raises:
        CompileError: where the compiler or linker does not accept it.
    """
    assert COMPILER is not None
    instrument = [f"-fsanitize={sanitizer}", "-fno-sanitize-recover=all"]
    included = [path.read_text() for path in (*sorted(ROOT.glob("csrc/**/*.h")), *headers)]
    version = run(COMPILER, "--version").stdout

    def compile_one(unit: Unit) -> Path:
        command = [COMPILER, *FLAGS, OPTIMISED[sanitizer], *unit.flags, *(instrument if unit.sanitized else [])]
        text = "\0".join([version, *map(str, command), *included, unit.path.read_text()])
        name = f"{unit.path.parent.name}-{unit.path.name.replace('.', '-')}-{sanitizer}"
        target = cache / f"{name}-{hashlib.sha256(text.encode()).hexdigest()[:24]}.o"
        if not target.exists():
            # Under a name of its own until it is whole: other processes may compile the same.
            partial = target.with_suffix(f".{os.getpid()}")
            done = run(*command, "-x", "c++", "-c", unit.path, "-o", partial)
            if done.returncode:
                raise CompileError(done.stderr)
            for old in cache.glob(f"{name}-*.o"):
                old.unlink(missing_ok=True)
            partial.replace(target)
        return target

    cache.mkdir(parents=True, exist_ok=True)
    with ThreadPoolExecutor(2) as pool:
        objects = list(pool.map(compile_one, units))
    done = run(COMPILER, instrument[0], "-pthread", *link, *objects, "-ldl", "-o", binary)
    if done.returncode:
        raise CompileError(done.stderr)
    return binary


def missing(sanitizer: str, folder: Path) -> str | None:
    """Why no program can be built or run with ``sanitizer`` here, if so."""
    if COMPILER is None:
        return "needs a C++ compiler"
    source, binary = folder / "empty.cpp", folder / "empty"
    source.write_text("int main() {}")
    if run(COMPILER, f"-fsanitize={sanitizer}", source, "-o", binary).returncode or run(binary).returncode:
        return f"{COMPILER} has no -fsanitize={sanitizer} here"
    return None
