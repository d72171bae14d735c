"""Measures one case: rows, gradients, layer-wise inference, exact and compensated gradients, against the plain model."""

from __future__ import annotations

import re
from collections.abc import Callable
from math import inf
from typing import Any, Literal, NamedTuple

import torch
from torch import Tensor
from torch.amp import GradScaler
from torch.nn import Module, ModuleList, Parameter
from torch_geometric.data import Data

from conformance.graph import PTR, C, N, graph
from conformance.layers import Case
from torch_gas.batch.loader import EvalSubgraphLoader, SubgraphLoader
from torch_gas.exact import DropoutById, ExactGradient
from torch_gas.extensions.compensation import Compensation
from torch_gas.graph.adjacency import find_adjacency
from torch_gas.session.base import ScalableGNN
from torch_gas.session.scale import scale

WIRINGS = ("explicit", "automatic")
SCHEDULES: tuple[Literal["consumed", "swapped"], ...] = ("consumed", "swapped")
TOLERANCE = {torch.float32: 1e-5, torch.float64: 1e-10}

Outcome = Literal["exact", "refused", "not applicable", "WRONG"]

_REFUSAL = re.compile("cannot be (used on a batch|trained with histories)")
_WIDEST = 32  # what a layer of the table returns has fewer channels


class Result(NamedTuple):
    """What was measured.

    Args:
        outcome: ``"exact"``, ``"refused"`` by torch_gas, ``"not applicable"`` where plain PyG fails on the whole graph, or
            ``"WRONG"``, which is a bug of torch_gas.
        errors: the largest difference relative to the largest value, for ``"forward"``, ``"gradient"``, ``"inference"``,
            ``"compensated gradient"`` and ``"exact gradient"``; without the last where PyG fails in training.
        message: of the error that was raised.
    """

    outcome: Outcome
    errors: dict[str, float]
    message: str = ""


def measure(
    case: Case, wiring: str, fmt: str, dtype: torch.dtype = torch.float32, summed_gradients: bool = True
) -> Result:
    """Measures two layers of ``case``, each with weights of its own, with a linear map before and another with tanh between.

    Args:
        case: of :data:`conformance.CASES`, or one's own.
        wiring: ``"explicit"`` (a :class:`torch_gas.ScalableGNN`) or ``"automatic"`` (:func:`torch_gas.scale`).
        fmt: one of :data:`conformance.FORMATS`.
        summed_gradients: whether to measure compensated and exact gradients as well, which takes longer than all others.
        dtype: ``torch.float32`` or ``torch.float64``; what is exact must be so within :data:`TOLERANCE`.

    Example:
        >>> from torch_geometric.nn import SAGEConv
        >>> from conformance import Case, measure
        >>> measure(Case(lambda: SAGEConv(8, 6)), "automatic", "edge_index").outcome
        'exact'
    """
    if wiring not in WIRINGS:
        raise ValueError(f"measure(): wiring must be one of {', '.join(WIRINGS)}, but is {wiring!r}")
    data = graph(fmt, dtype)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        try:
            net = _Net(case).to(dtype).eval()
            full = net(*net.inputs(data))
        except Exception as error:  # of any type: what a layer raises on a format that it does not take
            return Result("not applicable", {}, _describe(error))
        try:
            errors = _errors(net, data, full.detach(), wiring, summed_gradients)
        except Exception as error:  # of any type: what is no refusal is a result as well, and a wrong one
            if isinstance(error, ValueError) and _REFUSAL.search(str(error)):
                return Result("refused", {}, str(error))
            return Result("WRONG", {}, _describe(error))
    is_exact = all(error <= TOLERANCE[dtype] for error in errors.values())  # not so for NaN
    return Result("exact" if is_exact else "WRONG", errors)


def _describe(error: Exception) -> str:
    return f"{type(error).__name__}: {error}" if str(error) else f"{type(error).__name__} without a message"


