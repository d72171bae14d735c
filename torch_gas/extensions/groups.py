"""Weight decay of a model's parameters, by module."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from torch.nn import Module

from torch_gas._util.arguments import checked
from torch_gas.extensions.names import plain


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
    groups: dict[str | None, dict[str, Any]] = {
        name: {"params": [], "weight_decay": decay} for name, decay in {None: weight_decay, **(others or {})}.items()
    }
    for name, group in groups.items():
        if group["weight_decay"] < 0:
            which = "weight_decay" if name is None else f"others[{name!r}]"
            raise ValueError(f"parameter_groups: {which} must not be negative, but is {group['weight_decay']}")
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
