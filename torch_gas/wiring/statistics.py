"""Batch norms that take the statistics of all rows of the graph while a batch is computed: a value that is a sum over batches.

A pass over all batches adds up counts, means and squared deviations of what such a norm is given. From then on the norm
applies them, and the gradient by them is collected from all batches before it goes back to the rows.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.nn import Module
from torch.nn.modules.batchnorm import _BatchNorm
from torch.overrides import handle_torch_function, has_torch_function_unary
from torch_geometric.nn import InstanceNorm, MessagePassing

from torch_gas.wiring.batch import WIRING
from torch_gas.wiring.undo import Undo


class NormCall(NamedTuple):
    """A call of a norm in a forward pass.

    Args:
        name: of the module in the model.
        number: counts its calls.
    """

    name: str
    number: int


class Moments:
    """Count, mean and variance of rows that come batch by batch, and the gradient of a loss by mean and variance.

    Batches are merged by equation (1.3) of Chan, Golub and LeVeque, "Algorithms for computing the sample variance" (The American
    Statistician 37, 1983): a difference of sums of squares would cancel where the mean is large.

    Attributes:
        count: number of rows.
        mean, var: of each channel, [C], in float64; var is that of the population.
        leaves: mean and variance as what norms read, whose gradient is wanted; in float32 or wider.
        grad_mean, grad_var: sums of what batches gave, [C].
    """

    def __init__(self) -> None:
        self.count = 0
        self.mean = self._squares = torch.zeros((), dtype=torch.float64, device="cpu")
        self.leaves: tuple[Tensor, Tensor] | None = None
        self.grad_mean = self.grad_var = self.mean

    def add(self, x: Tensor) -> None:
        """Takes in rows [B, C] or [B, C, L]."""
        x = x.detach().double()
        dims = [dim for dim in range(x.dim()) if dim != 1]
        count = x.numel() // x.size(1)
        if count == 0:
            return
        mean = x.mean(dims)
        squares = (x - _along(mean, x)).square_().sum(dims)
        total = self.count + count
        delta = mean - self.mean
        self._squares = self._squares + squares + delta.square() * (self.count * count / total)
        self.mean = self.mean + delta * (count / total)
        self.count = total

    def complete(self, dtype: torch.dtype) -> None:
        """Says that all rows have come, and that norms are given rows of this type."""
        dtype = torch.promote_types(dtype, torch.float32)
        self.leaves = self.mean.to(dtype).requires_grad_(), self.var.to(dtype).requires_grad_()
        self.grad_mean, self.grad_var = (torch.zeros_like(leaf, requires_grad=False) for leaf in self.leaves)

    @property
    def var(self) -> Tensor:
        return self._squares / max(self.count, 1)

    def gradient(self, x: Tensor) -> Tensor:
        """The gradient by rows ``x`` that comes by way of mean and variance, in their shape."""
        mean, grad_mean, grad_var = (
            _along(each.to(x.dtype), x) for each in (self.mean, self.grad_mean / self.count, self.grad_var / self.count)
        )
        return torch.addcmul(grad_mean.expand_as(x), x.detach() - mean, 2 * grad_var)


def _along(value: Tensor, x: Tensor) -> Tensor:
    """A number a channel, [C], in the dimensions of ``x`` [B, C, ...]."""
    return value.view(1, -1, *[1] * (x.dim() - 2))


class Statistics:
    """The norms of ``model`` whose statistics are those of all rows.

    Args:
        model: any module.
        reached: told of a call of a norm whose statistics are not complete, with the rows that count, [B, C, ...], which are all
            of the batch's; it raises what ends the pass.

    Attributes:
        known: by call, the statistics that are complete.
    """

    def __init__(self, model: Module, reached: Callable[[NormCall, Tensor], None]) -> None:
        self._norms = {
            module: name for name, module in model.named_modules() if isinstance(module, (_BatchNorm, InstanceNorm))
        }
        layers = [module for module in model.modules() if isinstance(module, MessagePassing)]
        self._layers = [each for each in layers if any(inner in self._norms for inner in each.modules())]
        self._reached = reached
        self.known: dict[NormCall, Moments] = {}
        self._rows = (0, 0, True)
        self._calls: Counter[str] = Counter()
        self._on_edges = 0
        self._of_others: set[NormCall] = set()  # those that were given something else than rows of nodes
        self._cut: set[NormCall] = set()  # those of which rows were left out, as if they were of the halo

    @property
    def leaves(self) -> list[Tensor]:
        """Means and variances that norms have read."""
        return [leaf for moments in self.known.values() for leaf in moments.leaves or ()]

    def add_gradients(self, grads: Sequence[Tensor | None]) -> None:
        """Takes in the gradients by :attr:`leaves` that a batch gave; None where it read none."""
        for moments, grad_mean, grad_var in zip(self.known.values(), grads[::2], grads[1::2], strict=True):
            if grad_mean is not None:
                moments.grad_mean = moments.grad_mean + grad_mean
            if grad_var is not None:
                moments.grad_var = moments.grad_var + grad_var

    def wire(self, undo: Undo, batch_size: int, num_rows: int, bipartite: bool) -> None:
        """Prepares the norms for a batch of B of B + S rows, each of whose edges is in no other batch if it is bipartite."""
        self._rows, self._on_edges = (batch_size, num_rows, bipartite), 0
        self._calls.clear()
        for norm in self._norms:
            if norm.training or norm.running_mean is None:
                undo.set(norm, WIRING, None)
                undo.set(norm, "forward", self._forward(norm))
        for layer in self._layers:
            for name in ("message", "edge_update"):
                undo.set(layer, name, self._of_edges(getattr(layer, name)))

    def _of_edges(self, function: Callable[..., Any]) -> Callable[..., Any]:
        def run(*args: Any, **kwargs: Any) -> Any:
            self._on_edges += 1
            try:
                return function(*args, **kwargs)
            finally:
                self._on_edges -= 1

        return run

    def _forward(self, norm: Any) -> Callable[..., Tensor]:
        name = self._norms[norm]

        def run(x: Tensor, *more: Any, **named: Any) -> Tensor:
            if any(value is not None for value in (*more, *named.values())):
                raise ValueError(
                    f"{type(norm).__name__} cannot be used on a batch with numbers of graphs (batch), because a batch holds a "
                    "part of each graph; leave batch out, to take statistics of all nodes"
                )
            call = NormCall(name, self._calls[name])
            self._calls[name] += 1
            return batch_norm(x, partial(self._normalize, norm, call))

        return run

    def _normalize(self, norm: Any, call: NormCall, x: Tensor) -> Tensor:
        moments = self.known.get(call)
        if moments is None:
            self._reached(call, self._own(call, x))
            raise AssertionError(f"{call.name} has no statistics")
        return _apply(norm, x, moments)

    def _own(self, call: NormCall, x: Tensor) -> Tensor:
        """The rows of ``x`` that are of this batch and of no other."""
        batch_size, num_rows, bipartite = self._rows
        if self._on_edges == 0 and x.size(0) in (batch_size, num_rows) and call not in self._of_others:
            if x.size(0) > batch_size:
                self._cut.add(call)
            return x[:batch_size]
        if not bipartite:
            raise ValueError(
                f"{call.name} takes statistics over edges, and an edge between two batches is in both of them, as the "
                "model reads edges in both directions; use a norm over the channels of each edge (torch.nn.LayerNorm)"
            )
        self._of_others.add(call)
        return x

    def is_mistaken(self, call: NormCall) -> bool:
        """Whether a batch with as many edges as nodes was taken for one of nodes, as others now tell; each is told of once."""
        is_mistaken = call in self._of_others & self._cut
        self._cut.discard(call)
        return is_mistaken

    def step(self, moments: dict[NormCall, Moments]) -> None:
        """Moves running statistics, as one forward pass over all rows does."""
        norms = {name: norm for norm, name in self._norms.items()}
        for call in sorted(moments):
            _move(norms[call.name], moments[call])


def batch_norm(x: Tensor, normalize: Callable[[Tensor], Tensor]) -> Tensor:
    """What stands in for the function of torch, by its name for those who follow which ones a model calls."""
    if has_torch_function_unary(x):
        return handle_torch_function(batch_norm, (x,), x, normalize)
    return normalize(x)


def _apply(norm: Any, x: Tensor, moments: Moments) -> Tensor:
    assert moments.leaves is not None
    mean, var = moments.leaves
    scale = (var + norm.eps).rsqrt()
    if norm.weight is not None:
        scale = scale * norm.weight
    out = (x.to(mean.dtype) - _along(mean, x)) * _along(scale, x)
    if norm.bias is not None:
        out = out + _along(norm.bias, x)
    return out.to(x.dtype)


@torch.no_grad()
def _move(norm: Any, moments: Moments) -> None:
    """As torch.nn.BatchNorm1d documents it: the variance is that of a sample, and no momentum means the average of all."""
    if norm.running_mean is None:
        return
    factor = norm.momentum
    if isinstance(norm, _BatchNorm) and norm.num_batches_tracked is not None:
        norm.num_batches_tracked += 1
        if factor is None:
            factor = 1 / float(norm.num_batches_tracked)
    var = moments.var * (moments.count / max(moments.count - 1, 1))
    for running, value in ((norm.running_mean, moments.mean), (norm.running_var, var)):
        running.lerp_(value.to(running), factor or 0.0)
