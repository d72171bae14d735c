"""The penalty on what noise at the input of a layer does to its output."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
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
from torch_gas.wiring import outermost_convs
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
        self._penalty = torch.zeros(())  # of the last call
        self._watch: _Watch | None = None  # of the call under way

    def __repr__(self) -> str:
        return f"LocalPerturbation(weight={self.weight}, noise={self.noise}, layers={self.layers})"

    def attach(self, model: HistoryModel) -> None:
        """Adds the penalty to ``model``, in place of another one: ``model.regularization()`` is then that of the last call.

        Raises:
            TypeError: if ``model`` has no histories.
            ValueError: if a name in ``layers`` is that of no module.
        """
        if not isinstance(model, HistoryModel):
            raise TypeError(
                f"LocalPerturbation.attach: model must be a ScalableGNN, or made by scale(), but is {type(model)}; anywhere "
                "else, call local_perturbation(layer, h) in forward"
            )
        self.added(model)
        for other in model.extensions:
            if isinstance(other, LocalPerturbation):
                model.remove_extension(other)
        model.add_extension(self)

    def added(self, model: HistoryModel) -> None:
        for name in self.layers or ():
            named(plain(model), name, "LocalPerturbation")

    def begin(self, call: Call) -> None:
        """Has the layers of the model perturbed during ``call``, at whose end the penalty is known."""
        self._penalty = torch.zeros((), device=call.model.device)
        self._watch = None
        if call.model.training and torch.is_grad_enabled() and self.weight > 0:
            self._watch = _Watch(self, call)
            self._watch.begin()

    def end(self, call: Call) -> None:
        """Adds up the penalty."""
        watch, self._watch = self._watch, None
        if watch is not None:
            self._penalty = watch.penalty()

    def loss(self) -> Tensor:
        return self._penalty

    def __getstate__(self) -> dict[str, Any]:
        return {**vars(self), "_penalty": torch.zeros(()), "_watch": None}  # a copy belongs to no call


class _Watch:
    """Perturbs the layers of one call."""

    def __init__(self, regularizer: LocalPerturbation, call: Call) -> None:
        self.weight, self.noise, self.model = regularizer.weight, regularizer.noise, call.model
        self.call, self.places = call, call.places
        self.named = regularizer.layers is not None
        self.layers = dict.fromkeys(self._layers(regularizer.layers))  # each once
        self.terms: list[Tensor] = []
        self._changed: dict[Module, Any] = {}  # what layers under way give with noise
        self._refuse_compiled()

    def _layers(self, names: list[str] | None) -> list[Module]:
        root = plain(self.model)
        if names is not None:
            return [named(root, name, "LocalPerturbation") for name in names]
        convs = outermost_convs(root, automatic=root is not self.model)
        return [conv.nn if isinstance(conv, (GINConv, GINEConv)) else conv for conv in convs]

    def _refuse_compiled(self) -> None:
        parts = (module for module in self.model.modules() if not self.layers.keys().isdisjoint(module.modules()))
        if is_called_compiled() or any(map(is_compiled, parts)):
            raise RuntimeError(
                f"{self.model._name}: LocalPerturbation calls layers a second time by hooks, which torch.compile cannot follow; "
                "call local_perturbation(layer, h) in forward and return it beside the output, or do not compile the model"
            )

    def begin(self) -> None:
        """Hooks the layers."""
        for layer in self.layers:
            self.call.undo.hook_before(layer, self._before)
            self.call.undo.hook_after(layer, self._after, prepend=True)  # sees what `_before` computes

    def penalty(self) -> Tensor:
        """The sum over all layers."""
        number = len(self.model.histories)
        if not self.terms:
            raise ValueError(
                f"{self.model._name}: LocalPerturbation met none of its layers. By default they lie between two histories, and "
                f"this model has {number}; say which to perturb: LocalPerturbation(layers=[...])"
            )
        return self.weight / max(number, 1) * torch.stack(self.terms).sum()

    def _is_hidden(self) -> bool:
        """Whether what is called now lies between two histories."""
        return 0 < len(self.call.used) < len(self.model.histories)

    def _before(self, layer: Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        if not (self.named or self._is_hidden()):
            return
        if args:
            moved = _moved(args[0], self.noise)
            args = (moved, *args[1:])
        else:
            name = "x" if "x" in kwargs else next(iter(kwargs))
            moved = _moved(kwargs[name], self.noise)
            kwargs = kwargs | {name: moved}
        rows = moved[0] if isinstance(moved, tuple) else moved
        with torch.random.fork_rng([rows.device] if rows.is_cuda else []), self._beside(layer):
            self._changed[layer] = layer.forward(*args, **kwargs)  # which runs no hooks

    def _after(self, layer: Module, args: tuple[Any, ...], out: Any) -> None:
        if layer in self._changed:
            # A batch norm may not tell rows of batch and halo apart, but nobody reads the halo's.
            size = self.call.batch_size
            self.terms.append(_distance(_rows(out)[:size], _rows(self._changed.pop(layer))[:size]))

    @contextmanager
    def _beside(self, layer: Module) -> Iterator[None]:
        """While entered, ``layer`` is called beside the forward pass, and no history may be written to."""
        self.call.forbidden = (
            f"{self.model._name}: LocalPerturbation calls {type(layer).__name__} a second time, but there are histories inside "
            "of it, which would be written to; name the layers to perturb: LocalPerturbation(layers=[...])"
        )
        rehearsal: AbstractContextManager[Any] = nullcontext() if self.places is None else self.places.rehearsal()
        try:
            with rehearsal:
                yield
        finally:
            self.call.forbidden = None


def _moved(x: Any, noise: float) -> Any:
    """Rows, or a pair of sources and destinations, with noise; destinations are the first of the sources."""
    sources, *targets = x if isinstance(x, tuple) else (x,)
    shift = noise * torch.randn_like(sources)
    rows = batch_rows(sources)
    # Where halo rows carry no gradient, layers need not compute one for them.
    moved = sources + shift if rows is None else join(rows + shift[: rows.size(0)], sources.detach() + shift)
    if not isinstance(x, tuple):
        return moved
    return moved, *(None if rows is None else rows + shift[: rows.size(0)] for rows in targets)


def _rows(out: Any) -> Tensor:
    return out[0] if isinstance(out, tuple) else out


def _distance(out: Tensor, changed: Tensor) -> Tensor:
    return (out - changed).flatten(1).norm(dim=1).mean()


def _check_noise(noise: float, caller: str) -> None:
    if not (noise > 0 and math.isfinite(noise)):
        raise ValueError(f"{caller}: noise must be positive, but is {noise}")