class _Net(Module):
    """The plain model."""

    def __init__(self, case: Case) -> None:
        super().__init__()
        self.case = case
        self.layers = ModuleList(case.make() for _ in range(2))
        self.before = Parameter(torch.randn(C, C) / C**0.5)
        self.between = Parameter(torch.randn(_WIDEST, C) / C**0.5)

    def inputs(self, data: Data) -> tuple[Any, ...]:
        """What ``forward`` takes from a graph or batch."""
        return data[self.case.features], find_adjacency(data)[1], *(data[name] for name in self.case.attributes)

    def forward(
        self, x: Tensor, adj: Any, *attributes: Any, exchange: Callable[[Tensor], Tensor] | None = None
    ) -> Tensor:
        if x.is_floating_point():
            x = x @ self.before
        given = dict(zip(self.case.attributes, attributes, strict=True)) | {"adj": adj, "x_0": x}
        x = self._layer(0, x, given)
        if x.is_floating_point():
            x = (x @ self.between[: x.size(1)]).tanh()
        if exchange is not None:
            x = exchange(x)
        return self._layer(1, x, given)

    def _layer(self, number: int, x: Tensor, given: dict[str, Any]) -> Tensor:
        given = given | {"x": x}
        if "x_all" in self.case.order:
            given["x_all"] = torch.stack([given["x_0"], x], dim=1)
        out = self.layers[number](*(given[name] for name in self.case.order))
        return out[0] if isinstance(out, tuple) else out


class _Explicit(ScalableGNN):
    """The same with a history between its layers."""

    def __init__(self, net: _Net) -> None:
        super().__init__(N, C, num_layers=2)
        self.net = net

    def inputs(self, data: Data, **kwargs: Any) -> tuple[tuple[Any, ...], dict[str, Any]]:
        x, adj, *attributes = self.net.inputs(data)
        return (x, adj), dict(zip(self.net.case.attributes, attributes, strict=True))

    def forward(self, x: Tensor, adj: Any, *ids: Any, **attributes: Any) -> Tensor:
        return self.net(
            x, adj, *attributes.values(), exchange=lambda rows: self.push_and_pull(self.histories[0], rows, *ids)
        )


def _errors(net: _Net, data: Data, full: Tensor, wiring: str, summed_gradients: bool) -> dict[str, float]:
    model: ScalableGNN
    if wiring == "explicit":
        model, neighbors = _Explicit(net).to(net.between.dtype).eval(), "in"
        args, kwargs = model.inputs(data)
    else:
        model = scaled = scale(net, data, inputs=net.inputs)
        neighbors = scaled.found.neighbors
        args, kwargs = net.inputs(data), {}
    parts = SubgraphLoader(data, PTR, 1, neighbors=neighbors, prefetch=0)
    unions = SubgraphLoader(data, PTR, 2, bipartite=False, neighbors=neighbors, prefetch=0, shuffle=True, seed=0)
    with torch.no_grad():
        model(next(iter(parts)))  # a batch tells what is refused
        model(*args, **kwargs)  # the whole graph makes the histories exact
        forward = torch.stack([_difference(_rows(model, loader, full), full) for loader in (parts, unions)]).max()
    gradient = _gradient_error(model, net, data, neighbors)
    for history in model.histories:
        history.reset_parameters()
    inference = _difference(model(loader=EvalSubgraphLoader(data, PTR, neighbors=neighbors)), full)
    errors = {"forward": float(forward), "gradient": float(gradient), "inference": float(inference)}
    if not summed_gradients:
        return errors

    def whole() -> Tensor:
        return model(*args, **kwargs)

    compensated = [_compensated_gradient_error(model, net, data, parts, whole, each) for each in SCHEDULES]
    errors["compensated gradient"] = float(torch.stack(compensated).max())
    model.train()
    try:
        net(*net.inputs(data))
    except Exception:  # of any type, as above: what PyG cannot train on this format
        return errors
    try:
        exact = float(_exact_gradient_error(model, net, data, parts, whole))
    except ValueError as error:
        if not str(error).startswith("ExactGradient: "):
            raise
        exact = inf  # it has found out itself that batches give other rows
    return errors | {"exact gradient": exact}


def _difference(got: Tensor, want: Tensor) -> Tensor:
    """max|got - want| / max|want|"""
    if got.shape != want.shape or got.dtype != want.dtype:
        raise AssertionError(f"{tuple(got.shape)} {got.dtype} instead of {tuple(want.shape)} {want.dtype}")
    return (got - want).abs().max() / want.abs().max()


