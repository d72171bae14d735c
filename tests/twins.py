"""A slow twin in plain PyTorch for each function of `torch_gas._core`, and inputs to compare on."""

from __future__ import annotations

import itertools
import sys
from collections.abc import Sequence

import torch
from hypothesis import strategies as st
from torch import Tensor

from torch_gas._core import Reductions, ReductionsGradient, Sparse

FLOATS = [torch.float32, torch.float64, torch.float16, torch.bfloat16]
# The largest error of a finite number in a table, relative to the largest of its row. Of a scaled type it is half a step between
# numbers as large as the largest, which have the widest steps.
TOLERANCE = {dtype: torch.finfo(dtype).eps / 2 for dtype in FLOATS} | {
    torch.int8: 0.5 / 127,
    torch.float8_e4m3fn: 16 / 448,
    torch.float8_e5m2: 4096 / 57344,
}
COPIED = [torch.int64, torch.int32, torch.int8, torch.uint8, torch.bool]
IDS = [torch.int32, torch.int64]

# Every pair of types that rows may have in a table and outside it.
TYPE_PAIRS = [(a, b) for a in FLOATS for b in FLOATS] + [(a, a) for a in COPIED]

seeds = st.integers(0, 2**32 - 1)
id_types = st.sampled_from(IDS)


def subgraph(
    rowptr: Tensor, col: Tensor, start: Tensor, count: Tensor, ascending: bool = False, coo: bool = False
) -> tuple[Tensor | None, ...]:
    ids, rowptr, src = col.dtype, rowptr.long(), col.long()
    num_nodes = rowptr.numel() - 1
    dst = torch.arange(num_nodes).repeat_interleave(rowptr.diff())
    batch = chunk_index(start, count)
    e_id = torch.cat([torch.empty(0, dtype=torch.int64), *[(dst == v).nonzero().flatten() for v in batch]])
    sources = src[e_id].unique()
    n_id = torch.cat([batch, sources[~torch.isin(sources, batch)]])
    local = torch.full((num_nodes,), -1)
    local[n_id] = torch.arange(n_id.numel())
    if ascending:
        e_id = e_id[(local[dst[e_id]] * num_nodes + local[src[e_id]]).sort(stable=True).indices]
    out_rowptr = torch.cat([torch.zeros(1, dtype=torch.int64), rowptr.diff()[batch].cumsum(0)])
    edge_index = torch.stack([local[src[e_id]], local[dst[e_id]]]).to(ids)
    return out_rowptr.to(ids), edge_index[0], e_id.to(ids), n_id, edge_index if coo else None


def transpose(rowptr: Tensor, col: Tensor, num_cols: int) -> tuple[Tensor, ...]:
    row = torch.arange(rowptr.numel() - 1).repeat_interleave(rowptr.long().diff())
    perm = col.sort(stable=True).indices
    return tuple(ids.to(col.dtype) for ids in (pointers(col, num_cols), row[perm], perm))


def own_transpose(rowptr: Tensor, col: Tensor, weight: Tensor | None = None) -> Tensor | None:
    num_rows = rowptr.numel() - 1
    row, inner = torch.arange(num_rows).repeat_interleave(rowptr.long().diff()), col < num_rows
    if bool(((row[1:] == row[:-1]) & inner[1:] & ~inner[:-1]).any()) or bool((col < 0).any()):
        return None
    row, inside = row[inner], col[inner]
    kept = pointers(row, num_rows).to(col.dtype)
    colptr, other, perm = transpose(kept, inside, num_rows)
    same = torch.equal(colptr, kept) and torch.equal(other, inside)
    if weight is not None and same:
        bits = weight[inner].view(torch.int32 if weight.dtype == torch.float32 else torch.int64)
        same = torch.equal(bits, bits[perm.long()])
    return rowptr[:-1] + kept.diff() if same else None


def to_csr(src: Tensor, dst: Tensor, num_nodes: int) -> tuple[Tensor, ...]:
    perm = dst.sort(stable=True).indices
    return pointers(dst, num_nodes), src[perm], perm.to(dst.dtype)


