r"""How much each layer can enlarge an error: Lipschitz constants of its message and its update function.

For a layer :math:`h_v' = u(h_v, \sum_w a_{vw} m(h_w))` whose messages have the constant :math:`k_1`, and whose update has
:math:`k_2` with regard to the sum and :math:`k_0` with regard to the node's own row,

.. math::
    \|\tilde h_v' - h_v'\| \le k_0 \|\tilde h_v - h_v\| + k_1 k_2 \sum_w |a_{vw}| \, \|\tilde h_w - h_w\|.

In evaluation mode, dropout does nothing and batch norm multiplies channels by known factors.
"""

from __future__ import annotations

from collections.abc import Iterable
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

    def then(self, constant: float) -> Gain:
        """With a function of this Lipschitz constant behind the layer."""
        return self._replace(update=self.update * constant, own=self.own * constant)


@singledispatch
def gains(model: Module) -> list[Gain] | None:
    """The constants of each layer of ``model``, or None where they are not known.

    Those of a model of your own become known by ``@gains.register``. What comes before the first layer, such as a linear
    layer on the features, is exact and does not count; what follows the last belongs to it.
    """
    return None


@gains.register
def _(model: GCN) -> list[Gain]:
    found = []
    for i, conv in enumerate(model.convs):
        norm = [model.bns[i]] if i < len(model.bns) else []
        skip = model.residual and bool(norm) and conv.in_channels == conv.out_channels
        found.append(Gain(1.0, lipschitz([conv.lin, *norm]), float(skip), weighted=True))
    return _before(model.lins[1:], found)


@gains.register
def _(model: SAGE) -> list[Gain]:
    found = []
    for i, conv in enumerate(model.convs):
        norm = [model.bns[i]] if i < len(model.bns) else []
        skip = model.residual and bool(norm) and conv.in_channels == conv.out_channels
        own = lipschitz([conv.lin_r, *norm]) + skip
        found.append(Gain(1.0, lipschitz([conv.lin_l, *norm]), own, mean=True))
    return found


@gains.register
def _(model: GIN) -> list[Gain]:
    found = []
    conv: Any
    for conv in model.convs:
        update = lipschitz(conv.nn)
        found.append(Gain(1.0, update, abs(1 + conv.eps.item()) * update + model.residual))
    return _before(model.lins[1:], found)


@gains.register
def _(model: GCN2) -> list[Gain]:
    found = []
    conv: Any
    for conv, norm in zip(model.convs, model.bns, strict=True):
        mapping = (1 - conv.beta) * torch.eye(conv.channels).to(conv.weight1) + conv.beta * conv.weight1.t()
        found.append(Gain(1 - conv.alpha, lipschitz([mapping, norm]), float(model.residual), weighted=True))
    return _before(model.lins[1:], found)


@gains.register
def _(model: APPNP) -> list[Gain]:
    return [Gain(1 - model.alpha, 1.0, weighted=True)] * model.num_layers


def _before(lins: Iterable[Module], found: list[Gain]) -> list[Gain]:
    """``found`` with ``lins`` behind the last layer."""
    for lin in lins:
        found[-1] = found[-1].then(lipschitz([lin]))
    return found


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
