"""Runs of a model that leave it as it was: what they change of it, on purpose or not, is put back."""

from __future__ import annotations

import copy
import random
from collections.abc import Collection, Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.nn import Module
from torch.nn.modules.batchnorm import _BatchNorm
from torch.nn.parameter import Parameter, is_lazy
from torch_geometric.data import Data

from torch_gas.batch.data import SubData
from torch_gas.history import History
from torch_gas.wiring.arguments import Arguments, Inputs, square
from torch_gas.wiring.batch import Rows
from torch_gas.wiring.places import Handler, Layout, Places
from torch_gas.wiring.rowwise import Steps, Watch
from torch_gas.wiring.trial.small import NODES, NUM_NODES
from torch_gas.wiring.undo import Undo

_OF_MODULES = vars(torch.nn.Module()).keys() - {"training"}


@contextmanager
def undisturbed(model: Module) -> Iterator[None]:
    """Leaves buffers, modes, other attributes and random numbers as they were.

    Batch norms without running statistics are given some: in evaluation mode, no batch has those of the whole graph.
    """
    norms = [norm for norm in model.modules() if isinstance(norm, _BatchNorm) and norm.running_mean is None]
    with restored(model, buffers_of_layers(model)), torch.no_grad():
        torch.manual_seed(0)
        model.eval()
        try:
            for norm in norms:
                like = next(norm.parameters(), torch.empty(0, device="cpu"))
                norm.running_mean, norm.running_var = (
                    like.new_zeros(norm.num_features),
                    like.new_ones(norm.num_features),
                )
            yield
        finally:
            for norm in norms:
                norm.running_mean = norm.running_var = None


@contextmanager
def restored(model: Module, buffers: Collection[str]) -> Iterator[None]:
    """Puts back the buffers of these names, modes, other attributes and random numbers."""
    held = {key: value.clone() for key, value in model.named_buffers() if key in buffers and not is_lazy(value)}
    attributes = [(vars(module), _plain(module)) for module in model.modules()]
    states = random.getstate(), np.random.get_state()
    with torch.random.fork_rng(devices={value.device for value in _tensors(model) if value.is_cuda}):
        try:
            yield
        finally:
            random.setstate(states[0])
            np.random.set_state(states[1])
            for key, value in model.named_buffers():
                if key in held:
                    value.data.copy_(held[key])  # a backward pass may be waiting for the buffer
            for now, before in attributes:
                for key in now.keys() - before.keys() - _OF_MODULES:
                    del now[key]
                for key, (value, content) in before.items():
                    if content is not None:
                        value.clear()
                        value.extend(content) if isinstance(value, list) else value.update(content)
                    now[key] = value


def _plain(module: Module) -> dict[str, tuple[Any, Any]]:
    """What a module holds beside its registered parts, such as a cache or a counter, and the content of its containers."""
    return {
        key: (value, copy.copy(value) if isinstance(value, (list, dict, set)) else None)
        for key, value in vars(module).items()
        if key not in _OF_MODULES
    }


@contextmanager
def varied(model: Module) -> Iterator[None]:
    """Gives parameters and buffers other values, so that nothing is hidden by a gate that is zero at first."""
    held = [(value, value.data) for value in _tensors(model) if value.is_floating_point()]
    try:
        for value, before in held:  # not in place, because a backward pass may be waiting for them
            noise = torch.randn_like(before)
            # Buffers keep their sign: a variance must not become negative.
            value.data = before + 0.1 * noise if isinstance(value, Parameter) else before * (1 + 0.2 * noise.abs())
        yield
    finally:
        for value, before in held:
            value.data = before


def materialize(model: Module, data: Data, inputs: Inputs) -> None:
    """Gives lazy parameters their shapes, with the user's random numbers."""
    if any(map(is_lazy, [*model.parameters(), *model.buffers()])):
        with torch.inference_mode(mode=False), torch.no_grad():  # they are trained, wherever the model is scaled
            call_whole(model, inputs(to_model(model, data)), data, Handler())


def call_whole(
    model: Module,
    given: Arguments,
    small: Data,
    handler: Handler,
    steps: Steps | None = None,
    watch: Watch | None = None,
) -> Any:
    """Runs the small graph, of which ``given`` is, with ``handler`` at the places of ``model``."""
    args, kwargs = given
    with Undo() as undo:
        num_rows = int(small.num_nodes)
        layout = Layout(steps=steps or {})
        Places(model, handler, num_rows).wire(undo, Rows(num_rows, small[NODES], NUM_NODES), layout, watch)
        return model(*args, **kwargs)


def call(model: Module, inputs: Inputs, batch: SubData, handler: Handler, layout: Layout) -> Any:
    """Runs a batch with ``handler`` at its places; the result has B + S rows, or B where the halo's are not needed."""
    num_rows = batch.n_id.numel()
    args, kwargs = inputs(to_model(model, batch.data))
    args = tuple(square(value, num_rows) for value in args)
    kwargs = {key: square(value, num_rows) for key, value in kwargs.items()}
    with Undo() as undo:
        num_nodes = num_rows if batch.record is None else batch.record.num_nodes
        rows = Rows(batch.batch_size, batch.get(NODES, batch.n_id), num_nodes)
        Places(model, handler, num_rows).wire(undo, rows, layout)
        return model(*args, **kwargs)


def to_model(model: Module, data: Data) -> Data:
    """``data`` on the device of ``model``."""
    parameter = next(iter(_tensors(model)), None)
    return data if parameter is None else copy.copy(data).to(parameter.device)


def _tensors(model: Module) -> list[Tensor]:
    return [value for value in (*model.parameters(), *buffers_of_layers(model).values()) if not is_lazy(value)]


def buffers_of_layers(model: Module) -> dict[str, Tensor]:
    """The buffers of layers; tables of histories may be larger than memory."""
    tables = tuple(f"{name}." for name, module in model.named_modules() if isinstance(module, History))
    return {name: value for name, value in model.named_buffers() if not name.startswith(tables)}