def adjacent_pairs(src: Tensor, dst: Tensor, num_nodes: int, weight: Tensor | None) -> tuple[Tensor, ...]:
    keep = (src != dst) if weight is None else (src != dst) & (weight > 0)
    ends = torch.stack([torch.minimum(src, dst), torch.maximum(src, dst)])[:, keep].long()
    (low, high), pair = ends.unique(dim=1, return_inverse=True)
    sums = () if weight is None else (weight.new_zeros(low.numel()).index_add_(0, pair, weight[keep]),)
    return pointers(low, num_nodes), high, *sums


def symmetric(rowptr: Tensor, col: Tensor, weight: Tensor) -> tuple[Tensor, ...]:
    num_nodes = rowptr.numel() - 1
    low = torch.arange(num_nodes).repeat_interleave(rowptr.diff())
    row, both = torch.cat([low, col.long()]), torch.cat([col.long(), low])
    order = (row * num_nodes + both).argsort()
    return pointers(row, num_nodes).to(col.dtype), both[order].to(col.dtype), weight.repeat(2)[order].to(col.dtype)


def pointers(ids: Tensor, size: int) -> Tensor:
    counts = torch.bincount(ids.long(), minlength=size)
    return torch.cat([torch.zeros(1, dtype=torch.int64), counts.cumsum(0)]).to(ids.dtype)


def row_pointers(ids: Tensor, num_nodes: int) -> Tensor | None:
    in_range = not bool(((ids < 0) | (ids >= num_nodes)).any())
    return pointers(ids, num_nodes) if in_range and bool((ids.diff() >= 0).all()) else None


def product(matrix: Sparse, rows: Tensor, weight: Tensor | None, gate: Tensor | None = None) -> Tensor:
    row, entry = entries(matrix)
    col = matrix.col.long()
    if matrix.ends is not None:
        there = torch.arange(col.numel()) < matrix.ends.long()[row]
        row, entry, col = row[there], entry[there], col[there]
    messages = rows[col]
    if weight is not None:
        messages = messages * weight[entry].unsqueeze(-1)
    out = rows.new_zeros(matrix.rowptr.numel() - 1, *rows.shape[1:]).index_add_(0, row, messages)
    return out if gate is None else out * (gate > 0)


def reductions(matrix: Sparse, rows: Tensor) -> Reductions:
    found = []
    for start, stop in itertools.pairwise(matrix.rowptr.tolist()):
        x = rows[matrix.col[start:stop].long()]
        if start == stop:
            found.append([rows.new_zeros(rows.shape[1])] * len(Reductions._fields))
            continue
        least, most = x.amin(0), x.amax(0)
        ties = [(x == best).sum(0).to(x.dtype) for best in (least, most)]
        found.append([x.mean(0), ((x - x.mean(0)) ** 2).mean(0), least, ties[0], most, ties[1]])
    return Reductions(*[torch.stack(each) for each in zip(*found, strict=True)])


def reductions_backward(transpose: Sparse, rows: Tensor, grad: ReductionsGradient) -> Tensor:
    row, _ = entries(transpose)
    constant, slope, least, grad_least, most, grad_most = (each[transpose.col.long()] for each in grad)
    x = rows[row]
    parts = constant + slope * x + grad_least * (x == least) + grad_most * (x == most)
    return torch.zeros_like(rows).index_add_(0, row, parts)


def entry_dots(matrix: Sparse, left: Tensor, right: Tensor) -> Tensor:
    row, entry = entries(matrix)
    return in_order((left[row] * right[matrix.col.long()]).sum(-1), entry)


def entry_softmax(matrix: Sparse, left: Tensor, right: Tensor, slope: float) -> Tensor:
    row, entry = entries(matrix)
    scores = torch.nn.functional.leaky_relu(left[row] + right[matrix.col.long()], slope)
    runs = [scores[row == i].softmax(0) for i in range(left.size(0))]
    return in_order(torch.cat([*runs, scores[:0]]), entry)


