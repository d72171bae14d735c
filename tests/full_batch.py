"""The full batch beside ExactGradient: the same model, called on the whole graph."""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from graphs import random_graph, to_format
from torch import Tensor
from torch.nn import Module
from torch_geometric.data import Data

from torch_gas import ScalableGNN, SubgraphLoader, scale
from torch_gas.exact import DropoutById, ExactGradient

N = 60
PTR = torch.tensor([0, 14, 14, 37, 45, N])  # one part is empty
RUNNING = ("running_mean", "running_var", "num_batches_tracked")


def graph(fmt: str = "edge_index", **options: Any) -> Data:
    """With attributes of edges, in float64."""
    data = random_graph(N, 4 * N, seed=1, **options)
    generator = torch.Generator().manual_seed(2)
    data.x = data.x.double()
    if fmt in ("edge_index", "EdgeIndex"):
        data.edge_weight = torch.rand(data.num_edges, generator=generator, dtype=torch.float64)
        data.edge_attr = torch.rand(data.num_edges, 3, generator=generator, dtype=torch.float64)
    return to_format(data, fmt)


def batches(data: Data, model: Any = None, batch_size: int = 1, **options: Any) -> SubgraphLoader:
    """The loader that a model needs."""
    options.setdefault("neighbors", getattr(getattr(model, "found", None), "neighbors", "in"))
    return SubgraphLoader(data, PTR, batch_size, **options)


def wired(net: Module, data: Data, seed: int | None = 3, **options: Any) -> Any:
    """The model with histories, in training mode and float64; masks are those of ``seed``, if it is given one."""
    net = net.double()
    model: Any = net if isinstance(net, ScalableGNN) else scale(net, data, **options)
    model.train()
    if seed is not None:
        model.add_extension(DropoutById(seed))
    return model


def whole(model: Any, data: Data) -> Any:
    """What the model returns for the whole graph."""
    if isinstance(model, ScalableGNN):
        args, kwargs = model.inputs(data)
        return model(*args, **kwargs)
    return model(data)


def criterion(out: Any, batch: Any) -> Tensor:
    """A mean over the graph, of a batch or the whole of it, and of outputs of any kind."""
    leaves = torch.utils._pytree.tree_leaves(out)
    losses = [F.cross_entropy(each, batch.y[: len(each)] % each.size(1), reduction="sum") for each in leaves]
    return sum(losses, torch.zeros((), dtype=leaves[0].dtype)) / N


def grads(model: Module) -> dict[str, Tensor]:
    """Of those parameters that have one."""
    return {name: each.grad for name, each in model.named_parameters() if each.grad is not None}


def buffers(model: Module) -> dict[str, Tensor]:
    """Of norms."""
    return {name: value.clone() for name, value in model.named_buffers() if name.rpartition(".")[2] in RUNNING}


def assert_same(got: dict[str, Tensor], want: dict[str, Tensor], tolerance: float = 1e-10) -> None:
    """Relative to the norm of all together, as a gradient may be zero but for rounding."""
    assert got.keys() == want.keys() and want
    norm = torch.stack([value.double().norm() for value in want.values()]).norm()
    assert norm > 0
    errors = {name: float((got[name] - value).norm() / norm) for name, value in want.items()}
    assert all(error <= tolerance for error in errors.values()), errors  # not so for NaN


def compare(
    model: Any,
    data: Data,
    loader: SubgraphLoader | None = None,
    loss_of: Callable[[Any, Any], Tensor] = criterion,
    tolerance: float = 1e-10,
) -> ExactGradient:
    """Asserts that a step of exact mode has the loss, the gradient and the running statistics of the full batch."""
    loader = loader or batches(data, model)
    reference, same_data = copy.deepcopy(model), copy.copy(data)
    for name, value in leaves(data).items():
        same_data[name] = value.detach().clone().requires_grad_()
    want = loss_of(whole(reference, same_data), same_data)
    want.backward()
    exact = ExactGradient(model, loader)
    loss = exact.backward(loss_of)
    assert not loss.requires_grad and loss.shape == ()
    torch.testing.assert_close(loss, want.detach().view(()), rtol=tolerance, atol=0)
    assert_same(grads(model) | learned(data), grads(reference) | learned(same_data), tolerance)
    for name, value in buffers(reference).items():
        torch.testing.assert_close(buffers(model)[name], value, rtol=tolerance, atol=tolerance)
    return exact


def leaves(data: Data) -> dict[str, Tensor]:
    """Attributes of the graph that learn."""
    return {name: value for name, value in data.to_dict().items() if isinstance(value, Tensor) and value.requires_grad}


def learned(data: Data) -> dict[str, Tensor]:
    """Gradients of attributes of the graph."""
    return {f"data.{name}": value.grad for name, value in leaves(data).items() if value.grad is not None}
