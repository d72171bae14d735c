"""Whether a tensor's numbers lie in memory where its address says."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch_geometric.data import Data

# Types whose memory torch itself keeps. A subclass may have an address that is none, such as PyG's Index and FakeTensor.
PLAIN = frozenset({Tensor, torch.nn.Parameter})


def has_memory(value: Any) -> bool:
    """Whether ``value`` is a dense tensor whose numbers may be read at its address: false for tensors whose storage was freed or
    is another tensor's, inside of transforms of ``torch.func`` and for most subclasses."""
    kind = type(value)
    if kind not in PLAIN and not _is_plain_subclass(kind):
        return False
    try:
        storage = value.untyped_storage()
    except (NotImplementedError, ValueError):  # sparse, or wrapped by a transform; a parameter without a size
        return False
    start, size = value.data_ptr(), value.nbytes
    if start != 0 and start + size <= storage.data_ptr() + storage.nbytes():  # the common case, without a loop
        return True
    if size == 0:
        return not value.is_meta
    if start == 0:
        return False
    # Other than a contiguous tensor, one may take less than its size, as `expand()` makes them.
    last = sum((length - 1) * stride for length, stride in zip(value.shape, value.stride(), strict=True))
    return bool(start + (last + 1) * value.itemsize <= storage.data_ptr() + storage.nbytes())


def why_not(value: Tensor) -> str:
    """Of a tensor of which :func:`has_memory` is false: what it is instead, and what to do, for an error."""
    kind = type(value)
    if kind not in PLAIN and not _is_plain_subclass(kind):
        fix = "pass its `.as_tensor()`" if hasattr(value, "as_tensor") else "pass a plain torch.Tensor"
        return f"is of type {kind.__name__}, which keeps its numbers elsewhere or has none; {fix}"
    if value.layout != torch.strided:
        return f"its layout is {value.layout}; pass `.to_dense()`"
    if value.is_meta:
        return "is on meta, where tensors have no numbers; pass one on the CPU or a GPU"
    if torch._C._functorch.is_functorch_wrapped_tensor(value):
        return "is inside of a transform of torch.func, which hides its memory; call this outside of it"
    return "its memory is not there (storage().resize_() frees it); pass a tensor that has its numbers"


def is_readable(value: Tensor) -> bool:
    """Whether torch's own functions can read a tensor of any kind, or say why not; those of PyG stand for one that they can."""
    return has_memory(value) or value.layout != torch.strided or value.is_meta or hasattr(value, "as_tensor")


def unreadable(data: Data) -> str | None:
    """The first attribute of a graph that is not readable."""
    tensors = ((key, value) for key, value in data.to_dict().items() if isinstance(value, Tensor))
    return next((str(key) for key, value in tensors if not is_readable(value)), None)


def _is_plain_subclass(kind: type) -> bool:
    """Whether a type of tensors leaves their operations, and so their memory, to torch."""
    return issubclass(kind, Tensor) and kind.__torch_dispatch__ is Tensor.__torch_dispatch__