def entries(matrix: Sparse) -> tuple[Tensor, Tensor]:
    """The row of each entry, and where its numbers are."""
    row = torch.arange(matrix.rowptr.numel() - 1).repeat_interleave(matrix.rowptr.long().diff())
    return row, torch.arange(row.numel()) if matrix.order is None else matrix.order.long()


def in_order(values: Tensor, entry: Tensor) -> Tensor:
    out = torch.empty_like(values)
    out[entry] = values
    return out


LARGEST = {torch.int8: 127.0, torch.float8_e4m3fn: 448.0, torch.float8_e5m2: 57344.0}  # elements of scaled types


def gather_rows(table: Tensor, index: Tensor, dtype: torch.dtype) -> Tensor:
    index = index.to(table.device).long()
    if table.dtype in LARGEST and dtype in FLOATS:
        return dequantize(table.view(torch.uint8)[index].view(table.dtype), dtype)
    return table[index].to(dtype)


def scatter_rows(table: Tensor, index: Tensor, rows: Tensor) -> None:
    if table.dtype in LARGEST and rows.dtype in FLOATS:
        rows = quantize(rows, table.dtype).view(torch.uint8)
        table = table.view(torch.uint8)
    table[index.to(table.device).long()] = rows.to(table.device, table.dtype)


def add_rows(table: Tensor, index: Tensor, rows: Tensor) -> None:
    for row, id in enumerate(index.tolist()):
        table[id] += rows[row].to(table.dtype)


def quantize(rows: Tensor, dtype: torch.dtype = torch.int8) -> Tensor:
    """Rows [M, C] as rows [M, C + 4] of a scaled type: elements, and the bytes of a float32 scale."""
    rows, limit = rows.float(), LARGEST[dtype]
    largest = rows.abs().amax(1, keepdim=True)
    scale = largest / limit
    # The largest element times the scale must not be infinity, where a row holds the largest finite numbers.
    scale = torch.where((scale * limit).isfinite(), scale, scale.nextafter(torch.zeros(())))
    scale = torch.where(largest.isfinite(), scale, torch.nan)
    numbers = torch.where(scale > 0, rows / scale, 0.0).clamp(-limit, limit)
    elements = (numbers.round() if dtype == torch.int8 else numbers).to(dtype)
    parts = [elements.view(torch.uint8), scale.flatten().view(torch.uint8).view(-1, 4)]
    return torch.cat(parts, 1).view(dtype)


def dequantize(rows: Tensor, dtype: torch.dtype) -> Tensor:
    """The rows [M, C] that rows [M, C + 4] of a scaled type stand for."""
    return (rows[:, :-4].float() * scales(rows)).to(dtype)


def scales(rows: Tensor) -> Tensor:
    """The scales [M, 1] of rows of a scaled type."""
    return rows[:, -4:].clone(memory_format=torch.contiguous_format).view(torch.float32)


def chunk_index(offset: Tensor, count: Tensor) -> Tensor:
    runs = [torch.arange(o, o + c) for o, c in zip(offset.tolist(), count.tolist(), strict=True)]
    return torch.cat([torch.empty(0, dtype=torch.int64), *runs])


def int64(*values: int) -> Tensor:
    return torch.tensor(values, dtype=torch.int64)


def distinct(ids: Tensor) -> Tensor:
    """The ids that occur, each once, in no order."""
    return ids.unique()[torch.randperm(ids.unique().numel(), generator=torch.Generator().manual_seed(0))]


def strided(x: Tensor) -> Tensor:
    """The same values, one element apart in memory."""
    wide = x.new_zeros(*x.shape, 2)
    wide[..., 0] = x
    return wide[..., 0]


def random_graph(generator: torch.Generator, num_nodes: int, num_edges: int) -> tuple[Tensor, ...]:
    """Row pointers and columns of a graph in which some nodes have no edges."""
    if num_nodes == 0:
        num_edges = 0
    dst = (torch.rand(num_edges, generator=generator) ** 2 * num_nodes).long()
    src = (torch.rand(num_edges, generator=generator) * num_nodes).long()
    return pointers(dst, num_nodes), src


