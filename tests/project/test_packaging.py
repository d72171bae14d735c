"""What a user gets who installs: a light import, a core without libtorch, a complete sdist."""

from __future__ import annotations

import importlib.metadata
import os
import shutil
import subprocess
import sys
import tarfile
from pathlib import Path

import pytest

import torch_gas

ROOT = Path(__file__).parents[2]


def run(*command: str, **environment: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(command, cwd=ROOT, env={**os.environ, **environment}, capture_output=True, text=True)


def test_core_links_no_libtorch() -> None:
    binary = Path(torch_gas._C.__file__)
    if binary.read_bytes()[:4] != b"\x7fELF":
        pytest.skip(f"reads ELF files only, and {binary.name} is none")
    if shutil.which("readelf") is None:
        pytest.skip("needs readelf")
    needed = run("readelf", "--wide", "--dynamic", str(binary)).stdout
    libraries = [line.split("[")[1].rstrip("]") for line in needed.splitlines() if "NEEDED" in line]
    assert any(name.startswith("libc.") for name in libraries)
    assert not [name for name in libraries if "torch" in name or "c10" in name or "cuda" in name]
    # A symbol can be missing without a library being named, when the process has loaded it before.
    symbols = run("readelf", "--wide", "--dyn-syms", str(binary)).stdout
    undefined = [line.split()[-1] for line in symbols.splitlines() if " UND " in line]
    assert any(name.startswith("Py") for name in undefined)  # which Python has loaded
    assert not [name for name in undefined if name.startswith(("_ZN2at", "_ZN3c10", "_ZN5torch"))]


@pytest.mark.slow
def test_import_is_light() -> None:
    """Every module imports without the optional packages, and no device is touched."""
    program = """
import importlib, pkgutil, sys
optional = ["torch_sparse", "torch_scatter", "pyg_lib", "ogb", "kaminpar", "rich", "matplotlib"]
sys.modules.update(dict.fromkeys(optional))
import torch, torch_gas
for module in pkgutil.walk_packages(torch_gas.__path__, "torch_gas."):
    importlib.import_module(module.name)
assert "torch_gas._core" in sys.modules
assert not torch.cuda.is_initialized()
print("light")
"""
    done = run(sys.executable, "-c", program)
    assert done.stdout == "light\n", done.stderr


def test_version_is_written_once() -> None:
    assert importlib.metadata.version("torch-gas") == torch_gas.__version__


@pytest.mark.slow
def test_sdist_can_be_built_from(tmp_path: Path) -> None:
    build = run(sys.executable, "-m", "build", "--sdist", "--no-isolation", "--outdir", str(tmp_path))
    assert build.returncode == 0, build.stdout + build.stderr
    (archive,) = tmp_path.glob("*.tar.gz")
    with tarfile.open(archive) as tar:
        packed = {name.split("/", 1)[1] for name in tar.getnames() if "/" in name}
    sources = {str(path.relative_to(ROOT)) for path in ROOT.glob("csrc/**/*.*")}
    assert "csrc/cuda/rows.cu" in sources
    assert sources | {"setup.py", "LICENSE", "torch_gas/py.typed"} <= packed


@pytest.mark.slow
@pytest.mark.parametrize(
    ("environment", "message"),
    [
        ({"TORCH_GAS_CUDA": "1", "PATH": "", "CUDA_HOME": "", "CUDACXX": ""}, "nvcc was not found"),
        ({"TORCH_GAS_CUDA": "yes"}, "TORCH_GAS_CUDA must be 0, 1 or unset, but is 'yes'"),
    ],
)
def test_build_refuses(environment: dict[str, str], message: str, tmp_path: Path) -> None:
    folders = ["--build-lib", str(tmp_path / "lib"), "--build-temp", str(tmp_path / "temp")]
    build = run(sys.executable, "setup.py", "build_ext", *folders, **environment)
    assert build.returncode != 0
    assert message in build.stderr
