"""The compiled core under sanitizers: native/kernels.cpp runs every kernel, without Python and on threads of its own.

Objects are kept in `build/sanitizers`, under a digest of all that went into them; `make clean` removes them.
"""

from __future__ import annotations

import hashlib
import os
import shutil
import subprocess
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
DRIVER = ROOT / "tests" / "_core" / "native" / "kernels.cpp"
COMPILER = shutil.which(os.environ.get("CXX", "c++"))
CACHE = ROOT / "build" / "sanitizers"
# What takes less time in all: ThreadSanitizer is slow to run, AddressSanitizer to compile.
OPTIMISED = {"address,undefined": "-O0", "thread": "-O1"}
FLAGS = [
    "-std=c++17",
    "-g1",
    "-fno-trapping-math",
    "-fno-sanitize-recover=all",
    "-pthread",
    f"-I{ROOT / 'csrc'}",
]
ROUNDS, SIZE = "1", "17000"  # beyond the grain of loops, so that threads take part


def run(*command: str | Path, **environment: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(command, capture_output=True, text=True, env=os.environ | environment)


def build(folder: Path, sanitizer: str, sources: list[Path]) -> Path:
    """Compiles and links ``sources``; fails the test where the compiler does."""
    assert COMPILER is not None
    flag, binary = f"-fsanitize={sanitizer}", folder / "program"
    command = [COMPILER, *FLAGS, OPTIMISED[sanitizer], flag]
    headers = [path.read_text() for path in sorted(ROOT.glob("csrc/**/*.h"))]
    common = [run(COMPILER, "--version").stdout, *command, *headers]

    def compile_one(source: Path) -> Path:
        digest = hashlib.sha256("\0".join([*common, source.read_text()]).encode()).hexdigest()
        target = CACHE / f"{source.stem}-{sanitizer}-{digest[:24]}.o"
        if not target.exists():
            # Under a name of its own until it is whole: other processes may compile the same.
            partial = target.with_suffix(f".{os.getpid()}")
            done = run(*command, "-c", source, "-o", partial)
            assert done.returncode == 0, done.stderr
            for old in CACHE.glob(f"{source.stem}-{sanitizer}-*.o"):
                old.unlink(missing_ok=True)
            partial.replace(target)
        return target

    CACHE.mkdir(parents=True, exist_ok=True)
    with ThreadPoolExecutor(2) as pool:
        objects = list(pool.map(compile_one, sources))
    done = run(COMPILER, flag, "-pthread", *objects, "-ldl", "-o", binary)
    assert done.returncode == 0, done.stderr
    return binary


def require(sanitizer: str, folder: Path) -> None:
    """Skips where no program can be built or run with ``sanitizer``."""
    if COMPILER is None:
        pytest.skip("needs a C++ compiler")
    source, binary = folder / "empty.cpp", folder / "empty"
    source.write_text("int main() {}")
    if run(COMPILER, f"-fsanitize={sanitizer}", source, "-o", binary).returncode or run(binary).returncode:
        pytest.skip(f"{COMPILER} has no -fsanitize={sanitizer} here")


@pytest.mark.slow
@pytest.mark.parametrize("sanitizer", ["address,undefined", "thread"])
def test_kernels(sanitizer: str, tmp_path: Path) -> None:
    require(sanitizer, tmp_path)
    program = build(tmp_path, sanitizer, [DRIVER, *sorted(ROOT.glob("csrc/cpu/*.cpp"))])
    done = run(program, ROUNDS, SIZE, TSAN_OPTIONS="halt_on_error=1")
    assert done.returncode == 0, done.stderr
    assert done.stdout == "all kernels agree\n"


FAULTS = {
    "address,undefined": "#include <vector>\nint main(int n, char**) { std::vector<int> a(1); return a.data()[n] + n; }",
    "thread": "#include <thread>\nint main() { int n = 0; std::thread t([&] { ++n; }); ++n; t.join(); }",
}


@pytest.mark.slow
@pytest.mark.parametrize("sanitizer", FAULTS)
def test_sanitizers_find_faults(sanitizer: str, tmp_path: Path) -> None:
    require(sanitizer, tmp_path)
    source = tmp_path / "fault.cpp"
    source.write_text(FAULTS[sanitizer])
    assert "Sanitizer" in run(build(tmp_path, sanitizer, [source])).stderr
