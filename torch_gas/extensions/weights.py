"""Regularisation of weights: a bound of their spectral norm, and weight decay by module."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

import torch
import torch_geometric.nn
from torch import Tensor
from torch.nn import Module
from torch.nn.functional import normalize
from torch.nn.parameter import is_lazy
from torch.nn.utils import parametrize

from torch_gas._util.arguments import checked
from torch_gas.extensions.names import named, plain


@checked
def spectral_norm(model: Module, bound: float = 1.0, layers: Sequence[str] | None = None) -> list[str]:
    r"""Bounds the Lipschitz constant of linear layers, ``x`` to ``x W^T``, by that of their weights in training and evaluation:

    .. math::
        W \leftarrow W \cdot \min\!\Big(1, \frac{\text{bound}}{\sigma(W)}\Big),
        \qquad \sigma(W) = \max_{\|x\|_2 = 1} \|W x\|_2

    This is the projection of https://arxiv.org/abs/1804.04368 as a parametrisation of torch: weights below the bound stay what
    they are. (:func:`torch.nn.utils.parametrizations.spectral_norm` sets :math:`\sigma` to 1 whatever it was.) As there, the
    largest singular value is estimated by one step of the power method for each forward pass in training, and gradients flow
    through it. Make the optimiser afterwards; :func:`torch.nn.utils.parametrize.remove_parametrizations` ends it.

    Args:
        model: any module; for one made by ``scale()``, names are those of the plain model.
        bound: of the Lipschitz constant of each layer, positive.
        layers: names of linear layers (``"lins.0"``) or of matrices (``"convs.0.weight1"``); by default, all linear layers
            of torch and PyG.

    Returns:
        The names of the weights that are bounded.

    Raises:
        ValueError: if ``bound`` is not positive, or a name is not that of a matrix whose shape is known.

    Example:
        >>> import torch
        >>> from torch_gas.extensions.regularization import spectral_norm
        >>> model = torch.nn.Sequential(torch.nn.Linear(8, 16), torch.nn.ReLU(), torch.nn.Linear(16, 4))
        >>> spectral_norm(model, bound=0.5)
        ['0.weight', '2.weight']
    """
    if not (bound > 0 and math.isfinite(bound)):
        raise ValueError(f"spectral_norm: bound must be positive, but is {bound}")
    model = plain(model)
    if layers is None:
        kinds = (torch.nn.Linear, torch_geometric.nn.Linear)
        layers = [name for name, module in model.named_modules() if isinstance(module, kinds)]
        if not layers:
            raise ValueError(f"spectral_norm: {type(model).__name__} has no linear layer; name its matrices in layers")
    weights = [_weight_of(model, name) for name in layers]
    for module, key, _ in weights:
        parametrize.register_parametrization(module, key, _Bounded(getattr(module, key), bound))
        if isinstance(module, torch_geometric.nn.Linear):  # writes its weight to the state by itself
            module._register_state_dict_hook(_without_weight)
    return [name for _, _, name in weights]


def _weight_of(model: Module, name: str) -> tuple[Module, str, str]:
    """The module that has the matrix ``name``, and its names there and in the model."""
    path, _, key = name.rpartition(".")
    module = named(model, path, "spectral_norm") if path else model
    if key not in module._parameters and not parametrize.is_parametrized(module, key):
        module, key, name = named(model, name, "spectral_norm"), "weight", f"{name}.weight"
    if parametrize.is_parametrized(module, key):
        raise ValueError(
            f"spectral_norm: {name} has a parametrisation already; leave it out of layers, or remove it first"
        )
    weight = module._parameters.get(key)
    if weight is not None and is_lazy(weight):
        raise ValueError(f"spectral_norm: {name} has no shape yet; call the model once before")
    if weight is None or weight.dim() != 2:
        raise ValueError(f"spectral_norm: {name} is no matrix of parameters; name linear layers or matrices in layers")
    return module, key, name


class _Bounded(Module):
    """A matrix scaled down to ``bound``; ``u`` and ``v`` are estimates of its first singular vectors."""

    u: Tensor
    v: Tensor

    def __init__(self, weight: Tensor, bound: float) -> None:
        super().__init__()
        self.bound = bound
        weight = weight.detach()
        self.register_buffer("u", None)
        self.register_buffer("v", torch.ones_like(weight[0]))
        self.v = self._direction(weight[weight.norm(dim=1).argmax()])
        for _ in range(20):  # steps of the power method before training
            self._step(weight)

    @torch.no_grad()
    def _step(self, weight: Tensor) -> None:
        # Not in place, because the backward pass of an earlier call reads the vectors.
        self.u = normalize(weight @ self.v, dim=0)
        self.v = self._direction(weight.t() @ self.u)

    def _direction(self, v: Tensor) -> Tensor:
        return normalize(torch.where(v.any(), v, self.v), dim=0)  # a matrix of zeros may grow

    def forward(self, weight: Tensor) -> Tensor:
        if self.training:
            self._step(weight)
        sigma = self.u @ (weight @ self.v)
        return weight * (self.bound / sigma.clamp(min=self.bound))

    def right_inverse(self, value: Tensor) -> Tensor:
        return value


def _without_weight(module: Module, state: dict[str, Any], prefix: str, metadata: Any) -> None:
    if parametrize.is_parametrized(module, "weight"):
        state.pop(f"{prefix}weight", None)


@checked
def parameter_groups(
    model: Module, weight_decay: float, others: Mapping[str, float] | None = None
) -> list[dict[str, Any]]:
    r"""All parameters of any model in groups for weight decay, which adds :math:`\lambda W` to the gradient of :math:`W`.

    Small weights mean small Lipschitz constants: :math:`\|W\|_2 \le \|W\|_F`. The paper's small graphs are trained with decay on
    all layers but the last. Shipped models know theirs (``model.parameter_groups()``).

    Args:
        model: any module; for one made by ``scale()``, names are those of the plain model.
        weight_decay: that of all parameters that ``others`` does not name.
        others: weight decay of single modules or parameters by name. Of two names that hold a parameter, the longer one counts.

    Returns:
        What optimisers take in place of parameters: one group for ``weight_decay``, and one for each name in ``others``. Each
        parameter is in one group.

    Raises:
        ValueError: if a name holds no parameter.

    Example:
        >>> from torch.optim import Adam
        >>> from torch_geometric.nn import GCN
        >>> from torch_gas.extensions.regularization import parameter_groups
        >>> model = GCN(8, 16, num_layers=2, out_channels=4)
        >>> optimizer = Adam(parameter_groups(model, 5e-4, {"convs.1": 0.0}), lr=0.01)
        >>> [group["weight_decay"] for group in optimizer.param_groups]
        [0.0005, 0.0]
    """
    model = plain(model)
    groups: dict[str | None, dict[str, Any]] = {}
    for name, decay in ((None, weight_decay), *(others or {}).items()):
        if decay < 0:
            which = "weight_decay" if name is None else f"others[{name!r}]"
            raise ValueError(f"parameter_groups: {which} must not be negative, but is {decay}")
        groups[name] = {"params": [], "weight_decay": decay}
    for key, parameter in model.named_parameters():
        holding = [name for name in groups if name is not None and f"{key}.".startswith(f"{name}.")]
        groups[max(holding, key=len, default=None)]["params"].append(parameter)
    for name, group in groups.items():
        if name is not None and not group["params"]:
            raise ValueError(
                f"parameter_groups: {name!r} in others holds no parameter of {type(model).__name__}; names are those of "
                "model.named_modules() and model.named_parameters()"
            )
    return list(groups.values())
