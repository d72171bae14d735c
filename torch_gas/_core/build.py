"""The compiled library `torch_gas._C`, and what to do where it is missing or lacks CUDA."""

from __future__ import annotations

import torch

try:
    import torch_gas._C as _C
except ImportError as error:
    raise ImportError(
        f"the compiled core torch_gas._C could not be loaded ({error}): build it with `pip install "
        "-e .` in a checkout, or reinstall with `pip install --force-reinstall --no-cache-dir "
        "--no-deps torch-gas`; both need a C++17 compiler"
    ) from error

__all__ = ["_C", "has_cuda", "require_cuda"]


def has_cuda() -> bool:
    """Tells whether the core was built with CUDA; says nothing about the presence of a device."""
    return bool(_C.has_cuda)


def require_cuda(call: str, name: str, device: torch.device) -> None:
    """Refuses a CUDA device where the core was built without CUDA."""
    if not has_cuda():
        raise RuntimeError(
            f"{_C.call_name(call)}: `{_C.argument_name(name)}` is on {device}, but torch_gas was built without CUDA; install the "
            "CUDA toolkit and reinstall with `TORCH_GAS_CUDA=1 pip install --force-reinstall "
            "--no-cache-dir --no-deps torch-gas`"
        )
