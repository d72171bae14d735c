"""Memory of tensors: new, in huge pages, page-locked, and as the core sees it."""

from __future__ import annotations

import math
import sys
from collections.abc import Sequence
from weakref import WeakValueDictionary

import torch
from torch import Tensor

from torch_gas._core import checks
from torch_gas._core.build import _C, require_cuda

_LARGE = 2**22  # bytes: two huge pages of most systems
PAGE = 4096  # bytes

# What is page-locked now, by the addresses of its first and behind its last byte.
_locked: WeakValueDictionary[tuple[int, int], object] = WeakValueDictionary()


def register(tensor: Tensor, device: torch.device | str) -> object:
    """Page-locks the memory of a tensor in place, so that CUDA devices read and write it themselves.

    Other than `pin_memory()`, this copies nothing, and takes no more memory than the tensor has. Its whole storage is locked,
    because `is_pinned()` of any view looks at the first byte of the storage alone. Calls for views of one storage share what
    they get, and it stays page-locked as long as somebody keeps that.

    Args:
        tensor: Contiguous tensor of any shape and type on the host, of at least one byte.
        device: The CUDA device that is asked for it; it holds for all of them.

    Returns:
        What keeps the memory page-locked, and the memory itself, while it lives. When it goes, the device first finishes all
        its work.

    Raises:
        TypeError: `tensor` is no tensor.
        ValueError: The tensor is not on the host, not contiguous or empty, or `device` is no CUDA device.
        RuntimeError: The memory cannot be page-locked, somebody else has page-locked it, or the core was built without CUDA.
    """
    call = "register"
    checks.host(call, "tensor", tensor)
    checks.contiguous(call, "tensor", tensor)
    if tensor.nbytes == 0:
        raise ValueError(f"{call}: `tensor` must have elements, but has shape {list(tensor.shape)}")
    device = torch.device(device)
    if device.type != "cuda":
        raise ValueError(f'{call}: `device` must be a CUDA device, but is {device}; pass "cuda"')
    require_cuda(call, "device", device)
    index = torch.cuda.current_device() if device.index is None else device.index
    held = locked_by(tensor)
    if held is None:
        # It holds the storage, because a tensor can be given another one.
        storage = tensor.untyped_storage()
        held = _C.HostRegistration(storage, storage.data_ptr(), storage.nbytes(), index)
        _locked[_range(tensor)] = held
    return held


def locked_by(tensor: Tensor) -> object | None:
    """What :func:`register` gave for the memory of a tensor on the host, if somebody still keeps it."""
    first, end = _range(tensor)
    return next((held for (start, stop), held in list(_locked.items()) if start <= first and end <= stop), None)


def _range(tensor: Tensor) -> tuple[int, int]:
    storage = tensor.untyped_storage()
    return storage.data_ptr(), storage.data_ptr() + storage.nbytes()


def at_page(shape: Sequence[int], dtype: torch.dtype) -> Tensor:
    """An uninitialised tensor in host memory that begins at a page.

    A device reads host memory in lines of 128 bytes. Large tensors of torch begin 64 bytes behind a page, where a row of 128
    bytes takes two requests for lines and not one.

    Raises:
        RuntimeError: Tensors that are made now have no memory, as in FakeTensorMode.
    """
    size = torch.Size(shape)
    nbytes = math.prod(size) * dtype.itemsize + PAGE
    if nbytes > sys.maxsize:
        return torch.empty(size, dtype=dtype, device="cpu")  # which is refused, as for any tensor
    memory = torch.empty(nbytes, dtype=torch.uint8, device="cpu")
    start = -_address(memory) % PAGE // dtype.itemsize
    whole = torch.empty(0, dtype=dtype, device="cpu")
    return whole.set_(memory.untyped_storage(), start, size)  # type: ignore[call-overload]  # strides have a default


def advise_huge_pages(tensor: Tensor) -> bool:
    """Asks the operating system for huge pages below a tensor, which make reading rows at random places faster.

    Only memory that nobody has touched yet is sure to follow, such as that of a large `torch.empty`; `torch.zeros` touches it.

    Args:
        tensor: Contiguous tensor of any shape and type on the host.

    Returns:
        Whether the kernel took the advice: False where it knows no such pages, and for less than one page.

    Raises:
        TypeError: `tensor` is no tensor.
        ValueError: The tensor is not on the host or not contiguous.

    Example:
        >>> import torch
        >>> advise_huge_pages(torch.empty(0))
        False
    """
    call = "advise_huge_pages"
    checks.host(call, "tensor", tensor)
    checks.contiguous(call, "tensor", tensor)
    return bool(_C.advise_huge_pages(tensor.data_ptr(), tensor.nbytes))


def fingerprint(tensors: Sequence[Tensor], lines: int = 0) -> int:
    """A number that tells the contents of tensors apart, also where torch does not count what is written: through NumPy,
    `.data`, or in inference mode.

    Args:
        tensors: Dense tensors of any shape and type on the host. Those that are not contiguous are copied.
        lines: How many pieces of 64 bytes of each tensor it goes by, which lie at even distances; by default by all of it.

    Returns:
        64 bits, without sign. They do not depend on the number of threads, and do on the byte order of the machine.

    Raises:
        TypeError: One is no dense tensor.
        ValueError: One is not on the host, or `lines` is negative.

    Example:
        >>> import torch
        >>> x = torch.zeros(3)
        >>> before = fingerprint([x])
        >>> x.numpy()[1] = 1
        >>> fingerprint([x]) == before
        False
    """
    call = "fingerprint"
    checks.kind(call, "tensors", tensors, Sequence, "a sequence of tensors")
    checks.size(call, "lines", lines)
    given: list[int] = []
    copies = []  # which live as long as they are read
    for tensor in tensors:
        is_plain = type(tensor) is Tensor and tensor.layout == torch.strided and tensor.device.type == "cpu"
        if not is_plain or not tensor.is_contiguous():
            checks.host(call, "tensors", tensor)
            tensor = tensor.contiguous()
            copies.append(tensor)
        given += (tensor.data_ptr(), tensor.nbytes)
    return int(_C.fingerprint(*given, lines=min(lines, sys.maxsize), threads=torch.get_num_threads()))


def empty(shape: int | Sequence[int], dtype: torch.dtype, device: torch.device | str = "cpu") -> Tensor:
    """An uninitialised tensor for results. Pages that a large one takes from the system are huge, because it clears them faster.

    Raises:
        RuntimeError: Tensors that are made now have no memory, as in FakeTensorMode.
    """
    tensor = torch.empty(shape, dtype=dtype, device=device)
    address, nbytes = _address(tensor), tensor.nbytes
    if nbytes >= _LARGE and tensor.is_cpu:
        _C.advise_huge_pages(address, nbytes)
    return tensor


def _address(tensor: Tensor) -> int:
    """Where a new tensor lies."""
    address = tensor.data_ptr() if type(tensor) is Tensor else 0
    if address == 0 and tensor.nbytes > 0 and not tensor.is_meta:  # which `check_placement` refuses
        raise RuntimeError(
            f"torch_gas: a result of type {type(tensor).__name__} has no memory to be written to; leave FakeTensorMode, or the "
            "transform of torch.func, for this call"
        )
    return address


def mark_written(tensor: Tensor) -> None:
    """Tells autograd, which may keep the tensor for a backward pass, that it has changed."""
    if not tensor.is_inference():
        torch.autograd.graph.increment_version(tensor)


def addresses(*tensors: Tensor | None) -> list[int]:
    """What the core takes for tensors; 0 stands for none."""
    return [0 if tensor is None else tensor.data_ptr() for tensor in tensors]
