"""The bindings of the compiled core, called with arguments that bytes describe.

A call either refuses its arguments by an error that begins with its name, or its result is that of the slow twin. No argument
changes, but a table that rows were written to.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
import twins
from torch import Tensor

from torch_gas import _core

FLOATS = [torch.float32, torch.float64, torch.float16, torch.bfloat16]
IDS = [torch.int64, torch.int32]
ODD = [torch.bool, torch.uint8, torch.complex64, torch.int16]
EXTREME = [-1, 2**31 - 1, -(2**31), 2**40, -(2**63), 2**63 - 1]


class Source:
    """Choices that bytes make; zeros when they end."""

    def __init__(self, data: bytes) -> None:
        self._data, self._at = data, 0

    def byte(self) -> int:
        self._at += 1
        return self._data[self._at - 1] if self._at <= len(self._data) else 0

    def below(self, bound: int) -> int:
        return self.byte() % max(bound, 1)

    def of(self, choices: list[Any]) -> Any:
        return choices[self.below(len(choices))]

    def rarely(self) -> bool:
        return self.byte() >= 240

    def size(self) -> int:
        return -1 if self.rarely() else self.below(40)

    def ints(self, size: int, bound: int, dtype: torch.dtype) -> Tensor:
        """Ids below ``bound``; some are out of range."""
        limits = torch.iinfo(dtype)
        values = [self.of(EXTREME) if self.rarely() else self.below(bound) for _ in range(max(size, 0))]
        return self.odd(torch.tensor([min(max(v, limits.min), limits.max) for v in values], dtype=dtype))

    def rows(self, count: int, width: int, dtype: torch.dtype) -> Tensor:
        values = torch.tensor([self.byte() - 128 for _ in range(count * width)], dtype=torch.float64)
        return self.odd((values / 8).view(count, width).to(dtype))

    def pointers(self, num_rows: int, nnz: int, dtype: torch.dtype) -> Tensor:
        cuts = sorted(self.below(nnz + 1) for _ in range(max(num_rows - 1, 0)))
        values = [0, *cuts, nnz] if num_rows > 0 else [0]
        if self.rarely():
            values[self.below(len(values))] = self.byte() - 100
        return self.odd(torch.tensor(values, dtype=dtype))

    def odd(self, tensor: Tensor) -> Tensor:
        """The tensor, or rarely one of another type, shape or layout."""
        if not self.rarely():
            return tensor
        changes: list[Callable[[], Any]] = [
            lambda: tensor.to(self.of([*ODD, *IDS, *FLOATS])),
            lambda: tensor.unsqueeze(self.below(2)),
            lambda: torch.stack([tensor, tensor], dim=-1)[..., 0],
            lambda: tensor[:0],
            lambda: tensor.to("meta"),
            lambda: tensor.tolist(),
        ]
        return self.of(changes)()


def gather_rows(source: Source) -> tuple[Any, ...]:
    num_rows, dtype = source.below(20) + 1, source.of(FLOATS)
    return (
        source.rows(num_rows, source.below(5), dtype),
        source.ints(source.size(), num_rows, source.of(IDS)),
        source.of(FLOATS),
    )


def scatter_rows(source: Source) -> tuple[Any, ...]:
    num_rows, width, count = source.below(20) + 1, source.below(5), source.below(6)
    table, index = source.rows(num_rows, width, source.of(FLOATS)), source.ints(count, num_rows, source.of(IDS))
    return table, index, source.rows(count, width, source.of(FLOATS))


def add_rows(source: Source) -> tuple[Any, ...]:
    num_rows, width, count = source.below(20) + 1, source.below(5), source.below(12)
    table = source.rows(num_rows, width, source.of([*FLOATS[:2], FLOATS[source.below(4)]]))
    return table, source.ints(count, num_rows, source.of(IDS)), source.rows(count, width, source.of(FLOATS))


def ranges(source: Source, bound: int) -> tuple[Tensor, Tensor]:
    num_ranges = source.below(4)
    return source.ints(num_ranges, bound, torch.int64), source.ints(num_ranges, 6, torch.int64)


def read_chunks(source: Source) -> tuple[Any, ...]:
    num_rows = source.below(20) + 1
    return source.rows(num_rows, source.below(5), source.of(FLOATS)), *ranges(source, num_rows), source.of(FLOATS)


def write_chunks(source: Source) -> tuple[Any, ...]:
    num_rows, width = source.below(20) + 1, source.below(5)
    offset, count = ranges(source, num_rows)
    fits = isinstance(count, Tensor) and count.dtype == torch.int64 and not count.is_meta
    size = int(count.clamp(0, 9).sum()) if fits else 2
    return source.rows(num_rows, width, source.of(FLOATS)), offset, count, source.rows(size, width, source.of(FLOATS))


def fill_chunks(source: Source) -> tuple[Any, ...]:
    num_rows = source.below(20) + 1
    return source.odd(torch.arange(num_rows)), *ranges(source, num_rows), source.of([-(2**63), -1, 7, 2**63])


def csr(source: Source, num_cols: int) -> tuple[Tensor, Tensor]:
    dtype, nnz = source.of(IDS), source.below(30) if num_cols > 0 else 0
    return source.pointers(num_cols, nnz, dtype), source.ints(nnz, num_cols, dtype)


def subgraph(source: Source) -> tuple[Any, ...]:
    num_nodes = source.below(20)
    return *csr(source, num_nodes), *ranges(source, num_nodes)


def transpose(source: Source) -> tuple[Any, ...]:
    num_cols = source.below(20)
    return *csr(source, num_cols), -1 if source.rarely() else num_cols


def own_transpose(source: Source) -> tuple[Any, ...]:
    return csr(source, source.below(20))


def row_pointers(source: Source) -> tuple[Any, ...]:
    num_nodes = source.below(20)
    ids = source.ints(source.below(30) if num_nodes > 0 else 0, num_nodes, source.of(IDS))
    return (ids.sort().values if source.below(2) and type(ids) is Tensor and ids.dim() == 1 else ids), num_nodes


def to_csr(source: Source) -> tuple[Any, ...]:
    num_nodes, size, dtype = source.below(20), source.below(30), source.of(IDS)
    size = size if num_nodes > 0 else 0
    return source.ints(size, num_nodes, dtype), source.ints(size, num_nodes, dtype), num_nodes


def adjacent_pairs(source: Source) -> tuple[Any, ...]:
    src, dst, num_nodes = to_csr(source)
    return src, dst, None, num_nodes, None, source.of(IDS)


def symmetric(source: Source) -> tuple[Any, ...]:
    return csr(source, source.below(20))


def stream_parts(source: Source) -> tuple[Any, ...]:
    return *csr(source, source.below(20)), source.size(), source.byte(), lambda share: None


def product(source: Source) -> tuple[Any, ...]:
    num_cols, dtype = source.below(20), source.of(FLOATS[:2])
    return _core.Sparse(*csr(source, num_cols), num_cols), source.rows(num_cols, source.below(5), dtype)


def dropout(source: Source) -> tuple[Any, ...]:
    p = source.of([0.0, 0.5, 1.0, -0.5, 1.5, float("nan"), float("inf"), "half"])
    return source.rows(source.below(20), source.below(5), source.of(FLOATS)), p, source.of([0, 7, -1, 2**64 - 1, 2**64])


def dropout_rows(source: Source) -> tuple[Any, ...]:
    x, p, key = dropout(source)
    size = x.size(0) if isinstance(x, Tensor) and x.dim() > 0 else source.below(20)
    return x, source.ints(size, 2**40, torch.int64), p, key


def fingerprint(source: Source) -> tuple[Any, ...]:
    tensors = [source.rows(source.below(20), source.below(5), source.of(FLOATS)) for _ in range(source.below(4))]
    return source.of([tensors, tuple(tensors)]), source.of([0, 1, 2, source.size(), *EXTREME, 2**64])


MAKERS = [
    gather_rows, scatter_rows, read_chunks, write_chunks, subgraph, transpose, to_csr, adjacent_pairs, symmetric, stream_parts,
    product, dropout, fingerprint, add_rows, dropout_rows, fill_chunks,
    own_transpose, row_pointers,
]  # fmt: skip
WRITTEN = {scatter_rows, add_rows, write_chunks, fill_chunks}  # the calls that write to their first argument
TWINS: dict[Any, Callable[..., Any]] = {
    gather_rows: lambda table, index, dtype: table[index.long()].to(dtype),
    read_chunks: lambda table, offset, count, dtype: table[twins.chunk_index(offset, count)].to(dtype),
    transpose: twins.transpose,
    own_transpose: twins.own_transpose,
    row_pointers: twins.row_pointers,
    to_csr: twins.to_csr,
    fingerprint: twins.fingerprint,
    product: lambda matrix, rows: twins.product(matrix, rows, None),
}


def one_input(data: bytes) -> bool:
    """Makes the call that ``data`` describes, and tells whether it was accepted.

    Raises:
        AssertionError: if it was answered in a wrong way.
    """
    source = Source(data)
    maker = source.of(MAKERS)
    arguments = maker(source)
    before = [copy(value) for value in arguments]
    try:
        result = getattr(_core, maker.__name__)(*arguments)
    except (TypeError, ValueError, IndexError) as error:
        assert str(error).startswith(f"{maker.__name__}: "), f"{maker.__name__} is not named: {error}"
        assert_unchanged(arguments, before)
        return False
    if maker in WRITTEN:
        table, *others = arguments
        assert_unchanged(others, before[1:])
        index = twins.chunk_index(*others[:2]) if maker in (write_chunks, fill_chunks) else others[0].long()
        if maker is add_rows:
            twins.add_rows(before[0], index, others[-1])
        elif maker is fill_chunks:
            before[0][index] = others[-1]
        else:
            before[0][index] = others[-1].to(table.dtype)
        assert_equal(table, before[0])
    else:
        assert_unchanged(arguments, before)
        if maker in TWINS:
            assert_equal(result, TWINS[maker](*arguments))
    return True


def copy(value: Any) -> Any:
    if isinstance(value, (list, tuple)) and not hasattr(value, "_fields"):
        return [copy(each) for each in value]
    return value.clone() if isinstance(value, Tensor) else value


def assert_unchanged(arguments: Any, before: Any) -> None:
    for value, old in zip(arguments, before, strict=True):
        if isinstance(value, (list, tuple)) and not hasattr(value, "_fields"):
            assert_unchanged(value, old)
        elif isinstance(value, Tensor) and not value.is_meta:
            assert torch.equal(value, old), "an argument was changed"


def assert_equal(result: Any, wanted: Any) -> None:
    if isinstance(wanted, tuple):
        for left, right in zip(result, wanted, strict=True):
            assert_equal(left, right)
    else:
        torch.testing.assert_close(result, wanted)
