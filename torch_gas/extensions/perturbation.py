"""The penalty on what noise at the input of a layer does to its output."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from functools import partial
from typing import Any

import torch
from torch import Tensor
from torch.nn import Module
from torch_geometric.nn import GINConv, GINEConv

from torch_gas._util.arguments import checked
from torch_gas.extensions.names import named, plain
from torch_gas.graph.halo import batch_rows, join
from torch_gas.session.call import Call
from torch_gas.session.extension import Extension
from torch_gas.session.model import HistoryModel
from torch_gas.wiring import find_layers
from torch_gas.wiring.compiled import is_called_compiled, is_compiled


@checked
def local_perturbation(
    layer: Callable[[Tensor], Tensor], h: Tensor, out: Tensor | None = None, noise: float = 0.1
) -> Tensor:
    r"""How much the output of a layer changes under noise on its input (Section 3 of https://arxiv.org/abs/2106.05609):

    .. math::
        \frac{1}{n} \sum_{v=1}^{n} \big\| f(h_v) - f(h_v + \text{noise} \cdot \epsilon_v) \big\|_2,
        \qquad \epsilon_v \sim \mathcal{N}(0, I)

    Gradients flow through both terms. The paper adds it to the loss for the MLPs of hidden layers 1 .. L-2, each
    divided by the number of histories, L-1; :class:`LocalPerturbation` does so for a whole model.

    Args:
        layer: a function of rows.
        h: rows, [n, C].
        out: ``layer(h)``, where it is known already.
        noise: standard deviation of the noise, in units of ``h``.

    Returns:
        A scalar.

    Raises:
        ValueError: if ``noise`` is not positive, or ``out`` has another shape than the layer's output.

    Example:
        >>> import torch
        >>> from torch_gas.extensions.regularization import local_perturbation
        >>> mlp = torch.nn.Sequential(torch.nn.Linear(8, 16), torch.nn.ReLU(), torch.nn.Linear(16, 4))
        >>> h = torch.randn(100, 8)
        >>> out = mlp(h)
        >>> loss = out.square().mean() + local_perturbation(mlp, h, out)
        >>> loss.backward()
    """
    _check_noise(noise, "local_perturbation")
    if h.dim() != 2 or not h.is_floating_point():
        raise ValueError(f"local_perturbation: h must be rows [n, C] of floats, but is {h.dtype} {list(h.shape)}")
    if out is None:
        out = layer(h)
    changed = layer(h + noise * torch.randn_like(h))
    if out.shape != changed.shape or out.dtype != changed.dtype:
        raise ValueError(
            f"local_perturbation: out is {out.dtype} {list(out.shape)}, but the layer gives {changed.dtype} "
            f"{list(changed.shape)}; pass out=layer(h)"
        )
    return _distance(out, changed)


class LocalPerturbation(Extension):
    r"""Adds up :func:`local_perturbation` of the hidden layers of a model, in each training call.

    .. math::
        \text{weight} \cdot \sum_{l=1}^{L-2} \frac{1}{L-1} \cdot \frac{1}{|B|} \sum_{v \in B}
        \big\| f^{(l)}(h)_v - f^{(l)}(h + \text{noise} \cdot \epsilon)_v \big\|_2

    Hidden layers are those whose input comes from a history and whose output goes to another. For ``GINConv`` and ``GINEConv``,
    :math:`f^{(l)}` is the MLP ``nn`` and :math:`h` its input, as published. Any other layer is called a second time with noise on
    the rows it gets, those of the halo included: that is what stale histories do to it. Random numbers inside of a
    layer, such as dropout, are the same in both calls.

    Nothing happens in evaluation, without gradients, and while ``scale()`` tries a model out. Perturbed rows enter the running
    statistics of a batch norm inside of a layer, as in the published code.

    Args:
        weight: of the penalty, at least 0. It may be changed during training.
        noise: standard deviation of the noise, in units of embeddings.
        layers: names of the modules to perturb (``"convs.1.nn"``), whose first argument are rows of nodes. By default, the hidden
            layers.

    Raises:
        ValueError: if ``weight`` is negative, or ``noise`` not positive.

    Example:
        >>> from torch_geometric.nn import GraphSAGE
        >>> from torch_gas import SubgraphLoader, metis, permute, scale
        >>> from torch_gas.datasets import synthetic
        >>> from torch_gas.extensions.regularization import LocalPerturbation
        >>> data = synthetic(1000)
        >>> perm, ptr = metis(data, num_parts=8, log=False)
        >>> data = permute(data, perm, log=False)
        >>> model = GraphSAGE(data.num_features, 16, num_layers=3, out_channels=10)
        >>> model = scale(model, data, regularization=LocalPerturbation(weight=0.1))
        >>> for batch in SubgraphLoader(data, ptr, batch_size=4):
        ...     loss = model(batch).square().mean() + model.regularization()
        ...     loss.backward()
    """

    takes_part = True

    @checked
    def __init__(self, weight: float = 1.0, noise: float = 0.1, layers: Sequence[str] | None = None) -> None:
        if not (weight >= 0 and math.isfinite(weight)):
            raise ValueError(f"LocalPerturbation: weight must be at least 0, but is {weight}")
        _check_noise(noise, "LocalPerturbation")
        if layers is not None and len(layers) == 0:
            raise ValueError(
                "LocalPerturbation: layers must be a list of names, but is empty; None takes all hidden layers"
            )
        self.weight, self.noise = weight, noise
        self.layers = None if layers is None else list(layers)
        self._penalty = torch.zeros((), device="cpu")  # of the last call
        self._terms: list[Tensor] | None = None  # of the call under way, where it is penalised
        self._perturbed: dict[Module, Any] = {}  # what layers under way return for rows with noise

    @checked
    def attach(self, model: HistoryModel) -> None:
        """Adds the penalty to ``model``, in place of another one: ``model.regularization()`` is then that of the last call.

        Raises:
            TypeError: if ``model`` has no histories; call :func:`local_perturbation` in the ``forward`` of other models.
            ValueError: if a name in ``layers`` is that of no module.
        """
        self.added(model)
        for other in model.extensions:
            if isinstance(other, LocalPerturbation):
                model.remove_extension(other)
        model.add_extension(self)

    def added(self, model: HistoryModel) -> None:
        for name in self.layers or ():
            named(plain(model), name, "LocalPerturbation")

    def begin(self, call: Call) -> None:
        """Hooks the layers of the model for as long as ``call`` runs."""
        model = call.model
        self._penalty, self._terms = torch.zeros((), device=model.device), None
        if not (model.training and torch.is_grad_enabled() and self.weight > 0):
            return
        self._terms, self._perturbed = [], {}
        layers = dict.fromkeys(self._layers_of(model))  # each once
        with_layers = (module for module in model.modules() if not layers.keys().isdisjoint(module.modules()))
        if is_called_compiled() or any(map(is_compiled, with_layers)):
            raise RuntimeError(
                f"{model._name}: LocalPerturbation calls layers a second time by hooks, which torch.compile cannot follow; "
                "call local_perturbation(layer, h) in forward and return it beside the output, or do not compile the model"
            )
        for layer in layers:
            call.undo.hook_before(layer, partial(self._before_layer, call))
            call.undo.hook_after(layer, partial(self._after_layer, call), prepend=True)  # sees what the other computes

    def end(self, call: Call) -> None:
        """Adds up the penalty."""
        terms, self._terms = self._terms, None
        if terms is None:
            return
        number = len(call.model.histories)
        if not terms:
            raise ValueError(
                f"{call.model._name}: LocalPerturbation met none of its layers. By default they lie between two histories, and "
                f"this model has {number}; say which to perturb: LocalPerturbation(layers=[...])"
            )
        self._penalty = self.weight / max(number, 1) * torch.stack(terms).sum()

    def loss(self) -> Tensor:
        return self._penalty

    def __getstate__(self) -> dict[str, Any]:
        # A copy belongs to no call.
        return {**vars(self), "_penalty": torch.zeros((), device="cpu"), "_terms": None, "_perturbed": {}}

    def _layers_of(self, model: HistoryModel) -> list[Module]:
        root = plain(model)
        if self.layers is not None:
            return [named(root, name, "LocalPerturbation") for name in self.layers]
        convs = find_layers(root, automatic=root is not model).convs
        return [conv.nn if isinstance(conv, (GINConv, GINEConv)) else conv for conv in convs]

    def _before_layer(self, call: Call, layer: Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        """Calls the layer beside the forward pass, with noise and the same random numbers; no history may be written to."""
        is_hidden = 0 < len(call.used) < len(call.model.histories)
        if self.layers is None and not is_hidden:
            return
        if args:
            noisy = _with_noise(args[0], self.noise)
            args = (noisy, *args[1:])
        else:
            name = "x" if "x" in kwargs else next(iter(kwargs))
            noisy = _with_noise(kwargs[name], self.noise)
            kwargs = kwargs | {name: noisy}
        device = _first(noisy).device
        call.forbidden = (
            f"{call.model._name}: LocalPerturbation calls {type(layer).__name__} a second time, but there are histories inside "
            "of it, which would be written to; name the layers to perturb: LocalPerturbation(layers=[...])"
        )
        try:
            with torch.random.fork_rng([device] if device.type == "cuda" else []), ExitStack() as beside:
                for rehearsal in call.rehearsals:
                    beside.enter_context(rehearsal())
                self._perturbed[layer] = layer.forward(*args, **kwargs)  # which runs no hooks
        finally:
            call.forbidden = None

    def _after_layer(self, call: Call, layer: Module, args: tuple[Any, ...], out: Any) -> None:
        if layer in self._perturbed and self._terms is not None:
            # A batch norm may not tell rows of batch and halo apart, but nobody reads the halo's.
            size = call.batch_size
            self._terms.append(_distance(_first(out)[:size], _first(self._perturbed.pop(layer))[:size]))


def _with_noise(x: Any, noise: float) -> Any:
    """Rows, or a pair of sources and destinations, with noise; destinations are the first of the sources."""
    sources, *targets = x if isinstance(x, tuple) else (x,)
    shift = noise * torch.randn_like(sources)
    rows = batch_rows(sources)
    # Where halo rows carry no gradient, layers need not compute one for them.
    noisy = sources + shift if rows is None else join(rows + shift[: rows.size(0)], sources.detach() + shift)
    if not isinstance(x, tuple):
        return noisy
    return noisy, *(None if rows is None else rows + shift[: rows.size(0)] for rows in targets)


def _first(value: Any) -> Tensor:
    return value[0] if isinstance(value, tuple) else value


def _distance(out: Tensor, changed: Tensor) -> Tensor:
    return (out - changed).flatten(1).norm(dim=1).mean()


def _check_noise(noise: float, caller: str) -> None:
    if not (noise > 0 and math.isfinite(noise)):
        raise ValueError(f"{caller}: noise must be positive, but is {noise}")
