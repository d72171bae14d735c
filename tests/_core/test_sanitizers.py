"""The compiled core under sanitizers: native/kernels.cpp runs every kernel, without Python and on threads of its own."""

from __future__ import annotations

from pathlib import Path

import pytest
from compiling import ADDRESS, ROOT, THREAD, Unit, build, missing, run

DRIVER = ROOT / "tests" / "_core" / "native" / "kernels.cpp"
ROUNDS, SIZE = "1", "17000"  # beyond the grain of loops, so that threads take part


@pytest.mark.slow
@pytest.mark.parametrize("sanitizer", [ADDRESS, THREAD])
def test_kernels(sanitizer: str, tmp_path: Path) -> None:
    if reason := missing(sanitizer, tmp_path):
        pytest.skip(reason)
    units = [Unit(path) for path in (DRIVER, *sorted(ROOT.glob("csrc/cpu/*.cpp")))]
    done = run(build(tmp_path / "program", sanitizer, units), ROUNDS, SIZE, TSAN_OPTIONS="halt_on_error=1")
    assert done.returncode == 0, done.stderr
    assert done.stdout == "all kernels agree\n"


FAULTS = {
    ADDRESS: "#include <vector>\nint main(int n, char**) { std::vector<int> a(1); return a.data()[n] + n; }",
    THREAD: "#include <thread>\nint main() { int n = 0; std::thread t([&] { ++n; }); ++n; t.join(); }",
}


@pytest.mark.slow
@pytest.mark.parametrize("sanitizer", FAULTS)
def test_sanitizers_find_faults(sanitizer: str, tmp_path: Path) -> None:
    if reason := missing(sanitizer, tmp_path):
        pytest.skip(reason)
    source = tmp_path / "fault.cpp"
    source.write_text(FAULTS[sanitizer])
    assert "Sanitizer" in run(build(tmp_path / "program", sanitizer, [Unit(source)])).stderr
