"""Message passing as sparse products: the edges of an adjacency in both orders, and functions with gradients.

PyG computes messages edge by edge over an ``edge_index``, and where it has a product, the backward pass sorts the edges again
each time. Here edges are put in both orders once, and kept with the adjacency for all layers, steps and epochs: on the CPU
by :class:`Edges`, for the kernels of the core, on a GPU by :class:`DeviceEdges`, for those of torch.
"""

from __future__ import annotations

import copy
import functools
from typing import Any, NamedTuple, cast

import torch
from torch import Tensor
from torch.utils.weak import WeakIdKeyDictionary

from torch_gas import _core
from torch_gas._util.tracing import unseen
from torch_gas._util.version import version
from torch_gas.graph.attributes import pattern
from torch_gas.graph.checks import check_ids
from torch_gas.graph.device import DeviceEdges, pass_on
from torch_gas.graph.edges import stored_csr, to_csr
from torch_gas.graph.format import resized_pointers
from torch_gas.graph.formats import find_format, format_of, in_memory, is_csr, resize
from torch_gas.graph.halo import batch_rows, join, whole
from torch_gas.graph.mirror import Mirror, Need

_kept: Any = WeakIdKeyDictionary()  # by adjacency: what was computed from it
_told: Any = WeakIdKeyDictionary()  # by adjacency: the versions of its tensors, and another one that has the same edges

_SAMPLE = 512  # lines of the tensors of a whole graph, which take some microseconds


class Edges:
    """The edges of an adjacency by destination and, once somebody needs a gradient, by source.

    Numbers of edges (weights, attention coefficients) stay in the user's order.

    Args:
        adj: the adjacency, in any format, on the CPU.
        num_dst: rows of the result.
        num_src: rows of what is multiplied.

    Raises:
        IndexError: if an edge starts or ends outside of these rows.
    """

    def __init__(self, adj: Any, num_dst: int, num_src: int) -> None:
        known = format_of(adj)
        csr = stored_csr(adj, num_dst)
        if csr is None:
            check_ids(cast(Tensor, known.stored_edges(adj).dst), num_dst, "the destinations of the adjacency")
            csr = to_csr(adj, max(num_dst, num_src))
        rowptr, col, _, perm = csr
        # For autograd, which then finds out if one was written to before the backward pass. Values are weights, and not edges.
        tensors = known.tensors(adj)
        self.stated = [tensor.detach() for tensor in tensors if not tensor.is_floating_point()]
        if _tells_no_change(tensors):
            self.stated, rowptr, col = [], rowptr.clone(), col.clone()
        # Detached: views would keep the adjacency alive, by which they are kept.
        rowptr, col = _of_size(rowptr, num_dst).detach(), col.detach()
        check_ids(col, num_src, "the sources of the adjacency")
        self.num_dst = num_dst
        self.by_destination = _core.Sparse(rowptr, col, num_src, perm)
        self._by_source = _BySource(self.by_destination)

    @property
    def needs(self) -> Need:
        """What the last backward pass did, over however many destinations."""
        return self._by_source.needs

    def prepare(self, need: Need, num_rows: int, weight: Tensor | None) -> None:
        """Computes what others needed, ahead of the step: of all rows, or for the gradient of so many and with these weights."""
        if need == "transpose":
            self.transpose  # noqa: B018  # kept
        elif need == "mirror":
            self._by_source.mirrored(num_rows, weight)

    @property
    def by_source(self) -> _core.Sparse:
        """:attr:`transpose`, for a caller who multiplies by it."""
        self._by_source.needs = "transpose"
        return self.transpose

    @property
    def transpose(self) -> _core.Sparse:
        """The transpose of ``by_destination``."""
        return self._by_source.matrix._replace(num_cols=self.num_dst)

    def first_by_source(self, num_rows: int, weight: Tensor | None) -> _core.Sparse:
        """The first rows of the transpose, whose entries have the numbers ``weight``: of the matrix, where both are alike."""
        found = self._by_source.mirrored(num_rows, weight)
        return self.by_source.first(num_rows) if found is None else found._replace(num_cols=self.num_dst)

    def resized(self, num_dst: int) -> Edges:
        """The same edges, and what is computed of them later, with destinations without edges added or cut off at the end.

        Raises:
            IndexError: if an edge ends at one that would be cut off.
        """
        rowptr = self.by_destination.rowptr
        if num_dst < self.num_dst and int(rowptr[num_dst]) < int(rowptr[-1]):
            raise IndexError(f"the adjacency has edges into destinations beyond the {num_dst} of this layer")
        other = copy.copy(self)
        other.num_dst = num_dst
        other.by_destination = self.by_destination._replace(rowptr=_of_size(rowptr, num_dst))
        return other

    @classmethod
    def of(cls, adj: Any, num_dst: int, num_src: int) -> Edges:
        """As the class itself."""
        return cls(adj, num_dst, num_src)

    @property
    def degrees(self) -> Tensor:
        """The number of edges into each destination, [num_dst]."""
        return self.by_destination.rowptr.diff()

    def matrix(self, transposed: bool) -> _core.Sparse:
        """The matrix [num_dst, num_src], or its transpose."""
        return self.by_source if transposed else self.by_destination

    def multiply(
        self, rows: Tensor, weight: Tensor | None, transposed: bool, num_rows: int | None = None, mean: bool = False
    ) -> Tensor:
        """The matrix, or its transpose, times ``rows``; the first ``num_rows`` of the result, or all.

        For the ``mean``, each row of the result is divided by its number of entries.
        """
        if num_rows is None:
            matrix = self.matrix(transposed)
        elif transposed:
            matrix = self.first_by_source(num_rows, weight)
        else:
            matrix = self.by_destination.first(num_rows)
        return _core.product(matrix, rows, weight, mean)

    def dots(self, left: Tensor, right: Tensor, transposed: bool) -> Tensor:
        """The dot product of the rows of ``left`` and ``right`` that each edge connects, [E] or, for each head, [E, H]."""
        left, right = (rows.to(sum_type(rows.dtype)) for rows in (left, right))
        return _core.entry_dots(self.matrix(transposed), left, right)


