"""Builds `torch_gas._C`: C++17, and CUDA when a toolkit is found. Everything else is in
pyproject.toml.

Environment variables:

* `TORCH_GAS_CUDA`: `0` never builds the CUDA code, `1` fails without a toolkit; by default it is
  built if nvcc is found.
* `TORCH_GAS_CUDA_ARCHS`: architectures to build for, such as `90` or `80;90`, instead of all that
  matter.
* `TORCH_GAS_SANITIZE`: `address` (with undefined behaviour) or `thread` builds the CPU code with that sanitizer of the compiler;
  Python must then run with its library preloaded (`make sanitize`).
* `TORCH_GAS_WERROR`: `1` turns compiler warnings into errors.
* `CUDACXX`, `CUDA_HOME`: where nvcc is, if not on `PATH`.
"""

from __future__ import annotations

import os
import re
import shutil
import subprocess
from concurrent.futures import ThreadPoolExecutor
from glob import glob
from pathlib import Path

from pybind11.setup_helpers import Pybind11Extension, build_ext
from setuptools import setup

ARCHS = (75, 80, 86, 89, 90, 100, 120)
WERROR = os.environ.get("TORCH_GAS_WERROR") == "1"
SANITIZERS = {"": [], "address": ["-fsanitize=address,undefined"], "thread": ["-fsanitize=thread"]}


def find_nvcc() -> str | None:
    """Returns the CUDA compiler to use, or None for a build without CUDA."""
    choice = os.environ.get("TORCH_GAS_CUDA", "")
    if choice not in ("", "0", "1"):
        raise SystemExit(f"TORCH_GAS_CUDA must be 0, 1 or unset, but is {choice!r}")
    if choice == "0":
        return None
    home = os.environ.get("CUDA_HOME")
    candidates = [os.environ.get("CUDACXX"), home and str(Path(home, "bin", "nvcc")), "nvcc"]
    nvcc = next((found for name in candidates if name and (found := shutil.which(name))), None)
    if nvcc is None and choice == "1":
        raise SystemExit(
            "TORCH_GAS_CUDA=1 asks for a CUDA build, but nvcc was not found: install the CUDA "
            "toolkit, set CUDA_HOME to its folder, or unset TORCH_GAS_CUDA to build for the CPU "
            "only"
        )
    return nvcc


def sanitizer_flags() -> list[str]:
    """Flags of the compiler and the linker for the sanitizer that was asked for."""
    choice = os.environ.get("TORCH_GAS_SANITIZE", "")
    if choice not in SANITIZERS:
        raise SystemExit(f"TORCH_GAS_SANITIZE must be address, thread or unset, but is {choice!r}")
    return [*SANITIZERS[choice], "-O1", "-g1", "-fno-omit-frame-pointer"] if choice else []


def supported_archs(nvcc: str) -> list[int]:
    """Returns the architectures to build for, oldest first."""
    listing = subprocess.run([nvcc, "--list-gpu-code"], check=True, capture_output=True, text=True)
    known = {int(arch) for arch in re.findall(r"sm_(\d+)\b", listing.stdout)}
    wish = os.environ.get("TORCH_GAS_CUDA_ARCHS")
    if wish is None:
        return [arch for arch in ARCHS if arch in known]
    chosen = sorted({int(arch) for arch in re.findall(r"\d+", wish)})
    if not chosen or not known.issuperset(chosen):
        raise SystemExit(
            f"TORCH_GAS_CUDA_ARCHS must name architectures that {nvcc} knows ({sorted(known)}), but is {wish!r}"
        )
    return chosen


def nvcc_flags(archs: list[int]) -> list[str]:
    """Machine code for every architecture, and PTX of the newest for those to come."""
    flags = [
        "-std=c++17",
        "-O3",
        "-cudart=static",
        "-Xcompiler=-fPIC,-fvisibility=hidden,-Wall,-Wextra",
    ]
    flags += [f"-gencode=arch=compute_{arch},code=sm_{arch}" for arch in archs]
    flags += [f"-gencode=arch=compute_{archs[-1]},code=compute_{archs[-1]}", "-t0"]
    return flags + ["-Werror=all-warnings", "-Xcompiler=-Werror"] * WERROR


def cudart_folder(nvcc: str) -> str:
    """Returns the folder of the static CUDA runtime that belongs to this compiler."""
    # nvcc may be a wrapper or a link: what it would run says where its toolkit is.
    dry_run = subprocess.run(
        [nvcc, "-cudart=static", "--dryrun", "-o", "a", "x.o"],
        check=True,
        capture_output=True,
        text=True,
    )
    folders = [Path(folder) for folder in re.findall(r'-L"?([^"\s]+)', dry_run.stderr)]
    for folder in folders:
        if (folder / "libcudart_static.a").exists():
            return str(folder.resolve())
    raise SystemExit(
        f"libcudart_static.a was not found in {[str(folder) for folder in folders]}: install the "
        "development files of the CUDA runtime, or set TORCH_GAS_CUDA=0 to build for the CPU only"
    )


class BuildExt(build_ext):
    """Compiles sources side by side, `.cu` files with nvcc."""

    def finalize_options(self) -> None:
        super().finalize_options()
        # The environment decides what is built, but setuptools compares file times only.
        self.force = True

    def build_extensions(self) -> None:
        nvcc = find_nvcc()
        if nvcc is not None:
            for extension in self.extensions:
                extension.sources += sorted(glob("csrc/cuda/*.cu"))
                extension.define_macros.append(("TORCH_GAS_WITH_CUDA", None))
                extension.library_dirs.append(cudart_folder(nvcc))
                extension.libraries += ["cudart_static", "dl", "rt"]
            cuda_command = [nvcc, *nvcc_flags(supported_archs(nvcc))]
        compile_cpp = self.compiler.compile

        def compile_one(source: str, output_dir: str, **options: object) -> list[str]:
            if not source.endswith(".cu"):
                return compile_cpp([source], output_dir=output_dir, **options)
            target = Path(output_dir, source).with_suffix(".cu.o")
            target.parent.mkdir(parents=True, exist_ok=True)
            self.spawn([*cuda_command, "-c", source, "-o", str(target)])
            return [str(target)]

        def compile_all(sources: list[str], output_dir: str, **options: object) -> list[str]:
            with ThreadPoolExecutor(os.cpu_count()) as pool:
                objects = pool.map(lambda s: compile_one(s, output_dir, **options), sources)
                return [path for group in objects for path in group]

        self.compiler.src_extensions.append(".cu")
        self.compiler.compile = compile_all
        super().build_extensions()


core = Pybind11Extension(
    "torch_gas._C",
    sorted(["csrc/bindings.cpp", *glob("csrc/cpu/*.cpp")]),
    cxx_std=17,
    # Without the last flag GCC keeps branches in conversions of half types, for traps that nobody sets.
    extra_compile_args=["-O3", "-Wall", "-Wextra", *["-Werror"] * WERROR, "-fno-trapping-math", *sanitizer_flags()],
    extra_link_args=["-pthread", *sanitizer_flags()],
)

setup(ext_modules=[core], cmdclass={"build_ext": BuildExt})
