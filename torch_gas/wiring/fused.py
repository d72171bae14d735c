"""Message passing as one sparse product on the CPU, over whatever adjacency a layer is given.

Layers whose messages are rows, or rows times edge weights, that are summed or averaged compute a sparse matrix times these
rows. PyG computes it edge by edge over an ``edge_index``, and where it has a product, the backward pass sorts the edges again
each time. Here edges are put in both orders once, and kept with the adjacency for all layers, steps and epochs.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from functools import cache
from typing import Any, cast

import torch
from torch import Tensor
from torch.nn import Module
from torch.utils.weak import WeakIdKeyDictionary
from torch_geometric.nn import MessagePassing

from torch_gas import _core
from torch_gas.adjacency import coo, is_csr, is_edge_index, is_sparse_tensor, to_csr
from torch_gas.compiled import is_compiled
from torch_gas.partition.record import check_ids
from torch_gas.transfer import version
from torch_gas.wiring.batch import WIRING, override

_kept: Any = WeakIdKeyDictionary()  # by adjacency: its state, and its edges


class Edges:
    """The edges of an adjacency by destination and, once somebody needs a gradient, by source.

    Args:
        adj: the adjacency, in any format, on the CPU.
        num_dst: rows of the result.
        num_src: rows of what is multiplied.

    Raises:
        IndexError: if an edge starts or ends outside of these rows.
    """

    def __init__(self, adj: Any, num_dst: int, num_src: int) -> None:
        self.num_dst, self.num_src = num_dst, num_src
        if is_edge_index(adj):
            check_ids(coo(adj)[1], num_dst, "the destinations of the adjacency")
        self.rowptr, self.col, self.value, self.perm = to_csr(adj, num_dst)
        check_ids(self.col, num_src, "the sources of the adjacency")  # the product reads there without a look
        self._transposed: tuple[Tensor, Tensor, Tensor] | None = None
        self._key: tuple[Any, ...] = ()
        self._matrices: dict[bool, Tensor] = {}  # those of the weight that was used last

    def matrix(self, weight: Tensor | None, dtype: torch.dtype, transposed: bool) -> Tensor:
        """The matrix [num_dst, num_src], or its transpose.

        Args:
            weight: a number for each edge in the user's order, [E]; ones by default.
            dtype: type of the entries.
            transposed: whether it is the transpose.
        """
        key = (weight, None if weight is None else version(weight), dtype)
        if not self._key or self._key[0] is not weight or self._key[1:] != key[1:]:
            self._key, self._matrices = key, {}
        if transposed not in self._matrices:
            self._matrices[transposed] = self._make(weight, dtype, transposed)
        return self._matrices[transposed]

    def _make(self, weight: Tensor | None, dtype: torch.dtype, transposed: bool) -> Tensor:
        size = (self.num_src, self.num_dst) if transposed else (self.num_dst, self.num_src)
        value = torch.ones(self.col.numel(), dtype=dtype) if weight is None else weight.detach().to(dtype)
        if self.perm is not None and weight is not None:
            value = value[self.perm]
        rowptr, col = self.rowptr, self.col
        if transposed:
            if self._transposed is None:
                self._transposed = _core.transpose(self.rowptr, self.col, self.num_src)
            rowptr, col, order = self._transposed
            value = value if weight is None else value[order]
        return torch.sparse_csr_tensor(rowptr, col, value, size, check_invariants=False)

    def count(self) -> Tensor:
        """Number of edges of each destination, at least 1, [num_dst, 1]."""
        return self.rowptr.diff().clamp(min=1).view(-1, 1)


class _Product(torch.autograd.Function):
    """A matrix times rows; the gradient is the transpose times its gradient."""

    @staticmethod
    def forward(ctx: Any, rows: Tensor, edges: Edges, weight: Tensor | None, transposed: bool) -> Tensor:
        ctx.edges, ctx.transposed = edges, transposed
        ctx.save_for_backward(*([] if weight is None else [weight]))
        # Reductions with a name are computed by torch itself, several times as fast as the product without one.
        return torch.sparse.mm(edges.matrix(weight, rows.dtype, transposed), rows.contiguous(), "sum")

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, None, None, None]:
        weight = ctx.saved_tensors[0] if ctx.saved_tensors else None
        return _Product.apply(grads[0], ctx.edges, weight, not ctx.transposed), None, None, None


def aggregate(rows: Tensor, edges: Edges, weight: Tensor | None = None, mean: bool = False) -> Tensor:
    """The sum or mean of each destination's sources, [num_dst, C].

    Args:
        rows: [num_src, C].
        edges: the edges.
        weight: a number for each edge, [E], that its row is multiplied by.
        mean: whether sums are divided by the number of edges.
    """
    out = _Product.apply(rows, edges, weight, False)
    return out / edges.count().to(out.dtype) if mean else out


@contextmanager
def fused(model: Module) -> Iterator[None]:
    """While entered, layers of ``model`` that compute a sparse product do so by :func:`aggregate` where they can."""
    with ExitStack() as stack:
        for module in model.modules():
            if isinstance(module, MessagePassing) and _is_product(cast(Any, type(module))) and not is_compiled(module):
                override(module, "propagate", _Propagate(module), stack)
        yield


@cache
def _is_product(layer: type[MessagePassing]) -> bool:
    """Whether PyG itself says so by a fused product, messages are rows and edge weights, and nothing else is the layer's own."""
    own, base = layer.message_and_aggregate, MessagePassing
    if own is base.message_and_aggregate or layer.aggregate is not base.aggregate or layer.update is not base.update:
        return False
    names = _arguments(layer.message)
    of_pyg = all(function.__module__.startswith("torch_geometric.") for function in (own, layer.message))
    return of_pyg and "x_j" in names and names <= {"x_j", "edge_weight"}