class _BySource:
    """The edges of a matrix by source, which are the same however many destinations without edges it has.

    Attributes:
        needs: what the last backward pass did.
    """

    def __init__(self, by_destination: _core.Sparse) -> None:
        self._by_destination = by_destination
        # Lists of edges in no order mirror nothing.
        self._mirror = Mirror(by_destination) if by_destination.order is None else None
        self.needs: Need = ""

    def mirrored(self, num_rows: int, weight: Tensor | None) -> _core.Sparse | None:
        """The first rows of :attr:`matrix`, where it takes none to have them."""
        if self._mirror is None or "matrix" in vars(self):
            return None
        found = self._mirror.first(num_rows, weight)
        if found is not None:
            self.needs = "mirror"
        return found

    @functools.cached_property
    def matrix(self) -> _core.Sparse:
        """The transpose, in 32-bit ids where they suffice: it is written once and read in each layer."""
        rowptr, col, num_src, order, *_ = self._by_destination
        num_dst = rowptr.numel() - 1
        dtype = torch.int32 if max(col.numel(), num_dst) < 2**31 else col.dtype
        colptr, row, perm = _core.transpose(rowptr, col, num_src, dtype=dtype)
        return _core.Sparse(colptr, row, num_dst, perm if order is None else order.index_select(0, perm).to(dtype))


def _of_size(rowptr: Tensor, num_dst: int) -> Tensor:
    """Row pointers of ``num_dst`` rows, a view where there are as many."""
    return rowptr[: num_dst + 1] if num_dst < rowptr.numel() else resized_pointers(rowptr, num_dst)


class _Kept(NamedTuple):
    """What was computed from an adjacency.

    Args:
        state: of the adjacency.
        sample: of its tensors, where they were those of a whole graph; else 0.
        edges: by the number of destinations.
    """

    state: tuple[int, ...]
    sample: int
    edges: dict[int, Edges | DeviceEdges | None]


_CLASSES: dict[str, type[Edges | DeviceEdges]] = {"cpu": Edges, "cuda": DeviceEdges}


def edges_of(adj: Any, num_dst: int, num_src: int) -> Edges | DeviceEdges | None:
    """The edges of ``adj``, computed once; None where they are no matrix of numbers, or are not in order on a GPU."""
    known = find_format(adj)
    holder = None if known is None else known.holder(adj)
    if known is None or holder is None:
        return None
    values = known.values(adj)
    if values is not None and not is_weight(values):
        return None
    tensors = known.tensors(adj)
    kind = _CLASSES.get(tensors[0].device.type)
    if kind is None or _tells_no_change(tensors):
        return None if kind is None else kind.of(adj, num_dst, num_src)
    versions = tuple(map(version, tensors))
    told, other = _told.get(holder, (None, None))
    if told == versions and kind is Edges:
        return edges_of(other, num_dst, num_src)
    # Whole graphs are looked at as well, because users keep them, and write to them in ways that torch does not count.
    sample = _core.fingerprint(in_memory(tensors), _SAMPLE) if num_dst == num_src else 0
    kept = _kept.get(holder)
    if kept is None or kept.state != (num_src, *versions) or (sample and kept.sample and sample != kept.sample):
        kept = _Kept((num_src, *versions), sample, {})
    if num_dst not in kept.edges:
        first = next(iter(kept.edges.values()), None)
        kept.edges[num_dst] = first.resized(num_dst) if isinstance(first, Edges) else kind.of(adj, num_dst, num_src)
    _kept[holder] = kept._replace(sample=sample or kept.sample)
    return cast("Edges | DeviceEdges | None", kept.edges[num_dst])


