"""Builds csrc/cuda with the emulated runtime and runs it beside the same calls of csrc/cpu.

`python tests/native/emulated.py --seeds 100` runs a hundred schedules with each sanitizer.
"""

from __future__ import annotations

import argparse
import sys
import sysconfig
import tempfile
from collections.abc import Sequence
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[1]))

import compiling
from compiling import ADDRESS, COMPILER, ROOT, THREAD, Unit, build, missing, run

HERE = Path(__file__).parent
RUNTIME = HERE / "emulated_cuda"
CORE = HERE / "core"
CACHE = compiling.CACHE / "emulated"  # where no file is compiled in another way
TOLD = {ADDRESS: "-DEMULATED_ASAN", THREAD: "-DEMULATED_TSAN"}
# Warnings are errors, as where nvcc compiles it, but not in trees with a fault; g++ does not know `#pragma unroll`.
STRICT = ("-Wall", "-Wextra", "-Werror", "-Wno-unknown-pragmas")
# A report of a race is an error at once; of memory, leaks are found as well.
OPTIONS = {"TSAN_OPTIONS": "halt_on_error=1", "ASAN_OPTIONS": "detect_leaks=1"}


def _flags(sanitizer: str, csrc: Path) -> tuple[str, ...]:
    return (f"-I{RUNTIME / 'include'}", "-fPIC", TOLD[sanitizer], *(STRICT if csrc == ROOT / "csrc" else ["-w"]))


def _runtime(flags: tuple[str, ...]) -> list[Unit]:
    """The runtime itself, of which sanitizers see nothing but what it tells them."""
    return [
        Unit(RUNTIME / f"{name}.cpp", flags, sanitized=False)
        for name in ("context", "grid", "memory", "runtime", "schedule")
    ]


def _headers(csrc: Path) -> list[Path]:
    ours = (path for folder in (csrc, RUNTIME, CORE) for path in sorted(folder.glob("**/*.h")))
    return [*ours, RUNTIME / "include" / "cassert"]


def program(binary: Path, sanitizer: str, csrc: Path = ROOT / "csrc", cache: Path = CACHE) -> Path:
    """Builds the program that runs csrc/cuda of a tree; objects are kept in ``cache``.

    Raises:
        CompileError: where it cannot be compiled.
    """
    flags = _flags(sanitizer, csrc)
    core = [
        *sorted((csrc / "cuda").glob("*.cu")),
        *(csrc / "cpu" / f"{name}.cpp" for name in ("rows", "file", "memory")),
    ]
    units = [Unit(path, flags) for path in (*core, *sorted(CORE.glob("*.cpp")))]
    return build(binary, sanitizer, [*units, *_runtime(flags)], _headers(csrc), cache)


def module(library: Path, sanitizer: str, csrc: Path = ROOT / "csrc", cache: Path = CACHE) -> Path:
    """Builds the core for Python with the emulated runtime in it; needs pybind11, whose headers are not of this project.

    Raises:
        CompileError: where it cannot be compiled.
    """
    import pybind11

    flags = _flags(sanitizer, csrc)
    python = ("-isystem", sysconfig.get_path("include"), "-isystem", pybind11.get_include(), "-fvisibility=hidden")
    units = [Unit(path, flags) for path in sorted((csrc / "cuda").glob("*.cu")) + sorted((csrc / "cpu").glob("*.cpp"))]
    units += [Unit(csrc / "bindings.cpp", (*flags, *python, "-DTORCH_GAS_WITH_CUDA"))]
    units += [Unit(RUNTIME / "python.cpp", (*flags, *python), sanitized=False), *_runtime(flags)]
    return build(library, sanitizer, units, _headers(csrc), cache, link=("-shared",))


def failure(binary: Path, seeds: int, first: int = 0) -> str | None:
    """What the program says if it fails for one of the seeds."""
    done = run(binary, str(seeds), str(first), **OPTIONS)
    if done.returncode == 0 and done.stdout == "device and host agree\n":
        return None
    return f"{done.stdout}{done.stderr}exit status {done.returncode}"


def engine_failure(library: Path, sanitizer: str, seeds: int, *options: str) -> str | None:
    """What engine.py says with a core that :func:`module` has built, if it fails; ``options`` are those of the command."""
    names = {ADDRESS: ("libasan.so", "libstdc++.so"), THREAD: ("libtsan.so",)}[sanitizer]
    preloaded = " ".join(run(COMPILER or "", f"-print-file-name={name}").stdout.strip() for name in names)
    # Python and torch leave memory to the end of the process.
    environment = {**OPTIONS, "ASAN_OPTIONS": "detect_leaks=0", "OMP_NUM_THREADS": "1", "LD_PRELOAD": preloaded}
    command = (sys.executable, "-W", "ignore", HERE / "engine.py", library, "--seeds", str(seeds), *options)
    done = run(*command, **environment)
    if done.returncode == 0 and done.stdout.endswith("device and host agree\n"):
        return None
    return f"{done.stdout}{done.stderr}exit status {done.returncode}"


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seeds", type=int, default=20, help="schedules with each sanitizer (default: 20)")
    parser.add_argument("--first", type=int, default=0, help="the first seed (default: 0)")
    parser.add_argument(
        "--engine", action="store_true", help="models on torch_gas/transfer as well; needs torch and pybind11"
    )
    args = parser.parse_args(arguments)
    with tempfile.TemporaryDirectory() as folder:
        for sanitizer in (ADDRESS, THREAD):
            if reason := missing(sanitizer, Path(folder)):
                raise SystemExit(reason)
            found = failure(program(Path(folder) / "program", sanitizer), args.seeds, args.first)
            if found:
                raise SystemExit(f"-fsanitize={sanitizer}: {found}")
            print(f"-fsanitize={sanitizer}: device and host agree in {args.seeds} schedules", flush=True)
            if args.engine:
                library, first = module(Path(folder) / "core.so", sanitizer), str(args.first)
                found = engine_failure(library, sanitizer, args.seeds, "--first", first)
                if found:
                    raise SystemExit(f"-fsanitize={sanitizer}, engine: {found}")
                print(f"-fsanitize={sanitizer}: models train alike in {args.seeds} schedules each", flush=True)


if __name__ == "__main__":
    main()
