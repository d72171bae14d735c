r"""How much each layer can enlarge an error: Lipschitz constants of its message and its update function.

For a layer :math:`h_v' = u(h_v, \sum_w a_{vw} m(h_w))` whose messages have the constant :math:`k_1`, and whose update has
:math:`k_2` with regard to the sum and :math:`k_0` with regard to the node's own row,

.. math::
    \|\tilde h_v' - h_v'\| \le k_0 \|\tilde h_v - h_v\| + k_1 k_2 \sum_w |a_{vw}| \, \|\tilde h_w - h_w\|.

In evaluation mode, dropout does nothing and batch norm multiplies channels by known factors. Where constants are not known, the
largest singular value of a Jacobian is an estimate at the rows that were met.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator
from functools import singledispatch
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.nn import BatchNorm1d, Identity, Module, ReLU
from torch_geometric.nn import Linear

from torch_gas.models import APPNP, GCN, GCN2, GIN, SAGE


class Gain(NamedTuple):
    """The constants of one layer.

    Args:
        message: that of the message function, k1.
        update: that of the update function with regard to the aggregated messages, k2.
        own: that of the update function with regard to the node's own row, k0.
        weighted: whether messages are multiplied by edge weights.
        mean: whether they are averaged instead of summed.
    """

    message: float
    update: float
    own: float = 0.0
    weighted: bool = False
    mean: bool = False


@singledispatch
def gains(model: Module) -> list[Gain] | None:
    """The constants of each layer of ``model``, or None where they are not known.

    Those of a model of your own become known by ``@gains.register``. What comes before the first layer, such as a linear
    layer on the features, is exact and does not count; what follows the last belongs to it.
    """
    return None


@gains.register
def _(model: GCN) -> list[Gain]:
    found = [Gain(1.0, lipschitz([conv.lin, *norm]), skip, weighted=True) for conv, norm, skip in _hidden(model)]
    return _before(model.lins[1:], found)


@gains.register
def _(model: SAGE) -> list[Gain]:
    return [
        Gain(1.0, lipschitz([conv.lin_l, *norm]), lipschitz([conv.lin_r, *norm]) + skip, mean=True)
        for conv, norm, skip in _hidden(model)
    ]


def _hidden(model: GCN | SAGE) -> Iterator[tuple[Any, list[Module], float]]:
    """Each convolution, the norm behind it, and 1 where its input is added to its output, else 0."""
    conv: Any
    for i, conv in enumerate(model.convs):
        norm = [model.bns[i]] if i < len(model.bns) else []
        yield conv, norm, float(model.residual and bool(norm) and conv.in_channels == conv.out_channels)


@gains.register
def _(model: GIN) -> list[Gain]:
    convs: Any = model.convs
    updates = [(lipschitz(conv.nn), abs(1 + conv.eps.item())) for conv in convs]
    return _before(model.lins[1:], [Gain(1.0, update, own * update + model.residual) for update, own in updates])


@gains.register
def _(model: GCN2) -> list[Gain]:
    found = []
    conv: Any
    for conv, norm in zip(model.convs, model.bns, strict=True):
        mapping = (1 - conv.beta) * torch.eye(conv.channels, device="cpu").to(
            conv.weight1
        ) + conv.beta * conv.weight1.t()
        found.append(Gain(1 - conv.alpha, lipschitz([mapping, norm]), float(model.residual), weighted=True))
    return _before(model.lins[1:], found)


@gains.register
def _(model: APPNP) -> list[Gain]:
    return [Gain(1 - model.alpha, 1.0, weighted=True)] * model.num_layers


def _before(lins: Iterable[Module], found: list[Gain]) -> list[Gain]:
    """``found`` with ``lins`` behind the last layer."""
    constant, last = math.prod(lipschitz([lin]) for lin in lins), found[-1]
    return [*found[:-1], last._replace(update=constant * last.update, own=constant * last.own)]


@torch.no_grad()
def lipschitz(modules: Iterable[Module | Tensor]) -> float:
    """A Lipschitz constant of ``modules``, one after the other, in evaluation mode.

    Linear maps that follow each other are multiplied before the largest singular value is taken.

    Args:
        modules: linear layers or their matrices [out, in], batch norms, and activations that are ReLU.

    Raises:
        TypeError: if the constant of a module is not known.
    """
    constant, matrix = 1.0, None
    for module in modules:
        if isinstance(module, ReLU):
            constant, matrix = constant * _norm(matrix), None
        elif not isinstance(module, Identity):
            factor = _matrix(module)
            matrix = factor if matrix is None else factor @ matrix
    return constant * _norm(matrix)


def _matrix(module: Any) -> Tensor:
    """What a linear map multiplies by, [out, in]."""
    if isinstance(module, Tensor):
        return module.double()
    if isinstance(module, BatchNorm1d) and module.running_var is not None:
        scale = (module.running_var.double() + module.eps).rsqrt()
        return torch.diag(scale if module.weight is None else scale * module.weight)
    if isinstance(module, (torch.nn.Linear, Linear)):
        return module.weight.double()
    raise TypeError(f"the Lipschitz constant of {module} is not known")


def _norm(matrix: Tensor | None) -> float:
    return 1.0 if matrix is None else float(torch.linalg.matrix_norm(matrix, 2))


def jacobian_norm(out: Tensor, x: Tensor, steps: int = 30) -> float:
    """The largest singular value of the derivative of ``out`` with regard to ``x``, by power iteration.

    It approaches the value from below. Products with the Jacobian are derivatives of those with its transpose, which are linear.

    Args:
        out: a function of ``x`` in the graph of gradients, with second derivatives.
        x: a leaf of that graph.
        steps: number of iterations.
    """
    if not out.requires_grad:
        return 0.0
    left = torch.zeros_like(out, requires_grad=True)
    (product,) = torch.autograd.grad(out, x, left, create_graph=True, allow_unused=True)
    if product is None:
        return 0.0
    generator = torch.Generator(x.device).manual_seed(0)
    right, norm = torch.randn(x.shape, generator=generator, dtype=x.dtype, device=x.device), 0.0
    for _ in range(steps):
        if float(right.norm()) == 0:
            return 0.0
        (image,) = torch.autograd.grad(product, left, right / right.norm(), retain_graph=True)
        norm = float(image.norm())
        (right,) = torch.autograd.grad(out, x, image, retain_graph=True)
    return norm