def _rows(model: ScalableGNN, loader: SubgraphLoader, like: Tensor) -> Tensor:
    out = torch.full_like(like, torch.nan)
    for batch in loader:
        out[batch.n_id[: batch.batch_size]] = model(batch)
    return out


def _gradient_error(model: ScalableGNN, net: _Net, data: Data, neighbors: str) -> Tensor:
    """Of all parameters, for a batch of all parts; of those of the last layer, for a batch with a halo.

    The latter are exact where that layer takes one hop, which is to say that the only history is the one before it.
    """
    full = net(*net.inputs(data))
    weights = torch.randn(full.shape, dtype=full.dtype)  # of the rows, so that no gradient is zero by symmetry

    def compare(num_parts: int, bipartite: bool, parameters: list[Parameter]) -> Tensor:
        batch = next(iter(SubgraphLoader(data, PTR, num_parts, bipartite, neighbors=neighbors, prefetch=0)))
        ids = batch.n_id[: batch.batch_size]
        return _difference(
            _gradient(model(batch), weights[ids], parameters), _gradient(full[ids], weights[ids], parameters)
        )

    errors = [compare(len(PTR) - 1, True, list(net.parameters()))]
    last = list(net.layers[1].parameters())
    if last and len(model.histories) == 1:
        errors += [compare(1, bipartite, last) for bipartite in (True, False)]
    return torch.stack(errors).max()


def _gradient(rows: Tensor, weights: Tensor, parameters: list[Parameter]) -> Tensor:
    """Of a weighted sum of ``rows``, one after the other."""
    loss = (rows * weights).sum()
    found = torch.autograd.grad(loss, parameters, retain_graph=True, allow_unused=True, materialize_grads=True)
    return torch.cat([gradient.flatten() for gradient in found])


def _compensated_gradient_error(
    model: ScalableGNN,
    net: _Net,
    data: Data,
    parts: SubgraphLoader,
    whole: Callable[[], Tensor],
    schedule: Literal["consumed", "swapped"],
) -> Tensor:
    """Of all parameters, summed over batches of one part, once gradient tables are exact."""
    model.eval()
    model.training = True  # calls are steps of training, while layers compute as in evaluation
    full = net(*net.inputs(data))
    weights = torch.randn(full.shape, dtype=full.dtype)
    parameters = list(net.parameters())
    want = _gradient(full, weights, parameters)
    with torch.no_grad():
        whole()  # makes the histories exact
    # Told that nothing scales the loss, it does not look through all objects for what may.
    compensation = Compensation(1.0, schedule=schedule, scaler=GradScaler("cpu", enabled=False))
    model.add_extension(compensation)
    for _ in range(len(model.histories) + 1):  # an epoch for each history, and the one that is compared
        net.zero_grad()
        for batch in parts:
            out = model(batch)
            (out * weights[batch.n_id[: len(out)]]).sum().backward()
    model.remove_extension(compensation)
    found = _accumulated(parameters)
    net.zero_grad()
    return _difference(found, want)


def _exact_gradient_error(
    model: ScalableGNN, net: _Net, data: Data, parts: SubgraphLoader, whole: Callable[[], Tensor]
) -> Tensor:
    """Of all parameters in training mode, from batches of one part."""
    state = torch.get_rng_state()
    full = net(*net.inputs(data))
    if not torch.equal(state, torch.get_rng_state()):  # the plain model cannot draw the masks of batches
        masks = DropoutById(seed=0)
        model.add_extension(masks)
        full = whole()
        masks.step = 0
    weights = torch.randn(full.shape, dtype=full.dtype)
    parameters = list(net.parameters())
    want = _gradient(full, weights, parameters)
    ExactGradient(model, parts).backward(lambda out, batch: (out * weights[batch.n_id[: len(out)]]).sum())
    return _difference(_accumulated(parameters), want)


def _accumulated(parameters: list[Parameter]) -> Tensor:
    """What ``backward()`` has added to their gradients, one after the other."""
    found = [torch.zeros_like(each) if each.grad is None else each.grad for each in parameters]
    return torch.cat([gradient.flatten() for gradient in found])