def resized(value: Any, num_dst: int, num_src: int) -> Any:
    """As :func:`~torch_gas.graph.formats.resize`; what is known and computed of the edges serves the result as well."""
    result = resize(value, num_dst, num_src)
    if result is not value:
        pass_on(value, result)
        holder = format_of(result).holder(result)
        _told[holder] = tuple(map(version, format_of(result).tensors(result))), value
    return result


def forget_edges(adj: Any) -> None:
    """Has :func:`edges_of` look at ``adj`` anew, in which others have found other edges."""
    holder = format_of(adj).holder(adj)
    if holder is not None:  # of an inference tensor, nothing is kept
        _kept.pop(holder, None)


def _tells_no_change(tensors: list[Tensor]) -> bool:
    """Whether an adjacency was made in inference mode, where writes to its tensors are not counted."""
    return any(tensor.is_inference() for tensor in tensors)


def kept_edges(adj: Any) -> Edges | DeviceEdges | None:
    """What :func:`edges_of` computed last for ``adj``, if anything."""
    holder = format_of(adj).holder(adj)
    kept = None if holder is None else _kept.get(holder)
    return None if kept is None else next(iter(kept.edges.values()))


def is_weight(value: Any) -> bool:
    """Whether it is a number for each edge."""
    return isinstance(value, Tensor) and value.dim() == 1 and value.is_floating_point()


class _Product(torch.autograd.Function):
    """A matrix times rows; the gradient is the transpose times its gradient.

    Given ``full`` as well, that is what the matrix is multiplied with, and ``rows`` are its first, which alone have a gradient;
    they may have a wider type. For the ``mean``, sums are divided by the number of edges.
    """

    @staticmethod
    def forward(
        ctx: Any,
        rows: Tensor,
        weight: Tensor | None,
        edges: Any,
        transposed: bool,
        full: Tensor | None = None,
        mean: bool = False,
    ) -> Tensor:
        ctx.edges, ctx.transposed, ctx.num_rows, ctx.dtype = edges, transposed, rows.size(0), rows.dtype
        ctx.mean = mean
        needs_weight = ctx.needs_input_grad[1]
        ctx.save_for_backward(rows if needs_weight else None, full if needs_weight else None, weight, *edges.stated)
        return cast(Tensor, unseen(edges.multiply, rows if full is None else full, weight, transposed, None, mean))

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, Tensor | None, None, None, None, None]:
        rows, full, weight, *_ = ctx.saved_tensors
        needs_rows, needs_weight, *_ = ctx.needs_input_grad
        grad_rows = grad_weight = None
        grad = _divided(grads[0], ctx.edges.degrees) if ctx.mean else grads[0]
        if needs_rows and torch.is_grad_enabled():
            grad_rows = _Product.apply(grad, weight, ctx.edges, not ctx.transposed)[: ctx.num_rows].to(ctx.dtype)
        elif needs_rows:
            grad_rows = ctx.edges.multiply(grad, weight, not ctx.transposed, ctx.num_rows).to(ctx.dtype)
        if needs_weight:
            right = rows if full is None else join(rows, full.to(rows.dtype))
            grad_weight = _Dots.apply(grad, right, ctx.edges, ctx.transposed)
        return grad_rows, grad_weight, None, None, None, None


def _divided(rows: Tensor, degrees: Tensor) -> Tensor:
    """Rows [num_dst, C] or [num_dst, H, C] over the number of edges into each, in their type."""
    count = degrees.clamp(min=1).to(sum_type(rows.dtype)).view(-1, *[1] * (rows.dim() - 1))
    return (rows / count).to(rows.dtype)


def sum_type(dtype: torch.dtype) -> torch.dtype:
    """The type that rows of ``dtype`` are summed up in."""
    return dtype if dtype == torch.float64 else torch.float32


class _Dots(torch.autograd.Function):
    """Dot products of the rows that edges connect: the gradient of a product with regard to its weights."""

    @staticmethod
    def forward(ctx: Any, left: Tensor, right: Tensor, edges: Any, transposed: bool) -> Tensor:
        ctx.edges, ctx.transposed = edges, transposed
        ctx.save_for_backward(left, right, *edges.stated)
        return cast(Tensor, edges.dots(left, right, transposed))

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, Tensor, None, None]:
        left, right, *_ = ctx.saved_tensors
        grad_left = _Product.apply(right, grads[0], ctx.edges, ctx.transposed)
        return grad_left, _Product.apply(left, grads[0], ctx.edges, not ctx.transposed), None, None