def _arguments(function: Any) -> set[str]:
    return set(function.__code__.co_varnames[1 : function.__code__.co_argcount])


_PARTS = ("propagate", "message", "aggregate", "message_and_aggregate")


class _Propagate:
    """Stands in for ``propagate`` of one layer."""

    def __init__(self, conv: Any) -> None:
        self.conv, self.propagate = conv, conv.propagate
        self.takes_weight = "edge_weight" in _arguments(type(conv).message)
        hooked = any(getattr(conv, f"_{part}_forward{kind}_hooks") for part in _PARTS for kind in ("_pre", ""))
        hooked = hooked or bool(conv.aggr_module._forward_hooks or conv.aggr_module._forward_pre_hooks)
        is_sum = conv.aggr in ("sum", "add", "mean") and conv.flow == "source_to_target" and conv.node_dim in (0, -2)
        self.is_product = is_sum and not hooked and not conv.explain and conv.decomposed_layers == 1

    def __call__(self, edge_index: Any, size: Any = None, **kwargs: Any) -> Any:
        out = (
            self._product(edge_index, size, **kwargs)
            if self.is_product and kwargs.keys() <= {"x", "edge_weight"}
            else None
        )
        return self.propagate(edge_index, size=size, **kwargs) if out is None else out

    def _product(self, adj: Any, size: Any, x: Any = None, edge_weight: Tensor | None = None) -> Tensor | None:
        """The result as a product; None where it is none that this module computes."""
        rows, targets = x if isinstance(x, tuple) else (x, x)
        if not _is_rows(rows):
            return None
        is_matrix = is_csr(adj) or is_sparse_tensor(adj)
        layer = getattr(self.conv, WIRING, None)
        if is_matrix:
            num_dst = adj.size(0)
        elif layer is not None and layer.cuts_itself:
            num_dst = layer.batch.batch_size
        elif size is not None:
            num_dst = size[1]
        else:
            num_dst = None if targets is None else targets.size(0)
        weighted = edge_weight is not None and not is_matrix and self.takes_weight
        if num_dst is None or (weighted and not _is_weight(edge_weight)):
            return None
        edges = _edges(adj, int(num_dst), rows.size(0))
        if edges is None:
            return None
        # As in PyG, layers without weights ignore those of a SparseTensor and use those of a torch matrix.
        own = edges.value if is_csr(adj) or self.takes_weight else None
        return aggregate(rows, edges, edge_weight if weighted else own, self.conv.aggr == "mean")


def _is_weight(weight: Tensor | None) -> bool:
    return weight is None or (weight.dim() == 1 and weight.is_floating_point() and not weight.requires_grad)


def _is_rows(value: Any) -> bool:
    return isinstance(value, Tensor) and value.device.type == "cpu" and value.dim() == 2 and value.is_floating_point()


def _edges(adj: Any, num_dst: int, num_src: int) -> Edges | None:
    """The edges of ``adj``, computed once; None where they are no matrix of numbers."""
    if is_sparse_tensor(adj):
        holder, held = adj.storage, [adj.storage._row, adj.storage._rowptr, adj.storage._col]
        weight = adj.storage._value
    elif is_csr(adj):
        holder, held, weight = adj, [adj.crow_indices(), adj.col_indices()], adj.values()
    elif is_edge_index(adj) and not torch.is_inference(adj):
        holder, held, weight = adj, [adj], None
    else:
        return None
    if not _is_weight(weight):
        return None
    key = (num_dst, num_src, *[None if tensor is None else version(tensor) for tensor in (*held, weight)])
    state, edges = _kept.get(holder, (None, None))
    if state != key:
        edges = Edges(adj, num_dst, num_src)
        _kept[holder] = (key, edges)
    return cast(Edges, edges)
