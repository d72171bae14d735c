"""The compiled core: the only caller of `torch_gas._C`.

Every function checks its tensors by argument name and passes addresses on. `_C` checks values (ids,
ranges, row pointers) before it writes anything, releases the GIL and uses `torch.get_num_threads()`
threads; results do not depend on their number. Letters as in docs/design.md; `M` is the number of
rows moved.

The four calls that move rows work in three placements: everything on the host; everything on one
CUDA device; or the table in pinned host memory and the rows on a CUDA device. On a device they run
on its current stream and return at once. There ids are checked by the kernel, where a bad one is a
device-side assertion, as it is in torch.

A table in pageable host memory reaches a CUDA device by way of a pinned buffer, `staging`. These calls return at once,
too, and work as if they ran on the current stream of the device. The table and the buffer must live until that stream
has come past them.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import NamedTuple, NoReturn

import torch
from torch import Tensor

try:
    import torch_gas._C as _C
except ImportError as error:
    raise ImportError(
        f"the compiled core torch_gas._C could not be loaded ({error}): build it with `pip install "
        "-e .` in a checkout, or reinstall with `pip install --force-reinstall --no-cache-dir "
        "--no-deps torch-gas`; both need a C++17 compiler"
    ) from error

_FLOAT_TYPES = {
    torch.float32: _C.DType.f32,
    torch.float64: _C.DType.f64,
    torch.float16: _C.DType.f16,
    torch.bfloat16: _C.DType.bf16,
}
_COPIED_TYPES = (torch.int64, torch.int32, torch.uint8, torch.bool)
_PRODUCT_TYPES = (torch.float32, torch.float64)
_LARGE = 2**22  # bytes: two huge pages of most systems
_ID_BITS = {torch.int32: 32, torch.int64: 64}


class Subgraph(NamedTuple):
    """The one-hop subgraph of a batch in CSR form.

    Rows 0 .. B-1 are the nodes of the batch in the order of its ranges; columns B .. B+S-1 are the
    halo.

    Attributes:
        rowptr: Row pointers [B+1], of the id type of the graph.
        col: Local column ids [E_B] in 0 .. B+S-1, of the id type of the graph.
        e_id: Positions [E_B] of the edges in the column array of the graph, of the id type of the graph.
        n_id: Global ids [B+S] of the nodes of the batch and of the in-neighbours outside of it, the halo, which
            ascends; int64.
        edge_index: `col` and the local ids of the destinations, [2, E_B]; None unless asked for.
    """

    rowptr: Tensor
    col: Tensor
    e_id: Tensor
    n_id: Tensor
    edge_index: Tensor | None = None

    @property
    def halo(self) -> Tensor:
        """Global ids [S] of the halo."""
        return self.n_id[self.rowptr.numel() - 1 :]


class Staging(NamedTuple):
    """What pulls and pushes of pageable tables go through.

    Calls that share it run one after the other, from whatever streams they are made.

    Attributes:
        buffer: Pinned memory [bytes], uint8, used in two halves; a half must hold a row. Some MB keep the bus busy.
        stream: Fills or empties a half by functions on the host, while the other half is on the bus. Nothing else
            should run on it.
    """

    buffer: Tensor
    stream: torch.cuda.Stream


class Registration:
    """Keeps the memory of a tensor page-locked, and the memory itself, while it lives; see `register`."""

    def __init__(self, tensor: Tensor, device: int) -> None:
        # The storage, because a tensor can be given another one.
        self._memory = _C.HostRegistration(tensor.untyped_storage(), tensor.data_ptr(), tensor.nbytes, device)


def has_cuda() -> bool:
    """Tells whether the core was built with CUDA; says nothing about the presence of a device."""
    return bool(_C.has_cuda)


def subgraph(
    rowptr: Tensor, col: Tensor, start: Tensor, count: Tensor, *, ascending: bool = False, coo: bool = False
) -> Subgraph:
    """Extracts a batch with all edges into it (Section 2 of https://arxiv.org/abs/2106.05609).

    Equivalent to masking the edges whose destination lies in one of the ranges and renumbering
    their ends.

    Args:
        rowptr: Row pointers [N+1] of the graph; rows are destinations. int32 or int64.
        col: Column ids [E], sources. Same type as `rowptr`.
        start: First node of each part of the batch [P], int64, in the order wanted.
        count: Number of nodes of each part [P], int64.
        ascending: Whether the entries of each row are sorted by local column id; else they are in the order of `col`.
        coo: Whether to make `edge_index`, of which `col` is then the first row.

    Returns:
        The subgraph, the same for any number of threads.

    Raises:
        TypeError: An argument is no tensor or has a wrong type.
        ValueError: A shape is wrong, `rowptr` is no row pointer, or ranges overlap.
        IndexError: A range or a column lies outside the graph.

    Example:
        >>> import torch
        >>> rowptr, col = torch.tensor([0, 2, 3, 4]), torch.tensor([1, 2, 0, 0])
        >>> sub = subgraph(rowptr, col, start=torch.tensor([1]), count=torch.tensor([1]))
        >>> sub.col.tolist(), sub.e_id.tolist(), sub.n_id.tolist()
        ([1], [2], [1, 0])
    """
    call = "subgraph"
    rowptr, col = _ids(call, "rowptr", rowptr), _ids(call, "col", col, like=("rowptr", rowptr))
    start, count = _ranges(call, "start", start, count)
    threads = torch.get_num_threads()
    found = _C.Subgraph(
        _ID_BITS[rowptr.dtype], rowptr.data_ptr(), col.data_ptr(), _num_rows(call, rowptr), col.numel(),
        start.data_ptr(), count.data_ptr(), start.numel(), threads,
    )  # fmt: skip
    num_rows, num_edges, halo_size = found.sizes
    edge_index = _new((2, num_edges), col.dtype) if coo else None
    sub = Subgraph(
        _new(num_rows + 1, col.dtype),
        _new(num_edges, col.dtype) if edge_index is None else edge_index[0],
        _new(num_edges, col.dtype),
        _new(num_rows + halo_size, torch.int64),
        edge_index,
    )
    row = None if edge_index is None else edge_index[1]
    found.write(
        sub.rowptr.data_ptr(), sub.col.data_ptr(), _address(row), sub.e_id.data_ptr(), sub.n_id.data_ptr(),
        ascending, threads,
    )  # fmt: skip
    return sub


def transpose(
    rowptr: Tensor, col: Tensor, num_cols: int, dtype: torch.dtype | None = None
) -> tuple[Tensor, Tensor, Tensor]:
    """Transposes a CSR matrix [R, num_cols].

    Equivalent to a stable sort of the entries by column.

    Args:
        rowptr: Row pointers [R+1], int32 or int64.
        col: Column ids [nnz], same type.
        num_cols: Number of columns.
        dtype: Type of the result, int32 or int64; that of `rowptr` by default.

    Returns:
        `colptr` [num_cols+1], `row` [nnz] and `perm` [nnz], the position in `col` of each entry of the transpose, all of
        type `dtype`.

    Raises:
        TypeError: An argument is no tensor or has a wrong type.
        ValueError: A shape is wrong, `rowptr` is no row pointer, or R or nnz does not fit `dtype`.
        IndexError: A column lies outside 0 .. num_cols-1.

    Example:
        >>> import torch
        >>> [t.tolist() for t in transpose(torch.tensor([0, 2, 3]), torch.tensor([0, 2, 0]), 3)]
        [[0, 2, 2, 3], [0, 1, 0], [0, 2, 1]]
    """
    call = "transpose"
    rowptr, col = _ids(call, "rowptr", rowptr), _ids(call, "col", col, like=("rowptr", rowptr))
    num_rows = _num_rows(call, rowptr)
    _size(call, "num_cols", num_cols)
    dtype = dtype or col.dtype
    if dtype not in _ID_BITS:
        raise TypeError(f"{call}: `dtype` must be one of {_names(_ID_BITS)}, but is {dtype}")
    colptr, row, perm = (_new(size, dtype) for size in (num_cols + 1, col.numel(), col.numel()))
    _C.transpose(
        _ID_BITS[rowptr.dtype], rowptr.data_ptr(), col.data_ptr(), num_rows, num_cols, col.numel(),
        _ID_BITS[dtype], colptr.data_ptr(), row.data_ptr(), perm.data_ptr(), torch.get_num_threads(),
    )  # fmt: skip
    return colptr, row, perm


def to_csr(src: Tensor, dst: Tensor, num_nodes: int) -> tuple[Tensor, Tensor, Tensor]:
    """Sorts edges by destination, keeping the order of those with the same one.

    Equivalent to a stable sort of `dst`.

    Args:
        src: Sources [E], int32 or int64.
        dst: Destinations [E], same type.
        num_nodes: Number of nodes N.

    Returns:
        `rowptr` [N+1], `col` [E] and `perm` [E], the position in `src` of each entry of `col`, all of the type of `dst`.

    Raises:
        TypeError: An argument is no tensor or has a wrong type.
        ValueError: A shape is wrong, or E does not fit the type of `dst`.
        IndexError: An id lies outside 0 .. N-1.

    Example:
        >>> import torch
        >>> [t.tolist() for t in to_csr(torch.tensor([0, 1, 2]), torch.tensor([2, 0, 2]), 3)]
        [[0, 1, 1, 3], [1, 0, 2], [1, 0, 2]]
    """
    call = "to_csr"
    src, dst = _ids(call, "src", src), _ids(call, "dst", dst, like=("src", src))
    if src.numel() != dst.numel():
        raise ValueError(
            f"{call}: `src` and `dst` must be equally long, but have {src.numel()} and {dst.numel()} elements"
        )
    _size(call, "num_nodes", num_nodes)
    rowptr, col, perm = (_new(size, src.dtype) for size in (num_nodes + 1, src.numel(), src.numel()))
    _C.to_csr(
        _ID_BITS[src.dtype], src.data_ptr(), dst.data_ptr(), num_nodes, src.numel(),
        rowptr.data_ptr(), col.data_ptr(), perm.data_ptr(), torch.get_num_threads(),
    )  # fmt: skip
    return rowptr, col, perm


def adjacent_pairs(
    src: Tensor,
    dst: Tensor | None,
    rowptr: Tensor | None,
    num_nodes: int,
    weight: Tensor | None = None,
    dtype: torch.dtype = torch.int64,
) -> tuple[Tensor, Tensor, Tensor | None]:
    """The pairs of nodes that edges join, without self-loops and edges of weight 0.

    Equivalent to `torch.stack([torch.minimum(src, dst), torch.maximum(src, dst)]).unique(dim=1)`.

    Args:
        src: Sources [E], int32 or int64.
        dst: Destinations [E], same type; or None, with `rowptr`.
        rowptr: Row pointers [N+1] of edges sorted by destination, same type; or None, with `dst`.
        num_nodes: Number of nodes N.
        weight: Non-negative weights [E], float64.
        dtype: Type of `col`, int32 or int64.

    Returns:
        `rowptr` [N+1], int64, and `col` [U], ascending in each row and greater than it; with weights, their sums [U],
        float64. `col` and the sums are views of memory for E elements.

    Raises:
        TypeError: An argument is no tensor or has a wrong type.
        ValueError: A shape is wrong, `rowptr` is no row pointer, or ids do not fit `dtype`.
        IndexError: An id lies outside 0 .. N-1.

    Example:
        >>> import torch
        >>> src, dst = torch.tensor([0, 2, 1, 1]), torch.tensor([1, 1, 0, 1])
        >>> rowptr, col, _ = adjacent_pairs(src, dst, None, num_nodes=3)
        >>> rowptr.tolist(), col.tolist()
        ([0, 1, 2, 2], [1, 2])
    """
    call = "adjacent_pairs"
    src = _ids(call, "src", src)
    _size(call, "num_nodes", num_nodes)
    if (dst is None) == (rowptr is None):
        raise ValueError(f"{call}: one of `dst` and `rowptr` must be given, and the other be None")
    name, ends = ("dst", dst) if dst is not None else ("rowptr", rowptr)
    assert ends is not None
    ends = _ids(call, name, ends, like=("src", src))
    _length(call, name, ends, num_nodes + 1 if dst is None else src.numel())
    weight = None if weight is None else _numbers(call, "weight", weight, torch.float64, src.numel())
    if dtype not in _ID_BITS:
        raise TypeError(f"{call}: `dtype` must be one of {_names(_ID_BITS)}, but is {dtype}")
    out_rowptr = torch.empty(num_nodes + 1, dtype=torch.int64)
    col = torch.empty(src.numel(), dtype=dtype)
    sums = None if weight is None else torch.empty_like(weight)
    size = _C.adjacent_pairs(
        _ID_BITS[src.dtype], 0 if dst is not None else ends.data_ptr(), ends.data_ptr() if dst is not None else 0,
        src.data_ptr(), num_nodes, src.numel(), _address(weight), _ID_BITS[dtype], out_rowptr.data_ptr(),
        col.data_ptr(), _address(sums), torch.get_num_threads(),
    )  # fmt: skip
    return out_rowptr, col[:size], None if sums is None else sums[:size]


def symmetric(rowptr: Tensor, col: Tensor, weight: Tensor | None = None) -> tuple[Tensor, Tensor, Tensor | None]:
    """Both directions of pairs of nodes, as a CSR matrix whose rows ascend.

    Equivalent to the sum of the matrix and its transpose.

    Args:
        rowptr: Row pointers [N+1] from `adjacent_pairs`, int64.
        col: Column ids [U] from there, int32 or int64.
        weight: A weight for each pair [U], int64.

    Returns:
        `rowptr` [N+1], `col` [2 U] and, with weights, `weight` [2 U], all of the type of `col`, which must hold them.

    Raises:
        TypeError: An argument is no tensor or has a wrong type.
        ValueError: A shape is wrong, or 2 U does not fit the type of `col`.

    Example:
        >>> import torch
        >>> rowptr, col, _ = symmetric(torch.tensor([0, 1, 2, 2]), torch.tensor([1, 2]))
        >>> rowptr.tolist(), col.tolist()
        ([0, 1, 3, 4], [1, 0, 2, 1])
    """
    call = "symmetric"
    col = _ids(call, "col", col)
    rowptr = _numbers(call, "rowptr", rowptr, torch.int64, None)
    num_nodes = _num_rows(call, rowptr)
    weight = None if weight is None else _numbers(call, "weight", weight, torch.int64, col.numel())
    out_rowptr, out_col = col.new_empty(num_nodes + 1), col.new_empty(2 * col.numel())
    out_weight = None if weight is None else torch.empty_like(out_col)
    _C.symmetric(
        _ID_BITS[col.dtype], rowptr.data_ptr(), col.data_ptr(), _address(weight), num_nodes,
        out_rowptr.data_ptr(), out_col.data_ptr(), _address(out_weight),
    )  # fmt: skip
    return out_rowptr, out_col, out_weight


def stream_passes() -> int:
    """How many passes over the edges `stream_parts` makes at most."""
    return int(_C.stream_passes)


def stream_parts(
    rowptr: Tensor,
    col: Tensor,
    num_parts: int,
    seed: int,
    report: Callable[[float], object],
    edge_weight: Tensor | None = None,
    node_weight: Tensor | None = None,
) -> Tensor:
    """Parts by label propagation over the edges as they are stored; takes about 90 bytes a node and no copy of an edge.

    Args:
        rowptr: Row pointers [N+1] of the graph, int32 or int64.
        col: Column ids [E], same type.
        num_parts: Number of parts.
        seed: Decides the result together with the graph.
        report: Called after each pass with the share of edges that it saw between clusters or parts.
        edge_weight: Non-negative weights [E], float64.
        node_weight: Non-negative weights [N], int64.

    Returns:
        The part of each node [N], int64. None weighs more than 1.05 times the average, or than the average and the
        heaviest node where this is more (without node weights: than the average, rounded up).

    Raises:
        TypeError: An argument is no tensor or has a wrong type.
        ValueError: A shape is wrong, `rowptr` is no row pointer, or N or `num_parts` is too large.
        IndexError: A column lies outside 0 .. N-1.

    Example:
        >>> import torch
        >>> rowptr, col = torch.tensor([0, 1, 2, 3, 4]), torch.tensor([2, 3, 0, 1])
        >>> part = stream_parts(rowptr, col, num_parts=2, seed=0, report=lambda share: None)
        >>> bool(part[0] == part[2]), bool(part[1] == part[3]), bool(part[0] == part[1])
        (True, True, False)
    """
    call = "stream_parts"
    rowptr, col = _ids(call, "rowptr", rowptr), _ids(call, "col", col, like=("rowptr", rowptr))
    num_nodes = _num_rows(call, rowptr)
    _size(call, "num_parts", num_parts)
    _size(call, "seed", seed)
    if edge_weight is not None:
        edge_weight = _numbers(call, "edge_weight", edge_weight, torch.float64, col.numel())
    if node_weight is not None:
        node_weight = _numbers(call, "node_weight", node_weight, torch.int64, num_nodes)
    part = torch.empty(num_nodes, dtype=torch.int64)
    _C.stream_parts(
        _ID_BITS[rowptr.dtype], rowptr.data_ptr(), col.data_ptr(), _address(edge_weight), _address(node_weight),
        num_nodes, col.numel(), num_parts, seed, report, part.data_ptr(),
    )  # fmt: skip
    return part


def gather_rows(
    table: Tensor,
    index: Tensor,
    dtype: torch.dtype | None = None,
    *,
    out: Tensor | None = None,
    staging: Staging | None = None,
) -> Tensor:
    """Reads rows of a table, converted to `dtype`.

    Equivalent to `table[index].to(dtype)`; ids may repeat but not be negative.

    Args:
        table: Contiguous table [N, C], or [N] or [N, ...]: float32, float64, float16 and bfloat16,
            which convert into each other, or int64, int32, uint8 and bool, which are only copied.
        index: Ids of the rows [M], int32 or int64. The rows are returned on its device.
        dtype: Type of the result; that of `out` or of the table by default.
        out: Contiguous tensor [M, C] to write to instead of a new one.
        staging: Brings rows of a table in host memory to the device of its stream; `index` is on the host then.

    Returns:
        The rows [M, C].

    Raises:
        TypeError: An argument is no tensor or has a wrong type, or types do not convert.
        ValueError: A shape or a placement is wrong, or the table or `out` is not contiguous.
        IndexError: An id lies outside 0 .. N-1.
        RuntimeError: Tensors are on a CUDA device, but the core was built without CUDA.

    Example:
        >>> import torch
        >>> gather_rows(torch.tensor([[1.0], [2.0], [3.0]]), torch.tensor([2, 0]), torch.float16)
        tensor([[3.],
                [1.]], dtype=torch.float16)
    """
    call = "gather_rows"
    _table(call, table)
    index = _index(call, index)
    device = index.device
    if staging is not None:
        _staging(call, table, staging)
        _host(call, "index", index)
        device = staging.stream.device
    rows = _output(call, table, index.numel(), dtype, out, device)
    if staging is None and rows.device != device:
        raise ValueError(
            f"{call}: `index` and `out` must be on one device, but are on {device} and {rows.device}; move `index`"
        )
    _place(call, table, "index" if staging is None else "out", rows.device, staging)
    _move(call, table, rows, _ID_BITS[index.dtype], index.data_ptr(), staging=staging)
    return rows


def scatter_rows(table: Tensor, index: Tensor, rows: Tensor) -> None:
    """Writes rows of a table, converted to its type.

    Equivalent to `table[index] = rows`.

    Args:
        table: Contiguous table [N, C], as in `gather_rows`.
        index: Distinct ids of the rows [M], int32 or int64. On a CUDA device it is for the caller
            to see that they are.
        rows: The rows [M, C], on the device of `index`.

    Raises:
        TypeError: An argument is no tensor or has a wrong type, or types do not convert.
        ValueError: A shape or a placement is wrong, the table is not contiguous, or an id repeats.
        IndexError: An id lies outside 0 .. N-1.
        RuntimeError: Tensors are on a CUDA device, but the core was built without CUDA.

    Example:
        >>> import torch
        >>> table = torch.zeros(3, 1)
        >>> scatter_rows(table, torch.tensor([2, 0]), torch.tensor([[3.0], [1.0]]))
        >>> table.flatten().tolist()
        [1.0, 0.0, 3.0]
    """
    call = "scatter_rows"
    _table(call, table)
    index = _index(call, index)
    rows = _input_rows(call, table, index.numel(), rows)
    if rows.device != index.device:
        raise ValueError(
            f"{call}: `index` and `rows` must be on one device, but are on {index.device} and "
            f"{rows.device}; move `index`"
        )
    _place(call, table, "rows", rows.device)
    _move(call, table, rows, _ID_BITS[index.dtype], index.data_ptr())


def read_chunks(
    table: Tensor,
    offset: Tensor,
    count: Tensor,
    dtype: torch.dtype | None = None,
    *,
    out: Tensor | None = None,
    staging: Staging | None = None,
) -> Tensor:
    """Reads the rows of several ranges of a table, one after the other, converted to `dtype`.

    Equivalent to `torch.cat([table[o : o + c] for o, c in zip(offset, count)]).to(dtype)`.

    Args:
        table: Contiguous table [N, C], as in `gather_rows`.
        offset: First row of each range [P], int64, on the host.
        count: Number of rows of each range [P], int64, on the host.
        dtype: Type of the result; that of `out` or of the table by default.
        out: Contiguous tensor [M, C] to write to instead of a new one on the device of the table;
            `M` is the sum of `count`. With a table in pinned host memory, `out` may be on a CUDA
            device.
        staging: Brings rows of a table in host memory to the device of its stream, on which `out` must be.

    Returns:
        The rows [M, C].

    Raises:
        TypeError: An argument is no tensor or has a wrong type, or types do not convert.
        ValueError: A shape or a placement is wrong, or the table or `out` is not contiguous.
        IndexError: A range lies outside the table.
        RuntimeError: Tensors are on a CUDA device, but the core was built without CUDA.

    Example:
        >>> import torch
        >>> table = torch.arange(5.0).view(5, 1)
        >>> read_chunks(table, torch.tensor([3, 0]), torch.tensor([2, 1])).flatten().tolist()
        [3.0, 4.0, 0.0]
    """
    call = "read_chunks"
    _table(call, table)
    offset, count = _ranges(call, "offset", offset, count)
    # Counts that are out of range must reach the check of the core, and no allocation.
    num_moved = int(count.clamp(0, table.shape[0]).sum())
    device = table.device
    if staging is not None:
        _staging(call, table, staging)
        device = staging.stream.device
    rows = _output(call, table, num_moved, dtype, out, device)
    _place(call, table, "out", rows.device, staging)
    _move(call, table, rows, offset.data_ptr(), count.data_ptr(), offset.numel(), staging=staging)
    return rows


def is_table(value: object) -> bool:
    """Tells whether `value` is a tensor on the host whose rows the functions here move, and no gradient is lost by that."""
    if type(value) is not Tensor or value.layout != torch.strided or value.device.type != "cpu":
        return False
    moved = value.dtype in _FLOAT_TYPES or value.dtype in _COPIED_TYPES
    return moved and value.dim() > 0 and value.is_contiguous() and not value.requires_grad


def batch_rows(table: Tensor, offset: Tensor, count: Tensor, halo: Tensor) -> Tensor:
    """Reads the rows of a batch and of its halo.

    Equivalent to `torch.cat([read_chunks(table, offset, count), gather_rows(table, halo)])`.

    Args:
        table: Contiguous table [N, C] on the host, as in `gather_rows`.
        offset: First row of each part of the batch [P], int64.
        count: Number of rows of each part [P], int64.
        halo: Ids of the further rows [S], int32 or int64.

    Returns:
        The rows [B+S, C].

    Raises:
        TypeError, ValueError, IndexError: As in `read_chunks` and `gather_rows`.

    Example:
        >>> import torch
        >>> batch_rows(torch.arange(5.0), torch.tensor([3]), torch.tensor([2]), halo=torch.tensor([0]))
        tensor([3., 4., 0.])
    """
    _table("batch_rows", table)
    _index("batch_rows", halo)
    batch_size = int(count.clamp(0, table.shape[0]).sum())
    rows = _new((batch_size + halo.numel(), *table.shape[1:]), table.dtype)
    read_chunks(table, offset, count, out=rows[:batch_size])
    gather_rows(table, halo, out=rows[batch_size:])
    return rows


def write_chunks(table: Tensor, offset: Tensor, count: Tensor, rows: Tensor, *, staging: Staging | None = None) -> None:
    """Writes rows to several ranges of a table, one after the other, converted to its type.

    Equivalent to `table[o : o + c] = part` for the parts of `rows.split(count)`.

    Args:
        table: Contiguous table [N, C], as in `gather_rows`.
        offset: First row of each range [P], int64, on the host. Ranges must not overlap.
        count: Number of rows of each range [P], int64, on the host.
        rows: The rows [M, C]; `M` is the sum of `count`. With a table in pinned host memory they
            may be on a CUDA device.
        staging: Brings rows from the device of its stream to a table in host memory.

    Raises:
        TypeError: An argument is no tensor or has a wrong type, or types do not convert.
        ValueError: A shape or a placement is wrong, the table is not contiguous, ranges overlap, or
            `count` does not sum to the number of rows.
        IndexError: A range lies outside the table.
        RuntimeError: Tensors are on a CUDA device, but the core was built without CUDA.

    Example:
        >>> import torch
        >>> table, rows = torch.zeros(4, 1), torch.tensor([[9.0], [7.0], [8.0]])
        >>> write_chunks(table, torch.tensor([3, 0]), torch.tensor([1, 2]), rows)
        >>> table.flatten().tolist()
        [7.0, 8.0, 0.0, 9.0]
    """
    call = "write_chunks"
    _table(call, table)
    offset, count = _ranges(call, "offset", offset, count)
    rows = _input_rows(call, table, None, rows)
    if staging is not None:
        _staging(call, table, staging)
    _place(call, table, "rows", rows.device, staging)
    _move(call, table, rows, offset.data_ptr(), count.data_ptr(), offset.numel(), staging=staging)


def register(tensor: Tensor, device: torch.device | str) -> Registration:
    """Page-locks the memory of a tensor in place, so that CUDA devices read and write it themselves.

    Other than `pin_memory()`, this copies nothing, and takes no more memory than the tensor has.

    Args:
        tensor: Contiguous tensor of any shape and type on the host, of at least one byte.
        device: The CUDA device that is asked for it; it holds for all of them.

    Returns:
        What keeps the memory page-locked while it lives. When it goes, the device first finishes all its work.

    Raises:
        TypeError: `tensor` is no tensor.
        ValueError: The tensor is not on the host, not contiguous or empty, or `device` is no CUDA device.
        RuntimeError: The memory cannot be page-locked or is already, or the core was built without CUDA.
    """
    call = "register"
    _host(call, "tensor", tensor)
    _contiguous(call, "tensor", tensor)
    if tensor.nbytes == 0:
        raise ValueError(f"{call}: `tensor` must have elements, but has shape {list(tensor.shape)}")
    device = torch.device(device)
    if device.type != "cuda":
        raise ValueError(f'{call}: `device` must be a CUDA device, but is {device}; pass "cuda"')
    _built_with_cuda(call, "device", device)
    return Registration(tensor, torch.cuda.current_device() if device.index is None else device.index)


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
    _host(call, "tensor", tensor)
    _contiguous(call, "tensor", tensor)
    return bool(_C.advise_huge_pages(tensor.data_ptr(), tensor.nbytes))


def dropout(x: Tensor, p: float, seed: int, *, out: Tensor | None = None) -> Tensor:
    """Multiplies each element by 0 or 1 / (1 - p), at random.

    Equivalent to `x * keep / (1 - p)`, where the mask depends on `seed` and the shape of `x` only: element i of `x.flatten()`
    is kept if word i % 4 of Philox4x32-10 (https://doi.org/10.1145/2063384.2063405), for the key `seed` and the counter i // 4,
    is at least p * 2**32. As in torch, NaN and infinity times 0 are NaN, and with p = 1 everything is multiplied by 0.

    Args:
        x: Contiguous tensor of any shape on the host, float32, float64, float16 or bfloat16.
        p: Probability that an element is multiplied by 0, rounded to a multiple of 2**-32.
        seed: Number of 64 bits.
        out: Contiguous tensor of the type and shape of `x` to write to instead of a new one; it may be `x`.

    Returns:
        The result, of the type and shape of `x`; the same for any number of threads and on every machine.

    Raises:
        TypeError: An argument has a wrong type.
        ValueError: `x` or `out` is not on the host or not contiguous, shapes differ, memory overlaps partly, or `p` or `seed` is
            out of range.

    Example:
        >>> import torch
        >>> dropout(torch.ones(6), p=0.5, seed=0)
        tensor([0., 2., 2., 2., 2., 0.])
    """
    call = "dropout"
    _host(call, "x", x)
    if x.dtype not in _FLOAT_TYPES:
        _wrong_type(call, "x", x, _FLOAT_TYPES)
    _contiguous(call, "x", x)
    if not isinstance(p, (int, float)):
        raise TypeError(f"{call}: `p` must be a number, but is {type(p).__name__}")
    _size(call, "seed", seed)
    if seed >= 2**64:
        raise ValueError(f"{call}: `seed` must be less than 2**64, but is {seed}")
    if out is None:
        out = torch.empty(x.shape, dtype=x.dtype, device="cpu")
    else:
        _host(call, "out", out)
        _same_type(call, "out", out, "x", x)
        _contiguous(call, "out", out)
        if out.shape != x.shape:
            raise ValueError(f"{call}: `out` must have the shape of `x`, {list(x.shape)}, but has {list(out.shape)}")
        if 0 < abs(out.data_ptr() - x.data_ptr()) < x.nbytes:
            raise ValueError(f"{call}: `out` must be `x` or not overlap with it; leave it out, or pass other memory")
    _C.dropout(x.data_ptr(), out.data_ptr(), _FLOAT_TYPES[x.dtype], x.numel(), float(p), seed, torch.get_num_threads())
    if not out.is_inference():
        torch.autograd.graph.increment_version(out)
    return out


class Sparse(NamedTuple):
    """A sparse matrix [R, num_cols] in CSR form, of whose entries others keep the numbers.

    Attributes:
        rowptr: Row pointers [R+1], int32 or int64.
        col: Column ids [nnz], same type.
        num_cols: Number of columns.
        order: Where the numbers of each entry are, [nnz], of the same type and all different; in the order of the entries
            by default. So a matrix and its transpose share them.
        num_numbers: How many numbers others keep; nnz by default, more for some rows of a matrix.
    """

    rowptr: Tensor
    col: Tensor
    num_cols: int
    order: Tensor | None = None
    num_numbers: int | None = None

    @property
    def size(self) -> int:
        """How many numbers others keep."""
        return self.col.numel() if self.num_numbers is None else self.num_numbers

    def first(self, num_rows: int) -> Sparse:
        """The first rows of the matrix, which share its memory and the numbers of its entries."""
        if num_rows == self.rowptr.numel() - 1:
            return self
        rowptr = self.rowptr[: num_rows + 1]
        end = int(rowptr[-1])
        order = None if self.order is None else self.order[:end]
        return Sparse(rowptr, self.col[:end], self.num_cols, order, self.size)


def product(matrix: Sparse, rows: Tensor, weight: Tensor | None = None) -> Tensor:
    """Multiplies a sparse matrix with rows, for each head by weights of its own.

    Args:
        matrix: The matrix [R, num_cols].
        rows: What is multiplied, [num_cols, C] or [num_cols, H, C], float32 or float64.
        weight: The entries of the matrix, [nnz] or [nnz, H], of the type of `rows`; ones by default.

    Returns:
        The sums [R, C] or [R, H, C], the same for any number of threads.

    Raises:
        TypeError: An argument has a wrong type.
        ValueError: A shape is wrong or `matrix.rowptr` is no row pointer.
        IndexError: A column or a position in `matrix.order` is out of range.

    Example:
        >>> import torch
        >>> matrix = Sparse(torch.tensor([0, 2, 3]), torch.tensor([0, 2, 1]), num_cols=3)
        >>> product(matrix, torch.tensor([[1.0], [2.0], [4.0]])).tolist()
        [[5.0], [2.0]]
    """
    call = "product"
    checked, num_rows = _sparse(call, matrix)
    rows, heads, width = _heads(call, "rows", rows, matrix.num_cols)
    if weight is not None:
        weight = _entries(call, "weight", weight, matrix, heads, rows)
    out = rows.new_empty((num_rows, *rows.shape[1:]))
    _C.product(
        *_typed(checked, rows), 0 if weight is None else weight.data_ptr(), rows.data_ptr(), out.data_ptr(), heads,
        width, torch.get_num_threads(),
    )  # fmt: skip
    return out


def entry_dots(matrix: Sparse, left: Tensor, right: Tensor) -> Tensor:
    """The dot product of the rows that each entry of a matrix connects, for each head.

    The gradient of :func:`product` with regard to the weights, if `left` is that of the result and `right` its `rows`.

    Args:
        matrix: The matrix [R, num_cols].
        left: Rows [R, C] or [R, H, C], float32 or float64.
        right: Rows [num_cols, C] or [num_cols, H, C], of the same type.

    Returns:
        The dot products [nnz] or [nnz, H], the same for any number of threads.

    Raises:
        TypeError, ValueError, IndexError: As in :func:`product`.

    Example:
        >>> import torch
        >>> matrix = Sparse(torch.tensor([0, 2]), torch.tensor([0, 1]), num_cols=2)
        >>> entry_dots(matrix, torch.tensor([[1.0, 2.0]]), torch.tensor([[1.0, 0.0], [0.0, 1.0]])).tolist()
        [1.0, 2.0]
    """
    call = "entry_dots"
    checked, num_rows = _sparse(call, matrix)
    left, heads, width = _heads(call, "left", left, num_rows)
    right, *_ = _heads(call, "right", right, matrix.num_cols)
    _same_type(call, "right", right, "left", left)
    if left.shape[1:] != right.shape[1:]:
        raise ValueError(
            f"{call}: rows of `left` and `right` must have one shape, but have {list(left.shape[1:])} and "
            f"{list(right.shape[1:])}"
        )
    out = left.new_empty((matrix.col.numel(), *left.shape[1:-1]))
    _C.entry_dots(
        *_typed(checked, left), left.data_ptr(), right.data_ptr(), out.data_ptr(), heads, width, torch.get_num_threads()
    )
    return out


def entry_softmax(matrix: Sparse, left: Tensor, right: Tensor, slope: float) -> Tensor:
    """Softmax over the entries of each row of `leaky_relu(left[row] + right[column])`, for each head.

    Attention coefficients of GAT (https://arxiv.org/abs/1710.10903, Equation 3).

    Args:
        matrix: The matrix [R, num_cols].
        left: A number for each row, [R, H], float32 or float64.
        right: A number for each column, [num_cols, H], of the same type.
        slope: Factor of negative numbers.

    Returns:
        The coefficients [nnz, H], the same for any number of threads. They sum to 1 over each row that has entries.

    Raises:
        TypeError, ValueError, IndexError: As in :func:`product`.

    Example:
        >>> import torch
        >>> matrix = Sparse(torch.tensor([0, 2]), torch.tensor([0, 1]), num_cols=2)
        >>> entry_softmax(matrix, torch.zeros(1, 1), torch.ones(2, 1), slope=0.2).tolist()
        [[0.5], [0.5]]
    """
    call = "entry_softmax"
    checked, left, right = _scores(call, matrix, left, right)
    out = left.new_empty((matrix.col.numel(), left.shape[1]))
    _C.entry_softmax(
        *_typed(checked, left), left.data_ptr(), right.data_ptr(), slope, out.data_ptr(), left.shape[1],
        torch.get_num_threads(),
    )  # fmt: skip
    return out


def entry_softmax_backward(
    matrix: Sparse, left: Tensor, right: Tensor, slope: float, softmax: Tensor, grad: Tensor
) -> tuple[Tensor, Tensor]:
    """The gradients of :func:`entry_softmax`.

    Args:
        matrix, left, right, slope: As given to :func:`entry_softmax`.
        softmax: What it returned, [nnz, H].
        grad: The gradient of that, [nnz, H].

    Returns:
        The gradient of `left`, [R, H], and that of `left[row] + right[column]` for each entry, [nnz, H].

    Raises:
        TypeError, ValueError, IndexError: As in :func:`product`.

    Example:
        >>> import torch
        >>> matrix = Sparse(torch.tensor([0, 2]), torch.tensor([0, 1]), num_cols=2)
        >>> scores, grad = (torch.zeros(1, 1), torch.ones(2, 1)), torch.tensor([[1.0], [0.0]])
        >>> softmax = entry_softmax(matrix, *scores, slope=0.2)
        >>> [each.tolist() for each in entry_softmax_backward(matrix, *scores, 0.2, softmax, grad)]
        [[[0.0]], [[0.25], [-0.25]]]
    """
    call = "entry_softmax_backward"
    checked, left, right = _scores(call, matrix, left, right)
    heads = left.shape[1]
    softmax = _entries(call, "softmax", softmax, matrix, heads, left)
    grad = _entries(call, "grad", grad, matrix, heads, left)
    grad_left, grad_entry = torch.empty_like(left), torch.empty_like(softmax)
    _C.entry_softmax_backward(
        *_typed(checked, left), left.data_ptr(), right.data_ptr(), slope, softmax.data_ptr(), grad.data_ptr(),
        grad_left.data_ptr(), grad_entry.data_ptr(), heads, torch.get_num_threads(),
    )  # fmt: skip
    return grad_left, grad_entry


def _new(shape: int | tuple[int, ...], dtype: torch.dtype, device: torch.device | str = "cpu") -> Tensor:
    """An uninitialised tensor. Pages that a large one takes from the system are huge, because it clears them faster."""
    tensor = torch.empty(shape, dtype=dtype, device=device)
    if tensor.device.type == "cpu" and tensor.nbytes >= _LARGE:
        _C.advise_huge_pages(tensor.data_ptr(), tensor.nbytes)
    return tensor


def _move(call: str, table: Tensor, rows: Tensor, *where: int, staging: Staging | None = None) -> None:
    """Calls the core function on the host or on the current stream of the device of `rows`."""
    width = table.shape[1:].numel()
    if table.dtype == rows.dtype:
        width *= table.element_size()
        table_type = rows_type = _C.DType.bytes
    else:
        table_type, rows_type = _FLOAT_TYPES[table.dtype], _FLOAT_TYPES[rows.dtype]
    written = table if call in ("scatter_rows", "write_chunks") else rows
    arguments = (
        table.data_ptr(), table_type, table.shape[0], width, *where, rows.data_ptr(), rows_type,
        rows.shape[0],
    )  # fmt: skip
    if staging is not None:
        row_bytes = rows.shape[1:].numel() * rows.element_size()
        if staging.buffer.nbytes < 2 * row_bytes:
            raise ValueError(
                f"{call}: each half of `staging.buffer` must hold a row of {row_bytes} bytes, but the buffer has "
                f"{staging.buffer.nbytes}; it needs at least {2 * row_bytes}"
            )
        stream = torch.cuda.current_stream(rows.device)
        getattr(_C, f"staged_{call}")(
            *arguments, rows.device.index, stream.cuda_stream, staging.buffer.data_ptr(), staging.buffer.nbytes,
            staging.stream.cuda_stream, torch.get_num_threads(),
        )  # fmt: skip
    elif rows.is_cuda:
        stream = torch.cuda.current_stream(rows.device)
        getattr(_C, f"cuda_{call}")(*arguments, rows.device.index, stream.cuda_stream, not table.is_cuda)
    else:
        getattr(_C, call)(*arguments, torch.get_num_threads())
    if not written.is_inference():
        # Autograd must know if a tensor that it keeps for the backward pass has changed.
        torch.autograd.graph.increment_version(written)


def _place(call: str, table: Tensor, name: str, device: torch.device, staging: Staging | None = None) -> None:
    """Refuses placements in which rows on `device` cannot reach the table."""
    if staging is not None:
        if device != staging.stream.device:
            raise ValueError(
                f"{call}: `{name}` must be on the device of `staging.stream`, but they are on {device} and "
                f"{staging.stream.device}; move `{name}`"
            )
        _built_with_cuda(call, name, device)
        return
    pinned = device.type == "cuda" and table.device.type == "cpu" and table.is_pinned()
    if table.device != device and not pinned:
        fix = f"move `{name}` to {table.device}"
        if device.type == "cuda" and table.device.type == "cpu":
            fix = "pin the table with `pin_memory()`" + (" or pass `staging`" if call != "scatter_rows" else "")
        raise ValueError(
            f"{call}: the table must be on the device of `{name}` or, if that is a CUDA device, in "
            f"pinned host memory, but `table` is on {table.device} and `{name}` on {device}; {fix}"
        )
    if device.type not in ("cpu", "cuda"):
        raise ValueError(
            f"{call}: rows move in host memory and on CUDA devices, but `{name}` is on {device}; "
            "keep the table on the host"
        )
    if device.type == "cuda":
        _built_with_cuda(call, name, device)


def _staging(call: str, table: Tensor, staging: Staging) -> None:
    if not isinstance(staging, Staging):
        raise TypeError(f"{call}: `staging` must be a Staging, but is {type(staging).__name__}")
    if table.device.type != "cpu":
        raise ValueError(f"{call}: `staging` is for tables on the host, but `table` is on {table.device}; leave it out")
    buffer = staging.buffer
    _host(call, "staging.buffer", buffer)
    _vector(call, "staging.buffer", buffer)
    _contiguous(call, "staging.buffer", buffer)
    if buffer.dtype != torch.uint8:
        _wrong_type(call, "staging.buffer", buffer, [torch.uint8])
    if buffer.data_ptr() % 8 != 0:
        raise ValueError(f"{call}: `staging.buffer` must start at a multiple of 8 bytes; pass all of the memory")
    if not isinstance(staging.stream, torch.cuda.Stream):
        raise TypeError(f"{call}: `staging.stream` must be a torch.cuda.Stream, but is {type(staging.stream).__name__}")
    if not buffer.is_pinned():
        raise ValueError(
            f"{call}: `staging.buffer` must be pinned; make it with `torch.empty(size, dtype=torch.uint8, "
            "pin_memory=True)`"
        )


def _built_with_cuda(call: str, name: str, device: torch.device) -> None:
    if not has_cuda():
        raise RuntimeError(
            f"{call}: `{name}` is on {device}, but torch_gas was built without CUDA; install the "
            "CUDA toolkit and reinstall with `TORCH_GAS_CUDA=1 pip install --force-reinstall "
            "--no-cache-dir --no-deps torch-gas`"
        )


def _output(
    call: str,
    table: Tensor,
    num_rows: int,
    dtype: torch.dtype | None,
    out: Tensor | None,
    device: torch.device,
) -> Tensor:
    """Returns the tensor to write rows to."""
    if out is None:
        _convertible(call, table, "dtype", dtype or table.dtype)
        return _new((num_rows, *table.shape[1:]), dtype or table.dtype, device)
    _tensor(call, "out", out)
    _convertible(call, table, "out", out.dtype)
    _contiguous(call, "out", out)
    _rows_shape(call, "out", out, table, num_rows)
    if dtype is not None and dtype != out.dtype:
        raise TypeError(f"{call}: `out` must be of the type asked for ({dtype}), but is {out.dtype}; leave `dtype` out")
    return out


def _input_rows(call: str, table: Tensor, num_rows: int | None, rows: Tensor) -> Tensor:
    _tensor(call, "rows", rows)
    _convertible(call, table, "rows", rows.dtype)
    _rows_shape(call, "rows", rows, table, num_rows)
    return rows.contiguous()


def _rows_shape(call: str, name: str, rows: Tensor, table: Tensor, num_rows: int | None) -> None:
    if num_rows is None and rows.dim() > 0:
        num_rows = rows.shape[0]
    if rows.dim() != table.dim() or rows.shape != (num_rows, *table.shape[1:]):
        wanted = ["M" if num_rows is None else num_rows, *table.shape[1:]]
        raise ValueError(
            f"{call}: `{name}` must have one row of the table's shape for each row moved, "
            f"[{', '.join(map(str, wanted))}], but has shape {list(rows.shape)}; rows are never "
            "broadcast"
        )


def _convertible(call: str, table: Tensor, name: str, dtype: torch.dtype) -> None:
    if dtype != table.dtype and not (dtype in _FLOAT_TYPES and table.dtype in _FLOAT_TYPES):
        raise TypeError(
            f"{call}: `{name}` must have the type of the table, or both must be one of "
            f"{_names(_FLOAT_TYPES)}, but the table is {table.dtype} and `{name}` {dtype}; convert "
            "one of them with `.to()`"
        )


def _table(call: str, table: Tensor) -> None:
    _tensor(call, "table", table)
    if table.dtype not in _FLOAT_TYPES and table.dtype not in _COPIED_TYPES:
        _wrong_type(call, "table", table, [*_FLOAT_TYPES, *_COPIED_TYPES])
    if table.dim() == 0:
        raise ValueError(f"{call}: `table` must have rows, but is a single number")
    _contiguous(call, "table", table)


def _index(call: str, index: Tensor) -> Tensor:
    _tensor(call, "index", index)
    if index.dtype not in _ID_BITS:
        _wrong_type(call, "index", index, _ID_BITS)
    _vector(call, "index", index)
    return index.contiguous()


def _ids(call: str, name: str, ids: Tensor, like: tuple[str, Tensor] | None = None) -> Tensor:
    _host(call, name, ids)
    if ids.dtype not in _ID_BITS:
        _wrong_type(call, name, ids, _ID_BITS)
    if like is not None:
        _same_type(call, name, ids, *like)
    _vector(call, name, ids)
    return ids.contiguous()


def _numbers(call: str, name: str, value: Tensor, dtype: torch.dtype, length: int | None) -> Tensor:
    _host(call, name, value)
    if value.dtype != dtype:
        _wrong_type(call, name, value, [dtype])
    _vector(call, name, value)
    if length is not None:
        _length(call, name, value, length)
    return value.contiguous()


def _length(call: str, name: str, value: Tensor, length: int) -> None:
    if value.numel() != length:
        raise ValueError(f"{call}: `{name}` must have {length} elements, but has {value.numel()}")


def _address(value: Tensor | None) -> int:
    return 0 if value is None else value.data_ptr()


def _ranges(call: str, name: str, start: Tensor, count: Tensor) -> tuple[Tensor, Tensor]:
    for argument, value in ((name, start), ("count", count)):
        _host(call, argument, value)
        if value.dtype != torch.int64:
            _wrong_type(call, argument, value, [torch.int64])
        _vector(call, argument, value)
    if start.numel() != count.numel():
        raise ValueError(
            f"{call}: `{name}` and `count` must be equally long, but have {start.numel()} and {count.numel()} elements"
        )
    return start.contiguous(), count.contiguous()


def _sparse(call: str, matrix: Sparse) -> tuple[Sparse, int]:
    """The matrix with contiguous tensors, and its number of rows."""
    rowptr = _ids(call, "rowptr", matrix.rowptr)
    col = _ids(call, "col", matrix.col, like=("rowptr", rowptr))
    _size(call, "num_cols", matrix.num_cols)
    order = matrix.order
    if order is not None:
        order = _ids(call, "order", order, like=("rowptr", rowptr))
        if order.numel() != col.numel():
            raise ValueError(
                f"{call}: `order` must have a position for each entry, [{col.numel()}], but has {order.numel()}"
            )
    _size(call, "num_numbers", matrix.size)
    if matrix.size < col.numel() or (matrix.size > col.numel() and call != "product"):
        raise ValueError(
            f"{call}: there must be a number for each entry, {col.numel()}, but `num_numbers` is {matrix.size}"
        )
    return Sparse(rowptr, col, matrix.num_cols, order, matrix.size), _num_rows(call, rowptr)


def _typed(matrix: Sparse, elements: Tensor) -> tuple[object, ...]:
    """Types, addresses and sizes of a checked matrix."""
    order = 0 if matrix.order is None else matrix.order.data_ptr()
    sizes = (matrix.rowptr.numel() - 1, matrix.num_cols, matrix.col.numel(), matrix.size)
    types = (_ID_BITS[matrix.rowptr.dtype], _FLOAT_TYPES[elements.dtype])
    return (*types, matrix.rowptr.data_ptr(), matrix.col.data_ptr(), order, *sizes)


def _heads(call: str, name: str, rows: Tensor, num_rows: int) -> tuple[Tensor, int, int]:
    """Contiguous rows, their heads and the width of a head."""
    _host(call, name, rows)
    if rows.dtype not in _PRODUCT_TYPES:
        _wrong_type(call, name, rows, _PRODUCT_TYPES)
    if rows.dim() not in (2, 3) or rows.shape[0] != num_rows:
        raise ValueError(
            f"{call}: `{name}` must have shape [{num_rows}, C] or [{num_rows}, H, C], but has {list(rows.shape)}"
        )
    return rows.contiguous(), rows.shape[1] if rows.dim() == 3 else 1, rows.shape[-1]


def _entries(call: str, name: str, value: Tensor, matrix: Sparse, heads: int, like: Tensor) -> Tensor:
    """Contiguous numbers for each entry and head."""
    _host(call, name, value)
    if value.dtype != like.dtype:
        raise TypeError(f"{call}: `{name}` must be {like.dtype} as the rows are, but is {value.dtype}")
    size = matrix.size
    if value.shape != (size, heads) and (heads > 1 or value.shape != (size,)):
        raise ValueError(
            f"{call}: `{name}` must have a number for each entry and head, [{size}, {heads}], but has shape "
            f"{list(value.shape)}"
        )
    return value.contiguous()


def _scores(call: str, matrix: Sparse, left: Tensor, right: Tensor) -> tuple[Sparse, Tensor, Tensor]:
    """The checked matrix, and contiguous scores of its rows and columns."""
    checked, num_rows = _sparse(call, matrix)
    for name, value, size in (("left", left, num_rows), ("right", right, matrix.num_cols)):
        _host(call, name, value)
        if value.dtype not in _PRODUCT_TYPES:
            _wrong_type(call, name, value, _PRODUCT_TYPES)
        if value.dim() != 2 or value.shape[0] != size or value.shape[1] != left.shape[1]:
            raise ValueError(
                f"{call}: `{name}` must have a number for each of {size} rows and each head, but has shape "
                f"{list(value.shape)}"
            )
    _same_type(call, "right", right, "left", left)
    return checked, left.contiguous(), right.contiguous()


def _num_rows(call: str, rowptr: Tensor) -> int:
    if rowptr.numel() == 0:
        raise ValueError(f"{call}: `rowptr` must have one element more than there are rows, but is empty")
    return rowptr.numel() - 1


def _size(call: str, name: str, size: int) -> None:
    if not isinstance(size, int) or isinstance(size, bool):
        raise TypeError(f"{call}: `{name}` must be an int, but is {type(size).__name__}")
    if size < 0:
        raise ValueError(f"{call}: `{name}` must not be negative, but is {size}")


def _tensor(call: str, name: str, value: object) -> None:
    if not isinstance(value, Tensor):
        raise TypeError(f"{call}: `{name}` must be a torch.Tensor, but is {type(value).__name__}")
    if value.layout != torch.strided:
        raise TypeError(f"{call}: `{name}` must be a dense tensor, but its layout is {value.layout}")


def _host(call: str, name: str, value: Tensor) -> None:
    _tensor(call, name, value)
    if value.device.type != "cpu":
        raise ValueError(f"{call}: `{name}` must be on the host, but is on {value.device}; pass `{name}.cpu()`")


def _vector(call: str, name: str, value: Tensor) -> None:
    if value.dim() != 1:
        raise ValueError(f"{call}: `{name}` must have one dimension, but has shape {list(value.shape)}")


def _contiguous(call: str, name: str, value: Tensor) -> None:
    if not value.is_contiguous():
        raise ValueError(
            f"{call}: `{name}` must be contiguous, but has shape {list(value.shape)} and strides "
            f"{list(value.stride())}; pass a tensor made with `{name}.contiguous()`"
        )


def _same_type(call: str, name: str, value: Tensor, other_name: str, other: Tensor) -> None:
    if value.dtype != other.dtype:
        raise TypeError(
            f"{call}: `{name}` must have the type of `{other_name}` ({other.dtype}), but is "
            f"{value.dtype}; pass `{name}.to({other.dtype})`"
        )


def _wrong_type(call: str, name: str, value: Tensor, valid: Iterable[torch.dtype]) -> NoReturn:
    raise TypeError(f"{call}: `{name}` must be one of {_names(valid)}, but is {value.dtype}")


def _names(types: Iterable[torch.dtype]) -> str:
    return ", ".join(str(dtype).removeprefix("torch.") for dtype in types)
