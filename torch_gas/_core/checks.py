"""What a call of the core asks of its arguments: errors name the call and the argument, and say what to do."""

from __future__ import annotations

import math
from collections.abc import Collection, Iterable

import torch
from torch import Tensor

from torch_gas._core.build import _C
from torch_gas._core.naming import arg, at, called
from torch_gas._util.memory import has_memory, why_not

ID_BITS = {torch.int32: 32, torch.int64: 64}
FLOAT_TYPES = {
    torch.float32: _C.DType.f32,
    torch.float64: _C.DType.f64,
    torch.float16: _C.DType.f16,
    torch.bfloat16: _C.DType.bf16,
}


def csr(call: str, rowptr: Tensor, col: Tensor) -> tuple[Tensor, Tensor, int]:
    """Contiguous row pointers and columns, and the number of rows."""
    rowptr = ids(call, "rowptr", rowptr)
    return rowptr, ids(call, "col", col, like=("rowptr", rowptr)), num_rows(call, rowptr)


def num_rows(call: str, rowptr: Tensor) -> int:
    """How many rows there are row pointers for."""
    if rowptr.numel() == 0:
        raise ValueError(f"{called(call)}: `rowptr` must have one element more than there are rows, but is empty")
    return rowptr.numel() - 1


def ids(call: str, name: str, value: Tensor, like: tuple[str, Tensor] | None = None) -> Tensor:
    """Contiguous ids on the host, of the type of others."""
    value = numbers(call, name, value, *ID_BITS)
    if like is not None:
        same_type(call, name, value, *like)
    return value


def numbers(call: str, name: str, value: Tensor, *types: torch.dtype, size: int | None = None) -> Tensor:
    """Contiguous numbers of one of some types on the host."""
    if is_packed(value) and value.is_cpu and value.dtype in types and value.dim() == 1 and size is None:
        return value  # as most are: one look, and no names of what would be wrong
    host(call, name, value)
    element_type(call, name, value, types)
    vector(call, name, value)
    if size is not None:
        length(call, name, value, size)
    return packed(call, name, value)


def ranges(call: str, name: str, start: Tensor, count: Tensor) -> tuple[Tensor, Tensor]:
    """Contiguous first elements and lengths of ranges."""
    start, count = numbers(call, name, start, torch.int64), numbers(call, "count", count, torch.int64)
    same_length(call, name, start, "count", count)
    return start, count


def within(call: str, start: Tensor, count: Tensor, num_rows: int) -> None:
    """Ranges of rows that a table has; the core refuses them as well, but later than others need their sum."""
    if bool(((start < 0) | (count < 0) | (count > num_rows) | (start > num_rows - count)).any()):
        raise IndexError(
            f"{called(call)}: ranges of `offset` and `count` must lie within the {num_rows} rows of `{arg('table')}`"
        )


def length(call: str, name: str, value: Tensor, size: int) -> None:
    if value.numel() != size:
        raise ValueError(f"{at(call, name)} must have {size} elements, but has {value.numel()}")


def same_length(call: str, name: str, value: Tensor, other_name: str, other: Tensor) -> None:
    if value.numel() != other.numel():
        raise ValueError(
            f"{at(call, name)} and `{arg(other_name)}` must be equally long, but have {value.numel()} and "
            f"{other.numel()} elements"
        )


def kind(call: str, name: str, value: object, wanted: type | tuple[type, ...], words: str) -> None:
    """A value of a type that has these words; a flag is no number."""
    if not isinstance(value, wanted) or (isinstance(value, bool) and wanted is not bool):
        raise TypeError(f"{at(call, name)} must be {words}, but is {type(value).__name__}")


def number(call: str, name: str, value: float) -> None:
    kind(call, name, value, (int, float), "a number")
    if math.isnan(value):
        raise ValueError(f"{at(call, name)} must be a number, but is nan")


def size(call: str, name: str, value: int) -> None:
    kind(call, name, value, int, "an int")
    if value < 0:
        raise ValueError(f"{at(call, name)} must not be negative, but is {value}")
    if value >= 2**64:
        raise ValueError(f"{at(call, name)} must be less than 2**64, but is {value}")


def tensor(call: str, name: str, value: Tensor) -> None:
    """The door of the core: tensors whose numbers lie at their address, but for those with the negative bit, see `packed`."""
    if has_memory(value) or getattr(value, "is_meta", False):  # which is refused with other devices
        return
    kind(call, name, value, Tensor, "a torch.Tensor")
    dense = value.layout == torch.strided
    raise (ValueError if dense else TypeError)(
        f"{at(call, name)} must be a dense tensor with memory, but {why_not(value)}"
    )


def host(call: str, name: str, value: Tensor) -> None:
    if not has_memory(value):
        tensor(call, name, value)
    if not value.is_cpu:
        raise ValueError(f"{at(call, name)} must be on the host, but is on {value.device}; pass `{arg(name)}.cpu()`")


def is_packed(value: Tensor) -> bool:
    """Whether it passes the door, and :func:`packed` and :func:`contiguous` as it is."""
    return has_memory(value) and value.is_contiguous() and not value.is_neg()


def packed(call: str, name: str, value: Tensor) -> Tensor:
    """The numbers of a tensor that passed the door, one after the other and with their signs, for the core to read."""
    if value.is_contiguous() and not value.is_neg():
        return value
    memory = value.resolve_neg().contiguous()
    tensor(call, name, memory)  # which torch made, and without memory in FakeTensorMode
    return memory


def vector(call: str, name: str, value: Tensor) -> None:
    if value.dim() != 1:
        raise ValueError(f"{at(call, name)} must have one dimension, but has shape {list(value.shape)}")


def contiguous(call: str, name: str, value: Tensor) -> None:
    """Memory that the core reads or writes where it is."""
    if value.is_neg():
        raise ValueError(
            f"{at(call, name)} must have no negative bit; pass a tensor made with `{arg(name)}.resolve_neg()`"
        )
    if not value.is_contiguous():
        raise ValueError(
            f"{at(call, name)} must be contiguous, but has shape {list(value.shape)} and strides "
            f"{list(value.stride())}; pass a tensor made with `{arg(name)}.contiguous()`"
        )


def element_type(call: str, name: str, value: Tensor, valid: Collection[torch.dtype]) -> None:
    if value.dtype not in valid:
        raise TypeError(f"{at(call, name)} must be one of {names(valid)}, but is {value.dtype}")


def same_type(call: str, name: str, value: Tensor, other_name: str, other: Tensor) -> None:
    if value.dtype != other.dtype:
        raise TypeError(
            f"{at(call, name)} must have the type of `{arg(other_name)}` ({other.dtype}), but is "
            f"{value.dtype}; pass `{arg(name)}.to({other.dtype})`"
        )


def names(types: Iterable[torch.dtype]) -> str:
    """Types as users write them, for an error."""
    return ", ".join(str(dtype).removeprefix("torch.") for dtype in types)