class _Softmax(torch.autograd.Function):
    """Attention coefficients of GAT."""

    @staticmethod
    def forward(ctx: Any, dst: Tensor, src: Tensor, slope: float, edges: Edges) -> Tensor:
        softmax = unseen(_core.entry_softmax, edges.by_destination, dst, src, slope)
        ctx.slope, ctx.edges = slope, edges
        ctx.save_for_backward(dst, src, softmax, *edges.stated)
        return softmax

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, Tensor, None, None]:
        dst, src, softmax, *_ = ctx.saved_tensors
        if torch.is_grad_enabled():
            return *_softmax_backward(ctx.edges, dst, src, ctx.slope, softmax, grads[0]), None, None
        matrix, (rowptr, _, _, order, *_) = ctx.edges.by_destination, ctx.edges.by_source
        grad_dst, grad_edge = _core.entry_softmax_backward(matrix, dst, src, ctx.slope, softmax, grads[0])
        return grad_dst, _core.product(_core.Sparse(rowptr, order, grad_edge.size(0)), grad_edge), None, None


def _softmax_backward(
    edges: Edges, dst: Tensor, src: Tensor, slope: float, softmax: Tensor, grad: Tensor
) -> tuple[Tensor, Tensor]:
    """The gradients of destinations and sources, by functions that have gradients themselves."""
    ones_dst, ones_src = torch.ones_like(dst), torch.ones_like(src)
    scores = _Dots.apply(torch.stack([dst, ones_dst], -1), torch.stack([ones_src, src], -1), edges, False)
    ones_dst, ones_src = ones_dst.unsqueeze(-1), ones_src.unsqueeze(-1)
    mean = _Dots.apply(_Product.apply(ones_src, softmax * grad, edges, False), ones_src, edges, False)
    grad_edge = softmax * (grad - mean) * torch.where(scores > 0, 1.0, slope)
    grad_dst = _Product.apply(ones_src, grad_edge, edges, False)
    grad_src = _Product.apply(ones_dst, grad_edge, edges, True)
    return grad_dst.squeeze(-1), grad_src.squeeze(-1)


def aggregate(rows: Tensor, edges: Edges | DeviceEdges, weight: Tensor | None = None, mean: bool = False) -> Tensor:
    """The sum or mean of each destination's sources, [num_dst, C] or [num_dst, H, C].

    Types of less than 32 bits are summed up in float32. On the CPU and under ``torch.autocast`` to bfloat16, rows are read in
    that type, which is also the result's, as it is with a linear layer.

    Args:
        rows: [num_src, C] or, for each head and on the CPU only, [num_src, H, C], on the device of the edges.
        edges: the edges.
        weight: a number for each edge, [E], or for each edge and head, [E, H], that its row is multiplied by.
        mean: whether sums are divided by the number of edges.

    Raises:
        TypeError: if ``rows`` are a sparse matrix.
    """
    if is_csr(rows):
        raise TypeError("this layer sums its input over edges, which takes dense features: data.x = data.x.to_dense()")
    dtype, own = rows.dtype, batch_rows(rows)  # the only ones that need a gradient, where they are known
    read = _core.PRODUCT_TYPES if isinstance(edges, Edges) else ()
    if torch.is_autocast_enabled("cpu") and isinstance(edges, Edges) and dtype == torch.float32:
        dtype = torch.get_autocast_dtype("cpu")
        dtype = dtype if dtype in read else torch.float32
    x = whole(rows).to(dtype if dtype in read else sum_type(dtype))
    weight = None if weight is None else weight.to(sum_type(dtype))
    full = None if own is None else x.detach()
    return cast(Tensor, _Product.apply(x if own is None else own, weight, edges, False, full, mean)).to(dtype)


def linear(x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    """:func:`torch.nn.functional.linear` of a sparse matrix on the CPU, whose gradient sorts no entries but the first time.

    Args:
        x: features as a ``torch.sparse_csr`` matrix, [N, C_in].
        weight: [C_out, C_in].
        bias: [C_out], or None.
    """
    edges = edges_of(pattern(x), x.size(0), x.size(1))
    assert edges is not None
    out = aggregate(weight.t().contiguous(), edges, x.values())
    return out if bias is None else out + bias


def attention(dst: Tensor, src: Tensor, slope: float, edges: Edges) -> Tensor:
    """Softmax of ``leaky_relu(dst + src)`` over the edges into each destination, [E, H].

    Equation 3 of GAT (https://arxiv.org/abs/1710.10903). Types of less than 32 bits are computed with in float32.

    Args:
        dst: scores of destinations, [num_dst, H].
        src: scores of sources, [num_src, H].
        slope: factor of negative scores.
        edges: the edges.
    """
    dtype = src.dtype if src.dtype == torch.float64 else torch.float32
    return cast(Tensor, _Softmax.apply(dst.to(dtype), src.to(dtype), slope, edges)).to(src.dtype)
