"""Dropout whose mask depends on a seed and the shape, or on a key and the ids of rows, only."""

from __future__ import annotations

import torch
from torch import Tensor

from torch_gas._core import checks
from torch_gas._core.build import _C
from torch_gas._core.checks import FLOAT_TYPES
from torch_gas._core.memory import empty
from torch_gas._core.naming import arg, at


def dropout(x: Tensor, p: float, seed: int) -> Tensor:
    """Multiplies each element by 0 or 1 / (1 - p), at random.

    Equivalent to `x * keep / (1 - p)`, where the mask depends on `seed` and the shape of `x` only: element i of `x.flatten()`
    is kept if word i % 4 of Philox4x32-10 (https://doi.org/10.1145/2063384.2063405), for the key `seed` and the counter i // 4,
    is at least p * 2**32. As in torch, NaN and infinity times 0 are NaN, and with p = 1 everything is multiplied by 0.

    Args:
        x: Contiguous tensor of any shape on the host, float32, float64, float16 or bfloat16.
        p: Probability that an element is multiplied by 0, rounded to a multiple of 2**-32.
        seed: Number of 64 bits.

    Returns:
        The result, of the type and shape of `x`; the same for any number of threads and on every machine.

    Raises:
        TypeError: An argument has a wrong type.
        ValueError: `x` is not on the host or not contiguous, or `p` or `seed` is out of range.

    Example:
        >>> import torch
        >>> dropout(torch.ones(6), p=0.5, seed=0)
        tensor([0., 2., 2., 2., 2., 0.])
    """
    call = "dropout"
    checks.host(call, "x", x)
    checks.element_type(call, "x", x, FLOAT_TYPES)
    checks.contiguous(call, "x", x)
    checks.number(call, "p", p)
    checks.size(call, "seed", seed)
    out = empty(x.shape, x.dtype)
    _C.dropout(x.data_ptr(), out.data_ptr(), FLOAT_TYPES[x.dtype], x.numel(), float(p), seed, torch.get_num_threads())
    return out


def dropout_rows(x: Tensor, ids: Tensor, p: float, key: int) -> Tensor:
    """Multiplies each element of rows by 0 or 1 / (1 - p), at random by the id of its row.

    Equivalent to :func:`dropout`, but that element c of a flattened row is kept by word c % 4 for the key `key` and a counter
    whose first two words are the 64 bits of the row's id, and the third is c // 4.

    Args:
        x: Contiguous tensor [R, ...] on the host, float32, float64, float16 or bfloat16.
        ids: Of the rows, int64 [R].
        p: Probability that an element is multiplied by 0, rounded to a multiple of 2**-32.
        key: Number of 64 bits.

    Returns:
        The result, of the type and shape of `x`; the same for any number of threads and on every machine.

    Raises:
        TypeError: An argument has a wrong type.
        ValueError: `x` is not on the host or not contiguous, `ids` are not as many as rows, or `p` or `key` is out of range.

    Example:
        >>> import torch
        >>> x, ids = torch.ones(3, 2), torch.tensor([7, 5, 7])
        >>> out = dropout_rows(x, ids, p=0.5, key=0)
        >>> bool((out[0] == out[2]).all())
        True
    """
    call = "dropout_rows"
    checks.host(call, "x", x)
    checks.element_type(call, "x", x, FLOAT_TYPES)
    checks.contiguous(call, "x", x)
    if x.dim() == 0:
        raise ValueError(f"{at(call, 'x')} must have rows, but is a single number")
    ids = checks.numbers(call, "ids", ids, torch.int64)
    if ids.numel() != x.size(0):
        raise ValueError(
            f"{at(call, 'ids')} must have one for each row of `{arg('x')}` {list(x.shape)}, but has {ids.numel()} elements"
        )
    checks.number(call, "p", p)
    checks.size(call, "key", key)
    out = empty(x.shape, x.dtype)
    width = x.numel() // max(x.size(0), 1)
    _C.dropout_rows(
        x.data_ptr(), ids.data_ptr(), out.data_ptr(), FLOAT_TYPES[x.dtype], x.size(0), width, float(p), key,
        torch.get_num_threads(),
    )  # fmt: skip
    return out