def random_table(generator: torch.Generator, num_rows: int, width: tuple[int, ...], dtype: torch.dtype) -> Tensor:
    """Numbers of all magnitudes that a half can hold, its subnormals, and what it cannot."""
    size = (num_rows, *width)
    if not dtype.is_floating_point:
        return torch.randint(0, 2 if dtype == torch.bool else 100, size, generator=generator).to(dtype)
    numbers = torch.randn(size, generator=generator, dtype=torch.float64)
    numbers *= 10.0 ** torch.randint(-9, 6, size, generator=generator)
    special = torch.tensor([0.0, -0.0, float("inf"), float("-inf"), float("nan"), 65504, 65520])
    pick = torch.randint(0, 10 * special.numel(), size, generator=generator)
    return torch.where(pick < special.numel(), special.double()[pick % special.numel()], numbers).to(dtype)


@st.composite
def part_ranges(draw: st.DrawFn, num_nodes: int) -> tuple[Tensor, Tensor]:
    """Disjoint ranges in any order, some of them empty."""
    cuts = sorted(draw(st.lists(st.integers(0, num_nodes), max_size=8)))
    ranges = list(itertools.pairwise(cuts))
    chosen = draw(st.permutations(ranges))[: draw(st.integers(0, len(ranges)))]
    start = torch.tensor([a for a, _ in chosen], dtype=torch.int64)
    return start, torch.tensor([b - a for a, b in chosen], dtype=torch.int64)


def fingerprint(tensors: Sequence[Tensor], lines: int = 0) -> int:
    """Rounds of XXH64 in four lanes, over pieces of 64 KB or over ``lines`` of 64 bytes."""
    words = []
    for tensor in tensors:
        data = bytes(tensor.contiguous().view(-1).view(torch.uint8).tolist())
        words += [_of_memory(data, lines), len(data)]
    return _of_memory(_as_bytes(words), 0)


def _of_memory(data: bytes, lines: int) -> int:
    is_sample = 0 < lines * 64 < len(data)
    size = 64 if is_sample else 2**16
    count = lines if is_sample else -(-len(data) // size)
    last = len(data) - 64 if is_sample else (count - 1) * size
    begins = [*(last // max(count - 1, 1) * i for i in range(count - 1)), last][:count]
    return _hash(_as_bytes([_hash(data[begin : begin + size], i) for i, begin in enumerate(begins)]), len(data))


def _as_bytes(words: Sequence[int]) -> bytes:
    return b"".join(word.to_bytes(8, sys.byteorder) for word in words)


def _hash(data: bytes, seed: int) -> int:
    most = 2**64 - 1
    lanes = [seed, seed ^ most, seed << 32 & most, seed ^ 0x9E3779B185EBCA87]
    for at in range(0, len(data), 32):
        step = data[at : at + 32].ljust(32, b"\0")
        lanes = [_mixed(lane, int.from_bytes(step[8 * i : 8 * i + 8], sys.byteorder)) for i, lane in enumerate(lanes)]
    total = seed
    for lane in lanes:
        total = _mixed(total, lane)
    return total ^ total >> 29


def _mixed(total: int, word: int) -> int:
    total = (total + word * 0xC2B2AE3D27D4EB4F) % 2**64
    return (total << 31 | total >> 33) * 0x9E3779B185EBCA87 % 2**64


def same_bits(actual: Tensor, expected: Tensor) -> None:
    """Like `torch.equal`, but NaN equals NaN, and types, devices and signs of zero must agree."""
    torch.testing.assert_close(actual, expected, rtol=0, atol=0, equal_nan=True)
    if actual.is_floating_point():
        number = ~actual.isnan()
        assert torch.equal(actual[number].signbit(), expected[number].signbit())


def all_same_bits(actual: tuple[Tensor | None, ...], expected: tuple[Tensor | None, ...]) -> None:
    for a, b in zip(actual, expected, strict=True):
        assert (a is None) == (b is None)
        if a is not None:
            same_bits(a, b)
